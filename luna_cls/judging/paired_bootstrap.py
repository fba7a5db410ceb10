"""How much two systems differ, by what the same draws of the scans, and the same seeds, make of both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import t

Floats = NDArray[np.float64]

POWER = 0.8
MOST_SEEDS = 100_000  # of which it is told how many are needed
_ROUNDING = 1e-12  # far below what one candidate changes
_LEAST_P = 1e-300
_SLACK = 1e-3  # of a logarithm, for rounding where nearly all is of one chance


@dataclass(frozen=True)
class Difference:
    """A metric of one system less that of another, on the same scans; of several seeds, the mean over them.

    Two chances are in it: which scans were tested, and which seeds were trained. Each alone has an interval
    of Student's with its standard error, about the difference that was seen; the squares of their half widths
    are added. With one seed it is the interval over scans.

    One seed, over scans. In simulations of middling detectors, 1,000 comparisons each of 30, 100 and 300
    scans, it missed the true difference in CPM in 4 to 6 %, the percentile interval in 3 to 4 %, the
    reflected one in 5 to 8 %, the bias-corrected and accelerated one in 6 to 8 %: a CPM hangs on a few false
    positives and does not change smoothly, as the last needs. It misses in fewer where both detectors are
    nearly perfect: in 1 to 3 %, with strong ones on 100 scans.

    Several seeds. A scan may trouble one training and not the next; that shows in the spread over seeds, and
    so is left out of the error by scans, in which it would count twice. In simulations of middling detectors,
    1,000 comparisons each of 3 and 5 seeds on 30 and 100 scans, it claimed a difference that is none in 2 to
    4 % by CPM and in 1 to 4 % by AUC; scans alone, of three seeds on 30, in a quarter to two thirds. The most
    were found with normal differences, 40,000 each of 2 to 10 seeds, 10 to 300 scans and all shares of the
    two chances and of both together: 5.1 % at a level of 5 %, and 0.6 % at the 0.5 % that the first of ten
    pairs is held to; the fewest, where scans trouble single trainings alone, 1 % with two seeds, 2 % with
    three and 3 % with five. One standard error with Welch's and Satterthwaite's degrees of freedom was tried:
    where nearly all is by seeds it claimed 12.5, 8.0 and 5.9 % with two, three and five of them at 5 %, and
    6, 2.7 and 1.1 % at 0.5 %, so that among five equal systems of three seeds a better one was named in 21 %
    of 1,500 comparisons, here in 3 %. The price is power: with few seeds and many pairs a difference must be
    large against its error, which more seeds lower fastest.

    Args:
        difference: As seen on all scans; NaN where the metric is not defined.
        scan_error: Standard error by the scans, of what all seeds have in common: with one seed the standard
            deviation over draws of the scans. NaN, so that there is no interval, where all draws show the
            same: what never differs here may differ elsewhere.
        num_scans: Scans that it was seen on, two or more.
        seed_error: Standard deviation over seeds of the difference, by the root of their number.
        num_seeds: How many seeds each system was trained from.

    Sources: Obuchowski & Rockette (1995), Communications in Statistics, Simulation and Computation 24:285,
        for readers and cases, which here are seeds and scans; Zou & Donner (2008), Statistics in Medicine
        27:1693, for the sum of squares.
    """

    difference: float
    scan_error: float
    num_scans: int
    seed_error: float = 0.0
    num_seeds: int = 1

    @property
    def standard_error(self) -> float:
        """By scans and seeds together."""
        return float(np.hypot(self.scan_error, self.seed_error))

    @property
    def interval_95(self) -> tuple[float, float]:
        """Holds the true difference 95 times in 100; NaN where there is none."""
        half = self._half_width(lambda freedom: t.isf(0.025, freedom))
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Two-sided, of no difference: below 0.05 where the interval leaves out 0."""
        if self.difference == 0:
            return 1.0
        distance = abs(self.difference)
        of_freedom = [self.num_scans - 1] if self.scan_error else []
        of_freedom += [self.num_seeds - 1] if self.seed_error else []
        # Of both chances together it lies between what it would be if all were of the one or of the other.
        low, high = (
            bound(2 * float(t.sf(distance / self.standard_error, freedom)) for freedom in of_freedom)
            for bound in (min, max)
        )
        low = max(low, _LEAST_P)
        if not low < high:
            return high

        def too_wide(log_p: float) -> float:
            return self._half_width(lambda freedom: t.isf(np.exp(log_p) / 2, freedom)) - distance

        bounds = np.log(low) - _SLACK, min(np.log(high) + _SLACK, 0.0)
        return float(np.exp(brentq(too_wide, *bounds, xtol=1e-10)))

    def scans_needed(self, level: float = 0.05) -> int | None:
        """Scans that would show a difference as large as was seen, four times in five, with these seeds.

        Args:
            level: Two-sided, at which it is to be significant.

        Returns:
            That many, to two digits, as scans of the same kind; None if nothing was seen to differ, or if
            more seeds are what it takes.
        """
        return self._needed(level)[0]

    def seeds_needed(self, level: float = 0.05) -> int | None:
        """Seeds that would show a difference as large as was seen, four times in five, with these scans.

        Args:
            level: Two-sided, at which it is to be significant.

        Returns:
            That many, to two digits; None if nothing was seen to differ, if more scans are what it takes, or
            if there is one seed.
        """
        return self._needed(level)[1]

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        return {
            "difference": self.difference,
            "interval_95": self.interval_95,
            "p": self.p,
            "scan_error": self.scan_error,
            "seed_error": self.seed_error if self.num_seeds > 1 else None,
        }

    def _half_width(self, errors: Callable[[int], float]) -> float:
        """Of an interval that takes so many standard errors, by the degrees of freedom."""
        by_scans = errors(self.num_scans - 1) * self.scan_error
        if self.seed_error == 0:
            return float(by_scans)
        return float(np.hypot(by_scans, errors(self.num_seeds - 1) * self.seed_error))

    def _needed(self, level: float) -> tuple[int | None, int | None]:
        """Scans or seeds that are needed: those with the larger error, if more of them suffice."""
        if not self.difference or not np.isfinite(self.standard_error):
            return None, None

        def errors(number: int) -> float:
            """As many standard errors as lie between 0 and what is seen four times in five."""
            return float(t.isf(level / 2, number - 1) + t.ppf(POWER, number - 1))

        by_scans = (errors(self.num_scans) * self.scan_error / self.difference) ** 2
        if self.num_seeds == 1:
            return _to_two_digits(self.num_scans * by_scans), None
        one_seed = self.num_seeds * (self.seed_error / self.difference) ** 2

        def is_shown(seeds: int) -> bool:
            return one_seed / seeds * errors(seeds) ** 2 + by_scans <= 1

        seeds = bisect_left(range(MOST_SEEDS), True, lo=2, key=is_shown)
        by_seeds = one_seed / self.num_seeds * errors(self.num_seeds) ** 2
        more_scans = _to_two_digits(self.num_scans * by_scans / (1 - by_seeds)) if by_seeds < 1 else None
        more_seeds = _to_two_digits(seeds) if seeds < MOST_SEEDS else None
        if more_scans and (more_seeds is None or self.scan_error >= self.seed_error):
            return more_scans, None
        return None, more_seeds


