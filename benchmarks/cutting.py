"""Cuts cubes from a scan in memory on one core.

python benchmarks/cutting.py [SCAN.mhd] [--cubes 1000] [--rounds 5] [--json FILE]

Without a scan, a noise volume of LUNA16's usual shape (140 x 512 x 512 voxels of 2.5 x 0.7 x 0.7 mm) is
cut at random points. Prints cubes/s: the median and quartiles of the rounds.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
from pathlib import Path

import numpy as np
import rows

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import CTVolume, read_volume


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path)
    parser.add_argument("--cubes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    generator = np.random.default_rng(0)
    if options.scan:
        volume = read_volume(options.scan)
    else:
        hu = generator.integers(-1000, 400, (140, 512, 512), np.int16)
        volume = CTVolume("noise", hu, Grid(hu.shape, (0.7, 0.7, 2.5), (-180.0, -180.0, -350.0)))
    points_zyx_vox = generator.uniform(0, np.array(volume.hu.shape) - 1, (options.cubes, 3))
    points_xyz_mm = volume.grid.to_world_xyz_mm(points_zyx_vox)
    cut_cubes(volume, points_xyz_mm[:10])
    speeds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        cut_cubes(volume, points_xyz_mm)
        speeds.append(options.cubes / (time.perf_counter() - start))
    what = "cutting cubes from a scan in memory, one core"
    measured = rows.row(what, "luna_cls", speeds, "cubes/s", headline=True)
    print(f"{what}: {measured['figure']}, {options.rounds} rounds")
    rows.write(options.json, [measured])


if __name__ == "__main__":
    main()
