"""Scores with intervals, predictions by name, and a results.json that any JSON reader takes."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from transformers import EvalPrediction

from ptft_recipes.evaluation import (
    format_score,
    log_results,
    prediction_lines,
    split_by_class,
    with_intervals,
    write_lines,
)
from ptft_recipes.metrics import classification_metrics


def metrics(prediction, weights=None):
    return classification_metrics(
        prediction, problem_type="single_label_classification", label_names=["no", "yes"], weights=weights
    )


def test_every_score_has_an_interval_and_its_rows():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 2)), generator.integers(2, size=200)
    found = with_intervals(metrics, EvalPrediction(logits, labels))
    expected = metrics(EvalPrediction(logits, labels))
    assert found.keys() == expected.keys()
    for name, score in found.items():
        low, high = score["ci95"]
        assert low < score["value"] == expected[name] < high, name
        assert score["n"] == 200


def test_an_undefined_score_is_null_in_json():
    prediction = EvalPrediction(np.array([[1.0, 0.0]] * 5), np.zeros(5, dtype=int))
    found = with_intervals(metrics, prediction)["roc_auc"]
    assert found == {"value": None, "ci95": [None, None], "n": 5}
    assert "NaN" not in json.dumps(found)


@pytest.mark.parametrize(
    ("problem_type", "logits", "gold", "expected"),
    [
        (
            "single_label_classification", [[0.0, 0.0], [0.0, 100.0]], [0, 1],
            [{"gold": "no", "predicted": "no", "probabilities": {"no": 0.5, "ja 😀": 0.5}},
             {"gold": "ja 😀", "predicted": "ja 😀", "probabilities": {"no": 0.0, "ja 😀": 1.0}}],
        ),
        (
            "multi_label_classification", [[0.0, -100.0]], [[1.0, 1.0]],
            [{"gold": ["no", "ja 😀"], "predicted": ["no"], "probabilities": {"no": 0.5, "ja 😀": 0.0}}],
        ),
        ("regression", [[2.5]], [3.0], [{"gold": 3.0, "predicted": 2.5}]),
        (
            "single_label_classification", [[0.0, 100.0]], None,
            [{"gold": None, "predicted": "ja 😀", "probabilities": {"no": 0.0, "ja 😀": 1.0}}],
        ),
    ],
)  # fmt: skip
def test_predictions_are_written_by_name(tmp_path, problem_type, logits, gold, expected):
    path = tmp_path / "predictions" / "test.jsonl"
    prediction = EvalPrediction(np.array(logits), None if gold is None else np.array(gold))
    write_lines(path, prediction_lines(["a", "b"][: len(logits)], prediction, problem_type, ["no", "ja 😀"]))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"id": "ab"[i]} | line for i, line in enumerate(expected)]


def test_scores_are_told_overall_and_by_class():
    score = {"value": 0.5, "ci95": [0.4, 0.6], "n": 9}
    overall, by_class = split_by_class({"accuracy": score, "f1/a": score, "recall/a": score, "f1/b/c": score})
    assert overall == {"accuracy": score}
    assert by_class == {"a": {"f1": score, "recall": score}, "b/c": {"f1": score}}
    assert format_score(score) == "0.500 [0.400, 0.600]"
    assert format_score({"value": None, "ci95": [None, None], "n": 9}) == "undefined"


def test_the_table_ends_with_where_things_are(caplog):
    logging.getLogger("ptft_recipes").propagate = True
    results = {
        "metrics": {"accuracy": {"value": 0.5, "ci95": [0.4, 0.6], "n": 9}},
        "run": {
            "seconds": {"total": 9.0, "train": 3.0},
            "trainable_parameters": 1000,
            "total_parameters": 20000,
            "saved_mib": 1.5,
            "milliseconds_per_step": 250.0,
            "peak_memory_gib": {"resident": 1.25},
        },
    }
    with caplog.at_level(logging.INFO, logger="ptft_recipes"):
        log_results(results, Path("out"))
    assert "accuracy                 0.500 [0.400, 0.600]" in caplog.text
    assert "out: model, results.json, plots, card; 9 s in all, 3 s of it training" in caplog.text
    cost = "1,000 of 20,000 weights trained; 1.50 MiB saved; 250.0 ms per step; peak memory 1.25 GiB (resident)"
    assert cost in caplog.text
