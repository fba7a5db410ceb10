"""Where a FROC curve comes from: nodules by size, scan by scan, misses and false alarms one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.files import POINT_COLUMNS
from luna_cls.judging.froc import FALSE_POSITIVE, RATES_PER_SCAN, FrocCurve, Matches, by_rate
from luna_cls.judging.resampling import interval_95

SIZES_MM = {"< 6": (-np.inf, 6.0), "6 to 10": (6.0, 10.0), ">= 10": (10.0, np.inf)}
MOST_FALSE_POSITIVES = 200
_BAND_RATES = np.linspace(RATES_PER_SCAN[0], RATES_PER_SCAN[-1], 10_000)


def intervals(matches: Matches, weights: NDArray[np.int32]) -> dict[str, Any]:
    """95 % intervals of the CPM and of every sensitivity in it, as `froc.json` names them.

    Args:
        matches: What hit what.
        weights: `(resamples, scans)`, how often each scan is drawn.
    """
    drawn = matches.bootstrap(weights)
    return {
        "cpm_interval_95": interval_95(drawn.mean(axis=1)).tolist(),
        "sensitivity_at_fps_interval_95": by_rate(interval_95(drawn).T.tolist()),
    }


def by_size(matches: Matches, weights: NDArray[np.int32] | None) -> list[dict[str, Any]]:
    """Sensitivity for nodules of each size, against all false positives; sizes without a nodule are left out.

    Args:
        matches: What hit what.
        weights: `(resamples, scans)` for intervals; None for none.
    """
    rows = []
    for name, (low_mm, high_mm) in SIZES_MM.items():
        part = matches.of_nodules(matches.nodules["diameter_mm"].between(low_mm, high_mm, "left").to_numpy())
        if part.nodules.empty:
            continue
        curve = part.curve()
        summary = curve.summary()
        rows.append(
            {
                "diameter_mm": name,
                "num_nodules": curve.num_nodules,
                "num_found": summary["counts"]["true_positives"],
                "sensitivity_at_fps": summary["sensitivity_at_fps"],
                "cpm": summary["cpm"],
                **({} if weights is None else intervals(part, weights)),
            }
        )
    return rows


def nodules(matches: Matches, curve: FrocCurve) -> pd.DataFrame:
    """Every nodule, the hardest first: those that were missed, then by the false alarms they cost.

    Returns:
        Table `seriesuid, coordX, coordY, coordZ, diameter_mm, probability, fps_per_scan`: the probability of
        its best hit and the rate of false positives from which it is found, both NaN if it is missed.
    """
    table = matches.nodules[[*POINT_COLUMNS, "diameter_mm", "probability"]]
    found = table["probability"].notna()
    fps = np.full(len(table), np.nan)
    fps[found] = curve.fps_per_scan_at(table["probability"][found])
    return table.assign(fps_per_scan=fps).sort_values(
        ["probability", "diameter_mm"], na_position="first", ignore_index=True
    )


def false_positives(matches: Matches) -> pd.DataFrame:
    """The 200 most probable false positives, table `seriesuid, coordX, coordY, coordZ, probability`."""
    marks = matches.marks[matches.marks["outcome"] == FALSE_POSITIVE]
    marks = marks.sort_values("probability", ascending=False, kind="stable", ignore_index=True)
    return marks[[*POINT_COLUMNS, "probability"]].head(MOST_FALSE_POSITIVES)


def scans(matches: Matches, curve: FrocCurve) -> pd.DataFrame:
    """What became of every listed scan, at every threshold and at that of one false positive a scan.

    Returns:
        Table `seriesuid, num_nodules, num_found, num_marks, num_false_positives, found_at_1,
        false_positives_at_1`.
    """
    threshold = curve.threshold_at(1.0)

    def count(table: pd.DataFrame, chosen: Any = slice(None)) -> NDArray[np.int64]:
        return np.bincount(table["scan"][chosen], minlength=len(matches.scans))

    of_nodules, marks = matches.nodules, matches.marks
    is_false = marks["outcome"] == FALSE_POSITIVE
    return pd.DataFrame(
        {
            "seriesuid": matches.scans,
            "num_nodules": count(of_nodules),
            "num_found": count(of_nodules, of_nodules["hits"] > 0),
            "num_marks": count(marks),
            "num_false_positives": count(marks, is_false),
            "found_at_1": count(of_nodules, of_nodules["probability"] >= threshold),
            "false_positives_at_1": count(marks, is_false & (marks["probability"] >= threshold)),
        }
    )


def band(matches: Matches, weights: NDArray[np.int32]) -> pd.DataFrame:
    """Bootstrap mean and 95 % interval of a curve from 1/8 to 8, under the official script's column names."""
    drawn = matches.bootstrap(weights, _BAND_RATES, np.float32)
    defined = drawn[np.isfinite(drawn[:, 0])]
    if not len(defined):
        defined = np.full((1, len(_BAND_RATES)), np.nan)
    # A few columns at a time: percentiles copy what they are given.
    parts = np.array_split(defined, 20, axis=1)
    low, high = np.hstack([np.percentile(part, [2.5, 97.5], axis=0) for part in parts])
    return pd.DataFrame(
        {
            "FPrate": _BAND_RATES,
            "Sensivity[Mean]": defined.mean(axis=0, dtype=float),
            "Sensivity[Lower bound]": low,
            "Sensivity[Upper bound]": high,
        }
    )
