"""Files with a word per line: CoNLL columns, and CoNLL-U.

A row has `tokens` and `tags`, and every column under a name of its own, so that another one can be asked for.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ptft_recipes.errors import InputError

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
DOCUMENT_START = "-DOCSTART-"


def parse_columns(lines: Iterable[str], path: str | Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Read sentences of a file with a word and its tags per line, and a blank line between sentences.

    Columns are divided by tabs when the first line has one, else by spaces. Lines that begin with `-DOCSTART-`
    are left out; there are no comments, because `#` is a word.

    Args:
        lines: Of the file.
        path: For messages.

    Yields:
        The place of a sentence's first line, and `tokens`, the first column; `tags`, the last one, if there is more
        than one; and each column by its number, from `0` on and from `-1` back.

    Raises:
        InputError: A line with another number of columns than the first one, or with an empty one.

    Source: Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task (2003), section 2.1.
    """
    separator, width = "", 0
    for start, sentence in _sentences(lines):
        cells = []
        for number, line in sentence:
            if line.startswith(DOCUMENT_START):
                continue
            line = line.strip(" \r\n")  # not of all white space: a word may be a no-break space
            if not width:
                separator = "\t" if "\t" in line else " +"
            row = re.split(separator, line)
            width = width or len(row)
            if len(row) != width:
                raise InputError(
                    f"{path}:{number}: {len(row)} columns where the first line has {width}; divide them by tabs, or "
                    "all by spaces, with a blank line between sentences"
                )
            if "" in row:
                raise InputError(f"{path}:{number}: column {row.index('')} is empty")
            cells.append(row)
        if cells:
            columns = [list(column) for column in zip(*cells, strict=True)]
            by_number = {str(i): columns[i] for i in range(-width, width)}
            tags = {"tags": columns[-1]} if width > 1 else {}  # words alone may be a test split
            yield f":{start}", {"tokens": columns[0]} | tags | by_number


def parse_conllu(lines: Iterable[str], path: str | Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Read sentences of a CoNLL-U file.

    The words are the syntactic ones: `don't` is the range `1-2`, which is left out, and the words `do` and `n't`.
    Empty nodes (`1.1`) and comments are left out.

    Args:
        lines: Of the file.
        path: For messages.

    Yields:
        The place of a sentence's first line, and `tokens`, the forms; `tags`, the UPOS tags; and each column by its
        name: `form`, `lemma`, `upos`, `xpos`, ...

    Raises:
        InputError: A line that does not have ten columns, or whose number is not the next one.

    Source: Nivre et al., Universal Dependencies v2 (2020); the format is described at universaldependencies.org.
    """
    for start, sentence in _sentences(lines):
        cells: list[list[str]] = []
        for number, line in sentence:
            if line.startswith("#"):
                continue
            row = line.rstrip("\r\n").split("\t")
            if len(row) != len(CONLLU_COLUMNS):
                raise InputError(f"{path}:{number}: {len(row)} columns; CoNLL-U has ten, divided by tabs")
            if re.fullmatch(r"\d+-\d+|\d+\.\d+", row[0]):
                continue
            if row[0] != str(len(cells) + 1):
                raise InputError(f"{path}:{number}: word number {row[0]!r:.20}, expected {len(cells) + 1}")
            cells.append(row)
        if cells:
            columns = dict(zip(CONLLU_COLUMNS, map(list, zip(*cells, strict=True)), strict=True))
            del columns["id"]  # the row's own place has that name
            yield f":{start}", {"tokens": columns["form"], "tags": columns["upos"]} | columns


def _sentences(lines: Iterable[str]) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Yield the number of the first line, and the numbered lines, of each run of lines that are not blank."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append((number, line))
        elif found:
            yield found[0][0], found
            found = []
    if found:
        yield found[0][0], found
