"""How long luna_cls takes to start: its help, its import, a small evaluation, the first step of a training.

python benchmarks/start_up.py [--rounds 5] [--json FILE]

Each is a process of its own, measured from its start to its end, with warm caches of files; they take turns.
The evaluation is `luna-cls evaluate` of 1,000 random marks in ten scans, figures alone: it loads no
TensorFlow. The training, of the seed CNN on batches of 64 from a small store, is measured until its first
step is done; it and `import tensorflow`, which is there to compare, take half as many rounds. Prints medians
and quartiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import rows
from turns import in_turns

NUM_SCANS, NUM_MARKS, NUM_CUBES = 10, 1_000, 512
POINT = ["coordX", "coordY", "coordZ"]
HEADLINES = ("luna-cls --help", "evaluate, 1,000 marks in ten scans", "train, to the end of its first step")


def main() -> None:
    """Measures and prints; with --train, is the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        _train(options.train)
        return
    with TemporaryDirectory() as name:
        folder, python = Path(name), sys.executable
        _write_submission(folder)
        _write_store(folder / "store")
        evaluate = [python, "-m", "luna_cls", "evaluate", str(folder / "marks.csv"), "--force"]
        evaluate += ["--annotations", str(folder / "annotations.csv"), "--out", str(folder / "scores")]
        evaluate += ["--seriesuids", str(folder / "seriesuids.csv"), "--resamples", "0", "--no-report"]
        quick = {
            "luna-cls --help": [python, "-m", "luna_cls", "--help"],
            "import luna_cls": [python, "-c", "import luna_cls"],
            "evaluate, 1,000 marks in ten scans": evaluate,
        }
        slow = {
            "import tensorflow": [python, "-c", "import tensorflow"],
            "train, to the end of its first step": [python, __file__, "--train", str(folder / "store")],
        }
        seconds = in_turns(
            {name: partial(_seconds, command) for name, command in quick.items()}, options.rounds
        )
        rounds = (options.rounds + 1) // 2
        seconds |= in_turns({name: partial(_seconds, command) for name, command in slow.items()}, rounds)
    measured = [
        rows.row("from start to end", name, own, "s", headline=name in HEADLINES)
        for name, own in seconds.items()
    ]
    for row in measured:
        print(f"{row['with']:40} {row['figure']}")
    rows.write(options.json, measured)


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return seconds


def _write_submission(folder: Path) -> None:
    rng = np.random.default_rng(0)
    uids = [f"1.2.{number}" for number in range(NUM_SCANS)]
    (folder / "seriesuids.csv").write_text("\n".join(uids) + "\n", encoding="utf-8")
    marks = pd.DataFrame(rng.uniform(-200, 200, (NUM_MARKS, 3)), columns=POINT)
    marks.insert(0, "seriesuid", rng.choice(uids, NUM_MARKS))
    marks["probability"] = rng.uniform(size=NUM_MARKS)
    marks.to_csv(folder / "marks.csv", index=False)
    nodules = marks.head(3 * NUM_SCANS).drop(columns="probability").assign(diameter_mm=8.0)
    nodules.to_csv(folder / "annotations.csv", index=False)


def _write_store(folder: Path) -> None:
    from random_store import random_store, training_table

    random_store(folder, training_table(NUM_CUBES))


def _train(folder: Path) -> None:
    """Trains until it is asked, after its first step, whether to stop: there this process ends."""
    from random_store import training_table

    from luna_cls.startup import load_tensorflow_quietly

    load_tensorflow_quietly()

    from luna_cls.cubes.store import CubeFormat, CubeStore
    from luna_cls.learning.training import train
    from luna_cls.settings import load_settings

    overrides = ["training.batch_size=64", "training.steps_per_epoch=10", "training.epochs=1"]
    train(
        CubeStore(folder, CubeFormat(), training_table(NUM_CUBES)),
        load_settings("seed", overrides),
        folder.with_name(f"run{os.getpid()}"),
        asked_to_stop=lambda: os._exit(0),
        say=lambda _: None,
    )


if __name__ == "__main__":
    main()
