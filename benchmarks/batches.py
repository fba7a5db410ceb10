"""Batches of training cubes from a store in the page cache.

python benchmarks/batches.py [--cubes 20000] [--rounds 5] [--margin 5] [--folder FOLDER]

A store of random cubes of 31 voxels, 1 in 500 a nodule, is made in FOLDER (a temporary one): without a
margin, with one, and in uint8. Each is read once, so that it lies in memory. Batches of 128, every eighth
cube a nodule, shuffled over all cubes, are drawn with nothing done to them, with each augmentation alone and
with all. Prints cubes/s: median, slowest and fastest round; the contenders take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cubes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--margin", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores = {
            "int16": _store(Path(folder) / "int16", options.cubes, CubeFormat()),
            "uint8": _store(Path(folder) / "uint8", options.cubes, CubeFormat(dtype="uint8")),
            "margin": _store(
                Path(folder) / "margin", options.cubes // 2, CubeFormat(margin_vox=options.margin)
            ),
        }
        speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for index in range(options.rounds + 1):
            for name, (store, wanted) in CONTENDERS.items():
                settings = None if wanted is None else AugmentationSettings(**wanted)
                speed = _cubes_per_second(stores[store], settings, index)
                if index:  # the first round warms up
                    speeds[name].append(speed)
    print(f"cubes/s, batches of {BATCH_SIZE}, {len(os.sched_getaffinity(0))} cores")
    for name, of_rounds in speeds.items():
        median, low, high = statistics.median(of_rounds), min(of_rounds), max(of_rounds)
        print(f"{name:45} {median:8,.0f}   ({low:,.0f} to {high:,.0f})")


def _store(folder: Path, count: int, stored: CubeFormat) -> CubeStore:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape = count, *stored.with_margin.shape_zyx
    cubes = np.lib.format.open_memmap(folder / "cubes.npy", "w+", stored.dtype, shape)
    some = stored.pack(rng.integers(-1000, 400, (100, *shape[1:]), np.int16))
    for start in range(0, count, len(some)):
        cubes[start : start + len(some)] = some[: count - start]
    cubes.flush()
    table = pd.DataFrame({"seriesuid": "1.2.3", "class": (np.arange(count) % 500 == 0).astype(int)})
    store = CubeStore(folder, stored, table)
    store.cubes.sum()  # into the page cache
    return store


def _cubes_per_second(store: CubeStore, augmentation: AugmentationSettings | None, epoch: int) -> float:
    rows = np.arange(len(store.candidates))
    is_nodule = store.labels == 1
    plan = Plan(
        rows[~is_nodule], rows[is_nodule], BATCH_SIZE, seed=0,
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
