"""What a training shows in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import expit
from tensorboard.plugins.hparams import api as hparams_plugin
from tensorboard.plugins.pr_curve import summary as pr_curve_plugin

from luna_cls.cubes.batches import ordered_batches
from luna_cls.cubes.montage import draw_planes
from luna_cls.cubes.store import CubeStore
from luna_cls.learning.callbacks import BestModel, ExactValidation, HistoryFile, Logits
from luna_cls.learning.health import TrainingHealth
from luna_cls.learning.input_wait import InputWait
from luna_cls.settings import Settings

CHARTS = {
    "decisions": (
        "accuracy",
        "balanced_accuracy",
        "gmean",
        "f1",
        "mcc",
        "precision",
        "recall",
        "specificity",
    ),
    "loss": ("loss",),
    "operating_points": (
        "sensitivity_at_specificity_0.9",
        "specificity_at_sensitivity_0.5",
        "specificity_at_sensitivity_0.9",
    ),
    "optimizer": ("learning_rate", "largest_gradient_norm"),
    "ranking": ("auc", "average_precision"),
    "scores": ("largest_logit",),
    "verdicts": ("tp", "fp", "tn", "fn"),
}
OTHER_CHARTS = "others"
MEANINGS = {
    "decisions": "Of the decisions that a probability above 1/2 is a nodule.",
    "loss": "What is made small; of validation, over all of its candidates at once.",
    "operating_points": "Of decisions at the threshold that just reaches the first number.",
    "optimizer": "As it was at the epoch's end; of the gradient's norm, the largest in the epoch.",
    "ranking": "How well scores rank nodules above other candidates, whatever the threshold.",
    "scores": "Of logits: 0 is a probability of 1/2.",
    "verdicts": "Candidates by class and decision, probability above 1/2: true and false positives, true and "
    "false negatives. Training counts those of an epoch's batches, as they were sampled.",
    OTHER_CHARTS: "",
}
OF_BEST_EPOCH = (
    "loss",
    "balanced_accuracy",
    "auc",
    "average_precision",
    "specificity_at_sensitivity_0.9",
    "sensitivity_at_specificity_0.9",
)
SHOWN_CUBES = 8
PR_POINTS = 201
INPUT_BOUND = 0.1  # of the time waits for input: from here on, they are worth a remedy

_CHART_OF = {name: group for group, names in CHARTS.items() for name in names}


class TensorBoardLog(keras.callbacks.Callback):
    """Writes a training for TensorBoard: what `folder` is to be looked at with.

    `train` and `validation` share their charts, an epoch a point, counted from 1. `best` holds the settings
    and the best epoch's metrics, which make a row of the HParams table. Beside them are words on the run,
    precision-recall curves, histograms of validation scores, and pictures of the hardest candidates.
    Histograms of weights are left out: what they would show is under `optimizer`, `scores` and in the
    words on health, and each would be a chart to look past.

    It must come after those it reads from and before the checkpoint: what is on the disk then is all of the
    epochs done. An epoch done again after a crash replaces its points (without TensorBoard's own data
    server, both are shown, in the same place).

    Args:
        folder: Where to write.
        settings: Those of the run.
        about: Further words on it, as Markdown, by what they are about.
        store: The cubes.
        rows: Which of them are validated on.
        exact: Has their logits.
        health: What was found.
        best: Which epoch is the best.
        history: The rows so far.
        wait: How long training waited for its batches.
        cubes_per_step: Cubes in a batch.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        about: Mapping[str, str],
        store: CubeStore,
        rows: NDArray[np.int64],
        exact: ExactValidation,
        health: TrainingHealth,
        best: BestModel,
        history: HistoryFile,
        wait: InputWait,
        cubes_per_step: float,
    ) -> None:
        super().__init__()
        self._folder, self._settings, self._about = folder, settings, about
        self._store, self._rows, self._labels = store, rows, store.labels[rows]
        self._exact, self._health, self._best, self._history = exact, health, best, history
        self._speed = _Speed(wait, cubes_per_step)
        self._profiler = _Profiler(folder / "train", settings)
        self._writers: dict[str, Any] = {}
        self._findings_told = -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Writes what the run is, before its first epoch and wherever it goes on."""
        if not self._writers:
            for name in ("train", "validation", "best"):
                self._writers[name] = tf.summary.create_file_writer(str(self._folder / name))
            self._write_about(epoch)
        self._speed.start()
        self._profiler.start(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Looks at the clock."""
        self._speed.tick()
        self._profiler.tick()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch."""
        self._profiler.stop()
        logs = logs or {}
        with self._writers["train"].as_default(epoch + 1):
            _write_scalars({name: value for name, value in logs.items() if not name.startswith("val_")})
            self._speed.write(epoch + 1)
            self._write_health()
        with self._writers["validation"].as_default(epoch + 1):
            _write_scalars(
                {name.removeprefix("val_"): value for name, value in logs.items() if name.startswith("val_")}
            )
            self._write_validation()
        with self._writers["best"].as_default(epoch + 1):
            self._write_best()
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Ends what is still recorded, and closes the files, however the training ended."""
        self._profiler.stop()
        for writer in self._writers.values():
            writer.close()

    def _write_about(self, epochs_done: int) -> None:
        texts = {**self._about, "settings": f"```\n{self._settings.to_toml()}```"}
        with self._writers["train"].as_default(epochs_done):
            for name, text in texts.items():
                tf.summary.text(f"run/{name}", text)
            self._write_health()
        run = self._folder.parent
        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in self._settings.flat().items()
        }
        with self._writers["best"].as_default():
            hparams_plugin.hparams(values, trial_id=f"{run.parent.name}/{run.name}")

    def _write_health(self) -> None:
        """All that was found so far, once there is more of it: TensorBoard may show but the last text."""
        findings = self._health.findings
        if len(findings) != self._findings_told:
            self._findings_told = len(findings)
            lines = [f"- {_when(found['epoch'])}: {found['finding']}" for found in findings]
            tf.summary.text("run/health", "\n".join(lines) or "Nothing wrong was found so far.")

    def _write_validation(self) -> None:
        logits, is_nodule = self._exact.logits, self._labels == 1
        tf.summary.experimental.write_raw_pb(precision_recall(is_nodule, logits).SerializeToString())
        for name, of_class in {"nodules": is_nodule, "others": ~is_nodule}.items():
            tf.summary.histogram(
                f"scores/{name}", logits[of_class], description=f"Logits of validation: {name}."
            )
        order = np.argsort(logits, kind="stable")
        nodules, others = order[is_nodule[order]], order[~is_nodule[order]][::-1]
        self._write_hardest("missed_nodules", "Nodules with the lowest scores", nodules)
        self._write_hardest("false_alarms", "Candidates with the highest scores that are no nodules", others)

    def _write_hardest(self, name: str, heading: str, places: NDArray[np.intp]) -> None:
        """Draws the first of these places in the validation set."""
        shown = places[:SHOWN_CUBES]
        rows = self._rows[shown]
        (cubes,) = ordered_batches(self._store, rows, len(rows)).as_numpy_iterator()
        captions = [
            f"p = {probability:.3g}\nrow {row}\n{_end_of(uid)}"
            for probability, row, uid in zip(
                expit(self._exact.logits[shown]),
                rows,
                self._store.candidates["seriesuid"].iloc[rows],
                strict=True,
            )
        ]
        spec = self._store.spec
        picture = draw_planes(
            cubes[..., 0],
            captions,
            f"{heading}: {len(shown)} of {len(places):,} in validation",
            f"Cubes of {spec.size_vox * spec.spacing_mm:g} mm. Below: probability, row in candidates.csv, "
            "end of the series UID.",
            SHOWN_CUBES,
        )
        tf.summary.image(f"hardest/{name}", picture[None])

    def _write_best(self) -> None:
        row = self._history.notes()[self._best.epoch]
        tf.summary.scalar(
            "the_best_epoch/epoch", row["epoch"], description="The epoch whose model is kept, so far."
        )
        for name in OF_BEST_EPOCH:
            tf.summary.scalar(
                f"the_best_epoch/{name}",
                row[f"val_{name}"],
                description="Of validation, in the best epoch so far.",
            )


