"""Every fold is the test fold once: trained without it, and pooled into one set of honest scores."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from luna_cls.cubes.folds import LeakError, split_by_fold
from luna_cls.cubes.store import OK, CubeStore
from luna_cls.errors import InputError
from luna_cls.files import (
    alone_in,
    clear,
    is_empty,
    kept_until_done,
    require_new,
    whole_folder,
    write_csv,
    write_json,
    write_text,
)
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.judging.submission import Reference, read_annotations
from luna_cls.processes import check_workers, run_apart, run_on_cluster
from luna_cls.settings import Settings, SplitSettings, load_settings
from luna_cls.startup import load_tensorflow_quietly

SETTINGS, ABOUT, PREDICTIONS, TEST_PREDICTIONS, SERIES_UIDS, METRICS, FAILURES, EVALUATION = (
    "crossval.toml",
    "crossval.json",
    "predictions.csv",
    "test_predictions.csv",
    "seriesuids.csv",
    "metrics.json",
    "failures.csv",
    "evaluation",
)
FAILED, DIVERGED, ONE_CLASS = "failed", "diverged", "one_class"

_PAUSE = ".pause"
_COUNTS = ("tp", "fp", "tn", "fn")
_ONE_AT_A_TIME = threading.Lock()  # a fold takes all of a Dask worker, however many threads it has


@dataclass(frozen=True)
class Fold:
    """One fold's turn.

    Args:
        test: The fold that is scored, and looked at once.
        validation: The fold that chooses the epoch.
        run: The folder of the run.
        settings: Those of the run.
    """

    test: int
    validation: int
    run: Path
    settings: Settings


class _NothingLearned(Exception):  # noqa: N818
    """It was asked to stop before any model had begun to learn."""


@dataclass(frozen=True)
class _Job:
    """What another process must know of a fold."""

    fold: Fold
    store: Path
    go_on: str


def crossvalidate(
    store: CubeStore,
    settings: Settings,
    out: str | Path,
    *,
    annotations: Path | None = None,
    excluded: Path | None = None,
    workers: int | None = None,
    dask: str | None = None,
    force: bool = False,
    resume: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Trains a model for every fold of the store and pools what each says of the fold it has not seen.

    Of each fold there is `out/foldK`, the folder of an ordinary run (`learning.training.train`) with
    `test_predictions.csv`. Beside them: `crossval.toml`, `crossval.json` (which fold was for what),
    `predictions.csv` (every usable candidate once, in the order of the store), `seriesuids.csv` (all scans of
    the store), `metrics.json`, `failures.csv` and, with annotations and no fold missing, `evaluation/`.

    A fold that fails does not stop the others.

    Args:
        store: The cubes.
        settings: Those of every run; its split is replaced, and the number of the fold is added to its seed.
        out: The folder to make.
        annotations: CSV of the nodules, for FROC and CPM.
        excluded: CSV of findings to ignore.
        workers: How many folds at a time, each in a process of its own; None for one after the other in this.
        dask: Address of a Dask scheduler whose workers do the training, and see the store and `out` at the
            same paths.
        force: Replace `out` if it exists.
        resume: Go on with it if it exists.
        asked_to_stop: Looked at after every step: once it is true, the folds that are trained save where they
            stand, and pause.
        say: Prints a line of progress.

    Returns:
        None if it paused; else what `metrics.json` holds: pooled `metrics` and `no_skill`, `pooled_folds` and
        `missing_folds`, `folds` (those that were scored, each with its own metrics), `over_folds` (mean and
        standard deviation); besides, `failures` (rows of `failures.csv`) and, where there are annotations,
        `froc` and `warnings` as `judging.evaluation.evaluate_submission` has them.

    Raises:
        InputError: If an input is wrong, `out` exists and is not to be replaced or resumed, or was begun with
            other settings or cubes, or not one fold could be trained.
        LeakError: If a scan is in two folds, or a score is of a scan that its model has seen.
    """
    out = Path(out)
    check_workers(workers)
    if dask is not None and workers is not None:
        raise InputError("--workers and --dask exclude each other: a Dask cluster has its own workers.")
    if excluded is not None and annotations is None:
        raise InputError("--excluded goes with --annotations: it names findings that CPM ignores. Give both.")
    if annotations is not None:
        _check_annotations(store, annotations, excluded)
    if settings.distribution == "multihost":
        raise InputError(
            "crossval trains each fold in one process, and distribution = multihost is for several. Use "
            "mirrored, or --workers or --dask for several folds at a time."
        )
    settings = settings.model_copy(update={"split": SplitSettings(validation_folds=(), test_folds=())})
    folds = plan_folds(store, settings, out.absolute())
    inputs = [path for path in (store.path, annotations, excluded) if path]
    is_begun = _check(out, store, settings, inputs, force=force, resume=resume)
    taken = f"Another crossval is at work in {out}. Let it end, or stop it, before you go on with it."
    with suppress(_NothingLearned), ExitStack() as stack:
        if not is_begun:
            if out.is_dir():
                stack.enter_context(alone_in(out, taken))
            # Once a model has begun to learn, it is worth more than what was there before.
            stack.enter_context(kept_until_done(out, lambda: _has_checkpoints(out)))
            stack.enter_context(_begun(out, store, settings, folds))
        stack.enter_context(alone_in(out, taken))
        given = {"workers": workers, "dask": dask, "annotations": annotations, "excluded": excluded}
        options = "".join(f" --{name} {quote(str(value))}" for name, value in given.items() if value)
        go_on = f"luna-cls crossval {quote(str(store.path))} {quote(str(out))} --resume{options}"
        reasons: dict[int, str] = {}
        for fold, reason in _run_all(store, folds, out, workers, dask, asked_to_stop, go_on, say):
            reasons[fold.test] = reason
            if reason and _has_checkpoints(out):  # else it may be one fault of all folds: said once
                say(f"fold {fold.test}: failed: {reason}")
        left = [fold for fold in folds if not _is_scored(fold)]
        if left and asked_to_stop():
            if not is_begun and not _has_checkpoints(out):
                say("Asked to stop before anything was learned: nothing was changed.")
                raise _NothingLearned
            say(f"Asked to stop. {go_on} goes on from there.")
            return None
        for fold in left:
            reasons[fold.test] = reasons.get(fold.test) or _STOPPED
        return _pool(store, folds, reasons, out, annotations, excluded)
    return None


