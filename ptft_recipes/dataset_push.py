"""Prepared splits as a data set of the Hub."""

import io
import shlex
from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, DatasetDict, List
from huggingface_hub import DatasetCardData

from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.errors import InputError, PushError, one_line
from ptft_recipes.hub import check_login, make_repository, push_files
from ptft_recipes.labels import MULTI
from ptft_recipes.markdown import code, escape, table
from ptft_recipes.redaction import portable, secret_pattern
from ptft_recipes.tagged_data import load_tagged_splits

# By the Hub's name of a task: the columns that its recipe reads unless it is told otherwise.
COLUMNS = {
    "text-classification": ("text", "label"),
    "token-classification": ("tokens", "tags"),
    "fill-mask": ("text", None),
}


def prepare_splits(
    data_args: DatasetArguments,
    task: str = "text-classification",
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Read splits as the recipe of a task would train on them.

    Args:
        data_args: Where the data comes from.
        task: One of `COLUMNS`.
        text_column: Of texts, or of lists of words.
        text_pair_column: The second text of a pair.
        label_column: Of labels, or of lists of tags.
        label_separator: Between the labels of one multi-label cell.

    Returns:
        As `load_splits` and `load_tagged_splits` return them.

    Raises:
        InputError: Data that cannot be used, or an option that the task has not.
    """
    text, label = COLUMNS[task]
    if task != "text-classification" and (text_pair_column or label_separator):
        raise InputError(f"--text_pair_column and --label_separator are for text-classification, not for {task}")
    if label is None and label_column:
        raise InputError(f"--label_column {label_column}: the texts of {task} have no labels; leave it out")
    text, label = text_column or text, label_column or label
    if task == "token-classification":
        return load_tagged_splits(data_args, text, label)
    texts = [text, *([text_pair_column] if text_pair_column else [])]
    return load_splits(data_args, texts, label, label_separator=label_separator)


def push_dataset(
    raw: DatasetDict, report: dict[str, Any], repo_id: str, private: bool = True, retry: str = "the same call"
) -> str:
    """Push splits as the recipes would train on them: cut, checked, with their labels; and a card that counts them.

    Pushing the same splits again makes no commit. Several labels per row become lists of class numbers. A test split
    without labels gets empty ones, because the splits of a data set have the same columns.

    Args:
        raw: As `load_splits` or `load_tagged_splits` returned it.
        report: Likewise.
        repo_id: Where to; a name alone is one of the user's own.
        private: The repository is made private, and a public one is refused.
        retry: What tries again, for the message of a push that fails.

    Returns:
        The address of the commit.

    Raises:
        InputError: No login, no right to push there, or a row that holds what looks like a secret.
        PushError: The upload failed, for whatever reason.
    """
    repo_id = check_login(repo_id, private, "dataset")
    raw = _with_named_labels(raw, report)
    files = {"README.md": _card(raw, portable(report), repo_id).encode()}
    _check_for_secrets(raw, files["README.md"])
    for split, dataset in raw.items():
        buffer = io.BytesIO()
        dataset.to_parquet(buffer)  # with its features, by which `load_dataset` has the names of the labels
        files[_path(split)] = buffer.getvalue()
    try:
        make_repository(repo_id, private, "dataset")
        return push_files(repo_id, files, f"{report['name']}, prepared by ptft-recipes", "dataset")
    except PushError:
        raise
    except Exception as error:  # the client raises many kinds
        reason = one_line(f"{type(error).__name__}: {error}")
        raise PushError(f"the push of the data to {repo_id} failed ({reason}). Retry: {retry}") from error


def _path(split: str) -> str:
    return f"data/{split}-00000-of-00001.parquet"


def _with_named_labels(raw: DatasetDict, report: dict[str, Any]) -> DatasetDict:
    """Return splits of one shape, in which the numbers of several labels per row have their names too."""
    if report.get("problem_type") == MULTI:
        kind = List(ClassLabel(names=report["label_names"]))
        for split, dataset in raw.items():
            if "labels" in dataset.column_names:
                chosen = [[i for i, is_so in enumerate(row) if is_so] for row in dataset["labels"]]
                raw = raw | {split: dataset.remove_columns("labels").add_column("labels", chosen, feature=kind)}
    columns = raw["train"].features
    for split, dataset in raw.items():
        for column in columns.keys() - {*dataset.column_names}:
            dataset = dataset.add_column(column, [None] * len(dataset), feature=columns[column])
        raw = raw | {split: dataset.select_columns([*columns])}
    return DatasetDict(raw)


def _check_for_secrets(raw: DatasetDict, card: bytes) -> None:
    """Raise an InputError if a row, or the card with the names of the labels, holds what looks like a secret."""
    secret = secret_pattern()
    found = [
        f"{split} {row['id']}"
        for split, dataset in raw.items()
        for row in dataset
        if secret.search("\n".join(_texts(row)).encode())
    ]
    if not found and secret.search(card):
        found = ["the name of a label or of the data"]
    if found:
        places = ", ".join(found[:5]) + ", ..." * (len(found) > 5)
        rows = f"{len(found)} rows hold" if len(found) > 1 else "one row holds"
        raise InputError(f"{rows} what looks like a token or a password ({places}); nothing was pushed: take it out")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _card(raw: DatasetDict, report: dict[str, Any], repo_id: str) -> str:
    files = [{"split": split, "path": _path(split)} for split in raw]
    data = DatasetCardData(configs=[{"config_name": "default", "data_files": files}], tags=["ptft-recipes"])
    rows = []
    for split, dataset in raw.items():
        overlap = report["overlap_with_train"].get(split, {}).get("normalised", "")
        cut = " (cut from train)" if split in report["cut"] else ""
        rows.append([
            split + cut, f"{len(dataset):,}", report["dropped"][split], overlap, code(report["fingerprint"][split])
        ])  # fmt: skip
    counts = table(["split", "rows", "dropped", "also in train", "fingerprint"], rows)
    labels = ", ".join(code(label) for label in report.get("label_names") or [])
    encoded = ", with labels as numbers in `labels`" * ("label_names" in report)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {escape(repo_id.partition('/')[2])}\n\nThe splits of "
        f"{code(report['name'])}, prepared by ptft-recipes: checked, cut where they were missing{encoded}.\n\n"
        + f"{counts}\n\n"
        + f"Labels: {labels}\n\n" * bool(labels)
        + f'```python\nfrom datasets import load_dataset\n\ndata = load_dataset("{repo_id}")\n```\n\n'
        + f"For the recipes: {code(shlex.join(_flags(raw, report, repo_id)))}. "
        + "Language, domain and licence of the texts are not recorded.\n"
    )


def _flags(raw: DatasetDict, report: dict[str, Any], repo_id: str) -> list[str]:
    """Return the flags by which a recipe reads what was pushed."""
    tagged = "scheme" in report
    names = ["--words_column"] if tagged else ["--text_column", "--text_pair_column"]
    texts = [column for column in raw["train"].column_names if column not in ("id", "labels")]
    labels = ["--tags_column" if tagged else "--label_column", "labels"] if "label_names" in report else []
    return ["--dataset_name", repo_id, *(part for pair in zip(names, texts, strict=False) for part in pair), *labels]
