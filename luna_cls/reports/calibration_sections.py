"""Sections on what probabilities mean, and where to draw the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import logit

from luna_cls.reports.blocks import (
    Block,
    Figure,
    Section,
    Table,
    count_of,
    interval,
    number,
    percent,
    plural,
    probability,
)
from luna_cls.reports.drawing import LINES, PAGE, Floats, axes, every, legend, to_svg
from luna_cls.reports.figures import SQUARE_IN

FIGURES = {
    "ece": "expected calibration error",
    "ece_of_nodules": "expected calibration error around nodules",
    "max_calibration_error": "largest error of a bin",
    "brier": "Brier score",
    "log_loss": "log loss",
    "slope": "calibration slope (right: 1)",
    "intercept": "calibration intercept (right: 0)",
}
_MEANINGS = {
    "ece": "mean distance of probability from share on nodules, over bins of equally many candidates; less "
    "is better",
    "ece_of_nodules": "the same around a nodule picked at random, over bins of equally many nodules; less is "
    "better",
    "max_calibration_error": "that distance in the bin where it is largest; less is better",
    "brier": "mean square of probability less truth (0 or 1); less is better",
    "log_loss": "mean surprise at the truth, −ln of the probability it was given; less is better",
    "slope": "of a logistic regression of the truth on logits: below 1 they are too sure, above too timid",
    "intercept": "of the same regression: log odds of the truth where the model says 1/2",
}
_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_MOST_STRETCHES = 3
_SMALL = 0.02  # below it, probabilities are told apart on an axis of log odds only


def reliability(assessed: Mapping[str, Any]) -> Section:
    """The section on whether probabilities can be taken at their word, from what `assess` gave."""
    mean, prevalence = assessed["mean_probability"], assessed["prevalence"]
    ratio = mean / prevalence if prevalence else 1.0
    judgement = "about right on the whole"
    if ratio and not 0.8 <= ratio <= 1.25:
        judgement = (
            f"{number(ratio if ratio > 1 else 1 / ratio, 1)} times too {'high' if ratio > 1 else 'low'}"
        )
    text = (
        f"{percent(prevalence, 2)} of the candidates are on nodules; the mean probability is "
        f"{percent(mean, 2)}: {judgement}. Expected calibration error: {number(assessed['ece'], 4)}"
        f"{_in_brackets(assessed, 'ece')}; around nodules: {number(assessed['ece_of_nodules'])}"
        f"{_in_brackets(assessed, 'ece_of_nodules')}."
    )
    bounds = assessed.get("interval_95") or {}
    no_skill = assessed.get("no_skill") or {}
    rows = [
        (
            label[0].upper() + label[1:],
            number(assessed.get(name), 4),
            interval(bounds.get(name), 4),
            number(no_skill.get(name), 4),
        )
        for name, label in FIGURES.items()
    ]
    table = Table(
        "How far probabilities are off",
        ("Figure", "Model", "95 % interval", "Always the prevalence"),
        rows,
        beside_figures=True,
    )
    return Section(
        "reliability",
        "Can the probabilities be taken at their word?",
        (text,),
        [
            _reliability_figure(assessed),
            table,
            Table(
                "What these figures are",
                ("Figure", "What it is"),
                [(label[0].upper() + label[1:], _MEANINGS[name]) for name, label in FIGURES.items()],
                of_words=True,
            ),
        ],
    )


def _in_brackets(assessed: Mapping[str, Any], name: str) -> str:
    bounds = (assessed.get("interval_95") or {}).get(name)
    return f" (95 % {interval(bounds, 4 if name == 'ece' else 3)})" if bounds else ""


def _reliability_figure(assessed: Mapping[str, Any]) -> Figure:
    curves = {"equally many nodules a bin": assessed["curve_of_nodules"]}
    curves["equally many candidates a bin"] = assessed["curve"]
    bins = [entry for curve in curves.values() for entry in curve]
    shown = [entry[name] for entry in bins for name in ("mean_probability", "observed_share")]
    lowest = min((value for value in shown if value > 0), default=1.0)
    floor = max(min(lowest, 0.5) / 3, 1e-7)
    is_small = lowest < _SMALL

    def place(values: Any) -> Any:
        return logit(np.clip(values, floor, 1 - min(floor, 1e-3))) if is_small else np.asarray(values)

    drawing, drawn = axes(SQUARE_IN, "mean probability", "share on nodules")
    ends = place(np.array([0.0, 1.0]))
    drawn.plot(ends, ends, color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)), label="right")
    for (name, curve), colour, line, marker in zip(curves.items(), PAGE.series, LINES, "os", strict=False):
        x = place([entry["mean_probability"] for entry in curve])
        y = place([entry["observed_share"] for entry in curve])
        low, high = place(np.array([entry["interval_95"] for entry in curve], float)).T
        drawn.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.6)
        drawn.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.2, label=name)
    ticks = [tick for tick in _TICKS if tick >= floor] if is_small else np.linspace(0, 1, 6)
    labels = [f"{tick:.0e}".replace("e-0", "e−") if 0 < tick < 1e-4 else f"{tick:g}" for tick in ticks]
    _ticks(drawn, place(np.array(ticks)), labels)
    legend(drawn, loc="upper left")
    rows = [
        (
            probability(entry["mean_probability"]),
            count_of(entry["num_nodules"], entry["count"]),
            probability(entry["observed_share"]),
            " to ".join(map(probability, entry["interval_95"])),
        )
        for entry in assessed["curve_of_nodules"]
    ]
    spread = " Both axes are in log odds, which spreads small probabilities out." if is_small else ""
    source = (
        "by a bootstrap over scans (Wilson's where all draws give the same share)"
        if assessed.get("interval_95")
        else "Wilson's, which take candidates to be independent"
    )
    return Figure(
        "Reliability",
        to_svg(drawing, "reliability"),
        f"Reliability curve: expected calibration error {number(assessed['ece'], 4)}, around nodules "
        f"{number(assessed['ece_of_nodules'])}.",
        "On the dashed line a probability is the share of nodules among candidates that have it; below it "
        f"probabilities are too high. Bars are 95 % intervals, {source}.{spread}",
        Table(
            "Bins with equally many nodules",
            ("Mean probability", "On nodules", "Share", "95 % interval"),
            every(rows),
        ),
    )


def _ticks(drawn: Axes, places: Any, labels: Sequence[str]) -> None:
    drawn.set_xticks(places, labels, rotation=45 if len(labels) > 6 else 0)
    drawn.set_yticks(places, labels)


def mending(calibration: Mapping[str, Any]) -> Section:
    """The section on what calibration does to a run's probabilities, from its calibration.json."""
    fitted = calibration.get("crossfit") or {}
    before, after = fitted.get("before"), fitted.get("after") or {}
    method = str(calibration.get("method", ""))
    text = f"luna-cls predict applies {METHODS.get(method, method)}, fitted to the validation candidates."
    blocks: list[Block] = []
    if before and after:
        text += (
            f" Below, each fit is judged on validation scans that it has not seen ({fitted['folds']} folds)."
        )
        shown = ("ece", "ece_of_nodules", "brier", "log_loss", "slope")
        rows = [("none", *(number(before.get(name), 4) for name in shown))]
        for name, found in after.items():
            chosen = " (chosen)" if name == method else ""
            rows.append((f"{name.replace('_', ' ')}{chosen}", *(number(found.get(key), 4) for key in shown)))
        blocks.append(
            Table(
                "Before and after calibration, by method",
                (
                    "Method",
                    *(FIGURES[name].capitalize() for name in shown[:2]),
                    "Brier score",
                    "Log loss",
                    "Slope",
                ),
                rows,
            )
        )
    return Section("calibration", "What calibration does", (text,), blocks)


