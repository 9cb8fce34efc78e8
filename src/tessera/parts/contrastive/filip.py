"""FILIP compares an image and a text token by token.

Source: Yao et al., "FILIP: Fine-grained Interactive Language-Image Pre-Training", 2021, arXiv:2111.07783. Every visual token
finds its best word, and the mean over the visual tokens is the similarity of the image to the text; every word finds its best
visual token, and the mean over the words is the similarity of the text to the image. The two differ, and both enter the
symmetric contrastive loss. There is no cross-attention, so token embeddings can be computed once and kept. Which patch a word
finds shows where it is.

Deviations: the selection of tokens before they are compared across the batch (`keep`, 25 % in the paper) is off by default, as
one process has nothing to communicate; special tokens of the text count as words. The authors released no code. The public one of
DeCLIP (github.com/Sense-GVT/DeCLIP) differs: it has one vector's contrastive loss besides, counts padding among the words, and
selects on one side of a comparison, 16 tokens of the greatest summed similarity to the own pair; here `keep` selects on both
sides, a share by the greatest similarity to any token of the batch, and padding never counts.

Shapes: I images, N tokens of width D, X texts of T tokens, E channels of the shared space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.models.contrast import Contrast, Embedded, contrastive_loss, gathered
from tessera.nn import initialise
from tessera.registry import part

_AT_ONCE = 1 << 25
"""Token pairs that are compared in one go where no gradient is kept."""


@part("filip", socket="contrastive", catalog=234)
class FILIP(Contrast):
    """All tokens as vectors, token-wise maximum similarity."""

    @config
    class Config:
        """keep: share of an image's and of a text's tokens that enter the loss, those with the highest similarity to any token of
        the process's own batch; 1: all."""

        keep: float = 1.0

        def validate_keep(self) -> None:
            if not 0 < self.keep <= 1:
                raise ValueError(f"keep is a share above 0, at most 1, not {self.keep}.")

    def __init__(self, config: Config, width: int, out_width: int, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """The projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)

    def images(self, features: Tensor) -> Embedded:
        """[I, N, D] -> [I, N, E]."""
        vectors = self.project(self.norm(features))
        return Embedded(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    def texts(self, tokens: Tensor, there: Tensor) -> Embedded:
        """[X, T, E], [X, T] -> the same."""
        return Embedded(tokens, there)

    def similarity(self, images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
        """Mean over visual tokens of the best word [I, X], mean over words of the best visual token [X, I]."""
        pairs = max(1, images.there.shape[1] * texts.there.numel())
        step = len(images) if torch.is_grad_enabled() else max(1, _AT_ONCE // pairs)
        blocks = [late_interaction(images[i : i + step], texts) for i in range(0, max(1, len(images)), max(1, step))]
        return torch.cat([b[0] for b in blocks]), torch.cat([b[1] for b in blocks], dim=1)

    def loss(self, images: Embedded, texts: Embedded, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Contrast.loss`, on the kept tokens; they are chosen before anything is gathered."""
        if self.config.keep < 1:
            images, texts = select(images, texts, self.config.keep)
        per_image, per_text = self(gathered(images), gathered(texts), scale)
        return contrastive_loss(per_image, per_text), per_image, per_text


def late_interaction(images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
    """Unit embeddings of I images and X texts -> [I, X], [X, I]."""
    cosine = _cosines(images, texts)
    best_word = _best(cosine, texts.there[None, :, None], 3)  # [I, X, N]
    best_patch = _best(cosine, images.there[:, None, :, None], 2)  # [I, X, T]
    return _mean(best_word, images.there[:, None]), _mean(best_patch, texts.there[None]).t()


def _best(cosine: Tensor, there: Tensor, axis: int) -> Tensor:
    """The largest cosine along an axis of what is there; -1 where nothing is."""
    if not bool(there.all()):
        cosine = cosine.masked_fill(~there, -1.0)
    return cosine.max(axis).values.float()


def select(images: Embedded, texts: Embedded, keep: float) -> tuple[Embedded, Embedded]:
    """Of every image and text the max(1, ceil(keep x count)) tokens that are most similar to any token on the other side."""
    with torch.no_grad():
        cosine = _cosines(images, texts)
        cosine = cosine.masked_fill(~(images.there[:, None, :, None] & texts.there[None, :, None]), -torch.inf)
        of_patch, of_word = cosine.amax((1, 3)), cosine.amax((0, 2))
    return _top(images, of_patch, keep), _top(texts, of_word, keep)


def alignment(image: Tensor, text: Tensor, there: Tensor) -> Tensor:
    """Unit tokens of one image [N, E] and one text [T, E], there [T] -> the word that every patch finds [N], int64."""
    return (image @ text.t()).masked_fill(~there, -torch.inf).argmax(1)


def _cosines(images: Embedded, texts: Embedded) -> Tensor:
    """[I, X, N, T]."""
    (count, tokens, width), (others, words, _) = images.vectors.shape, texts.vectors.shape
    flat = images.vectors.reshape(-1, width) @ texts.vectors.reshape(-1, width).t()
    return flat.view(count, tokens, others, words).transpose(1, 2)


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Mean over the last axis where `there`; 0 for nothing at all."""
    return values.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp_min(1)


def _top(embedded: Embedded, score: Tensor, keep: float) -> Embedded:
    wanted = (embedded.there.sum(1) * keep).ceil().long().clamp_min(1)
    most = int(wanted.max())
    places = score.topk(most, dim=1).indices
    vectors = embedded.vectors.gather(1, places[..., None].expand(-1, -1, embedded.vectors.shape[2]))
    there = torch.arange(most, device=places.device) < wanted[:, None]
    return Embedded(vectors, there & embedded.there.gather(1, places))
