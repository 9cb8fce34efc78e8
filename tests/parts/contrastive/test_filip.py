"""FILIP against loops, and its selection of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parts.contrastive.tiny import batch, dual

from tessera.errors import UserError
from tessera.models.contrast import Embedded
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.parts.contrastive import filip


def embedded(count: int, length: int, seed: int, share: float = 0.7) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(count, length, generator=generator) < share
    there[:, 0] = True
    return Embedded(torch.randn(count, length, 6, generator=generator), there).unit()


def test_the_similarity_equals_loops() -> None:
    part = filip.FILIP(filip.FILIP.Config(), 8, 6)
    images, texts = embedded(4, 7, 0), embedded(5, 9, 1, share=0.6)
    per_image, per_text = part.similarity(images, texts)
    kept = part.similarity(*filip.select(images, texts, 1.0))
    for i in range(4):
        alone = part.similarity(images[i : i + 1], texts)
        torch.testing.assert_close((alone[0][0], alone[1][:, 0]), (per_image[i], per_text[:, i]), rtol=0, atol=1e-6)
        for x in range(5):
            cosine = images.vectors[i][images.there[i]] @ texts.vectors[x][texts.there[x]].t()
            words, patches = ([max(map(float, row)) for row in rows] for rows in (cosine, cosine.t()))
            assert float(per_image[i, x]) == pytest.approx(sum(words) / len(words), abs=1e-6)
            assert float(per_text[x, i]) == pytest.approx(sum(patches) / len(patches), abs=1e-6)
    torch.testing.assert_close(kept, (per_image, per_text), rtol=0, atol=1e-6)
    assert float((per_image - per_text.t()).abs().mean()) > 1e-3


def test_padding_changes_nothing_whatever_it_holds() -> None:
    images, texts = embedded(3, 5, 0), embedded(4, 7, 1)
    expected = filip.late_interaction(images, texts)
    for part in (images, texts):
        part.vectors[~part.there] = 9.0
    found = filip.late_interaction(images, texts)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    longer = Embedded.cat([texts, embedded(1, 12, 2)])[:4]
    torch.testing.assert_close(filip.late_interaction(images, longer)[1], expected[1])


def test_without_gradients_it_goes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    part = filip.FILIP(filip.FILIP.Config(), 8, 6)
    images, texts = embedded(7, 5, 0), embedded(4, 7, 1)
    whole = part.similarity(images, texts)
    monkeypatch.setattr(filip, "_AT_ONCE", 300)
    with torch.no_grad():
        blocks = part.similarity(images, texts)
    assert blocks[0].shape == (7, 4) and blocks[1].shape == (4, 7)
    for a, b in zip(whole, blocks, strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_text_is_like_nothing_and_breaks_nothing() -> None:
    images, texts = embedded(2, 5, 0), embedded(3, 4, 1)
    texts.there[1] = False
    for found in filip.late_interaction(images, texts):
        assert bool(found.isfinite().all()) and float(found.abs().max()) <= 1


def test_the_selection_keeps_the_most_similar_tokens() -> None:
    images, texts = embedded(3, 8, 0), embedded(2, 6, 1, share=1.0)
    few, words = filip.select(images, texts, 0.5)
    for i in range(3):
        own = images.vectors[i][images.there[i]]
        best = torch.stack([(own @ t.t()).amax(1) for t in texts.vectors]).amax(0)
        count = -(-len(own) // 2)
        expected = own[best.topk(count).indices]
        assert int(few.there[i].sum()) == count
        torch.testing.assert_close(few.vectors[i][few.there[i]], expected)
    assert words.vectors.shape[1] == 3
    tiny, _ = filip.select(images, texts, 0.01)
    assert tiny.there.sum(1).tolist() == [1, 1, 1]


def test_a_model_with_it_trains_saves_and_loads(tmp_path: Path) -> None:
    for keep in (1.0, 0.25):
        model, inputs = dual({"kind": "filip", "keep": keep}), batch()
        out = model(**inputs, return_loss=True)
        out.loss.backward()
        for name, parameter in model.named_parameters():
            if name != "text.position":
                assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    assert not torch.allclose(out.logits_per_image, out.logits_per_text.t())
    model.save_pretrained(tmp_path)
    loaded = TesseraDualEncoder.from_pretrained(tmp_path).eval()
    assert loaded.config.contrastive == {"kind": "filip", "keep": 0.25}
    torch.testing.assert_close(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image, rtol=0, atol=0)
    assert loaded.get_image_features(inputs["pixel_values"]).shape == (4, 16)


def test_embeddings_can_be_kept() -> None:
    model, inputs = dual({"kind": "filip"}), batch()
    with torch.no_grad():
        whole = model(**inputs)
        images = Embedded.cat([model.embed_images(p[None]) for p in inputs["pixel_values"]])
        texts = []
        for ids, there in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
            texts.append(model.embed_texts(ids[there][None], there[there][None]))
        per_image, per_text = model.contrast(images, Embedded.cat(texts), model.scale)
    torch.testing.assert_close(per_image, whole.logits_per_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(per_text, whole.logits_per_text, atol=1e-5, rtol=1e-5)


def test_several_prompts_are_averaged_as_similarities() -> None:
    part = filip.FILIP(filip.FILIP.Config(), 8, 6)
    images, prompts = embedded(2, 5, 0), [embedded(3, n, n) for n in (4, 6)]
    expected = sum(part.similarity(images, p)[0] for p in prompts) / 2
    torch.testing.assert_close(part.classify(images, prompts), expected)


def test_a_patch_finds_its_word() -> None:
    words = torch.eye(4, 6)
    patches = words[[2, 0, 3]] + 0.01
    there = torch.tensor([True, True, True, False])
    assert filip.alignment(patches, words, there)[:2].tolist() == [2, 0]
    assert filip.alignment(patches, words, there)[2] != 3


@pytest.mark.parametrize("keep", [0, 1.5, -0.1])
def test_shares_outside_their_range_are_refused(keep: float) -> None:
    with pytest.raises(UserError, match="share above 0"):
        dual({"kind": "filip", "keep": float(keep)})
