"""What a model wrote, on its card: examples beside their references, and how the scores were computed."""

import json
from itertools import islice
from pathlib import Path

from ptft_recipes.errors import one_line
from ptft_recipes.markdown import code, escape, table

SHOWN = 8  # texts
LONGEST = 160  # characters of each


def written_texts(path: Path, signatures: dict[str, str]) -> str:
    """Return a table of test texts, spread evenly over the split and not chosen, as Markdown.

    Args:
        path: `predictions/test.jsonl`.
        signatures: Of the scores.
    """
    with path.open(encoding="utf-8") as file:
        rows = sum(1 for _ in file)
        file.seek(0)
        lines = [json.loads(line) for line in islice(file, 0, None, -(-rows // SHOWN))]
    cells = ([escape(one_line(line[side], LONGEST)) for side in ("source", "gold", "predicted")] for line in lines)
    scores = "\n".join(f"- {escape(name)}: {code(signature)}" for name, signature in signatures.items())
    every = f"Test texts at equal distances, not chosen:\n\n{table(['source', 'reference', 'written'], cells)}"
    return f"{every}\n\nHow the scores were computed:\n\n{scores}"
