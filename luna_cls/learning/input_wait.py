"""How long a training waits for its batches."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class InputWait:
    """Adds up the time between asking for a batch and getting it.

    Keras asks for a batch inside the step it compiles, so nothing outside `fit` sees the wait. Here the two
    clocks lie in the pipeline, behind its last buffer: while the buffer is filled in time, a batch is there
    at once. The device is asked nothing: this costs 0.1 to 0.3 ms a step, on the host.

    The device stands idle for as long if every step ends before the next begins, as it does in `train`,
    which looks at each step's loss. Where batches are fetched ahead for several devices, it is idle for
    less.

    Attributes:
        seconds: Waited so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def measured(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """The same batches, the wait for each of them added to `seconds`."""

        def note(asked: float, got: float) -> np.int8:
            self.seconds += float(got - asked)
            return np.int8(0)

        def took(asked: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
            tf.numpy_function(note, [asked, tf.timestamp()], tf.int8)
            return batch

        asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())
        measured = tf.data.Dataset.zip((asked, batches)).map(took)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # a buffer behind the clocks would hide it
        return measured.with_options(options)
