"""The contract of vLLM's transformers backend, as its own code walks through it; vLLM itself needs an accelerator."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.hosts.tiny import build, images
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.models import reference
from tessera.models.composed import TesseraModel
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.serving import vllm

QUESTION = "Where is the red fire engine?"


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    """transformers, with the plugin called as vLLM calls it; as before at the end."""
    vllm.register()
    vllm.register()
    module = sys.modules["transformers"]
    yield module
    module.AutoModel.register(TesseraConfig, TesseraModel, exist_ok=True)  # type: ignore[attr-defined]
    delattr(module, "TesseraForConditionalGeneration")


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = build({"tie_word_embeddings": request.param})
    return reference.save(model, processor, tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def backbone(transformers: Any, folder: Path) -> Any:
    """What vLLM builds: on the meta device, the language model's attention being vLLM's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("vllm", attention)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.get_text_config()._attn_implementation = "vllm"
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    attention_instances: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """In the place of vLLM's: one causal sequence, the layer's instance found by its index, tokens first in what is returned."""
    assert attention_mask is None
    assert attention_instances[module.layer_idx] == f"layer {module.layer_idx}"
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return out.transpose(1, 2).reshape(query.shape[2], -1), None


def test_the_architecture_is_found_and_says_that_it_fits(transformers: Any, folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    [name] = config.architectures
    assert getattr(transformers, name) is TesseraForConditionalGeneration
    assert getattr(transformers, name).is_backend_compatible()
    text = config.get_text_config()
    assert text != config  # this is how a multimodal model is told
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        assert getattr(text, key) > 0
    assert text.max_position_embeddings == 128
    assert config.image_token_id == 4


def test_the_model_without_its_output_layer(backbone: Any, folder: Path) -> None:
    assert type(backbone) is vllm.TesseraBackbone
    assert type(backbone.get_decoder()).__name__ == "LlamaModel"
    assert backbone.get_encoder(modality="image") is backbone  # several encoders: none is told apart, none is compiled alone
    assert backbone.language_model.config._attn_implementation == "vllm"
    assert backbone.config._attn_implementation != "vllm"  # the towers have no cache of keys and values
    assert not [name for name, _ in backbone.named_parameters() if "lm_head" in name]
    names = [f"model.{name}" for name, module in backbone.named_modules() if isinstance(module, torch.nn.Linear)]
    plan = {f"model.{pattern}": style for pattern, style in backbone.tp_plan.items()}
    split = {name for name in names if any(re.match(pattern, name) for pattern in plan)}
    assert split == {name for name in names if "language_model.layers" in name} != set()
    checkpoint = load_file(folder / "model.safetensors")
    mapped = {renamed(name, backbone) for name in checkpoint}
    wanted = {f"model.{name}" for name, _ in backbone.named_parameters()}
    tied = backbone.config.get_text_config().tie_word_embeddings
    assert mapped == wanted | (set() if tied else {"lm_head.weight"})


def renamed(name: str, model: Any) -> str:
    """A checkpoint's name as vLLM maps it: transformers' renamings, then names that are not below `model` put there, and an
    output layer inside the model taken out."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    for renaming in get_model_conversion_mapping(model):
        name, _ = renaming.rename_source_key(name)
    children = "|".join(child for child, _ in model.named_children())
    name = re.sub(rf"^(?!model\.)(({children}).*)", r"model.\1", name)
    name = re.sub(rf"^(model\.)((?!{children}).+)", r"\2", name)
    return re.sub(r"^model\.(.+\.)*(lm_head.+)", r"\2", name)


@torch.inference_mode()
def test_its_logits_are_the_models(backbone: Any, folder: Path) -> None:
    model, processor = reference.load(folder)
    weights = {renamed(name, backbone): value for name, value in load_file(folder / "model.safetensors").items()}
    built = vllm.TesseraBackbone(backbone.config).eval()
    built.load_state_dict({name.removeprefix("model."): value for name, value in weights.items() if name != "lm_head.weight"})
    inputs = processor(images=images(2), text=processor.prompt(QUESTION, 2), return_tensors="pt")
    wanted = model(**inputs).logits[0]
    features = built.get_image_features(inputs["pixel_values"], something_else=1)
    assert features.shape == (2, 4, 32)  # flattened and split evenly by vLLM: one item has so many tokens
    ids = inputs["input_ids"][0]
    embeddings = built.get_input_embeddings()(ids)
    embeddings[ids == processor.image_token_id] = features.flatten(0, 1)
    layers = {layer: f"layer {layer}" for layer in range(3)}
    outputs = built(
        input_ids=None,
        inputs_embeds=embeddings[None],
        use_cache=False,
        position_ids=torch.arange(len(ids))[None],
        attention_instances=layers,
        return_dict=False,
    )
    head = weights.get("lm_head.weight", weights["model.language_model.embed_tokens.weight"])
    torch.testing.assert_close(outputs[0][0] @ head.T, wanted, rtol=1e-4, atol=1e-4)


def test_the_processor_says_where_images_are(folder: Path) -> None:
    _, processor = reference.load(folder)
    text = processor.prompt(QUESTION, 2)
    options = {"add_special_tokens": False, "truncation": False, "return_tensors": "pt"}
    out = processor(images=images(2), text=text, return_text_replacement_offsets=True, return_mm_token_type_ids=True, **options)
    [entries] = out["text_replacement_offsets"]
    encoded = [processor.tokenizer(entry["replacement"], add_special_tokens=False)["input_ids"] for entry in entries]
    assert encoded == [[processor.image_token_id] * 4] * 2
    assert [entry["type"] for entry in entries] == ["image", "image"]
    ids = out["input_ids"][0]
    assert ((ids == processor.image_token_id) == (out["mm_token_type_ids"][0] == 1)).all()
    counts = processor._get_num_multimodal_tokens(image_sizes=[(16, 16), (900, 40)])
    assert (counts["num_image_tokens"], counts["num_image_patches"]) == ([4, 4], [1, 1])
    assert sum(counts["num_image_patches"]) == len(out["pixel_values"])
    # What is put into the prompt is one placeholder, which then becomes as many as there are tokens.
    plain = processor.tokenizer(text)["input_ids"]
    expanded = [i for token in plain for i in (encoded[0] if token == processor.image_token_id else [token])]
    assert expanded == ids.tolist()
    assert processor.tokenizer(processor.decode(plain))["input_ids"] == plain
    dummy = processor(images=images(2), text=processor.image_token * 2, **options)
    assert (dummy["input_ids"] == processor.image_token_id).sum() == 8
    assert set(processor.image_processor.size) >= {"height", "width"}
    assert not hasattr(processor, "video_processor")


def test_other_couplings_are_refused(transformers: Any, backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = backbone.config
    monkeypatch.setitem(config.parts, "coupling", {"kind": "elsewhere"})
    monkeypatch.setattr(TesseraModel, "__init__", lambda self, config: None)
    with pytest.raises(UserError, match="whose coupling is 'prefix', not 'elsewhere'"):
        vllm.TesseraBackbone(config)


def test_the_entry_point_is_declared(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["tessera"].partition(":")
    assert getattr(import_module(module), name) is vllm.register
