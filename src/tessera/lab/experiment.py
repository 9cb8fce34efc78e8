"""What a paper promises, as data that the lab runs and one rule judges. Imports no torch.

    CLAIMS = [
        Experiment(
            id="keeps_accuracy",
            promise="A quarter of the visual tokens keeps 95 % of the accuracy of all tokens.",
            paper="table 1",
            protocol=TokenReduction(types=SEEING),
            treatment=Plug("fopru", keep=0.25),
            baseline=Plug("fopru", keep=1.0),
            control=Plug("random", keep=(0.25,), repeats=3),
            primary=retains("baseline", Paper(0.95, "table 1")),
            valid_if=(worse("control", than="baseline"),),
            secondary=(beats("control"),),
        ),
        Exact(id="top_quarter", promise="...", run=top_quarter),
        Cost(id="prefill", promise="...", protocol=Prefill(), treatment=Plug("fopru", keep=0.25), ...),
    ]

A part's claims stand in `tessera/claims/<socket>/<part>.py`, as a list named CLAIMS. An effect is a difference between arms on
the same units, written so that it is positive when the promise is kept; its margin is zero or a number of the paper.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from tessera.errors import TesseraError

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.lab.protocols.base import CostProtocol, Protocol

Kind: TypeAlias = Literal["exact", "effect", "cost"]
KINDS: tuple[Kind, ...] = ("exact", "effect", "cost")
"""exact: an identity, or parity with a reference on shared weights; effect: the paper's promise as an experiment against a
baseline and a control; cost: a ratio of counted operations, tokens or bytes, with the measured time beside it."""

LOOKS = 3
"""An experiment looks at its data at most this often; intervals are widened for it (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Paper:
    """A number that the paper gives, and where it stands there ("table 1", "section 4.2, figure 3")."""

    value: float
    where: str

    def __post_init__(self) -> None:
        if not self.where.strip():
            raise TesseraError(f"the margin {self.value} needs the place in the paper where it stands.")


# Arms


@dataclass(frozen=True, slots=True)
class Arm:
    """What one side of an experiment is given. `repeats`: of an arm that draws random numbers of its own in an experiment without
    training, over how many of its seeds its outcomes are averaged."""

    def plain(self) -> dict[str, Any]:
        """The arm as plain data, which its cached outcomes are stored under."""
        return {"arm": type(self).__name__, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    @property
    def label(self) -> str:
        """A few words for tables and plots."""
        return type(self).__name__.lower()

    def parts(self) -> tuple[str, ...]:
        """`socket/name` (or the name alone) of the registered parts that the arm uses: the outcomes depend on what they do."""
        return ()


@dataclass(frozen=True, slots=True, init=False)
class Plug(Arm):
    """Parts for hosts, plugged into the experiment's model: `Plug("fopru", keep=0.25)`."""

    part: str
    options: Mapping[str, Any]
    repeats: int = 1

    def __init__(self, part: str, *, repeats: int = 1, **options: Any) -> None:
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "repeats", repeats)

    @property
    def label(self) -> str:
        """`fopru keep=0.25`."""
        return " ".join([self.part, *(f"{k}={_short(v)}" for k, v in self.options.items())])

    def parts(self) -> tuple[str, ...]:
        """The plugged part."""
        return (self.part,)


@dataclass(frozen=True, slots=True, init=False)
class Use(Arm):
    """A part of the experiment's socket, by name, with options that the protocol hands to it: `Use("coop", shots=16)`."""

    part: str
    options: Mapping[str, Any]

    def __init__(self, part: str, **options: Any) -> None:
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", options)

    @property
    def label(self) -> str:
        """`coop shots=16`."""
        return " ".join([self.part, *(f"{k}={_short(v)}" for k, v in self.options.items())])

    def parts(self) -> tuple[str, ...]:
        """The used part."""
        return (self.part,)


@dataclass(frozen=True, slots=True, init=False)
class Build(Arm):
    """A composed model with these parts in place of the protocol's own: `Build(connector={"kind": "qformer", "queries": 16})`.

    name: what the arm is called; settings: of the protocol, for this arm alone (such as `question="shuffled"`)."""

    name: str
    sockets: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None, **sockets: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "sockets", sockets)
        object.__setattr__(self, "settings", dict(settings or {}))

    @property
    def label(self) -> str:
        """The arm's name."""
        return self.name

    def parts(self) -> tuple[str, ...]:
        """Every part that is named under "kind"."""
        return tuple(dict.fromkeys(_kinds(self.sockets)))


