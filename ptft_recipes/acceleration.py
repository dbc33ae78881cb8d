"""The fast path: what the hardware does, how many processes run on it, and batches of rows of similar length."""

import ctypes
import functools
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import torch
from torch import nn
from transformers import TrainingArguments

from ptft_recipes.cpu_kernels import use_cpu_kernels
from ptft_recipes.errors import InputError

# Batches by length are a little less random: where they save less than this share of the tokens they are not worth it.
LEAST_SAVED = 0.1


def has_native_bf16(use_cpu: bool = False) -> bool:
    """Say whether matrix products in bfloat16 are native, and faster, on the device that training will use.

    True for Ampere and later GPUs, and for CPUs with AVX-512 BF16 or AMX on which a product takes less time than in
    float32. Intel's CPUs with the first and without the second, as some clouds rent them, take twice as long.

    Args:
        use_cpu: Training is to run on the CPU even where there is an accelerator.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available() and not use_cpu:
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")) and _bf16_is_faster()


@functools.cache
def _bf16_is_faster() -> bool:
    # By turns, and the best of each: somebody else may use the machine. The answers are a factor of 2 away from 1.
    dtypes = torch.bfloat16, torch.float32
    turns = [[measure_gemm(dtype, size=512, seconds=0.02) for dtype in dtypes] for _ in range(3)]
    return max(turn[0] for turn in turns) > max(turn[1] for turn in turns)


def measure_gemm(dtype: torch.dtype, device: str = "cpu", size: int | None = None, seconds: float = 0.7) -> float:
    """Return the FLOP per second of products of large square matrices, the peak that utilisation is a share of.

    Args:
        dtype: Of the matrices.
        device: That computes.
        size: Rows of a matrix; by default 1,536 on a CPU and 8,192 on a GPU.
        seconds: For which products are repeated.
    """
    size = size or (1536 if device == "cpu" else 8192)
    generator = torch.Generator(device).manual_seed(0)  # not that of the training
    left, right = (torch.rand(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    wait_for(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.mm(left, right)
        wait_for(device)
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - start)


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device != "cpu":
        torch.accelerator.synchronize()


def check_processes(use_cpu: bool = False) -> None:
    """Compare the processes that run with those that were asked for.

    `distributed_type: MULTI_CPU` and `accelerate launch --cpu --num_processes 2` start one process and say nothing:
    the launcher then names a master address and no world size.

    Args:
        use_cpu: Training is to run on the CPU even where there is an accelerator.

    Raises:
        InputError: One process runs where several were asked for, more run on this machine than it has GPUs, a model
            is to be cut over CPUs, or could not be put together again.
    """
    by_launcher = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys()
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and not by_launcher:
        raise InputError(
            "accelerate was asked for several processes and started one; on CPUs use `accelerate launch --config_file "
            "accelerate_configs/multi_cpu.yaml` (distributed_type: MULTI_GPU with use_cpu: true). If you want one "
            "process, unset MASTER_ADDR"
        )
    engine, has_gpu = engine_name(), torch.accelerator.is_available()
    if engine.startswith("fsdp") and (use_cpu or not has_gpu):
        raise InputError(
            f"the configuration asks for {engine}, which accelerate has for GPUs only: here it would train whole "
            "copies and say nothing. Use accelerate_configs/multi_cpu.yaml"
        )
    if engine.startswith(("zero", "deepspeed")) and use_cpu and has_gpu:
        raise InputError("DeepSpeed takes the GPUs of this machine; leave out --use_cpu true, or use multi_cpu.yaml")
    for name, variable, wanted, line in (
        ("fsdp2", "FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "fsdp_state_dict_type: FULL_STATE_DICT"),
        ("zero3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true", "zero3_save_16bit_model: true"),
    ):
        if engine == name and os.environ.get(variable) != wanted:
            raise InputError(
                f"{engine} would save no model that from_pretrained reads; its configuration needs {line}"
            )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and not use_cpu and processes > torch.cuda.device_count():
        raise InputError(
            f"{processes} processes on a machine with {torch.cuda.device_count()} GPUs: lower --num_processes, or "
            "pass --use_cpu true to the recipe to leave the GPUs alone"
        )


def engine_name() -> str:
    """Return by what processes train together, as their launcher says: `ddp`, `fsdp2`, `zero3`; of one, `none`."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"fsdp{os.environ.get('FSDP_VERSION', 1)}"
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        return "deepspeed"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', 2)}"
    return "none" if os.environ.get("WORLD_SIZE", "1") == "1" else "ddp"


