"""Extractive question answering with Trainer: scored by question, whatever windows its context was cut into."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from ptft_recipes.answer_metrics import answer_metrics, answer_statistics, best_threshold
from ptft_recipes.answer_windows import token_spans
from ptft_recipes.answers import Answers, find_answers
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import predicts_test_split, report_test_split
from ptft_recipes.training import RecipeTrainer

WINDOW = ("first", "begin", "tokens")


class QuestionTrainer(RecipeTrainer):
    """RecipeTrainer over windows of contexts, whose predictions are an answer per question.

    Args:
        args: As for RecipeTrainer.
        eval_rows: The validation questions, of which `eval_dataset` has the windows.
        task: `columns`, those of question and context; `n_best` and `max_answer_length`, as for `find_answers`; and
            `has_no_answers`, whether questions may have none.
        kwargs: As for RecipeTrainer.
    """

    def __init__(self, *args, eval_rows: Dataset, task: dict[str, Any], **kwargs):  # noqa: D107
        if task["n_best"] < 1 or task["max_answer_length"] < 1:
            raise InputError("--n_best, --max_answer_length: must be at least 1")
        super().__init__(*args, preprocess_logits_for_metrics=both_logits, **kwargs)
        if self.tuning_args.r_drop:
            raise InputError("--r_drop compares one distribution per row; a span has two, of its begin and its end")
        # Of a class with QuestionAnswering in its name Trainer takes start_positions and end_positions for the labels,
        # and would drop those of `compute_loss_func`.
        self.label_names = ["labels"]
        self.compute_metrics = self._score_validation
        self.eval_rows, self.task, self.windows = eval_rows, task, None
        self.answer_metrics = partial(answer_metrics, has_no_answers=task["has_no_answers"])

    def get_eval_dataloader(self, eval_dataset=None):
        """Return the loader, and remember which windows it loads: Trainer takes all that is no input out of them."""
        self.windows = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def answers_of(self, logits: np.ndarray, windows: Dataset, rows: Dataset) -> dict[int, Answers]:
        """Return the answers per row number, from logits `[windows, length, 2]`."""
        parts: dict[int, list[tuple[np.ndarray, dict[str, int]]]] = {}
        columns = (windows[name][:] for name in WINDOW)
        for part, row, *place in zip(logits, windows["row"][:], *columns, strict=True):
            parts.setdefault(row, []).append((part, dict(zip(WINDOW, place, strict=True))))
        options = {name: self.task[name] for name in ("n_best", "max_answer_length")}
        contexts = rows[self.task["columns"][1]][:]
        return {
            row: find_answers(*zip(*found, strict=True), token_spans(self.processing_class, contexts[row]), **options)
            for row, found in parts.items()
        }

    def predict_answers(self, windows: Dataset, rows: Dataset) -> tuple[list[Answers], PredictionOutput]:
        """Predict, and return the answers to every question and what `predict` returned."""
        scoring, self.compute_metrics = self.compute_metrics, None  # they are of validation
        try:
            output = self.predict(windows)
        finally:
            self.compute_metrics = scoring
        answers = self.answers_of(output.predictions, windows, rows)
        return [answers[row] for row in range(len(rows))], output

    def texts_of(self, answers: Sequence[Answers], rows: Dataset, threshold: float | None) -> list[str]:
        """Return the text of the best answer to each question, an empty one for no answer."""
        chosen = (found.choose(threshold) for found in answers)
        contexts = rows[self.task["columns"][1]]
        return [context[span[0] : span[1]] if span else "" for context, span in zip(contexts, chosen, strict=True)]

    def tune_threshold(self, answers: Sequence[Answers], rows: Dataset) -> float | None:
        """Return the no-answer threshold with the best F1 on rows with gold answers; None if all have an answer."""
        if not self.task["has_no_answers"]:
            return None
        gold = [each["text"] for each in rows["answers"]]
        always, never = (
            answer_statistics(gold, texts, has_no_answers=True)[:, 1]
            for texts in (self.texts_of(answers, rows, None), [""] * len(gold))
        )
        return best_threshold(np.array([found.odds for found in answers]), always, never)

    def statistics_of(self, rows: Dataset, predicted: Sequence[str]) -> np.ndarray:
        """Return `answer_statistics` of questions."""
        gold = [each["text"] for each in rows["answers"]]
        return answer_statistics(gold, predicted, self.task["has_no_answers"])

    def _score_validation(self, prediction: EvalPrediction) -> dict[str, float]:
        # The check before training has the first windows only, which may be some of a question's.
        windows = self.windows.select(range(len(prediction.predictions)))
        found = self.answers_of(prediction.predictions, windows, self.eval_rows)
        rows, answers = self.eval_rows.select(found), list(found.values())
        threshold = self.tune_threshold(answers, rows)
        statistics = self.statistics_of(rows, self.texts_of(answers, rows, threshold))
        scores = self.answer_metrics(EvalPrediction(statistics, statistics))
        return scores | ({} if threshold is None else {"no_answer_threshold": threshold})


def both_logits(logits: tuple[torch.Tensor, ...], labels: torch.Tensor | None) -> torch.Tensor:
    """Return the logits of starts and ends as one tensor, `[batch, length, 2]`; some models return more than these.

    Raises:
        FloatingPointError: A logit is not finite; an answer of it would look like any other.
    """
    both = torch.stack(logits[:2], dim=-1).float()
    if not torch.isfinite(both).all():
        raise FloatingPointError("the logits of some tokens are nan or infinite")
    return both


def score_answers(
    trainer: QuestionTrainer, dataset: dict[str, Dataset], raw: dict[str, Dataset], run: dict[str, Any]
) -> dict[str, Any]:
    """Tune the no-answer threshold on validation, predict the test split once, score it, and write all of it down.

    The threshold, with what else is needed to answer as the run did, is kept under `question_answering` in the model's
    config and in the results. Where several questions share a context, the intervals are resampled by context.
    Writes what `score_test_split` writes, without a confusion matrix; `predictions/test.jsonl` has the question, gold
    answers, the prediction, and the `n_best` spans with probabilities. A test split without `answers` is predicted and
    not scored.

    Args:
        trainer: Trained; all processes call this together.
        dataset: The windows of validation and test.
        raw: Their questions.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        As `score_test_split`.
    """
    answers, _ = trainer.predict_answers(dataset["validation"], raw["validation"])
    threshold = trainer.tune_threshold(answers, raw["validation"])
    settings = {"no_answer_threshold": threshold, "max_answer_length": trainer.task["max_answer_length"]}
    settings |= {name: run["data"][name] for name in ("max_length", "stride")}
    run["question_answering"] = trainer.model.config.question_answering = settings
    if not predicts_test_split(run):
        return report_test_split(trainer, None, trainer.answer_metrics, [], run)
    rows = raw["test"]
    answers, output = trainer.predict_answers(dataset["test"], rows)
    predicted = trainer.texts_of(answers, rows, threshold)
    statistics = trainer.statistics_of(rows, predicted) if "answers" in rows.column_names else None
    questions, contexts = (rows[column][:] for column in trainer.task["columns"])
    groups = shared_contexts(contexts)
    run["resampled"] = "contexts" if groups else "questions"
    lines = map(answer_line, rows, answers, predicted, questions, contexts)
    prediction = output._replace(predictions=statistics, label_ids=statistics)
    return report_test_split(trainer, prediction, trainer.answer_metrics, lines, run, groups)


def shared_contexts(contexts: Sequence[str]) -> list[int] | None:
    """Return a number per context, the same for the same one; None if no two questions share one."""
    number = {context: i for i, context in enumerate(dict.fromkeys(contexts))}
    return [number[context] for context in contexts] if len(number) < len(contexts) else None


def answer_line(row: dict[str, Any], found: Answers, predicted: str, question: str, context: str) -> dict[str, Any]:
    """Return what a file of predictions says of a question."""
    n_best = [
        {"text": context[start:end], "start": start, "probability": round(probability, 6)}
        for start, end, probability in found.spans
    ]
    return {
        "id": row["id"],
        "question": question,
        "gold": row["answers"]["text"] if "answers" in row else None,
        "predicted": predicted,
        "no_answer_probability": round(found.no_answer, 6),
        "no_answer_odds": round(found.odds, 6) if n_best else None,
        "n_best": n_best,
    }
