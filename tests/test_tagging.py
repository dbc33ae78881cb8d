"""The trainer of windows, by itself: tags by row from predictions in any order."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from ptft_recipes.tagging import TaggingTrainer, best_labels


@pytest.fixture
def trainer():
    """A trainer without a model: what is tested does not need one."""
    bare = TaggingTrainer.__new__(TaggingTrainer)
    bare.task = {"label_names": ["O", "B-X", "I-X"], "scheme": "IOB2", "default_label": "O"}
    return bare


WINDOWS = {"row": [0, 1, 0], "window": [0, 0, 1], "positions": [[1, 3], [1, -1], [2]]}


def test_windows_in_any_order_are_tags_by_row(trainer):
    predicted = np.array([[0, 1, 9, 2, 0], [0, 2, 9, -100, -100], [0, 9, 1, 0, -100]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        windows = Dataset.from_dict(WINDOWS).select(order)
        tags = trainer.tags_of(predicted[order], windows)
        assert dict(sorted(tags.items())) == {0: ["B-X", "I-X", "B-X"], 1: ["I-X", "O"]}


def test_an_entity_over_the_border_of_two_windows_is_one(trainer):
    tags = trainer.tags_of(
        np.array([[0, 1, 2], [0, 2, 0]]),
        Dataset.from_dict({"row": [0, 0], "window": [0, 1], "positions": [[1, 2], [1, 2]]}),
    )
    assert tags == {0: ["B-X", "I-X", "I-X", "O"]}
    assert trainer.statistics_of([["B-X", "I-X", "I-X", "O"]], [tags[0]])[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 4, 4]


def test_logits_become_their_best_labels_unless_one_is_not_finite():
    logits = torch.tensor([[[0.1, 2.0, 0.3], [5.0, 0.0, 0.0]]])
    assert best_labels(logits, None).tolist() == [[1, 0]]
    logits[0, 1, 2] = float("inf")
    with pytest.raises(FloatingPointError, match="nan or infinite"):
        best_labels(logits, None)
