"""Requests to answers: the session of `tessera ask`, asked by the server's worker."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.data.images import open_image
from tessera.errors import UserError
from tessera.serving.answer import Completion
from tessera.serving.errors import invalid
from tessera.serving.limits import Limits
from tessera.serving.request import ChatRequest, Message

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.host_generate import HostGenerator
    from tessera.generation.sampling import Sampling
    from tessera.generation.session import Session
    from tessera.hosts.part import HostPart
    from tessera.serving.app import Settings
    from tessera.serving.fetch import Allowed


@contextlib.contextmanager
def open_engine(
    model: str, parts: Sequence[HostPart], name: str, limits: Limits, plugs: Sequence[str] = ()
) -> Iterator[ServingEngine]:
    """A model with parts plugged in, ready to answer; the parts are taken out at the end.

    name: what requests call it; plugs: the parts as they were written, for the fingerprint. Raises `UserError` as `open_session`
    does.
    """
    from tessera.generation.session import open_session

    session = open_session(model, parts)
    try:
        yield ServingEngine(session, model, name or public_name(model), limits, fingerprint(model, plugs))
    finally:
        session.close()


def public_name(model: str) -> str:
    """What requests call a model: its hub id or reference name, or the name of its folder."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def fingerprint(model: str, plugs: Sequence[str]) -> str:
    """Changes when an answer may: another version of Tessera, another model, other parts."""
    import tessera

    return "fp_" + hashlib.sha256("\0".join([tessera.__version__, model, *plugs]).encode()).hexdigest()[:10]


class ServingEngine:
    """Answers requests one by one; called by one thread only.

    One question is asked as `tessera ask` asks it. Conversations, system messages and stop strings go through the chat template
    of the full conversation; for one question both give the same.
    """

    def __init__(self, session: Session, model: str, name: str, limits: Limits, fingerprint: str) -> None:
        self.session, self.name, self.limits, self.fingerprint = session, name, limits, fingerprint
        self._model = model
        self._shown: bytes | None = None
        self._talking: HostGenerator | None = None

    def settings(self, allowed: Allowed, token: str | None) -> Settings:
        """What the application needs to know."""
        from tessera.serving.app import Settings

        return Settings(model=self.name, fingerprint=self.fingerprint, limits=self.limits, allowed=allowed, token=token)

    def __call__(
        self, request: ChatRequest, images: Sequence[str | bytes], on_text: Callable[[str], object], check: Callable[[], None]
    ) -> Completion:
        """See `tessera.serving.worker.Answerer`."""
        try:
            return self._answer(request, images, on_text, check)
        except UserError as error:  # where the model lies is nobody's business
            raise invalid(str(error).replace(self._model, self.name), "messages") from error

    def _answer(
        self, request: ChatRequest, images: Sequence[str | bytes], on_text: Callable[[str], object], check: Callable[[], None]
    ) -> Completion:
        from tessera.generation.sampling import Sampling

        sampling = Sampling(temperature=request.temperature, top_p=request.top_p, seed=request.seed)

        def piece(text: str) -> None:
            check()
            on_text(text)

        if len(request.messages) > 1 or request.stop:
            return self._converse(request, self._open(request, images), sampling, piece)
        self._show(request, images)
        said = self.session.ask(request.messages[0].text, request.tokens, piece, sampling)
        return Completion(said.text, "stop" if said.finished else "length", said.prompt_tokens, said.tokens)

    def _converse(
        self, request: ChatRequest, images: Sequence[Image.Image], sampling: Sampling, piece: Callable[[str], None]
    ) -> Completion:
        from jinja2 import TemplateError

        if self._talking is None:
            from tessera.generation.host_generate import HostGenerator

            self._talking = HostGenerator(self.session.model, self.session.processor, name=self.name)
        messages = [self._templated(place, message) for place, message in enumerate(request.messages)]
        try:
            stream = self._talking.stream_messages(messages, images, request.tokens, sampling, request.stop)
        except TemplateError as error:  # what the model's own template refuses: roles, their order
            raise invalid(f"{self.name} cannot take these messages: {error}", "messages") from None
        for text in stream:
            piece(text)
        answer = stream.answer
        assert answer is not None
        return Completion(answer.text, "stop" if answer.finished else "length", stream.prompt_tokens, len(answer.tokens))

    def _templated(self, place: int, message: Message) -> dict[str, Any]:
        """A message as chat templates of transformers read it. Raises `ApiError` for text that stands for an image."""
        mark = getattr(self.session.processor, "image_token", None)
        if isinstance(mark, str) and mark and mark in message.text:
            raise invalid(f"The text holds {mark}, which stands for an image: leave it out.", f"messages[{place}].content")
        content: list[dict[str, str]] = [{"type": "image"} for _ in message.images]
        return {"role": message.role, "content": [*content, {"type": "text", "text": message.text}]}

    def _show(self, request: ChatRequest, images: Sequence[str | bytes]) -> None:
        """Images that the last request has shown too are not read again."""
        digest = _digest(images)
        if digest != self._shown:
            self._shown = None
            self.session.show(self._open(request, images))
            self._shown = digest

    def _open(self, request: ChatRequest, images: Sequence[str | bytes]) -> list[Image.Image]:
        opened = []
        for part, source in zip(request.images, images, strict=True):
            try:
                opened.append(open_image(source, max_pixels=self.limits.pixels, max_bytes=self.limits.image_bytes))
            except UserError as error:
                raise invalid(str(error), part.param, "invalid_image") from None
        return opened


def _digest(images: Sequence[str | bytes]) -> bytes:
    digest = hashlib.sha256()
    for image in images:
        data = image.encode("utf-8", "surrogatepass") if isinstance(image, str) else image
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
