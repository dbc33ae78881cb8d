"""What is done to the splits of any task: cut what is missing, sample, look for overlap with train, fingerprint."""

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ptft_recipes.caching import keep_on_disk
from ptft_recipes.errors import InputError
from ptft_recipes.folds import Fold, assign_folds

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
CUT_SEED = 0  # one cut for every seed of a study, so that runs are scored on the same rows
CUT_FRACTION = 0.1


def complete_splits(
    splits: dict[str, Dataset],
    report: dict[str, Any],
    text_columns: Sequence[str],
    *,
    stratify: bool,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    more_columns: Sequence[str] = (),
    fold: Fold | None = None,
    group_column: str | None = None,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Cut missing splits from train, keep no more rows than asked for, and count what a reader must know.

    Args:
        splits: Checked and encoded; without `train` among them none is cut.
        report: With `name`, `dropped` per split, and with labels `label_names`.
        text_columns: Of text or of lists of words, by which overlap with train is found.
        stratify: Cut equal shares of every label.
        max_train_samples: Size of a random sample of train.
        max_eval_samples: Size of a random sample of validation, and of one of test.
        more_columns: What the model does not see.
        fold: Of train, which becomes test; a test split that there is stays untouched.
        group_column: Rows that are alike in it stay together when train is cut, as questions about one text must; a
            fold with a column of its own goes by that.

    Returns:
        The splits in order; and the report with rows, cuts, overlap of the evaluation splits with train, fingerprints.

    Raises:
        InputError: Too few rows, or a number of rows below 1.
    """
    if fold:
        report["fold"] = _hold_out(splits, fold, more_columns, stratify, group_column)
    report["cut"] = _cut_missing(splits, stratify, group_column)
    for split, limit in zip(SPLITS, (max_train_samples, *[max_eval_samples] * 2), strict=True):
        if limit is not None and limit < 1:
            raise InputError(f"--max_{'train' if split == 'train' else 'eval'}_samples {limit}: must be at least 1")
        if limit is not None and limit < len(splits.get(split, ())):
            splits[split] = splits[split].shuffle(seed=CUT_SEED).select(range(limit))
    splits = {split: splits[split] for split in SPLITS if split in splits}
    report["rows"] = {split: len(rows) for split, rows in splits.items()}
    report["dropped"] = {split: report["dropped"].get(split, 0) for split in splits}
    report["overlap_with_train"] = _overlap(splits, text_columns) if "train" in splits else {}
    report["fingerprint"] = {split: _fingerprint(rows.remove_columns(more_columns)) for split, rows in splits.items()}
    unlabelled = "label_names" in report and "test" in splits and "labels" not in splits["test"].column_names
    _log(report, unlabelled)
    return DatasetDict({split: keep_on_disk(rows) for split, rows in splits.items()}), report


def _hold_out(
    splits: dict[str, Dataset], fold: Fold, more_columns: Sequence[str], has_labels: bool, group_column: str | None
) -> dict[str, Any]:
    """Make a fold of train the test split, in place; return which one, and how many groups it has."""
    if "train" not in splits:
        raise InputError("--fold divides train, and there is none")
    train, column = splits["train"], fold.group_column
    groups = train[column][:] if column else _numbers(train[group_column]) if group_column else None
    if column and column not in more_columns:
        splits |= {split: rows.remove_columns(column) for split, rows in splits.items() if column in rows.column_names}
        train = splits["train"]
    place = assign_folds(train["labels"][:] if has_labels else None, groups, fold.count, len(train))
    if "test" in splits:
        logger.info("--fold: the data's own test split is not used")
    splits["test"] = train.select(np.flatnonzero(place == fold.number))
    splits["train"] = train.select(np.flatnonzero(place != fold.number))
    return {"number": fold.number, "count": fold.count, "group_column": column}


def _numbers(values) -> list[int]:
    """Return a number per distinct value: an array of long texts would give each the room of the longest."""
    number: dict = {}
    return [number.setdefault(value, len(number)) for value in values]


def _cut_missing(splits: dict[str, Dataset], has_labels: bool, group_column: str | None) -> dict[str, int]:
    """Cut the missing evaluation splits out of train, in place; return how many rows each got."""
    cut = {}
    for split in ("test", "validation") if "train" in splits else ():
        if split in splits:
            continue
        train = splits["train"]
        size = max(1, round(CUT_FRACTION * len(train)))
        generator = np.random.default_rng([CUT_SEED, len(cut)])
        if group_column:
            chosen = _whole_groups(np.array(_numbers(train[group_column])), size, generator)
            if len(chosen) == len(train):
                raise InputError(
                    f"train has one {group_column}: a {split} split cannot be cut from it; give --{split}_file"
                )
            splits[split] = train.select(chosen)
            splits["train"] = train.select(np.setdiff1d(np.arange(len(train)), chosen))
            cut[split] = len(chosen)
            continue
        order = generator.permutation(len(train)).tolist()
        kept = set(order[:1])
        if has_labels:
            # A row of every label stays in train; of the rest, sorted by label, every n-th is cut: equal shares.
            labels = list(train["labels"])
            kept |= _one_of_each(labels, order)
            order.sort(key=lambda i: labels[i])
        order = [i for i in order if i not in kept]
        if size > len(order):
            raise InputError(f"train has {len(train)} rows: too few to cut a {split} split from; give --{split}_file")
        chosen = np.array(order)[((np.arange(size) + 0.5) * len(order) / size).astype(int)]
        splits[split] = train.select(np.sort(chosen))
        splits["train"] = train.select(np.setdiff1d(np.arange(len(train)), chosen))
        cut[split] = size
    return cut


def _whole_groups(groups: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows of random groups, at least as many as asked for, in their order."""
    order = generator.permutation(groups.max() + 1)
    enough = np.searchsorted(np.cumsum(np.bincount(groups)[order]), size) + 1
    return np.flatnonzero(np.isin(groups, order[:enough]))


def _one_of_each(labels: list, order: list[int]) -> set[int]:
    """Return the first row, in the given order, of every label; none of numbers to predict."""
    first: dict[int, int] = {}
    for i in order if not isinstance(labels[0], float) else ():
        for label in np.flatnonzero(labels[i]) if isinstance(labels[i], list) else [labels[i]]:
            first.setdefault(int(label), i)
    return set(first.values())


def _overlap(splits: dict[str, Dataset], text_columns) -> dict[str, dict[str, int]]:
    """Count the evaluation rows whose text is in train too: exactly, and after normalisation."""

    def texts(split: str) -> list[tuple]:
        columns = ([" ".join(t) if isinstance(t, list) else t for t in splits[split][name]] for name in text_columns)
        return list(zip(*columns, strict=True))

    def normalise(text: str) -> str:
        text = unicodedata.normalize("NFKC", text).casefold()
        return " ".join(re.findall(r"\w+", text)) or text.strip()  # a text of emoji or punctuation only stays itself

    train = set(texts("train"))
    normalised_train = {tuple(map(normalise, row)) for row in train}
    return {
        split: {
            "exact": sum(row in train for row in texts(split)),
            "normalised": sum(tuple(map(normalise, row)) in normalised_train for row in texts(split)),
        }
        for split in splits
        if split != "train"
    }


def _fingerprint(dataset: Dataset) -> str:
    """Hash what the model sees, not where it came from: the same rows have the same fingerprint on any machine."""
    digest = hashlib.sha256()
    for row in dataset.remove_columns("id"):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _log(report: dict[str, Any], unlabelled: bool) -> None:
    logger.info("data: %s", report["name"])
    for split in report["rows"]:
        notes = [f"cut from train by seed {CUT_SEED}"] if split in report["cut"] else []
        notes += [f"{report['dropped'][split]} bad rows dropped"] if report["dropped"][split] else []
        if overlap := report["overlap_with_train"].get(split, {}).get("normalised"):
            notes.append(f"{overlap} also in train ({report['overlap_with_train'][split]['exact']} to the letter)")
        notes += ["no labels: predicted, not scored"] if split == "test" and unlabelled else []
        logger.info("  %-10s %7d rows%s", split, report["rows"][split], "".join(f"; {note}" for note in notes))
    if names := report.get("label_names"):
        shown = ", ".join(f"{name:.60}" for name in names[:8]) + f", ... ({len(names)} in all)" * (len(names) > 8)
        logger.info("  labels: %s (%s)", shown, report.get("scheme") or report["problem_type"])
