"""What a part's file says of itself, read without importing it: its docstring, catalogue number and options.

A list of hundreds of parts then costs no import of torch. A part whose file cannot be found or read that way (a third party's)
is imported instead.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera import registry
from tessera.lab.claims import part_module

LABELS = {
    "source": "sources",
    "sources": "sources",
    "paper": "sources",
    "papers": "sources",
    "deviation": "deviations",
    "deviations": "deviations",
    "shape": "shapes",
    "shapes": "shapes",
    "shape legend": "shapes",
    "legend": "shapes",
}
"""The first words of a paragraph of a part's docstring, up to a colon -> what the paragraph is about."""


@dataclass(frozen=True, slots=True)
class Option:
    """A field of the part's `Config`, as written: `default` is empty if a value must be given."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A part, as its file describes it.

    path     the file, or the folder of a part that is a package
    options  the settings; None if the file alone does not tell them (a `Config` that is inherited)
    """

    name: str
    socket: str
    catalog: int | None
    doc: str
    path: Path
    options: tuple[Option, ...] | None = None

    @property
    def title(self) -> str:
        """The docstring's first sentence, without its full stop."""
        first = " ".join(paragraphs(self.doc)[:1]).replace("\n", " ")
        return re.split(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bal)\.(?=\s|$)", first, maxsplit=1)[0].rstrip(":")

    def section(self, name: str) -> str:
        """The paragraphs about "what", "sources", "deviations" or "shapes", without their labels."""
        return sections(self.doc).get(name, "")

    def settings(self) -> tuple[Option, ...]:
        """The options; imports the part if its file alone does not tell them."""
        if self.options is not None:
            return self.options
        return _options(registry.get(self.socket, self.name).config)


def read(socket: str, name: str) -> Source:
    """The part `name` of `socket` as its file describes it. Raises what the import of a part raises that must be imported."""
    path = _file(socket, name)
    if path is not None and (found := _read(socket, name, path)) is not None:
        return found
    part = registry.get(socket, name)
    module = part_module(part)
    path = Path(str(module.__file__))
    return Source(
        name=name,
        socket=socket,
        catalog=part.catalog,
        doc=(module.__doc__ or "").strip(),
        path=path.parent if path.name == "__init__.py" else path,
        options=_options(part.config),
    )


def paragraphs(text: str) -> list[str]:
    """What empty lines separate."""
    return [p.strip("\n") for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]


def sections(doc: str) -> dict[str, str]:
    """The docstring's paragraphs by what they are about; a paragraph without a label belongs to "what" or to the label before it
    if it is a list."""
    found: dict[str, list[str]] = {}
    about = "what"
    for paragraph in paragraphs(doc):
        label, colon, rest = paragraph.partition(":")
        known = LABELS.get(label.strip().strip("*").lower()) if colon else None
        if known is not None:
            about, paragraph = known, rest.strip()
        elif not re.match(r"\s*(?:[-*] |\d+\. |    )", paragraph):
            about = "what"
        if paragraph:
            found.setdefault(about, []).append(paragraph)
    return {name: "\n\n".join(texts) for name, texts in found.items()}


def _file(socket: str, name: str) -> Path | None:
    """The file of a built-in part, without importing it; None if the part is none."""
    try:
        spec = importlib.util.find_spec(f"tessera.parts.{socket}.{name}")
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _read(socket: str, name: str, path: Path) -> Source | None:
    """None if the file does not say the part's number in so many words, or is no Python."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in _calls(node.decorator_list, "part"):
            try:
                words = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                own = ast.literal_eval(call.args[0]) == name and words.get("socket") == socket
            except (ValueError, IndexError):
                return None
            if own:
                return Source(
                    name=name,
                    socket=socket,
                    catalog=words.get("catalog"),
                    doc=(ast.get_docstring(tree) or "").strip(),
                    path=path.parent if path.name == "__init__.py" else path,
                    options=_fields(node),
                )
    return None


def _calls(decorators: Sequence[ast.expr], name: str) -> Iterator[ast.Call]:
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == name:
            yield decorator


def _fields(node: ast.ClassDef | ast.FunctionDef) -> tuple[Option, ...] | None:
    """The annotated fields of the nested class `Config`; None if there is no such class or if it inherits some."""
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Config":
            fields = [f for f in inner.body if isinstance(f, ast.AnnAssign)]
            return None if inner.bases else tuple(_field(f) for f in fields)
    return () if isinstance(node, ast.FunctionDef) else None


def _field(field: ast.AnnAssign) -> Option:
    default = "" if field.value is None else ast.unparse(field.value)
    return Option(ast.unparse(field.target), ast.unparse(field.annotation), default)


def _options(config: type | None) -> tuple[Option, ...]:
    if config is None or not dataclasses.is_dataclass(config):
        return ()
    found = []
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else repr(field.default)
        if field.default_factory is not dataclasses.MISSING:
            default = repr(field.default_factory())
        kind = str(field.type).replace("typing.", "")
        if isinstance(field.type, type) and typing.get_origin(field.type) is None:
            kind = field.type.__name__
        found.append(Option(field.name, kind, default))
    return tuple(found)
