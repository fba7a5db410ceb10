"""Refuses tests that leave too much of a room unreached: `coverage_gate.py coverage.json ROOM...`"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

LINES_PERCENT, BRANCHES_PERCENT = 95.0, 90.0
MOST_FILES = 3


def judge(files: dict[str, Any], rooms: Sequence[str]) -> tuple[list[str], bool]:
    """Holds every room, by itself, to what is asked of its lines and of its branches.

    Coverage's own `fail_under` is one number for all files, lines and branches together.

    Args:
        files: `files` of coverage's JSON, measured with branches.
        rooms: Packages or modules, as "luna_cls.scans".

    Returns:
        A table in lines of text, with the files of each room that miss most; and whether all rooms pass.
    """
    table = [f"{'room':<28}{'lines':>8}{'branches':>10}   not reached"]
    passes = True
    for room in rooms:
        inside = PurePosixPath(*room.split("."))
        own = {
            name: found["summary"]
            for name, found in files.items()
            if inside.with_suffix(".py") == PurePosixPath(name) or inside in PurePosixPath(name).parents
        }
        if not own:
            table.append(f"{room:<28}{'':>18}   NOT MEASURED")
            passes = False
            continue
        lines = _percent(own.values(), "covered_lines", "num_statements")
        branches = _percent(own.values(), "covered_branches", "num_branches")
        is_enough = lines >= LINES_PERCENT and branches >= BRANCHES_PERCENT
        passes &= is_enough
        table.append(
            f"{room:<28}{lines:>6.1f} %{branches:>8.1f} %   {_worst(own, inside)}"
            f"{'' if is_enough else '   TOO LITTLE'}"
        )
    return table, passes


def _percent(summaries: Any, covered: str, there: str) -> float:
    """What share is covered; all of nothing is 100 %."""
    total = sum(summary[there] for summary in summaries)
    return 100 * sum(summary[covered] for summary in summaries) / total if total else 100.0


def _worst(own: dict[str, Any], inside: PurePosixPath) -> str:
    """The files that miss most, as `name lines+branches`."""
    missed = {name: (one["missing_lines"], one["missing_branches"]) for name, one in own.items()}
    worst = sorted((name for name in missed if any(missed[name])), key=lambda name: -sum(missed[name]))
    shown = [
        f"{PurePosixPath(name).relative_to(inside.parent)} {missed[name][0]}+{missed[name][1]}"
        for name in worst[:MOST_FILES]
    ]
    more = [f"{len(worst) - MOST_FILES} more"] if len(worst) > MOST_FILES else []
    return ", ".join(shown + more)


def main(path: str, *rooms: str) -> int:
    """Prints the table; 1 if a room falls short."""
    table, passes = judge(json.loads(Path(path).read_text(encoding="utf-8"))["files"], rooms)
    print(*table, sep="\n")
    if not passes:
        print(f"Asked of every room: {LINES_PERCENT:g} % of lines and {BRANCHES_PERCENT:g} % of branches.")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
