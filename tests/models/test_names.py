"""Names of weights on disk: the same with every release of transformers, and both older spellings are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from tessera.models import reference
from tessera.models.composed import TesseraModel
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.names import renamings

WEIGHTS = "model.safetensors"
IDS = torch.tensor([[1, 5, 4, 4, 4, 4, 6, 20]])
KINDS = ["llama", "qwen3", "gpt2", "gpt_neox", "opt"]
INNER = {"gpt2": "transformer", "gpt_neox": "gpt_neox"}
"""What a causal language model of transformers calls the model without its output layer, where it is not `model`."""
HEADS = {"gpt_neox": "embed_out"}

LAYER = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
]


def text(kind: str, tied: bool, vocabulary: int) -> dict[str, Any]:
    """A tiny language model of two layers."""
    own: dict[str, dict[str, Any]] = {
        "qwen3": {"head_dim": 16},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    }
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    more = {} if kind == "opt" else {"intermediate_size": 64}
    heads = {"num_key_value_heads": 2} if kind in ("llama", "qwen3") else {}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    return {"model_type": kind, **ids, **({} if kind == "gpt2" else size | more), **heads, **own.get(kind, {})}


@pytest.fixture
def make(config: Callable[..., TesseraConfig], tokenizer: Any) -> Callable[..., TesseraForConditionalGeneration]:
    def built(kind: str, tied: bool) -> TesseraForConditionalGeneration:
        torch.manual_seed(0)
        return TesseraForConditionalGeneration(config(text_config=text(kind, tied, len(tokenizer)))).eval()

    return built


def logits(model: Any) -> Tensor:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = model(IDS, pixels).logits
    return found


def names(folder: Path) -> set[str]:
    return set(load_file(folder / WEIGHTS))


def in_memory_once(name: str, kind: str) -> str:
    """The first older spelling: the whole causal language model stood under `model.language_model`."""
    name = re.sub(r"^model\.language_model\.", f"model.language_model.{INNER.get(kind, 'model')}.", name)
    return re.sub(r"^lm_head\.", f"model.language_model.{HEADS.get(kind, 'lm_head')}.", name)


def by_5_23(name: str, kind: str) -> str:
    """The second: what transformers 5.23 made of the first when it wrote a model that it had read."""
    return in_memory_once(name, kind).replace("model.language_model.", "model.language_model.model.", 1)


SPELLINGS = {"in memory once": in_memory_once, "by 5.23": by_5_23}


def respell(folder: Path, spelling: Callable[[str, str], str], kind: str) -> None:
    """Gives the weights in `folder` the names of an older version."""
    weights = load_file(folder / WEIGHTS)
    older = {spelling(name, kind): value for name, value in weights.items()}
    assert len(older) == len(weights) and older.keys() != weights.keys()
    save_file(older, folder / WEIGHTS, metadata={"format": "pt"})


def language_names(kind: str, tied: bool) -> set[str]:
    """Written out, for types whose names everyone knows."""
    norms = ["self_attn.q_norm", "self_attn.k_norm"] if kind == "qwen3" else []
    layers = [f"layers.{index}.{name}" for index in range(2) for name in (*LAYER, *norms)]
    inside = {f"model.language_model.{name}.weight" for name in ("embed_tokens", "norm", *layers)}
    return inside | (set() if tied else {"lm_head.weight"})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_names_on_disk_are_the_portable_ones(make: Callable[..., Any], tmp_path: Path, kind: str, tied: bool) -> None:
    model = make(kind, tied)
    reference.save(model, None, tmp_path / "model", torch.float32)
    written = names(tmp_path / "model")
    parts = ("model.encoders.0.", "model.encoders.1.", "model.connector.")
    assert {name for name in written if not name.startswith(parts)} == language_names(kind, tied)
    assert all(any(name.startswith(part) for name in written) for part in parts)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_on_disk_are_those_in_memory(make: Callable[..., Any], tmp_path: Path, kind: str, tied: bool) -> None:
    """So no renaming is needed, whatever a release of transformers may rename; also after a model was read."""
    model = make(kind, tied)
    mine = set(model.state_dict()) - ({"lm_head.weight"} if tied else set())
    model.save_pretrained(tmp_path / "first")
    assert names(tmp_path / "first") == mine
    loaded = TesseraForConditionalGeneration.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    assert names(tmp_path / "second") == mine
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_older_spellings_are_read_and_written_anew(
    make: Callable[..., Any],
    processor: Any,
    tmp_path: Path,
    kind: str,
    tied: bool,
    spelling: Callable[[str, str], str],
) -> None:
    model = make(kind, tied)
    reference.save(model, processor, tmp_path / "model", torch.float32)
    portable = names(tmp_path / "model")
    respell(tmp_path / "model", spelling, kind)
    loaded, _ = reference.load(tmp_path / "model")  # refuses what lacks a weight
    assert torch.equal(logits(loaded), logits(model))
    head, embeddings = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is embeddings) == tied
    loaded.save_pretrained(tmp_path / "plainly")
    assert names(tmp_path / "plainly") == portable
    reference.save(loaded, processor, tmp_path / "again", torch.float32)
    assert names(tmp_path / "again") == portable
    assert torch.equal(logits(reference.load(tmp_path / "again")[0]), logits(model))


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_older_spellings_are_read_in_every_way(
    make: Callable[..., Any], tmp_path: Path, spelling: Callable[[str, str], str]
) -> None:
    model = make("llama", False)
    model.save_pretrained(tmp_path)
    respell(tmp_path, spelling, "llama")
    described = TesseraConfig.from_pretrained(tmp_path)
    own = TesseraForConditionalGeneration
    for load in (own.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        for options in ({}, {"config": described}, {"key_mapping": {"^nothing$": "at all"}}):
            assert torch.equal(logits(load(tmp_path, **options).eval()), logits(model))
    assert torch.equal(logits(own.from_pretrained(str(tmp_path), config=str(tmp_path)).eval()), logits(model))
    for load in (TesseraModel.from_pretrained, AutoModel.from_pretrained):
        inner, report = load(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert all(torch.equal(value, model.model.state_dict()[name]) for name, value in inner.state_dict().items())


def test_a_model_without_its_output_layer_has_the_same_names(make: Callable[..., Any], tmp_path: Path) -> None:
    inner = make("llama", False).model
    inner.save_pretrained(tmp_path)
    assert names(tmp_path) == set(inner.state_dict())
    assert "language_model.layers.0.mlp.up_proj.weight" in names(tmp_path)
    respell(tmp_path, lambda name, _: re.sub(r"^language_model\.", "language_model.model.", name), "llama")
    loaded, report = TesseraModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "again")
    assert names(tmp_path / "again") == set(inner.state_dict())


def test_names_of_today_are_left_alone() -> None:
    for kind in KINDS:
        found = TesseraConfig(text_config={"model_type": kind}).text_config
        [language, *_] = names_of(found)
        other = ("lm_head.weight", "model.encoders.0.model.x")
        for name in (f"model.language_model.{language}", f"language_model.{language}", *other):
            assert not [old for old in renamings(found) if re.search(old, name)], name


def names_of(found: Any) -> Iterable[str]:
    """Names of a language model's weights, without building them."""
    with torch.device("meta"):
        return list(AutoModelForCausalLM.from_config(found).base_model.state_dict())


