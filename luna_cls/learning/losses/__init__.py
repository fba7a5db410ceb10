"""The losses, by name. All take logits; all are written in keras.ops, for TensorFlow, JAX and torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luna_cls.errors import InputError
from luna_cls.learning.losses.per_sample import BCE, CEFL, CEFL2, MSE, Focal, PerSample
from luna_cls.learning.losses.shell import STANDARD
from luna_cls.learning.losses.soft_confusion import SOL, AnyLoss, PerBatch
from luna_cls.learning.losses.weighting import EFFECTIVE_NUMBER_BETA, WEIGHTINGS
from luna_cls.learning.naming import build

__all__ = ["BCE", "CEFL", "CEFL2", "LOSSES", "MSE", "SOL", "AnyLoss", "Focal", "PerBatch", "PerSample", "get"]

LOSSES: dict[str, type[PerSample | PerBatch]] = {
    "bce": BCE,
    "mse": MSE,
    "focal": Focal,
    "cefl": CEFL,
    "cefl2": CEFL2,
    "anyloss": AnyLoss,
    "sol": SOL,
}


def get(
    name: str,
    class_counts: Sequence[int] | None = None,
    natural_weights: Sequence[float] = (1.0, 1.0),
    /,
    **parameters: Any,
) -> PerSample | PerBatch:
    """A loss by name.

    Args:
        name: One of `LOSSES`.
        class_counts: Training samples of each class, from class 0 on, for weights that follow from them.
        natural_weights: What a sample of each class would weigh to undo the sampling (`Plan`): weights
            that follow from counts are multiplied by it, so that nothing is balanced twice.
        **parameters: Its own parameters. The `class_weights` of a loss of each sample may also be
            "balanced" or "effective_number", with `effective_number_beta` beside it.

    Raises:
        InputError: If the name or a parameter is unknown or a value does not fit; lists the right ones.
    """
    if _is_per_sample(name):
        parameters = _with_counted_weights(class_counts, natural_weights, parameters)
    return build("loss", LOSSES, name, parameters, hidden=STANDARD)


def _is_per_sample(name: str) -> bool:
    return name in LOSSES and issubclass(LOSSES[name], PerSample)


def _with_counted_weights(
    class_counts: Sequence[int] | None, natural_weights: Sequence[float], parameters: dict[str, Any]
) -> dict[str, Any]:
    how = parameters.get("class_weights")
    if how != "effective_number" and "effective_number_beta" in parameters:
        raise InputError(
            f"effective_number_beta goes with class_weights 'effective_number'. Received: {how!r}."
        )
    if not isinstance(how, str):
        return parameters
    if how not in WEIGHTINGS:
        raise InputError(
            f"Unknown class_weights '{how}'. Known: {', '.join(WEIGHTINGS)}; or a list of one weight a class."
        )
    if class_counts is None:
        raise InputError(f"class_weights '{how}' needs class_counts, the training samples of each class.")
    rest = {key: value for key, value in parameters.items() if key != "class_weights"}
    options = {}
    if how == "effective_number":
        beta = rest.pop("effective_number_beta", EFFECTIVE_NUMBER_BETA)
        if not isinstance(beta, int | float) or not 0 <= beta < 1:
            raise InputError(f"effective_number_beta must lie in [0, 1). Received: {beta!r}.")
        options = {"beta": beta}
    weights = WEIGHTINGS[how](class_counts, **options)
    return {**rest, "class_weights": [a * b for a, b in zip(weights, natural_weights, strict=True)]}
