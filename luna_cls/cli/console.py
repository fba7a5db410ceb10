"""How the command line speaks: results on standard output, all else on standard error.

Colours are rich's: on a terminal only, none with NO_COLOR or TERM=dumb, everywhere with FORCE_COLOR.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from luna_cls import __version__

_WARNING = r"(?:^|: )Warning:"
_ERROR = r"^(?:luna-cls:|Asked to stop)"


class _Stream(Console):
    """One that falls silent once nobody reads on, as behind `| head`: what is begun is done all the same."""

    def on_broken_pipe(self) -> None:
        """Sends what is still to come nowhere."""
        self.quiet = True
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self.file.fileno())
        os.close(sink)


stdout = _Stream(soft_wrap=True, highlight=False, emoji=False)
stderr = _Stream(stderr=True, soft_wrap=True, highlight=False, emoji=False)


@dataclass
class _Talk:
    """How one command is to speak, and what it has said.

    Args:
        quiet: Warnings and errors only, and results.
        verbose: Also versions, devices, seconds, and the traceback behind an error.
        json: One JSON object in place of tables and paths.
        paths: What was made, by what it is.
        warnings: What was warned of.
        start: When it began, of `time.monotonic`.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    paths: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)


_talk = _Talk()


def begin(*, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Forgets the last command, and sets how the next one is to speak."""
    global _talk  # noqa: PLW0603  a process has one standard output
    _talk = _Talk(quiet, verbose, as_json)
    stdout.quiet = stderr.quiet = False


def adjust(*, quiet: bool, verbose: bool, as_json: bool) -> None:
    """What stands after a command's name adds to what stood before it."""
    _talk.quiet |= quiet
    _talk.verbose |= verbose
    _talk.json |= as_json
    stdout.quiet = _talk.json


def is_contradictory() -> bool:
    """Whether both --quiet and --verbose were given."""
    return _talk.quiet and _talk.verbose


def is_verbose() -> bool:
    """Whether --verbose was given."""
    return _talk.verbose


@contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """Whatever else prints, a library say, does so on standard error."""
    stdout.file = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        stdout.file = None  # type: ignore[assignment]  # rich: whatever sys.stdout is


def say(line: str) -> None:
    """Prints a line on standard error; with --quiet only if it warns of something or tells an error."""
    is_warning = re.search(_WARNING, line) is not None
    if is_warning:
        _talk.warnings.append(_printable(line).replace("Warning: ", "", 1))
    if is_warning or re.match(_ERROR, line):
        complain(line)
    elif not _talk.quiet:
        _print(line)


def warn(warnings: Iterable[str]) -> None:
    """Prints each as a warning on standard error."""
    for warning in warnings:
        say(f"Warning: {warning}")


def detail(line: str) -> None:
    """Prints a line on standard error, with --verbose."""
    if _talk.verbose:
        _print(line, style="dim")


def complain(line: str) -> None:
    """Prints a line on standard error, also with --quiet."""
    _print(line)


def say_wrong(message: str) -> None:
    """Prints what is wrong in one line; with --verbose, the traceback of what is being handled first."""
    if _talk.verbose and sys.exc_info()[0] is not None:
        stderr.print(_printable(traceback.format_exc()), markup=False, style="dim", end="")
    complain(f"luna-cls: {' '.join(message.split())}")


def show(line: str) -> None:
    """Prints a line of a result on standard output."""
    stdout.print(_printable(line), markup=False)


def show_path(what: str, path: Path) -> None:
    """Prints the path of a result on standard output."""
    keep_path(what, path)
    show(str(path))


def keep_path(what: str, path: Path) -> None:
    """Remembers the path of a result, for --json."""
    _talk.paths[what] = str(path)


def finish(command: str, status: int, result: Mapping[str, Any] | None) -> None:
    """Prints the one object of --json, if that is wanted.

    Its keys: `command`; `version`, of luna_cls; `status`, the exit status; `paths` of what was made, by what
    it is; `warnings`, sentences; and `result`, which is each command's own.

    Args:
        command: Which.
        status: Its exit status.
        result: What it found; None if it was asked to stop, or there is nothing but paths.
    """
    if not _talk.json:
        return
    from luna_cls.files import json_text

    stdout.quiet = False
    told = {
        "command": command,
        "version": __version__,
        "status": status,
        "paths": _talk.paths,
        "warnings": _talk.warnings,
        "result": result,
    }
    stdout.print(json_text(told), markup=False, end="")


def _print(line: str, style: str = "") -> None:
    text = Text(_printable(line), style=style)
    text.highlight_regex(_ERROR, "bold red")
    text.highlight_regex(_WARNING, "yellow")
    if _talk.verbose:
        text = Text.assemble((f"[{time.monotonic() - _talk.start:7.1f} s] ", "dim"), text)
    stderr.print(text)


def _printable(line: str) -> str:
    """A line without what a name out of a stranger's file could tell a terminal to do."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", line)


def _can_redraw() -> bool:
    """Whether standard error is a terminal that can draw a bar again and again, whatever FORCE_COLOR says."""
    return stderr.is_terminal and not stderr.is_dumb_terminal and stderr.file.isatty()


@contextmanager
def live() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar with the time left and how it goes, on a terminal; nothing elsewhere, where lines must do."""
    if _talk.quiet or not _can_redraw():
        yield None
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)  # until there is something to tell
        yield lambda done, total, how: bar.update(
            task, completed=done, total=total, description=how, visible=True
        )


@contextmanager
def progress(title: str, each: str = "") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; plain lines, at most eleven, where standard error is no terminal.

    Args:
        title: What is done.
        each: What is counted, to tell how many of them go in a minute; empty not to.
    """
    start = time.monotonic()

    def speed(done: int, total: int) -> str:
        minutes = (time.monotonic() - start) / 60
        if not each or not done or not minutes:
            return ""
        return f"{done / minutes:,.0f} {each}s/min, {math.ceil(minutes / done * (total - done))} min left"

    if _talk.quiet:
        yield lambda _done, _total: None
        return
    if not _can_redraw():
        last = -1

        def print_tenths(done: int, total: int) -> None:
            nonlocal last
            tenth = 10 * done // total if total else 10
            if tenth > last:
                last = tenth
                say(", ".join(filter(None, [f"{title}: {done} of {total}", speed(done, total)])))

        yield print_tenths
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = [] if each else [TimeRemainingColumn()]
        with Progress(*columns, *left, TextColumn("{task.fields[speed]}"), console=stderr) as bar:
            task = bar.add_task(title, total=None, speed="")
            yield lambda done, total: bar.update(task, completed=done, total=total, speed=speed(done, total))
    detail(f"{title} took {time.monotonic() - start:.1f} s")
