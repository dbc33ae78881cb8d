"""The memory that training is going to need, told before it starts, beside what there is and what was used."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import convert_outputs_to_fp32, gather_object
from transformers import Trainer

from ptft_recipes.errors import InputError, one_line
from ptft_recipes.generators import same_draws_afterwards
from ptft_recipes.live_tensors import LiveTensors, extrapolate
from ptft_recipes.provenance import peak_memory

logger = logging.getLogger(__name__)

GIB = 2**30
PROBES = (2, 4)  # rows; of one row some tensors are laid out otherwise
CGROUP = Path("/sys/fs/cgroup")
# Of the estimate; what is more than this above what is free is no error of the estimate any more.
TOLERANCE = 1.5


@dataclasses.dataclass
class Estimate:
    """Bytes that a process is going to need at most; `activations` is what a step needs besides the rest."""

    program: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def fixed(self) -> int:
        """Bytes that no batch size changes."""
        return self.program + self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.fixed + self.activations

    def __str__(self) -> str:  # noqa: D105
        parts = ((name, value) for name, value in dataclasses.asdict(self).items() if value or name != "program")
        return f"{self.total / GIB:.2f} GiB = " + " + ".join(f"{name} {value / GIB:.2f}" for name, value in parts)


def free_memory(device: torch.device, processes: int = 1, cgroup: Path = CGROUP) -> int:
    """Return the bytes that this process can have in all, those that it has already included.

    Args:
        device: A GPU, or the CPU, whose memory is the machine's or, if that is less, the container's.
        processes: Of this machine, that share it.
        cgroup: Where Linux tells the limit of the container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    available = psutil.virtual_memory().available
    for limit, used, name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = ((cgroup / file).read_text().strip() for file in (limit, used))
            statistics = (cgroup / limit).with_name("memory.stat").read_text().split()
        except OSError:
            continue
        if most.isdigit():  # not `max`
            cache = int(dict(zip(statistics[::2], statistics[1::2], strict=True)).get(name, 0))
            available = min(available, int(most) - int(taken) + cache)
    return max(available, 0) // processes + psutil.Process().memory_info().rss


def estimate_memory(trainer: Trainer) -> Estimate:
    """Estimate what training needs, the activations by passes with few of its longest rows.

    Weights, gradients, generators and mode of the model stay as they are.

    Args:
        trainer: That has not begun to train.
    """
    model, args = trainer.model, trainer.args
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    weights = _storage_bytes([*model.parameters(), *model.buffers()])
    program = max(psutil.Process().memory_info().rss - weights, 0) if args.device.type == "cpu" else 0
    gradients = _storage_bytes(moving)
    if args.auto_find_batch_size and args.device.type == "cpu":
        program += gradients  # the weights to begin with again
    with same_draws_afterwards():
        optimizer = _optimizer_bytes(trainer, moving)
        peak = _peak_of_a_pass(trainer)
    accumulates = args.gradient_accumulation_steps > 1
    # Where nothing is accumulated the gradients come while activations go.
    activations = peak if accumulates else max(peak - gradients, 0)
    buckets = gradients * (args.world_size > 1)  # in which DistributedDataParallel sends them
    return Estimate(program, weights, gradients + buckets, optimizer, activations)


def _storage_bytes(tensors) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _optimizer_bytes(trainer: Trainer, moving: list[torch.Tensor]) -> int:
    """Return what the optimizer keeps of the weights, by what it keeps of a small matrix and of a small vector."""
    ratios = {True: 2.0, False: 2.0}  # of Adam
    with contextlib.suppress(Exception):  # one that needs to know the layers: Trainer tells what is wrong with it
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
        for is_matrix, shape in ((True, (64, 64)), (False, (4096,))):
            weight = torch.nn.Parameter(torch.zeros(shape, device=trainer.args.device))
            weight.grad = torch.zeros_like(weight)
            optimizer = kind([weight], **options)
            optimizer.step()
            kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
            ratios[is_matrix] = _storage_bytes(value for value in kept if value.numel() > 1) / _storage_bytes([weight])
    return round(sum(ratios[weight.dim() > 1] * weight.numel() * weight.element_size() for weight in moving))


