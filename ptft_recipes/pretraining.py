"""Masked language modelling with Trainer, and the hand-over of the encoder to the next stage."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import AutoModel, PreTrainedModel
from transformers.trainer_callback import TrainerCallback

from ptft_recipes.collators import check_packable
from ptft_recipes.embeddings import restore_output_bias
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, from_pretrained
from ptft_recipes.perplexity import STATISTICS, masked_lm_metrics, masked_lm_statistics
from ptft_recipes.sampling import Draw, DrawnRows, DrawSampler, MixingSampler
from ptft_recipes.sharding import is_cut
from ptft_recipes.sparse_head import model_body, only_at
from ptft_recipes.streaming import StreamedRows
from ptft_recipes.training import RecipeTrainer
from ptft_recipes.tuning import PLAIN_METHODS, TuningArguments, apply_tuning

logger = logging.getLogger(__name__)


class PredictsBeforeTraining:
    """Of a trainer whose model is scored before it is trained too."""

    def predict(self, *args, **kwargs):
        """Predict, without the lasting cast of the weights that `--bf16_full_eval` makes outside of training."""
        self.is_in_train = True
        try:
            return super().predict(*args, **kwargs)
        finally:
            self.is_in_train = False


class BlockTrainer(PredictsBeforeTraining, RecipeTrainer):
    """RecipeTrainer over blocks of text, which tells the collator the epoch.

    Rows are drawn as `sampling.Draw`, so that what the collator does to one depends on seed, epoch and row alone.

    Args:
        args: As for RecipeTrainer; the training rows as `training_rows` returned them.
        shares: Of the corpora besides the first in the training rows; 0 for one that is only scored.
        kwargs: As for RecipeTrainer.

    Raises:
        InputError: Labels are to be smoothed.
    """

    statistics: Sequence[str] = ()  # names of the columns that `predict` returns

    def __init__(self, *args, shares: Sequence[float] = (), **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: not for pre-training, whose loss is a perplexity")
        self.shares = [share for share in shares if share]
        self.args.remove_unused_columns = False  # else `word_ids` would not reach the collator
        if isinstance(self.train_dataset, StreamedRows):
            self.add_callback(_StreamEpoch(self.train_dataset))

    def get_train_dataloader(self):
        """Return the loader of the training rows, as draws."""
        if isinstance(self.train_dataset, StreamedRows):
            self.train_dataset.batch_size = self._train_batch_size  # memory may have shown that it is to be smaller
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=DrawnRows(self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def longest_rows(self, count: int) -> dict[str, torch.Tensor]:
        """Return a batch of the longest training row, so many times; of a stream, of the longest in validation."""
        rows, streamed = self.train_dataset, isinstance(self.train_dataset, StreamedRows)
        if streamed:
            rows = self.eval_dataset
        longest = int(np.argmax(rows["length"][:])) if "length" in rows.column_names else 0
        row = rows[longest] if streamed else DrawnRows(rows)[Draw(longest, 0, 0.0)]
        return self.data_collator([row] * count)

    def _get_train_sampler(self, train_dataset=None):
        args, rows = self.args, len(self.train_dataset)
        by_length = args.train_sampling_strategy == "group_by_length"
        # Of equal lengths every order is sorted: groups of random rows, by seed and epoch alone.
        lengths = self.train_dataset["length"][:] if by_length else [0] * rows
        group_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = MixingSampler(lengths, self.train_dataset["corpus"][:], self.shares, group_size, seed)
        epochs = args.max_steps * group_size / len(sampler) if args.max_steps > 0 else args.num_train_epochs
        return DrawSampler(sampler, epochs)

    def rows_per_epoch(self) -> int | None:
        """Return the rows that an epoch draws; None of a stream that never ends."""
        if isinstance(self.train_dataset, StreamedRows):
            return self.train_dataset.length
        return len(self._get_train_sampler())

    def tokens_per_epoch(self) -> int | None:
        """Return the tokens of the rows that the first epoch draws; None of a stream."""
        if isinstance(self.train_dataset, StreamedRows):
            return None
        lengths = np.asarray(self.train_dataset["length"][:])
        return int(lengths[self._get_train_sampler().sampler.chosen()].sum())


class TwoLossTrainer(BlockTrainer):
    """BlockTrainer whose loss is a sum of two, each a mean over its own items.

    A subclass counts the items of both in a batch, `count_items(batch) -> [2]`; `compute_loss_func` gets the numbers
    of the whole optimizer step. The metrics hold the exact `loss`.
    """

    def __init__(self, *args, **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        self.label_names = ["labels"]  # Trainer looks for them in `forward`, which need not take them

    def _get_num_items_in_batch(self, batch_samples, device):
        items = torch.stack([self.count_items(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(items) if self.args.average_tokens_across_devices else items

    def run_model(self, model, inputs):
        """Return the outputs that `compute_loss_func` takes, and the labels, which do not reach the model."""
        labels = inputs.pop("labels")
        return model(**inputs), labels

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss of a step, or outside training that of the batch."""
        outputs, labels = self.run_model(model, inputs)
        loss = self.compute_loss_func(outputs, labels, num_items_in_batch if model.training else None)
        if model.training and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DistributedDataParallel takes the mean
        return (loss, outputs) if return_outputs else loss


