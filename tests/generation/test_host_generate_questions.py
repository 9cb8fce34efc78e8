"""Questions in words, through a processor: prefixes, batches, streams, stop strings, conversations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.hosts.tiny import QUESTIONS, WORDS, images, save_llava

from tessera.errors import UserError
from tessera.generation.host_generate import HostGenerator
from tessera.generation.sampling import Sampling
from tessera.hosts import zoo
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.plug import attach
from tessera.hosts.values import Selection

NEW = 12
_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def qwen() -> tuple[Any, Any]:
    """A tiny Qwen2.5-VL and a processor of its kind whose words are ours."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    special = {"<|image_pad|>": 190, "<|video_pad|>": 191, "<|vision_start|>": 192, "<|vision_end|>": 193}
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, "?", "user", "assistant"]
    words += [f"w{n}" for n in range(190 - len(words))]
    tokens = Tokenizer(WordLevel({word: n for n, word in enumerate(words)} | special, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", extra_special_tokens=list(special)
    )
    pixels = Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=64 * 64, max_pixels=64 * 64)
    return zoo.tiny("qwen2_5_vl").model, Qwen2_5_VLProcessor(
        image_processor=pixels, tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor(), chat_template=_TEMPLATE
    )


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model and its processor."""
    if request.param == "qwen2_5_vl":
        return qwen()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder: Path = save_llava(tmp_path_factory.mktemp("models") / "llava")
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    return [image.resize((64, 64)) for image in images(count, seed)]


def wanted(host: tuple[Any, Any], own: list[Image.Image], question: str, **options: Any) -> tuple[int, ...]:
    """The tokens of `generate` for one question, without the end."""
    model, processor = host
    content = [{"type": "image"}] * len(own) + [{"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=own or None, text=[text], return_tensors="pt")
    out = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
    tokens = out[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)


@pytest.mark.parametrize("own", [True, False])
def test_questions_about_the_same_images(host: tuple[Any, Any], own: bool) -> None:
    generator = HostGenerator(*host, own_decoder=own)
    assert (generator.why_slow is None) == own
    for seed, count in enumerate((1, 2)):
        prefix = generator.prefix(pictures(count, seed))
        expected = [wanted(host, pictures(count, seed), question) for question in QUESTIONS]
        assert [answer.tokens for answer in generator.answer(prefix, QUESTIONS, NEW)] == expected
        assert prefix.head is not None and prefix.why_not is None
        assert generator.answer(prefix, QUESTIONS[:1], NEW)[0].tokens == expected[0]


def test_the_tower_runs_once_for_all_questions(host: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = HostGenerator(*host)
    base = type(host[0].model)
    calls: list[int] = []
    right = base.get_image_features

    @functools.wraps(right)  # generate looks at its signature
    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        return right(self, *args, **options)

    generator.answer(generator.prefix(pictures(1)), QUESTIONS[:2], 2)  # the first time both ways are compared
    monkeypatch.setattr(base, "get_image_features", counted)
    prefix = generator.prefix(pictures(1, 5))
    generator.answer(prefix, QUESTIONS, 3)
    generator.answer(prefix, QUESTIONS[:1], 3)
    assert len(list(generator.stream(prefix, QUESTIONS[2], 3))) > 0
    assert len(calls) == 1


def test_a_single_question_is_read_once(host: tuple[Any, Any]) -> None:
    generator = HostGenerator(*host)
    prefix = generator.prefix(pictures(1))
    assert generator.answer(prefix, QUESTIONS[:1], NEW)[0].tokens == wanted(host, pictures(1), QUESTIONS[0])
    assert (prefix.head, prefix.why_not) == (None, None)
    assert generator.answer(prefix, QUESTIONS[1:2], NEW)[0].tokens == wanted(host, pictures(1), QUESTIONS[1])
    assert prefix.head


def test_what_does_not_agree_is_not_shared(host: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.generation.host_generate.agrees", lambda *_: False)
    generator = HostGenerator(*host)
    for seed in (0, 1):
        prefix = generator.prefix(pictures(1, seed))
        found = generator.answer(prefix, QUESTIONS, NEW)
        assert [answer.tokens for answer in found] == [wanted(host, pictures(1, seed), question) for question in QUESTIONS]
        assert (prefix.head, prefix.why_not) == (None, "its image tokens see the question")


def test_what_is_hooked_later_is_not_passed_by(host: tuple[Any, Any]) -> None:
    generator = HostGenerator(*host)
    prefix = generator.prefix(pictures(1))
    generator.answer(prefix, QUESTIONS[:2], 2)
    assert prefix.head is not None
    layer = generator.route.language_model.layers[0]
    handle = layer.register_forward_hook(lambda module, args, output: output * 1.5)
    try:
        found = generator.answer(prefix, QUESTIONS, NEW)
        assert [answer.tokens for answer in found] == [wanted(host, pictures(1), question) for question in QUESTIONS]
        assert "hooked" in str(prefix.why_not)
    finally:
        handle.remove()


def test_rows_of_other_images(host: tuple[Any, Any]) -> None:
    rows = [
        (pictures(1, 1), QUESTIONS[:1]),
        (pictures(2, 2), QUESTIONS[1:2]),
        (pictures(1, 3), QUESTIONS[2:5]),
        (pictures(1, 4), QUESTIONS[4:5]),
        ([], QUESTIONS[:1]),
        (pictures(1), []),
    ]
    found = HostGenerator(*host).answer_batch(rows, NEW)
    assert [[answer.tokens for answer in own] for own in found] == [
        [wanted(host, own, question) for question in asked] for own, asked in rows
    ]


def test_streams_and_stop_strings(host: tuple[Any, Any]) -> None:
    generator = HostGenerator(*host)
    prefix = generator.prefix(pictures(1))
    stream = generator.stream(prefix, QUESTIONS[1], NEW)
    pieces = list(stream)
    whole = stream.answer
    assert whole is not None and not whole.finished and len(pieces) > 2
    assert whole.tokens == wanted(host, pictures(1), QUESTIONS[1])
    assert "".join(pieces) == whole.text == host[1].tokenizer.decode(whole.tokens, skip_special_tokens=True).strip()
    stop = whole.text[len(whole.text) // 2 :][:3]
    for _ in range(2):  # read whole, then behind the prefix
        stream = generator.stream(prefix, QUESTIONS[1], NEW, stop=["never said", stop])
        text = "".join(stream)
        assert stream.answer is not None and stream.answer.finished
        assert text == stream.answer.text == whole.text[: whole.text.index(stop)].rstrip()
        assert len(stream.answer.tokens) < NEW
    [one, other] = generator.answer(prefix, [QUESTIONS[1], QUESTIONS[3]], NEW, stop=[stop])
    assert one.text == text
    assert other.tokens[: len(other.tokens)] == wanted(host, pictures(1), QUESTIONS[3])[: len(other.tokens)]


def test_drawing_and_probabilities(host: tuple[Any, Any]) -> None:
    generator = HostGenerator(*host)
    prefix = generator.prefix(pictures(1))
    hot = [Sampling(temperature=3.0, top_p=0.95, top_k=50, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (generator.answer(prefix, QUESTIONS, NEW, sampling) for sampling in hot)
    assert one == same
    assert one != other
    greedy = generator.answer(prefix, QUESTIONS, NEW)
    narrow = generator.answer(prefix, QUESTIONS, NEW, Sampling(temperature=1.0, top_k=1, seed=1))
    assert [answer.tokens for answer in narrow] == [answer.tokens for answer in greedy]
    slow = HostGenerator(*host, own_decoder=False).answer(prefix := generator.prefix(pictures(1)), QUESTIONS, NEW)
    assert [a.probability for a in slow] == pytest.approx([a.probability for a in greedy], rel=1e-3)
    assert prefix.head is not None


def test_a_conversation(host: tuple[Any, Any]) -> None:
    model, processor = host
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "Where is the cat?"}]},
    ]
    stream = HostGenerator(model, processor).stream_messages(messages, pictures(1), NEW)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=pictures(1), text=[text], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    list(stream)
    assert stream.answer is not None and stream.answer.tokens == tuple(out.tolist())
    assert stream.prompt_tokens == inputs["input_ids"].shape[1]


def test_settings_of_the_model_are_kept(host: tuple[Any, Any]) -> None:
    model, _ = host
    model.generation_config.repetition_penalty = 1.5
    try:
        found = HostGenerator(*host).answer(HostGenerator(*host).prefix(pictures(1)), QUESTIONS, NEW)
        assert [answer.tokens for answer in found] == [wanted(host, pictures(1), question) for question in QUESTIONS]
    finally:
        model.generation_config.repetition_penalty = None
    plain = [wanted(host, pictures(1), question) for question in QUESTIONS]
    assert [answer.tokens for answer in found] != plain


def test_what_is_refused(host: tuple[Any, Any]) -> None:
    generator = HostGenerator(*host, name="toy")
    prefix = generator.prefix(pictures(1))
    with pytest.raises(UserError, match="the question is empty"):
        generator.answer(prefix, [" "])
    with pytest.raises(UserError, match="toy cannot take this question with 1 image"):
        generator.answer(prefix, [f"What is {generator.asking.marks[0]}?"])
    with pytest.raises(UserError, match="more than this model's context"):
        generator.answer(prefix, ["dog " * 3000])
    with pytest.raises(UserError, match="max_new_tokens must be at least 1"):
        generator.answer(prefix, ["dog"], 0)
    with torch.inference_mode():
        assert generator.answer(prefix, []) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("uniform", {"keep": (0.5,)}),
        ("uniform", {"keep": (0.5,), "positions": "reindex"}),
        ("random", {"keep": (0.75, 0.25), "layers": (1, 2)}),
        ("fopru", {"keep": 0.5, "score": "received"}),
    ],
)
def test_parts_that_look_at_images_alone_leave_their_reading_shared(
    host: tuple[Any, Any], name: str, options: dict[str, Any]
) -> None:
    if options.get("positions") == "reindex" and "rope" not in attach(host[0]).architecture.capabilities:
        pytest.skip("M-RoPE cannot be counted anew")
    generator, asked = HostGenerator(*host), QUESTIONS[:3]
    prefix = generator.prefix(pictures(1))
    bare = [answer.tokens for answer in generator.answer(prefix, asked, NEW)]
    with attach(host[0]).plug(name, **options):
        expected = [wanted(host, pictures(1), question) for question in asked]
        assert [answer.tokens for answer in generator.answer(prefix, asked, NEW)] == expected != bare
        assert prefix.head is not None
        assert (prefix.head.packed is not None) == (len(options["keep"]) == 1 if name != "fopru" else True)
    assert [answer.tokens for answer in generator.answer(prefix, asked, NEW)] == bare


def test_the_share_that_a_part_reads_is_compared_with_a_full_prompt(host: tuple[Any, Any]) -> None:
    """A part that says that it does not read the question, and does."""

    class Liar(HostPart):
        reads_question = False

        def select(self, view: LayerView) -> Selection | None:
            if view.layer:
                return None
            asked = (view.real & ~view.visual & (view.visual.cumsum(1) > 0)).any(1, keepdim=True)
            return Selection(keep=~view.visual | ~asked | (view.visual.cumsum(1) % 3 == 0))

    generator, asked = HostGenerator(*host), QUESTIONS[:3]
    with attach(host[0]).plug(Liar(None)):
        prefix = generator.prefix(pictures(1))
        expected = [wanted(host, pictures(1), question) for question in asked]
        assert [answer.tokens for answer in generator.answer(prefix, asked, NEW)] == expected
        assert prefix.head is None and "see the question" in (prefix.why_not or "")


def test_parts_that_read_the_question_read_the_images_with_it(host: tuple[Any, Any]) -> None:
    generator, asked = HostGenerator(*host), QUESTIONS[:2]
    prefix = generator.prefix(pictures(1))
    with attach(host[0]).plug("pyramiddrop", keep=(0.5,), layers=(2,)):
        expected = [wanted(host, pictures(1), question) for question in asked]
        assert [answer.tokens for answer in generator.answer(prefix, asked, NEW)] == expected
        assert prefix.head is None and "pyramiddrop does to an image may depend on the question" in (prefix.why_not or "")
    generator.answer(prefix, asked, NEW)
    assert prefix.head is not None
