"""The tables of `results.json`, between markers in Markdown pages.

Between `<!-- benchmarks -->` and `<!-- /benchmarks -->` stand the headlines, between
`<!-- all benchmarks -->` and `<!-- /all benchmarks -->` every row.
"""

from __future__ import annotations

import re
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

BUSY = 0.15  # cores
WIDTH = 110
KINDS = {"benchmarks": True, "all benchmarks": False}  # marker: headlines alone


def rewrite(page: Path, results: dict[str, Any]) -> None:
    """Puts the tables of the results between the markers of a page."""
    page.write_text(rewritten(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def rewritten(text: str, results: dict[str, Any]) -> str:
    """The text of a page with the tables of the results between its markers.

    Raises:
        ValueError: If it has no markers.
    """
    count = 0
    for marker, headlines in KINDS.items():
        opening, closing = f"<!-- {marker} -->", f"<!-- /{marker} -->"
        between = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
        own = f"{opening}\n{table(results, headlines=headlines)}\n{closing}"
        text, found = between.subn(lambda _, own=own: own, text)
        count += found
    if not count:
        raise ValueError("The page has neither <!-- benchmarks --> nor <!-- all benchmarks --> in it.")
    return text


def table(results: dict[str, Any], *, headlines: bool) -> str:
    """A sentence on the machine and a table: of the headlines, or of all rows."""
    lines = [_measured_on(results), "", "| what | with | median (quartiles) | takes |", "|---|---|--:|--:|"]
    before = None
    for row in results["rows"]:
        if row["headline"] or not headlines:
            what = "" if row["what"] == before else row["what"]
            lines.append(f"| {what} | {row['with']} | {row['figure']} | {_takes(row['ratio'])} |")
            before = row["what"]
    return "\n".join([*lines, "", *_commands(results, headlines=headlines)])


def _takes(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    low, high = (f"{ratio[key]:.2f}" for key in ("q1", "q3"))
    spread = "" if low == high else f" ({low} to {high})"
    return f"{ratio['median']:.2f}{spread} times as long as {ratio['to']}"


def _measured_on(results: dict[str, Any]) -> str:
    machine, parts = results["machine"], results["parts"]
    days = sorted({part["date"] for part in parts})
    first, last = (_spelled(day) for day in (days[0], days[-1]))
    flags = f" with {', '.join(machine['flags'])}" if machine["flags"] else ""
    versions = {"Python": machine["python"], "TensorFlow": machine["tensorflow"], "Keras": machine["keras"]}
    named = ", ".join(f"{name} {number}" for name, number in (versions | machine["peers"]).items())
    when = first if first == last else f"{first} to {last}"
    where = f"{machine['cores']} cores of a shared machine ({machine['cpu']}{flags}"
    busy = max(part["others"] or 0.0 for part in parts)
    beside = f" Other work kept up to {busy:.1f} of the cores busy meanwhile." if busy >= BUSY else ""
    return _filled(
        f"Measured on {when} on {where}; {machine['memory_gb']:.0f} GB), by `python benchmarks/run.py`. "
        f"{named}. Contenders take turns; ratios are within a round.{beside}"
    )


def _spelled(day: str) -> str:
    return f"{date.fromisoformat(day):%d %B %Y}".lstrip("0")


def _commands(results: dict[str, Any], *, headlines: bool) -> list[str]:
    shown = {row["command"] for row in results["rows"] if row["headline"] or not headlines}
    commands = [f"`{part['command']}`" for part in results["parts"] if part["command"] in shown]
    return [_filled(f"Each part by itself: {', '.join(commands)}.")]


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
