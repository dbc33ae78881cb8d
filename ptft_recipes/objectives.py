"""Losses for Trainer's `compute_loss_func`: sums over all items of a step, divided once by their number.

A mean per micro-batch weighs a short last batch like a full one, and changes with accumulation and with the number of
processes. These losses do not.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ptft_recipes.errors import InputError
from ptft_recipes.labels import MULTI, REGRESSION, SINGLE


def classification_loss(
    outputs,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    problem_type: str = SINGLE,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy, binary cross entropy per label, or squared error, by problem type; computed in float32.

    Args:
        outputs: With `logits` `[batch, labels]`.
        labels: `[batch]` class numbers, `[batch, labels]` of 0 and 1, or `[batch]` floats.
        num_items_in_batch: Number of label values in the whole optimizer step, over all accumulated batches and all
            processes, as Trainer counts them; the number in `labels` when None.
        problem_type: As in `PreTrainedConfig.problem_type`.
        class_weights: `[labels]`, by which an example of that class counts (single label), or by which a present label
            counts (multi-label).
        label_smoothing: Share of the target that is spread over all labels (Szegedy et al., 2016).

    Returns:
        A scalar.
    """
    logits = outputs.logits.float()
    weights = None if class_weights is None else class_weights.to(logits.device)
    if problem_type == REGRESSION:
        total = F.mse_loss(logits.reshape(labels.shape), labels.float(), reduction="sum")
    elif problem_type == MULTI:
        targets = labels.float() * (1 - label_smoothing) + 0.5 * label_smoothing
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
    else:
        total = F.cross_entropy(logits, labels, weight=weights, reduction="sum", label_smoothing=label_smoothing)
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def balanced_class_weights(labels, problem_type: str = SINGLE) -> torch.Tensor:
    """Return weights that make rare labels count as much as frequent ones.

    For a single label: rows / (labels * rows of that label), whose mean over the training rows is 1, so that the
    learning rate keeps its meaning; scikit-learn's "balanced". For several labels: absent / present, per label.

    Args:
        labels: `[rows]` class numbers, or `[rows, labels]` of 0 and 1.
        problem_type: As in `PreTrainedConfig.problem_type`.

    Returns:
        `[labels]` float32.

    Raises:
        InputError: Regression has no classes to weigh.
    """
    if problem_type == REGRESSION:
        raise InputError("--class_weights: a regression has no classes to weigh")
    rows, labels = len(labels), np.asarray(labels)
    if problem_type == MULTI:
        count = labels.sum(axis=0)
        weights = np.where(count > 0, (rows - count) / np.maximum(count, 1), 1.0)
    else:
        count = np.bincount(labels)
        weights = np.where(count > 0, rows / (np.count_nonzero(count) * np.maximum(count, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32)
