"""A submission becomes a folder of evidence: FROC and CPM, metrics, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from luna_cls.errors import InputError
from luna_cls.files import read_series_uids, require_new, whole_folder, write_csv, write_json
from luna_cls.judging import breakdown, froc
from luna_cls.judging.binary import binary_metrics, no_skill_metrics, precision_recall_points, roc_points
from luna_cls.judging.froc import FALSE_POSITIVE, ON_NODULE, Matches
from luna_cls.judging.official import write_official_files
from luna_cls.judging.resampling import RESAMPLES, SEED, scan_weights
from luna_cls.judging.submission import (
    check_scans,
    read_annotations,
    read_submission,
    read_subset,
    submission_in,
    warnings,
)

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Reference:
    """What predictions are scored against, as files.

    Args:
        annotations: CSV of the nodules; None for metrics of labelled candidates alone.
        excluded: CSV of findings to ignore.
        series_uids: List of all scans that were read; None for those that have predictions.
        subset: One of LUNA16's subsets, to score against its own scans only.
        subsets: What tells the subsets: a LUNA16 tree, or a CSV with `seriesuid,subset`.
    """

    annotations: Path | None = None
    excluded: Path | None = None
    series_uids: Path | None = None
    subset: int | None = None
    subsets: Path | None = None

    def __post_init__(self) -> None:
        if (self.subset is None) != (self.subsets is None):
            raise InputError(
                "A subset takes a number and what tells the subsets: --subset K --subsets LUNA_DIR, or a CSV "
                f"with seriesuid,subset. Received: --subset {self.subset}, --subsets {self.subsets}."
            )

    @property
    def paths(self) -> list[Path]:
        """All files and folders named."""
        return [path for path in asdict(self).values() if isinstance(path, Path)]

    def scans_of(self, marks: pd.DataFrame) -> list[str]:
        """The scans that count: those listed, or else those with marks; with a subset, its own of them."""
        listed = read_series_uids(self.series_uids) if self.series_uids else None
        if self.subset is None or self.subsets is None:
            return listed or marks["seriesuid"].unique().tolist()
        own = read_subset(self.subsets, self.subset)
        return own if listed is None else [uid for uid in listed if uid in set(own)]


def evaluate_submission(
    submission: Path,
    annotations: Path | None,
    out: Path,
    excluded: Path | None = None,
    series_uids: Path | None = None,
    *,
    subset: int | None = None,
    subsets: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    finish: Callable[[Path], object] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Scores a submission and makes the folder `out`.

    It holds `evaluation.json` (what was scored, and warnings); `froc.json`, `froc.csv`, `nodules.csv`,
    `false_positives.csv`, `scans.csv` and the official script's own files; and of labelled candidates
    `metrics.json`, `roc.csv` and `precision_recall.csv`: by the submission's column `class`, or else by which
    marks lie in nodules, those on excluded findings left out.

    Args:
        submission: A CSV; or the folder of a run, of a cross-validation or of findings.
        annotations: CSV of the nodules. None for a submission with a column `class`: no FROC then.
        out: The folder to make.
        excluded: CSV of findings to ignore.
        series_uids: List of all scans that were read; None for those that the submission names.
        subset: One of LUNA16's subsets, to be scored against its own scans only.
        subsets: What tells the subsets: a LUNA16 tree, or a CSV with `seriesuid,subset`.
        resamples: Bootstrap resamples of scans, for 95 % intervals; 0 for none.
        seed: Of these.
        finish: Called with the folder before it takes its place, to add pages and pictures.
        force: Replace `out` if it exists.

    Returns:
        `warnings` (sentences on what may mislead), `metrics` and `no_skill` (None where there is nothing to
        measure), `labels` (what they rest on: "class" or "luna16") and, with annotations, `froc`.

    Raises:
        InputError: If a file is wrong, no nodule is in the listed scans, or `out` exists.
    """
    reference = Reference(annotations, excluded, series_uids, subset, subsets)
    path = submission_in(submission)
    require_new(out, force=force, sign=EVALUATION, inputs=[path, *reference.paths])
    with whole_folder(out) as folder:
        result = write_evaluation(folder, path, reference, resamples, seed)
        if finish:
            finish(folder)
    return result


