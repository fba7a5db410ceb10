"""FROC and CPM as LUNA16's official evaluation counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RATES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_MARKS_PER_SCAN = 100
UNKNOWN_DIAMETER_MM = 10.0  # stands for the -1 of annotations_excluded.csv

ON_NODULE, IGNORED, FALSE_POSITIVE = "on nodule", "ignored", "false positive"


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
    """

    fps_per_scan: Floats
    sensitivity: Floats
    threshold: Floats
    num_scans: int
    num_nodules: int
    counts: dict[str, int]

    def sensitivity_at(self, fps_per_scan: float) -> float:
        """Sensitivity at a rate of false positives, linear between points and flat past the last."""
        return float(np.interp(fps_per_scan, self.fps_per_scan, self.sensitivity))

    def fps_per_scan_at(self, threshold: ArrayLike) -> Floats:
        """False positives a scan once all marks from some thresholds `(n,)` on count."""
        passed = np.searchsorted(-self.threshold, -np.asarray(threshold, float), side="right") - 1
        return self.fps_per_scan[passed]

    def threshold_at(self, fps_per_scan: float) -> float:
        """The lowest threshold with no more than a rate of false positives; infinite if there is none."""
        return float(self.threshold[np.searchsorted(self.fps_per_scan, fps_per_scan, side="right") - 1])

    def corners(self) -> pd.DataFrame:
        """The curve without points on a straight line between their neighbours, as the official script does.

        Returns:
            Table `fps_per_scan, sensitivity, threshold`.
        """
        points = {
            "fps_per_scan": self.fps_per_scan,
            "sensitivity": self.sensitivity,
            "threshold": self.threshold,
        }
        hits = np.rint(self.sensitivity * self.num_nodules)[1:]
        alarms = np.rint(self.fps_per_scan * self.num_scans)[1:]
        turns = (np.diff(hits, 2) != 0) | (np.diff(alarms, 2) != 0)
        places = [0, 1, *np.flatnonzero(turns) + 2, len(hits)] if len(hits) > 1 else range(len(hits) + 1)
        return pd.DataFrame(points).iloc[places]

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
            "sensitivity_at_fps": by_rate([self.sensitivity_at(rate) for rate in RATES_PER_SCAN]),
            "cpm": self.cpm,
        }


@dataclass(frozen=True, eq=False)
class Matches:
    """Which mark hit what: all that a curve over any draw of the scans needs.

    Args:
        scans: The listed scans, each once.
        marks: The marks that count, in the submission's order and under its index, with two columns more:
            `scan` (its place in `scans`) and `outcome` ("on nodule", "ignored" or "false positive").
        nodules: The nodules of the listed scans, in the annotations' order and under their index, with
            `scan`, `hits` (marks in it), `mark` (the place in `marks` of the most probable of them, -1 if
            there is none) and `probability` (of that; NaN if there is none).
        cut_by_ties: Scans in which fewer than 100 of more marks are left.
    """

    scans: tuple[str, ...]
    marks: pd.DataFrame
    nodules: pd.DataFrame
    cut_by_ties: int

    @property
    def labels(self) -> pd.Series:
        """Of each mark 1 in a nodule, 0 if it is a false positive, -1 on an excluded finding."""
        return self.marks["outcome"].map({ON_NODULE: 1, FALSE_POSITIVE: 0, IGNORED: -1}).astype(int)

    def of_nodules(self, chosen: NDArray[np.bool_]) -> Matches:
        """The same with some of the nodules alone; marks on the others still are no false positives."""
        return replace(self, nodules=self.nodules[chosen])

    @property
    def counts(self) -> dict[str, int]:
        """What became of nodules and marks, under the names of the official script."""
        hits, outcome = self.nodules["hits"].to_numpy(), self.marks["outcome"]
        return {
            "true_positives": int((hits > 0).sum()),
            "false_positives": int((outcome == FALSE_POSITIVE).sum()),
            "false_negatives": int((hits == 0).sum()),
            "ignored": int((outcome == IGNORED).sum()),
            "doubles": int((hits[hits > 0] - 1).sum()),
            "candidates": len(self.marks),
        }

    def curve(self) -> FrocCurve:
        """Sweeps the threshold; nodules that were not found stay in the denominator only."""
        sweep = _Sweep.over(self)
        fps, sensitivity = sweep.run(np.ones(len(self.scans), np.int32))
        threshold = np.concatenate([[np.inf], sweep.probability])
        num_scans, num_nodules = len(self.scans), len(self.nodules)
        return FrocCurve(fps, sensitivity, threshold, num_scans, num_nodules, self.counts)

    def bootstrap(
        self,
        weights: NDArray[np.int32],
        rates: Sequence[float] | Floats = RATES_PER_SCAN,
        dtype: type[np.floating[Any]] = np.float64,
    ) -> NDArray[Any]:
        """Sensitivity at rates of false positives, in other draws of the scans.

        The number of scans stays, nodules are counted anew, as in the official script.

        Args:
            weights: `(resamples, scans)`, how often each scan is drawn (`resampling.scan_weights`).
            rates: False positives a scan, rising.
            dtype: Of what is returned.

        Returns:
            `(resamples, rates)`; NaN in a draw without a nodule.
        """
        sweep, drawn = _Sweep.over(self), np.empty((len(weights), len(rates)), dtype)
        for row, scans in enumerate(weights):
            drawn[row] = np.interp(rates, *sweep.run(scans))
        return drawn