def take_fast_path(
    model: nn.Module, training_args: TrainingArguments, lengths: Sequence[int] | None = None
) -> list[str]:
    """Let a model train as fast as its device can without changing what it learns, and say by what.

    Args:
        model: Changed in place, until it is saved: what is saved is the stock model.
        training_args: For device, precision, order of the rows and optimizer. Batches by length become random ones
            where they would save little.
        lengths: `[rows]` tokens per row of training, if they are known.

    Returns:
        What was chosen, in words.
    """
    chosen = ["fp32" if training_args.mixed_precision == "no" else training_args.mixed_precision]
    if training_args.train_sampling_strategy == "group_by_length":
        saved = 1.0 if lengths is None else saved_by_length(lengths, training_args)
        if saved >= LEAST_SAVED:
            chosen.append("batches by length")
        else:
            training_args.train_sampling_strategy = "random"
            chosen.append(f"random batches (by length: {saved:.0%} fewer tokens)")
    if training_args.device.type == "cpu":
        use_cpu_kernels(model)
        chosen.append("dropout and attention kernels for CPUs")
        if keep_freed_memory():
            chosen.append("freed memory kept")
        chosen.append(f"{torch.get_num_threads()} thread(s)")
    return [*chosen, training_args.optim.value]


def saved_by_length(lengths: Sequence[int], training_args: TrainingArguments) -> float:
    """Return the share of the tokens of random batches, padding included, that batches by length do without.

    Args:
        lengths: `[rows]` tokens per row.
        training_args: For the sizes of batch and step.
    """
    lengths, size = np.asarray(lengths), training_args.train_batch_size
    starts = np.arange(0, len(lengths), size)
    rows = np.diff([*starts, len(lengths)])

    def count(order: Sequence[int]) -> int:
        return (rows * np.maximum.reduceat(lengths[order], starts)).sum()

    group_size = size * training_args.world_size * training_args.gradient_accumulation_steps
    by_length = list(LengthGroupedSampler(lengths, group_size, seed=0))
    return 1 - count(by_length) / count(np.random.default_rng(0).permutation(len(lengths)))


def use_all_cores() -> None:
    """Compute on all cores of this machine, shared among its processes, unless somebody set `OMP_NUM_THREADS`.

    `accelerate launch` and torchrun set it to 1 for the processes that they start, where nobody has set it for them.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return
    try:
        launched_with = psutil.Process().parent().environ()  # as it was when the launcher started
    except (psutil.Error, AttributeError):
        return
    if "OMP_NUM_THREADS" not in launched_with:
        cores = psutil.cpu_count(logical=False) or 1
        if hasattr(os, "sched_getaffinity"):
            cores = min(cores, len(os.sched_getaffinity(0)))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees, so that the next step need not ask the kernel for it again.

    glibc returns every block above 32 MiB at once, and a step of training allocates the same ones as the step before.

    Returns:
        Whether the C library can be told to: glibc can.

    Source: mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and all([mallopt(-3, 2**30), mallopt(-1, 2**31 - 1), mallopt(-2, 2**26)])


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Row numbers in an order in which every group of rows is of similar length, and the groups come in random order.

    transformers' sampler of this name yields each of its pools longest rows first: an epoch then ends on the shortest
    rows, and what goes with length (the label, often) drifts. It also draws from the global generator, so that a
    resumed run sees other batches. Here the groups are shuffled, and the order depends on seed and epoch alone.

    Args:
        lengths: `[rows]` tokens per row.
        group_size: Rows per optimizer step: batch size times processes times accumulation.
        seed: Of the order.
        pool_groups: Groups whose rows are sorted together; more make them more alike, and less random.
    """

    def __init__(self, lengths: Sequence[int], group_size: int, seed: int, pool_groups: int = 50):  # noqa: D107
        self.lengths = torch.as_tensor(lengths)
        self.group_size, self.pool_size, self.seed, self.epoch = group_size, group_size * pool_groups, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:  # noqa: D105
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:  # noqa: D105
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups = []
        for pool in torch.randperm(len(self), generator=generator).split(self.pool_size):
            groups += pool[self.lengths[pool].argsort(stable=True)].split(self.group_size)
        # Only full groups move: a short one in between would shift the borders of all that follow.
        whole = [group for group in groups if len(group) == self.group_size]
        rest = [group for group in groups if len(group) < self.group_size]
        order = torch.randperm(len(whole), generator=generator).tolist()
        yield from torch.cat([*(whole[i] for i in order), *rest]).tolist()
