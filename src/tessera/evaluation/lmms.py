"""lmms-eval asks Tessera's models and any transformers model with plugged parts:

    lmms-eval eval --model tessera --model_args "pretrained=nano" --tasks TASK
    lmms-eval eval --model tessera --model_args "pretrained=PATH,plug='pyramiddrop:keep=0.5,0.25,0.125'" --tasks TASK

`manifest` is the entry point `tessera` of `lmms_eval.models`; the class that it names is in `tessera.evaluation.lmms_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.generate import GeneratedAnswer
    from tessera.generation.sampling import Sampling

NEW_TOKENS = 64
"""Tokens of an answer where a task names no number."""
_SETTINGS = ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "num_beams", "until", "image_aspect_ratio")


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="tessera", chat_class_path="tessera.evaluation.lmms_model.TesseraLmms")


class ConversationModel:
    """A model that is asked lmms-eval's conversations."""

    def __init__(self, pretrained: str, plug: str = "") -> None:
        """plug: parts as `--plug` takes them, several separated by ;. Raises `UserError` as `tessera ask` does."""
        from tessera.generation.host_generate import HostGenerator
        from tessera.generation.session import open_session
        from tessera.plugging import parse_plugs

        texts = [text.strip() for text in plug.strip("'\" ").split(";")]
        self.session = open_session(pretrained, parse_plugs([text for text in texts if text]))
        self.generator = HostGenerator(self.session.model, self.session.processor, name=pretrained)

    def close(self) -> None:
        """Takes the parts out."""
        self.session.close()

    def answer(self, conversations: Sequence[Sequence[Mapping[str, Any]]], settings: Mapping[str, Any]) -> list[GeneratedAnswer]:
        """One answer per conversation, in order; those of one question are decoded side by side.

        Raises `UserError` for what is neither text nor an image, and for settings of a generation that is not done here.
        """
        new, sampling, stop = read_settings(settings)
        read = [_read(messages) for messages in conversations]
        single = [place for place, (messages, _) in enumerate(read) if len(messages) == 1]
        answers: dict[int, GeneratedAnswer] = {}
        rows = [(read[place][1], [_text(read[place][0][0])]) for place in single]
        for place, found in zip(single, self.generator.answer_batch(rows, new, sampling, stop), strict=True):
            answers[place] = found[0]
        for place, (messages, images) in enumerate(read):
            if place not in answers:
                stream = self.generator.stream_messages(messages, images, new, sampling, stop)
                for _ in stream:
                    pass
                assert stream.answer is not None
                answers[place] = stream.answer
        return [answers[place] for place in range(len(read))]


def read_settings(settings: Mapping[str, Any]) -> tuple[int, Sampling, list[str]]:
    """(new tokens at most, sampling, stop strings) of a task's `generation_kwargs`. Raises `UserError` for unknown ones."""
    from tessera.errors import unknown
    from tessera.generation.sampling import Sampling

    for name in settings:
        if name not in _SETTINGS:
            raise unknown("generation setting:", name, _SETTINGS)
    if (settings.get("num_beams") or 1) != 1:
        raise UserError(f"num_beams is {settings['num_beams']}; Tessera follows one answer: leave it out.")
    temperature = float(settings.get("temperature") or 0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    elif settings.get("do_sample") and temperature == 0:
        temperature = 1.0
    until = settings.get("until") or []
    sampling = Sampling(temperature=temperature, top_p=float(settings.get("top_p") or 1), top_k=int(settings.get("top_k") or 0))
    return int(settings.get("max_new_tokens") or NEW_TOKENS), sampling, [until] if isinstance(until, str) else list(until)


def _read(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages as chat templates read them, images of a message first, and the images in order."""
    from tessera.data.images import open_image

    read, images = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts, shown = [], 0
        for part in parts:
            if part["type"] == "image":
                images.append(open_image(part["url"]))
                shown += 1
            elif part["type"] == "text":
                texts.append(part["text"])
            else:
                raise UserError(f"Tessera's models read text and images, not {part['type']}; choose another task.")
        text = {"type": "text", "text": " ".join(text for text in texts if text)}
        read.append({"role": message["role"], "content": [{"type": "image"}] * shown + [text]})
    return read, images


def _text(message: Mapping[str, Any]) -> str:
    text: str = message["content"][-1]["text"]
    return text
