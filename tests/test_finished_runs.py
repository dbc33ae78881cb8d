import json
import re

import finished
import numpy as np
import pytest
from finished import (
    write_answers,
    write_classifier,
    write_language_model,
    write_multi_label,
    write_regression,
    write_tagger,
)  # fmt: skip

from ptft_recipes.errors import InputError
from ptft_recipes.finished_runs import check_metric, how_tests_differ, read_run

WRITERS = {
    "classifier": (lambda folder: write_classifier(folder, 0.7), "macro_f1", 200),
    "multi_label": (write_multi_label, "accuracy", 50),
    "regression": (write_regression, "pearson", 60),
    "tagger": (write_tagger, "f1", 30),
    "answers": (write_answers, "f1", 30),
    "language_model": (write_language_model, "perplexity", 20),
}


@pytest.mark.parametrize("task", WRITERS)
def test_the_scores_of_a_run_are_made_again_from_its_predictions(tmp_path, task):
    write, main_metric, rows = WRITERS[task]
    run = read_run(write(tmp_path / "run"))
    assert run.main_metric == main_metric
    assert len(run.ids) == rows
    again = run.score(np.ones(rows))
    compared = [name for name in run.metrics if name in again]
    assert len(compared) >= 2
    assert {name: again[name] for name in compared} == pytest.approx(
        {name: run.metrics[name]["value"] for name in compared}, abs=2e-4
    )
    # Many samples at once are the same as one after another.
    weights = np.random.default_rng(0).multinomial(rows, np.ones(rows) / rows, size=3)
    assert run.scores(weights, main_metric) == pytest.approx([run.score(sample)[main_metric] for sample in weights])
    assert run.scores(weights, main_metric).std() > 0


@pytest.fixture
def folder(tmp_path):
    """A finished run of classification."""
    return write_classifier(tmp_path / "run", 0.7)


def change(folder, **values):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["run"] |= values
    path.write_text(json.dumps(results))


def change_line(folder, number, **values):
    path = folder / "predictions" / "test.jsonl"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    path.write_text("\n".join(lines) + "\n")


def cut_predictions(folder):
    path = folder / "predictions" / "test.jsonl"
    path.write_text(path.read_text()[:-40])


def half_finished(folder):
    (folder / "README.md").unlink()
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text("{}")


def of_another_run(folder):
    other = write_classifier(folder.parent / "other", 0.9)
    (other / "predictions" / "test.jsonl").replace(folder / "predictions" / "test.jsonl")


def not_the_likeliest(folder):
    path = folder / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace('"predicted": "none"', '"predicted": "outcome"'))


DAMAGES = {
    "no folder": (lambda folder: folder.rename(folder.parent / "gone"), "run: no folder"),
    "nothing in it": (
        lambda folder: [(folder / name).unlink() for name in ("results.json", "README.md")],
        "not the output folder of a run",
    ),
    "only a configuration": (
        lambda folder: [(folder / "config.yaml").touch(), (folder / "results.json").unlink()],
        "the run in it is not finished; its own command goes on",
    ),
    "cut off before its card": (half_finished, "the run in it is not finished"),
    "broken JSON": (lambda folder: (folder / "results.json").write_text("{"), "results.json: cannot be read"),
    "a list": (lambda folder: (folder / "results.json").write_text("[1]"), "not as a recipe writes it"),
    "no seed": (lambda folder: change(folder, seed=None), "no int where one belongs"),
    "no data": (lambda folder: change(folder, data={}), "'fingerprint'"),
    "no predictions": (
        lambda folder: (folder / "predictions" / "test.jsonl").unlink(),
        "predictions/test.jsonl: no such file; without predictions nothing can be compared",
    ),
    "predictions cut": (cut_predictions, "predictions/test.jsonl: line 200 cannot be read"),
    "predictions empty": (
        lambda folder: (folder / "predictions" / "test.jsonl").write_text(""),
        "predictions/test.jsonl: line 1 cannot be read",
    ),
    "predictions of another run": (of_another_run, "they are not of the same run"),
    "predicted is not the likeliest": (not_the_likeliest, "'outcome' is not what the probabilities of test.csv:"),
    "a label that nobody knows": (lambda folder: change_line(folder, 3, gold="x"), "not as a recipe writes it"),
    "no gold": (lambda folder: change_line(folder, 3, gold=None), "rows without a gold label"),
    "an id twice": (lambda folder: change_line(folder, 3, id="test.csv:7"), "the id 'test.csv:7' stands twice"),
    "no probabilities": (lambda folder: change_line(folder, 3, probabilities=None), "not as a recipe writes it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_no_sound_run_is_named(folder, damage):
    break_it, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_run(folder)
    assert str(folder) in str(error.value)


def test_a_run_whose_test_split_had_no_labels_has_nothing_to_compare(tmp_path):
    folder = finished.write_run(tmp_path / "run", [{"id": "1"}], {"x": 1.0}, {})
    results = json.loads((folder / "results.json").read_text()) | {"metrics": {}}
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="its test split has no labels"):
        read_run(folder)


def test_an_unknown_metric_is_refused_with_the_nearest(folder):
    with pytest.raises(InputError, match=r"no metric 'macro_f2'; did you mean 'macro_f1'\? \(accuracy, macro_f1,"):
        check_metric(read_run(folder), "macro_f2")


class TestTestData:
    def test_the_same(self, tmp_path):
        one, other = (read_run(write_classifier(tmp_path / str(s), 0.7, seed=s)) for s in (1, 2))
        assert how_tests_differ(one, other) == ""

    def differ(self, tmp_path, edit, **kwargs):
        one = write_classifier(tmp_path / "one", 0.7, rows=1000)
        other = write_classifier(tmp_path / "other", 0.7, rows=1000, **kwargs)
        edit(one)
        return how_tests_differ(read_run(one), read_run(other))

    def test_other_labels(self, tmp_path):
        found = self.differ(tmp_path, lambda folder: None, labels=["approach", "none", "result"])
        assert found == "other labels: only here outcome; only there result"
        found = self.differ(tmp_path / "b", lambda folder: None, labels=["none", "approach", "outcome"])
        assert found.startswith("the same labels in another order")

    def test_other_rows(self, tmp_path):
        found = self.differ(tmp_path, lambda folder: change_line(folder, 0, id="new"))
        assert found == "1000 test rows, there 1000; 1 only here (new), 1 only there (test.csv:0)"

    def test_another_truth(self, tmp_path):
        def edit(folder):
            gold = json.loads((folder / "predictions" / "test.jsonl").read_text().splitlines()[5])["gold"]
            change_line(folder, 5, gold="none" if gold != "none" else "outcome")

        assert self.differ(tmp_path, edit).startswith(
            "the truth of 1 of 1000 test rows differs, first of 'test.csv:5'"
        )

    def test_other_texts_under_the_same_ids(self, tmp_path):
        def edit(folder):
            data = json.loads((folder / "results.json").read_text())["run"]["data"]
            change(folder, data=data | {"fingerprint": {"test": "xyz"}})

        assert self.differ(tmp_path, edit) == "the texts differ: test fingerprint xyz, there abc"

    def test_perplexities_of_other_tokens(self, tmp_path):
        one = read_run(write_language_model(tmp_path / "one"))
        other = read_run(write_language_model(tmp_path / "other", hidden=7))
        assert how_tests_differ(one, other) == (
            "the truth of 20 of 20 test rows differs, first of 'd0': 10.0, there 14.0"
        )
