"""The curves of a report: each drawn, put into words, and with its numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from luna_cls.judging.froc import RATES_PER_SCAN
from luna_cls.reports.blocks import RATE_NAMES, Figure, Table, count_of, interval, number, percent, plural
from luna_cls.reports.drawing import (
    LINES,
    MARKERS,
    PAGE,
    Floats,
    Palette,
    axes,
    every,
    in_percent,
    legend,
    legend_below,
    style_of,
    to_svg,
)

WIDE_IN, SQUARE_IN, LOW_IN = (4.4, 3.4), (3.9, 3.3), (3.9, 2.8)
MOST_NAMED_INSIDE, LONGEST_INSIDE = 4, 32  # curves, and characters of a name, that leave room for curves


@dataclass(frozen=True, eq=False)
class Froc:
    """The FROC curve of one submission.

    Args:
        name: Whose.
        fps_per_scan: `(n,)`, rising.
        sensitivity: `(n,)`.
        at_rates: Sensitivity at the seven rates, by the rate's name in froc.json.
        intervals: Their 95 % intervals; None without a bootstrap.
        band: `fps_per_scan, lower, upper` of the bootstrap, each `(m,)`; None without.
        cpm: Their mean.
    """

    name: str
    fps_per_scan: Floats
    sensitivity: Floats
    at_rates: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] | None
    band: tuple[Floats, Floats, Floats] | None
    cpm: float


def froc(curves: Sequence[Froc], caption: str, opacity: float = 0.18) -> Figure:
    """Sensitivity against false positives a scan; bands are so opaque."""
    (first, *more), rates = curves, RATE_NAMES.items()
    columns = ["False positives a scan", first.name]
    rows = [[name, number(first.at_rates[f"{rate:g}"])] for rate, name in rates]
    if more:
        columns = ["False positives a scan", *RATE_NAMES.values()]
        rows = [[one.name, *(number(one.at_rates[f"{rate:g}"]) for rate in RATE_NAMES)] for one in curves]
    elif first.intervals:
        columns = ["False positives a scan", "Sensitivity", "95 % interval"]
        rows = [
            [*row, interval(first.intervals[f"{rate:g}"])] for row, rate in zip(rows, RATE_NAMES, strict=True)
        ]
    seen = "; ".join(
        f"{curve.name} finds {percent(curve.at_rates['0.125'])} of the nodules at 1/8 false positive a scan, "
        f"{percent(curve.at_rates['1'])} at 1 and {percent(curve.at_rates['8'])} at 8"
        for curve in curves
    )
    return Figure(
        "FROC",
        to_svg(draw_froc(curves, opacity=opacity), "froc"),
        f"FROC curve. {seen}.",
        caption,
        Table("Sensitivity at LUNA16's seven rates of false positives", columns, rows),
    )


def draw_froc(curves: Sequence[Froc], palette: Palette = PAGE, opacity: float = 0.18) -> Drawing:
    """FROC curves, in the colours of a page or of paper."""
    drawing, drawn = axes(WIDE_IN, "false positives a scan", "nodules found (sensitivity)", palette)
    drawn.set_xscale("log", base=2)
    rates = np.geomspace(RATES_PER_SCAN[0], RATES_PER_SCAN[-1], 193)
    labels = [
        f"{curve.name}, CPM\u00a0{curve.cpm:.3f}" if len(curves) > 1 else f"CPM {curve.cpm:.3f}"
        for curve in curves
    ]
    for position, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        style = style_of(position, palette)
        if curve.band is not None:
            lower, upper = (np.interp(rates, curve.band[0], bound) for bound in curve.band[1:])
            drawn.fill_between(rates, lower, upper, color=style["color"], alpha=opacity, linewidth=0)
        sensitivity = np.interp(rates, curve.fps_per_scan, curve.sensitivity)
        drawn.plot(rates, sensitivity, **{**style, "marker": ""}, linewidth=1.8)
        at_rates = [curve.at_rates[f"{rate:g}"] for rate in RATES_PER_SCAN]
        drawn.plot(RATES_PER_SCAN, at_rates, **{**style, "linestyle": "none"}, markersize=4)
        drawn.plot([], [], **style, markersize=4, label=label)
    in_percent(drawn, "y")
    drawn.set(xlim=(0.115, 8.7), xticks=RATES_PER_SCAN, xticklabels=list(RATE_NAMES.values()))
    drawn.minorticks_off()
    if len(curves) > MOST_NAMED_INSIDE or max(map(len, labels)) > LONGEST_INSIDE:
        legend_below(drawing, drawn, palette)
    else:
        legend(drawn, palette, loc="lower right")
    return drawing


def roc(points: pd.DataFrame, metrics: Mapping[str, Any]) -> Figure:
    """Sensitivity against the share of other candidates called nodules, from what `roc_points` gives."""
    false_alarms, sensitivity = (points[name].to_numpy() for name in ("false_positive_rate", "sensitivity"))
    drawing, drawn = axes(SQUARE_IN, "false alarms among the others (1 − specificity)", "sensitivity")
    drawn.plot([0, 1], [0, 1], color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)), label="chance")
    drawn.plot(
        false_alarms, sensitivity, color=PAGE.series[0], linewidth=1.8, label=f"AUC {metrics['auc']:.3f}"
    )
    chosen = 1 - metrics["specificity"], metrics["recall"]
    drawn.plot(*chosen, color=PAGE.series[1], marker="o", linestyle="none", label="probability 1/2")
    in_percent(drawn, "xy")
    legend(drawn, loc="lower right")
    at = (0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    best = [sensitivity[false_alarms <= share].max(initial=0.0) for share in at]
    return Figure(
        "ROC",
        to_svg(drawing, "roc"),
        f"ROC curve with area {metrics['auc']:.3f}. At probability 1/2: sensitivity "
        f"{percent(metrics['recall'])}, {percent(chosen[0])} of the others called nodules.",
        "The dashed line is chance. With so few nodules a small share of false alarms is still many: "
        "look at precision and recall, too.",
        Table(
            "Sensitivity with at most so many false alarms",
            ("False alarms among the others", "Sensitivity"),
            [(percent(share), number(value)) for share, value in zip(at, best, strict=True)],
        ),
    )


def precision_recall(points: pd.DataFrame, metrics: Mapping[str, Any], prevalence: float) -> Figure:
    """Of those called nodules, how many are; against how many of all nodules are called.

    Args:
        points: What `precision_recall_points` gives.
        metrics: `binary_metrics`.
        prevalence: The share of nodules among the candidates: what chance gets.
    """
    recall, precision = (points[name].to_numpy() for name in ("recall", "precision"))
    drawing, drawn = axes(SQUARE_IN, "sensitivity (recall)", "nodules among those called (precision)")
    average = metrics["average_precision"]
    drawn.axhline(prevalence, color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)), label="chance")
    drawn.plot(
        recall, precision, color=PAGE.series[0], linewidth=1.8, label=f"average precision {average:.3f}"
    )
    if metrics["precision"] is not None:
        chosen = metrics["recall"], metrics["precision"]
        drawn.plot(*chosen, color=PAGE.series[1], marker="o", linestyle="none", label="probability 1/2")
    in_percent(drawn, "xy")
    legend(drawn, loc="best")
    at = np.linspace(0.1, 1, 10)
    best = [precision[recall >= share - 1e-12].max(initial=0.0) for share in at]
    return Figure(
        "Precision and recall",
        to_svg(drawing, "precision-recall"),
        f"Precision-recall curve, average precision {average:.3f}; chance is {percent(prevalence, 2)}.",
        f"The dashed line is chance: {percent(prevalence, 2)} of these candidates are on nodules.",
        Table(
            "Precision with at least so much sensitivity",
            ("Sensitivity", "Precision"),
            [(percent(share, 0), number(value)) for share, value in zip(at, best, strict=True)],
        ),
    )


def histogram(scores: pd.DataFrame, what: str, of: str = "") -> Figure:
    """How many candidates have which probability, by class where it is known.

    Args:
        scores: Table with `probability`, perhaps `class`.
        what: What its rows are, in the plural.
        of: What kind of probability it is, to follow that word.
    """
    edges = np.linspace(0, 1, 21)
    groups = [("all", scores)]
    if "class" in scores.columns:
        groups = [("on nodules", scores[scores["class"] == 1]), ("others", scores[scores["class"] == 0])]
    drawing, drawn = axes(LOW_IN, "probability", f"{what}, on a log scale")
    counts = []
    for (name, group), colour, line in zip(groups, PAGE.series, LINES, strict=False):
        found, _ = np.histogram(group["probability"], edges)
        counts.append(found)
        drawn.stairs(np.maximum(found, 0.5), edges, baseline=0.5, color=colour, alpha=0.18, fill=True)
        drawn.stairs(
            np.maximum(found, 0.5),
            edges,
            baseline=0.5,
            color=colour,
            linestyle=line,
            linewidth=1.5,
            label=name,
        )
    highest = max(found.max() for found in counts)
    ticks = [tick for tick in 10.0 ** np.arange(8) if tick <= 10 * highest]
    drawn.set(yscale="log", ylim=(0.5, 2 * max(highest, 5)), xlim=(0, 1))
    drawn.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    drawn.minorticks_off()
    if len(groups) > 1:
        legend(drawn, loc="upper center", ncols=2)
    low, high = (sum(found[index] for found in counts) for index in (0, -1))
    return Figure(
        f"Probabilities{of}",
        to_svg(drawing, "probabilities"),
        f"Histogram of probabilities{of}: {low:,} {what} below 0.05, {high:,} from 0.95.",
        "Bars are 0.05 wide; the scale is logarithmic, so that few are seen beside many.",
        Table(
            f"How many {what} have which probability",
            ("Probability", *(name.capitalize() for name, _ in groups)),
            [
                (f"{edges[row]:.2f} to {edges[row + 1]:.2f}", *(f"{found[row]:,}" for found in counts))
                for row in range(len(edges) - 1)
            ],
        ),
    )


def size_strata(strata: Sequence[Mapping[str, Any]]) -> Figure:
    """CPM by the size of nodules, with intervals where there are some."""
    drawing, drawn = axes((4.2, 0.9 + 0.5 * len(strata)), "CPM of the nodules of that size", "")
    places = np.arange(len(strata))[::-1]
    for place, stratum in zip(places, strata, strict=True):
        bounds = stratum.get("cpm_interval_95")
        if bounds and None not in bounds:
            drawn.plot(bounds, [place] * 2, color=PAGE.series[0], linewidth=2.4, alpha=0.5)
        if stratum["cpm"] is not None:
            drawn.plot(stratum["cpm"], place, color=PAGE.series[0], marker="o", markersize=6)
    names = [f"{stratum['diameter_mm']} mm".replace(">=", "≥") for stratum in strata]
    drawn.set_yticks(places, names)
    drawn.set_ylim(-0.6, len(strata) - 0.4)
    drawn.set(xlim=(0, 1.01), xticks=np.linspace(0, 1, 6))
    drawn.tick_params(axis="y", length=0)
    drawn.grid(visible=False, axis="y")
    seen = "; ".join(
        f"{name}: CPM {number(stratum['cpm'])}, {plural(stratum['num_nodules'], 'nodule')}"
        for name, stratum in zip(names, strata, strict=True)
    )
    rows = []
    for name, stratum in zip(names, strata, strict=True):
        at_one = stratum.get("sensitivity_at_fps", {}).get("1")
        found = count_of(stratum["num_found"], stratum["num_nodules"])
        bounds = interval(stratum.get("cpm_interval_95"))
        rows.append((name, found, percent(at_one), number(stratum["cpm"]), bounds))
    return Figure(
        "By size",
        to_svg(drawing, "size"),
        f"CPM by diameter. {seen}.",
        "Dots are the CPM of the nodules of that size alone, with all false positives; bars are 95 % "
        "intervals over resamples of scans.",
        Table(
            "Nodules by diameter",
            (
                "Diameter",
                "Found at all",
                "Found at 1 a scan",
                "CPM",
                "95 % interval",
            ),
            rows,
        ),
    )


def training(
    history: pd.DataFrame, metrics: Mapping[str, str], best_epoch: int, title: str, name: str
) -> Figure:
    """How some columns of history.csv went, epoch by epoch.

    Args:
        history: Table with `epoch`.
        metrics: Its columns to draw, and what they are.
        best_epoch: The one that was kept.
        title: What they are together.
        name: For the figure's ids.
    """
    drawing, drawn = axes(LOW_IN, "epoch", title)
    for (column, label), colour, line, marker in zip(
        metrics.items(), PAGE.series, LINES, MARKERS, strict=False
    ):
        epochs, values = history["epoch"], history[column]
        few = marker if len(epochs) < 40 else ""
        drawn.plot(
            epochs,
            values,
            color=colour,
            linestyle=line,
            marker=few,
            markersize=3.5,
            linewidth=1.6,
            label=label,
        )
    drawn.axvline(best_epoch, color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)), label="kept")
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title == "loss":
        drawn.set_ylim(bottom=0)
    else:
        in_percent(drawn, "y")
        drawn.set(yticks=np.linspace(0, 1, 6), yticklabels=[f"{tick:.1f}" for tick in np.linspace(0, 1, 6)])
    _legend_above(drawn)
    rows = [
        (f"{row['epoch']:.0f}", *(number(row[column]) for column in metrics)) for _, row in history.iterrows()
    ]
    last = history.iloc[-1]
    seen = "; ".join(
        f"{label} from {number(history[column].iloc[0])} to {number(last[column])}"
        for column, label in metrics.items()
    )
    return Figure(
        title.capitalize(),
        to_svg(drawing, name),
        f"Over {len(history)} epochs: {seen}. Epoch {best_epoch} was kept.",
        "The dashed line is the epoch that was kept.",
        Table("Epoch by epoch", ("Epoch", *(label.capitalize() for label in metrics.values())), every(rows)),
    )


def _legend_above(drawn: Axes) -> None:
    legend(
        drawn, loc="lower left", bbox_to_anchor=(-0.12, 1.0), ncols=2, columnspacing=1.2, borderaxespad=0.2
    )
