"""What is to be reported, as it lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.judging.froc import RATES_PER_SCAN
from luna_cls.reports.blocks import plural
from luna_cls.reports.figures import Froc

SAME_PLACE_MM = 10.0
FEW_SCANS = 20
_WORDS = (
    "seriesuid",
    "status",
    "reason",
)  # columns that hold words; all others that a page needs hold numbers
_IF_THERE = ("class", "logit", "false_positives_at_1")  # numbers, in columns that may be missing


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is not there.

    Raises:
        InputError: If it is damaged.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}. Make the folder again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no object. Make the folder again.")
    return value


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """What a CSV holds, `seriesuid` as text; None if it is not there.

    Raises:
        InputError: If it is damaged, lacks one of `columns`, or has a word where a number belongs.
    """
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype={"seriesuid": str})
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged: {reason}. Make the folder again.") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}. Make the folder again.")
    for name in table.columns.intersection([*columns, *_IF_THERE]).difference(_WORDS):
        is_word = pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()
        if is_word.any():
            word = " ".join(str(table.loc[is_word, name].iloc[0]).split())
            raise InputError(f"{path} is damaged: {name} is {word!r}, no number. Make the folder again.")
    return table


def need(found: Mapping[str, Any], path: Path, *keys: str) -> None:
    """Refuses JSON that lacks what every page shows.

    Raises:
        InputError: If a key is missing; names the first.
    """
    missing = [key for key in keys if key not in found]
    if missing:
        raise InputError(f"{path} lacks {missing[0]}. Make the folder again.")


def read_froc(folder: Path, name: str) -> Froc:
    """The FROC curve of an evaluation folder.

    Args:
        folder: With froc.json, froc.csv and perhaps a file of the bootstrap.
        name: What to call it.

    Raises:
        InputError: If a file is missing or damaged.
    """
    summary = read_json(folder / "froc.json")
    curve = read_table(folder / "froc.csv", ("fps_per_scan", "sensitivity"))
    if summary is None or curve is None:
        missing = "froc.json" if summary is None else "froc.csv"
        raise InputError(f"{folder} has no {missing}. Give a folder that luna-cls evaluate has made.")
    need(summary, folder / "froc.json", "sensitivity_at_fps", "cpm", "num_scans", "num_nodules", "counts")
    at_rates = summary["sensitivity_at_fps"]
    need(at_rates, folder / "froc.json", *(f"{rate:g}" for rate in RATES_PER_SCAN))
    files = sorted(folder.glob("froc_*_bootstrapping.csv"))
    band = None
    if files:
        columns = ("FPrate", "Sensivity[Lower bound]", "Sensivity[Upper bound]")  # the official spelling
        table = read_table(files[0], columns)
        if table is not None and len(table):
            rates, lower, upper = (table[column].to_numpy(float) for column in columns)
            band = rates, lower, upper
    return Froc(
        name=name,
        fps_per_scan=curve["fps_per_scan"].to_numpy(float),
        sensitivity=curve["sensitivity"].to_numpy(float),
        at_rates=at_rates,
        intervals=summary.get("sensitivity_at_fps_interval_95"),
        band=band,
        cpm=summary["cpm"],
    )


def warn_of_few(num_scans: int) -> list[str]:
    """A sentence where there are so few scans that figures of them, and intervals above all, say little."""
    few = f"{plural(num_scans, 'scan')} only: a few others may give quite other figures, "
    return [few + "and intervals from so few are too narrow."] if num_scans < FEW_SCANS else []


def apart(points: pd.DataFrame, most: int, distance_mm: float = SAME_PLACE_MM) -> pd.DataFrame:
    """The first rows of a table, but none near an earlier one of the same scan.

    Args:
        points: Table `seriesuid, coordX, coordY, coordZ, ...` in the order of interest.
        most: How many rows to take.
        distance_mm: Nearer than this is the same place.
    """
    taken: list[int] = []
    taken_xyz_mm: dict[str, list[np.ndarray]] = {}
    for row, (uid, place) in enumerate(
        zip(points["seriesuid"], points[COORDINATES].to_numpy(float), strict=True)
    ):
        others = taken_xyz_mm.setdefault(uid, [])
        if all(np.linalg.norm(place - other) >= distance_mm for other in others):
            others.append(place)
            taken.append(row)
            if len(taken) == most:
                break
    return points.iloc[taken]