@dataclass(frozen=True, slots=True, init=False)
class Vary(Arm):
    """The protocol's own way with some of its arm settings changed: `Vary("shuffled labels", labels="shuffled")`.

    uses: names of registered parts that the arm runs."""

    name: str
    uses: tuple[str, ...]
    settings: Mapping[str, Any]

    def __init__(self, name: str, *, uses: tuple[str, ...] = (), **settings: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "uses", uses)
        object.__setattr__(self, "settings", settings)

    @property
    def label(self) -> str:
        """The arm's name."""
        return self.name

    def parts(self) -> tuple[str, ...]:
        """What it uses, and every part that is named under "kind"."""
        return tuple(dict.fromkeys([*self.uses, *_kinds(self.settings)]))


# Effects


@dataclass(frozen=True, slots=True)
class Effect:
    """A weighted sum of arms' means that is above `margin` when the promise is kept.

    terms  (arm, metric or "" for the experiment's, weight); words: the promise as a sentence about the arms; a weight other than
           1 and -1 is a number of the paper, and the margin says where it stands. Raises `TesseraError` otherwise.
    """

    terms: tuple[tuple[str, str, float], ...]
    words: str
    margin: Paper | None = None

    def __post_init__(self) -> None:
        if self.margin is None and any(abs(weight) != 1 for _, _, weight in self.terms):
            raise TesseraError(
                f"{self.words!r}: weights are 1 or -1, or numbers of the paper, of which the margin says the place."
            )

    @property
    def threshold(self) -> float:
        """The margin's value, zero without one."""
        return 0.0 if self.margin is None else self.margin.value

    def arms(self) -> set[str]:
        """Names of the arms that it compares."""
        return {arm for arm, _, _ in self.terms}


