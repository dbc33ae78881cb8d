"""Markdown that shows a name as it is, whatever characters it holds."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ptft_recipes.errors import one_line

LIMIT = 200  # characters of a name
# What begins markup; an underscore does so only at the edge of a word.
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape(text: Any) -> str:
    r"""Return text as Markdown that shows it unchanged, on one line, in a table or outside.

    >>> escape("a|b <script>`x`\n_y_ macro_f1")
    'a\\|b &lt;script&gt;\\`x\\` \\_y\\_ macro_f1'
    """
    return MARKUP.sub(r"\\\g<0>", one_line(text, LIMIT)).translate(ENTITIES)


def code(text: Any) -> str:
    """Return text as a span of code, on one line.

    >>> code("org/base"), code("a`b")
    ('`org/base`', '``a`b``')
    """
    line = one_line(text, LIMIT) or " "
    ticks = "`" * (1 + _longest_run(line))
    space = " " * (line.startswith("`") or line.endswith("`"))
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    """Return a block of code, whose fence is longer than any that the text holds."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a table of cells that are Markdown already.

    >>> print(table(["label", "rows"], [[code("a|b"), 3]]))
    | label | rows |
    |---|---|
    | `a\|b` | 3 |
    """
    # Also within a span of code a bar would end the cell.
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", str(cell)) for cell in row] for row in [headings, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def rounded(value: float) -> str:
    """Return a number with about three digits that say something.

    >>> [rounded(value) for value in (0.7213, 0.0013521, 57.9476, 42854.97, 0.0)]
    ['0.721', '0.00135', '57.9', '42,855', '0.000']
    """
    size = abs(value)
    if 0 < size < 0.01:
        return f"{value:.3g}"
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 3}f}"
