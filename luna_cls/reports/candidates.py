"""Sections on candidates, each judged by itself, and on the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from luna_cls.files import COORDINATES
from luna_cls.reports import figures
from luna_cls.reports.blocks import (
    Block,
    Cards,
    Section,
    Table,
    count_of,
    interval,
    number,
    percent,
    probability,
)
from luna_cls.reports.evidence import apart
from luna_cls.reports.terminal import METRIC_NAMES
from luna_cls.reports.viewer import Cubes, cards

MOST_CARDS = 8
PICTURES_HINT = "For pictures of them: luna-cls report FOLDER --scans SCANS"
HOW_TO_LOOK = (
    "The point is in the middle of each plane; front and head are up, the patient's right is on the left. "
    "Lung window: level −550, width 1,600 HU. The slider moves all three planes at once."
)


def accuracy_in_words(metrics: Mapping[str, Any], no_skill: Mapping[str, Any]) -> str:
    """Accuracy, never without what always saying no gets."""
    got, idle = percent(metrics["accuracy"], 2), percent(no_skill["accuracy"], 2)
    if metrics["accuracy"] <= no_skill["accuracy"]:
        return f"Accuracy is {got}, no more than always saying “no” gets ({idle}): it tells nothing here."
    return f"Accuracy is {got}; always saying “no” gets {idle}."


def ranking_in_words(metrics: Mapping[str, Any]) -> str:
    """The verdict on `binary_metrics`: how well candidates are ranked, and what decisions at 1/2 do."""
    nodules, others = metrics["tp"] + metrics["fn"], metrics["fp"] + metrics["tn"]
    decided = (
        f"at probability 1/2, {count_of(metrics['tp'], nodules)} candidates on nodules are called, and "
        f"{count_of(metrics['fp'], others)} others by mistake."
    )
    if metrics["auc"] is None:
        return decided[0].upper() + decided[1:]
    return f"A nodule is put before another candidate in {percent(metrics['auc'])} of all pairs; {decided}"


def ranking_facts(metrics: Mapping[str, Any], no_skill: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers that count of `binary_metrics`, each with what no skill gets."""
    chance = f"chance: {number(no_skill['average_precision'])}"
    return [
        ("AUC", number(metrics["auc"]), "chance: 0.5"),
        ("Average precision", number(metrics["average_precision"]), chance),
        ("Balanced accuracy", number(metrics["balanced_accuracy"]), "always “no”: 0.5"),
    ]


def every_candidate(
    curves: Mapping[str, pd.DataFrame | None],
    metrics: Mapping[str, Any],
    no_skill: Mapping[str, Any],
    intervals: Mapping[str, Sequence[float]] | None,
    text: str,
) -> Section:
    """The section on candidates judged by themselves: ROC, precision and recall, decisions.

    Args:
        curves: What is there of "roc" (`roc_points`), "precision_recall" (`precision_recall_points`) and
            "scores" (a table `probability, class`).
        metrics: Their `binary_metrics`.
        no_skill: Those of always saying no.
        intervals: 95 % intervals by metric; None without.
        text: What the candidates are.
    """
    blocks: list[Block] = []
    roc, precision_recall, scores = (curves.get(name) for name in ("roc", "precision_recall", "scores"))
    nodules = metrics["tp"] + metrics["fn"]
    if roc is not None and metrics["auc"] is not None:
        blocks.append(figures.roc(roc, metrics))
    if precision_recall is not None and metrics["average_precision"] is not None:
        prevalence = nodules / (nodules + metrics["fp"] + metrics["tn"])
        blocks.append(figures.precision_recall(precision_recall, metrics, prevalence))
    if scores is not None:
        blocks.append(figures.histogram(scores, "candidates"))
    rows = []
    for name, label in METRIC_NAMES.items():
        bounds = [interval(intervals.get(name))] if intervals else []
        rows.append([label, number(metrics.get(name)), *bounds, number(no_skill.get(name))])
    columns = ["Metric", "Model", *(["95 % interval"] if intervals else []), "Always “no”"]
    table = Table("Every metric, beside those of always saying “no”", columns, rows, beside_figures=True)
    blocks += [_confusion(metrics), table] if scores is None else [table, _confusion(metrics)]
    return Section(
        "candidates", "Every candidate by itself", (text, accuracy_in_words(metrics, no_skill)), blocks
    )


