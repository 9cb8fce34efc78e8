"""BEAF: what a model says about an object before and after it is removed shows what accuracy hides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Effect, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.planted import Removal

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def analytic(lab: Lab) -> Checked:
    """An oracle, two constant answers and three coins; the four shares always add up to one."""
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
    sums = [sum(s[k] for k in ("TU", "IG", "SBp", "SBn")) for s in (oracle, yes, no, *coins)]
    return Checked(
        checks={
            "an oracle has TU 1 and nothing else": (oracle["TU"], oracle["ID"], oracle["F1 of TU and ID"]) == (1, 0, 1),
            "always yes is SB+ 1, ID 0": (yes["SBp"], yes["ID"], yes["TU"]) == (1, 0, 0),
            "always no is SB- 1, ID 0": (no["SBn"], no["ID"], no["TU"]) == (1, 0, 0),
            "a coin has four quarters and ID 1/2, within three standard errors": all(
                abs(coin[k] - (0.5 if k == "ID" else 0.25)) < error for k in coin
            ),
            "TU, IG, SB+ and SB- add up to 1": all(abs(s - 1) < 1e-12 for s in sums),
        },
        measured={f"coin {k}": v for k, v in coin.items()},
        shape=f"{len(items)} pictures of 40 scenes",
    )


BLIND = Vary("no image", uses=("beaf",), image="none")
SEEING = Vary("own image", uses=("beaf",))

CLAIMS = [
    Exact(
        id="analytic",
        promise="Scripted answers get their analytic values: an oracle, always yes, always no, a coin.",
        paper="section 3.3",
        run=analytic,
    ),
    Experiment(
        id="finds_the_stubborn",
        promise="Of a model that does not see the removal True Understanding falls further than its accuracy does.",
        paper="section 4.2",
        protocol=Removal(),
        treatment=Vary("image before", uses=("beaf",), image="before"),
        baseline=SEEING,
        control=BLIND,
        primary=Effect(
            (("baseline", "TU", 1.0), ("treatment", "TU", -1.0), ("baseline", "accuracy", -1.0), ("treatment", "accuracy", 1.0)),
            "TU falls further than accuracy from baseline to treatment",
        ),
        valid_if=(worse("control", than="baseline", metric="TU"), worse("control", than="treatment")),
        secondary=(beats("baseline", metric="SBp"),),
        note="The fault is planted: in place of every changed picture the model is shown the one before the removal.",
    ),
    Experiment(
        id="accuracy_hides",
        promise="The accuracy of a seeing model is above its True Understanding.",
        paper="section 4.2, table 2",
        protocol=Removal(),
        treatment=SEEING,
        control=BLIND,
        others={"always no": Vary("always no", uses=("beaf",), says="no")},
        primary=Effect((("treatment", "accuracy", 1.0), ("treatment", "TU", -1.0)), "treatment's accuracy is above its TU"),
        valid_if=(worse("control", metric="TU"),),
        secondary=(
            Effect((("always no", "accuracy", 1.0), ("always no", "TU", -1.0)), "accuracy of always no is above its TU"),
            Effect(
                (("treatment", "SBp", 1.0), ("treatment", "SBn", 1.0), ("treatment", "IG", -1.0)),
                "treatment is stubborn more often than ignorant",
            ),
        ),
    ),
]
