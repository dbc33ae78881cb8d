"""The one exception for what the user can mend, and its hint."""

import doctest

import pytest

from ptft_recipes import errors
from ptft_recipes.errors import InputError, nearest


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rte", "; did you mean 'learning_rate'?"),
        ("lr_scheduler", "; did you mean 'lr_scheduler_type'?"),
        ("Seed", "; did you mean 'seed'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_nearest_names_what_was_probably_meant_or_nothing(name, hint):
    assert nearest(name, ["learning_rate", "lr_scheduler_type", "seed"]) == hint
    assert nearest(name, {"learning_rate": 1, "lr_scheduler_type": 2, "seed": 3}) == hint
    assert nearest(name, []) == ""


def test_an_input_error_is_a_value_error_with_the_message_as_given():
    assert issubclass(InputError, ValueError)
    assert str(InputError("train.csv:3: broken")) == "train.csv:3: broken"


def test_the_examples_in_the_docstrings_hold():
    results = doctest.testmod(errors)
    assert results.attempted == 4
    assert results.failed == 0
