import json

import numpy as np
import pytest
from finished import write_classifier, write_language_model, write_regression

from ptft_recipes.comparison import compare_arms, find_arms, read_arms
from ptft_recipes.errors import InputError
from ptft_recipes.significance import holm, paired_bootstrap, seeds_and_examples


def write_arm(folder, right, seeds, config=None, **kwargs):
    for seed in seeds:
        write_classifier(folder / f"seed-{seed}", right, seed, config=config or {}, **kwargs)
    return [folder / f"seed-{seed}" for seed in seeds]


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Three arms with three seeds; the second is better."""
    folder = tmp_path_factory.mktemp("arms")
    rights = {"base": 0.7, "better": 0.85, "same": 0.705}
    arms, left_out = read_arms({name: write_arm(folder / name, right, [1, 2, 3]) for name, right in rights.items()})
    assert left_out == []
    return arms


@pytest.fixture(scope="module")
def comparison(arms):
    """Of the three arms."""
    return compare_arms(arms)


def row_of(comparison, arm):
    return next(row for row in comparison["arms"] if row["arm"] == arm)


class TestCompare:
    def test_means_are_those_of_the_runs(self, arms, comparison):
        assert comparison["metric"] == "macro_f1"
        assert comparison["baseline"] == "base"
        assert comparison["rows_of_test"] == 200
        for row in comparison["arms"]:
            recorded = [run.metrics["macro_f1"]["value"] for run in arms[row["arm"]]]
            assert row["scores"] == pytest.approx(recorded)
            assert row["mean"] == pytest.approx(np.mean(recorded))
            assert row["interval"][0] < row["mean"] < row["interval"][1]
            assert row["over"] == "seeds and test examples"

    def test_a_real_difference_is_told_from_none(self, comparison):
        better, same = (row_of(comparison, name) for name in ("better", "same"))
        assert better["difference"] == pytest.approx(better["mean"] - row_of(comparison, "base")["mean"])
        assert better["p"] < 0.05
        assert same["p"] > 0.05
        assert same["difference_interval"][0] < 0 < same["difference_interval"][1]
        assert better["paired_seeds"] == [1, 2, 3]
        assert "p" not in row_of(comparison, "base")

    def test_the_statistics_are_those_of_significance(self, arms, comparison):
        def scores(name):
            return lambda weights: {"macro_f1": np.array([run.score(weights)["macro_f1"] for run in arms[name]])}

        better = seeds_and_examples(scores("better"), 200, scores("base"))["macro_f1"]
        row = row_of(comparison, "better")
        assert (row["difference"], row["p_uncorrected"]) == pytest.approx((better.value, better.p_value))
        assert row["difference_interval"] == pytest.approx(better.interval)
        rows = [row_of(comparison, name) for name in ("better", "same")]
        assert [row["p"] for row in rows] == pytest.approx(holm([row["p_uncorrected"] for row in rows]))

    def test_another_metric_and_baseline(self, arms):
        found = compare_arms(arms, baseline="same", metric="accuracy", resamples=100)
        assert row_of(found, "base")["scores"] == pytest.approx(
            [run.metrics["accuracy"]["value"] for run in arms["base"]]
        )
        assert row_of(found, "base")["difference"] < 0 or row_of(found, "same")["mean"] < row_of(found, "base")["mean"]
        roc_auc = compare_arms(arms, metric="roc_auc", resamples=100)  # which counts do not make
        assert row_of(roc_auc, "base")["mean"] == pytest.approx(
            np.mean([run.metrics["roc_auc"]["value"] for run in arms["base"]]), abs=1e-3
        )

    @pytest.mark.parametrize(("options", "message"), [
        ({"baseline": "bse"}, "--baseline bse: no such arm with results; did you mean 'base'?"),
        ({"metric": "f1"}, "no metric 'f1'"),
        ({"confidence": 95.0}, "--confidence 95.0: give a share between 0 and 1"),
        ({"resamples": 10}, "--resamples 10: too few for an interval"),
    ])  # fmt: skip
    def test_what_is_not_there_is_named(self, arms, options, message):
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            compare_arms(arms, **options)

    def test_costs(self, comparison):
        row = row_of(comparison, "base")
        assert (row["seconds"], row["peak_memory_gib"], row["trainable_parameters"]) == (12.0, 1.5, 50)


class TestSeeds:
    def test_of_one_seed_the_examples_alone_speak(self, tmp_path):
        arms, _ = read_arms({n: write_arm(tmp_path / n, r, [1]) for n, r in {"a": 0.7, "b": 0.8}.items()})
        row = row_of(compare_arms(arms), "b")
        assert (row["over"], row["difference_over"]) == ("test examples alone",) * 2
        first, second = arms["b"][0], arms["a"][0]

        def both(weights):
            run, half = (first, weights[:200]) if weights[:200].any() else (second, weights[200:])
            return {"macro_f1": run.score(half)["macro_f1"]}

        expected = paired_bootstrap(both, 200, resamples=1000)["macro_f1"]
        assert row["difference_interval"] == pytest.approx(expected.interval)
        assert row["p"] == row["p_uncorrected"] == pytest.approx(expected.p_value)

    def test_what_the_test_set_can_show_does_not_depend_on_seeds(self, tmp_path):
        few = {n: write_arm(tmp_path / n, r, [1, 2], rows=100) for n, r in {"a": 0.7, "b": 0.75}.items()}
        many = {n: write_arm(tmp_path / f"{n}-", r, [1, 2], rows=1600) for n, r in {"a": 0.7, "b": 0.75}.items()}
        low, high = (row_of(compare_arms(read_arms(arms)[0]), "b")["detectable"] for arms in (many, few))
        assert 3 < high / low < 5.5, "four times as exact with sixteen times the rows"

    def test_pairs_are_the_seeds_that_both_have(self, tmp_path):
        folders = {"a": write_arm(tmp_path / "a", 0.7, [1, 2, 3]), "b": write_arm(tmp_path / "b", 0.8, [2, 3, 4])}
        arms, _ = read_arms(folders | {"c": write_arm(tmp_path / "c", 0.8, [8, 9])})
        found = compare_arms(arms)
        pairs = row_of(found, "b")
        by_seed = {n: dict(zip(row["seeds"], row["scores"], strict=True)) for n in "ab" for row in [row_of(found, n)]}
        assert pairs["paired_seeds"] == [2, 3]
        assert pairs["difference"] == pytest.approx(np.mean([by_seed["b"][s] - by_seed["a"][s] for s in (2, 3)]))
        assert row_of(found, "c")["paired_seeds"] == []
        assert row_of(found, "c")["difference"] == pytest.approx(
            row_of(found, "c")["mean"] - row_of(found, "a")["mean"]
        )


class TestArms:
    def test_runs_that_differ_in_their_seed_are_one_arm(self, tmp_path):
        for seed in (1, 2):
            write_classifier(tmp_path / f"lora_{seed}", 0.8, seed, config={"tuning": "lora"})
            write_classifier(tmp_path / f"full_{seed}", 0.7, seed)
        folders, baseline, remarks = find_arms([f"{tmp_path}/*_?"])
        arms, left_out = read_arms(folders)
        assert (baseline, remarks, left_out) == (None, [], [])
        assert {name: [run.seed for run in runs] for name, runs in arms.items()} == {"full": [1, 2], "lora": [1, 2]}

    def test_their_settings_name_them_where_folders_do_not(self, tmp_path):
        for seed, config in enumerate([{}, {"tuning": "lora"}, {"tuning": "lora", "learning_rate": 1e-3}]):
            write_classifier(tmp_path / str(seed), 0.7, seed, config=config)
        arms, _ = read_arms(find_arms([f"{tmp_path}/*"])[0])
        assert list(arms) == ["learning_rate=0.0001", "learning_rate=0.0001 tuning=lora",
                              "learning_rate=0.001 tuning=lora"]  # fmt: skip

    def test_names_are_given_with_a_pattern(self, tmp_path):
        write_arm(tmp_path / "a=b", 0.7, [1, 2])
        folders, *_ = find_arms([f"mine={tmp_path}/a=b/seed-*"])
        assert [len(found) for name, found in folders.items() if name == "mine"] == [2]
        folders, *_ = find_arms([f"{tmp_path}/a=b/seed-1"])
        assert list(folders) == [""]

    def test_a_pattern_without_a_match_is_refused(self):
        with pytest.raises(InputError, match="--runs x=nothing/here: no such folder"):
            find_arms(["x=nothing/here"])

    def test_a_study_names_its_arms_and_its_baseline(self, tmp_path):
        c = "[{recipe: pretrain_mlm, seed: 7}, {recipe: some, model_name_or_path: <previous>}]"
        study = f"seeds: [1, 2]\nbaseline: b\narms: {{a: {{recipe: some}}, b: {{recipe: some, x: 1}}, c: {c}}}"
        (tmp_path / "study.yaml").write_text(study)  # whose recipes are not here
        write_arm(tmp_path / "arms" / "a", 0.7, [1, 2])
        write_arm(tmp_path / "arms" / "b", 0.7, [1])
        folders, baseline, remarks = find_arms([str(tmp_path)])
        arms, left_out = read_arms(folders)
        assert baseline == "b"
        assert {name: len(runs) for name, runs in arms.items()} == {"a": 2, "b": 1}
        assert left_out == [
            f"b: not there: seed-2 in {tmp_path}/arms/b",
            f"c: not there: seed-1, seed-2 in {tmp_path}/arms/c",
            "c: an arm without results",
        ]
        assert remarks == [
            "c: all seeds start from one run of pretrain_mlm (seed 7); the intervals do not hold the chance of it."
        ]

    def test_what_cannot_be_compared_is_named_and_the_rest_goes_on(self, tmp_path):
        runs = write_arm(tmp_path / "a", 0.7, [1, 2, 3])
        other = write_classifier(tmp_path / "other", 0.7, 4, rows=150)
        again = write_classifier(tmp_path / "again", 0.7, 3)
        half = write_classifier(tmp_path / "half", 0.7, 5)
        (half / "results.json").unlink()
        arms, left_out = read_arms({"a": [*runs, other, again, half], "b": [write_regression(tmp_path / "r")]})
        assert [run.seed for run in arms["a"]] == [1, 2, 3]
        assert list(arms) == ["a"]
        assert len(left_out) == 5
        text = "\n".join(left_out)
        assert (
            f"{other}: not the test data of {runs[0]}: 150 test rows, there 200; 0 only here (none), 50 only" in text
        )
        assert f"{tmp_path}/r: not the test data of {runs[0]}: other labels" in text
        assert f"{again}: seed 3 stands twice in the arm a, as {runs[2]} too" in text
        assert str(half) in text
        assert "b: an arm without results" in text

    def test_nothing_left_is_an_error(self, tmp_path):
        with pytest.raises(InputError, match="no finished run to compare: a: not there: gone in "):
            read_arms({"a": [tmp_path / "gone"]})


def test_language_models_are_compared_by_document(tmp_path):
    for seed in (1, 2, 3):
        write_language_model(tmp_path / f"a_{seed}", 2.0, seed)
        write_language_model(tmp_path / f"b_{seed}", 1.5, seed)
    arms, left_out = read_arms({"a": sorted(tmp_path.glob("a_*")), "b": sorted(tmp_path.glob("b_*"))})
    found = compare_arms(arms)
    assert (left_out, found["metric"], found["rows_of_test"]) == ([], "perplexity", 20)
    assert row_of(found, "b")["difference"] < -1
    assert row_of(found, "b")["p"] < 0.01
    json.dumps(found, allow_nan=False)


def test_a_score_that_is_undefined_is_null(tmp_path):
    # No row has the last label: its ROC curve is undefined, and so is the mean over the labels.
    labels = ["approach", "none", "outcome", "never"]
    for arm, right in (("a", 0.7), ("b", 0.8)):
        for seed in (1, 2):
            folder = write_classifier(tmp_path / f"{arm}_{seed}", right, seed)
            path = folder / "results.json"
            results = json.loads(path.read_text())
            results["run"]["data"]["label_names"] = labels
            results["metrics"] = {"roc_auc": {"value": None, "n": 200}, "accuracy": results["metrics"]["accuracy"]}
            path.write_text(json.dumps(results))
            lines = folder / "predictions" / "test.jsonl"
            lines.write_text(lines.read_text().replace('"probabilities": {', '"probabilities": {"never": 0.0, '))
    arms, left_out = read_arms({arm: sorted(tmp_path.glob(f"{arm}_*")) for arm in "ab"})
    found = compare_arms(arms, metric="roc_auc", resamples=100)
    row = row_of(found, "b")
    assert left_out == []
    assert (row["mean"], row["difference"], row["p_uncorrected"], row["detectable"]) == (None,) * 4
    assert "p" not in row
    json.dumps(found, allow_nan=False)
