"""The page of a training run: how well it does on validation, and how it came to that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from luna_cls.files import POINT_COLUMNS
from luna_cls.judging.binary import precision_recall_points, roc_points
from luna_cls.judging.reliability import assess
from luna_cls.reports import figures
from luna_cls.reports.blocks import Block, Listing, Page, Section, plural
from luna_cls.reports.calibration_sections import decisions, mending, reliability
from luna_cls.reports.candidates import (
    AS_TRAINED,
    every_candidate,
    least_probable,
    ranking_facts,
    ranking_in_words,
    worst_false_alarms,
)
from luna_cls.reports.evidence import need, read_json, read_table, warn_of_few
from luna_cls.reports.viewer import Cubes
from luna_cls.settings import LAST_EPOCH

THRESHOLDS = (
    "Thresholds of the calibrated probability, chosen on the validation scans and shown on the same. On "
    "other scans they may do worse: try them with luna-cls evaluate --thresholds."
)
CURVES = (
    ("loss", {"loss": "training", "val_loss": "validation"}),
    (
        "validation",
        {
            "val_auc": "AUC",
            "val_average_precision": "average precision",
            "val_balanced_accuracy": "balanced accuracy",
        },
    ),
)


def run_page(folder: Path, cubes: Cubes) -> Page:
    """Reads a run folder into a page.

    Args:
        folder: As `luna-cls train` makes it, finished.
        cubes: Where pictures come from.

    Raises:
        InputError: If a file is damaged.
    """
    result = read_json(folder / "metrics.json") or {}
    need(result, folder / "metrics.json", "best_epoch", "monitor", "validation", "no_skill")
    metrics, no_skill = result["validation"], result["no_skill"]
    scores = read_table(folder / "validation_predictions.csv", (*POINT_COLUMNS, "probability", "class"))
    calibration = read_json(folder / "calibration.json")
    points = read_json(folder / "operating_points.json")
    of = AS_TRAINED if calibration else ""
    nodules = int(metrics["tp"] + metrics["fn"])
    count = nodules + int(metrics["fp"] + metrics["tn"])
    scans = f" of {plural(scores['seriesuid'].nunique(), 'scan')}" if scores is not None else ""
    text = (
        f"{count:,} validation candidates{scans}, {nodules:,} of them on nodules (1 in "
        f"{count / nodules:,.0f}). These also chose the epoch that is kept: on scans that had no part in "
        "that it may do worse."
    )
    sections = [
        every_candidate(_curves(scores), metrics, no_skill, None, text, of),
        _reliability(scores, of),
        mending(calibration) if calibration else _without_calibration(),
        decisions(points, THRESHOLDS) if points else None,
        _training(folder, result),
        least_probable(scores[scores["class"] == 1], cubes, of) if scores is not None else None,
        worst_false_alarms(scores[scores["class"] == 0], cubes, of) if scores is not None else None,
        _settings(folder),
    ]
    return Page(
        kind="Training run",
        title=folder.resolve().name,
        verdict=ranking_in_words(metrics, of),
        facts=[
            *ranking_facts(metrics, no_skill, of),
            ("Epoch kept", str(result["best_epoch"]), _why_kept(result["monitor"])),
        ],
        warnings=[
            *(_in_epoch(finding) for finding in result.get("health") or ()),
            *(warn_of_few(scores["seriesuid"].nunique()) if scores is not None else ()),
        ],
        sections=[section for section in sections if section is not None],
    )


def _curves(scores: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if scores is None or scores["class"].nunique() < 2:
        return {}
    finest = scores["logit"] if "logit" in scores.columns else scores["probability"]
    return {
        "roc": roc_points(scores["class"], finest),
        "precision_recall": precision_recall_points(scores["class"], finest),
        "scores": scores,
    }


def _why_kept(monitor: str) -> str:
    """Why an epoch was kept: "the best by average precision" for val_average_precision."""
    if monitor == LAST_EPOCH:
        return "the last, which was to be kept"
    return f"the best by {monitor.removeprefix('val_').replace('_', ' ').replace('auc', 'AUC')}"


def _in_epoch(finding: Mapping[str, Any]) -> str:
    when = f"Epoch {finding['epoch']}: " if finding.get("epoch") else ""
    return f"{when}{finding['finding']}"


def _reliability(scores: pd.DataFrame | None, of: str) -> Section | None:
    """Of the probabilities as they were trained: calibration is another section's."""
    if scores is None or scores["class"].nunique() < 2:
        return None
    section = reliability(assess(scores["class"], scores["probability"], scores["seriesuid"]))
    return replace(section, text=(*section.text, f"These are probabilities{of}.")) if of else section


def _without_calibration() -> Section:
    return Section(
        "calibration",
        "What calibration does",
        ("This run is not calibrated: luna-cls predict gives its probabilities as they were trained.",),
        hint="luna-cls calibrate RUN mends them and chooses thresholds.",
    )


def _training(folder: Path, result: Mapping[str, Any]) -> Section | None:
    history = read_table(folder / "history.csv", ("epoch",))
    if history is None or history.empty:
        return None
    blocks: list[Block] = []
    for name, columns in CURVES:
        there = {column: label for column, label in columns.items() if column in history.columns}
        if there:
            drawn = figures.training(history, there, result["best_epoch"], name, f"training-{name}")
            blocks.append(drawn)
    ended = result.get("diverged_in")
    best = f"epoch {result['best_epoch']} was {_why_kept(result['monitor'])}"
    text = f"{plural(len(history), 'epoch')}; {best}." + (
        f" The training diverged in epoch {ended} and ended there." if ended else ""
    )
    return Section("training", "How training went", (text,), blocks)


def _settings(folder: Path) -> Section | None:
    files = {"settings.toml": "Settings", "environment.json": "Environment"}
    blocks: list[Block] = [
        Listing(f"{title} ({name})", (folder / name).read_text(encoding="utf-8"))
        for name, title in files.items()
        if (folder / name).is_file()
    ]
    if not blocks:
        return None
    text = "With these settings, versions and cubes the same run can be made again."
    return Section("settings", "Settings and environment", (text,), blocks)
