"""The nested form of SQuAD, an article with paragraphs with questions, as one row per question."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptft_recipes.errors import InputError


def is_nested(rows: list[dict[str, Any]]) -> bool:
    """Tell whether JSON holds articles of SQuAD, and not rows.

    >>> is_nested([{"title": "Normans", "paragraphs": []}])
    True
    """
    return bool(rows) and all("paragraphs" in row and "question" not in row for row in rows)


def parse_articles(articles: list[dict[str, Any]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the questions of articles, each with the context of its paragraph.

    Args:
        articles: What a file has under `data`.
        path: The file, for errors.

    Yields:
        The place in the file, and a row with `title`, `context`, and what the question has: `question`, `answers`, ...

    Raises:
        InputError: Something is not of this form; the message names the place.

    Source: Rajpurkar et al., SQuAD (2016) and SQuAD 2.0 (2018), the files that they published.
    """
    for i, article in enumerate(articles):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{path}[{i}]")):
            place = f"[{i}].paragraphs[{j}]"
            if not isinstance(paragraph, dict) or "context" not in paragraph:
                raise InputError(f"{path}{place}: no 'context'; a paragraph is {{'context': ..., 'qas': [...]}}")
            for k, question in enumerate(_list(paragraph, "qas", f"{path}{place}")):
                if not isinstance(question, dict) or "question" not in question:
                    raise InputError(f"{path}{place}.qas[{k}]: no 'question'")
                yield f"{place}.qas[{k}]", {"title": article.get("title"), "context": paragraph["context"]} | question


def _list(holder: dict[str, Any], name: str, place: str) -> list:
    value = holder.get(name)
    if not isinstance(value, list):
        raise InputError(f"{place}: {name!r} is {'missing' if value is None else type(value).__name__}, not a list")
    return value