class _Speed:
    """How fast training goes, and whether it waits for input.

    The first step of an epoch is left out: it may compile the model, and starts the pipeline.
    """

    def __init__(self, wait: InputWait, cubes_per_step: float) -> None:
        self._wait, self._cubes_per_step = wait, cubes_per_step

    def start(self) -> None:
        self._steps = 0

    def tick(self) -> None:
        self._now = time.perf_counter(), self._wait.seconds
        if not self._steps:
            self._first = self._now
        self._steps += 1

    def write(self, epoch: int) -> None:
        if self._steps < 2:
            return
        seconds, waited = (now - first for now, first in zip(self._now, self._first, strict=True))
        share = min(waited / seconds, 1.0)
        speed = (self._steps - 1) * self._cubes_per_step / seconds
        tf.summary.scalar(
            "speed/cubes_per_second", speed, description="Of training steps alone, without the first."
        )
        tf.summary.scalar(
            "speed/waiting_for_input",
            share,
            description="Share of the time of training steps that goes by waiting for the next batch.",
        )
        verdict = (
            "The input is the bottleneck: less augmentation, more cores, or a store in memory or on a faster "
            "disk would make training faster."
            if share > INPUT_BOUND
            else "The device is the bottleneck: less augmentation or more cores would not speed it up."
        )
        tf.summary.text(
            "speed/bottleneck", f"Epoch {epoch}: {share:.1%} of a step is waiting for input. {verdict}"
        )


