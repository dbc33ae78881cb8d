"""Next-sentence and sentence-order prediction beside masked language modelling: losses, scores, and the trainer."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, PreTrainedModel
from transformers.utils import ModelOutput

from ptft_recipes.errors import InputError
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, masked_lm_statistics
from ptft_recipes.pretraining import TwoLossTrainer
from ptft_recipes.sparse_head import only_at


def sentence_objective(model: PreTrainedModel) -> str:
    """Return what the sentence head of a model predicts: `next` (BERT's) or `order` (ALBERT's).

    Raises:
        InputError: It has no such head, or its weights are quantised and could not be trained.
    """
    if getattr(model, "is_quantized", False):
        raise InputError("--load_in_4bit, --load_in_8bit: this recipe moves all weights, and quantised ones cannot")
    if hasattr(model, "sop_classifier"):
        return "order"
    if hasattr(getattr(model, "cls", None), "seq_relationship"):
        return "next"
    raise InputError(
        f"{type(model).__name__} has no head for pairs of sentences, as BERT and ALBERT have one; "
        "recipes/pretrain_mlm.py trains a model without it"
    )


@dataclass
class SentencePairOutput(ModelOutput):
    """What a model with both heads returns for a batch.

    Args:
        logits: `[hidden tokens, vocabulary]`, row by row.
        sentence_logits: `[batch, 2]`.
        sentence_labels: `[batch]`, -100 for a row without a second segment.
    """

    logits: torch.Tensor | None = None
    sentence_logits: torch.Tensor | None = None
    sentence_labels: torch.Tensor | None = None


def sentence_pair_loss(
    outputs: SentencePairOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy of the hidden tokens, plus that of the pairs: each a mean over its own items.

    Args:
        outputs: Of `SentencePairTrainer`.
        labels: `[batch, length]`, -100 for tokens that are not hidden.
        num_items_in_batch: `[2]`, hidden tokens and pairs in the whole optimizer step, over all accumulated batches
            and all processes; those of the batch when None.

    Returns:
        A scalar.
    """
    hidden, pairs = (None, None) if num_items_in_batch is None else num_items_in_batch
    pairs = (outputs.sentence_labels != -100).sum() if pairs is None else pairs
    total = F.cross_entropy(outputs.sentence_logits.float(), outputs.sentence_labels, reduction="sum")
    return masked_lm_loss(outputs, labels, hidden) + total / pairs.clamp(min=1)


def sentence_pair_statistics(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Sum up per row what the scores are made of.

    Args:
        outputs: `logits`, `sentence_logits` and `sentence_labels` of `SentencePairOutput`.
        labels: `[batch, length]`.

    Returns:
        `[batch, 6]` float64: `masked_lm_statistics`; of the pair its negative log-likelihood in nats, 1 if there is
        one, and 1 if it was called right.
    """
    logits, sentence_logits, truth = outputs
    is_pair = truth != -100
    loss = F.cross_entropy(sentence_logits.float(), truth, reduction="none")
    found = torch.stack([loss.double(), is_pair.double(), (sentence_logits.argmax(-1) == truth).double()], dim=1)
    return torch.hstack([masked_lm_statistics(logits, labels), found])


def sentence_pair_metrics(prediction, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score both heads from the statistics of rows.

    Args:
        prediction: With `predictions` `[rows, 6]`, as `sentence_pair_statistics` returns them.
        weights: `[rows]`, how often each row counts; once each when None.

    Returns:
        `loss`, that of training; `perplexity` and `accuracy` of the hidden tokens; `sentence_loss` and
        `sentence_accuracy` of the pairs. nan where there is nothing to score.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    sums = statistics.sum(axis=0) if weights is None else weights @ statistics
    tokens = masked_lm_metrics(EvalPrediction(sums[None, :3], None))
    loss, pairs, right = sums[3:]
    sentence = {
        "sentence_loss": float(loss / pairs) if pairs else float("nan"),
        "sentence_accuracy": float(right / pairs) if pairs else float("nan"),
    }
    return {"loss": float(np.log(tokens["perplexity"])) + sentence["sentence_loss"]} | tokens | sentence


class SentencePairTrainer(TwoLossTrainer):
    """TwoLossTrainer of a model with a vocabulary head, computed at hidden tokens only, and a sentence head."""

    statistics = (*STATISTICS, "sentence_loss", "pairs", "sentence_right")
    no_label: ClassVar = {"labels": -100, "sentence_labels": -100}

    def __init__(self, *args, **kwargs):  # noqa: D107
        super().__init__(
            *args,
            compute_loss_func=sentence_pair_loss,
            compute_metrics=sentence_pair_metrics,
            preprocess_logits_for_metrics=sentence_pair_statistics,
            **kwargs,
        )

    def count_items(self, batch) -> torch.Tensor:
        """Return the hidden tokens and the pairs of a batch, `[2]`."""
        return torch.stack([(batch["labels"] != -100).sum(), (batch["sentence_labels"] != -100).sum()])

    def run_model(self, model, inputs):
        """Return a `SentencePairOutput`, and the labels of the hidden tokens."""
        labels, sentence_labels = inputs.pop("labels"), inputs.pop("sentence_labels")
        plain_model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        with only_at(plain_model, labels != -100, sparse=not self.stock):
            logits, sentence_logits = model(**inputs).to_tuple()[:2]
        return SentencePairOutput(logits, sentence_logits, sentence_labels), labels
