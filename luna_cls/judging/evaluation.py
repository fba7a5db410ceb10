"""Submissions become a folder of evidence: FROC and CPM, metrics, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from luna_cls.errors import InputError
from luna_cls.files import require_new, whole_folder, write_csv, write_json
from luna_cls.judging import breakdown, froc, operating_points, reliability
from luna_cls.judging.binary import binary_metrics, no_skill_metrics, precision_recall_points, roc_points
from luna_cls.judging.froc import Matches
from luna_cls.judging.labelled import Scores
from luna_cls.judging.official import write_official_files
from luna_cls.judging.resampled_metrics import resampled_metrics
from luna_cls.judging.resampling import RESAMPLES, SEED, interval_95, scan_weights
from luna_cls.judging.submission import (
    OF_FOLDER,
    Reference,
    check_scans,
    read_submission,
    submission_in,
    warnings,
)

EVALUATION, COMPARISON = "evaluation.json", "comparison.json"


def evaluate_submission(
    submission: Path,
    reference: Reference,
    out: Path,
    *,
    thresholds: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    finish: Callable[[Path], object] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Scores a submission and makes the folder `out`.

    It holds `evaluation.json` (what was scored, and warnings); `froc.json`, `froc.csv`, `nodules.csv`,
    `false_positives.csv`, `scans.csv` and the official script's own files; and of labelled candidates
    `metrics.json`, `roc.csv`, `precision_recall.csv`, `reliability.json` and `operating_points.json`: by the
    submission's column `class`, or else by which marks lie in nodules, those on excluded findings left out.

    Args:
        submission: A CSV; or the folder of a run, of a cross-validation or of findings.
        reference: What it is scored against.
        out: The folder to make.
        thresholds: The `operating_points.json` of a calibrated run, to be tried on this submission.
        resamples: Bootstrap resamples of scans, for 95 % intervals; 0 for none.
        seed: Of these.
        finish: Called with the folder before it takes its place, to add pages and pictures.
        force: Replace `out` if it exists.

    Returns:
        `warnings` (sentences on what may mislead), `metrics` and `no_skill` (None where there is nothing to
        measure), `labels` (what they rest on: "class" or "luna16"), `points` (what thresholds do, if some
        were given) and, with annotations, `froc`.

    Raises:
        InputError: If a file is wrong, no nodule is in the listed scans, or `out` exists.
    """
    path = submission_in(submission)
    inputs = [path, *reference.paths, *([thresholds] if thresholds else [])]
    require_new(out, force=force, sign=EVALUATION, inputs=inputs)
    marks = read_submission(path)
    with whole_folder(out) as folder:
        result = _write(folder, path, marks, reference, reference.findings(), thresholds, resamples, seed)
        if finish:
            finish(folder)
    return result


