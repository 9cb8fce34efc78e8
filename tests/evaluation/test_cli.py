"""`tessera eval` and `tessera export` on tiny models in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import ENCODER, SIZE, text_config

from tessera.cli import main
from tessera.cli.eval import parse_corruption
from tessera.data.dense import character_labels
from tessera.errors import UserError
from tessera.evaluation.result import load_result
from tessera.models import reference
from tessera.models.configuration import TesseraConfig, TesseraVisionConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import IMAGE
from tessera.models.vision import TesseraVisionModel

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(model: Any, processor: Any, tmp_path: Path) -> str:
    return str(reference.save(model, processor, tmp_path / "tiny"))


@pytest.fixture
def expert(tmp_path: Path) -> str:
    labels = character_labels()
    config = TesseraVisionConfig(encoder=dict(ENCODER), num_labels=len(labels), id2label=dict(enumerate(labels)))
    return str(reference.save(TesseraVisionModel(config), TesseraImageProcessor(SIZE), tmp_path / "expert"))


@pytest.fixture
def reducible(tokenizer: Any, tmp_path: Path) -> str:
    """A model whose parts LLaVA has."""
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=16)
    tower = {"kind": "transformers_vision", "tower": {"model_type": "clip_vision_model", **sizes}}
    parts = {"encoders": [tower], "experts": {"kind": "single"}, "tokens": {"kind": "identity"}, "connector": {"kind": "mlp"}}
    torch.manual_seed(0)
    model = TesseraForConditionalGeneration(
        TesseraConfig(parts=parts, text_config=text_config(len(tokenizer)), image_token_id=IMAGE)
    )
    processor = TesseraProcessor(TesseraImageProcessor(size=SIZE), tokenizer, tokens_per_image=16, max_length=512)
    return str(reference.save(model, processor, tmp_path / "reducible"))


def run(*args: str) -> int:
    return main.run(list(args))


def test_json_holds_the_whole_result(folder: str, capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert run("eval", folder, "--n", "18", "--json", "--out", str(out)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 18
    assert found["model"] == folder
    assert not found["without_images"]
    assert found["config"]["world"]["width"] == SIZE
    assert set(found["types"]["count"]) >= {"n", "accuracy", "low", "high", "chance", "majority", "blind", "forms"}
    assert load_result(out).items == found["items"]


def test_blind_asks_the_same_questions(folder: str, capsys: Captured) -> None:
    assert run("eval", folder, "--n", "18", "--json", "--tasks", "count,odd") == 0
    seeing = json.loads(capsys.readouterr().out)
    assert run("eval", folder, "--n", "18", "--json", "--tasks", "count, odd", "--blind") == 0
    blind = json.loads(capsys.readouterr().out)
    assert blind["without_images"]
    assert blind["items"] == seeing["items"]
    assert list(blind["types"]) == list(seeing["types"]) == ["odd", "count"]


def test_every_option_reaches_the_world(folder: str, capsys: Captured) -> None:
    options = ["--split", "val", "--pool", "novel", "--style", "twemoji", "--combinations", "held-out", "--corruption", "fog:2"]
    assert run("eval", folder, "--n", "2", "--tasks", "total", "--seed", "3", "--size", "96", *options, "--json") == 0
    config = json.loads(capsys.readouterr().out)["config"]
    world = config["world"]
    assert (world["split"], world["pool"], world["styles"], world["combinations"]) == ("val", "novel", ["twemoji"], "held-out")
    assert (world["corruption"], world["strength"], world["width"], config["seed"]) == ("fog", 2, 96, 3)


def test_the_table_has_a_row_for_every_type_and_the_mean(folder: str, capsys: Captured) -> None:
    assert run("eval", folder, "--n", "4", "--tasks", "total,box") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines if line} >= {"type", "total", "box", "mean"}


def test_an_expert_is_measured_by_its_patches(expert: str, capsys: Captured) -> None:
    assert run("eval", expert, "--n", "4", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["measures"]) == {"signs", "charts"}
    assert run("eval", expert, "--n", "4") == 0
    assert "signs" in capsys.readouterr().out


def test_a_stock_llava_is_measured_through_its_own_generate(reducible: str, capsys: Captured, tmp_path: Path) -> None:
    out = str(tmp_path / "llava")
    assert run("export", reducible, out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "LlavaForConditionalGeneration"
    for blind in ([], ["--blind"]):
        assert run("eval", out, "--n", "8", "--tasks", "total,change,where", *blind, "--json") == 2
        assert "unknown question type 'where'" in capsys.readouterr().err
        assert run("eval", out, "--n", "8", "--tasks", "total,change", *blind, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n"] == 8
        assert found["config"]["world"]["width"] == SIZE


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--tasks", "counting"], "Did you mean 'count'"),
        (["--pool", "nvel"], "Did you mean 'novel'"),
        (["--corruption", "fogg:2"], "Did you mean 'fog'"),
        (["--corruption", "fog:9"], "strength 1 to 5"),
        (["--style", "emoji"], "unknown style 'emoji'"),
        (["--n", "0"], "at least 1"),
        (["--size", "20"], "64 to 2048"),
    ],
)
def test_mistakes_are_sentences(folder: str, args: list[str], says: str, capsys: Captured) -> None:
    assert run("eval", folder, *args) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_an_expert_answers_no_questions(expert: str, capsys: Captured) -> None:
    assert run("eval", expert, "--blind") == 2
    assert "answers no questions, so --blind does not apply" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_a_sentence(capsys: Captured) -> None:
    assert run("eval", "./nowhere") == 2
    assert "there is no model folder ./nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "meant"), [("fog", ("fog", 3)), ("fog:1", ("fog", 1)), ("motion_blur:5", ("motion_blur", 5))])
def test_corruptions_are_written_with_their_strength(text: str, meant: tuple[str, int]) -> None:
    assert parse_corruption(text) == meant


@pytest.mark.parametrize("text", [":3", "fog:", "fog:0", "fog:x", "fog:3:3"])
def test_other_corruptions_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="name:strength"):
        parse_corruption(text)


# Export


def test_a_model_goes_out_and_comes_in_again(folder: str, model: Any, capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert run("export", folder, str(out), "--format", "folder", "--dtype", "bfloat16") == 0
    assert "TesseraForConditionalGeneration" in capsys.readouterr().out
    again, _ = reference.load(out)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float()), name


def test_what_does_not_reduce_says_which_part(folder: str, capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "llava"
    assert run("export", folder, str(out)) == 2
    assert "does not reduce to LLaVA: encoders.0 has 'conv_vit'" in capsys.readouterr().err
    assert not out.exists()


def test_an_expert_is_no_llava(expert: str, capsys: Captured, tmp_path: Path) -> None:
    assert run("export", expert, str(tmp_path / "llava")) == 2
    assert "is a tessera_vision model; only Tessera's composed models reduce to LLaVA" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_replaced_unasked(folder: str, capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("precious")
    assert run("export", folder, str(out), "--format", "folder") == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    assert run("export", folder, str(out), "--format", "folder", "--force") == 0
    assert (out / "config.json").exists()
