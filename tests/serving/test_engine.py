"""Real models behind the server: every answer is that of `tessera ask`, however it is asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image
from tests.hosts.tiny import build, save_llava
from tests.serving.running import client, data_url, post, running, user

from tessera.cli import main
from tessera.models import reference
from tessera.serving.engine import ServingEngine, fingerprint, open_engine, public_name
from tessera.serving.fetch import Allowed
from tessera.serving.limits import Limits
from tessera.world import World

Captured = pytest.CaptureFixture[str]
NEW = 9
LIMITS = Limits(tokens=40, pixels=20_000, images=4, image_bytes=100_000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A composed model, saved."""
    model, processor = build()
    return str(reference.save(model, processor, tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float32))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock LLaVA of transformers, saved."""
    return str(save_llava(tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture(scope="module", params=["tiny", "llava"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """(folder of a model, port of its server)."""
    folder: str = request.getfixturevalue(request.param)
    with open_engine(folder, (), "", LIMITS) as engine:
        assert engine.name == request.param
        with running(engine, engine.settings(Allowed(), None)) as port:
            yield folder, port


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        World(split="test")[index + 3].images()[0].save(path)
    return paths


def told(model: str, question: str, paths: list[Path], capsys: Captured, new: int = NEW) -> dict[str, Any]:
    """What `tessera ask --json` says."""
    capsys.readouterr()
    assert main.run(["ask", *map(str, paths), question, "--model", model, "--max-new-tokens", str(new), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def urls(paths: list[Path]) -> list[str]:
    return [data_url(Image.open(path)) for path in paths]


def test_answers_are_those_of_ask(served: tuple[str, int], pictures: list[Path], capsys: Captured) -> None:
    folder, port = served
    name = public_name(folder)
    for question, paths in (("Is there a dog?", pictures[:1]), ("Where is it?", pictures[:1]), ("dog", pictures[1:2])):
        wanted = told(folder, question, paths, capsys)
        messages: Any = [user(question, *urls(paths))]
        answer = client(port).chat.completions.create(model=name, messages=messages, max_tokens=NEW)
        assert answer.choices[0].message.content == wanted["answer"] != ""
        assert answer.choices[0].finish_reason == ("stop" if wanted["finished"] else "length")
        assert answer.usage is not None
        assert answer.usage.completion_tokens == wanted["tokens"]
        assert answer.usage.prompt_tokens > 4
        options: Any = {"stream_options": {"include_usage": True}}
        stream = client(port).chat.completions.create(model=name, messages=messages, max_tokens=NEW, stream=True, **options)
        chunks = list(stream)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == wanted["answer"]
        assert len([piece for piece in pieces if piece]) > 1
        assert chunks[-1].usage == answer.usage


def test_several_images(tiny: str, pictures: list[Path], capsys: Captured) -> None:
    with open_engine(tiny, (), "m", LIMITS) as engine, running(engine, engine.settings(Allowed(), None)) as port:
        wanted = [told(tiny, "dog", paths, capsys)["answer"] for paths in (pictures[:2], pictures[1::-1])]
        messages: list[Any] = [user("dog", *urls(paths)) for paths in (pictures[:2], pictures[1::-1])]
        ask = client(port).chat.completions.create
        found = [ask(model="m", messages=[message], max_tokens=NEW).choices[0].message.content for message in messages]
        assert found == wanted
        assert wanted[0] != wanted[1]
        with pytest.raises(openai.BadRequestError, match="4 images were given; this model takes at most 3"):
            ask(model="m", messages=[user("dog", *urls([pictures[0]] * 4))])  # type: ignore[list-item]


def test_no_image_at_all(served: tuple[str, int]) -> None:
    folder, port = served
    ask = client(port).chat.completions.create
    answer = ask(model=public_name(folder), messages=[{"role": "user", "content": "dog"}], max_tokens=NEW)
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= NEW


def test_a_conversation_is_what_the_chat_template_makes_of_it(served: tuple[str, int], pictures: list[Path]) -> None:
    folder, port = served
    model, processor = reference.load(folder)
    turns: Any = [user("Is there a dog?", *urls(pictures[:1])), {"role": "assistant", "content": "no"}, user("cat")]
    plain = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "cat"}]},
    ]
    text = processor.apply_chat_template(plain, add_generation_prompt=True)
    inputs = processor(images=[Image.open(pictures[0])], text=[text], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = client(port).chat.completions.create(model=public_name(folder), messages=turns, max_tokens=NEW)
    assert answer.choices[0].message.content == processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_a_system_message_that_the_template_does_not_know_is_refused(tiny: str) -> None:
    with open_engine(tiny, (), "m", LIMITS) as engine, running(engine, engine.settings(Allowed(), None)) as port:
        status, found = post(port, {"model": "m", "messages": [{"role": "system", "content": "x"}, user("dog")]})
    assert status == 400
    assert "roles are 'user' and 'assistant', not 'system'" in found["error"]["message"]


def test_a_stop_string_ends_the_answer_before_it(served: tuple[str, int], pictures: list[Path]) -> None:
    folder, port = served
    ask = client(port).chat.completions.create
    messages: Any = [user("Is there a dog?", *urls(pictures[:1]))]
    whole = ask(model=public_name(folder), messages=messages, max_tokens=NEW)
    words = str(whole.choices[0].message.content).split(" ")
    assert len(words) > 3
    for stream in (False, True):
        found: Any = ask(model=public_name(folder), messages=messages, max_tokens=NEW, stop=[words[2]], stream=stream)
        if stream:
            chunks = list(found)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            text, finish = found.choices[0].message.content, found.choices[0].finish_reason
            assert found.usage.completion_tokens < whole.usage.completion_tokens  # type: ignore[union-attr]
        assert (text.strip(), finish) == (str(whole.choices[0].message.content).partition(words[2])[0].strip(), "stop")


def test_drawing_is_repeatable_with_a_seed(served: tuple[str, int]) -> None:
    folder, port = served

    def ask(seed: int, **options: Any) -> str | None:
        messages: Any = [user("dog")]
        made = client(port).chat.completions.create(
            model=public_name(folder), messages=messages, max_tokens=20, temperature=1.5, seed=seed, **options
        )
        return made.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1
    assert ask(3, stop=["never said"]) == ask(3)
    assert ask(1, top_p=0) == ask(2, top_p=0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "is not an image"),
        ("data:image/png;base64", "has no comma"),
        ("data:,", "empty"),
        ("http://127.0.0.1/a.png", "are not fetched by this server"),
        ("file:///etc/hostname", "are not fetched by this server"),
        ("LARGE", "300 x 100 pixels"),
        ("LONG", "limit of 100,000 bytes"),
    ],
)
def test_images_that_are_none(served: tuple[str, int], url: str, says: str) -> None:
    folder, port = served
    if url == "LARGE":
        url = data_url(Image.new("RGB", (300, 100)))
    elif url == "LONG":
        url = f"data:image/png;base64,{base64.b64encode(bytes(150_000)).decode()}"
    status, found = post(port, {"model": public_name(folder), "messages": [user("dog", url)]})
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    assert found["error"]["param"] == "messages[0].content[0].image_url.url"
    assert says in found["error"]["message"]


@pytest.mark.parametrize("text", ["", "  ", "What is <image>?", "dog " * 200])
def test_questions_that_are_none(served: tuple[str, int], text: str) -> None:
    folder, port = served
    for messages in ([user(text)], [user("dog"), {"role": "assistant", "content": "no"}, user(text)]):
        if not text.strip() and len(messages) > 1:
            continue  # an empty turn is the template's business
        status, found = post(port, {"model": public_name(folder), "messages": messages})
        assert (status, found["error"]["type"]) == (400, "invalid_request_error")
        assert folder not in json.dumps(found)


def test_the_same_images_are_read_once(tiny: str, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    with open_engine(tiny, (), "m", LIMITS) as engine, running(engine, engine.settings(Allowed(), None)) as port:
        show = engine.session.show
        monkeypatch.setattr(engine.session, "show", lambda images: (shown.append(len(images)), show(images)))
        for paths in (pictures[:1], pictures[:1], pictures[:2], [], [], pictures[:1]):
            assert post(port, {"model": "m", "messages": [user("dog", *urls(paths))], "max_tokens": 2})[0] == 200
        bad = {"model": "m", "messages": [user("dog", "data:,x")]}
        assert post(port, bad)[0] == 400
        assert post(port, {"model": "m", "messages": [user("dog", *urls(pictures[:1]))], "max_tokens": 2})[0] == 200
    assert shown == [1, 2, 0, 1, 1]


def test_the_fingerprint_tells_models_and_parts_apart() -> None:
    found = {fingerprint("a", ()), fingerprint("b", ()), fingerprint("a", ("x",)), fingerprint("a", ("x", "y"))}
    assert len(found) == 4
    assert fingerprint("a", ("x",)) == fingerprint("a", ["x"])


def test_parts_are_taken_out_at_the_end(tiny: str) -> None:
    closed: list[ServingEngine] = []
    with open_engine(tiny, (), "m", LIMITS) as engine:
        close = engine.session.close
        engine.session.close = lambda: (closed.append(engine), close())[1]  # type: ignore[method-assign, func-returns-value]
    assert closed == [engine]


def test_plugged_parts_serve_what_ask_says_with_them(llava: str, pictures: list[Path], capsys: Captured) -> None:
    from tessera.plugging import parse_plugs

    text = "random:keep=0.5,seed=3"
    parts = parse_plugs([text])
    with open_engine(llava, parts, "m", LIMITS, [text]) as engine, running(engine, engine.settings(Allowed(), None)) as port:
        for paths in (pictures[:1], pictures[:1], pictures[1:2]):
            capsys.readouterr()
            options = ["--model", llava, "--max-new-tokens", str(NEW), "--plug", text, "--json"]
            assert main.run(["ask", str(paths[0]), "Is there a dog?", *options]) == 0
            wanted = json.loads(capsys.readouterr().out)
            status, found = post(port, {"model": "m", "messages": [user("Is there a dog?", *urls(paths))], "max_tokens": NEW})
            assert status == 200
            assert found["choices"][0]["message"]["content"] == wanted["answer"]
            assert found["usage"]["completion_tokens"] == wanted["tokens"]
        assert found["system_fingerprint"] != fingerprint(llava, ())
