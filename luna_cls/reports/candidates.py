"""Sections on candidates, each judged by itself, and on the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from luna_cls.reports import figures
from luna_cls.reports.blocks import (
    Block,
    Card,
    Cards,
    Section,
    Table,
    Uid,
    count_of,
    interval,
    number,
    percent,
    plural,
    probability,
)
from luna_cls.reports.evidence import apart
from luna_cls.reports.terminal import METRIC_NAMES
from luna_cls.reports.viewer import Cubes, cards, place_of

MOST_CARDS = 8
AS_TRAINED = " as trained, before calibration"
PICTURES_HINT = "For pictures of them: luna-cls report FOLDER --scans SCANS"
AXES = "x grows to the patient's left, y to the back, z to the head (LPS)."
_AT_HALF = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity")


def accuracy_in_words(metrics: Mapping[str, Any], no_skill: Mapping[str, Any]) -> str:
    """Accuracy, never without what always saying no gets."""
    got, idle = percent(metrics["accuracy"], 2), percent(no_skill["accuracy"], 2)
    if got == idle:
        return f"Accuracy is {got}, the same as always saying “no” gets: it tells nothing here."
    if metrics["accuracy"] < no_skill["accuracy"]:
        return f"Accuracy is {got}, less than always saying “no” gets ({idle}): it tells nothing here."
    return f"Accuracy is {got}, more than always saying “no” gets ({idle})."


def ranking_in_words(metrics: Mapping[str, Any], of: str = "") -> str:
    """The verdict on `binary_metrics`: how well candidates are ranked, and what decisions at 1/2 do.

    Args:
        metrics: Of the candidates.
        of: `AS_TRAINED` where the page is of calibrated probabilities, too.
    """
    nodules, others = metrics["tp"] + metrics["fn"], metrics["fp"] + metrics["tn"]
    decided = (
        f"at probability 1/2{of}, {count_of(metrics['tp'], nodules)} candidates on nodules are called, and "
        f"{count_of(metrics['fp'], others)} others by mistake."
    )
    if metrics["auc"] is None:
        return decided[0].upper() + decided[1:]
    return f"A nodule is put before another candidate in {percent(metrics['auc'])} of all pairs; {decided}"


def ranking_facts(
    metrics: Mapping[str, Any], no_skill: Mapping[str, Any], of: str = ""
) -> list[tuple[str, str, str]]:
    """The few numbers that count of `binary_metrics`, each with what no skill gets; `of` as above."""
    chance = f"chance: {number(no_skill['average_precision'])}"
    return [
        ("AUC", number(metrics["auc"]), "chance: 0.5"),
        ("Average precision", number(metrics["average_precision"]), chance),
        (
            "Balanced accuracy",
            number(metrics["balanced_accuracy"]),
            f"at probability 1/2{of}; always “no”: 0.5",
        ),
    ]


def every_candidate(
    curves: Mapping[str, pd.DataFrame | None],
    metrics: Mapping[str, Any],
    no_skill: Mapping[str, Any],
    intervals: Mapping[str, Sequence[float]] | None,
    text: str,
    of: str = "",
) -> Section:
    """The section on candidates judged by themselves: ROC, precision and recall, decisions.

    Args:
        curves: What is there of "roc" (`roc_points`), "precision_recall" (`precision_recall_points`) and
            "scores" (a table `probability, class`).
        metrics: Their `binary_metrics`.
        no_skill: Those of always saying no.
        intervals: 95 % intervals by metric; None without.
        text: What the candidates are.
        of: `AS_TRAINED` where the page is of calibrated probabilities, too.
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
        blocks.append(figures.histogram(scores, "candidates", of))
    rows = []
    for name, label in METRIC_NAMES.items():
        bounds = [interval(intervals.get(name))] if intervals else []
        what = f"{label} of candidates, at probability 1/2" if name in _AT_HALF else label
        rows.append([what, number(metrics.get(name)), *bounds, number(no_skill.get(name))])
    columns = ["Metric", "Model", *(["95 % interval"] if intervals else []), "Always “no”"]
    table = Table("Every metric, beside those of always saying “no”", columns, rows, beside_figures=True)
    confusion = _confusion(metrics, of)
    blocks += [confusion, table] if scores is None else [table, confusion]
    paragraphs = [text, accuracy_in_words(metrics, no_skill)]
    if of:
        paragraphs.append(f"The probabilities of this section are{of}.")
    return Section("candidates", "Every candidate by itself", paragraphs, blocks)


