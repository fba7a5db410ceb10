"""Training metrics that stream: all of them from one histogram of logits.

Keras' own metrics are silently wrong on logits, and its 200 evenly spaced thresholds see nothing of
probabilities near 1/500. A histogram of the logit resolves them, costs one update however many metrics
are read from it, and adds up exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

NUM_BINS = 8192
LIMIT = 20.0  # logits beyond ±20 fall into the outermost bins


class _Histogram(keras.metrics.Metric):
    """Counts of logits by class; by itself it reads as the number of samples seen."""

    def __init__(self) -> None:
        super().__init__(name="samples", dtype="float32")
        self.counts = self.add_weight(shape=(2, NUM_BINS), initializer="zeros", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        label = ops.cast(ops.cast(ops.reshape(y_true, (-1,)), "float32") > 0.5, "int32")
        logit = ops.cast(ops.reshape(y_pred, (-1,)), "float32")
        place = ops.clip(logit, -LIMIT, LIMIT) * (NUM_BINS / (2 * LIMIT))
        # A bin's upper edge belongs to it: the logit 0 says no, as it does to exact metrics.
        index = ops.clip(ops.cast(ops.ceil(place), "int32") + (NUM_BINS // 2 - 1), 0, NUM_BINS - 1)
        weight = ops.ones_like(logit)
        if sample_weight is not None:
            weight = weight * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
        new = ops.segment_sum(weight, label * NUM_BINS + index, num_segments=2 * NUM_BINS)
        self.counts.assign_add(ops.reshape(new, (2, NUM_BINS)))

    def result(self) -> Any:
        return ops.sum(self.counts)


class _Reading(keras.metrics.Metric):
    """One metric read from a histogram. The first reading of a set also feeds it."""

    def __init__(
        self, name: str, histogram: _Histogram, formula: Callable[[Any, Any], Any], *, feeds: bool
    ) -> None:
        super().__init__(name=name, dtype="float32")
        # Kept where Keras does not look, so that it counts as a part of the feeding one alone.
        self._histogram = histogram if feeds else None
        self._counts = lambda: histogram.counts
        self._formula = formula

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if self._histogram is not None:
            self._histogram.update_state(y_true, y_pred, sample_weight)

    def reset_state(self) -> None:
        if self._histogram is not None:
            self._histogram.reset_state()

    def result(self) -> Any:
        counts = self._counts()
        return self._formula(counts[0], counts[1])


def streaming_metrics() -> list[keras.metrics.Metric]:
    """New metrics for `compile`: those the forum recipe tracked, and balanced accuracy.

    All take labels `(batch, 1)` and logits `(batch, 1)`. They are as fine as the histogram's bins,
    0.005 in the logit; counts and what is made of them at logit 0 are exact. NaN where a metric is not
    defined.
    """
    histogram = _Histogram()
    return [
        _Reading(name, histogram, formula, feeds=index == 0)
        for index, (name, formula) in enumerate(_FORMULAS.items())
    ]


def _upper(counts: Any) -> Any:
    return ops.sum(counts[NUM_BINS // 2 :])


def _lower(counts: Any) -> Any:
    return ops.sum(counts[: NUM_BINS // 2])


def _accuracy(negative: Any, positive: Any) -> Any:
    return (_lower(negative) + _upper(positive)) / (ops.sum(negative) + ops.sum(positive))


def _balanced_accuracy(negative: Any, positive: Any) -> Any:
    return (_lower(negative) / ops.sum(negative) + _recall(negative, positive)) / 2


def _recall(_negative: Any, positive: Any) -> Any:
    return _upper(positive) / ops.sum(positive)


def _precision(negative: Any, positive: Any) -> Any:
    return _upper(positive) / (_upper(positive) + _upper(negative))


def _auc(negative: Any, positive: Any) -> Any:
    below = ops.cumsum(negative) - negative / 2
    return ops.sum(positive / ops.sum(positive) * (below / ops.sum(negative)))


def _specificity_at_half_sensitivity(negative: Any, positive: Any) -> Any:
    found = ops.flip(ops.cumsum(ops.flip(positive)))
    specificity = (ops.cumsum(negative) - negative) / ops.sum(negative)
    best = ops.max(ops.where(found >= 0.5 * ops.sum(positive), specificity, 0.0))
    return ops.where(ops.sum(positive) > 0, best, float("nan"))


_FORMULAS: dict[str, Callable[[Any, Any], Any]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
    "specificity_at_sensitivity_0.5": _specificity_at_half_sensitivity,
    "precision": _precision,
    "recall": _recall,
    "fn": lambda _negative, positive: _lower(positive),
    "fp": lambda negative, _positive: _upper(negative),
    "tn": lambda negative, _positive: _lower(negative),
    "tp": lambda _negative, positive: _upper(positive),
}
