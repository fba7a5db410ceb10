"""Makes a cube store out of scans: in parallel, in constant memory; stopped at any instant, it goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.cubes.folds import assign_folds
from luna_cls.cubes.store import (
    FAILURE_COLUMNS,
    FORMAT,
    NO_SCAN,
    OK,
    OUTSIDE,
    UNREADABLE,
    WINDOW_HU,
    CubeFormat,
    CubeStore,
)
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES, clear, locked, require_new, sha256, write_csv, write_json
from luna_cls.processes import check_workers, run_in_processes, run_on_cluster
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import CANDIDATE_COLUMNS, LunaTree
from luna_cls.scans.volume import ScanSource, files_of, read_volume

_CUBES_AT_A_TIME = 256
_SECONDS_BETWEEN_NOTES = 1.0
_PROGRAM_BYTES = 300_000_000
_VOXELS_READ_PER_SECOND, _CUBES_CUT_PER_SECOND = 60e6, 5e3


def prepare(
    tree: LunaTree,
    candidates: pd.DataFrame,
    out: str | Path,
    stored: CubeFormat | None = None,
    *,
    workers: int | None = None,
    dask: str | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> CubeStore:
    """Cuts the cube of every candidate into a new store.

    Works in `OUT.partial`, scan by scan, and renames it at the end. Stopped at any instant, the same
    call goes on with the scans not yet done, and with those whose files have changed since, and ends with
    the same bytes. A scan that is missing or cannot be read, and a candidate outside its scan, are marked
    in `candidates.csv` and listed in `failures.csv`; the rest finishes.

    Args:
        tree: Where the scans are.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class`.
        out: The folder to make.
        stored: What cubes, and how they lie on disk; `CubeFormat()` if None.
        workers: Processes; None for one per core.
        dask: Address of a Dask scheduler whose workers do the cutting, and see the scans and `out` at the
            same paths; None for processes of this machine.
        force: Replace `out`, and an unfinished `OUT.partial` begun from other inputs.
        on_progress: Called with the number of scans done and of all scans.
        say: Called with a line on what has changed since a run that was stopped.

    Raises:
        InputError: If `out` exists, `OUT.partial` was begun from other inputs, an input changes meanwhile,
            or nothing could be cut.
    """
    out, stored = Path(out), stored or CubeFormat()
    check_workers(workers)
    if dask is not None and workers is not None:
        raise InputError("--workers and --dask exclude each other: a Dask cluster has its own workers.")
    require_new(out, force=force, sign="store.json", inputs=[tree.root])
    candidates = candidates[list(CANDIDATE_COLUMNS)].reset_index(drop=True)
    work = _Workplace(out.with_name(out.name + ".partial").resolve())
    shape = len(candidates), *stored.with_margin.shape_zyx
    work.begin(_request(candidates, stored), shape, np.dtype(stored.dtype), force=force)

    rows_of = candidates.groupby("seriesuid", sort=True).indices
    sources = {
        uid: ScanSource(tree.scan_paths[uid].resolve(), uid) for uid in rows_of if uid in tree.scan_paths
    }
    outcomes = _still_good(work.outcomes(), sources, work.root, say or (lambda _: None))
    jobs = [
        _Job(sources[uid], rows, candidates.loc[rows, COORDINATES].to_numpy(), stored, work)
        for uid, rows in rows_of.items()
        if uid in sources and uid not in outcomes
    ]
    work.check_room(sum(len(job.rows) for job in jobs) * stored.cube_bytes)
    if on_progress:
        on_progress(len(outcomes), len(sources))
    folders = [work.root, tree.root.resolve()]
    done = (
        run_on_cluster(_cut_scan, jobs, dask, folders) if dask else run_in_processes(_cut_scan, jobs, workers)
    )
    with work.saving() as save:
        for outcome in done:
            save(outcome, int(rows_of[outcome.series_uid][0]))
            outcomes[outcome.series_uid] = outcome
            if on_progress:
                on_progress(len(outcomes), len(sources))

    for uid, source in sources.items():
        if outcomes[uid].status == OK and not _is_unchanged(outcomes[uid], source):
            raise InputError(f"Scan {uid} changed while it was prepared. Run the same command again.")
    for uid in rows_of:
        if uid not in sources:
            reason = f"{tree.root} has no scan {uid}. Fetch the scan, or drop its rows."
            outcomes[uid] = Outcome(uid, NO_SCAN, reason)
    folds = assign_folds(rows_of, tree.subsets)
    table, failures = _describe(candidates, rows_of, outcomes, folds)
    if not (table["status"] == OK).any():
        shutil.rmtree(work.root)
        raise InputError(f"Not one cube could be cut. The first reason: {failures['reason'].iloc[0]}")
    write_csv(work.store / "candidates.csv", table)
    write_csv(work.store / "failures.csv", failures)
    scans = [(uid, folds[uid], outcomes[uid].status, outcomes[uid].sha256) for uid in rows_of]
    write_csv(
        work.store / "scans.csv", pd.DataFrame(scans, columns=["seriesuid", "fold", "status", "sha256"])
    )
    write_json(work.store / "store.json", _facts(table, stored, work.store))
    work.finish(out)
    return CubeStore.open(out)


@dataclass(frozen=True)
class Needs:
    """What `prepare` takes, about."""

    disk_bytes: int
    worker_bytes: int
    worker_seconds: float


def needs(grids: Sequence[Grid], num_candidates: int, stored: CubeFormat | None = None) -> Needs:
    """What cutting so many candidates out of such scans takes: disk exactly, memory and time about.

    A worker holds its scan three times while it reads it. The rates are those of one x86 core and cubes
    without a margin (`benchmarks/prepare.py`).
    """
    stored = stored or CubeFormat()
    voxels = [math.prod(grid.shape_zyx) for grid in grids]
    return Needs(
        num_candidates * stored.cube_bytes,
        _PROGRAM_BYTES + 3 * 2 * max(voxels, default=0) + 3 * _CUBES_AT_A_TIME * stored.cube_bytes,
        sum(voxels) / _VOXELS_READ_PER_SECOND + num_candidates / _CUBES_CUT_PER_SECOND,
    )


class Outcome(NamedTuple):
    """What became of one scan.

    Args:
        series_uid: The scan's.
        status: "ok", "no_scan" or "unreadable".
        reason: Why it is not "ok".
        outside: Rows whose point lies outside it.
        files: Path, size in bytes and time of change (ns) of each file it was read from.
        sha256: Of what those files held, one after the other; empty where they could not be read.
    """

    series_uid: str
    status: str
    reason: str = ""
    outside: Sequence[int] = ()
    files: Sequence[Sequence[str | int]] = ()
    sha256: str = ""


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

    def outcomes(self) -> dict[str, Outcome]:
        """What became of each scan that is done."""
        texts = [path.read_text(encoding="utf-8") for path in (self.root / "done").glob("[!.]*.json")]
        return {outcome.series_uid: outcome for outcome in (Outcome(**json.loads(text)) for text in texts)}

    @contextmanager
    def saving(self) -> Iterator[Callable[[Outcome, int], None]]:
        """Yields a function that notes what became of a scan, and the first of its rows.

        Notes are written when the cubes are on the disk, so that a note is never of cubes that a power cut
        takes away; not after every scan, because a disk takes as long for one as for many.
        """
        noted: list[tuple[Outcome, int]] = []
        last = -math.inf

        def write() -> None:
            with self.cubes_path.open("r+b") as file:
                os.fsync(file.fileno())
            while noted:
                outcome, first_row = noted.pop()
                # Named by the scan's first row: a series UID out of a file may be no file name.
                write_json(self.root / "done" / f"{first_row}.json", outcome._asdict())

        def save(outcome: Outcome, first_row: int) -> None:
            nonlocal last
            noted.append((outcome, first_row))
            if time.monotonic() - last > _SECONDS_BETWEEN_NOTES:
                write()
                last = time.monotonic()

        try:
            yield save
        finally:
            if noted:
                write()

    def begin(self, request: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, *, force: bool) -> None:
        """Makes the place, or goes on in it if the same request began it."""
        request_path = self.root / "request.json"
        if request_path.is_file():
            if json.loads(request_path.read_text(encoding="utf-8")) == request and self.cubes_path.is_file():
                return
            if not force:
                raise InputError(
                    f"{self.root} was begun from other candidates or for other cubes. "
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
        np.lib.format.open_memmap(self.cubes_path, mode="w+", dtype=dtype, shape=shape).flush()
        write_json(request_path, request)

    def check_room(self, needed_bytes: int) -> None:
        """Refuses a disk on which the cubes still to be cut have no room."""
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            raise InputError(
                f"{self.root} needs {needed_bytes / 1e6:,.1f} MB more; the disk has "
                f"{free_bytes / 1e6:,.1f} MB. Make room, or choose another disk."
            )

    def write_cubes(self, rows: NDArray[np.intp], cubes: NDArray[Any]) -> None:
        """Puts cubes `(n, z, y, x)` into the array.

        Through the file, not a memory map: on a full disk this raises, writing to a map is fatal. Locked,
        because two machines that write to one page of a shared file could undo each other's half.
        """
        size = cubes[0].nbytes
        places = np.load(self.cubes_path, mmap_mode="r").offset + rows * size
        with self.cubes_path.open("r+b") as file, locked(file, int(places.min()), int(places.max()) + size):
            for place, cube in zip(places.tolist(), cubes, strict=True):
                file.seek(place)
                file.write(cube.tobytes())

    def clear_cubes(self, rows: NDArray[np.intp]) -> None:
        """Makes rows zero again that an earlier run may have cut, from files that have changed since."""
        cubes = np.load(self.cubes_path, mmap_mode="r")
        cut = [row for row in rows.tolist() if cubes[row].any()]
        if cut:
            self.write_cubes(np.array(cut), np.zeros((len(cut), *cubes.shape[1:]), cubes.dtype))

    def finish(self, out: Path) -> None:
        for leftover in self.store.glob(".*"):  # of a process that was killed while it wrote
            leftover.unlink()
        clear(out)
        self.store.rename(out)
        shutil.rmtree(self.root)


@dataclass(frozen=True, eq=False)
class _Job:
    """One scan's share of the work."""

    source: ScanSource
    rows: NDArray[np.intp]
    centers_xyz_mm: NDArray[np.float64]
    stored: CubeFormat
    work: _Workplace


def _cut_scan(job: _Job) -> Outcome:
    """Cuts one scan's cubes into the array."""
    uid, work = job.source.series_uid, job.work
    files: list[list[str | int]] = []
    checksum = ""
    try:
        files, checksum = _look_at(job.source), _checksum(job.source)
        volume = read_volume(*job.source)
    except (InputError, OSError, MemoryError) as error:
        is_inside = np.zeros(len(job.rows), bool)
        outcome = Outcome(uid, UNREADABLE, str(error), (), files, checksum)
    else:
        is_inside = volume.grid.contains(job.centers_xyz_mm)
        rows, centers_xyz_mm = job.rows[is_inside], job.centers_xyz_mm[is_inside]
        for start in range(0, len(rows), _CUBES_AT_A_TIME):
            some = slice(start, start + _CUBES_AT_A_TIME)
            cubes = cut_cubes(volume, centers_xyz_mm[some], job.stored.with_margin)
            work.write_cubes(rows[some], job.stored.pack(cubes))
        outcome = Outcome(uid, OK, "", job.rows[~is_inside].tolist(), files, checksum)
    work.clear_cubes(job.rows[~is_inside])
    return outcome


def _still_good(
    outcomes: Mapping[str, Outcome], sources: Mapping[str, ScanSource], root: Path, say: Callable[[str], None]
) -> dict[str, Outcome]:
    """The scans that need not be cut again: cut, and their files hold what they held."""
    cut = {uid: outcome for uid, outcome in outcomes.items() if outcome.status == OK}
    for uid in cut:
        if uid not in sources:
            raise InputError(f"{root} has cubes of scan {uid}, which is gone. Put it back, or remove {root}.")
    good = {uid: outcome for uid, outcome in cut.items() if _is_unchanged(outcome, sources[uid])}
    changed = sorted(set(cut) - set(good))
    if changed:
        say(f"{len(changed)} scans have changed since they were cut, and are cut again: {', '.join(changed)}")
    return good


def _is_unchanged(outcome: Outcome, source: ScanSource) -> bool:
    """Whether a scan's files hold what they held: by size and time, or else by their checksum."""
    try:
        return _look_at(source) == outcome.files or _checksum(source) == outcome.sha256
    except (InputError, OSError):
        return False


def _look_at(source: ScanSource) -> list[list[str | int]]:
    """`Outcome.files` of a scan."""
    files = [(path, path.stat()) for path in files_of(*source)]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in files]


def _checksum(source: ScanSource) -> str:
    return sha256(*files_of(*source))


def _describe(
    candidates: pd.DataFrame,
    rows_of: Mapping[str, NDArray[np.intp]],
    outcomes: Mapping[str, Outcome],
    folds: Mapping[str, int],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The store's candidate table and its failures."""
    status = np.full(len(candidates), OK, dtype=object)
    failures: list[tuple[str, int | None, str, str]] = []
    points_xyz_mm = candidates[COORDINATES].to_numpy()
    for uid, rows in rows_of.items():
        outcome = outcomes[uid]
        status[rows] = outcome.status
        if outcome.status != OK:
            failures.append((uid, None, outcome.status, outcome.reason))
        for row in outcome.outside:
            status[row] = OUTSIDE
            point = points_xyz_mm[row].tolist()
            failures.append((uid, row, OUTSIDE, f"The point {point} mm lies outside the scan."))
    table = candidates.assign(fold=candidates["seriesuid"].map(folds), status=status)
    listed = pd.DataFrame(failures, columns=list(FAILURE_COLUMNS)).astype({"row": "Int64"})
    return table, listed


def _facts(table: pd.DataFrame, stored: CubeFormat, folder: Path) -> dict[str, Any]:
    """What `store.json` says."""
    usable = table[table["status"] == OK]
    low, high = WINDOW_HU
    what = {"format": FORMAT, **asdict(stored)}
    decides = json.dumps(what) + sha256(folder / "candidates.csv", folder / "scans.csv")
    return {
        **what,
        "unit": "HU" if stored.dtype == "int16" else f"{low:g} to {high:g} HU in 256 levels",
        "cubes": len(usable),
        "nodules": int((usable["class"] == 1).sum()),
        "scans": int(usable["seriesuid"].nunique()),
        "rows_without_cube": len(table) - len(usable),
        "checksum": hashlib.sha256(decides.encode()).hexdigest(),
    }


def _request(candidates: pd.DataFrame, stored: CubeFormat) -> dict[str, Any]:
    """What the store is made from, beside the scans, to know an unfinished one again."""
    digest = hashlib.sha256("\n".join(candidates["seriesuid"]).encode())
    digest.update(candidates[[*COORDINATES, "class"]].to_numpy(float).tobytes())
    return {"format": FORMAT, **asdict(stored), "candidates_sha256": digest.hexdigest()}
