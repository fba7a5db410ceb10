"""Which loss? The same folds, seeds, first weights, order of data and budget for each, and a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import json_text, whole_folder, write_json, write_text
from luna_cls.judging.resampling import RESAMPLES
from luna_cls.judging.submission import Reference
from luna_cls.learning import tuning
from luna_cls.learning.contest import ASKED, Contest, Entrant, Place, Planned, Tried
from luna_cls.learning.held_out import Means, Turn, Workshop, check_annotations, plan_turns
from luna_cls.learning.loss_results import judge
from luna_cls.settings import LAST_EPOCH, LossSettings, Settings
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
    cubes in the same order, equally augmented, for as many steps.

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
    check_annotations(store, annotations, excluded)
    if settings.distribution == "multihost":
        raise InputError(
            "compare trains each model in one process, and distribution = multihost is for several. Use "
            "mirrored, or --workers or --dask for several models at a time."
        )
    turns = _turns(store, settings, contest)
    _check(settings, contest, turns, has_annotations=annotations is not None)
    shared = settings.model_copy(update={"loss": LossSettings()})
    options = {"workers": means.workers, "dask": means.dask, "annotations": annotations, "excluded": excluded}
    workshop = Workshop("compare", store, out, SETTINGS, ASKED, options)
    inputs = [path for path in (annotations, excluded) if path]
    is_begun = workshop.is_begun(shared, inputs, force=force, resume=resume)
    before = Contest.begun(out) if is_begun else None
    if before is not None:
        _check_same(before, contest, out)
    planned = Planned(shared, contest, turns, out.absolute())

    def begin() -> None:
        with whole_folder(out) as folder:
            write_text(folder / SETTINGS, shared.to_toml())
            _write_asked(folder, store, contest, turns)

    with workshop.entered(planned.all(), begin, is_begun=is_begun):
        if is_begun and before != contest:
            _write_asked(out, store, contest, turns)
        means.say(planned.in_words())
        tried = _tune(workshop, planned, means, is_begun=is_begun)
        if tried is None:
            return None
        final = planned.final({key: found.chosen for key, found in tried.items()})
        reasons = workshop.train(list(final.values()), means, is_begun=is_begun)
        if reasons is None:
            return None
        reference = Reference(annotations, excluded)
        return judge(store, planned, final, tried, reasons, reference, resamples, out)
    return None


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
    return plan_turns(store, contest.tested)


def _check(settings: Settings, contest: Contest, turns: Sequence[Turn], *, has_annotations: bool) -> None:
    """Refuses what all trainings would stumble over, before the first."""
    from luna_cls.judging.comparison import deciding_metric  # with SciPy's statistics

    if contest.tuning is not None:
        without = [turn for turn in turns if not turn.validation]
        if without:
            raise InputError(
                f"Tuning chooses on validation folds, and with {without[0]} tested no fold is left for that. "
                "Leave --tune off, or prepare more scans."
            )
        if settings.training.monitor == LAST_EPOCH:
            raise InputError(
                "Tuning goes by training.monitor, and the last epoch says nothing. Set a validation metric."
            )
    deciding_metric(contest.metric, has_annotations=has_annotations)
    load_tensorflow_quietly()
    from luna_cls.learning import losses

    for entrant in contest.entrants:
        for tried in contest.tuning.tries(entrant.loss) if contest.tuning else [{}]:
            given = entrant.with_parameters(tried)
            losses.get(given.name, (1, 1), (1.0, 1.0), **given.parameters)


def _check_same(before: Contest, now: Contest, out: Path) -> None:
    """Losses and seeds may come and go; what decides what a run is, or is scored on, may not."""
    old, new = before.to_json(), now.to_json()
    for key, word in (("tested", "--folds"), ("tuning", "--tune"), ("metric", "--metric")):
        if json_text(old[key]) != json_text(new[key]):
            raise InputError(
                f"{out} was begun with another {word}: it was {json.dumps(old[key])}, is "
                f"{json.dumps(new[key])}. To go on with its own, give --resume alone; or choose another path."
            )


def _write_asked(folder: Path, store: CubeStore, contest: Contest, turns: Sequence[Turn]) -> None:
    about = {
        "store": {"checksum": store.checksum, "rows": len(store.candidates)},
        **contest.to_json(),
        "turns": [turn.to_json() for turn in turns],
    }
    write_json(folder / ASKED, about)


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
        if workshop.train(list(trained.values()), means, is_begun=is_begun) is None:
            return None
        for (key, place), training in trained.items():
            reached[key][place] = rung, tuning.score(training, monitor, rung)
        if rung < epochs:
            left = {
                key: [places[at] for at in tuning.better_half([reached[key][place][1] for place in places])]
                for key, places in left.items()
            }
    found = {}
    for key, places in left.items():
        best = max(places, key=lambda place: (reached[key][place][1], -place))
        rungs, scores = zip(*reached[key], strict=True)
        found[key] = Tried(planned.tries(key[0]), rungs, scores, best)
    return found
