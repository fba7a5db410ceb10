"""Reads a scan and cuts cubes out of it: luna_cls, TorchIO and MONAI; then `prepare` with one worker and two.

make peers
.venv-peers/bin/python benchmarks/prepare.py SCAN.mhd [--cubes 850] [--rounds 3] [--scans 48] [--json FILE]

Read and cut: from a scan on disk to int16 cubes of 31 x 31 x 31 voxels of 1 mm around random points. Each
measurement is a process of its own, on one core, the same for all, with one thread in NumPy, ITK and torch.
It does the work twice and measures the second time, as in a process that goes from scan to scan: imports
and memory taken for the first time do not count, and the file is in the page cache. Rounds take turns.

The peers bring the whole scan to 1 mm and cut around the nearest voxel of that. MONAI does it three times:
with Spacing and a SpatialCrop for every point, made for just this, as they come (in float64); the same in
float32; and with Resize and slices, the fastest way found, whose voxels are 1 mm up to a rounding. To show
that all do the same, each peer's cubes are compared with luna_cls's around the voxels it chose; what lies
below -1000 HU is air to both.

Two workers: `luna_cls.cubes.preparation.prepare` on a LUNA16 tree of that many times the scan, the whole
call, on all cores, into the folder for temporary files. Left out with --scans 0.

Prints the median, fastest and slowest round of each. The scan's axes must be the world's. Where the peers are
not, luna_cls is measured alone.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "ITK_GLOBAL_DEFAULT_NUMBER_OF"):
    os.environ[f"{name}_THREADS"] = "1"

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import rows
from turns import in_turns

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.cubes.preparation import prepare
from luna_cls.processes import available_cores
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import AIR_HU, CTVolume, read_volume

EDGE_VOX = 31
MARGIN_MM = 17.0  # no cube leaves the scan, not even around the nearest voxel of one that lost its last

Cut = tuple[np.ndarray, np.ndarray]  # int16 cubes (n, z, y, x) and the world points (n, 3) they are around


def with_luna_cls(path: str, points_xyz_mm: np.ndarray) -> Cut:
    """Resamples what is cut and nothing else, centred exactly."""
    return cut_cubes(read_volume(path), points_xyz_mm), points_xyz_mm


def with_torchio(path: str, points_xyz_mm: np.ndarray) -> Cut:
    """Resample, in place and in int16, then slices."""
    import torchio as tio

    image = tio.Resample(1.0, copy=False)(tio.ScalarImage(path))
    centers_xyz_vox, centers_xyz_mm = nearest(image.affine, points_xyz_mm)
    return slices(image.numpy()[0].T, centers_xyz_vox), centers_xyz_mm


def with_monai(path: str, points_xyz_mm: np.ndarray, dtype: type | None = np.float64) -> Cut:
    """Spacing, then a SpatialCrop for every point; as it comes, or in the scan's own float32."""
    from monai.transforms import Compose, LoadImaged, Spacingd, SpatialCrop

    load = LoadImaged("ct", reader="ITKReader", ensure_channel_first=True)
    ct = Compose([load, Spacingd("ct", pixdim=1.0, mode="bilinear", dtype=dtype)])({"ct": path})["ct"]
    centers_xyz_vox, centers_xyz_mm = nearest(ct.affine.numpy(), points_xyz_mm)
    crops = [SpatialCrop(roi_center=center, roi_size=EDGE_VOX)(ct) for center in centers_xyz_vox.tolist()]
    return np.stack([crop.numpy()[0].T for crop in crops]).astype(np.int16), centers_xyz_mm


