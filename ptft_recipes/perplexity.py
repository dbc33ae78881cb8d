"""Perplexity under masked language modelling: exact sums per row, intervals over documents."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

STATISTICS = ("loss", "tokens", "right")


def masked_lm_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum up per row what perplexity and accuracy are made of.

    Args:
        logits: `[masked tokens, vocabulary]`, at the labels that are not -100, row by row.
        labels: `[batch, length]`.

    Returns:
        `[batch, 3]` float64: summed negative log-likelihood in nats, masked tokens, tokens that were predicted right.
    """
    masked = labels != -100
    rows, targets = masked.nonzero()[:, 0], labels[masked]
    logits = logits.float()
    found = [
        F.cross_entropy(logits, targets, reduction="none"),
        torch.ones_like(targets),
        logits.argmax(-1) == targets,
    ]
    values = torch.stack([value.double() for value in found], dim=1)
    return values.new_zeros(len(labels), len(STATISTICS)).index_add_(0, rows, values)


def masked_lm_metrics(prediction, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score a masked language model from the statistics of its rows.

    Args:
        prediction: With `predictions` `[rows, 3]`, as `masked_lm_statistics` returns them.
        weights: `[rows]`, how often each row counts; once each when None.

    Returns:
        `perplexity`, the exponential of the mean over all masked tokens, not of a mean of means; and `accuracy`. nan
        when nothing is masked.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    loss, tokens, right = statistics.sum(axis=0) if weights is None else weights @ statistics
    if not tokens:
        return {"perplexity": float("nan"), "accuracy": float("nan")}
    return {"perplexity": float(np.exp(loss / tokens)), "accuracy": float(right / tokens)}


def sum_by_document(statistics: np.ndarray, documents: Sequence[str]) -> np.ndarray:
    """Sum the statistics of blocks `[blocks, n]` by document `[documents, n]`; as they are for a single document."""
    names, numbers = np.unique(documents, return_inverse=True)
    if len(names) == 1:  # resampled as a whole, it would have an interval of width 0
        return statistics
    sums = np.zeros((len(names), statistics.shape[1]))
    np.add.at(sums, numbers, statistics)
    return sums


def before_and_after(
    metrics: Callable[..., dict[str, float]], prediction, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Score a text before training and after it, and take the ratio of perplexities.

    Args:
        metrics: `metrics(prediction, weights)`, from sums per row to named scores.
        prediction: With `predictions` `[rows, 2 * statistics]`, those before training first.
        weights: `[rows]`, how often each row counts; once each when None.
    """
    halves = np.hsplit(np.asarray(prediction.predictions), 2)
    old, new = (metrics(EvalPrediction(half, prediction.label_ids), weights) for half in halves)
    scores = {}
    for name, value in new.items():
        scores |= {name: value, f"{name}_before": old[name]}
        if name.endswith("perplexity"):
            scores[f"{name}_ratio"] = value / old[name]
    return scores


def pseudo_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str, batch_size: int = 32
) -> float:
    """Return how surprising each token of a sentence is given all others, as a perplexity.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        sentence: Any text that fits into the model.
        batch_size: Copies of the sentence, each with one token masked, that the model reads at once.

    Returns:
        exp of the mean negative log-likelihood of the tokens, special ones left out, each masked alone.

    Raises:
        ValueError: The sentence has no tokens, or more than the model reads.

    Source: Salazar et al., Masked Language Model Scoring (2020), sections 2 and 3.
    """
    ids = tokenizer(sentence)["input_ids"]
    loss, tokens = pseudo_log_likelihood(model, tokenizer, ids, batch_size)
    if not tokens or len(ids) > tokenizer.model_max_length:
        raise ValueError(f"{tokens} tokens to score; between 1 and {tokenizer.model_max_length} are needed")
    return float(np.exp(loss / tokens))


def pseudo_log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], batch_size: int = 32
) -> tuple[float, int]:
    """Return the summed negative log-likelihood of tokens, each masked alone, and their number, special ones left out.

    Args:
        model: A masked language model.
        tokenizer: Its tokenizer.
        input_ids: `[length]`, a whole input of the model.
        batch_size: Copies of the input that the model reads at once.
    """
    ids = torch.tensor(input_ids, device=model.device)
    special = torch.tensor(tokenizer.get_special_tokens_mask(input_ids, already_has_special_tokens=True))
    places = (special == 0).nonzero()[:, 0].to(model.device)
    if not len(places) or len(ids) > tokenizer.model_max_length:
        return 0.0, len(places)
    was_training, total = model.training, 0.0
    model.eval()
    with torch.no_grad():
        for some in places.split(batch_size):
            rows = torch.arange(len(some), device=ids.device)
            copies = ids.repeat(len(some), 1)
            copies[rows, some] = tokenizer.mask_token_id
            logits = model(input_ids=copies, attention_mask=torch.ones_like(copies)).logits[rows, some]
            total += F.cross_entropy(logits.float(), ids[some], reduction="sum").item()
    model.train(was_training)
    return total, len(places)
