"""The files that LUNA16's official script leaves, under its names, for tools that read those."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from luna_cls.files import COORDINATES, write_text
from luna_cls.judging.froc import FALSE_POSITIVE, FrocCurve, Matches

_MISSED = -1e9  # the probability it gives to nodules without a mark


def write_official_files(
    folder: Path, name: str, matches: Matches, curve: FrocCurve, band: pd.DataFrame | None
) -> None:
    """Writes `CADAnalysis.txt`, `nodulesWithoutCandidate_NAME.txt`, `froc_NAME.txt`, and more.

    That is `froc_gt_prob_vectors_NAME.csv` and, with a band, `froc_NAME_bootstrapping.csv`. As in the
    official script, `froc_NAME.txt` leaves out points on a straight line between their neighbours.

    Args:
        folder: Where to.
        name: What the submission is called.
        matches: What hit what.
        curve: Its curve.
        band: As `breakdown.band` gives it, or None.
    """
    nodules = matches.nodules
    write_text(folder / "CADAnalysis.txt", _analysis(name, curve))
    missed = nodules[nodules["hits"] == 0]
    points = missed[["seriesuid", *COORDINATES, "diameter_mm"]].itertuples(index=False)
    lines = [f"{uid},None,{x},{y},{z},{diameter_mm:.9f},-1\n" for uid, x, y, z, diameter_mm in points]
    write_text(folder / f"nodulesWithoutCandidate_{name}.txt", "".join(lines))

    _write_numbers(
        folder / f"froc_{name}.txt",
        curve.corners(),
        header=False,
    )
    false = matches.marks[matches.marks["outcome"] == FALSE_POSITIVE]
    vectors = pd.concat(
        [
            pd.DataFrame(
                {
                    "scan": nodules["scan"],
                    "is_nodule": 1,
                    "probability": nodules["probability"].fillna(_MISSED),
                }
            ),
            pd.DataFrame({"scan": false["scan"], "is_nodule": 0, "probability": false["probability"]}),
        ]
    ).sort_values("scan", kind="stable")
    _write_numbers(
        folder / f"froc_gt_prob_vectors_{name}.csv", vectors[["is_nodule", "probability"]], header=False
    )
    if band is not None:
        _write_numbers(folder / f"froc_{name}_bootstrapping.csv", band, header=True)


def _write_numbers(path: Path, table: pd.DataFrame, *, header: bool) -> None:
    write_text(path, table.to_csv(None, index=False, header=header, float_format="%.9f", lineterminator="\n"))


def _analysis(name: str, curve: FrocCurve) -> str:
    counts, stars = curve.counts, "*" * 60
    figures = {
        "True positives": counts["true_positives"],
        "False positives": counts["false_positives"],
        "False negatives": counts["false_negatives"],
        "True negatives": 0,
        "Total number of candidates": counts["candidates"],
        "Total number of nodules": curve.num_nodules,
        "Ignored candidates on excluded nodules": counts["ignored"],
        "Ignored candidates which were double detections on a nodule": counts["doubles"],
        "Sensitivity": f"{counts['true_positives'] / curve.num_nodules:.9f}",
        "Average number of candidates per scan": f"{counts['candidates'] / curve.num_scans:.9f}",
    }
    lines = "".join(f"    {title}: {figure}\n" for title, figure in figures.items())
    return f"\n{stars}\nCAD Analysis: {name}\n{stars}\n\nCandidate detection results:\n{lines}"
