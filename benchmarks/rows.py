"""Measurements as rows: what every benchmark leaves with `--json FILE`, and `run.py` gathers.

A row is one figure of one contender. Values of several rounds become their median and quartiles; one value
stays one, and its figure says so. Rows of contenders that took turns also hold how many times as fast one of
them is, the median and quartiles of the ratios within a round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(
    what: str,
    contender: str,
    values: Sequence[float],
    unit: str,
    *,
    ratio: Row | None = None,
    digits: int = 3,
    counted: bool = False,
    headline: bool = False,
) -> Row:
    """A row of one contender.

    Args:
        what: What was measured; the same for contenders of one another.
        contender: With what.
        values: One for each round.
        unit: Of the values; "cubes/s", "s", "ms".
        ratio: What `times_as_fast` gives.
        digits: How many count in the text.
        counted: The value is no timing and would be the same in every round.
        headline: It stands in the short table, too.
    """
    median, low, high = (_short(value) for value in median_and_quartiles(values))
    figure = f"{number(median, digits)} {unit}".rstrip()
    if len(values) > 1:
        figure += f" ({number(low, digits)} to {number(high, digits)})"
    elif not counted:
        figure += " (once)"
    return {
        "what": what,
        "with": contender,
        "figure": figure,
        "unit": unit,
        "rounds": len(values),
        "median": median,
        "q1": low,
        "q3": high,
        "ratio": ratio,
        "headline": headline,
    }


def in_turn(
    what: str,
    values: Mapping[str, Sequence[float]],
    unit: str,
    *,
    to: str,
    headlines: Collection[str] = (),
) -> list[Row]:
    """A row for each of the contenders that took turns, all but `to` with how many times as fast `to` is.

    Args:
        what: What was measured.
        values: By contender, one for each round; speeds if the unit ends in "/s", else times.
        unit: Of the values.
        to: One of the contenders.
        headlines: Those that stand in the short table, too.
    """
    return [
        row(
            what,
            name,
            own,
            unit,
            ratio=None if name == to else times_as_fast(to, values[to], own, is_speed=unit.endswith("/s")),
            headline=name in headlines,
        )
        for name, own in values.items()
    ]


def times_as_fast(to: str, reference: Sequence[float], own: Sequence[float], *, is_speed: bool) -> Row:
    """How many times as fast `to` is, round by round: median and quartiles."""
    pairs = zip(reference, own, strict=True)
    ratios = [theirs / mine if is_speed else mine / theirs for theirs, mine in pairs]
    median, low, high = (_short(value) for value in median_and_quartiles(ratios))
    return {"to": to, "median": median, "q1": low, "q3": high}


def median_and_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Three times the same of a single value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def number(value: float, digits: int = 3) -> str:
    """With so many digits that count, and commas between thousands."""
    rounded = float(f"{value:.{digits}g}")
    whole = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    if whole == 0 and rounded != 0:
        return f"{rounded:.{digits}g}"
    return f"{rounded:,.{max(digits - max(whole, 1), 0)}f}"


def write(path: Path | None, rows: Sequence[Row]) -> None:
    """Leaves the rows as JSON, if a file is named."""
    if path is not None:
        path.write_text(json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.5g}")
