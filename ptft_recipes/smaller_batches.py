"""`--auto_find_batch_size` that keeps the global batch: half the rows at once, and twice as often."""

import copy
import logging
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from transformers import TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState

from ptft_recipes.batch_sizes import describe_batch, format_batch, split_rows
from ptft_recipes.errors import InputError, one_line
from ptft_recipes.generators import generator_states, restore_generators
from ptft_recipes.resources import explain_out_of_memory, is_out_of_memory

logger = logging.getLogger(__name__)

BUCKET = 2**23  # elements that are averaged together


class TooLargeError(MemoryError):
    """The rows that a process takes at once are too many for the memory of one of them; all processes raise it."""


class FindsBatchSize:
    """Of a SealedTrainer that, with `--auto_find_batch_size`, takes fewer rows at once where memory does not suffice.

    Trainer goes on with nine tenths of the rows and as many accumulation steps: the global batch is another one, and
    so are the steps, the learning rates and the result. It also keeps the weights that the first try has changed, and
    with several processes those that have memory wait for the gradients of the one that has not, for ever.

    Here the rows at once are halved and accumulated twice as often. Training goes on from the newest checkpoint, if
    it has saved one, and else begins again: with the weights, generators and callbacks that it had. Several processes
    agree before they average their gradients, which they do after the last pass of a step instead of during it.
    """

    _out_of_memory = ""  # what this process was told in the current step

    def train(self, *args, **kwargs):
        """Train.

        Raises:
            InputError: The model is cut over the processes, or --fgm with several of them.
        """
        logger.info("batch: %s", format_batch(describe_batch(self.args)))
        engine = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else ""
        if self.args.auto_find_batch_size and (engine or (self.args.world_size > 1 and self.tuning_args.fgm)):
            raise InputError(
                f"--auto_find_batch_size: not with {engine or '--fgm on several processes'}; give "
                "--global_batch_size and a lower --per_device_train_batch_size instead"
            )
        return super().train(*args, **kwargs)

    def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None, **kwargs):
        if not self.args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, **kwargs)
        if self.args.world_size > 1:
            # They are alike when the processes begin, and a process without memory would not come to meet the others.
            self.accelerator.ddp_handler.broadcast_buffers = False
        # As many as a checkpoint says that were found, or as the estimate of memory has left.
        self._take_at_once(min(batch_size, self.args.per_device_train_batch_size))
        start, checkpoint = _Start(self, resume_from_checkpoint), resume_from_checkpoint
        while True:
            try:
                return super()._inner_training_loop(self._train_batch_size, args, checkpoint, **kwargs)
            except Exception as error:
                # With several processes the others know of none but this.
                told = isinstance(error, TooLargeError) or (is_out_of_memory(error) and self.args.world_size == 1)
                if not told or self._train_batch_size == 1:
                    with explain_out_of_memory(self.model, self.args):
                        raise
                told = one_line(error, 150)
            # Not before: the traceback holds the activations.
            checkpoint = self._back_to(start) or resume_from_checkpoint
            before = self._train_batch_size
            self._take_at_once(before // 2)
            logger.warning(
                "batch: out of memory with %d rows at once (%s); now %s, %s",
                before,
                told,
                format_batch(describe_batch(self.args)),
                f"from {Path(checkpoint).name}" if checkpoint else "from the beginning",
            )

    def _take_at_once(self, most: int) -> None:
        """Split the rows of a step into so many at once, or fewer."""
        args = self.args
        rows = describe_batch(args)["rows"]
        size, steps = split_rows(rows, args.world_size, most)
        self._train_batch_size = args.per_device_train_batch_size = size
        args.gradient_accumulation_steps = steps
        if self.run is not None:
            self.run["batch"] = describe_batch(args)

    def _init_training_state(self, *args):
        position = super()._init_training_state(*args)
        self.state.train_batch_size = self._train_batch_size  # of a checkpoint it would be the one before
        return position

    def _back_to(self, start: "_Start") -> str | None:
        """Leave nothing of what was tried; return the newest checkpoint that it has saved, if there is one."""
        self._wait_for_seal()
        self._out_of_memory = ""
        self.optimizer = self.lr_scheduler = None
        handler = self.callback_handler
        handler.optimizer = handler.lr_scheduler = handler.train_dataloader = None
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.model).pop("_is_accelerate_prepared", None)
        gradient_state = self.accelerator.gradient_state
        gradient_state.dataloader_references = [None]  # the loader that was left in the middle
        gradient_state._set_sync_gradients(True)
        self.model.zero_grad()
        clear_device_cache(garbage_collection=True)
        newest = [None]
        if self.args.should_save and (path := self._newest_intact()) and int(path.name.split("-")[1]) > start.step:
            newest = [str(path)]
        start.restore(self)
        if checkpoint := broadcast_object_list(newest)[0]:
            self._load_from_checkpoint(checkpoint)
        return checkpoint

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Train on a batch; with several processes and `--auto_find_batch_size`, average the gradients afterwards.

        Raises:
            TooLargeError: One of the processes ran out of memory in this step.
        """
        if not self.args.auto_find_batch_size or self.args.world_size == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        if not self._out_of_memory:
            try:
                with model.no_sync():
                    loss = super().training_step(model, inputs, num_items_in_batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._out_of_memory = one_line(error, 150) or type(error).__name__
        if self._out_of_memory:
            model.zero_grad()  # room for what the agreement takes
        if self.accelerator.sync_gradients:
            self._average_gradients(model)
        return loss

    def _average_gradients(self, model) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        flags = [bool(self._out_of_memory), *(weight.grad is not None for weight in weights)]
        flags = torch.tensor(flags, dtype=torch.float32, device=self.args.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        too_large, *has_gradient = flags.tolist()
        if too_large:
            raise TooLargeError(self._out_of_memory or "another process")
        bucket: list[torch.Tensor] = []
        for weight, there in zip(weights, has_gradient, strict=True):
            if not there:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if bucket and sum(gradient.numel() for gradient in bucket) + weight.numel() > BUCKET:
                _average(bucket)
                bucket = []
            bucket.append(weight.grad)
        _average(bucket)


def _average(gradients: list[torch.Tensor]) -> None:
    """Average gradients over the processes, in place: first divided, then added, as DistributedDataParallel does."""
    for dtype in {gradient.dtype for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = _flatten_dense_tensors(alike).div_(torch.distributed.get_world_size())
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(alike, _unflatten_dense_tensors(flat, alike), strict=True):
            gradient.copy_(mean)


class _Start:
    """What a training begins with, and a second try has to begin with too.

    Args:
        trainer: That is about to train.
        checkpoint: That it has read.
    """

    def __init__(self, trainer, checkpoint: str | None):
        model = trainer.model
        self.step = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step if checkpoint else 0
        self.moving = {name: weight.requires_grad for name, weight in model.named_parameters()}
        kept = [*(pair for pair in model.named_parameters() if self.moving[pair[0]]), *model.named_buffers()]
        self.weights = {name: weight.detach().to("cpu", copy=True) for name, weight in kept}
        self.generators = generator_states()
        states = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExportableState)]
        self.callbacks = [(callback, copy.deepcopy(callback.state()["attributes"])) for callback in states]

    def restore(self, trainer) -> None:
        """Put it back."""
        tensors = dict([*trainer.model.named_parameters(), *trainer.model.named_buffers()])
        with torch.no_grad():
            for name, weight in self.weights.items():
                tensors[name].copy_(weight)
        for name, weight in trainer.model.named_parameters():
            weight.requires_grad_(self.moving[name])
        restore_generators(self.generators)
        for callback, attributes in self.callbacks:
            vars(callback).update(copy.deepcopy(attributes))
        trainer.control, trainer.current_flos = TrainerControl(), 0