def write_evaluation(
    folder: Path, submission: Path, reference: Reference, resamples: int, seed: int
) -> dict[str, Any]:
    """Fills a folder with what `evaluate_submission` tells of, and returns that."""
    marks = read_submission(submission)
    uids = reference.scans_of(marks)
    check_scans(submission, marks, uids)
    result: dict[str, Any] = {"warnings": []}
    matches = None
    if reference.annotations:
        nodules = read_annotations(reference.annotations)
        ignored = read_annotations(reference.excluded, "excluded findings") if reference.excluded else None
        matches = froc.match(marks, nodules, uids, ignored)
        result["warnings"] = warnings(
            marks,
            nodules,
            ignored,
            matches,
            listed=reference.series_uids is not None or reference.subset is not None,
        )
        result["froc"] = _write_froc(folder, submission.stem, matches, resamples, seed)
    elif "class" not in marks.columns:
        raise InputError(
            f"{submission} has no column class: without --annotations there is nothing to score it against."
        )
    _write_metrics(folder, marks[marks["seriesuid"].isin(uids)], matches, result)
    inputs = {
        name: value.name if isinstance(value, Path) else value for name, value in asdict(reference).items()
    }
    about = {"inputs": {"predictions": submission.name, **inputs}, "warnings": result["warnings"]}
    write_json(folder / EVALUATION, about)
    return result


def _write_froc(
    folder: Path,
    name: str,
    matches: Matches,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    curve = matches.curve()
    weights = scan_weights(len(matches.scans), resamples, seed) if resamples else None
    summary = {
        **curve.summary(),
        "cpm_interval_95": None,
        "sensitivity_at_fps_interval_95": None,
        **({} if weights is None else breakdown.intervals(matches, weights)),
        "bootstrap": {"resamples": resamples, "seed": seed} if resamples else None,
        "by_size": breakdown.by_size(matches, weights),
    }
    band = None if weights is None else breakdown.band(matches, weights)
    write_json(folder / "froc.json", summary)
    write_csv(folder / "froc.csv", curve.corners())
    write_csv(folder / "nodules.csv", breakdown.nodules(matches, curve))
    write_csv(folder / "false_positives.csv", breakdown.false_positives(matches))
    write_csv(folder / "scans.csv", breakdown.scans(matches, curve))
    write_official_files(folder, name, matches, curve, band)
    return summary


def _write_metrics(
    folder: Path, marks: pd.DataFrame, matches: Matches | None, result: dict[str, Any]
) -> None:
    """Metrics of labelled candidates; without a column `class`, a mark is what LUNA16's rule makes of it."""
    result["labels"] = "class" if "class" in marks.columns else "luna16"
    if matches is not None and "class" not in marks.columns:
        marks = matches.marks[matches.marks["outcome"].isin([ON_NODULE, FALSE_POSITIVE])]
        marks = marks.assign(**{"class": (marks["outcome"] == ON_NODULE).astype(int)})
    result["metrics"] = result["no_skill"] = None
    if len(marks):
        labels, (scores, threshold) = marks["class"], _scores(marks, result["warnings"])
        result["metrics"] = binary_metrics(labels, scores, threshold)
        result["no_skill"] = no_skill_metrics(labels)
        if labels.nunique() == 2:
            write_csv(folder / "roc.csv", roc_points(labels, scores))
            write_csv(folder / "precision_recall.csv", precision_recall_points(labels, scores))
    write_json(folder / "metrics.json", {name: result[name] for name in ("labels", "metrics", "no_skill")})


def _scores(marks: pd.DataFrame, warned: list[str]) -> tuple[pd.Series, float]:
    """The finest scores there are and their threshold; says so if the logits are not the probabilities'."""
    if "logit" not in marks.columns:
        return marks["probability"], 0.5
    difference = np.abs(expit(marks["logit"]) - marks["probability"]).max()
    if difference > 1e-6:
        warned.append(
            f"logit and probability differ, by up to {difference:.2g}: the probabilities were scored."
        )
        return marks["probability"], 0.5
    return marks["logit"], 0.0
