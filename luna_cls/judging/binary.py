"""How well scores tell two classes apart: exact, from all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from luna_cls.errors import InputError


def binary_metrics(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> dict[str, float]:
    """Every metric of a two-class decision.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        scores: `(n,)`, higher for more like a nodule: logits, or probabilities with `threshold` 0.5.
        threshold: A score above it says nodule.

    Returns:
        Metrics by name. NaN where a metric is not defined: precision if nothing is called a nodule,
        and whatever needs a class that is not there. `gmean` is the geometric mean of sensitivity and
        specificity, `mcc` Matthews' correlation, 0 if all are called the same.

    Raises:
        InputError: If there is no score, the shapes differ, or a score is not finite.
    """
    labels, scores = np.asarray(labels).reshape(-1), np.asarray(scores, float).reshape(-1)
    if labels.shape != scores.shape or not len(scores):
        raise InputError(
            "Scores and labels must be as many, and some. "
            f"Received: {len(scores)} scores, {len(labels)} labels."
        )
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite.")
    is_nodule, called = labels == 1, scores > threshold
    tp, fp = int((called & is_nodule).sum()), int((called & ~is_nodule).sum())
    fn, tn = int(is_nodule.sum()) - tp, int((~is_nodule).sum()) - fp
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": _ratio(tp + tn, len(labels)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "gmean": float(np.sqrt(sensitivity * specificity)),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "mcc": _matthews_correlation(tp, fp, tn, fn),
        **_ranking_metrics(is_nodule, scores),
        "precision": _ratio(tp, tp + fp),
        "recall": sensitivity,
        "specificity": specificity,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def no_skill_metrics(labels: ArrayLike) -> dict[str, float]:
    """`binary_metrics` of always saying no, the same score for every candidate."""
    labels = np.asarray(labels).reshape(-1)
    return binary_metrics(labels, np.full(len(labels), -1.0))


def best_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold of the best balanced accuracy: above it is a nodule.

    It lies midway between two scores; of thresholds that are equally good, the middle one.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest; both are there.
        scores: `(n,)`, finite, higher for more like a nodule.

    Raises:
        InputError: If a class is not there.
    """
    is_nodule = np.asarray(labels).reshape(-1) == 1
    if is_nodule.all() or not is_nodule.any():
        raise InputError(
            "A threshold is chosen on nodules and others. "
            f"Received: {int(is_nodule.sum())} nodules among {len(is_nodule)} candidates."
        )
    tp, fp, score = _sweep(is_nodule, np.asarray(scores, float).reshape(-1))
    balanced = tp / tp[-1] - fp / fp[-1]
    good = np.flatnonzero(balanced == balanced.max())
    place = int(good[(len(good) - 1) // 2])
    # Place 0 calls nothing a nodule, the last one everything; each other has a score below it.
    below = score[place + 1] if place + 1 < len(score) else score[place] - 2
    above = score[place] if place else below + 2
    return float((above + below) / 2)


def roc_points(labels: ArrayLike, scores: ArrayLike) -> pd.DataFrame:
    """Corners of the ROC curve, a few hundred at most.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest; both are there.
        scores: `(n,)`, higher for more like a nodule.

    Returns:
        Table `false_positive_rate, sensitivity, threshold`; the first threshold is infinite.
    """
    tp, fp, threshold = _sweep(np.asarray(labels) == 1, np.asarray(scores, float))
    points = {"false_positive_rate": fp / fp[-1], "sensitivity": tp / tp[-1], "threshold": threshold}
    turns = (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0)
    return _thinned(pd.DataFrame(points)[np.concatenate([[True], turns, [True]])])


def precision_recall_points(labels: ArrayLike, scores: ArrayLike) -> pd.DataFrame:
    """Points of the precision-recall curve, a few hundred at most, from the highest threshold on.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest; some are 1.
        scores: `(n,)`, higher for more like a nodule.

    Returns:
        Table `recall, precision, threshold`; of equal recall, the first and the last alone.
    """
    tp, fp, threshold = (values[1:] for values in _sweep(np.asarray(labels) == 1, np.asarray(scores, float)))
    points = {"recall": tp / tp[-1], "precision": tp / (tp + fp), "threshold": threshold}
    is_new = np.append(True, tp[1:] != tp[:-1])
    return _thinned(pd.DataFrame(points)[is_new | np.append(is_new[1:], True)])


def _thinned(points: pd.DataFrame, most: int = 500) -> pd.DataFrame:
    kept = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return points.iloc[kept].reset_index(drop=True)


def _sweep(is_nodule: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
    """True and false positives from each threshold on, `(thresholds + 1,)` each, and these, falling."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    tp = np.concatenate([[0], is_nodule[order].cumsum()[ends]])
    return tp, np.concatenate([[0], ends + 1]) - tp, np.concatenate([[np.inf], falling[ends]])


def _ranking_metrics(is_nodule: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, float]:
    """Metrics over all thresholds; NaN if a class is missing."""
    names = (
        "auc",
        "average_precision",
        "specificity_at_sensitivity_0.5",
        "specificity_at_sensitivity_0.9",
        "sensitivity_at_specificity_0.9",
    )
    if is_nodule.all() or not is_nodule.any():
        return dict.fromkeys(names, np.nan)
    tp, fp, _ = _sweep(is_nodule, scores)
    nodules, rest = int(tp[-1]), int(fp[-1])
    twice_in_order = int((np.diff(fp) * (tp[1:] + tp[:-1])).sum())  # in whole numbers, so that it is exact
    sensitivity, specificity = tp / nodules, 1 - fp / rest
    values = (
        twice_in_order / (2 * nodules * rest),
        (np.diff(tp) / nodules * tp[1:] / (tp[1:] + fp[1:])).sum(),
        specificity[sensitivity >= 0.5].max(),
        specificity[sensitivity >= 0.9].max(),
        sensitivity[specificity >= 0.9].max(),
    )
    return dict(zip(names, map(float, values), strict=True))


def _matthews_correlation(tp: int, fp: int, tn: int, fn: int) -> float:
    nodules, rest, called, dismissed = tp + fn, tn + fp, tp + fp, tn + fn
    if not nodules or not rest:
        return np.nan
    if not called or not dismissed:
        return 0.0
    # Roots first: the product of four counts can exceed 64 bits.
    scale = np.sqrt(nodules) * np.sqrt(rest) * np.sqrt(called) * np.sqrt(dismissed)
    return float((tp * tn - fp * fn) / scale)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan
