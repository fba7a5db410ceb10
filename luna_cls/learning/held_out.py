"""Models that are each trained without some folds and then score them, in one process, several, a cluster."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.cubes.folds import LeakError, Split, split_by_fold
from luna_cls.cubes.store import OK, CubeStore
from luna_cls.errors import InputError
from luna_cls.files import alone_in, clear, is_empty, kept_until_done, read_json, require_new, write_csv
from luna_cls.judging.submission import read_annotations
from luna_cls.processes import check_workers, run_apart, run_on_cluster
from luna_cls.settings import LAST_EPOCH, Settings, SplitSettings, load_settings
from luna_cls.startup import load_tensorflow_quietly

TEST_PREDICTIONS, VALIDATION_PREDICTIONS, HISTORY, METRICS = (
    "test_predictions.csv",
    "validation_predictions.csv",
    "history.csv",
    "metrics.json",
)
FAILED, DIVERGED = "failed", "diverged"

_PAUSE = ".pause"
_ONE_AT_A_TIME = threading.Lock()  # a training takes all of a Dask worker, however many threads it has
_LOST = (
    "Its process ended before it could say why, most likely for want of memory. Go on with --resume, with "
    "fewer trainings at a time."
)


@dataclass(frozen=True)
class Turn:
    """Folds that are tested together.

    Args:
        test: Those that are scored.
        validation: Those that choose the epoch; none where too few are left. The test folds, whose metrics
            are shown after each epoch then, choose nothing: the last epoch is kept.
    """

    test: tuple[int, ...]
    validation: tuple[int, ...]

    def __str__(self) -> str:
        return f"fold{'s'[: len(self.test) > 1]} {', '.join(map(str, self.test))}"

    def to_json(self) -> dict[str, Any]:
        """What JSON files hold of it."""
        return {"test_folds": self.test, "validation_folds": self.validation}

    def of(self, settings: Settings) -> Settings:
        """The settings of a run of this turn."""
        if self.validation:
            split = SplitSettings(validation_folds=self.validation, test_folds=self.test)
            return settings.model_copy(update={"split": split})
        # What validates then is what tests, and chooses nothing.
        training = settings.training.model_copy(update={"monitor": LAST_EPOCH, "patience": None})
        split = SplitSettings(validation_folds=self.test, test_folds=())
        return settings.model_copy(update={"split": split, "training": training})

    def rows(self, candidates: pd.DataFrame) -> Split:
        """Rows of a store's table that train, choose the epoch and test.

        Raises:
            InputError: If a set is empty.
            LeakError: If a scan is in two of them.
        """
        if self.validation:
            return split_by_fold(candidates, self.validation, self.test)
        split = split_by_fold(candidates, self.test)
        return Split(train=split.train, validation=split.test, test=split.validation)


@dataclass(frozen=True)
class Training:
    """One model of many.

    Args:
        name: What its lines begin with.
        turn: What it is tested on.
        run: Its folder.
        settings: Those of the run.
        until_epoch: After how many epochs it is to pause, for now; None for none.
    """

    name: str
    turn: Turn
    run: Path
    settings: Settings
    until_epoch: int | None = None

    @property
    def is_scored(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run / TEST_PREDICTIONS).is_file()

    @property
    def epochs_done(self) -> int:
        """Rows of its history so far."""
        return len(self.history())

    def history(self) -> pd.DataFrame:
        """A row for every epoch done; empty if there is none.

        Raises:
            InputError: If it is damaged.
        """
        path = self.run / HISTORY
        if not path.is_file():
            return pd.DataFrame()
        try:
            table = pd.read_csv(path)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}). {self.advice}") from error
        if table["epoch"].tolist() != list(range(1, len(table) + 1)):
            raise InputError(f"{path} does not hold every epoch once. {self.advice}")
        return table

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for now."""
        return self.is_scored or (self.until_epoch is not None and self.epochs_done >= self.until_epoch)

    @property
    def has_learned(self) -> bool:
        """Whether there is something to go on from."""
        return any(self.run.glob("checkpoint/*.npz"))

    def about(self) -> dict[str, Any]:
        """What its metrics.json says."""
        path = self.run / METRICS
        try:
            found = read_json(path.read_bytes(), str(path))
        except (OSError, InputError) as error:
            raise InputError(f"{path} cannot be read. {self.advice}") from error
        if not {"best_epoch", "diverged_in"} <= found.keys():
            raise InputError(f"{path} is damaged: it tells no best epoch. {self.advice}")
        return found

    @property
    def advice(self) -> str:
        """What to do with one that is damaged."""
        return f"Remove {self.run}, and go on with --resume."


