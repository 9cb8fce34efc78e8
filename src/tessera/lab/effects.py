"""Effects: differences between the means of arms, written so that they are positive when the promise is kept."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.errors import TesseraError


@dataclass(frozen=True, slots=True)
class Paper:
    """A number that the paper gives, and where it stands there ("table 1", "section 4.2, figure 3")."""

    value: float
    where: str

    def __post_init__(self) -> None:
        if not self.where.strip():
            raise TesseraError(f"the margin {self.value} needs the place in the paper where it stands.")


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