def _confusion(metrics: Mapping[str, Any]) -> Table:
    tp, fn, fp, tn = (int(metrics[name]) for name in ("tp", "fn", "fp", "tn"))

    def cell(part: int, whole: int) -> str:
        return f"{part:,} ({percent(part / whole)})" if whole else "0"

    return Table(
        "Confusion matrix at probability 1/2, with shares of each row",
        ("Candidates", "Called a nodule", "Dismissed", "All"),
        (
            ("on nodules", cell(tp, tp + fn), cell(fn, tp + fn), f"{tp + fn:,}"),
            ("others", cell(fp, fp + tn), cell(tn, fp + tn), f"{fp + tn:,}"),
            ("all", f"{tp + fp:,}", f"{fn + tn:,}", f"{tp + fn + fp + tn:,}"),
        ),
        beside_figures=True,
    )


def hardest_nodules(nodules: pd.DataFrame, cubes: Cubes) -> Section:
    """The section on nodules that were missed or hard to find, from nodules.csv."""
    missed = int(nodules["probability"].isna().sum())
    text = (
        f"Missed at any probability: {count_of(missed, len(nodules))} nodules. Then come those that are "
        "found last when the threshold is lowered, with the false positives a scan that it takes."
    )

    def heading(row: Mapping[str, Any]) -> str:
        if pd.isna(row["probability"]):
            return "missed"
        return f"found at {row['fps_per_scan']:.3g} false positives a scan"

    def facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
        size = f"{row['diameter_mm']:.1f} mm"
        return [("Diameter", size), ("Probability", probability(row["probability"]))]

    shown = nodules.head(MOST_CARDS)
    return _worst("misses", "Nodules hardest to find", text, shown, cubes, heading, facts)


def least_probable(nodules: pd.DataFrame, cubes: Cubes) -> Section:
    """The section on candidates on nodules with the lowest probability."""
    text = (
        f"Of {len(nodules):,} candidates on nodules, those with the lowest probability, at places 10 mm "
        "or more apart. Another candidate on the same nodule may have a higher one."
    )
    shown = apart(nodules.sort_values("probability", kind="stable"), MOST_CARDS)
    return _worst("misses", "Worst misses", text, shown, cubes, _by_probability, _no_facts)


def worst_false_alarms(others: pd.DataFrame, cubes: Cubes) -> Section:
    """The section on candidates on no nodule with the highest probability."""
    text = (
        "The most probable of those that are on no nodule, at places 10 mm or more apart. Some may be "
        "nodules that nobody has annotated: look."
    )
    shown = apart(others.sort_values("probability", ascending=False, kind="stable"), MOST_CARDS)
    return _worst("false-alarms", "Worst false alarms", text, shown, cubes, _by_probability, _no_facts)


def most_probable(findings: pd.DataFrame, cubes: Cubes, most: int) -> Section:
    """The section on the findings with the highest probability."""
    text = (
        "The most probable of all scans, at places 10 mm or more apart: of findings nearer to each other "
        "the most probable one stands for all."
    )
    shown = apart(findings.sort_values("probability", ascending=False, kind="stable"), most)
    return _worst("findings", "Most probable findings", text, shown, cubes, _by_probability, _known_class)


def _by_probability(row: Mapping[str, Any]) -> str:
    return f"probability {probability(row['probability'])}"


def _no_facts(_row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return []


def _known_class(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "class" not in row:
        return []
    return [("Known to be", "on a nodule" if row["class"] == 1 else "on no nodule")]


def _worst(
    name: str,
    title: str,
    text: str,
    shown: pd.DataFrame,
    cubes: Cubes,
    heading: Any,
    facts: Any,
) -> Section:
    """Cards with pictures, or a table where there are none to be had."""
    if cubes.is_there and len(shown):
        made = cards(shown, cubes, heading, facts)
        are_seen = any(card.still for card in made)
        return Section(name, title, (text, HOW_TO_LOOK) if are_seen else (text,), [Cards(made)])
    rows = []
    for row in shown.to_dict("records"):
        place = ", ".join(f"{row[axis]:.1f}".replace("-", "−") for axis in COORDINATES)
        size = [f"{row['diameter_mm']:.1f} mm"] if "diameter_mm" in row else []
        rows.append((heading(row).capitalize(), *size, place, row["seriesuid"]))
    columns = ("What", *(["Diameter"] if "diameter_mm" in shown.columns else []), "x, y, z in mm", "Scan")
    return Section(name, title, (text,), [Table(title, columns, rows, of_words=True)], PICTURES_HINT)
