"""DeepSeek-VL: every patch of SigLIP is a token; the hybrid adds SAM's features of a larger image, channel by channel.

The hybrid's attention is that of SigLIP, the tower that gives the raster.
"""

from __future__ import annotations

from tessera.hosts.architecture import RasterFamily, family


@family("deepseek_vl", title="DeepSeek-VL")
class DeepseekVL(RasterFamily):
    """See the module."""


@family("deepseek_vl_hybrid", title="DeepSeek-VL hybrid")
class DeepseekVLHybrid(DeepseekVL):
    """See the module."""
