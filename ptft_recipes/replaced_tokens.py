"""Replaced-token detection: batches, the two losses, their scores, and the trainer of both models (ELECTRA)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from transformers import EvalPrediction
from transformers.utils import SAFE_WEIGHTS_NAME

from ptft_recipes.collators import HELD_OUT_SEED, MaskingCollator
from ptft_recipes.electra import GENERATOR, ReplacedTokenOutput
from ptft_recipes.perplexity import masked_lm_metrics, masked_lm_statistics
from ptft_recipes.pretraining import TwoLossTrainer, compare_logits, validation_batch
from ptft_recipes.sharding import is_cut

STATISTICS = ("loss", "tokens", "right", "detection_loss", "detection_tokens", "detection_right",
              "replaced", "called_replaced", "replaced_found")  # fmt: skip
SAMPLING = 1  # sets the draws of a row apart from those of its mask


class ReplacedTokenCollator(MaskingCollator):
    """MaskingCollator that also draws the numbers by which a generator's tokens are sampled.

    They depend on the seed, the epoch and the row alone, like the mask; so which token is sampled is a function of
    these and of the weights. Rows that have `labels` already are held out and always get the same draws.
    """

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: With `row`; otherwise as for MaskingCollator, not packed.

        Returns:
            As MaskingCollator; and `original_ids`, `draws` (in [0, 1) for hidden tokens, -1 elsewhere) and `scored`
            (bool, no special token and no padding), all `[batch, length]`.
        """
        batch = super().__call__(examples)
        hidden = batch["labels"] != -100
        draws = np.full(hidden.shape, -1, dtype=np.float32)
        for i, example in enumerate(examples):
            seed = HELD_OUT_SEED if "labels" in example else self.seed
            generator = np.random.default_rng([seed, example.get("epoch", 0), example["row"], SAMPLING])
            length = len(example["input_ids"])
            draws[i, :length] = generator.random(length, dtype=np.float32)
        original_ids = torch.where(hidden, batch["labels"], batch["input_ids"])
        return batch | {
            "original_ids": original_ids,
            "draws": torch.from_numpy(draws).masked_fill(~hidden, -1),
            "scored": ~torch.from_numpy(self.is_special)[original_ids],
        }


def replaced_token_loss(
    outputs: ReplacedTokenOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | None = None,
    detection_weight: float = 50.0,
) -> torch.Tensor:
    """Cross entropy of the hidden tokens, plus that of what was replaced: each a mean over its own items.

    Args:
        outputs: Of `GeneratorAndDiscriminator`.
        labels: `[batch, length]`, -100 for tokens that are not hidden.
        num_items_in_batch: `[2]`, hidden tokens and scored tokens in the whole optimizer step, over all accumulated
            batches and all processes; those of the batch when None.
        detection_weight: Of the second.

    Returns:
        A scalar.

    Source: Clark et al., ELECTRA (2020), section 2; the weight, section 3.1 and appendix A.
    """
    hidden, scored = labels != -100, outputs.replaced != -100
    items = torch.stack([hidden.sum(), scored.sum()]) if num_items_in_batch is None else num_items_in_batch
    generator = F.cross_entropy(outputs.generator_logits.float(), labels[hidden], reduction="sum")
    found = outputs.logits[scored].float(), outputs.replaced[scored].float()
    detection = F.binary_cross_entropy_with_logits(*found, reduction="sum")
    return generator / items[0].clamp(min=1) + detection_weight * detection / items[1].clamp(min=1)


