"""How many processes run, and what the hardware computes in natively: detected, not assumed."""

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import psutil
import pytest
import torch
from transformers import TrainingArguments

from ptft_recipes import acceleration, cli
from ptft_recipes.acceleration import (
    LengthGroupedSampler,
    check_processes,
    engine_name,
    has_native_bf16,
    saved_by_length,
    take_fast_path,
)
from ptft_recipes.cpu_kernels import use_cpu_kernels
from ptft_recipes.errors import InputError

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def launched(monkeypatch):
    def set_environment(**variables):
        for name in (
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "ACCELERATE_USE_CPU",
            "ACCELERATE_MIXED_PRECISION",
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"MASTER_ADDR": "10.0.0.1"},  # a cluster's environment, without accelerate
        LAUNCHED | {"ACCELERATE_USE_CPU": "True"},
        LAUNCHED | {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    ],
)
def test_a_launch_that_started_what_was_asked_for_passes(launched, variables):
    launched(**variables)
    check_processes()


def test_one_process_where_several_were_asked_for_is_refused(launched):
    launched(**LAUNCHED, MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="True")
    with pytest.raises(InputError, match=r"asked for several processes and started one.*multi_cpu\.yaml"):
        check_processes()


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
ZERO |= {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
TWO = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("use_cpu", [False, True])
def test_fsdp_is_refused_where_accelerate_would_train_whole_copies(launched, monkeypatch, use_cpu):
    launched(**LAUNCHED, **TWO, **FSDP)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: use_cpu)
    with pytest.raises(InputError, match="asks for fsdp2, which accelerate has for GPUs only"):
        check_processes(use_cpu)


def test_deepspeed_runs_on_cpus_and_not_beside_gpus(launched, monkeypatch):
    launched(**LAUNCHED, **TWO, **ZERO)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    check_processes(use_cpu=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_processes()
    with pytest.raises(InputError, match="DeepSpeed takes the GPUs of this machine; leave out --use_cpu true"):
        check_processes(use_cpu=True)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (FSDP | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type: FULL_STATE_DICT"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"}, "zero3_save_16bit_model: true"),
    ],
)
def test_what_could_not_be_put_together_again_is_refused(launched, monkeypatch, environment, line):
    launched(**LAUNCHED, **TWO, **environment)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(InputError, match=f"would save no model that from_pretrained reads; .* needs {line}"):
        check_processes()


@pytest.mark.parametrize(
    ("environment", "engine"),
    [({}, "none"), (TWO, "ddp"), (TWO | FSDP, "fsdp2"), (TWO | ZERO, "zero3"),
     (TWO | ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed")],
)  # fmt: skip
def test_the_engine_is_as_the_launcher_says(launched, environment, engine):
    launched(**LAUNCHED, **environment)
    assert engine_name() == engine


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    launched(**LAUNCHED, MASTER_ADDR="127.0.0.1", WORLD_SIZE="4", LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 processes on a machine with 2 GPUs: lower --num_processes"):
        check_processes()
    check_processes(use_cpu=True)


@pytest.mark.parametrize(
    ("gpu", "use_cpu", "capabilities", "times_float32", "expected"),
    [
        (False, False, {"avx512_bf16": True}, 4, True),
        (False, False, {"avx512_bf16": True}, 0.5, False),
        (False, False, {"amx_bf16": True}, 8, True),
        (False, False, {"avx2": True}, 2, False),
        (True, True, {"avx2": True}, 2, False),
        (True, False, {"avx2": True}, 0.5, True),
    ],
)
def test_bf16_is_detected_on_the_device_that_will_be_used(
    monkeypatch, request, gpu, use_cpu, capabilities, times_float32, expected
):
    speeds = {torch.bfloat16: times_float32 * 1e11, torch.float32: 1e11}
    monkeypatch.setattr(acceleration, "measure_gemm", lambda dtype, **_: speeds[dtype])
    acceleration._bf16_is_faster.cache_clear()
    request.addfinalizer(acceleration._bf16_is_faster.cache_clear)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_native_bf16(use_cpu) is expected


@pytest.mark.parametrize(
    ("launcher", "flags", "expected"),
    [
        ({"ACCELERATE_USE_CPU": "True"}, [], (True, False, False)),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "True"}, [], (True, True, False)),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, ["--bf16", "false"], (False, False, False)),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, [], (False, False, True)),
    ],
)
def test_the_launchers_choice_of_device_and_precision_is_kept(launched, monkeypatch, launcher, flags, expected):
    launched(**launcher)
    monkeypatch.setattr(cli, "_has_accelerator", lambda: True)
    monkeypatch.setattr(cli, "has_native_bf16", lambda use_cpu: False)

    @dataclass
    class Precision:
        use_cpu: bool = False
        bf16: bool = False
        fp16: bool = False

    found = cli.parse_args([Precision], {}, flags)[0]
    assert (found.use_cpu, found.bf16, found.fp16) == expected


LENGTHS = [1 + (i * 37) % 100 for i in range(1003)]


def groups(sampler, size=8):
    rows = list(sampler)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 400, 401, 1003])
