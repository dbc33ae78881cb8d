"""Scores of probabilities are scikit-learn's, and what is fitted is the best there is."""

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve
from transformers import EvalPrediction

from ptft_recipes.calibration import (
    apply_thresholds,
    calibration_metrics,
    confidence_and_truth,
    fit_temperature,
    fit_thresholds,
    reliability_curve,
)
from ptft_recipes.labels import MULTI, SINGLE
from ptft_recipes.metrics import classification_metrics, probabilities

pytestmark = pytest.mark.filterwarnings("error")


def classes(size=3, rows=4000, temperature=1.0, seed=0):
    """Return logits whose softmax, divided by the temperature, is the chance of each label; and labels so drawn."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, size)) * 2
    chances = special.softmax(logits, axis=1).cumsum(axis=1)
    return logits * temperature, (generator.random((rows, 1)) > chances).sum(axis=1).clip(max=size - 1)


def tags(rows=3000, temperature=1.0, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 4)) * 2 - 1
    return logits * temperature, (generator.random(logits.shape) < special.expit(logits)).astype(float)


def scores(logits, labels, problem_type, **kwargs):
    return calibration_metrics(EvalPrediction(logits, labels), problem_type=problem_type, **kwargs)


@pytest.mark.parametrize("size", [2, 5])
def test_brier_and_likelihood_are_those_of_scikit_learn(size):
    logits, labels = classes(size)
    chances = special.softmax(logits, axis=1)
    found = scores(logits, labels, SINGLE)
    assert found["nll"] == pytest.approx(sklearn.log_loss(labels, chances))
    theirs = sklearn.brier_score_loss(labels, chances[:, 1] if size == 2 else chances, labels=range(size))
    assert found["brier"] == pytest.approx(theirs)


def test_of_several_labels_they_are_the_mean_over_labels():
    logits, labels = tags()
    found = scores(logits, labels, MULTI)
    pairs = list(zip(labels.T, special.expit(logits).T, strict=True))
    assert found["brier"] == pytest.approx(np.mean([sklearn.brier_score_loss(y, p) for y, p in pairs]))
    assert found["nll"] == pytest.approx(np.mean([sklearn.log_loss(y, p) for y, p in pairs]))


@pytest.mark.parametrize("bins", [5, 15])
def test_the_reliability_curve_is_that_of_scikit_learn(bins):
    logits, labels = tags()
    confidence, truth = confidence_and_truth(special.expit(logits), labels, MULTI)
    confidence[:5] = [0, 1, 0.2, 0.4, 0.6]  # on the borders
    curve = reliability_curve(confidence, truth, bins=bins)
    right, claimed = calibration_curve(truth, confidence, n_bins=bins)
    assert curve[:, 0] == pytest.approx(claimed)
    assert curve[:, 1] == pytest.approx(right)
    assert curve[:, 2].sum() == confidence.size
    by_hand = np.sum(curve[:, 2] / curve[:, 2].sum() * np.abs(right - claimed))
    moved = special.logit(np.clip(confidence, 1e-15, 1 - 1e-15)).reshape(logits.shape)
    assert scores(moved, labels, MULTI, bins=bins)["ece"] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("kind", [classes, tags])
def test_weights_are_repetitions(kind):
    logits, labels = kind(rows=60)
    problem_type = SINGLE if kind is classes else MULTI
    weights = np.random.default_rng(1).integers(0, 4, size=60)
    repeated = scores(np.repeat(logits, weights, axis=0), np.repeat(labels, weights, axis=0), problem_type)
    assert scores(logits, labels, problem_type, weights=weights) == pytest.approx(repeated)


@pytest.mark.parametrize("kind", [classes, tags])
def test_the_temperature_is_found_and_makes_confidence_true(kind):
    problem_type = SINGLE if kind is classes else MULTI
    logits, labels = kind(temperature=2.5)
    found = fit_temperature(logits, labels, problem_type)
    assert found == pytest.approx(2.5, rel=0.06)
    before, after = scores(logits, labels, problem_type), scores(logits / found, labels, problem_type)
    assert after["ece"] < 0.03 < before["ece"]
    # No other temperature has a lower loss.
    for other in (found * 0.97, found * 1.03):
        assert scores(logits / other, labels, problem_type)["nll"] > after["nll"]


def f1_by_search(chances, gold):
    cuts = np.unique(np.r_[chances, 1.1])
    return max(sklearn.f1_score(gold, chances >= cut, zero_division=0) for cut in cuts)


def test_thresholds_have_the_highest_f1_of_each_label():
    logits, labels = tags(rows=150)
    logits = np.round(logits, 1)  # with ties
    thresholds = fit_thresholds(logits, labels, MULTI)
    chances = special.expit(logits)
    for k, threshold in enumerate(thresholds):
        found = sklearn.f1_score(labels[:, k], chances[:, k] >= threshold)
        assert found == pytest.approx(f1_by_search(chances[:, k], labels[:, k]))
        assert not np.isclose(chances[:, k], threshold, rtol=0, atol=1e-6).any()  # between two scores
    # As shifted logits they give these decisions to every metric.
    shifted = apply_thresholds(logits, thresholds, MULTI)
    metrics = classification_metrics(EvalPrediction(shifted, labels), problem_type=MULTI, label_names=list("abcd"))
    assert metrics["macro_f1"] == pytest.approx(sklearn.f1_score(labels, chances >= thresholds, average="macro"))
    plain = classification_metrics(EvalPrediction(logits, labels), problem_type=MULTI, label_names=list("abcd"))
    assert metrics["roc_auc"] == pytest.approx(plain["roc_auc"])
    assert metrics["macro_f1"] > plain["macro_f1"]


def test_of_two_labels_the_second_is_decided_upon():
    logits, labels = classes(size=2, rows=200)
    logits[:, 1] -= 2  # too shy
    (threshold,) = fit_thresholds(logits, labels, SINGLE)
    chances = probabilities(logits, SINGLE)[:, 1]
    assert threshold < 0.4
    assert sklearn.f1_score(labels, chances >= threshold) == pytest.approx(f1_by_search(chances, labels))
    shifted = apply_thresholds(logits, np.array([threshold]), SINGLE)
    assert (shifted.argmax(axis=1) == (chances >= threshold)).all()


def test_a_label_that_never_occurs_and_one_that_always_does():
    logits = np.array([[1.0, 3.0], [2.0, 1.0], [-1.0, 2.0]])
    labels = np.array([[0, 1], [0, 1], [0, 1]])
    never, always = fit_thresholds(logits, labels, MULTI)
    assert never == 0.5
    assert always < special.expit(1.0)
