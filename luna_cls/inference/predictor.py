"""A trained model reads scans: every candidate becomes a finding with a probability."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from luna_cls import __version__
from luna_cls.errors import InputError
from luna_cls.inference.bundle import Bundle, open_bundles
from luna_cls.inference.options import PAGE, Options
from luna_cls.inference.pipeline import Task, WritePage, read_scans
from luna_cls.inference.prediction_folder import (
    BEGUN,
    FINDINGS,
    TWICE,
    Failure,
    Outcome,
    PredictionFolder,
)
from luna_cls.inference.scoring import Scorer
from luna_cls.learning.model_file import PRETRAINED
from luna_cls.processes import run_on_cluster
from luna_cls.scans.luna16 import read_candidates
from luna_cls.scans.volume import ScanSource, find_scans

NO_CALIBRATION = "none"
SCANS_A_JOB = 8  # of a cluster, so that reading and scoring overlap there, too
EVEN_ODDS = 0.5


@dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found.

    Args:
        path: The folder it made.
        failures: Table `seriesuid, row, status, reason`: scans that could not be read (no row), candidates
            outside their scan (their row in the candidate file), formats that could not be written.
        num_scans: Scans that were read.
        num_findings: Candidates that were scored.
        calibrations: What was done to each model's logits; None where nothing was.
        threshold: The probability from which findings are marked.
    """

    path: Path
    failures: pd.DataFrame
    num_scans: int
    num_findings: int
    calibrations: list[str | None]
    threshold: float

    @property
    def findings(self) -> pd.DataFrame:
        """Table `seriesuid, coordX, coordY, coordZ, probability, logit`, with `class` where it was given.

        Scan by scan, the most probable first.
        """
        return pd.read_csv(self.path / FINDINGS, dtype={"seriesuid": str})


