"""The perceiver resampler: a fixed number of learned latents attends to any number of features.

Shapes: B images or clips, F frames, N features per frame, W channels, R latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.errors import UserError
from tessera.nn import initialise
from tessera.nn.cross_attention import NormedFeedForward, attend


class LatentAttention(nn.Module):
    """Latents [B, R, W] attend to features [B, S, W] and to themselves -> [B, R, W]."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        read = torch.cat([self.norm_features(features), latents], dim=1)
        key, value = self.key_value(read).chunk(2, dim=-1)
        return self.out(attend(self.query(latents), key, value, self.heads))


class PerceiverResampler(nn.Module):
    """Features of one to `frames` frames -> R latents, the same number for all of them."""

    def __init__(
        self,
        width: int,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_width: int = 64,
        multiple: int = 4,
        frames: int = 0,
    ) -> None:
        """frames: most frames of a clip, each of which has a learned embedding of its time; 0: single images, without one."""
        super().__init__()
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.times = nn.Parameter(torch.empty(frames, width)) if frames else None
        self.attention = nn.ModuleList(LatentAttention(width, heads, head_width) for _ in range(depth))
        self.feed_forward = nn.ModuleList(NormedFeedForward(width, multiple) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; latents and times are normal, as large as normalised features."""
        initialise.tree(self)
        init.normal_(self.latents)
        if self.times is not None:
            init.normal_(self.times)

    def forward(self, features: Tensor) -> Tensor:
        """[B, F, N, W] or, of single images, [B, N, W] -> [B, R, W]. Raises `UserError` for more frames than there are times."""
        clips = features if features.ndim == 4 else features[:, None]
        frames = clips.shape[1]
        if self.times is not None:
            if frames > len(self.times):
                raise UserError(f"a clip has {frames} frames; this resampler knows the times of {len(self.times)}.")
            clips = clips + self.times[:frames, None]
        elif frames > 1:
            raise UserError(f"a clip of {frames} frames was given to a resampler of single images (frames=0).")
        read = clips.flatten(1, 2)
        latents = self.latents.to(read.dtype).expand(read.shape[0], -1, -1)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            latents = latents + attention(read, latents)
            latents = latents + feed_forward(latents)
        return self.norm(latents)
