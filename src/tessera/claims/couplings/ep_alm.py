"""eP-ALM: one visual token, replaced by a deeper level at every layer, gives a frozen language model more than the last level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab

TINY = {"kind": "ep_alm", "levels": 2, "start": 1, "end": 3, "prompt": 2}


def equals_insertion(lab: Lab) -> Checked:
    """Logits against a loop over the layers in which the visual token does not exist until its first layer, where it is put into
    the sequence; the same for one level."""
    import torch

    from tessera.lab.composed import pictures, prefix, tiny

    apart, lengths = list[float](), list[int]()
    changed = 0.0
    for spec in (TINY, {**TINY, "levels": 1, "start": 2}):
        model = tiny(spec)
        ids = torch.tensor([[*prefix(model, 1), 6, 20, 21, 7]])
        with torch.no_grad():
            wanted, length = inserted(model, ids[0], pictures(1))
            mine, other = model(ids, pictures(1)).logits[0], model(ids, pictures(1, seed=2)).logits[0]
        lengths.append(length - 6)  # <bos>, <img> and four of text
        apart.append(float((mine - wanted).abs().max()))
        changed = float((mine - other).abs().max())
    return Checked(
        checks={
            "logits within 1e-6, with two levels and with one": max(apart) <= 1e-6,
            "the sequence is the text, its prompt and one token": set(lengths) == {3},
            "another image changes the logits": changed > 1e-5,
        },
        measured={"two levels: logits differ by": apart[0], "one level: logits differ by": apart[1], "another image": changed},
        shape="4 layers of width 32, float32, random weights",
    )


def inserted(model: Any, ids: Tensor, pixels: Tensor) -> tuple[Tensor, int]:
    """Logits [T, V] by a plain loop over the layers, and the sequence's length at the end; positions are those of `ids` [T]."""
    import torch

    coupling, base = model.model.coupling, model.model.language_model
    assert coupling.now is None  # the hooks are silent: what follows is the language model alone
    places = (ids == model.config.image_token_id).nonzero().flatten()
    visual = int(places[-1])
    hidden = base.embed_tokens(ids)
    hidden[places[:-1]] = coupling.prompt.weight
    features = coupling.receive(coupling.encode(pixels, list(model.model.encoders)).features)[0]
    kept = torch.tensor([t for t in range(len(ids)) if t != visual])
    state, positions = hidden[kept], kept
    for index, layer in enumerate(base.layers):
        if index == coupling.start:
            state = torch.cat([state[:visual], features[:1], state[visual:]])
            positions = torch.arange(len(ids))
        level = coupling.level_at(index)
        if level is not None:
            state[visual] = features[level]
        causal = torch.full((len(state), len(state)), torch.finfo(state.dtype).min).triu(1)[None, None]
        rotary = base.rotary_emb(state[None], positions[None])
        made = layer(state[None], attention_mask=causal, position_ids=positions[None], position_embeddings=rotary)
        state = (made[0] if isinstance(made, tuple) else made).reshape(len(state), -1)
    return model.lm_head(base.norm(state)), len(state)


LEVELS: dict[str, Any] = {"kind": "ep_alm", "levels": 6, "start": 2, "end": 8}
LAST: dict[str, Any] = {**LEVELS, "levels": 1}
"""The last level in front of each of the six layers: as many insertions, by the same linear layer."""

CLAIMS = [
    Exact(
        id="equals_insertion",
        promise="One token is inserted at a layer and replaced at the next ones, and nothing else changes: logits equal within "
        "1e-6.",
        paper="section 3.2, figure 3",
        run=equals_insertion,
    ),
    Experiment(
        id="levels_help",
        promise="At the same number of tokens, accuracy is higher with six levels of the tower than with its last level alone.",
        paper="section 4.3, table 4",
        protocol=ShortTraining(
            parts={"encoders": [TOWER], "coupling": LEVELS},
            start={"encoders.0": "object-expert", "language_model": "nano"},
            train=({"coupling": 1.0},),
            types=("attribute", "existence", "category", "position"),
            most=4,
            steps=60,
            tests=("own", "mismatched image"),
        ),
        treatment=Build("six levels"),
        baseline=Build("last level six times", coupling=LAST),
        control=Build("six levels without the lower five", coupling={**LAST, "start": 7}),
        others={"mismatched image": Build("six levels, mismatched image", {"test": "mismatched image"})},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="One linear layer is all that learns, and a level is the mean over patches where the paper has a class token. The "
        "baseline inserts the last level in front of all six layers; the control inserts it only where the treatment does, in "
        "front of the last layer, so that the lower levels are all that it lacks.",
    ),
]