def plan_folds(store: CubeStore, settings: Settings, out: Path) -> list[Fold]:
    """Each fold that has usable cubes as the test fold, and the next with both classes to choose the epoch.

    Raises:
        InputError: If there are too few folds.
        LeakError: If a scan is in two folds.
    """
    usable = store.candidates[store.candidates["status"] == OK]
    classes = usable.groupby("fold")["class"].nunique()
    folds = sorted(classes.index.tolist())
    choosing = [fold for fold in folds if classes[fold] == 2]
    if len(folds) < 3 or len(choosing) < 2:
        raise InputError(
            "crossval needs three folds with cubes, one to test, one to choose the epoch, the rest to train, "
            f"and nodules and others in two of them at least. {store.path} has cubes in folds {folds}, and "
            f"both kinds in {choosing}. Prepare more scans."
        )
    planned = []
    for test in folds:
        validation = ([fold for fold in choosing if fold > test] or choosing)[0]
        split = SplitSettings(validation_folds=(validation,), test_folds=(test,))
        split_by_fold(store.candidates, split.validation_folds, split.test_folds)
        seed = (settings.seed + test) % 2**32
        own = settings.model_copy(update={"split": split, "seed": seed})
        planned.append(Fold(test, validation, out / f"fold{test}", own))
    return planned


def _check_annotations(store: CubeStore, annotations: Path, excluded: Path | None) -> None:
    """Finds out before the training, not after it, that they cannot be scored against."""
    nodules = read_annotations(annotations)
    if excluded is not None:
        read_annotations(excluded, "excluded findings")
    if not nodules["seriesuid"].isin(store.series_uids).any():
        raise InputError(
            f"No nodule in {annotations} is in a scan of {store.path}: sensitivity is not defined. Give the "
            "annotations of its scans."
        )


