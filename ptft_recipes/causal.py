"""Next-token prediction with Trainer: batches, the head where it is needed, and models that can do it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel, PromptLearningConfig
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ptft_recipes.errors import InputError
from ptft_recipes.infilling import FillInTheMiddle
from ptft_recipes.objectives import masked_lm_loss
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, masked_lm_statistics
from ptft_recipes.pretraining import BlockTrainer, PredictsBeforeTraining
from ptft_recipes.sparse_head import only_at
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.tuning import TuningArguments, apply_tuning

NO_LABEL = -100


class CausalCollator:
    """Pads rows, and puts the label of each token at the token before it, which is to predict it.

    Args:
        tokenizer: The model's. Without a padding token rows are padded with the end-of-text token, or with any:
            nothing attends to it and no label asks for it.
        infill: Rearranges blocks of training rows, which have a `row` and an `epoch`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, infill: FillInTheMiddle | None = None):  # noqa: D107
        self.pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        self.infill = infill

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: With `input_ids`, and `labels` where not all tokens are to be predicted: -100 for one that is
                only read; packed ones with `segments`, the lengths of the blocks in a row.

        Returns:
            `input_ids` and `labels` `[batch, length]`, where `labels` has at each place the label of the next token
            of the same block; and `attention_mask`, or of packed rows `position_ids`, which start anew in every block:
            that is how transformers knows that the blocks do not attend to each other.
        """
        rows = [self._row(example) for example in examples]
        shape = len(rows), max(len(ids) for ids, _, _ in rows)
        input_ids, labels = np.full(shape, self.pad_id), np.full(shape, NO_LABEL)
        place = np.zeros(shape, dtype=np.int64)
        is_packed = "segments" in examples[0]
        for i, (ids, row_labels, lengths) in enumerate(rows):
            input_ids[i, : len(ids)], labels[i, : len(ids) - 1] = ids, row_labels[1:]
            labels[i, np.cumsum(lengths) - 1] = NO_LABEL  # the last token of a block knows nothing of the next one
            # Padding is a block of its own.
            starts = np.concatenate([np.arange(n) for n in (*lengths, shape[1] - len(ids))])
            place[i] = starts if is_packed else np.arange(shape[1]) < len(ids)
        name = "position_ids" if is_packed else "attention_mask"
        arrays = {"input_ids": input_ids, "labels": labels, name: place}
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _row(self, example: dict[str, Any]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Return ids, labels and the lengths of the blocks of a row."""
        ids = example["input_ids"]
        lengths = example.get("segments") or [len(ids)]
        if self.infill and "row" in example:
            blocks = self.infill(ids, lengths, example["row"], example.get("epoch", 0))
            ids, lengths = [token for block in blocks for token in block], [*map(len, blocks)]
        return ids, example.get("labels", ids), lengths