def test_shipped_references_are_read_and_written_anew(tmp_path: Path) -> None:
    for name in reference.REFERENCES:
        model, processor = reference.load(name)
        reference.save(model, processor, tmp_path / name)
        written = names(tmp_path / name)
        tied = {"lm_head.weight"} if hasattr(model, "lm_head") else set()
        assert written == set(model.state_dict()) - tied
        again, _ = reference.load(tmp_path / name)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_language_models_configuration_says_whether_the_head_is_tied(make: Callable[..., Any], tmp_path: Path) -> None:
    tied, untied = make("llama", True), make("llama", False)
    assert tied.config.tie_word_embeddings and not untied.config.tie_word_embeddings
    assert tied.all_tied_weights_keys == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert untied.all_tied_weights_keys == {}
    untied.config.tie_word_embeddings = True
    untied.tie_weights()
    assert untied.lm_head.weight is untied.get_input_embeddings().weight
    untied.save_pretrained(tmp_path)
    assert "tie_word_embeddings" not in json.loads((tmp_path / "config.json").read_text())
    assert TesseraForConditionalGeneration.from_pretrained(tmp_path).config.text_config.tie_word_embeddings
    assert not TesseraConfig(tie_word_embeddings=True, text_config={"model_type": "llama"}).tie_word_embeddings


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_belongs_to_the_language_models_socket(make: Callable[..., Any], tied: bool) -> None:
    model, other = make("llama", tied), make("llama", not tied)
    socket = model.sockets()["language_model"]
    inside = {id(p) for p in socket.parameters()}
    assert inside == {id(p) for p in (*model.model.language_model.parameters(), *model.lm_head.parameters())}
    assert id(model.lm_head.weight) in inside
    other.sockets()["language_model"].load_state_dict(socket.state_dict())  # as `start` does
    if not tied:  # a tied head cannot be both
        return
    assert torch.equal(logits(other), logits(model))


def test_a_new_vocabulary_keeps_the_head_tied(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make("qwen3", True)
    model.resize_token_embeddings(400)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 400
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(TesseraForConditionalGeneration.from_pretrained(tmp_path).eval()), logits(model))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=["by name", "all"])
def test_adapters_of_peft_come_back(make: Callable[..., Any], tmp_path: Path, targets: Any) -> None:
    peft = pytest.importorskip("peft")
    model, base = make("llama", True), make("llama", True)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    inside = [name for name, _ in tuned.named_parameters() if "lora_A" in name]
    assert [name for name in inside if "model.language_model.layers.1.self_attn.q_proj" in name]
    assert not [name for name in inside if "lm_head" in name]
    wanted = logits(tuned)
    assert not torch.equal(wanted, logits(base))
    tuned.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, tmp_path).eval()), wanted)
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert names(tmp_path / "merged") == set(make("llama", True).state_dict()) - {"lm_head.weight"}