def _check(
    out: Path, store: CubeStore, settings: Settings, inputs: Sequence[Path], *, force: bool, resume: bool
) -> bool:
    """Whether `out` was begun before and is to be gone on with; writes nothing."""
    is_begun = (out / ABOUT).is_file() and not force
    if is_begun and not resume:
        raise InputError(
            f"{out} exists already. Pass --resume to go on with it, --force to start it over, or choose "
            "another path."
        )
    if not is_begun:
        if not (resume and is_empty(out)):
            require_new(out, force=force, sign=ABOUT, inputs=inputs)
        return False
    settings.check_begun_with(load_settings(str(out / SETTINGS)), out)
    _check_cubes(out / ABOUT, store, "Start over with --force.")
    return True


def _check_cubes(about: Path, store: CubeStore, advice: str) -> None:
    """Refuses what was begun with other cubes than the store holds, by the checksum in its JSON file."""
    try:
        checksum = json.loads(about.read_text(encoding="utf-8"))["store"]["checksum"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about} cannot be read: {error!r}. {advice}") from error
    store.check_begun_with(checksum, about.parent)


@contextmanager
def _begun(out: Path, store: CubeStore, settings: Settings, folds: Sequence[Fold]) -> Iterator[None]:
    """Makes the folder; takes it back if the block fails before a model has begun to learn."""
    about = {
        "store": {"checksum": store.checksum, "rows": len(store.candidates)},
        "folds": [
            {"test_fold": fold.test, "validation_fold": fold.validation, "seed": fold.settings.seed}
            for fold in folds
        ],
    }
    with whole_folder(out) as folder:
        write_text(folder / SETTINGS, settings.to_toml())
        write_text(folder / SERIES_UIDS, "".join(f"{uid}\n" for uid in store.series_uids))
        write_json(folder / ABOUT, about)
    try:
        yield
    except BaseException:
        if not _has_checkpoints(out):
            clear(out)
        raise


def _has_checkpoints(out: Path) -> bool:
    return any(out.glob("fold*/checkpoint/*.npz"))


def _is_scored(fold: Fold) -> bool:
    return (fold.run / TEST_PREDICTIONS).is_file()


def _run_all(
    store: CubeStore,
    folds: Sequence[Fold],
    out: Path,
    workers: int | None,
    dask: str | None,
    asked_to_stop: Callable[[], bool],
    go_on: str,
    say: Callable[[str], None],
) -> Generator[tuple[Fold, str], None, None]:
    """Trains and scores what is left to do; yields each fold as it ends, in any order, and what failed."""
    jobs = []
    for fold in folds:
        if _is_scored(fold):
            _predictions(store, fold)  # what is wrong with it is better known before the others are trained
            say(f"fold {fold.test}: finished already")
        else:
            jobs.append(_Job(fold, store.path.absolute(), go_on))
    if dask is not None and jobs:
        yield from _run_on_cluster(jobs, dask, out.absolute(), asked_to_stop, say)
    elif workers is not None:
        # As many shares however many folds are left: the number of cores decides the last digits.
        for job, reason in run_apart(_run_apart, jobs, min(workers, len(folds)), asked_to_stop):
            yield job.fold, _LOST if reason is None else reason
    else:
        for job in jobs:
            yield job.fold, _run(job, asked_to_stop, say)


_LOST = (
    "Its process ended before it could say why, most likely for want of memory. Go on with --resume, with "
    "fewer folds at a time."
)
_STOPPED = "It was asked to stop, but not by crossval. Go on with --resume."


