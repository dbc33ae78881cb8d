"""The recipe end to end, in process, on tiny models: it learns, and hands over a plain encoder-decoder."""

import json
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TOPICS, cut_off, nothing_written, run_card
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    T5EncoderModel,
)

from ptft_recipes import demo
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_tokenizer


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sayings(tmp_path):
    """60 documents of 20 lines, each line one of three: whoever knows them can fill gaps."""
    sayings = [" ".join(words) for words in TOPICS.values()]
    generator = random.Random(0)
    documents = ["\n".join(generator.choices(sayings, k=20)) for _ in range(60)]
    (tmp_path / "sayings.txt").write_text("\n\n".join(documents))
    return tmp_path / "sayings.txt"


def test_a_run_learns_to_fill_gaps_and_what_it_leaves_loads_plainly_and_goes_on(
    run_span, run_token_cls, tmp_path, sayings
):
    results = run_span(data=False, train_file=sayings, num_train_epochs=6, learning_rate=1e-2)
    folder = tmp_path / "span"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["gap_perplexity"] < 6 < 0.5 * scores["gap_perplexity_before"], "of 18 words equally frequent"
    assert scores["gap_accuracy"] > 0.4
    for name in ("gap_perplexity", "gap_perplexity_ratio", "gap_accuracy", "target_perplexity", "target_accuracy"):
        score = results["metrics"][name]
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert score["n"] == 6, "documents"
    assert json.loads((folder / "results.json").read_text()) == results
    blocks = lines(folder / "predictions" / "test.jsonl")
    right = sum(block["gap_right"] for block in blocks) / sum(block["gap_tokens"] for block in blocks)
    assert right == pytest.approx(scores["gap_accuracy"])
    names = run_card(folder)
    assert names["written"].shape[0] == 1
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text2text-generation" in card
    assert "Pre-training continued from" in card

    for auto_class in (AutoModelForSeq2SeqLM, T5EncoderModel):
        _, info = auto_class.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
    again = run_span(model_name_or_path=folder, max_steps=1, output_dir=tmp_path / "2", data=False, train_file=sayings)
    assert again["metrics"]["gap_perplexity_before"]["value"] == pytest.approx(scores["gap_perplexity"], rel=1e-4)
    stages = json.loads((tmp_path / "2" / "config.json").read_text())["lineage"]
    assert [stage["recipe"] for stage in stages] == ["pretrain_span", "pretrain_span"]
    tagger = run_token_cls(model_name_or_path=folder, max_steps=1, output_dir=tmp_path / "tagger")
    assert [stage["recipe"] for stage in tagger["run"]["lineage"]] == ["pretrain_span", "finetune_token_cls"]
    _, info = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}, "the encoder goes on"


def test_its_gaps_and_held_out_scores_do_not_depend_on_the_seed_of_a_run_or_its_noise(run_span, tmp_path):
    common = {"max_steps": 1, "learning_rate": 0}
    one = run_span(**common, seed=1)
    two = run_span(**common, seed=2, noise_density=0.4, mean_span_length=2, output_dir=tmp_path / "two")
    assert one["metrics"] == two["metrics"]
    assert lines(tmp_path / "span" / "predictions" / "test.jsonl") == lines(
        tmp_path / "two" / "predictions" / "test.jsonl"
    )