def divergence(about: Mapping[str, Any]) -> str | None:
    """What became of a training that diverged, from what `Training.about` tells; None if it did not."""
    if about["diverged_in"] is None:
        return None
    return (
        f"its training diverged in epoch {about['diverged_in']}; the model of epoch "
        f"{about['best_epoch']} was scored."
    )


@dataclass(frozen=True)
class Means:
    """What many trainings are run with.

    Args:
        workers: How many at a time, each in a process of its own; None for one after the other in this.
        dask: Address of a Dask scheduler whose workers do it, and see all at the same paths.
        asked_to_stop: Looked at after every step: once it is true, those at work save where they stand.
        say: Prints a line of progress.

    Raises:
        InputError: If both are given, or `workers` is not positive.
    """

    workers: int | None = None
    dask: str | None = None
    asked_to_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if self.dask is not None and self.workers is not None:
            raise InputError("--workers and --dask exclude each other: a Dask cluster has its own workers.")


@dataclass(frozen=True)
class Workshop:
    """The folder of a command that trains many models, and goes on with them.

    Args:
        command: The command's name.
        store: The cubes.
        path: The folder.
        settings_file: In it, the settings that all share.
        sign: In it, the JSON file that says what was begun; holds the store's checksum.
        options: What the command was given that going on takes, too, by name.
    """

    command: str
    store: CubeStore
    path: Path
    settings_file: str
    sign: str
    options: dict[str, Any]
    _looked_at: set[Training] = field(default_factory=set, compare=False)

    @property
    def go_on(self) -> str:
        """The command that goes on."""
        options = "".join(f" --{name} {quote(str(value))}" for name, value in self.options.items() if value)
        return (
            f"luna-cls {self.command} {quote(str(self.store.path))} {quote(str(self.path))} --resume{options}"
        )

    def is_begun(self, settings: Settings, inputs: Sequence[Path], *, force: bool, resume: bool) -> bool:
        """Whether it was begun before and is to be gone on with; writes nothing.

        Raises:
            InputError: If it exists and is not to be replaced or resumed, or was begun with other settings
                or cubes.
        """
        found = (self.path / self.sign).is_file() and not force
        if found and not resume:
            raise InputError(
                f"{self.path} exists already. Pass --resume to go on with it, --force to start it over, or "
                "choose another path."
            )
        if not found:
            if not (resume and is_empty(self.path)):
                require_new(self.path, force=force, sign=self.sign, inputs=[self.store.path, *inputs])
            return False
        settings.check_begun_with(load_settings(str(self.path / self.settings_file)), self.path)
        check_cubes(self.path / self.sign, self.store, "Start over with --force.")
        return True

    @contextmanager
    def entered(
        self, trainings: Sequence[Training], begin: Callable[[], None], *, is_begun: bool
    ) -> Iterator[None]:
        """Nobody else is at work in it in the block; if no model begins to learn, all is as it was before.

        Args:
            trainings: All there may be.
            begin: Makes the folder.
            is_begun: Whether that was done before.

        Raises:
            InputError: If another process is at work in it.
        """
        taken = (
            f"Another {self.command} is at work in {self.path}. Let it end, or stop it, before you go on "
            "with it."
        )

        def have_learned() -> bool:
            return any(training.has_learned for training in trainings)

        with suppress(_NothingLearned), ExitStack() as stack:
            if not is_begun:
                if self.path.is_dir():
                    stack.enter_context(alone_in(self.path, taken))
                # Once a model has begun to learn, it is worth more than what was there before.
                stack.enter_context(kept_until_done(self.path, have_learned))
                begin()
                stack.enter_context(_taken_back(self.path, have_learned))
            stack.enter_context(alone_in(self.path, taken))
            yield

    def train(
        self, trainings: Sequence[Training], means: Means, *, is_begun: bool
    ) -> dict[Training, str] | None:
        """Trains and scores what is left to do.

        Returns:
            Why those that are not done failed; None if it was asked to stop before all were done.
        """
        reasons: dict[Training, str] = {}
        for training, reason in self._run_all(trainings, means):
            reasons[training] = reason
            if reason and any(each.has_learned for each in trainings):  # else it may be one fault of all
                means.say(f"{training.name}: failed: {reason}")
        left = [training for training in trainings if not training.is_done]
        if left and means.asked_to_stop():
            if not is_begun and not any(training.has_learned for training in trainings):
                means.say("Asked to stop before anything was learned: nothing was changed.")
                raise _NothingLearned
            means.say(f"Asked to stop. {self.go_on} goes on from there.")
            return None
        stopped = f"It was asked to stop, but not by {self.command}. Go on with --resume."
        return {training: reasons.get(training) or stopped for training in left}

    def _run_all(
        self, trainings: Sequence[Training], means: Means
    ) -> Generator[tuple[Training, str], None, None]:
        """Yields each as it ends, in any order, and what failed."""
        jobs = []
        for training in trainings:
            if training.is_scored and training not in self._looked_at:
                predictions(self.store, training)  # what is wrong with it is better known before the rest
                means.say(f"{training.name}: finished already")
            if not training.is_done:
                jobs.append(_Job(training, self.store.path.absolute(), self.path.absolute(), self.go_on))
        self._looked_at.update(trainings)
        if means.dask is not None and jobs:
            yield from _run_on_cluster(jobs, means)
        elif means.workers is not None:
            # As many shares however many are left: the number of cores decides the last digits.
            shares = min(means.workers, len(trainings))
            for job, reason in run_apart(_run_apart, jobs, shares, means.asked_to_stop):
                yield job.training, _LOST if reason is None else reason
        else:
            for job in jobs:
                yield job.training, _run(job, means.asked_to_stop, means.say)