def _run(job: _Job, asked_to_stop: Callable[[], bool], say: Callable[[str], None]) -> str:
    """Trains a fold's model, or goes on with it, and scores the fold; tells why it failed, if it did."""
    if asked_to_stop():
        return ""
    try:
        _train_and_score(job, asked_to_stop, say)
    except InputError as error:
        return " ".join(str(error).split())
    except Exception as error:  # days of training of the other folds must not hang on it
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _train_and_score(job: _Job, asked_to_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Does so, unless it is asked to stop."""
    load_tensorflow_quietly()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of more than a few models in a process
    from luna_cls.cubes.batches import ordered_batches
    from luna_cls.learning import models
    from luna_cls.learning.training import MODEL, logits_of, predictions_table, train

    fold, store = job.fold, CubeStore.open(job.store)
    settings = fold.settings
    result = train(
        store,
        settings,
        fold.run,
        resume=True,
        asked_to_stop=asked_to_stop,
        go_on=job.go_on,
        say=lambda line: say(f"fold {fold.test}: {line}"),
    )
    if result is None:
        return
    split = split_by_fold(store.candidates, settings.split.validation_folds, settings.split.test_folds)
    model = models.load(fold.run / MODEL)
    seen = store.seen_as(model.input_shape[1])
    batches = ordered_batches(seen, split.test, settings.training.batch_size)
    logits = logits_of(model, batches).astype(np.float64)
    if not np.isfinite(logits).all():
        raise InputError("Its model gives logits that are not finite. Lower optimizer.learning_rate.")
    write_csv(fold.run / TEST_PREDICTIONS, predictions_table(store.candidates.iloc[split.test], logits))


def _run_apart(job: _Job, asked_to_stop: Callable[[], bool]) -> str:
    return _run(job, asked_to_stop, _say_on_stderr)


def _run_on_worker(job: _Job) -> tuple[Fold, str]:
    """In a process of its own: Dask's threads draw random numbers, and would spoil the fold's seed."""
    is_to_pause = (job.fold.run.parent / _PAUSE).exists
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # may have a child
    with _ONE_AT_A_TIME:
        if is_to_pause():
            return job.fold, ""
        ((_, reason),) = run_apart(_run_apart, [job], 1, is_to_pause)
        return job.fold, _LOST if reason is None else reason


def _lost_on_cluster(job: _Job) -> tuple[Fold, str]:
    return job.fold, "Four workers of the cluster were lost over it, most likely for want of memory."


def _say_on_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # in one piece, so that lines of several processes do not mix
    sys.stderr.flush()


def _run_on_cluster(
    jobs: Sequence[_Job],
    address: str,
    out: Path,
    asked_to_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Generator[tuple[Fold, str], None, None]:
    """Gives folds to the workers of a cluster, which look at a file to know whether to pause."""
    pause, is_over = out / _PAUSE, threading.Event()
    pause.unlink(missing_ok=True)

    def pass_on() -> None:
        while not is_over.wait(0.5):
            if asked_to_stop():
                pause.touch()
                return

    messenger, ended = threading.Thread(target=pass_on, daemon=True), 0
    messenger.start()
    try:
        folders = [out, jobs[0].store]
        for fold, reason in run_on_cluster(_run_on_worker, jobs, address, folders, _lost_on_cluster):
            ended += 1
            if _is_scored(fold):
                say(f"fold {fold.test}: done")
            yield fold, reason
    finally:
        is_over.set()
        messenger.join()
        if ended < len(jobs):
            pause.touch()  # for those that are at work still


def _pool(
    store: CubeStore,
    folds: Sequence[Fold],
    reasons: dict[int, str],
    out: Path,
    annotations: Path | None,
    excluded: Path | None,
) -> dict[str, Any]:
    """Writes what all folds say together."""
    scored = [fold for fold in folds if _is_scored(fold)]
    own = {fold.test: _predictions(store, fold) for fold in scored}
    about = [_about(fold, own[fold.test]) for fold in scored]
    failures = _failures(store, folds, reasons, about)
    write_csv(out / FAILURES, pd.DataFrame(failures, columns=["fold", "status", "reason"]))
    if not scored:
        raise InputError(f"Not one fold could be trained. The first reason: {failures[0][2]}")
    pooled = pd.concat(own.values()).sort_index()
    expected = (store.candidates["status"] == OK) & store.candidates["fold"].isin(list(own))
    if not np.array_equal(pooled.index, np.flatnonzero(expected)):
        raise LeakError(
            f"The predictions in {out} are not one for every usable candidate of {store.path}. Start over "
            "with --force."
        )
    result: dict[str, Any] = {
        "pooled_folds": [fold.test for fold in scored],
        "missing_folds": [fold.test for fold in folds if fold not in scored],
        "metrics": binary_metrics(pooled["class"], pooled["logit"]),
        "no_skill": no_skill_metrics(pooled["class"]),
        "over_folds": _over_folds([entry["metrics"] for entry in about]),
        "folds": about,
    }
    if result["missing_folds"]:
        clear(out / EVALUATION)  # that of an earlier pool is not of this one
    write_csv(out / PREDICTIONS, pooled)
    write_json(out / METRICS, result)
    result["failures"] = failures
    if annotations is not None and not result["missing_folds"]:
        evaluation = evaluate_submission(
            out / PREDICTIONS,
            Reference(annotations, excluded, out / SERIES_UIDS),
            out / EVALUATION,
            force=True,
        )
        result |= {name: evaluation[name] for name in ("froc", "warnings")}
    return result


def _predictions(store: CubeStore, fold: Fold) -> pd.DataFrame:
    """A fold's predictions by row of the store, after what is on disk shows that its model never saw it."""
    used = load_settings(str(fold.run / "settings.toml"))
    differing = fold.settings.differences(used)
    if differing:
        raise LeakError(
            f"{fold.run} was not trained for its fold: {'; '.join(differing)}. Remove it, and go on with "
            "--resume."
        )
    _check_cubes(fold.run / "environment.json", store, f"Remove {fold.run}, and go on with --resume.")
    split = split_by_fold(store.candidates, used.split.validation_folds, used.split.test_folds)
    rows = store.candidates.iloc[split.test]
    path = fold.run / TEST_PREDICTIONS
    try:
        table = pd.read_csv(path, dtype={"seriesuid": str})
        points = [name for name in table.columns if name in rows.columns]
        is_same = len(points) == 5 and table[points].to_numpy().tolist() == rows[points].to_numpy().tolist()
        is_sound = is_same and bool(np.isfinite(table["logit"].to_numpy(float)).all())
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}. Remove it, and go on with --resume.") from error
    if not is_sound:
        raise LeakError(
            f"{path} does not hold each of the {len(rows)} usable candidates of fold {fold.test} once, in "
            "the order of the store. Remove it, and go on with --resume."
        )
    return table.set_axis(split.test)


