"""`tessera compare`: contenders, budgets, refusals, the table, the JSON, the page."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.lab.tiny_lab import SIDE, saved

from tessera import registry
from tessera.cli.compare import _table, parse_budget
from tessera.cli.main import run
from tessera.errors import UserError
from tessera.evaluation.intervals import Interval
from tessera.lab.compare import Comparison, Contender, Kind, compare
from tessera.lab.compare.page import page, write_page
from tessera.lab.compare.ring import swapped
from tessera.lab.compare.table import HEADS, cells, label, of_kind
from tessera.lab.local_lab import LocalLab
from tessera.measure.sides import Ratio

ASKED: dict[str, Any] = {"n": 6, "types": ("existence", "category"), "rounds": 1}


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def found(on: str, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    lab = LocalLab(cache=tmp_path_factory.mktemp("cache"))
    return compare(lab, "tokens", ("random", "fopru", "m3", "evit"), on=on, budgets=(0.5, 0.25), **ASKED)


def test_the_bare_model_and_every_part_take_part(found: Comparison) -> None:
    assert [label(row) for row in found.rows] == [
        "none", "random 0.5", "random 0.25", "fopru 0.5", "fopru 0.25", "m3 0.5", "m3 0.25",
    ]  # fmt: skip
    assert list(found.refused) == ["evit"] and "class token" in found.refused["evit"]
    bare = found.rows[0]
    assert bare.how == "bare" and bare.tokens == 16 and bare.against is None and bare.time.median == 1
    assert [row.tokens for row in found.rows[1:]] == [8, 4, 8, 4, 4, 4]
    assert all(row.types.keys() == {"existence", "category"} and row.flops > 0 and row.parameters for row in found.rows)
    assert all(row.low <= row.accuracy <= row.high for row in found.rows)
    assert all(row.against is not None for row in found.rows[1:])
    assert all(row.flops < bare.flops for row in found.rows[1:] if row.name != "fopru")


def test_the_frontier_is_beaten_by_nothing(found: Comparison) -> None:
    best = [row for row in found.rows if row.best]
    assert best
    for row in best:
        assert not [o for o in found.rows if o.accuracy > row.accuracy and o.flops <= row.flops]


@pytest.mark.parametrize("name", ["aim", "fopru", "m3", "pyramiddrop", "random", "scm", "uniform"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.1])
def test_parts_say_how_they_meet_a_budget(name: str, share: float) -> None:
    """On a deep model; what cannot fall so far stays above."""
    from tessera.config import build

    part = registry.get("tokens", name)
    made, whole = (build(part.target.Config, part.target.budget(kept, 32)) for kept in (share, 1.0))
    assert (made == whole) == (share == 1.0)


def test_a_part_without_such_a_setting_has_no_budget() -> None:
    assert registry.get("tokens", "evit").target.budget(0.5, 32) is None


def test_pyramiddrop_spends_its_budget_on_average(on: str, tmp_path: Path) -> None:
    found = compare(LocalLab(cache=tmp_path), "tokens", ("pyramiddrop", "aim"), on=on, budgets=(0.5,), **ASKED)
    assert [row.tokens for row in found.rows[1:]] == [pytest.approx(8, abs=1)] * 2


def test_all_are_answered_by_one_engine_and_once(on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain model, what is plugged into it and what stands around it; a second time from disk."""
    from tessera.evaluation import harness
    from tessera.generation.host_generate import HostGenerator

    asked: list[tuple[str, int]] = []
    real = harness.evaluate

    def evaluate(model: Any, processor: Any, config: Any, *, answers: Any) -> Any:
        assert isinstance(getattr(answers, "model", None), HostGenerator) or isinstance(answers, HostGenerator)
        asked.append((type(answers).__name__, config.world.width))
        return real(model, processor, config, answers=answers)

    monkeypatch.setattr(harness, "evaluate", evaluate)
    few: dict[str, Any] = {"on": on, "n": 2, "types": ("category",), "rounds": 1}
    for _ in range(2):
        found = compare(LocalLab(cache=tmp_path, threads=0), "pixels", ("mini_monkey",), **few)
    assert asked == [("HostGenerator", 3 * SIDE), ("ThroughViews", 3 * SIDE)], "parts around a model see larger pictures"
    assert [(row.name, row.how) for row in found.rows] == [("none", "bare"), ("mini_monkey", "around")]
    assert found.rows[1].options == {"tile": SIDE} and found.rows[1].flops > found.rows[0].flops
    asked.clear()
    for budget in (0.5, 0.5, 0.25):
        compare(LocalLab(cache=tmp_path, threads=0), "tokens", ("random",), budgets=(budget,), **few)
    assert asked == [("HostGenerator", SIDE)] * 3, "the plain model, and random once for each budget"


