"""Evidence as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "specificity_at_sensitivity_0.9": "specificity at sensitivity 0.9",
    "sensitivity_at_specificity_0.9": "sensitivity at specificity 0.9",
    "precision": "precision",
    "recall": "sensitivity",
    "specificity": "specificity",
}
_COUNTS = {
    "tp": "candidates in nodules, found",
    "fn": "candidates in nodules, missed",
    "fp": "false alarms",
    "tn": "rightly dismissed",
}

_OF_A_FOLD = ("balanced_accuracy", "auc", "average_precision")


def print_metrics(
    console: Console,
    title: str,
    metrics: Mapping[str, Any],
    no_skill: Mapping[str, Any],
    cpm: float | None = None,
) -> None:
    """Prints metrics beside those of always saying no.

    Args:
        console: Where to.
        title: What was scored.
        metrics: `binary_metrics` of a model.
        no_skill: Those of always saying no, on the same candidates.
        cpm: The model's CPM, where it was computed; always saying no has 0.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric")
    table.add_column("model", justify="right", style="bold")
    table.add_column("always 'no'", justify="right")
    for name, label in METRIC_NAMES.items():
        table.add_row(label, _share(metrics[name]), _share(no_skill[name]))
    if cpm is not None:
        table.add_row("CPM", _share(cpm), _share(0.0))
    table.add_section()
    for name, label in _COUNTS.items():
        table.add_row(label, f"{metrics[name]:,}", f"{no_skill[name]:,}")
    console.print(table)


def print_folds(console: Console, result: Mapping[str, Any]) -> None:
    """Prints a line for every fold of a cross-validation, and mean and standard deviation over them.

    Args:
        console: Where to.
        result: What `learning.crossvalidation.crossvalidate` gives.
    """
    table = Table(title="each fold by itself", title_justify="left", title_style="bold")
    for column in ("fold", "epoch", "chosen on", "cubes", "nodules"):
        table.add_column(column, justify="right")
    for name in _OF_A_FOLD:
        table.add_column(METRIC_NAMES[name], justify="right")
    for fold in result["folds"]:
        counts = f"{fold['cubes']:,}", f"{fold['nodules']:,}"
        about = str(fold["fold"]), str(fold["best_epoch"]), str(fold["validation_fold"]), *counts
        table.add_row(*about, *(_share(fold["metrics"][name]) for name in _OF_A_FOLD))
    table.add_section()
    for key, label in (("mean", "mean"), ("standard_deviation", "sd")):
        shares = (_share(result["over_folds"][name][key]) for name in _OF_A_FOLD)
        table.add_row(label, *[""] * 4, *shares)
    console.print(table)


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def print_froc(console: Console, froc: Mapping[str, Any]) -> None:
    """Prints sensitivity at LUNA16's seven rates of false positives, and their mean.

    Args:
        console: Where to.
        froc: What `FrocCurve.summary` gives.
    """
    table = Table(
        title=f"{froc['num_scans']} scans, {froc['num_nodules']} nodules",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("false positives a scan")
    table.add_column("sensitivity", justify="right", style="bold")
    for rate, sensitivity in froc["sensitivity_at_fps"].items():
        table.add_row(rate, _share(sensitivity))
    table.add_section()
    table.add_row("CPM", _share(froc["cpm"]))
    console.print(table)
