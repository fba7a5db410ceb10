"""Watches a training and says, each in one line, what is wrong with it and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd

from luna_cls.cubes.folds import Split
from luna_cls.cubes.plan import Plan
from luna_cls.errors import InputError

Logs = Mapping[str, float]
Found = tuple[str, str]  # its kind, and a sentence or two

STUCK_EPOCHS = 3
SURE_LOGIT = 40.0
NO_GRADIENT = 1e-10
SOUND_AUC = 0.75  # above it a model ranks, whatever its decisions are


@dataclass(frozen=True)
class Course:
    """What a training does, as far as advice depends on it.

    Args:
        steps_per_epoch: Batches in an epoch.
        one_in: One training candidate in so many is a nodule, at natural prevalence.
        favours_nodules: Whether batches hold more nodules than come naturally, or the loss weighs them more.
        corrects_prior: Whether validation logits are shifted to undo that.
        loss: The loss's name.
        is_of_batch: Whether it is a statistic of the whole batch.
        is_proper: Whether it learns probabilities.
        normalization_momentum: Of the model's batch normalisation; 0 if it has none.
    """

    steps_per_epoch: int
    one_in: float
    favours_nodules: bool
    corrects_prior: bool
    loss: str
    is_of_batch: bool
    is_proper: bool
    normalization_momentum: float

    @property
    def lag_steps(self) -> float:
        """For how long inference runs on statistics of the first steps: five time constants."""
        return 5 / (1 - self.normalization_momentum) if self.normalization_momentum else 0.0

    def statistics_lag(self, epochs: int) -> bool:
        """Whether it still does after so many epochs."""
        return epochs * self.steps_per_epoch < self.lag_steps


def diagnose(history: Sequence[Logs], course: Course) -> dict[str, str]:
    """What is wrong after the last epoch of a history.

    Args:
        history: The logs of every epoch so far: streaming metrics of training (`auc`,
            `balanced_accuracy`), exact ones of validation (`val_...`), `val_largest_logit` and
            `largest_gradient_norm`. What is missing is not looked at.
        course: What the training does.

    Returns:
        Findings, a sentence or two each, by kind.
    """
    return dict(found for rule in _RULES if (found := rule(history, course)) is not None)


def diagnose_plan(candidates: pd.DataFrame, split: Split, plan: Plan, course: Course) -> dict[str, str]:
    """What is wrong before the first epoch.

    Args:
        candidates: The store's table, row i of cube i, with `class` and `fold`.
        split: Which rows are for what.
        plan: Which training row is in which batch.
        course: What the training does.

    Returns:
        Findings, a sentence or two each, by kind.
    """
    found = {}
    used = candidates.iloc[np.concatenate([split.train, split.validation])]
    nodules = used.groupby("fold")["class"].sum()
    empty = nodules.index[nodules == 0].tolist()
    if empty:
        found["fold_without_positives"] = (
            f"No nodule in fold{'s' if len(empty) > 1 else ''} {', '.join(map(str, empty))}: nothing is "
            "learned of nodules there, and no sensitivity can be measured. Check the labels, or put scans "
            "with nodules into every fold."
        )
    missing = plan.batches_without_positives() if course.is_of_batch else 0
    if missing:
        found["batches_without_positives"] = (
            f"{missing} of {plan.steps} batches of the first epoch hold no nodule, and {course.loss} scores "
            "one batch at a time: there it feels false alarms alone. Set sampling.positives_per_batch"
            + (
                "."
                if plan.negatives_per_positive is None
                else " in place of sampling.negatives_per_positive."
            )
        )
    if course.corrects_prior and not course.is_proper:
        found["distorted"] = (
            f"sampling.correct_prior moves the threshold, but {course.loss} with these parameters learns "
            "distorted probabilities, whatever the prevalence. For probabilities train with bce or mse."
        )
    return found


def _one_class(history: Sequence[Logs], course: Course) -> Found | None:
    logs = history[-1]
    if not {"val_tp", "val_fp", "val_tn", "val_fn"} <= logs.keys():
        return None
    called, dismissed = logs["val_tp"] + logs["val_fp"], logs["val_tn"] + logs["val_fn"]
    if called and dismissed:
        return None
    opening = (
        "Every validation cube is called a nodule" if called else "No validation cube is called a nodule"
    )
    kind, reason = _reason(history, course)
    return f"one_class_{kind}", (
        f"{opening}: accuracy {logs['val_accuracy']:.2%} is what always saying so gets, balanced accuracy "
        f"is .5. {reason}"
    )


def _stuck(history: Sequence[Logs], course: Course) -> Found | None:
    last = [logs.get("val_balanced_accuracy", math.nan) for logs in history[-STUCK_EPOCHS:]]
    is_stuck = len(last) == STUCK_EPOCHS and all(abs(value - 0.5) <= 0.005 for value in last)
    if not is_stuck or _one_class(history, course):
        return None
    kind, reason = _reason(history, course)
    return f"stuck_{kind}", f"Validation balanced accuracy has been .50 for {STUCK_EPOCHS} epochs. {reason}"


def _reason(history: Sequence[Logs], course: Course) -> Found:
    """Why decisions on the validation set are no better than none, and what to do."""
    if course.statistics_lag(len(history)):
        return "lag", f"That may be no fault of the model: {_lag_advice(course)}"
    auc = history[-1].get("val_auc", math.nan)
    if auc > SOUND_AUC:
        return "threshold", f"The ranking is sound (AUC {auc:.2f}); it is the threshold: " + (
            _threshold_advice(history[-1], course)
        )
    return "unlearned", f"The ranking is poor, too (AUC {auc:.2f}): it has learned little yet. " + (
        "Train longer, or change optimizer.learning_rate."
        if course.favours_nodules
        else f"At 1 in {course.one_in:.0f} few batches teach anything of nodules: set "
        "sampling.positives_per_batch, or train longer."
    )


def _threshold_advice(logs: Logs, course: Course) -> str:
    is_skewed = course.favours_nodules and not course.corrects_prior
    passing, instead = "hardly any probability passes 1/2", "move the threshold"
    if logs["val_tp"] + logs["val_fp"] > logs["val_tn"] + logs["val_fn"]:
        passing = "most probabilities pass 1/2"
        if is_skewed and not course.is_of_batch:
            instead = "set sampling.correct_prior, or favour nodules less"
    elif not is_skewed and not course.is_of_batch:
        passing = f"at 1 in {course.one_in:.0f}, {passing}"
        if not course.favours_nodules:
            instead = "set sampling.positives_per_batch"
    return f"{passing}. Judge by average precision and FROC, or {instead}."


def _lag_advice(course: Course) -> str:
    return (
        "validation still runs on the statistics with which batch normalisation began, for some "
        f"{course.lag_steps:.0f} steps ({course.lag_steps / course.steps_per_epoch:.1f} epochs). "
        "Train on, or lower model.normalization_momentum."
    )


def _does_not_carry_over(history: Sequence[Logs], course: Course) -> Found | None:
    trained, validated = history[-1].get("auc", math.nan), history[-1].get("val_auc", math.nan)
    if not (trained > 0.9 and validated < 0.55):
        return None
    opening = f"Training AUC is {trained:.2f}, validation AUC {validated:.2f}: "
    if course.statistics_lag(len(history)):
        return "does_not_carry_over_lag", opening + _lag_advice(course)
    return "does_not_carry_over", opening + (
        "cubes are learned by heart. Set augmentation.symmetries, raise model.dropout, "
        "or use more scans; check that labels and folds are right."
    )


def _too_sure(history: Sequence[Logs], _course: Course) -> Found | None:
    largest = history[-1].get("val_largest_logit", math.nan)
    if not largest > SURE_LOGIT:
        return None
    return "too_sure", (
        f"A validation logit reaches ±{largest:.0f}: probabilities are 0 or 1 to the last digit, and the "
        "model is sure of its mistakes. Lower optimizer.learning_rate, or set loss.label_smoothing of bce."
    )


def _no_gradient(history: Sequence[Logs], course: Course) -> Found | None:
    norm = history[-1].get("largest_gradient_norm", math.nan)
    if not norm < NO_GRADIENT:
        return None
    advice = {
        "anyloss": "Let the amplification grow from a small one (loss.ramp_from=4), or end at a smaller one.",
        "sol": "Take the uniform prior, or a wider loss.half_width.",
    }.get(course.loss, "Lower optimizer.learning_rate, and start anew.")
    return (
        "no_gradient",
        f"No gradient was above {NO_GRADIENT:g} in this epoch: nothing is learned any more. {advice}",
    )


_RULES: tuple[Callable[[Sequence[Logs], Course], Found | None], ...] = (
    _one_class,
    _stuck,
    _does_not_carry_over,
    _too_sure,
    _no_gradient,
)


class TrainingHealth(keras.callbacks.Callback):
    """Says what `diagnose` finds, each kind once; stops a training whose loss is no number any more.

    It must come after whatever puts validation metrics into the logs, and before whatever records them.

    Args:
        say: Prints a line.
        judged: The model that is validated and kept.
        course: What the training does.
        before: Findings from before the first epoch, by kind.

    Attributes:
        findings: What was found: `epoch` (from 1; 0 for before the first), `kind`, `finding`.
        good_weights: Those of `judged` after the last good epoch; none before it.
        diverged_in: The epoch, from 1, in which the loss or the logits stopped being finite; None if none.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        judged: keras.Model,
        course: Course,
        before: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._say, self._judged, self._course, self._before = say, judged, course, dict(before or {})
        self._history: list[Logs] = []
        self.good_weights: list[Any] = []
        self._epoch = 0
        self.findings: list[dict[str, Any]] = []
        self.diverged_in: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Says what was found beforehand."""
        self._report(self._before)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Starts to watch the gradients anew."""
        self._epoch = epoch + 1
        norm = getattr(self.model.optimizer, "largest_gradient_norm", None)
        if norm is not None:
            norm.assign(0.0)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops if the loss is no number any more."""
        loss = (logs or {}).get("loss", 0.0)
        if self.diverged_in is None and not np.isfinite(loss):
            self.restore(f"The loss became {loss} in epoch {self._epoch}, step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Looks at the epoch; adds `largest_gradient_norm` to the logs."""
        logs = {} if logs is None else logs
        norm = getattr(self.model.optimizer, "largest_gradient_norm", None)
        if norm is not None:
            logs["largest_gradient_norm"] = float(keras.ops.convert_to_numpy(norm))
        if self.diverged_in is not None:
            return
        self.good_weights = self._judged.get_weights()
        self._history.append(dict(logs))
        self._report(diagnose(self._history, self._course))

    def notes(self) -> dict[str, Any]:
        """What it has seen and said."""
        return {
            "history": self._history,
            "findings": self.findings,
            "diverged_in": self.diverged_in,
        }

    def remember(self, notes: dict[str, Any]) -> None:
        """Takes that back."""
        self._history, self.findings = notes["history"], notes["findings"]
        self.diverged_in = notes["diverged_in"]

    def restore(self, what: str) -> None:
        """Puts the weights of the last good epoch back and ends the training.

        Args:
            what: What happened, the beginning of a sentence.

        Raises:
            InputError: In the first epoch, when there are none yet.
        """
        advice = "Lower optimizer.learning_rate, or check the cubes."
        if not self.good_weights:
            raise InputError(f"{what}: training has diverged before any epoch was done. {advice}")
        self._judged.set_weights(self.good_weights)
        self.model.stop_training = True
        self.diverged_in = self._epoch
        ending = f"training has diverged and ends here; epoch {self._epoch - 1} was its last good one"
        self._report({"diverged": f"{what}: {ending}. {advice}"})

    def _report(self, found: Mapping[str, str]) -> None:
        known = {finding["kind"] for finding in self.findings}
        for kind, finding in found.items():
            if kind not in known:
                self.findings.append({"epoch": self._epoch, "kind": kind, "finding": finding})
                self._say(f"Warning: {finding}")