def paired_difference(values_a: ArrayLike, values_b: ArrayLike, num_scans: int) -> Difference:
    """Compares a metric of two systems.

    Args:
        values_a: `(1 + resamples,)`: of all scans as they are, then of each draw of them. Of several seeds
            `(seeds, 1 + resamples)`. A draw where a metric is not defined is left out.
        values_b: Likewise, of the same draws; row by row of the same seeds.
        num_scans: How many there are.
    """
    difference = np.atleast_2d(np.asarray(values_a, float) - np.asarray(values_b, float))
    difference[np.abs(difference) < _ROUNDING] = 0.0
    seen, drawn = difference[:, 0], difference[:, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    num_seeds = len(seen)
    of_mean = drawn.mean(axis=0) if num_seeds > 1 else drawn[0]
    spread = float(of_mean.std(ddof=1)) if len(of_mean) > 1 else 0.0
    scan_error = spread if spread > _ROUNDING else np.nan
    if num_seeds == 1:
        return Difference(float(seen[0]), scan_error, num_scans)
    mean = float(seen.mean())
    mean = 0.0 if abs(mean) < _ROUNDING else mean
    seed_error = float(seen.std(ddof=1) / np.sqrt(num_seeds))
    if seed_error > _ROUNDING and np.isfinite(scan_error):
        # What is common to seeds: the mean covariance of two of them.
        of_each = float(drawn.var(axis=1, ddof=1).mean())
        scan_error = float(np.sqrt(max(num_seeds * spread**2 - of_each, 0.0) / (num_seeds - 1)))
    return Difference(mean, scan_error, num_scans, seed_error if seed_error > _ROUNDING else 0.0, num_seeds)


def _to_two_digits(number: float) -> int:
    unit = 10 ** max(0, int(np.floor(np.log10(max(number, 1)))) - 1)
    return int(np.ceil(number / unit)) * unit