METHODS = {
    "temperature": "one temperature",
    "platt": "Platt's slope and intercept",
    "beta": "a beta calibration",
    "isotonic": "a rising curve (isotonic)",
    "prior_shift": "a shift of the prior",
}


def decisions(stored: Mapping[str, Any], text: str) -> Section | None:
    """The section on thresholds: what each was chosen for, what it does, and a decision curve.

    Args:
        stored: What operating_points.json holds: `points`, and perhaps `decision_curve`.
        text: On which candidates.
    """
    points = stored.get("points") or []
    curve = stored.get("decision_curve") or []
    if not points and not curve:
        return None
    blocks: list[Block] = []
    hint = ""
    if points:
        blocks.append(_thresholds(points))
    else:
        text = "What calling candidates from some probability on is worth."
        hint = (
            "To see here what thresholds chosen on validation do: luna-cls evaluate with --thresholds "
            "RUN/operating_points.json."
        )
    if curve:
        blocks.append(_decision_curve(curve))
    return Section("thresholds", "Where to draw the line", (text,), blocks, hint)


def _goal(point: Mapping[str, Any]) -> str:
    if point["goal"] == "sensitivity":
        return f"sensitivity {percent(point['value'], 0)} or more"
    return f"at most {point['value']:g} false positive{'' if point['value'] == 1 else 's'} a scan"


