"""Finished runs become one system; its scores, and the soups, are what an independent computation gives."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import load_recipe, run_card, topic_rows, write_csv
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run
from ptft_recipes.merging import fold_adapter


def run_ensemble(folders, output_dir, *flags):
    argv = ["--runs", *map(str, folders), "--output_dir", str(output_dir), "--bf16", "false", "--use_cpu", "true"]
    return load_recipe("ensemble_runs").main([*argv, "--disable_tqdm", "true", *flags])


@pytest.fixture
def train(run_cls, tmp_path):
    """Train runs with some flags, one per seed; return their folders."""

    def train(*flags, seeds=(1, 2, 3), **options):
        folders = [tmp_path / f"seed_{seed}" for seed in seeds]
        for seed, folder in zip(seeds, folders, strict=True):
            run_cls(*flags, seed=seed, output_dir=folder, num_train_epochs=2, **options)
        return folders

    return train


def f1(gold, scores, names):
    return f1_score(gold, [names[i] for i in scores.argmax(-1)], average="macro")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(folder, texts):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, return_tensors="pt", max_length=32, truncation=True
    )
    with torch.no_grad():
        return model(**batch).logits.log_softmax(-1).numpy(), [*model.config.id2label.values()]


def test_outputs_and_weights_are_averaged_as_computed_by_hand(train, topics, tmp_path):
    folders = train()
    report = run_ensemble(folders, tmp_path / "all")
    with open(topics["test"], encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    texts, gold = [row["text"] for row in rows], [row["label"] for row in rows]
    alone = [predict(folder, texts) for folder in folders]
    names = alone[0][1]
    logits = np.stack([found for found, _ in alone])
    votes = np.eye(3)[logits.argmax(-1)].sum(0)
    expected = {
        "mean of logits": logits.mean(0),
        "mean of probabilities": np.exp(logits).mean(0),
        "vote": votes + 0.01 * np.exp(logits).mean(0),
        "uniform soup": predict(tmp_path / "all" / "uniform_soup", texts)[0],
        "greedy soup": predict(tmp_path / "all" / "greedy_soup", texts)[0],
    }
    scores = {str(folder): f1(gold, logits[i], names) for i, folder in enumerate(folders)}
    mean, best = np.mean([*scores.values()]), scores[report["best"]]
    assert len({*scores.values()}) > 1, "the runs differ"
    assert [*report["systems"]] == [*scores, "members", *expected]
    for name, scored in expected.items():
        lines = read(tmp_path / "all" / "predictions" / f"{name.replace(' ', '_')}.jsonl")
        assert [line["predicted"] for line in lines] == [names[i] for i in scored.argmax(-1)]
        assert [line["gold"] for line in lines] == gold
        found, value = report["systems"][name], f1(gold, scored, names)
        assert found["score"]["value"] == pytest.approx(value)
        assert found["minus_mean"]["value"] == pytest.approx(value - mean)
        assert found["minus_best"]["value"] == pytest.approx(value - best)
        for kind in ("score", "minus_mean", "minus_best"):
            low, high = found[kind]["ci95"]
            assert low <= found[kind]["value"] <= high
    for folder, score in scores.items():
        assert report["systems"][folder]["score"]["value"] == pytest.approx(score)
    assert report["systems"]["members"]["score"]["value"] == pytest.approx(mean)
    validation = {f: json.loads((f / "results.json").read_text())["run"]["validation"]["macro_f1"] for f in folders}
    assert report["best"] == str(max(validation, key=validation.get))
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for name, value in load_file(tmp_path / "all" / "uniform_soup" / "model.safetensors").items():
        torch.testing.assert_close(value, sum(weight[name] for weight in weights) / 3, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "all" / "ensembles.json").read_text()) == report
    assert "| mean of the runs | " in (tmp_path / "all" / "ensembles.md").read_text()
    card = (tmp_path / "all" / "uniform_soup" / "README.md").read_text()
    assert "the mean of 3 runs that started from" in card
    assert f"| macro_f1 | {report['systems']['uniform soup']['score']['value']:.3f} [" in card
    assert f"| seed_1 | {validation[folders[0]]:.3f} |" in card
    assert str(tmp_path) not in card
    run_card(tmp_path / "all" / "uniform_soup")
    for name in ("uniform_soup", "greedy_soup"):  # a run like any other: its scores are those of its predictions
        soup = read_run(tmp_path / "all" / name)
        assert soup.metrics["macro_f1"]["value"] == report["systems"][name.replace("_", " ")]["score"]["value"]
        assert {"accuracy", "roc_auc"} <= {*soup.metrics}
        assert (soup.ids, soup.truth) == (read_run(folders[0]).ids, gold)
        assert soup.run["config"]["max_length"] == 32

    again = run_ensemble(folders, tmp_path / "all", "--soups", "false", "--metric", "accuracy")
    assert again["systems"]["members"]["score"]["value"] == pytest.approx(
        np.mean([(found.argmax(-1) == [names.index(label) for label in gold]).mean() for found in logits])
    )
    assert [*again["systems"]][4:] == ["mean of logits", "mean of probabilities", "vote"]


def test_a_soup_of_lora_adapters_is_a_plain_checkpoint_of_merged_weights(train, checkpoint, tmp_path):
    folders = train("--tuning", "lora", "--tuning_kwargs", "r=4", seeds=(1, 2))
    run_ensemble(folders, tmp_path / "all")
    folded = []
    for folder in folders:
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
        folded.append(fold_adapter(PeftModel.from_pretrained(base, folder)).state_dict())
    assert not (tmp_path / "all" / "uniform_soup" / "adapter_config.json").exists()
    soup = AutoModelForSequenceClassification.from_pretrained(tmp_path / "all" / "uniform_soup").state_dict()
    assert len(soup) > 20
    for name, value in soup.items():
        torch.testing.assert_close(value, (folded[0][name] + folded[1][name]) / 2, rtol=1e-5, atol=1e-6)


def test_what_does_not_go_together_is_refused(train, run_token_cls, tmp_path):
    first, second = train(seeds=(1, 2))
    for folders in ([first], [first, tmp_path / "seed_1"]):
        with pytest.raises(InputError, match="--runs: give the folders of two different finished runs, or more"):
            run_ensemble(folders, tmp_path / "all")
    with pytest.raises(InputError, match="no metric 'macro_f2'; did you mean 'macro_f1'"):
        run_ensemble([first, second], tmp_path / "all", "--metric", "macro_f2")
    (other,) = train("--max_eval_samples", "32", seeds=(3,))
    with pytest.raises(InputError, match=r"seed_3 does not go with .*seed_1: 32 test rows, there 64"):
        run_ensemble([first, other], tmp_path / "all")
    rows = [row | {"label": f"new {row['label']}"} for row in topic_rows(128, seed=5)]
    paths = [write_csv(tmp_path / f"{i}.csv", rows[64 * i : 64 * i + 64]) for i in range(2)]
    (other,) = train(seeds=(4,), train_file=paths[0], validation_file=paths[0], test_file=paths[1])
    with pytest.raises(InputError, match=r"seed_4 does not go with .*: other labels: only here new markets"):
        run_ensemble([first, other], tmp_path / "all")
    results = json.loads((second / "results.json").read_text())
    results["run"]["validation"] = {"macro_f1": None}
    (second / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"seed_2: \('macro_f1', None\) is no validation score to rank the runs by"):
        run_ensemble([first, second], tmp_path / "all")
    results["run"]["validation"] = {"macro_f1": 0.5}
    (second / "results.json").write_text(json.dumps(results))
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(InputError, match="another architecture: hidden_size 64, there 32"):
        run_ensemble([first, second], tmp_path / "all")
    run_token_cls(output_dir=tmp_path / "tags", num_train_epochs=1)
    with pytest.raises(InputError, match="a run of finetune_token_cls, not of a sequence classifier"):
        run_ensemble([tmp_path / "tags", first], tmp_path / "all")
    (bottleneck,) = train("--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4", seeds=(6,))
    with pytest.raises(
        InputError, match=r"seed_6: bottleneck: a bottleneck adapter cannot be merged.*; --soups false"
    ):
        run_ensemble([first, bottleneck], tmp_path / "soups")
    report = run_ensemble([first, bottleneck], tmp_path / "outputs", "--soups", "false")
    assert "vote" in report["systems"]