def plan_turns(store: CubeStore, tested: Sequence[Sequence[int]] | None = None) -> list[Turn]:
    """Folds to test together, each with the next that has both classes to choose the epoch.

    Where no fold is left to train on if one chooses, none does.

    Args:
        store: The cubes. Folds without usable ones are left out.
        tested: Folds to test together, in turn; None for each fold by itself.

    Raises:
        InputError: If a fold is tested twice, or there are no cubes to test or to train on.
        LeakError: If a scan is in two folds.
    """
    usable = store.candidates[store.candidates["status"] == OK]
    classes = usable.groupby("fold")["class"].nunique()
    folds = sorted(classes.index.tolist())
    of_both = [fold for fold in folds if classes[fold] == 2]
    wanted = [[fold] for fold in folds] if tested is None else [sorted(group) for group in tested]
    named = [fold for group in wanted for fold in group]
    if len(set(named)) < len(named):
        twice = next(fold for fold in named if named.count(fold) > 1)
        raise InputError(f"Fold {twice} would be tested twice. Name it once.")
    turns = []
    for group in wanted:
        test = tuple(fold for fold in group if fold in folds)
        if not test:
            raise InputError(
                f"{store.path} has no usable cube in folds {', '.join(map(str, group))}, only in "
                f"{', '.join(map(str, folds))}. Test some of those."
            )
        others = [fold for fold in of_both if fold not in test]
        following = [fold for fold in others if fold > max(test)] or others
        if not others:
            raise InputError(
                f"Only folds {', '.join(map(str, test))} of {store.path} have nodules and others: there is "
                "nothing to train on but what is tested. Prepare more scans, or test fewer folds."
            )
        turn = Turn(test, tuple(following[:1]) if len(others) > 1 else ())
        turn.rows(store.candidates)
        turns.append(turn)
    return turns


