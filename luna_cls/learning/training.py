"""Trains one model on a cube store and leaves a run behind."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

from luna_cls.cubes.batches import check_margin, ordered_batches, training_batches
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.folds import Split, split_by_fold
from luna_cls.cubes.plan import Plan
from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, kept_until_done, write_csv, write_json
from luna_cls.judging.binary import no_skill_metrics
from luna_cls.learning import checkpoints, distribution, losses, models, runs
from luna_cls.learning.callbacks import (
    AmplificationRamp,
    BestModel,
    Checkpointing,
    ExactValidation,
    HistoryFile,
    JudgedModel,
    LearningRate,
    LiveProgress,
    Paused,
    PlainLines,
    validation_metrics,
)
from luna_cls.learning.checkpoints import Checkpoint
from luna_cls.learning.distribution import Devices
from luna_cls.learning.health import Course, TrainingHealth, diagnose_plan
from luna_cls.learning.input_wait import InputWait
from luna_cls.learning.losses import PerBatch, PerSample
from luna_cls.learning.metrics import streaming_metrics
from luna_cls.learning.optimizer import adamw
from luna_cls.learning.precision import set_policy
from luna_cls.learning.tensorboard import TensorBoardLog
from luna_cls.settings import LAST_EPOCH, Settings

MODEL = "model.keras"
PREDICTION_COLUMNS = (*POINT_COLUMNS, "probability", "logit", "class")


def train(
    store: CubeStore,
    settings: Settings,
    run: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    until_epoch: int | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    go_on: str | None = None,
    say: Callable[[str], None] = print,
    show: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any] | None:
    """Trains a model and writes the folder `run`.

    It holds `settings.toml`, `environment.json`, `history.csv` (a row an epoch), `tensorboard/`,
    `checkpoint/` (where the training stands), and of the best epoch `model.keras`,
    `validation_predictions.csv` and `metrics.json`.

    A run that was killed at any moment, or paused, and is then resumed ends with the very weights, history
    and predictions of one that never stopped, on a processor, with the same versions and number of cores.
    (With `mirrored`, paused within an epoch, the last digits of that epoch's training loss may differ.)

    Args:
        store: The cubes.
        settings: Everything else.
        run: The folder to make.
        force: Replace it if it exists.
        resume: Go on with it if it exists.
        until_epoch: After how many epochs to pause, if more are to follow.
        asked_to_stop: Looked at after every step: once it is true, the training saves where it stands, and
            pauses.
        go_on: The command that goes on with a paused run; None for `luna-cls train STORE RUN --resume`.
        say: Prints a line of progress.
        show: Told, some times a second, the steps done, all there are to be, and how it goes.

    Returns:
        None if it paused, or if this is not the first of several processes; else what `metrics.json` holds:
        `best_epoch` (from 1), `validation` and `no_skill` metrics, `health` (what `TrainingHealth` found) and
        `diverged_in` (the epoch that ended the training early, or None).

    Raises:
        InputError: If a setting does not fit the store, a set lacks one class, `run` exists and is not to be
            replaced or resumed, or it is to be resumed and was begun with other settings or cubes.
    """
    run = Path(run)
    computing = distribution.devices(settings.distribution)
    is_first = computing.process == 0
    say = say if is_first else _nothing
    is_begun = runs.check(run, store, settings, force=force, resume=resume)
    if is_begun and (run / runs.METRICS).is_file():
        say(f"{run} is finished already: nothing is left to do.")
        finished: dict[str, Any] = json.loads((run / runs.METRICS).read_text(encoding="utf-8"))
        return finished if is_first else None
    task = _task(store, settings, computing)
    with _entered(run, task, is_begun=is_begun, say=say) as (folder, start):
        for line in _opening(task, start):
            say(line)
        health, best, log, callbacks = _callbacks(
            task, folder, start, until_epoch, asked_to_stop, say, show if is_first else None
        )
        try:
            with closing(log):
                _fit(task, start, callbacks)
        except Paused as pause:
            if asked_to_stop():
                go_on = go_on or f"luna-cls train {store.path} {run} --resume"
                say(f"Asked to stop: saved {pause}. {go_on} goes on from there.")
            return None
        if not is_first:
            return None
        logits = logits_of(models.load(run / MODEL), task.validation).astype(np.float64)
        result = {
            "best_epoch": best.epoch + 1,
            "monitor": settings.training.monitor,
            "validation": validation_metrics(task.labels, logits, task.exact_loss),
            "no_skill": task.no_skill,
            "health": health.findings,
            "diverged_in": health.diverged_in,
        }
        table = predictions_table(store.candidates.iloc[task.split.validation], logits)
        write_csv(run / "validation_predictions.csv", table)
        write_json(run / runs.METRICS, result)
    return result


def check(store: CubeStore, settings: Settings) -> dict[str, Any]:
    """Finds out what a training would stumble over before its first step: builds all, writes nothing.

    Returns:
        The parameters of its loss, those not given included.

    Raises:
        InputError: As `train`, but for what `run` is.
    """
    return _task(store, settings, distribution.devices(settings.distribution)).loss.parameters


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to be trained: all that follows from the store and the settings, checked, and nothing written.

    Args:
        store: The cubes as the model reads them.
        settings: Everything else.
        computing: On what.
        policy: Keras' dtype policy.
        environment: What `runs.describe` says.
        model: The model that trains, compiled.
        judged: The model that is validated and kept.
        split: Which rows are for what.
        plan: Which training row is in which batch.
        loss: The one that trains.
        exact_loss: The same as it was given, for validation: a ramp moves the first one alone.
        metrics: Those that stream.
        shift: Added to the logits of the judged model, to mean natural prevalence.
        wait: How long training waits for batches.
        validation: Batches of the validation cubes.
        labels: Their classes `(n,)`.
        no_skill: What always saying *no* would get on them.
    """

    store: CubeStore
    settings: Settings
    computing: Devices
    policy: str
    environment: dict[str, Any]
    model: keras.Model
    judged: keras.Model
    split: Split
    plan: Plan
    loss: PerSample | PerBatch
    exact_loss: PerSample | PerBatch
    metrics: list[keras.metrics.Metric]
    shift: float
    wait: InputWait
    validation: tf.data.Dataset
    labels: NDArray[np.int64]
    no_skill: dict[str, float]


def _task(store: CubeStore, settings: Settings, computing: Devices) -> _Task:
    training = settings.training
    keras.utils.set_random_seed(settings.seed)
    policy = set_policy(settings.precision)
    with computing.building():
        model = models.get(settings.model.name, **settings.model.parameters)
        computing.join_statistics(model)
    judged = models.get(settings.model.name, **settings.model.parameters)
    judged.jit_compile = models.jit_compile()
    store = _seen(store, model)
    split = split_by_fold(store.candidates, settings.split.validation_folds, settings.split.test_folds)
    plan = _plan(store, split, settings)
    distribution.check_split(plan, computing.replicas)
    check_margin(store, settings.augmentation)
    loss, exact_loss = _loss(settings, plan), _loss(settings, plan)
    shift = _prior_shift(settings, plan, loss)
    is_natural = plan.positives_per_batch is None and plan.negatives_per_positive is None
    if is_natural and plan.batch_size > len(split.train):
        raise InputError(
            f"training.batch_size must be at most the number of training cubes, {len(split.train)}, unless "
            f"sampling says how many of a batch are nodules. Received: {plan.batch_size}."
        )
    labels = store.labels[split.validation]
    if len(set(labels.tolist())) < 2:
        raise InputError(
            f"The validation set has {len(labels)} cubes of class {labels[0]} and none of the other: "
            "nothing can be measured on it. Choose other validation folds."
        )
    no_skill = no_skill_metrics(labels)
    _check_monitor(training.monitor, no_skill)
    with computing.building():
        metrics = streaming_metrics()
        optimizer = adamw(settings.optimizer, training.epochs * plan.steps, training.ema)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, loss, metrics=metrics, jit_compile=models.jit_compile())
    return _Task(
        store=store,
        settings=settings,
        computing=computing,
        policy=policy,
        environment=runs.describe(store, settings, policy, plan),
        model=model,
        judged=judged,
        split=split,
        plan=plan,
        loss=loss,
        exact_loss=exact_loss,
        metrics=metrics,
        shift=shift,
        wait=InputWait(),
        validation=ordered_batches(store, split.validation, training.batch_size),
        labels=labels,
        no_skill=no_skill,
    )


