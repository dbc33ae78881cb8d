"""Ways to combine outputs, against their definitions."""

import numpy as np
import pytest
from scipy.stats import gmean

from ptft_recipes.ensembles import average_logits, average_probabilities, is_better, majority_vote, to_logits
from ptft_recipes.labels import MULTI, REGRESSION, SINGLE
from ptft_recipes.metrics import probabilities
from ptft_recipes.soups import greedy_soup

OUTPUTS = np.random.default_rng(0).dirichlet([1, 1, 1], size=(5, 40))  # [members, rows, labels]


def test_the_mean_of_logits_is_the_geometric_mean_of_probabilities_normalised():
    expected = gmean(OUTPUTS, axis=0)
    found = probabilities(average_logits(OUTPUTS, SINGLE), SINGLE)
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-5)
    logits = np.log(OUTPUTS / (1 - OUTPUTS)).mean(0)
    np.testing.assert_allclose(average_logits(OUTPUTS, MULTI), logits, rtol=1e-6)
    np.testing.assert_array_equal(average_logits(OUTPUTS, REGRESSION), OUTPUTS.mean(0))


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_the_mean_of_probabilities(problem_type):
    found = probabilities(average_probabilities(OUTPUTS, problem_type), problem_type)
    np.testing.assert_allclose(found, OUTPUTS.mean(0), rtol=1e-5)


def test_a_vote_counts_members_and_equals_are_told_apart_by_probability():
    outputs = np.array([[[0.4, 0.3, 0.3]], [[0.4, 0.3, 0.3]], [[0.01, 0.99, 0.0]]])
    assert majority_vote(outputs, SINGLE).argmax(-1) == [0], "two weak votes against a strong one"
    assert average_probabilities(outputs, SINGLE).argmax(-1) == [1]
    assert majority_vote(outputs[1:], SINGLE).argmax(-1) == [1], "one against one: the mean probability decides"
    shares = probabilities(majority_vote(OUTPUTS, SINGLE), SINGLE)
    counts = np.stack([(OUTPUTS.argmax(-1) == label).mean(0) for label in range(3)], axis=-1)
    np.testing.assert_allclose(shares, counts, atol=0.002)
    votes = probabilities(majority_vote(OUTPUTS, MULTI), MULTI) >= 0.5
    np.testing.assert_array_equal(votes, (OUTPUTS >= 0.5).sum(0) >= 3)
    pair = np.array([[[0.9, 0.6]], [[0.3, 0.1]]])
    np.testing.assert_array_equal(majority_vote(pair, MULTI) > 0, [[True, False]])


def test_a_probability_of_zero_is_no_veto_for_ever():
    logits = to_logits(np.array([[1.0, 0.0]]), SINGLE)
    assert np.isfinite(logits).all()
    assert np.isfinite(to_logits(np.array([[1.0, 0.0]]), MULTI)).all()


def test_a_greedy_soup_keeps_what_makes_it_no_worse():
    scores = {"a": 0.7, "ab": 0.6, "ac": 0.7, "acd": 0.8, "acde": 0.79}
    tried = []

    def score(chosen):
        tried.append("".join(chosen))
        return scores[tried[-1]]

    assert greedy_soup([*"abcde"], score, is_better("macro_f1")) == [*"acd"]
    assert tried == [*scores]
    assert greedy_soup([*"ab"], score, is_better("mse")) == [*"ab"]