def check_annotations(
    store: CubeStore,
    annotations: Path | None,
    excluded: Path | None,
    series_uids: Sequence[str] | None = None,
) -> None:
    """Finds out before the training, not after it, that they cannot be scored against.

    Args:
        store: The cubes.
        annotations: CSV of the nodules.
        excluded: CSV of findings to ignore.
        series_uids: The scans to be tested; None for all of the store.

    Raises:
        InputError: If so.
    """
    if annotations is None:
        if excluded is not None:
            raise InputError(
                "--excluded goes with --annotations: it names findings that CPM ignores. Give both."
            )
        return
    nodules = read_annotations(annotations)
    if excluded is not None:
        read_annotations(excluded, "excluded findings")
    tested = store.series_uids if series_uids is None else series_uids
    if not nodules["seriesuid"].isin(tested).any():
        which = "a scan" if series_uids is None else "a tested scan"
        raise InputError(
            f"No nodule in {annotations} is in {which} of {store.path}: sensitivity is not defined. Give the "
            "annotations of its scans."
        )


def check_cubes(about: Path, store: CubeStore, advice: str) -> None:
    """Refuses what was begun with other cubes than the store holds, by the checksum in its JSON file.

    Raises:
        InputError: If so, or if it cannot be read.
    """
    try:
        checksum = json.loads(about.read_text(encoding="utf-8"))["store"]["checksum"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about} cannot be read: {error!r}. {advice}") from error
    store.check_begun_with(checksum, about.parent)


def predictions(store: CubeStore, training: Training) -> pd.DataFrame:
    """What a model says of its test folds, by row of the store.

    What is on disk must show that the model never saw them.

    Raises:
        InputError: If they cannot be read.
        LeakError: If they are not of a model that was trained for these folds, or not of these candidates.
    """
    run = training.run
    try:
        used = load_settings(str(run / "settings.toml"))
    except InputError as error:
        raise InputError(f"{run} has no settings that can be read. {training.advice}") from error
    differing = training.settings.differences(used)
    if differing:
        raise LeakError(f"{run} was not trained for its fold: {'; '.join(differing)}. {training.advice}")
    check_cubes(run / "environment.json", store, training.advice)
    rows = training.turn.rows(store.candidates).test
    return _read(store, training, TEST_PREDICTIONS, rows, str(training.turn))


def validation_predictions(store: CubeStore, training: Training) -> pd.DataFrame:
    """What a model says of the folds that chose its epoch, by row of the store.

    Raises:
        InputError: If they cannot be read.
        LeakError: If they are not of these candidates.
    """
    rows = training.turn.rows(store.candidates).validation
    return _read(store, training, VALIDATION_PREDICTIONS, rows, "its validation folds")


def _read(
    store: CubeStore, training: Training, name: str, places: NDArray[np.int64], folds: str
) -> pd.DataFrame:
    rows = store.candidates.iloc[places]
    path = training.run / name
    try:
        table = pd.read_csv(path, dtype={"seriesuid": str})
        points = [column for column in table.columns if column in rows.columns]
        is_same = len(points) == 5 and table[points].to_numpy().tolist() == rows[points].to_numpy().tolist()
        is_sound = is_same and bool(np.isfinite(table["logit"].to_numpy(float)).all())
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}. {training.advice}") from error
    if not is_sound:
        raise LeakError(
            f"{path} does not hold each of the {len(rows)} usable candidates of {folds} once, in the order "
            f"of the store. {training.advice}"
        )
    return table.set_axis(places)


def pooled(store: CubeStore, parts: Sequence[pd.DataFrame], turns: Sequence[Turn], out: Path) -> pd.DataFrame:
    """What several models say, each of its own folds, in the order of the store.

    Raises:
        LeakError: If that is not every usable candidate of these folds once.
    """
    table = pd.concat(parts).sort_index()
    tested = [fold for turn in turns for fold in turn.test]
    expected = (store.candidates["status"] == OK) & store.candidates["fold"].isin(tested)
    if not np.array_equal(table.index, np.flatnonzero(expected)):
        raise LeakError(
            f"The predictions in {out} are not one for every usable candidate of {store.path}. Start over "
            "with --force."
        )
    return table


