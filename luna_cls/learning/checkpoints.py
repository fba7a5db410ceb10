"""Where a training stands, on disk: all it takes to go on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import written_whole

KEPT = 2  # should the newest be damaged, the one before it serves


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training at rest.

    Args:
        epoch: Epochs done.
        step: Steps done in the next one.
        is_over: Whether no epoch is to follow, however many were planned.
        notes: What each of its callbacks remembers, as JSON has it, by name.
        names: A name for every variable.
        values: The variables.
    """

    epoch: int
    step: int
    is_over: bool
    notes: dict[str, Any]
    names: list[str]
    values: list[NDArray[Any]]


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a checkpoint, whole or not at all, and deletes all but the last of those before it.

    What a killed process had half-written goes, too.
    """
    about = {
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "is_over": checkpoint.is_over,
        "notes": checkpoint.notes,
        "names": checkpoint.names,
    }
    text = json.dumps(about, default=lambda number: number.item())
    arrays = {f"v{index}": value for index, value in enumerate(checkpoint.values)}
    with written_whole(folder / f"{checkpoint.epoch:06d}-{checkpoint.step:09d}.npz") as temporary:
        np.savez(temporary, allow_pickle=False, about=np.frombuffer(text.encode(), np.uint8), **arrays)
    for old in (*_all(folder)[:-KEPT], *folder.glob(".*.partial.npz")):
        old.unlink(missing_ok=True)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The last checkpoint that can be read; None if none was written yet.

    Args:
        folder: Where they are.
        say: Told of each that is damaged; it is deleted once another is read.

    Raises:
        InputError: If all of them are damaged.
    """
    damaged = []
    for path in reversed(_all(folder)):
        try:
            found = _read(path)
        except Exception as error:  # whatever NumPy, zipfile, zlib and JSON raise for bytes that are wrong
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"Warning: the checkpoint {path} is damaged ({reason}). Going back to the one before it.")
            damaged.append(path)
        else:
            for other in damaged:  # it would count as one of those kept
                other.unlink()
            return found
    if damaged:
        raise InputError(f"No checkpoint in {folder} can be read. Start the run over with --force.")
    return None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npz"))


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes().decode())
        values = [file[f"v{index}"] for index in range(len(about["names"]))]
    return Checkpoint(**about, values=values)
