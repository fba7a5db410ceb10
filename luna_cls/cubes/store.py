"""The cube store: every candidate's cube in one memory-mapped array, made once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.cubes.folds import assign_folds
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES, clear, read_csv, require_new, write_csv, write_json
from luna_cls.processes import check_workers, run_in_processes
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import CANDIDATE_COLUMNS, LunaTree
from luna_cls.scans.volume import read_volume

FORMAT = 1
FAILURE_COLUMNS = ("seriesuid", "row", "status", "reason")

_PROGRAM_BYTES = 300_000_000
_VOXELS_READ_PER_SECOND, _CUBES_CUT_PER_SECOND = 60e6, 5e3

OK, NO_SCAN, UNREADABLE, OUTSIDE = "ok", "no_scan", "unreadable", "outside"


@dataclass(frozen=True, eq=False)
class CubeStore:
    """A folder of cubes: `store.json`, `candidates.csv`, `cubes.npy`, `failures.csv`.

    Args:
        path: The folder.
        spec: What the cubes are.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class, fold, status`; row i is cube i.
            A row whose status is not "ok" has no cube (all zeros).
    """

    path: Path
    spec: CubeSpec
    candidates: pd.DataFrame

    @classmethod
    def open(cls, path: str | Path) -> CubeStore:
        """Opens a store that `prepare` made.

        Raises:
            InputError: If the folder is no store, or its files do not fit each other.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            raise InputError(f"{path} is no cube store. Give the folder that luna-cls prepare has made.")
        try:
            facts = json.loads((path / "store.json").read_text(encoding="utf-8"))
            made_by, spec = facts["format"], CubeSpec(**facts["spec"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/store.json is damaged: {error!r}. Prepare it again.") from error
        if made_by != FORMAT:
            raise InputError(f"{path} has store format {made_by}; this version reads {FORMAT}.")
        candidates = read_csv(path / "candidates.csv", (*CANDIDATE_COLUMNS, "fold"), "candidates")
        if "status" not in candidates.columns:
            raise InputError(f"{path}/candidates.csv lacks the column status. Prepare it again.")
        store = cls(path, spec, candidates)
        if store.cubes.shape != (len(candidates), *store.spec.shape_zyx) or store.cubes.dtype != np.int16:
            raise InputError(
                f"{path}: cubes.npy has shape {store.cubes.shape} of {store.cubes.dtype}, "
                f"candidates.csv {len(candidates)} rows. Prepare it again."
            )
        return store

    @cached_property
    def cubes(self) -> NDArray[np.int16]:
        """Memory-mapped int16 array `(n, z, y, x)`, HU."""
        try:
            return np.load(self.path / "cubes.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}/cubes.npy is damaged: {error}. Prepare it again.") from error

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every row, int64 `(n,)`: 1 nodule, 0 not."""
        return self.candidates["class"].to_numpy(np.int64)

    @property
    def failures(self) -> pd.DataFrame:
        """What has no cube and why: `seriesuid, row, status, reason`; without row, the whole scan."""
        return pd.read_csv(self.path / "failures.csv", dtype={"seriesuid": str, "row": "Int64"})


def prepare(
    tree: LunaTree,
    candidates: pd.DataFrame,
    out: str | Path,
    spec: CubeSpec | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CubeStore:
    """Cuts the cube of every candidate into a new store.

    Works in `OUT.partial`, scan by scan, and renames it at the end. Stopped at any instant, the same
    call goes on with the scans not yet done and ends with the same bytes. A scan that is missing or
    cannot be read, and a candidate outside its scan, are marked in `candidates.csv` and listed in
    `failures.csv`; the rest finishes.

    Args:
        tree: Where the scans are.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class`.
        out: The folder to make.
        spec: What cubes; `CubeSpec()` if None.
        workers: Processes; None for one per core.
        force: Replace `out`, and an unfinished `OUT.partial` begun from other inputs.
        on_progress: Called with the number of scans done and of all scans.

    Raises:
        InputError: If `out` exists, `OUT.partial` was begun from other inputs, or nothing could be cut.
    """
    out, spec = Path(out), spec or CubeSpec()
    check_workers(workers)
    require_new(out, force=force, sign="store.json", inputs=[tree.root])
    candidates = candidates[list(CANDIDATE_COLUMNS)].reset_index(drop=True)
    work = _Workplace(out.with_name(out.name + ".partial"))
    work.begin(_request(tree, candidates, spec), (len(candidates), *spec.shape_zyx), force=force)

    rows_of = candidates.groupby("seriesuid", sort=True).indices
    jobs = [
        _Job(tree.scan_paths[uid], rows, candidates.loc[rows, COORDINATES].to_numpy(), spec, work)
        for uid, rows in rows_of.items()
        if uid in tree.scan_paths
    ]
    waiting = [job for job in jobs if not work.is_done(job.scan_path.stem)]
    work.check_room(sum(len(job.rows) for job in waiting) * 2 * math.prod(spec.shape_zyx))
    done = len(jobs) - len(waiting)
    if on_progress:
        on_progress(done, len(jobs))
    for _ in run_in_processes(_cut_scan, waiting, workers):
        done += 1
        if on_progress:
            on_progress(done, len(jobs))

    outcomes = {
        uid: work.outcome(uid) if uid in tree.scan_paths else _no_scan(uid, tree.root) for uid in rows_of
    }
    table, failures = _describe(candidates, rows_of, outcomes, assign_folds(rows_of, tree.subsets))
    if not (table["status"] == OK).any():
        shutil.rmtree(work.root)
        raise InputError(f"Not one cube could be cut. The first reason: {failures['reason'].iloc[0]}")
    write_csv(work.store / "candidates.csv", table)
    write_csv(work.store / "failures.csv", failures)
    write_json(work.store / "store.json", _facts(table, spec))
    work.finish(out)
    return CubeStore.open(out)


@dataclass(frozen=True)
class Needs:
    """What `prepare` takes, about."""

    disk_bytes: int
    worker_bytes: int
    worker_seconds: float


def needs(grids: Sequence[Grid], num_candidates: int, spec: CubeSpec | None = None) -> Needs:
    """What cutting so many candidates out of such scans takes: disk exactly, memory and time about.

    A worker holds its scan three times while it reads it. The rates are those of one x86 core
    (`benchmarks/cutting.py`).
    """
    voxels = [math.prod(grid.shape_zyx) for grid in grids]
    cube_bytes = 2 * math.prod((spec or CubeSpec()).shape_zyx)
    return Needs(
        num_candidates * cube_bytes,
        _PROGRAM_BYTES + 3 * 2 * max(voxels, default=0),
        sum(voxels) / _VOXELS_READ_PER_SECOND + num_candidates / _CUBES_CUT_PER_SECOND,
    )


@dataclass(frozen=True)
class _Workplace:
    """`OUT.partial`: the store to be, beside one file for every scan done."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def cubes_path(self) -> Path:
        return self.store / "cubes.npy"

    def outcome_path(self, series_uid: str) -> Path:
        return self.root / "done" / f"{series_uid}.json"

    def outcome(self, series_uid: str) -> dict[str, Any]:
        return json.loads(self.outcome_path(series_uid).read_text(encoding="utf-8"))

    def is_done(self, series_uid: str) -> bool:
        """Whether the scan's cubes are in the array; one that failed is tried again."""
        return self.outcome_path(series_uid).is_file() and self.outcome(series_uid)["status"] == OK

    def begin(self, request: dict[str, Any], shape: tuple[int, ...], *, force: bool) -> None:
        """Makes the place, or goes on in it if the same request began it."""
        request_path = self.root / "request.json"
        if request_path.is_file():
            if json.loads(request_path.read_text(encoding="utf-8")) == request and self.cubes_path.is_file():
                return
            if not force:
                raise InputError(
                    f"{self.root} was begun from other scans, candidates or cubes. "
                    "Pass --force to start over, or choose another path."
                )
        elif (
            self.root.exists()
            and not force
            and {path.name for path in self.root.iterdir()} - {"store", "done"}
        ):
            raise InputError(f"{self.root} is in the way. Remove it, or choose another path.")
        if self.root.exists():
            shutil.rmtree(self.root)
        self.store.mkdir(parents=True)
        (self.root / "done").mkdir()
        # Sparse: rows that are never cut take no room.
        np.lib.format.open_memmap(self.cubes_path, mode="w+", dtype=np.int16, shape=shape).flush()
        write_json(request_path, request)

    def check_room(self, needed_bytes: int) -> None:
        """Refuses a disk on which the cubes still to be cut have no room."""
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            raise InputError(
                f"{self.root} needs {needed_bytes / 1e6:,.1f} MB more; the disk has "
                f"{free_bytes / 1e6:,.1f} MB. Make room, or choose another disk."
            )

    def write_cubes(self, rows: NDArray[np.intp], cubes: NDArray[np.int16]) -> None:
        """Puts cubes into the array, onto the disk.

        Through the file, not a memory map: on a full disk this raises, writing to a map is fatal.
        """
        offset = np.load(self.cubes_path, mmap_mode="r").offset
        with self.cubes_path.open("r+b") as file:
            for row, cube in zip(rows.tolist(), cubes, strict=True):
                file.seek(offset + row * cube.nbytes)
                file.write(cube.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def finish(self, out: Path) -> None:
        for leftover in self.store.glob(".*"):  # of a process that was killed while it wrote
            leftover.unlink()
        clear(out)
        self.store.rename(out)
        shutil.rmtree(self.root)


@dataclass(frozen=True, eq=False)
class _Job:
    """One scan's share of the work."""

    scan_path: Path
    rows: NDArray[np.intp]
    centers_xyz_mm: NDArray[np.float64]
    spec: CubeSpec
    work: _Workplace


def _cut_scan(job: _Job) -> None:
    """Cuts one scan's cubes into the array, then says so in a file: in that order, and on the disk."""
    try:
        volume = read_volume(job.scan_path)
        inside = volume.grid.contains(job.centers_xyz_mm)
        cut = cut_cubes(volume, job.centers_xyz_mm[inside], job.spec)
    except (InputError, OSError, MemoryError) as error:
        outcome = {"status": UNREADABLE, "reason": str(error), "outside": []}
    else:
        job.work.write_cubes(job.rows[inside], cut)
        outcome = {"status": OK, "reason": "", "outside": job.rows[~inside].tolist()}
    write_json(job.work.outcome_path(job.scan_path.stem), outcome)


def _no_scan(series_uid: str, root: Path) -> dict[str, Any]:
    reason = f"{root} has no {series_uid}.mhd. Fetch the scan, or drop its rows."
    return {"status": NO_SCAN, "reason": reason, "outside": []}


def _describe(
    candidates: pd.DataFrame,
    rows_of: dict[str, NDArray[np.intp]],
    outcomes: dict[str, dict[str, Any]],
    folds: dict[str, int],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The store's candidate table and its failures."""
    status = np.full(len(candidates), OK, dtype=object)
    failures: list[tuple[str, int | None, str, str]] = []
    points_xyz_mm = candidates[COORDINATES].to_numpy()
    for uid, rows in rows_of.items():
        outcome = outcomes[uid]
        status[rows] = outcome["status"]
        if outcome["status"] != OK:
            failures.append((uid, None, outcome["status"], outcome["reason"]))
        for row in outcome["outside"]:
            status[row] = OUTSIDE
            point = points_xyz_mm[row].tolist()
            failures.append((uid, row, OUTSIDE, f"The point {point} mm lies outside the scan."))
    table = candidates.assign(fold=candidates["seriesuid"].map(folds), status=status)
    listed = pd.DataFrame(failures, columns=list(FAILURE_COLUMNS)).astype({"row": "Int64"})
    return table, listed


def _facts(table: pd.DataFrame, spec: CubeSpec) -> dict[str, Any]:
    usable = table[table["status"] == OK]
    return {
        "format": FORMAT,
        "spec": asdict(spec),
        "dtype": "int16",
        "unit": "HU",
        "cubes": len(usable),
        "nodules": int((usable["class"] == 1).sum()),
        "scans": int(usable["seriesuid"].nunique()),
        "rows_without_cube": len(table) - len(usable),
    }


def _request(tree: LunaTree, candidates: pd.DataFrame, spec: CubeSpec) -> dict[str, Any]:
    """What the store is made from, to know an unfinished one again."""
    uids = sorted(set(candidates["seriesuid"]) & set(tree.scan_paths))
    return {
        "format": FORMAT,
        "spec": asdict(spec),
        "candidates_sha256": hashlib.sha256(candidates.to_csv(index=False).encode()).hexdigest(),
        "scans": [
            [str(tree.scan_paths[uid].resolve()), tree.scan_paths[uid].stat().st_mtime_ns] for uid in uids
        ],
    }