def _peak_of_a_pass(trainer: Trainer) -> int:
    """Return the most bytes that live during a pass forward and backward, besides the weights."""
    model, size = trainer.model, trainer.args.per_device_train_batch_size
    probes = PROBES if size > PROBES[1] else (size,)
    batches = [trainer.longest_rows(rows) for rows in probes]
    # Before any pass: the processes count together, and one that has failed would not come.
    items = [trainer._get_num_items_in_batch([batch], trainer.args.device) for batch in batches]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    timelines, was_training = [], model.training
    with _as_in_training(trainer):
        for batch, count in zip(batches, items, strict=True):
            batch = trainer._prepare_inputs(batch)
            with LiveTensors([*model.parameters(), *model.buffers()]) as live:
                type(trainer).training_step(trainer, model, batch, count)  # not one that watches this trainer
            timelines.append(live.after)
            model.zero_grad()
    model.train(was_training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if len(probes) == 1:
        return max(timelines[0])
    return extrapolate(*timelines, probes, size)


@contextlib.contextmanager
def _as_in_training(trainer: Trainer) -> Iterator[None]:
    """Let the bare model compute as Trainer and accelerate let it when they train it."""
    model, args, accelerator = trainer.model, trainer.args, trainer.accelerator
    own, forward, handles = vars(model).get("forward"), model.forward, []
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps

    def run(*args, **kwargs):
        with accelerator.autocast():
            return forward(*args, **kwargs)

    if args.mixed_precision != "no":
        model.forward = convert_outputs_to_fp32(run)
    checkpoints = args.activation_checkpointing and not model.is_activation_checkpointing
    if checkpoints:
        kwargs = dict(args.activation_checkpointing_kwargs or {})
        options = {"every_n_layers": kwargs.pop("every_n_layers", 1), "offload": kwargs.pop("offload", False)}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs or None, **options)
    if args.gradient_accumulation_steps > 1:  # then there are gradients already, to which others are added
        drop = "grad", None
        handles = [
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, *drop))
            for weight in model.parameters()
            if weight.requires_grad
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if checkpoints:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()  # which the line above leaves behind
        if own is not None:
            model.forward = own
        else:
            vars(model).pop("forward", None)
        model.zero_grad()


class TellsMemory:
    """Of a Trainer that says how much memory it is going to need, and how much it has used."""

    memory: dict[str, Any] | None = None

    def longest_rows(self, count: int) -> dict[str, torch.Tensor]:
        """Return a batch of the longest training row, so many times.

        Args:
            count: Rows.
        """
        lengths = "length" in (getattr(self.train_dataset, "column_names", None) or ())
        longest = (
            max(range(len(self.train_dataset)), key=self.train_dataset["length"][:].__getitem__) if lengths else 0
        )
        loader = self.get_train_dataloader()
        return loader.collate_fn([loader.dataset[longest] for _ in range(count)])

    def plan_memory(self) -> None:
        """Say what training needs and what there is, before it computes anything.

        With `--auto_find_batch_size` the rows at once are halved until it fits: an operating system that has promised
        more memory than there is does not raise an error that training could catch, but ends the process.

        Raises:
            InputError: There is clearly less.
        """
        args = self.args
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            logger.info("memory: not estimated, because the model is cut over the processes")
            return
        free = free_memory(args.device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        estimate = self._estimate()
        # Every process takes as many rows at once as the one with the least memory can.
        while args.auto_find_batch_size and not all(gather_object([estimate is None or estimate.total <= free])):
            if (size := args.per_device_train_batch_size) == 1:
                break
            self._take_at_once(size // 2)
            logger.warning("batch: %d rows at once would not fit into %.2f GiB", size, free / GIB)
            estimate = self._estimate()
        if estimate is None:
            return
        logger.info("memory: about %s, of %.2f GiB free", estimate, free / GIB)
        parts = {name: round(value / GIB, 3) for name, value in dataclasses.asdict(estimate).items()}
        self.memory = {"estimated_gib": {"total": round(estimate.total / GIB, 3)} | parts}
        self.memory["free_gib"] = round(free / GIB, 3)
        if self.run is not None:
            self.run["memory"] = self.memory
        if estimate.total > free:
            told = f"memory: training needs about {estimate}, and {free / GIB:.2f} GiB are free. {self._what_helps()}"
            if estimate.fixed > free or estimate.total > TOLERANCE * free:
                raise InputError(told)
            logger.warning(told)

    def _estimate(self) -> Estimate | None:
        try:
            return estimate_memory(self)
        except Exception as error:  # training tells it better
            logger.warning("memory: not estimated (%s: %s)", type(error).__name__, one_line(error, 150))
            return None

    def _what_helps(self) -> str:
        args, rows = self.args, self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        helps = [] if args.activation_checkpointing else ["--gradient_checkpointing true"]
        if (size := args.per_device_train_batch_size) > 1:
            helps.append(f"--per_device_train_batch_size {size // 2} --global_batch_size {rows * args.world_size}")
        if self.tuning_args.tuning == "full":
            helps.append("--tuning lora")
        return "What helps: " + "; ".join([*helps, "--optim adafactor", "a lower --max_length"])

    def train(self, *args, **kwargs):
        """Train, and say what was used, the start of the program included."""
        output = super().train(*args, **kwargs)
        if self.memory is not None:
            used = peak_memory(self.args.device.type)
            self.memory["used_gib"] = used.get("cuda", used["resident"])
            logger.info(
                "memory: used %.2f GiB, estimated %.2f GiB",
                self.memory["used_gib"],
                self.memory["estimated_gib"]["total"],
            )
        return output
