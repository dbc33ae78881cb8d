"""What an installation has and lacks, in plain words: versions, hardware, processes, the Hub, disk."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ptft_recipes
from ptft_recipes.errors import InputError, one_line

# torch, accelerate and the Hub's client are imported where they are looked at: one that is broken is a finding.

SHOWN = ("torch", "transformers", "accelerate", "peft", "datasets", "huggingface_hub")
# The first two are what a base-size model (110M weights) takes: twice weights and optimizer, and the weights alone.
OUTPUT_GIB, CACHE_GIB, HUB_SECONDS = 3, 1, 10


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: Of what.
        found: What it is, in words.
        state: `ok`, `note` (worth knowing) or `wrong` (something will fail).
        remedy: What to do about it.
    """

    name: str
    found: str
    state: str = "ok"
    remedy: str = ""


def format_finding(finding: Finding, width: int) -> str:
    """Return a finding as lines of at most `width` characters, where its words are not longer themselves."""
    indent = " " * 22
    head = f"{finding.state:<6}{finding.name:<16}"
    texts = [finding.found, finding.remedy] if finding.remedy else [finding.found]
    lines = [line for text in texts for line in textwrap.wrap(text, width - len(indent), break_long_words=False,
                                                              break_on_hyphens=False)]  # fmt: skip
    return "\n".join([head + lines[0], *(indent + line for line in lines[1:])])


def examine(accelerate_config: str | None = None, output_dir: str = "runs") -> Iterator[Finding]:
    """Look at an installation, one thing after another.

    Args:
        accelerate_config: That is meant for `accelerate launch --config_file`; its processes are really started.
        output_dir: Of the runs to come.

    Raises:
        InputError: The configuration is no file, or none of Accelerate.
    """
    if accelerate_config is not None and not os.path.isfile(accelerate_config):
        raise InputError(f"--accelerate_config {accelerate_config}: no such file; `ptft ls --accelerate` lists some")
    yield from _versions()
    try:
        import torch

        from ptft_recipes.acceleration import has_native_bf16
        from ptft_recipes.processes import read_accelerate_config
    except Exception as error:  # a library that does not load raises whatever it likes
        remedy = "Install this library anew, in a fresh environment if that does not help."
        yield Finding("libraries", _told(error), "wrong", remedy)
        return
    config = read_accelerate_config(accelerate_config)
    yield _accelerator(torch)
    yield _threads()
    yield _launcher()
    started, finding = _processes(torch, config)
    yield finding
    yield _precision(torch, started, has_native_bf16)
    yield _hub()
    yield _disk("disk: output", Path(output_dir), OUTPUT_GIB, "choose another --output_dir")
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _disk("disk: Hub cache", Path(HF_HUB_CACHE), CACHE_GIB, "set HF_HOME to a folder on another disk")


