"""The experiment of a claim in words, as it stands in the claims file."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from markupsafe import Markup

from tessera.lab.experiment import Arm, Build, Claim, Cost, Effect, Exact, Paper, Vary
from tessera.lab.judge import ALPHA
from tessera.lab.pages import text


def about(claim: Claim) -> str:
    """What the code of an exact claim says of itself."""
    found = inspect.getdoc(claim.run) if isinstance(claim, Exact) and inspect.isroutine(claim.run) else ""
    return found or ""


def design(claim: Claim) -> dict[str, list[Markup]]:
    """Term -> values; {} of an exact claim, whose code is the claim."""
    if isinstance(claim, Exact):
        return {}
    found: dict[str, list[Markup]] = {"protocol": [_protocol(claim.protocol)]}
    settings = [_code(f"{f.name} = {_short(getattr(claim.protocol, f.name))}") for f in fields(claim.protocol)]
    if settings:
        found["settings"] = [Markup(" ").join(settings)]
    if isinstance(claim, Cost):
        found["arms"] = [_arm(n, a) for n, a in (("treatment", claim.treatment), ("baseline", claim.baseline)) if a is not None]
        found["promised"] = [_bound(name, "at least", p) for name, p in claim.at_least.items()]
        found["promised"] += [_bound(name, "at most", p) for name, p in claim.at_most.items()]
        found["promised"] += [Markup("{} above 1").format(text.words(name)) for name in claim.saves]
        return found
    found["arms"] = [_arm(name, arm) for name, arm in claim.arms().items()]
    if claim.given:
        found["precondition"] = [_given(given) for given in claim.given]
    found["metric"] = [Markup("{}").format(text.words(claim.metric))]
    found["primary effect"] = [_effect_words(claim.primary)]
    found["valid if"] = [_effect_words(effect) for effect in claim.valid_if]
    if claim.secondary:
        found["secondary"] = [_effect_words(effect) for effect in claim.secondary]
    unit = {"image": "questions, clustered by image", "seed": "seeds"}[claim.protocol.unit]
    level = 100 * (1 - ALPHA / len(claim.sizes()))
    looks = f"{', '.join(f'{size:,}' for size in claim.sizes())} {unit}; intervals of {level:.3g} %"
    found["looks"] = [Markup("{}").format(looks)]
    return found


def _protocol(protocol: Any) -> Markup:
    about = text.sentence(getattr(sys.modules.get(type(protocol).__module__), "__doc__", None) or "")
    return Markup("{} version {}. {}").format(_code(protocol.name), protocol.version, about)


def _arm(name: str, arm: Arm) -> Markup:
    more: Mapping[str, Any] = {}
    if isinstance(arm, Build):
        more = {**arm.sockets, **arm.settings}
    elif isinstance(arm, Vary):
        more = {**({"uses": arm.uses} if arm.uses else {}), **arm.settings}
    settings = Markup(" ").join(_code(f"{key} = {_short(value)}") for key, value in more.items())
    label = "" if arm.label == name else arm.label
    repeats = getattr(arm, "repeats", 1)
    times = f", mean of {repeats} random seeds" if repeats > 1 else ""
    said = Markup("{}{}").format(_code(label) if label and not more else label, times)
    return Markup("<b>{}</b> {} {}").format(name, said, settings)


def _given(given: Any) -> Markup:
    settings = ", ".join(f"{f.name} {_short(getattr(given, f.name))}" for f in fields(given)) if is_dataclass(given) else ""
    said = given.words or text.words(type(given).__name__)
    return Markup("{} <small>{}</small>").format(said, settings)


def _effect_words(effect: Effect) -> Markup:
    where = f" ({effect.margin.where})" if effect.margin is not None else ""
    return Markup("{}{}").format(effect.words, where)


def _bound(name: str, how: str, paper: Paper) -> Markup:
    return Markup("{} is {} {} ({})").format(text.words(name), how, text.number(paper.value), paper.where)


def _code(written: str) -> Markup:
    return Markup("<code>{}</code>").format(written)


def _short(value: Any) -> str:
    """A setting on one line; long lists are cut."""
    if isinstance(value, str):
        return value
    try:
        written = json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
    except (TypeError, ValueError):
        written = str(value)
    return written if len(written) <= 160 else f"{written[:159]}…"
