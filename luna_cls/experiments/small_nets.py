"""Many small nets trained at once: one graph, whose tensors have an axis of runs in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.learning.losses import PerBatch, PerSample

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Net:
    """A small net, and how it is trained.

    Args:
        build: Makes the model of so many columns, from `(batch, columns)` to logits `(batch, 1)`, its weights
            drawn anew. It has no layer that draws as it runs, such as dropout.
        optimizer: Makes an optimizer that treats every number of a variable by itself, as SGD and Adam do.
        batches_per_epoch: 1 for the whole set at every step.
    """

    build: Callable[[int], keras.Model]
    optimizer: Callable[[], keras.optimizers.Optimizer]
    batches_per_epoch: int = 1


class Run(NamedTuple):
    """One training: a start, and what is learned from and scored.

    Args:
        seed: Of the first weights and the order of batches, and of nothing else: runs of a seed, a net and a
            number of samples differ by their loss alone.
        x: `(samples, columns)`.
        y: `(samples,)`, 1 for the rarer class.
        x_scored: `(scored, columns)`.
    """

    seed: int
    x: NDArray[Any]
    y: NDArray[Any]
    x_scored: NDArray[Any]


class Trained(NamedTuple):
    """What became of the runs.

    Args:
        logits: Of each run, float32 `(at, scored)`.
        training_loss: float32 `(runs, at)`, of the batch of that step, before the step is made.
    """

    logits: list[Floats]
    training_loss: Floats


def train(net: Net, loss: PerSample | PerBatch, runs: Sequence[Run], at: Sequence[int]) -> Trained:
    """Trains a net once for each run, all at once.

    Runs do not touch each other: each is what Keras would make of its own start and batches. Where there are
    batches, all runs have the same size of them, that of the shortest run; what an epoch leaves over is left
    out of it.

    Args:
        net: The net.
        loss: From `losses.get`.
        runs: Of as many columns each; they may have different numbers of samples.
        at: Steps, rising, after which `x_scored` is scored; the last is the last that is made.

    Raises:
        InputError: If there is no run, the columns or labels do not fit, the steps do not rise from 1, or a
            net of batch statistics would see whole sets of different lengths, padded.
    """
    _check(runs, at)
    together = _Together(net, loss, runs, steps=at[-1])
    scored, training_loss = [], []
    for first, last in zip([0, *at], at, strict=False):
        training_loss.append(together.advance(tf.constant(first), tf.constant(last)).numpy())
        scored.append(together.score().numpy())
    logits = np.stack(scored, axis=1)
    return Trained(
        [logits[i, :, : len(run.x_scored)] for i, run in enumerate(runs)], np.stack(training_loss, 1)
    )


def _check(runs: Sequence[Run], at: Sequence[int]) -> None:
    if not runs:
        raise InputError("No run to train. Give one at least.")
    columns = {np.shape(x)[1:] for run in runs for x in (run.x, run.x_scored)}
    if len(columns) != 1:
        raise InputError(f"All runs must have the same columns. Received: {sorted(columns)}.")
    for run in runs:
        if len(run.x) != len(run.y):
            raise InputError(
                f"A run needs a label for each sample. Received: {len(run.y)} for {len(run.x)}, "
                f"seed {run.seed}."
            )
    if not len(at) or at[0] < 1 or any(a >= b for a, b in pairwise(at)):
        raise InputError(f"Steps to score at must rise, from 1 on. Received: {list(at)}.")


@lru_cache(maxsize=4096)
def _start(net: Net, columns: int, seed: int) -> tuple[list[Floats], list[Floats]]:
    """The first weights of a seed, and the state beside them, such as moving averages."""
    keras.utils.set_random_seed(seed)
    model = net.build(columns)
    return [v.numpy() for v in model.trainable_variables], [v.numpy() for v in model.non_trainable_variables]


def _stacked(of_runs: Sequence[list[Floats]]) -> list[keras.Variable]:
    return [keras.Variable(np.stack(values), dtype="float32") for values in zip(*of_runs, strict=True)]


def _padded(of_runs: Sequence[NDArray[Any]]) -> Floats:
    """Arrays `(n, ...)` as one `(runs, longest, ...)`, zeros behind the shorter ones."""
    longest = max(map(len, of_runs))
    return np.stack(
        [np.pad(a, [(0, longest - len(a)), *[(0, 0)] * (np.ndim(a) - 1)]) for a in of_runs]
    ).astype("float32")


def _order(seed: int, samples: int, steps: int, batches: int, size: int) -> NDArray[np.int32]:
    """Which samples are in each step, int32 `(steps, size)`: epochs of the samples, shuffled anew."""
    generator = np.random.default_rng(seed)
    epochs = [generator.permutation(samples)[: batches * size] for _ in range(-(-steps // batches))]
    return np.concatenate(epochs).reshape(-1, size)[:steps].astype("int32")


class _Together:
    """The variables of all runs, and the two graphs that work on them."""

    def __init__(self, net: Net, loss: PerSample | PerBatch, runs: Sequence[Run], steps: int) -> None:
        columns, lengths = np.shape(runs[0].x)[1], [len(run.x) for run in runs]
        trained, state = zip(*(_start(net, columns, run.seed) for run in runs), strict=True)
        self._trained, self._state = _stacked(trained), _stacked(state)
        self._optimizer = net.optimizer()
        self._optimizer.build(self._trained)
        self._model, self._loss = net.build(columns), loss
        self._x = tf.constant(_padded([run.x for run in runs]))
        self._y = tf.constant(_padded([run.y for run in runs])[..., None])
        self._x_scored = tf.constant(_padded([run.x_scored for run in runs]))
        self._order = None
        if net.batches_per_epoch == 1:
            if self._state and len(set(lengths)) > 1:
                raise InputError(
                    "A net of batch statistics takes whole sets of one length. "
                    f"Received: {min(lengths)} to {max(lengths)} samples; give it batches."
                )
            # A mean over the padded length, of which the padding has no part.
            weights = [np.full(length, max(lengths) / length) for length in lengths]
            self._weights = tf.constant(_padded(weights))
        else:
            size = min(lengths) // net.batches_per_epoch
            orders = [_order(run.seed, len(run.x), steps, net.batches_per_epoch, size) for run in runs]
            self._order, self._weights = tf.constant(np.stack(orders)), tf.ones((len(runs), size))
        # Traced here and once: TensorFlow warns of functions that are traced again for every new object.
        place = tf.TensorSpec([], tf.int32)
        self.advance = tf.function(self._advance).get_concrete_function(place, place)
        self.score = tf.function(self._score).get_concrete_function()

    def _advance(self, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        """Makes the steps from `first` to before `last`; the losses `(runs,)` of the last of them."""
        losses = tf.zeros(len(self._x))
        for step in tf.range(first, last):
            x, y = self._batch(step)
            with tf.GradientTape() as tape:
                losses, state = tf.vectorized_map(self._loss_of_run, (*self._values(), x, y, self._weights))
            gradients = tape.gradient(losses, [variable.value for variable in self._trained])
            self._optimizer.apply(gradients, self._trained)
            for variable, value in zip(self._state, state, strict=True):
                variable.assign(value)
        return losses

    def _batch(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self._order is None:
            return self._x, self._y
        chosen = self._order[:, step]
        return tf.gather(self._x, chosen, batch_dims=1), tf.gather(self._y, chosen, batch_dims=1)

    def _values(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        return [v.value for v in self._trained], [v.value for v in self._state]

    def _loss_of_run(self, of_run: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        trained, state, x, y, weights = of_run
        logits, state = self._model.stateless_call(trained, state, x, training=True)
        return self._loss(y, logits, weights), state

    def _score(self) -> tf.Tensor:
        """Logits `(runs, scored)`."""

        def of_run(given: Any) -> tf.Tensor:
            trained, state, x = given
            return self._model.stateless_call(trained, state, x, training=False)[0][:, 0]

        return tf.vectorized_map(of_run, (*self._values(), self._x_scored))