def _callbacks(
    task: _Task,
    folder: Path,
    start: Checkpoint | None,
    until_epoch: int | None,
    asked_to_stop: Callable[[], bool],
    say: Callable[[str], None],
    show: Callable[[int, int, str], None] | None,
) -> tuple[TrainingHealth, BestModel, TensorBoardLog, list[keras.callbacks.Callback]]:
    """What happens between epochs, in the order of the list."""
    training, plan, course = task.settings.training, task.plan, _course(task)

    def logits() -> NDArray[np.float64]:
        with task.computing.apart():
            own = logits_of(task.judged, task.validation)
        return task.computing.of_first(own).astype(np.float64) + task.shift

    before = diagnose_plan(task.store.candidates, task.split, plan, course)
    health = TrainingHealth(say, task.judged, course, before)
    judging = JudgedModel(task.judged, health)
    best = BestModel(task.judged, folder / MODEL, training.monitor, training.patience, task.shift)
    exact = ExactValidation(logits, task.labels, task.exact_loss, health.restore)
    history = HistoryFile(folder / "history.csv")
    about = {
        "about": "\n\n".join(_opening(task, start)),
        "environment": f"```\n{json.dumps(task.environment, indent=2)}\n```",
    }
    log = TensorBoardLog(
        folder / "tensorboard",
        task.settings,
        about,
        task.store,
        task.split.validation,
        exact,
        health,
        best,
        history,
        task.wait,
        plan.batch_size,
    )
    callbacks = [
        *([AmplificationRamp(task.loss)] if isinstance(task.loss, losses.AnyLoss) else []),
        judging,
        exact,
        health,
        LearningRate(),
        best,
        history,
        log,
        PlainLines(say, training.epochs, plan.batch_size),
        *([LiveProgress(show, training.epochs, plan.steps, plan.batch_size)] if show else []),
        Checkpointing(
            folder / runs.CHECKPOINTS,
            plan.steps,
            judging,
            health,
            best,
            history,
            task.metrics,
            start,
            until_epoch,
            lambda: task.computing.any(asked_to_stop()),
        ),
    ]
    return health, best, log, callbacks


