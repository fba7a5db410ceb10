"""Loads TensorFlow for a command."""

from __future__ import annotations

from luna_cls.cli.console import detail, is_verbose
from luna_cls.startup import load_tensorflow_quietly


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras without their chatter; with --verbose, says on what they compute.

    Raises:
        InputError: If KERAS_BACKEND names a backend that is not there.
    """
    load_tensorflow_quietly()
    if is_verbose():
        from luna_cls.cli.versions import devices

        detail(f"Devices: {', '.join(devices() or ())}")
