"""How finely a tokenizer cuts a text, before and after a change, with intervals over the documents."""

import itertools
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ptft_recipes.card import write_model_card
from ptft_recipes.evaluation import split_by_class
from ptft_recipes.provenance import peak_memory, seconds_since_start
from ptft_recipes.reporting import write_text
from ptft_recipes.significance import bootstrap_intervals

logger = logging.getLogger(__name__)

TOKENS, UNKNOWN, WORDS = range(3)
LOGGED = (
    ("fertility", "tokens per word", 1, 3),
    ("unknown", "% of the tokens", 100, 2),
    ("length", "tokens per document", 1, 0),
)


def count_per_document(tokenizer: PreTrainedTokenizerBase, documents: Iterable[str]) -> np.ndarray:
    """Count tokens, unknown tokens and words of each document, nothing cut off, without special tokens.

    Words are what stands between spaces, punctuation and all: the same for every tokenizer.

    Args:
        tokenizer: Any.
        documents: Read once, as a stream.

    Returns:
        `[documents, 3]`.
    """
    counts = []
    documents = iter(documents)
    while batch := list(itertools.islice(documents, 64)):
        encoded = tokenizer(batch, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        counts += [
            (len(ids), ids.count(tokenizer.unk_token_id), len(text.split()))
            for ids, text in zip(encoded, batch, strict=True)
        ]
    return np.array(counts, dtype=float).reshape(-1, 3)


def compare_tokenizers(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, texts: dict[str, Iterable[str]]
) -> dict[str, dict[str, Any]]:
    """Measure two tokenizers on the same documents.

    Args:
        before: The old one.
        after: The new one.
        texts: Documents: `test`, the domain's, and `test/<name>` further ones; each is read twice.

    Returns:
        `{"fertility_before": {"value", "ci95", "n"}, ...}`, with for each tokenizer: `fertility`, tokens per word;
        `unknown`, the share of tokens that are unknown; `length`, tokens per document. And `tokens_saved`, the share
        of the old tokens that the new tokenizer does not need, with a paired interval. The same as
        `fertility_before/<name>` of further texts; `n` is the number of documents.

    Source: Rust et al., How Good is Your Tokenizer? (ACL 2021), for fertility.
    """
    metrics = {}
    for name, documents in texts.items():
        counts = np.stack([count_per_document(tokenizer, documents) for tokenizer in (before, after)])
        rows = counts.shape[1]
        values = _scores(counts, np.ones(rows))
        intervals = bootstrap_intervals(lambda weights, counts=counts: _scores(counts, weights), rows)
        suffix = name.removeprefix("test")
        metrics |= {f"{key}{suffix}": _entry(values[key], intervals[key], rows) for key in values}
    return metrics


def _scores(counts: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    sums = np.einsum("tdk,d->tk", counts, weights)
    scores = {}
    for when, total in zip(("before", "after"), sums, strict=True):
        scores[f"fertility_{when}"] = total[TOKENS] / total[WORDS]
        scores[f"unknown_{when}"] = total[UNKNOWN] / total[TOKENS] if total[TOKENS] else float("nan")
        scores[f"length_{when}"] = total[TOKENS] / weights.sum()
    scores["tokens_saved"] = 1 - sums[1, TOKENS] / sums[0, TOKENS] if sums[0, TOKENS] else float("nan")
    return {name: float(value) for name, value in scores.items()}


def _entry(value: float, interval: list[float | None], rows: int) -> dict[str, Any]:
    return {"value": None if np.isnan(value) else value, "ci95": interval, "n": rows}


def write_tokenizer_results(output_dir: str | Path, metrics: dict[str, dict], run: dict[str, Any]) -> dict[str, Any]:
    """Write the card and `results.json`, and log the comparison.

    Args:
        output_dir: Of the run.
        metrics: As `compare_tokenizers` returned them.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        `{"split": "test", "metrics": ..., "run": ...}`.
    """
    output_dir = Path(output_dir)
    run = run | {"seconds": {"total": round(seconds_since_start(), 1)}, "peak_memory_gib": peak_memory("cpu")}
    results = {"split": "test", "metrics": metrics, "run": run}
    write_model_card(output_dir, results, None, str(output_dir))
    # Last: a folder with results.json is a finished run.
    write_text(output_dir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    logger.info("held-out text, with 95 % bootstrap intervals over its documents:")
    domain, others = split_by_class(metrics)
    for name, scores in {run["data"]["name"]: domain, **others}.items():
        logger.info("  %s, %d documents", name, scores["tokens_saved"]["n"])
        for key, unit, scale, digits in LOGGED:
            old, new = (_format(scores[f"{key}_{when}"], scale, digits) for when in ("before", "after"))
            logger.info("    %-13s %s -> %s %s", key, old, new, unit)
        logger.info("    %-13s %s %% of the old tokens", "saved", _format(scores["tokens_saved"], 100, 2))
    logger.info("%s: what the next recipe loads, results.json; %.0f s", output_dir, run["seconds"]["total"])
    return results


def _format(score: dict[str, Any], scale: int, digits: int) -> str:
    numbers = (score["value"], *score["ci95"])
    if None in numbers:
        return "undefined"
    value, low, high = (f"{scale * number:,.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"
