"""The recipe end to end, in process, on tiny models: both models learn, and each is handed over as a checkpoint."""

import json
import random
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TOPICS, cut_off, nothing_written, run_card
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ptft_recipes import demo, replaced_tokens
from ptft_recipes.errors import InputError
from ptft_recipes.modeling import ModelArguments, load_tokenizer


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sayings(tmp_path):
    """60 documents of 20 lines, each line one of three: whoever knows them sees what does not belong."""
    lines = [" ".join(words) for words in TOPICS.values()]
    generator = random.Random(0)
    documents = ["\n".join(generator.choices(lines, k=20)) for _ in range(60)]
    (tmp_path / "sayings.txt").write_text("\n\n".join(documents))
    return tmp_path / "sayings.txt"


def test_a_run_teaches_both_models_and_leaves_everything_behind(run_rtd, tmp_path, sayings):
    results = run_rtd(data=False, train_file=sayings, num_train_epochs=4, learning_rate=3e-3)
    folder = tmp_path / "rtd"
    scores = {name: score["value"] for name, score in results["metrics"].items()}
    assert scores["generator_perplexity_ratio"] < 0.8
    assert scores["detection_loss"] < 0.5 * scores["detection_loss_before"]
    assert scores["detection_f1"] > 0.5
    for name in ("detection_f1", "detection_accuracy", "detection_loss", "generator_perplexity"):
        score = results["metrics"][name]
        assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert score["n"] == 6, "documents"
        assert f"{name}_before" in scores
    assert json.loads((folder / "results.json").read_text()) == results
    blocks = lines(folder / "predictions" / "test.jsonl")
    right = sum(block["detection_right"] for block in blocks) / sum(block["detection_tokens"] for block in blocks)
    assert right == pytest.approx(scores["detection_accuracy"])
    run_card(folder)
    assert "Pre-training continued from" in (folder / "README.md").read_text()


