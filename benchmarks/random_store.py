"""A store of random cubes: what reading, batching and training need, without a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from luna_cls.cubes.store import CubeFormat, CubeStore

DIFFERENT = 100  # cubes; then they come again


def random_store(folder: Path, table: pd.DataFrame, stored: CubeFormat | None = None) -> CubeStore:
    """Makes a store of a random cube for every row of the table, and reads it once into the page cache."""
    stored = stored or CubeFormat()
    folder.mkdir(parents=True)
    shape = len(table), *stored.with_margin.shape_zyx
    cubes = np.lib.format.open_memmap(folder / "cubes.npy", "w+", stored.dtype, shape)
    some = stored.pack(np.random.default_rng(0).integers(-1000, 400, (DIFFERENT, *shape[1:]), np.int16))
    for start in range(0, len(table), DIFFERENT):
        cubes[start : start + DIFFERENT] = some[: len(table) - start]
    cubes.flush()
    store = CubeStore(folder, stored, table)
    store.cubes.sum()
    return store


def training_table(count: int) -> pd.DataFrame:
    """One in eight a nodule; 64 candidates in fold 9, to validate on, the others in fold 0."""
    row = np.arange(count)
    fold = np.where(row < 64, 9, 0)
    return pd.DataFrame({"seriesuid": fold.astype(str), "class": row % 8 // 7, "fold": fold, "status": "ok"})
