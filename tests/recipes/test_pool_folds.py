"""Cross-validation end to end: each row tested on once, pooled into one score, which compare_runs takes as a run's."""

import json
from functools import partial

import numpy as np
import pytest
from conftest import load_recipe, topic_rows, write_csv
from sklearn.metrics import accuracy_score, f1_score

from ptft_recipes import evaluation, reporting
from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import read_run
from ptft_recipes.significance import bootstrap_intervals


@pytest.fixture
def pool(tmp_path):
    """Pool folders in process."""
    recipe = load_recipe("pool_folds")
    return lambda *folders: recipe.main(["--output_dir", str(tmp_path / "pooled"), "--runs", *map(str, folders)])


@pytest.fixture
def train(run_cls, tmp_path, monkeypatch):
    """Train on a fold of 60 rows, with few resamples and no plots, which would take most of the time."""
    monkeypatch.setattr(evaluation, "bootstrap_intervals", partial(bootstrap_intervals, resamples=50))
    monkeypatch.setattr(reporting, "_save", lambda figure, path: None)
    file = write_csv(tmp_path / "all.csv", topic_rows(60, 0))

    def train(fold, *flags):
        folder = tmp_path / f"cv_{fold.replace('/', '_of_')}_{len(flags)}"
        run_cls("--train_file", file, "--fold", fold, *flags, data=False, output_dir=folder, num_train_epochs=3)
        return folder

    return train


def test_folds_become_one_run(train, pool, tmp_path, capsys):
    folders = [train(f"{k}/3") for k in range(3)]
    results = pool(*reversed(folders))
    lines = [
        json.loads(line) for line in (tmp_path / "pooled" / "predictions" / "test.jsonl").read_text().splitlines()
    ]
    assert sorted(int(line["id"].split(":")[1]) for line in lines) == list(range(2, 62))
    gold, predicted = ([line[key] for line in lines] for key in ("gold", "predicted"))
    metrics = results["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(gold, predicted))
    assert metrics["macro_f1"]["value"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert metrics["accuracy"]["n"] == 60
    low, high = metrics["accuracy"]["ci95"]
    assert low < metrics["accuracy"]["value"] < high
    each = [fold["metrics"]["accuracy"]["value"] for fold in results["run"]["folds"]]
    assert np.mean(each) == pytest.approx(metrics["accuracy"]["value"])
    assert "| metric | all rows | fold 0 | fold 1 | fold 2 |" in capsys.readouterr().out
    run = read_run(tmp_path / "pooled")  # what compare_runs reads
    assert run.score(np.ones(60))["macro_f1"] == pytest.approx(metrics["macro_f1"]["value"])

    with pytest.raises(InputError, match="pooled holds results; choose another --output_dir"):
        pool(*folders)
    with pytest.raises(InputError, match="fold 1 of 3 is missing"):
        pool(folders[0], folders[2])
    with pytest.raises(InputError, match="fold 0 of 3 stands twice"):
        pool(*folders, folders[0])
    other = train("1/3", "--weight_decay", "0.1")
    with pytest.raises(InputError, match="differ in weight_decay; pool folds of one run"):
        pool(folders[0], other, folders[2])


def test_what_is_no_fold_is_refused(run_cls, pool, tmp_path):
    run_cls(max_steps=1)
    with pytest.raises(InputError, match="run: not a run with --fold"):
        pool(tmp_path / "run", tmp_path / "run")
    with pytest.raises(InputError, match="give the folders of all folds"):
        pool(tmp_path / "run")
