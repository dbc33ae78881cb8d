"""transformers.Trainer, corrected where it is wrong, and what every run does at its start."""

import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel, PeftType
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, default_data_collator
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import nested_concat
from transformers.trainer_utils import HubStrategy, set_seed

from ptft_recipes import features
from ptft_recipes.acceleration import LengthGroupedSampler, take_fast_path, use_all_cores
from ptft_recipes.adapters import AdaLoraCallback
from ptft_recipes.batch_augmentation import augment_batches
from ptft_recipes.batch_sizes import describe_batch
from ptft_recipes.checkpoint_uploads import CheckpointUploads
from ptft_recipes.connections import keep_connections_alive
from ptft_recipes.errors import InputError, nearest
from ptft_recipes.hub import check_login, repository_name
from ptft_recipes.logs import LogCallback, configure_logging
from ptft_recipes.memory import TellsMemory
from ptft_recipes.merging import fold_adapter
from ptft_recipes.metrics import LOWER_IS_BETTER, NO_SCORES
from ptft_recipes.modeling import ModelArguments, base_model_hub_id, base_model_name
from ptft_recipes.optimization import GradualUnfreezingCallback, set_learning_rates
from ptft_recipes.provenance import StepTimeCallback, describe_environment
from ptft_recipes.regularization import (
    PretrainedDecayCallback,
    apply_mixout,
    perturbed_embeddings,
    r_drop_loss,
    watched_embeddings,
)
from ptft_recipes.repeated_rows import LeavesOutRepeatedRows
from ptft_recipes.resuming import claim_output_dir
from ptft_recipes.sealed_trainer import SealedTrainer
from ptft_recipes.sharding import check_options, load_whole
from ptft_recipes.smaller_batches import FindsBatchSize
from ptft_recipes.tuning import TuningArguments, count_parameters

logger = logging.getLogger(__name__)