def evaluate(
    marks: pd.DataFrame,
    annotations: pd.DataFrame,
    series_uids: Sequence[str],
    excluded: pd.DataFrame | None = None,
) -> FrocCurve:
    """Scores a submission by LUNA16's rules, as `match` reads them.

    Returns:
        A `FrocCurve`.

    Raises:
        InputError: If no scan is listed, or no nodule is in the listed scans.
    """
    return match(marks, annotations, series_uids, excluded).curve()


def match(
    marks: pd.DataFrame,
    annotations: pd.DataFrame,
    series_uids: Sequence[str],
    excluded: pd.DataFrame | None = None,
) -> Matches:
    """Tells which mark hit what, by LUNA16's rules.

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
        `Matches`.

    Raises:
        InputError: If no scan is listed, or no nodule is in the listed scans.
    """
    scans = pd.Index(dict.fromkeys(series_uids))
    if scans.empty:
        raise InputError("The list of scans is empty. Give the series UIDs that were read.")
    nodules = _listed(annotations, scans)
    if nodules.empty:
        nodules_of_scans = ", ".join(annotations["seriesuid"].head(1)) or "no scan"
        raise InputError(
            "No annotated nodule is in the listed scans: sensitivity is not defined. "
            f"Received: scans {scans[0]}, ...; nodules of {nodules_of_scans}, ..."
        )
    given = _listed(marks, scans)
    kept = given[_counts(given, len(scans))]
    dropped = np.bincount(given["scan"], minlength=len(scans)) > MAX_MARKS_PER_SCAN
    cut_by_ties = dropped & (np.bincount(kept["scan"], minlength=len(scans)) < MAX_MARKS_PER_SCAN)

    outcome = np.full(len(kept), FALSE_POSITIVE, dtype=object)
    if excluded is not None:
        _, ignored = _hits(_listed(excluded, scans), kept, len(scans))
        outcome[ignored] = IGNORED
    hit, hitting = _hits(nodules, kept, len(scans))
    outcome[hitting] = ON_NODULE  # nodules go before excluded findings
    probability = kept["probability"].to_numpy(float)
    rising = np.argsort(probability[hitting], kind="stable")
    best = np.full(len(nodules), -1)
    best[hit[rising]] = hitting[rising]  # the last that is written is the most probable
    return Matches(
        tuple(scans),
        kept.assign(outcome=outcome),
        nodules.assign(
            hits=np.bincount(hit, minlength=len(nodules)),
            mark=best,
            probability=np.where(best >= 0, np.append(probability, np.nan)[best], np.nan),
        ),
        int(cut_by_ties.sum()),
    )


