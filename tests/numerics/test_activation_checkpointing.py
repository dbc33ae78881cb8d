"""Activations that are computed twice instead of kept: the same losses and weights, dropout and fast kernels included.

`--gradient_checkpointing` is the older name of `--activation_checkpointing`.
"""

import json
from collections import Counter

import pytest
import torch
from conftest import cut_off, load_recipe, runner
from safetensors.torch import load_file
from transformers import modeling_utils

FLAGS = ["--max_steps", "4", "--logging_steps", "1", "--logging_strategy", "steps", "--eval_strategy", "no"]
FLAGS += ["--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "5"]
FLAGS += ["--load_best_model_at_end", "false", "--do_predict", "false"]
EAGER = ["--attn_implementation", "eager"]
SUBJECTS = {
    "full": ("run_cls", []),
    "lora": ("run_cls", ["--tuning", "lora", "--tuning_kwargs", "lora_dropout=0.1"]),
    "bottleneck": ("run_cls", ["--tuning", "bottleneck"]),
    "masked language modelling": ("run_mlm", []),
}
SLOW = {
    "eager attention": ("run_cls", EAGER),
    "stock": ("run_cls", ["--stock", "true"]),
    "accumulated": ("run_cls", ["--global_batch_size", "16"]),
    "token classification": ("run_token_cls", []),
    "question answering": ("run_qa", []),
    "sequence to sequence": ("run_seq2seq", []),
    "next token": ("run_pretrain_clm", []),
    "completions": ("run_finetune_clm", []),
    "completions, full": ("run_finetune_clm", ["--tuning", "full"]),
    "replaced tokens": ("run_rtd", []),
    "sentence order": ("run_sentences", []),
    "gap filling": ("run_span", []),
    "masked language modelling, lora": ("run_mlm", ["--tuning", "lora"]),
}


@pytest.fixture
def run_pretrain_clm(decoders, corpus, tmp_path):
    return runner(load_recipe("pretrain_clm"), decoders["llama"], corpus, tmp_path, ["--max_length", "32"])


@pytest.fixture
def run_finetune_clm(decoders, prompts, tmp_path):
    return runner(load_recipe("finetune_clm"), decoders["llama"], prompts, tmp_path, ["--max_length", "48"])


def end(folder):
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    history = [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]
    weights = {}
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("generator/*.safetensors")]):
        weights |= {f"{path.relative_to(folder)} {name}": tensor for name, tensor in load_file(path).items()}
    return history, weights


def assert_equal(folder, expected):
    (history, weights), (right, right_weights) = end(folder), end(expected)
    assert len(history) == 4
    assert history == right
    assert weights.keys() == right_weights.keys()
    assert [name for name, tensor in right_weights.items() if not torch.equal(weights[name], tensor)] == []


@pytest.mark.parametrize("name", [*SUBJECTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_it_changes_nothing(name, request, tmp_path, monkeypatch):
    fixture, flags = (SUBJECTS | SLOW)[name]
    run, counted, checkpoint = request.getfixturevalue(fixture), Counter(), modeling_utils.checkpoint

    def count(*args, **kwargs):
        counted["layers"] += 1
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", count)
    run(*FLAGS, *flags, output_dir=tmp_path / "kept")
    assert counted["layers"] == 0
    run(*FLAGS, *flags, "--gradient_checkpointing", "true", output_dir=tmp_path / "twice")
    assert counted["layers"] >= 4, "at least a layer in each step"
    assert_equal(tmp_path / "twice", tmp_path / "kept")


def test_a_run_goes_on_with_it_or_without(run_cls, tmp_path):
    run_cls(*FLAGS, output_dir=tmp_path / "whole")
    for flag in ("--gradient_checkpointing", "--activation_checkpointing"):
        cut_off(tmp_path / "whole", 2, tmp_path / flag)
        results = run_cls(*FLAGS, flag, "true", output_dir=tmp_path / flag)
        assert results["run"]["resumed"]["from"] == "checkpoint-2"
        assert_equal(tmp_path / flag, tmp_path / "whole")
