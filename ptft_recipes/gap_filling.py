"""Gap filling with Trainer: batches, held-out rows, scores, and encoder-decoders from checkpoints or new weights."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from ptft_recipes.collators import HELD_OUT_SEED
from ptft_recipes.errors import InputError
from ptft_recipes.gaps import Gaps
from ptft_recipes.modeling import ModelArguments, from_pretrained, load_model, load_tokenizer
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, masked_lm_statistics
from ptft_recipes.pretraining import BlockTrainer
from ptft_recipes.tuning import TuningArguments, apply_tuning

logger = logging.getLogger(__name__)


class GapCollator:
    """Makes the gaps of each row, pads, and gives the decoder what it reads.

    Trainer takes the labels away from a model whose loss it computes; a T5 then asks for `decoder_input_ids`, and a
    BART takes the encoder's input for them and says nothing. So they are made here: the labels shifted by one.

    Args:
        gaps: Of training; rows that have `labels` already are only padded.
        config: The model's, with the tokens that fill up a batch and that a decoder starts from.
    """

    def __init__(self, gaps: Gaps, config: PreTrainedConfig):  # noqa: D107
        self.gaps, self.pad_id, self.start_id = gaps, config.pad_token_id, config.decoder_start_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: With `input_ids` and either `labels` and `hidden_labels`, or `word_ids`, `row` and optionally
                `epoch`.

        Returns:
            `input_ids` and `attention_mask`, `[batch, length]`; `labels`, `decoder_input_ids` and
            `hidden_labels` (bool, labels that are tokens of the text which the input lacks), `[batch, target length]`.
        """
        rows = [
            tuple(np.asarray(example[name]) for name in ("input_ids", "labels", "hidden_labels"))
            if "labels" in example
            else self.gaps.corrupt(example["input_ids"], example["word_ids"], example["row"], example.get("epoch", 0))
            for example in examples
        ]
        length, target_length = (max(len(row[k]) for row in rows) for k in (0, 1))
        input_ids = np.full((len(rows), length), self.pad_id)
        attention_mask = np.zeros_like(input_ids)
        labels = np.full((len(rows), target_length), -100)
        hidden = np.zeros(labels.shape, dtype=bool)
        decoder_input_ids = np.full(labels.shape, self.pad_id)
        decoder_input_ids[:, 0] = self.start_id
        for i, (ids, targets, is_hidden) in enumerate(rows):
            input_ids[i, : len(ids)], attention_mask[i, : len(ids)] = ids, 1
            labels[i, : len(targets)], hidden[i, : len(targets)] = targets, is_hidden
            decoder_input_ids[i, 1 : len(targets)] = targets[:-1]
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        return {
            name: torch.from_numpy(value)
            for name, value in (batch | {"labels": labels, "hidden_labels": hidden}).items()
        }


def corrupt_held_out(
    dataset: Mapping[str, Dataset | IterableDataset], tokenizer: PreTrainedTokenizerBase, objective: str
) -> dict[str, Dataset]:
    """Make the gaps of held-out rows once and for all, the same for every run: at the paper's rate, by one seed.

    Args:
        dataset: Of blocks, by split; those to train on are left out.
        tokenizer: As `load_gap_tokenizer` returned it.
        objective: As for `Gaps`.

    Returns:
        By split the blocks with `input_ids`, `labels`, `hidden_labels`, `length` (of `input_ids`), `document`, and
        their number `row`.

    Raises:
        InputError: Nothing could be hidden.
    """
    gaps = Gaps(tokenizer, objective, seed=HELD_OUT_SEED)

    def corrupt(example: dict[str, Any], row: int) -> dict[str, Any]:
        found = gaps.corrupt(example["input_ids"], example["word_ids"], row)
        columns = {"input_ids": found.input_ids, "labels": found.labels, "hidden_labels": found.hidden}
        return columns | {"length": len(found.input_ids), "row": row}

    held_out = {}
    for split, blocks in dataset.items():
        if split.split("/")[0] != "train":
            held_out[split] = blocks.map(corrupt, with_indices=True, remove_columns="word_ids")
            if not any(any(hidden) for hidden in held_out[split]["hidden_labels"]):
                raise InputError(f"{split}: no token could be hidden; its rows are of one token")
    return held_out