def with_monai_resize(path: str, points_xyz_mm: np.ndarray) -> Cut:
    """Reads without transposing, resizes to about 1 mm axis by axis, then slices."""
    from monai.data import ITKReader
    from monai.transforms import LoadImage, Resize

    ct = LoadImage(reader=ITKReader(reverse_indexing=True), ensure_channel_first=True)(path)
    affine = ct.affine.numpy().copy()
    shape_xyz = np.array(ct.shape[:0:-1])
    new_shape_xyz = np.rint(shape_xyz * np.abs(np.diag(affine)[:3])).astype(int)
    hu = Resize(new_shape_xyz[::-1].tolist(), mode="trilinear")(ct).numpy()[0]
    step_vox = shape_xyz / new_shape_xyz
    affine[:3, 3] += affine[:3, :3] @ (step_vox / 2 - 0.5)  # the outer edges stay, the first centre moves
    affine[:3, :3] *= step_vox
    centers_xyz_vox, centers_xyz_mm = nearest(affine, points_xyz_mm)
    return slices(hu, centers_xyz_vox), centers_xyz_mm


CONTENDERS: dict[str, tuple[str, Callable[[str, np.ndarray], Cut]]] = {  # name: (package, how)
    "luna_cls": ("luna_cls", with_luna_cls),
    "TorchIO, Resample and slices": ("torchio", with_torchio),
    "MONAI, Spacing and SpatialCrop": ("monai", with_monai),
    "MONAI, the same in float32": ("monai", partial(with_monai, dtype=np.float32)),
    "MONAI, Resize and slices": ("monai", with_monai_resize),
}


