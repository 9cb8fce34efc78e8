"""`import tessera` is light, and after it transformers' Auto classes load Tessera's folders, whatever came
first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tessera.models.configuration import TesseraConfig, TesseraDualEncoderConfig, TesseraVisionConfig
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraDualProcessor, TesseraProcessor
from tessera.models.vision import TesseraVisionModel


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    config: Callable[..., TesseraConfig],
    encoder: Callable[..., dict[str, Any]],
    tokenizer: Any,
) -> Path:
    """vlm/, expert/ and dual/, saved with their processors."""
    root = tmp_path_factory.mktemp("folders")
    images = TesseraImageProcessor(size=32)
    TesseraForConditionalGeneration(config()).save_pretrained(root / "vlm")
    TesseraProcessor(images, tokenizer, tokens_per_image=4, max_length=64).save_pretrained(root / "vlm")
    TesseraVisionModel(TesseraVisionConfig(encoder=encoder(), num_labels=3)).save_pretrained(root / "expert")
    images.save_pretrained(root / "expert")
    dual = TesseraDualEncoderConfig(
        encoder=encoder(),
        projection_dim=16,
        pool_heads=2,
        vocab_size=len(tokenizer),
        text_width=24,
        text_depth=1,
    )
    TesseraDualEncoder(dual).save_pretrained(root / "dual")
    TesseraDualProcessor(images, tokenizer).save_pretrained(root / "dual")
    return root


def run(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_tessera_imports_nothing_heavy(subprocess_env: dict[str, str]) -> None:
    code = "import sys, tessera; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert run(code, subprocess_env).strip() == "[]"


LOAD_ALL = """
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoImageProcessor, AutoTokenizer
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification
vlm, expert, dual = (sys.argv[1] + name for name in ('/vlm', '/expert', '/dual'))
print([type(x).__name__ for x in (
    AutoConfig.from_pretrained(vlm), AutoModel.from_pretrained(vlm), AutoProcessor.from_pretrained(vlm),
    AutoModelForImageTextToText.from_pretrained(vlm), AutoImageProcessor.from_pretrained(expert),
    AutoModel.from_pretrained(expert), AutoModel.from_pretrained(dual), AutoProcessor.from_pretrained(dual),
    AutoModelForZeroShotImageClassification.from_pretrained(dual))])
assert AutoTokenizer.from_pretrained(vlm).image_token == '<image>'
"""
ORDERS = {
    "transformers first, tessera twice": (
        "from transformers import AutoModel, AutoProcessor; import tessera, importlib; importlib.reload(tessera)"
    ),
    "another model in between": "import tessera; from transformers import LlavaForConditionalGeneration",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
def test_auto_classes_load_our_folders(folders: Path, subprocess_env: dict[str, str], order: str) -> None:
    code = f"import sys; sys.argv.append({str(folders)!r})\n{order}\n{LOAD_ALL}"
    names = run(code, subprocess_env).strip().splitlines()[-1]
    assert names == str(
        [
            "TesseraConfig", "TesseraModel", "TesseraProcessor", "TesseraForConditionalGeneration",
            "TesseraImageProcessor", "TesseraVisionModel", "TesseraDualEncoder", "TesseraDualProcessor",
            "TesseraDualEncoder",
        ]
    )  # fmt: skip


FIRST_USE = {
    "processor": "from transformers import AutoProcessor as A; A.from_pretrained(sys.argv[1] + '/vlm')",
    "image processor": ("from transformers import AutoImageProcessor as A; A.from_pretrained(sys.argv[1] + '/expert')"),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", FIRST_USE.values(), ids=list(FIRST_USE))
def test_any_auto_class_may_be_the_first(folders: Path, subprocess_env: dict[str, str], use: str) -> None:
    run(f"import sys, tessera; sys.argv.append({str(folders)!r})\n{use}", subprocess_env)


def test_other_models_are_not_disturbed(subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys, tessera\nfrom transformers import AutoConfig, LlamaConfig\n"
        "assert isinstance(AutoConfig.for_model('llama'), LlamaConfig)\n"
        "assert sum(type(f).__name__ == '_Waiting' for f in sys.meta_path) == 1"
    )
    run(code, subprocess_env)


def test_lazy_names(subprocess_env: dict[str, str]) -> None:
    import tessera

    assert tessera.TesseraConfig is TesseraConfig
    assert set(tessera.__all__) <= set(dir(tessera))
    assert all(getattr(tessera, name) is not None for name in tessera.__all__)
    with pytest.raises(AttributeError, match="no attribute 'TeseraConfig'"):
        _ = tessera.TeseraConfig


def test_pipeline_image_text_to_text(folders: Path) -> None:
    from transformers import pipeline

    import tessera  # noqa: F401

    pipe = pipeline("image-text-to-text", model=str(folders / "vlm"))
    content = [
        {"type": "image", "image": Image.new("RGB", (40, 30))},
        {"type": "text", "text": "Is there a dog?"},
    ]
    out = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(out[0]["generated_text"], str)


def test_pipeline_zero_shot_image_classification(folders: Path) -> None:
    from transformers import pipeline

    import tessera  # noqa: F401

    pipe = pipeline("zero-shot-image-classification", model=str(folders / "dual"))
    image = Image.new("RGB", (40, 30))
    out = pipe(image, candidate_labels=["dog", "cat"], hypothesis_template="a {}")
    assert {row["label"] for row in out} == {"dog", "cat"}
    assert sum(row["score"] for row in out) == pytest.approx(1)
