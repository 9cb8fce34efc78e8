"""The field's words: what docs/design.md and the code say. The words on the left, in the private meaning that they once had here,
occur in no source, template or document; where one has its ordinary or technical meaning, `ALLOWED` says why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".jinja", ".j2", ".html", ".md"}
WEIGHTS = "src/tessera/models/weights/"


def word(*forms: str) -> str:
    """A pattern of words, also as a piece of an identifier: `seer`, `_seer`, `SEER`, `SessionSeer`; not inside of `overseer`."""
    lower, upper = "|".join(forms), "|".join(form.upper() for form in forms)
    camel = "|".join(form[0].upper() + form[1:] for form in forms)
    return rf"(?:(?<![A-Za-z])(?:{lower})(?![a-z])|(?:{camel})(?![a-z])|(?<![A-Za-z])(?:{upper})(?![A-Za-z]))"


WORDS: Mapping[str, str] = {
    word("seer", "seers"): "ModelInterface",
    word("anatomy", "anatomies", "organ", "organs"): "architecture adapter",
    word("lesson", "lessons"): "training data of a stage",
    word("strange", "stranger", "strangers"): "mismatched (image), untrusted (data), unrelated (things)",
    word("bare"): "plain (model)",
    word("whole") + r"[\s_](?:models?|prompts?|networks?)\b": "full (model, prompt)",
    word("steer", "steers", "steered", "steering"): "attention override",
    word("hear", "hears", "heard", "unheard", "hearing"): "hook, capture",
    word("finding", "findings"): "result",
    word("instrument", "instruments"): "fixture or protocol",
    r"\bBench\b|[a-z]Bench\b|\bcontract bench(?:es)?\b|\bbench_of\b": "fixture",
    r"\bby lots?\b|\bdraw(?:n|ing)?(?: of)? lots\b": "random, at random",
    word("lot", "lots"): "generator, rng",
    r"\bdealt (?:out|anew|again)": "shuffled, permuted",
    word("teach", "teaches", "teaching", "taught", "untaught"): "fine-tune, train, trained",
    word("ride", "rides", "riding", "ridden", "unride"): "attach, detach",
    word("logical", "logically", "physical", "physically"): "full and pruned (indices)",
    word("looks"): "attributes",
}
"""A pattern -> what to say instead."""


class Allowed(NamedTuple):
    """A hit of `word` may stand in files whose path matches `file` if its line matches `line`."""

    word: str
    file: str
    line: str
    why: str


ALLOWED = (
    Allowed(
        "lessons",
        r"recipes/|training/(run|recipe)|bench/expected|lab/compare/ring\.py|contract/training",
        r"lessons",
        "key of saved recipes",
    ),
    Allowed("seer", r"lab/fingerprints/answering", r'found\["seer"\]', "key of a fingerprint in evidence"),
    Allowed("bare", r"lab/fingerprints/answering", r"\{name\}: bare", "key of a fingerprint in evidence"),
    Allowed("bare", r"claims/decoding/llava_align", r"bare (model|operations)\":", "name of a check or number in evidence"),
    Allowed("bare", r"hosts/report", r"self\.bare|bare: GenerationCost|bare=costs", "key of the report's JSON"),
    Allowed("bare", r"lab/compare|lab/pages/templates/compare|cli/compare", r'"bare"', "value in the JSON of `tessera compare`"),
    Allowed("teaches", r"claims/engines/provision", r'id="teaches"', "id of a claim in evidence"),
    Allowed("lot", r"protocols/post_training", r"\blot\b", "field of a protocol in digests of evidence: objects of a batch"),
    Allowed("findings", r"data/check|cli/data", r"findings\b", "key of the JSON of `tessera data check`"),
    Allowed("finding", r"data/check", r"for finding duplicates", "ordinary English: to find"),
    Allowed("Bench", r"lab/fingerprints/parts", r"\}Bench", "prefix of fingerprints in evidence"),
    Allowed("logical", r"parts/benchmarks/mmstar", r"logical reasoning", "a category of the benchmark"),
    Allowed("logical", r"cli/env", r"logical_cores", "the processor's logical cores; key of the JSON of `tessera env`"),
    Allowed(
        "looks",
        r"lab/(experiment|judge|evidence|verify)|lab/pages/|lab/protocols/|claims/",
        r"(?i)looks",
        "interim looks at growing data",
    ),
    Allowed("looks", r"docs/design\.md", r"looks at growing data", "interim looks at growing data"),
    Allowed(
        "looks", r"recipes/|training/(options|world_questions)|docs/design\.md", r"[\"`.]looks|looks[:=]", "key of saved recipes"
    ),
    Allowed("looks", r"world/lists", r'"looks"', "name of a form of lists, in saved recipes"),
    Allowed("looks", r"parts/probes/intriguing_properties", r"looks[:=]|c\.looks", "option of the part"),
    Allowed(
        "looks",
        r"",
        r"\b(it|that|and|which|text|model|code|benchmark|one|images|encoder|image) looks\b|looks (for|at|up|like|harder|alike)\b",
        "to look",
    ),
)


class Hit(NamedTuple):
    """A forbidden word in a file."""

    file: str
    line: int
    word: str
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word!r}, say {self.instead}: {self.text.strip()[:100]}"


def documents() -> Iterator[tuple[str, str]]:
    """(path below the root, text) of sources, templates and documents; cards of shipped models hold saved recipes."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for top in ("src", "docs"):
        paths += sorted(path for path in (ROOT / top).rglob("*") if path.suffix in SUFFIXES and path.is_file())
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(WEIGHTS):
            yield name, path.read_text(encoding="utf-8")