def nearest(affine_ras: np.ndarray, points_xyz_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The voxels (x, y, z) nearest to LPS points, in an image with an RAS affine, and where they are, LPS."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    voxels = np.rint((points_xyz_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T)
    return voxels.astype(int), voxels @ affine[:3, :3].T + affine[:3, 3]


def slices(hu_zyx: np.ndarray, centers_xyz_vox: np.ndarray) -> np.ndarray:
    """Cubes around voxels."""
    starts_xyz = (centers_xyz_vox - EDGE_VOX // 2).tolist()
    cubes = np.empty((len(starts_xyz), EDGE_VOX, EDGE_VOX, EDGE_VOX), np.int16)
    for row, (x, y, z) in enumerate(starts_xyz):
        cubes[row] = hu_zyx[z : z + EDGE_VOX, y : y + EDGE_VOX, x : x + EDGE_VOX]
    return cubes


def random_points(volume: CTVolume, count: int) -> np.ndarray:
    """World points, the same for a scan every time, far enough inside for a whole cube around each."""
    corners_xyz_mm = volume.grid.to_world_xyz_mm([[0, 0, 0], np.array(volume.hu.shape) - 1])
    low, high = corners_xyz_mm[0] + MARGIN_MM, corners_xyz_mm[1] - MARGIN_MM
    if not np.array_equal(volume.grid.direction, np.eye(3)) or (low >= high).any():
        sys.exit("Give a scan of 35 mm or more whose TransformMatrix is 1 0 0 0 1 0 0 0 1.")
    return np.random.default_rng(0).uniform(low, high, (count, 3))


def measure(contender: str, folder: Path, scan: Path) -> None:
    """Prints the seconds of one contender and leaves its cubes: all that happens in a process of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    _, cut = CONTENDERS[contender]
    points_xyz_mm = np.load(folder / "points.npy")
    cut(str(scan), points_xyz_mm)
    start = time.perf_counter()
    cubes, centers_xyz_mm = cut(str(scan), points_xyz_mm)
    seconds = time.perf_counter() - start
    np.savez(folder / f"{contender}.npz", cubes=cubes, centers_xyz_mm=centers_xyz_mm)
    print(seconds)


def read_and_cut(
    scan: Path, volume: CTVolume, points_xyz_mm: np.ndarray, rounds: int, folder: Path
) -> list[rows.Row]:
    """Measures all contenders in turns and prints a table."""
    np.save(folder / "points.npy", points_xyz_mm)

    def measured_alone(name: str) -> float:
        command = [sys.executable, __file__, str(scan), "--measure", name, "--folder", str(folder)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return float(output.split()[-1])

    names = [name for name, (package, _) in CONTENDERS.items() if find_spec(package)]
    took = in_turns({name: partial(measured_alone, name) for name in names}, rounds, warm_up=0)

    print(f"{len(points_xyz_mm)} cubes from a scan of {volume.hu.shape} voxels on disk, on one core:\n")
    print("| with | median | fastest to slowest | times luna_cls | off luna_cls | 99 % within |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, seconds in took.items():
        share = statistics.median(seconds) / statistics.median(took["luna_cls"])
        with np.load(folder / f"{name}.npz") as made:
            off_hu = differences(made["cubes"], cut_cubes(volume, made["centers_xyz_mm"]))
        median, most = np.percentile(off_hu, [50, 99])
        print(f"| {name} | {spread(seconds)} | {share:.2f} | {median:.0f} HU | {most:.0f} HU |")
    cubes = cut_cubes(volume, points_xyz_mm)
    elsewhere_hu = np.median(differences(cubes, np.roll(cubes, 1, axis=0)))
    print(f"\nCubes of two places are {elsewhere_hu:.0f} HU apart in the median.")
    shape = " x ".join(map(str, volume.hu.shape))
    what = f"a scan of {shape} voxels from disk and {len(cubes)} cubes of it, one core"
    return rows.in_turn(what, took, "s", to="luna_cls", headlines=took)


def differences(cubes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far the voxels are apart, HU; luna_cls makes air of padding, so that anything below is air here."""
    return np.abs(np.maximum(cubes, AIR_HU).astype(np.int32) - np.maximum(others, AIR_HU))


def two_workers(scan: Path, points_xyz_mm: np.ndarray, scans: int, rounds: int, folder: Path) -> None:
    """Measures `prepare` with one worker and with two, in turns, and prints both."""
    tree, candidates = luna_tree(scan, points_xyz_mm, scans, folder / "LUNA16")
    took: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, seconds in took.items():
            start = time.perf_counter()
            prepare(tree, candidates, folder / "store", workers=workers)
            seconds.append(time.perf_counter() - start)
            shutil.rmtree(folder / "store")
    print(f"\nprepare, {scans} such scans of {len(points_xyz_mm)} candidates, {available_cores()} cores:\n")
    print("| workers | median | fastest to slowest | times as fast as one |")
    print("|--:|--:|--:|--:|")
    for workers, seconds in took.items():
        gain = statistics.median(took[1]) / statistics.median(seconds)
        print(f"| {workers} | {spread(seconds)} | {gain:.2f} |")


def spread(seconds: list[float]) -> str:
    """Two cells of a table."""
    return f"{statistics.median(seconds):.2f} s | {min(seconds):.2f} to {max(seconds):.2f} s"


def luna_tree(scan: Path, points_xyz_mm: np.ndarray, scans: int, root: Path) -> tuple[LunaTree, pd.DataFrame]:
    """A LUNA16 tree that holds one scan under several UIDs, with links to its data, and its candidates."""
    root.mkdir()
    lines = scan.read_text(encoding="utf-8").splitlines()
    data = next(line.partition("=")[2].strip() for line in lines if line.startswith("ElementDataFile"))
    points = pd.DataFrame(points_xyz_mm, columns=["coordX", "coordY", "coordZ"]).assign(**{"class": 0})
    tables = []
    header = [line for line in lines if not line.startswith("ElementDataFile")]
    for copy in range(scans):
        uid = f"{scan.stem}.{copy}"
        name = uid + Path(data).suffix
        (root / f"{uid}.mhd").write_text("\n".join([*header, f"ElementDataFile = {name}\n"]))
        (root / name).symlink_to(scan.with_name(data).resolve())
        tables.append(points.assign(seriesuid=uid))
    return LunaTree.open(root), pd.concat(tables, ignore_index=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scan", type=Path, metavar="SCAN.mhd")
    parser.add_argument("--cubes", type=int, default=850)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scans", type=int, default=48)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder, options.scan)
        return
    packages = [name for name in ("luna_cls", "torchio", "monai", "torch") if find_spec(name)]
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    volume = read_volume(options.scan)
    points_xyz_mm = random_points(volume, options.cubes)
    with tempfile.TemporaryDirectory() as folder:
        measured = read_and_cut(options.scan, volume, points_xyz_mm, options.rounds, Path(folder))
        rows.write(options.json, measured)
        if options.scans:
            two_workers(options.scan, points_xyz_mm, options.scans, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
