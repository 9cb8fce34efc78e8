"""The pages' dots with intervals, and their words: text through Markdown, numbers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.lab.pages import markdown, plot, text
from tessera.lab.pages.plot import Axis, Dot


def drawn(dot: Dot, axis: Axis) -> tuple[float, float, float]:
    """(low, value, high) of the row's shapes."""
    made = plot.svg(dot, axis)
    low, high = re.search(r'whisk" d="M([\d.]+) 6H([\d.]+)', made).groups()  # type: ignore[union-attr]
    return float(low), float(re.search(r'dot" d="M([\d.]+) ', made)[1]), float(high)  # type: ignore[index]


numbers = st.floats(-1e9, 1e9, allow_subnormal=False).map(lambda x: round(x, 9))


@given(st.lists(st.tuples(numbers, numbers, numbers).map(sorted), min_size=1, max_size=5), st.booleans())
def test_whatever_is_drawn_lies_on_the_axis_in_its_order(rows: list[list[float]], zero: bool) -> None:
    dots = [Dot(name=str(k), low=low, value=value, high=high) for k, (low, value, high) in enumerate(rows)]
    made = plot.panel("x", dots, zero=zero)
    assert made is not None and made.axis.low < made.axis.high
    if not made.axis.logarithmic:
        slack = 1e-9 * max(abs(made.axis.low), abs(made.axis.high))
        assert all(made.axis.low - slack <= x <= made.axis.high + slack for row in rows for x in row)
        assert not zero or made.axis.low <= 0 <= made.axis.high
    for dot in dots:
        low, value, high = drawn(dot, made.axis)
        assert 0 <= low <= value <= high <= 100
    places = sorted((x, made.axis.at(x)) for row in rows for x in row)
    assert all(a[1] <= b[1] for a, b in pairwise(places))
    assert all(0 <= place <= 100 for _, place in made.ticks)


@given(st.lists(numbers, min_size=2, max_size=6).filter(lambda xs: max(xs) - min(xs) > 1e-6 * max(map(abs, xs))))
def test_places_are_proportional_to_values_and_use_the_width(values: list[float]) -> None:
    axis = plot.axis_of(values, zero=True)
    assert not axis.logarithmic and axis.zero is not None
    a, b = min([0.0, *values]), max([0.0, *values])
    assert axis.at(b) - axis.at(a) >= 45, "what is compared takes up half of the axis"
    middle = (a + b) / 2
    assert axis.at(middle) == pytest.approx((axis.at(a) + axis.at(b)) / 2, abs=1e-6)


@given(st.lists(st.floats(0, 1, allow_subnormal=False).map(lambda x: round(x, 6)), min_size=1, max_size=6))
def test_shares_stay_within_0_and_1(values: list[float]) -> None:
    axis = plot.axis_of(values)
    assert axis.logarithmic or 0 <= axis.low < axis.high <= 1


def test_numbers_far_apart_lie_on_whole_decades() -> None:
    axis = plot.axis_of([1e-7, 0.1])
    assert axis == Axis(1e-7, 0.1, True) and axis.zero is None and axis.at(1e-4) == pytest.approx(50)


def test_effects_of_very_different_size_do_not_share_an_axis() -> None:
    dots = [Dot(name=str(k), value=v) for k, v in enumerate((0.1, 0.2, 6.0, -5.0, 0.05))]
    assert [[d.value for d in group] for group in plot.alike(dots)] == [[0.1, 0.2, 0.05], [6.0, -5.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_drawn(value: float) -> None:
    assert plot.panel("x", [Dot(name="a", value=value)]) is None
    made = plot.panel("x", [Dot(name="a", value=value), Dot(name="b", value=1.0, low=math.nan, high=math.nan, mark=math.nan)])
    assert made is not None and [row.dot.name for row in made.rows] == ["b"]
    assert "nan" not in made.rows[0].svg and "whisk" not in made.rows[0].svg and "mark" not in made.rows[0].svg


# Words


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0.000"),
        (0.0414, "+0.041"),
        (-0.4, "−0.400"),
        (25.25, "+25.25"),
        (-1204, "−1,204"),
        (2e-5, "+2.0 × 10⁻⁵"),
        (math.inf, "+∞"),
    ],
)
def test_effects_have_a_sign(value: float, said: str) -> None:
    assert text.signed(value) == said


@pytest.mark.parametrize(("value", "said"), [(0.3, "0.3 s"), (41, "41 s"), (214, "3:34 min"), (4320, "1:12 h")])
def test_times_are_in_the_unit_that_fits(value: float, said: str) -> None:
    assert text.seconds(value) == said


def test_docstrings_become_paragraphs_lists_code_and_links() -> None:
    made = markdown.prose("One `x<y`.\n- 1 still.\n\n- a\n- b\n  more\n\nSee https://example.org/a?b=1&c=2.\n\n    code <1>")
    assert made == (
        "<p>One <code>x&lt;y</code>.\n- 1 still.</p>\n<ul>\n<li>a</li>\n<li>b\nmore</li>\n</ul>\n"
        '<p>See <a href="https://example.org/a?b=1&amp;c=2" rel="noreferrer">https://example.org/a?b=1&amp;c=2</a>.</p>\n'
        "<pre><code>code &lt;1&gt;\n</code></pre>"
    )


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "//example.org/x", "x.html"]
)
def test_links_lead_to_the_web_or_nowhere(address: str) -> None:
    for made in (markdown.prose(f"[x]({address}) <{address}>"), markdown.link(address, "x")):
        assert "<a" not in made, made


@pytest.mark.parametrize(
    "hostile", ["![x](https://a.b/c.png)", "<img src=x>", "# Title", "<!-- x", "[a]: https://b.c 'd'\n\n[a]"]
)
def test_text_loads_nothing_and_keeps_the_outline(hostile: str) -> None:
    made = markdown.prose(hostile)
    assert not re.search(r"<(?:img|h\d|!--)", made), made


def test_emphasis_is_words_between_stars_and_no_product() -> None:
    assert markdown.inline("*So* or *so it is*.") == "<em>So</em> or <em>so it is</em>."
    for plain in ("2 * x * y", "a*b*c", "* a*", "**kwargs and *args", r"a \ b \* c", "snake_case_name"):
        assert markdown.inline(plain) == plain
    assert markdown.inline("*<b>* `*code*` `a*b*c`") == "<em>&lt;b&gt;</em> <code>*code*</code> <code>a*b*c</code>"