def compare_submissions(
    submissions: Sequence[Path],
    reference: Reference,
    out: Path,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    finish: Callable[[Path], object] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Scores two submissions or more, each into a folder in `out`, and compares them in `comparison.json`.

    Args:
        submissions: As `evaluate_submission` takes one.
        reference: What they are scored against.
        out: The folder to make.
        resamples: Bootstrap resamples of scans.
        seed: Of these.
        finish: Called with each folder before they take their place, that of the comparison last.
        force: Replace `out` if it exists.

    Returns:
        What `comparison.json` holds: what `Comparison.summary` gives, and `warnings`.

    Raises:
        InputError: As `evaluate_submission` and `comparison.compare` do.
    """
    from luna_cls.judging import comparison  # with SciPy's statistics, which one submission does not wait for

    paths = [submission_in(submission) for submission in submissions]
    require_new(out, force=force, sign=COMPARISON, inputs=[*paths, *reference.paths])
    if not resamples:
        raise InputError("A comparison rests on resamples of the scans. Received: --resamples 0.")
    names, folds = _names(submissions), comparison.folds_of(submissions)
    tables = {name: read_submission(path) for name, path in zip(names, paths, strict=True)}
    nodules, ignored = findings = reference.findings()
    uids = reference.scans_of(tables[names[0]]) if reference.lists_scans else None
    found = comparison.compare(tables, nodules, uids, ignored, folds=folds, resamples=resamples, seed=seed)
    warned: dict[str, list[str]] = {}
    with whole_folder(out) as folder:
        for name, path in zip(names, paths, strict=True):
            (folder / name).mkdir()
            written = _write(folder / name, path, tables[name], reference, findings, None, resamples, seed)
            for sentence in written["warnings"]:
                warned.setdefault(sentence, []).append(name)
        summary = {
            **found.summary(),
            "warnings": [
                sentence if len(of) == len(names) else f"{', '.join(of)}: {sentence}"
                for sentence, of in warned.items()
            ],
        }
        write_json(folder / COMPARISON, summary)
        if finish:
            for name in names:
                finish(folder / name)
            finish(folder)
    return summary


def _names(submissions: Sequence[Path]) -> list[str]:
    """What each is called: its file or folder, after its parent where two are equal, else with a number."""
    names = [path.stem if path.is_file() else path.resolve().name for path in submissions]
    longer = [f"{path.resolve().parent.name}-{name}" for path, name in zip(submissions, names, strict=True)]
    names = [long if names.count(name) > 1 else name for long, name in zip(longer, names, strict=True)]
    return names if len(set(names)) == len(names) else [f"{at}-{name}" for at, name in enumerate(names, 1)]


def _write(
    folder: Path,
    submission: Path,
    marks: pd.DataFrame,
    reference: Reference,
    findings: tuple[pd.DataFrame | None, pd.DataFrame | None],
    thresholds: Path | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Fills a folder with what `evaluate_submission` tells of, and returns that.

    The tables, of the submission and of `Reference.findings`, are those of the files.
    """
    if marks.empty and not reference.lists_scans:
        raise InputError(f"{submission} has no row. List the scans that were read with --seriesuids.")
    uids = reference.scans_of(marks)
    check_scans(submission, marks, uids)
    resamples = resamples if len(uids) > 1 else 0  # one scan is drawn as it is
    result: dict[str, Any] = {"warnings": []}
    matches = None
    nodules, ignored = findings
    if nodules is not None:
        matches = froc.match(marks, nodules, uids, ignored)
        result["warnings"] = warnings(marks, nodules, ignored, matches, reference)
        result["froc"] = _write_froc(folder, submission.stem, matches, resamples, seed)
    elif "class" not in marks.columns:
        raise InputError(
            f"{submission} has no column class: without --annotations there is nothing to score it against."
        )
    points = None
    if thresholds is not None:
        from luna_cls.judging import calibrated_run  # with SciPy's optimisers, likewise

        points = operating_points.read(thresholds)
        result["warnings"] += calibrated_run.check_thresholds(thresholds, points, submission)
    result |= _write_metrics(folder, marks, uids, matches, points, result["warnings"], resamples, seed)
    inputs = {
        name: value.name if isinstance(value, Path) else value for name, value in asdict(reference).items()
    }
    held_in = submission.resolve().parent.name if submission.name in OF_FOLDER else None
    inputs = {"predictions": submission.name, "folder": held_in, **inputs}
    about = {"inputs": inputs, "warnings": result["warnings"]}
    write_json(folder / EVALUATION, about)
    return result


def _write_froc(folder: Path, name: str, matches: Matches, resamples: int, seed: int) -> dict[str, Any]:
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
    folder: Path,
    marks: pd.DataFrame,
    uids: list[str],
    matches: Matches | None,
    thresholds: dict[str, Any] | None,
    warned: list[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Of labelled candidates; without a column `class`, a mark is what LUNA16's rule makes of it."""
    result: dict[str, Any] = {
        "labels": "class" if "class" in marks.columns else "luna16",
        "metrics": None,
        "no_skill": None,
        "interval_95": None,
    }
    if matches is not None and result["labels"] == "luna16":
        marks = matches.marks.assign(**{"class": matches.labels})[matches.labels >= 0]
    scan = pd.Index(uids).get_indexer(marks["seriesuid"])
    marks, scan = marks[scan >= 0], scan[scan >= 0]
    points = None
    if not len(marks) and thresholds is not None:
        warned.append("The submission has no candidate to try the thresholds on.")
    if len(marks):
        labels, scores = marks["class"].to_numpy(int), Scores.of(marks)
        if "logit" in marks.columns and scores.threshold != 0:
            difference = np.abs(expit(marks["logit"]) - marks["probability"]).max()
            warned.append(
                f"logit and probability differ, by up to {difference:.2g}: the probabilities were scored."
            )
        result["metrics"] = binary_metrics(labels, scores.ranking, scores.threshold)
        result["no_skill"] = no_skill_metrics(labels)
        if resamples:
            draws = scan_weights(len(uids), resamples, seed)
            drawn = resampled_metrics(
                labels, scores.ranking, scores.probability, scan, draws, scores.threshold
            )
            result["interval_95"] = {name: interval_95(values).tolist() for name, values in drawn.items()}
        if len(np.unique(labels)) == 2:
            write_csv(folder / "roc.csv", roc_points(labels, scores.ranking))
            write_csv(folder / "precision_recall.csv", precision_recall_points(labels, scores.ranking))
        series = marks["seriesuid"].to_numpy() if resamples else None
        judged = reliability.assess(labels, scores.probability, series, resamples=resamples, seed=seed)
        write_json(folder / "reliability.json", judged)
        points = _write_operating_points(
            folder, marks, scores, labels, len(uids), thresholds, resamples, seed
        )
    write_json(folder / "metrics.json", result)
    return {**result, "points": points}


def _write_operating_points(
    folder: Path,
    marks: pd.DataFrame,
    scores: Scores,
    labels: np.ndarray,
    num_scans: int,
    thresholds: dict[str, Any] | None,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]] | None:
    """What thresholds that were chosen elsewhere do here, and what any is worth."""
    points = None
    if thresholds is not None:
        logits = (
            scores.ranking if scores.threshold == 0 else logit(np.clip(scores.probability, 1e-300, 1 - 1e-16))
        )
        points = operating_points.apply(
            thresholds["points"],
            labels,
            logits,
            marks["seriesuid"].to_numpy(),
            num_scans,
            seed=seed,
            resamples=resamples,
        )
    curve = operating_points.decision_curve(labels, scores.probability)
    write_json(folder / "operating_points.json", {"points": points, "decision_curve": curve})
    return points
