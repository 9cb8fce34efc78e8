"""Text survives the way to ids and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tessera.models.tokenizer import SPECIALS, build_tokenizer, vocabulary


def test_specials_come_first_in_their_order(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(8))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.image_token == "<image>"


TEXTS = [
    "Is there a dog?",
    "12 05 45 99",
    "fire engine",
    'What does the sign say: "TEA 7"?',
    "3.50 (A) a-b t-shirt, it's 100%!",
    "TEAROOM 42B",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="<"), min_size=1))
def test_any_printable_ascii_word_round_trips(word: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(word)["input_ids"]) == word


TOKENIZER = build_tokenizer(["Is", "there", "dog", "7", "07"])


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_known_words_are_one_token_and_signs_are_spelt(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, "Is there a dog?") == ["Is", "there", "a", "dog", "##?"]
    assert pieces(tokenizer, "DOG") == ["D", "##O", "##G"]
    assert pieces(tokenizer, "12 05 7") == ["12", "05", "7"]


def test_unknown_characters_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, "dog\u20ac?") == ["dog", "<unk>", "?"]
    assert pieces(tokenizer, "dog\u2019s \u201cdog\u201d")[:3] == ["dog", "##'", "##s"]


def test_words_with_other_letters_are_words() -> None:
    assert "piñata" in vocabulary(["piñata"])
    assert pieces(build_tokenizer(["piñata"]), "piñata ñ") == ["piñata", "ñ"]


def test_it_comes_back_from_a_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.padding_side == "left"
    assert loaded.chat_template == tokenizer.chat_template
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = {"role": "user", "content": [{"type": "text", "text": "Is there a dog?"}, {"type": "image"}]}
    messages = [asked, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "Where?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><img><image><user>Is there a dog?<assistant>yes<eos><user>Where?<assistant>"
    marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = marked["input_ids"], marked["assistant_masks"]
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "yes <eos>"
    with pytest.raises(Exception, match="not 'system'"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
