"""From the trace of a program to sentences: what was found, what followed from it, and the answer."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.parts.distillation.vpd.programs import Step
from tessera.parts.distillation.vpd.tools import Things
from tessera.world.questions.phrasing import DIRECTION_WORDS, reason

_BESIDE = {"left_of": "left", "right_of": "right", "above": "above", "below": "below"}


def rationale(trace: Sequence[Step]) -> str:
    """One sentence for each step that says something, in the words of the world's own rationales, and the answer last."""
    pairs = [step.result for step in trace if step.tool == "both"]
    said = [text for step in trace[:-1] if (text := _sentence(step, pairs))]
    last = trace[-1]
    if (text := _read_out(last)) and text not in said:
        said.append(text)
    return " ".join([*said, f"{str(last.result)[:1].upper()}{str(last.result)[1:]}."])


def _sentence(step: Step, pairs: Sequence[Things]) -> str:
    found: Things = step.result
    if step.tool == "find":
        name = str(step.arguments[0])
        if not found:
            return reason("absent", name=name)
        if len(found) > 1:
            return reason("count", name=name, n=len(found))
        return reason("exists", a="a" if name[0] not in "aeiou" else "an", name=name, place=found[0].place)
    if step.tool in _BESIDE:
        where, name = DIRECTION_WORDS[_BESIDE[step.tool]], step.arguments[1][0].name
        key = "count_beside" if found else "count_beside_none"
        return reason(key, direction=where, name=name, names=_names(found))
    if step.tool in ("nearest", "farthest") and found:
        return reason(step.tool, a=found[0].name, b=step.arguments[1][0].name)
    if step.tool in ("largest", "smallest") and found:
        rivals = [t.name for t in step.arguments[0] if t is not found[0]]
        if step.arguments[0] in pairs and len(rivals) == 1:
            return reason("larger" if step.tool == "largest" else "smaller", a=found[0].name, b=rivals[0])
        return reason(step.tool, a=found[0].name, place=found[0].place)
    if step.tool == "of_kind" and found:
        return reason("count_category", kind=step.arguments[1], names=_names(found))
    if step.tool == "in_region" and found:
        return reason("at_region", name=found[0].name, region=step.arguments[1])
    return ""


def _read_out(step: Step) -> str:
    """What the last line says of a thing; nothing where the answer is that already."""
    found: Things = step.arguments[0]
    if step.tool == "kind":
        return reason("category", name=found[0].name, place=found[0].place, kind=step.result)
    if step.tool == "colour":
        return reason("tint", name=found[0].name, place=found[0].place, colour=step.result)
    return ""


def _names(things: Things) -> str:
    return ", ".join(t.name for t in sorted(things, key=lambda t: (t.x, t.y, t.key)))
