"""What the hardware does, and how many processes run on it: detected, never assumed."""

import os

import torch

from ptft_recipes.errors import InputError


def has_native_bf16(use_cpu: bool = False) -> bool:
    """Say whether matrix products run natively in bfloat16 on the device that training will use.

    True for Ampere and later GPUs, and for CPUs with AVX-512-BF16 or AMX. Emulated bfloat16 is slower than float32 and
    counts as False.

    Args:
        use_cpu: Training is to run on the CPU even where there is an accelerator.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available() and not use_cpu:
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def check_processes(use_cpu: bool = False) -> None:
    """Compare the processes that run with those that were asked for.

    `distributed_type: MULTI_CPU` and `accelerate launch --cpu --num_processes 2` start one process and say nothing:
    the launcher then names a master address and no world size.

    Args:
        use_cpu: Training is to run on the CPU even where there is an accelerator.

    Raises:
        InputError: One process runs where several were asked for, or more run on this machine than it has GPUs.
    """
    by_launcher = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys()
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and not by_launcher:
        raise InputError(
            "accelerate was asked for several processes and started one; on CPUs use `accelerate launch --config_file "
            "accelerate_configs/multi_cpu.yaml` (distributed_type: MULTI_GPU with use_cpu: true). If you want one "
            "process, unset MASTER_ADDR"
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if torch.cuda.is_available() and not use_cpu and processes > torch.cuda.device_count():
        raise InputError(
            f"{processes} processes on a machine with {torch.cuda.device_count()} GPUs: lower --num_processes, or "
            "pass --use_cpu true to the recipe to leave the GPUs alone"
        )
