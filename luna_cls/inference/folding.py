"""Networks as functions from cubes to logits."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray


def fast(model: keras.Model) -> Callable[[NDArray[np.int16]], NDArray[np.float32]]:
    """A function from int16 HU `(n, z, y, x, 1)` to logits `(n,)`."""
    return lambda cubes: np.asarray(model.predict_on_batch(cubes)).reshape(-1)
