"""What a reader needs to trust or repeat a run: versions, commit, hardware, time."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

import ptft_recipes
from ptft_recipes.acceleration import engine_name
from ptft_recipes.redaction import portable

PACKAGES = ("transformers", "accelerate", "peft", "datasets", "evaluate", "tokenizers", "torch", "numpy")

_starts: list[float] = []  # of the runs of this process


def describe_environment(recipe: str, training_args) -> dict[str, Any]:
    """Describe the run as far as it is known before training.

    Args:
        recipe: Path of the recipe's file.
        training_args: `TrainingArguments`.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    _starts.append(time.time() if _starts else psutil.Process().create_time())
    commit, dirty = _git_state(Path(recipe).resolve().parent)
    device = training_args.device.type
    return {
        "recipe": Path(recipe).stem,
        "versions": {"ptft-recipes": ptft_recipes.__version__, "python": platform.python_version()} | versions,
        "commit": commit,
        "dirty": dirty,
        "seed": training_args.seed,
        "hardware": _gpu_name() if device == "cuda" else f"{_cpu_name()}, {os.cpu_count()} cores",
        "device": device,
        "processes": training_args.world_size,
        "engine": engine_name(),
        "precision": {"no": "fp32"}.get(training_args.mixed_precision, training_args.mixed_precision),
    }


def describe_stage(run: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return what the lineage of a model keeps of a run.

    Args:
        run: What `start_run` returned, with the report of the data.
        steps: Of training; 0 for a run that changed the checkpoint without.
    """
    return {
        "recipe": run["recipe"],
        "from": portable(run["base_model"]),
        "hub_id": run["base_model_hub_id"],
        "from_scratch": run["config"].get("from_scratch", False),
        "data": portable(run["data"]["name"]),
        "fingerprint": run["data"]["fingerprint"]["train"],
        "steps": steps,
    }


def seconds_since_start() -> float:
    """Return the age of the run: the first of a process began with it, imports and all."""
    return time.time() - (_starts[-1] if _starts else psutil.Process().create_time())


class StepTimeCallback(TrainerCallback):
    """Measure how long the optimizer steps take, without evaluation, saving and waiting for the first batch."""

    def __init__(self):  # noqa: D107
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: D102
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        self.seconds.append(time.perf_counter() - self._start)

    def median(self) -> float | None:
        """Return the median in seconds, which the hiccups of a shared machine do not move; None without a step."""
        return statistics.median(self.seconds) if self.seconds else None


def saved_mib(output_dir: Path) -> float:
    """Return the size in MiB of the weights that a run saved: of the whole model, or of an adapter."""
    return sum(path.stat().st_size for path in output_dir.glob("*.safetensors")) / 2**20


def peak_memory(device: str) -> dict[str, float]:
    """Return the peak memory in GiB: resident memory of this process, and memory of the GPU where there is one."""
    if os.name == "nt":
        resident = psutil.Process().memory_info().peak_wset / 2**30
    else:
        import resource  # POSIX only

        unit = 2**30 if sys.platform == "darwin" else 2**20
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    peak = {"resident": resident}
    if device == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 3) for name, value in peak.items()}


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the recipe's folder, and whether files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu_name() -> str:
    return torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()


def _gpu_name() -> str:
    return f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}"