def test_answers_are_kept_as_long_as_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.lab.compare import runs as compare_runs

    paths = []
    for digest in ("a", "a", "b"):
        monkeypatch.setattr(compare_runs, "source_hash", lambda digest=digest: digest)
        paths.append(compare_runs.Runs(tmp_path)._path("evaluate", {"n": 1}))
    assert paths[0] == paths[1] != paths[2]


def test_a_training_is_run_once_and_an_interruption_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.lab.compare.runs import Runs
    from tessera.models import reference
    from tessera.recipes.recipe import recipe
    from tessera.training import run as training

    runs, made, calls = Runs(tmp_path), recipe("quickstart"), []

    def run(recipe: Any, out: Path) -> Any:
        calls.append(out)
        stopped = len(calls) == 1
        if not stopped:
            saved(out / "model")
        return type("Result", (), {"interrupted": stopped})(), None, None

    monkeypatch.setattr(training, "run", run)
    with pytest.raises(KeyboardInterrupt):
        runs.train(made, ())
    for _ in range(2):
        runs.train(made, ())
    assert len(calls) == 2 and calls[0] == calls[1], "where it stopped, it goes on"
    made.training.seed += 1
    runs.train(made, ())
    assert len(calls) == 3 and calls[2] != calls[1]
    assert reference.load(calls[2] / "model")


def test_differences_are_of_the_same_questions(on: str, tmp_path: Path) -> None:
    from tessera.lab.compare.runs import Runs, difference
    from tessera.models import reference

    runs, pair = Runs(tmp_path), reference.load(on)
    world = {"kinds": {"scene": 1.0}, "width": SIDE, "height": SIDE}
    first, second = (runs.evaluate(*pair, (), types=("category",), n=n, world=world) for n in (2, 3))
    assert difference(first, first).value == 0
    with pytest.raises(UserError, match="different questions"):
        difference(first, second)


def test_a_decoding_part_keeps_all_tokens(on: str, tmp_path: Path) -> None:
    found = compare(LocalLab(cache=tmp_path), "decoding", ("llava_align",), on=on, n=2, types=("category",), rounds=1)
    bare, aligned = found.rows
    assert aligned.tokens == bare.tokens == 16 and aligned.budget is None and aligned.flops > bare.flops


