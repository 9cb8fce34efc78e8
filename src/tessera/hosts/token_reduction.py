"""Parts that choose or merge visual tokens: the base of what plugs into hosts from the socket `tokens`.

A part says in front of which decoder layers it acts (`shares`), and either which tokens matter (`score`), which of them go on
(`keep`), or what they become (`merge`); each has a default that asks the one before.

Legend: B rows, S tokens of the prompt, K tokens left at a layer, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Positions, Selection
from tessera.nn.raster import Raster, on_prompt, raster
from tessera.nn.reduction import check_layers, check_shares, keep_share, stages


class TokenReduction(HostPart):
    """Fewer visual tokens from some decoder layers on; layer 0 is the projector's output. Text always goes on."""

    claims = ("visual tokens",)

    @config
    class Config:
        """positions: of the tokens that stay, their own or counted anew."""

        positions: Positions = "keep"

    @property
    def positions(self) -> Positions:
        """As configured."""
        return self.config.positions

    def shares(self, layers: int) -> Mapping[int, float]:
        """Decoder layer in front of which the part acts -> share (0 to 1) of the prompt's visual tokens that goes on from it.

        Raises `UserError` where the options do not fit a host of `layers` decoder layers.
        """
        raise NotImplementedError

    def score(self, view: LayerView) -> Tensor:
        """[B, K] float: how much each visual token matters; those of +inf stay in any case and are not counted (newlines)."""
        raise NotImplementedError

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """[B, K] bool: the tokens that go on. Of each image floor(ratio x its tokens in the prompt), by score; of equal ones the
        earlier."""
        score, sequence = self.score(view), view.sequence
        always = torch.zeros_like(sequence.visual).scatter(1, view.index, view.visual & (score == torch.inf))
        return keep_share(score, sequence.image_of.masked_fill(always, -1), view.index, view.visual, ratio)

    def merge(self, view: LayerView, ratio: float) -> Selection:
        """The tokens that go on, and their new states where they take in others: by default nothing is merged."""
        return Selection(keep=self.keep(view, ratio))

    def boundaries(self, host: Host) -> Collection[int]:
        """The layers of `shares`."""
        return self.shares(host.layer_count).keys()

    def select(self, view: LayerView) -> Selection | None:
        """Merges or drops in front of the layers of `shares`."""
        ratio = self.shares(view.host.layer_count).get(view.layer)
        return None if ratio is None or not bool(view.visual.any()) else self.merge(view, ratio)


class OneDrop(TokenReduction):
    """Drops once, in front of the first decoder layer, a share of the visual tokens."""

    @config
    class Config(TokenReduction.Config):
        """keep: share of the visual tokens that stays, 0 to 1."""

        keep: float = 0.25

        def validate_keep(self) -> None:
            if not 0 <= self.keep <= 1:
                raise ValueError(f"keep is a share from 0 to 1, not {self.keep}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token stays."""
        return {"keep": 1.0}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens stay."""
        return {"keep": 0.5}

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any] | None:
        """Every layer reads what stays."""
        return {"keep": share}

    def shares(self, layers: int) -> Mapping[int, float]:
        """The first layer."""
        return {} if self.config.keep >= 1 else {0: self.config.keep}


class PlaceDrop(TokenReduction):
    """Drops at chosen layers by where tokens stand, whatever the image shows: the controls. Newlines stay and are not counted."""

    reads_question = False

    @config
    class Config(TokenReduction.Config):
        """keep: share of each image's original tokens that goes on from each drop, falling.
        layers: the decoder layers in front of which tokens are dropped, rising; 0 is the projector's output."""

        keep: tuple[float, ...] = (0.25,)
        layers: tuple[int, ...] = (0,)

        def validate_keep(self) -> None:
            check_shares(self.keep)

        def validate_layers(self) -> None:
            check_layers(self.layers)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token goes on."""
        return {"keep": (1.0,)}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens."""
        return {"keep": (0.5,)}

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """Dropping happens in front of the first layer."""
        return {"keep": (share,)}

    def shares(self, layers: int) -> Mapping[int, float]:
        """Layer -> share, without drops of nothing."""
        return stages(type(self).__name__.lower(), self.config.keep, self.config.layers, layers)

    def order(self, visual: Tensor, places: Raster | None) -> Tensor:
        """[B, S] int64 below 2^24, the highest stay, from visual [B, S] bool and its places, None where a host tells none."""
        raise NotImplementedError

    def score(self, view: LayerView) -> Tensor:
        """The order of the tokens that are left."""
        visual, places = view.sequence.visual, None
        if "raster" in view.host.architecture.capabilities:
            places = raster(view.layouts(), visual.device)
        score = self.order(visual, places).float()
        if places is not None:
            score = score.masked_fill(on_prompt(places.newline, visual, False), torch.inf)
        return score.gather(1, view.index)
