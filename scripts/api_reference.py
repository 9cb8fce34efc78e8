"""The API reference as far as it needs no mkdocs: which modules and members are public, their pages, docstrings as Markdown.

Everything is read from the source with `ast`; nothing of Tessera is imported. `scripts/mkdocs_hooks.py` hands it to mkdocs.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
FOLDER = "reference"
"""Where the pages are, below the site's root."""
ADDED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files beside docs/ that become pages of the site."""
DATA = "tessera.claims."
"""Modules that are data: `tessera show` and `tessera catalog --html` show them with what was measured."""


@dataclass(frozen=True, slots=True)
class Module:
    """A public module. members: `Session`, `Session.ask`, `SILENT` -> docstring, "" without one; `kinds`: class, function or
    constant. Only public ones, in the order of the file."""

    name: str
    path: Path
    doc: str
    members: Mapping[str, str]
    kinds: Mapping[str, str]

    @property
    def page(self) -> str:
        """Its page's file, relative to the site's root."""
        return f"{FOLDER}/{self.name}.md"

    @property
    def file(self) -> str:
        """Its file, relative to the repository."""
        return self.path.relative_to(ROOT).as_posix()


@cache
def modules() -> dict[str, Module]:
    """Dotted name -> module, of all public modules."""
    found = {}
    for path in sorted((SRC / "tessera").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(parts)
        if not any(part.startswith("_") for part in parts) and not name.startswith(DATA):
            found[name] = read(name, path)
    return found


def read(name: str, path: Path) -> Module:
    """A module from its file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    members, kinds = {}, {}
    for member, kind, doc in _members(tree.body):
        members[member], kinds[member] = doc, kind
    return Module(name, path, ast.get_docstring(tree) or "", members, kinds)


def _members(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(name, kind, docstring) of what a module or class defines. A constant's docstring is the text that follows it."""
    for place, node in enumerate(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield f"{prefix}{node.name}", kind, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from _members(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            after = body[place + 1] if place + 1 < len(body) else None
            doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            for target in targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name) and not name.id.startswith("_"):
                        yield f"{prefix}{name.id}", "constant", str(doc)


def undocumented() -> list[str]:
    """Public modules, classes and functions without a docstring. A method without one overrides another; it is not shown."""
    found = []
    for name, module in modules().items():
        found += [] if module.doc else [name]
        wanted = (m for m, kind in module.kinds.items() if kind == "class" or (kind == "function" and "." not in m))
        found += [f"{name}.{member}" for member in wanted if not module.members[member]]
    return found


@cache
def known() -> frozenset[str]:
    """Dotted names that a page of the reference has a place for: modules, and members with a docstring."""
    members = (f"{m.name}.{member}" for m in modules().values() for member, doc in m.members.items() if doc)
    return frozenset([*modules(), *members])


# Pages


def page(module: Module) -> str:
    """The Markdown of a module's page; a package's also lists what is in it."""
    text = f"::: {module.name}\n"
    inner = children(module.name)
    if inner:
        rows = [f"[`{child.name.removeprefix(module.name + '.')}`][{child.name}]\n:   {first(child.doc)}\n" for child in inner]
        text += "\n## Modules\n\n" + "\n".join(rows)
    return text


def children(name: str) -> list[Module]:
    """The modules and packages that stand directly in a package."""
    return [module for module in modules().values() if module.name.rpartition(".")[0] == name]


def first(doc: str) -> str:
    """The first sentence of a docstring as Markdown, on one line."""
    paragraph = " ".join(doc.partition("\n\n")[0].split())
    return markdown(re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0].rstrip(":"))


Nav = list[dict[str, "str | Nav"]]


def nav(name: str = "tessera") -> Nav:
    """The tree of pages below a package, as `nav` of mkdocs takes it; a package's own page is called "Overview"."""
    found: Nav = [{"Overview": modules()[name].page}]
    for module in children(name):
        title = module.name.rpartition(".")[2]
        found.append({title: nav(module.name) if children(module.name) else module.page})
    return found


# Links

_LINK = re.compile(r"(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def links(markdown: str) -> list[tuple[str, str]]:
    """(text, target) of the inline links and images of a document, those to other sites left out; code is passed over."""
    plain = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    plain = _CODE.sub(lambda m: "" if "](" in m[0] else m[0], plain)
    return [(m["text"], m["target"]) for m in _LINK.finditer(plain) if "://" not in m["target"]]


def symbol(text: str) -> str:
    """The name of code that a link's text is, "" if it is something else: "`Session.ask`" -> "Session.ask"."""
    found = re.fullmatch(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text)
    return found[1] if found else ""


def rewritten(markdown: str, source: str) -> str:
    """A document of the repository as a page of the site: links to code lead to the reference, those to files that the site does
    not have become plain text. source: the document's path in the repository."""

    def change(match: re.Match[str]) -> str:
        target, _, fragment = match["target"].partition("#")
        if "://" in target or not target:
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target)).replace(os.sep, "/")
        if path in ADDED or path.startswith("docs/"):
            there = ADDED.get(path) or path.removeprefix("docs/")
            return f"{match['bang']}[{match['text']}]({there}{'#' + fragment if fragment else ''})"
        module = next((m for m in modules().values() if m.file == path), None)
        if module is None:
            return match["text"]
        full = f"{module.name}.{symbol(match['text'])}"
        return f"[{match['text']}][{full if full in known() else module.name}]"

    return _LINK.sub(change, markdown)


# Docstrings

_ALIGNED = re.compile(r"(?P<term>\S(?:.{0,44}?\S)?) {2,}(?P<text>\S.*)")
_ITEM = re.compile(r"(?:- |\d+\. )\S")
_CODE = re.compile(r"(`[^`]*`)")
_STARS = re.compile(r"(?<=\w)\*(?=\w)|\*(?=\*)|(?<=\*)\*|_(?=_)|(?<=_)_")
"""Of products and powers, and the underscores of names such as those of constructors."""


def markdown(doc: str) -> str:
    """A docstring as Markdown: aligned terms become a definition list, indented blocks stay code, names of the reference that are
    written in full become links, and < is no markup."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        lines += [*_block(block.splitlines()), ""]
    return "\n".join(lines).strip("\n")


def _block(lines: list[str]) -> Iterator[str]:
    """One paragraph of a docstring."""
    inside = False  # of a definition or list item, which indented lines go on
    before = ""
    for line in lines:
        item = _ITEM.match(line)
        aligned = None if item else _ALIGNED.fullmatch(line)
        if line.startswith("    ") and not inside:
            yield line
        elif line.startswith(" ") and inside:
            yield f"    {_prose(line.strip())}"
        elif aligned is not None:
            yield from [*([""] if before else []), _term(aligned["term"]), f":   {_prose(aligned['text'])}"]
            inside = True
        elif item is not None and (not before or inside):
            yield _prose(line)
            inside = True
        else:
            yield from [*([""] if inside else []), _prose(line)]
            inside = False
        before = line


def _term(text: str) -> str:
    return text if "`" in text else f"`{text}`"


def _prose(text: str) -> str:
    """A line of running text."""
    pieces = _CODE.split(text)
    for place, piece in enumerate(pieces):
        if place % 2:
            name = piece.strip("`")
            pieces[place] = f"[{piece}][{name}]" if name in known() else piece
        else:
            pieces[place] = _STARS.sub(r"\\\g<0>", piece.replace("<", "&lt;"))
    return "".join(pieces)
