"""V2PE: visual tokens advance the position by less than one, so that long visual inputs stay within trained positions.

Source: Ge et al., "V2PE: Improving Multimodal Long-Context Capability of Vision-Language Models with Variable Visual Position
Encoding", 2024, arXiv:2412.09616. Text advances the rotary position by 1, a visual token by delta = stride / 256; the first
text token behind an image stands at the next whole number. Training draws a stride per image, inference fixes one.

Deviations: an image is a run of visual tokens (the released code looks for its own start and end tokens and 256 tokens per
tile), so that tokens between tiles count as text; two images without text between them are two. Padding keeps the positions
that the host gives it.

Shapes: B rows, S tokens: visual, real, image_of [B, S], positions [B, S], float32 unless every stride is 256.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.part import HostPart
from tessera.lab.claim import Finding, claim
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.plug import Host
    from tessera.hosts.sequence import Sequence as HostSequence
    from tessera.lab.lab import Lab

WHOLE = 256
"""The stride at which a visual token advances the position by 1."""
STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""What the paper draws from in training."""
ORDER, SHIFT = "v2pe order", "v2pe shift"
"""Notes of a sequence: corrections [B, S] of its positions, and [B, 1] of all later ones."""


@part("v2pe", socket="couplings", catalog=345)
class V2PE(HostPart):
    """Float positions for visual tokens; one-dimensional rotary hosts only."""

    needs = ("rope",)
    claims = ("positions",)

    @config
    class Config:
        """strides in 256ths of a position: one is used for every image; of several each image draws one (training)."""

        strides: tuple[int, ...] = (64,)

        def validate_strides(self) -> None:
            wrong = [s for s in self.strides if not 1 <= s <= WHOLE]
            if wrong or not self.strides:
                raise ValueError(f"strides are one or more whole numbers from 1 to {WHOLE}, not {self.strides}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """See `HostPart`."""
        return {"strides": (WHOLE,)}

    def edit_positions(self, host: Host, sequence: HostSequence, position_ids: Tensor) -> Tensor:
        """See `HostPart`."""
        if set(self.config.strides) == {WHOLE} or not sequence.has_visual:
            return position_ids
        notes = sequence.notes
        if SHIFT not in notes:
            steps = self.steps(sequence.image_of)
            notes[ORDER], notes[SHIFT] = corrections(sequence.visual, sequence.real, sequence.image_of, steps)
        whole = position_ids.shape[-1] == sequence.length and host.prefill
        correction = notes[ORDER] if whole else notes[SHIFT]
        return (position_ids + correction.to(position_ids.device)).float()

    def steps(self, image_of: Tensor) -> Tensor:
        """image_of [B, S] -> delta of each token's image, float64 [B, S]."""
        strides = torch.tensor(self.config.strides, dtype=torch.float64, device=image_of.device) / WHOLE
        if len(strides) == 1:
            return strides.expand(image_of.shape)
        images = int(image_of.max()) + 1
        drawn = torch.randint(len(strides), (image_of.shape[0], images)).to(image_of.device)
        return strides[drawn.gather(1, image_of.clamp(min=0))]


def corrections(visual: Tensor, real: Tensor, image_of: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be added to default positions: visual, real [B, S] bool, image_of [B, S], steps [B, S] -> [B, S], [B, 1]
    float64.

    The second is for all tokens behind the prompt. A run of n visual tokens that advance by delta stands at p + delta, p + 2
    delta, ... behind text at p, and is followed by text at p + ceil(n delta) + 1.
    """
    visual = visual & real
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    other = torch.nn.functional.pad(image_of, (1, 0), value=-1)[:, :-1] != image_of
    first = visual & (~before | other)
    run = first.cumsum(1).where(visual, 0)  # numbered from 1; 0 is text
    steps = steps.to(torch.float64)
    runs = int(run.max()) + 1
    zeros = steps.new_zeros(visual.shape[0], runs)
    counts = zeros.scatter_add(1, run, visual.to(steps.dtype))
    deltas = zeros.scatter(1, run, steps)  # one step per run: every token of a run writes the same
    saved = (counts - (counts * deltas).ceil()).index_fill(1, torch.zeros(1, dtype=torch.int64, device=run.device), 0)
    so_far = first.cumsum(1)  # runs begun up to a token
    finished = torch.where(visual, so_far - 1, so_far)
    correction = -saved.cumsum(1).gather(1, finished)
    place = visual.cumsum(1) - torch.where(first, visual.cumsum(1) - 1, 0).cummax(1).values  # 1, 2, ... within the run
    correction = correction + torch.where(visual, (steps - 1) * place, 0)
    return correction.where(real, 0), -saved.sum(1, keepdim=True)


def positions(visual: Tensor, real: Tensor, image_of: Tensor, steps: Tensor) -> Tensor:
    """V2PE's positions [B, S] float64 of a whole prompt, 1 at padding as transformers has it there."""
    default = (real.cumsum(1) - 1).masked_fill(~real, 1)
    return default + corrections(visual, real, image_of, steps)[0]


# Claims


@claim("stride 256 changes no bit", kind="exact")
def identity(lab: Lab) -> Finding:
    """On tiny hosts with one-dimensional rotary positions."""
    return lab.hosted("v2pe", ("llava", "gemma3", "llava_next"))


@claim("ids are those counted token by token", kind="exact", paper="section 3.2, equation 4")
def counted_by_hand(lab: Lab) -> Finding:
    """Random layouts of text and images with strides of their own, padded at the left."""
    import math
    import random

    from tessera.lab.instruments.exact import same

    draw, worst = random.Random(0), 0.0
    for _ in range(50):
        kinds, strides = [-1] * draw.randint(0, 4), dict[int, int]()
        padding = len(kinds)
        for image in range(draw.randint(1, 4)):
            strides[image] = draw.choice(STRIDES)
            kinds += [-1] * draw.randint(0, 3) + [image] * draw.randint(1, 12)
        kinds += [-1] * draw.randint(0, 4)
        wanted, last = [1.0] * padding, -1.0
        for place, kind in enumerate(kinds[padding:], padding):
            if kind < 0:
                last = math.ceil(last) + 1
            else:
                last = math.ceil(last) if place > padding and kinds[place - 1] not in (-1, kind) else last
                last += strides[kind] / WHOLE
            wanted.append(last)
        image_of = torch.tensor([kinds])
        real = torch.tensor([[place >= padding for place in range(len(kinds))]])
        steps = torch.tensor([[strides.get(kind, WHOLE) / WHOLE for kind in kinds]], dtype=torch.float64)
        found = positions(image_of >= 0, real, image_of, steps)[0]
        worst = max(worst, float((found - torch.tensor(wanted, dtype=torch.float64)).abs().max()))
    return same({"equal": worst == 0}, position=worst)


@claim(
    "trained with random strides, a small stride finds a thing among four times as many images", kind="effect", paper="table 4"
)
def finds_needles(lab: Lab) -> Finding:
    """The reference model learns on with one to three images and a question about a thing that at most one of them shows: with
    random strides (measured), with whole positions (control). Both are asked about twelve images, the first with stride 16; the
    baseline is the first with two images. No-answers are as frequent as yes-answers."""
    from tessera.hosts.host_generate import HostGenerator
    from tessera.hosts.plug import plug
    from tessera.lab.instruments.tune import tuned
    from tessera.lab.lab import mean, spread

    _, processor = lab.reference("nano")
    found: dict[str, list[float]] = {"measured": [], "baseline": [], "control": []}
    for seed in lab.seeds:
        free = tuned(lab, [{"v2pe": {"strides": STRIDES}}], rows=needles, seed=seed, steps=60, batch=12)
        whole = tuned(lab, [{}], rows=needles, seed=seed, steps=60, batch=12)
        for name, model, stride, images in (("measured", free, 16, 12), ("baseline", free, 16, 2), ("control", whole, WHOLE, 12)):
            rows = _needles("test", 1000 * seed, 60, images)
            with plug(model, "v2pe", strides=(stride,)):
                said = HostGenerator(model, processor).answer_batch([(shown, [asked]) for shown, asked, _ in rows], 4)
            right = [answers[0].text == wanted for answers, (_, _, wanted) in zip(said, rows, strict=True)]
            found[name].append(sum(right) / len(right))
    measured, control = mean(found["measured"]), mean(found["control"])
    return Finding(
        checks={
            "at least 80 % of the answers are right": measured >= 0.8,
            "20 points above whole positions": measured >= control + 0.2,
        },
        measured={"accuracy": measured},
        baseline={"accuracy": mean(found["baseline"])},
        control={"accuracy": control},
        spread={"accuracy": spread(found["measured"]), "control accuracy": spread(found["control"])},
        seeds=lab.seeds,
        shape="588 visual tokens, trained on at most 147; 60 questions a seed, half of them answered no",
        note="the reference model is small and saw at most four images in training; the paper trains on 256,000 tokens.",
    )


def needles(seed: int, step: int, count: int) -> list[Any]:
    """Rows for training: one to three images each."""
    return _needles("train", 10_000_000 * (seed + 1) + 100 * count * step, count, 1 + step % 3)


def _needles(split: str, first: int, count: int, images: int) -> list[Any]:
    """(images, "Is there a ...?", yes or no): half of the things are in one of the images, half in none of them."""
    from tessera.world import World
    from tessera.world.questions.phrasing import article

    world = World(split=split, things=(1, 2), kinds={"scene": 1.0})
    rows: list[Any] = []
    for number in range(count):
        base = first + number * (images + 1)
        samples = [world[base + offset] for offset in range(images + 1)]
        shown, other = samples[:images], samples[images]
        inside = {truth.name for sample in shown for truth in sample.truth()}
        asked = shown[number * 7 % images].truth()[0].name if number % 2 else other.truth()[0].name
        rows.append(
            ([sample.images()[0] for sample in shown], f"Is there {article(asked)} {asked}?", "yes" if asked in inside else "no")
        )
    return rows


@claim("positions cost nothing", kind="cost")
def costs_nothing(lab: Lab) -> Finding:
    """A prefill of 576 visual tokens with stride 16: no operation more, no measurable time."""
    from tessera.lab.instruments.trials import prefill

    saved = prefill(lab, "v2pe", {"strides": (16,)})
    return saved.finding({"the same FLOPs": abs(saved.flops - 1) < 0.001, "at most 5 % more time": saved.time.median >= 1 / 1.05})
