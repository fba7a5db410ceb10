"""The page of findings in new scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from luna_cls.cubes.store import NO_SCAN, OUTSIDE, UNREADABLE
from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, PREDICTION
from luna_cls.inference.prediction_folder import EXPORT, TWICE, PredictionFolder
from luna_cls.reports import figures
from luna_cls.reports.blocks import Page, Section, Table, Uid, plural, probability
from luna_cls.reports.calibration_sections import METHODS
from luna_cls.reports.candidates import most_probable
from luna_cls.reports.evidence import apart, need, read_json, read_table
from luna_cls.reports.viewer import Cubes

MOST_FINDINGS = 12
MOST_ROWS = 50
LIKELY = 0.5  # where prediction.json names no threshold
_FAILED = {  # by status: what it was, and what became of it
    UNREADABLE: ("scan", "could not be read: nothing is known there."),
    NO_SCAN: ("scan", "could not be found: nothing is known there."),
    OUTSIDE: ("candidate", "could not be scored."),
    TWICE: ("scan file", "not read: its series UID is that of one that was."),
    EXPORT: ("findings file", "could not be written."),
}


def prediction_page(folder: Path, cubes: Cubes) -> Page:
    """Reads a folder of findings into a page.

    Args:
        folder: As `luna-cls predict` makes it.
        cubes: Where pictures come from.

    Raises:
        InputError: If a file is missing or damaged.
    """
    findings = read_table(folder / "findings.csv", (*POINT_COLUMNS, "probability"))
    failures = read_table(folder / "failures.csv", ("seriesuid", "status", "reason"))
    if findings is None or failures is None:
        missing = "findings.csv" if findings is None else "failures.csv"
        raise InputError(f"{folder} has no {missing}. Give a folder that luna-cls predict has made.")
    listed = folder / "seriesuids.csv"
    uids = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    uids = uids or list(dict.fromkeys(findings["seriesuid"]))
    about = read_json(folder / PREDICTION)
    threshold = LIKELY if about is None else float(about.get("threshold", LIKELY))
    level = "1/2" if threshold == LIKELY else probability(threshold)
    likely = _places(findings[findings["probability"] >= threshold])
    is_unread = failures["status"].isin([UNREADABLE, NO_SCAN])
    unread = failures.loc[is_unread, "seriesuid"].nunique()
    calibrated = _calibration_in_words(about, folder / PREDICTION)
    return Page(
        kind="Findings",
        title=folder.resolve().name,
        verdict=f"{_verdict(likely, level, len(uids))} {calibrated}".strip(),
        facts=[
            (
                "Scans read",
                f"{len(uids) - unread:,} of {len(uids):,}",
                f"{unread:,} could not be" if unread else "all of them",
            ),
            (
                "Candidates scored",
                f"{len(findings):,}",
                f"{len(findings) / max(len(uids) - unread, 1):,.0f} a scan",
            ),
            (f"Places from {level}", f"{len(likely):,}", "10 mm or more apart"),
            ("Highest probability", probability(findings["probability"].max()), "of all candidates"),
        ],
        warnings=_warnings(failures),
        sections=[
            most_probable(findings, cubes, MOST_FINDINGS),
            _by_scan(folder, uids, findings, likely, level),
            Section(
                "probabilities",
                "All probabilities",
                (
                    calibrated
                    or "What a probability means depends on how the model was trained and calibrated.",
                ),
                [figures.histogram(findings, "candidates")],
            ),
            *([_failures(failures)] if len(failures) else []),
        ],
    )


def _verdict(likely: pd.DataFrame, level: str, num_scans: int) -> str:
    places, with_any = len(likely), likely["seriesuid"].nunique()
    level = f"with a probability of {level} or more"
    if num_scans == 1:
        number = plural(places, "place") if places else "no place"
        return f"In the one scan there {'is' if places < 2 else 'are'} {number} {level}."
    if not places:
        return f"In none of {num_scans:,} scans is there a place {level}."
    return (
        f"In {with_any:,} of {num_scans:,} scans there is a place {level}: {plural(places, 'place')} in all."
    )


def _calibration_in_words(about: Mapping[str, Any] | None, path: Path) -> str:
    """Whether probabilities are calibrated, and by what; empty where the folder does not tell."""
    if about is None:
        return ""
    need(about, path, "calibration")
    if about["calibration"] is None:
        return "The probabilities are as trained, not calibrated."
    method = str(about["calibration"]["method"])
    return f"The probabilities are calibrated, by {METHODS.get(method, method)}."


def _places(findings: pd.DataFrame) -> pd.DataFrame:
    """One finding for every place: the most probable of those near each other."""
    return apart(findings.sort_values("probability", ascending=False, kind="stable"), len(findings))


def _warnings(failures: pd.DataFrame) -> list[str]:
    counts = failures["status"].value_counts()
    return [
        f"{plural(int(counts[status]), what)} {fate} They are listed below."
        for status, (what, fate) in _FAILED.items()
        if status in counts
    ]


def _by_scan(
    folder: Path, uids: list[str], findings: pd.DataFrame, likely: pd.DataFrame, level: str
) -> Section:
    scored, highest = (findings.groupby("seriesuid")["probability"].agg(how) for how in ("size", "max"))
    places = likely.groupby("seriesuid").size()
    order = sorted(uids, key=lambda uid: -highest.get(uid, -1.0))
    rows = [
        (
            Uid(uid, _own_page(folder, uid)),
            f"{places.get(uid, 0):,}" if uid in highest else "–",
            probability(highest.get(uid)),
            f"{scored.get(uid, 0):,}",
        )
        for uid in order[:MOST_ROWS]
    ]
    text = "The scan with the most probable finding first."
    if any(row[0].page for row in rows):
        text += " Each leads to its own page."
    if len(order) > MOST_ROWS:
        text += f" The first {MOST_ROWS} of {len(order):,}; findings.csv has all."
    columns = ("Scan", f"Places from {level}", "Highest probability", "Candidates scored")
    return Section("scans", "By scan", (text,), [Table("Findings of each scan", columns, rows)])


def _own_page(folder: Path, uid: str) -> str:
    page = PredictionFolder(folder).of_scan(uid) / "report.html"
    return page.relative_to(folder).as_posix() if page.is_file() else ""


def _failures(failures: pd.DataFrame) -> Section:
    rows = [
        (Uid(row["seriesuid"]), str(row["reason"])) for row in failures.head(MOST_ROWS).to_dict("records")
    ]
    text = "Scans, candidates and files, each with the reason."
    if len(failures) > MOST_ROWS:
        text += f" The first {MOST_ROWS}; failures.csv has all."
    return Section(
        "failures", "What could not be used", (text,), [Table("Failures", ("Scan", "Why"), rows, True)]
    )
