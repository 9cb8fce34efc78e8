"""A word-piece tokenizer built from a list of words, for small models of a closed world.

The vocabulary is the special tokens, every printable ASCII character (and every other character of the given
words) as a word start and as a continuation, and the given words as they are written. White space separates
words; inside a word the longest known pieces win, so "dog?" is "dog ##?", and text on signs, whose upper-case
words are not in the vocabulary, is spelt character by character: "TEA" is "T ##E ##A". Because a piece that
continues a word says so, decoding restores every space exactly: no space is invented around hyphens,
apostrophes, decimal points or brackets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<img>", "<user>", "<assistant>")
PAD, BOS, EOS, _UNK, IMAGE, IMG, USER, ASSISTANT = range(len(SPECIALS))

# <bos>, then per message of the user <img><image> for each image and <user> text, per message of the
# assistant <assistant> text <eos>. The processor expands <image> to as many tokens as an image takes.
CHAT_TEMPLATE = """\
{{- '<bos>' -}}
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'assistant') -%}
{{- raise_exception("a conversation's roles are 'user' and 'assistant', not '" + message['role'] + "'.") -}}
{%- endif -%}
{%- set text = namespace(value='') -%}
{%- if message['content'] is string -%}
{%- set text.value = message['content'] -%}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] in ('image', 'image_url') -%}
{{- '<img><image>' -}}
{%- elif item['type'] == 'text' -%}
{%- set text.value = text.value + (' ' if text.value else '') + item['text'] -%}
{%- else -%}
{{- raise_exception("the content of a message is 'text' or 'image', not '" + item['type'] + "'.") -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '<user>' + text.value -}}
{%- else -%}
{{- '<assistant>' -}}{%- generation -%}{{- text.value + '<eos>' -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""

# Typographic characters that keyboards and word processors put in, as their ASCII forms.
_PLAIN = {
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2026": "...", "\u00a0": " ",
}  # fmt: skip


def vocabulary(words: Iterable[str]) -> list[str]:
    """The tokens in the order of their ids: specials, characters, continuations, words (split at spaces)."""
    pieces = dict.fromkeys(piece for word in words for piece in unicodedata.normalize("NFC", word).split())
    characters = dict.fromkeys(chr(code) for code in range(33, 127))
    characters.update(dict.fromkeys(sorted({c for piece in pieces for c in piece})))
    tokens = dict.fromkeys([*SPECIALS, *characters, *(f"##{c}" for c in characters), *pieces])
    return list(tokens)


def build_tokenizer(words: Iterable[str], max_length: int = 1024) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is `vocabulary(words)`; case matters. Pads at the left, as generation
    wants.

    max_length is what it reports as `model_max_length`. A character outside the vocabulary becomes `<unk>` by
    itself.
    """
    tokens = vocabulary(words)
    ids = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="##", max_input_chars_per_word=4096))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *(normalizers.Replace(fancy, plain) for fancy, plain in _PLAIN.items())]
    )
    known = "".join(re.escape(t) for t in tokens if len(t) == 1)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"[^{known}]"), "isolated")]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<img>",
            "user_token": "<user>",
            "assistant_token": "<assistant>",
        },
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