def start_run(
    recipe: str, config: dict[str, Any], model_args: ModelArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    """Check what can be checked before any compute is spent, seed every generator, and describe the run.

    Args:
        recipe: `__file__` of the recipe.
        config: The configuration, as `parse_args` returned it.
        model_args: For the name of the base model.
        training_args: As parsed.

    Returns:
        What a reader needs to trust or repeat the run; it ends up in `results.json` under `run`.

    Raises:
        InputError: The processes do not train together, one process has several GPUs, the output folder is in use or
            cannot be written, a tracker is not installed, a token stands on the command line, or there is no login
            or no right to push for `--push_to_hub`.
    """
    configure_logging(training_args)
    if training_args.world_size != (wanted := int(os.environ.get("WORLD_SIZE", 1))):
        raise InputError(f"{wanted} processes were started and {training_args.world_size} would train together")
    if training_args.world_size > 1:
        keep_connections_alive()
    if training_args.n_gpu > 1:
        raise InputError(
            f"one process sees {training_args.n_gpu} GPUs and would use them by DataParallel, which multiplies the "
            "loss; launch with accelerate_configs/multi_gpu.yaml, or set CUDA_VISIBLE_DEVICES=0"
        )
    if training_args.hub_token:
        raise InputError("--hub_token would be saved with the run; use `hf auth login` or the variable HF_TOKEN")
    if training_args.hub_revision:
        raise InputError("--hub_revision: a run is pushed to the main branch of its repository only")
    if training_args.push_to_hub and training_args.should_save:
        check_login(repository_name(training_args), training_args.hub_private_repo is not False)
    for callback in _trackers(training_args):
        try:
            callback()
        except (RuntimeError, ImportError) as error:
            raise InputError(f"--report_to: {error}") from error
    load_whole(training_args)
    set_seed(training_args.seed)
    run = describe_environment(recipe, training_args) | {"base_model": base_model_name(model_args), "config": config}
    run |= {"base_model_hub_id": base_model_hub_id(model_args), "stock": model_args.stock}
    if training_args.device.type == "cpu" and not model_args.stock:
        use_all_cores()  # before tokenization, and before a frozen body is run over every row
    run["batch"] = describe_batch(training_args)
    logger.info("run: {recipe}, seed {seed}, {processes} process(es), {hardware}, {precision}".format_map(run))
    claim_output_dir(training_args, run, model_args.allow_changes)
    return run


def _trackers(training_args: TrainingArguments) -> list[type]:
    try:
        return get_reporting_integration_callbacks(training_args.report_to)
    except ValueError as error:
        raise InputError(f"--report_to: {error}") from error


class RecipeTrainer(TellsMemory, FindsBatchSize, LeavesOutRepeatedRows, SealedTrainer):
    """SealedTrainer with an exact loss, an exact validation loss, and a stop at the first non-finite step.

    - Trainer takes any model whose `forward` has `**kwargs` for one that divides its loss by `num_items_in_batch`;
      most encoders do not, and their loss grows with accumulation and with processes. Here the loss is
      `compute_loss_func`, a sum over the whole optimizer step divided once; without one, the mean over micro-batches.
    - With batches grouped by length, Trainer ends an epoch on its shortest rows, and predicts in shuffled order; here
      the batches are shuffled (`LengthGroupedSampler`), and `predict` returns the order of the data set.
    - Rows that fill up the last batch count in no loss (`LeavesOutRepeatedRows`); with little memory fewer rows are
      taken at once, not fewer in a step (`FindsBatchSize`), and it is estimated before (`TellsMemory`).
    - Evaluating before training no longer keeps the processes from averaging their gradients.
    - Trainer's `eval_loss` is a mean of batch means; here it is the mean over all items, none counted twice.
    - Trainer shows a nan loss as the running mean and finishes; here training stops before the weights change.
    - `--push_to_hub` pushes by a list of files, at the end by `hub.publish` and with `--hub_strategy` at each save,
      instead of uploading `output_dir` as it is; an upload in the background that fails is told.
    """

    _initial_global_step = 0  # Trainer sets it when training starts
    _eval_loss, _eval_items = 0.0, 0

    def __init__(  # noqa: D107
        self,
        *args,
        tuning_args: TuningArguments | None = None,
        new_modules: Sequence[str] = (),
        augment: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.stock = (self.run or {}).get("stock", False)
        self.train_columns = getattr(self.train_dataset, "column_names", None) or ()  # Trainer takes `length` out
        if self.stock:
            logger.info("stock path, by --stock: what plain transformers does")
        else:
            lengths = self.train_dataset["length"][:] if "length" in self.train_columns else None
            logger.info("fast path: %s (--stock: without)", ", ".join(take_fast_path(self.model, self.args, lengths)))
        self.tuning_args = tuning_args or TuningArguments()
        self.push_at_end, self.args.push_to_hub = self.args.push_to_hub, False
        pushes_checkpoints = self.push_at_end and self.args.hub_strategy != HubStrategy.END and self.args.should_save
        self.checkpoint_uploads = CheckpointUploads(self.args) if pushes_checkpoints else None
        self.parameter_counts = count_parameters(self.model)  # of the training, whatever becomes of the model later
        self.plain_loss_func = self.compute_loss_func
        if self.compute_loss_func is None:
            self.model_accepts_loss_kwargs = False
        self._apply_training_options(new_modules, augment)
        if features.COLUMN in self.train_columns:
            self.data_collator = default_data_collator  # vectors need no padding
            if self.tuning_args.fgm:
                raise InputError("--fgm: no weight of the body moves, so no embeddings are read")
        self.args.logging_nan_inf_filter = False
        if (self.args.metric_for_best_model or "").removeprefix("eval_") in LOWER_IS_BETTER:
            self.args.greater_is_better = False  # TrainingArguments knows it of names that end in "loss" only
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(LogCallback)
        self.step_times = StepTimeCallback()
        self.add_callback(self.step_times)
        if self.eval_dataset is not None and "length" in self.eval_dataset.column_names and not self.stock:
            self.eval_dataset = self.eval_dataset.select(_longest_first(self.eval_dataset))

    def _apply_training_options(self, new_modules: Sequence[str], augment: Sequence[str]) -> None:
        """Hook in what `tuning_args` and `augment` ask of the loss and of the steps."""
        options = self.tuning_args
        check_options(self, options)
        if augment:
            columns = self.train_dataset.column_names
            self.compute_loss_func = augment_batches(self.model, augment, options, self.plain_loss_func, columns)
        if options.r_drop:
            kwargs = {"strength": options.r_drop, "problem_type": self.model.config.problem_type}
            self.compute_loss_func = partial(r_drop_loss, loss=self.plain_loss_func, **kwargs)
        if options.l2_sp:
            self.add_callback(PretrainedDecayCallback(self.model, options.l2_sp, new_modules))
        if options.mixout:
            apply_mixout(self.model, options.mixout, new_modules)
        if options.gradual_unfreezing:
            self.add_callback(GradualUnfreezingCallback(self.model, options.gradual_unfreezing))
        if getattr(self.model, "peft_type", None) == PeftType.ADALORA:
            self.add_callback(AdaLoraCallback())

    def create_optimizer(self, model=None):
        """Create the optimizer, with the learning rates of the layers as `tuning_args` has them."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        decay, head_learning_rate = self.tuning_args.layer_wise_decay, self.tuning_args.head_learning_rate
        if is_new and (decay != 1 or head_learning_rate is not None):
            set_learning_rates(optimizer, self.model if model is None else model, decay, head_learning_rate)
        return optimizer

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length" or "length" not in self.train_columns:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        group_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthGroupedSampler(self.train_dataset["length"][:], group_size, seed)

    def _get_eval_sampler(self, eval_dataset):
        return None  # the data set's own order

    def predict(self, test_dataset, *args, **kwargs):
        """Predict, longest rows first, and return predictions and labels in the order of the data set."""
        if "length" not in test_dataset.column_names or self.stock:
            return super().predict(test_dataset, *args, **kwargs)
        order = _longest_first(test_dataset)
        output = super().predict(test_dataset.select(order), *args, **kwargs)
        place = np.argsort(order)
        labels = None if output.label_ids is None else output.label_ids[place]
        return output._replace(predictions=output.predictions[place], label_ids=labels)

    def tokens_per_epoch(self) -> int | None:
        """Return the tokens that an epoch of training reads."""
        return sum(self.train_dataset["length"])

    def init_hf_repo(self, token=None):
        """Do nothing: `publish` creates the repository when there is something to put into it."""

    def train(self, *args, **kwargs):
        """Train as SealedTrainer does; before it, estimate memory and evaluate one batch, to show a fault early.

        Raises:
            InputError: `--metric_for_best_model` is not among the metrics, or memory is far too small.
            FloatingPointError: A loss or gradient is not finite.
        """
        self.plan_memory()
        best = self.args.metric_for_best_model
        if self.args.load_best_model_at_end and self.eval_dataset is not None:
            rows = min(len(self.eval_dataset), self.args.eval_batch_size * self.args.world_size)
            loader = self.get_eval_dataloader(self.eval_dataset.select(range(rows)))
            self.is_in_train = True  # else --bf16_full_eval casts the weights that are to be trained
            metrics = self.evaluation_loop(loader, "Check", metric_key_prefix="eval").metrics
            self.is_in_train = False
            self.callback_handler.on_predict(self.args, self.state, self.control, metrics)  # closes the bar
            names = [name for eval_name in metrics if (name := eval_name.removeprefix("eval_")) not in NO_SCORES]
            if best.removeprefix("eval_") not in names:
                known = ", ".join(name for name in names if "/" not in name)
                raise InputError(f"--metric_for_best_model {best}: no such metric{nearest(best, names)} ({known})")
        # Evaluation marks the bare model as prepared, and accelerate would then train it without
        # DistributedDataParallel: every process on its own, and nothing says so.
        self.model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)
        return super().train(*args, **kwargs)

    def _seal_and_rotate(self, folder, best):
        if self.checkpoint_uploads:
            self.checkpoint_uploads.start(folder)
        super()._seal_and_rotate(folder, best)

    def save_model(self, output_dir=None, _internal_call=False):
        """Save model and tokenizer; with `--merge_adapter` the adapter is folded into the model before."""
        if self.tuning_args.merge_adapter and not _internal_call and isinstance(self.model, PeftModel):
            self.model = self.model_wrapped = fold_adapter(self.model)
        super().save_model(output_dir, _internal_call)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Train on a batch; with `--fgm` also on the same batch with its word embeddings shifted against the model."""
        if self.tuning_args.r_drop:
            inputs = nested_concat(inputs, inputs)
        if not self.tuning_args.fgm:
            return super().training_step(model, inputs, num_items_in_batch)
        with watched_embeddings(self.model) as embeddings:
            loss = super().training_step(model, inputs, num_items_in_batch)
        with perturbed_embeddings(self.model, embeddings[0].grad, self.tuning_args.fgm):
            super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss; outside training, also sum it over the items that are not padding of the last batch."""
        if model.training or self.plain_loss_func is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        seen, labels = self._first_rows(outputs, labels, self._rows_not_repeated(len(labels)))
        items = int((labels != -100).sum())
        total = self.plain_loss_func(seen, labels, num_items_in_batch=1).float() if items else outputs[0].sum() * 0
        self._eval_loss += total.item()
        self._eval_items += items
        loss = total / max(items, 1)
        return (loss, outputs) if return_outputs else loss

    def _first_rows(self, outputs, labels, rows: int):
        """Return outputs and labels of the first rows of a batch."""
        seen = {name: value[:rows] for name, value in outputs.items() if torch.is_tensor(value)}
        return type(outputs)(seen), labels[:rows]

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """Evaluate or predict; the loss is the mean over all items of all processes."""
        self._eval_loss, self._eval_items = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        parts = gather_object([(self._eval_loss, self._eval_items)])
        items = sum(count for _, count in parts)
        if items:
            output.metrics[f"{metric_key_prefix}_loss"] = sum(loss for loss, _ in parts) / items
        return output

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        loss = float(self._tr_loss)
        # Under fp16 the loss scaler meets overflowing gradients on its own and skips the step.
        gradient = 0.0 if self.args.mixed_precision == "fp16" or grad_norm is None else float(grad_norm)
        if not math.isfinite(loss + gradient):
            raise FloatingPointError(
                f"loss {loss}, gradient norm {gradient} at step {self.state.global_step + 1}; stopped before the "
                f"weights were changed. Last checkpoint: {self._newest_intact() or 'none yet'}. Try a lower "
                "--learning_rate, more --warmup_steps, or --bf16 false"
            )
        return grad_norm


def _longest_first(dataset) -> np.ndarray:
    return np.argsort(dataset["length"][:], kind="stable")[::-1]
