"""Phantom scans on disk, in the layout of LUNA16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_cls import __version__
from luna_cls.errors import InputError
from luna_cls.files import require_new, whole_folder, write_csv, write_json
from luna_cls.processes import run_in_processes
from luna_cls.scans.grid import Grid
from luna_cls.scans.phantom.acquisition import Acquisition
from luna_cls.scans.phantom.scan import make_scan

NUM_SUBSETS = 10
LUNGS_FOLDER = "seg-lungs-LUNA16"
MARK = "phantom.json"  # tells a phantom from a LUNA16 download
COMPRESSION_LEVEL = 2  # noise hardly compresses: level 6 takes half as long again and saves 2 %

ScanTables = tuple[str, pd.DataFrame, pd.DataFrame]  # series uid, annotations, candidates


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    index: int
    acquisition: Acquisition


def write_phantom(
    out: Path,
    num_scans: int,
    seed: int,
    *,
    workers: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    acquisition: Acquisition | None = None,
) -> Path:
    """Writes synthetic chest CTs as a LUNA16 tree.

    Scan `i` depends on `seed` and `i` alone: not on the number of scans or workers. Its files are
    `subset{i % 10}/{uid}.mhd` and `.zraw`, and a mask of its lungs in `seg-lungs-LUNA16`.
    `annotations.csv`, `candidates_V2.csv`, `seriesuids.csv` and `phantom.json` lie beside them. The
    tree appears whole or not at all. A scan takes about 5 s of one core and 0.8 GB.

    Args:
        out: The folder to make.
        num_scans: How many scans; at least 1.
        seed: Not negative. Same seed, same bytes.
        workers: Processes; by default one for each core. With 1, no process is started.
        force: Replace an earlier phantom at `out`.
        progress: Called with the number of scans done and of all scans, after each one.
        acquisition: The scanner's settings; by default those of `Acquisition`.

    Returns:
        `out`.

    Raises:
        InputError: If `num_scans` or `workers` is below 1, or `seed` below 0,
            or `out` exists.
    """
    for name, value, least in (("num_scans", num_scans, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}. Received: {value}.")
    require_new(out, force=force, sign=MARK)
    tables = {}
    with whole_folder(out) as folder:
        for name in (*(f"subset{number}" for number in range(NUM_SUBSETS)), LUNGS_FOLDER):
            (folder / name).mkdir()
        jobs = [_Job(folder, seed, index, acquisition or Acquisition()) for index in range(num_scans)]
        # Closed in any case, so that no worker writes on once the folder is removed.
        with closing(run_in_processes(_write_scan, jobs, workers)) as results:
            for index, table in results:
                tables[index] = table
                if progress is not None:
                    progress(len(tables), num_scans)
        write_json(folder / MARK, {"scans": num_scans, "seed": seed, "luna_cls": __version__})
        _write_tables(folder, [tables[index] for index in range(num_scans)])
    return out


def _write_scan(job: _Job) -> tuple[int, ScanTables]:
    """Writes one scan and its mask; returns its number and its rows of the tables."""
    folder, index = job.folder, job.index
    scan = make_scan(job.seed, index, job.acquisition)
    uid = scan.volume.series_uid
    _write_image(folder / f"subset{index % NUM_SUBSETS}" / f"{uid}.mhd", scan.volume.hu, scan.volume.grid)
    _write_image(folder / LUNGS_FOLDER / f"{uid}.mhd", scan.lungs, scan.volume.grid)
    annotations = _points_table(uid, scan.nodule_centers_xyz_mm, "diameter_mm", scan.nodule_diameters_mm)
    candidates = _points_table(uid, scan.candidates_xyz_mm, "class", scan.candidate_classes)
    return index, (uid, annotations, candidates)


def _write_image(path: Path, values: NDArray[np.generic], grid: Grid) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing_xyz_mm.tolist())
    image.SetOrigin(grid.origin_xyz_mm.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    sitk.WriteImage(image, str(path), True, COMPRESSION_LEVEL)


def _points_table(
    uid: str, points_xyz_mm: NDArray[np.float64], name: str, values: NDArray[np.generic]
) -> pd.DataFrame:
    x, y, z = points_xyz_mm.T
    return pd.DataFrame({"seriesuid": uid, "coordX": x, "coordY": y, "coordZ": z, name: values})


def _write_tables(folder: Path, tables: list[ScanTables]) -> None:
    uids, annotations, candidates = zip(*tables, strict=True)
    write_csv(folder / "annotations.csv", pd.concat(annotations, ignore_index=True))
    write_csv(folder / "candidates_V2.csv", pd.concat(candidates, ignore_index=True))
    (folder / "seriesuids.csv").write_text("".join(f"{uid}\n" for uid in uids), encoding="utf-8")
