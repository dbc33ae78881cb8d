"""The recipe end to end, in process, on tiny encoder-decoders that learn to translate word by word."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, cut_off, nothing_written, pair_rows, run_card
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import ptft_recipes.bottleneck  # noqa: F401  PEFT then knows the method
from ptft_recipes.comparison import compare_arms, read_arms
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run
from ptft_recipes.outgoing import pushed_files


def read_predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def write(model, folder: Path, texts: list[str]) -> list[str]:
    """Write a text for each, as anybody would with what was saved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        tokens = model.eval().generate(**tokenizer(text, return_tensors="pt"))
        found.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return found


def test_a_run_learns_and_leaves_everything_that_the_readme_promises(run_seq2seq, tmp_path, pairs):
    results = run_seq2seq("--generation_kwargs", "num_beams=2", num_train_epochs=8, metric_for_best_model="bleu")
    folder, metrics = tmp_path / "run", results["metrics"]
    assert metrics["bleu"]["value"] > 60, "0 is what copies of the source give"
    assert set(metrics) == {"bleu", "chrf", "exact_match", "length_ratio"}
    low, high = metrics["bleu"]["ci95"]
    assert low <= metrics["bleu"]["value"] <= high
    assert metrics["bleu"]["n"] == 32, "texts are resampled"
    run = results["run"]
    assert run["validation"]["bleu"] > 60
    assert run["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert run["generation"]["num_beams"] == 2
    assert json.loads((folder / "results.json").read_text()) == results
    lines = read_predictions(folder)
    assert [{"source": line["source"], "target": line["gold"]} for line in lines] == pair_rows(32, 2)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.generation_config.num_beams == 2
    assert write(model, folder, [line["source"] for line in lines[:8]]) == [line["predicted"] for line in lines[:8]]
    translate = run_card(folder)["translate"]
    assert translate("the big dog") == "das gross Hund"
    card = (folder / "README.md").read_text()
    assert "- bleu: `nrefs:1|" in card
    assert lines[0]["source"] not in card, "a card is pushed, and texts of the data are not"
    assert f"| {lines[0]['source']} | {lines[0]['gold']} | " in (folder / "predictions" / "samples.md").read_text()
    assert "generation_config.json" in pushed_files(folder)
    assert not [name for name in pushed_files(folder) if "predictions" in name]
    assert "pipeline_tag: translation" in card
    finished = read_run(folder)
    again = finished.score(torch.ones(32).numpy())
    assert again == pytest.approx({name: score["value"] for name, score in metrics.items()})
    assert finished.main_metric == "bleu"
    # The checkpoint of the epoch before, gone on from, ends in the same weights.
    cut = tmp_path / "cut"
    cut_off(folder, 224, cut)
    weights = (folder / "model.safetensors").read_bytes()
    resumed = run_seq2seq(
        "--generation_kwargs", "num_beams=2", output_dir=cut, num_train_epochs=8, metric_for_best_model="bleu"
    )
    assert (cut / "model.safetensors").read_bytes() == weights
    assert resumed["metrics"] == metrics
    compared = compare_arms(read_arms({"a": [folder], "b": [cut]})[0])
    assert compared["metric"] == "bleu"
    assert compared["arms"][1]["difference"] == 0


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        ("t5", "lora"),
        pytest.param("m2m_100", "bottleneck", marks=pytest.mark.slow),
        pytest.param("marian", "full", marks=pytest.mark.slow),
        pytest.param("t5", "bottleneck", marks=pytest.mark.slow),
    ],
)
def test_the_saved_model_writes_what_the_run_reported(run_seq2seq, seq2seq_checkpoints, tmp_path, family, tuning):
    flags = ["--tuning_kwargs", "reduction_factor=4"] if tuning == "bottleneck" else []
    base = seq2seq_checkpoints[family]
    flags += ["--generation_kwargs", "min_new_tokens=4"]
    results = run_seq2seq(*flags, model_name_or_path=base, tuning=tuning, num_train_epochs=1, task="summarization")
    folder = tmp_path / "run"
    assert {"rouge1", "rouge2", "rougeL", "rougeLsum"} < {*results["metrics"]}
    model = AutoModelForSeq2SeqLM.from_pretrained(base if tuning != "full" else folder)
    if tuning != "full":
        model.generation_config = type(model.generation_config).from_pretrained(folder)
        model = PeftModel.from_pretrained(model, folder)
        assert results["run"]["trainable_parameters"] < results["run"]["total_parameters"] / 4
    lines = read_predictions(folder)[:6]
    assert write(model, folder, [line["source"] for line in lines]) == [line["predicted"] for line in lines]
    assert any(line["predicted"] for line in lines)
    summarize = run_card(folder, base)["summarize"]
    assert summarize(lines[0]["source"]) == lines[0]["predicted"]


