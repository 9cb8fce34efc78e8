"""BEAF: what a model says about an object before and after it is removed shows what accuracy hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Effect, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.planted import Removal

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.lab import Lab


def analytic(lab: Lab) -> Checked:
    """An oracle, two constant answers, three coins and one who says after a removal what it said before; what always holds."""
    from tessera.parts.benchmarks.beaf import BEAF
    from tessera.world.rng import Rng

    benchmark = BEAF(BEAF.Config(scenes=40))
    items = benchmark.items()

    def scores(how: str, seed: int = 0) -> dict[str, float]:
        rng = Rng("coin", seed)
        say = {"oracle": lambda q: q.answer, "coin": lambda q: rng.choice(("yes", "no"))}.get(how, lambda q: how)
        found = benchmark.score(items, [[say(q) for q in item.questions] for item in items])
        return {name: interval.value for name, interval in found.numbers.items()}

    oracle, yes, no = (scores(how) for how in ("oracle", "yes", "no"))
    coins = [scores("coin", seed) for seed in range(3)]
    coin = {k: sum(c[k] for c in coins) / len(coins) for k in ("TU", "IG", "SBp", "SBn", "ID")}
    pairs = sum(q.asked("removed") == q.asked("concept") for item in items for q in item.questions) * len(coins)
    error = 3 * (0.25 * 0.75 / pairs) ** 0.5
    again = benchmark.score(items, repeated(items))
    stubborn = {name: interval.value for name, interval in again.numbers.items()}
    every = (oracle, yes, no, stubborn, *coins)
    sums = [sum(s[k] for k in ("TU", "IG", "SBp", "SBn")) for s in every]
    return Checked(
        checks={
            "an oracle has TU 1 and nothing else": (oracle["TU"], oracle["ID"], oracle["F1 of TU and ID"]) == (1, 0, 1),
            "always yes is SB+ 1, ID 0": (yes["SBp"], yes["ID"], yes["TU"]) == (1, 0, 0),
            "always no is SB- 1, ID 0": (no["SBn"], no["ID"], no["TU"]) == (1, 0, 0),
            "a coin has four quarters and ID 1/2, within three standard errors": all(
                abs(coin[k] - (0.5 if k == "ID" else 0.25)) < error for k in coin
            ),
            "who repeats itself has no TU, IG or ID, however right": (stubborn["TU"], stubborn["IG"], stubborn["ID"]) == (0, 0, 0)
            and stubborn["accuracy"] > 0.8,
            "TU, IG, SB+ and SB- add up to 1": all(abs(s - 1) < 1e-12 for s in sums),
        },
        measured={**{f"coin {k}": v for k, v in coin.items()}, "accuracy of who repeats itself": stubborn["accuracy"]},
        shape=f"{len(items)} pictures of 40 scenes",
    )


def repeated(items: Sequence[Item]) -> list[list[str]]:
    """Right answers about every scene before a removal, said again whatever was removed."""
    said: dict[tuple[object, object], str] = {}
    for item in items:
        for q in item.questions:
            said.setdefault((q.asked("scene"), q.asked("concept")), q.answer)  # the picture before stands first
    return [[said[q.asked("scene"), q.asked("concept")] for q in item.questions] for item in items]


def further(metric: str, other: str, *, of: str, than: str) -> Effect:
    """How much further one metric falls than another from arm `than` to arm `of`."""
    terms = ((than, metric, 1.0), (of, metric, -1.0), (than, other, -1.0), (of, other, 1.0))
    return Effect(terms, f"{metric} falls further than {other} from {than} to {of}")


CLAIMS = [
    Exact(
        id="analytic",
        promise="Scripted answers get their analytic scores: an oracle, always yes, always no, random answers, answers that "
        "ignore the removal.",
        paper="section 3.3",
        run=analytic,
    ),
    Experiment(
        id="shows_what_accuracy_hides",
        promise="From the original to a blurred image, True Understanding falls further than accuracy.",
        paper="section 4.2, table 2",
        protocol=Removal(),
        treatment=Vary("blurred image", uses=("beaf",), image="blurred"),
        baseline=Vary("own image", uses=("beaf",)),
        control=Vary("no image", uses=("beaf",), image="none"),
        primary=further("TU", "accuracy", of="treatment", than="baseline"),
        valid_if=(worse("treatment", than="baseline"), worse("control"), worse("control", metric="TU")),
        secondary=(beats("baseline", metric="SBp"), beats("baseline", metric="SBn"), beats("baseline", metric="IG")),
        note="The definitions leave open which falls further: accuracy also counts what was never there, and errors before and "
        "after a removal may go together (IG). The paper compares models; here one model sees more or less.",
        amended=(
            "A first look at 30 scenes compared with a model that was trained to say yes. It said yes to every question, of "
            "which the exact claim knows the values.",
        ),
    ),
]
