"""`check` finds what is wrong, once each, says where, and passes what is right; the command prints it."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.cli.main import run
from tessera.data.check import KINDS, Report, check
from tessera.errors import UserError


def row(number: int, *images: Any, question: str = "What is it?", answer: str = "a dog") -> dict[str, Any]:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": f"{number} {question}"}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "images": list(images),
    }


def save(folder: Path, rows: list[Any]) -> Path:
    for number, size in enumerate([(20, 10), (100, 100), (30, 200)]):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    path = folder / "data.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def found(report: Report) -> dict[str, int]:
    return {result.kind: result.count for result in report.findings if result.count}


def good(folder: Path) -> Path:
    return save(folder, [row(0, "0.png"), row(1, "1.png", "2.png"), row(2)])


def test_a_good_data_set(tmp_path: Path) -> None:
    report = check(good(tmp_path))
    assert report.ok
    assert found(report) == {}
    assert [f.kind for f in report.findings] == list(KINDS)
    assert (report.rows, report.good_rows, report.images) == (3, 3, 3)
    assert (report.smallest_image, report.largest_image) == ((20, 10), (100, 100))
    assert {label: n for label, n in report.sizes.items() if n} == {"<= 64": 1, "<= 128": 1, "<= 256": 1}
    assert (report.longest, report.mean, report.unit) == (6, 6.0, "words")


def bad_rows(folder: Path) -> list[tuple[str, Any]]:
    """(kind of the one problem, row)."""
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    (folder / "out.png").symlink_to("/etc/hosts")
    unknown_role = row(20, "0.png")
    unknown_role["messages"].insert(0, {"role": "sytem", "content": "x"})
    no_answer = row(21, "0.png")
    no_answer["messages"].pop()
    return [
        ("malformed row", "{not json"),
        ("malformed row", {"text": "x"}),
        ("malformed row", row(22, 3)),
        ("unknown role", unknown_role),
        ("no answer", no_answer),
        ("placeholders", row(23, "0.png") | {"images": []}),
        ("placeholders", row(24, "0.png") | {"images": ["0.png", "1.png"]}),
        ("empty answer", row(25, "0.png", answer=" ")),
        (
            "empty question",
            {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]},
        ),
        ("unsafe path", row(26, "../0.png")),
        ("unsafe path", row(27, "out.png")),
        ("unsafe path", row(28, "https://a.example/0.png")),
        ("missing image", row(29, "none.png")),
        ("missing image", row(30, "folder.png")),
        ("unreadable image", row(31, "text.png")),
        ("unreadable image", row(32, "data:image/png;base64,AAAA")),
    ]


def test_every_kind_of_problem_is_found_once_and_placed(tmp_path: Path) -> None:
    cases = bad_rows(tmp_path)
    for kind, case in cases:
        report = check(save(tmp_path, [row(0, "0.png"), case]))
        assert found(report) == {kind: 1}, case
        example = report.result(kind).examples[0]
        assert example.where == "data.jsonl, line 2"
        assert example.message
        assert report.ok == (KINDS[kind] == "warning")
        assert report.good_rows == 1 + report.ok
    everything = check(save(tmp_path, [case for _, case in cases]))
    assert sum(found(everything).values()) == len(cases)


def test_examples_are_the_first_three(tmp_path: Path) -> None:
    report = check(save(tmp_path, [row(i, f"none-{i}.png") for i in range(200)]))
    missing = report.result("missing image")
    assert missing.count == 200
    assert [e.where for e in missing.examples] == [f"data.jsonl, line {i}" for i in (1, 2, 3)]


def test_truncated_images_are_found(tmp_path: Path) -> None:
    path = good(tmp_path)
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[:-100])
    assert found(check(path)) == {"unreadable image": 1}


def test_long_rows_are_counted_in_words_or_tokens(tmp_path: Path) -> None:
    path = save(tmp_path, [row(0), row(1, answer="word " * 50)])
    assert found(check(path)) == {}
    report = check(path, max_tokens=10)
    assert found(report) == {"over-long": 1}
    assert "54 words, 44 more than 10" in report.result("over-long").examples[0].message
    report = check(path, max_tokens=100, count_tokens=len)
    assert found(report) == {"over-long": 1}
    assert report.unit == "tokens"
    with pytest.raises(UserError):
        check(path, max_tokens=0)


def test_duplicates_name_the_first(tmp_path: Path) -> None:
    rows = [row(0, "0.png"), row(1), row(0, "0.png"), row(0, "1.png"), row(1), row(0, "0.png"), "{", "{"]
    report = check(save(tmp_path, rows))
    examples = report.result("duplicate row").examples
    assert [(e.where, e.message) for e in examples] == [
        ("data.jsonl, line 3", "the same as data.jsonl, line 1"),
        ("data.jsonl, line 5", "the same as data.jsonl, line 2"),
        ("data.jsonl, line 6", "the same as data.jsonl, line 1"),
    ]
    assert report.result("duplicate row").level == "warning"


def test_parquet_and_llava(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    for folder in ("p", "l"):
        (tmp_path / folder).mkdir()
    rows = [
        row(0, {"bytes": stream.getvalue(), "path": "x.png"}),
        row(1, {"bytes": b"damaged", "path": "y.png"}),
    ]
    rows = [r | {"messages": [{**m, "content": str(m["content"])} for m in r["messages"]]} for r in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p" / "data.parquet")
    report = check(tmp_path / "p")
    assert found(report) == {"unreadable image": 1}
    assert report.result("unreadable image").examples[0].where == "data.parquet, row 2"
    llava = [{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nq"}]}] * 2
    save(tmp_path / "l", []).unlink()
    (tmp_path / "l" / "llava.json").write_text(json.dumps(llava))
    assert found(check(tmp_path / "l")) == {"no answer": 2, "duplicate row": 1}


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    rows = [case for _, case in bad_rows(tmp_path)] + [row(i, "0.png", "1.png") for i in range(100, 180)]
    path = save(tmp_path, rows)
    reports: list[Report] = [check(path, threads=1)]
    workers = [threading.Thread(target=lambda: reports.append(check(path, threads=3))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(reports) == 4
    assert all(report == reports[0] for report in reports)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    check(
        save(tmp_path, [row(i) for i in range(100)]),
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == sorted(steps)
    assert steps[-1] == (100, 100)


# ---- the command


def test_the_command_on_a_good_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(good(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "3 rows, no errors" in out
    assert "20 x 10 to 100 x 100 pixels" in out


def test_the_command_on_a_bad_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, [case for _, case in bad_rows(tmp_path)])
    assert run(["data", "check", str(path)]) == 2
    out = capsys.readouterr().out
    for kind in KINDS:
        assert kind in out
    assert "data.jsonl, line 1: the row is not JSON" in out
    assert run(["data", "check", str(path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0] == {
        "kind": "malformed row",
        "level": "error",
        "count": 3,
        "examples": report["findings"][0]["examples"],
    }


def test_the_command_takes_an_image_folder_and_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    path = good(tmp_path)
    for image in tmp_path.glob("*.png"):
        image.rename(tmp_path / "images" / image.name)
    assert run(["data", "check", str(path)]) == 2
    assert "name their folder with --images" in capsys.readouterr().err
    assert run(["data", "check", str(path), "--images", str(tmp_path / "images")]) == 0
    assert run(["data", "check", str(path), "--images", str(tmp_path / "images"), "--max-tokens", "5"]) == 2


def test_the_command_without_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert run(["data", "check", str(tmp_path / "empty.jsonl")]) == 2
    assert "is empty" in capsys.readouterr().err
