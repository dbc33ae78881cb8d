"""Next-token prediction with Trainer: batches, the head where it is needed, and models that can do it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel, PromptLearningConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptft_recipes.errors import InputError
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, masked_lm_statistics
from ptft_recipes.pretraining import BlockTrainer
from ptft_recipes.sparse_head import only_at
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.tuning import TuningArguments, apply_tuning

NO_LABEL = -100


class CausalCollator:
    """Pads rows, and puts the label of each token at the token before it, which is to predict it.

    Args:
        tokenizer: The model's. Without a padding token rows are padded with the end-of-text token, which nothing
            attends to and no label asks for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):  # noqa: D107
        pad = tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else tokenizer.eos_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: With `input_ids` and `labels`, -100 for a token that is only read; packed ones with `segments`,
                the lengths of the blocks in a row.

        Returns:
            `input_ids` and `labels` `[batch, length]`, where `labels` has at each place the label of the next token
            of the same block; and `attention_mask`, or of packed rows `position_ids`, which start anew in every block:
            that is how transformers knows that the blocks do not attend to each other.
        """
        shape = len(examples), max(len(example["input_ids"]) for example in examples)
        input_ids, labels = np.full(shape, self.pad_id), np.full(shape, NO_LABEL)
        place = np.zeros(shape, dtype=np.int64)
        for i, example in enumerate(examples):
            length = len(example["input_ids"])
            input_ids[i, :length], labels[i, : length - 1] = example["input_ids"], example["labels"][1:]
            lengths = example.get("segments", [length])
            labels[i, np.cumsum(lengths) - 1] = NO_LABEL  # the last token of a block knows nothing of the next one
            # Padding is a block of its own.
            place[i] = np.concatenate([np.arange(n) for n in (*lengths, shape[1] - length)])
            if "segments" not in example:
                place[i] = np.arange(shape[1]) < length
        name = "position_ids" if "segments" in examples[0] else "attention_mask"
        arrays = {"input_ids": input_ids, "labels": labels, name: place}
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


class NextTokenLoss:
    """For a RecipeTrainer whose collator is a `CausalCollator`: the vocabulary head is computed at labels only.

    Logits are `[labels of the batch, vocabulary]`; `predict` returns `masked_lm_statistics` per row, and `evaluate`
    scores by `masked_lm_metrics`: perplexity, and the share of tokens that were the most probable ones.
    """

    statistics = STATISTICS

    def __init__(self, *args, **kwargs):  # noqa: D107
        scoring = {"preprocess_logits_for_metrics": masked_lm_statistics, "compute_metrics": masked_lm_metrics}
        super().__init__(*args, **scoring, **kwargs)
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: not for next-token prediction, whose loss is a perplexity")

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


class CompletionTrainer(NextTokenLoss, RecipeTrainer):
    """RecipeTrainer that predicts the next token where a row has labels: for prompts and completions."""


def prepare_causal_lm(
    model: PreTrainedModel, tuning_args: TuningArguments, new_modules: list[str]
) -> PreTrainedModel | PeftModel:
    """Apply the tuning method to a decoder.

    Args:
        model: As `load_model` returned it.
        tuning_args: As for `apply_tuning`.
        new_modules: As `load_model` returned them.

    Raises:
        InputError: A model that reads backwards too, a method that puts prompts before the text, or as `apply_tuning`.
    """
    check_decoder(model)
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
    was_training = model.training
    one, other = model.eval()(input_ids=ids).logits[:, :3].float()
    model.train(was_training)
    if not torch.allclose(one, other, atol=1e-3):
        raise InputError(
            f"{model.config.model_type} is an encoder here: its tokens see the next one, which is to be predicted; "
            "use recipes/pretrain_mlm.py, or a decoder"
        )