def test_a_part_is_swapped_into_the_reference_models_recipe(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.models import reference
    from tessera.recipes import recipe as recipes

    nano = reference.load(on)[0]
    real = recipes.recipe

    def small(name: str) -> Any:
        made = real(name)
        made.model = {"parts": json.loads(json.dumps(nano.config.parts)), "text_config": nano.config.text_config.to_dict()}
        return made

    loaded = reference.load
    monkeypatch.setattr(recipes, "recipe", small)
    monkeypatch.setattr(reference, "load", lambda name, **k: loaded(on if name == "nano" else name, **k))
    made = swapped(registry.get("connectors", "mlp"), 7)
    assert made.model["parts"]["connector"] == {"kind": "mlp"} and made.training.steps == 7
    assert "connector" not in made.start and made.start["encoders.0"] == "nano"
    own = swapped(registry.get("connectors", "linear"), 7)
    assert own.start["connector"] == "nano"


def test_a_reference_is_named_for_what_is_trained(on: str, tmp_path: Path) -> None:
    found = compare(LocalLab(cache=tmp_path), "connectors", ("linear",), on=on, n=2, types=("category",), rounds=1)
    assert "compare it on nano" in found.refused["linear"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [("", ((), 0)), ("0.25", ((0.25,), 0)), ("1", ((1.0,), 0)), ("0.5,0.1", ((0.5, 0.1), 0)), ("200", ((), 200))],
)
def test_a_budget_is_shares_or_steps(text: str, meant: Any) -> None:
    assert parse_budget(text) == meant


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["compare", "token"], "Did you mean 'tokens'"),
        (["compare", "tokens", "fopro"], "Did you mean 'fopru'"),
        (["compare", "tokens", "mlp"], "part 'mlp' belongs to socket 'connectors', not to 'tokens'"),
        (["compare", "tokens", "--budget", "0"], "--budget 0"),
        (["compare", "tokens", "--budget", "1.5"], "number of steps"),
        (["compare", "tokens", "--budget", "half"], "--budget half"),
        (["compare", "tokens", "--budget", "0.5,200"], "--budget 0.5,200"),
        (["compare", "tokens", "--on", "nanno"], "Did you mean 'nano'"),
        (["compare", "tokens", "--on", "object-expert"], "object-expert answers no questions"),
        (["compare", "medical"], "answer no questions"),
        (["compare", "tokens", "--n", "0"], "--n"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert run(args) == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_the_command_gives_a_table_json_and_a_page(
    on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = ["compare", "tokens", "random", "evit", "--on", on, "--n", "8", "--rounds", "1", "--budget", "0.5"]
    assert run([*line, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in plain["rows"]] == ["none", "random"]
    for row in plain["rows"]:
        assert {"accuracy", "low", "high", "types", "tokens", "flops", "time", "parameters"} <= row.keys()
    assert run([*line, "--html", str(tmp_path / "a.html")]) == 0
    captured = capsys.readouterr()
    assert "random 0.5" in captured.out and "evit could not take part" in captured.out
    assert "a.html" in captured.err and (tmp_path / "a.html").is_file()


# The page


def row(name: str, accuracy: float, flops: float, **changes: Any) -> Contender:
    known: dict[str, Any] = dict(
        name=name,
        how="bare" if name == "none" else "plugged",
        options={},
        budget=None,
        accuracy=accuracy,
        low=accuracy - 0.02,
        high=accuracy + 0.02,
        types={"existence": Kind(n=10, accuracy=accuracy, low=0.1, high=0.9)},
        against=None,
        tokens=4.0,
        flops=int(flops),
        time=Ratio(median=1.5, low=1.0, high=2.0),
        milliseconds=flops / 1e6,
        parameters=10**6,
    )
    return Contender(**{**known, **changes})


def made(*rows: Contender, **changes: Any) -> Comparison:
    known: dict[str, Any] = dict(
        socket="tokens", on="nano <b>", budgets=(0.25,), questions=400, rows=list(rows), refused={}, shape="s", machine="m"
    )
    return Comparison(**{**known, **changes})


class Tags(HTMLParser):
    """Which elements are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br", "path", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag


def test_the_page_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    found = made(row("none", 0.8, 3e9), row("fopru", 0.7, 1e9, best=True), refused={"evit": "no <class> token"})
    text = write_page(tmp_path / "x.html", found, "tessera compare tokens").read_text()
    assert not re.findall(r'(?:src|href)="', text) and "@import" not in text and "url(" not in text
    assert Tags(text).open == []
    for piece in ("Tokens on nano &lt;b&gt;", "no &lt;class&gt; token", "tessera compare tokens", "70.0 %", "existence", "1.50"):
        assert piece in text, piece
    assert text.count('class="dot') == 4 and "fopru" in re.sub(r"<[^>]+>", "", text)


def test_terminal_and_page_show_the_same_numbers() -> None:
    """In one form: what is written in two places drifts apart."""
    against = Interval(value=-0.1, low=-0.15, high=-0.05)
    found = made(row("none", 0.8, 3e9), row("fopru", 0.7, 1e9, budget=0.25, against=against, best=True))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(_table(found))
    texts = (shown.get(), unescape(re.sub(r"<[^>]+>", "", page(found))))
    for text in texts:
        for one in found.rows:
            assert all(cell in text for cell in (label(one), *cells(one))), cells(one)
            assert " ".join(of_kind(one.types["existence"])) in text
        assert all(head in text for head in HEADS)
    assert cells(found.rows[1])[:3] == ["70.0 %", "68.0 – 72.0", "-10.0 (-15.0 to -5.0)"]


def test_the_axis_begins_at_zero_unless_all_are_alike() -> None:
    far = page(made(row("none", 0.8, 3e9), row("a", 0.7, 1e9)))
    near = page(made(row("none", 0.8, 3.0e9), row("a", 0.7, 2.9e9)))
    ticks = [re.findall(r'class="x" style="left:[\d.]+%">([\d.e-]+)<', text)[0] for text in (far, near)]
    assert float(ticks[0]) == 0 and float(ticks[1]) > 2


def test_names_do_not_lie_on_each_other() -> None:
    rows = [row("none", 0.8, 3e9), *(row(f"part{k}", 0.7 + 0.001 * k, 1e9 + 1e6 * k) for k in range(6))]
    places = re.findall(r'class="name[^"]*" style="left:([\d.]+)%;top:([\d.]+)%"', page(made(*rows)))
    assert len(places) == 14 and len(set(places[:7])) == 7


def test_a_single_contender_and_equal_costs_are_drawn() -> None:
    for rows in ([row("none", 0.5, 1e9)], [row("none", 0.5, 1e9), row("a", 0.5, 1e9)]):
        text = page(made(*rows))
        assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S)) and Tags(text).open == []
