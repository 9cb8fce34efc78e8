"""Projected visual tokens take the places of placeholder tokens in the text.

Source: Liu et al., "Visual Instruction Tuning (LLaVA)", 2023, arXiv:2304.08485; before it Tsimpoukelli et
al., "Multimodal Few-Shot Learning with Frozen Language Models", 2021, arXiv:2106.13884. Deviations: none.

Shapes: embeddings [B, T, E], placeholders [B, T], tokens [M, n, E] of all M images in order -> embeddings [B,
T, E].
"""

from tessera.config import config
from tessera.models.coupling import Coupling
from tessera.registry import part


@part("prefix", socket="couplings")
class Prefix(Coupling):
    """Writes image features over the placeholders' embeddings: what every coupling does that does not do something else."""

    @config
    class Config:
        """No settings."""
