"""The scores of `ptft_recipes.metrics` as `evaluate` modules that need no network.

`evaluate` ships no metric of its own: `evaluate.load("accuracy")` downloads and runs a script. These are plain
classes, also for `evaluate.combine([...])`. They live apart from the functions because importing `evaluate` costs half
a second, which `--help` should not wait for.
"""

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from ptft_recipes.metrics import multi_label_scores, regression_scores, single_label_scores


class _ScoresMetric(evaluate.Metric):
    """An evaluate module that is a function of this file; float64 features, because int64 ones truncate scores."""

    features: Features

    def __init__(self, **kwargs):
        super().__init__(
            keep_in_memory=True, **kwargs
        )  # nothing on disk: processes do not wait for each other's locks

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__class__.__doc__, citation="", inputs_description="", features=self.features
        )


class SingleLabelMetric(_ScoresMetric):
    """`single_label_scores` as an evaluate module: predictions are scores per label, references class numbers."""

    features = Features({"predictions": Sequence(Value("float64")), "references": Value("int64")})

    def _compute(self, predictions, references, label_names=None):
        return single_label_scores(np.asarray(predictions), np.asarray(references), label_names=label_names)


class MultiLabelMetric(_ScoresMetric):
    """`multi_label_scores` as an evaluate module: predictions are probabilities per label, references 0 and 1."""

    features = Features({"predictions": Sequence(Value("float64")), "references": Sequence(Value("int64"))})

    def _compute(self, predictions, references, label_names=None):
        return multi_label_scores(np.asarray(predictions), np.asarray(references), label_names=label_names)


class RegressionMetric(_ScoresMetric):
    """`regression_scores` as an evaluate module."""

    features = Features({"predictions": Value("float64"), "references": Value("float64")})

    def _compute(self, predictions, references):
        return regression_scores(np.asarray(predictions), np.asarray(references))
