"""How much a class weighs, from how many samples it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

EFFECTIVE_NUMBER_BETA = 0.9999


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights that let every class count as much as any other: n / (classes * n of the class).

    Args:
        counts: Samples of each class, all above 0.
    """
    numbers = np.asarray(counts, float)
    return (numbers.sum() / (len(numbers) * numbers)).tolist()


def effective_number(counts: Sequence[int], beta: float = EFFECTIVE_NUMBER_BETA) -> list[float]:
    """Weights by the effective number of samples, (1 - beta^n) / (1 - beta) (Cui et al. 2019).

    Where samples overlap, the next of a class adds less than the one before. The weights sum to the
    number of classes.

    Args:
        counts: Samples of each class, all above 0.
        beta: From 0, where all classes weigh the same, to below 1, where the weights near `balanced`.
    """
    numbers = np.asarray(counts, float)
    # beta^n - 1: the effective number up to a factor, sign included, that the sum takes out again.
    share = np.expm1(numbers * np.log(beta)) if beta > 0 else np.ones(len(numbers))
    weights = 1 / share
    return (weights * len(numbers) / weights.sum()).tolist()


WEIGHTINGS: dict[str, Callable[..., list[float]]] = {
    "balanced": balanced,
    "effective_number": effective_number,
}