def detection_statistics(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Sum up per row what the scores of both models are made of.

    Args:
        outputs: `logits`, `generator_logits` and `replaced` of `ReplacedTokenOutput`.
        labels: `[batch, length]`, -100 for tokens that are not hidden.

    Returns:
        `[batch, 9]` float64: the three `masked_lm_statistics` of the generator; of the discriminator the summed
        negative log-likelihood in nats, scored tokens and those that were called right; and replaced tokens, tokens
        called replaced, and those that are both.
    """
    logits, generator_logits, replaced = outputs
    scored, called, is_replaced = replaced != -100, logits > 0, replaced == 1
    loss = F.binary_cross_entropy_with_logits(logits.float(), is_replaced.float(), reduction="none")
    found = [loss, torch.ones_like(loss), called == is_replaced, is_replaced, called, called & is_replaced]
    detection = torch.stack([(value.double() * scored).sum(1) for value in found], dim=1)
    return torch.hstack([masked_lm_statistics(generator_logits, labels), detection])


def detection_metrics(
    prediction, weights: np.ndarray | None = None, detection_weight: float = 50.0
) -> dict[str, float]:
    """Score both models from the statistics of rows.

    Args:
        prediction: With `predictions` `[rows, 9]`, as `detection_statistics` returns them.
        weights: `[rows]`, how often each row counts; once each when None.
        detection_weight: As for `replaced_token_loss`.

    Returns:
        `loss`, that of training; of the discriminator `detection_loss`, `detection_accuracy`, `detection_f1` of the
        replaced tokens, and `replaced`, the share that they have; of the generator `generator_perplexity` and
        `generator_accuracy`. nan where there is nothing to score.
    """
    statistics = np.asarray(prediction.predictions, dtype=np.float64)
    sums = statistics.sum(axis=0) if weights is None else weights @ statistics
    _, _, _, loss, tokens, right, replaced, called, both = sums
    generator = masked_lm_metrics(EvalPrediction(sums[None, :3], None))
    nan = float("nan")
    detection_loss = float(loss / tokens) if tokens else nan
    return {
        "loss": float(np.log(generator["perplexity"])) + detection_weight * detection_loss,
        "detection_loss": detection_loss,
        "detection_accuracy": float(right / tokens) if tokens else nan,
        "detection_f1": float(2 * both / (replaced + called)) if replaced + called else nan,
        "replaced": float(replaced / tokens) if tokens else nan,
        "generator_perplexity": generator["perplexity"],
        "generator_accuracy": generator["accuracy"],
    }


class ReplacedTokenTrainer(TwoLossTrainer):
    """TwoLossTrainer of a `GeneratorAndDiscriminator`; `compute_loss_func` gets the numbers of items of both losses.

    Args:
        args: As for TwoLossTrainer.
        detection_weight: As for `replaced_token_loss`.
        kwargs: As for TwoLossTrainer.
    """

    statistics = STATISTICS
    no_label: ClassVar = {"labels": -100, "draws": -1, "scored": False}

    def __init__(self, *args, detection_weight: float = 50.0, **kwargs):  # noqa: D107
        super().__init__(
            *args,
            compute_loss_func=partial(replaced_token_loss, detection_weight=detection_weight),
            compute_metrics=partial(detection_metrics, detection_weight=detection_weight),
            preprocess_logits_for_metrics=detection_statistics,
            **kwargs,
        )
        self.model.stock = self.stock

    def count_items(self, batch) -> torch.Tensor:
        """Return the hidden tokens and the scored tokens of a batch, `[2]`."""
        return torch.stack([(batch["labels"] != -100).sum(), batch["scored"].sum()])

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        self.processing_class.save_pretrained(Path(output_dir or self.args.output_dir, GENERATOR))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        for part, _, folder in self.accelerator.unwrap_model(self.model).saved_in(resume_from_checkpoint):
            load_model(part, folder / SAFE_WEIGHTS_NAME)

    def _load_best_model(self):
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def check_saved_models(trainer: ReplacedTokenTrainer, rows: int = 4) -> None:
    """Reload both models as anybody would, and compare their logits with those of the models in memory.

    Args:
        trainer: After `save_model`; nothing is compared where its model is cut over the processes.
        rows: Of the validation split, that all models read.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    if not trainer.is_world_process_zero() or is_cut(trainer):
        return
    pair = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    batch = validation_batch(trainer, rows)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for model, auto_class, folder in pair.saved_in(trainer.args.output_dir):
        compare_logits(
            model, auto_class.from_pretrained(folder, dtype=model.dtype, use_safetensors=True), batch, folder
        )
