"""Losses of each sample alone: a function each, and the Keras class over it.

With z the logit, signed so that positive is right, the true class has the probability p = sigmoid(z), and
its cross-entropy is softplus(-z). Everything is computed from z, never from a rounded p: values and
gradients keep their digits at any logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import keras
from keras import ops
from pydantic import Field, validate_call

from luna_cls.learning.losses.shell import Shell, at_least_float32, sigmoid

Focus = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
ClassWeights = Annotated[Sequence[Weight], Field(min_length=2)]

ALPHA = 0.25  # Lin et al. 2017

register = keras.saving.register_keras_serializable("luna_cls")


def bce(y_true: Any, logits: Any, label_smoothing: float = 0.0, positive_weight: float = 1.0) -> Any:
    """Binary cross-entropy.

    -y log(p) - (1 - y) log(1 - p), with p = sigmoid(logit), times the positive weight where the label is 1.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`, `(..., 1)` for nodules.
        logits: Of the same shape.
        label_smoothing: Labels are drawn this far, from 0 to 1, towards 1/2.
        positive_weight: How many samples of class 0 one of class 1 weighs, whatever the smoothing.

    Returns:
        Loss `(...)`, the mean over the last axis.
    """
    y_true, logits = at_least_float32(y_true, logits)
    target = y_true * (1 - label_smoothing) + label_smoothing / 2
    loss = target * ops.softplus(-logits) + (1 - target) * ops.softplus(logits)
    return ops.mean((1 + (positive_weight - 1) * y_true) * loss, axis=-1)


def mse(y_true: Any, logits: Any) -> Any:
    """Squared error of the probability, (sigmoid(logit) - y)²: the Brier score.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`.
        logits: Of the same shape.

    Returns:
        Loss `(...)`, the mean over the last axis.
    """
    y_true, logits = at_least_float32(y_true, logits)
    return ops.mean(ops.square(sigmoid(-_margin(y_true, logits))), axis=-1)


def focal(
    y_true: Any,
    logits: Any,
    gamma: float = 2.0,
    alpha: float = ALPHA,
    apply_class_balancing: bool = False,
) -> Any:
    """Focal loss (Lin et al. 2017): cross-entropy times (1 - p)^gamma, p being the true class's.

    It is what `keras.losses.BinaryFocalCrossentropy(from_logits=True)` means; that one goes through the
    probability, clips it, and has NaN gradients for sure samples where gamma is below 1.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`.
        logits: Of the same shape.
        gamma: How much easy samples are discounted; 0 gives cross-entropy.
        alpha: Weight of class 1, with 1 - alpha for class 0, if `apply_class_balancing`.
        apply_class_balancing: Whether classes are weighted.

    Returns:
        Loss `(...)`, the mean over the last axis.
    """
    y_true, logits = at_least_float32(y_true, logits)
    z = _margin(y_true, logits)
    loss = _error_power(z, gamma) * ops.softplus(-z)
    if apply_class_balancing:
        loss = loss * (y_true * alpha + (1 - y_true) * (1 - alpha))
    return ops.mean(loss, axis=-1)


def cefl(y_true: Any, logits: Any, gamma: float = 2.0, *, categorical: bool = False) -> Any:
    """Cross-entropy for samples that are wrong, focal loss for those that are right (Wang 2020, eq. 9).

    (1 - p) CE + p FL, where FL is CE times (1 - p)^gamma and p the true class's probability.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`; one-hot if `categorical`.
        logits: Of the same shape; of a softmax if `categorical`, else each of a sigmoid of its own.
        gamma: As of `focal`; 0 gives cross-entropy.
        categorical: Whether the classes exclude each other.

    Returns:
        Loss `(...)`.

    Raises:
        ValueError: If `categorical` and there are fewer than two classes.
    """
    return _from_ce_to_focal(y_true, logits, gamma, 1, categorical=categorical)


def cefl2(y_true: Any, logits: Any, gamma: float = 2.0, *, categorical: bool = False) -> Any:
    """CEFL with a sharper turn from one to the other (Wang 2020, eq. 11).

    ((1 - p)² CE + p² FL) / ((1 - p)² + p²), where FL is CE times (1 - p)^gamma and p the true class's
    probability.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`; one-hot if `categorical`.
        logits: Of the same shape; of a softmax if `categorical`, else each of a sigmoid of its own.
        gamma: As of `focal`; 0 gives cross-entropy.
        categorical: Whether the classes exclude each other.

    Returns:
        Loss `(...)`.

    Raises:
        ValueError: If `categorical` and there are fewer than two classes.
    """
    # p²/(p² + (1 - p)²) = sigmoid(2 z)
    return _from_ce_to_focal(y_true, logits, gamma, 2, categorical=categorical)


def _from_ce_to_focal(y_true: Any, logits: Any, gamma: float, turn: int, *, categorical: bool) -> Any:
    """CE and FL with the weights sigmoid(-turn z) and sigmoid(turn z)."""
    y_true, logits = at_least_float32(y_true, logits)
    z = _margin(y_true, logits, categorical=categorical)
    share = sigmoid(-turn * z) + sigmoid(turn * z) * _error_power(z, gamma)
    return ops.mean(share * ops.softplus(-z), axis=-1)


def _margin(y_true: Any, logits: Any, *, categorical: bool = False) -> Any:
    """z, `(..., classes)`, or `(..., 1)` if `categorical`: there, the true logit above all others' sum."""
    if not categorical:
        return (2 * y_true - 1) * logits
    if logits.shape[-1] < 2:
        raise ValueError(
            f"categorical needs two classes at least, in the last axis. Received: {tuple(logits.shape)}."
        )
    is_true = y_true > 0.5
    others = ops.logsumexp(ops.where(is_true, -float("inf"), logits), axis=-1, keepdims=True)
    return ops.sum(ops.where(is_true, logits, 0.0), axis=-1, keepdims=True) - others


def _error_power(z: Any, gamma: float) -> Any:
    """(1 - p)^gamma, without a root of 0 in its gradient."""
    return ops.exp(-gamma * ops.softplus(z))


class PerSample(Shell):
    """A loss of each sample alone, whose classes can be weighted.

    Args:
        parameters: The function's own.
        class_weights: A weight for each class, from class 0 on; None for 1 each. The loss of a batch is
            the sum of its weighted samples' over their number.
        **standard: Keras' `reduction`, `name` and `dtype`.
    """

    function: ClassVar[Callable[..., Any]]

    def __init__(
        self, parameters: dict[str, Any], class_weights: Sequence[float] | None, **standard: Any
    ) -> None:
        super().__init__(parameters, **standard)
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each sample, `(batch,)`, of labels and logits `(batch, 1)` or `(batch, classes)`."""
        y_true, logits = at_least_float32(y_true, y_pred)
        loss = type(self).function(y_true, logits, **self.parameters)
        if self.class_weights is None:
            return loss
        of_each = y_true if y_true.shape[-1] > 1 else ops.concatenate([1 - y_true, y_true], axis=-1)
        return loss * ops.sum(of_each * ops.convert_to_tensor(self.class_weights, loss.dtype), axis=-1)

    @property
    def is_proper(self) -> bool:
        """Whether it is least where the probability is the true one, up to the weights of the classes."""
        return True

    @property
    def weight_of_a_nodule(self) -> float:
        """How many samples of class 0 one of class 1 weighs, of two classes."""
        negative, positive = self.class_weights or (1.0, 1.0)
        return positive / negative

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {**super().get_config(), "class_weights": self.class_weights}


@register
class BCE(PerSample):
    """`bce` as a Keras loss."""

    function = staticmethod(bce)

    @validate_call
    def __init__(
        self,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        positive_weight: Weight = 1.0,
        class_weights: ClassWeights | None = None,
        **standard: Any,
    ) -> None:
        parameters = {"label_smoothing": label_smoothing, "positive_weight": positive_weight}
        super().__init__(parameters, class_weights, **standard)

    @property
    def is_proper(self) -> bool:
        """Unless labels are smoothed."""
        return self.parameters["label_smoothing"] == 0

    @property
    def weight_of_a_nodule(self) -> float:
        """The positive weight, times that of the classes."""
        return self.parameters["positive_weight"] * super().weight_of_a_nodule


@register
class MSE(PerSample):
    """`mse` as a Keras loss."""

    function = staticmethod(mse)

    @validate_call
    def __init__(self, class_weights: ClassWeights | None = None, **standard: Any) -> None:
        super().__init__({}, class_weights, **standard)


@register
class Focal(PerSample):
    """`focal` as a Keras loss.

    Raises:
        ValueError: If there is an alpha that nothing would take.
    """

    function = staticmethod(focal)

    @validate_call
    def __init__(
        self,
        gamma: Focus = 2.0,
        alpha: Share = ALPHA,
        apply_class_balancing: bool = False,
        class_weights: ClassWeights | None = None,
        **standard: Any,
    ) -> None:
        if alpha != ALPHA and not apply_class_balancing:
            raise ValueError(f"alpha counts with apply_class_balancing only. Received: {alpha} without.")
        parameters = {"gamma": gamma, "alpha": alpha, "apply_class_balancing": apply_class_balancing}
        super().__init__(parameters, class_weights, **standard)

    @property
    def is_proper(self) -> bool:
        """Without focus only."""
        return self.parameters["gamma"] == 0

    @property
    def weight_of_a_nodule(self) -> float:
        """That of alpha, times that of the classes."""
        alpha = self.parameters["alpha"] if self.parameters["apply_class_balancing"] else 0.5
        return alpha / (1 - alpha) * super().weight_of_a_nodule


@register
class CEFL(PerSample):
    """`cefl` as a Keras loss."""

    function = staticmethod(cefl)

    @validate_call
    def __init__(
        self,
        gamma: Focus = 2.0,
        categorical: bool = False,
        class_weights: ClassWeights | None = None,
        **standard: Any,
    ) -> None:
        super().__init__({"gamma": gamma, "categorical": categorical}, class_weights, **standard)

    @property
    def is_proper(self) -> bool:
        """Without focus only."""
        return self.parameters["gamma"] == 0


@register
class CEFL2(CEFL):
    """`cefl2` as a Keras loss."""

    function = staticmethod(cefl2)
