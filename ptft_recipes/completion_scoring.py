"""What a decoder writes behind the prompts of the test split, before training and after, scored with intervals."""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import EvalPrediction, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ptft_recipes.conversations import read_messages
from ptft_recipes.errors import InputError
from ptft_recipes.evaluation import predicts_test_split, report_test_split
from ptft_recipes.generation_kwargs import parse_generation_kwargs
from ptft_recipes.perplexity import STATISTICS, before_and_after, masked_lm_metrics
from ptft_recipes.sharding import is_cut
from ptft_recipes.text_metrics import text_metrics, text_statistics

SCORED = ("rouge1", "rouge2", "rougeL")

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """What `write_completions` returned: a text per row, statistics of the reference's tokens, and the seconds."""

    texts: list[str]
    statistics: np.ndarray
    seconds: float


def generation_settings(
    settings: Sequence[str], tokenizer: PreTrainedTokenizerBase, end: Sequence[int], max_new_tokens: int
) -> GenerationConfig:
    """Return how completions are written: greedily, unless the settings say otherwise.

    Args:
        settings: `name=value` pairs, fields of `GenerationConfig`: num_beams=4 length_penalty=0.8 ...
        tokenizer: The model's.
        end: Tokens at which a completion ends.
        max_new_tokens: Of a completion that does not end by itself.

    Raises:
        InputError: A field that there is not, or values that do not go together.
    """
    values: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
    values |= parse_generation_kwargs(settings)
    pad = tokenizer.pad_token_id
    values |= {"eos_token_id": [*end], "pad_token_id": end[0] if pad is None else pad}
    try:
        config = GenerationConfig(**values)
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(f"--generation_kwargs: {error}") from error
    return config


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch_size: int,
) -> list[str]:
    """Return what a decoder writes behind each prompt, in the order of the prompts.

    Prompts are read longest first, so that a batch has little padding, and padded on the left, where the text begins.

    Args:
        model: A decoder.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        config: As `generation_settings` returned it.
        batch_size: Prompts at once.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = len(prompts[rows[0]])
        padding = [width - len(prompts[i]) for i in rows]
        ids = [[config.pad_token_id] * n + [*prompts[i]] for n, i in zip(padding, rows, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        written = model.generate(**{name: x.to(model.device) for name, x in inputs.items()}, generation_config=config)
        new = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        for i, text in zip(rows, new, strict=True):
            texts[i] = text.strip()
    model.train(was_training)
    return texts


def write_completions(trainer, dataset: Dataset, run: dict[str, Any]) -> Written | None:
    """Let the model write as `complete` does; None where `run`, of `start_run`, says not to look at the test split."""
    return complete(trainer, dataset) if predicts_test_split(run) else None


def complete(trainer, dataset: Dataset) -> Written:
    """Let the model write the last answer of every row, and see how probable it finds the one that is there.

    Args:
        trainer: A `CompletionTrainer`; all processes call this together, and share the rows.
        dataset: As `tokenize_conversations` made it.

    Raises:
        InputError: A prompt and what may be written are longer than what the model reads, or the model is cut.
    """
    if is_cut(trainer):  # told before training: completions are written then too
        raise InputError(
            "each process writes completions on its own, with a whole model; use multi_gpu.yaml or ZeRO 2"
        )
    start, args, tokens = time.monotonic(), trainer.args, trainer.generation.max_new_tokens
    prompts = [
        row["input_ids"][: row["prompt_length"]] for row in dataset.select_columns(["input_ids", "prompt_length"])
    ]
    longest = max(map(len, prompts)) + tokens
    if longest > (limit := trainer.processing_class.model_max_length):
        raise InputError(
            f"--max_new_tokens {tokens}: with the longest prompt of test {longest} tokens, and this "
            f"model reads at most {limit}; lower it, or --max_length"
        )
    statistics = trainer.predict(dataset.select_columns(["input_ids", "labels", "length"])).predictions
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    mine = range(args.process_index, len(prompts), args.world_size)
    logger.info("writing %d completions", len(prompts))
    with trainer.autocast_smart_context_manager():
        texts = generate_texts(
            model, trainer.processing_class, [prompts[i] for i in mine], trainer.generation, args.eval_batch_size
        )
    parts = gather_object([[*zip(mine, texts, strict=True)]])
    texts = [text for _, text in sorted(pair for part in parts for pair in part)]
    return Written(texts, statistics, time.monotonic() - start)


def score_completions(
    trainer, rows: Dataset, before: Written | None, after: Written | None, run: dict[str, Any]
) -> dict[str, Any]:
    """Score what was written before training and after, with 95 % bootstrap intervals over the rows.

    Writes what `score_test_split` writes but for its plot; `predictions/test.jsonl` has prompt, gold, predicted, and
    what the model wrote before.

    Args:
        trainer: Trained; all processes call this together.
        rows: The test split as `load_conversations` returned it.
        before: Of `write_completions`, before training.
        after: After it.
        run: What `start_run` returned, and what the recipe added.

    Returns:
        As `score_test_split`: ROUGE, and the perplexity of the references' tokens; each also as `..._before`, and
        `rougeL_gain`, resampled together so that its interval is a paired one.
    """
    run["data"] |= {"text_metrics": [*SCORED], "language": ""}
    if before is None or after is None:
        return report_test_split(trainer, None, completion_metrics, [], run)
    chats = [read_messages(text) for text in rows["messages"]]
    gold = [chat[-1]["content"] for chat in chats]
    statistics = np.hstack([completion_statistics(written, gold) for written in (before, after)])
    columns = [*(f"{name}_before" for name in STATISTICS), *STATISTICS]
    sums = np.hstack([before.statistics, after.statistics]).tolist()
    lines = (
        {"id": name, "prompt": chat[:-1], "gold": right, "predicted": new, "predicted_before": old}
        | dict(zip(columns, row, strict=True))
        for name, chat, right, new, old, row in zip(
            rows["id"], chats, gold, after.texts, before.texts, sums, strict=True
        )
    )
    prediction = CompletionPrediction(statistics, statistics, {"test_runtime": after.seconds})
    return report_test_split(trainer, prediction, completion_metrics, lines, run)


class CompletionPrediction(NamedTuple):
    """As Trainer's `PredictionOutput`, with statistics `[rows, 2 * n]` in the place of predictions and labels."""

    predictions: np.ndarray
    label_ids: np.ndarray
    metrics: dict[str, float]


def completion_metrics(prediction, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score completions before training and after.

    Args:
        prediction: With `predictions` `[rows, 2 * n]`, each half as `completion_statistics` returns them.
        weights: `[rows]`, how often each counts; once each when None.
    """
    scores = before_and_after(completion_scores, prediction, weights)
    return scores | {"rougeL_gain": scores["rougeL"] - scores["rougeL_before"]}


def completion_statistics(written: Written, gold: Sequence[str]) -> np.ndarray:
    """Return per row what the scores are made of, `[rows, n]`: `text_statistics`, then `masked_lm_statistics`."""
    return np.hstack([text_statistics(written.texts, gold, SCORED), written.statistics])


def completion_scores(prediction, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score completions from `completion_statistics`: ROUGE, and perplexity and accuracy on the references' tokens."""
    texts, tokens = np.split(np.asarray(prediction.predictions), [-len(STATISTICS)], axis=1)
    written = text_metrics(EvalPrediction(texts, texts), metrics=SCORED, weights=weights)
    read = masked_lm_metrics(EvalPrediction(tokens, tokens), weights)
    return written | {"perplexity": read["perplexity"], "token_accuracy": read["accuracy"]}
