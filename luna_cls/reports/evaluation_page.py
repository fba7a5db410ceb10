"""The page of an evaluation: FROC and CPM first, then what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, write_text, written_whole
from luna_cls.judging.submission import OF_FOLDER
from luna_cls.reports import figures
from luna_cls.reports.blocks import (
    RATE_NAMES,
    Block,
    Page,
    Section,
    Table,
    Uid,
    count_of,
    interval,
    number,
    percent,
    plural,
)
from luna_cls.reports.calibration_sections import decisions, reliability
from luna_cls.reports.candidates import (
    every_candidate,
    hardest_nodules,
    ranking_facts,
    ranking_in_words,
    worst_false_alarms,
)
from luna_cls.reports.drawing import PAPER, to_svg
from luna_cls.reports.evidence import need, read_froc, read_json, read_table, warn_of_few
from luna_cls.reports.viewer import Cubes

MOST_SCANS = 10
THRESHOLDS = "The thresholds were chosen on validation scans; here is what they do on the scans evaluated."

_INPUTS = {
    "predictions": "Predictions",
    "folder": "Folder of the predictions",
    "annotations": "Annotated nodules",
    "excluded": "Excluded findings",
    "series_uids": "List of scans",
    "subset": "Subset",
    "subsets": "What tells the subsets",
}


def evaluation_page(folder: Path, cubes: Cubes) -> Page:
    """Reads an evaluation folder into a page.

    Args:
        folder: As `luna-cls evaluate` makes it; with froc.json or metrics.json, all else may be missing.
        cubes: Where pictures come from.

    Raises:
        InputError: If a file is damaged, or both are missing.
    """
    about = read_json(folder / "evaluation.json") or {}
    inputs = about.get("inputs") or {}
    found, judged = read_json(folder / "froc.json"), read_json(folder / "metrics.json")
    if judged is not None:
        need(judged, folder / "metrics.json", "metrics", "no_skill")
    if found is None and (judged is None or judged["metrics"] is None):
        raise InputError(f"{folder} has neither a FROC curve nor metrics. Evaluate again.")
    of_froc = [_without_froc()] if found is None else _of_froc(folder, found)
    sections = [
        *of_froc,
        *_of_candidates(folder, judged),
        *_of_the_worst(folder, cubes),
        _scans(folder),
        _inputs(found or {}, inputs),
    ]
    if found is not None:
        verdict, facts = _verdict(found), _facts(found)
    elif judged is not None:
        verdict = ranking_in_words(judged["metrics"])
        facts = ranking_facts(judged["metrics"], judged["no_skill"])
    return Page(
        kind="Evaluation",
        title=_title(folder, inputs),
        verdict=verdict,
        facts=facts,
        warnings=[
            *map(str, about.get("warnings") or ()),
            *(warn_of_few(found["num_scans"]) if found is not None else ()),
        ],
        sections=[section for section in sections if section is not None],
    )


def _title(folder: Path, inputs: Mapping[str, Any]) -> str:
    name = inputs.get("folder") or inputs.get("predictions")
    return folder.resolve().name if not name or name in OF_FOLDER else str(name)


def write_froc(folder: Path) -> None:
    """Writes the curve of an evaluation folder for a paper, on white: `froc.png` and `froc.svg`.

    Raises:
        InputError: If the folder has no curve, or a damaged one.
    """
    drawn = figures.draw_froc([read_froc(folder, "this submission")], PAPER)
    write_text(folder / "froc.svg", to_svg(drawn, "froc", PAPER))
    with written_whole(folder / "froc.png") as temporary:
        drawn.savefig(temporary, dpi=300, metadata={"Software": None})


def _verdict(found: Mapping[str, Any]) -> str:
    at_one, bounds = found["sensitivity_at_fps"]["1"], found.get("cpm_interval_95")
    brackets = f" ({interval(bounds)} in {_resamples(found)})" if bounds and None not in bounds else ""
    return (
        f"At one false positive a scan, {percent(at_one)} of the nodules are found. "
        f"The mean over LUNA16's seven rates, its CPM, is {found['cpm']:.3f}{brackets}."
    )


def _resamples(found: Mapping[str, Any]) -> str:
    bootstrap = found.get("bootstrap") or {"resamples": 0}
    return f"95 % of {bootstrap['resamples']:,} resamples of scans"


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    nodules, scans, counts = found["num_nodules"], found["num_scans"], found["counts"]
    bounds, alarms = found.get("cpm_interval_95"), counts["false_positives"]
    return [
        (
            "CPM",
            number(found["cpm"]),
            f"95 %: {interval(bounds)}" if bounds and None not in bounds else "mean sensitivity, 1/8 to 8",
        ),
        ("Nodules marked", count_of(counts["true_positives"], nodules), "at any probability"),
        ("False positives", f"{alarms:,}", f"{alarms / scans:.1f} a scan"),
        ("Scans", f"{scans:,}", plural(nodules, "nodule")),
    ]


def _of_froc(folder: Path, found: Mapping[str, Any]) -> list[Section]:
    curve = read_froc(folder, "this submission")  # which checks what froc.json holds
    caption = "Dots are LUNA16's seven rates; the horizontal axis doubles from each to the next."
    if curve.band is not None:
        caption += f" The band holds {_resamples(found)}."
    drawn = figures.froc([curve], caption)
    scans = f"{plural(found['num_nodules'], 'nodule')} in {plural(found['num_scans'], 'scan')}"
    text = f"{scans}: how many are found, if so many false positives a scan are put up with."
    hint = "" if curve.intervals else "Intervals need a bootstrap: luna-cls evaluate with --resamples 1000."
    sections = [Section("froc", "Nodules found against false positives", (text,), [drawn], hint)]
    if found.get("by_size"):
        text = "CPM for nodules of each size, with all false positives. What is rare has wide intervals."
        sections.append(
            Section("size", "By size of nodule", (text,), [figures.size_strata(found["by_size"])])
        )
    return sections


def _without_froc() -> Section:
    return Section(
        "froc",
        "Nodules found against false positives",
        ("Not measured: these candidates were judged by their own labels alone.",),
        hint="For FROC and CPM: luna-cls evaluate with --annotations.",
    )


def _of_candidates(folder: Path, judged: Mapping[str, Any] | None) -> list[Section | None]:
    calibration = read_json(folder / "reliability.json")
    points = read_json(folder / "operating_points.json")
    return [
        _candidates(folder, judged) if judged is not None and judged["metrics"] is not None else None,
        reliability(calibration) if calibration else None,
        decisions(points, THRESHOLDS) if points else None,
    ]


def _of_the_worst(folder: Path, cubes: Cubes) -> list[Section]:
    nodules = read_table(
        folder / "nodules.csv", (*POINT_COLUMNS, "diameter_mm", "probability", "fps_per_scan")
    )
    others = read_table(folder / "false_positives.csv", (*POINT_COLUMNS, "probability"))
    sections = [] if nodules is None or nodules.empty else [hardest_nodules(nodules, cubes)]
    return sections + ([] if others is None or others.empty else [worst_false_alarms(others, cubes)])


def _candidates(folder: Path, judged: Mapping[str, Any]) -> Section:
    curves = {
        "roc": read_table(folder / "roc.csv", ("false_positive_rate", "sensitivity")),
        "precision_recall": read_table(folder / "precision_recall.csv", ("recall", "precision")),
    }
    metrics = judged["metrics"]
    count = sum(int(metrics[name]) for name in ("tp", "fp", "tn", "fn"))
    text = f"{count:,} candidates, {int(metrics['tp'] + metrics['fn']):,} of them on nodules"
    if judged.get("labels") == "luna16":
        text += (
            ": those that lie inside an annotated nodule. Those on excluded findings are left out; nodules "
            "that no candidate marks are not counted here"
        )
    return every_candidate(curves, metrics, judged["no_skill"], judged.get("interval_95"), f"{text}.")


def _scans(folder: Path) -> Section | None:
    columns = ("seriesuid", "num_nodules", "num_found", "num_marks", "num_false_positives", "found_at_1")
    scans = read_table(folder / "scans.csv", columns)
    if scans is None:
        return None
    alarms = scans["false_positives_at_1"] if "false_positives_at_1" in scans.columns else None
    missed = scans["num_nodules"] - scans["found_at_1"]
    with_nodules = scans["num_nodules"] > 0
    whole = int((with_nodules & (missed == 0)).sum())
    text = (
        "At the threshold of one false positive a scan, every nodule is found in "
        f"{whole:,} of the {plural(int(with_nodules.sum()), 'scan')} with nodules."
    )
    if alarms is not None:
        clean = int((alarms == 0).sum())
        text += (
            f" {clean:,} of {plural(len(scans), 'scan')} {'is' if clean == 1 else 'are'} without a false "
            "positive there."
        )
    worst = scans.assign(missed=missed).sort_values(
        ["missed", "num_false_positives"], ascending=False, kind="stable"
    )
    rows = [
        (
            Uid(row["seriesuid"]),
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
    return Section("scans", "By scan", (text,), [table])


def _inputs(found: Mapping[str, Any], inputs: Mapping[str, Any]) -> Section:
    counts = found.get("counts") or {}
    labels = {
        "true_positives": "Nodules hit",
        "false_negatives": "Nodules missed",
        "false_positives": "False positives",
        "doubles": "Further hits on a nodule already hit",
        "ignored": "Marks on excluded findings, ignored",
        "candidates": "Marks that count (at most 100 a scan)",
    }
    rows = [(label, f"{counts[name]:,}") for name, label in labels.items() if name in counts]
    blocks: list[Block] = (
        [Table("Counts, as LUNA16's script has them", ("What", "Count"), rows)] if rows else []
    )
    given = [
        (_INPUTS.get(name, name), "–" if value is None else str(value)) for name, value in inputs.items()
    ]
    bootstrap = found.get("bootstrap")
    if bootstrap:
        given.append(
            ("Bootstrap", f"{bootstrap['resamples']:,} resamples of scans, seed {bootstrap['seed']}")
        )
    if given:
        blocks.append(Table("What was given", ("Input", "Value"), given, of_words=True))
    rates = ", ".join(RATE_NAMES.values())
    text = (
        "Counted by the rules of LUNA16's official script: a mark hits a nodule if it is nearer to its "
        f"centre than its radius; the CPM is the mean sensitivity at {rates} false "
        "positives a scan (Setio et al. 2017)."
    )
    return Section("inputs", "Counts, inputs and rules", (text,), blocks)
