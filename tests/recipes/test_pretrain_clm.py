"""The recipe end to end, in process, on tiny decoders: it learns, leaves everything behind, and goes on exactly."""

import json
import math

import pytest
import torch
from conftest import cut_off, load_recipe, nothing_written, run_card, runner
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptft_recipes.errors import InputError


@pytest.fixture
def run_clm(decoders, corpus, tmp_path):
    """Run pretrain_clm in process on the tiny decoder and the raw text; flags given later win."""
    defaults = ["--max_length", "32", "--per_device_eval_batch_size", "8"]
    return runner(load_recipe("pretrain_clm"), decoders["llama"], corpus, tmp_path / "run", defaults)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_leaves_everything_behind(run_clm, tmp_path):
    results = run_clm(num_train_epochs=4)
    folder = tmp_path / "run"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["perplexity"] < 0.7 * scores["perplexity_before"]
    for score in results["metrics"].values():
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert score["n"] == 12, "documents"
    for name in ("README.md", "config.yaml", "plots/learning_curves.png", "tokenizer.json"):
        assert (folder / name).stat().st_size > 0, name
    run_card(folder)
    # As anybody would measure it: a document of one block has the perplexity that its line says.
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = lines(folder / "predictions" / "test.jsonl")
    short = [row for row in rows if sum(other["document"] == row["document"] for other in rows) == 1]
    texts = dict(zip(dict.fromkeys(row["document"] for row in rows), documents(folder), strict=True))
    assert short
    for row in short:
        ids = torch.tensor([[*tokenizer(texts[row["document"]])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert row["tokens"] == ids.shape[1] - 1
        assert row["loss"] / row["tokens"] == pytest.approx(loss, rel=1e-3)
    total = sum(row["loss"] for row in rows) / sum(row["tokens"] for row in rows)
    assert math.exp(total) == pytest.approx(scores["perplexity"])


def documents(folder) -> list[str]:
    """Return the documents of the test file that the run was given."""
    config = (folder / "config.yaml").read_text()
    path = next(line.split(": ", 1)[1].strip("'\"") for line in config.splitlines() if line.startswith("test_file"))
    return open(path, encoding="utf-8").read().split("\n\n")


def test_a_run_that_was_cut_off_with_infilling_and_packing_ends_as_one_that_was_not(run_clm, tmp_path):
    flags = {"fim_rate": 0.5, "max_train_samples": 30, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    flags |= {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    flags["save_total_limit"] = 20
    whole = run_clm(output_dir=tmp_path / "whole", **flags)
    assert whole["run"]["steps"] > 12
    cut_off(tmp_path / "whole", 6, tmp_path / "cut")
    resumed = run_clm(output_dir=tmp_path / "cut", **flags)
    assert resumed["run"]["resumed"]["from"] == "checkpoint-6"
    assert resumed["metrics"] == whole["metrics"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert len(tokenizer) == one["model.embed_tokens.weight"].shape[0]
    assert "<fim_middle>" in tokenizer.get_vocab()


def test_an_adapter_is_trained_on_gpt2_and_loads_as_anybody_loads_it(run_clm, decoders, tmp_path):
    results = run_clm("--tuning", "lora", model_name_or_path=decoders["gpt2"], num_train_epochs=2)
    assert results["metrics"]["perplexity_ratio"]["value"] < 1
    base = AutoModelForCausalLM.from_pretrained(decoders["gpt2"])
    assert PeftModel.from_pretrained(base, tmp_path / "run").peft_config["default"].task_type == "CAUSAL_LM"
    run_card(tmp_path / "run", decoders["gpt2"])


def test_new_sentinels_are_trained_beside_an_adapter_that_is_merged(run_clm, tmp_path):
    results = run_clm("--tuning", "lora", "--merge_adapter", "true", fim_rate=1.0, max_steps=3, max_eval_samples=3)
    folder = tmp_path / "run"
    assert not (folder / "adapter_config.json").exists()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert results["run"]["trainable_parameters"] < results["run"]["total_parameters"] / 2


def test_a_stream_is_packed_and_other_text_is_mixed_in(run_clm, corpus, tmp_path):
    general = tmp_path / "general.txt"
    general.write_text("\n\n".join(["a new small old big one " * n for n in range(1, 25)]))
    results = run_clm("--streaming", "--mix", f"{general}=0.3", max_steps=4, fim_rate=0.5, max_eval_samples=3)
    assert {"perplexity", "perplexity/general", "perplexity_ratio/general"} <= {*results["metrics"]}
    assert results["run"]["steps"] == 4


def test_what_cannot_work_is_refused_before_training(run_clm, checkpoint, tmp_path):
    with pytest.raises(InputError, match="has no end-of-text token to end a document by"):
        run_clm(model_name_or_path=checkpoint)
    with pytest.raises(InputError, match="add --merge_adapter true"):
        run_clm("--tuning", "lora", fim_rate=0.5)
    with pytest.raises(InputError, match="--fim_rate 2"):
        run_clm(fim_rate=2)
    assert nothing_written(tmp_path / "run")
