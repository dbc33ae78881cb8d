"""The mistakes that a model was surest of: where labels are wrong, or the model has learned something else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ptft_recipes.labels import MULTI, REGRESSION
from ptft_recipes.metrics import probabilities
from ptft_recipes.reporting import write_text


def confident_mistakes(
    prediction: EvalPrediction,
    texts: Sequence[dict[str, Any]],
    problem_type: str,
    label_names: Sequence[str],
    most: int = 50,
) -> list[dict[str, Any]]:
    """Return the wrong predictions, the surest first.

    Args:
        prediction: With logits and labels, as for `classification_metrics`.
        texts: `[examples]`, what a reader is to see of each: its id and its text.
        problem_type: As in `PreTrainedConfig.problem_type`.
        label_names: `[labels]`.
        most: How many at most.

    Returns:
        Per mistake what `texts` has, `gold`, `predicted`, and the `probability` of the prediction; of several labels
        per example a mistake is one label; of numbers there is the `error`, and the largest come first.
    """
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if problem_type == REGRESSION:
        found = logits.reshape(labels.shape)
        order = np.argsort(-np.abs(found - labels), kind="stable")[:most]
        return [texts[i] | {"gold": float(labels[i]), "predicted": float(found[i]),
                            "error": float(found[i] - labels[i])} for i in order.tolist()]  # fmt: skip
    scores = probabilities(logits, problem_type)
    if problem_type == MULTI:
        sure = np.where((scores >= 0.5) != (labels > 0), np.maximum(scores, 1 - scores), -1.0)
        cells = [np.unravel_index(i, sure.shape) for i in np.argsort(-sure, axis=None, kind="stable")[:most]]
        return [
            texts[i]
            | {
                "gold": f"{'' if labels[i, k] else 'not '}{label_names[k]}",
                "predicted": f"{'' if scores[i, k] >= 0.5 else 'not '}{label_names[k]}",
                "probability": round(float(sure[i, k]), 4),
            }
            for i, k in cells
            if sure[i, k] >= 0
        ]
    predicted = scores.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:most]
    return [
        texts[i]
        | {
            "gold": label_names[labels[i]],
            "predicted": label_names[predicted[i]],
            "probability": round(float(scores[i].max()), 4),
        }
        for i in order.tolist()
    ]


def write_mistakes(mistakes: list[dict[str, Any]], output_dir: Path, title: str = "The surest mistakes") -> None:
    """Write `mistakes.md`, a table for people, and `mistakes.jsonl`."""
    lines = [json.dumps(mistake, ensure_ascii=False) + "\n" for mistake in mistakes]
    write_text(output_dir / "mistakes.jsonl", "".join(lines))
    columns = list(mistakes[0]) if mistakes else []
    rows = [columns, ["---"] * len(columns), *([_cell(mistake[c]) for c in columns] for mistake in mistakes)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows) if mistakes else "No mistakes.\n"
    write_text(output_dir / "mistakes.md", f"# {title}\n\n{table}")


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
