"""Data sets of every kind give the same records, whatever is wrong with some of their rows."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tessera.data import json_reader, parquet_reader
from tessera.data.readers import read
from tessera.data.row_reader import BadRow, Reader, inside
from tessera.errors import UserError


def row(number: int, images: list[Any] | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in images or []]
    return {
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": f"question {number} é"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"answer {number}"}]},
        ],
        "images": images or [],
    }


def llava(number: int) -> dict[str, Any]:
    return {
        "id": str(number),
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\nquestion {number} é"},
            {"from": "gpt", "value": f"answer {number}"},
        ],
    }


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write(folder: Path, kind: str, count: int = 10) -> Path:
    """A data set of `count` good rows, row i about image `i.png`."""
    rows = [row(i, [f"{i}.png"]) for i in range(count)]
    if kind == "parquet":
        return parquet(folder / "data.parquet", rows)
    texts = {
        "jsonl": lines(rows),
        "jsonl.gz": lines(rows),
        "json": json.dumps([llava(i) for i in range(count)], indent=2),
        "json.gz": json.dumps([llava(i) for i in range(count)]),
    }
    data = texts[kind].encode()
    path = folder / f"data.{kind}"
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return path


def answer(reader: Reader, index: int) -> str:
    text = reader[index].messages[-1]["content"][0]["text"]
    assert isinstance(text, str)
    return text


KINDS = ["jsonl", "jsonl.gz", "json", "json.gz", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_records(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    for reader in (read(path), read(str(path)), read(tmp_path), pickle.loads(pickle.dumps(read(path)))):
        assert len(reader) == 10
        order = list(range(10))
        random.Random(0).shuffle(order)
        for index in order:
            record = reader[index]
            assert answer(reader, index) == f"answer {index}"
            assert record.images == [tmp_path.resolve() / f"{index}.png"]
            assert record.messages[0]["content"][0] == {"type": "image"}
            assert record.messages[0]["content"][1]["text"].strip() == f"question {index} é"
        assert answer(reader, -1) == "answer 9"
        assert [r.images[0].name for r in reader] == [f"{i}.png" for i in range(10)]
        assert reader.skipped.count == 0
        assert reader.blocks[0] == 0
        assert reader.blocks[-1] == 10
        with pytest.raises(IndexError):
            reader[10]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_the_name_does_not_matter(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind).rename(tmp_path / "anything")
    assert len(read(path)) == 10


def test_images_lie_in_the_folder_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    (tmp_path / "pictures").mkdir()
    assert read(path, tmp_path / "pictures")[3].images == [tmp_path.resolve() / "pictures" / "3.png"]
    with pytest.raises(UserError, match="not a folder"):
        read(path, tmp_path / "none")


def test_relative_paths_keep_working_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "jsonl")
    monkeypatch.chdir(tmp_path)
    reader = read("data.jsonl")
    monkeypatch.chdir("/")
    assert reader[0].images == [tmp_path.resolve() / "0.png"]


# ---- Parquet


def test_parquet_images_as_bytes_and_as_hub_columns(tmp_path: Path) -> None:
    rows = [row(0, [b"one"]), row(1, [b"two", b"three"])]
    assert read(parquet(tmp_path / "a.parquet", rows))[1].images == [b"two", b"three"]
    hub = [row(0, [{"bytes": b"one", "path": "a.png"}]), row(1, [{"bytes": None, "path": "b.png"}])]
    reader = read(parquet(tmp_path / "b.parquet", hub))
    assert reader[0].images == [b"one"]
    assert reader[1].images == [tmp_path.resolve() / "b.png"]
    single = [{"messages": row(0)["messages"], "image": {"bytes": b"one", "path": None}}]
    assert read(parquet(tmp_path / "c.parquet", single))[0].images == [b"one"]


def test_parquet_parts_are_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part in range(3):
        rows = [row(part * 4 + i) for i in range(4)]
        parquet(tmp_path / "data" / f"train-0000{part}-of-00003.parquet", rows)
    reader = read(tmp_path)
    assert len(reader) == 12
    assert reader.blocks == [0, 3, 4, 7, 8, 11, 12]
    assert [answer(reader, i) for i in (11, 0, 5)] == ["answer 11", "answer 0", "answer 5"]
    assert reader.where(5) == "train-00001-of-00003.parquet, row 2"


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = read(parquet(tmp_path / "a.parquet", [row(i) for i in range(30)], group=2))
    assert isinstance(reader, parquet_reader.ParquetReader)
    for index in range(30):
        assert answer(reader, index) == f"answer {index}"
        assert len(reader._tables) <= parquet_reader.KEPT_GROUPS
    monkeypatch.setattr(parquet_reader, "MAX_GROUP", 100)
    with pytest.raises(UserError, match="row_group_size"):
        read(tmp_path)


def test_a_damaged_row_group_is_bad_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [row(i, [os.urandom(3000)]) for i in range(9)])
    data = bytearray(path.read_bytes())
    start = len(data) // 2
    data[start : start + 2000] = os.urandom(2000)  # inside the pages of the second of three groups
    path.write_bytes(data)
    reader = read(path)
    good = list(reader)
    assert len(good) + reader.skipped.count == 9
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged or truncated"):
        read(path)


def test_parquet_without_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only text"):
        read(parquet(tmp_path / "a.parquet", [{"text": "x"}]))


# ---- bad rows


def test_bad_rows_are_skipped_counted_and_named(tmp_path: Path) -> None:
    good = json.dumps(row(0))
    bad = [
        "{",
        "[1]",
        "3",
        '{"a": 1}',
        '{"messages": 3}',
        "\xff",
        '{"messages": []',
        "[" * 100_000,
        "9" * 5000,
    ]
    text = "\n".join([good, "", *bad, "   ", good, good])
    path = tmp_path / "data.jsonl"
    path.write_bytes(text.encode("latin-1"))
    reader = read(path)
    assert len(reader) == len(bad) + 3
    assert len(list(reader)) == 3
    assert reader.skipped.count == len(bad)
    assert [b.where for b in reader.skipped.first[:2]] == ["data.jsonl, line 3", "data.jsonl, line 4"]
    assert "not JSON" in reader.skipped.first[0].reason
    assert "UTF-8" in reader.skipped.first[5].reason
    assert all(len(str(b)) < 500 for b in reader.skipped.first)
    list(reader)
    assert reader.skipped.count == len(bad), "every pass counts anew"
    with pytest.raises(BadRow, match="line 3: the row is not JSON") as caught:
        reader[1]
    assert isinstance(caught.value, UserError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_end_of_line_at_the_end_and_windows_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines([row(i) for i in range(3)]).replace("\n", "\r\n").rstrip().encode())
    assert [answer(read(path), i) for i in range(3)] == ["answer 0", "answer 1", "answer 2"]


def test_too_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines([row(0), row(1) | {"id": "x" * 3_000_000}, row(2)]))
    reader = read(path)
    assert answer(reader, 1) == "answer 1"
    monkeypatch.setattr(json_reader, "MAX_ROW", 10_000)
    assert len(list(reader)) == 2
    assert "longer than" in reader.skipped.first[0].reason


def test_array_elements(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows: list[Any] = [
        llava(0),
        3,
        'text with ] and , and \\" in it',
        None,
        [],
        llava(1) | {"id": "é" * 200_000},
        llava(2),
    ]
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        reader = read(path)
        assert len(reader) == 7
        assert [answer(reader, i) for i in (0, 6, 5)] == ["answer 0", "answer 2", "answer 1"]
        assert len(list(reader)) == 3
        assert reader.skipped.first[0].where == "data.json, entry 2"


def test_a_truncated_array_loses_its_last_element_only(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    text = json.dumps([llava(i) for i in range(2000)])
    path.write_text(text[:-30])
    reader = read(path)
    assert len(reader) == 2000
    assert len(list(reader)) == 1999
    assert reader.skipped.first[0].where == "data.json, entry 2000"
    path.write_bytes(text.encode().replace(b"question 7 ", b"question \xff "))
    reader = read(path)
    assert len(list(reader)) == 1999, "bytes that are no UTF-8 spoil their own row only"


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, min_size=1, max_size=8), st.booleans(), st.sampled_from([None, 2]))
def test_any_json_value_is_found_at_its_place(tmp_path: Path, rows: list[Any], ascii_only: bool, indent: int | None) -> None:
    path = tmp_path / "data"
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    reader = read(path)
    assert [reader.row(i) for i in range(len(reader))] == rows
    if isinstance(rows[0], dict):
        path.write_text("\n".join(json.dumps(r, ensure_ascii=ascii_only) for r in rows), encoding="utf-8")
        reader = read(path)
        assert [reader.row(i) for i in range(len(reader))] == rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=4),
    st.floats(0, 1),
)
@example(kind="parquet", patches=[(0.5, b"\x80")], keep=1.0)  # a column's name that is no text
def test_damaged_files_never_crash(tmp_path: Path, kind: str, patches: list[tuple[float, bytes]], keep: float) -> None:
    path = tmp_path / f"data.{kind}"
    data = bytearray(path.read_bytes() if path.exists() else write(tmp_path, kind).read_bytes())
    for place, patch in patches:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data[: int(keep * len(data)) + 1] if keep < 0.9 else data)
    try:
        reader = read(damaged)
    except UserError:
        return
    good = len(list(reader))
    assert good + reader.skipped.count == len(reader)


# ---- paths


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../secret.png", "'..'"),
        ("a/../../secret.png", "'..'"),
        ("a/../b.png", "'..'"),
        ("..\\secret.png", "'..'"),
        ("/etc/passwd", "leads out"),
        ("link.png", "leads out"),
        ("folder/secret.png", "leads out"),
        ("http://a.example/x.png", "nothing is downloaded"),
        ("file:///etc/passwd", "nothing is downloaded"),
        ("", "empty"),
        ("a\0b", "not a path"),
    ],
)
def test_paths_that_lead_out_are_refused(path: str, words: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (tmp_path / "data.jsonl").write_text(lines([row(0, ["a.png"]), row(1, [path])]))
    reader = read(tmp_path / "data.jsonl", root)
    assert len(list(reader)) == 1
    assert words in reader.skipped.first[0].reason


def test_paths_inside_are_good(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").touch()
    (root / "link.png").symlink_to(root / "a.png")
    (tmp_path / "alias").symlink_to(root)
    real = root.resolve()
    assert inside(root, "a.png") == real / "a.png"
    assert inside(root, "./sub/..a/b..png") == real / "sub/..a/b..png"
    assert inside(root, str(real / "a.png")) == real / "a.png"
    assert inside(root, "link.png") == real / "a.png"
    assert inside(tmp_path / "alias", "a.png") == real / "a.png"
    with pytest.raises(UserError):
        inside(root, str(tmp_path / "images2" / "a.png"))


def test_data_urls_and_bytes_are_not_paths(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(lines([row(0, ["data:image/png;base64,AA=="])]))
    assert read(tmp_path)[0].images == ["data:image/png;base64,AA=="]


# ---- what is no data set


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    def sentence(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read(path)
        return str(caught.value)

    assert "no such file" in sentence(tmp_path / "none.jsonl")
    assert "no data set in this folder" in sentence(tmp_path)
    file = tmp_path / "data.jsonl"
    for data, words in [
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"[]", "is empty"),
        (b"\x1f\x8b", "gzip file is damaged"),
        (gzip.compress(b"{" * 1000)[:-10], "gzip file is damaged"),
        (gzip.compress(b""), "is empty"),
        (b"a,b,c\n1,2,3", "neither JSON lines"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"PK\x03\x04", "unpack"),
        (b"PAR1", "Parquet file is damaged"),
    ]:
        file.write_bytes(data)
        assert words in sentence(file), data
    file.write_text(lines([row(0)]))
    (tmp_path / "other.jsonl").write_text(lines([row(0)]))
    assert "data.jsonl, other.jsonl" in sentence(tmp_path)
    (tmp_path / "other.jsonl").unlink()
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(read(tmp_path)) == 1


def test_gzip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(lines([row(0)]).encode() + b" " * 3_000_000))
    assert len(read(path)) == 1
    monkeypatch.setattr(json_reader, "_FREE", 0)
    with pytest.raises(UserError, match="times its size"):
        read(path)


def test_all_threads_and_children_see_the_same_rows(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for kind in ("jsonl", "parquet"):
        folder = tmp_path / kind
        folder.mkdir()
        reader = read(write(folder, kind, 60))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i, r=reader: answer(r, i % 60), range(600)))
        assert found == [f"answer {i % 60}" for i in range(600)]
