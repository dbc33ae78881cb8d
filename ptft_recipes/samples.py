"""What a model wrote, for people: examples beside their references. Texts of the data stay on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptft_recipes.errors import one_line
from ptft_recipes.markdown import escape, table
from ptft_recipes.reporting import write_text

SHOWN = 20  # texts
LONGEST = 300  # characters of each


def write_samples(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a table of test texts at equal distances, not chosen, as Markdown; it is never pushed.

    Args:
        path: Of the file.
        lines: Of `predictions/test.jsonl`, with source, gold and predicted text.
    """
    shown = lines[:: max(1, -(-len(lines) // SHOWN))]
    cells = (
        [escape(one_line(line[side] or "", LONGEST)) for side in ("source", "gold", "predicted")] for line in shown
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = table(["source", "reference", "written"], cells)
    write_text(path, f"{len(shown)} of {len(lines):,} test texts, at equal distances, not chosen:\n\n{rows}\n")