def beats(arm: str, by: Paper | None = None, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean is higher than the arm's, by more than the paper's number if one is given."""
    words = f"{of} is above {arm}" + (f" by more than {by.value:g}" if by else "")
    return Effect(((of, metric, 1.0), (arm, metric, -1.0)), _named(words, metric), by)


def below(arm: str, by: Paper | None = None, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean is lower than the arm's, for metrics of which less is better."""
    words = f"{of} is below {arm}" + (f" by more than {by.value:g}" if by else "")
    return Effect(((of, metric, -1.0), (arm, metric, 1.0)), _named(words, metric), by)


def retains(arm: str, share: Paper, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment keeps at least the paper's share of the arm's mean."""
    words = f"{of} keeps {share.value:.4g} of {arm}"
    margin = Paper(0.0, share.where)
    return Effect(((of, metric, 1.0), (arm, metric, -share.value)), _named(words, metric), margin)


def reduces(arm: str, to: Paper, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean is at most the paper's share of the arm's, for metrics of which less is better."""
    words = f"{of} is at most {to.value:.4g} of {arm}"
    return Effect(((of, metric, -1.0), (arm, metric, to.value)), _named(words, metric), Paper(0.0, to.where))


def loses(arm: str, at_most: Paper, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean is at most the paper's number below the arm's."""
    words = f"{of} is at most {at_most.value:g} below {arm}"
    margin = Paper(-at_most.value, at_most.where)
    return Effect(((of, metric, 1.0), (arm, metric, -1.0)), _named(words, metric), margin)


def reaches(at_least: Paper, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean itself is above the paper's number."""
    return Effect(((of, metric, 1.0),), _named(f"{of} is above {at_least.value:g}", metric), at_least)


def stays_under(at_most: Paper, *, metric: str = "", of: str = "treatment") -> Effect:
    """The treatment's mean itself is below the paper's number."""
    margin = Paper(-at_most.value, at_most.where)
    return Effect(((of, metric, -1.0),), _named(f"{of} is below {at_most.value:g}", metric), margin)


def worse(arm: str, *, than: str = "treatment", metric: str = "") -> Effect:
    """The arm's mean is lower than another's: what a control has to show."""
    return Effect(((than, metric, 1.0), (arm, metric, -1.0)), _named(f"{arm} is below {than}", metric))


def _named(words: str, metric: str) -> str:
    return f"{words} ({metric})" if metric else words


# Preconditions


class Given:
    """A property of the model or the data without which the promise has nothing to act on. Subclasses are frozen dataclasses."""

    words: ClassVar[str] = ""

    def measure(self, lab: Lab) -> Condition:
        """Whether it holds, with the number that says so."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is measured")

    def depends(self) -> tuple[str, ...]:
        """Names of the behaviours that it is measured with (`tessera.lab.behaviour`), besides those of the experiment."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A precondition as it was measured: `value` with its 95 % interval, and the value that is `needed`."""

    words: str
    value: float
    low: float
    high: float
    needed: float
    holds: bool


# Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A promise about what a method does, as arms on the same units.

    id         unique within the part; promise: the paper's sentence, with metric, comparison and margin
    protocol   how arms are measured, with its settings
    treatment, baseline, control, others  what is compared; the control is what should fail
    primary    the only thing that the verdict is about
    valid_if   what must show, or nothing was tested (`invalid`)
    secondary  reported with intervals, no part of the verdict
    given      preconditions; where one does not hold the experiment is `not applicable`
    looks      units at each look, cumulative; None: the protocol's own
    note       one sentence on how to read it; amended: why it was changed after a result was seen, oldest first
    """

    kind: ClassVar[Kind] = "effect"
    id: str
    promise: str
    protocol: Protocol
    treatment: Arm
    control: Arm
    primary: Effect
    valid_if: tuple[Effect, ...]
    baseline: Arm | None = None
    others: Mapping[str, Arm] = field(default_factory=dict)
    metric: str = "accuracy"
    secondary: tuple[Effect, ...] = ()
    given: tuple[Given, ...] = ()
    looks: tuple[int, ...] | None = None
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.valid_if:
            raise TesseraError(f"experiment {self.id!r}: valid_if must say how the control fails.")
        known = self.arms()
        for effect in (self.primary, *self.valid_if, *self.secondary):
            if missing := effect.arms() - known.keys():
                raise TesseraError(f"experiment {self.id!r}: no arm is called {', '.join(sorted(missing))}.")
        looks = self.sizes()
        if not 1 <= len(looks) <= LOOKS or list(looks) != sorted(set(looks)) or looks[0] < 1:
            raise TesseraError(f"experiment {self.id!r}: looks are 1 to {LOOKS} growing numbers of units, not {looks}.")
        if self.protocol.unit == "seed" and looks[0] < 5:
            raise TesseraError(f"experiment {self.id!r}: what is trained takes at least five seeds, not {looks[0]}.")
        for name, arm in known.items():
            if not isinstance(arm, self.protocol.arms):
                kinds = ", ".join(kind.__name__ for kind in self.protocol.arms)
                raise TesseraError(f"experiment {self.id!r}: {self.protocol.name} takes arms of kind {kinds}, not {name}={arm}.")

    def arms(self) -> dict[str, Arm]:
        """All arms by name, the treatment first."""
        named = {"treatment": self.treatment, "baseline": self.baseline, "control": self.control, **self.others}
        return {name: arm for name, arm in named.items() if arm is not None}

    def sizes(self) -> tuple[int, ...]:
        """Units at each look."""
        return self.looks or self.protocol.looks

    def digest(self) -> str:
        """12 hexadecimal digits of what is run and judged; wording, notes and places in the paper do not count."""
        seen = {name: arm.plain() for name, arm in self.arms().items()}
        effects = {
            role: [(effect.terms, effect.threshold) for effect in found]
            for role, found in (("primary", (self.primary,)), ("valid_if", self.valid_if))
        }
        given = [{"given": type(g).__name__, **_plain(g)} for g in self.given]
        return _digest([self.protocol.plain(), seen, effects, given, self.metric, self.sizes()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What an exact claim found: conditions in words -> whether they hold; the numbers compared; sizes and dtype."""

    checks: Mapping[str, bool]
    measured: Mapping[str, float] = field(default_factory=dict)
    shape: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """A promise that holds or fails: parity of the part with a reference that `run` writes from the equations."""

    kind: ClassVar[Kind] = "exact"
    id: str
    promise: str
    run: Callable[[Lab], Checked]
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def digest(self) -> str:
        """Empty: the code that runs is the claim, and it is run whenever it is asked for."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A promise about what a method saves or adds: ratios of counted things, each at least (or at most) the paper's number.

    at_least, at_most  metric of the protocol -> the paper's number; measured seconds are reported beside them and not judged
    saves              metrics that have to be above 1, where the paper gives no number
    """

    kind: ClassVar[Kind] = "cost"
    id: str
    promise: str
    protocol: CostProtocol
    treatment: Arm
    baseline: Arm | None = None
    at_least: Mapping[str, Paper] = field(default_factory=dict)
    at_most: Mapping[str, Paper] = field(default_factory=dict)
    saves: tuple[str, ...] = ()
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.at_least and not self.at_most and not self.saves:
            raise TesseraError(f"cost {self.id!r}: say what is promised, at_least or at_most, or saves.")

    def digest(self) -> str:
        """As of `Experiment`."""
        arms = [self.treatment.plain(), None if self.baseline is None else self.baseline.plain()]
        bounds = [{k: p.value for k, p in sorted(found.items())} for found in (self.at_least, self.at_most)]
        return _digest([self.protocol.plain(), arms, bounds, *([self.saves] if self.saves else [])])


Claim: TypeAlias = Experiment | Exact | Cost


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """Plain data of settings. Raises `TesseraError` for what cannot be written down, such as a function."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TesseraError(f"an experiment holds plain data; {value!r} is none.")


def _kinds(value: Any) -> list[str]:
    """Every text that stands under a key "kind"."""
    if isinstance(value, Mapping):
        own = [value["kind"]] if isinstance(value.get("kind"), str) else []
        return own + [kind for inner in value.values() for kind in _kinds(inner)]
    if isinstance(value, (list, tuple)):
        return [kind for inner in value for kind in _kinds(inner)]
    return []


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
