"""Raw text, document by document, as often as asked and never held in memory as a whole."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ptft_recipes.data import find_split_files
from ptft_recipes.demo import dataset_rows
from ptft_recipes.errors import InputError
from ptft_recipes.reading import check_columns, check_encoding, iterate_rows

logger = logging.getLogger(__name__)

HELD_OUT = 10  # one document in so many is held out where no test split is given


class Documents:
    """Texts that can be iterated over any number of times; every full pass counts them anew.

    Args:
        name: Where they come from.
        read: Returns a new iterator over all texts of the source.
        keep: Which of them belong here, by their index among those that are not blank.
    """

    def __init__(self, name: str, read: Callable[[], Iterable[str]], keep: Callable[[int], bool] = lambda _: True):  # noqa: D107
        self.name, self._read, self._keep = name, read, keep
        self.report: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:  # noqa: D105
        digest, kept, characters, index = hashlib.sha256(), 0, 0, -1
        for text in self._read():
            if not text or not text.strip():
                continue
            index += 1
            if self._keep(index):
                kept, characters = kept + 1, characters + len(text)
                digest.update(text.encode() + b"\0")
                yield text
        self.report = {"documents": kept, "characters": characters, "fingerprint": digest.hexdigest()[:16]}


def load_documents(
    text_column: str,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    train_file: str | None = None,
    test_file: str | None = None,
) -> dict[str, Documents]:
    """Open a corpus: `train` to learn from, `test` to measure on.

    Without a test split every tenth document is held out for it, always the same ones. Blank documents are left out.

    Args:
        text_column: Holds the text; a `.txt` file has one document per line in a column `text`.
        dataset_name: A demo name, a file, a folder with a file per split, or a Hub id, which is streamed.
        dataset_config: Configuration of a Hub data set.
        train_file: Takes the place of a demo data set.
        test_file: The held-out documents.

    Raises:
        InputError: The corpus cannot be read, is not UTF-8, or has no text to learn from or to measure on.
    """
    if train_file:
        if dataset_name and not dataset_name.startswith("demo/"):
            raise InputError(f"--train_file and --dataset_name {dataset_name}: give one of them")
        sources = {"train": _file(train_file, text_column)}
    elif not dataset_name:
        raise InputError("no corpus: pass --train_file, or --dataset_name (Hub id, folder or file)")
    elif dataset_name.startswith("demo/"):
        sources = _demo(dataset_name, text_column)
    elif Path(dataset_name).is_file():
        sources = {"train": _file(dataset_name, text_column)}
    elif Path(dataset_name).is_dir():
        files = find_split_files(Path(dataset_name))
        sources = {split: _file(files[split], text_column) for split in ("train", "test") if files[split]}
    else:
        sources = _hub(dataset_name, dataset_config, text_column)
    if test_file:
        sources["test"] = _file(test_file, text_column)
    name = train_file or dataset_name
    if "test" in sources:
        documents = {split: Documents(f"{name}, {split}", sources[split]) for split in ("train", "test")}
    else:
        documents = {
            "train": Documents(f"{name}, 9 of 10", sources["train"], lambda index: index % HELD_OUT < HELD_OUT - 1),
            "test": Documents(f"{name}, every 10th", sources["train"], lambda index: index % HELD_OUT == HELD_OUT - 1),
        }
    for split, texts in documents.items():
        if next(iter(texts), None) is None:
            found = "no text" if split == "train" else f"fewer than {HELD_OUT} documents, none to hold out"
            raise InputError(f"{name}: {found}; give more text" + ", or a --test_file" * (split == "test"))
    return documents


def load_general(path: str, text_column: str) -> Documents:
    """Open the text on which a change for the domain must not cost much: a file.

    Raises:
        InputError: The file cannot be read or has no text.
    """
    documents = Documents(path, _file(path, text_column))
    if next(iter(documents), None) is None:
        raise InputError(f"{path}: no text")
    return documents


def _file(path: str | Path, text_column: str) -> Callable[[], Iterator[str]]:
    check_encoding(path)
    return lambda: (_text(row["id"], row[text_column]) for row in iterate_rows(path, [text_column]))


def _text(place: str, value) -> str | None:
    """Return a text that can be encoded, or None."""
    if not isinstance(value, str | None):
        raise InputError(f"{place}: {type(value).__name__} {value!r:.60}, not text")
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a pair: an emoji that was cut in two
        raise InputError(f"{place}: {value[error.start]!r}, half of a character; remove it") from None
    return value


def _demo(name: str, text_column: str) -> dict[str, Callable]:
    splits = dataset_rows(name)
    check_columns(name, splits["train"][0], [text_column])
    return {split: (lambda rows=rows: (row[text_column] for row in rows)) for split, rows in splits.items()}


def _hub(name: str, config: str | None, text_column: str) -> dict[str, Callable]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, streaming=True)
    except Exception as error:  # the client raises many kinds; the reader needs one line, the trace keeps the rest
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"{name} is no file or folder here, and the Hub did not give it: {reason[:300]}") from error
    if "train" not in loaded:
        raise InputError(f"{name} has no split 'train'; its splits are {', '.join(loaded)}")
    check_columns(name, loaded["train"].column_names or next(iter(loaded["train"])), [text_column])

    def read(split: str) -> Callable[[], Iterator[str]]:
        return lambda: (_text(f"{split}[{i}]", row[text_column]) for i, row in enumerate(loaded[split]))

    return {split: read(split) for split in ("train", "test") if split in loaded}