def _about(fold: Fold, predictions: pd.DataFrame) -> dict[str, Any]:
    trained = json.loads((fold.run / METRICS).read_text(encoding="utf-8"))
    return {
        "fold": fold.test,
        "validation_fold": fold.validation,
        "seed": fold.settings.seed,
        "best_epoch": trained["best_epoch"],
        "diverged_in": trained["diverged_in"],
        "cubes": len(predictions),
        "nodules": int(predictions["class"].sum()),
        "metrics": binary_metrics(predictions["class"], predictions["logit"]),
    }


def _over_folds(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) of every metric but the counts, over the folds that have it."""
    table = pd.DataFrame(metrics).drop(columns=list(_COUNTS))
    spread = pd.DataFrame({"mean": table.mean(), "standard_deviation": table.std(), "folds": table.count()})
    return {str(name): {**row, "folds": int(row["folds"])} for name, row in spread.to_dict("index").items()}


def _failures(
    store: CubeStore, folds: Sequence[Fold], reasons: dict[int, str], about: Sequence[dict[str, Any]]
) -> list[tuple[int, str, str]]:
    """Rows of `failures.csv`: fold, status, reason."""
    failures = [(fold, FAILED, reason) for fold, reason in sorted(reasons.items()) if reason]
    for entry in about:
        if entry["diverged_in"] is not None:
            ending = f"its training diverged in epoch {entry['diverged_in']}"
            scored = f"the model of epoch {entry['best_epoch']} was scored"
            failures.append((entry["fold"], DIVERGED, f"{ending}; {scored}."))
    usable = store.candidates[store.candidates["status"] == OK]
    for fold in folds:
        classes = usable.loc[usable["fold"] == fold.test, "class"].unique()
        if len(classes) == 1:
            kind = "nodule" if classes[0] == 0 else "look-alike"
            ending = "it is scored and pooled, but has not all metrics, and another chose an epoch for it"
            failures.append((fold.test, ONE_CLASS, f"No cube of the fold is a {kind}: {ending}."))
    return failures
