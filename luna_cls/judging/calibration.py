"""Probabilities are mended: from a model's logits to logits whose probabilities mean what they say.

A loss, the sampling and its weights bend probabilities: after focal loss they are drawn to 1/2 (too unsure),
after long training on few scans they are too sure, and after batches with more nodules than nature has, too
high. All that is a curve from logits to logits, learned on candidates that the model was not trained on.
Every curve here rises strictly, so the order of candidates stays; that of `temperature` also leaves what is
above 1/2 above it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit, log_expit, logit

from luna_cls.errors import InputError
from luna_cls.judging.logistic import Floats, check_classes, fit_logistic
from luna_cls.judging.reliability import Labels, figures
from luna_cls.judging.resampling import SEED

FOLDS = 5
# Of every curve, so that no two candidates become one; of `Isotonic` only outside its outermost centres.
# Between these it may rise less steeply, from each level to the next, which is at least 1e-6 higher.
LEAST_SLOPE = 1e-3
PSEUDO_COUNT = 0.5  # of a nodule below all and of another candidate above all, for `Isotonic`


@dataclass(frozen=True)
class Method(ABC):
    """A curve from logits to calibrated logits, strictly rising; its fields are its parameters."""

    @classmethod
    def fit(cls, labels: ArrayLike, logits: ArrayLike) -> Self:
        """Learns the curve.

        Args:
            labels: `(n,)`, 1 for a nodule, 0 for the rest.
            logits: `(n,)`, finite.

        Raises:
            InputError: If a class is missing or a logit is not finite.
        """
        return cls._fitted(*_checked(labels, logits))

    def __call__(self, logits: ArrayLike) -> Floats:
        """Calibrated logits, float64, of the shape of `logits`."""
        return self._curve(np.asarray(logits, float))

    @classmethod
    @abstractmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self: ...

    @abstractmethod
    def _curve(self, logits: Floats) -> Floats: ...


@dataclass(frozen=True)
class Temperature(Method):
    """Logits are divided by one number (Guo et al. 2017). More than 1 was too sure, less was too unsure.

    The most likely one, with the prior of `fit_logistic`.

    Args:
        temperature: Above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        _require(_are_finite(self.temperature) and self.temperature > 0, self, "temperature above 0")

    @classmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self:
        slope, _ = fit_logistic(labels, logits[:, None], LEAST_SLOPE, intercept=False)
        return cls(1 / float(slope[0]))

    def _curve(self, logits: Floats) -> Floats:
        return logits / self.temperature


