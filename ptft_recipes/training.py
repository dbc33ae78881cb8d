"""transformers.Trainer, corrected where it is wrong, and what every run does at its start."""

import logging
import math
import os
import sys
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers import logging as transformers_logging
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import set_seed

from ptft_recipes.acceleration import LengthGroupedSampler
from ptft_recipes.checkpoints import check_output_dir, find_checkpoint, saved_checkpoints
from ptft_recipes.errors import InputError, nearest
from ptft_recipes.hub import check_login
from ptft_recipes.metrics import LOWER_IS_BETTER
from ptft_recipes.modeling import ModelArguments, base_model_name
from ptft_recipes.optimization import apply_layer_wise_decay
from ptft_recipes.provenance import describe_environment

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
            for `--push_to_hub`.
    """
    _configure_logging(training_args)
    if training_args.world_size != (wanted := int(os.environ.get("WORLD_SIZE", 1))):
        raise InputError(f"{wanted} processes were started and {training_args.world_size} would train together")
    if training_args.n_gpu > 1:
        raise InputError(
            f"one process sees {training_args.n_gpu} GPUs and would use them by DataParallel, which multiplies the "
            "loss; launch with accelerate_configs/multi_gpu.yaml, or set CUDA_VISIBLE_DEVICES=0"
        )
    check_output_dir(training_args)
    if training_args.hub_token:
        raise InputError("--hub_token would be saved with the run; use `hf auth login` or the variable HF_TOKEN")
    if training_args.push_to_hub and training_args.should_save:
        check_login()
    for callback in _trackers(training_args):
        try:
            callback()
        except (RuntimeError, ImportError) as error:
            raise InputError(f"--report_to: {error}") from error
    set_seed(training_args.seed)
    run = describe_environment(recipe, training_args) | {"base_model": base_model_name(model_args), "config": config}
    logger.info("run: {recipe}, seed {seed}, {processes} process(es), {hardware}, {precision}".format_map(run))
    return run


def _trackers(training_args: TrainingArguments) -> list[type]:
    try:
        return get_reporting_integration_callbacks(training_args.report_to)
    except ValueError as error:
        raise InputError(f"--report_to: {error}") from error


def _configure_logging(training_args: TrainingArguments) -> None:
    library = logging.getLogger("ptft_recipes")
    if not library.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        library.addHandler(handler)
        library.propagate = False
    library.setLevel(logging.INFO if training_args.should_log else logging.WARNING)
    if training_args.log_level == "passive":
        transformers_logging.set_verbosity_error()  # its warnings on missing heads: load_model says it in one line
    if not sys.stderr.isatty() or training_args.disable_tqdm or not training_args.should_log:
        import datasets

        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        training_args.disable_tqdm = True


class LogCallback(ProgressCallback):
    """Progress bars on a terminal, and one readable line per log entry everywhere."""

    def on_train_begin(self, args, state, control, **kwargs):  # noqa: D102
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):  # noqa: D102
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):  # noqa: D102
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):  # noqa: D102
        line = format_log(logs or {}, state.global_step, state.max_steps)
        if line and state.is_world_process_zero:
            if self.training_bar is not None:
                self.training_bar.write(line)
            else:
                logger.info(line)


def format_log(logs: dict[str, float], step: int, max_steps: int) -> str:
    """Format a log entry of Trainer as one line; an empty string for one that says nothing new.

    >>> format_log({"loss": 0.51234, "learning_rate": 1e-4, "epoch": 0.5}, 60, 480)
    'step 60/480 | epoch 0.50 | loss 0.5123 | learning_rate 0.0001'
    """
    if "train_runtime" in logs:
        return f"trained for {logs['train_runtime']:.0f} s, {logs['train_samples_per_second']:.0f} samples/s"
    hidden = ("epoch", "total_flos")
    values = {
        name.removeprefix("eval_"): value
        for name, value in logs.items()
        if name not in hidden and "/" not in name and not name.endswith(("_runtime", "_per_second", "_time"))
    }
    if not values:
        return ""
    where = f"step {step}/{max_steps} | epoch {logs.get('epoch', 0):.2f} | "
    kind = "validation: " if any(name.startswith("eval_") for name in logs) else ""
    shown = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    return where + kind + " | ".join(shown)


class RecipeTrainer(Trainer):
    """transformers.Trainer with an exact loss, an exact validation loss, and a stop at the first non-finite step.

    - Trainer takes any model whose `forward` has `**kwargs` for one that divides its loss by `num_items_in_batch`;
      most encoders do not, and their loss grows with accumulation and with processes. Here the loss is
      `compute_loss_func`, a sum over the whole optimizer step divided once; without one, the mean over micro-batches.
    - With batches grouped by length, Trainer ends an epoch on its shortest rows, and predicts in shuffled order; here
      the batches are shuffled (`LengthGroupedSampler`), rows are predicted longest first, and `predict` returns them
      in the order of the data set.
    - Evaluating before training no longer keeps the processes from averaging their gradients.
    - Trainer's `eval_loss` is a mean of batch means; here it is the mean over all items, none counted twice.
    - Trainer shows a nan loss as the running mean and finishes; here training stops before the weights change.
    - `--push_to_hub` acts once, at the end, by `ptft_recipes.hub.publish`, instead of uploading `output_dir` as it is.
    """

    def __init__(self, *args, layer_wise_decay: float = 1.0, **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        self.layer_wise_decay = layer_wise_decay
        self.push_at_end, self.args.push_to_hub = self.args.push_to_hub, False
        if self.compute_loss_func is None:
            self.model_accepts_loss_kwargs = False
        self.args.logging_nan_inf_filter = False
        if (self.args.metric_for_best_model or "").removeprefix("eval_") in LOWER_IS_BETTER:
            self.args.greater_is_better = False  # TrainingArguments knows it of names that end in "loss" only
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(LogCallback)
        self._eval_loss, self._eval_items = 0.0, 0
        if self.eval_dataset is not None and "length" in self.eval_dataset.column_names:
            self.eval_dataset = self.eval_dataset.select(_longest_first(self.eval_dataset))

    def create_optimizer(self, model=None):
        """Create the optimizer; with `layer_wise_decay` the learning rate falls from the head down."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.layer_wise_decay != 1:
            apply_layer_wise_decay(optimizer, self.model if model is None else model, self.layer_wise_decay)
        return optimizer

    def _get_train_sampler(self, train_dataset=None):
        # Not of the argument: Trainer has taken the column `length` out of it.
        columns = getattr(self.train_dataset, "column_names", None) or []
        if self.args.train_sampling_strategy != "group_by_length" or "length" not in columns:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        group_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthGroupedSampler(self.train_dataset["length"][:], group_size, seed)

    def _get_eval_sampler(self, eval_dataset):
        return None  # the data set's own order

    def predict(self, test_dataset, *args, **kwargs):
        """Predict, longest rows first, and return predictions and labels in the order of the data set."""
        if "length" not in test_dataset.column_names:
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
        """Train, from the checkpoint that `--resume_from_checkpoint` asks for, which Trainer itself does not read.

        Before it, one batch goes through the whole evaluation, so that a fault in it shows before the first epoch.

        Raises:
            InputError: `--metric_for_best_model` is not among the metrics.
            FloatingPointError: A loss or gradient is not finite.
        """
        best = self.args.metric_for_best_model
        if self.args.load_best_model_at_end and self.eval_dataset is not None:
            rows = min(len(self.eval_dataset), self.args.eval_batch_size * self.args.world_size)
            loader = self.get_eval_dataloader(self.eval_dataset.select(range(rows)))
            self.is_in_train = True  # else --bf16_full_eval casts the weights that are to be trained
            metrics = self.evaluation_loop(loader, "Check", metric_key_prefix="eval").metrics
            self.is_in_train = False
            self.callback_handler.on_predict(self.args, self.state, self.control, metrics)  # closes the bar
            names = [name.removeprefix("eval_") for name in metrics]
            if best.removeprefix("eval_") not in names:
                known = ", ".join(name for name in names if "/" not in name)
                raise InputError(f"--metric_for_best_model {best}: no such metric{nearest(best, names)} ({known})")
        # Evaluation marks the bare model as prepared, and accelerate would then train it without
        # DistributedDataParallel: every process on its own, and nothing says so.
        self.model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)
        return super().train(*args, **{"resume_from_checkpoint": find_checkpoint(self.args)} | kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss; outside training, also sum it over the items that are not padding of the last batch."""
        if model.training or self.compute_loss_func is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        seen, labels = self._first_rows(outputs, labels, self._rows_not_repeated(len(labels)))
        items = int((labels != -100).sum())
        total = (
            self.compute_loss_func(seen, labels, num_items_in_batch=1).float() if items else outputs.logits.sum() * 0
        )
        self._eval_loss += total.item()
        self._eval_items += items
        loss = total / max(items, 1)
        return (loss, outputs) if return_outputs else loss

    def _first_rows(self, outputs, labels, rows: int):
        """Return outputs and labels of the first rows of a batch."""
        seen = {name: value[:rows] for name, value in outputs.items() if torch.is_tensor(value)}
        return type(outputs)(seen), labels[:rows]

    def _rows_not_repeated(self, rows: int) -> int:
        """Return how many rows of this process's batch are not repeats that only fill up the last global batch."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - self.args.process_index * rows, 0), rows)

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
            saved = saved_checkpoints(self.args.output_dir)
            raise FloatingPointError(
                f"loss {loss}, gradient norm {gradient} at step {self.state.global_step + 1}; stopped before the "
                f"weights were changed. Last checkpoint: {saved[-1] if saved else 'none yet'}. Try a lower "
                "--learning_rate, more --warmup_steps, or --bf16 false"
            )
        return grad_norm


def _longest_first(dataset) -> np.ndarray:
    return np.argsort(dataset["length"][:], kind="stable")[::-1]
