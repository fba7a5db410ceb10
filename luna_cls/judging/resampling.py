"""Other draws of the same scans: what a bootstrap over scans rests on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError

RESAMPLES = 1000
SEED = 0


def scan_weights(num_scans: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.int32]:
    """How often every scan is drawn, as many scans with replacement as there are, again and again.

    Scans, not candidates, are drawn: what one patient shows is not independent.

    Args:
        num_scans: How many there are.
        resamples: How many draws.
        seed: Same seed, same draws.

    Returns:
        int32 `(resamples, num_scans)`; every row sums to `num_scans`.

    Raises:
        InputError: If there are fewer than two resamples, or no scan.
    """
    if resamples < 2 or num_scans < 1:
        raise InputError(
            f"A bootstrap takes 2 resamples or more, of 1 scan or more. Received: {resamples} resamples of "
            f"{num_scans} scans."
        )
    draws = np.random.default_rng(seed).multinomial(num_scans, np.full(num_scans, 1 / num_scans), resamples)
    return draws.astype(np.int32)


def interval_95(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle 95 % of values `(resamples, ...)`, without resamples where one is not defined.

    Returns:
        float64 `(2, ...)`, lower and upper bound; NaN where no resample is defined, or all are the same: what
        never differs here may differ elsewhere.
    """
    defined = values[np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]
    if not len(defined):
        return np.full((2, *values.shape[1:]), np.nan)
    varies = np.ptp(defined, axis=0) > 1e-12
    return np.where(varies, np.percentile(defined, [2.5, 97.5], axis=0), np.nan)
