"""Memory that does not suffice for so many rows at once: fewer are taken, more often, and the run ends as it would."""

import json
from functools import partial

import pytest
import torch
from numerics.ranks import run_ranks
from safetensors.torch import load_file
from transformers import TrainerCallback

from ptft_recipes.checkpoints import checkpoints_in
from ptft_recipes.errors import ResourceError
from ptft_recipes.generators import same_draws_afterwards
from ptft_recipes.training import RecipeTrainer

TOLD = (
    "[enforce fail at alloc_cpu.cpp:113] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.fixture
def memory(monkeypatch):
    """Return a function that lets training fail with more than so many rows at once, from some step on."""
    compute, tried = RecipeTrainer.compute_loss, []

    def limit(rows, after=0, error=RuntimeError):
        def compute_within(self, model, inputs, *args, **kwargs):
            size = len(inputs["input_ids"])
            if model.training:
                tried.append(size)
                if size > rows and self.state.global_step >= after:
                    raise error(TOLD)
            return compute(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(RecipeTrainer, "compute_loss", compute_within)
        tried.clear()
        return tried

    return limit


def weights(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def assert_equal(folder, expected):
    found, right = weights(folder), weights(expected)
    assert found.keys() == right.keys()
    assert [name for name, tensor in right.items() if not torch.equal(found[name], tensor)] == []


FLAGS = ["--max_train_samples", "48", "--num_train_epochs", "2", "--do_predict", "false"]
FLAGS += ["--load_best_model_at_end", "false"]  # the last weights depend on every step


@pytest.mark.parametrize(
    ("limits", "flags"),
    [
        ({"rows": 2}, []),
        ({"rows": 3, "error": MemoryError}, ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"]),
        ({"rows": 2, "after": 4}, ["--train_sampling_strategy", "random", "--gradual_unfreezing", "0.5"]),
        ({"rows": 2}, ["--tuning", "bottleneck", "--activation_checkpointing", "true", "--fgm", "0.5"]),
    ],
    ids=["at once", "lora", "after steps", "all at once"],
)
def test_it_ends_as_a_run_that_began_with_the_size_found(run_cls, memory, tmp_path, library_log, limits, flags):
    """With dropout: the same draws too, to the last bit."""
    tried = memory(**limits)
    results = run_cls("--auto_find_batch_size", "true", *FLAGS, *flags, output_dir=tmp_path / "found")
    assert results["run"]["batch"] == {"rows": 8, "processes": 1, "per_device": 2, "accumulated": 4}
    assert max(tried) == 8, "all of them were tried"
    told = [r.getMessage() for r in library_log.records if "out of memory with" in r.getMessage()]
    assert told[0].startswith("batch: out of memory with 8 rows at once (")
    assert told[-1].endswith("; now 8 rows = 1 process x 2 rows x 4 accumulated, from the beginning")
    right = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
    tried = memory(99)
    run_cls(*FLAGS, *flags, *right, output_dir=tmp_path / "right")
    assert max(tried) == 2
    assert_equal(tmp_path / "found", tmp_path / "right")


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_goes_on_begins_with_the_size_found(run_cls, finetune_cls, memory, tmp_path, monkeypatch):
    tried = memory(2)
    flags = ["--auto_find_batch_size", "true", *FLAGS, "--global_batch_size", "8"]
    run_cls(*flags, output_dir=tmp_path / "whole")
    main = finetune_cls.main
    with monkeypatch.context() as patch:
        patch.setattr(finetune_cls, "main", lambda argv: main(argv, callbacks=[StopAt(8)]))
        with pytest.raises(KeyboardInterrupt):
            run_cls(*flags, output_dir=tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-6").is_dir()
    tried.clear()
    results = run_cls(*flags, output_dir=tmp_path / "cut")
    assert results["run"]["resumed"]["from"] == "checkpoint-6"
    assert max(tried) == 2, "no more was tried again"
    assert results["run"]["batch"]["per_device"] == 2
    assert_equal(tmp_path / "cut", tmp_path / "whole")


def test_memory_that_ends_later_costs_no_more_than_since_the_last_checkpoint(
    run_cls, memory, tmp_path, library_log, without_dropout
):
    flags = [*FLAGS, "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3"]
    flags += ["--model_name_or_path", without_dropout]
    memory(99)
    run_cls(*flags, output_dir=tmp_path / "right")
    memory(4, after=5)
    run_cls(*flags, "--auto_find_batch_size", "true", output_dir=tmp_path / "found")
    assert "2 accumulated, from checkpoint-3" in library_log.text
    found, right = weights(tmp_path / "found"), weights(tmp_path / "right")
    assert max((found[name] - tensor).abs().max().item() for name, tensor in right.items()) < 1e-4
    state = json.loads((checkpoints_in(tmp_path / "found")[-1] / "trainer_state.json").read_text())
    assert state["train_batch_size"] == 4, "a run that goes on from there does not try 8 again"


def run_out_of_memory_on_rank_1(rows, after, rank):
    """Of two processes the second has less memory: in its second pass of a step, and in the pass that averages."""
    compute, passes = RecipeTrainer.compute_loss, []

    def compute_within(self, model, inputs, *args, **kwargs):
        size = len(inputs["input_ids"])
        if model.training:
            passes.append(size)
        if model.training and rank == 1 and size > rows and len(passes) > after:
            raise RuntimeError(TOLD)
        return compute(self, model, inputs, *args, **kwargs)

    RecipeTrainer.compute_loss = compute_within


@pytest.mark.parametrize("tuning", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_two_processes_agree_where_one_has_less_memory(checkpoint, topics, tmp_path, tuning):
    argv = ["--model_name_or_path", checkpoint, "--learning_rate", "5e-3", "--bf16", "false", "--use_cpu", "true"]
    argv += [*FLAGS, "--max_length", "32", "--disable_tqdm", "true", "--tuning", tuning, "--global_batch_size", "16"]
    argv += ["--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += [token for split, path in topics.items() for token in (f"--{split}_file", path)]

    def job(name, size, *flags):
        return "finetune_cls", [
            *argv, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", size, *flags
        ]  # fmt: skip

    # 3 passes of 8 rows: the memory ends in the second step. 4 rows at once fit 2 passes of the first.
    told = run_ranks(
        2, [job("found", "8", "--auto_find_batch_size", "true")], tmp_path, "found",
        prepare=partial(run_out_of_memory_on_rank_1, 2, 3),
    )  # fmt: skip
    assert "out of memory with 8 rows at once (another process); now 16 rows = 2 processes x 4 rows x 2 acc" in told
    assert "out of memory with 4 rows at once (another process); now 16 rows = 2 processes x 2 rows x 4 acc" in told
    run_ranks(2, [job("right", "2"), job("by itself", "2", "--auto_find_batch_size", "true")], tmp_path, "right")
    assert_equal(tmp_path / "found", tmp_path / "right")
    assert_equal(tmp_path / "by itself", tmp_path / "right")


def test_two_processes_without_memory_for_a_row_end(checkpoint, topics, tmp_path):
    argv = ["--model_name_or_path", checkpoint, "--bf16", "false", "--use_cpu", "true", "--global_batch_size", "8"]
    argv += [*FLAGS, "--max_length", "32", "--disable_tqdm", "true", "--auto_find_batch_size", "true"]
    argv += [token for split, path in topics.items() for token in (f"--{split}_file", path)]
    jobs = [("finetune_cls", [*argv, "--output_dir", str(tmp_path / "run")])]
    told = run_ranks(2, jobs, tmp_path, "none", prepare=partial(run_out_of_memory_on_rank_1, 0, 0), code=1)
    assert "ResourceError: out of memory in training, with --per_device_train_batch_size 1" in told


def test_one_row_that_does_not_fit_is_an_error(run_cls, memory, tmp_path):
    tried = memory(0)
    with pytest.raises(ResourceError, match=r"out of memory in training, with --per_device_train_batch_size 1 .*lora"):
        run_cls("--auto_find_batch_size", "true", *FLAGS)
    assert tried == [8, 4, 2, 1]


def test_without_the_flag_nothing_is_tried_again(run_cls, memory):
    tried = memory(2)
    with pytest.raises(ResourceError, match="--per_device_train_batch_size 4 --gradient_accumulation_steps 2"):
        run_cls(*FLAGS)
    assert tried == [8]


def test_draws_are_as_they_would_have_been():
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    with same_draws_afterwards():
        torch.rand(9)
    assert torch.equal(torch.rand(3), first)
