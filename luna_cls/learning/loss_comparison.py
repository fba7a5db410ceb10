"""Which loss? The same folds, seeds, first weights, order of data and budget for each, and a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import json_text, read_json, sha256, whole_folder, write_json, write_text
from luna_cls.judging.comparison import deciding_metric
from luna_cls.judging.resampling import RESAMPLES
from luna_cls.judging.submission import Reference
from luna_cls.learning import tuning
from luna_cls.learning.contest import ASKED, EACH, Contest, Entrant, Place, Planned, Tried
from luna_cls.learning.held_out import Means, Turn, Workshop, check_annotations, plan_turns
from luna_cls.learning.loss_results import clear_results, judge, tested_scans
from luna_cls.processes import run_apart
from luna_cls.settings import LAST_EPOCH, LossSettings, Settings, SplitSettings
from luna_cls.startup import load_tensorflow_quietly

SETTINGS = "compare.toml"


def compare_losses(
    store: CubeStore,
    settings: Settings,
    contest: Contest,
    out: str | Path,
    *,
    annotations: Path | None = None,
    excluded: Path | None = None,
    resamples: int = RESAMPLES,
    means: Means | None = None,
    force: bool = False,
    resume: bool = False,
) -> dict[str, Any] | None:
    """Trains a model with every loss, from every seed, for every turn, and compares them on unseen folds.

    Runs of one seed and turn differ in the loss alone: they begin with the same weights and see the same
    cubes in the same order, equally augmented, for as many steps (unless `training.patience` ends one early).

    `out` holds `compare.toml` (the settings of all runs), `compare.json` (what was asked), `runs/LOSS/...`
    (each the folder of an ordinary run), `predictions/` (of each loss and seed a LUNA16 submission),
    `seriesuids.csv` (the scans tested), `comparison.csv` (every metric of every loss, seed and turn at
    natural and at balanced prevalence), `comparison.json` and `failures.csv`.

    A training that fails does not stop the others. Seeds that not all losses have are not compared.

    Args:
        store: The cubes.
        settings: Those of every run, but for its loss, seed and split.
        contest: What is compared. An `out` that is gone on with may get other losses and more or fewer seeds:
            trainings that are done stay.
        out: The folder to make.
        annotations: CSV of the nodules, for FROC and CPM.
        excluded: CSV of findings to ignore.
        resamples: Bootstrap draws of the scans.
        means: What the trainings are run with.
        force: Replace `out` if it exists.
        resume: Go on with it if it exists.

    Returns:
        None if it paused; else what `comparison.json` holds, with `failures`, the rows of `failures.csv`.

    Raises:
        InputError: If an input is wrong, `out` exists and is not to be replaced or resumed, or was begun with
            other settings, folds, tuning or cubes, or no two losses could be trained.
        LeakError: If a scan is in two folds, or a score is of a scan that its model has seen.
    """
    out, means = Path(out), means or Means()
    if settings.distribution == "multihost":
        raise InputError(
            "compare trains each model in one process, and distribution = multihost is for several. Use "
            "mirrored, or --workers or --dask for several models at a time."
        )
    turns = _turns(store, settings, contest)
    scans = tested_scans(store, turns)
    _check(store, settings, contest, turns)
    check_annotations(store, annotations, excluded, scans)
    deciding_metric(contest.metric, has_annotations=annotations is not None)
    shared = _shared(settings, contest)
    options = {"workers": means.workers, "dask": means.dask, "annotations": annotations, "excluded": excluded}
    workshop = Workshop("compare", store, out, SETTINGS, ASKED, options)
    reference = {"annotations": annotations, "excluded": excluded}
    inputs = [path for path in reference.values() if path]
    is_begun = workshop.is_begun(shared, inputs, force=force, resume=resume)
    before = Contest.begun(out) if is_begun else None
    if before is not None:
        _check_same(before, contest, out)
        _check_reference(reference, out)
    planned = Planned(shared, contest, turns, out.absolute())
    if before != contest:
        _check_trainings(store, planned, means)
    about = {
        "store": {"checksum": store.checksum, "rows": len(store.candidates)},
        **contest.to_json(),
        "turns": [turn.to_json() for turn in turns],
        **{
            name: path and {"path": str(path.absolute()), "sha256": sha256(path)}
            for name, path in reference.items()
        },
    }

    def begin() -> None:
        with whole_folder(out) as folder:
            write_text(folder / SETTINGS, shared.to_toml())
            write_json(folder / ASKED, about)

    with workshop.entered(planned.everything(), begin, is_begun=is_begun):
        if is_begun and before != contest:
            clear_results(out)  # which were an answer to another question
            write_json(out / ASKED, about)
        means.say(planned.in_words())
        tried = _tune(workshop, planned, means, is_begun=is_begun)
        if tried is None:
            return None
        final = planned.final({key: found.chosen for key, found in tried.items()})
        reasons = workshop.train(list(final.values()), means, is_begun=is_begun)
        if reasons is None:
            return None
        return judge(
            store, planned, final, tried, reasons, Reference(annotations, excluded), scans, resamples, out
        )
    return None


def reference_of(out: Path) -> tuple[Path | None, Path | None]:
    """The annotations and excluded findings that a folder was begun with; None for what it was not."""
    path = out / ASKED
    about = read_json(path.read_bytes(), str(path)) if path.is_file() else {}
    found = [(about.get(name) or {}).get("path") for name in ("annotations", "excluded")]
    annotations, excluded = (None if name is None else Path(name) for name in found)
    return annotations, excluded


def _turns(store: CubeStore, settings: Settings, contest: Contest) -> list[Turn]:
    split = settings.split
    if contest.tested is None and split.test_folds:
        turn = Turn(split.test_folds, split.validation_folds)
        if not len(turn.rows(store.candidates).test):
            raise InputError(
                f"{store.path} has no usable cube in the test folds of the settings, "
                f"{', '.join(map(str, split.test_folds))}. Name others with --folds."
            )
        return [turn]
    return plan_turns(store, None if contest.tested == EACH else contest.tested)


def _shared(settings: Settings, contest: Contest) -> Settings:
    """What all runs have in common."""
    update: dict[str, Any] = {"loss": LossSettings()}
    if contest.tested is not None or not settings.split.test_folds:
        update["split"] = SplitSettings(validation_folds=(), test_folds=())
    return settings.model_copy(update=update)


def _check(store: CubeStore, settings: Settings, contest: Contest, turns: Sequence[Turn]) -> None:
    """Refuses what can be seen of the settings and the store alone."""
    monitor = settings.training.monitor
    if monitor == "val_loss":
        raise InputError(
            "training.monitor = val_loss is another metric for every loss. Keep the best epoch by one that "
            "is the same for all, as val_average_precision, or the last: epoch."
        )
    if contest.tuning is not None:
        without = [turn for turn in turns if not turn.validation]
        if without:
            raise InputError(
                f"Tuning chooses on validation folds, and with {without[0]} tested no fold is left for that. "
                "Leave --tune off, or prepare more scans."
            )
        if monitor == LAST_EPOCH:
            raise InputError(
                "Tuning goes by training.monitor, and the last epoch says nothing. Set a validation metric."
            )
    labels = np.concatenate([store.labels[turn.rows(store.candidates).test] for turn in turns])
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"The tested folds of {store.path} hold {len(labels)} candidates of class {labels[0]} and none "
            "of the other: nothing can be measured on them. Test others."
        )


def _check_same(before: Contest, now: Contest, out: Path) -> None:
    """Losses and seeds may come and go; what decides what a run is, or is scored on, may not."""
    old, new = before.to_json(), now.to_json()
    for key, word in (("tested", "--folds"), ("tuning", "--tune"), ("metric", "--metric")):
        if json_text(old[key]) != json_text(new[key]):
            raise InputError(
                f"{out} was begun with another {word}: it was {json.dumps(old[key])}, is "
                f"{json.dumps(new[key])}. To go on with its own, give --resume alone; or choose another path."
            )


def _check_reference(reference: Mapping[str, Path | None], out: Path) -> None:
    """Refuses other annotations: they decide."""
    path = out / ASKED
    about = read_json(path.read_bytes(), str(path))
    for name, given in reference.items():
        before = about.get(name)
        if (before and before["sha256"]) != (given and sha256(given)):
            raise InputError(
                f"{out} was begun with --{name} {before['path'] if before else 'left off'}. Received: "
                f"{given or 'none'}. To go on with its own, give --resume alone; luna-cls evaluate scores "
                "predictions against others."
            )


def _check_trainings(store: CubeStore, planned: Planned, means: Means) -> None:
    """Builds what every training builds, before the first: a loss that does not fit costs no night.

    In a process of its own where others do the training, so that this one takes no GPU.
    """
    contest, seed = planned.contest, planned.seeds[0]
    job = [
        (entrant.label, planned.training(Place(entrant, seed, turn), tried).settings)
        for entrant in contest.entrants
        for tried in planned.tries(entrant)
        for turn in (planned.turns if entrant is contest.entrants[0] else planned.turns[:1])
    ]
    work = store.path.absolute(), job
    if means.workers is None and means.dask is None:
        refusal: str | None = _refusal(work, means.asked_to_stop)
    else:
        ((_, refusal),) = run_apart(_refusal, [work], 1)
    if refusal is None:
        raise InputError("No model could be built: its process was ended, most likely for want of memory.")
    if refusal:
        raise InputError(refusal)


def _refusal(work: tuple[Path, list[tuple[str, Settings]]], _asked_to_stop: Callable[[], bool]) -> str:
    """What the first of these trainings would stumble over, or which two are the same; empty if none."""
    load_tensorflow_quietly()
    from luna_cls.learning.training import check

    path, trainings = work
    store, label_of = CubeStore.open(path), dict[str, str]()
    for label, settings in trainings:
        try:
            loss = json_text({settings.loss.name: check(store, settings)})
        except InputError as error:
            return f"{label}: {error}"
        same = label_of.setdefault(loss, label)
        if same != label:
            return f"{same} and {label} are the same loss. Name it once."
    return ""


def _tune(
    workshop: Workshop, planned: Planned, means: Means, *, is_begun: bool
) -> dict[tuple[Entrant, Turn], Tried] | None:
    """Tries parameters for each loss and turn, with the first seed; None if it was asked to stop.

    A choice rests on the validation folds of its turn alone: those of another turn may be its test folds.
    """
    contest, epochs = planned.contest, planned.settings.training.epochs
    keys = [(entrant, turn) for turn in planned.turns for entrant in contest.entrants]
    if contest.tuning is None:
        return {key: Tried([{}], [epochs], [np.nan], 0) for key in keys}
    tries = planned.tries(contest.entrants[0])
    left = {key: list(range(len(tries))) for key in keys}
    reached = {key: [(0, float("-inf"))] * len(tries) for key in keys}
    failed: dict[tuple[tuple[Entrant, Turn], int], str] = {}
    monitor = planned.settings.training.monitor
    for rung in contest.tuning.rungs(len(tries), epochs):
        trained = {
            (key, place): planned.training(
                Place(key[0], planned.seeds[0], key[1]),
                planned.tries(key[0])[place],
                None if rung == epochs else rung,
            )
            for key in keys
            for place in left[key]
        }
        reasons = workshop.train(list(trained.values()), means, is_begun=is_begun)
        if reasons is None:
            return None
        for (key, place), training in trained.items():
            if training in reasons:
                reached[key][place] = training.epochs_done, float("-inf")
                failed[key, place] = reasons[training]
            else:
                reached[key][place] = training.epochs_done, tuning.score(training, monitor, rung)
        if rung < epochs:
            left = {
                key: [places[at] for at in tuning.better_half([reached[key][place][1] for place in places])]
                for key, places in left.items()
            }
    found = {}
    for key, places in left.items():
        best = max(places, key=lambda place: (reached[key][place][1], -place))
        done, scores = zip(*reached[key], strict=True)
        own = {place: failed[key, place] for place in range(len(tries)) if (key, place) in failed}
        found[key] = Tried(planned.tries(key[0]), done, scores, best, own)
    return found
