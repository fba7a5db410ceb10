"""FROC and CPM as LUNA16's official evaluation counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES

Floats = NDArray[np.float64]

RATES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_MARKS_PER_SCAN = 100
UNKNOWN_DIAMETER_MM = 10.0  # stands for the -1 of annotations_excluded.csv


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity against false positives a scan, over all thresholds.

    Args:
        fps_per_scan: float64 `(n,)`, rising from 0.
        sensitivity: float64 `(n,)`, share of all nodules found, rising from 0.
        threshold: float64 `(n,)`, the probability from which marks count; infinite at the start.
        num_scans: Scans the false positives are divided by.
        num_nodules: Nodules the hits are divided by.
        counts: true_positives, false_positives, false_negatives, ignored, doubles, candidates.
        warnings: What may mislead, a sentence each.
    """

    fps_per_scan: Floats
    sensitivity: Floats
    threshold: Floats
    num_scans: int
    num_nodules: int
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()

    def sensitivity_at(self, fps_per_scan: float) -> float:
        """Sensitivity at a rate of false positives, linear between points and flat past the last."""
        return float(np.interp(fps_per_scan, self.fps_per_scan, self.sensitivity))

    @property
    def cpm(self) -> float:
        """Competition performance metric: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 a scan."""
        return float(np.mean([self.sensitivity_at(rate) for rate in RATES_PER_SCAN]))

    def summary(self) -> dict[str, Any]:
        """What `froc.json` holds: counts, sensitivity at each rate, CPM."""
        return {
            "num_scans": self.num_scans,
            "num_nodules": self.num_nodules,
            "counts": self.counts,
            "sensitivity_at_fps": {f"{rate:g}": self.sensitivity_at(rate) for rate in RATES_PER_SCAN},
            "cpm": self.cpm,
        }


def evaluate(
    marks: pd.DataFrame,
    annotations: pd.DataFrame,
    series_uids: Sequence[str],
    excluded: pd.DataFrame | None = None,
) -> FrocCurve:
    """Scores a submission by LUNA16's rules.

    At most 100 marks a scan count: above that, only those strictly more probable than the 101st. A mark
    hits a nodule if it is nearer to its centre than its radius. A nodule takes the probability of its
    best hit; its other hits are neither hits nor false alarms. A mark that hits only an excluded finding
    is ignored. Every other mark is a false positive.

    Args:
        marks: Table `seriesuid, coordX, coordY, coordZ, probability`; world mm.
        annotations: Nodules, table `seriesuid, coordX, coordY, coordZ, diameter_mm`.
        series_uids: All scans that were read, those without marks or nodules included. Rows of other
            scans are left out.
        excluded: Findings to ignore, as `annotations`; a negative diameter stands for 10 mm.

    Returns:
        A `FrocCurve`.

    Raises:
        InputError: If no scan is listed, or no nodule is in the listed scans.
    """
    scans = list(dict.fromkeys(series_uids))
    if not scans:
        raise InputError("The list of scans is empty. Give the series UIDs that were read.")
    listed = annotations[annotations["seriesuid"].isin(scans)]
    if listed.empty:
        nodules_of_scans = ", ".join(annotations["seriesuid"].head(1)) or "no scan"
        raise InputError(
            "No annotated nodule is in the listed scans: sensitivity is not defined. "
            f"Received: scans {scans[0]}, ...; nodules of {nodules_of_scans}, ..."
        )
    annotations = listed
    nodules_of = dict(tuple(annotations.groupby("seriesuid")))
    excluded_of = dict(tuple(excluded.groupby("seriesuid"))) if excluded is not None else {}
    marks_of = dict(tuple(marks.groupby("seriesuid")))

    counts = dict.fromkeys(
        ("true_positives", "false_positives", "false_negatives", "ignored", "doubles", "candidates"), 0
    )
    found: list[Floats] = []
    false: list[Floats] = []
    cut_by_ties = 0
    for uid in scans:
        points, probability = _kept_marks(marks_of.get(uid))
        cut_by_ties += len(points) < min(MAX_MARKS_PER_SCAN, len(marks_of.get(uid, ())))
        hits = _hits(nodules_of.get(uid), points)
        irrelevant = _hits(excluded_of.get(uid), points).any(axis=0)
        on_nodule = hits.any(axis=0)
        is_found = hits.any(axis=1)
        best = np.where(hits, probability, -np.inf).max(axis=1, initial=-np.inf)
        found.append(best[is_found])
        false.append(probability[~on_nodule & ~irrelevant])
        counts["true_positives"] += int(is_found.sum())
        counts["false_negatives"] += int((~is_found).sum())
        counts["doubles"] += int((hits.sum(axis=1)[is_found] - 1).sum())
        counts["ignored"] += int((irrelevant & ~on_nodule).sum())
        counts["false_positives"] += len(false[-1])
        counts["candidates"] += len(points)
    curve = _curve(np.concatenate(found), np.concatenate(false), len(scans), len(annotations), counts)
    if not cut_by_ties:
        return curve
    warning = (
        f"In {cut_by_ties} scans equal probabilities around the 100th mark were all dropped, as LUNA16's "
        "rule has it: fewer than 100 marks count there. Write probabilities with more digits."
    )
    return replace(curve, warnings=(warning,))


def _kept_marks(marks: pd.DataFrame | None) -> tuple[Floats, Floats]:
    """Points `(n, 3)` and probabilities `(n,)` of the marks of one scan that count."""
    if marks is None:
        return np.empty((0, 3)), np.empty(0)
    points = marks[COORDINATES].to_numpy(float)
    probability = marks["probability"].to_numpy(float)
    if len(probability) <= MAX_MARKS_PER_SCAN:
        return points, probability
    limit = np.sort(probability)[::-1][MAX_MARKS_PER_SCAN]
    return points[probability > limit], probability[probability > limit]


def _hits(findings: pd.DataFrame | None, points: Floats) -> NDArray[np.bool_]:
    """`(findings, points)`: which points lie inside which sphere, strictly."""
    if findings is None:
        return np.zeros((0, len(points)), bool)
    centers = findings[COORDINATES].to_numpy(float)
    diameter_mm = findings["diameter_mm"].to_numpy(float)
    radius_mm = np.where(diameter_mm < 0, UNKNOWN_DIAMETER_MM, diameter_mm) / 2
    distance_squared = ((centers[:, None] - points) ** 2).sum(axis=-1)
    return distance_squared < radius_mm[:, None] ** 2


def _curve(
    found: Floats, false: Floats, num_scans: int, num_nodules: int, counts: dict[str, int]
) -> FrocCurve:
    """Sweeps the threshold; nodules that were not found stay in the denominator only."""
    if not len(found) and not len(false):
        fps, sensitivity, threshold = np.zeros(1), np.zeros(1), np.full(1, np.inf)
    else:
        probability = np.concatenate([found, false])
        threshold = np.unique(probability)[::-1]
        hits = np.searchsorted(np.sort(-found), -threshold, side="right")
        alarms = np.searchsorted(np.sort(-false), -threshold, side="right")
        fps = np.concatenate([[0.0], alarms / num_scans])
        sensitivity = np.concatenate([[0.0], hits / num_nodules])
        threshold = np.concatenate([[np.inf], threshold])
    return FrocCurve(fps, sensitivity, threshold, num_scans, num_nodules, counts)