def _confusion(metrics: Mapping[str, Any], of: str) -> Table:
    tp, fn, fp, tn = (int(metrics[name]) for name in ("tp", "fn", "fp", "tn"))

    def cell(part: int, whole: int) -> str:
        return f"{part:,} ({percent(part / whole)})" if whole else "0"

    return Table(
        f"Confusion matrix at probability 1/2{of}, with shares of each row",
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
        f"Missed at any probability: {missed:,} of {plural(len(nodules), 'nodule')}. Then come those that "
        "are found last when the threshold is lowered, with the false positives a scan that it takes."
    )

    def heading(row: Mapping[str, Any]) -> str:
        if pd.isna(row["probability"]):
            return "missed"
        alarms = row["fps_per_scan"]
        return f"found at {alarms:.3g} false positive{'' if alarms == 1 else 's'} a scan"

    def facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
        size = f"{row['diameter_mm']:.1f} mm"
        return [("Diameter", size), ("Probability", probability(row["probability"]))]

    shown = nodules.head(MOST_CARDS)
    return _worst("misses", "Nodules hardest to find", text, shown, cubes, heading, facts)


def least_probable(nodules: pd.DataFrame, cubes: Cubes, of: str = "") -> Section:
    """The section on candidates on nodules with the lowest probability, `of` as for `every_candidate`."""
    title = "Candidates on nodules with the lowest probability"
    text = (
        f"Of {plural(len(nodules), 'candidate')} on nodules, at places 10 mm or more apart. Not all are "
        "misses: their probability may still be high, and another candidate on the same nodule may have a "
        f"higher one.{_probabilities_are(of)}"
    )
    shown = apart(nodules.sort_values("probability", kind="stable"), MOST_CARDS)
    return _worst("misses", title, text, shown, cubes, _by_probability, _no_facts)


def worst_false_alarms(others: pd.DataFrame, cubes: Cubes, of: str = "") -> Section:
    """The section on candidates on no nodule with the highest probability, `of` as for `every_candidate`."""
    text = (
        "The most probable of those that are on no nodule, at places 10 mm or more apart. Some may be "
        f"nodules that nobody has annotated: look.{_probabilities_are(of)}"
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


def _probabilities_are(of: str) -> str:
    return f" Probabilities are{of}." if of else ""


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
        return Section(name, title, (text, *how_to_look(made)), [Cards(made)])
    rows = []
    for row in shown.to_dict("records"):
        size = [f"{row['diameter_mm']:.1f} mm"] if "diameter_mm" in row else []
        rows.append((heading(row).capitalize(), *size, place_of(row), Uid(row["seriesuid"])))
    columns = ("What", *(["Diameter"] if "diameter_mm" in shown.columns else []), "x, y, z in mm", "Scan")
    table = Table(title, columns, rows, of_words=True)
    return Section(name, title, (f"{text} {AXES}",), [table], PICTURES_HINT)


def how_to_look(made: Sequence[Card]) -> list[str]:
    """How to read the pictures of some cards, if there are any."""
    edges_mm = sorted({card.size_vox * card.spacing_mm for card in made if card.still})
    if not edges_mm:
        return []
    wide = " or ".join(f"{edge:g}" for edge in edges_mm)
    how = (
        f"The point is in the middle of each plane, which is {wide} mm wide. Front and head are up, the "
        "patient's right is on the left; in the sagittal plane the front is on the left. "
        f"{AXES} Lung window: level −550, width 1,600 HU."
    )
    return [how]
