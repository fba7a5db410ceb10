"""Batches of cubes as `tf.data`: int16 HU all the way to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from luna_cls.cubes.plan import Plan
from luna_cls.cubes.store import CubeStore

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def training_batches(
    store: CubeStore, plan: Plan, epochs: range, augmentations: Sequence[Augmentation] = ()
) -> tf.data.Dataset:
    """Batches of one epoch after another, as `plan` has them.

    What a batch holds, and how it is augmented, depends on the plan, its seed, the epoch and the step
    alone: not on the number of threads, nor on what came before.

    Args:
        store: The cubes.
        plan: Which row is where.
        epochs: Which epochs; each has `plan.steps` batches.
        augmentations: Functions of (cubes, seed), applied in this order.

    Returns:
        Dataset of (cubes int16 `(batch, z, y, x, 1)`, labels float32 `(batch, 1)`).
    """

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(lambda index: plan.epoch(int(index)), [epoch], tf.int64)
        steps = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [None])).batch(plan.batch_size)
        return steps.enumerate().map(lambda step, rows: (epoch, step, rows))

    def augment(
        epoch: tf.Tensor, step: tf.Tensor, cubes: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        seed = tf.stack([tf.constant(plan.seed, tf.int64), epoch])
        seed = tf.random.experimental.stateless_fold_in(seed, step)
        for index, function in enumerate(augmentations):
            cubes = function(cubes, tf.random.experimental.stateless_fold_in(seed, index))
        return cubes, labels

    labels = tf.constant(store.labels, tf.float32)
    gather = _gatherer(store)
    batches = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch)
    batches = batches.map(
        lambda epoch, step, rows: augment(epoch, step, gather(rows), tf.gather(labels, rows)[:, None]),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return batches.prefetch(tf.data.AUTOTUNE)


def ordered_batches(store: CubeStore, rows: NDArray[np.int64], batch_size: int) -> tf.data.Dataset:
    """Batches of the cubes of `rows`, in that order, to predict: int16 `(batch, z, y, x, 1)`."""
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    batches = batches.map(_gatherer(store), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _gatherer(store: CubeStore) -> Callable[[tf.Tensor], tf.Tensor]:
    """A graph function from rows `(n,)` to their cubes; reads the memory map in rising order."""
    cubes, shape = store.cubes, store.spec.shape_zyx
    inner = (slice(store.format.margin_vox, store.format.margin_vox + store.spec.size_vox),) * 3

    def read(rows: NDArray[np.int64]) -> NDArray[np.int16]:
        batch = np.empty((len(rows), *shape), cubes.dtype)
        for place in np.argsort(rows).tolist():
            batch[place] = cubes[rows[place]][inner]
        return store.format.unpack(batch)[..., None]

    def gather(rows: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(read, [rows], tf.int16), (None, *shape, 1))

    return gather