@contextmanager
def _entered(
    run: Path, task: _Task, *, is_begun: bool, say: Callable[[str], None]
) -> Iterator[tuple[Path, Checkpoint | None]]:
    """Where this process writes, and where the training stands.

    The first of several processes writes the run; what the others do in the same way, they do for themselves.
    """
    task.computing.wait()  # until all have looked at the run as it is
    with ExitStack() as stack:
        if task.computing.process:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            task.computing.wait()  # until the first has looked for checkpoints
            yield folder, checkpoints.newest(run / runs.CHECKPOINTS, say)
            task.computing.wait()  # until the first has written all: should one leave, all are ended
            return
        if not is_begun:
            if run.is_dir():
                stack.enter_context(runs.alone(run))  # nobody is at work in what is replaced
            # Once there is something to go on from, a run that fails is worth more than the one before it.
            stack.enter_context(kept_until_done(run, lambda: any((run / runs.CHECKPOINTS).glob("*.npz"))))
            run.mkdir(parents=True)
        stack.enter_context(runs.alone(run))
        start = runs.open_run(run, task.settings, task.environment, say)
        task.computing.wait()
        yield run, start
        task.computing.wait()


def _nothing(line: str) -> None:
    """Says nothing."""


def logits_of(model: keras.Model, batches: tf.data.Dataset) -> NDArray[np.float32]:
    """The logits `(n,)` of all cubes of some batches, in order."""
    return model.predict(batches, verbose=0).reshape(-1)


def predictions_table(candidates: pd.DataFrame, logits: NDArray[np.float64]) -> pd.DataFrame:
    """A LUNA16 submission of candidates `(n)` and their logits `(n,)`, with `class` where it is known."""
    # In float64, where probabilities stay apart up to a logit of 36; float32 ends at 17.
    table = candidates.assign(probability=1 / (1 + np.exp(-logits)), logit=logits)
    return table[[name for name in PREDICTION_COLUMNS if name in table.columns]]


def _fit(task: _Task, start: Checkpoint | None, callbacks: list[keras.callbacks.Callback]) -> None:
    training, plan, computing = task.settings.training, task.plan, task.computing
    if start is not None and start.is_over:
        return
    done, skipped = (start.epoch, start.step) if start is not None else (0, 0)
    # Keras wants as many steps in every epoch: what is left of one that was begun goes first, by itself.
    spans = [(range(done, done + 1), skipped)] if skipped else []
    spans.append((range(done + len(spans), training.epochs), 0))
    share = computing.process, computing.processes
    try:
        for epochs, skipped_steps in spans:
            if not epochs:
                break
            batches = training_batches(
                task.store, plan, epochs, task.settings.augmentation, skipped_steps, share
            )
            with computing.fitting():
                task.model.fit(
                    task.wait.measured(batches),
                    initial_epoch=epochs.start,
                    epochs=epochs.stop,
                    steps_per_epoch=plan.steps - skipped_steps,
                    callbacks=callbacks,
                    shuffle=False,  # the plan has shuffled
                    verbose=0,
                )
            if task.model.stop_training:
                break
    except tf.errors.ResourceExhaustedError as error:
        if "space left" in str(error):  # TensorFlow's way to say that a disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise InputError(
            f"The device has too little memory for batches of {training.batch_size}. "
            "Lower training.batch_size."
        ) from error