class _NothingLearned(Exception):  # noqa: N818
    """It was asked to stop before any model had begun to learn."""


@contextmanager
def _taken_back(path: Path, is_of_use: Callable[[], bool]) -> Iterator[None]:
    """Removes the folder if the block fails before it is of use."""
    try:
        yield
    except BaseException:
        if not is_of_use():
            clear(path)
        raise


@dataclass(frozen=True)
class _Job:
    """What another process must know of a training."""

    training: Training
    store: Path
    folder: Path
    go_on: str


def _run(job: _Job, asked_to_stop: Callable[[], bool], say: Callable[[str], None]) -> str:
    """Trains a model, or goes on with it, and scores its folds; tells why it failed, if it did."""
    if asked_to_stop():
        return ""
    try:
        _train_and_score(job, asked_to_stop, say)
    except InputError as error:
        return " ".join(str(error).split())
    except Exception as error:  # days of training of the others must not hang on it
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _train_and_score(job: _Job, asked_to_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Does so, unless it is asked to stop or is to pause before its end."""
    load_tensorflow_quietly()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of more than a few models in a process
    from luna_cls.cubes.batches import ordered_batches
    from luna_cls.learning import models
    from luna_cls.learning.training import MODEL, logits_of, predictions_table, train

    training, store = job.training, CubeStore.open(job.store)
    result = train(
        store,
        training.settings,
        training.run,
        resume=True,
        until_epoch=training.until_epoch,
        asked_to_stop=asked_to_stop,
        go_on=job.go_on,
        say=lambda line: say(f"{training.name}: {line}"),
    )
    if result is None:
        return
    tested = training.turn.rows(store.candidates).test
    model = models.load(training.run / MODEL)
    seen = store.seen_as(model.input_shape[1])
    batches = ordered_batches(seen, tested, training.settings.training.batch_size)
    logits = logits_of(model, batches).astype(np.float64)
    if not np.isfinite(logits).all():
        raise InputError("Its model gives logits that are not finite. Lower optimizer.learning_rate.")
    table = predictions_table(store.candidates.iloc[tested], logits)
    write_csv(training.run / TEST_PREDICTIONS, table)


def _run_apart(job: _Job, asked_to_stop: Callable[[], bool]) -> str:
    return _run(job, asked_to_stop, _say_on_stderr)


def _run_on_worker(job: _Job) -> tuple[Training, str]:
    """In a process of its own: Dask's threads draw random numbers, and would spoil the seed."""
    is_to_pause = (job.folder / _PAUSE).exists
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # may have a child
    with _ONE_AT_A_TIME:
        if is_to_pause():
            return job.training, ""
        ((_, reason),) = run_apart(_run_apart, [job], 1, is_to_pause)
        return job.training, _LOST if reason is None else reason


def _lost_on_cluster(job: _Job) -> tuple[Training, str]:
    return job.training, "Four workers of the cluster were lost over it, most likely for want of memory."


def _say_on_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # in one piece, so that lines of several processes do not mix
    sys.stderr.flush()


def _run_on_cluster(jobs: Sequence[_Job], means: Means) -> Generator[tuple[Training, str], None, None]:
    """Gives trainings to the workers of a cluster, which look at a file to know whether to pause."""
    folder, address = jobs[0].folder, str(means.dask)
    pause, is_over = folder / _PAUSE, threading.Event()
    pause.unlink(missing_ok=True)

    def pass_on() -> None:
        while not is_over.wait(0.5):
            if means.asked_to_stop():
                pause.touch()
                return

    messenger, ended = threading.Thread(target=pass_on, daemon=True), 0
    messenger.start()
    try:
        folders = [folder, jobs[0].store]
        for training, reason in run_on_cluster(_run_on_worker, jobs, address, folders, _lost_on_cluster):
            ended += 1
            if training.is_scored:
                means.say(f"{training.name}: done")
            yield training, reason
    finally:
        is_over.set()
        messenger.join()
        if ended < len(jobs):
            pause.touch()  # for those that are at work still