def test_every_row_comes_once_in_an_epoch(count):
    sampler = LengthGroupedSampler(LENGTHS[:count], 8, seed=1)
    assert len(sampler) == count
    assert sorted(sampler) == list(range(count))


def test_the_rows_of_a_group_are_of_similar_length_and_the_groups_in_no_order():
    found = groups(LengthGroupedSampler(LENGTHS, 8, seed=1))
    spread = [max(LENGTHS[i] for i in group) - min(LENGTHS[i] for i in group) for group in found[:-2]]
    assert sum(spread) / len(spread) < 5, "of 99 if rows came at random"
    means = [sum(LENGTHS[i] for i in group) / len(group) for group in found[:-2]]
    steps = [later - earlier for earlier, later in pairwise(means)]
    assert 0.4 < sum(step > 0 for step in steps) / len(steps) < 0.6


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        torch.manual_seed(torch.seed())  # whatever the global generator is at
        sampler = LengthGroupedSampler(LENGTHS, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 1) == order(1, 1) != order(1, 0)
    assert order(2, 0) != order(1, 0)


def test_the_fast_path_is_said_and_stock_turns_all_of_it_off(run_cls, library_log, tmp_path):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptft_recipes.training.configure_logging", lambda arguments: None)
        patch.setattr("ptft_recipes.acceleration.use_cpu_kernels", lambda model: seen.append(use_cpu_kernels(model)))
        fast = run_cls(max_steps=1, tuning="linear_probe")
        assert "fast path: fp32, batches by length, dropout and attention kernels for CPUs" in library_log.text
        assert len(seen) == 1
        library_log.clear()
        stock = run_cls("--stock", max_steps=1, output_dir=tmp_path / "stock")
    assert len(seen) == 1
    assert "stock path, by --stock" in library_log.text
    assert (fast["run"]["stock"], stock["run"]["stock"]) == (False, True)


@pytest.mark.parametrize(
    ("lengths", "saved", "strategy"),
    [
        ([10, 50] * 400, 0.4, "group_by_length"),  # batches of 8: all padded to 50, or half of them to 10
        ([120] * 8 + [128] * 792, 0.0, "random"),
        ([5] * 3, 0.0, "random"),
    ],
)
def test_batches_by_length_where_they_save_padding(lengths, saved, strategy, tmp_path):
    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True)
    arguments.train_sampling_strategy = "group_by_length"
    assert saved_by_length(lengths, arguments) == pytest.approx(saved, abs=0.04)
    said = ", ".join(take_fast_path(torch.nn.Linear(2, 2), arguments, lengths))
    assert arguments.train_sampling_strategy == strategy
    assert ("batches by length," in said, "random batches" in said) == (strategy != "random", strategy == "random")


def test_an_order_that_was_asked_for_stays(tmp_path):
    arguments = TrainingArguments(tmp_path, train_sampling_strategy="sequential", use_cpu=True)
    take_fast_path(torch.nn.Linear(2, 2), arguments, [10, 50] * 400)
    assert arguments.train_sampling_strategy == "sequential"


@pytest.mark.parametrize("flags", [[], ["--bf16", "true"]])
def test_stock_means_float32_and_random_batches_unless_it_is_asked_for(flags, monkeypatch, finetune_cls):
    monkeypatch.setattr(cli, "has_native_bf16", lambda use_cpu=False: True)
    types = (finetune_cls.ModelArguments, finetune_cls.DataArguments, finetune_cls.TrainingArguments)
    fast = cli.parse_args(types, finetune_cls.DEFAULTS, flags)[2]
    assert (fast.bf16, fast.train_sampling_strategy) == (True, "group_by_length")
    stock = cli.parse_args(types, finetune_cls.DEFAULTS, ["--stock", *flags])[2]
    assert (stock.bf16, stock.train_sampling_strategy) == (bool(flags), "random")


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc")
def test_freed_memory_is_kept():
    code = """
import resource, torch
from ptft_recipes.acceleration import keep_freed_memory
def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        torch.zeros(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = count_faults()
assert keep_freed_memory()
print(given_back - count_faults())
"""
    saved = int(subprocess.check_output([sys.executable, "-c", code]))
    assert saved > 3 * 2**14, "pages of 4 KiB"


@pytest.mark.parametrize(("threads", "expected"), [(None, "all"), pytest.param("1", "1", marks=pytest.mark.slow)])
def test_a_launcher_that_nobody_told_of_threads_does_not_leave_cores_idle(threads, expected, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\nfrom ptft_recipes.acceleration import use_all_cores\n"
        "print('launched with', os.environ['OMP_NUM_THREADS'])\nuse_all_cores()\n"
        "print('threads', torch.get_num_threads())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    environment |= {"HF_HOME": str(tmp_path)}  # without a default configuration
    command = [sys.executable, "-m", "accelerate.commands.launch", str(script)]
    printed = subprocess.check_output(command, env=environment, text=True, cwd=tmp_path)
    assert "launched with 1\n" in printed, "what accelerate does by itself"
    cores = min(psutil.cpu_count(logical=False), len(os.sched_getaffinity(0)))
    assert f"threads {cores if expected == 'all' else expected}\n" in printed
