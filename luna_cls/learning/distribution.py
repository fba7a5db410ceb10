"""One training on several devices of a machine, or on several machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from luna_cls.cubes.plan import Plan
from luna_cls.errors import InputError


class Devices:
    """What a training computes on: here, whatever Keras takes of itself.

    Attributes:
        replicas: Into how many parts a batch is split.
        process: The number of this process among those that train the model; the first is 0.
        processes: How many there are.
    """

    replicas = 1
    process, processes = 0, 1

    def building(self) -> AbstractContextManager[Any]:
        """Where the model that trains is made and compiled."""
        return nullcontext()

    def fitting(self) -> AbstractContextManager[Any]:
        """Where it is fitted."""
        return nullcontext()

    def apart(self) -> AbstractContextManager[Any]:
        """What a process does by itself in the midst of fitting."""
        return nullcontext()

    def join_statistics(self, model: keras.Model) -> None:
        """Makes batch normalisation see the whole batch, not the part of one device."""

    def any(self, answer: bool) -> bool:
        """Whether the answer is yes in any process; all must ask."""
        return answer

    def of_first(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the first process has; all must ask. Whatever is decided upon it, they decide alike."""
        return values

    def wait(self) -> None:
        """Until all processes have come here."""


class Mirrored(Devices):
    """Every GPU of this machine, or every logical device of its processor, each with a copy of the model.

    Raises:
        InputError: If Keras does not run on TensorFlow.
    """

    def __init__(self) -> None:
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"distribution = mirrored is for TensorFlow. On {keras.backend.backend()} choose multihost "
                "(jax only), or set KERAS_BACKEND=tensorflow."
            )
        import tensorflow as tf

        self._strategy = tf.distribute.MirroredStrategy()
        self.replicas = self._strategy.num_replicas_in_sync

    def building(self) -> AbstractContextManager[Any]:
        """The strategy's own scope."""
        return self._strategy.scope()

    def join_statistics(self, model: keras.Model) -> None:
        """Asks every batch normalisation for it."""
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


class Multihost(Devices):
    """Every device of every machine, by `jax.distributed`; one process a machine, or one a device.

    Batch SLURM and Open MPI jobs are known by JAX itself; elsewhere KERAS_DISTRIBUTION_JOB_ADDRESSES,
    KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID tell the address of the first process,
    how many there are and which of them this is.

    Raises:
        InputError: If Keras does not run on JAX, or the processes do not find each other.
    """

    def __init__(self) -> None:
        if keras.backend.backend() != "jax":
            raise InputError(
                f"distribution = multihost needs KERAS_BACKEND=jax. Received: {keras.backend.backend()}. Set "
                "it, or choose mirrored."
            )
        import jax

        if not jax.distributed.is_initialized():
            try:
                keras.distribution.initialize()
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"The processes of distribution = multihost do not find each other: {reason} Start them "
                    "with srun, or set KERAS_DISTRIBUTION_JOB_ADDRESSES=HOST:PORT, "
                    "KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID."
                ) from error
        self._spread = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.replicas = self._spread.num_model_replicas
        self.process, self.processes = jax.process_index(), jax.process_count()

    def building(self) -> AbstractContextManager[Any]:
        """As `fitting`."""
        return self.fitting()

    def fitting(self) -> AbstractContextManager[Any]:
        """Variables are copied to every device, batches split over them."""
        return _distributed(self._spread)

    def apart(self) -> AbstractContextManager[Any]:
        """On this process's first device."""
        return _distributed(None)

    def any(self, answer: bool) -> bool:
        """Gathers the answers."""
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.array([answer]))))

    def of_first(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sends them."""
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.broadcast_one_to_all(values))

    def wait(self) -> None:
        """Gathers nothing."""
        self.any(False)


_DEVICES: dict[str | None, type[Devices]] = {None: Devices, "mirrored": Mirrored, "multihost": Multihost}


def devices(distribution: str | None) -> Devices:
    """Those of the setting of that name: None, "mirrored" or "multihost".

    Raises:
        InputError: If they cannot be had.
    """
    return _DEVICES[distribution]()


def check_split(plan: Plan, replicas: int) -> None:
    """Makes sure that every batch can be split evenly.

    Raises:
        InputError: If one cannot; says what to change.
    """
    if plan.batch_size % replicas:
        raise InputError(
            f"training.batch_size must be a multiple of the number of devices, {replicas}. "
            f"Received: {plan.batch_size}."
        )
    whole, last = divmod(plan.cubes_per_epoch, plan.batch_size)
    if last % replicas:
        raise InputError(
            f"The last batch of an epoch, of {last} cubes, cannot be split evenly over {replicas} devices. "
            f"Set training.steps_per_epoch, as {max(1, whole)}."
        )


@contextmanager
def _distributed(spread: keras.distribution.DataParallel | None) -> Iterator[None]:
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(spread)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)
