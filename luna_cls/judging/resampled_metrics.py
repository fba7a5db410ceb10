"""Every metric of a two-class decision in many draws of the scans at once: exact, with one sort."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csr_array

from luna_cls.errors import InputError

Floats = NDArray[np.float64]

_VALUES_AT_ONCE = 2_000_000  # of an array of thresholds and resamples; 16 MB


def resampled_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    probability: ArrayLike,
    scan: ArrayLike,
    weights: ArrayLike,
    threshold: float = 0.0,
    prevalence: float | None = None,
) -> dict[str, Floats]:
    """The metrics of candidates whose scans are drawn so often each.

    Each equals `binary_metrics` of the candidates written out as often as drawn; `brier` is the mean squared
    error and `log_loss` the mean cross entropy (natural logarithm) of the probabilities, lower for better.
    With a prevalence, candidates weigh what makes nodules that share of each draw.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        scores: `(n,)`, finite, higher for more like a nodule: logits, or probabilities with `threshold` 0.5.
        probability: `(n,)`, from 0 to 1; for a cross entropy, kept as far from both as float64 tells apart.
        scan: Integers `(n,)`, whose each candidate is: a column of `weights`.
        weights: Integers `(resamples, scans)`, how often each scan is drawn (`resampling.scan_weights`).
        threshold: A score above it says nodule.
        prevalence: The share of candidates that are nodules, as if it were so; None for as it is.

    Returns:
        `(resamples,)` by metric; NaN where a draw does not define it. With a prevalence that is where a class
        is not drawn, but for sensitivity and specificity.

    Raises:
        InputError: If the prevalence is not between 0 and 1.
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise InputError(f"A prevalence lies between 0 and 1. Received: {prevalence:g}.")
    is_nodule, scored, owner = np.asarray(labels) == 1, np.asarray(scores, float), np.asarray(scan)
    drawn = np.asarray(weights, float)

    def total(amount: NDArray[np.generic]) -> Floats:
        return _total(amount, owner, drawn)

    called = scored > threshold
    tp, fp = total(is_nodule & called), total(~is_nodule & called)
    nodules, others = total(is_nodule), total(~is_nodule)
    fn, tn = nodules - tp, others - fp
    sensitivity, specificity = _ratio(tp, nodules), _ratio(tn, others)
    # What one of the others weighs beside a nodule, in each draw.
    weight = np.ones(len(drawn))
    if prevalence is not None:
        weight = _ratio((1 / prevalence - 1) * nodules, np.where(nodules > 0, others, 0.0))

    def mean(amount: Floats) -> Floats:
        if prevalence is None:
            return _ratio(total(amount), nodules + others)
        of_nodules, of_others = total(amount * is_nodule), total(amount * ~is_nodule)
        return prevalence * _ratio(of_nodules, nodules) + (1 - prevalence) * _ratio(of_others, others)

    given = np.asarray(probability, float)
    smallest = np.finfo(float).eps
    of_truth = np.clip(np.where(is_nodule, given, 1 - given), smallest, 1 - smallest)
    return {
        "accuracy": _ratio(tp + weight * tn, nodules + weight * others),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "gmean": np.sqrt(sensitivity * specificity),
        "f1": _ratio(2 * tp, 2 * tp + weight * fp + fn),
        "mcc": _matthews_correlation(tp, weight * fp, weight * tn, fn),
        **_ranking_metrics(is_nodule, scored, owner, drawn, weight),
        "precision": _ratio(tp, tp + weight * fp),
        "recall": sensitivity,
        "specificity": specificity,
        "brier": mean((given - is_nodule) ** 2),
        "log_loss": mean(-np.log(of_truth)),
    }


def resampled_balanced_accuracy(
    labels: ArrayLike, called: ArrayLike, scan: ArrayLike, weights: ArrayLike
) -> Floats:
    """The mean of sensitivity and specificity, of candidates whose scans are drawn so often each.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        called: Booleans `(n,)`, whether each is called a nodule.
        scan: Integers `(n,)`, whose each candidate is: a column of `weights`.
        weights: Integers `(resamples, scans)`, how often each scan is drawn.

    Returns:
        `(resamples,)`; NaN in a draw without nodules, or without others.
    """
    is_nodule, owner, drawn = np.asarray(labels) == 1, np.asarray(scan), np.asarray(weights, float)
    is_right = np.asarray(called, bool) == is_nodule
    sensitivity, specificity = (
        _ratio(_total(of_class & is_right, owner, drawn), _total(of_class, owner, drawn))
        for of_class in (is_nodule, ~is_nodule)
    )
    return (sensitivity + specificity) / 2


