"""Batches of training cubes from a store in the page cache.

python benchmarks/batches.py [--cubes 20000] [--rounds 5] [--margin 5] [--folder FOLDER] [--json FILE]

A store of random cubes of 31 voxels, 1 in 500 a nodule, is made in FOLDER (a temporary one): without a
margin, with one, and in uint8. Each is read once, so that it lies in memory. Batches of 128, every eighth
cube a nodule, shuffled over all cubes, are drawn with nothing done to them, with each augmentation alone and
with all. Prints cubes/s: medians and quartiles of the rounds; the contenders take turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rows
from random_store import random_store
from turns import in_turns

from luna_cls.cubes.plan import Plan
from luna_cls.cubes.store import CubeFormat, CubeStore
from luna_cls.settings import AugmentationSettings
from luna_cls.startup import load_tensorflow_quietly

load_tensorflow_quietly()

from luna_cls.cubes.batches import training_batches

BATCH_SIZE, POSITIVES_PER_BATCH, STEPS = 128, 16, 60
NONE = {"symmetries": "none"}
MOVED = {"shift_mm": 1.0, "scale": 0.05, "rotation_degrees": 10.0}
CHANGED = {"noise_hu": 20.0, "shift_hu": 20.0, "blur_mm": 0.5}
CONTENDERS = {  # name: (store, augmentation)
    "nothing": ("int16", None),
    "nothing, from uint8": ("uint8", None),
    "symmetries in plane (flips, quarter turns)": ("int16", {}),
    "all 48 symmetries": ("int16", {"symmetries": "cube"}),
    "nothing, from a store with a margin": ("margin", None),
    "shift, scale and rotation": ("margin", NONE | MOVED),
    "blur": ("int16", NONE | {"blur_mm": 0.5}),
    "noise": ("int16", NONE | {"noise_hu": 20.0}),
    "shift of HU": ("int16", NONE | {"shift_hu": 20.0}),
    "all of these": ("margin", {"symmetries": "cube"} | MOVED | CHANGED),
}

HEADLINES = ("nothing", "all of these")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cubes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--margin", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        count = options.cubes
        stores = {
            "int16": random_store(Path(folder) / "int16", _table(count)),
            "uint8": random_store(Path(folder) / "uint8", _table(count), CubeFormat(dtype="uint8")),
            "margin": random_store(
                Path(folder) / "margin", _table(count // 2), CubeFormat(margin_vox=options.margin)
            ),
        }
        epochs = itertools.count()
        contenders = {
            name: partial(_cubes_per_second, stores[store], wanted, epochs)
            for name, (store, wanted) in CONTENDERS.items()
        }
        speeds = in_turns(contenders, options.rounds)
    what = f"batches of {BATCH_SIZE} from a store in memory, shuffled, {POSITIVES_PER_BATCH} nodules in each"
    measured = [
        rows.row(what, name, of_rounds, "cubes/s", headline=name in HEADLINES)
        for name, of_rounds in speeds.items()
    ]
    print(f"{what}; {len(os.sched_getaffinity(0))} cores; done to the cubes:")
    for row in measured:
        print(f"{row['with']:45} {row['figure']}")
    rows.write(options.json, measured)


def _table(count: int) -> pd.DataFrame:
    return pd.DataFrame({"seriesuid": "1.2.3", "class": (np.arange(count) % 500 == 0).astype(int)})


def _cubes_per_second(store: CubeStore, wanted: dict[str, Any] | None, epochs: Iterator[int]) -> float:
    """Of the next epoch, its first batch left out."""
    augmentation = None if wanted is None else AugmentationSettings(**wanted)
    numbers, epoch = np.arange(len(store.candidates)), next(epochs)
    is_nodule = store.labels == 1
    plan = Plan(
        numbers[~is_nodule], numbers[is_nodule], BATCH_SIZE, seed=0,
        steps_per_epoch=STEPS, positives_per_batch=POSITIVES_PER_BATCH,
    )  # fmt: skip
    batches = iter(training_batches(store, plan, range(epoch, epoch + 1), augmentation))
    next(batches)  # the epoch is drawn, threads are there
    start = time.perf_counter()
    labels = [labels for _, labels in batches]
    seconds = time.perf_counter() - start
    assert all(int(own.numpy().sum()) == POSITIVES_PER_BATCH for own in labels)
    return (STEPS - 1) * BATCH_SIZE / seconds


if __name__ == "__main__":
    main()
