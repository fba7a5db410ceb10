"""What a bug report needs: versions, without loading what they are of; devices, once that is loaded."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from luna_cls import __version__

_PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "numpy",
    "pandas",
    "SimpleITK",
    "pydantic",
    "typer",
    "rich",
)


def versions() -> dict[str, str]:
    """What this runs on, by name; packages that are not installed are left out."""
    found = {"luna-cls": __version__, "Python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "backend": _backend()}


def _backend() -> str:
    """What Keras is to run on: the environment's word, else that of Keras' own file, else TensorFlow."""
    if named := os.environ.get("KERAS_BACKEND"):
        return f"{named} (KERAS_BACKEND)"
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        return f"{json.loads(file.read_text(encoding='utf-8'))['backend']} ({file})"
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def devices() -> list[str] | None:
    """The devices of the backend; None if it was not loaded."""
    if "keras" not in sys.modules or "tensorflow" not in sys.modules:
        return None
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return [str(device) for device in jax.devices()]
    if backend == "tensorflow":
        import tensorflow as tf

        return [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()]
    return [f"those of {backend}"]