def _check_monitor(monitor: str, metrics: dict[str, float]) -> None:
    """Any validation metric that is always defined, and of which more is better; the loss; or the epoch."""
    no_goals = ("precision", "tp", "fp", "tn", "fn")
    known = [LAST_EPOCH, *(f"val_{name}" for name in ("loss", *metrics) if name not in no_goals)]
    if monitor not in known:
        raise InputError(f"Unknown training.monitor '{monitor}'. Known: {', '.join(known)}.")


def _seen(store: CubeStore, model: keras.Model) -> CubeStore:
    """The store's cubes as the model reads them."""
    if store.spec.spacing_mm != CubeSpec().spacing_mm:
        raise InputError(
            f"{store.path} holds cubes of {store.spec.spacing_mm} mm spacing. A model carries no spacing: "
            f"findings would be cut at {CubeSpec().spacing_mm} mm. Prepare the store at that."
        )
    return store.seen_as(model.input_shape[1])


def _plan(store: CubeStore, split: Split, settings: Settings) -> Plan:
    is_nodule = store.labels[split.train] == 1
    return Plan(
        negatives=split.train[~is_nodule],
        positives=split.train[is_nodule],
        batch_size=settings.training.batch_size,
        seed=settings.seed,
        steps_per_epoch=settings.training.steps_per_epoch,
        positives_per_batch=settings.sampling.positives_per_batch,
        negatives_per_positive=settings.sampling.negatives_per_positive,
    )


def _loss(settings: Settings, plan: Plan) -> PerSample | PerBatch:
    class_counts = len(plan.negatives), len(plan.positives)
    loss = losses.get(settings.loss.name, class_counts, plan.natural_weights, **settings.loss.parameters)
    if loss.parameters.get("categorical"):
        raise InputError(
            "loss.categorical is for the logits of a softmax; the model gives one. Leave it off."
        )
    weights = loss.get_config().get("class_weights")
    if weights is not None and len(weights) != 2:
        raise InputError(f"loss.class_weights takes two, of class 0 and class 1. Received: {weights}.")
    return loss


def _learned_shift(plan: Plan, loss: PerSample | PerBatch) -> float:
    """What to add to a logit learned on the plan's cubes with the loss's weights to undo both."""
    weight = loss.weight_of_a_nodule if isinstance(loss, PerSample) else 1.0
    return plan.prior_shift - math.log(weight)


def _prior_shift(settings: Settings, plan: Plan, loss: PerSample | PerBatch) -> float:
    """What to add to the logits of the model that is kept."""
    if not settings.sampling.correct_prior:
        return 0.0
    if isinstance(loss, PerBatch):
        raise InputError(
            f"sampling.correct_prior is for losses whose probabilities mean something; {settings.loss.name} "
            "sets its threshold at 1/2 itself. Leave it off, or choose bce."
        )
    return _learned_shift(plan, loss)


def _course(task: _Task) -> Course:
    plan, loss = task.plan, task.loss
    layers = task.model.layers
    momenta = [layer.momentum for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    return Course(
        steps_per_epoch=plan.steps,
        one_in=(len(plan.negatives) + len(plan.positives)) / len(plan.positives),
        favours_nodules=_learned_shift(plan, loss) < -0.01,
        corrects_prior=task.settings.sampling.correct_prior,
        loss=task.settings.loss.name,
        is_of_batch=isinstance(loss, PerBatch),
        is_proper=isinstance(loss, PerSample) and loss.is_proper,
        normalization_momentum=max(momenta, default=0.0),
    )


def _opening(task: _Task, start: Checkpoint | None) -> list[str]:
    split, plan, model = task.split, task.plan, task.model
    nodules = len(plan.positives)
    sizes = (
        f"{len(split.train)} training cubes, {nodules} of them nodules "
        f"(1 in {len(split.train) / nodules:.0f}); "
        f"{len(split.validation)} validation cubes; {plan.steps} steps an epoch; "
        f"{model.name}, {model.count_params():,} parameters, {task.policy} on {', '.join(runs.devices())}"
    )
    (rest_visits, nodule_visits), (rest_weight, nodule_weight) = plan.visits_per_epoch, plan.natural_weights
    sampling = (
        f"An epoch is {plan.cubes_per_epoch:,} cubes, {plan.positive_share:.2%} of them nodules: it sees "
        f"every nodule {nodule_visits:.3g} times and every other cube {rest_visits:.3g} times"
    )
    if plan.prior_shift:
        sampling += f"; weights {nodule_weight:.3g} and {rest_weight:.3g} would undo that"
    lines = [sizes, f"{sampling}."]
    if start is not None:
        place = f", step {start.step:,} of epoch {start.epoch + 1}" if start.step else ""
        lines.append(f"Going on after epoch {start.epoch}{place}.")
    return lines
