"""Programs over tools: a small subset of Python, run by an interpreter of our own, and a grammar that proposes them.

A program is up to `LONGEST` lines `name = tool(argument, ...)`; arguments are names of earlier lines or text in quotes, and the
line `answer = ...` gives the result. Nothing else can be written, so nothing else can happen.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.parts.distillation.vpd.tools import DIRECTIONS, EXTREMES, OUTPUTS, SIZES, Failed, Tools
from tessera.world.questions.phrasing import DIRECTION_WORDS, PHRASES
from tessera.world.rng import Rng

LONGEST = 12


@dataclass(frozen=True, slots=True)
class Step:
    """One executed line: the tool, its arguments as values, its result."""

    tool: str
    arguments: tuple[Any, ...]
    result: Any


def parse(program: str) -> list[tuple[str, str, list[ast.expr]]]:
    """Lines as (name, tool, arguments). Raises `Failed` for anything that is no program."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Failed(f"this is no program: {error}") from error
    if not 1 <= len(body) <= LONGEST:
        raise Failed(f"a program has 1 to {LONGEST} lines, not {len(body)}")
    lines = []
    for line in body:
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        call = line.value if isinstance(line, ast.Assign) else None
        if not (
            isinstance(target, ast.Name) and isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.keywords
        ):
            raise Failed("a line is name = tool(argument, ...)")
        lines.append((target.id, call.func.id, call.args))
    return lines


def run(program: str, tools: Tools) -> tuple[str, list[Step]]:
    """The answer of a program and the trace of its execution. Raises `Failed` where it cannot be finished."""
    known: dict[str, Any] = {}
    trace = []
    for name, tool, arguments in parse(program):
        values = []
        for argument in arguments:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                values.append(argument.value)
            elif isinstance(argument, ast.Name) and argument.id in known:
                values.append(known[argument.id])
            else:
                raise Failed("an argument is the name of an earlier line, or text in quotes")
        known[name] = tools.call(tool, values)
        trace.append(Step(tool, tuple(values), known[name]))
    answer = known.get("answer")
    if not isinstance(answer, str):
        raise Failed("no line gives the answer as text")
    return answer, trace


class Proposer(Protocol):
    """Whoever writes programs for a question: the grammar, or a language model behind the same interface."""

    def propose(self, question: str, k: int, temperature: float, rng: Rng) -> list[str]:
        """At most k programs; none for a question that it does not understand."""
        ...


"""(the production that the words mean, all of its kind) -> the one that is taken."""
_PROGRAMS: Mapping[str, str] = {
    "exists": "a = find({name})|answer = [exists](a)",
    "count": "a = find({name})|answer = [count](a)",
    "count_category": "a = everything()|b = of_kind(a, {kind})|answer = [count](b)",
    "total": "a = everything()|answer = [count](a)",
    "more": "a = find({a})|b = find({b})|answer = more(a, b)",
    "beside": "a = find({name})|b = everything()|c = [direction](b, a)|answer = [name](c)",
    "is_beside": "a = find({a})|b = find({b})|c = [direction](a, b)|answer = [exists](c)",
    "where": "a = find({name})|answer = [place](a)",
    "nearest": "a = find({name})|b = everything()|c = [nearest](b, a)|answer = [name](c)",
    "farthest": "a = find({name})|b = everything()|c = [farthest](b, a)|answer = [name](c)",
    "larger": "a = find({a})|b = find({b})|c = both(a, b)|d = [largest](c)|answer = [name](d)",
    "smaller": "a = find({a})|b = find({b})|c = both(a, b)|d = [smallest](c)|answer = [name](d)",
    "largest": "a = everything()|b = [largest](a)|answer = [name](b)",
    "smallest": "a = everything()|b = [smallest](a)|answer = [name](b)",
    "tint": "a = find({name})|answer = [colour](a)",
    "category_region": "a = everything()|b = in_region(a, {region})|answer = [kind](b)",
    "category_largest": "a = everything()|b = [largest](a)|answer = [kind](b)",
    "odd": "a = everything()|b = odd(a)|answer = [name](b)",
    "at_region": "a = everything()|b = in_region(a, {region})|answer = [name](b)",
    "count_beside": "a = find({name})|b = everything()|c = [direction](b, a)|answer = [count](c)",
    "tint_nearest": "a = find({name})|b = everything()|c = [nearest](b, a)|answer = [colour](c)",
    "category_beside": "a = find({name})|b = everything()|c = [direction](b, a)|answer = [kind](c)",
}
"""Kind of phrase -> its derivation: {...} are words of the question, [...] what the grammar chooses a production for."""
_KINDS = (DIRECTIONS, EXTREMES, SIZES, OUTPUTS)


class Grammar:
    """Proposes programs from the words of a question alone.

    The words are matched with the phrases that questions are made of. Every choice of a production is then sampled with
    probability proportional to exp(score / temperature), score 1 for the one that the words mean and 0 for the others of its
    kind: at temperature 0.5 a choice among four directions is right in seven of ten cases.
    """

    def propose(self, question: str, k: int, temperature: float, rng: Rng) -> list[str]:
        """See `Proposer`."""
        read = understood(question)
        return [] if read is None else [self._derived(*read, temperature, rng) for _ in range(k)]

    def meant(self, question: str) -> str | None:
        """The program that the words mean, without any chance."""
        read = understood(question)
        return None if read is None else self._derived(*read, 0.0, None)

    def _derived(self, kind: str, words: Mapping[str, str], temperature: float, rng: Rng | None) -> str:
        def choose(found: re.Match[str]) -> str:
            meant = found[1] if found[1] != "direction" else _direction(words["direction"])
            same = next(kinds for kinds in _KINDS if meant in kinds)
            if rng is None or temperature <= 0:
                return meant
            return rng.weighted(same, [math.exp((one == meant) / temperature) for one in same])

        text = re.sub(r"\[(\w+)\]", choose, _PROGRAMS[kind]).replace("|", "\n")
        return re.sub(r"\{(\w+)\}", lambda found: repr(words[found[1]]), text)


def _direction(words: str) -> str:
    short = next(key for key, said in DIRECTION_WORDS.items() if said == words)
    return f"{short}_of" if short in ("left", "right") else short


def understood(question: str) -> tuple[str, dict[str, str]] | None:
    """The kind of phrase that a question is, with its words; None if it is none that programs are known for.

    Of several phrases that fit it is the one that leaves the fewest letters to names.
    """
    text = question.partition(" Choose: ")[0]
    fitting = [(kind, found.groupdict()) for kind, pattern in _patterns() if (found := pattern.fullmatch(text))]
    best = min(fitting, key=lambda item: sum(map(len, item[1].values())), default=None)
    return best if best is not None and best[0] in _PROGRAMS else None


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    found = []
    for kind, templates in PHRASES.items():
        for template in templates:
            pattern, seen = "", set()
            for literal, word in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
                pattern += re.escape(literal)
                if word and kind == "exists" and word == "a":
                    pattern += "an?"
                elif word:
                    pattern += f"(?P={word})" if word in seen else f"(?P<{word}>{_word(word)})"
                    seen.add(word)
            found.append((kind, re.compile(pattern)))
    return tuple(found)


def _word(word: str) -> str:
    return "|".join(map(re.escape, DIRECTION_WORDS.values())) if word == "direction" else "[A-Za-z0-9' .-]+?"
