"""Which place each of several systems takes, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

_DECIMALS = 12  # far below what one candidate changes
_SEEDS_DRAWN = 1  # sets this stream of random numbers apart from that of the scans


class Rank(NamedTuple):
    """A place among several systems, 1 for the best; of equals each has the better place.

    Args:
        rank: By the metric as seen, mean over seeds.
        interval_95: The places that the middle 95 % of draws lie between; NaN if no draw tells.
        first: The share of draws in which it is first, of equals divided among them; NaN likewise.
    """

    rank: int
    interval_95: tuple[float, float]
    first: float

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        return self._asdict()


def ranks(values: Mapping[str, Floats], seed: int) -> dict[str, Rank]:
    """Ranks systems by a metric of which more is better.

    Of several seeds, both are drawn: the scans, and the seeds, the same for all systems. As the mean over so
    few seeds varies too little when they are drawn with replacement, how far it moves is widened by the root
    of S / (S - 1). What a scan does to one training alone is in both, so that places are rather less sure
    than they might be.

    Args:
        values: `(seeds, 1 + resamples)` by system: of all scans as they are, then of each draw of them. A
            draw where some system's is not defined is left out.
        seed: Of the draws of seeds.
    """
    of_all = np.stack(list(values.values()))
    seen, drawn = of_all[:, :, 0], of_all[:, :, 1:].mean(axis=1)
    num_seeds = seen.shape[1]
    if num_seeds > 1:
        random = np.random.default_rng([seed, _SEEDS_DRAWN])
        picks = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), drawn.shape[1]) / num_seeds
        moved = seen @ picks.T - seen.mean(axis=1, keepdims=True)
        drawn = drawn + np.sqrt(num_seeds / (num_seeds - 1)) * moved
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    places = _places(seen.mean(axis=1))
    if not drawn.shape[1]:
        return {
            name: Rank(int(place), (np.nan, np.nan), np.nan)
            for name, place in zip(values, places, strict=True)
        }
    of_draws = _places(drawn)
    bounds = np.percentile(of_draws, [2.5, 97.5], axis=1, method="inverted_cdf").T.tolist()
    is_first = of_draws == 1
    first = (is_first / is_first.sum(axis=0)).mean(axis=1)
    return {
        name: Rank(int(place), (int(low), int(high)), float(share))
        for name, place, (low, high), share in zip(values, places, bounds, first, strict=True)
    }


def _places(metric: Floats) -> Floats:
    """Of `(systems, ...)` the place of each, 1 for the highest."""
    return rankdata(-metric.round(_DECIMALS), method="min", axis=0)
