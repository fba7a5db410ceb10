"""Training metrics that stream: all of them from one histogram of logits.

Keras' own metrics are silently wrong on logits, and its 200 evenly spaced thresholds see nothing of
probabilities near 1/500. A histogram of the logit resolves them, costs one update however many metrics
are read from it, and adds up exactly over batches and replicas.

Its bins are finest around 0 and widen with the logit: 0.0001 wide at 0, 0.008 at ±10, 0.05 at ±60, beyond
which logits fall into the outermost. Decisions at logit 0, and all counts, are exact; other thresholds move
to the nearest edge of a bin; ranks within a bin are ties.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

NUM_BINS = 16384
LIMIT = 60.0
_CORE = 0.1  # bins are evenly wide within it, and widen in proportion to the logit outside
_BINS_PER_UNIT = NUM_BINS / 2 / math.log1p(LIMIT / _CORE)

register = keras.saving.register_keras_serializable("luna_cls")


class LogitHistogram(keras.metrics.Metric):
    """Weighted counts of logits by class; by itself it reads as the samples seen."""

    def __init__(self, name: str = "samples") -> None:
        super().__init__(name=name, dtype="float32")
        self.counts = self.add_weight(shape=(2, NUM_BINS), initializer="zeros", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts samples.

        Args:
            y_true: Labels, 0 or 1, `(batch, 1)` or `(batch,)`.
            y_pred: Logits, of the same shape.
            sample_weight: Of each sample; None for 1.
        """
        label = ops.cast(ops.cast(ops.reshape(y_true, (-1,)), "float32") > 0.5, "int32")
        logit = ops.cast(ops.reshape(y_pred, (-1,)), "float32")
        place = ops.sign(logit) * ops.log1p(ops.abs(logit) / _CORE) * _BINS_PER_UNIT
        # A bin's upper edge belongs to it: the logit 0 says no, as it does to exact metrics.
        index = ops.cast(ops.clip(ops.ceil(place), -NUM_BINS, NUM_BINS), "int32") + (NUM_BINS // 2 - 1)
        index = ops.clip(index, 0, NUM_BINS - 1)
        weight = ops.ones_like(logit)
        if sample_weight is not None:
            weight = weight * ops.cast(ops.reshape(sample_weight, (-1,)), "float32")
        new = ops.segment_sum(weight, label * NUM_BINS + index, num_segments=2 * NUM_BINS)
        self.counts.assign_add(ops.reshape(new, (2, NUM_BINS)))

    def result(self) -> Any:
        """The sum of all weights."""
        return ops.sum(self.counts)


class HistogramMetric(keras.metrics.Metric):
    """A metric of labels and logits `(batch, 1)`, read from a histogram. NaN where it is not defined.

    Args:
        name: Its name in logs.
        shared: Another of these, whose histogram this one reads instead of keeping its own. The other is
            to be updated and reset beside it; updating this one then costs nothing.
    """

    def __init__(self, name: str, shared: HistogramMetric | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        histogram = LogitHistogram() if shared is None else shared.histogram
        # Where Keras looks, so that it counts as a part of its owner; and where it does not, for readers.
        self._own = histogram if shared is None else None
        self._find_histogram = lambda: histogram

    @property
    def histogram(self) -> LogitHistogram:
        """What it is read from."""
        return self._find_histogram()

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts samples, if the histogram is its own."""
        if self._own is not None:
            self._own.update_state(y_true, y_pred, sample_weight)

    def reset_state(self) -> None:
        """Forgets all samples, if the histogram is its own."""
        if self._own is not None:
            self._own.reset_state()

    def result(self) -> Any:
        """The metric of all samples since the last reset, a scalar."""
        counts = self.histogram.counts
        return self._of(counts[0], counts[1])

    def _of(self, negative: Any, positive: Any) -> Any:
        """The metric, of the weights of each class in each bin `(NUM_BINS,)`, lowest logits first."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"name": self.name}


@register
class AUC(HistogramMetric):
    """Area under the ROC curve: how often a nodule's logit is above another's, ties counting half."""

    def __init__(self, name: str = "auc", shared: HistogramMetric | None = None) -> None:
        super().__init__(name, shared)

    def _of(self, negative: Any, positive: Any) -> Any:
        below = ops.cumsum(negative) - negative / 2
        return ops.sum(positive / ops.sum(positive) * (below / ops.sum(negative)))


@register
class AveragePrecision(HistogramMetric):
    """Mean precision over the nodules, each at the threshold that just finds it."""

    def __init__(self, name: str = "average_precision", shared: HistogramMetric | None = None) -> None:
        super().__init__(name, shared)

    def _of(self, negative: Any, positive: Any) -> Any:
        tp, called = _from_above(positive), _from_above(negative + positive)
        mean = ops.sum(positive / ops.sum(positive) * (tp / ops.maximum(called, 1e-30)))
        return ops.where(ops.sum(negative) > 0, mean, float("nan"))


@register
class SpecificityAtSensitivity(HistogramMetric):
    """The best specificity of all thresholds whose sensitivity is high enough.

    Args:
        sensitivity: High enough, 0 to 1.
        name: Its name in logs.
        shared: See `HistogramMetric`.
    """

    def __init__(
        self, sensitivity: float, name: str | None = None, shared: HistogramMetric | None = None
    ) -> None:
        super().__init__(name or f"specificity_at_sensitivity_{sensitivity:g}", shared)
        self.sensitivity = sensitivity

    def _of(self, negative: Any, positive: Any) -> Any:
        found, dismissed = _from_above(positive), ops.cumsum(negative) - negative
        return _best_at(self.sensitivity, found, ops.sum(positive), dismissed, ops.sum(negative))

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"sensitivity": self.sensitivity, "name": self.name}


@register
class SensitivityAtSpecificity(HistogramMetric):
    """The best sensitivity of all thresholds whose specificity is high enough.

    Args:
        specificity: High enough, 0 to 1.
        name: Its name in logs.
        shared: See `HistogramMetric`.
    """

    def __init__(
        self, specificity: float, name: str | None = None, shared: HistogramMetric | None = None
    ) -> None:
        super().__init__(name or f"sensitivity_at_specificity_{specificity:g}", shared)
        self.specificity = specificity

    def _of(self, negative: Any, positive: Any) -> Any:
        dismissed, found = ops.cumsum(negative), _from_above(positive) - positive
        return _best_at(self.specificity, dismissed, ops.sum(negative), found, ops.sum(positive))

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"specificity": self.specificity, "name": self.name}


