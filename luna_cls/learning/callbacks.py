"""What happens between epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import write_csv
from luna_cls.judging.binary import binary_metrics
from luna_cls.learning import checkpoints, models
from luna_cls.learning.checkpoints import Checkpoint
from luna_cls.learning.health import TrainingHealth
from luna_cls.settings import LAST_EPOCH

Logits = NDArray[np.float64]

_SHOWN_EVERY_S = 0.25


class JudgedModel(keras.callbacks.Callback):
    """Brings the model that is validated and kept up to the one that trains, after every epoch.

    It has the same weights, or their averages where the optimizer keeps some. Batch normalisation's own
    averages are taken as they are. It must come before whatever looks at that model.

    Args:
        judged: A model built as the one that trains.
        health: Knows whether the training has diverged; then the judged model stays as it is.
    """

    def __init__(self, judged: keras.Model, health: TrainingHealth) -> None:
        super().__init__()
        self.judged, self._health = judged, health

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Brings it up to date."""
        if self._health.diverged_in is None:
            self.follow()

    def follow(self) -> None:
        """Copies the weights, or their averages."""
        self.judged.set_weights(self.model.get_weights())
        averages = self.model.optimizer.averages
        if averages:
            for variable, average in zip(self.judged.trainable_variables, averages, strict=True):
                variable.assign(keras.ops.convert_to_numpy(average))