def _ranking_metrics(
    is_nodule: NDArray[np.bool_],
    scores: Floats,
    scan: NDArray[np.int64],
    drawn: Floats,
    other_weight: Floats,
) -> dict[str, Floats]:
    """Metrics over all thresholds: those at a nodule's score, for between two of them none is better."""
    level, of_nodule = np.unique(scores[is_nodule], return_inverse=True)
    below, upto = (np.searchsorted(level, scores[~is_nodule], side=side) for side in ("left", "right"))
    num_scans = drawn.shape[1]
    nodules = _tally(of_nodule, scan[is_nodule], len(level), num_scans)
    # Slot 2 j + 1 is for what equals level j, slot 2 j for what lies between it and the level before.
    others = _tally(below + upto, scan[~is_nodule], 2 * len(level) + 1, num_scans)
    step = max(1, _VALUES_AT_ONCE // (2 * len(level) + 1))
    pieces = range(step, len(drawn), step)
    parts = [
        _over_thresholds(nodules @ some.T, others @ some.T, weight)
        for some, weight in zip(np.split(drawn, pieces), np.split(other_weight, pieces), strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _over_thresholds(nodules: Floats, others: Floats, other_weight: Floats) -> dict[str, Floats]:
    """From nodules `(levels, resamples)` at each level, others `(2 levels + 1, resamples)` around it.

    The weight of one of the others, `(resamples,)`, matters to precision alone.
    """
    hits = _from_here_up(nodules)
    alarms = _from_here_up(others)
    num_nodules, num_others = hits[:1].sum(axis=0), alarms[0]
    is_defined = (num_nodules > 0) & (num_others > 0)
    at_or_above, above = alarms[1::2], alarms[2::2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ranked_below = nodules * (num_others - (at_or_above + above) / 2)
        auc = ranked_below.sum(axis=0) / (num_nodules * num_others)
        precision = hits / np.maximum(hits + other_weight * at_or_above, 1)
        average_precision = (nodules * precision).sum(axis=0) / num_nodules
        sensitivity, specificity = hits / num_nodules, 1 - at_or_above / num_others
    values = {
        "auc": auc,
        "average_precision": average_precision,
        "specificity_at_sensitivity_0.5": _best(specificity, sensitivity >= 0.5),
        "specificity_at_sensitivity_0.9": _best(specificity, sensitivity >= 0.9),
        "sensitivity_at_specificity_0.9": _best(sensitivity, specificity >= 0.9),
    }
    return {name: np.where(is_defined, value, np.nan) for name, value in values.items()}


def _total(amount: NDArray[np.generic], scan: NDArray[np.int64], drawn: Floats) -> Floats:
    """Of something of each candidate, the sum in each draw."""
    return drawn @ np.bincount(scan, amount, minlength=drawn.shape[1])


def _tally(slot: NDArray[np.int64], scan: NDArray[np.int64], num_slots: int, num_scans: int) -> csr_array:
    """How many candidates of each scan `(slots, scans)` are in each slot."""
    return coo_array((np.ones(len(slot)), (slot, scan)), shape=(num_slots, num_scans)).tocsr()


def _from_here_up(values: Floats) -> Floats:
    return values[::-1].cumsum(axis=0)[::-1]


def _best(values: Floats, is_allowed: NDArray[np.bool_]) -> Floats:
    """The largest value `(resamples,)` allowed, or 0, as at an infinite threshold, if none is."""
    return np.where(is_allowed, values, 0.0).max(axis=0, initial=0.0)


def _matthews_correlation(tp: Floats, fp: Floats, tn: Floats, fn: Floats) -> Floats:
    nodules, rest, called, dismissed = tp + fn, tn + fp, tp + fp, tn + fn
    scale = np.sqrt(nodules) * np.sqrt(rest) * np.sqrt(called) * np.sqrt(dismissed)
    value = np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.where((nodules > 0) & (rest > 0), value, np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
