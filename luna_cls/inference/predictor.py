"""A trained model reads scans: every candidate becomes a finding with a probability."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls import __version__
from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.cubes.store import FAILURE_COLUMNS, OUTSIDE, UNREADABLE
from luna_cls.errors import InputError
from luna_cls.files import (
    COORDINATES,
    POINT_COLUMNS,
    require_new,
    sha256,
    whole_folder,
    write_csv,
    write_json,
    write_text,
)
from luna_cls.judging import calibrated_run
from luna_cls.learning import models
from luna_cls.learning.training import predictions_table
from luna_cls.processes import available_cores
from luna_cls.scans.luna16 import read_candidates
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import ScanSource, find_scans, read_volume

BATCH_SIZE = 128
NO_CALIBRATION = "none"
MAX_READERS = 4  # scans in memory at a time, some 0.3 GB each

Cubes = NDArray[np.int16]  # (n, z, y, x), HU
_NO_POINTS = pd.DataFrame(columns=list(POINT_COLUMNS)).astype(dict.fromkeys(COORDINATES, float))

Failure = tuple[str, int | None, str, str]  # FAILURE_COLUMNS


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found.

    Args:
        findings: Table `seriesuid, coordX, coordY, coordZ, probability, logit`, with `class` where the
            candidates had it; scan by scan, the most probable first.
        failures: Table `seriesuid, row, status, reason`: scans that could not be read (no row) and
            candidates outside their scan (their row in the candidate file).
        num_scans: Scans that were read.
        calibration: What was done to the model's logits, and by which file; None if nothing.
    """

    findings: pd.DataFrame
    failures: pd.DataFrame
    num_scans: int
    calibration: str | None


@dataclass(frozen=True, eq=False)
class _CutScan:
    """One scan's candidates and their cubes, or why there are none."""

    candidates: pd.DataFrame
    cubes: Cubes | None
    failures: list[Failure]


