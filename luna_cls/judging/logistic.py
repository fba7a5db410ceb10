"""Logistic regression on one or two features: what calibration is measured and mended with."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from luna_cls.errors import InputError

Floats = NDArray[np.float64]

PRIOR_DEVIATION = 10.0
_MAX_STEPS = 200
_ENOUGH = 1e-12  # nats that another step would gain


def check_classes(labels: NDArray[np.int64], scores: Floats) -> None:
    """Refuses what no calibration can be fitted to.

    Raises:
        InputError: If the shapes differ, a score is not finite, or a class is missing.
    """
    if labels.shape != scores.shape or labels.ndim != 1:
        raise InputError(
            "Labels and logits must be as many, in one row. "
            f"Received: shapes {labels.shape} and {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} logits are not finite.")
    if not np.isin(labels, (0, 1)).all():
        raise InputError("A label is 1 for a nodule, 0 for the rest. Received others.")
    nodules = int(labels.sum())
    if not 0 < nodules < len(labels):
        raise InputError(
            "A calibration needs nodules and others. "
            f"Received: {nodules} nodules among {len(labels)} candidates."
        )


def fit_logistic(
    labels: NDArray[np.int64],
    features: Floats,
    least: float = -np.inf,
    *,
    offset: Floats | None = None,
    intercept: bool = True,
) -> tuple[Floats, float]:
    """The most likely coefficients of `P(nodule) = expit(features @ coefficients + intercept + offset)`.

    Newton's method. So that the answer is finite where a feature separates the classes, each coefficient,
    times the spread of its feature, has a normal prior of deviation 10. Where the data settle the matter,
    that moves it by about a hundredth of its standard error.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest; both are there.
        features: float64 `(n, k)`, finite; k is 0, 1 or 2.
        least: No coefficient is smaller.
        offset: `(n,)`, or None for 0.
        intercept: Whether there is one, else 0.

    Returns:
        Coefficients `(k,)`, and the intercept.
    """
    best: tuple[float, Floats, float] | None = None
    known = np.zeros(len(labels)) if offset is None else offset
    columns = range(features.shape[1])
    # The loss is convex: its least on the allowed side has some coefficients at the bound, the others free.
    for count in range(len(columns) + 1):
        for held in combinations(columns, count):
            free = [column for column in columns if column not in held]
            coefficients = np.full(len(columns), least)
            loss, coefficients[free], constant = _newton(
                labels,
                features[:, free],
                known + least * features[:, held].sum(axis=1) if held else known,
                intercept=intercept,
            )
            if (coefficients >= least).all() and (best is None or loss < best[0]):
                best = loss, coefficients, constant
        if best is not None and count == 0:
            break
    assert best is not None  # noqa: S101  with all of them held it is always allowed
    return best[1], best[2]


def _newton(
    labels: NDArray[np.int64], features: Floats, offset: Floats, *, intercept: bool
) -> tuple[float, Floats, float]:
    """Loss, coefficients and intercept; the features are centred and scaled on the way."""
    num = features.shape[1]
    center = features.mean(axis=0) if intercept else np.zeros(num)
    scale = np.sqrt(((features - center) ** 2).mean(axis=0))
    scale[scale == 0] = 1.0
    rows = [*((features - center) / scale).T, *([np.ones(len(labels))] if intercept else [])]
    design = np.array(rows).reshape(len(rows), len(labels))
    at, precision = np.zeros(len(rows)), np.full(len(rows), PRIOR_DEVIATION**-2)
    if intercept:
        at[-1], precision[-1] = logit(labels.mean()) - offset.mean(), 0.0
    is_nodule = labels == 1

    def looked_at(at: Floats) -> tuple[float, Floats]:
        """Loss and probabilities."""
        scores = at @ design + offset
        tail = np.exp(-np.abs(scores))  # one exponential for both: most of the time goes here
        loss = np.maximum(scores, 0).sum() + np.log1p(tail).sum() - scores[is_nodule].sum()
        return float(loss + precision @ at**2 / 2), np.where(scores < 0, tail, 1.0) / (1 + tail)

    loss, probability = looked_at(at)
    for _ in range(_MAX_STEPS if rows else 0):
        gradient = design @ (probability - labels) + precision * at
        curvature = (design * (probability * (1 - probability))) @ design.T + np.diag(precision)
        step = np.linalg.lstsq(curvature, gradient)[0]
        if gradient @ step < _ENOUGH:
            break
        closer, length = looked_at(at - step), 1.0
        while closer[0] > loss and length > 1e-6:
            length /= 2
            closer = looked_at(at - length * step)
        if closer[0] > loss:
            break  # nothing is left to gain but rounding
        at = at - length * step
        loss, probability = closer
    coefficients = at[:num] / scale
    return loss, coefficients, float(at[-1] - coefficients @ center) if intercept else 0.0