def _thresholds(points: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each threshold."""
    rows = [
        ("Call a nodule from probability", *(probability(one["threshold_probability"]) for one in points))
    ]
    bounds = [one.get("threshold_interval_95") or (None, None) for one in points]
    if any(None not in pair for pair in bounds):
        on_other_draws = ("–" if None in pair else " to ".join(map(probability, pair)) for pair in bounds)
        rows.append(("On other draws of the validation scans (95 %)", *on_other_draws))
    if all("tp" in one for one in points):
        rows.append(("Nodules called, dismissed", *(f"{one['tp']:,}, {one['fn']:,}" for one in points)))
        rows.append(("Others called, dismissed", *(f"{one['fp']:,}, {one['tn']:,}" for one in points)))
        rows += [
            (label, *(_share(one, name) for one in points)) for name, label in _shares(points[0]).items()
        ]
        rows.append(("False positives a scan", *map(_alarms, points)))
    columns = ("", *(_goal(one) for one in points))
    return Table("Thresholds and what they do (95 % intervals in brackets)", columns, rows)


def _shares(point: Mapping[str, Any]) -> dict[str, str]:
    natural = f"1 nodule in {1 / point['natural_prevalence']:,.0f}" if "natural_prevalence" in point else ""
    return {
        "sensitivity": "Sensitivity",
        "specificity": "Specificity",
        "ppv": "Nodules among those called (PPV), here",
        "npv": "Others among those dismissed (NPV), here",
        **({"natural_ppv": f"PPV at {natural}", "natural_npv": f"NPV at {natural}"} if natural else {}),
    }


def _share(point: Mapping[str, Any], name: str) -> str:
    low, high = (point.get("interval_95") or {}).get(name) or (None, None)
    digits = 3 if name.endswith("npv") else 1
    brackets = "" if low is None or high is None else f" ({100 * low:.{digits}f} to {100 * high:.{digits}f})"
    return percent(point.get(name), digits) + brackets


def _alarms(point: Mapping[str, Any]) -> str:
    bounds = (point.get("interval_95") or {}).get("fps_per_scan")
    return number(point["fps_per_scan"], 2) + (f" ({interval(bounds, 2)})" if bounds else "")


def _decision_curve(curve: Sequence[Mapping[str, float]]) -> Figure:
    drawing, drawn = axes(SQUARE_IN, "threshold probability (log odds)", "net benefit per 1,000 candidates")
    thresholds = np.array([entry["threshold"] for entry in curve])
    names = {"net_benefit": "the model", "treat_all": "call all", "treat_none": "call none"}
    values = {key: 1000 * np.array([entry[key] for entry in curve]) for key in names}
    for (key, name), colour, line in zip(names.items(), (*PAGE.series[:2], PAGE.quiet), LINES, strict=False):
        drawn.plot(logit(thresholds), values[key], color=colour, linestyle=line, linewidth=1.6, label=name)
    top = max(values["net_benefit"].max(), 1e-9)
    drawn.set_ylim(-0.35 * top, 1.15 * top)
    ticks = [tick for tick in _TICKS if thresholds.min() <= tick * 1.001 and tick <= thresholds.max() * 1.001]
    drawn.set_xticks(logit(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    legend(drawn, loc="upper right")
    rows = [
        (probability(threshold), *(number(values[key][row], 2) for key in names))
        for row, threshold in enumerate(thresholds)
    ]
    above = values["net_benefit"] > np.maximum(values["treat_all"], 0)
    useful = f"The model is worth more than calling all or none {_stretches(thresholds, above)}."
    return Figure(
        "Decision curve",
        to_svg(drawing, "decision-curve"),
        f"Decision curve. {useful}",
        f"{useful} Who calls a candidate from probability t on takes (1 − t) / t false alarms for one "
        "nodule found. It is of use where it is above the other two lines (Vickers & Elkin 2006).",
        Table(
            "Net benefit per 1,000 candidates",
            ("Threshold", *(name.capitalize() for name in names.values())),
            every(rows),
        ),
    )


def _stretches(thresholds: Floats, is_above: NDArray[np.bool_]) -> str:
    """Where the model is of use: at no threshold, or from one threshold to another, stretch by stretch."""
    if not is_above.any():
        return "at no threshold"
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_above, [False]])))
    ends = [
        (probability(thresholds[begin]), probability(thresholds[end - 1]))
        for begin, end in edges.reshape(-1, 2)
    ]
    told = [
        f"at threshold {low}" if low == high else f"at thresholds from {low} to {high}" for low, high in ends
    ]
    if len(told) > _MOST_STRETCHES:
        whole = f"between {ends[0][0]} and {ends[-1][1]}"
        return f"at {is_above.sum()} of {plural(len(thresholds), 'threshold')}, {whole}"
    return " and ".join(told)
