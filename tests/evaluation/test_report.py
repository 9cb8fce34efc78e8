"""The report: one file that needs nothing else, correct in its numbers, safe with any answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.evaluation import charts, pictures
from tessera.evaluation.harness import evaluate
from tessera.evaluation.intervals import Interval
from tessera.evaluation.items import EvaluationConfig
from tessera.evaluation.report import Run, read_log, report_html, write_report
from tessera.evaluation.result import Result

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>$title ${css} & done'


@pytest.fixture
def result(model: Any, config: EvaluationConfig, knowing: Callable[..., Any]) -> Result:
    """Right about half of the time, and wrong in the worst way."""
    half = knowing(lambda q: q.answer if len(q.text) % 2 else HOSTILE)
    return evaluate(model, None, config, answers=half, name="tiny <model>")


@pytest.fixture
def unillustrated(result: Result) -> Result:
    """Without examples, whose pictures take the time."""
    return replace(result, examples=[])


@pytest.fixture
def blind(model: Any, config: EvaluationConfig, knowing: Callable[..., Any]) -> Result:
    return evaluate(model, None, config, answers=knowing(lambda q: "yes"), blind=True)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; checks that tags are closed in order."""

    VOID = ("meta", "img", "path", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def write_log(path: Path, lines: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def log_lines(steps: int) -> list[dict[str, Any] | str]:
    found: list[dict[str, Any] | str] = []
    for step in range(1, steps + 1):
        found.append({"step": step, "stage": "align" if step <= 10 else "instruct", "loss": 5 / step})
        if step % 10 == 0:
            found.append({"step": step, "evaluation": {"accuracy": step / steps, "accuracy/box": 0.1}})
    return found


def test_the_page_needs_nothing_from_elsewhere(result: Result, blind: Result) -> None:
    text = report_html(result, Run(title="quickstart"), blind)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "base"}
    sources = [a.get("src") or a.get("href") for _, a in page.tags if "src" in a or "href" in a]
    assert sources
    assert all(str(source).startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)


def test_hostile_answers_stay_words(result: Result) -> None:
    page = Page(report_html(result, Run(title=HOSTILE, about=HOSTILE, command=HOSTILE, recipe={HOSTILE: HOSTILE})))
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]
    assert any("<script>alert(1)</script>" in word and "$title" in word for word in page.words)


def test_every_type_has_its_bar_with_its_numbers(result: Result, blind: Result) -> None:
    both = result.with_blind(blind)
    rows = [a for tag, a in Page(charts.bars(both)).tags if str(a.get("class", "")).startswith("row")]
    said = {str(a["aria-label"]).partition(":")[0]: str(a["aria-label"]) for a in rows}
    assert said.keys() == both.types.keys()
    for name, found in both.types.items():
        assert f"{name}: {100 * found.accuracy:.0f} % right" in said[name]
        assert f"{100 * (found.blind or 0):.0f} % without the images" in said[name]


@pytest.mark.parametrize(
    ("low", "chance", "majority", "gain", "sees"),
    [
        (0.6, 0.5, 0.2, None, True),
        (0.4, 0.5, 0.2, None, False),
        (0.6, 0.0, 0.7, None, False),
        (0.6, 0.5, 0.2, Interval(0.3, 0.1, 0.5), True),
        (0.6, 0.5, 0.2, Interval(0.3, -0.1, 0.5), False),
    ],
)
def test_a_bar_is_hatched_unless_it_is_surely_above_guessing(
    unillustrated: Result, low: float, chance: float, majority: float, gain: Interval | None, sees: bool
) -> None:
    found = replace(unillustrated.types["box"], low=low, chance=chance, majority=majority, gain=gain)
    assert found.sees is sees
    drawn = charts.bars(replace(unillustrated, types={"box": found}))
    assert ("may be guessing" in drawn) is not sees


def test_without_a_blind_result_no_blind_bar_is_drawn(unillustrated: Result) -> None:
    assert 'class="blind"' not in report_html(unillustrated)


def test_a_blind_result_about_other_questions_is_refused(unillustrated: Result, blind: Result) -> None:
    with pytest.raises(UserError, match="not asked the same questions"):
        report_html(unillustrated, blind=replace(blind, items="other"))


def test_right_and_wrong_answers_are_shown_with_their_pictures(result: Result) -> None:
    shown = Page(pictures.cards(result, right=True, limit=50))
    right = [e for e in result.examples if e.right]
    images = [a for tag, a in shown.tags if tag == "img"]
    assert len([1 for tag, _ in shown.tags if tag == "figure"]) == len(right)
    assert len(images) == sum(e.frames for e in right)
    assert all(e.question in shown.words for e in right)
    wrong = Page(pictures.cards(result, right=False, limit=50))
    assert all(e.answer in wrong.words for e in result.examples if not e.right)


