"""Which cube is where in which batch: a pure function of the seed and the epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """The order in which training cubes are seen.

    Cubes are drawn from an endless stream in which one shuffled pass over all of them follows another,
    so over any run every cube is seen equally often, give or take one. With `positives_per_batch`,
    nodules and the rest are two streams and each batch takes its exact share of both.

    Args:
        negatives: Rows of class 0, int64 `(n,)`.
        positives: Rows of class 1, int64 `(m,)`.
        batch_size: Cubes in a batch.
        seed: Same seed, same order.
        steps_per_epoch: Batches in an epoch. None for one pass: over all cubes at natural
            prevalence (the last batch may be shorter), over the negatives with `positives_per_batch`.
        positives_per_batch: Nodules in every batch; None for natural prevalence.

    Raises:
        InputError: If a number is not positive or a class is missing.
    """

    negatives: Rows
    positives: Rows
    batch_size: int
    seed: int
    steps_per_epoch: int | None = None
    positives_per_batch: int | None = None

    def __post_init__(self) -> None:
        for rows, kind in ((self.positives, "nodule (class 1)"), (self.negatives, "look-alike (class 0)")):
            if not len(rows):
                raise InputError(
                    f"No training cube is a {kind}: one class alone cannot be told apart. "
                    "Add scans that hold the other, or change the folds."
                )
        for name, number in (("batch_size", self.batch_size), ("steps_per_epoch", self.steps_per_epoch)):
            if number is not None and number < 1:
                raise InputError(f"training.{name} must be at least 1. Received: {number}.")
        k = self.positives_per_batch
        if k is not None and not 0 < k < self.batch_size:
            raise InputError(
                f"sampling.positives_per_batch must lie between 1 and {self.batch_size - 1}, "
                f"one less than the batch. Received: {k}."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        if self.positives_per_batch is None:
            return -(-(len(self.negatives) + len(self.positives)) // self.batch_size)
        return -(-len(self.negatives) // (self.batch_size - self.positives_per_batch))

    @property
    def cubes_per_epoch(self) -> int:
        """Cubes in an epoch."""
        if self.steps_per_epoch is None and self.positives_per_batch is None:
            return len(self.negatives) + len(self.positives)
        return self.steps * self.batch_size

    def epoch(self, epoch: int) -> Rows:
        """The rows of epoch `epoch` in order, int64 `(n,)`; batch i is `[i * batch_size:][:batch_size]`."""
        if self.positives_per_batch is None:
            rows = np.sort(np.concatenate([self.negatives, self.positives]))
            return _stream(rows, epoch * self.cubes_per_epoch, self.cubes_per_epoch, (self.seed, 0))
        k = self.positives_per_batch
        nodules = self._share(self.positives, epoch, k, 1)
        rest = self._share(self.negatives, epoch, self.batch_size - k, 2)
        batches = np.concatenate([nodules, rest], axis=1)
        # Shuffled within each batch, so that every replica's shard of it gets its share of nodules.
        return np.random.default_rng([self.seed, 3, epoch]).permuted(batches, axis=1).reshape(-1)

    def _share(self, rows: Rows, epoch: int, per_batch: int, stream: int) -> Rows:
        length = self.steps * per_batch
        return _stream(rows, epoch * length, length, (self.seed, stream)).reshape(-1, per_batch)


def _stream(rows: Rows, start: int, length: int, key: tuple[int, int]) -> Rows:
    """`length` rows from place `start` of the endless stream of shuffled passes."""
    first, last = start // len(rows), (start + length - 1) // len(rows)
    passes = [np.random.default_rng([*key, index]).permutation(rows) for index in range(first, last + 1)]
    offset = start - first * len(rows)
    return np.concatenate(passes)[offset : offset + length]
