"""The page of a comparison: which is better, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luna_cls.judging.verdicts import FEWEST_SCANS
from luna_cls.reports import figures
from luna_cls.reports.blocks import Detail, Figure, Page, Section, Table, interval, number, percent, plural
from luna_cls.reports.drawing import PAGE, named_rows, to_svg
from luna_cls.reports.evidence import need, read_froc, read_json, warn_of_few
from luna_cls.reports.viewer import Cubes

NAMES = {
    "cpm": "CPM",
    "accuracy": "accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_at_chosen_threshold": "balanced accuracy at the threshold chosen on validation",
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
    drawn = differences(found)
    sections = [
        Section("differences", "How far apart they are", (decided_by(found),), [drawn] if drawn else []),
        notes(found),
        _froc(curves) if curves else None,
        _scores(names, scores) if scores else None,
        *(_pair_section(position, pair) for position, pair in enumerate(pairs, 1)),
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


def notes(found: Mapping[str, Any]) -> Section | None:
    """The section on what to know of the figures; None if there is nothing."""
    words = [str(note) for note in found.get("notes") or () if note]
    return Section("notes", "What to know of these figures", words) if words else None


def decided_by(found: Mapping[str, Any]) -> str:
    """What decides, and how all are compared.

    Args:
        found: What comparison.json holds.
    """
    bootstrap, seeds = found.get("bootstrap") or {}, found.get("num_seeds") or 1
    draws = f"{bootstrap['resamples']:,} " if "resamples" in bootstrap else ""
    begun = "" if seeds == 1 else f" and trained from the same {seeds} seeds"
    several = (
        " With more than one pair, p is adjusted for all of them (Holm 1979)."
        if len(found["pairs"]) > 1
        else ""
    )
    return (
        f"The {name_of(found.get('metric', 'cpm'))} decides. All are scored on the same {draws}resamples of "
        f"scans{begun}, so that what is hard for one is hard for the other.{several}"
    )


def differences(found: Mapping[str, Any]) -> Figure | None:
    """A dot and a bar for each pair, faint where scans are too few; None if the metric was not compared.

    Args:
        found: What comparison.json holds.
    """
    metric, pairs = found.get("metric", "cpm"), found["pairs"]
    rows = []
    for pair in pairs:
        difference = pair["differences"].get(metric) or {}
        if difference.get("difference") is not None:
            rows.append((f"{pair['a']} − {pair['b']}", difference, pair.get("p_holm")))
    if not rows:
        return None
    can_decide = found["num_scans"] >= FEWEST_SCANS
    strength = 1.0 if can_decide else 0.4
    drawing, drawn, places_in = named_rows([name for name, _, _ in rows], f"difference of {name_of(metric)}")
    for place_in, (_, difference, _) in zip(places_in, rows, strict=True):
        bounds = difference.get("interval_95")
        if bounds and None not in bounds:
            drawn.plot(bounds, [place_in] * 2, color=PAGE.series[0], linewidth=2.4, alpha=strength / 2)
        drawn.plot(
            difference["difference"], place_in, color=PAGE.series[0], marker="o", markersize=6, alpha=strength
        )
    drawn.axvline(0, color=PAGE.quiet, linewidth=1, linestyle=(0, (2, 2)))
    drawn.margins(x=0.15)
    table = [
        (name, signed(difference["difference"]), interval(difference.get("interval_95"), 4), p_value(p))
        for name, difference, p in rows
    ]
    seeds = found.get("num_seeds") or 1
    source = "of a paired bootstrap over scans" if seeds == 1 else "for other scans and other seeds, both"
    caption = (
        "Right of the dashed line the first is better; a bar that crosses it leaves that open. Bars are 95 % "
        f"intervals {source}."
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
        (capital(name_of(metric)), *(number((scores.get(name) or {}).get(metric), 4) for name in names))
        for metric in metrics
    ]
    return Section("scores", "Every score", (), [Table("Scores of each", ("Metric", *names), rows)])


def _pair_section(position: int, pair: Mapping[str, Any]) -> Section:
    detail = pair_detail(pair)
    return Section(f"pair-{position}", f"{pair['a']} and {pair['b']}", detail.text, [detail.table])


def pair_detail(pair: Mapping[str, Any], metric: str = "cpm", num_seeds: int = 1) -> Detail:
    """A pair's verdict, its further tests, and the differences of every metric.

    Args:
        pair: One of the `pairs` of comparison.json.
        metric: The one that decides.
        num_seeds: How many trainings of each stand behind it.
    """
    rows = [
        (
            capital(name_of(metric)),
            signed(difference.get("difference")),
            interval(difference.get("interval_95"), 4),
            p_value(difference.get("p")),
        )
        for metric, difference in pair["differences"].items()
    ]
    columns = ("Metric", f"{pair['a']} − {pair['b']}", "95 % interval", "p, not adjusted")
    over = "scans" if num_seeds == 1 else "scans and seeds"
    table = Table(f"Differences of every metric, paired bootstrap over {over}", columns, rows)
    adjusted = pair.get("p_holm")
    sure = "" if adjusted is None else f": {_p_in_words(adjusted)}"
    text = (pair["verdict"], *_sources_of_error(pair, metric), *_further_tests(pair))
    return Detail(f"{pair['a']} and {pair['b']}{sure}", text, table)


def _sources_of_error(pair: Mapping[str, Any], metric: str) -> list[str]:
    """Whether scans or seeds leave more open; nothing with one seed."""
    decides = pair["differences"].get(metric) or {}
    scans, seeds = decides.get("scan_error"), decides.get("seed_error")
    if not scans or not seeds:
        return []
    more = "scans" if scans > seeds else "seeds"
    return [
        (
            f"The standard error of its {name_of(metric)} is {number(scans, 4)} from the choice of scans and "
            f"{number(seeds, 4)} from that of seeds: more {more} would narrow the interval most."
        )
    ]


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
            f"{signed(delong['difference'])} (95 % {interval(delong.get('interval_95'), 4)}; DeLong, "
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


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return number(value, 4) if value is None or value <= 0 else f"+{number(value, 4)}"


def p_value(value: float | None) -> str:
    """A p-value with two digits; a dash if there is none."""
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _p_in_words(value: float | None) -> str:
    words = p_value(value)
    return f"p {words}" if words.startswith("<") else f"p = {words}"


def capital(words: str) -> str:
    """Words with a capital letter in front."""
    return words[0].upper() + words[1:]
