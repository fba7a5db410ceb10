#!/usr/bin/env python3
"""Says whether what runs in this container does its work: a line, and exit status 0 or 1.

TensorBoard must answer on its port. A `luna-cls` command must have begun, or have written in one of the
folders on its command line, in the last LUNA_CLS_STALL_MINUTES (120, unless set: longer than an epoch takes).
Where neither runs, a command is done, and its exit status has said how it went.
"""

import http.client
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROCESSES = Path("/proc")


def main() -> int:
    """Looks at every process in this container."""
    patience_s = 60 * float(os.environ.get("LUNA_CLS_STALL_MINUTES", "120"))
    faults = []
    for process in PROCESSES.glob("[0-9]*"):
        words = _command(process)
        names = [Path(word).name for word in words[:2]]  # with its interpreter before it
        if "tensorboard" in names:
            port = _option(words, "--port", "6006")
            faults += [] if _answers(port) else [f"TensorBoard does not answer on port {port}."]
        elif "luna-cls" in names:
            quiet_s = _quiet_s(process, words)
            if quiet_s > patience_s:
                faults.append(f"Nothing was written for {quiet_s / 60:.0f} minutes by: {' '.join(words)}")
    print(" ".join(faults) or "At work, or done.")
    return 1 if faults else 0


def _command(process: Path) -> list[str]:
    """The words of its command line; none of a process that has just ended, or is somebody else's."""
    try:
        return (process / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _option(words: list[str], name: str, default: str) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return default


def _answers(port: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _quiet_s(process: Path, words: list[str]) -> float:
    """Seconds since a process began or wrote; 0 if it has just ended, or is not to be looked at."""
    try:
        return time.time() - max([_begun(process), *_written(words, process)])
    except OSError:
        return 0.0


def _begun(process: Path) -> float:
    """When a process began, in seconds since 1970."""
    ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
    up_s = float((PROCESSES / "uptime").read_text().split()[0])
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def _written(words: list[str], process: Path) -> Iterator[float]:
    """When the files in the folders named on a command line, and those folders, were last written."""
    here = (process / "cwd").readlink()
    folders = [here / name for word in words for name in (word, f"{word}.partial")]  # as prepare works in
    for folder in folders:
        if folder.is_dir() and os.access(folder, os.W_OK):
            yield folder.stat().st_mtime
            for path in folder.rglob("*"):
                try:
                    yield path.stat().st_mtime
                except OSError:  # a temporary file that is no more, or one of somebody else's
                    continue


if __name__ == "__main__":
    sys.exit(main())
