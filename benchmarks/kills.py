"""Kills a training ten times, goes on with it each time, and compares it with one that never stopped.

python benchmarks/kills.py [STORE] [--kills 10] [--recipe demo] [--set A.B=C ...] [--seed 0] [--folder FOLDER]

Without STORE, a phantom of 20 scans is made in FOLDER (a temporary one) and prepared. `luna-cls train` runs
once to its end. Then it runs again in another folder, and is killed (SIGKILL) at random moments: every fifth
time while it starts, else some time after its first step, drawn so that the kills spread over what is left of
the training, by how long it took uninterrupted. After each it goes on with --resume, at last to its end.

Prints where each kill struck, and whether the two runs are the same to the last bit: every weight of
`model.keras`, every array of the last checkpoint (weights, moving statistics, dropout's seeds, optimizer,
streaming metrics), and the bytes of `history.csv`, `validation_predictions.csv` and `metrics.json`. Exit
status 1 if anything differs, or if the training ended before all the kills had struck. The demo recipe has
Dropout and symmetries on; `--set` goes to `luna-cls train` as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COUNT_STEPS = "--count-steps"  # how this file is called to be luna-cls
STARTING = 5  # every so many kills, one while it starts


def main() -> None:
    """Trains, kills, compares and prints."""
    if sys.argv[1:2] == [COUNT_STEPS]:
        _be_luna_cls(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", dest="settings", metavar="A.B=C", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        store = options.store or _make_store(folder)
        told = [
            "--recipe",
            options.recipe,
            *(part for setting in options.settings for part in ("--set", setting)),
        ]
        whole = Training(store, folder / "whole", told)
        course = _uninterrupted(whole)
        print(
            f"uninterrupted: {course.starting_s:.1f} s to the first of {course.steps:,} steps, "
            f"{course.training_s:.1f} s from there",
            flush=True,
        )
        killed = Training(store, folder / "killed", told)
        struck = _kill(killed, options.kills, course, options.seed)
        killed.to_its_end()
        differing = _compare(whole.run, killed.run)
    if struck < options.kills:
        sys.exit(f"It ended after {struck} kills: train for longer, or ask for fewer.")
    if differing:
        sys.exit(f"After {struck} kills these differ: {', '.join(differing)}.")
    print(f"After {struck} kills it is the run that never stopped, bit for bit.")


class Training:
    """A run of `luna-cls train STORE RUN --resume`, begun or gone on with."""

    def __init__(self, store: Path, run: Path, told: list[str]) -> None:
        self.run = run
        self._steps = run.with_suffix(".steps")
        self._log = run.with_suffix(".log")
        self._command = [
            *(sys.executable, __file__, COUNT_STEPS, str(self._steps)),
            *("train", str(store), str(run), "--resume", *told),
        ]

    @contextmanager
    def process(self) -> Iterator[subprocess.Popen[bytes]]:
        """Goes on with it; kills it at the end of the block, if it is still there."""
        self._steps.write_bytes(b"")
        with self._log.open("wb") as log, subprocess.Popen(self._command, stdout=log, stderr=log) as process:
            try:
                yield process
            finally:
                process.kill()

    def to_its_end(self) -> None:
        """Goes on with it until it is over."""
        with self.process() as process:
            process.wait()
            self.check(process)

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Ends all if a process that is over has failed."""
        if process.returncode:
            sys.exit(f"luna-cls train failed:\n{self._log.read_text()}")

    def wait(self, process: subprocess.Popen[bytes], seconds: float, steps: int) -> None:
        """For so long, or until so many steps are done, or the process is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.steps_done < steps and process.poll() is None:
            time.sleep(0.01)

    @property
    def steps_done(self) -> int:
        """By the process that runs, or ran last."""
        return len(self._steps.read_bytes())

    @property
    def epochs_saved(self) -> int:
        """Those that the newest checkpoint has behind it."""
        return max((int(path.name[:6]) for path in self.run.glob("checkpoint/[0-9]*.npz")), default=0)

    def place(self, epochs_before: int) -> str:
        """Where the last process was, that began after so many epochs."""
        if not self.steps_done:
            return f"while it started, epochs saved: {epochs_before}"
        environment = json.loads((self.run / "environment.json").read_text())
        epochs, step = divmod(self.steps_done, environment["sampling"]["steps_per_epoch"])
        return f"after step {step} of epoch {epochs_before + epochs + 1}, epochs saved: {self.epochs_saved}"


def _be_luna_cls(steps: Path, arguments: list[str]) -> None:
    """The command itself, that adds a byte to a file after every step.

    After every step, or after all that an epoch's last one entails, `train` asks whether it is to stop.
    """
    from luna_cls import processes
    from luna_cls.__main__ import main as luna_cls

    file = os.open(steps, os.O_WRONLY | os.O_APPEND)
    watched = processes.termination_watched

    @contextmanager
    def counted() -> Iterator[Any]:
        with watched() as asked_to_stop:
            yield lambda: os.write(file, b".") and asked_to_stop()

    processes.termination_watched = counted
    sys.argv[1:] = arguments
    luna_cls()


def _make_store(folder: Path) -> Path:
    phantom, store = folder / "phantom", folder / "store"
    for command in (["phantom", phantom, "--scans", "20"], ["prepare", phantom, store]):
        subprocess.run([sys.executable, "-m", "luna_cls", *map(str, command)], check=True)
    return store


@dataclass(frozen=True)
class Course:
    """Of the uninterrupted training: seconds to its first step, and from there; steps and epochs in all."""

    starting_s: float
    training_s: float
    steps: int
    epochs: int


def _uninterrupted(training: Training) -> Course:
    start = time.monotonic()
    with training.process() as process:
        training.wait(process, math.inf, 1)
        first = time.monotonic()
        process.wait()
    training.check(process)
    return Course(first - start, time.monotonic() - first, training.steps_done, training.epochs_saved)


def _kill(training: Training, kills: int, course: Course, seed: int) -> int:
    """How many of the kills struck before the training was over."""
    luck = np.random.default_rng(seed)
    for kill in range(kills):
        epochs_before = training.epochs_saved
        left = 1 - epochs_before / course.epochs
        with training.process() as process:
            if kill % STARTING == STARTING - 1:
                training.wait(process, luck.uniform(0, course.starting_s), 1)
            else:
                training.wait(process, math.inf, 1)
                longest_s = 2 * left * course.training_s / (kills - kill + 1)
                # The machine may be faster now: a kill is not to come too late.
                training.wait(process, luck.uniform(0, longest_s), round(left * course.steps) - 1)
            if process.poll() is not None:
                training.check(process)
                return kill
        print(f"kill {kill + 1:2}: {training.place(epochs_before)}", flush=True)
    return kills


def _compare(whole: Path, killed: Path) -> list[str]:
    """Prints what was compared; returns what differs."""
    from luna_cls.startup import load_tensorflow_quietly

    load_tensorflow_quietly()
    from luna_cls.learning import checkpoints, models

    def contents(run: Path) -> dict[str, list[bytes]]:
        newest = checkpoints.newest(run / "checkpoint", sys.exit)
        assert newest is not None
        weights = models.load(run / "model.keras").get_weights()
        files = ("history.csv", "validation_predictions.csv", "metrics.json")
        return {
            "weights of model.keras": [weight.tobytes() for weight in weights],
            "arrays of the last checkpoint": [
                *(name.encode() for name in newest.names),
                *(value.tobytes() for value in newest.values),
            ],
            **{name: [(run / name).read_bytes()] for name in files},
        }

    differing = []
    theirs = contents(killed)
    for name, own in contents(whole).items():
        size = sum(map(len, own))
        print(f"{name:32} {size:10,} bytes  {'the same' if own == theirs[name] else 'DIFFERENT'}")
        if own != theirs[name]:
            differing.append(name)
    return differing


if __name__ == "__main__":
    main()
