from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parts.decoding.anew import close, fresh, longer, made
from torch import Tensor

from tessera.config import build
from tessera.errors import UserError
from tessera.generation.branch import Branch
from tessera.generation.loop import decode_inputs
from tessera.hosts import zoo
from tessera.hosts.architecture import without_images
from tessera.parts.decoding.llava_align import LlavaAlign, calibrate, contrast, with_unknown

STEPS = 5
HOSTS = zoo.names()


def aligned(**options: Any) -> LlavaAlign:
    return LlavaAlign(build(LlavaAlign.Config, options))


def generated(host: Any, inputs: dict[str, Any], part: LlavaAlign, **options: Any) -> Any:
    with host.plug(part):
        return host.model.generate(
            **inputs,
            max_new_tokens=STEPS,
            suppress_tokens=list(host.architecture.image_token_ids),
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )


def two_streams(
    host: Any, inputs: dict[str, Any], blinds: list[dict[str, Any]], part: LlavaAlign, choose: Any
) -> tuple[Any, Any]:
    """The method as one would write it down: every step reads both prompts from the beginning."""
    tokens, scores = [], []
    for _ in range(STEPS):
        blind = torch.stack([fresh(host.model, b) for b in blinds]).mean(0)
        seeing = fresh(host.model, inputs)
        seeing[:, list(host.architecture.image_token_ids)] = -torch.inf
        wanted = contrast(seeing, blind, part.config.alpha, part.config.beta)
        token = choose(wanted)
        tokens.append(token)
        scores.append(wanted)
        inputs, blinds = longer(inputs, token), [longer(b, token) for b in blinds]
    return torch.cat(tokens, 1), torch.stack(scores, 1)


BLIND = [name for name in HOSTS if not name.startswith("instructblip")]


@pytest.mark.parametrize("name", BLIND)
def test_a_generation_is_that_of_two_streams_read_anew_in_every_step(name: str) -> None:
    if name == "paligemma":
        pytest.skip("its prompt sees itself whole, so an answer that is read anew is not what its cache holds")
    tiny, host = made(name)
    inputs, part = tiny.inputs(), aligned(alpha=0.8, beta=0.05)
    out = generated(host, inputs, part, do_sample=False)
    blind = host.architecture.family.no_image(tiny.model, inputs)
    assert not torch.isin(blind["input_ids"], torch.tensor(host.architecture.image_token_ids)).any()
    tokens, scores = two_streams(host, inputs, [blind], part, lambda s: s.argmax(-1, keepdim=True))
    assert torch.equal(out.sequences[:, -STEPS:], tokens)
    same_scores(torch.stack(out.scores, 1), scores)


