"""What every loss class shares: it keeps its function's parameters, and computes in float32 at least."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

STANDARD = ("reduction", "name", "dtype")  # what every Keras loss takes


class Shell(keras.losses.Loss):
    """A Keras loss over a function of labels, logits and `parameters`.

    Args:
        parameters: The function's own.
        **standard: Keras' `reduction`, `name` and `dtype`, which counts as float32 where it has 16 bits:
            a mean over a batch would not fit.
    """

    def __init__(self, parameters: dict[str, Any], **standard: Any) -> None:
        standard.setdefault("name", type(self).__name__.lower())
        policy = keras.dtype_policies.get(standard.get("dtype") or keras.config.floatx())
        standard["dtype"] = "float64" if policy.compute_dtype == "float64" else "float32"
        super().__init__(**standard)
        self.parameters = parameters

    def get_config(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {**super().get_config(), "dtype": self.dtype, **self.parameters}


def at_least_float32(y_true: Any, logits: Any) -> tuple[Any, Any]:
    """Labels and logits as tensors of one type: that of the logits, but float32 for shorter ones.

    Sums and exponentials over a batch do not fit into 16 bits. Gradients come back in the logits' type.
    Labels `(batch,)` of logits `(batch, 1)` become `(batch, 1)`, as Keras' own losses have it.
    """
    logits = ops.convert_to_tensor(logits)
    if keras.backend.standardize_dtype(logits.dtype) != "float64":
        logits = ops.cast(logits, "float32")
    y_true = ops.cast(y_true, logits.dtype)
    if len(y_true.shape) + 1 == len(logits.shape) and logits.shape[-1] == 1:
        y_true = ops.expand_dims(y_true, -1)
    return y_true, logits


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), whose gradient keeps its digits near 1, where s (1 - s) has lost them."""
    return ops.exp(ops.log_sigmoid(x))
