"""One claim as its page shows it: the promise, the experiment, the result as dots with intervals, the verdict, the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tessera.lab.evidence import Entry, Former
from tessera.lab.experiment import Claim, Cost, Experiment, Paper
from tessera.lab.judge import Estimate
from tessera.lab.pages import plot, text
from tessera.lab.pages.design import about, design
from tessera.lab.pages.plot import Dot, PlotPanel

NOTHING_SAVED = "1, where nothing is saved"
"""What the mark of a cost without a number of the paper's stands at."""
KINDS = {"exact": "exact check", "effect": "experiment", "cost": "cost"}
MEANING = {
    "supported": "The interval of the primary effect lies wholly on the promised side of the margin.",
    "contradicted": "The interval of the primary effect lies wholly on the other side of the margin.",
    "inconclusive": "The interval of the primary effect holds the margin.",
    "invalid": "The control did not fail as it should, so nothing was tested.",
    "not applicable": "A precondition does not hold here, so there is nothing to cure.",
    "crashed": "It did not run to its end.",
    "holds": "",
    "fails": "At least one check does not hold.",
    "not run": "Nobody has run it yet.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A condition in words, whether it is met, and the number that says so."""

    words: str
    met: bool
    number: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerDesign:
    """An earlier form of an experiment."""

    former: Former
    panel: PlotPanel | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """What the template shows.

    meta      short facts under the promise
    meaning   the verdict in a sentence
    design    term -> values: the experiment as it stands in the claims file; changed: the result is of another form
    figures   (name, number, note) of what has nothing to be compared with
    """

    id: str
    promise: str
    verdict: str
    meta: tuple[str, ...]
    meaning: str = ""
    about: str = ""
    stale: tuple[str, ...] = ()
    conditions: tuple[Check, ...] = ()
    checks: tuple[Check, ...] = ()
    panels: tuple[PlotPanel, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()
    note: str = ""
    amended: tuple[str, ...] = ()
    design: Mapping[str, Sequence[Markup]]
    changed: bool = False
    history: tuple[FormerDesign, ...] = ()
    machine: str = ""


def view(claim: Claim | None, entry: Entry | None, reasons: Sequence[str] = (), prefix: str = "") -> ClaimView:
    """claim: as it stands in the claims file, None if it is made no longer; entry: its result, None if it was never run.

    prefix: of the anchor, so that it stands on the page once.
    """
    experiment = {} if claim is None else design(claim)
    if entry is None:
        if claim is None:
            raise ValueError("neither a claim nor a result")
        return ClaimView(
            id=prefix + claim.id,
            promise=claim.promise,
            verdict="not run",
            meta=_present(KINDS[claim.kind], claim.paper),
            meaning=MEANING["not run"],
            about=about(claim),
            note=claim.note,
            amended=claim.amended,
            design=experiment,
        )
    same = claim is not None and claim.digest() == entry.digest
    stale = tuple(reasons) if claim is not None else ("the claims file does not make this claim any more",)
    return ClaimView(
        id=prefix + entry.id,
        promise=entry.promise,
        verdict=entry.verdict,
        meta=_meta(entry, claim if same else None),
        meaning=_meaning(entry),
        about="" if claim is None else about(claim),
        stale=stale,
        conditions=tuple(
            Check(
                words=c.words,
                met=c.holds,
                number=f"{text.number(c.value)} ({text.number(c.low)} to {text.number(c.high)}), needed {text.number(c.needed)}",
            )
            for c in entry.conditions
        ),
        checks=tuple(Check(words=words, met=met) for words, met in entry.checks.items()),
        panels=_panels(entry, claim if same else None),
        figures=_figures(entry, claim if same else None),
        note=entry.note,
        amended=entry.amended,
        design=experiment,
        changed=claim is not None and not same,
        history=tuple(_change(former) for former in entry.history),
        machine=entry.machine,
    )


def _present(*words: str) -> tuple[str, ...]:
    return tuple(word for word in words if word)


def _meta(entry: Entry, claim: Claim | None) -> tuple[str, ...]:
    units = text.counted(entry.units, entry.unit) if entry.units else ""
    if entry.looks and isinstance(claim, Experiment):
        units += f" at look {entry.looks} of at most {len(claim.sizes())}"
    changed = f"amended {text.counted(len(entry.amended), 'time')}" if entry.amended else ""
    took = f"took {text.seconds(entry.seconds)}" if entry.seconds else ""
    return _present(KINDS.get(entry.kind, entry.kind), entry.paper, units, entry.shape, took, changed)


def _meaning(entry: Entry) -> str:
    said = MEANING.get(entry.verdict, "")
    if entry.verdict == "inconclusive" and entry.primary is not None and 0 < entry.primary.detectable < float("inf"):
        said += (
            f" With this much data an effect {text.number(entry.primary.detectable)} from the margin is found nine times in ten."
        )
    if entry.verdict == "invalid" and (failing := [e.words for e in entry.validity if not e.shown]):
        said += f" Not shown: {'; '.join(failing)}."
    if entry.verdict == "not applicable" and entry.kind == "exact":
        return "There was nothing to check."
    return said


# Plots


def _panels(entry: Entry, claim: Claim | None) -> tuple[PlotPanel, ...]:
    if isinstance(claim, Cost):
        return tuple(found for found in [_bounds(entry, claim)] if found)
    found = [*_arms(entry, claim if isinstance(claim, Experiment) else None), *_effects(entry)]
    return tuple(panel for panel in found if panel is not None)


def _arms(entry: Entry, claim: Experiment | None) -> list[PlotPanel | None]:
    """A panel per metric, that of the primary effect first."""
    metrics = list(dict.fromkeys([entry.metric, *(metric for arm in entry.arms for metric in arm.metrics)]))
    if claim is not None and (own := next((m for _, m, _ in claim.primary.terms if m), "")) in metrics:
        metrics = [own, *(m for m in metrics if m != own)]
    panels = []
    for metric in metrics:
        arms = [(arm, arm.metrics[metric]) for arm in entry.arms if metric in arm.metrics]
        needed = _needed(entry, claim, metric)
        dots = [
            Dot(
                name=arm.name,
                note="" if arm.label == arm.name else arm.label,
                value=value,
                low=low,
                high=high,
                written=text.number(value),
                ends=f"{text.number(low)} to {text.number(high)}",
                css=arm.name if arm.name in ("treatment", "baseline", "control") else "other",
                mark=needed[1] if needed is not None and needed[0] == arm.name else None,
            )
            for arm, (value, low, high) in arms
        ]
        key = "" if needed is None else f"what the promise needs here, {text.number(needed[1])} ({needed[2]})"
        panels.append(plot.panel(text.words(metric), dots, key=key, hint="means, 95 % intervals"))
    return panels


def _needed(entry: Entry, claim: Experiment | None, metric: str) -> tuple[str, float, str] | None:
    """(arm, its mean from which on the paper's number is met, where that stands), with the other arms as measured."""
    effect = None if claim is None else claim.primary
    if claim is None or effect is None or effect.margin is None or entry.primary is None:
        return None
    (arm, own, weight), *others = effect.terms
    if (own or claim.metric) != metric or not weight or any((name or claim.metric) != metric for _, name, _ in others):
        return None
    means = {shown.name: shown.metrics[metric][0] for shown in entry.arms if metric in shown.metrics}
    if arm not in means or not all(name in means for name, _, _ in others):
        return None
    rest = sum(w * means[name] for name, _, w in others)
    return arm, (effect.threshold - rest) / weight, effect.margin.where


def _effects(entry: Entry) -> list[PlotPanel | None]:
    """The primary effect, what makes the experiment valid, the secondary effects: like sizes share an axis."""
    if entry.primary is None:
        return []
    named = [("primary", entry.primary)]
    named += [("validity", e) for e in entry.validity] + [("secondary", e) for e in entry.secondary]
    panels = []
    for k, group in enumerate(plot.alike(_effect(role, estimate) for role, estimate in named)):
        where = dict.fromkeys(
            e.where for _, e in named if e.where and any(d.name == e.words and d.mark is not None for d in group)
        )
        key = f"the paper's number ({', '.join(where)})" if where else ""
        level = f"{100 * entry.primary.level:.3g} % intervals"
        panels.append(plot.panel("effects" if k == 0 else "further effects", group, zero=True, key=key, hint=level))
    return panels


def _effect(role: str, found: Estimate) -> Dot:
    state = "shown" if found.shown else "refuted" if found.refuted else "open"
    return Dot(
        name=found.words,
        note={"validity": "the control fails" if found.shown else "the control does not fail"}.get(role, role),
        value=found.value,
        low=found.low,
        high=found.high,
        written=text.signed(found.value),
        ends=text.interval(found.low, found.high),
        css=f"{role} {state}",
        mark=found.margin if found.where or found.margin else None,
    )


def _bounds(entry: Entry, claim: Cost) -> PlotPanel | None:
    """What was counted, with the paper's numbers."""
    papers = _bounds_of(claim)
    dots = [
        Dot(
            name=text.words(name),
            note=f"{_side(claim, name)} {text.number(paper.value)}",
            value=entry.measured[name],
            written=text.number(entry.measured[name]),
            css="treatment",
            mark=paper.value,
        )
        for name, paper in papers.items()
        if name in entry.measured
    ]
    where = ", ".join(dict.fromkeys(paper.where for paper in papers.values() if paper.where != NOTHING_SAVED))
    return plot.panel("counted", dots, zero=True, key=f"the paper's number ({where})" if where else NOTHING_SAVED)


def _side(claim: Cost, metric: str) -> str:
    return "at least" if metric in claim.at_least else "at most" if metric in claim.at_most else "above"


def _bounds_of(claim: Cost) -> dict[str, Paper]:
    return {**{name: Paper(1.0, NOTHING_SAVED) for name in claim.saves}, **claim.at_least, **claim.at_most}


def _figures(entry: Entry, claim: Claim | None) -> tuple[tuple[str, str, str], ...]:
    drawn = _bounds_of(claim) if isinstance(claim, Cost) else {}
    found = [(text.words(name), text.number(value), "") for name, value in entry.measured.items() if name not in drawn]
    for name, (middle, low, high) in entry.timed.items():
        found.append((f"{text.words(name)}, timed", text.number(middle), f"{text.number(low)} to {text.number(high)}"))
    return tuple(found)


def _change(former: Former) -> FormerDesign:
    if former.value is None or former.low is None or former.high is None:
        return FormerDesign(former=former, panel=None)
    state = {"supported": "shown", "contradicted": "refuted"}.get(former.verdict, "open")
    dot = Dot(
        name="effect above the margin",
        value=former.value,
        low=former.low,
        high=former.high,
        written=text.signed(former.value),
        ends=text.interval(former.low, former.high),
        css=f"primary {state}",
    )
    return FormerDesign(former=former, panel=plot.panel("", [dot], zero=True))