def _told(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    def installed(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    found = [f"ptft-recipes {ptft_recipes.__version__}", f"Python {platform.python_version()}"]
    yield Finding("versions", ", ".join([*found, *(f"{name} {installed(name)}" for name in SHOWN)]))
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("ptft-recipes") or ()]
    except importlib.metadata.PackageNotFoundError:
        place = Path(__file__).parent
        yield Finding("installation", f"{place} is imported, but not installed", "note", "python -m pip install -e .")
        return
    for requirement in required:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = installed(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                what = f"{requirement.name} {version or 'is not installed'}; needed is {requirement}"
                yield Finding("versions", what, "wrong", f"python -m pip install '{requirement}'")


def _accelerator(torch) -> Finding:
    if torch.cuda.is_available():
        numbers = range(torch.cuda.device_count())
        memory = [[size / 2**30 for size in torch.cuda.mem_get_info(i)] for i in numbers]
        names = [
            f"{torch.cuda.get_device_name(i)} ({memory[i][0]:.1f} of {memory[i][1]:.1f} GiB free)" for i in numbers
        ]
        if any(free < total / 2 for free, total in memory):
            return Finding("accelerator", ", ".join(names), "note", "Another process holds much of it: nvidia-smi")
        return Finding("accelerator", ", ".join(names))
    if torch.accelerator.is_available():
        return Finding("accelerator", str(torch.accelerator.current_accelerator()))
    if not Path("/dev/nvidiactl").exists() and not shutil.which("nvidia-smi"):
        return Finding("accelerator", "none; training runs on the CPU")
    what = "there is the driver of an NVIDIA GPU, and torch does not see one"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(
            "accelerator", f"{what}: CUDA_VISIBLE_DEVICES hides it", "note", "Unset it to train on the GPU."
        )
    if torch.version.cuda is None:
        remedy = f"torch {torch.__version__} is a build for CPUs; install the CUDA build (pytorch.org/get-started)"
    else:
        remedy = (
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}; the driver may be older, or broken"
        )
    return Finding("accelerator", what, "wrong", remedy)


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_to = os.environ.get("OMP_NUM_THREADS", "")
    if set_to.isdigit() and int(set_to) < cores:
        return Finding("CPU", f"{cores} cores, and OMP_NUM_THREADS={set_to}", "note", "Unset it to compute on all.")
    return Finding("CPU", f"{cores} cores for this process")


def _launcher() -> Finding:
    path, scripts = shutil.which("accelerate"), sysconfig.get_path("scripts")
    if path is None:
        remedy = f"It should be in {scripts}; activate the environment, or put this folder on PATH"
        return Finding("launcher", "the shell finds no `accelerate`", "wrong", remedy)
    if Path(path).parent != Path(scripts):
        remedy = "It may belong to another Python; `python -m accelerate.commands.launch` is the one of this"
        return Finding("launcher", f"`accelerate` is {path}, not in {scripts}", "note", remedy)
    return Finding("launcher", path)


def _processes(torch, config) -> tuple[list[dict[str, str]], Finding]:
    """Start what `accelerate launch` starts, and compare it with what is asked for."""
    from ptft_recipes.processes import reaches_other_machines, start_processes

    file, asked = config
    name = "accelerate launch" if file is None else str(file)
    if asked is not None and (elsewhere := reaches_other_machines(asked)):
        return [], Finding("processes", f"{name}: not tried, because it {elsewhere}", "note")
    started, trouble = start_processes(file)
    kind = getattr(asked, "distributed_type", "NO")
    kind = getattr(kind, "value", kind)
    if not started:
        lacks = kind == "DEEPSPEED" and not importlib.util.find_spec("deepspeed")
        remedy = "python -m pip install 'ptft-recipes[deepspeed]'" if lacks else "Mend the configuration."
        return [], Finding("processes", f"{name} starts none: {trouble}", "wrong", remedy)
    count = len(started)
    found = f"{name} starts {count}"
    if kind == "FSDP" and not torch.accelerator.is_available():
        remedy = "The recipes refuse it here: `ptft cp --accelerate multi_cpu` is for CPUs"
        return started, Finding("processes", f"{found}, and there are no GPUs to cut a model over", "wrong", remedy)
    if asked is not None and count != asked.num_processes:
        remedy = (
            f"distributed_type {kind} does not start more, and says nothing. MULTI_GPU does, on CPUs with use_cpu: "
            "true: `ptft cp --accelerate multi_cpu`"
        )
        return started, Finding("processes", f"{found}; it asks for {asked.num_processes}", "wrong", remedy)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_cpu = bool(asked is not None and asked.use_cpu)
    told = started[0]["ACCELERATE_USE_CPU"].lower() in ("1", "true", "yes")
    if gpus and on_cpu and not told:
        # accelerate does not hand use_cpu on to several processes
        return started, Finding(
            "processes", found, "note", "To leave the GPUs alone, add --use_cpu true to the recipe."
        )
    if gpus and count > gpus and not told:
        remedy = f"The recipe refuses more processes than GPUs: num_processes: {gpus}"
        return started, Finding("processes", f"{found} on {gpus} GPUs", "wrong", remedy)
    if gpus > count and not on_cpu:
        return started, Finding(
            "processes", f"{found} on {gpus} GPUs", "note", f"--num_processes {gpus} would use all."
        )
    return started, Finding("processes", found)


def _precision(torch, started: list[dict[str, str]], has_native_bf16) -> Finding:
    """Say what a recipe will compute in, as `ptft_recipes.cli.parse_args` decides it."""
    told = {name.removeprefix("ACCELERATE_"): value.lower() for name, value in (started or [{}])[0].items()}
    use_cpu = told.get("USE_CPU", "") in ("1", "true", "yes") or not torch.accelerator.is_available()
    native, asked = has_native_bf16(use_cpu), told.get("MIXED_PRECISION") or "no"
    where = "this CPU" if use_cpu else "this device"
    if asked == "fp16" and use_cpu:
        return Finding(
            "precision", "fp16, which CPUs do not train in", "wrong", "mixed_precision: 'no' leaves it to the recipe."
        )
    if asked == "bf16" and not native:
        remedy = f"{where} is not faster in it than in fp32; mixed_precision: 'no' lets the recipe decide"
        return Finding("precision", "bf16, because the configuration says so", "note", remedy)
    if asked != "no":
        return Finding("precision", f"{asked}, because the configuration says so")
    if native:
        return Finding("precision", f"bf16, in which {where} computes natively, and faster (--bf16 false: fp32)")
    return Finding("precision", f"fp32: {where} is not faster in bf16" + " (--fp16 true may help)" * (not use_cpu))


def _hub() -> Finding:
    """Ask the Hub who we are."""
    from huggingface_hub import constants, get_session, get_token
    from huggingface_hub.utils import build_hf_headers

    endpoint = constants.ENDPOINT
    if constants.is_offline_mode():
        remedy = "Only what is here already can be loaded, and nothing pushed."
        return Finding("Hub", "offline, because HF_HUB_OFFLINE is set; not asked", "note", remedy)
    try:
        token = get_token()
        url = f"{endpoint}/api/whoami-v2"
        answer = get_session().get(url, headers=build_hf_headers(token=token or False), timeout=HUB_SECONDS)
        user = answer.json() if answer.status_code == 200 else {}
        if answer.status_code == 200 and not user.get("name"):
            raise ValueError("its answer names no user")
    except Exception as error:  # the client raises many kinds
        remedy = "Mend the network, or HF_ENDPOINT; HF_HUB_OFFLINE=1 works with what is here already"
        return Finding("Hub", f"{endpoint} does not answer as the Hub does ({_told(error)})", "wrong", remedy)
    source = "of HF_TOKEN" if os.environ.get("HF_TOKEN") else "of `hf auth login`"
    if answer.status_code == 401 and token:
        return Finding("Hub", f"{endpoint} refuses the token {source}", "wrong", "hf auth login, with a new one")
    if answer.status_code == 401:
        remedy = "It is needed to push, and for private or gated models: hf auth login"
        return Finding("Hub", f"{endpoint} answers; no login", "note", remedy)
    if answer.status_code != 200:
        return Finding("Hub", f"{endpoint} answers with {answer.status_code}", "wrong", "Try again in a while.")
    found = f"{endpoint}, as {user['name']} (token {source})"
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return Finding("Hub", found, "note", "The token may only read; to push, log in with one that may write.")
    return Finding("Hub", found)


def _disk(name: str, folder: Path, needed: float, remedy: str) -> Finding:
    """Compare the free space of a folder, or of where it would be made, with what a base-size model needs."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    found = f"{free:,.1f} GiB free in {folder}"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(name, f"{there} cannot be written to", "wrong", f"Change its rights, or {remedy}")
    if free < needed:
        return Finding(name, f"{found}; a base-size model takes {needed} GiB", "wrong", f"Make room, or {remedy}")
    return Finding(name, found)
