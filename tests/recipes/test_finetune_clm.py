"""The recipe end to end, in process, on a tiny decoder: it learns to answer, and what is saved answers as it did."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, cut_off, load_recipe, nothing_written, prompt_rows, run_card, runner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptft_recipes.completion_scoring import SCORED
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run


@pytest.fixture
def run_clm(decoders, prompts, tmp_path):
    """Run finetune_clm in process on the tiny decoder and its questions; flags given later win."""
    defaults = ["--max_length", "48", "--max_new_tokens", "6"]
    return runner(load_recipe("finetune_clm"), decoders["llama"], prompts, tmp_path / "run", defaults)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def test_it_learns_to_answer_and_leaves_everything_behind(run_clm, tmp_path):
    flags = {"tuning": "full", "num_train_epochs": 12, "learning_rate": 1e-2}
    results = run_clm(**flags)
    folder = tmp_path / "run"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["exact_match"] > 0.9, "a third is what one answer to all questions gives, 0 what it writes before"
    assert scores["exact_match_before"] == 0
    assert scores["rougeL_gain"] == pytest.approx(scores["rougeL"] - scores["rougeL_before"])
    assert results["metrics"]["rougeL"]["n"] == 32
    assert scores["perplexity"] < 2 < scores["perplexity_before"]
    assert {*SCORED, *(f"{name}_before" for name in SCORED)} <= {*scores}
    for name in ("README.md", "config.yaml", "plots/learning_curves.png", "tokenizer.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = prompt_rows(32, 2)
    for line, row in zip(lines(folder), rows, strict=True):  # in the order of the data
        assert line["prompt"] == [{"role": "user", "content": row["prompt"]}]
        assert line["gold"] == row["completion"]
    run = read_run(folder)
    assert run.scores(torch.ones(1, 32).numpy(), "rougeL")[0] == pytest.approx(scores["rougeL"])
    answer(folder, AutoModelForCausalLM.from_pretrained(folder))
    run_card(folder)


def answer(folder, model):
    """Check that a model loaded by anybody answers the first questions as the run wrote it down."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in lines(folder)[:4]:
        batch = tokenizer.apply_chat_template(
            line["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        found = model.eval().generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=0)
        text = tokenizer.decode(found[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.strip() == line["predicted"]


def test_an_adapter_answers_when_it_is_loaded_and_a_run_that_was_cut_off_ends_as_one_that_was_not(
    run_clm, decoders, tmp_path
):
    flags = {"num_train_epochs": 3, "save_total_limit": 3, "max_train_samples": 64, "max_eval_samples": 12}
    whole = run_clm(output_dir=tmp_path / "whole", **flags)
    assert whole["run"]["trainable_parameters"] < whole["run"]["total_parameters"] / 2, "LoRA is the default"
    cut_off(tmp_path / "whole", 16, tmp_path / "cut")
    resumed = run_clm(output_dir=tmp_path / "cut", **flags)
    assert resumed["run"]["resumed"]["from"] == "checkpoint-16"
    assert resumed["metrics"] == whole["metrics"]
    name = "adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(decoders["llama"])
    answer(tmp_path / "whole", PeftModel.from_pretrained(base, tmp_path / "whole"))
    run_card(tmp_path / "whole", decoders["llama"])


def test_chats_of_several_turns_are_learned_from(run_clm, tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = prompt_rows(40, 0)
    with path.open("w") as file:
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            turns = [("user", one["prompt"]), ("assistant", one["completion"]), ("user", other["prompt"]),
                     ("assistant", other["completion"])]  # fmt: skip
            chat = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": chat}) + "\n")
    flags = {"train_file": path, "messages_column": "messages", "max_steps": 2, "max_length": 64}
    results = run_clm("--num_beams", "2", data=False, **flags)
    assert results["run"]["data"]["rows"] == {"train": 16, "validation": 2, "test": 2}
    assert [len(line["prompt"]) for line in lines(tmp_path / "run")] == [3, 3]


def test_what_cannot_work_is_refused_before_training(run_clm, tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"train.csv:\d+: \d+ tokens stand before the last answer"):
        run_clm(max_length=6)
    with pytest.raises(InputError, match="no column 'answer'"):
        run_clm(completion_column="answer")
    with pytest.raises(InputError, match="prompts before the text would shift its labels"):
        run_clm("--tuning", "prompt_tuning", "--tuning_kwargs", "num_virtual_tokens=2")
    with pytest.raises(InputError, match=r"--max_new_tokens 60: with the longest prompt of test \d+ tokens, and this"):
        run_clm(max_new_tokens=60)
    assert nothing_written(tmp_path / "run")


def test_the_test_split_is_left_alone_where_it_is_told_so(run_clm):
    results = run_clm("--do_predict", "false", max_steps=1)
    assert results["metrics"] == {}


@pytest.mark.slow
def test_two_processes_share_the_rows_and_write_what_one_writes(run_clm, decoders, prompts, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), "--main_process_port", "0"]
    command += [
        str(ROOT / "recipes" / "finetune_clm.py"),
        "--model_name_or_path",
        decoders["llama"],
        "--bf16",
        "false",
    ]
    command += ["--output_dir", str(tmp_path / "two"), "--max_length", "48", "--max_new_tokens", "6"]
    command += ["--max_steps", "4", "--per_device_train_batch_size", "4", "--learning_rate", "5e-3"]
    command += [token for split, path in prompts.items() for token in (f"--{split}_file", path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    one = run_clm(max_steps=4)
    written = [[line["predicted_before"] for line in lines(tmp_path / name)] for name in ("run", "two")]
    assert written[0] == written[1]
    for name, score in one["metrics"].items():
        assert two["metrics"][name]["n"] == score["n"] == 32
        if name.endswith("_before"):
            assert two["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4)
