"""The losses, by name. All take logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import keras
from keras import ops
from pydantic import Field

from luna_cls.learning.naming import build


def bce(label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> keras.losses.Loss:
    """Binary cross-entropy of logits `(batch, 1)`.

    Args:
        label_smoothing: Labels are drawn this far, from 0 to 1, towards 1/2.
    """
    return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)


def focal(
    gamma: Annotated[float, Field(ge=0)] = 2.0,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
    apply_class_balancing: bool = False,
) -> keras.losses.Loss:
    """Focal loss of logits `(batch, 1)` (Lin et al. 2017), as `keras.losses.BinaryFocalCrossentropy`.

    Args:
        gamma: How much easy examples are discounted; 0 gives cross-entropy.
        alpha: Weight of class 1, with 1 - alpha for class 0, if `apply_class_balancing`.
        apply_class_balancing: Whether classes are weighted.
    """
    return FocalCrossentropy(gamma, alpha, apply_class_balancing)


def focal_crossentropy(
    y_true: Any, logits: Any, gamma: float, alpha: float = 0.25, apply_class_balancing: bool = False
) -> Any:
    """Focal loss of each sample, from logits alone.

    With z the logit, signed so that positive is right, the probability of the true class is
    sigmoid(z), and the loss (1 - sigmoid(z))^gamma * -log(sigmoid(z)) is
    exp(-gamma * softplus(z)) * softplus(-z). Keras goes through the probability instead, clips it, and
    has NaN gradients for sure samples where gamma is below 1.

    Args:
        y_true: Labels, 0 or 1, `(..., classes)`.
        logits: Of the same shape.
        gamma: As of `focal`.
        alpha: As of `focal`.
        apply_class_balancing: As of `focal`.

    Returns:
        Loss `(...)`, the mean over the last axis.
    """
    logits = ops.convert_to_tensor(logits)
    y_true = ops.cast(y_true, logits.dtype)
    z = (2 * y_true - 1) * logits
    loss = ops.exp(-gamma * ops.softplus(z)) * ops.softplus(-z)
    if apply_class_balancing:
        loss = loss * (y_true * alpha + (1 - y_true) * (1 - alpha))
    return ops.mean(loss, axis=-1)


@keras.saving.register_keras_serializable("luna_cls")
class FocalCrossentropy(keras.losses.Loss):
    """`focal_crossentropy` as a Keras loss."""

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float = 0.25,
        apply_class_balancing: bool = False,
        reduction: str = "sum_over_batch_size",
        name: str = "focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.gamma, self.alpha, self.apply_class_balancing = gamma, alpha, apply_class_balancing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each sample, `(batch,)`, of labels and logits `(batch, 1)`."""
        return focal_crossentropy(y_true, y_pred, self.gamma, self.alpha, self.apply_class_balancing)

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "alpha": self.alpha,
            "apply_class_balancing": self.apply_class_balancing,
        }


LOSSES: dict[str, Callable[..., keras.losses.Loss]] = {"bce": bce, "focal": focal}


def get(name: str, **parameters: Any) -> keras.losses.Loss:
    """A loss by name.

    Args:
        name: One of `LOSSES`.
        **parameters: Its own parameters.

    Raises:
        InputError: If the name or a parameter is unknown or a value does not fit; lists the right ones.
    """
    return build("loss", LOSSES, name, parameters)
