"""How much two systems differ, by what the same draws of the scans make of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]

POWER = 0.8
_ROUNDING = 1e-12  # far below what one candidate changes


@dataclass(frozen=True)
class Difference:
    """A metric of one system less that of another, on the same scans.

    The interval is Student's, with the bootstrap's standard error, about the difference that was seen. In
    simulations of middling detectors, 1,000 comparisons each of 30, 100 and 300 scans, it missed the true
    difference in CPM in 4 to 6 %, the percentile interval in 3 to 4 %, the reflected one in 5 to 8 %, the
    bias-corrected and accelerated one in 6 to 8 %: a CPM hangs on a few false positives and does not change
    smoothly, as the last needs. It misses in fewer where both detectors are nearly perfect: in 1 to 3 %, with
    strong ones on 100 scans.

    Args:
        difference: As seen on all scans; NaN where the metric is not defined.
        standard_error: Its standard deviation over draws of the scans; NaN, so that there is no interval,
            where all draws show the same: what never differs here may differ elsewhere.
        num_scans: Scans that it was seen on, two or more.
    """

    difference: float
    standard_error: float
    num_scans: int

    @property
    def interval_95(self) -> tuple[float, float]:
        """Holds the true difference 95 times in 100; NaN where there is none."""
        half = float(t.isf(0.025, self.num_scans - 1)) * self.standard_error
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Two-sided, of no difference: below 0.05 where the interval leaves out 0."""
        if self.difference == 0:
            return 1.0
        return float(2 * t.sf(abs(self.difference) / self.standard_error, self.num_scans - 1))

    def scans_needed(self, level: float = 0.05) -> int | None:
        """Scans that would show a difference as large as was seen, four times in five.

        Args:
            level: Two-sided, at which it is to be significant.

        Returns:
            That many, to two digits, as scans of the same kind; None if nothing was seen to differ.
        """
        if not self.difference or not np.isfinite(self.standard_error):
            return None
        errors = t.isf(level / 2, self.num_scans - 1) + t.ppf(POWER, self.num_scans - 1)
        return _to_two_digits(self.num_scans * (errors * self.standard_error / self.difference) ** 2)

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        return {"difference": self.difference, "interval_95": self.interval_95, "p": self.p}


def paired_difference(values_a: Floats, values_b: Floats, num_scans: int) -> Difference:
    """Compares a metric of two systems.

    Args:
        values_a: `(1 + resamples,)`: of all scans as they are, then of each draw of them. A draw where
            either metric is not defined is left out.
        values_b: Likewise, of the same draws.
        num_scans: How many there are.
    """
    difference = np.asarray(values_a, float) - np.asarray(values_b, float)
    difference[np.abs(difference) < _ROUNDING] = 0.0
    drawn = difference[1:][np.isfinite(difference[1:])]
    spread = float(drawn.std(ddof=1)) if len(drawn) > 1 else 0.0
    return Difference(float(difference[0]), spread if spread > _ROUNDING else np.nan, num_scans)


def _to_two_digits(number: float) -> int:
    unit = 10 ** max(0, int(np.floor(np.log10(max(number, 1)))) - 1)
    return int(np.ceil(number / unit)) * unit