@dataclass(frozen=True)
class Platt(Method):
    """Logits are multiplied by one number, and another is added (Platt 1999, without his smoothed labels).

    The most likely ones, with the prior of `fit_logistic`. The intercept undoes what favoured nodules in
    training, the slope what made the model too sure or too unsure.

    Args:
        slope: Above 0.
        intercept: Any number.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        _require(_are_finite(self.slope, self.intercept) and self.slope > 0, self, "a slope above 0")

    @classmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self:
        slope, intercept = fit_logistic(labels, logits[:, None], LEAST_SLOPE)
        return cls(float(slope[0]), intercept)

    def _curve(self, logits: Floats) -> Floats:
        return self.slope * logits + self.intercept


@dataclass(frozen=True)
class Beta(Method):
    """`a * ln(p) - b * ln(1 - p) + c`, p the probability (Kull et al. 2017): Platt with a slope for each end.

    The most likely ones, with the prior of `fit_logistic` on a and b.

    Args:
        a: Slope at low probabilities, above 0.
        b: Slope at high ones, above 0.
        c: Any number.
    """

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        is_right = _are_finite(self.a, self.b, self.c) and self.a > 0 and self.b > 0
        _require(is_right, self, "a and b above 0")

    @classmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self:
        features = np.column_stack([log_expit(logits), -log_expit(-logits)])
        (a, b), c = fit_logistic(labels, features, LEAST_SLOPE)
        return cls(float(a), float(b), c)

    def _curve(self, logits: Floats) -> Floats:
        return self.a * log_expit(logits) - self.b * log_expit(-logits) + self.c


@dataclass(frozen=True)
class Isotonic(Method):
    """Any rising curve (Zadrozny & Elkan 2002), without its steps.

    Isotonic regression gives blocks of one rate each, in which all order is lost, and rates of 0 and 1.
    Here half a nodule counts at the lowest logit and half another candidate at the highest, so that no rate
    is 0 or 1; and the curve goes straight from the centre of one block (its mean logit, the logit of its
    rate) to the next (Jiang et al. 2011), outside the outermost ones with a slope of 0.001.

    Args:
        centers: Mean logits of the blocks, rising.
        calibrated: What becomes of them, rising.
    """

    centers: tuple[float, ...]
    calibrated: tuple[float, ...]

    def __post_init__(self) -> None:
        rows = self.centers, self.calibrated
        is_right = (
            all(isinstance(row, tuple) and row and _are_finite(*row) for row in rows)
            and len(self.centers) == len(self.calibrated)
            and all(a < b for row in rows for a, b in pairwise(row))
        )
        _require(is_right, self, "as many rising centers as rising calibrated logits")

    @classmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self:
        values, inverse, counts = np.unique(logits, return_inverse=True, return_counts=True)
        nodules = np.bincount(inverse, labels).astype(float)
        weights = counts.astype(float)
        nodules[0] += PSEUDO_COUNT
        weights[[0, -1]] += PSEUDO_COUNT if len(values) > 1 else 2 * PSEUDO_COUNT
        pooled = isotonic_regression(nodules / weights, weights=weights)
        # Blocks apart by rounding alone are one.
        levels, block = np.unique(np.round(logit(pooled.x), 6), return_inverse=True)
        centers = np.bincount(block, counts * values) / np.bincount(block, counts)
        return cls(tuple(centers.tolist()), tuple(levels.tolist()))

    def _curve(self, logits: Floats) -> Floats:
        x, y = np.array(self.centers), np.array(self.calibrated)
        outside = np.minimum(logits - x[0], 0) + np.maximum(logits - x[-1], 0)
        if len(x) == 1:
            return y[0] + LEAST_SLOPE * outside
        left = np.clip(np.searchsorted(x, logits, side="right") - 1, 0, len(x) - 2)
        slope = np.diff(y) / np.diff(x)
        inside = y[left] + slope[left] * (np.clip(logits, x[0], x[-1]) - x[left])
        # Rounding must not carry a logit past the next centre.
        return np.minimum(inside, y[left + 1]) + LEAST_SLOPE * outside


@dataclass(frozen=True)
class PriorShift(Method):
    """One number is added to logits: other odds of a nodule, all else as it was (Saerens et al. 2002).

    The most likely one; the mean probability is then the share of nodules. `shift_of` gives the one between
    two known shares.

    Args:
        shift: Log odds.
    """

    shift: float

    def __post_init__(self) -> None:
        _require(_are_finite(self.shift), self, "a number")

    @classmethod
    def _fitted(cls, labels: Labels, logits: Floats) -> Self:
        _, shift = fit_logistic(labels, np.empty((len(labels), 0)), offset=logits)
        return cls(shift)

    def _curve(self, logits: Floats) -> Floats:
        return logits + self.shift


METHODS: dict[str, type[Method]] = {
    "temperature": Temperature,
    "platt": Platt,
    "beta": Beta,
    "isotonic": Isotonic,
    "prior_shift": PriorShift,
}


def get(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        InputError: If it is unknown; lists those that are known.
    """
    if name not in METHODS:
        raise InputError(f"Unknown calibration '{name}'. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def to_json(method: Method) -> dict[str, Any]:
    """The name of a method and its parameters, for `from_json`."""
    name = next(name for name, kind in METHODS.items() if kind is type(method))
    return {"method": name, "parameters": asdict(method)}


def from_json(entry: Any) -> Method:
    """A method from what `to_json` gave.

    Raises:
        InputError: If it is something else; says what.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("parameters"), dict):
        raise InputError("A calibration has a 'method' and its 'parameters'. Received something else.")
    kind = get(str(entry.get("method")))
    parameters, known = entry["parameters"], tuple(kind.__dataclass_fields__)
    if set(parameters) != set(known):
        raise InputError(
            f"The calibration {entry['method']} has the parameters {', '.join(known)}. "
            f"Received: {', '.join(parameters) or 'none'}."
        )
    return kind(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    )


def shift_of(prevalence_trained: float, prevalence_meant: float) -> float:
    """The log odds to add to logits that mean one share of nodules, to make them mean another.

    Raises:
        InputError: If a share is not between 0 and 1.
    """
    for prevalence in (prevalence_trained, prevalence_meant):
        if not 0 < prevalence < 1:
            raise InputError(f"A prevalence lies between 0 and 1. Received: {prevalence}.")
    return float(logit(prevalence_meant) - logit(prevalence_trained))


def crossfit(
    labels: ArrayLike, logits: ArrayLike, series: ArrayLike, folds: int = FOLDS, seed: int = SEED
) -> dict[str, Any] | None:
    """What each method is worth on scans that it was not fitted to.

    Scans are dealt into folds, those with most nodules first; each fold is calibrated by a fit to the others,
    and all are judged together. (On the very candidates it was fitted to, `Isotonic` is always good.)

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        logits: `(n,)`, finite.
        series: `(n,)`, the scan of each.
        folds: At most so many, and no more than there are scans with nodules.
        seed: Of the order among scans with as many nodules.

    Returns:
        `folds`, `before` (the `figures` of the logits as they are), and `after` by method. None if there are
        fewer than two scans with nodules, or all other candidates lie in one fold.

    Raises:
        InputError: If a class is missing or a logit is not finite.
    """
    truth, given = _checked(labels, logits)
    fold_of = _dealt(truth, np.asarray(series), folds, seed)
    parts = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    if len(parts) < 2 or any(not 0 < truth[~part].sum() < (~part).sum() for part in parts):
        return None
    after = {}
    for name, kind in METHODS.items():
        calibrated = np.empty(len(given))
        for part in parts:
            calibrated[part] = kind.fit(truth[~part], given[~part])(given[part])
        after[name] = figures(truth, expit(calibrated))
    return {"folds": len(parts), "before": figures(truth, expit(given)), "after": after}


def _dealt(labels: Labels, series: NDArray[Any], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each candidate; every fold has a scan with nodules."""
    scan_of, scans = pd.factorize(series)
    nodules = np.bincount(scan_of, labels, minlength=len(scans))
    order = np.random.default_rng(seed).permutation(len(scans))
    order = order[np.argsort(-nodules[order], kind="stable")]
    fold_of_scan = np.empty(len(scans), np.int64)
    fold_of_scan[order] = np.arange(len(scans)) % min(folds, int((nodules > 0).sum()))
    return fold_of_scan[scan_of]


def _checked(labels: ArrayLike, logits: ArrayLike) -> tuple[Labels, Floats]:
    truth, given = np.asarray(labels, np.int64), np.asarray(logits, float)
    check_classes(truth, given)
    return truth, given


def _are_finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _require(is_right: bool, method: Method, rule: str) -> None:
    if not is_right:
        name = type(method).__name__
        raise InputError(f"{name} needs finite numbers, {rule}. Received: {str(asdict(method))[:120]}.")