def load_gap_filler(
    model_args: ModelArguments, tuning_args: TuningArguments, tokenizer: PreTrainedTokenizerBase, gaps: Gaps
) -> tuple[PreTrainedModel | PeftModel, list[str]]:
    """Load an encoder-decoder, give it embeddings of the tokens that its tokenizer lacked, and choose what moves.

    Args:
        model_args: What to load.
        tuning_args: As for `apply_tuning`.
        tokenizer: As `load_gap_tokenizer` returned it.
        gaps: Of training.

    Returns:
        As `load_model`.

    Raises:
        InputError: No encoder-decoder, a checkpoint without a decoder, one whose decoder starts or ends otherwise, new
            tokens under a tuning method that would not train them; or as `load_model` and `apply_tuning`.
    """
    name, config = model_args.model_name_or_path, from_pretrained(AutoConfig, model_args)
    if not config.is_encoder_decoder:
        raise InputError(
            f"{name} is of type {config.model_type}; gap filling needs an encoder-decoder such as T5 or BART; "
            "recipes/pretrain_mlm.py goes on with encoders"
        )
    if config.decoder_start_token_id is None:
        raise InputError(f"{name}: its config has no decoder_start_token_id; a decoder must start from something")
    rows = {"vocab_size": max(config.vocab_size, len(tokenizer))} if model_args.from_scratch else {}
    model, new_modules = load_model(AutoModelForSeq2SeqLM, model_args, load_tokenizer(model_args), **rows)
    if model_args.from_scratch:
        model.config.eos_token_id = model.generation_config.eos_token_id = gaps.end_id
    elif any("decoder" in module.split(".") for module in new_modules):
        raise InputError(f"{name}: the checkpoint has no decoder; --from_scratch makes all weights new")
    elif model.config.eos_token_id != gaps.end_id:
        raise InputError(
            f"{name}: the tokenizer ends a text with token {gaps.end_id}, and the model with "
            f"{model.config.eos_token_id}: they are not of one model"
        )
    if tuning_args.tuning == "linear_probe":
        raise InputError("--tuning linear_probe: the head of an encoder-decoder is its embeddings; use full or lora")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        if tuning_args.tuning != "full":
            raise InputError(
                f"--tuning {tuning_args.tuning}: {gaps.token} is new to this model and would not be trained; use "
                "--tuning full, or an --objective whose tokens it has"
            )
        # By default every new row is the mean of the old ones: sentinels that nobody could tell apart.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        logger.info("  embeddings: %d rows, those of the new tokens among them", len(tokenizer))
    return apply_tuning(model, tuning_args, "SEQ_2_SEQ_LM", new_modules), new_modules


def gap_statistics(outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Sum up per row what the scores are made of.

    Args:
        outputs: `logits` `[batch, target length, vocabulary]` and `hidden` `[batch, target length]`.
        labels: `[batch, target length]`, -100 for padding.

    Returns:
        `[batch, 6]` float64: `masked_lm_statistics` of all labels, then of those that are hidden.
    """
    logits, hidden = outputs
    in_gaps = labels.masked_fill(hidden != 1, -100)  # numbers where accelerate has padded one process to another
    return torch.hstack([masked_lm_statistics(logits[wanted != -100], wanted) for wanted in (labels, in_gaps)])


def gap_metrics(prediction, weights: np.ndarray | None = None) -> dict[str, float]:
    """Score a model from the statistics of rows.

    Args:
        prediction: With `predictions` `[rows, 6]`, as `gap_statistics` returns them.
        weights: `[rows]`, how often each row counts; once each when None.

    Returns:
        `gap_perplexity` and `gap_accuracy` of the tokens of the text that the input lacks, each after the right ones
        before it; and `target_perplexity` and `target_accuracy` of all that the decoder writes, of which sentinels and
        the end (span corruption) or what it may copy (infilling) become easy. nan where there is nothing to score.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    sums = statistics.sum(axis=0) if weights is None else weights @ statistics
    parts = {"gap": sums[3:], "target": sums[:3]}
    return {
        f"{part}_{name}": value
        for part, each in parts.items()
        for name, value in masked_lm_metrics(EvalPrediction(each[None], None)).items()
    }


class GapFillingTrainer(BlockTrainer):
    """BlockTrainer of an encoder-decoder; the loss is the mean over all labels of an optimizer step."""

    statistics = (*(f"target_{name}" for name in STATISTICS), *(f"gap_{name}" for name in STATISTICS))

    def __init__(self, *args, **kwargs):  # noqa: D107
        scoring = {"preprocess_logits_for_metrics": gap_statistics, "compute_metrics": gap_metrics}
        super().__init__(*args, compute_loss_func=masked_lm_loss, **scoring, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss as RecipeTrainer does; which labels are hidden goes past the model to the scores."""
        hidden = inputs.pop("hidden_labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (loss, ModelOutput(logits=outputs.logits, hidden=hidden)) if return_outputs else loss
