"""Loads TensorFlow without its chatter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from luna_cls.errors import InputError


def load_tensorflow_quietly() -> None:
    """Imports TensorFlow and Keras and looks for devices, with what C++ prints on the way discarded.

    Messages that no Python setting silences go straight to file descriptor 2, so that is where they are
    caught. A failing import raises as ever.

    Raises:
        InputError: If KERAS_BACKEND names a backend that is not there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _without_file_descriptor_2():
        try:
            import keras
        except (ImportError, ValueError) as error:
            backend = os.environ.get("KERAS_BACKEND", "")
            if backend in ("", "tensorflow"):
                raise
            raise InputError(
                f"Keras cannot run on KERAS_BACKEND={backend}: {error}. Install it, as pip install "
                "'luna_cls[jax]' does for jax, or unset KERAS_BACKEND."
            ) from error
        import tensorflow as tf

        if keras.backend.backend() == "tensorflow":
            tf.config.list_physical_devices()
        else:
            tf.config.set_visible_devices([], "GPU")  # it reads cubes; their memory is the backend's


@contextmanager
def _without_file_descriptor_2() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
