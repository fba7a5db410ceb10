"""Batches of cubes as `tf.data`: int16 HU all the way to the device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from luna_cls.cubes.augmentation import augmented, margin_vox, middle
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.plan import Plan
from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.settings import AugmentationSettings

_ALIGNED_BYTES = 64  # what TensorFlow takes over without a copy
_INT16 = np.iinfo(np.int16).min, np.iinfo(np.int16).max
_AUGMENTATION = 4  # sets its luck apart from the plan's


def training_batches(
    store: CubeStore,
    plan: Plan,
    epochs: range,
    augmentation: AugmentationSettings | None = None,
    skipped_steps: int = 0,
    share: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches of one epoch after another, as `plan` has them.

    What a batch holds, and how it is augmented, depends on the plan, its seed, the epoch and the step
    alone: not on the number of threads, nor on what came before.

    Args:
        store: The cubes.
        plan: Which row is where.
        epochs: Which epochs; each has `plan.steps` batches.
        augmentation: What is done to cubes at random; nothing if None.
        skipped_steps: With how many batches fewer the first epoch begins.
        share: Which of how many equal parts of every batch this process reads. Each has its own luck.

    Returns:
        Dataset of (cubes int16 `(batch, z, y, x, 1)`, labels float32 `(batch, 1)`).

    Raises:
        InputError: If the cubes have too little margin to be moved so far.
    """
    check_margin(store, augmentation)
    labels, spec = store.labels.astype(np.float32), store.spec
    part, parts = share
    luck = (_AUGMENTATION,) if parts == 1 else (_AUGMENTATION, part)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(lambda index: plan.epoch(int(index)), [epoch], tf.int64)
        steps = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [None])).batch(plan.batch_size)
        return steps.enumerate().map(lambda step, rows: (epoch, step, rows))

    def read(epoch: int, step: int, rows: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        rows = np.array_split(rows, parts)[part]
        rising = np.argsort(rows, kind="stable")  # as they lie on the disk
        stored = _hu(store, rows[rising], with_margin=augmentation is not None)
        seed = plan.seed, *luck, int(epoch), int(step)
        seen = stored if augmentation is None else augmented(stored, seed, augmentation, spec)
        return _batch(seen, rising, spec), labels[rows, None]

    def batch_of(epoch: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch, own_labels = tf.numpy_function(read, [epoch, step, rows], (tf.int16, tf.float32))
        return tf.ensure_shape(batch, (None, *spec.shape_zyx, 1)), tf.ensure_shape(own_labels, (None, 1))

    batches = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch).skip(skipped_steps)
    batches = batches.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def ordered_batches(store: CubeStore, rows: NDArray[np.int64], batch_size: int) -> tf.data.Dataset:
    """Batches of the cubes of `rows`, in that order, to predict: int16 `(batch, z, y, x, 1)`."""
    spec = store.spec

    def read(some: NDArray[np.int64]) -> NDArray[np.int16]:
        return _batch(_hu(store, some, with_margin=False), np.arange(len(some)), spec)

    def batch_of(some: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(read, [some], tf.int16), (None, *spec.shape_zyx, 1))

    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    batches = batches.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def check_margin(store: CubeStore, augmentation: AugmentationSettings | None) -> None:
    """Refuses to move cubes farther than their margin goes.

    Raises:
        InputError: If a cube would show what the store does not have.
    """
    needed = margin_vox(augmentation, store.spec) if augmentation else 0
    if needed > store.format.margin_vox:
        raise InputError(
            f"augmentation.shift_mm, scale and rotation_degrees need {needed} voxels around each cube of "
            f"{store.spec.size_vox}; {store.path} has {store.format.margin_vox}. Lower them, or prepare it "
            f"with --margin {needed + (store.spec.size_vox - CubeSpec().size_vox) // 2}."
        )


def _hu(store: CubeStore, rows: NDArray[np.int64], *, with_margin: bool) -> list[NDArray[np.int16]]:
    """The cubes of some rows; where the store holds HU, they are still on the disk."""
    cubes = [store.cubes[row] for row in rows.tolist()]
    if not with_margin:
        cubes = middle(cubes, store.spec.size_vox)
    return [store.format.unpack(cube) for cube in cubes]


def _batch(cubes: Iterable[NDArray[Any]], places: NDArray[np.intp], spec: CubeSpec) -> NDArray[np.int16]:
    """int16 HU `(n, z, y, x, 1)`: each cube at its place, rounded."""
    shape = len(places), *spec.shape_zyx, 1
    num_bytes = 2 * math.prod(shape)
    room = np.empty(num_bytes + _ALIGNED_BYTES, np.uint8)
    start = -room.ctypes.data % _ALIGNED_BYTES
    batch = room[start : start + num_bytes].view(np.int16).reshape(shape)
    for place, cube in zip(places.tolist(), cubes, strict=True):
        batch[place, ..., 0] = cube if cube.dtype == np.int16 else np.rint(cube).clip(*_INT16)
    return batch
