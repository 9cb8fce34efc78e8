"""A made-up part with a claim of every verdict, judged by the real judge from made-up outcomes, for the tests of the pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from tessera.lab.catalog import Built, Catalog, System
from tessera.lab.evidence import Entry, Evidence, Former
from tessera.lab.experiment import (
    Arm,
    Build,
    Checked,
    Claim,
    Condition,
    Cost,
    Exact,
    Experiment,
    Given,
    Paper,
    Vary,
    beats,
    below,
    retains,
    worse,
)
from tessera.lab.judge import Judged, judge
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import Outcomes, Unit, per_seed
from tessera.lab.protocols.base import CostProtocol, Protocol
from tessera.lab.source import Option, Source
from tessera.lab.verify import judged_entry
from tessera.lab.works import works

HOSTILE = "half <script>alert(1)</script> & <b>more</b>"
DOC = f"""Toy reads <b>minds</b>: an e.g. toy. It does little, {HOSTILE}.

Source: Doe et al., "Minds & Toys", 2031, arXiv:3101.01234. It looks first, and ![tracks](https://example.org/x.png) nothing.

Deviations: none known; see `keep`, [this](javascript:alert(3)) and https://example.org/a?b=1&c=2.

Shapes: [B, N, D] -> [B, N, D].
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy(Protocol):
    """Steps of training."""

    name: ClassVar[str] = "toy_training"
    version: ClassVar[int] = 3
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary, Build)

    steps: int = 200
    things: tuple[str, ...] = ("cat", "dog")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyCost(CostProtocol):
    """Nothing."""

    name: ClassVar[str] = "toy_cost"
    version: ClassVar[int] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleepy(Given):
    """A weakness."""

    words: ClassVar[str] = "the model sleeps <i>often</i>"

    model: str = "nano"


def experiment(id: str, promise: str = "The toy is more accurate than the plain model.", **fields: object) -> Experiment:
    """An experiment with three arms."""
    known: dict[str, object] = {
        "protocol": Toy(),
        "treatment": Build("toy", connector={"kind": "toy", "queries": 16}),
        "baseline": Vary("plain"),
        "control": Vary("shuffled labels", labels="shuffled"),
        "primary": beats("baseline"),
        "valid_if": (worse("control"),),
        "secondary": (beats("baseline", metric="loss"), below("baseline", metric="loss")),
        "paper": "table 2",
    }
    return Experiment(id=id, promise=promise, **{**known, **fields})  # type: ignore[arg-type]


