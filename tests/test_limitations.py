"""What speaks against a model is said from its own numbers, and only where they say it."""

import pytest
from finished import results

from ptft_recipes.limitations import count_labels, find_limitations

SEED = "One run, with seed 42"
UNKNOWN = "Language, domain and licence of the texts are not recorded"


def limitations(data=None, metrics=None, counts=None, **run) -> str:
    found = results(**run)
    found["run"]["data"] |= {"tokens": {}, "dropped": {}, "cut": {}, "overlap_with_train": {}} | (data or {})
    found["metrics"] = {"accuracy": {"value": 0.9, "ci95": [0.89, 0.91], "n": 4000}} if metrics is None else metrics
    return "\n".join(find_limitations(found, counts or {}))


def score(value, low=None, high=None, n=40):
    return {"value": value, "ci95": [low, high], "n": n}


def test_a_run_of_which_nothing_bad_is_known_has_the_two_that_every_run_has():
    assert limitations().splitlines() == [
        f"{SEED}: the intervals do not hold what another seed would change.",
        f"{UNKNOWN}; on other texts nothing was measured.",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"metrics": {}}, "The test rows have no labels"),
        ({"config": {"model_name_or_path": "demo/smollm2"}}, "Measured on a base whose weights were"),
        ({"config": {"do_predict": False}}, "Nothing was measured on test rows."),
        ({"metrics": {"macro_f1": score(0.5, 0.4, 0.6)}}, "40 test rows tell `macro_f1` only to about ±0.100: 0.5"),
        ({"metrics": {"perplexity": score(60.0, 50.0, 70.0, 12)}, "data": {"tokens": {"test": {"blocks": 99}}}},
         "12 test documents tell `perplexity` only to about ±10.0: 60.0 [50.0, 70.0]."),
        ({"data": {"rows": {"test": 1}, "tokens": {"test": {"blocks": 9}}}}, "A single test document"),
        ({"metrics": {"accuracy": score(0.9, 0.89, 0.91), "roc_auc": score(None)}}, "Undefined on this test split: `"),
        ({"data": {"cut": {"test": 40}}}, "The test rows were cut from train at random"),
        ({"data": {"fold": {"number": 1, "count": 5, "group_column": None}}}, "are fold 1 of 5 of train"),
        ({"data": {"overlap_with_train": {"test": {"normalised": 6}}}}, "6 (15.0 %) of the test rows are in train"),
        ({"data": {"tokens": {"test": {"truncated_rows": 1}}}}, "1 (2.5 %) of the test rows are longer than the"),
        ({"data": {"tokens": {"train": {"truncated_rows": 30}}}}, "30 (10.0 %) of the train rows are longer than"),
        ({"data": {"tokens": {"train": {"truncated_rows": 90}}, "augmentation": {"rows": 900}}},
         "90 (10.0 %) of the train rows are longer than"),  # copies are longer too
        ({"data": {"tokens": {"test": {"answers_in_no_window": 2}}}}, "2 (5.0 %) of the test answers are in no"),
        ({"data": {"dropped": {"train": 100}}}, "100 (25.0 %) of the train rows were dropped"),
        ({"data": {"tokens": {"test": {"unknown_tokens": 50, "tokens": 1000}}}}, "50 (5.0 %) of the test tokens are"),
        ({"data": {"tokens": {"test": {"rows_with_unknown_tokens": 2}}}}, "2 (5.0 %) of the test rows have words"),
        ({"metrics": {"perplexity_ratio/general": score(1.2, 1.1, 1.3)}}, "The model knows less of `general` than"),
        ({"metrics": {"gap_perplexity_ratio/general": score(1.2, 1.1, 1.3)}},
         "knows less of `general` than before: its gap perplexity is 1.2"),
        ({"metrics": {"f1/a|b": score(0.2), "f1/c": score(0.9), "f1/d": score(None)}},
         "F1 below 0.5: `d` (undefined), `a|b` (0.200)."),
        ({"metrics": {f"f1/{i}": score(0.1 + i / 100) for i in range(8)}}, "`0` (0.100), `1` (0.110), `2` (0.120), "
         "`3` (0.130), `4` (0.140) and 3 more."),
        ({"metrics": {"f1/a": score(0.9), "f1/b": score(0.9)}, "counts": {"a": 29, "b": 30}},
         "Fewer than 30 test examples, so that their scores are hardly known: `a` (29)."),
    ],
)  # fmt: skip
def test_a_measured_fault_is_told(given, expected):
    assert expected in limitations(**given)
    assert expected not in limitations()


@pytest.mark.parametrize(
    "given",
    [
        {"data": {"tokens": {"train": {"truncated_rows": 3}}}},  # 1 % of train
        {"data": {"tokens": {"test": {"truncated_rows": None, "unknown_tokens": 5, "tokens": 1000}}}},
        {"metrics": {"perplexity_ratio/general": score(1.01, 0.99, 1.03)}},
        {"metrics": {"f1/a": score(0.5)}, "counts": {"a": 30}},
    ],
)
def test_what_is_small_or_uncertain_is_not_a_fault(given):
    assert len(limitations(**given).splitlines()) == 2


def test_what_was_not_trained_has_no_seed():
    assert SEED not in limitations(steps=0)
    assert UNKNOWN in limitations(steps=0)


@pytest.mark.parametrize(
    ("gold", "data", "expected"),
    [
        (["a", "b", "a"], {}, {"a": 2, "b": 1}),
        ([["a", "b"], [], ["a"]], {}, {"a": 2, "b": 1}),
        ([["B-LOC", "I-LOC", "O", "B-PER"], ["B-LOC"]], {"scheme": "IOB2"}, {"LOC": 2, "PER": 1}),
        ([["NOUN", "VERB"], ["NOUN"]], {"scheme": "plain"}, {"NOUN": 2, "VERB": 1}),
        ([None, None], {}, {}),
        ([1.5, 2.5], {}, {}),
    ],
    ids=["single", "multi", "entities", "plain tags", "unlabelled", "numbers"],
)
def test_test_examples_are_counted_by_what_is_scored(gold, data, expected):
    assert count_labels([{"gold": each} for each in gold], data) == expected