def test_boxes_of_truth_and_answer_are_drawn(model: Any, config: EvaluationConfig, knowing: Callable[..., Any]) -> None:
    result = evaluate(model, None, config, answers=knowing(lambda q: "10 20 29 59"))
    example = next(e for e in result.examples if e.type == "box")
    x0, y0, x1, y1 = map(int, example.answer.split())
    result.examples = [example]
    page = Page(pictures.cards(result, right=example.right))
    rects = {a["class"]: a for tag, a in page.tags if tag == "rect"}
    assert (rects["said"]["x"], rects["said"]["y"], rects["said"]["width"], rects["said"]["height"]) == ("10", "20", "20", "40")
    assert (rects["truth"]["x"], rects["truth"]["width"]) == (str(x0), str(x1 + 1 - x0))
    assert (rects["truth"]["y"], rects["truth"]["height"]) == (str(y0), str(y1 + 1 - y0))


def test_examples_come_from_every_type_first(result: Result) -> None:
    some = pictures.spread(result.examples, len(result.types))
    assert {e.type for e in some} == {e.type for e in result.examples}
    assert len(pictures.spread(result.examples, 3)) == 3


def test_the_log_is_drawn_with_its_stages(unillustrated: Result, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", log_lines(40))
    page = Page(report_html(unillustrated, Run(log=log)))
    labels = [str(a.get("aria-label")) for _, a in page.tags if a.get("class") == "plot"]
    assert labels[0].startswith("Training loss over 40 steps, from 5.00 to 0.1")
    assert labels[1].startswith("accuracy over steps, 1.00 at the end")
    assert len(labels) == 2
    assert {"align", "instruct"} <= set(page.words)


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    lines: list[dict[str, Any] | str] = [*log_lines(20), "7", '{"step": "x"}', '{"step": 21, "lo']
    steps, evaluations = read_log(write_log(tmp_path / "log.jsonl", lines))
    assert [r["step"] for r in steps] == list(range(1, 21))
    assert [r["step"] for r in evaluations] == [10, 20]
    assert read_log(tmp_path / "none.jsonl") == ([], [])


@pytest.mark.parametrize("losses", [[1.0], [0.0, 0.0], [-1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [1e-9, 1e9], [None, 1.0, 2.0]])
def test_any_loss_can_be_drawn(unillustrated: Result, losses: list[float | None], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", [{"step": i + 1, "stage": "s", "loss": v} for i, v in enumerate(losses)])
    text = report_html(unillustrated, Run(log=log))
    Page(text)
    assert not re.search(r"\b(nan|inf)\b", text)


def test_curves_keep_their_spikes_when_thinned() -> None:
    points = [(float(i), 1.0) for i in range(5000)]
    points[2345] = (2345.0, 9.0)
    drawn = charts.line_chart([charts.Series(points=points)], about="a spike")
    assert drawn.count("L") < 500
    assert re.search(r"\d 0\.0[L\"]|\d 30\.0", drawn)


def test_smoothing_neither_lags_nor_shortens_nor_ends_in_noise() -> None:
    line = [(float(i), 2.0 * i) for i in range(100)]
    assert [x for x, _ in charts.smooth(line)] == [x for x, _ in line]
    assert [y for _, y in charts.smooth(line)[:97]] == pytest.approx([y for _, y in line[:97]])
    flat = [(float(i), 1.0) for i in range(1000)]
    assert charts.smooth([*flat[:-1], (999.0, 9.0)])[-1][1] < 1.5
    assert charts.smooth([(1.0, 3.0)]) == [(1.0, 3.0)]


def test_what_is_known_of_the_run_is_written_down(unillustrated: Result, tmp_path: Path) -> None:
    run = Run(
        title="quickstart",
        recipe={"name": "quickstart", "model": {"parts": {}}},
        durations={"training": 214.3, "evaluation": 9.4},
        peak_memory=3 * 2**29,
        command="tessera run quickstart",
    )
    path = write_report(tmp_path / "report.html", unillustrated, run)
    words = " ".join(Page(path.read_text(encoding="utf-8")).words)
    for wanted in (
        "3:34 min",
        "9.4 s",
        "1.5",
        "1,536 MiB",
        unillustrated.weights,
        unillustrated.items,
        "tessera run quickstart",
        '"parts"',
    ):
        assert wanted in words