def hits(file: str, text: str) -> Iterator[tuple[Hit, Allowed | None]]:
    """The words of the list in a text, each with what allows it."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in WORDS.items():
            for match in re.finditer(pattern, line):
                found = Hit(file, number, match[0], line, instead)
                yield found, next((a for a in ALLOWED if allows(a, found)), None)


def allows(allowed: Allowed, hit: Hit) -> bool:
    return (
        allowed.word.lower() == hit.word.lower().strip()
        and re.search(allowed.file, hit.file) is not None
        and re.search(allowed.line, hit.text) is not None
    )


@pytest.fixture(scope="module")
def everything() -> list[tuple[Hit, Allowed | None]]:
    return [found for file, text in documents() for found in hits(file, text)]


def test_the_private_words_are_gone(everything: list[tuple[Hit, Allowed | None]]) -> None:
    wrong = [str(hit) for hit, allowed in everything if allowed is None]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_exception_is_needed(everything: list[tuple[Hit, Allowed | None]]) -> None:
    used = {allowed for _, allowed in everything}
    assert [allowed for allowed in ALLOWED if allowed not in used] == []


def test_what_is_read_is_what_people_read() -> None:
    names = [name for name, _ in documents()]
    assert {"README.md", "CONTRIBUTING.md", "docs/design.md", "src/tessera/hosts/part.py"} <= set(names)
    assert any(name.endswith((".jinja", ".j2", ".html")) for name in names)


@pytest.mark.parametrize(
    "text",
    [
        "class SessionSeer:",
        "def ask(seer): ...",
        "host.anatomy.layers",
        '"""The organs of one model."""',
        "found = _lesson(how)",
        "class Lesson:",
        "LESSONS = 3",
        "an answer to a strange image",
        "against the bare model",
        "logits of the whole model",
        "read the whole_prompt again",
        "def steered(module): ...",
        "listen(attention, self.hear, undo)",
        "class Finding:",
        "a measuring instrument",
        "class HostBench(Fixture):",
        "Patches are drawn by lot.",
        "randn(3, generator=lots)",
        "answers are dealt out anew",
        "what it was taught",
        "The state rides on the cache.",
        "from logical to physical indices",
        "told by their looks",
        "{% for finding in report %}",
    ],
)
def test_a_private_word_is_noticed(text: str) -> None:
    assert any(allowed is None for _, allowed in hits("src/tessera/made_up.py", text))


@pytest.mark.parametrize(
    "text",
    [
        "a teacher and a student, under teacher forcing",
        "whole numbers from 0 to 255",
        "reorganised tokens; the organisers overseer",
        "the stride of an override; slots of a plot, a lottery",
        "barely, sharing, hearts, strangely-typed",
        "it looks for things; an overlooked look-up",
        "physics, biological",
        "tessera bench train; benchmarks",
    ],
)
def test_an_ordinary_word_is_not(text: str) -> None:
    assert [str(hit) for hit, allowed in hits("src/tessera/made_up.py", text) if allowed is None] == []
