"""Lists of words with a tag per word: read, checked, and numbered by one list of labels made from train."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List

from ptft_recipes.data import DatasetArguments, dataset_hub_id, read_splits, rows_without_faults
from ptft_recipes.errors import InputError
from ptft_recipes.folds import parse_fold
from ptft_recipes.splits import complete_splits
from ptft_recipes.tag_schemes import (
    OUTSIDE,
    PLAIN,
    complete_labels,
    count_illegal,
    detect_scheme,
    marks_entity,
    split_tag,
)

logger = logging.getLogger(__name__)


def load_tagged_splits(
    data_args: DatasetArguments, words_column: str, tags_column: str, more_columns: Sequence[str] = ()
) -> tuple[DatasetDict, dict[str, Any]]:
    """Load, check and encode words and their tags: train to fit, validation to choose, test to report.

    Args:
        data_args: Where the data comes from.
        words_column: Holds a list of words per row; in files with a word per line `tokens` is the first column.
        tags_column: Holds as many tags; in such files `tags` is the last column, or UPOS of CoNLL-U.
        more_columns: That are kept as they are.

    Returns:
        The splits, each with `id`, the words, and `labels`, a number per word; and what a reader must know of them, as
        `load_splits` returns it, with `label_names`, the `scheme` of the tags, the `illegal_tags` per split, and
        `default_label`: of a word that the model cannot read, `O` or else the most frequent one.

    Raises:
        InputError: Data that cannot be read or used, with file and line (or split and row), and the remedy.
    """
    # A data set that was pushed as it is trained on has its tags in `labels`.
    if words_column in ("id", "labels", tags_column) or tags_column == "id":
        raise InputError("--words_column, --tags_column: `id` and `labels` are written by the recipe; name two others")
    fold, more_columns = parse_fold(data_args.fold), [*more_columns]
    of_fold = [fold.group_column] if fold and fold.group_column and fold.group_column not in more_columns else []
    kept = more_columns + of_fold
    name, splits = read_splits(data_args, [words_column], tags_column, words=True, more_columns=kept)
    known = _class_names(splits["train"], tags_column)
    tags = {split: _tags(dataset, tags_column) for split, dataset in splits.items()}
    if "test" in splits and not any(tags["test"]):
        tags["test"] = None
    train = [[tag for tag in row if tag is not None] for row in tags["train"] if row]
    scheme = detect_scheme(train)
    _check_plain(scheme, {tag for row in train for tag in row})
    label_names = known or complete_labels({tag for row in train for tag in row}, scheme)
    if scheme != PLAIN:  # a ClassLabel may also name what no word has, such as padding
        label_names = [tag for tag in label_names if tag == OUTSIDE or marks_entity(tag)]
    if len(label_names) < 2:
        raise InputError(f"train has no tag but {', '.join(label_names) or 'none'}; nothing can be learned from that")
    report: dict[str, Any] = {"name": name, "hub_id": dataset_hub_id(data_args), "dropped": {}}
    report |= {"label_names": label_names, "scheme": scheme}
    for split, dataset in splits.items():
        splits[split], report["dropped"][split] = _encode(
            split, dataset, [words_column, *kept], tags[split], label_names, data_args.drop_bad_rows
        )
    limits = {"max_train_samples": data_args.max_train_samples, "max_eval_samples": data_args.max_eval_samples}
    raw, report = complete_splits(
        splits, report, [words_column], stratify=False, more_columns=more_columns, fold=fold, **limits
    )
    tagged = {
        split: [[label_names[label] for label in row] for row in dataset["labels"]]
        for split, dataset in raw.items()
        if "labels" in dataset.column_names
    }
    report["illegal_tags"] = {split: sum(count_illegal(row, scheme) for row in rows) for split, rows in tagged.items()}
    frequent = Counter(tag for row in tagged["train"] for tag in row).most_common(1)[0][0]
    report["default_label"] = OUTSIDE if OUTSIDE in label_names else frequent
    _log(report, tagged)
    return raw, report


def _encode(
    split: str, dataset: Dataset, columns: list[str], tags: list | None, label_names: list[str], drop: bool
) -> tuple[Dataset, int]:
    """Return the data set with `id`, words, and unless `tags` is None `labels`; and how many bad rows it lost."""
    rows = zip(dataset[columns[0]], tags or [None] * len(dataset), strict=True)
    found = {i: _fault(words, row, label_names, tagged=tags is not None) for i, (words, row) in enumerate(rows)}
    faults = {i: fault for i, fault in found.items() if fault}
    keep = rows_without_faults(split, dataset, faults, drop)
    dataset = dataset.select_columns(["id", *columns]).select(keep)
    if tags is not None:
        number = {label: i for i, label in enumerate(label_names)}
        labels = [[number[tag] for tag in tags[i]] for i in keep]
        dataset = dataset.add_column("labels", labels, feature=List(ClassLabel(names=label_names)))
    return dataset, len(faults)


def _class_names(dataset: Dataset, column: str) -> list[str] | None:
    feature = dataset.features[column]
    kind = feature.feature if isinstance(feature, List) else None
    return kind.names if isinstance(kind, ClassLabel) else None


def _tags(dataset: Dataset, column: str) -> list:
    """Return the tags as given; the numbers of a ClassLabel as their names, by each split's own."""
    if column not in dataset.column_names:
        return [None] * len(dataset)
    names, rows = _class_names(dataset, column), list(dataset[column])
    if any(not isinstance(row, list | None) for row in rows):
        raise InputError(f"column {column!r} holds {type(rows[0]).__name__} {rows[0]!r:.60}, not a list of tags")
    if names:
        return [row and [None if tag is None or tag < 0 else names[tag] for tag in row] for row in rows]
    return [row and [None if tag is None or tag == "" else str(tag) for tag in row] for row in rows]


