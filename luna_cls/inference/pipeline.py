"""Scans become findings: reading, cutting, scoring and writing, side by side, a few scans at a time."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.cubes.store import OUTSIDE, UNREADABLE
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES, POINT_COLUMNS, write_csv
from luna_cls.inference import exports
from luna_cls.inference.diameters import estimate_diameters_mm
from luna_cls.inference.findings import DIAMETER, MARKED, ScanFindings, saliency_name
from luna_cls.inference.merging import merge
from luna_cls.inference.options import PAGE, Options
from luna_cls.inference.prediction_folder import (
    EXPORT,
    FINDINGS,
    Failure,
    Made,
    Outcome,
    PredictionFolder,
)
from luna_cls.inference.saliency import write_saliency
from luna_cls.inference.scoring import Scorer
from luna_cls.learning.training import predictions_table
from luna_cls.processes import available_cores
from luna_cls.scans.grid import Grid
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import CTVolume, ScanSource, read_volume

BATCH_SIZE = 128
MAX_READERS = 4  # scans read at a time, some 0.3 GB each
MOST_WAITING = 64  # scans that wait for a batch to fill; as many as there are readers, if with their voxels

Cubes = NDArray[np.int16]  # (n, z, y, x), HU
WritePage = Callable[[Path, CTVolume], Any]


@dataclass(frozen=True, eq=False)
class Task:
    """What is the same for every scan."""

    model: str
    options: Options
    about: Mapping[str, Any]
    folder: PredictionFolder
    write_page: WritePage | None


@dataclass(eq=False)
class _CutScan:
    """A scan's candidates and their cubes.

    Args:
        source: Its files.
        made: What it was read from.
        candidates: Those inside it.
        cubes: Theirs, `(n, z, y, x)`.
        outside: What failed: those outside it.
        grid: Its own.
        volume: The scan, if it is needed later.
    """

    source: ScanSource
    made: Made
    candidates: pd.DataFrame
    cubes: Cubes
    outside: list[Failure]
    grid: Grid
    volume: CTVolume | None


def read_scans(
    task: Task, sources: Sequence[ScanSource], candidates: pd.DataFrame | None, score: Scorer
) -> Iterator[Outcome]:
    """What becomes of each scan: cutting is a few scans ahead of scoring, and writing comes after it."""
    readers = min(MAX_READERS, available_cores())
    batches = _Batches(score, readers if task.options.needs_volumes else MOST_WAITING)
    with ThreadPoolExecutor(1) as pool:
        writing: deque[Future[Outcome]] = deque()
        for scan in _cut_ahead(task, sources, candidates, score.spec, readers):
            if isinstance(scan, Outcome):
                yield scan
                continue
            for scored in batches.add(scan):
                writing.append(pool.submit(_write, task, score, *scored))
            while len(writing) > readers or (writing and writing[0].done()):
                yield writing.popleft().result()
        writing.extend(pool.submit(_write, task, score, *scored) for scored in batches.flush())
        while writing:
            yield writing.popleft().result()


class _Batches:
    """Puts the cubes of scan after scan into batches of one size, and gives each scan its logits.

    Args:
        score: From a batch to logits.
        most_waiting: When more scans than this wait for a batch to fill, it is scored as it is.
    """

    def __init__(self, score: Callable[[Cubes], NDArray[np.float64]], most_waiting: int) -> None:
        self._score = score
        self._most_waiting = most_waiting
        self._batch: Cubes | None = None
        self._filled = 0
        self._waiting: deque[tuple[_CutScan, int]] = deque()  # each with how many logits it still lacks
        self._logits: list[NDArray[np.float64]] = []

    def add(self, scan: _CutScan) -> Iterator[tuple[_CutScan, NDArray[np.float64]]]:
        """Takes a scan; yields those that are scored by now, in order."""
        cubes, scan.cubes = scan.cubes, scan.cubes[:0].copy()  # a view would keep them all
        self._waiting.append((scan, len(cubes)))
        start = 0
        while start < len(cubes):
            if self._batch is None:
                self._batch = np.zeros((BATCH_SIZE, *cubes.shape[1:]), np.int16)
            taken = min(BATCH_SIZE - self._filled, len(cubes) - start)
            self._batch[self._filled : self._filled + taken] = cubes[start : start + taken]
            start, self._filled = start + taken, self._filled + taken
            if self._filled == BATCH_SIZE:
                yield from self.flush()
        yield from self._scored()
        if len(self._waiting) > self._most_waiting:
            yield from self.flush()

    def flush(self) -> Iterator[tuple[_CutScan, NDArray[np.float64]]]:
        """Scores what there is; yields the scans that are scored by that."""
        if self._batch is not None and self._filled:
            # The rest of the batch holds older cubes: a batch of one size keeps every logit as it is.
            self._logits.append(self._score(self._batch)[: self._filled])
            self._filled = 0
        yield from self._scored()

    def _scored(self) -> Iterator[tuple[_CutScan, NDArray[np.float64]]]:
        there = sum(map(len, self._logits))
        while self._waiting and self._waiting[0][1] <= there:
            scan, count = self._waiting.popleft()
            logits = np.concatenate([np.empty(0), *self._logits])
            self._logits = [logits[count:]]
            there -= count
            yield scan, logits[:count]


def _cut_ahead(
    task: Task,
    sources: Sequence[ScanSource],
    candidates: pd.DataFrame | None,
    spec: CubeSpec,
    readers: int,
) -> Iterator[_CutScan | Outcome]:
    """Cuts scan after scan, in order, the next few while the caller scores the last."""
    rows_of = {} if candidates is None else candidates.groupby("seriesuid").indices
    with ThreadPoolExecutor(readers) as pool:
        ahead: deque[Future[_CutScan | Outcome]] = deque()
        for source in sources:
            if len(ahead) == readers:
                yield ahead.popleft().result()
            own = None if candidates is None else candidates.iloc[rows_of.get(source.series_uid, [])]
            ahead.append(pool.submit(_cut_scan, task, source, own, spec))
        while ahead:
            yield ahead.popleft().result()


def _cut_scan(task: Task, source: ScanSource, own: pd.DataFrame | None, spec: CubeSpec) -> _CutScan | Outcome:
    """Reads a scan and cuts its own candidates, or proposes some if there is no list of them.

    What became of it, if it was done before or cannot be read.
    """
    uid = source.series_uid
    try:
        made = Made.of(source, own)
        done = task.folder.done(uid, made)
        if done:
            return done
        volume = read_volume(*source)
        if own is None:
            own = propose(volume)[list(POINT_COLUMNS)]
        points = own[COORDINATES].to_numpy()
        inside = volume.grid.contains(points)
        cubes = cut_cubes(volume, points[inside], spec)
    except Exception as error:  # one bad file, whatever it makes a library raise, stops no other scan
        _raise_if_full(error)
        return Outcome(uid, 0, [(uid, None, UNREADABLE, _in_a_line(error))], is_read=False)
    outside: list[Failure] = [
        (uid, int(row), OUTSIDE, f"The point {point.tolist()} mm lies outside the scan.")
        for row, point in zip(own.index[~inside], points[~inside], strict=True)
    ]
    kept = volume if task.options.needs_volumes else None
    return _CutScan(source, made, own[inside], cubes, outside, volume.grid, kept)


def _write(task: Task, score: Scorer, scan: _CutScan, logits: NDArray[np.float64]) -> Outcome:
    """Writes the folder of a scan that is scored; what became of it."""
    try:
        return _written(task, score, scan, logits)
    except Exception as error:
        _raise_if_full(error)
        uid = scan.source.series_uid
        return Outcome(uid, 0, [(uid, None, UNREADABLE, _in_a_line(error))], is_read=False)


def _written(task: Task, score: Scorer, scan: _CutScan, logits: NDArray[np.float64]) -> Outcome:
    options, volume = task.options, scan.volume
    table = predictions_table(scan.candidates, logits)
    table = table.sort_values("logit", ascending=False, kind="stable", ignore_index=True)
    if options.merge_mm is not None:
        table = merge(table, options.merge_mm)
    is_marked = (table["probability"] >= task.about["threshold"]) & (table.index < options.most)
    if options.diameters and volume is not None:
        table[DIAMETER] = np.nan
        places = table.loc[is_marked, COORDINATES].to_numpy()
        table.loc[is_marked, DIAMETER] = estimate_diameters_mm(volume, places)
    found = ScanFindings(scan.source, scan.grid, table.assign(**{MARKED: is_marked}), task.about)
    outcome = Outcome(scan.source.series_uid, len(table), list(scan.outside))

    def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:  # it takes nothing away from the findings
            _raise_if_full(error)
            outcome.failures.append((outcome.series_uid, None, EXPORT, f"{what}: {_in_a_line(error)}"))

    with task.folder.writing(outcome, scan.made) as folder:
        write_csv(folder / FINDINGS, table)
        if volume is not None:
            chosen = found.marked.head(options.explain)
            attempt("explain", _explain, score, volume, chosen, folder)
        for name in options.written:
            if name != PAGE:
                attempt(name, exports.WRITERS[name], found, folder)
            elif task.write_page and volume is not None:
                attempt(name, task.write_page, folder, volume)
    return outcome


def _raise_if_full(error: Exception) -> None:
    """A disk without room ends everything: the next scan would fail, too."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error


def _in_a_line(error: Exception) -> str:
    """What an error says; with its name, where it was not written for readers."""
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "There is too little memory."
    return words if isinstance(error, InputError | OSError) and words else f"{type(error).__name__}: {words}"


def _explain(score: Scorer, volume: CTVolume, chosen: pd.DataFrame, folder: Path) -> None:
    """Writes a map of what raised the logit, for each finding; ranks count from 1."""
    if chosen.empty:
        return
    places = chosen[COORDINATES].to_numpy()
    maps = score.explain(cut_cubes(volume, places, score.spec))
    for rank, (place, values) in enumerate(zip(places, maps, strict=True), 1):
        write_saliency(folder / saliency_name(rank), values, place, score.spec.spacing_mm)