class NextTokenLoss:
    """For a RecipeTrainer whose collator is a `CausalCollator`: the vocabulary head is computed at labels only.

    Logits are `[labels of the batch, vocabulary]`; `predict` returns `masked_lm_statistics` per row, and `evaluate`
    scores by `masked_lm_metrics`: perplexity, and the share of tokens that were the most probable ones.
    """

    statistics = STATISTICS

    def __init__(self, *args, **kwargs):  # noqa: D107
        scoring = {"preprocess_logits_for_metrics": masked_lm_statistics, "compute_metrics": masked_lm_metrics}
        super().__init__(*args, compute_loss_func=masked_lm_loss, **scoring, **kwargs)
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: not for next-token prediction, whose loss is a perplexity")
        # Trainer counts the labels of a decoder without the first of each row; here the collator has shifted them.
        self._loss_shifts_labels = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Compute the loss as RecipeTrainer does, with the head at labels only."""
        plain_model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        # With a cache, transformers does not look for packed blocks, and lets them attend to each other.
        inputs = {**inputs, "use_cache": False}
        with only_at(plain_model, inputs["labels"] != NO_LABEL, sparse=not self.stock, as_row=True):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _first_rows(self, outputs, labels, rows):
        labels = labels[:rows]
        return type(outputs)(logits=outputs.logits[: int((labels != NO_LABEL).sum())]), labels


class CausalLMTrainer(NextTokenLoss, BlockTrainer):
    """BlockTrainer that predicts the next token: for raw text."""


class CompletionTrainer(PredictsBeforeTraining, NextTokenLoss, RecipeTrainer):
    """RecipeTrainer that predicts the next token where a row has labels: for prompts and completions.

    Args:
        args: As for RecipeTrainer.
        generation: How completions are written; it is saved beside the model or the adapter, for whoever loads that.
        kwargs: As for RecipeTrainer.
    """

    def __init__(self, *args, generation: GenerationConfig, **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        self.generation = generation

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, and how it writes: what it was loaded from may end its texts elsewhere, or sample."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.generation.save_pretrained(output_dir or self.args.output_dir)


def prepare_causal_lm(
    model: PreTrainedModel, tuning_args: TuningArguments, new_modules: list[str], packing: bool = False
) -> PreTrainedModel | PeftModel:
    """Apply the tuning method to a decoder.

    Args:
        model: As `load_model` returned it.
        tuning_args: As for `apply_tuning`.
        new_modules: As `load_model` returned them.
        packing: It is to read packed rows.

    Raises:
        InputError: A model that reads backwards too or cannot keep packed rows apart, a method that puts prompts
            before the text, an adapter beside new tokens, or as `apply_tuning`.
    """
    check_decoder(model)
    if packing:
        check_packing(model)
    model = apply_tuning(model, tuning_args, "CAUSAL_LM", new_modules)
    if isinstance(model, PeftModel) and isinstance(model.active_peft_config, PromptLearningConfig):
        raise InputError(f"--tuning {tuning_args.tuning}: prompts before the text would shift its labels; try lora")
    return model


@torch.no_grad()
def check_decoder(model: PreTrainedModel) -> None:
    """Raise an InputError for an encoder-decoder, or a model in which a token sees the next one, as in an encoder.

    `AutoModelForCausalLM` takes a BERT too, with a warning: its loss would fall to 0 by copying.
    """
    if model.config.is_encoder_decoder:
        raise InputError(f"{model.config.model_type} is an encoder-decoder; next-token prediction needs a decoder")
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    with _read_on_any_device(model):
        one, other = model(input_ids=ids).logits[:, :3].float()
    if not torch.allclose(one, other, atol=1e-3):
        raise InputError(
            f"{model.config.model_type} is an encoder here: its tokens see the next one, which is to be predicted; "
            "use recipes/pretrain_mlm.py, or a decoder"
        )


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Raise an InputError for a model in which packed blocks see each other: it would learn what it never meets again.

    transformers keeps them apart by positions that start anew, for models that take its attention masks; states that
    run on, as in Mamba, know nothing of that. Flash attention takes no masks, and looks at the positions in a batch of
    one row only.
    """
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]] * 2, device=model.device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2, device=model.device)
    is_apart = "flash" not in model.config._attn_implementation
    with _read_on_any_device(model):
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:].float()
        alone = model(input_ids=ids[:, 3:], use_cache=False).logits.float()
    if not (is_apart and torch.allclose(packed, alone, atol=1e-3)):
        raise InputError(
            f"--packing: {model.config.model_type} with {model.config._attn_implementation} attention lets packed "
            "documents see each other; use --attn_implementation sdpa, or --packing false"
        )


@contextmanager
def _read_on_any_device(model: PreTrainedModel) -> Iterator[None]:
    """Let a model read without dropout, and without flash attention, which a CPU and float32 do not have."""
    was_training, implementation = model.training, model.config._attn_implementation
    model.eval()
    if "flash" in implementation:
        model.config._attn_implementation = "sdpa"
    yield
    model.train(was_training)
    model.config._attn_implementation = implementation