def _check_plain(scheme: str, tags: set[str]) -> None:
    """Refuse tags of entities with a slip among them, which would make plain tags of them all."""
    entities = {tag for tag in tags if tag[1:2] == "-" and marks_entity(tag)}
    if scheme == PLAIN and entities:
        others = sorted(tags - entities - {OUTSIDE})[:5]
        raise InputError(
            f"train: tags such as {min(entities)!r:.60} mark entities, and {', '.join(map(repr, others))} are of no "
            "scheme (IOB1, IOB2, BILOU, with O outside); mend them"
        )


def _fault(words: list[str] | None, tags: list[str] | None, label_names: list[str], tagged: bool) -> str | None:
    """Say what is wrong with a row, if something is."""
    if not words:
        return "no words"
    if None in words or "" in words:
        return f"word {words.index('' if '' in words else None) + 1} of {len(words)} is empty"
    if not tagged:
        return None
    if not tags or len(tags) != len(words):
        return f"{len(words)} words and {len(tags or [])} tags"
    unseen = next((tag for tag in tags if tag not in label_names), label_names[0])
    what = "an empty tag" if unseen is None else f"tag {unseen!r:.60} does not occur in train"
    return None if unseen in label_names else what


def _log(report: dict[str, Any], tagged: dict[str, list[list[str]]]) -> None:
    words = {split: sum(map(len, rows)) for split, rows in tagged.items()}
    if report["scheme"] == PLAIN:
        logger.info("  tags: plain, they mark no entities; %s", ", ".join(f"{s} {n} words" for s, n in words.items()))
        return
    illegal = ", ".join(f"{n} in {split}" for split, n in report["illegal_tags"].items())
    logger.info("  tags: entities in %s; illegal tags: %s of %d", report["scheme"], illegal, sum(words.values()))
    for split, rows in tagged.items():
        if not any(split_tag(tag)[1] for row in rows for tag in row):
            logger.warning("  %s has no entity: its precision, recall and F1 are undefined, or 0", split)
