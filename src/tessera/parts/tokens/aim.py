"""AIM merges alike visual tokens in front of the language model and prunes unimportant ones inside of it.

Source: Zhong et al., "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", 2024, arXiv:2412.03248.
Training-free. (a) Every second token of an image looks for the one most like it among the others, by cosine; the most
similar pairs become their mean, again and again until a share is left (bipartite soft matching). (b) Behind a layer,
tokens are ranked by PageRank over its attention logits: M = softmax(logits / 0.1) per head, five steps of dist @ M
from a uniform start, heads joined by their root mean square. From a layer in the middle on fewer and fewer visual tokens
go on, in equal steps, until none is left; text always goes on.

Deviations: as in the authors' code, merging keeps no sizes: a merged token weighs as much as any other in the next round.
Tokens that go on keep their order (theirs puts unmerged ones first when a round merges less than half). PageRank walks
over the tokens that are left and real, not over masked ones and padding too, and runs only behind layers where the share
falls. Newline tokens are not merged. A row's images are pruned together, as one set.

Shapes: G images of equal size, N tokens each, E width; B rows, H heads, K tokens per row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.taps import listen
from tessera.hosts.token_reduction import TokenReduction
from tessera.hosts.values import Selection
from tessera.nn.raster import on_prompt, raster
from tessera.nn.reduction import share
from tessera.registry import part

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tessera.hosts.contract import Host


def merged(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching: tokens [G, N, E] -> (tokens [G, N - r, E], their places [G, N - r] int64).

    The `r = min(count, N // 2)` even tokens that resemble an odd one most are averaged into it (with all others that
    choose the same); of equal ones the earlier. The rest keeps its order.
    """
    groups, length, width = tokens.shape
    gone = min(count, length // 2)
    if gone < 1:
        return tokens, torch.arange(length, device=tokens.device).expand(groups, length)
    even = tokens[:, ::2]
    with torch.no_grad():
        # Cosines from products: the table of pairs is smaller than the tokens, so it is cheaper to divide.
        norms = torch.linalg.vector_norm(tokens.float(), dim=-1).clamp(min=1e-12)
        alike = (even.float() @ tokens[:, 1::2].float().mT).div_(norms[:, None, 1::2])
        best, target = alike.max(-1)
        best = best / norms[:, ::2]
        source = best.argsort(dim=1, descending=True, stable=True)[:, :gone]
        # Whole rows of flat tensors are added, which is many times faster on a CPU than a scatter of single numbers.
        start = torch.arange(0, groups * length, length, device=tokens.device)[:, None]
        goes, into = (start + 2 * source).flatten(), (start + 2 * target.gather(1, source) + 1).flatten()
        joined = 1 + into.bincount(minlength=groups * length)
        joined[goes] = 0
        kept = joined.nonzero()[:, 0]
    flat = tokens.flatten(0, 1)
    means = flat.index_add(0, into, flat[goes])[kept] / joined[kept, None].to(flat.dtype)
    return means.view(groups, length - gone, width), kept.view(groups, -1) - start


def merged_to(tokens: Tensor, goal: int) -> tuple[Tensor, Tensor]:
    """Rounds of `merged`, each of at most half of the tokens, until `goal` (at least 1) are left.

    tokens [G, N, E] -> (tokens [G, goal, E], their places [G, goal] int64 in the first ones).
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
    while tokens.shape[1] > goal:
        tokens, kept = merged(tokens, tokens.shape[1] - goal)
        places = places.gather(1, kept)
    return tokens, places


def page_rank(logits: Tensor, real: Tensor, temperature: float = 0.1, steps: int = 5) -> Tensor:
    """Importance of tokens: logits [B, H, K, K], real [B, K] bool -> [B, K] float32.

    Logits are the lowest number where a query sees no key. Root of the mean over heads of the squared distribution that `steps`
    steps along softmax(logits / temperature) make of the uniform one over real tokens.
    """
    sharp = logits.float() if temperature == 1 else (logits.float() / temperature).clamp_(min=torch.finfo(torch.float32).min)
    walk = sharp.softmax(-1)  # the rows of padding, which sees nothing, mean nothing: no walk starts there or comes by
    start = real.float() / real.sum(1, keepdim=True).clamp(min=1)
    mass = start[:, None, None].expand(-1, logits.shape[1], 1, -1)
    for _ in range(steps):
        mass = mass @ walk
    return mass[:, :, 0].square().mean(1).sqrt()


def falling(layers: int, start: int | None = None, stop: int | None = None) -> dict[int, float]:
    """Layer -> share of the merged visual tokens that enters it, for the layers where it is less than in the one before.

    Behind layer l in [start, stop) goes on 1 - (l - start + 1) / (stop - start). The authors' schedule, 14 and 22 of 28
    layers, stretched to `layers` when nothing is given.
    """
    first = layers // 2 if start is None else start
    last = max(round(layers * 22 / 28), first + 1) if stop is None else stop
    return {l + 1: 1 - (l - first + 1) / (last - first) for l in range(first, last) if l + 1 < layers}


def logits_of(query: Tensor, key: Tensor, mask: Any, scaling: float | None, real: Tensor) -> Tensor:
    """Causal attention logits of a prefill [B, H, K, K] float32.

    query [B, H, K, D], key [B, G, at least K, D], mask as layers get it, real [B, K] bool for masks that are not 4-D.
    """
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    grouped = (query * (width**-0.5 if scaling is None else scaling)).view(rows, groups, heads // groups, length, width)
    scores = (grouped @ key[:, :, None, :length].mT).view(rows, heads, length, length).float()
    if isinstance(mask, Tensor) and mask.dim() == 4:
        seen = mask[..., :length]
        lowest = torch.finfo(torch.float32).min
        return scores.masked_fill_(~seen, lowest) if seen.dtype == torch.bool else (scores + seen.float()).clamp_(min=lowest)
    # Added, not filled in: several times faster on a CPU, and next to the lowest number a logit is nothing.
    later = torch.full((length, length), torch.finfo(torch.float32).min, device=query.device).triu_(1)
    if not bool(real.all()):
        later = later.masked_fill(~real[:, None, None], torch.finfo(torch.float32).min)
    return scores.add_(later)


@part("aim", socket="tokens", catalog=270)
class AIM(TokenReduction):
    """Merges at layer 0, prunes from the middle on."""

    @config
    class Config(TokenReduction.Config):
        """merge: share of an image's tokens that is left after merging, 1 merges nothing.
        prune: whether tokens are pruned inside the language model.
        start, stop: behind the layers from start on, fewer visual tokens go on, behind stop - 1 none; None: a half and 22/28.
        temperature, steps: of PageRank."""

        merge: float = 0.25
        prune: bool = True
        start: int | None = None
        stop: int | None = None
        temperature: float = 0.1
        steps: int = 5

        def validate_merge(self) -> None:
            if not 0 < self.merge <= 1:
                raise ValueError(f"merge is a share above 0, at most 1, not {self.merge}.")

        def validate_temperature(self) -> None:
            if self.temperature <= 0 or self.steps < 1:
                raise ValueError(f"temperature must be above 0 and steps at least 1, not {self.temperature} and {self.steps}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Nothing is merged or pruned."""
        return {"merge": 1.0, "prune": False}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens after merging, then the authors' schedule."""
        return {"merge": 0.5}

    def shares(self, layers: int) -> Mapping[int, float]:
        """The first layer, which merges, and what `pruned` says."""
        return {0: self.config.merge, **self.pruned(layers)}

    def pruned(self, layers: int) -> dict[int, float]:
        """Layer -> share of the merged tokens. Raises `UserError` where the options do not fit `layers` layers."""
        if not self.config.prune:
            return {}
        start, stop = self.config.start, self.config.stop
        if start is not None and not 0 <= start < layers - 1:
            raise UserError(f"aim: start is a layer from 0 to {layers - 2} of this host, not {start}.")
        if stop is not None and stop <= (layers // 2 if start is None else start):
            raise UserError(f"aim: stop must lie behind start, not at {stop}.")
        return falling(layers, start, stop)

    def boundaries(self, host: Host) -> Collection[int]:
        """The first layer, and those around the layers that rank."""
        pruned = self.pruned(host.layer_count)
        return {0, *pruned, *(layer - 1 for layer in pruned)}

    def install(self, host: Host, undo: ExitStack) -> None:
        """Listens to the attention of the layers behind which tokens are pruned."""
        for layer, left in self.pruned(host.layer_count).items():
            if left == 0:  # nothing stays, so nothing is ranked
                continue
            listen(host.architecture.attention(host.layers[layer - 1]), self._ranking(host, layer), undo)

    def _ranking(self, host: Host, layer: int) -> Any:
        """What notes down the ranking for `layer` when its predecessor attends in a prefill that asked for it."""

        def listener(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
            sequence = host.sequence
            if sequence is None or not sequence.notes.pop(("aim", "asked", layer), False):
                return
            real = sequence.stages[layer - 1].real
            with torch.no_grad():
                # Queries are divided by the temperature, being fewer numbers than logits.
                scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) / self.config.temperature
                logits = logits_of(query, key, mask, scale, real)
                sequence.notes["aim", "rank", layer] = page_rank(logits, real, 1.0, self.config.steps)

        return listener

    def select(self, view: LayerView) -> Selection | None:
        """Has the layer rank if the next one prunes."""
        if self.pruned(view.host.layer_count).get(view.layer + 1) and bool(view.visual.any()):
            view.sequence.notes["aim", "asked", view.layer + 1] = True
        return super().select(view)

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """By the ranking that the layer before left, of a row's images together."""
        if ratio == 0:
            return ~view.visual
        left = share(view.sequence.notes["aim", "merged"], ratio)
        return view.keep_top(view.sequence.notes.pop(("aim", "rank", view.layer)), left)

    def merge(self, view: LayerView, ratio: float) -> Selection:
        """In front of layer 0, image by image; later layers prune."""
        sequence = view.sequence
        if view.layer:
            return super().merge(view, ratio)
        sequence.notes["aim", "merged"] = view.visual.sum(1)
        if ratio >= 1:
            return Selection()
        image = sequence.image_of
        if "raster" in view.host.architecture.capabilities:
            image = image.masked_fill(on_prompt(raster(view.layouts(), image.device).newline, sequence.visual, False), -1)
        keep, hidden = ~view.visual | (image < 0), view.hidden.clone()
        flat = (image >= 0).flatten().nonzero()[:, 0]
        number = image.flatten()[flat] + flat // image.shape[1] * (int(image.max()) + 1)
        sizes = number.unique_consecutive(return_counts=True)[1]
        first = sizes.cumsum(0) - sizes
        tokens, stays = hidden.view(-1, hidden.shape[-1]), keep.view(-1)
        for size in sizes.unique().tolist():
            places = flat[first[sizes == size][:, None] + torch.arange(size, device=flat.device)]
            fewer, kept = merged_to(tokens[places], max(1, int(size * ratio)))
            slots = places.gather(1, kept)
            tokens[slots] = fewer
            stays[slots] = True
        sequence.notes["aim", "merged"] = (keep & view.visual).sum(1)
        return Selection(keep=keep, hidden=hidden)

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """The authors' pruning, and as much merging as leaves `share` on average over the layers."""
        shares, entering, total = falling(layers), 1.0, 0.0
        for layer in range(layers):
            entering = shares.get(layer, entering)
            total += entering
        return {"merge": min(1.0, share * layers / total)}
