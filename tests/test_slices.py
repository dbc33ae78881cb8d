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
    assert sorted(set(slices)) == ["length 10 to 34", "length 35 to 59", "length 60 to 84", "length 85 to 109"]
    for number, name in zip(numbers, slices, strict=True):
        low, high = map(int, name.removeprefix("length ").split(" to "))
        assert low <= number <= high
    assert {slices.count(name) for name in slices} == {25}


@pytest.mark.parametrize(("numbers", "expected"), [
    ([5, 5, 5], ["length 5"] * 3),
    ([1, 1, 1, 9], ["length 1"] * 3 + ["length 9"]),
    ([7], ["length 7"]),
])  # fmt: skip
def test_equal_numbers_stay_together(numbers, expected):
    assert slice_by_quartile(numbers, "length") == expected


def test_values_of_a_column():
    assert slice_by_value(["a", None, "a"], "who") == ["who=a", "who=None", "who=a"]
    many = [f"v{i}" for i in range(30)] + ["v0", "v1"]
    slices = slice_by_value(many, "who")
    assert len(set(slices)) == 20
    assert slices[0] == slices[30] == "who=v0"
    assert slices.count("who: other") == 11
    years = slice_by_value([str(1990 + i) for i in range(40)], "year")
    assert sorted(set(years))[0] == "year 1990 to 1999"
    assert len(set(years)) == 4


def test_each_slice_has_the_scores_of_its_rows():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(60, 2)), generator.integers(2, size=60)
    slices = np.array(["a", "b", "b"] * 20)
    kwargs = {"problem_type": "single_label_classification", "label_names": ["no", "yes"]}
    metrics = partial(classification_metrics, **kwargs)
    groups = np.arange(60) // 3
    found = score_slices(partial(with_intervals, metrics), EvalPrediction(logits, labels), slices, groups)
    assert list(found) == ["b", "a"]
    for name, scores in found.items():
        rows = slices == name
        part = EvalPrediction(logits[rows], labels[rows])
        assert scores == {k: v for k, v in with_intervals(metrics, part, groups[rows]).items() if "/" not in k}
    assert found["b"]["accuracy"]["n"] == 40
