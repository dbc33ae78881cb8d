"""Token classification with Trainer: scored by sentence, whatever windows a sentence was cut into."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from ptft_recipes.evaluation import predicts_test_split, report_test_split
from ptft_recipes.metrics import confusion_matrix
from ptft_recipes.reporting import plot_confusion_matrix
from ptft_recipes.tag_metrics import tag_metrics, tag_statistics
from ptft_recipes.tag_schemes import PLAIN
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.windows import merge_windows


class TaggingTrainer(RecipeTrainer):
    """RecipeTrainer over windows of words, whose predictions are a tag per word of a sentence.

    Args:
        args: As for RecipeTrainer.
        eval_rows: The validation sentences with `labels`, of which `eval_dataset` has the windows.
        task: `label_names`, the `scheme` of the tags, and `default_label`, as `load_tagged_splits` reports them.
        kwargs: As for RecipeTrainer.
    """

    def __init__(self, *args, eval_rows: Dataset, task: dict[str, Any], **kwargs):  # noqa: D107
        super().__init__(*args, preprocess_logits_for_metrics=best_labels, **kwargs)
        self.compute_metrics = self._score_validation
        self.eval_gold, self.task, self.windows = eval_rows["labels"][:], task, None
        self.tag_metrics = partial(tag_metrics, label_names=task["label_names"], scheme=task["scheme"])

    def get_eval_dataloader(self, eval_dataset=None):
        """Return the loader, and remember which windows it loads: Trainer takes all that is no input out of them."""
        self.windows = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def tags_of(self, predicted: np.ndarray, windows: Dataset) -> dict[int, list[str]]:
        """Return per row number the tags of its words, from label numbers per token `[windows, length]`."""
        names = self.task["label_names"]
        merged = merge_windows(predicted, windows, names.index(self.task["default_label"]))
        return {row: [names[label] for label in labels] for row, labels in merged.items()}

    def predict_tags(self, windows: Dataset) -> tuple[list[list[str]], PredictionOutput]:
        """Predict, and return the tags of every row and what `predict` returned."""
        scoring, self.compute_metrics = self.compute_metrics, None  # they are of validation
        try:
            output = self.predict(windows)
        finally:
            self.compute_metrics = scoring
        tags = self.tags_of(output.predictions, windows)
        return [tags[row] for row in range(len(tags))], output

    def statistics_of(self, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
        """Return `tag_statistics` of sentences."""
        return tag_statistics(gold, predicted, self.task["label_names"], self.task["scheme"])

    def _score_validation(self, prediction: EvalPrediction) -> dict[str, float]:
        names = self.task["label_names"]
        # The check before training has the first windows only, which may be some of a sentence's.
        windows = self.windows.select(range(len(prediction.predictions)))
        tags = self.tags_of(prediction.predictions, windows)
        gold = [[names[label] for label in self.eval_gold[row]][: len(found)] for row, found in tags.items()]
        statistics = self.statistics_of(gold, list(tags.values()))
        return self.tag_metrics(EvalPrediction(statistics, statistics))


def best_labels(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Return the best label of every token, `[batch, length]`, so that logits need not be kept.

    Raises:
        FloatingPointError: A logit is not finite; its best label would look like any other.
    """
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the logits of some tokens are nan or infinite")
    return logits.argmax(-1)


def score_tags(
    trainer: TaggingTrainer, windows: Dataset, rows: Dataset, words_column: str, run: dict[str, Any]
) -> dict[str, Any]:
    """Predict the test split once, score it with 95 % intervals resampled by sentence, and write what a reader needs.

    Writes what `score_test_split` writes; `predictions/test.jsonl` has words, gold and predicted tags; the confusion
    matrix is of words, for plain tags only. A test split without `labels` is predicted and not scored.

    Args:
        trainer: Trained; all processes call this together.
        windows: Of the test split.
        rows: Its sentences, with `id` and words.
        words_column: Their words.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        As `score_test_split`.
    """
    if not predicts_test_split(run):
        return report_test_split(trainer, None, trainer.tag_metrics, [], run)
    names = trainer.task["label_names"]
    predicted, output = trainer.predict_tags(windows)
    gold = statistics = None
    if "labels" in rows.column_names:
        gold = [[names[label] for label in row] for row in rows["labels"]]
        statistics = trainer.statistics_of(gold, predicted)
    if gold and trainer.task["scheme"] == PLAIN and trainer.is_world_process_zero():
        number = {name: i for i, name in enumerate(names)}
        pairs = [[number[tag] for row in tags for tag in row] for tags in (predicted, gold)]
        counts = confusion_matrix(*map(np.array, pairs), len(names))
        plot_confusion_matrix(counts, names, Path(trainer.args.output_dir) / "plots" / "confusion_matrix.png")
    lines = (
        {"id": row["id"], "words": row[words_column], "gold": gold and gold[i], "predicted": predicted[i]}
        for i, row in enumerate(rows)
    )
    prediction = output._replace(predictions=statistics, label_ids=statistics)
    return report_test_split(trainer, prediction, trainer.tag_metrics, lines, run)
