"""The scores of `ptft_recipes.metrics` as `evaluate` modules that need no network.

`evaluate` ships no metric of its own: `evaluate.load("accuracy")` downloads and runs a script. These are plain
classes, also for `evaluate.combine([...])`. They live apart from the functions because importing `evaluate` costs half
a second, which `--help` should not wait for.
"""

import evaluate
import numpy as np
from datasets import Features, List, Value

from ptft_recipes.metrics import multi_label_scores, regression_scores, single_label_scores


class _ScoresMetric(evaluate.Metric):
    """A function of `ptft_recipes.metrics` as an evaluate module."""

    # float64 also for class numbers: evaluate cuts what it is given down to int64 without a word.
    features: Features

    def __init__(self, **kwargs):
        # In memory, so that processes do not wait for each other's lock files.
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__class__.__doc__, citation="", inputs_description="", features=self.features
        )


class SingleLabelMetric(_ScoresMetric):
    """`single_label_scores` as an evaluate module: predictions are scores per label, references class numbers."""

    features = Features({"predictions": List(Value("float64")), "references": Value("float64")})

    def _compute(self, predictions, references, label_names=None):
        labels = np.asarray(references).astype(np.int64)
        if (wrong := labels != references).any():
            raise ValueError(f"references are class numbers; {np.asarray(references)[wrong][0]} is not a whole number")
        return single_label_scores(np.asarray(predictions), labels, label_names=label_names)


class MultiLabelMetric(_ScoresMetric):
    """`multi_label_scores` as an evaluate module: predictions are probabilities per label, references 0 and 1."""

    features = Features({"predictions": List(Value("float64")), "references": List(Value("float64"))})

    def _compute(self, predictions, references, label_names=None):
        labels = np.asarray(references)
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(f"references are 0 or 1 per label, not {labels[~np.isin(labels, (0, 1))][0]}")
        return multi_label_scores(np.asarray(predictions), labels, label_names=label_names)


class RegressionMetric(_ScoresMetric):
    """`regression_scores` as an evaluate module."""

    features = Features({"predictions": Value("float64"), "references": Value("float64")})

    def _compute(self, predictions, references):
        return regression_scores(np.asarray(predictions), np.asarray(references))