def predict(
    model: str | Path,
    scans: Iterable[str | Path],
    candidates_path: str | Path | None,
    out: str | Path,
    options: Options | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    dask: str | None = None,
    write_page: WritePage | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Scores every candidate of the scans given.

    Writes `findings.csv`, `prediction.json` (which models and calibration made them), `failures.csv`, and
    `seriesuids.csv`: all scans given, those that failed or have no candidate included, as an honest
    evaluation needs them. `scans/UID/` has the findings of one scan, in all formats, once it is done.

    A scan that cannot be read, or a candidate outside its scan, is listed in `failures.csv`; the rest
    is scored. Candidates of other scans are left aside. Reading, cutting, scoring and writing overlap, a few
    scans at a time.

    Args:
        model: What `bundle.open_bundles` opens: a run, its `model.keras`, a bundle, a cross-validation, or
            the name of a model that comes with the package.
        scans: What `find_scans` finds: files, folders to search, lists of paths.
        candidates_path: A CSV with `seriesuid, coordX, coordY, coordZ`, perhaps `class`; None to propose
            points in the lungs of each scan (`scans.proposals`).
        out: The folder to make.
        options: What is done with logits, and what is written; `Options()` if None.
        force: Replace `out` if it exists.
        resume: Go on with `out` if it exists: scans that are done, and have not changed, stay.
        dask: Address of a Dask scheduler whose workers do the reading, and see all at the same paths.
        write_page: Writes the page of a scan, for the format "html", into the folder of the scan;
            a module's function, if `dask` is given.
        on_progress: Called with the number of scans done and of all scans.

    Raises:
        InputError: If an input is missing or wrong, or no candidate is in any of the scans; or if the
            calibration was fitted to another model.
    """
    out, options = Path(out).absolute(), options or Options()
    options.check()
    options = replace(options, ensemble=tuple(map(_absolute, options.ensemble)))
    if options.calibration is not None:
        options = replace(options, calibration=_absolute(options.calibration))
    if resume and force:
        raise InputError("--resume goes on with a prediction, --force starts it over: give one of them.")
    members = _members(model, options)
    found = find_scans(scans)
    first: dict[str, ScanSource] = {}
    for source in found:
        first.setdefault(source.series_uid, source)
    sources = list(first.values())
    inputs = [member.model_path for member in members] + [source.path for source in found]
    if candidates_path is not None:
        inputs.append(Path(candidates_path))
    candidates = _candidates(candidates_path, sources)
    about = _about(members, options, candidates)
    folder = PredictionFolder(out)
    with folder.begun(about, resume=resume, force=force, inputs=inputs) as about:
        folder.check_scans(source.series_uid for source in sources)
        task = Task(_absolute(model), options, about, folder, write_page if PAGE in options.formats else None)
        if dask is None:
            outcomes = read_scans(task, sources, candidates, Scorer(members, options.symmetries))
        else:
            outcomes = _read_on_cluster(task, sources, candidates, dask, inputs)
        of_scan: dict[str, Outcome] = {}
        if on_progress:
            on_progress(0, len(sources))
        for outcome in outcomes:
            of_scan[outcome.series_uid] = outcome
            if on_progress:
                on_progress(len(of_scan), len(sources))
        uids = [source.series_uid for source in sources]
        if not any(outcome.is_read for outcome in of_scan.values()):
            reason = of_scan[uids[0]].failures[0][-1]
            raise InputError(f"Not one scan could be read. The first reason: {reason}")
        failures = folder.finish(uids, of_scan, _named_twice(found, sources))
    return Prediction(
        out,
        failures,
        sum(outcome.is_read for outcome in of_scan.values()),
        sum(outcome.num_findings for outcome in of_scan.values()),
        [str(member.calibration) if member.calibration else None for member in members],
        about["threshold"],
    )


def _members(model: str | Path, options: Options) -> list[Bundle]:
    own = options.calibration is None
    members = [bundle for name in (model, *options.ensemble) for bundle in open_bundles(name, calibrated=own)]
    if own or str(options.calibration) == NO_CALIBRATION:
        return members
    if len(members) > 1:
        raise InputError("--calibration takes a file for one model; several have each their own, or none.")
    return [members[0].calibrated_by(Path(options.calibration or ""))]


def _absolute(name: str | Path) -> str:
    """A path as a worker in another folder finds it; a word that is no path as it is."""
    return str(name) if str(name) in (*PRETRAINED, NO_CALIBRATION) else str(Path(name).absolute())


def _candidates(path: str | Path | None, sources: Sequence[ScanSource]) -> pd.DataFrame | None:
    if path is None:
        return None
    candidates = read_candidates(Path(path), labelled=False)
    uids = [source.series_uid for source in sources]
    if not candidates["seriesuid"].isin(uids).any():
        raise InputError(
            f"No candidate in {path} belongs to a scan given. Received: scans "
            f"{uids[0]}, ...; candidates of {candidates['seriesuid'].iloc[0]}, ..."
        )
    return candidates


def _about(members: Sequence[Bundle], options: Options, candidates: pd.DataFrame | None) -> dict[str, Any]:
    """What `prediction.json` says."""
    models = [
        {
            "name": member.name,
            "sha256": member.model_sha256,
            "calibration": member.calibration.to_json() if member.calibration else None,
        }
        for member in members
    ]
    alone = models[0] if len(models) == 1 else None
    threshold = options.threshold
    if threshold is None:
        threshold = members[0].threshold if alone else None
    calibration = alone["calibration"] if alone else None
    if not alone and any(entry["calibration"] for entry in models):
        every = all(entry["calibration"] for entry in models)
        calibration = {"method": "each model's own" if every else "some models' own, others as trained"}
    about = {
        "luna_cls": __version__,
        "model": alone["name"] if alone else f"{len(models)} models",
        "model_sha256": alone["sha256"] if alone else None,
        "calibration": calibration,
        "models": models,
        "symmetries": options.symmetries,
        "candidates": "proposed" if candidates is None else "listed",
        "merge_mm": options.merge_mm,
        "threshold": EVEN_ODDS if threshold is None else threshold,
        "most": options.most,
        "diameters": options.diameters,
        "explain": options.explain,
        "formats": options.written,
    }
    if "sr" in options.formats:
        about[BEGUN] = _now()
    return about


def _now() -> str:
    """The time, or that of SOURCE_DATE_EPOCH, for files that are to be the same whenever they are made."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(fixed), UTC) if re.fullmatch("[0-9]{1,11}", fixed) else datetime.now(UTC)
    return now.isoformat(timespec="seconds")


def _named_twice(found: Sequence[ScanSource], sources: Sequence[ScanSource]) -> list[Failure]:
    """The second and further files that are called the same: which of them is meant cannot be told."""
    read = {source.series_uid: source.path for source in sources}
    return [
        (
            uid,
            None,
            TWICE,
            f"{path} has the series UID of {read[uid]}, which was read. Name each scan once.",
        )
        for path, uid in found
        if path.resolve() != read[uid].resolve()
    ]


def _read_on_cluster(
    task: Task,
    sources: Sequence[ScanSource],
    candidates: pd.DataFrame | None,
    dask: str,
    inputs: Sequence[Path],
) -> Iterator[Outcome]:
    jobs = []
    for start in range(0, len(sources), SCANS_A_JOB):
        some = [ScanSource(path.absolute(), uid) for path, uid in sources[start : start + SCANS_A_JOB]]
        own = None
        if candidates is not None:
            own = candidates[candidates["seriesuid"].isin([source.series_uid for source in some])]
        jobs.append((task, some, own))
    folders = {path.absolute() if path.is_dir() else path.absolute().parent for path in inputs}
    for outcomes in run_on_cluster(_read_job, jobs, dask, [task.folder.path, *sorted(folders)]):
        yield from outcomes


def _read_job(job: tuple[Task, list[ScanSource], pd.DataFrame | None]) -> list[Outcome]:
    task, sources, candidates = job
    models = tuple((entry["name"], entry["sha256"]) for entry in task.about["models"])
    return list(read_scans(task, sources, candidates, _opened(task.model, task.options, models)))


@functools.lru_cache(maxsize=1)  # a worker's next job needs the same
def _opened(model: str, options: Options, models: tuple[tuple[str, str], ...]) -> Scorer:
    members = _members(model, options)
    if tuple((member.name, member.model_sha256) for member in members) != models:
        raise InputError(f"{model} is another model on a worker than here. Put the same one there.")
    return Scorer(members, options.symmetries)
