"""`tessera ask` and `tessera caption`: a model answers questions about images, or describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tessera.cli.plugging import PlugOption
from tessera.cli.talk import NANO, STDIN, AskedImages, Talk, open_images, parse_world
from tessera.console import JsonOption, to_json
from tessera.errors import UserError, unknown
from tessera.plugging import parse_plugs

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_EXAMPLE = 'for example: tessera ask picture.png "Is there a dog?"'

ModelOption = Annotated[str, typer.Option(help="nano, a model folder, or the name of a model on the Hugging Face hub.")]
WorldOption = Annotated[str, typer.Option(help="A scene of the built-in world in place of images: SPLIT:INDEX[:KIND].")]


def ask(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE... QUESTION", help="Image files (- is stdin), the question last.")
    ] = None,
    model: ModelOption = NANO,
    world: WorldOption = "",
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Go on asking about the same images.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write a picture of the answer; a box is drawn in.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 64,
    plug: PlugOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model about images, or about a scene of the world, whose true answers are shown as well."""
    if interactive and as_json:
        raise UserError("--interactive is for people and --json for programs; give one of them.")
    if save is not None:
        from tessera.generation.picture import picture_format

        picture_format(save)
    paths, question = split_arguments(arguments or [], bool(world), interactive)
    place = parse_world(world) if world else None
    images = open_images(paths)
    talk = Talk(model, max_new_tokens, as_json, save, parse_plugs(plug))
    talk.show(AskedImages(paths, images) if place is None else talk.scene(*place))
    if interactive:
        talk.loop(question)
        return
    if question is None:
        if save is not None:
            raise UserError("--save draws one answer: give a question.")
        answers = {"answers": talk.examine()}
    else:
        answers = talk.say(question)
    if as_json:
        print(to_json({**answers, "model": model, "images": talk.subject.names, "load_seconds": talk.load_seconds}))


def caption(
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files; - is stdin.")] = None,
    style: Annotated[str, typer.Option(help="short, dense or child.")] = "short",
    model: ModelOption = NANO,
    world: WorldOption = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a description at most.", min=1)] = 192,
    as_json: JsonOption = False,
) -> None:
    """Describe images, each by itself."""
    from tessera.world.vocabulary import CAPTION_PROMPTS

    if style not in CAPTION_PROMPTS:
        raise unknown("style of caption", style, CAPTION_PROMPTS)
    paths = images or []
    if bool(paths) == bool(world):
        raise UserError("give image files or --world SPLIT:INDEX, for example: tessera caption picture.png --style dense")
    place = parse_world(world) if world else None
    opened = open_images(paths)
    talk = Talk(model, max_new_tokens, as_json)
    subjects = [AskedImages([path], [image]) for path, image in zip(paths, opened, strict=True)]
    captions = []
    for subject in subjects if place is None else [talk.scene(*place)]:
        talk.show(subject)
        if not as_json and len(subjects) > 1:
            print(f"{subject.names[0]}: ", end="", flush=True)
        said = talk.say(CAPTION_PROMPTS[style])
        truth = None if subject.sample is None else subject.sample.captions()[style]
        if not as_json and truth is not None:
            print(f"true: {truth}")
        facts = {key: said[key] for key in ("seconds", "tokens", "probability", "finished")}
        captions.append({"image": subject.names[0], "caption": said["answer"], "truth": truth, **facts})
    if as_json:
        print(to_json({"captions": captions, "model": model, "style": style, "load_seconds": talk.load_seconds}))


def split_arguments(arguments: list[str], world: bool, interactive: bool) -> tuple[list[str], str | None]:
    """(image files, question or None): the last argument is the question, which a world scene and a prompt can do without.

    Raises `UserError` when the question, or every image, is missing.
    """
    *paths, last = arguments or [""]
    if world:
        if paths:
            raise UserError(f"--world stands in place of images: leave out {', '.join(paths)}.")
        if not arguments:
            return [], None
        _refuse_empty(last)
        return [], last
    if not arguments:
        raise UserError(f"give an image and a question, {_EXAMPLE}")
    if _is_image(last):
        if interactive:
            _refuse_stdin(arguments)
            return arguments, None
        raise UserError(f"the question is missing: {last} is an image. Put the question last, {_EXAMPLE}")
    _refuse_empty(last)
    if not paths:
        raise UserError(f"the image is missing: there is only the question {last!r}. Give a file, {_EXAMPLE}")
    if interactive:
        _refuse_stdin(paths)
    return paths, last


def _is_image(argument: str) -> bool:
    """Whether an argument is meant as an image and not as a question."""
    if argument == STDIN or argument[:5].lower() == "data:":
        return True
    try:
        return Path(argument).is_file() or (" " not in argument and Path(argument).suffix.lower() in _SUFFIXES)
    except (OSError, ValueError):  # too long for a file's name, or no name at all
        return False


def _refuse_empty(question: str) -> None:
    if not question.strip():
        raise UserError(f"the question is empty; ask something, {_EXAMPLE}")


def _refuse_stdin(paths: list[str]) -> None:
    if STDIN in paths:
        raise UserError("with --interactive stdin is where the questions come from; give the image as a file.")
