"""The scores as `evaluate` modules: no network, the same numbers, nothing truncated."""

import socket

import evaluate
import numpy as np
import pytest

from ptft_recipes.evaluate_modules import MultiLabelMetric, RegressionMetric, SingleLabelMetric
from ptft_recipes.metrics import multi_label_scores, regression_scores, single_label_scores

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.random((40, 3))
NUMBERS = GENERATOR.normal(size=40)
MODULES = {
    "single": (SingleLabelMetric, single_label_scores, SCORES, GENERATOR.integers(3, size=40)),
    "multi": (MultiLabelMetric, multi_label_scores, SCORES, GENERATOR.integers(2, size=(40, 3))),
    "regression": (RegressionMetric, regression_scores, NUMBERS, NUMBERS + GENERATOR.normal(size=40)),
}
every_module = pytest.mark.parametrize("kind", MODULES)


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@every_module
@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist], ids=["arrays", "lists"])
def test_a_module_gives_what_the_function_gives(kind, convert, tmp_path):
    module, function, predictions, references = MODULES[kind]
    scores = module().compute(predictions=convert(predictions), references=convert(references))
    assert scores == function(predictions, references)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no cache and no lock


@every_module
def test_batches_add_up(kind):
    metric, function, predictions, references = MODULES[kind]
    metric = metric()
    for start in range(0, 40, 16):
        part = slice(start, start + 16)
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == function(predictions, references)


@every_module
def test_class_numbers_may_be_given_as_floats(kind):
    module, function, predictions, references = MODULES[kind]
    scores = module().compute(predictions=predictions, references=references.astype(np.float32))
    assert scores == pytest.approx(function(predictions, references.astype(np.float32).astype(references.dtype)))


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist], ids=["arrays", "lists"])
def test_a_reference_with_a_fraction_is_refused_and_not_cut(kind, convert):
    module, _, predictions, references = MODULES[kind]
    references = references.astype(np.float64)
    references[-1] += 0.75
    with pytest.raises(ValueError, match=r"references are .*\.75"):
        module().compute(predictions=predictions, references=convert(references))


def test_fractions_count_in_a_regression():
    scores = RegressionMetric().compute(predictions=[1, 2, 3.5], references=[1, 2.75, 3])
    assert scores["mae"] == pytest.approx((0 + 0.75 + 0.5) / 3)
    assert scores["mse"] == pytest.approx((0 + 0.75**2 + 0.5**2) / 3)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_label_names_name_the_scores(kind):
    module, function, predictions, references = MODULES[kind]
    names = ["a", "b/c", "d é"]
    scores = module().compute(predictions=predictions, references=references, label_names=names)
    assert scores == function(predictions, references, label_names=names)
    assert {f"f1/{name}" for name in names} < set(scores)


class RowCount(SingleLabelMetric):
    """Another module with the same features."""

    def _compute(self, predictions, references, label_names=None):
        return {"rows": len(references)}


def test_modules_combine():
    _, function, predictions, references = MODULES["single"]
    combined = evaluate.combine([SingleLabelMetric(), RowCount()])
    scores = combined.compute(predictions=predictions, references=references, label_names=["a", "b", "c"])
    assert scores == function(predictions, references, label_names=["a", "b", "c"]) | {"rows": 40}


@every_module
def test_a_module_says_what_it_is(kind):
    module = MODULES[kind][0]()
    assert module.description
    assert set(module.features) == {"predictions", "references"}
    assert module.keep_in_memory
