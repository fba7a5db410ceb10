"""Trains one model on a cube store and leaves a run behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
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
from luna_cls.judging.evaluation import no_skill_metrics
from luna_cls.learning import losses, models, runs
from luna_cls.learning.callbacks import (
    AmplificationRamp,
    BestModel,
    Checkpointing,
    ExactValidation,
    HistoryFile,
    Paused,
    PlainLines,
    validation_metrics,
)
from luna_cls.learning.checkpoints import Checkpoint
from luna_cls.learning.health import Course, TrainingHealth, diagnose_plan
from luna_cls.learning.losses import PerBatch, PerSample
from luna_cls.learning.metrics import streaming_metrics
from luna_cls.learning.optimizer import adamw
from luna_cls.learning.precision import set_policy
from luna_cls.settings import Settings

PREDICTION_COLUMNS = (*POINT_COLUMNS, "probability", "logit", "class")


def train(
    store: CubeStore,
    settings: Settings,
    run: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
    go_on: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Trains a model and writes the folder `run`.

    It holds `settings.toml`, `environment.json`, `history.csv` (a row an epoch), `tensorboard/`,
    `checkpoint/` (where the training stands), and of the best epoch `model.keras`,
    `validation_predictions.csv` and `metrics.json`.

    A run that was killed at any moment, or paused, and is then resumed ends with the very weights, history
    and predictions of one that never stopped, on a processor, with the same versions and number of cores.

    Args:
        store: The cubes.
        settings: Everything else.
        run: The folder to make.
        force: Replace it if it exists.
        resume: Go on with it if it exists.
        asked_to_stop: Looked at after every step: once it is true, the training saves where it stands, and
            pauses.
        go_on: The command that goes on with a paused run; None for `luna-cls train STORE RUN --resume`.
        say: Prints a line of progress.

    Returns:
        None if it paused; else what `metrics.json` holds: `best_epoch` (from 1), `validation` and `no_skill`
        metrics, `health` (what `TrainingHealth` found) and `diverged_in` (the epoch that ended the training
        early, or None).

    Raises:
        InputError: If a setting does not fit the store, a set lacks one class, `run` exists and is not to be
            replaced or resumed, or it is to be resumed and was begun with other settings or cubes.
    """
    run, training = Path(run), settings.training
    is_begun = runs.check(run, store, settings, force=force, resume=resume)
    if is_begun and (run / runs.METRICS).is_file():
        say(f"{run} is finished already: nothing is left to do.")
        finished: dict[str, Any] = json.loads((run / runs.METRICS).read_text(encoding="utf-8"))
        return finished
    keras.utils.set_random_seed(settings.seed)
    policy = set_policy(settings.precision)
    model = models.get(settings.model.name, **_model_parameters(store, settings))
    split = split_by_fold(store.candidates, settings.split.validation_folds, settings.split.test_folds)
    plan = _plan(store, split, settings)
    check_margin(store, settings.augmentation)
    loss, exact_loss = _loss(settings, plan), _loss(settings, plan)  # a ramp moves the first one alone
    shift = _prior_shift(settings, plan, loss)
    labels = store.labels[split.validation]
    if len(set(labels.tolist())) < 2:
        raise InputError(
            f"The validation set has {len(labels)} cubes of class {labels[0]} and none of the other: "
            "nothing can be measured on it. Choose other validation folds."
        )
    no_skill = no_skill_metrics(labels)
    _check_monitor(training.monitor, no_skill)
    with ExitStack() as stack:
        if not is_begun:
            # Once there is something to go on from, a run that fails is worth more than the one before it.
            stack.enter_context(kept_until_done(run, lambda: any((run / runs.CHECKPOINTS).glob("*.npz"))))
            run.mkdir(parents=True)
        stack.enter_context(runs.alone(run))
        start = runs.open_run(run, settings, runs.describe(store, settings, policy, plan), say)
        for line in _opening(split, plan, policy, model, start):
            say(line)
        metrics = streaming_metrics()
        model.compile(adamw(settings.optimizer), loss, metrics=metrics, jit_compile=models.jit_compile())
        validation = ordered_batches(store, split.validation, training.batch_size)
        course = _course(settings, plan, model, loss)
        health = TrainingHealth(say, course, diagnose_plan(store.candidates, split, plan, course))
        exact = ExactValidation(
            lambda: _logits(model, validation) + shift, labels, exact_loss, health.restore
        )
        best = BestModel(run / "model.keras", training.monitor, training.patience, shift)
        history = HistoryFile(run / "history.csv")
        callbacks = [
            *([AmplificationRamp(loss)] if isinstance(loss, losses.AnyLoss) else []),
            exact,
            health,
            best,
            history,
            keras.callbacks.TensorBoard(run / "tensorboard", histogram_freq=1, write_graph=False),
            PlainLines(say, training.epochs, plan.batch_size),
            Checkpointing(
                run / runs.CHECKPOINTS, plan.steps, health, best, history, metrics, start, asked_to_stop
            ),
        ]
        try:
            _fit(model, store, plan, settings, start, callbacks)
        except Paused as pause:
            go_on = go_on or f"luna-cls train {store.path} {run} --resume"
            say(f"Asked to stop: saved {pause}. {go_on} goes on from there.")
            return None

        logits = _logits(models.load(run / "model.keras"), validation)
        result = {
            "best_epoch": best.epoch + 1,
            "monitor": training.monitor,
            "validation": validation_metrics(labels, logits, exact_loss),
            "no_skill": no_skill,
            "health": health.findings,
            "diverged_in": health.diverged_in,
        }
        table = predictions_table(store.candidates.iloc[split.validation], logits)
        write_csv(run / "validation_predictions.csv", table)
        write_json(run / runs.METRICS, result)
    return result


