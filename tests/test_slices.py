"""Parts of a test split: every row in one, named by what is in it."""

from functools import partial

import numpy as np
import pytest
from transformers import EvalPrediction

from ptft_recipes.evaluation import with_intervals
from ptft_recipes.metrics import classification_metrics
from ptft_recipes.slices import score_slices, slice_by_quartile, slice_by_value


def test_quarters_hold_a_quarter_each_and_are_named_by_their_ends():
    numbers = np.random.default_rng(0).permutation(np.arange(10, 110))
    slices = slice_by_quartile(numbers, "length")
    assert list(slices) == ["length 10 to 34", "length 35 to 59", "length 60 to 84", "length 85 to 109"]
    for name, rows in slices.items():
        low, high = map(int, name.removeprefix("length ").split(" to "))
        assert sorted(numbers[rows]) == list(range(low, high + 1))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([5, 5, 5], {"length 5": [0, 1, 2]}),
        ([9, 1, 1, 1], {"length 1": [1, 2, 3], "length 9": [0]}),
        ([7], {"length 7": [0]}),
        ([1.5, 2.5], {"length 1.5": [0], "length 2.5": [1]}),
    ],
)
def test_equal_numbers_stay_together(numbers, expected):
    assert {name: rows.tolist() for name, rows in slice_by_quartile(numbers, "length").items()} == expected


def test_values_of_a_column():
    found = slice_by_value(["b", None, "a", "a"], "who")
    assert {name: rows.tolist() for name, rows in found.items()} == {"who=a": [2, 3], "who=b": [0], "who=None": [1]}
    slices = slice_by_value([f"v{i}" for i in range(30)] + ["v0", "v1"], "who")
    assert len(slices) == 20
    assert slices["who=v0"].tolist() == [0, 30]
    assert len(slices["who: other"]) == 11
    assert sorted(np.concatenate(list(slices.values()))) == list(range(32))
    assert len(slice_by_value([f"v{i}" for i in range(20)], "who")) == 20
    years = slice_by_value([str(1990 + i) for i in range(40)], "year")
    assert next(iter(years)) == "year 1990 to 1999"
    assert len(years) == 4


def test_each_slice_has_the_scores_of_its_rows():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(60, 2)), generator.integers(2, size=60)
    slices = slice_by_value(["a", "b", "b"] * 20, "kind")
    kwargs = {"problem_type": "single_label_classification", "label_names": ["no", "yes"]}
    metrics = partial(classification_metrics, **kwargs)
    groups = np.arange(60) // 3
    found = score_slices(partial(with_intervals, metrics), EvalPrediction(logits, labels), slices, groups)
    assert list(found) == ["kind=b", "kind=a"]
    for name, scores in found.items():
        rows = slices[name]
        part = EvalPrediction(logits[rows], labels[rows])
        assert scores == {k: v for k, v in with_intervals(metrics, part, groups[rows]).items() if "/" not in k}
    assert found["kind=b"]["accuracy"]["n"] == 40
