"""A checkpoint scored by a stranger has the scores of the run that trained it; and what else is told of it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import load_recipe, topic_rows, write_csv

from ptft_recipes.errors import InputError

TINY = ["--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"]
LORA = ["--tuning", "lora", "--tuning_kwargs", "r=4"]
BOTTLENECK = ["--tuning", "bottleneck", "--tuning_kwargs", "reduction_factor=4"]


@pytest.fixture(scope="session")
def evaluate_checkpoint():
    """The recipe as a module."""
    return load_recipe("evaluate_checkpoint")


@pytest.fixture
def evaluate(evaluate_checkpoint, tmp_path):
    """Evaluate a folder in process; flags as given."""

    def run(folder, *flags, output_dir="evaluated"):
        argv = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / output_dir), *TINY]
        return evaluate_checkpoint.main([*argv, *map(str, flags)])

    return run


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def values(results) -> dict[str, float]:
    return {name: score["value"] for name, score in results["metrics"].items()}


@pytest.mark.parametrize("flags", [[], LORA, BOTTLENECK], ids=["full", "lora", "bottleneck"])
def test_the_scores_are_those_of_the_run(run_cls, evaluate, tmp_path, flags):
    trained = run_cls(*flags, num_train_epochs=1)
    found = evaluate(tmp_path / "run")  # the data and the columns are in the run's config.yaml
    assert found["metrics"] == trained["metrics"]
    assert found["run"]["data"]["fingerprint"] == trained["run"]["data"]["fingerprint"]
    before, after = (read_lines(tmp_path / name / "predictions" / "test.jsonl") for name in ("run", "evaluated"))
    assert [line["id"] for line in after] == [line["id"] for line in before]
    assert [line["predicted"] for line in after] == [line["predicted"] for line in before]
    assert json.loads((tmp_path / "evaluated" / "results.json").read_text()) == found
