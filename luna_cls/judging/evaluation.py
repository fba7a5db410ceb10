"""How well scores tell nodules from the rest: exact, from all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

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
from luna_cls.judging.binary import binary_metrics, no_skill_metrics


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
    result: dict[str, Any] = {"froc": curve.summary(), "warnings": []}
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
