"""What commands end with: a report, and a word on what failed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from luna_cls.cli.app import DONE, SOME_FAILED
from luna_cls.cli.console import keep_path, say


def add_report(folder: Path, scans: Iterable[Path] = (), store: Path | None = None) -> None:
    """Writes a report at the end of a command; what the command has made stands, whatever becomes of that.

    Args:
        folder: What is reported.
        scans: Scans, or folders of them, for pictures.
        store: The cube store of a run, for pictures.
    """
    try:
        from luna_cls.cubes.store import CubeStore
        from luna_cls.reports.page import write_report

        opened = CubeStore.open(store) if store else None
        written = write_report(folder, scans=scans, store=opened)
    except Exception as error:
        again = f"luna-cls report {shlex.quote(str(folder))}"
        say(f"Warning: no report was written ({' '.join(str(error).split())}). Try: {again}")
    else:
        keep_path("report", written)
        say(f"Report: {written}")


def status_of(folder: Path, failures: int) -> int:
    """The exit status of a command that may have had to leave some things out; says so if it had.

    Args:
        folder: Where `failures.csv` is.
        failures: How many lines that has.
    """
    if not failures:
        return DONE
    lines = f"{failures} line{'s'[: failures > 1]}"
    keep_path("failures", folder / "failures.csv")
    say(f"luna-cls: not all could be used: {folder / 'failures.csv'} says what and why, in {lines}.")
    return SOME_FAILED


def not_all(folder: Path, what: str, *, can_be_tried_again: bool) -> int:
    """The exit status of a command of many trainings, not all of which went well; says where it stands why.

    Args:
        folder: Where `failures.csv` is.
        what: What it had many of.
        can_be_tried_again: Whether --resume does something about it.
    """
    keep_path("failures", folder / "failures.csv")
    again = " The same command with --resume tries what failed again." if can_be_tried_again else ""
    say(f"luna-cls: not all {what} went well; {folder / 'failures.csv'} says which and why.{again}")
    return SOME_FAILED
