"""The differential frame pruner, and what it is plugged into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor

from tessera.errors import UserError
from tessera.hosts.check import FamilyFixture
from tessera.hosts.clips import clips, pixels_of_tokens
from tessera.hosts.plug import attach, plug
from tessera.hosts.zoo import tiny
from tessera.parts.video.videollama3 import DiffFP, changed


def test_still_frames_keep_their_first_tokens() -> None:
    clip = torch.zeros(3, 4, 5)
    clip[2, 3] = 1.0
    kept = changed(clip, 0.1)
    assert kept.tolist() == [[True] * 4, [True, False, False, False], [False, False, False, True]]
    assert changed(clip, 0.1, least=0)[1].tolist() == [False] * 4
    assert changed(clip, 0.1, least=2)[1:].tolist() == [[True, True, False, False], [True, True, False, True]]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "video_llama_3"])
def test_tokens_of_still_images_are_dropped(family: str) -> None:
    host = tiny(family)
    inputs = host.inputs((2, 2))
    inputs["pixel_values"] = repeated(inputs["pixel_values"])
    with torch.no_grad(), plug(host.model, "videollama3") as plugged:
        host.model(**inputs)
        sequence = plugged.prefilled
        assert sequence is not None
        counts = [len(frame) for frame in pixels_of_tokens(plugged, sequence.images)]
        assert sequence.stages[0].visual.sum(1).tolist() == [counts[0] + 1, counts[2] + 1]


def repeated(pixels: Tensor) -> Tensor:
    """Both rows' second image is their first."""
    images = pixels.unflatten(0, (4, -1)).clone()
    images[1], images[3] = images[0], images[2]
    return images.flatten(0, 1)


def test_a_single_image_stays_whole() -> None:
    host = tiny("llava")
    inputs = host.inputs((1, 1))
    with torch.no_grad():
        bare = host.model(**inputs).logits
        with plug(host.model, "videollama3"):
            assert torch.equal(host.model(**inputs).logits, bare)


def test_pixels_lie_under_their_tokens() -> None:
    host = tiny("llava")
    inputs = host.inputs((2, 2))
    pixels = inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    pixels[1, :, 8:16, 24:32] = 5.0  # patches of 8: row 1, column 3 of 8
    with torch.no_grad(), attach(host.model).plug("videollama3") as plugged:
        host.model(**inputs)
        assert plugged.prefilled is not None
        found = pixels_of_tokens(plugged, plugged.prefilled.images)
        assert [int((frame != 0).any(1).sum()) for frame in found] == [0, 1, 0, 0]
        assert bool((found[1][8 + 3] == 5.0).all())


def test_images_of_another_size_begin_a_clip() -> None:
    frames = [torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(6, 3), torch.zeros(4, 3)]
    assert [len(clip) for clip in clips(frames)] == [2, 1, 1]


@pytest.mark.parametrize("family", ["llava", "tessera_vlm"])
def test_identity_cache_and_undoing(family: str) -> None:
    cell = FamilyFixture(family, DiffFP.images).cell("videollama3", "video", DiffFP)
    assert cell.state == "true", cell.reason


def test_what_cannot_be_compared_is_refused() -> None:
    host = tiny("llava_next")
    with torch.no_grad(), plug(host.model, "videollama3"), pytest.raises(UserError, match="pixels under their visual tokens"):
        host.model(**host.inputs((1, 1)))
    with pytest.raises(UserError, match=r"takes 1 image\(s\) in a prompt"):
        FamilyFixture("instructblip", DiffFP.images)


@pytest.mark.parametrize("wrong", [{"least": -1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassClassValidationError):
        DiffFP.Config(**wrong)