def by_rate(values: Sequence[Any]) -> dict[str, Any]:
    """Something for each of the seven rates, by its name in `froc.json`."""
    return {f"{rate:g}": value for rate, value in zip(RATES_PER_SCAN, values, strict=True)}


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Found nodules and false positives, the most probable first; only their scans' weights differ.

    Args:
        scan: Integers `(n,)`, whose each is.
        is_nodule: Booleans `(n,)`.
        ends: Integers `(thresholds,)`, how many have a probability from a threshold on.
        probability: float64 `(thresholds,)`, the thresholds, falling.
        nodules: Integers `(scans,)`, nodules in each scan.
    """

    scan: Integers
    is_nodule: NDArray[np.bool_]
    ends: Integers
    probability: Floats
    nodules: Integers

    @classmethod
    def over(cls, matches: Matches) -> _Sweep:
        found = matches.nodules[matches.nodules["mark"] >= 0]
        false = matches.marks[matches.marks["outcome"] == FALSE_POSITIVE]
        probability = np.concatenate([found["probability"], false["probability"]])
        order = np.argsort(-probability, kind="stable")
        probability = probability[order]
        is_end = np.append(probability[:-1] != probability[1:], True)[: len(probability)]
        return cls(
            scan=np.concatenate([found["scan"], false["scan"]])[order],
            is_nodule=(np.arange(len(order)) < len(found))[order],
            ends=np.flatnonzero(is_end),
            probability=probability[is_end],
            nodules=np.bincount(matches.nodules["scan"], minlength=len(matches.scans)),
        )

    def run(self, weights: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """False positives a scan and sensitivity, each `(thresholds + 1,)`, of scans drawn so often each."""
        drawn = weights[self.scan]
        hits = np.where(self.is_nodule, drawn, 0).cumsum()[self.ends]
        alarms = np.where(self.is_nodule, 0, drawn).cumsum()[self.ends]
        num_nodules = int(weights @ self.nodules)
        fps = np.concatenate([[0.0], alarms / weights.sum()])
        sensitivity = np.concatenate([[0.0], hits / (num_nodules or np.nan)])
        return fps, sensitivity


def _listed(table: pd.DataFrame, scans: pd.Index) -> pd.DataFrame:
    """The rows of listed scans, with the place of each in the list."""
    scan = scans.get_indexer(table["seriesuid"])
    return table.assign(scan=scan)[scan >= 0]


def _counts(marks: pd.DataFrame, num_scans: int) -> NDArray[np.bool_]:
    """Which marks `(n,)` count: all of a scan with at most 100, else those above the 101st probability."""
    scan, probability = marks["scan"].to_numpy(), marks["probability"].to_numpy(float)
    order = np.lexsort((-probability, scan))
    number = np.bincount(scan, minlength=num_scans)
    start = np.cumsum(number) - number
    limit = np.full(num_scans, -np.inf)
    is_full = number > MAX_MARKS_PER_SCAN
    limit[is_full] = probability[order[start[is_full] + MAX_MARKS_PER_SCAN]]
    return probability > limit[scan]


def _hits(findings: pd.DataFrame, marks: pd.DataFrame, num_scans: int) -> tuple[Integers, Integers]:
    """All pairs `(n,)` of a finding and a mark strictly inside its sphere, by their places in the tables."""
    order = np.argsort(marks["scan"].to_numpy(), kind="stable")
    number = np.bincount(marks["scan"], minlength=num_scans)
    start = np.cumsum(number) - number
    scan = findings["scan"].to_numpy()
    pairs = number[scan]
    finding = np.repeat(np.arange(len(findings)), pairs)
    mark = order[np.arange(len(finding)) + np.repeat(start[scan] - (np.cumsum(pairs) - pairs), pairs)]
    distance_squared = np.zeros(len(finding))
    for axis in COORDINATES:
        distance_squared += (findings[axis].to_numpy(float)[finding] - marks[axis].to_numpy(float)[mark]) ** 2
    diameter_mm = findings["diameter_mm"].to_numpy(float)
    radius_mm = np.where(diameter_mm < 0, UNKNOWN_DIAMETER_MM, diameter_mm) / 2
    is_hit = distance_squared < (radius_mm**2)[finding]
    return finding[is_hit], mark[is_hit]