def outcomes(claim: Experiment, means: tuple[float, float, float], spread: float = 0.02, units: int = 8) -> dict[str, Outcomes]:
    """Per-seed accuracies around these means of treatment, baseline and control, and a loss of another size."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, spread, units)
    return {
        name: per_seed({"accuracy": list(m + shared + rng.normal(0, spread, units)), "loss": list(40 - 30 * m + shared)})
        for name, m in zip(claim.arms(), means, strict=False)
    }


def result(claim: Experiment, means: tuple[float, float, float], spread: float = 0.02, **fields: object) -> Entry:
    """What the judge makes of such outcomes."""
    judged = judge(claim, outcomes(claim, means, spread), 2)
    return replace(judged_entry(claim, judged), **{"seconds": 214.0, "machine": "a <i>toaster</i>", **fields})


def _check(lab: LocalLab) -> Checked:
    """Against a loop over `<all>` tokens."""
    raise NotImplementedError


def exact(id: str) -> Exact:
    """An exact claim."""
    return Exact(id=id, promise=f"The same tokens, {HOSTILE}.", run=_check, paper="section 3")


def cost() -> Cost:
    """A cost with one bound met and one not."""
    return Cost(
        id="cost",
        promise="It halves the operations and keeps half of the tokens.",
        protocol=ToyCost(),
        treatment=Vary("toy"),
        at_least={"flop ratio": Paper(2.0, "table 3")},
        at_most={"token share": Paper(0.5, "table 3")},
    )


def claims_and_results() -> tuple[tuple[Claim, ...], tuple[Entry, ...]]:
    """A claim of each verdict, one that was never run, one that was amended."""
    far = (0.9, 0.7, 0.5)
    shown = experiment("shown", promise=f"The toy beats the plain model, {HOSTILE}.", note=f"Read with care: {HOSTILE}.")
    refuted = experiment("refuted")
    unclear = experiment("unclear", primary=retains("baseline", Paper(1.04, "table 1")))
    void = experiment("void")
    vain = experiment("vain", given=(Sleepy(),))
    broken = experiment("broken")
    changed = experiment(
        "changed",
        primary=beats("baseline", Paper(0.05, "table <4>")),
        amended=(f"Five seeds showed nothing at this size: {HOSTILE}.", "The margin was of another data set."),
    )
    awake = Condition(words=Sleepy.words, value=0.02, low=0.01, high=0.04, needed=0.1, holds=False)
    formers = (
        Former(
            digest="0123456789ab", verdict="inconclusive", said=f"Once {HOSTILE}.", value=0.03, low=-0.08, high=0.14,
            reason=changed.amended[0],
        ),
        Former(digest="ab0123456789", verdict="invalid", said="Then otherwise.", reason=changed.amended[1]),
    )  # fmt: skip
    crashed = Judged(verdict="crashed")
    entries = (
        result(shown, far, depends={"part brain/toy": "1", "core world": "2"}),
        result(refuted, (0.6, 0.8, 0.4)),
        result(unclear, (0.79, 0.7, 0.5), 0.05),
        result(void, (0.9, 0.7, 0.95)),
        replace(judged_entry(vain, Judged(verdict="not applicable", conditions=(awake,))), seconds=3.0),
        replace(judged_entry(broken, crashed), note="ValueError: <nothing> (toy.py, line 3)", seconds=1.0),
        result(changed, far, history=formers),
        Entry(
            id="same", kind="exact", promise=exact("same").promise, verdict="holds", checks={"near <script>": True},
            measured={"differs by": 1.2e-7}, shape="16 tokens", seconds=0.4,
        ),
        Entry(id="other", kind="exact", promise="Other tokens.", verdict="fails", checks={"here": True, "there": False}),
        Entry(
            id="cost", kind="cost", promise=cost().promise, verdict="fails",
            measured={"flop ratio": 2.6, "token share": 0.7, "tokens": 96},
            checks={"flop ratio is at least 2 (table 3)": True, "token share is at most 0.5 (table 3)": False},
            timed={"prefill ratio": (1.9, 1.7, 2.2)}, digest=cost().digest(), seconds=8.0,
        ),
        Entry(id="gone", kind="effect", promise="What nobody claims any more.", verdict="supported", digest="000000000000"),
    )  # fmt: skip
    claims: tuple[Claim, ...] = (
        shown, refuted, unclear, void, vain, broken, changed, exact("same"), exact("other"), cost(), experiment("waiting"),
    )  # fmt: skip
    return claims, entries


def part(name: str = "toy", catalog: int | None = 244, **fields: object) -> Built:
    """The part, with all of it."""
    claims, entries = claims_and_results()
    source = Source(
        name=name,
        socket="brain",
        catalog=catalog,
        doc=DOC,
        path=Path("toy.py"),
        options=(Option("keep", "float", "0.5"), Option("must<", "int", "")),
    )
    proof = Evidence(part=name, socket="brain", catalog=catalog, claims=entries, versions={"torch": "9.9"})
    known: dict[str, object] = {
        "claims": claims, "about": f"Toy: {HOSTILE}.", "evidence": proof, "status": "stale",
        "reasons": {"broken": ["it crashed"], "shown": ["core world behaves otherwise (2 then, 3 now)"]},
    }  # fmt: skip
    return Built(source=source, **{**known, **fields})  # type: ignore[arg-type]


def catalog() -> Catalog:
    """All systems; the part stands for number 244 twice, and once for none."""
    silent = part("silent", None, claims=(), evidence=None, status="no claims", reasons={}, about="")
    fresh = part("unrun", 2, evidence=None, status="no evidence", reasons={})
    bad = part("bad", 3, evidence=None, status="no evidence", reasons={}, problem="brain/bad.json is <script> damaged")
    parts = {244: (part(), part("twin")), 2: (fresh,), 3: (bad,)}
    systems = tuple(System(work=work, parts=parts.get(n, ())) for n, work in works().items())
    return Catalog(systems=systems, others=(silent,), problems=(bad.problem,))
