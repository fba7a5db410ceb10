"""Which cube is where in which batch: a pure function of the seed and the epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """The order in which training cubes are seen.

    Cubes are drawn from an endless stream in which one shuffled pass over all of them follows another,
    so over any run every cube is seen equally often, give or take one. With `positives_per_batch` or
    `negatives_per_positive`, nodules and the rest are two streams and each batch takes its share of both.

    Args:
        negatives: Rows of class 0, int64 `(n,)`.
        positives: Rows of class 1, int64 `(m,)`.
        batch_size: Cubes in a batch.
        seed: Same seed, same order.
        steps_per_epoch: Batches in an epoch. None for one pass: over all cubes at natural
            prevalence (the last batch may be shorter), over the negatives otherwise.
        positives_per_batch: Nodules in every batch, exactly.
        negatives_per_positive: Look-alikes for every nodule: batches take as many nodules as keep that
            ratio over any number of batches, give or take one. Without either, natural prevalence.

    Raises:
        InputError: If a number is not positive, a class is missing, or both shares are given.
    """

    negatives: Rows
    positives: Rows
    batch_size: int
    seed: int
    steps_per_epoch: int | None = None
    positives_per_batch: int | None = None
    negatives_per_positive: float | None = None

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
        k, ratio = self.positives_per_batch, self.negatives_per_positive
        if (k is not None or ratio is not None) and self.batch_size < 2:
            raise InputError(
                "A batch of one cube cannot hold both classes: raise training.batch_size, or leave "
                "sampling at natural prevalence."
            )
        if k is not None and not 0 < k < self.batch_size:
            raise InputError(
                f"sampling.positives_per_batch must lie between 1 and {self.batch_size - 1}, "
                f"one less than the batch. Received: {k}."
            )
        if ratio is not None and not (least := 1 / (self.batch_size - 1)) <= ratio <= len(self.negatives):
            raise InputError(
                f"sampling.negatives_per_positive must lie between {least:.3g}, where a batch holds one "
                f"look-alike, and {len(self.negatives)}, all there are. Received: {ratio}."
            )
        if k is not None and ratio is not None:
            raise InputError(
                "sampling.positives_per_batch and sampling.negatives_per_positive exclude each other. "
                f"Received: {k} and {ratio}."
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        if self._nodules is None:
            return -(-(len(self.negatives) + len(self.positives)) // self.batch_size)
        return math.ceil(len(self.negatives) / (self.batch_size - self._nodules))

    @property
    def cubes_per_epoch(self) -> int:
        """Cubes in an epoch."""
        if self.steps_per_epoch is None and self._nodules is None:
            return len(self.negatives) + len(self.positives)
        return self.steps * self.batch_size

    @property
    def positive_share(self) -> float:
        """Nodules among the cubes that are seen, 0 to 1."""
        return self._natural_share if self._nodules is None else float(self._nodules / self.batch_size)

    @property
    def visits_per_epoch(self) -> tuple[float, float]:
        """How often an epoch sees a row of class 0, and one of class 1, on the mean."""
        seen = self.positive_share * self.cubes_per_epoch
        return (self.cubes_per_epoch - seen) / len(self.negatives), seen / len(self.positives)

    @property
    def natural_weights(self) -> tuple[float, float]:
        """What a row of class 0, and one of class 1, would weigh to make the seen cubes stand for all."""
        natural, seen = self._natural_share, self.positive_share
        return (1 - natural) / (1 - seen), natural / seen

    @property
    def prior_shift(self) -> float:
        """What to add to a logit learned on the seen cubes so that it means natural prevalence."""
        negative, positive = self.natural_weights
        return math.log(positive / negative)

    @property
    def _natural_share(self) -> float:
        return len(self.positives) / (len(self.negatives) + len(self.positives))

    @property
    def _nodules(self) -> Fraction | None:
        """Nodules a batch holds on the mean, exactly; None at natural prevalence."""
        if self.negatives_per_positive is not None:
            return self.batch_size / (1 + Fraction(self.negatives_per_positive))
        return None if self.positives_per_batch is None else Fraction(self.positives_per_batch)

    def epoch(self, epoch: int) -> Rows:
        """The rows of epoch `epoch` in order, int64 `(n,)`; batch i is `[i * batch_size:][:batch_size]`."""
        if self._nodules is None:
            rows = np.sort(np.concatenate([self.negatives, self.positives]))
            return _stream(rows, epoch * self.cubes_per_epoch, self.cubes_per_epoch, (self.seed, 0))
        steps = range(epoch * self.steps, (epoch + 1) * self.steps + 1)
        nodules_before = np.array([math.floor(step * self._nodules) for step in steps])
        is_nodule = np.arange(self.batch_size) < np.diff(nodules_before)[:, None]
        batches = np.empty((self.steps, self.batch_size), np.int64)
        for rows, is_theirs, start, stream in (
            (self.positives, is_nodule, nodules_before[0], 1),
            (self.negatives, ~is_nodule, steps[0] * self.batch_size - nodules_before[0], 2),
        ):
            batches[is_theirs] = _stream(rows, int(start), int(is_theirs.sum()), (self.seed, stream))
        # Shuffled within each batch, so that every replica's shard of it gets its share of nodules.
        return np.random.default_rng([self.seed, 3, epoch]).permuted(batches, axis=1).reshape(-1)

    def batches_without_positives(self, epoch: int = 0) -> int:
        """How many batches of an epoch hold no nodule."""
        is_nodule = np.isin(self.epoch(epoch), self.positives)
        return int((np.add.reduceat(is_nodule, np.arange(0, len(is_nodule), self.batch_size)) == 0).sum())


def _stream(rows: Rows, start: int, length: int, key: tuple[int, int]) -> Rows:
    """`length` rows from place `start` of the endless stream of shuffled passes."""
    first, last = start // len(rows), max(start, start + length - 1) // len(rows)
    passes = [np.random.default_rng([*key, index]).permutation(rows) for index in range(first, last + 1)]
    offset = start - first * len(rows)
    return np.concatenate(passes)[offset : offset + length]
