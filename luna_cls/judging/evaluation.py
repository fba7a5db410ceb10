"""How well scores tell nodules from the rest: exact, from all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from luna_cls.errors import InputError
from luna_cls.files import (
    POINT_COLUMNS,
    read_csv,
    read_series_uids,
    require_new,
    whole_folder,
    write_csv,
    write_json,
)
from luna_cls.judging import froc


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


def read_submission(path: Path) -> pd.DataFrame:
    """Reads a LUNA16 submission: `seriesuid, coordX, coordY, coordZ, probability`.

    `logit` and `class` may be there too; further columns are left as they are.

    Raises:
        InputError: If the file, a column or a cell is wrong.
    """
    return read_csv(path, (*POINT_COLUMNS, "probability"), "predictions", optional=("logit", "class"))


def read_annotations(path: Path, what: str = "annotated nodules") -> pd.DataFrame:
    """Reads nodules or excluded findings: `seriesuid, coordX, coordY, coordZ, diameter_mm`.

    Raises:
        InputError: If the file, a column or a cell is wrong.
    """
    return read_csv(path, (*POINT_COLUMNS, "diameter_mm"), what)


def evaluate_submission(
    submission: Path,
    annotations: Path,
    out: Path,
    excluded: Path | None = None,
    series_uids: Path | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Scores a submission file and makes the folder `out` with `froc.json` and `froc.csv`.

    Without `series_uids`, the scans are those that the submission names. If the submission has a
    column `class`, `metrics.json` holds the `binary_metrics` of its rows in those scans, and those of
    always saying no.

    Returns:
        `froc`, `warnings` (sentences on what may mislead) and, where labels are known, `metrics` and
        `no_skill`.

    Raises:
        InputError: If a file is wrong, no nodule is in the listed scans, or `out` exists.
    """
    inputs = [path for path in (submission, annotations, excluded, series_uids) if path]
    require_new(out, force=force, sign="froc.json", inputs=inputs)
    marks = read_submission(submission)
    uids = read_series_uids(series_uids) if series_uids else marks["seriesuid"].unique().tolist()
    nodules = read_annotations(annotations)
    ignored = read_annotations(excluded, "excluded findings") if excluded else None
    curve = froc.evaluate(marks, nodules, uids, ignored)
    result: dict[str, Any] = {"froc": curve.summary(), "warnings": list(curve.warnings)}
    if not curve.counts["true_positives"]:
        result["warnings"].append(
            "No mark lies in a nodule. Are the coordinates x, y, z in mm, and of the same scans?"
        )
    left_out = nodules[~nodules["seriesuid"].isin(uids)]
    if series_uids is None and len(left_out):
        result["warnings"].append(
            f"{len(left_out)} nodules of {left_out['seriesuid'].nunique()} scans without a prediction were "
            "left out. If those scans were read, list all scans with --seriesuids: their nodules were missed."
        )
    if "class" in marks.columns:
        marks = marks[marks["seriesuid"].isin(uids)]
        result["metrics"] = binary_metrics(marks["class"], *_scores(marks, result["warnings"]))
        result["no_skill"] = no_skill_metrics(marks["class"])
    points = {
        "fps_per_scan": curve.fps_per_scan,
        "sensitivity": curve.sensitivity,
        "threshold": curve.threshold,
    }
    with whole_folder(out) as folder:
        write_json(folder / "froc.json", result["froc"])
        write_csv(folder / "froc.csv", pd.DataFrame(points))
        if "metrics" in result:
            write_json(folder / "metrics.json", {name: result[name] for name in ("metrics", "no_skill")})
    return result


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
    false_positive_rate, sensitivity, _ = roc_curve(is_nodule, scores, drop_intermediate=False)
    specificity = 1 - false_positive_rate
    values = (
        roc_auc_score(is_nodule, scores),
        average_precision_score(is_nodule, scores),
        specificity[sensitivity >= 0.5].max(),
        specificity[sensitivity >= 0.9].max(),
        sensitivity[specificity >= 0.9].max(),
    )
    return dict(zip(names, map(float, values), strict=True))


def _scores(marks: pd.DataFrame, warnings: list[str]) -> tuple[pd.Series, float]:
    """The finest scores there are and their threshold; says so if the logits are not the probabilities'."""
    if "logit" not in marks.columns:
        return marks["probability"], 0.5
    difference = np.abs(expit(marks["logit"]) - marks["probability"]).max()
    if difference > 1e-6:
        warnings.append(
            f"logit and probability differ, by up to {difference:.2g}: the probabilities were scored."
        )
        return marks["probability"], 0.5
    return marks["logit"], 0.0


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