class _Decision(HistogramMetric):
    """A metric of the decisions at one threshold.

    Args:
        threshold_logit: A logit above it says nodule.
        name: Its name in logs.
        shared: See `HistogramMetric`.
    """

    default_name: str

    def __init__(
        self, threshold_logit: float = 0.0, name: str | None = None, shared: HistogramMetric | None = None
    ) -> None:
        super().__init__(name or self.default_name, shared)
        self.threshold_logit = threshold_logit
        place = math.copysign(math.log1p(abs(threshold_logit) / _CORE), threshold_logit) * _BINS_PER_UNIT
        self._first_called = min(max(round(place) + NUM_BINS // 2, 0), NUM_BINS)

    def _of(self, negative: Any, positive: Any) -> Any:
        first = self._first_called
        return self._of_counts(
            ops.sum(positive[first:]),
            ops.sum(positive[:first]),
            ops.sum(negative[first:]),
            ops.sum(negative[:first]),
        )

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"threshold_logit": self.threshold_logit, "name": self.name}


@register
class Accuracy(_Decision):
    """Share of samples called rightly. At 1 in 490, always saying no has 0.998."""

    default_name = "accuracy"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        return (tp + tn) / (tp + fn + fp + tn)


@register
class BalancedAccuracy(_Decision):
    """Mean of sensitivity and specificity."""

    default_name = "balanced_accuracy"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        return (tp / (tp + fn) + tn / (tn + fp)) / 2


@register
class GMean(_Decision):
    """Geometric mean of sensitivity and specificity."""

    default_name = "gmean"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        return ops.sqrt(tp / (tp + fn) * (tn / (tn + fp)))


@register
class Precision(_Decision):
    """Share of nodules among those called one."""

    default_name = "precision"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:  # noqa: ARG002
        return tp / (tp + fp)


@register
class Recall(_Decision):
    """Share of nodules that are called one: sensitivity."""

    default_name = "recall"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:  # noqa: ARG002
        return tp / (tp + fn)


@register
class FBeta(_Decision):
    """Weighted harmonic mean of precision and sensitivity.

    Args:
        beta: How many times as much sensitivity counts as precision.
        threshold_logit: A logit above it says nodule.
        name: Its name in logs.
        shared: See `HistogramMetric`.
    """

    def __init__(
        self,
        beta: float = 1.0,
        threshold_logit: float = 0.0,
        name: str | None = None,
        shared: HistogramMetric | None = None,
    ) -> None:
        super().__init__(threshold_logit, name or f"f{beta:g}", shared)
        self.beta = beta

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:  # noqa: ARG002
        found = (1 + self.beta**2) * tp
        return found / (found + self.beta**2 * fn + fp)

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"beta": self.beta, **super().get_config()}


