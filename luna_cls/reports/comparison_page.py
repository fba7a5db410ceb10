"""The page of a comparison: which is better, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luna_cls.judging.verdicts import FEWEST_SCANS
from luna_cls.reports import figures
from luna_cls.reports.blocks import Block, Figure, Page, Section, Table, interval, number, percent, plural
from luna_cls.reports.drawing import PAGE, axes, to_svg
from luna_cls.reports.evidence import need, read_froc, read_json, warn_of_few
from luna_cls.reports.viewer import Cubes

NAMES = {
    "cpm": "CPM",
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "recall": "sensitivity at probability 1/2",
    "specificity": "specificity at probability 1/2",
    "precision": "precision at probability 1/2",
    "f1": "F1",
    "mcc": "Matthews' correlation",
    "gmean": "geometric mean of sensitivity and specificity",
    "brier": "Brier score (less is better)",
    "log_loss": "log loss (less is better)",
}
_RATE = "sensitivity_at_fps_"


def comparison_page(folder: Path, _cubes: Cubes) -> Page:
    """Reads a comparison folder into a page.

    Args:
        folder: As `luna-cls evaluate` makes it of several predictions: comparison.json, and an evaluation of
            each in a folder of its name.

    Raises:
        InputError: If a file is damaged.
    """
    path = folder / "comparison.json"
    found = read_json(path) or {}
    need(found, path, "names", "verdict", "pairs", "num_scans")
    names, pairs, scores = found["names"], found["pairs"], found.get("scores") or {}
    for pair in pairs:
        need(pair, path, "a", "b", "verdict", "differences")
    metric = found.get("metric", "cpm")
    curves = [read_froc(folder / name, name) for name in names if (folder / name / "froc.json").is_file()]
    curves = sorted(curves, key=lambda curve: -curve.cpm)
    drawn = _differences(pairs, metric, found["num_scans"] >= FEWEST_SCANS)
    sections = [
        Section(
            "differences", "How far apart they are", (_decided_by(found, metric),), [drawn] if drawn else []
        ),
        _notes(found),
        _froc(curves) if curves else None,
        _scores(names, scores) if scores else None,
        *(_pair(number_of, pair) for number_of, pair in enumerate(pairs, 1)),
    ]
    return Page(
        kind="Comparison",
        title=" · ".join(names),
        verdict=found["verdict"],
        facts=_facts(found, names, scores, metric),
        warnings=[*map(str, found.get("warnings") or ()), *warn_of_few(found["num_scans"])],
        sections=[section for section in sections if section is not None],
    )


def name_of(metric: str) -> str:
    """A metric as it is said: sensitivity_at_fps_0.125 is sensitivity at 0.125 false positives a scan."""
    if metric.startswith(_RATE):
        return f"sensitivity at {metric.removeprefix(_RATE)} false positives a scan"
    return NAMES.get(metric, metric.replace("_", " "))


def _facts(
    found: Mapping[str, Any], names: Sequence[str], scores: Mapping[str, Any], metric: str
) -> list[tuple[str, str, str]]:
    facts = []
    for name in names[:4]:
        score = scores.get(name) or {}
        bounds = score.get(f"{metric}_interval_95")
        if metric in score:
            word = f"95 %: {interval(bounds)}" if bounds else ""
            facts.append((f"{name_of(metric)} of {name}", number(score[metric]), word))
    nodules = found.get("num_nodules")
    facts.append(("Scans", f"{found['num_scans']:,}", "" if nodules is None else plural(nodules, "nodule")))
    return facts


def _notes(found: Mapping[str, Any]) -> Section | None:
    notes = [str(note) for note in found.get("notes") or () if note]
    return Section("notes", "What to know of these figures", notes) if notes else None


def _decided_by(found: Mapping[str, Any], metric: str) -> str:
    bootstrap = found.get("bootstrap") or {}
    draws = f"{bootstrap['resamples']:,} " if "resamples" in bootstrap else ""
    several = (
        " With more than one pair, p is adjusted for all of them (Holm 1979)."
        if len(found["pairs"]) > 1
        else ""
    )
    return (
        f"The {name_of(metric)} decides. All are scored on the same {draws}resamples of scans, so that what "
        f"is hard for one is hard for the other.{several}"
    )


def _differences(pairs: Sequence[Mapping[str, Any]], metric: str, can_decide: bool) -> Figure | None:
    """A dot and a bar for each pair, faint where scans are too few; None if the metric was not compared."""
    rows = []
    for pair in pairs:
        difference = pair["differences"].get(metric) or {}
        if difference.get("difference") is not None:
            rows.append((f"{pair['a']} − {pair['b']}", difference, pair.get("p_holm")))
    if not rows:
        return None
    drawing, drawn = axes((4.4, 1.0 + 0.55 * len(rows)), f"difference of {name_of(metric)}", "")
    places = np.arange(len(rows))[::-1]
    strength = 1.0 if can_decide else 0.4
    for place, (name, difference, _) in zip(places, rows, strict=True):
        bounds = difference.get("interval_95")
        if bounds and None not in bounds:
            drawn.plot(bounds, [place] * 2, color=PAGE.series[0], linewidth=2.4, alpha=strength / 2)
        drawn.plot(
            difference["difference"], place, color=PAGE.series[0], marker="o", markersize=6, alpha=strength
        )
        drawn.annotate(
            name, (0, place), (0, 9), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=PAGE.ink, fontsize=8.5,
            bbox={"facecolor": PAGE.paper, "edgecolor": "none", "pad": 1.5},  # over the line at zero
        )  # fmt: skip
    drawn.axvline(0, color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)))
    drawn.set(yticks=[], ylim=(-0.5, len(rows) - 0.15))
    drawn.margins(x=0.15)
    drawn.locator_params(axis="x", nbins=6)
    drawn.grid(visible=False, axis="y")
    drawn.spines["left"].set_visible(False)
    table = [
        (name, _signed(difference["difference"]), interval(difference.get("interval_95"), 4), _p(p))
        for name, difference, p in rows
    ]
    caption = (
        "Right of the dashed line the first is better; a bar that crosses it leaves that open. Bars are 95 % "
        "intervals of a paired bootstrap over scans."
    )
    if not can_decide:
        caption += " They are faint here: fewer than ten scans decide nothing, wherever a bar lies."
    seen = "; ".join(f"{name}: {difference} ({bounds})" for name, difference, bounds, _ in table)
    return Figure(
        f"Difference of {name_of(metric)}",
        to_svg(drawing, "differences"),
        f"Differences of {name_of(metric)} with 95 % intervals: {seen}.",
        caption,
        Table(
            "Differences",
            ("Pair", "Difference", "95 % interval", "p, adjusted" if len(pairs) > 1 else "p"),
            table,
        ),
    )


def _froc(curves: Sequence[figures.Froc]) -> Section:
    text = "How many nodules each finds, if so many false positives a scan are put up with."
    most = len(PAGE.series)
    if len(curves) > most:
        text += f" Of {len(curves)}, the {most} with the highest CPM."
    caption = (
        "Dots are LUNA16's seven rates. Bands are 95 % intervals of each by itself: that two overlap does "
        "not mean that they cannot be told apart."
    )
    return Section("froc", "FROC", (text,), [figures.froc(curves[:most], caption)])


def _scores(names: Sequence[str], scores: Mapping[str, Mapping[str, Any]]) -> Section:
    metrics = [
        metric
        for metric in dict.fromkeys(metric for name in names for metric in scores.get(name) or {})
        if not metric.endswith("_interval_95")
    ]
    rows = [
        (_capital(name_of(metric)), *(number((scores.get(name) or {}).get(metric), 4) for name in names))
        for metric in metrics
    ]
    return Section("scores", "Every score", (), [Table("Scores of each", ("Metric", *names), rows)])


def _pair(number_of: int, pair: Mapping[str, Any]) -> Section:
    rows = [
        (
            _capital(name_of(metric)),
            _signed(difference.get("difference")),
            interval(difference.get("interval_95"), 4),
            _p(difference.get("p")),
        )
        for metric, difference in pair["differences"].items()
    ]
    title = f"{pair['a']} and {pair['b']}"
    columns = ("Metric", f"{pair['a']} − {pair['b']}", "95 % interval", "p, not adjusted")
    blocks: list[Block] = [Table("Differences of every metric, paired bootstrap over scans", columns, rows)]
    return Section(f"pair-{number_of}", title, (pair["verdict"], *_further_tests(pair)), blocks)


def _further_tests(pair: Mapping[str, Any]) -> list[str]:
    a, b, tests = pair["a"], pair["b"], []
    mcnemar = pair.get("mcnemar") or {}
    nodules, candidates = mcnemar.get("nodules"), mcnemar.get("candidates")
    if nodules:
        tests.append(
            f"At {nodules['fps_per_scan']:g} false positive a scan, {plural(nodules['only_a'], 'nodule')} "
            f"found by {a} alone and {nodules['only_b']:,} by {b} alone "
            f"(McNemar, {_p_in_words(nodules['p'])})."
        )
    if candidates:
        tests.append(
            f"At probability 1/2, {plural(candidates['only_a'], 'candidate')} rightly judged by {a} alone "
            f"and {candidates['only_b']:,} by {b} alone (McNemar, {_p_in_words(candidates['p'])})."
        )
    delong = pair.get("delong")
    if delong:
        tests.append(
            f"AUC {number(delong.get('auc_a'))} and {number(delong.get('auc_b'))}, difference "
            f"{_signed(delong['difference'])} (95 % {interval(delong.get('interval_95'), 4)}; DeLong, "
            f"{_p_in_words(delong.get('p'))})."
        )
    folds = pair.get("over_folds")
    if folds:
        signs = folds.get("sign_test")
        by_signs = (
            f"; in the same order {percent(signs['a_better'])}, {percent(signs['b_better'])} and "
            f"{percent(signs['equivalent'])} by the Bayesian sign test, which takes folds to be independent"
            if signs
            else ""
        )
        tests.append(
            f"Over {folds['folds']} folds, the probability that {a} is better in {name_of(folds['metric'])} "
            f"by more than {folds['rope']:g} is {percent(folds['a_better'])}, that {b} is "
            f"{percent(folds['b_better'])}, and that they are as good as equal "
            f"{percent(folds['equivalent'])} (Bayesian correlated t-test){by_signs}."
        )
    return tests


def _signed(value: float | None) -> str:
    return number(value, 4) if value is None or value <= 0 else f"+{number(value, 4)}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _p_in_words(value: float | None) -> str:
    words = _p(value)
    return f"p {words}" if words.startswith("<") else f"p = {words}"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]