class MaskedLMTrainer(BlockTrainer):
    """BlockTrainer that computes the vocabulary head at masked positions only.

    Logits are `[masked tokens of the batch, vocabulary]`; `predict` returns `masked_lm_statistics` per row, and
    `evaluate` scores by `masked_lm_metrics`.
    """

    statistics = STATISTICS

    def __init__(self, *args, **kwargs):  # noqa: D107
        scoring = {"preprocess_logits_for_metrics": masked_lm_statistics, "compute_metrics": masked_lm_metrics}
        super().__init__(*args, **scoring, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Compute the loss as RecipeTrainer does, with the head at masked positions only."""
        plain_model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        with only_at(plain_model, inputs["labels"] != -100, sparse=not self.stock):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _first_rows(self, outputs, labels, rows):
        labels = labels[:rows]
        return type(outputs)(logits=outputs.logits[: int((labels != -100).sum())]), labels


class _StreamEpoch(TrainerCallback):
    """Tells a stream its epoch; accelerate does not, on resume."""

    def __init__(self, stream: StreamedRows):
        self.stream = stream

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.stream.set_epoch(int(state.epoch or 0))


def prepare_masked_lm(
    model: PreTrainedModel,
    model_args: ModelArguments,
    tuning_args: TuningArguments,
    new_modules: list[str],
    packing: bool = False,
) -> PreTrainedModel | PeftModel:
    """Apply the tuning method, train and save a head that the checkpoint lacks, and keep a pooler that it has.

    An `XxxForMaskedLM` has no pooler, so that saving it would lose the checkpoint's, and the next stage would start
    from a random one. Here it stays in the model, frozen, and is saved. An adapter leaves it where it is, in the base.

    Args:
        model: As `load_model` returned it.
        model_args: What was loaded.
        tuning_args: As for `apply_tuning`.
        new_modules: As `load_model` returned them.
        packing: It is to read packed rows.

    Raises:
        InputError: An encoder-decoder, a model that cannot keep packed rows apart, or as `apply_tuning`.
    """
    if packing:
        check_packable(model.config)
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{model.config.model_type} is an encoder-decoder; masked language modelling needs an encoder"
        )
    if tuning_args.tuning in PLAIN_METHODS:
        model = apply_tuning(model, tuning_args, None, new_modules)
        if not model_args.from_scratch:
            _keep_pooler(model, model_args)
        return model
    model = apply_tuning(model, tuning_args, None, new_modules)
    base = model.get_base_model()
    decoder = base.get_output_embeddings()
    if isinstance(decoder, ModulesToSaveWrapper):
        decoder = decoder.modules_to_save[decoder.active_adapters[0]]
    if new_modules and base.config.tie_word_embeddings and not isinstance(decoder, TrainableTokensWrapper):
        # PEFT's copy of a new head copies the vocabulary matrix too, which would be trained apart from the embeddings.
        decoder.weight = base.get_input_embeddings().weight
    if tuning_args.merge_adapter:  # then what is saved is a plain checkpoint, which the next stage starts from
        _keep_pooler(base, model_args)
    return model


def _keep_pooler(model: PreTrainedModel, model_args: ModelArguments) -> None:
    body = model_body(model)
    if getattr(body, "pooler", model) is not None:  # the architecture has none, or this model kept it
        return
    source, info = from_pretrained(
        AutoModel, model_args, use_safetensors=True, output_loading_info=True, dtype="float32"
    )
    if source.pooler is None or any(name.startswith("pooler.") for name in info["missing_keys"]):
        return
    for name, module in source.named_children():
        if getattr(body, name, module) is None:  # ALBERT has a pooler and its activation
            setattr(body, name, module.requires_grad_(False))
    logger.info("  the checkpoint's pooler is kept for the next stage")


def check_saved_model(trainer: RecipeTrainer, rows: int = 4) -> None:
    """Reload what was saved, as anybody would, and compare its logits with those of the model in memory.

    Args:
        trainer: After `save_model`; nothing is compared where its model is cut over the processes.
        rows: Of the validation split, that both models read.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    if not trainer.is_world_process_zero() or is_cut(trainer):
        return
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    output_dir, kind = Path(trainer.args.output_dir), type(model)
    if isinstance(model, PeftModel):
        base, config = model.get_base_model(), model.peft_config[model.active_adapter]
        saved = type(base).from_pretrained(config.base_model_name_or_path, config=base.config, use_safetensors=True)
        saved = PeftModel.from_pretrained(saved, output_dir)
        restore_output_bias(saved)
    else:
        saved = kind.from_pretrained(output_dir, dtype=model.dtype, use_safetensors=True)
    batch = {name: value for name, value in validation_batch(trainer, rows).items() if not name.endswith("labels")}
    if model.config.is_encoder_decoder:
        batch["use_cache"] = False  # the cache is no tensor that could be compared
    compare_logits(model, saved, batch, output_dir)


def validation_batch(trainer: RecipeTrainer, rows: int) -> dict[str, torch.Tensor]:
    """Return the first rows of the validation split as the batch that the trainer makes of them."""
    examples = trainer.eval_dataset.select(range(min(rows, len(trainer.eval_dataset))))
    return trainer._prepare_inputs(trainer.data_collator([examples[i] for i in range(len(examples))]))


def compare_logits(
    model: PreTrainedModel, saved: PreTrainedModel, batch: dict[str, torch.Tensor], folder: Path
) -> None:
    """Raise a RuntimeError if the model in memory and the one saved in `folder` differ by more than rounding.

    Args:
        model: In memory.
        saved: Reloaded from `folder`.
        batch: What both read.
        folder: For the message.
    """
    was_training = model.training
    with torch.no_grad():
        outputs = (m.eval()(**batch).to_tuple() for m in (model, saved.to(model.device)))
        ours, theirs = ([each for each in output if torch.is_tensor(each)] for output in outputs)  # a decoder's cache
    model.train(was_training)
    difference = torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]).max().item()
    if not difference < 1e-3:
        raise RuntimeError(f"{folder}: the saved model's logits differ from the trained one's by {difference}")
    logger.info(
        "reloaded %s: its logits are those of the model in memory (largest difference %.1g)", folder, difference
    )