def test_references_are_whole_where_labels_are_cut(run_seq2seq, tmp_path):
    results = run_seq2seq("--stock", "true", max_target_length=3, num_train_epochs=1)
    lines = read_predictions(tmp_path / "run")
    assert [line["gold"] for line in lines] == [row["target"] for row in pair_rows(32, 2)]
    assert all(len(line["predicted"].split()) <= 3 for line in lines)
    assert results["run"]["data"]["tokens"]["test"]["truncated_targets"] > 10
    card = (tmp_path / "run" / "README.md").read_text()
    assert "test targets are longer than the model may write" in card
    assert "times as long as the references" in card


def test_a_test_split_without_targets_is_written_and_not_scored(run_seq2seq, tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"source": row["source"]}) + "\n" for row in pair_rows(9, 5)))
    results = run_seq2seq("--test_file", str(path), "--source_prefix", "the ", num_train_epochs=1)
    assert results["metrics"] == {}
    lines = read_predictions(tmp_path / "run")
    assert [line["source"] for line in lines] == [row["source"] for row in pair_rows(9, 5)], "without the prefix"
    assert all(line["gold"] is None and isinstance(line["predicted"], str) for line in lines)
    assert 'tokenizer("the " + text' in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model", "blue"], r"no such metric; did you mean 'bleu'\?"),
        (["--tuning", "linear_probe"], "an encoder-decoder has no head of its own"),
        (["--generation_kwargs", "beams=4"], "beams=4: no such setting"),
        (["--max_source_length", "65"], "this model reads at most 64 tokens"),
    ],
)
def test_mistakes_end_the_run_before_it_trains(run_seq2seq, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run_seq2seq(*flags)
    assert nothing_written(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(run_seq2seq, pairs, tmp_path):
    """33 test rows: the last global batch is filled up with a repeat, which must not count."""
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in pair_rows(33, 2)))
    trained = run_seq2seq("--test_file", str(test), num_train_epochs=8)
    assert trained["metrics"]["chrf"]["value"] > 30
    flags = ["--model_name_or_path", str(tmp_path / "run"), "--max_source_length", "16", "--bf16", "false"]
    flags += ["--max_target_length", "12", "--use_cpu", "true", "--learning_rate", "1e-12", "--num_train_epochs", "1"]
    flags += ["--train_file", pairs["train"], "--validation_file", pairs["validation"], "--test_file", str(test)]
    flags += ["--metric_for_best_model", "chrf", "--per_device_eval_batch_size", "4", "--disable_tqdm", "true"]
    for name, batch in (("cpu", "8"), ("multi_cpu", "4")):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
        command += [str(ROOT / "accelerate_configs" / f"{name}.yaml"), str(ROOT / "recipes" / "finetune_seq2seq.py")]
        folder = tmp_path / name
        command += [*flags, "--per_device_train_batch_size", batch, "--output_dir", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        results = json.loads((folder / "results.json").read_text())
        assert results["run"]["processes"] == (1 if name == "cpu" else 2)
        assert results["metrics"] == trained["metrics"]
        assert read_predictions(folder) == read_predictions(tmp_path / "run")
