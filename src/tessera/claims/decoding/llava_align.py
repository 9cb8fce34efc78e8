"""LLaVA-Align: the language model's no-image prediction is subtracted from its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Plug, Vary, beats, below, worse
from tessera.lab.givens.answers import SaysYes
from tessera.lab.protocols.answering import Answering

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def uniform_without_image(lab: Lab) -> Checked:
    """The prior of a tiny host over four answers, calibrated by itself; random probabilities against q / p written out."""
    import torch

    from tessera.hosts.plug import attach
    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import same
    from tessera.parts.decoding.llava_align import LlavaAlign, calibrate

    made = tiny("llava")
    part = LlavaAlign(LlavaAlign.Config())
    with torch.no_grad():
        found = part.closed_answers(attach(made.model), made.inputs((1, 1)), [[20], [21], [22], [23, 24]])
    blind = calibrate(found.blind, found.blind)
    p = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    q = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)
    wanted = (q / p) / (q / p).sum(-1, keepdim=True)
    flat, parity = float((blind - 0.25).abs().max()), float((calibrate(q, p) - wanted).abs().max())
    checks = {"uniform": flat < 1e-6, "proportional to q / p": parity < 1e-6}
    return same(checks, shape="LLaVA with random weights, float32", uniform=flat, calibrated=parity)


def contrasts_two_streams(lab: Lab) -> Checked:
    """Four greedy tokens against plain forwards of two prompts, with the image and with neither it nor its tokens, that are read
    again for every token."""
    import torch

    from tessera.hosts.plug import plug
    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import same

    alpha, beta, tokens = 1.5, 0.2, 4
    made = tiny("llava")
    inputs = made.inputs((1,))
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    ids = ids[:, inputs["attention_mask"][0].bool()] if "attention_mask" in inputs else ids
    visual = ids[0] == made.model.config.image_token_id
    settings: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), plug(made.model, "llava_align", alpha=alpha, beta=beta) as host:
        model: Any = host.model
        out: Any = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
    said, worst, masks = ids, 0.0, []
    for step in range(tokens):
        with torch.no_grad():
            seen = made.model(input_ids=said, pixel_values=pixels).logits[0, -1].float()
            blind = made.model(input_ids=torch.cat([ids[:, ~visual], said[:, ids.shape[1] :]], 1)).logits[0, -1].float()
        kept = seen.softmax(-1) >= beta * seen.softmax(-1).max()
        wanted = (1 + alpha) * seen - alpha * blind
        scores = out.scores[step][0]
        eos = torch.isin(torch.arange(len(scores)), torch.tensor(_ends(made.model)))
        masks.append(bool(((scores.isfinite() == kept) | eos).all()))
        both = kept & scores.isfinite()
        worst = max(worst, float((scores[both] - wanted[both]).abs().max()))
        said = out.sequences[:, : said.shape[1] + 1]
    checks = {"logits (1 + alpha) l - alpha l' to 1e-4": worst < 1e-4, "only implausible tokens are cut off": all(masks)}
    return same(checks, shape="LLaVA with random weights, float32, 4 tokens", logits=worst)


def costs_a_stream(lab: Lab) -> Checked:
    """Counted operations of eight tokens about one image, against those of two plain generations, with and without the image."""
    import torch

    from tessera.hosts.plug import plug
    from tessera.measure.llava import Shape, host, inputs

    model, prompt = host(Shape(layers=2, width=128, patches=12)), inputs(Shape(layers=2, width=128, patches=12))
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    visual = prompt["input_ids"][0] == model.config.image_token_id
    text = {"input_ids": prompt["input_ids"][:, ~visual], "attention_mask": torch.ones_like(prompt["input_ids"][:, ~visual])}
    unplugged, blind = (lab.flops(lambda p=p: model.generate(**p, **settings)) for p in (prompt, text))  # type: ignore[misc]
    with plug(model, "llava_align") as plugged:
        thick: Any = plugged.model
        both = lab.flops(lambda: thick.generate(**prompt, **settings))
    return Checked(
        checks={
            "operations of both streams, within 1 %": abs(both / (unplugged + blind) - 1) < 0.01,
            "less than twice those of the bare model": both < 2 * unplugged,
        },
        measured={"times the bare operations": both / unplugged, "share of the stream without an image": blind / unplugged},
        shape="2 layers of width 128, 144 visual tokens, 8 new tokens",
    )


def _ends(model: Any) -> list[int]:
    """Tokens that end an answer, which `generate` forbids while the answer is too short."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


CLAIMS = [
    Exact(
        id="uniform_without_image",
        promise="Calibrated probabilities are exactly uniform without an image, and proportional to q / p with one.",
        paper="section 4.1",
        run=uniform_without_image,
    ),
    Exact(
        id="contrasts_two_streams",
        promise="Every token's logits are (1 + alpha) l - alpha l' of the prompts with and without the image, where plausible.",
        paper="section 4.2",
        run=contrasts_two_streams,
    ),
    Exact(
        id="costs_a_stream",
        promise="It costs one more stream, the prompt without its image: less than twice the operations of the plain model.",
        paper="section 4.2",
        run=costs_a_stream,
    ),
    Experiment(
        id="removes_the_skew",
        promise="For a model that says yes out of habit, accuracy on balanced questions is higher with debiased decoding than "
        "without.",
        paper="tables 2 and 4",
        protocol=Answering(model="nano-habit", types=("existence",)),
        given=(SaysYes(model="nano-habit"),),
        treatment=Plug("llava_align"),
        baseline=Plug("llava_align", alpha=0.0),
        control=Plug("llava_align", prior="other"),
        others={
            "mismatched image": Vary("mismatched image", image="mismatched", parts={"llava_align": {}}, uses=("llava_align",)),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(below("baseline", metric="false yes"), below("baseline", metric="yes rate")),
        note="The control takes away what another question would be answered without its image: as much in the direction of no, "
        "but not this prompt's prior. Where both help alike, a constant would do, and the promise is not tested.",
        amended=(
            "64 questions were seen of a model that says yes to everything alike: another prompt's prior helped as much (67 "
            "against 64 %), for its own prior does not depend on the question. Now it says yes to every second category.",
        ),
    ),
]
