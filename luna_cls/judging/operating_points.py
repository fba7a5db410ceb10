"""Where to draw the line: a threshold chosen on one set of scans, and what it does on any other.

A candidate whose logit is the threshold or above it is called a nodule. False positives are candidates that
are none; the official FROC counts marks by LUNA16's rules (at most 100 a scan, excluded findings ignored,
nodules without a candidate missed), so its figures at the same threshold differ somewhat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from luna_cls.errors import InputError
from luna_cls.files import read_json
from luna_cls.judging.logistic import Floats, check_classes
from luna_cls.judging.reliability import Labels, share_interval_95
from luna_cls.judging.resampling import RESAMPLES, SEED, interval_95, scan_weights

NATURAL_PREVALENCE = 1 / 490  # of nodules among LUNA16's candidates
_AT_A_TIME = 5_000_000  # candidates times resamples, to stay below 0.1 GB
_ROUNDING = 1e-9
_SHARES = {  # of what, among it and what else
    "sensitivity": ("tp", "fn"),
    "specificity": ("tn", "fp"),
    "ppv": ("tp", "fp"),
    "npv": ("tn", "fn"),
}


class Goal(NamedTuple):
    """What a threshold is to reach.

    Attributes:
        name: "sensitivity", at least so much; or "fps_per_scan", at most so many false positives a scan.
        value: The sensitivity, above 0 and at most 1; or the rate, 0 or more.
    """

    name: str
    value: float

    def check(self) -> None:
        """Refuses a goal that is none.

        Raises:
            InputError: If so.
        """
        if self.name == "sensitivity":
            is_right, rule = 0 < self.value <= 1, "above 0 and at most 1"
        elif self.name == "fps_per_scan":
            is_right, rule = 0 <= self.value < math.inf, "0 or more"
        else:
            raise InputError(f"A goal is a sensitivity or fps_per_scan. Received: '{self.name}'.")
        if not is_right:
            raise InputError(f"The goal {self.name} must be {rule}. Received: {self.value}.")


def choose(
    labels: ArrayLike,
    logits: ArrayLike,
    series: ArrayLike,
    goals: Sequence[Goal],
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """The threshold for each goal, on these candidates: those of validation, never of the test.

    For a sensitivity, the highest at which so many nodules are called. For a rate of false positives, the
    lowest logit of a candidate at which no more are; just above all if even the highest is one too many.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        logits: `(n,)`, finite; calibrated ones, so that the thresholds are probabilities that mean something.
        series: `(n,)`, the scan of each. False positives are divided by the number of different ones.
        goals: What is to be reached.
        seed: Of the bootstrap over scans.
        resamples: Of it.

    Returns:
        For each goal `goal`, `value`, `threshold_logit`, `threshold_probability` and
        `threshold_interval_95`, in probability: where the threshold falls on other draws of these scans; NaN
        where it is the same on all.

    Raises:
        InputError: If a goal is none, a class is missing or a logit is not finite.
    """
    truth, given, scan_of, num_scans = _checked(labels, logits, series)
    check_classes(truth, given)
    weights = scan_weights(num_scans, resamples, seed)
    highest_first = np.sort(given)[::-1]
    points = []
    for goal in goals:
        goal.check()
        is_counted = truth == (goal.name == "sensitivity")
        order = np.argsort(-given[is_counted], kind="stable")
        counted, scans = given[is_counted][order], scan_of[is_counted][order]
        once = np.ones((1, num_scans), np.int32)
        threshold = _thresholds(goal, counted, scans, once, highest_first)[0]
        resampled = _thresholds(goal, counted, scans, weights, highest_first)
        points.append(
            {
                "goal": goal.name,
                "value": goal.value,
                "threshold_logit": float(threshold),
                "threshold_probability": float(expit(threshold)),
                "threshold_interval_95": interval_95(expit(resampled)).tolist(),
            }
        )
    return points


def apply(
    points: Sequence[dict[str, Any]],
    labels: ArrayLike,
    logits: ArrayLike,
    series: ArrayLike,
    num_scans: int | None = None,
    prevalence: float = NATURAL_PREVALENCE,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """What thresholds do on these candidates.

    Args:
        points: What `choose` or `read` gave, or anything with a `threshold_logit`.
        labels: As for `choose`, but one class alone will do.
        logits: As for `choose`, calibrated in the same way.
        series: As for `choose`.
        num_scans: How many scans were read, if some of them have no candidate.
        prevalence: The share of nodules among candidates where the model is to be used, for predictive values
            there by Bayes' rule. The `natural_prevalence` of a point that has one goes before it.
        seed: Of the bootstrap over scans.
        resamples: Of it; 0 for no intervals.

    Returns:
        Each point with `tp`, `fp`, `fn`, `tn`; `sensitivity`, `specificity`, `ppv`, `npv` (as found here; NaN
        where it is a share of nothing) and `fps_per_scan`; `natural_prevalence`, and `natural_ppv` and
        `natural_npv` at it; and `interval_95`, which holds that of each of these, by bootstrap over scans;
        or None. The first four fall back on Wilson's interval where the share is 0 of n or n of n, or else
        does not vary over the draws: it takes candidates to be independent, as those of one scan are not.

    Raises:
        InputError: If there is no candidate, labels and logits are not as many, a logit is not finite, or a
            prevalence is not between 0 and 1.
    """
    truth, given, scan_of, counted_scans = _checked(labels, logits, series)
    num_scans = max(num_scans or 0, counted_scans)
    weights = scan_weights(num_scans, resamples, seed).astype(float) if resamples else None
    is_nodule = truth == 1
    results = []
    for point in points:
        natural = point.get("natural_prevalence", prevalence)
        if not 0 < natural < 1:
            raise InputError(f"A prevalence lies between 0 and 1. Received: {natural}.")
        is_called = given >= point["threshold_logit"]
        outcomes = {
            "tp": is_called & is_nodule,
            "fp": is_called & ~is_nodule,
            "fn": ~is_called & is_nodule,
            "tn": ~is_called & ~is_nodule,
        }
        by_scan = {name: np.bincount(scan_of, own, minlength=num_scans) for name, own in outcomes.items()}
        counts = {name: own.sum() for name, own in by_scan.items()}
        found = _shares(counts, num_scans, natural)
        intervals = None
        if weights is not None:
            drawn = _shares({name: weights @ own for name, own in by_scan.items()}, num_scans, natural)
            intervals = {name: interval_95(values) for name, values in drawn.items()}
            for name, (part, rest) in _SHARES.items():
                whole = counts[part] + counts[rest]
                intervals[name] = share_interval_95(counts[part], whole, drawn[name])
        results.append(
            {
                **point,
                **{name: int(count) for name, count in counts.items()},
                **{name: float(value) for name, value in found.items()},
                "natural_prevalence": natural,
                "interval_95": intervals and {name: bounds.tolist() for name, bounds in intervals.items()},
            }
        )
    return results


def decision_curve(
    labels: ArrayLike, probability: ArrayLike, thresholds: ArrayLike | None = None
) -> list[dict[str, float]]:
    """What calling candidates is worth to someone who minds mistakes so and so (Vickers & Elkin 2006).

    Who calls a candidate from a probability t on takes (1 - t) / t false alarms for one nodule found. The net
    benefit at t is true positives less false positives times t / (1 - t), for each candidate. A model is
    of use where it is above calling all and calling none.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        probability: `(n,)`, calibrated.
        thresholds: Between 0 and 1; None for 81 from 1 in 10,000 to 0.9, evenly spaced in log odds.

    Returns:
        For each `threshold` the `net_benefit` of the model, of `treat_all` and of `treat_none`.

    Raises:
        InputError: If there is no candidate, or a threshold is not between 0 and 1.
    """
    truth, given = np.asarray(labels), np.asarray(probability, float)
    grid = (
        expit(np.linspace(logit(1e-4), logit(0.9), 81))
        if thresholds is None
        else np.asarray(thresholds, float)
    )
    if not len(given) or truth.shape != given.shape:
        raise InputError(
            f"A decision curve needs labels and probabilities. Received: {len(truth)} and {len(given)}."
        )
    if not ((grid > 0) & (grid < 1)).all():
        raise InputError(f"A threshold of a decision curve lies between 0 and 1. Received: {grid.tolist()}.")

    def called(scores: Floats) -> Floats:
        """The share of all candidates that are among `scores`, and called, at each threshold."""
        return (len(scores) - np.searchsorted(np.sort(scores), grid, side="left")) / len(given)

    odds = grid / (1 - grid)
    model = called(given[truth == 1]) - odds * called(given[truth == 0])
    everyone = truth.mean() - odds * (1 - truth.mean())
    return [
        {"threshold": float(t), "net_benefit": float(own), "treat_all": float(all_of_them), "treat_none": 0.0}
        for t, own, all_of_them in zip(grid, model, everyone, strict=True)
    ]


def read(path: Path) -> dict[str, Any]:
    """Reads an `operating_points.json`.

    Returns:
        What it holds; of each of its `points`, what `choose` gives is there, its numbers finite.

    Raises:
        InputError: If it is missing or something else.
    """
    if not path.is_file():
        raise InputError(f"No operating points at {path}. Make them: luna-cls calibrate RUN.")
    try:
        stored = read_json(path.read_bytes(), "it")
        if not isinstance(stored.get("fitted_on", {}), dict):
            raise InputError("fitted_on is no object")
        stored["points"] = [_read_point(point) for point in stored["points"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split()).rstrip(".")
        raise InputError(
            f"{path} holds no operating points ({reason}). Give the operating_points.json of a run, "
            "or make it anew: luna-cls calibrate RUN --force."
        ) from error
    return stored


def _read_point(point: Mapping[str, Any]) -> dict[str, Any]:
    names = "value", "threshold_logit", "threshold_probability"
    low, high = point["threshold_interval_95"]
    is_known = (low, high) != (None, None)  # as `choose` leaves it where every draw has the same threshold
    bounds = [_number(bound, "threshold_interval_95") for bound in (low, high)] if is_known else []
    read = {
        **point,
        **{name: _number(point[name], name) for name in names},
        "threshold_interval_95": bounds or [math.nan, math.nan],
    }
    Goal(read["goal"], read["value"]).check()
    shares = [read["threshold_probability"], *bounds]
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"A probability lies from 0 to 1. Received: {shares}.")
    if "natural_prevalence" in read:
        read["natural_prevalence"] = own = _number(read["natural_prevalence"], "natural_prevalence")
        if not 0 < own < 1:
            raise InputError(f"A prevalence lies between 0 and 1. Received: {own}.")
    return read


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be finite numbers. Received: {str(value)[:80]!r}.")
    return float(value)


def _checked(
    labels: ArrayLike, logits: ArrayLike, series: ArrayLike
) -> tuple[Labels, Floats, NDArray[np.int64], int]:
    truth, given, scan = np.asarray(labels, np.int64), np.asarray(logits, float), np.asarray(series)
    if not truth.shape == given.shape == scan.shape or given.ndim != 1 or not len(given):
        raise InputError(
            "Labels, logits and scans must be as many, in one row, and some. "
            f"Received: shapes {truth.shape}, {given.shape} and {scan.shape}."
        )
    if not (np.isfinite(given).all() and np.isin(truth, (0, 1)).all()):
        raise InputError("A logit is finite, and a label 1 for a nodule, 0 for the rest. Received others.")
    scan_of, scans = pd.factorize(scan)
    return truth, given, scan_of, len(scans)


def _thresholds(
    goal: Goal, counted: Floats, scan_of: NDArray[np.int64], weights: NDArray[np.int32], highest_first: Floats
) -> Floats:
    """The threshold in each resample.

    Args:
        goal: What for.
        counted: `(m,)`, the logits of what the goal counts, highest first.
        scan_of: `(m,)`, the scan of each.
        weights: `(resamples, scans)`, how often each is drawn.
        highest_first: `(n,)`, the logits of all candidates.

    Returns:
        `(resamples,)`; NaN where no nodule was drawn.
    """
    totals = weights @ np.bincount(scan_of, minlength=weights.shape[1])
    if goal.name == "sensitivity":
        # Called until so many nodules are in: the last of them is the threshold.
        needed = np.ceil(goal.value * totals * (1 - _ROUNDING))
        at = _first_reaching(needed, scan_of, weights)
        return np.where(totals > 0, counted[np.minimum(at, len(counted) - 1)], np.nan)
    # The first false positive that is one too many has to be left out, and all below it.
    allowed = np.floor(goal.value * weights.sum(axis=1) * (1 + _ROUNDING))
    at = _first_reaching(allowed + 1, scan_of, weights)
    barred = counted[np.minimum(at, len(counted) - 1)]
    num_above = np.searchsorted(-highest_first, -barred, side="left")
    lowest_above = np.where(
        num_above > 0, highest_first[np.maximum(num_above - 1, 0)], np.nextafter(barred, np.inf)
    )
    return np.where(at < len(counted), lowest_above, highest_first[-1])


def _first_reaching(
    needed: Floats, scan_of: NDArray[np.int64], weights: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The place `(resamples,)` by which so many were drawn; the number of places if never."""
    found = np.full(len(needed), len(scan_of))
    depth = min(len(scan_of), int(2 * needed.max()) + 100)
    left = np.arange(len(needed))
    while len(left):
        some = max(1, _AT_A_TIME // depth)
        for chunk in (left[start : start + some] for start in range(0, len(left), some)):
            drawn = np.cumsum(weights[np.ix_(chunk, scan_of[:depth])], axis=1, dtype=np.int32)
            is_there = drawn[:, -1] >= needed[chunk]
            found[chunk[is_there]] = (drawn[is_there] >= needed[chunk[is_there], None]).argmax(axis=1)
        left = left[found[left] == len(scan_of)] if depth < len(scan_of) else left[:0]
        depth = min(len(scan_of), 2 * depth)
    return found


def _shares(counts: Mapping[str, Floats], num_scans: int, prevalence: float) -> dict[str, Floats]:
    """What `apply` gives of each point, from `tp`, `fp`, `fn`, `tn`: one each, or `(resamples,)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            name: counts[part] / (counts[part] + counts[rest]) for name, (part, rest) in _SHARES.items()
        }
        sensitivity, specificity = shares["sensitivity"], shares["specificity"]
        hit, alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        missed, dismissed = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
        return {
            **shares,
            "fps_per_scan": counts["fp"] / num_scans,
            "natural_ppv": hit / (hit + alarm),
            "natural_npv": dismissed / (dismissed + missed),
        }
