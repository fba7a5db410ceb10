"""Losses of a whole batch: a score of its soft confusion matrix.

A step at 1/2 turns probabilities into decisions, decisions into a confusion matrix, and that into a score.
The step has no gradient. A smooth one in its place gives a soft confusion matrix, and 1 - score is a loss:
with a steep sigmoid it is AnyLoss (Han et al. 2024); with the distribution function of a random threshold,
so that the matrix is the expected one, the score-oriented loss (Marchetti et al. 2022).

**A batch that lacks a class.** Where a score needs a class that the batch has no sample of, the batch counts
as though it held one of it, called rightly. So the loss is defined, never above that of the worst batch with
both classes, 0 where all is right, and its gradient still drives the class that is there to its side: without
nodules, every false alarm costs. At 1 : 490 and natural prevalence most batches are such, and only their
false alarms are felt: give every batch nodules with `sampling.positives_per_batch`.

**Several devices.** Under `tf.distribute` the matrix is summed over the replicas before it is scored, so that
the loss and its gradient are those of the global batch; on JAX a batch is global anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import keras
from keras import ops
from pydantic import Field, validate_call

from luna_cls.learning.losses.shell import Shell, at_least_float32, sigmoid

Score = Literal["accuracy", "fbeta", "gmean", "balanced_accuracy"]
Prior = Literal["uniform", "raised_cosine"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

RAMP_EPOCHS = 5
AMPLIFICATION = 73.0  # Han et al. 2024: it brings the probabilities .4 and .6 within .001 of 0 and 1
_SMALLEST = 1e-30  # a root of less has no gradient in float32

register = keras.saving.register_keras_serializable("luna_cls")


class Confusion(NamedTuple):
    """A soft confusion matrix: sums over a batch, scalars."""

    tp: Any
    fn: Any
    fp: Any
    tn: Any


def anyloss(
    y_true: Any,
    logits: Any,
    score: Score = "balanced_accuracy",
    beta: float = 1.0,
    amplification: Any = AMPLIFICATION,
    sample_weight: Any = None,
) -> Any:
    """1 - the score of decisions made by the step sigmoid(L (p - 1/2)) (Han et al. 2024).

    At L = 73 a sample decides almost wholly, and feels a gradient only for logits between about -0.75 and
    1: what is surely wrong stays so. Start with a small L and let it grow (`AnyLoss(ramp_from=...)`).

    Args:
        y_true: Labels, 0 or 1, of as many samples as `logits`, in any shape.
        logits: Of the batch, all axes being samples.
        score: Which score. For a batch that lacks a class see the module.
        beta: Of fbeta: how many times as much sensitivity counts as precision.
        amplification: L. 1 hardly parts the classes; a large one gives 1 - the score of hard decisions.
        sample_weight: Of each sample; None for 1.

    Returns:
        Loss, scalar, from 0 to 1.
    """
    y_true, logits = at_least_float32(y_true, logits)
    # p - 1/2 = tanh(logit / 2) / 2, which keeps its digits near 0.
    steep = amplification / 2 * ops.tanh(logits / 2)
    confusion = soft_confusion(y_true, sigmoid(steep), sigmoid(-steep), sample_weight)
    return one_minus_score(confusion, score, beta)


def sol(
    y_true: Any,
    logits: Any,
    score: Score = "balanced_accuracy",
    beta: float = 1.0,
    prior: Prior = "uniform",
    center: float = 0.5,
    half_width: float = 0.5,
    sample_weight: Any = None,
) -> Any:
    """1 - the score of the confusion matrix expected under a random threshold (Marchetti et al. 2022).

    A sample of probability p is called a nodule with the probability that the threshold lies below p.

    Args:
        y_true: Labels, 0 or 1, of as many samples as `logits`, in any shape.
        logits: Of the batch, all axes being samples.
        score: Which score. For a batch that lacks a class see the module.
        beta: Of fbeta: how many times as much sensitivity counts as precision.
        prior: Of the threshold: "uniform" on [0, 1], or "raised_cosine" around `center`.
        center: The middle of the raised cosine.
        half_width: Its reach to both sides; samples beyond feel no gradient.
        sample_weight: Of each sample; None for 1.

    Returns:
        Loss, scalar, from 0 to 1.
    """
    y_true, logits = at_least_float32(y_true, logits)
    if prior == "uniform":
        called, dismissed = sigmoid(logits), sigmoid(-logits)
    else:
        place = ops.clip((sigmoid(logits) - center) / half_width, -1.0, 1.0)
        called, dismissed = _raised_cosine(place), _raised_cosine(-place)
    return one_minus_score(soft_confusion(y_true, called, dismissed, sample_weight), score, beta)


def soft_confusion(y_true: Any, called: Any, dismissed: Any, sample_weight: Any = None) -> Confusion:
    """Sums up decisions, over all replicas if there are several.

    Args:
        y_true: Labels, 0 or 1, any shape.
        called: How far each sample is called a nodule, 0 to 1, same shape.
        dismissed: 1 - called, given apart so that it keeps its digits.
        sample_weight: Of each sample; None for 1.
    """
    y_true, called, dismissed = (ops.reshape(x, (-1,)) for x in (y_true, called, dismissed))
    nodule, rest = y_true, 1 - y_true
    if sample_weight is not None:
        weight = ops.reshape(ops.cast(sample_weight, y_true.dtype), (-1,))
        nodule, rest = nodule * weight, rest * weight
    sums = [ops.sum(x) for x in (nodule * called, nodule * dismissed, rest * called, rest * dismissed)]
    return Confusion(*ops.unstack(_over_replicas(ops.stack(sums)), 4))


def one_minus_score(confusion: Confusion, score: Score, beta: float = 1.0) -> Any:
    """1 - score, computed from the errors, so that a small one keeps its digits."""
    return _LOST[score](confusion, beta)


def _accuracy_lost(confusion: Confusion, _beta: float) -> Any:
    tp, fn, fp, tn = confusion
    return _share(fn + fp, tp + fn + fp + tn)


def _fbeta_lost(confusion: Confusion, beta: float) -> Any:
    tp, fn, fp, _ = confusion
    found = ops.where(tp + fn > 0, tp, 1.0)  # without nodules: one, found
    errors = beta**2 * fn + fp
    return errors / ((1 + beta**2) * found + errors)


def _gmean_lost(confusion: Confusion, _beta: float) -> Any:
    tp, fn, fp, tn = confusion
    missed, false_alarms = _share(fn, tp + fn), _share(fp, fp + tn)
    score = _share(tp, tp + fn, empty=1.0) * _share(tn, fp + tn, empty=1.0)
    return (missed + false_alarms - missed * false_alarms) / (1 + ops.sqrt(ops.maximum(score, _SMALLEST)))


def _balanced_accuracy_lost(confusion: Confusion, _beta: float) -> Any:
    tp, fn, fp, tn = confusion
    return (_share(fn, tp + fn) + _share(fp, fp + tn)) / 2


_LOST: dict[str, Callable[[Confusion, float], Any]] = {
    "accuracy": _accuracy_lost,
    "fbeta": _fbeta_lost,
    "gmean": _gmean_lost,
    "balanced_accuracy": _balanced_accuracy_lost,
}


def _share(part: Any, whole: Any, empty: float = 0.0) -> Any:
    """Part of a whole, or `empty` of nothing; its gradient is finite either way."""
    return ops.where(whole > 0, part / ops.where(whole > 0, whole, 1.0), empty)


def _raised_cosine(place: Any) -> Any:
    """Its distribution function at `place`, from -1 to 1."""
    return ops.maximum((1 + place + ops.sin(place * 3.141592653589793) / 3.141592653589793) / 2, 0.0)


def _over_replicas(sums: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return sums
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return sums
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)


class PerBatch(Shell):
    """A loss of the whole batch. Sample weights count in the confusion matrix."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss, a scalar, of labels and logits `(batch, 1)`."""
        return super().__call__(y_true if sample_weight is None else (y_true, sample_weight), y_pred)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss once for each sample, `(batch,)`: Keras would sum a scalar over replicas."""
        labels, weights = y_true if isinstance(y_true, tuple) else (y_true, None)
        return ops.broadcast_to(self._of_batch(labels, y_pred, weights), ops.shape(y_pred)[:1])

    def _of_batch(self, y_true: Any, logits: Any, sample_weight: Any) -> Any:
        raise NotImplementedError


@register
class AnyLoss(PerBatch):
    """`anyloss` as a Keras loss.

    Args:
        score: As of `anyloss`.
        beta: As of `anyloss`.
        amplification: L, at the ramp's end if there is one.
        ramp_from: L in the first epoch of a ramp; None for no ramp. `AmplificationRamp` moves it.
        ramp_epochs: After so many epochs L is `amplification`; until then it grows by the same factor
            from epoch to epoch.
        **standard: Keras' `reduction`, `name` and `dtype`.

    Raises:
        ValueError: If there is a parameter that nothing would take.
    """

    @validate_call
    def __init__(
        self,
        score: Score = "balanced_accuracy",
        beta: Positive = 1.0,
        amplification: Positive = AMPLIFICATION,
        ramp_from: Positive | None = None,
        ramp_epochs: Annotated[int, Field(ge=1)] = RAMP_EPOCHS,
        **standard: Any,
    ) -> None:
        _refuse_idle_beta(score, beta)
        if ramp_from is None and ramp_epochs != RAMP_EPOCHS:
            raise ValueError(f"ramp_epochs needs ramp_from. Received: {ramp_epochs} without.")
        ramp = {"ramp_from": ramp_from, "ramp_epochs": ramp_epochs}
        super().__init__({"score": score, "beta": beta, "amplification": amplification, **ramp}, **standard)
        self._set_to = amplification
        self._now = (
            None if ramp_from is None else keras.Variable(amplification, dtype="float32", trainable=False)
        )

    def amplification_in(self, epoch: int) -> float:
        """L in epoch `epoch`, from 0."""
        start, last = self.parameters["ramp_from"], self.parameters["amplification"]
        if start is None or epoch >= self.parameters["ramp_epochs"]:
            return last
        return start * (last / start) ** (epoch / self.parameters["ramp_epochs"])

    def start_epoch(self, epoch: int) -> bool:
        """Sets L for epoch `epoch`; says whether it has changed."""
        before, self._set_to = self._set_to, self.amplification_in(epoch)
        if self._now is None or self._set_to == before:
            return False
        self._now.assign(self._set_to)
        return True

    def _of_batch(self, y_true: Any, logits: Any, sample_weight: Any) -> Any:
        now = self.parameters["amplification"] if self._now is None else self._now
        return anyloss(y_true, logits, self.parameters["score"], self.parameters["beta"], now, sample_weight)


@register
class SOL(PerBatch):
    """`sol` as a Keras loss.

    Raises:
        ValueError: If the raised cosine reaches beyond [0, 1], or there is a parameter that nothing would
            take.
    """

    @validate_call
    def __init__(
        self,
        score: Score = "balanced_accuracy",
        beta: Positive = 1.0,
        prior: Prior = "uniform",
        center: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        half_width: Annotated[float, Field(gt=0, le=0.5)] = 0.5,
        **standard: Any,
    ) -> None:
        _refuse_idle_beta(score, beta)
        if prior == "uniform" and (center, half_width) != (0.5, 0.5):
            raise ValueError(
                "center and half_width need the prior 'raised_cosine'. "
                f"Received: {center} and {half_width} with '{prior}'."
            )
        if prior == "raised_cosine" and abs(center - 0.5) + half_width > 0.5 + 1e-9:
            raise ValueError(
                "center ± half_width must lie in [0, 1], where thresholds are. "
                f"Received: {center} ± {half_width}."
            )
        parameters = {"prior": prior, "center": center, "half_width": half_width}
        super().__init__({"score": score, "beta": beta, **parameters}, **standard)

    def _of_batch(self, y_true: Any, logits: Any, sample_weight: Any) -> Any:
        return sol(y_true, logits, **self.parameters, sample_weight=sample_weight)


def _refuse_idle_beta(score: str, beta: float) -> None:
    if beta != 1 and score != "fbeta":
        raise ValueError(f"beta is of the score 'fbeta'. Received: {beta} with '{score}'.")
