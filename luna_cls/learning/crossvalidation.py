"""Every fold is the test fold once: trained without it, and pooled into one set of honest scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from luna_cls.cubes.store import OK, CubeStore
from luna_cls.errors import InputError
from luna_cls.files import clear, whole_folder, write_csv, write_json, write_text
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.judging.submission import Reference
from luna_cls.learning.held_out import (
    DIVERGED,
    FAILED,
    METRICS,
    Means,
    Training,
    Turn,
    Workshop,
    check_annotations,
    divergence,
    pooled,
    predictions,
)
from luna_cls.settings import Settings, SplitSettings

SETTINGS, ABOUT, PREDICTIONS, SERIES_UIDS, FAILURES, EVALUATION = (
    "crossval.toml",
    "crossval.json",
    "predictions.csv",
    "seriesuids.csv",
    "failures.csv",
    "evaluation",
)
ONE_CLASS = "one_class"

_COUNTS = ("tp", "fp", "tn", "fn")


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
    means = Means(workers, dask, asked_to_stop, say)
    check_annotations(store, annotations, excluded)
    if settings.distribution == "multihost":
        raise InputError(
            "crossval trains each fold in one process, and distribution = multihost is for several. Use "
            "mirrored, or --workers or --dask for several folds at a time."
        )
    settings = settings.model_copy(update={"split": SplitSettings(validation_folds=(), test_folds=())})
    folds = plan_folds(store, settings, out.absolute())
    options = {"workers": workers, "dask": dask, "annotations": annotations, "excluded": excluded}
    workshop = Workshop("crossval", store, out, SETTINGS, ABOUT, options)
    inputs = [path for path in (annotations, excluded) if path]
    is_begun = workshop.is_begun(settings, inputs, force=force, resume=resume)
    with workshop.entered(folds, lambda: _begin(out, store, settings, folds), is_begun=is_begun):
        reasons = workshop.train(folds, means, is_begun=is_begun)
        if reasons is not None:
            return _pool(store, folds, reasons, out, annotations, excluded)
    return None


def plan_folds(store: CubeStore, settings: Settings, out: Path) -> list[Training]:
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
        turn = Turn((test,), tuple([fold for fold in choosing if fold > test] or choosing)[:1])
        turn.rows(store.candidates)
        own = turn.of(settings.model_copy(update={"seed": (settings.seed + test) % 2**32}))
        planned.append(Training(str(turn), turn, out / f"fold{test}", own))
    return planned


def _begin(out: Path, store: CubeStore, settings: Settings, folds: Sequence[Training]) -> None:
    """Makes the folder."""
    about = {
        "store": {"checksum": store.checksum, "rows": len(store.candidates)},
        "folds": [
            {
                "test_fold": fold.turn.test[0],
                "validation_fold": fold.turn.validation[0],
                "seed": fold.settings.seed,
            }
            for fold in folds
        ],
    }
    with whole_folder(out) as folder:
        write_text(folder / SETTINGS, settings.to_toml())
        write_text(folder / SERIES_UIDS, "".join(f"{uid}\n" for uid in store.series_uids))
        write_json(folder / ABOUT, about)


def _pool(
    store: CubeStore,
    folds: Sequence[Training],
    reasons: Mapping[Training, str],
    out: Path,
    annotations: Path | None,
    excluded: Path | None,
) -> dict[str, Any]:
    """Writes what all folds say together."""
    scored = [fold for fold in folds if fold.is_scored]
    own = [predictions(store, fold) for fold in scored]
    about = [_about(fold, table) for fold, table in zip(scored, own, strict=True)]
    failures = _failures(store, folds, reasons, about)
    write_csv(out / FAILURES, pd.DataFrame(failures, columns=["fold", "status", "reason"]))
    if not scored:
        raise InputError(f"Not one fold could be trained. The first reason: {failures[0][2]}")
    table = pooled(store, own, [fold.turn for fold in scored], out)
    result: dict[str, Any] = {
        "pooled_folds": [fold.turn.test[0] for fold in scored],
        "missing_folds": [fold.turn.test[0] for fold in folds if fold not in scored],
        "metrics": binary_metrics(table["class"], table["logit"]),
        "no_skill": no_skill_metrics(table["class"]),
        "over_folds": _over_folds([entry["metrics"] for entry in about]),
        "folds": about,
    }
    if result["missing_folds"]:
        clear(out / EVALUATION)  # that of an earlier pool is not of this one
    write_csv(out / PREDICTIONS, table)
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


def _about(fold: Training, own: pd.DataFrame) -> dict[str, Any]:
    trained = fold.about()
    return {
        "fold": fold.turn.test[0],
        "validation_fold": fold.turn.validation[0],
        "seed": fold.settings.seed,
        "best_epoch": trained["best_epoch"],
        "diverged_in": trained["diverged_in"],
        "cubes": len(own),
        "nodules": int(own["class"].sum()),
        "metrics": binary_metrics(own["class"], own["logit"]),
    }


def _over_folds(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) of every metric but the counts, over the folds that have it."""
    table = pd.DataFrame(metrics).drop(columns=list(_COUNTS))
    spread = pd.DataFrame({"mean": table.mean(), "standard_deviation": table.std(), "folds": table.count()})
    return {str(name): {**row, "folds": int(row["folds"])} for name, row in spread.to_dict("index").items()}


def _failures(
    store: CubeStore,
    folds: Sequence[Training],
    reasons: Mapping[Training, str],
    about: Sequence[Mapping[str, Any]],
) -> list[tuple[int, str, str]]:
    """Rows of `failures.csv`: fold, status, reason."""
    failures = [(fold.turn.test[0], FAILED, reasons[fold]) for fold in folds if fold in reasons]
    for entry in about:
        if words := divergence(entry):
            failures.append((entry["fold"], DIVERGED, words))
    usable = store.candidates[store.candidates["status"] == OK]
    for fold in folds:
        (test,) = fold.turn.test
        classes = usable.loc[usable["fold"] == test, "class"].unique()
        if len(classes) == 1:
            kind = "nodule" if classes[0] == 0 else "look-alike"
            ending = "it is scored and pooled, but has not all metrics, and another chose an epoch for it"
            failures.append((test, ONE_CLASS, f"No cube of the fold is a {kind}: {ending}."))
    return failures
