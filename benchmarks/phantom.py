"""How long the phantom takes, how hard it is, and how near its HU are to real ones.

python benchmarks/phantom.py time [--scans 20] [--json FILE]
python benchmarks/phantom.py scan OUT
python benchmarks/phantom.py hu LUNA_DIR [--scans 12]
python benchmarks/phantom.py hardness PHANTOM [FINDINGS.csv]
python benchmarks/phantom.py proposals PHANTOM

`time` makes one scan of 512 x 512 x 200 voxels on one core, then small scans on all cores, and prints
seconds and memory. `scan` makes one scan of LUNA16's usual shape in OUT. `hu` compares histograms of HU with
those of real scans: in the lungs, in vessels (over -600 HU, a ball of 10 mm around it mostly lung), and in
the chest wall (within 15 mm outside the lungs); Wasserstein distances in HU, with real against real as the
yardstick. `hardness` prints the AUC of features of
the Hessian's eigenvalues on a phantom's candidates; with findings of some of its scans, as `luna-cls predict`
writes them, also the share of nodules found at one false alarm a scan, by size, kind and attachment.
`proposals` prints the share hit by one of the points that `luna-cls predict` looks at without a list.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rows
from numpy.typing import NDArray
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score
from transfer import hessian_features

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.files import COORDINATES
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.lungs import find_lungs
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.scans.phantom.scan import make_scan
from luna_cls.scans.proposals import MOST, propose
from luna_cls.scans.volume import CTVolume, read_volume

LARGE = Acquisition((200, 200), (512, 512), (0.6, 0.7), (1.5,))
USUAL = Acquisition((140, 140), (512, 512), (0.7, 0.7), (2.5,), flipped_share=0.0)
SIZES_MM = (0.0, 6.0, 10.0, 40.0)
SAMPLED = 200_000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("time")
    timed.add_argument("--scans", type=int, default=20)
    timed.add_argument("--json", type=Path)
    usual = commands.add_parser("scan")
    usual.add_argument("out", type=Path)
    compared = commands.add_parser("hu")
    compared.add_argument("luna_dir", type=Path)
    compared.add_argument("--scans", type=int, default=12)
    hard = commands.add_parser("hardness")
    hard.add_argument("phantom", type=Path)
    hard.add_argument("findings", type=Path, nargs="?")
    proposed = commands.add_parser("proposals")
    proposed.add_argument("phantom", type=Path)
    options = parser.parse_args()
    if options.command == "time":
        rows.write(options.json, _print_times(options.scans))
    elif options.command == "scan":
        write_phantom(options.out, 1, 0, acquisition=USUAL, workers=1)
    elif options.command == "hu":
        _print_distances(options.luna_dir, options.scans)
    elif options.command == "hardness":
        _print_hardness(options.phantom, options.findings)
    else:
        _print_proposed(options.phantom)


def _print_times(num_scans: int) -> list[rows.Row]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, gigabytes = pool.apply(_make_large)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_phantom(Path(folder) / "phantom", num_scans, 0)
        all_seconds = time.perf_counter() - start
    measured = [
        rows.row("one phantom scan of 512 x 512 x 200 voxels, one core", "time", [seconds], "s"),
        rows.row("one phantom scan of 512 x 512 x 200 voxels, one core", "memory", [gigabytes], "GB"),
        rows.row(f"{num_scans} small phantom scans on all cores, written", "time", [all_seconds], "s"),
    ]
    for row in measured:
        print(f"{row['what']}: {row['with']} {row['figure']}")
    return measured


def _make_large() -> tuple[float, float]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    start = time.perf_counter()
    make_scan(0, 0, LARGE)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _print_distances(luna_dir: Path, num_scans: int) -> None:
    real = [_samples(read_volume(path)) for path in LunaTree.open(luna_dir).scan_paths.values()]
    made = []
    for index in range(num_scans):
        made.append(_samples(make_scan(0, index, Acquisition()).volume))
    for tissue in real[0]:
        between = [
            stats.wasserstein_distance(first[tissue], second[tissue])
            for first, second in itertools.combinations(real, 2)
        ]
        across = [
            stats.wasserstein_distance(one[tissue], other[tissue])
            for one, other in itertools.product(real, made)
        ]
        among = [
            stats.wasserstein_distance(first[tissue], second[tissue])
            for first, second in itertools.combinations(made, 2)
        ]
        print(
            f"{tissue:11} real to real {np.median(between):5.0f} HU; "
            f"phantom to real {np.median(across):5.0f} ({min(across):.0f} to {max(across):.0f}); "
            f"phantom to phantom {np.median(among):5.0f}"
        )


def _samples(volume: CTVolume) -> dict[str, NDArray[np.int16]]:
    """HU of each tissue, at random voxels of it, on the grid of the lung mask."""
    lungs = find_lungs(volume)
    steps = np.rint(lungs.grid.spacing_xyz_mm / volume.grid.spacing_xyz_mm)[::-1].astype(int)
    hu = volume.hu[:: steps[0], :: steps[1], :: steps[2]]
    spacing_zyx_mm = lungs.grid.spacing_xyz_mm[::-1]
    airy = ndimage.uniform_filter((hu < -700).astype(np.float32), np.rint(20 / spacing_zyx_mm).astype(int))
    outside_mm = ndimage.distance_transform_edt(~lungs.inside, sampling=spacing_zyx_mm)
    tissues = {
        "lung": lungs.inside & (hu < -600),
        "vessel": lungs.inside & (hu > -600) & (airy > 0.6),
        "chest wall": (outside_mm > 2) & (outside_mm < 15),
    }
    rng = np.random.default_rng(0)
    return {name: rng.choice(hu[where], SAMPLED) for name, where in tissues.items()}


def _print_hardness(phantom: Path, findings_path: Path | None) -> None:
    tree = LunaTree.open(phantom)
    candidates = tree.candidates()
    if findings_path is not None:
        findings = pd.read_csv(findings_path, dtype={"seriesuid": str})
        _print_found(phantom, findings)
        candidates = candidates[candidates["seriesuid"].isin(findings["seriesuid"])]
    features: dict[str, list[NDArray[np.float64]]] = {}
    labels = []
    for uid, points in candidates.groupby("seriesuid"):
        cubes = cut_cubes(read_volume(tree.scan_paths[str(uid)]), points[COORDINATES])
        for name, values in hessian_features(cubes).items():
            features.setdefault(name, []).append(values)
        labels.append(points["class"].to_numpy())
    for name, parts in features.items():
        auc = roc_auc_score(np.concatenate(labels), np.concatenate(parts))
        print(f"AUC of {name} on {len(candidates):,} candidates of {len(labels)} scans: {auc:.3f}")


def _print_found(phantom: Path, findings: pd.DataFrame) -> None:
    """Sensitivity for candidates on nodules where false alarms are one a scan."""
    uids = findings["seriesuid"].unique()
    others = np.sort(findings.loc[findings["class"] == 0, "logit"])[::-1]
    threshold = others[len(uids)]
    nodules = pd.read_csv(phantom / "nodules.csv", dtype={"seriesuid": str})
    nodules = nodules[nodules["seriesuid"].isin(uids)]
    confident = findings[findings["logit"] > threshold]
    nodules = nodules.assign(found=_are_hit(nodules, confident))
    print(f"{nodules['found'].mean():.3f} of {len(nodules)} nodules found at one false alarm a scan")
    _print_shares(nodules)


def _print_proposed(phantom: Path) -> None:
    paths = LunaTree.open(phantom).scan_paths
    with multiprocessing.get_context("spawn").Pool() as pool:
        points = pd.concat(pool.imap(_propose, paths.values()))
    nodules = pd.read_csv(phantom / "nodules.csv", dtype={"seriesuid": str})
    nodules = nodules.assign(found=_are_hit(nodules, points))
    print(
        f"{nodules['found'].mean():.3f} of {len(nodules)} nodules hit by at most {MOST} points a scan, "
        f"{len(points) / len(paths):.0f} on average"
    )
    _print_shares(nodules)


def _propose(path: Path) -> pd.DataFrame:
    return propose(read_volume(path))


def _are_hit(nodules: pd.DataFrame, points: pd.DataFrame) -> list[bool]:
    """Which of the nodules have a point of their scan nearer than their radius."""
    hit = []
    for _, nodule in nodules.iterrows():
        own = points.loc[points["seriesuid"] == nodule["seriesuid"], COORDINATES]
        away_mm = np.linalg.norm(own.to_numpy(float) - nodule[COORDINATES].to_numpy(float), axis=1)
        hit.append(bool((away_mm < nodule["diameter_mm"] / 2).any()))
    return hit


def _print_shares(nodules: pd.DataFrame) -> None:
    nodules = nodules.assign(size=pd.cut(nodules["diameter_mm"], SIZES_MM, right=False).astype(str))
    for column in ("size", "kind", "shape", "attachment"):
        groups = nodules.groupby(column)["found"].agg(["mean", "size"])
        print(f"  {column:10} " + ", ".join(f"{name} {m:.2f} of {n}" for name, m, n in groups.itertuples()))
    small = nodules[(nodules["kind"] == "solid") & nodules["diameter_mm"].between(4.5, 7.5)]
    groups = small.groupby("attachment")["found"].agg(["mean", "size"])
    print(
        "  solid, 4.5 to 7.5 mm: " + ", ".join(f"{name} {m:.2f} of {n}" for name, m, n in groups.itertuples())
    )


if __name__ == "__main__":
    main()
