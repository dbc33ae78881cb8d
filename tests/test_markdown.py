"""What a name holds is shown, and never acts."""

import doctest

import pytest
from markdown_it import MarkdownIt

from ptft_recipes import markdown
from ptft_recipes.evaluation import format_score
from ptft_recipes.markdown import code, escape, fenced, rounded, table

NAMES = [
    "a|b",
    "a\\|b",
    "`x`",
    "``",
    "<b>x</b>",
    "*a* _b_ ~~c~~",
    "[x](y)",
    "![x](y)",
    "a_b_c",
    "&amp;",
    "\\",
    "$x$",
    "|",
]


def render(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def as_html(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_as_it_is(name):
    assert render(f"x {escape(name)} y") == f"<p>x {as_html(name)} y</p>\n"


@pytest.mark.parametrize("name", NAMES)
def test_text_is_shown_as_it_is_in_a_table(name):
    shown = render(table(["h", "k"], [[escape(name), "1"]]))
    assert f"<td>{as_html(name)}</td>\n<td>1</td>" in shown


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a\\|b"])
def test_code_is_shown_as_it_is_in_a_table(name):
    shown = render(table(["h", "k"], [[code(name), "1"]]))
    assert f"<td><code>{as_html(name)}</code></td>\n<td>1</td>" in shown


def test_a_line_break_is_a_space():
    assert escape("a\nb\r\nc\u2028d") == "a b c d"
    assert code("a\n\n# b") == "`a # b`"


def test_a_fence_is_longer_than_what_it_holds():
    assert "<h1>" not in render(fenced("```\n# no heading\n````", "yaml"))
    assert fenced("x: 1", "yaml") == "```yaml\nx: 1\n```"


def test_scores_have_three_digits_that_say_something():
    assert format_score({"value": 42854.97, "ci95": [42093.6, 43528.2]}, rounded) == "42,855 [42,094, 43,528]"
    assert format_score({"value": 0.00135, "ci95": [0.00128, 0.00144]}, rounded) == "0.00135 [0.00128, 0.00144]"
    assert format_score({"value": -0.5, "ci95": [None, None]}, rounded) == "-0.500"
    assert format_score({"value": None, "ci95": [None, None]}, rounded) == "undefined"
    assert rounded(-123.4) == "-123"


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(markdown).failed == 0
    assert doctest.testmod(markdown).attempted > 0
