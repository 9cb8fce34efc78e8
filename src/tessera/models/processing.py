"""Text and images to model inputs, for the composed model and for the dual encoder.

Text of the composed model: `<bos>`, per image `<img>` and n x `<image>`, `<user>` question `<assistant>`
answer `<eos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding

from tessera.errors import UserError
from tessera.models.image_processing import flatten


class _Saved(ProcessorMixin):
    """A processor that is saved as it was made: truncation and padding that a call asked for stay on a fast tokenizer, and saved
    with it they would cut the texts of whoever loads it."""

    tokenizer: Any

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As transformers' own, less what the last call has left behind."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


class TesseraProcessor(_Saved):
    """Images and conversations to `input_ids`, `attention_mask`, `pixel_values`.

    tokens_per_image  n, placeholders that one image becomes
    max_images        images that one text may hold
    max_length        tokens that one text may have, its images included
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_image: int = 49,
        max_images: int = 16,
        max_length: int = 1024,
        chat_template: str | None = None,
    ) -> None:
        self.tokens_per_image = tokens_per_image
        self.max_images = max_images
        self.max_length = max_length
        self.image_token = getattr(tokenizer, "image_token", None) or "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Texts with one `<image>` per image, and the images in order (flat, or one list per text).

        Raises `UserError` when placeholders and images differ, a text holds more than `max_images` images or
        more than `max_length` tokens, or truncation cut placeholders off.
        """
        out = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            rows = [text] if isinstance(text, str) else list(text)
            self._check_lengths(out["input_ids"], out.get("attention_mask"), [row.count(self.image_token) for row in rows])
        return out

    def validate_inputs(self, images: Any = None, text: Any = None, **kwargs: Any) -> None:
        """The checks that `__call__` promises, before anything is computed. Raises `UserError`."""
        if images is None and text is None:
            raise UserError("give images, text, or both.")
        for modality in ("videos", "audio"):
            if kwargs.get(modality) is not None:
                raise UserError(f"this model reads images and text, not {modality}; give a clip as a list of its frames.")
        if text is None:
            return
        rows = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(row, str) for row in rows):
            raise UserError("text must be a string or a list of strings.")
        wanted = [row.count(self.image_token) for row in rows]
        for row, count in enumerate(wanted):
            if count > self.max_images:
                raise UserError(f"text {row} holds {count} images; this model takes at most {self.max_images}.")
        nested = isinstance(images, (list, tuple)) and bool(images) and all(isinstance(i, (list, tuple)) for i in images)
        given = len(flatten(images))
        if nested and len(images) == len(rows):
            for row, (count, own) in enumerate(zip(wanted, images, strict=True)):
                if count != len(own):
                    raise UserError(f"text {row} holds {count} {self.image_token} placeholders, but {len(own)} images are given.")
        if sum(wanted) != given:
            raise UserError(
                f"the text holds {sum(wanted)} {self.image_token} placeholders, but {given} images "
                "are given; every image "
                f"needs one. apply_chat_template writes them for messages with images."
            )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """One placeholder becomes as many as the image has tokens."""
        return self.image_token * self.tokens_per_image

    def _check_lengths(self, input_ids: Any, attention_mask: Any, images: Sequence[int]) -> None:
        for row, count in enumerate(images):
            mask = None if attention_mask is None else attention_mask[row]
            length = len(input_ids[row]) if mask is None else int(sum(mask))
            if length > self.max_length:
                taken = f" ({count * self.tokens_per_image} of them for {count} images)" if count else ""
                raise UserError(
                    f"the text has {length} tokens{taken}, {length - self.max_length} more than the "
                    f"{self.max_length} of this model's context: shorten the question or give fewer images."
                )

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: list[str]) -> None:
        for row, ids in zip(text, text_inputs["input_ids"], strict=True):
            wanted, left = row.count(self.image_token), [int(i) for i in ids].count(self.image_token_id)
            if wanted != left:
                raise UserError(f"truncation cut image placeholders off: {left} of {wanted} are left. Allow more tokens.")

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Tokens of images of the given (height, width) sizes; every image takes the same number."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.tokens_per_image] * count, num_image_patches=[1] * count)

    def prompt(self, question: str, images: int = 1) -> str:
        """The text in front of the answer: one `<image>` per image, not yet expanded."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        return str(self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))

    def prefix_ids(self, images: int = 1) -> list[int]:
        """Token ids of `<bos>` and the images, placeholders expanded: what questions about them share."""
        text = self.tokenizer.bos_token + ("<img>" + self.image_token * self.tokens_per_image) * images
        return self._ids(text)

    def question_ids(self, question: str) -> list[int]:
        """Token ids of `<user>` question `<assistant>`, which follow the prefix."""
        return self._ids(f"<user>{question}<assistant>")

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of the answer and `<eos>`."""
        return self._ids(answer + self.tokenizer.eos_token)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class TesseraDualProcessor(_Saved):
    """Images and plain texts to `pixel_values` and `input_ids`, for the dual encoder.

    max_length  tokens that one text may have
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, max_length: int = 64) -> None:
        self.max_length = max_length
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str | None = None, **kwargs: Any) -> BatchEncoding:
        """Either or both; texts are padded to the longest. Raises `UserError` for a text that is too long."""
        if images is None and text is None:
            raise UserError("give images, text, or both.")
        data: dict[str, Any] = {}
        if text is not None:
            rows = [text] if isinstance(text, str) else list(text)
            padding = kwargs.pop("padding", True)
            encoded = self.tokenizer(rows, padding=padding, return_tensors=return_tensors, **kwargs)
            longest = max(int(sum(mask)) for mask in encoded["attention_mask"])
            if longest > self.max_length:
                raise UserError(
                    f"a text has {longest} tokens, {longest - self.max_length} more than the {self.max_length} allowed."
                )
            data.update(encoded)
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors))
        return BatchEncoding(data, tensor_type=return_tensors)