def test_both_models_load_plainly_and_fine_tuning_makes_nothing_new_but_its_head(
    run_rtd, run_cls, tmp_path, tokenizer, checkpoints
):
    run_rtd(max_steps=3)
    folder = tmp_path / "rtd"
    loaded = {}
    for auto_class, place in (
        (AutoModelForPreTraining, folder), (AutoModel, folder), (AutoModelForMaskedLM, folder / "generator"),
    ):  # fmt: skip
        model, info = auto_class.from_pretrained(place, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert auto_class is AutoModel or not info["unexpected_keys"]
        loaded[auto_class] = model
        assert AutoTokenizer.from_pretrained(place).get_vocab() == tokenizer.get_vocab()
    ours, theirs = (loaded[kind].get_input_embeddings() for kind in (AutoModelForPreTraining, AutoModelForMaskedLM))
    assert torch.equal(ours.weight, theirs.weight)
    start = AutoModelForPreTraining.from_pretrained(checkpoints["electra"]).get_input_embeddings()
    assert not torch.equal(ours.weight, start.weight)
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    results = run_cls(model_name_or_path=folder, max_steps=2)
    assert [stage["recipe"] for stage in results["run"]["lineage"]] == ["pretrain_rtd", "finetune_cls"]
    again = run_rtd(
        model_name_or_path=folder, generator_name_or_path=folder / "generator", max_steps=1, output_dir=tmp_path / "2"
    )
    assert again["metrics"]["generator_perplexity_before"]["value"] < len(tokenizer)
    stages = json.loads((tmp_path / "2" / "config.json").read_text())["lineage"]
    assert [stage["steps"] for stage in stages] == [3, 1]


def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_weights(run_rtd, tmp_path):
    common = {"lr_scheduler_type": "constant", "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5,
              "eval_steps": 5, "num_train_epochs": 2, "save_total_limit": 9}  # fmt: skip
    whole = run_rtd(**common, output_dir=tmp_path / "whole")
    last = whole["run"]["steps"]
    middle = 5 * (last // 10 + 1)
    assert last / 2 < middle < last
    cut_off(tmp_path / "whole", middle, tmp_path / "rtd")
    resumed = run_rtd(**common)
    assert resumed["run"]["resumed"]["from"] == f"checkpoint-{middle}"
    assert resumed["run"]["steps"] == last
    for part in ("model.safetensors", "generator/model.safetensors"):
        name = f"checkpoint-{5 * (last // 5)}/{part}"
        assert (tmp_path / "rtd" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed["metrics"] == whole["metrics"], "the best of both models was loaded at the end"


def test_two_processes_train_as_one_does(run_rtd, tmp_path, checkpoints, tokenizer, corpus):
    config = AutoConfig.from_pretrained(checkpoints["electra"])
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0  # it draws differently in each process
    AutoModelForPreTraining.from_pretrained(checkpoints["electra"], config=config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    one = run_rtd(model_name_or_path=tmp_path / "plain", max_steps=6)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "multi_cpu.yaml"), "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / "pretrain_rtd.py"), "--model_name_or_path", str(tmp_path / "plain")]
    command += ["--output_dir", str(tmp_path / "two"), "--max_length", "32", "--per_device_train_batch_size", "4"]
    command += ["--learning_rate", "5e-3", "--bf16", "false", "--max_steps", "6", "--generator_size", "0.5"]
    command += [token for split, path in corpus.items() for token in (f"--{split}_file", path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["run"]["processes"] == 2
    assert done.stdout.count("reloaded ") == 2
    for name in ("generator_perplexity_before", "generator_perplexity", "detection_loss_before", "detection_loss"):
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], rel=1e-3), name
    blocks = [lines(tmp_path / name / "predictions" / "test.jsonl") for name in ("rtd", "two")]
    assert [block["tokens"] for block in blocks[0]] == [block["tokens"] for block in blocks[1]]


@pytest.mark.parametrize(("part", "where"), [("generator", "rtd/generator"), ("discriminator", "rtd")])
def test_a_model_that_was_not_saved_as_it_is_does_not_pass(run_rtd, monkeypatch, part, where):
    save = replaced_tokens.ReplacedTokenTrainer.save_model

    def forgetful(self, *args, **kwargs):
        save(self, *args, **kwargs)
        with torch.no_grad():
            list(getattr(self.model, part).parameters())[-1].add_(0.1)

    monkeypatch.setattr(replaced_tokens.ReplacedTokenTrainer, "save_model", forgetful)
    with pytest.raises(
        RuntimeError, match=rf"{where}: the saved model's logits differ from the trained one's by 0\.1"
    ):
        run_rtd(max_steps=1)


def test_the_demo_is_an_untrained_electra_with_the_tokenizer_of_bert():
    arguments = ModelArguments("demo/electra")
    assert arguments.from_scratch, "it has no weights to start from"
    folder = demo.model_path("demo/electra")
    assert not list(folder.glob("*.safetensors"))
    tokenizer = load_tokenizer(arguments)
    assert len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size
    assert tokenizer.tokenize("pre-training encoders") == load_tokenizer(ModelArguments("demo/minilm")).tokenize(
        "pre-training encoders"
    )


def test_new_weights_have_no_past(run_rtd, tmp_path):
    results = run_rtd("--from_scratch", max_steps=1)
    assert [stage["from_scratch"] for stage in results["run"]["lineage"]] == [True]
    assert "Trained from new weights in the architecture of" in (tmp_path / "rtd" / "README.md").read_text()


def test_a_model_that_is_not_electra_is_refused_before_compute(run_rtd, checkpoint, tmp_path):
    with pytest.raises(InputError, match="is of type bert; replaced-token detection needs an ELECTRA"):
        run_rtd(model_name_or_path=checkpoint)
    assert nothing_written(tmp_path / "rtd")


def test_stock_scores_the_same(run_rtd, tmp_path):
    fast = run_rtd(max_steps=1, learning_rate=0)
    stock = run_rtd("--stock", max_steps=1, learning_rate=0, output_dir=tmp_path / "stock")
    assert stock["run"]["stock"]
    for name, score in fast["metrics"].items():
        assert stock["metrics"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name
