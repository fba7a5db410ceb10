"""Logistic regression on one or two features: what calibration is measured and mended with."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

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
            f"A calibration needs nodules and others. Received: {nodules} nodules among {len(labels)} candidates."
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
    center = features.mean(axis=0) if intercept else np.zeros(features.shape[1])
    scale = np.sqrt(((features - center) ** 2).mean(axis=0))
    scale[scale == 0] = 1.0
    design = np.column_stack([(features - center) / scale, *([np.ones(len(labels))] if intercept else [])])
    precision = np.full(design.shape[1], PRIOR_DEVIATION**-2)
    at = np.zeros(design.shape[1])
    if intercept:
        precision[-1], at[-1] = 0.0, logit(labels.mean())

    def loss_of(at: Floats) -> float:
        scores = design @ at + offset
        return float(np.logaddexp(0, scores).sum() - scores[labels == 1].sum() + precision @ at**2 / 2)

    loss = loss_of(at)
    for _ in range(_MAX_STEPS if design.shape[1] else 0):
        probability = expit(design @ at + offset)
        gradient = design.T @ (probability - labels) + precision * at
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.lstsq(curvature, gradient)[0]
        if gradient @ step < _ENOUGH:
            break
        length = 1.0
        while (closer := loss_of(at - length * step)) > loss and length > 1e-6:
            length /= 2
        if closer > loss:
            break  # nothing is left to gain but rounding
        at, loss = at - length * step, closer
    coefficients = at[: features.shape[1]] / scale
    return loss, coefficients, float(at[-1] - coefficients @ center) if intercept else 0.0