def same_scores(found: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the greatest logit, and the same tokens ruled out."""
    assert torch.equal(found.isneginf(), wanted.isneginf())
    close(found, wanted)


@pytest.mark.parametrize("blind", ["none", "unk", "both"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_sampling_draws_what_two_streams_draw_from_the_same_noise(name: str, blind: str) -> None:
    tiny, host = made(name)
    inputs, part = tiny.inputs(), aligned(alpha=0.7, beta=0.01, blind=blind, unknown_id=3)
    blinds = [branch.inputs for branch in part.branches(host, inputs)]
    assert len(blinds) == (2 if blind == "both" else 1)

    def draw(scores: Tensor) -> Tensor:
        return torch.multinomial((scores / 1.5).softmax(-1), 1)

    torch.manual_seed(1)
    out = generated(host, inputs, part, do_sample=True, temperature=1.5, top_k=0, top_p=1.0)
    torch.manual_seed(1)
    tokens, scores = two_streams(host, inputs, blinds, part, draw)
    assert torch.equal(out.sequences[:, -STEPS:], tokens)
    same_scores(torch.stack(out.scores, 1) * 1.5, scores)
    greedy = generated(host, inputs, part, do_sample=False)
    assert not torch.equal(greedy.sequences, out.sequences)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_beams_keep_the_blind_stream_in_step(name: str) -> None:
    """Every beam's scores are those of its own tokens, whatever places beams have changed to."""
    tiny, host = made(name)
    inputs, part = tiny.inputs(), aligned(alpha=0.8, beta=0.0)
    ids = inputs["input_ids"]
    seen: list[tuple[Tensor, Tensor]] = []

    class Watch:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append((input_ids.clone(), scores.clone()))
            return scores

    processors = [*part.logits_processors(host, inputs), Watch()]  # not plugged in: what it gives is to be watched
    tiny.model.generate(
        **inputs,
        max_new_tokens=STEPS,
        num_beams=3,
        do_sample=False,
        logits_processor=processors,
        suppress_tokens=list(host.architecture.image_token_ids),
    )
    assert len(seen) == STEPS
    history, scores = seen[-1]
    blind_prompt = host.architecture.family.no_image(tiny.model, inputs)
    for row in range(history.shape[0]):
        own = {name: value[row // 3][None] for name, value in blind_prompt.items()}
        for token in history[row, ids.shape[1] :]:
            own = longer(own, token.view(1, 1))
        seeing = Branch(tiny.model, inputs)
        rows = torch.cat([ids, history[row, ids.shape[1] :].expand(len(ids), -1)], 1)
        for length in range(ids.shape[1], rows.shape[1] + 1):
            wanted = seeing.logits(rows[:, :length])
        wanted = contrast(wanted[row // 3].log_softmax(-1), fresh(tiny.model, own)[0], 0.8, 0.0)
        open_tokens = ~scores[row].isneginf()
        torch.testing.assert_close(
            scores[row][open_tokens], wanted[open_tokens], rtol=1e-4, atol=1e-4 * float(wanted.abs().max())
        )


def test_the_main_stream_keeps_its_rope_deltas() -> None:
    tiny, host = made("qwen2_5_vl")
    inputs = tiny.inputs()
    main = Branch(tiny.model, inputs)
    first = main.begin()
    inner = tiny.model.model
    inner.rope_deltas = torch.tensor([[5], [6]])
    Branch(tiny.model, host.architecture.family.no_image(tiny.model, inputs)).begin()
    assert inner.rope_deltas.tolist() == [[5], [6]]
    assert torch.equal(Branch(tiny.model, inputs).begin(), first)


@pytest.mark.parametrize("sampled", [False, True])
def test_alpha_0_is_the_model_itself(sampled: bool) -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs()
    part = aligned(**LlavaAlign.identity())
    torch.manual_seed(0)
    plain = tiny.model.generate(**inputs, max_new_tokens=STEPS, do_sample=sampled)
    torch.manual_seed(0)
    with host.plug(part):
        assert torch.equal(tiny.model.generate(**inputs, max_new_tokens=STEPS, do_sample=sampled), plain)


def test_the_contrast_is_the_papers() -> None:
    logits, blind = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    found = contrast(logits, blind, 0.5, 0.1)
    for row in range(4):
        best = max(logits[row].tolist())
        for token in range(50):
            if logits[row, token] < best + torch.tensor(0.1).log():
                assert found[row, token] == -torch.inf
            else:
                assert found[row, token] == pytest.approx(
                    1.5 * float(logits[row, token]) - 0.5 * float(blind[row, token]), abs=1e-5
                )
    assert found.isneginf().any() and (found.isneginf().sum(1) < 50).all()
    assert torch.equal(contrast(logits, blind, 0.0, 0.0), logits)


def test_the_control_takes_away_the_next_prompts_prior() -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((1, 1))
    ids, blind = inputs["input_ids"], torch.randn(2, 7)
    scores = torch.randn(2, 7)

    class Fixed:
        def logits(self, ids: Tensor) -> Tensor:
            return blind.repeat_interleave(len(ids) // 2, 0)

    part = aligned(prior="other", beta=0.0)
    [processor] = part.logits_processors(host, inputs)
    processor.branches = [Fixed()]
    torch.testing.assert_close(processor(ids, scores), contrast(scores, blind.flip(0), 0.5, 0.0))
    beams = scores.repeat_interleave(3, 0)
    found = processor(ids.repeat_interleave(3, 0), beams)
    torch.testing.assert_close(found, contrast(scores, blind.flip(0), 0.5, 0.0).repeat_interleave(3, 0))


def test_a_prompt_alone_keeps_its_own_prior() -> None:
    tiny, host = made("llava")
    inputs = tiny.inputs((1,))
    own, other = (generated(host, inputs, aligned(prior=prior), do_sample=False) for prior in ("own", "other"))
    assert torch.equal(own.sequences, other.sequences)


def test_a_forbidden_token_stays_forbidden() -> None:
    logits, blind = torch.zeros(1, 3), torch.tensor([[0.0, -torch.inf, 0.0]])
    logits[0, 1] = -torch.inf
    assert contrast(logits, blind, 1.0, 0.0).tolist() == [[0.0, -torch.inf, 0.0]]


@pytest.mark.parametrize("mode", ["diagonal", "identity"])
def test_without_an_image_calibrated_answers_are_exactly_uniform(mode: Any) -> None:
    blind = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).mul(5).softmax(-1)
    blind[0] = torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(calibrate(blind, blind, mode), torch.ones(6, 3).softmax(-1))


def test_calibration_divides_by_what_is_said_without_the_image() -> None:
    raw, blind = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.9, 0.1]])
    wanted = torch.tensor([[0.7 / 0.9, 0.3 / 0.1]])
    torch.testing.assert_close(calibrate(raw, blind), wanted / wanted.sum())
    torch.testing.assert_close(calibrate(raw, blind, "identity"), (raw - blind).softmax(-1))
    assert torch.equal(calibrate(raw, blind, "diagonal", (0.0, 0.6)), raw)
    assert torch.equal(calibrate(raw, blind, "diagonal", (0.6, 0.8)), calibrate(raw, blind))


def test_closed_answers_ask_the_model_with_and_without_its_images() -> None:
    tiny, host = made("llava")
    inputs, answers = tiny.inputs(), [[11, 12], [13]]
    found = aligned().closed_answers(host, inputs, answers)
    shares = fresh(tiny.model, inputs).softmax(-1)
    together = torch.stack([shares[:, 11] + shares[:, 12], shares[:, 13]], 1)
    torch.testing.assert_close(found.raw, together / together.sum(1, keepdim=True))
    blind = fresh(tiny.model, host.architecture.family.no_image(tiny.model, inputs)).softmax(-1)
    assert found.blind[:, 1].tolist() == pytest.approx((blind[:, 13] / blind[:, 11:14].sum(1)).tolist(), rel=1e-4)
    assert torch.equal(found.calibrated, calibrate(found.raw, found.blind))
    unseen = aligned().closed_answers(host, host.architecture.family.no_image(tiny.model, inputs), answers)
    torch.testing.assert_close(unseen.calibrated, torch.full((2, 2), 0.5), rtol=0, atol=1e-5)


def test_unknown_stands_once_for_each_image() -> None:
    ids = torch.tensor([[0, 1, 9, 9, 9, 4, 9, 9, 5], [1, 9, 9, 6, 7, 8, 2, 2, 2]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "mm_token_type_ids": (ids == 9).long()}
    found = without_images(with_unknown(inputs, (9,), 3), (9,), 0)
    kept = found["attention_mask"].bool()
    assert [row[k].tolist() for row, k in zip(found["input_ids"], kept, strict=True)] == [
        [1, 3, 4, 3, 5],
        [1, 3, 6, 7, 8, 2, 2, 2],
    ]
    assert kept[0].tolist() == [False] * 3 + [True] * 5
    assert not found["mm_token_type_ids"][kept].any()


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(UserError, match="unknown_id"):
        aligned(blind="unk")
    with pytest.raises(UserError, match="alpha"):
        aligned(alpha=-1.0)
    _, host = made("llava")
    with pytest.raises(UserError, match="inputs_embeds"):
        aligned().logits_processors(host, {"inputs_embeds": torch.zeros(1, 2, 3)})
    tiny, host = made("instructblip")
    with pytest.raises(UserError, match="InstructBLIP"):
        aligned().logits_processors(host, tiny.inputs())


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_tesseras_own_loop_and_the_hosts_notes_are_of_the_main_stream(name: str) -> None:
    tiny, host = made(name)
    inputs, images = tiny.inputs(), list(host.architecture.image_token_ids)
    with host.plug(aligned(alpha=0.8, beta=0.05)):
        out = tiny.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, suppress_tokens=images)
        assert host.prefilled is not None and host.prefilled.has_visual
        assert host.prefilled.length == inputs["input_ids"].shape[1]
        own = decode_inputs(tiny.model, inputs, max_new_tokens=STEPS, suppress_tokens=images)
    assert torch.equal(own, out)


def test_beside_a_part_that_drops_tokens_the_blind_stream_is_the_same() -> None:
    tiny, host = made("llava")
    inputs, part = tiny.inputs(), aligned(alpha=0.8, beta=0.0)
    images = list(host.architecture.image_token_ids)
    with host.plug("uniform"):
        seeing = tiny.model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True).logits[0]
    blind = fresh(tiny.model, host.architecture.family.no_image(tiny.model, inputs))
    seeing[:, images] = -torch.inf
    with host.plug("uniform", part):
        out = tiny.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_scores=True, suppress_tokens=images
        )
    same_scores(out.scores[0], contrast(seeing, blind, 0.8, 0.0))