class _Profiler:
    """Profiles steps of the second epoch, or of the only one, if the settings ask for it.

    TensorFlow's own profiler: on another backend it sees the input pipeline alone.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._steps = folder, settings.training.profile_steps
        self._epoch = min(1, settings.training.epochs - 1)
        self._left = 0

    def start(self, epoch: int) -> None:
        if self._steps is not None and epoch == self._epoch:
            self._left = self._steps
            tf.profiler.experimental.start(str(self._folder))

    def tick(self) -> None:
        if self._left == 1:
            self.stop()
        self._left = max(self._left - 1, 0)

    def stop(self) -> None:
        if self._left:
            self._left = 0
            tf.profiler.experimental.stop()


def _write_scalars(values: Mapping[str, float]) -> None:
    """Each in its chart; what is not defined, NaN, leaves a gap."""
    for name, value in values.items():
        if not math.isnan(value):
            group = _CHART_OF.get(name, OTHER_CHARTS)
            tf.summary.scalar(f"{group}/{name}", value, description=MEANINGS[group])


def precision_recall(is_nodule: NDArray[np.bool_], logits: Logits) -> Any:
    """A curve whose points are even in recall, each with the exact precision of its threshold.

    TensorBoard's own are even in probability. Where one candidate in 490 is a nodule, nearly all of them lie
    in the first of its bins, and the curve is a few straight lines.

    Args:
        is_nodule: `(n,)`, at least one True.
        logits: `(n,)`.

    Returns:
        A `Summary`, from recall 1 down to that of the nodule with the highest score.
    """
    of_nodules, of_others = np.sort(logits[is_nodule]), np.sort(logits[~is_nodule])
    points = min(PR_POINTS, max(2, len(of_nodules)))
    thresholds = of_nodules[np.rint(np.linspace(0, len(of_nodules) - 1, points)).astype(int)]
    fn, tn = np.searchsorted(of_nodules, thresholds), np.searchsorted(of_others, thresholds)
    tp, fp = len(of_nodules) - fn, len(of_others) - tn
    return pr_curve_plugin.raw_data_pb(
        "ranking/precision_recall",
        tp,
        fp,
        tn,
        fn,
        tp / (tp + fp),
        tp / len(of_nodules),
        num_thresholds=points,
        display_name="precision against recall, validation",
        description="Points are even in recall, and precision is exact at each. What TensorBoard calls their "
        "threshold is the share of nodules with a lower score, not a probability: at 0.25, a quarter of the "
        "nodules is missed.",
    )


def _when(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "before the first epoch"


def _end_of(uid: str, length: int = 13) -> str:
    """What tells a series from others: UIDs begin alike."""
    return uid if len(uid) <= length else f"…{uid[1 - length :]}"
