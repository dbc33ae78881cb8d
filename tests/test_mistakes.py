"""The surest mistakes, and nothing that is right."""

import json

import numpy as np
import pytest
from transformers import EvalPrediction

from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.mistakes import confident_mistakes, write_mistakes

TEXTS = [{"id": f"r{i}", "text": f"text {i}"} for i in range(4)]


def test_one_label():
    logits = np.array([[3.0, 0], [1, 0], [0, 2], [5, 0]])
    found = confident_mistakes(EvalPrediction(logits, np.array([1, 1, 1, 0])), TEXTS, SINGLE, ["no", "yes"])
    assert [mistake["id"] for mistake in found] == ["r0", "r1"]
    assert found[0] == {
        "id": "r0", "text": "text 0", "gold": "yes", "predicted": "no",
        "probability": pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4),
    }  # fmt: skip
    assert (
        len(confident_mistakes(EvalPrediction(logits, np.array([1, 1, 0, 1])), TEXTS, SINGLE, ["no", "yes"], 3)) == 3
    )


def test_several_labels_are_mistaken_one_by_one():
    logits = np.array([[3.0, -1.0], [-4.0, 2.0], [1.0, 1.0], [-1.0, -1.0]])
    gold = np.array([[0, 0], [1, 1], [1, 1], [0, 0]])
    found = confident_mistakes(EvalPrediction(logits, gold), TEXTS, MULTI, ["a", "b"])
    assert [(m["id"], m["gold"], m["predicted"]) for m in found] == [("r1", "a", "not a"), ("r0", "not a", "a")]
    assert found[0]["probability"] > found[1]["probability"] > 0.9


def test_numbers_by_their_error():
    prediction = EvalPrediction(np.array([[1.0], [5.0], [2.0], [2.5]]), np.array([1.0, 2.0, 3.0, 2.5]))
    found = confident_mistakes(prediction, TEXTS, REGRESSION, ["score"], most=2)
    assert [(m["id"], m["error"]) for m in found] == [("r1", 3.0), ("r2", -1.0)]


def test_the_table_survives_any_text(tmp_path):
    mistakes = [{"id": "a", "text": "one | two\nthree", "gold": "x", "predicted": "y", "probability": 0.9}]
    write_mistakes(mistakes, tmp_path)
    table = (tmp_path / "mistakes.md").read_text().splitlines()
    assert table[2] == "| id | text | gold | predicted | probability |"
    assert table[4] == r"| a | one \| two three | x | y | 0.9 |"
    assert json.loads((tmp_path / "mistakes.jsonl").read_text()) == mistakes[0]
    write_mistakes([], tmp_path)
    assert "No mistakes." in (tmp_path / "mistakes.md").read_text()