def predict(
    model_path: str | Path,
    scans: Iterable[str | Path],
    candidates_path: str | Path | None,
    out: str | Path,
    *,
    calibration: str | Path | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Scores every candidate of the scans given.

    Writes `findings.csv`, `prediction.json` (which model and calibration made them), `failures.csv`, and
    `seriesuids.csv`: all scans given, those that failed or have no candidate included, as an honest
    evaluation needs them.

    A scan that cannot be read, or a candidate outside its scan, is listed in `failures.csv`; the rest
    is scored. Candidates of other scans are left aside.

    Args:
        model_path: A `.keras` file of a run, or the name of a model that comes with the package.
        scans: Scan files, or folders to search.
        candidates_path: A CSV with `seriesuid, coordX, coordY, coordZ`, perhaps `class`; None to propose
            points in the lungs of each scan (`scans.proposals`).
        out: The folder to make.
        calibration: A `calibration.json`; None for that beside the model, if there is one; "none" for none.
        force: Replace it if it exists.
        on_progress: Called with the number of scans done and of all scans.

    Raises:
        InputError: If an input is missing or wrong, or no candidate is in any of the scans; or if the
            calibration was fitted to another model.
    """
    out, model_path = Path(out), models.path_of(model_path)
    sources = find_scans(scans)
    calibration_path = _calibration_path(calibration, model_path)
    given = [path for path in (model_path, candidates_path, calibration_path) if path is not None]
    inputs = [*map(Path, given), *(source.path for source in sources)]
    require_new(out, force=force, sign="failures.csv", inputs=inputs)
    uids = [source.series_uid for source in sources]
    uid, count = Counter(uids).most_common(1)[0]
    if count > 1:
        raise InputError(f"{count} of the scan files are called {uid}. Name each scan once.")
    candidates = None if candidates_path is None else read_candidates(Path(candidates_path), labelled=False)
    if candidates is not None and not candidates["seriesuid"].isin(uids).any():
        raise InputError(
            f"No candidate in {candidates_path} belongs to a scan given. Received: scans "
            f"{uids[0]}, ...; candidates of {candidates['seriesuid'].iloc[0]}, ..."
        )
    model = models.load(model_path)
    calibrated = calibrated_run.read(calibration_path, model_path) if calibration_path else None
    spec = _cube_spec(model, model_path)

    read: list[_CutScan] = []

    def cubes_of_scans() -> Iterator[Cubes]:
        for done, scan in enumerate(_cut_ahead(sources, candidates, spec)):
            if on_progress:
                on_progress(done, len(sources))
            read.append(replace(scan, cubes=None))
            if scan.cubes is not None:
                yield scan.cubes
        if on_progress:
            on_progress(len(sources), len(sources))

    logits = _score(model, cubes_of_scans(), spec)
    failures = [failure for scan in read for failure in scan.failures]
    if not len(logits):
        raise InputError(f"Not one candidate could be scored. The first reason: {failures[0][3]}")
    if not np.isfinite(logits).all():
        raise InputError(f"{model_path} gives logits that are not finite. Train it again.")
    if calibrated:
        logits = calibrated(logits)
    findings = predictions_table(pd.concat([scan.candidates for scan in read]), logits)
    order = pd.Categorical(findings["seriesuid"], categories=uids, ordered=True)
    findings = findings.assign(order=order).sort_values(
        ["order", "logit"], ascending=[True, False], kind="stable", ignore_index=True
    )
    unread = sum(row is None for _, row, _, _ in failures)
    result = Prediction(
        findings.drop(columns="order"),
        pd.DataFrame(failures, columns=list(FAILURE_COLUMNS)).astype({"row": "Int64"}),
        len(sources) - unread,
        f"{calibrated} ({calibration_path})" if calibrated else None,
    )
    about = {
        "luna_cls": __version__,
        "model": model_path.name,
        "model_sha256": sha256(model_path),
        "calibration": calibrated.to_json() if calibrated else None,
    }
    with whole_folder(out) as folder:
        write_json(folder / calibrated_run.PREDICTION, about)
        write_csv(folder / "failures.csv", result.failures)
        write_text(folder / "seriesuids.csv", "".join(f"{uid}\n" for uid in uids))
        write_csv(folder / "findings.csv", result.findings)
    return result


def _calibration_path(calibration: str | Path | None, model_path: Path) -> Path | None:
    if calibration is None:
        return calibrated_run.beside(model_path)
    return None if str(calibration) == NO_CALIBRATION else Path(calibration)


def _score(model: keras.Model, arrays: Iterable[Cubes], spec: CubeSpec) -> NDArray[np.float64]:
    """Logits `(n,)` of all cubes in order, in batches of one size that run on from scan to scan."""
    batch = np.zeros((BATCH_SIZE, *spec.shape_zyx, 1), np.int16)
    logits, filled = [], 0
    for cubes in arrays:
        start = 0
        while start < len(cubes):
            taken = min(BATCH_SIZE - filled, len(cubes) - start)
            batch[filled : filled + taken, ..., 0] = cubes[start : start + taken]
            start, filled = start + taken, filled + taken
            if filled == BATCH_SIZE:
                logits.append(model.predict_on_batch(batch))
                filled = 0
    if filled:
        logits.append(model.predict_on_batch(batch)[:filled])
    return np.concatenate(logits).reshape(-1).astype(np.float64) if logits else np.empty(0)


def _cut_ahead(
    sources: list[ScanSource], candidates: pd.DataFrame | None, spec: CubeSpec
) -> Iterator[_CutScan]:
    """Cuts scan after scan, in order, the next few while the caller scores the last."""
    rows_of = {} if candidates is None else candidates.groupby("seriesuid").indices
    readers = min(MAX_READERS, available_cores())
    with ThreadPoolExecutor(readers) as pool:
        ahead: deque[Future[_CutScan]] = deque()
        for source in sources:
            if len(ahead) == readers:
                yield ahead.popleft().result()
            own = None if candidates is None else candidates.iloc[rows_of.get(source.series_uid, [])]
            ahead.append(pool.submit(_cut_scan, source, own, spec))
        while ahead:
            yield ahead.popleft().result()


def _cut_scan(source: ScanSource, own: pd.DataFrame | None, spec: CubeSpec) -> _CutScan:
    """Reads a scan and cuts its own candidates, or proposes some if there is no list of them."""
    uid = source.series_uid
    try:
        volume = read_volume(*source)
        if own is None:
            own = propose(volume)[list(POINT_COLUMNS)]
        points = own[COORDINATES].to_numpy()
        inside = volume.grid.contains(points)
        cubes = cut_cubes(volume, points[inside], spec)
    except (InputError, OSError, MemoryError) as error:
        none = _NO_POINTS if own is None else own[:0]
        return _CutScan(none, None, [(uid, None, UNREADABLE, str(error))])
    outside: list[Failure] = [
        (uid, int(row), OUTSIDE, f"The point {point.tolist()} mm lies outside the scan.")
        for row, point in zip(own.index[~inside], points[~inside], strict=True)
    ]
    return _CutScan(own[inside], cubes, outside)


def _cube_spec(model: keras.Model, path: str | Path) -> CubeSpec:
    """The cubes a model reads, from the shape of its input."""
    shape = model.input_shape
    if (
        len(shape) != 5
        or None in shape[1:]
        or len(set(shape[1:4])) != 1
        or shape[4] != 1
        or model.output_shape != (None, 1)
    ):
        raise InputError(
            f"{path} is not a model from cubes to logits. Received: {shape} to {model.output_shape}; "
            "expected (None, n, n, n, 1) to (None, 1)."
        )
    return CubeSpec(size_vox=shape[1])
