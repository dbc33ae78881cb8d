"""Adapters of one base become one: a plain checkpoint where they are changes of weights, else an adapter."""

import json

import pytest
import torch
from conftest import load_recipe, topic_rows, write_csv
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from ptft_recipes.errors import InputError
from ptft_recipes.merging import check_adapters, fold_adapter

LORA = ["--tuning", "lora", "--tuning_kwargs", "r=4"]
BOTTLENECK = ["--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4"]


@pytest.fixture
def run_merge(checkpoint, topics, tmp_path):
    """Run merge_adapters in process on what run_cls trained; flags given later win."""
    recipe = load_recipe("merge_adapters")

    def run(*adapters, **options):
        argv = ["--model_name_or_path", checkpoint, "--output_dir", str(tmp_path / "merged"), "--max_length", "32"]
        argv += ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
        argv += [token for split, path in topics.items() for token in (f"--{split}_file", path)]
        argv += [token for name, value in options.items() for token in (f"--{name}", str(value))]
        return recipe.main([*argv, "--adapters", *map(str, adapters)])

    return run


@pytest.fixture
def train(run_cls, tmp_path):
    """Train adapters with some flags, one per seed; return their folders."""

    def train(flags, seeds=(1, 2), **options):
        folders = [tmp_path / f"adapter-{seed}" for seed in seeds]
        for seed, folder in zip(seeds, folders, strict=True):
            run_cls(*flags, seed=seed, output_dir=folder, num_train_epochs=1, **options)
        return folders

    return train


def test_lora_adapters_become_the_mean_of_the_folded_models(run_merge, train, checkpoint, tmp_path):
    folders = train(LORA)
    results = run_merge(*folders)
    folded = []
    for folder in folders:
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
        folded.append(fold_adapter(PeftModel.from_pretrained(base, folder)).state_dict())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, (folded[0][name] + folded[1][name]) / 2, rtol=1e-5, atol=1e-6)
    assert list(results["run"]["merged"]) == [*map(str, folders), "mean"]
    saved = json.loads((tmp_path / "merged" / "results.json").read_text())
    assert saved["metrics"]["macro_f1"]["n"] == 64
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "the mean of 2 adapters of" in card
    assert f"| {folders[1].name} | " in card
    assert str(tmp_path) not in card
    assert plain.config.id2label == {0: "markets", 1: "science", 2: "sports"}


def test_the_scores_of_each_are_those_of_its_own_run(run_merge, run_cls, train):
    folders = train(LORA)
    merged = run_merge(*folders)["run"]["merged"]
    for folder in folders:
        own = json.loads((folder / "results.json").read_text())["run"]["validation"]["macro_f1"]
        assert merged[str(folder)]["macro_f1"]["value"] == pytest.approx(own, abs=1e-6)


def test_one_adapter_is_folded_and_predicts_the_same(run_merge, train, tmp_path):
    (folder,) = train(LORA, seeds=(1,))
    run_merge(folder)
    predictions = [
        [json.loads(line)["predicted"] for line in (path / "predictions" / "test.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "merged")
    ]
    assert predictions[0] == predictions[1]
    assert len(predictions[0]) == 64


def test_bottleneck_adapters_become_an_adapter(run_merge, train, tmp_path):
    folders = train(BOTTLENECK)
    run_merge(*folders)
    one, other, mean = (load_file(folder / "adapter_model.safetensors") for folder in (*folders, tmp_path / "merged"))
    assert set(mean) == set(one) == set(other)
    assert len(mean) > 10
    for name, value in mean.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-5, atol=1e-7)
    assert "import ptft_recipes.bottleneck" in (tmp_path / "merged" / "README.md").read_text()


def test_what_does_not_belong_together_is_refused(run_merge, train, run_cls, checkpoints, tmp_path):
    (lora,) = train(LORA, seeds=(1,))
    (bottleneck,) = train(BOTTLENECK, seeds=(2,))
    with pytest.raises(InputError, match=r"of several methods: lora .*adapter-1\), bottleneck .*adapter-2"):
        run_merge(lora, bottleneck)
    with pytest.raises(InputError, match="bottleneck adapter cannot be merged"):
        run_merge(bottleneck)
    with pytest.raises(InputError, match="no adapter_config"):
        run_merge(tmp_path)
    with pytest.raises(InputError, match="--adapters: give one folder"):
        check_adapters([], checkpoints["bert"], [])
    with pytest.raises(InputError, match=r"its base is .* not .*roberta"):
        run_merge(lora, model_name_or_path=checkpoints["roberta"])
    rows = [row | {"label": f"new {row['label']}"} for row in topic_rows(64, seed=5)]
    train_file = write_csv(tmp_path / "train.csv", rows)
    test_file = write_csv(tmp_path / "test.csv", rows)
    with pytest.raises(InputError, match="it predicts markets, science, sports, not new markets"):
        run_merge(lora, train_file=train_file, validation_file=train_file, test_file=test_file)
