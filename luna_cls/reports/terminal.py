"""Evidence as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luna_cls.reports.blocks import plural

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

NEVER = "always “no”"  # what every table of losses has a row of
_OF_A_LOSS = {  # so short that a row has room in 80 columns
    "accuracy": "accuracy",
    "balanced_accuracy": "bal. acc.",
    "average_precision": "avg. prec.",
    "log_loss": "log loss",
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


def _name(metric: str) -> str:
    return "CPM" if metric == "cpm" else METRIC_NAMES.get(metric, metric.replace("_", " "))


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def print_froc(console: Console, froc: Mapping[str, Any]) -> None:
    """Prints sensitivity at LUNA16's seven rates of false positives and their mean, the CPM, also by size.

    Args:
        console: Where to.
        froc: What `froc.json` holds.
    """
    table = Table(
        title=f"{froc['num_scans']} scans, {froc['num_nodules']} nodules",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("false positives a scan")
    table.add_column("sensitivity", justify="right", style="bold")
    bounds = froc["sensitivity_at_fps_interval_95"] or {}
    if bounds:
        table.add_column("95 % of resamples", justify="right")
    for rate, sensitivity in froc["sensitivity_at_fps"].items():
        table.add_row(rate, _share(sensitivity), *_interval(bounds.get(rate)))
    table.add_section()
    table.add_row("CPM", _share(froc["cpm"]), *_interval(froc["cpm_interval_95"]))
    for size in froc["by_size"]:
        name = f"CPM of {plural(size['num_nodules'], 'nodule')} {size['diameter_mm']} mm"
        table.add_row(name, _share(size["cpm"]), *_interval(size.get("cpm_interval_95")))
    console.print(table)


def _interval(bounds: Sequence[float | None] | None) -> list[str]:
    if not bounds:
        return []
    low, high = (_share(bound) for bound in bounds)
    return ["-" if low == "-" else f"{low} to {high}"]


def print_calibration(console: Console, made: Mapping[str, Any]) -> None:
    """Prints what each calibration is worth on scans it was not fitted to, beside the model as it is.

    Args:
        console: Where to.
        made: What `judging.calibrated_run.calibrate` gives, with `crossfit`.
    """
    crossfit = made["crossfit"]
    table = Table(
        title=f"calibration on {made['fitted_on']['num_scans']} validation scans, each by a fit to others",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("method")
    for column in ("ECE", "ECE of nodules", "Brier score", "log loss"):
        table.add_column(column, justify="right")
    for name, found in {"as trained": crossfit["before"], **crossfit["after"]}.items():
        shares = (f"{found[key]:.4f}" for key in ("ece", "ece_of_nodules", "brier", "log_loss"))
        table.add_row(name, *shares, style="bold" if name == made["method"] else None)
    console.print(table)


def print_operating_points(console: Console, title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Prints thresholds and what they do.

    Args:
        console: Where to.
        title: Which thresholds, and on what.
        points: What `judging.operating_points.apply` gives.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("wanted")
    for column in ("probability", "95 %", "sensitivity", "FP a scan", "PPV"):
        table.add_column(column, justify="right")
    for point in points:
        is_rate = point["goal"] == "fps_per_scan"
        low, high = point["threshold_interval_95"]
        table.add_row(
            f"{point['value']:g} FP a scan" if is_rate else f"sensitivity {point['value']:g}",
            f"{point['threshold_probability']:.4f}",
            f"{low:.4f} to {high:.4f}" if math.isfinite(low) else "-",
            _share(point["sensitivity"]),
            f"{point['fps_per_scan']:.2f}",
            _share(point["ppv"]),
        )
    console.print(table)


def print_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    """Prints the verdict, what each submission scores, and how far each pair is apart.

    Args:
        console: Where to.
        comparison: What `comparison.json` holds.
    """
    metric = comparison["metric"]
    scores = Table(title=f"{comparison['num_scans']:,} scans", title_justify="left", title_style="bold")
    scores.add_column("submission")
    scores.add_column(_name(metric), justify="right", style="bold")
    scores.add_column("95 % of resamples", justify="right")
    for name, own in comparison["scores"].items():
        scores.add_row(name, _share(own[metric]), *_interval(own[f"{metric}_interval_95"]))
    console.print(scores)
    for pair in comparison["pairs"]:
        table = Table(title=f"{pair['a']} less {pair['b']}", title_justify="left", title_style="bold")
        table.add_column("metric")
        for column in ("difference", "95 %", "p"):
            table.add_column(column, justify="right")
        for name, found in pair["differences"].items():
            low, high = found["interval_95"]
            interval = f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) else "-"
            table.add_row(_name(name), f"{found['difference']:+.3f}", interval, _p(found["p"]))
        console.print(table)
    for note in comparison["notes"]:
        console.print(note, markup=False, style="dim")
    console.print(comparison["verdict"], markup=False, style="bold")


def print_losses(console: Console, comparison: Mapping[str, Any]) -> None:
    """Prints the losses by rank, beside always saying no, and the verdict.

    Args:
        console: Where to.
        comparison: What the `comparison.json` of a comparison of losses holds.
    """
    metric = comparison["metric"]
    seeds = comparison.get("num_seeds") or 1
    title = f"{comparison['num_scans']:,} scans, {seeds} seed{'' if seeds == 1 else 's'}"
    further = [name for name in _OF_A_LOSS if name != metric]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("loss", overflow="fold", min_width=9)
    table.add_column(f"{_name(metric)}\n(95 %)", justify="right", style="bold", no_wrap=True)
    for name in further:
        table.add_column(_OF_A_LOSS[name], justify="right", min_width=8 if name == "accuracy" else 5)
    for name in ranked(comparison):
        score = comparison["scores"].get(name) or {}
        rank = ((comparison.get("ranks") or {}).get(name) or {}).get("rank")
        bounds = ((comparison.get("intervals_95") or {}).get(name) or {}).get(metric)
        table.add_row(
            "-" if rank is None else f"{rank:g}",
            escape(name),
            _share(score.get(metric)) + _in_brackets(bounds),
            *(_of_a_loss(other, score.get(other)) for other in further),
        )
    never = {"cpm": 0.0, **((comparison.get("no_skill") or {}).get("natural") or {})}
    table.add_section()
    table.add_row(
        "-", NEVER, _share(never.get(metric)), *(_of_a_loss(name, never.get(name)) for name in further)
    )
    console.print(table)
    console.print(comparison["verdict"], markup=False, style="bold")


def ranked(comparison: Mapping[str, Any]) -> list[str]:
    """The losses from the first rank on; equal ranks, and those without, in the order given.

    Args:
        comparison: What the `comparison.json` of a comparison of losses holds.
    """
    ranks = comparison.get("ranks") or {}

    def place(name: str) -> float:
        rank = (ranks.get(name) or {}).get("rank")
        return math.inf if rank is None else float(rank)

    return sorted(comparison["names"], key=place)


def _in_brackets(bounds: Sequence[float | None] | None) -> str:
    words = (_interval(bounds) or ["-"])[0]
    return "" if words == "-" else f" ({words.replace(' to ', '–')})"


def _of_a_loss(metric: str, value: float | None) -> str:
    """A score; accuracy with a digit more, for at this imbalance it is in the last one that it differs."""
    if metric != "accuracy" or value is None or math.isnan(value):
        return _share(value)
    return f"{value:.4f}"
