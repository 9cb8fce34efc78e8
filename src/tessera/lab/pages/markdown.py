"""Docstrings and notes as HTML, through markdown-it: what a file or a person writes becomes markup only where it is listed here.

Raw HTML, images and headings are off, so that a page loads nothing from elsewhere and keeps its own outline. Addresses and arXiv
numbers become links.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

RULES = ("list", "code", "fence", "table", "backticks", "emphasis", "link", "autolink", "entity", "newline")
"""Beside plain paragraphs. No escapes: a backslash in a docstring is one."""
_LINK = re.compile(r"arXiv:\s?(?P<arxiv>\d{4}\.\d{4,5})|(?P<url>https?://[^\s<>\"'`]+[^\s<>\"'`.,;:)])")
_PRODUCT = re.compile(r"(?<=\w)\*(?=\w)")
_STAR = "\ue000"
"""Stands for the star of a product while Markdown is read."""


def prose(text: str) -> Markup:
    """Paragraphs, lists, tables and code."""
    return _html(_parser().render(_kept(text)))


def inline(text: str) -> Markup:
    """One line: `code`, *emphasis* and links."""
    return _html(_parser().renderInline(_kept(" ".join(text.split()))))


def link(url: str, words: str, css: str = "") -> Markup:
    """A link to another site, or the words alone where the address is none of the web."""
    if not _web(url):
        return Markup("{}").format(words)
    style = Markup(' class="{}"').format(css) if css else ""
    return Markup('<a{} href="{}" rel="noreferrer">{}</a>').format(style, url, words)


def _kept(text: str) -> str:
    """`a*b*c` is a product and no emphasis, whatever Markdown says."""
    return _PRODUCT.sub(_STAR, text.replace(_STAR, ""))


def _html(made: str) -> Markup:
    return Markup(made.replace(_STAR, "*").strip())  # markdown-it has escaped what it was given


def _web(url: str) -> bool:
    return url.startswith(("https://", "http://"))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    made = MarkdownIt("zero", {"html": False, "linkify": False, "typographer": False}).enable(list(RULES))
    made.validateLink = _web  # type: ignore[method-assign]
    made.block.ruler.at("list", _list, {"alt": ["paragraph"]})
    made.core.ruler.push("addresses", _addresses)
    made.add_render_rule("link_open", _link_open)
    made.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    made.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return made


def _list(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """A list begins a paragraph: a wrapped line that happens to begin with "- 1" is none."""
    from markdown_it.rules_block import list_block

    if silent and state.parentType == "paragraph" and state.level == 0:
        return False
    return list_block(state, first, last, silent)


def _link_open(self: Any, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    tokens[place].attrSet("rel", "noreferrer")
    return str(self.renderToken(tokens, place, options, env))


def _addresses(state: StateCore) -> None:
    """Turns addresses and arXiv numbers in running text into links."""
    for block in state.tokens:
        if block.children is None:
            continue
        found, inside = [], 0
        for token in block.children:
            inside += token.nesting if token.type in ("link_open", "link_close") else 0
            found += _linked(token) if token.type == "text" and not inside else [token]
        block.children = found


def _linked(token: Token) -> list[Token]:
    from markdown_it.token import Token

    def text(content: str) -> Token:
        return Token("text", "", 0, content=content, level=token.level)

    found, end = [], 0
    for match in _LINK.finditer(token.content):
        url = f"https://arxiv.org/abs/{match['arxiv']}" if match["arxiv"] else match["url"]
        found += [text(token.content[end : match.start()]), Token("link_open", "a", 1, attrs={"href": url})]
        found += [text(match[0]), Token("link_close", "a", -1)]
        end = match.end()
    return [*found, text(token.content[end:])] if found else [token]