def predictions_table(candidates: pd.DataFrame, logits: NDArray[np.float64]) -> pd.DataFrame:
    """A LUNA16 submission of candidates `(n)` and their logits `(n,)`, with `class` where it is known."""
    # In float64, where probabilities stay apart up to a logit of 36; float32 ends at 17.
    table = candidates.assign(probability=1 / (1 + np.exp(-logits)), logit=logits)
    return table[[name for name in PREDICTION_COLUMNS if name in table.columns]]


def _fit(
    model: keras.Model,
    store: CubeStore,
    plan: Plan,
    settings: Settings,
    start: Checkpoint | None,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    training = settings.training
    if start is not None and start.is_over:
        return
    done, skipped = (start.epoch, start.step) if start is not None else (0, 0)
    # Keras wants as many steps in every epoch: what is left of one that was begun goes first, by itself.
    spans = [(range(done, done + 1), skipped)] if skipped else []
    spans.append((range(done + len(spans), training.epochs), 0))
    try:
        for epochs, skipped_steps in spans:
            if not epochs:
                break
            model.fit(
                training_batches(store, plan, epochs, settings.augmentation, skipped_steps),
                initial_epoch=epochs.start,
                epochs=epochs.stop,
                steps_per_epoch=plan.steps - skipped_steps,
                callbacks=callbacks,
                shuffle=False,  # the plan has shuffled
                verbose=0,
            )
            if model.stop_training:
                break
    except tf.errors.ResourceExhaustedError as error:
        raise InputError(
            f"The device has too little memory for batches of {training.batch_size}. "
            "Lower training.batch_size."
        ) from error


def _logits(model: keras.Model, batches: tf.data.Dataset) -> NDArray[np.float64]:
    return model.predict(batches, verbose=0).reshape(-1).astype(np.float64)


def _check_monitor(monitor: str, metrics: dict[str, float]) -> None:
    """Any validation metric that is always defined, and of which more is better; or the loss."""
    no_goals = ("precision", "tp", "fp", "tn", "fn")
    known = [f"val_{name}" for name in ("loss", *metrics) if name not in no_goals]
    if monitor not in known:
        raise InputError(f"Unknown training.monitor '{monitor}'. Known: {', '.join(known)}.")


def _model_parameters(store: CubeStore, settings: Settings) -> dict[str, Any]:
    """The model's own parameters, and the size of its cubes, which the store decides."""
    if store.spec.spacing_mm != CubeSpec().spacing_mm:
        raise InputError(
            f"{store.path} holds cubes of {store.spec.spacing_mm} mm spacing. A model carries no spacing: "
            f"findings would be cut at {CubeSpec().spacing_mm} mm. Prepare the store at that."
        )
    size_vox = settings.model.parameters.get("size_vox", store.spec.size_vox)
    if size_vox != store.spec.size_vox:
        raise InputError(
            f"model.size_vox is the edge of the store's cubes, {store.spec.size_vox}. Received: {size_vox}."
        )
    return {**settings.model.parameters, "size_vox": store.spec.size_vox}


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


def _course(settings: Settings, plan: Plan, model: keras.Model, loss: PerSample | PerBatch) -> Course:
    momenta = [layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return Course(
        steps_per_epoch=plan.steps,
        one_in=(len(plan.negatives) + len(plan.positives)) / len(plan.positives),
        favours_nodules=_learned_shift(plan, loss) < -0.01,
        corrects_prior=settings.sampling.correct_prior,
        loss=settings.loss.name,
        is_of_batch=isinstance(loss, PerBatch),
        is_proper=isinstance(loss, PerSample) and loss.is_proper,
        normalization_momentum=max(momenta, default=0.0),
    )


def _opening(
    split: Split, plan: Plan, policy: str, model: keras.Model, start: Checkpoint | None
) -> list[str]:
    nodules = len(plan.positives)
    sizes = (
        f"{len(split.train)} training cubes, {nodules} of them nodules "
        f"(1 in {len(split.train) / nodules:.0f}); "
        f"{len(split.validation)} validation cubes; {plan.steps} steps an epoch; "
        f"{model.name}, {model.count_params():,} parameters, {policy} on {', '.join(runs.devices())}"
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
