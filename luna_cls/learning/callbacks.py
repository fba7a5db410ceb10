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

from luna_cls.files import write_csv
from luna_cls.judging.evaluation import binary_metrics
from luna_cls.learning import models

Logits = NDArray[np.float64]


class ExactValidation(keras.callbacks.Callback):
    """Scores the whole validation set after every epoch and puts exact metrics into the logs.

    It must come before whatever reads them: CSV, TensorBoard, checkpoint, early stopping.

    Args:
        predict: Gives the logits `(n,)` of the validation set under the model as it is.
        labels: Their classes `(n,)`.
        loss: The loss, of labels and logits `(n, 1)`.
        recover: Puts weights back whose logits were finite; told what happened.
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

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `val_loss`, every one of `binary_metrics`, and `val_largest_logit`, either way from 0."""
        if logs is None:
            return
        logits = self._predict()
        if not np.isfinite(logits).all():
            self._recover(f"The model's logits stopped being finite in epoch {epoch + 1}")
            logits = self._predict()
        metrics = validation_metrics(self._labels, logits, self._loss)
        logs.update({f"val_{name}": value for name, value in metrics.items()})
        logs["val_largest_logit"] = float(np.abs(logits).max())


class BestModel(keras.callbacks.Callback):
    """Keeps the model of the epoch with the best value of one log.

    Args:
        path: The `.keras` file to keep it in.
        monitor: The log; less is better if its name ends in "loss", more otherwise.
        logit_shift: Added to the logits of the model that is kept.
    """

    def __init__(self, path: Path, monitor: str, logit_shift: float = 0.0) -> None:
        super().__init__()
        self._path, self._monitor, self._logit_shift = path, monitor, logit_shift
        self._sign = -1.0 if monitor.endswith("loss") else 1.0
        self.epoch = -1
        self.value = -np.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the model if it is the best so far."""
        value = self._sign * float((logs or {})[self._monitor])
        if self.epoch < 0 or np.isnan(self.value) or value > self.value:
            self.epoch, self.value = epoch, value
            models.save(self.model, self._path, self._logit_shift)


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
        cubes_per_epoch: Cubes trained on in each.
    """

    def __init__(self, say: Callable[[str], None], epochs: int, cubes_per_epoch: int) -> None:
        super().__init__()
        self._say, self._epochs, self._cubes = say, epochs, cubes_per_epoch
        self._start = self._end = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Notes the time: what comes after the last batch is no training."""
        self._end = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the losses and what tells most about an imbalanced set."""
        logs = logs or {}
        speed = self._cubes / (self._end - self._start)
        self._say(
            f"epoch {epoch + 1:>{len(str(self._epochs))}}/{self._epochs}"
            f"  loss {logs['loss']:.4f}"
            f"  val_loss {logs['val_loss']:.4f}"
            f"  val_balanced_accuracy {logs['val_balanced_accuracy']:.3f}"
            f"  val_auc {logs['val_auc']:.3f}"
            f"  val_average_precision {logs['val_average_precision']:.3f}"
            f"  {speed:.0f} cubes/s"
        )


def validation_metrics(
    labels: NDArray[np.int64], logits: Logits, loss: keras.losses.Loss
) -> dict[str, float]:
    """`loss` and every one of `binary_metrics`, of all labels and logits `(n,)` at once."""
    value = float(loss(labels[:, None].astype("float32"), logits[:, None].astype("float32")))
    return {"loss": value, **binary_metrics(labels, logits)}