@register
class MCC(_Decision):
    """Matthews' correlation of decisions and labels, -1 to 1; 0 if all are called the same."""

    default_name = "mcc"

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        informedness = tp / (tp + fn) + tn / (tn + fp) - 1
        called = (tp + fp) * (tn + fn)
        scale = ops.sqrt((tp + fn) * (tn + fp) / ops.where(called > 0, called, 1.0))
        return informedness * ops.where(called > 0, scale, 0.0)


@register
class Count(_Decision):
    """How many samples of one kind there are.

    Args:
        kind: "tp", "fn", "fp" or "tn".
        threshold_logit: A logit above it says nodule.
        name: Its name in logs.
        shared: See `HistogramMetric`.
    """

    def __init__(
        self,
        kind: str,
        threshold_logit: float = 0.0,
        name: str | None = None,
        shared: HistogramMetric | None = None,
    ) -> None:
        super().__init__(threshold_logit, name or kind, shared)
        self.kind = kind

    def _of_counts(self, tp: Any, fn: Any, fp: Any, tn: Any) -> Any:
        return {"tp": tp, "fn": fn, "fp": fp, "tn": tn}[self.kind]

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`, without what is shared."""
        return {"kind": self.kind, **super().get_config()}


def streaming_metrics() -> list[HistogramMetric]:
    """New metrics for `compile`, on one histogram: those the forum recipe tracked, and what it missed.

    They have the names of the exact ones (`judging.binary.binary_metrics`).
    """
    first = Accuracy()
    return [
        first,
        BalancedAccuracy(shared=first),
        GMean(shared=first),
        FBeta(shared=first),
        MCC(shared=first),
        AUC(shared=first),
        AveragePrecision(shared=first),
        SpecificityAtSensitivity(0.5, shared=first),
        SpecificityAtSensitivity(0.9, shared=first),
        SensitivityAtSpecificity(0.9, shared=first),
        Precision(shared=first),
        Recall(shared=first),
        *(Count(kind, shared=first) for kind in ("tp", "fp", "tn", "fn")),
    ]


def _from_above(counts: Any) -> Any:
    """What lies in each bin and all above it, `(NUM_BINS,)`."""
    return ops.flip(ops.cumsum(ops.flip(counts)))


def _best_at(wanted: float, reached: Any, all_reached: Any, other: Any, all_other: Any) -> Any:
    """The largest share of `other` where `reached` has the wanted share."""
    # Float sums may fall short of a share that whole numbers meet.
    enough = reached >= wanted * (1 - 1e-6) * all_reached
    best = ops.max(ops.where(enough, other, 0.0)) / all_other
    return ops.where(all_reached > 0, best, float("nan"))
