"""Makes a cube store out of scans: in parallel, in constant memory; stopped at any instant, it goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from luna_cls.files import (
    COORDINATES,
    clear,
    locked,
    one_at_a_time,
    require_new,
    sha256,
    write_csv,
    write_json,
    written_whole,
)
from luna_cls.processes import check_workers, run_in_processes, run_on_cluster
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import CANDIDATE_COLUMNS, LunaTree
from luna_cls.scans.volume import ScanSource, files_of, read_volume

_WRITING = threading.Lock()  # closing a file drops the locks that any thread of the process has on it
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
    out, stored = Path(out).absolute(), stored or CubeFormat()
    check_workers(workers)
    if dask is not None and workers is not None:
        raise InputError("--workers and --dask exclude each other: a Dask cluster has its own workers.")
    require_new(out, force=force, sign="store.json", inputs=[tree.root])
    candidates = candidates[list(CANDIDATE_COLUMNS)].reset_index(drop=True)
    request = _request(candidates, stored)
    work = _Workplace(out.with_name(out.name + ".partial"), request["sha256"], is_shared=dask is not None)
    scans_root = tree.root.absolute()
    if scans_root.is_relative_to(work.root):
        raise InputError(f"{work.root} is for unfinished stores, and the scans lie in it. Move them.")
    rows_of = candidates.groupby("seriesuid", sort=True).indices
    with work.alone():
        shape = len(candidates), *stored.with_margin.shape_zyx
        goes_on = work.begin(request, shape, stored.dtype, force=force)
        outcomes = _cut_all(tree, candidates, rows_of, stored, work, goes_on, workers, dask, on_progress, say)
        _write_tables(work.store, tree, candidates, rows_of, stored, outcomes)
        if not force and out.exists():
            raise InputError(f"{out} has been made meanwhile. Choose another path.")
        work.finish(out)
    return CubeStore.open(out)


def _cut_all(
    tree: LunaTree,
    candidates: pd.DataFrame,
    rows_of: Mapping[str, NDArray[np.intp]],
    stored: CubeFormat,
    work: _Workplace,
    goes_on: bool,
    workers: int | None,
    dask: str | None,
    on_progress: Callable[[int, int], None] | None,
    say: Callable[[str], None] | None,
) -> dict[str, Outcome]:
    """Cuts what is not cut yet; what became of every scan."""
    sources = {
        uid: ScanSource(tree.scan_paths[uid].absolute(), uid) for uid in rows_of if uid in tree.scan_paths
    }
    noted = work.outcomes()
    outcomes = _still_good(noted, sources, work.root, say or (lambda _: None))
    for uid, rows in rows_of.items():
        if uid in noted and uid not in outcomes:
            work.forget(int(rows[0]))  # or a scan put back as it was would match the cubes of another
        if goes_on and uid not in sources:
            work.clear_cubes(rows)
    jobs = [
        _Job(sources[uid], rows, candidates.loc[rows, COORDINATES].to_numpy(), stored, work)
        for uid, rows in rows_of.items()
        if uid in sources and uid not in outcomes
    ]
    work.check_room(sum(len(job.rows) for job in jobs) * stored.cube_bytes)
    if on_progress:
        on_progress(len(outcomes), len(sources))
    if dask is None:
        done = run_in_processes(_cut_scan, jobs, workers)
    else:
        done = run_on_cluster(_cut_scan, jobs, dask, [work.root, tree.root.absolute()])
    with work.saving() as save:
        for outcome in done:
            save(outcome, int(rows_of[outcome.series_uid][0]))
            outcomes[outcome.series_uid] = outcome
            if on_progress:
                on_progress(len(outcomes), len(sources))

    for uid, source in sources.items():
        if outcomes[uid].status == OK and not _is_as_noted(outcomes[uid], source):
            raise InputError(f"Scan {uid} changed while it was prepared. Run the same command again.")
    for uid in rows_of:
        if uid not in sources:
            reason = f"{tree.root} has no scan {uid}. Fetch the scan, or drop its rows."
            outcomes[uid] = Outcome(uid, NO_SCAN, reason)
    return outcomes


def _write_tables(
    folder: Path,
    tree: LunaTree,
    candidates: pd.DataFrame,
    rows_of: Mapping[str, NDArray[np.intp]],
    stored: CubeFormat,
    outcomes: Mapping[str, Outcome],
) -> None:
    """Writes all of a store but its cubes."""
    folds = assign_folds(rows_of, tree.subsets)
    table, failures = _describe(candidates, rows_of, outcomes, folds)
    if not (table["status"] == OK).any():
        shutil.rmtree(folder.parent)
        raise InputError(f"Not one cube could be cut. The first reason: {failures['reason'].iloc[0]}")
    write_csv(folder / "candidates.csv", table)
    write_csv(folder / "failures.csv", failures)
    scans = [(uid, folds[uid], outcomes[uid].status, outcomes[uid].sha256) for uid in rows_of]
    write_csv(folder / "scans.csv", pd.DataFrame(scans, columns=["seriesuid", "fold", "status", "sha256"]))
    write_json(folder / "store.json", _facts(table, stored, folder))


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
    """`OUT.partial`: the store to be, beside one file for every scan done.

    Args:
        root: The folder.
        request: What the store is made from, as one word. The store to be is named by it, so that a task that
            a cluster still runs for another request finds no array to write to.
        is_shared: Whether several machines write.
    """

    root: Path
    request: str
    is_shared: bool = False

    @property
    def store(self) -> Path:
        return self.root / self.request[:16]

    @property
    def cubes_path(self) -> Path:
        return self.store / "cubes.npy"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuses a second run at the same place while the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        taken = f"Another prepare is at work in {self.root}. Wait for it."
        with (self.root / ".lock").open("wb") as file, one_at_a_time(file.fileno(), taken):
            yield

    def begin(self, request: dict[str, Any], shape: tuple[int, ...], dtype: str, *, force: bool) -> bool:
        """Makes the place, or goes on in it if the same request began it; whether it goes on."""
        request_path = self.root / "request.json"
        names = {path.name for path in self.root.iterdir() if not path.name.startswith(".")}
        if names and not request_path.is_file():
            raise InputError(f"{self.root} is in the way, and not of prepare's making. Move it away.")
        if names:
            is_same = json.loads(request_path.read_text(encoding="utf-8")) == request
            if is_same and self.cubes_path.is_file():
                return True
            if not is_same and not force and self._notes():
                raise InputError(
                    f"{self.root} was begun from other candidates or for other cubes. "
                    "Pass --force to start over, or choose another path."
                )
        write_json(request_path, request)
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        (self.root / "done").mkdir()
        with written_whole(self.cubes_path) as temporary:
            # Sparse: rows that are never cut take no room.
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
        return False

    def _notes(self) -> list[Path]:
        return [path for path in (self.root / "done").glob("*.json") if not path.name.startswith(".")]

    def outcomes(self) -> dict[str, Outcome]:
        """What became of each scan that is done."""
        texts = [path.read_text(encoding="utf-8") for path in self._notes()]
        return {outcome.series_uid: outcome for outcome in (Outcome(**json.loads(text)) for text in texts)}

    def forget(self, first_row: int) -> None:
        """Takes back what was noted of a scan."""
        (self.root / "done" / f"{first_row}.json").unlink(missing_ok=True)

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
        with _WRITING, self.cubes_path.open("r+b") as file:
            places = np.load(self.cubes_path, mmap_mode="r").offset + rows * size
            span = int(places.min()), int(places.max()) + size
            with locked(file, *span) if self.is_shared else nullcontext():
                for place, cube in zip(places.tolist(), cubes, strict=True):
                    file.seek(place)
                    file.write(cube.tobytes())

    def clear_cubes(self, rows: NDArray[np.intp]) -> None:
        """Makes rows zero again that an earlier run may have cut, from files that have changed since."""
        with _WRITING:
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
        paths = files_of(*job.source)
        files, checksum = _look_at(paths), sha256(*paths)
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
        some = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        say(f"Cut again because they have changed since: {len(changed)} of the scans: {some}")
    return good


def _is_unchanged(outcome: Outcome, source: ScanSource) -> bool:
    """Whether a scan's files hold what they held: by size and time, or else by their checksum."""
    try:
        paths = files_of(*source)
        return _look_at(paths) == outcome.files or sha256(*paths) == outcome.sha256
    except (InputError, OSError):
        return False


def _is_as_noted(outcome: Outcome, source: ScanSource) -> bool:
    """The same, without looking for its files again unless those known have changed."""
    try:
        is_as_noted = _look_at([Path(str(path)) for path, *_ in outcome.files]) == outcome.files
    except OSError:
        return False
    return is_as_noted or _is_unchanged(outcome, source)


def _look_at(paths: Sequence[Path]) -> list[list[str | int]]:
    """`Outcome.files` of the files of a scan."""
    files = [(path, path.stat()) for path in paths]
    return [[str(path), found.st_size, found.st_mtime_ns] for path, found in files]


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
    digest.update(json.dumps(asdict(stored)).encode())
    return {"format": FORMAT, **asdict(stored), "sha256": digest.hexdigest()}