@pytest.mark.parametrize(
    ("family", "objective", "workers"),
    [("bart", "denoising", 0), pytest.param("t5", "span_corruption", 2, marks=pytest.mark.slow)],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(
    run_span, tmp_path, checkpoints, family, objective, workers
):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5,
              "eval_steps": 5, "num_train_epochs": 2, "save_total_limit": 9, "objective": objective,
              "dataloader_num_workers": workers, "model_name_or_path": checkpoints[family]}  # fmt: skip
    whole = run_span(**common, output_dir=tmp_path / "whole")
    last = whole["run"]["steps"]
    middle = 5 * (last // 10 + 1)
    assert last / 2 < middle < last
    cut_off(tmp_path / "whole", middle, tmp_path / "span")
    resumed = run_span(**common)
    assert resumed["run"]["resumed"]["from"] == f"checkpoint-{middle}"
    name = f"checkpoint-{5 * (last // 5)}/model.safetensors"
    assert (tmp_path / "span" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed["metrics"] == whole["metrics"]
    run_card(tmp_path / "span")


def test_lora_saves_an_adapter_that_fills_gaps_as_the_model_in_memory_did(run_span, tmp_path, checkpoints):
    results = run_span("--tuning", "lora", max_steps=3)
    folder = tmp_path / "span"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert results["run"]["trainable_parameters"] < 0.2 * results["run"]["total_parameters"]
    base = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["t5"])
    model = PeftModel.from_pretrained(base, folder)
    assert any(weight.abs().sum() for name, weight in model.state_dict().items() if "lora_B" in name)
    run_card(folder, checkpoints["t5"])


def test_an_architecture_with_the_tokenizer_of_another_learns_sentinels_from_new_weights(
    run_span, tmp_path, checkpoints, tokenizer
):
    config = AutoConfig.from_pretrained(checkpoints["t5"], vocab_size=len(tokenizer), feed_forward_proj="gated-gelu")
    config.tie_word_embeddings = False  # T5 1.1
    config.save_pretrained(tmp_path / "shape")
    tokenizer.save_pretrained(tmp_path / "shape")
    results = run_span("--from_scratch", model_name_or_path=tmp_path / "shape", max_steps=2)
    folder = tmp_path / "span"
    saved, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert len(saved) == len(tokenizer) + 100 == model.get_input_embeddings().num_embeddings
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.sep_token_id
    assert "token_type_ids" not in saved("the goal"), "generate refuses them"
    assert [stage["from_scratch"] for stage in results["run"]["lineage"]] == [True]
    run_card(folder)


def test_stock_scores_the_same(run_span, tmp_path):
    fast = run_span(max_steps=1, learning_rate=0)
    stock = run_span("--stock", max_steps=1, learning_rate=0, output_dir=tmp_path / "stock")
    for name, score in fast["metrics"].items():
        assert stock["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name


def test_more_gaps_than_sentinels_are_refused_before_compute(run_span, tmp_path):
    with pytest.raises(InputError, match="gaps in a block, and the tokenizer has 12 sentinels"):
        run_span(max_length=64, noise_density=0.3, mean_span_length=1)
    assert nothing_written(tmp_path / "span")


def test_the_demo_is_an_untrained_t5():
    arguments = ModelArguments("demo/t5")
    assert arguments.from_scratch, "it has no weights to start from"
    folder = demo.model_path("demo/t5")
    assert not list(folder.glob("*.safetensors"))
    config, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(arguments)
    assert (len(tokenizer), tokenizer.pad_token_id) == (config.vocab_size, config.pad_token_id)
    assert tokenizer("text")["input_ids"][-1] == config.eos_token_id


@pytest.mark.slow
def test_two_processes_train_as_one_does(run_span, tmp_path, checkpoints, corpus):
    config = AutoConfig.from_pretrained(checkpoints["t5"], dropout_rate=0.0)  # it draws differently in each process
    AutoModelForSeq2SeqLM.from_pretrained(checkpoints["t5"], config=config).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(checkpoints["t5"]).save_pretrained(tmp_path / "plain")
    one = run_span(model_name_or_path=tmp_path / "plain", max_steps=6)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / "pretrain_span.py"), "--model_name_or_path", str(tmp_path / "plain")]
    command += ["--output_dir", str(tmp_path / "two"), "--max_length", "32", "--per_device_train_batch_size", "4"]
    command += ["--learning_rate", "5e-3", "--bf16", "false", "--max_steps", "6"]
    command += [token for split, path in corpus.items() for token in (f"--{split}_file", path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    for name in ("gap_perplexity_before", "gap_perplexity", "target_perplexity", "target_accuracy"):
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], rel=1e-3), name
    weights = [torch.nn.utils.parameters_to_vector(
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).parameters()) for name in ("span", "two")]  # fmt: skip
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)
