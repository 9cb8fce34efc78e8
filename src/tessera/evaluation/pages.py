"""Pages from jinja2 templates: whatever is no `Markup` is escaped, and a name that a template misspells raises."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

PACKAGE = "tessera.evaluation"
"""Its folder `templates` holds what every page has (frame.html), a page of results (page.html), the report and its pieces."""


def new_environment(package: str) -> Environment:
    """The templates of `package`, and behind them those of this one; for a caller that adds filters of its own."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, PACKAGE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(share=share, plain=plain)
    return made


@cache
def environment(package: str = PACKAGE) -> Environment:
    """As `new_environment`, made once."""
    return new_environment(package)


def piece(template: str, **context: Any) -> Markup:
    """A part of a page, escaped already."""
    from markupsafe import Markup

    return Markup(environment().get_template(template).render(**context))


def style(package: str = "", name: str = "") -> Markup:
    """The look of reports, followed by the style file `name` of `package` where one is named."""
    from markupsafe import Markup

    files = [(PACKAGE, "report.css"), *([(package, name)] if name else [])]
    return Markup("".join((resources.files(home) / file).read_text(encoding="utf-8") for home, file in files))


def today() -> str:
    """ "5 March 2026"."""
    return f"{datetime.now(UTC):%d %B %Y}".removeprefix("0")


def share(value: float) -> str:
    """ "62 %"."""
    return f"{100 * value:.0f} %"


def plain(value: Any, indent: int = 2) -> str:
    """JSON to read: non-ASCII text as it is, and whatever JSON does not know as text."""
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False, default=str)
