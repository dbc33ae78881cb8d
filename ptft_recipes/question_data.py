"""Questions about texts whose answers stand in them: read in either form of SQuAD, and every answer verified."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict, List, Value

from ptft_recipes.data import DatasetArguments, dataset_hub_id, read_splits, rows_without_faults
from ptft_recipes.errors import InputError
from ptft_recipes.folds import parse_fold
from ptft_recipes.splits import complete_splits

logger = logging.getLogger(__name__)

ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int64"))}


def load_question_splits(
    data_args: DatasetArguments,
    question_column: str,
    context_column: str,
    answers_column: str,
    more_columns: Sequence[str] = (),
    trains: bool = True,
) -> tuple[DatasetDict, dict[str, Any]]:
    """Load and check questions, the texts that they are about, and where the answers stand in these.

    An answer that is not where its `answer_start` says is moved to where it is, if its text occurs once in the
    context; else the row cannot be used. When splits are cut from train, questions about one context stay together.

    Args:
        data_args: Where the data comes from.
        question_column: Text.
        context_column: Text.
        answers_column: `{"text": [...], "answer_start": [...]}`, or a list of such pairs, in characters of the
            context; empty where the context has no answer. A test split in which it is null in all rows, or missing,
            stays without `answers`.
        more_columns: That are kept as they are.
        trains: There must be a train split, and some of its questions must have an answer.

    Returns:
        The splits, each with `id`, question, context, and `answers` in the first form; and what a reader must know of
        them, as `load_splits` returns it, with the `unanswerable` questions and the `repaired` answers per split, and
        `has_no_answers`: whether there are unanswerable ones at all.

    Raises:
        InputError: Data that cannot be read or used, with file and line (or split and row), and the remedy.
    """
    columns = [question_column, context_column]
    if len({*columns, answers_column}) < 3 or {*columns} & {"id", "answers"}:
        raise InputError("--question_column, --context_column: name two columns other than `id` and the answers")
    fold, more_columns = parse_fold(data_args.fold), [*more_columns]
    of_fold = [fold.group_column] if fold and fold.group_column and fold.group_column not in more_columns else []
    kept = more_columns + of_fold
    name, splits = read_splits(data_args, columns, answers_column, trains=trains, more_columns=kept)
    report: dict[str, Any] = {"name": name, "hub_id": dataset_hub_id(data_args), "dropped": {}, "repaired": {}}
    for split, dataset in splits.items():
        given = list(dataset[answers_column]) if answers_column in dataset.column_names else [None] * len(dataset)
        if split == "test" and not any(answers is not None for answers in given):
            given = None
        splits[split], report["dropped"][split], report["repaired"][split] = _encode(
            split, dataset, [*columns, *kept], given, data_args.drop_bad_rows
        )
    limits = {"max_train_samples": data_args.max_train_samples, "max_eval_samples": data_args.max_eval_samples}
    raw, report = complete_splits(
        splits, report, columns, stratify=False, more_columns=more_columns, fold=fold, group_column=context_column,
        **limits,
    )  # fmt: skip
    report["unanswerable"] = {
        split: sum(not answers["text"] for answers in rows["answers"])
        for split, rows in raw.items()
        if "answers" in rows.column_names
    }
    report["has_no_answers"] = any(report["unanswerable"].values())
    if trains and report["unanswerable"]["train"] == len(raw["train"]):
        raise InputError("train: no question has an answer; nothing can be learned from that")
    _log(report)
    return raw, report


def find_answer(context: str, text: Any, start: Any) -> tuple[int | None, str | None]:
    """Return where an answer begins in its context, or None and what is wrong with it.

    >>> find_answer("It rains in Spain.", "Spain", 12), find_answer("It rains in Spain.", "Spain", 3)
    ((12, None), (12, None))

    Args:
        context: The text.
        text: Of the answer.
        start: The character at which it is said to begin; None if nobody said it.
    """
    if not isinstance(text, str) or not text.strip():
        return None, f"the answer {text!r:.60} is no text"
    if isinstance(start, int) and start >= 0 and context.startswith(text, start):
        return start, None
    first = context.find(text)
    if first < 0:
        return None, f"the answer {text!r:.60} does not occur in the context"
    if first == context.rfind(text):
        return first, None
    return None, f"the answer {text!r:.60} is not at {start} and occurs several times in the context"


def _pairs(answers: Any) -> list[tuple[Any, Any]] | None:
    """Return text and start of each answer, from any form that data sets have them in; None for another one."""
    if isinstance(answers, dict) and "text" in answers:
        texts, starts = answers["text"], answers.get("answer_start")
        if isinstance(texts, str):
            return [(texts, starts)]
        starts = [None] * len(texts or []) if starts is None else starts
        is_fit = isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
        return list(zip(texts, starts, strict=True)) if is_fit else None
    if isinstance(answers, list) and all(isinstance(each, dict) and "text" in each for each in answers):
        return [(each["text"], each.get("answer_start")) for each in answers]
    return None


def _check(question: str | None, context: str | None, answers: Any, is_answered: bool):
    """Return the verified answers of a row, how many had to be moved, and what is wrong with the row, if something."""
    found: dict[str, list] = {"text": [], "answer_start": []}
    moved = 0
    for what, text in (("question", question), ("context", context)):
        if not (text and text.strip()):
            return found, moved, f"no {what}"
    if not is_answered:
        return found, moved, None
    pairs = _pairs(answers)
    if pairs is None:
        what = "no answers" if answers is None else f"its answers are {answers!r:.60}"
        return found, moved, f"{what}; expected {{'text': [...], 'answer_start': [...]}}, empty if there is none"
    for text, start in pairs:
        place, fault = find_answer(context or "", text, start)
        if fault:
            return found, moved, fault
        found["text"].append(text)
        found["answer_start"].append(place)
        moved += place != start
    return found, moved, None


def _encode(
    split: str, dataset: Dataset, columns: list[str], given: list | None, drop: bool
) -> tuple[Dataset, int, int]:
    """Return the rows that can be used, with `answers` unless `given` is None; how many were dropped, and moved."""
    texts = zip(dataset[columns[0]], dataset[columns[1]], given or [None] * len(dataset), strict=True)
    found = [_check(question, context, answers, given is not None) for question, context, answers in texts]
    faults = {i: fault for i, (_, _, fault) in enumerate(found) if fault}
    keep = rows_without_faults(split, dataset, faults, drop)
    dataset = dataset.select_columns(["id", *columns]).select(keep)
    if given is not None:
        dataset = dataset.add_column("answers", [found[i][0] for i in keep], feature=ANSWERS)
    return dataset, len(faults), sum(found[i][1] for i in keep)


def _log(report: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} in {split}" for split, count in report["unanswerable"].items())
    logger.info("  questions without an answer: %s", counts if report["has_no_answers"] else "none")
    for split, count in report["repaired"].items():
        if count:
            logger.warning("  %s: %d answers were not at their answer_start, and were found elsewhere", split, count)
