"""Projected visual tokens take the places of placeholder tokens in the text.

Source: Liu et al., "Visual Instruction Tuning (LLaVA)", 2023, arXiv:2304.08485; before it Tsimpoukelli et
al., "Multimodal Few-Shot Learning with Frozen Language Models", 2021, arXiv:2106.13884. Deviations: none.

Shapes: embeddings [B, T, E], placeholders [B, T], tokens [M, n, E] of all M images in order -> embeddings [B,
T, E].
"""

from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.registry import part


@part("prefix", socket="couplings")
class Prefix(nn.Module):
    """Writes image features over the placeholders' embeddings."""

    @config
    class Config:
        """No settings."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()

    def forward(self, embeddings: Tensor, placeholders: Tensor, features: Tensor) -> Tensor:
        """Embeddings [B, T, E], placeholders [B, T] bool, features [M, n, E] -> [B, T, E].

        Raises `UserError` when the placeholders and the features differ in number.
        """
        images, per_image, width = features.shape
        found = int(placeholders.sum())
        if found != images * per_image:
            held = f"{found / per_image:g}" if per_image else "0"
            raise UserError(
                f"the text holds {found} image placeholder tokens (room for {held} images), but {images} "
                f"image(s) of {per_image} tokens each were given, {images * per_image} in all. "
                "Every image needs one `<image>` "
                f"in the text before the processor expands it, and truncation must not cut placeholders off."
            )
        flat = features.reshape(images * per_image, width).to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(placeholders.unsqueeze(-1), flat)