class ExactValidation(keras.callbacks.Callback):
    """Scores the whole validation set after every epoch and puts exact metrics into the logs.

    It must come before whatever reads them: CSV, TensorBoard, checkpoint, early stopping.

    Args:
        predict: Gives the logits `(n,)` of the validation set under the model as it is.
        labels: Their classes `(n,)`.
        loss: The loss, of labels and logits `(n, 1)`.
        recover: Puts weights back whose logits were finite; told what happened.

    Attributes:
        logits: Of the last epoch, `(n,)`.
    """

    def __init__(
        self,
        predict: Callable[[], Logits],
        labels: NDArray[np.int64],
        loss: keras.losses.Loss,
        recover: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._predict, self._labels, self._loss, self._recover = predict, labels, loss, recover
        self.logits: Logits = np.empty(0)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `val_loss`, every one of `binary_metrics`, and `val_largest_logit`, either way from 0."""
        if logs is None:
            return
        logits = self._predict()
        if not np.isfinite(logits).all():
            self._recover(f"The model's logits stopped being finite in epoch {epoch + 1}")
            logits = self._predict()
        self.logits = logits
        metrics = validation_metrics(self._labels, logits, self._loss)
        logs.update({f"val_{name}": value for name, value in metrics.items()})
        logs["val_largest_logit"] = float(np.abs(logits).max())


class LearningRate(keras.callbacks.Callback):
    """Puts the learning rate into the logs, as it is at an epoch's end: `learning_rate`."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Adds it."""
        if logs is not None:
            logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


class BestModel(keras.callbacks.Callback):
    """Keeps the model of the epoch with the best value of one log; stops where it gets no better.

    Args:
        judged: The model to keep.
        path: The `.keras` file to keep it in.
        monitor: The log; less is better if its name ends in "loss", more otherwise; `LAST_EPOCH` keeps
            the last.
        patience: After how many epochs that were no better to stop; None for never.
        logit_shift: Added to the logits of the model that is kept.
    """

    def __init__(
        self,
        judged: keras.Model,
        path: Path,
        monitor: str,
        patience: int | None = None,
        logit_shift: float = 0.0,
    ) -> None:
        super().__init__()
        self._judged, self._path, self._monitor = judged, path, monitor
        self._patience, self._logit_shift = patience, logit_shift
        self._sign = -1.0 if monitor.endswith("loss") else 1.0
        self.epoch = -1
        self.value = -np.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the model if it is the best so far."""
        value = epoch if self._monitor == LAST_EPOCH else self._sign * float((logs or {})[self._monitor])
        if self.epoch < 0 or np.isnan(self.value) or value > self.value:
            self.epoch, self.value = epoch, value
            models.save(self._judged, self._path, self._logit_shift)
        if self._patience is not None and epoch - self.epoch >= self._patience:
            self.model.stop_training = True

    def notes(self) -> dict[str, Any]:
        """The best epoch, from 0, and its value."""
        return {"epoch": self.epoch, "value": self.value}

    def remember(self, notes: dict[str, Any]) -> None:
        """Takes them back."""
        self.epoch, self.value = notes["epoch"], notes["value"]


class HistoryFile(keras.callbacks.Callback):
    """Writes a CSV with a row for every epoch, counted from 1, whole at every epoch's end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch's row."""
        self._rows.append({"epoch": epoch + 1, **(logs or {})})
        write_csv(self._path, pd.DataFrame(self._rows))

    def notes(self) -> list[dict[str, Any]]:
        """The rows."""
        return self._rows

    def remember(self, notes: list[dict[str, Any]]) -> None:
        """Takes them back."""
        self._rows = notes


class Paused(Exception):  # noqa: N818
    """The training was asked to stop, and has saved where it stands."""


class Checkpointing(keras.callbacks.Callback):
    """Saves where the training stands after every epoch, and once it is asked to stop; and takes it up there.

    It must be the last callback: what the others do at an epoch's end belongs to it. The optimizer must have
    been built: Keras would build it in the first step, too late to restore it.

    Args:
        folder: Where checkpoints are kept.
        steps: Steps in an epoch.
        judging: What is judged of the model that trains.
        health: What was found, and the last good weights.
        best: Which epoch was the best.
        history: The rows so far.
        metrics: Those that stream through the epoch.
        start: Where to take the training up; None for its beginning.
        until_epoch: After how many epochs to pause; None for none.
        asked_to_stop: Whether it is to pause at the next chance.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        judging: JudgedModel,
        health: TrainingHealth,
        best: BestModel,
        history: HistoryFile,
        metrics: list[keras.metrics.Metric],
        start: Checkpoint | None,
        until_epoch: int | None,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._folder, self._steps, self._metrics, self._until_epoch = folder, steps, metrics, until_epoch
        self._judging, self._health = judging, health
        self._start, self._asked_to_stop = start, asked_to_stop
        self._remembering: dict[str, TrainingHealth | BestModel | HistoryFile] = {
            "health": health,
            "best": best,
            "history": history,
        }
        self._epoch = self._skipped = 0
        if start is not None:
            for name, callback in self._remembering.items():
                callback.remember(start.notes[name])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Puts the model, its optimizer and its metrics back where they were, before the first step."""
        self._epoch, self._skipped = epoch, 0
        if self._start is not None:
            self._restore(self._start)
            self._skipped = self._start.step
            self._start = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Saves and pauses if asked to, unless the epoch ends here anyway.

        Raises:
            Paused: If so.
        """
        step = self._skipped + batch + 1
        if step < self._steps and not self.model.stop_training and self._asked_to_stop():
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            self._save(self._epoch, step)
            raise Paused(f"after step {step:,} of {self._steps:,} in epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Saves; pauses if asked to and something is left to do.

        Raises:
            Paused: If so.
        """
        self._save(epoch + 1, 0)
        is_to_pause = self._asked_to_stop() or epoch + 1 == self._until_epoch
        if is_to_pause and not self.model.stop_training:
            raise Paused(f"after epoch {epoch + 1}")

    def _restore(self, start: Checkpoint) -> None:
        variables = self._variables()
        count = len(variables)
        same = [name for name, _ in variables] == start.names[:count] and all(
            tuple(variable.shape) == value.shape
            for (_, variable), value in zip(variables, start.values[:count], strict=True)
        )
        if not same:
            raise InputError(
                f"The checkpoint in {self._folder} is of another model or another version of luna_cls: its "
                "variables are not those of this one. Start the run over with --force."
            )
        for (_, variable), value in zip(variables, start.values[:count], strict=True):
            variable.assign(value)
        if not start.step:  # what is counted within an epoch had been the last one's
            self._health.on_epoch_begin(start.epoch)
            for metric in self._streaming():
                metric.reset_state()
        if start.epoch:
            self._judging.follow()
            self._health.good_weights = start.values[count:] or self._judging.judged.get_weights()

    def _variables(self) -> list[tuple[str, Any]]:
        groups = {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "metrics": {id(v): v for metric in self._streaming() for v in metric.variables}.values(),
        }
        return [
            (f"{group}/{index}/{variable.name}", variable)
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        ]

    def _streaming(self) -> list[keras.metrics.Metric]:
        return [*(metric for metric in self.model.metrics if metric.name == "loss"), *self._metrics]

    def _save(self, epoch: int, step: int) -> None:
        named = [(name, keras.ops.convert_to_numpy(variable)) for name, variable in self._variables()]
        if step:  # after an epoch the good weights are those of the judged model as it is
            named += [(f"good/{index}", weight) for index, weight in enumerate(self._health.good_weights)]
        checkpoint = Checkpoint(
            epoch,
            step,
            is_over=step == 0 and bool(self.model.stop_training),
            notes={name: callback.notes() for name, callback in self._remembering.items()},
            names=[name for name, _ in named],
            values=[value for _, value in named],
        )
        checkpoints.save(checkpoint, self._folder)


class AmplificationRamp(keras.callbacks.Callback):
    """Moves the amplification of a loss that has a ramp, epoch by epoch.

    Args:
        loss: A loss with `start_epoch`, as `AnyLoss`.
    """

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self._loss = loss

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Sets the epoch's amplification."""
        if self._loss.start_epoch(epoch) and keras.backend.backend() == "jax":
            self.model.make_train_function(force=True)  # JAX has compiled the old one in


class PlainLines(keras.callbacks.Callback):
    """One line an epoch, for people and for log files.

    Args:
        say: Prints a line.
        epochs: How many epochs there will be.
        cubes_per_step: Cubes in a batch.
    """

    def __init__(self, say: Callable[[str], None], epochs: int, cubes_per_step: float) -> None:
        super().__init__()
        self._say, self._epochs, self._cubes_per_step = say, epochs, cubes_per_step
        self._start = self._end = 0.0
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Notes the time: what comes after the last batch is no training."""
        self._end, self._steps = time.perf_counter(), batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the losses and what tells most about an imbalanced set."""
        logs = logs or {}
        speed = self._steps * self._cubes_per_step / (self._end - self._start)
        self._say(
            f"epoch {epoch + 1:>{len(str(self._epochs))}}/{self._epochs}"
            f"  loss {logs['loss']:.4f}"
            f"  val_loss {logs['val_loss']:.4f}"
            f"  val_balanced_accuracy {logs['val_balanced_accuracy']:.3f}"
            f"  val_auc {logs['val_auc']:.3f}"
            f"  val_average_precision {logs['val_average_precision']:.3f}"
            f"  {speed:.0f} cubes/s"
        )


class LiveProgress(keras.callbacks.Callback):
    """Tells how far a training is while its epochs go on, at most four times a second.

    Args:
        show: Told the steps done, all there are to be, and how it goes, in a line.
        epochs: How many epochs there will be.
        steps: Steps in an epoch.
        cubes_per_step: Cubes in a batch.
    """

    def __init__(
        self, show: Callable[[int, int, str], None], epochs: int, steps: int, cubes_per_step: int
    ) -> None:
        super().__init__()
        self._show, self._epochs, self._steps, self._cubes_per_step = show, epochs, steps, cubes_per_step
        self._epoch = self._begun_with = 0
        self._start = self._shown = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._epoch = epoch
        # An epoch that is gone on with has fewer steps left.
        self._begun_with = self._steps - int((self.params or {}).get("steps") or self._steps)
        self._start = self._shown = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows where it is."""
        now = time.perf_counter()
        if now - self._shown < _SHOWN_EVERY_S:
            return
        self._shown, logs = now, logs or {}
        speed = (batch + 1) * self._cubes_per_step / (now - self._start)
        self._show(
            self._epoch * self._steps + self._begun_with + batch + 1,
            self._epochs * self._steps,
            f"epoch {self._epoch + 1}/{self._epochs}  loss {float(logs['loss']):.4f}"
            f"  balanced accuracy {float(logs['balanced_accuracy']):.3f}  {speed:,.0f} cubes/s",
        )


def validation_metrics(
    labels: NDArray[np.int64], logits: Logits, loss: keras.losses.Loss
) -> dict[str, float]:
    """`loss` and every one of `binary_metrics`, of all labels and logits `(n,)` at once."""
    value = float(loss(labels[:, None].astype("float32"), logits[:, None].astype("float32")))
    return {"loss": value, **binary_metrics(labels, logits)}
