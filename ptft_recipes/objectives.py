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
        outputs: With `logits` `[batch, labels]`, or `[batch, length, labels]` for a label per token.
        labels: `[batch]` or `[batch, length]` class numbers; `[batch, labels]` of 0 and 1; or `[batch]` floats; -100
            for one to leave out.
        num_items_in_batch: Number of label values other than -100 in the whole optimizer step, over all accumulated
            batches and all processes, as Trainer counts them; the number in `labels` when None.
        problem_type: As in `PreTrainedConfig.problem_type`.
        class_weights: `[labels]`, by which an example of that class counts (single label), or by which a present label
            counts (multi-label). Torch's mean divides by the sum of the weights in the batch; here the divisor stays
            the number of items, because the weights of the other batches are not known.
        label_smoothing: Share of the target that is spread evenly over all labels (single label; Szegedy et al.,
            2016), or over presence and absence (multi-label).

    Returns:
        A scalar.

    Raises:
        InputError: Weights or smoothing for a regression, which has no labels that they could mean.
    """
    logits = outputs.logits.float()
    weights = None if class_weights is None else class_weights.to(logits)
    if problem_type == REGRESSION:
        if label_smoothing or weights is not None:
            raise InputError("--class_weights, --label_smoothing_factor: regression has no classes to weigh or smooth")
        total = ((logits.reshape(labels.shape) - labels.float()).square() * (labels != -100)).sum()
    elif problem_type == MULTI:
        targets = labels.float() * (1 - label_smoothing) + 0.5 * label_smoothing
        kept = {"weight": (labels != -100).float(), "pos_weight": weights}
        total = F.binary_cross_entropy_with_logits(logits, targets, **kept, reduction="sum")
    else:
        flat = logits.flatten(0, -2), labels.flatten()
        total = F.cross_entropy(*flat, weight=weights, reduction="sum", label_smoothing=label_smoothing)
    items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / max(items, 1)  # a step of sentences without a token that is labelled has loss 0


def masked_lm_loss(
    outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy of the hidden tokens, computed in float32.

    Args:
        outputs: With `logits`, `[hidden tokens, vocabulary]` where the head was computed at those only, row by row, or
            `[batch, length, vocabulary]`.
        labels: `[batch, length]`, -100 for tokens that are not hidden.
        num_items_in_batch: As for `classification_loss`.

    Returns:
        A scalar; 0 for a step in which nothing is hidden.
    """
    hidden = labels != -100
    logits = outputs.logits[hidden] if outputs.logits.dim() == 3 else outputs.logits
    total = F.cross_entropy(logits.float(), labels[hidden], reduction="sum")
    items = hidden.sum() if num_items_in_batch is None else num_items_in_batch
    return total / max(items, 1)


def span_loss(
    outputs,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of the first and the last token of an answer, their mean, computed in float32.

    The choice is among the tokens of the context and the first token of the window, which stands for no answer; not
    among question and padding: with padding in it, the loss of a row would depend on the longest one beside it.

    Args:
        outputs: With `start_logits` and `end_logits` `[batch, length]`.
        labels: `[batch, 4]` positions: of the answer's first and last token, 0 twice for no answer; of the context's
            first token, and of what comes behind its last. -100 everywhere in a row to leave out.
        num_items_in_batch: Number of values of all labels of the optimizer step, as Trainer counts them: four a row.
        label_smoothing: Share of the target that is spread evenly over all tokens that there are to choose from.

    Returns:
        A scalar.

    Source: Devlin et al., BERT (2019), sections 4.2 and 4.3.
    """
    begin, end = labels[:, 2:3], labels[:, 3:4]
    answer = labels[:, :2].clamp(min=0)  # a row to leave out has a single token to choose from, and so no loss
    position = torch.arange(outputs.start_logits.shape[1], device=labels.device)
    allowed = ((position >= begin) & (position < end)) | (position == 0)
    total = 0.0
    for logits, gold in ((outputs.start_logits, answer[:, 0]), (outputs.end_logits, answer[:, 1])):
        scores = logits.float().masked_fill(~allowed, -torch.inf).log_softmax(-1)
        total = total - (1 - label_smoothing) * scores.gather(1, gold[:, None]).sum()
        if label_smoothing:
            mean = scores.masked_fill(~allowed, 0).sum(-1) / allowed.sum(-1)
            total = total - label_smoothing * mean.sum()
    items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return 2 * total / max(items, 1)  # half of two per row; four items are a row


def balanced_class_weights(
    labels, power: float = 1.0, *, problem_type: str = SINGLE, label_names: list[str]
) -> torch.Tensor | None:
    """Return weights by which rare labels count more than frequent ones.

    For a single label: (rows / rows of that label) ** power, scaled to a mean of 1 over the training rows, so that the
    learning rate keeps its meaning. With power 1 every label counts the same (scikit-learn's "balanced"), with 0 every
    row, and 0.5 lies between. For several labels: (absent / present) ** power, per label.

    Args:
        labels: `[rows]` class numbers, or `[rows, labels]` of 0 and 1.
        power: From 0 to 1.
        problem_type: As in `PreTrainedConfig.problem_type`.
        label_names: `[labels]`; also the last of them may be in no row.

    Returns:
        None for power 0; else `[labels]` float32, 1 for a label that is in no row or, of several labels, in every
        row: there is nothing to balance it by, and 0 would hide it from the loss.

    Raises:
        InputError: Regression has no classes to weigh, or `power` is not between 0 and 1.
    """
    if power == 0:
        return None
    if problem_type == REGRESSION:
        raise InputError("--class_weights: a regression has no classes to weigh")
    if not 0 <= power <= 1:
        raise InputError(
            f"--class_weights {power}: must be between 0 (every row counts alike) and 1 (every label does)"
        )
    labels = np.asarray(labels[:])  # a column of `datasets` is read at once, not row by row
    present = labels.sum(axis=0) if problem_type == MULTI else np.bincount(labels, minlength=len(label_names))
    others = len(labels) - present if problem_type == MULTI else np.full(len(label_names), len(labels))
    known = (present > 0) & (others > 0)
    weights = np.divide(others, present, out=np.ones(len(label_names)), where=known) ** power
    if problem_type != MULTI:
        weights[known] *= len(labels) / (weights @ present)
    return torch.tensor(weights, dtype=torch.float32)
