"""The page of an evaluation: FROC and CPM first, then what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luna_cls.files import POINT_COLUMNS
from luna_cls.reports import figures
from luna_cls.reports.blocks import (
    RATE_NAMES,
    Block,
    Page,
    Section,
    Table,
    count_of,
    interval,
    number,
    percent,
    plural,
)
from luna_cls.reports.calibration_sections import decisions, reliability
from luna_cls.reports.candidates import every_candidate, hardest_nodules, worst_false_alarms
from luna_cls.reports.evidence import need, read_froc, read_json, read_table
from luna_cls.reports.viewer import Cubes

MOST_SCANS = 10


def evaluation_page(folder: Path, cubes: Cubes) -> Page:
    """Reads an evaluation folder into a page.

    Args:
        folder: As `luna-cls evaluate` makes it; files may be missing but for froc.json and froc.csv.
        cubes: Where pictures come from.

    Raises:
        InputError: If a file is damaged.
    """
    curve = read_froc(folder, "this submission")
    found = read_json(folder / "froc.json") or {}
    counts = found["counts"]
    need(counts, folder / "froc.json", "true_positives", "false_positives", "false_negatives")
    inputs = found.get("inputs") or {}
    bootstrap = found.get("bootstrap")
    resamples = f"95 % of {bootstrap['resamples']:,} resamples of scans" if bootstrap else ""
    bounds = found.get("cpm_interval_95")
    judged = read_json(folder / "metrics.json")
    nodules = read_table(folder / "nodules.csv", (*POINT_COLUMNS, "diameter_mm", "probability", "fps_per_scan"))
    false_alarms = read_table(folder / "false_positives.csv", (*POINT_COLUMNS, "probability"))
    calibration = read_json(folder / "calibration.json")
    points = read_json(folder / "operating_points.json")
    sections = [
        _froc_section(curve, found, resamples),
        _sizes(found),
        _candidates(folder, judged),
        reliability(calibration) if calibration else None,
        decisions(points) if points else None,
        hardest_nodules(nodules, cubes) if nodules is not None else None,
        worst_false_alarms(false_alarms, cubes) if false_alarms is not None else None,
        _scans(folder),
        _inputs(found, inputs),
    ]
    cpm = f"CPM {found['cpm']:.3f}" + (
        f" ({interval(bounds)} in {resamples})" if bounds and resamples else ""
    )
    at_one = found["sensitivity_at_fps"]["1"]
    return Page(
        kind="Evaluation",
        title=inputs.get("predictions") or folder.resolve().name,
        verdict=(
            f"At one false positive a scan, {percent(at_one)} of the nodules are found. Over LUNA16's seven rates "
            f"the mean sensitivity is {cpm}."
        ),
        facts=_facts(found, counts, bounds),
        warnings=[str(sentence) for sentence in found.get("warnings") or ()],
        sections=[section for section in sections if section is not None],
    )


def _facts(found: Mapping[str, Any], counts: Mapping[str, int], bounds: Any) -> list[tuple[str, str, str]]:
    nodules, scans = found["num_nodules"], found["num_scans"]
    return [
        ("CPM", number(found["cpm"]), f"95 %: {interval(bounds)}" if bounds else "mean sensitivity, 1/8 to 8"),
        ("Nodules marked", count_of(counts["true_positives"], nodules), "at any probability"),
        ("False positives", f"{counts['false_positives']:,}", f"{counts['false_positives'] / scans:.1f} a scan"),
        ("Scans", f"{scans:,}", plural(nodules, "nodule")),
    ]


def _froc_section(curve: figures.Froc, found: Mapping[str, Any], resamples: str) -> Section:
    caption = "Dots are LUNA16's seven rates; the horizontal axis doubles from each to the next."
    if curve.band is not None and resamples:
        caption += f" The band holds {resamples}."
    drawn = figures.froc([curve], caption)
    scans = f"{plural(found['num_nodules'], 'nodule')} in {plural(found['num_scans'], 'scan')}"
    text = f"How many of the {scans} are found, if so many false positives a scan are put up with."
    hint = ""
    if not curve.intervals:
        hint = "Without a bootstrap there are no intervals: luna-cls evaluate makes one unless told not to."
    return Section("froc", "Nodules found against false positives", (text,), [drawn], hint)


def _sizes(found: Mapping[str, Any]) -> Section | None:
    strata = found.get("by_size")
    if not strata:
        return None
    return Section(
        "size",
        "By size of nodule",
        ("Small nodules are harder, and there are more of them: what is rare has wide intervals.",),
        [figures.size_strata(strata)],
    )


def _candidates(folder: Path, judged: Mapping[str, Any] | None) -> Section | None:
    if judged is None:
        return None
    need(judged, folder / "metrics.json", "metrics", "no_skill")
    scores = read_table(folder / "scored.csv", ("probability", "class"))
    metrics, labels = judged["metrics"], judged.get("labels", "class")
    count = sum(int(metrics[name]) for name in ("tp", "fp", "tn", "fn"))
    nodules = int(metrics["tp"] + metrics["fn"])
    text = f"{count:,} candidates, {nodules:,} of them on nodules"
    if labels == "luna16":
        text += (
            ": those that lie inside an annotated nodule. Those on excluded findings are left out; nodules that "
            "no candidate marks are not counted here"
        )
    return every_candidate(scores, metrics, judged["no_skill"], judged.get("interval_95"), f"{text}.")


def _scans(folder: Path) -> Section | None:
    columns = ("seriesuid", "num_nodules", "num_found", "num_marks", "num_false_positives", "found_at_1")
    scans = read_table(folder / "scans.csv", columns)
    if scans is None:
        return None
    alarms = scans["false_positives_at_1"] if "false_positives_at_1" in scans.columns else None
    missed = scans["num_nodules"] - scans["found_at_1"]
    with_nodules = scans["num_nodules"] > 0
    whole = int((with_nodules & (missed == 0)).sum())
    text = [
        f"At the threshold of one false positive a scan, every nodule is found in "
        f"{count_of(whole, int(with_nodules.sum()))} scans that have one."
    ]
    if alarms is not None:
        text.append(f"{count_of(int((alarms == 0).sum()), len(scans))} scans are without a false positive there.")
    worst = scans.assign(missed=missed).sort_values(
        ["missed", "num_false_positives"], ascending=False, kind="stable"
    )
    rows = [
        (
            str(row["seriesuid"]),
            count_of(row["found_at_1"], row["num_nodules"]),
            *([f"{row['false_positives_at_1']:,.0f}"] if alarms is not None else []),
            count_of(row["num_found"], row["num_nodules"]),
            f"{row['num_false_positives']:,.0f}",
        )
        for row in worst.head(MOST_SCANS).to_dict("records")
    ]
    columns_shown = (
        "Scan",
        "Found at 1 a scan",
        *(["False positives there"] if alarms is not None else []),
        "Found at any probability",
        "False positives at any",
    )
    table = Table("The scans with most nodules missed at one false positive a scan", columns_shown, rows)
    return Section("scans", "By scan", (" ".join(text),), [table])


def _inputs(found: Mapping[str, Any], inputs: Mapping[str, Any]) -> Section:
    counts = found["counts"]
    labels = {
        "true_positives": "Nodules hit",
        "false_negatives": "Nodules missed",
        "false_positives": "False positives",
        "doubles": "Further hits on a nodule already hit",
        "ignored": "Marks on excluded findings, ignored",
        "candidates": "Marks that count (at most 100 a scan)",
    }
    rows = [(label, f"{counts[name]:,}") for name, label in labels.items() if name in counts]
    blocks: list[Block] = [Table("Counts, as LUNA16's script has them", ("What", "Count"), rows)]
    given = [(name.capitalize(), "–" if value is None else str(value)) for name, value in inputs.items()]
    bootstrap = found.get("bootstrap")
    if bootstrap:
        given.append(("Bootstrap", f"{bootstrap['resamples']:,} resamples of scans, seed {bootstrap['seed']}"))
    if given:
        blocks.append(Table("What was given", ("Input", "Value"), given, of_words=True))
    rates = ", ".join(RATE_NAMES.values())
    text = (
        "Counted by the rules of LUNA16's official script: a mark hits a nodule if it is nearer to its centre than "
        f"its radius; the CPM is the mean sensitivity at {rates} false positives a scan (Setio et al. 2017)."
    )
    return Section("inputs", "Counts, inputs and rules", (text,), blocks)
