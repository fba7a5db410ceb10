"""The losses, by name. All take logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import keras
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
    """Focal loss of logits `(batch, 1)` (Lin et al. 2017).

    Args:
        gamma: How much easy examples are discounted; 0 gives cross-entropy.
        alpha: Weight of class 1, with 1 - alpha for class 0, if `apply_class_balancing`.
        apply_class_balancing: Whether classes are weighted.
    """
    return keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=apply_class_balancing, alpha=alpha, gamma=gamma, from_logits=True
    )


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
