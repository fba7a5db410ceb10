"""Phantom scans on disk, in the layout of LUNA16."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from luna_cls import __version__
from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, require_new, whole_folder, write_csv, write_json
from luna_cls.processes import run_in_processes
from luna_cls.scans.grid import Grid
from luna_cls.scans.phantom.acquisition import Acquisition
from luna_cls.scans.phantom.scan import PhantomScan, make_scan
from luna_cls.scans.volume import LUNGS_FOLDER

NUM_SUBSETS = 10
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's names and numbers
MARK = "phantom.json"  # tells a phantom from a LUNA16 download
COMPRESSION_LEVEL = 2  # noise hardly compresses: level 6 takes half as long again and saves 2 %

IMBALANCE = 100  # candidates on no nodule for one on a nodule; LUNA16 has 484
NODULE_COLUMNS = ["diameter_mm", "kind", "shape", "attachment", "hu", "contrast_to_noise"]
NO_DIAMETER_MM = -1.0  # what LUNA16 writes for a finding that is no nodule


@dataclass(frozen=True, eq=False)
class _ScanTables:
    """One scan's rows of the tables, by the table's name; and its marks on no nodule."""

    uid: str
    rows: dict[str, pd.DataFrame]
    others: pd.DataFrame


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    index: int
    acquisition: Acquisition
    num_nodules: int | None


@dataclass(frozen=True)
class PhantomTree:
    """A phantom on disk.

    Args:
        root: Its folder.
        num_on_nodules: Candidates on a nodule.
        num_others: Candidates on none.
    """

    root: Path
    num_on_nodules: int
    num_others: int


def write_phantom(
    out: Path,
    num_scans: int,
    seed: int,
    *,
    imbalance: int = IMBALANCE,
    num_nodules: int | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    acquisition: Acquisition | None = None,
) -> PhantomTree:
    """Writes synthetic chest CTs as a LUNA16 tree.

    Scan `i` depends on `seed`, `i`, `num_nodules` and `acquisition`: not on the number of scans or workers;
    only how many of its candidates are kept depends on the others. Its files are
    `subset{i % 10}/{uid}.mhd` and `.zraw`, and a mask of its lungs in `seg-lungs-LUNA16`. Beside them lie
    LUNA16's `annotations.csv`, `annotations_excluded.csv` (what is too small, and what only looks like a
    nodule), `candidates_V2.csv` and `seriesuids.csv`; and what LUNA16 cannot tell: `nodules.csv` (the kind,
    shape, attachment and HU of each) and `scans.csv` (how each was taken, and what else is in it). The tree
    appears whole or not at all. A scan takes about 5 s of one core and 0.8 GB.

    Args:
        out: The folder to make.
        num_scans: How many scans; at least 1.
        seed: Not negative. Same seed, same bytes.
        imbalance: Candidates on no nodule for each that is on one, over all scans, an equal share from
            each; fewer where the scans' own proposals are fewer, as `phantom.json` then tells. In a tree
            without a nodule, so many in all.
        num_nodules: Nodules in every scan, as far as there is room, for a set to learn from; by default
            none in a third of the scans and 1 to 12 in the others, fewer being more common.
        workers: Processes; by default one for each core. With 1, no process is started.
        force: Replace an earlier phantom at `out`.
        progress: Called with the number of scans done and of all scans, after each one.
        acquisition: The scanner's settings; by default those of `Acquisition`.

    Returns:
        Where it is, and how many candidates it has.

    Raises:
        InputError: If `num_scans`, `imbalance` or `workers` is below 1, `seed` or `num_nodules` below 0,
            or `out` exists.
    """
    for name, value, least in (
        ("num_scans", num_scans, 1),
        ("imbalance", imbalance, 1),
        ("num_nodules", num_nodules, 0),
        ("workers", workers, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}. Received: {value}.")
    require_new(out, force=force, sign=MARK)
    tables = {}
    with whole_folder(out) as folder:
        for name in (*(f"subset{number}" for number in range(NUM_SUBSETS)), LUNGS_FOLDER):
            (folder / name).mkdir()
        taken = acquisition or Acquisition()
        jobs = [_Job(folder, seed, index, taken, num_nodules) for index in range(num_scans)]
        # Closed in any case, so that no worker writes on once the folder is removed.
        with closing(run_in_processes(_write_scan, jobs, workers)) as results:
            for index, table in results:
                tables[index] = table
                if progress is not None:
                    progress(len(tables), num_scans)
        candidates = _write_tables(folder, [tables[index] for index in range(num_scans)], imbalance)
        on_nodules = int(candidates["class"].sum())
        write_json(
            folder / MARK,
            {
                "scans": num_scans,
                "seed": seed,
                "imbalance": imbalance,
                "num_nodules": num_nodules,
                "acquisition": asdict(taken),
                "candidates_on_nodules": on_nodules,
                "other_candidates": len(candidates) - on_nodules,
                "luna_cls": __version__,
            },
        )
    return PhantomTree(out, on_nodules, len(candidates) - on_nodules)


def _write_scan(job: _Job) -> tuple[int, _ScanTables]:
    """Writes one scan and its mask; returns its number and its rows of the tables."""
    if multiprocessing.parent_process() is not None:
        _keep_freed_memory()
    folder, index = job.folder, job.index
    scan = make_scan(job.seed, index, job.acquisition, job.num_nodules)
    uid = scan.volume.series_uid
    _write_image(folder / f"subset{index % NUM_SUBSETS}" / f"{uid}.mhd", scan.stored_hu, scan.volume.grid)
    _write_image(folder / LUNGS_FOLDER / f"{uid}.mhd", scan.lungs, scan.volume.grid)
    return index, _tables(scan)


def _keep_freed_memory() -> None:
    """Lets glibc use a freed array's memory for the next one.

    By itself it gives arrays of a scan's size back and takes cleared pages anew: a tenth of a worker's time.
    """
    with suppress(AttributeError, OSError, TypeError):  # other C libraries have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _tables(scan: PhantomScan) -> _ScanTables:
    uid = scan.volume.series_uid
    nodules = pd.DataFrame(
        {
            "diameter_mm": nodule.diameter_mm,
            "kind": nodule.kind,
            "shape": nodule.shape,
            "attachment": nodule.attachment,
            "hu": nodule.hu,
            "contrast_to_noise": (nodule.hu - scan.build.parenchyma_hu) / scan.protocol.noise_hu,
        }
        for nodule in scan.nodules
    ).reindex(columns=NODULE_COLUMNS)
    nodules = pd.concat([_points(uid, [nodule.center_xyz_mm for nodule in scan.nodules]), nodules], axis=1)
    small = _points(uid, [nodule.center_xyz_mm for nodule in scan.micronodules])
    mimics = _points(uid, scan.mimics_xyz_mm)
    on_nodules = _points(uid, scan.marks_xyz_mm).assign(**{"class": 1})
    others = _points(uid, scan.others_xyz_mm).assign(**{"class": 0})
    lung_ml = (scan.lungs > 0).sum() * scan.volume.grid.spacing_xyz_mm.prod() / 1000
    about = {
        "seriesuid": uid,
        "num_nodules": len(scan.nodules),
        "num_proposals": len(others),
        "lung_ml": round(float(lung_ml), 1),
        "pixel_mm": scan.volume.grid.spacing_xyz_mm[0],
        "slice_mm": scan.volume.grid.spacing_xyz_mm[2],
        **asdict(scan.protocol),
        **asdict(scan.build),
    }
    rows = {
        "annotations.csv": nodules[[*POINT_COLUMNS, "diameter_mm"]],
        "annotations_excluded.csv": pd.concat(
            [
                small.assign(diameter_mm=[nodule.diameter_mm for nodule in scan.micronodules]),
                mimics.assign(diameter_mm=NO_DIAMETER_MM),
            ]
        ),
        "candidates_V2.csv": on_nodules,
        "nodules.csv": nodules,
        "scans.csv": pd.DataFrame([about]),
    }
    return _ScanTables(uid, rows, others)


def _write_image(path: Path, values: NDArray[np.generic], grid: Grid) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing_xyz_mm.tolist())
    image.SetOrigin(grid.origin_xyz_mm.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    sitk.WriteImage(image, str(path), True, COMPRESSION_LEVEL)


def _points(uid: str, points_xyz_mm: ArrayLike) -> pd.DataFrame:
    x, y, z = np.reshape(points_xyz_mm, (-1, 3)).T
    return pd.DataFrame({"seriesuid": uid, "coordX": x, "coordY": y, "coordZ": z})


def _write_tables(folder: Path, tables: list[_ScanTables], imbalance: int) -> pd.DataFrame:
    """Writes every table; returns the candidates."""
    (folder / "seriesuids.csv").write_text("".join(f"{table.uid}\n" for table in tables), encoding="utf-8")
    joined = {name: _joined([table.rows[name] for table in tables]) for name in tables[0].rows}
    wanted = imbalance * max(len(joined["candidates_V2.csv"]), 1)
    kept = [
        table.others[:count]
        for table, count in zip(
            tables, quotas_of([len(table.others) for table in tables], wanted), strict=True
        )
    ]
    candidates = _joined(
        [
            part
            for table, other in zip(tables, kept, strict=True)
            for part in (table.rows["candidates_V2.csv"], other)
        ]
    )
    joined["candidates_V2.csv"] = candidates
    for name, table in joined.items():
        write_csv(folder / name, table)
    return candidates


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True)


def quotas_of(have: list[int], wanted: int) -> list[int]:
    """How many of each scan's marks to keep: `wanted` in all, and as evenly as what they have allows."""
    quotas = [0] * len(have)
    left = wanted
    for place, index in enumerate(sorted(range(len(have)), key=lambda index: have[index])):
        quotas[index] = min(have[index], -(-left // (len(have) - place)))
        left -= quotas[index]
    return quotas
