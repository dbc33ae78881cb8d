"""transformers.Trainer whose runs can be interrupted anywhere, and end as if they had not been."""

import contextlib
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState

from ptft_recipes.checkpoints import (
    checkpoints_in,
    delete_checkpoint,
    find_damage,
    rotate_checkpoints,
    seal_checkpoint,
)
from ptft_recipes.errors import InputError, StoppedBySignal, one_line
from ptft_recipes.interruption import StopCallback, outlive_signals
from ptft_recipes.modeling import digest_weights, non_finite_weights
from ptft_recipes.reporting import write_yaml
from ptft_recipes.resources import check_free_space, explain_full_disk, explain_out_of_memory
from ptft_recipes.resuming import best_checkpoint, check_same_run, identify
from ptft_recipes.sharding import cut_by_layers, tensors_only, whole_until_trained

logger = logging.getLogger(__name__)

RATE = ("lr", "initial_lr")
# What an argument is called in an optimizer.
HYPERPARAMETERS = {
    "learning_rate": RATE, "layer_wise_decay": RATE, "head_learning_rate": RATE, "weight_decay": ("weight_decay",),
    "adam_beta1": ("betas",), "adam_beta2": ("betas",), "adam_epsilon": ("eps",),
}  # fmt: skip


class SealedTrainer(Trainer):
    """transformers.Trainer with sealed checkpoints, exact resuming, and stops that lose nothing.

    - Trainer takes a checkpoint that was cut off, or has a flipped bit, for whole. Here each is sealed by a manifest,
      beside the next steps, and only a sealed one that verifies is loaded: to go on from, and as the best at the end.
    - Trainer forgets, in a resumed run: where the best checkpoint is once the folder has moved, how long early
      stopping has waited, that it had stopped early, that `max_steps` was reached in the middle of an epoch, and new
      `logging_steps` and `save_steps`.
    - Trainer's rotation deletes older checkpoints, of whatever run, before the new one is safe.
    - SIGTERM and Ctrl-C save and stop; weights that are not finite are never saved; memory and disk that run out are
      told in one line.

    Args:
        args: As for Trainer.
        run: What `start_run` returned, and `data`; a checkpoint of another run is not gone on from.
        kwargs: As for Trainer.
    """

    def __init__(self, *args, run: dict[str, Any] | None = None, **kwargs):  # noqa: D107
        super().__init__(*args, **kwargs)
        self.run = run
        self._resumed = (run or {}).get("resumed", {"changed": {}, "allowed": []})
        self.save_total_limit, self.args.save_total_limit = self.args.save_total_limit, None  # ours rotates
        self.stop = StopCallback()
        self.add_callback(self.stop)
        self._sealer, self._seal = ThreadPoolExecutor(1), Future()
        self._seal.set_result(None)

    def train(self, *args, resume_from_checkpoint=None, **kwargs):
        """Train, from the checkpoint that `start_run` chose, which Trainer itself does not read.

        Raises:
            InputError: The checkpoint is of another run, or the disk has no room for one.
            FloatingPointError: A weight is not finite.
            ResourceError: Memory or disk space ran out.
            StoppedBySignal: SIGTERM or Ctrl-C; a checkpoint was saved.
        """
        checkpoint = resume_from_checkpoint or self.args.resume_from_checkpoint
        if self.run:
            self.run["initial_weights"] = digest_weights(self.model)
            if checkpoint:
                # Once more, now that data and model are known.
                self._resumed["changed"].update(check_same_run(checkpoint, self.run, self._resumed["allowed"]))
            if self.args.should_save:
                write_yaml(Path(self.args.output_dir, "config.yaml"), self.run["config"])
        check_free_space(self.model, self.args)
        with self.stop, explain_out_of_memory(self.model, self.args):
            try:
                output = super().train(*args, resume_from_checkpoint=checkpoint, **kwargs)
                self.stop.stop_after_training(self.args, self.state)
                return output
            except StoppedBySignal:
                self._wait_for_seal()
                self.accelerator.wait_for_everyone()  # torchrun gives the others 30 s once one has left
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # closes bars and trackers
                raise
            finally:
                self._wait_for_seal()

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is None:
            return position
        state = self.state
        state.compute_steps(self.args, max_steps)  # of these arguments, not of those when the run began
        saved = type(state).load_from_json(Path(checkpoint, "trainer_state.json"))
        best = best_checkpoint(checkpoint, saved.best_model_checkpoint)
        state.best_model_checkpoint = str(best) if best and best.is_dir() else None
        for callback in self.callback_handler.callbacks:
            stored = saved.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and stored:
                vars(callback).update(stored["attributes"])
            elif isinstance(callback, ExportableState):  # Trainer looks for the entry when it saves
                state.stateful_callbacks[type(callback).__name__] = callback.state()
        stopped_early = saved.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
        if state.global_step >= max_steps or (stopped_early and state.global_step < saved.max_steps):
            return num_train_epochs, 0  # nothing is left to train; Trainer would take one step more
        return position

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        # An engine reads the weights of a checkpoint here.
        with cut_by_layers(self), _no_code(resume_from_checkpoint), tensors_only(self):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_best_model(self):
        with _no_code(self.state.best_model_checkpoint), tensors_only(self):
            super()._load_best_model()

    def create_optimizer(self, model=None):
        """Create the optimizer."""
        with _fitting("--optim", self.args.optim, "--optim_args", self.args.optim_args):
            return super().create_optimizer(model)

    def create_scheduler(self, *args, **kwargs):
        """Create the schedule of the learning rate."""
        kind, options = self.args.lr_scheduler_type, self.args.lr_scheduler_kwargs
        with _fitting("--lr_scheduler_type", kind, "--lr_scheduler_kwargs", options):
            return super().create_scheduler(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        names = {name for changed in self._resumed["changed"] for name in HYPERPARAMETERS.get(changed, ())}
        asked = [{name: group[name] for name in names & group.keys()} for group in self.optimizer.param_groups]
        with _no_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # What was allowed to change, in place of what was saved; and the schedule of now, with more epochs perhaps.
        groups, scheduler = self.optimizer.param_groups, self.lr_scheduler
        for group, options in zip(groups, asked, strict=True):
            group.update(options)
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        # Else the model that is loaded at the end would be the best of those that happened to be saved.
        self.control.should_save |= is_best and self.args.load_best_model_at_end
        return is_best or self.stop.signal is not None  # by which `--save_strategy best` decides

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        if loader.num_workers:
            loader.worker_init_fn = partial(outlive_signals, init=loader.worker_init_fn or (lambda worker: None))
        return loader

    def _load_rng_state(self, checkpoint):
        with _no_code(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None:
            with _no_code(checkpoint):
                super()._load_scaler(checkpoint)

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        self._wait_for_seal()
        with explain_full_disk(folder.parent, self._newest_intact):
            if self.args.should_save and folder.exists():
                delete_checkpoint(folder)  # of this run, cut off or damaged: else it would not have been gone past
            self.accelerator.wait_for_everyone()
            try:
                super()._save_checkpoint(model, trial)
            except Exception:
                if self.args.should_save:
                    shutil.rmtree(folder, ignore_errors=True)  # a full disk has room again
                raise
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            self._seal = self._sealer.submit(self._seal_and_rotate, folder, Path(best).name if best else None)

    def _seal_and_rotate(self, folder: Path, best: str | None) -> None:
        run = identify(self.run) if self.run else {"id": ""}
        seal_checkpoint(folder, run)
        rotate_checkpoints(folder, self.save_total_limit, best, run["id"])

    def _wait_for_seal(self) -> None:
        with explain_full_disk(self.args.output_dir, self._newest_intact):
            self._seal.result()

    def _newest_intact(self) -> Path | None:
        saved = reversed(checkpoints_in(self.args.output_dir))
        return next((path for path in saved if not find_damage(path)), None)

    def _finalize_training(self, *args, **kwargs):
        self._wait_for_seal()
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best and self.args.should_save and (damage := find_damage(best)):
            raise InputError(f"{best}, the best checkpoint, cannot be loaded: {damage}")
        self.accelerator.wait_for_everyone()
        return super()._finalize_training(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, whose weights are finite."""
        self._check_finite()
        with explain_full_disk(output_dir or self.args.output_dir, self._newest_intact):
            super().save_model(output_dir, _internal_call)
        # PEFT writes a card, with a path of this machine; a run's own is its last file. Trainer makes a pickle of its
        # arguments, which nothing reads; config.yaml says the same.
        for name in ("README.md", TRAINING_ARGS_NAME) if self.args.should_save else ():
            Path(output_dir or self.args.output_dir, name).unlink(missing_ok=True)

    def _check_finite(self) -> None:
        if broken := non_finite_weights(self.model):
            raise FloatingPointError(
                f"{broken[0]} is not finite after step {self.state.global_step}, and was not saved; last checkpoint: "
                f"{self._newest_intact() or 'none'}. Try a lower --learning_rate, more --warmup_steps, or --bf16 false"
            )

    def evaluation_loop(self, *args, **kwargs):
        """Evaluate or predict."""
        with explain_out_of_memory(self.model, self.args), whole_until_trained(self):
            return super().evaluation_loop(*args, **kwargs)


@contextlib.contextmanager
def _fitting(*options):
    """Turn what an optimizer or a schedule says of its options into an InputError."""
    try:
        yield
    except (TypeError, ValueError, ImportError) as error:
        given = " ".join(str(getattr(option, "value", option)) for option in options)
        raise InputError(f"{given}: {one_line(error)}") from error


@contextlib.contextmanager
def _no_code(checkpoint):
    """Tell in one line that a file is a pickle of more than tensors: a seal only says that nobody changed it since."""
    try:
        yield
    except UnpicklingError as error:
        reason = one_line(error, 200)
        raise InputError(f"{checkpoint}: a file holds more than tensors, and was not loaded ({reason})") from error
