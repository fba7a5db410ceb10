"""The networks, by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import keras
from pydantic import Field, validate_call

from luna_cls.cubes.store import WINDOW_HU
from luna_cls.errors import InputError
from luna_cls.files import written_whole
from luna_cls.learning.layers import FusedBatchNormalization
from luna_cls.learning.naming import build
from luna_cls.learning.precision import bfloat16_is_native

# Models that come with the package, by name: each a .keras file with its card, a .json file, beside it.
PRETRAINED = {"phantom": Path(__file__).parents[1] / "pretrained" / "phantom.keras"}

Positive = Annotated[int, Field(ge=1)]


@validate_call
def seed_cnn(
    size_vox: Positive = 31,
    filters: Sequence[Positive] = (16, 32, 64, 128),
    dense_units: Positive = 512,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4,
    normalization_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99,
) -> keras.Sequential:
    """The forum's 3D CNN: blocks of two convolutions, then a dense head that speaks logits.

    Args:
        size_vox: Edge of the cubes.
        filters: Filters of each block; a block halves every edge.
        dense_units: Units of the hidden dense layer.
        dropout: Share of its outputs dropped in training.
        normalization_momentum: How slowly the statistics used in inference follow the batches'. At 0.99
            they need some 500 steps to arrive; before that validation says nothing of the model.

    Returns:
        A model from int16 HU `(batch, z, y, x, 1)` to float32 logits `(batch, 1)`. The window,
        [-1000, 400] HU to [0, 1], is part of it.

    Raises:
        InputError: If the cube is too small for so many blocks.
    """
    if size_vox < 2 ** len(filters):
        raise InputError(
            f"model.filters: {len(filters)} blocks halve a cube of {size_vox} voxels to nothing. Name fewer."
        )

    def normalization(name: str) -> keras.Layer:
        return FusedBatchNormalization(momentum=normalization_momentum, name=name)

    layers: list[keras.Layer] = [keras.Input((size_vox,) * 3 + (1,), dtype="int16", name="hu"), *_window()]
    for block, count in enumerate(filters, 1):
        for half in "ab":
            layers += [
                keras.layers.Conv3D(
                    count, 3, padding="same", activation="relu", name=f"block{block}_conv_{half}"
                ),
                normalization(f"block{block}_norm_{half}"),
            ]
        layers += [
            keras.layers.MaxPool3D(2, name=f"block{block}_pool"),
            normalization(f"block{block}_norm_pooled"),
        ]
    layers += [
        keras.layers.GlobalAveragePooling3D(name="head_average"),
        keras.layers.Dense(dense_units, activation="relu", name="head_dense"),
        normalization("head_norm"),
        keras.layers.Dropout(dropout, name="head_dropout"),
        keras.layers.Dense(1, dtype="float32", name="logit"),
    ]
    return keras.Sequential(layers, name="seed_cnn")


MODELS: dict[str, Callable[..., keras.Model]] = {"seed_cnn": seed_cnn}


def get(name: str, **parameters: Any) -> keras.Model:
    """A new model by name.

    Args:
        name: One of `MODELS`.
        **parameters: Its own parameters.

    Raises:
        InputError: If the name or a parameter is unknown or a value does not fit; lists the right ones.
    """
    return build("model", MODELS, name, parameters)


def save(model: keras.Model, path: Path, logit_shift: float = 0.0) -> None:
    """Writes a `.keras` file, whole or not at all, that Keras alone can open.

    The fused layers go into the file as the Keras layers they stand for.

    Args:
        model: Its last layer, dense, gives the logits.
        path: The file.
        logit_shift: Added to the logits, by way of the last bias.
    """
    plain = _rebuilt(model, FusedBatchNormalization, keras.layers.BatchNormalization)
    if logit_shift:
        plain.layers[-1].bias.assign_add([logit_shift])
    with written_whole(path) as temporary:
        plain.save(temporary)


def path_of(name_or_path: str | Path) -> Path:
    """Where a model of `PRETRAINED` lies; any other path as it is."""
    return PRETRAINED.get(str(name_or_path), Path(name_or_path))


def load(path: str | Path) -> keras.Model:
    """Opens a `.keras` file for inference, without running code from it; its layers are fused again.

    A model trained in bfloat16 computes in float32 on a machine that has no bfloat16 of its own.

    Args:
        path: The file, or the name of one in `PRETRAINED`.

    Raises:
        InputError: If the file is missing, no Keras model, or asks for code of its own.
    """
    path = path_of(path)
    if not path.is_file():
        raise InputError(
            f"No model at {path}. Give the model.keras of a run, or one that comes with luna_cls: "
            f"{', '.join(PRETRAINED)}."
        )
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a .keras file. Give the model.keras of a run.")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a hostile or damaged file makes Keras raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be loaded as a Keras model: {reason}") from error
    if not isinstance(model, keras.Model) or "layers" not in model.get_config():
        raise InputError(f"{path} is not a Keras model of layers. Received: a {type(model).__name__}.")
    fused = _rebuilt(
        model,
        keras.layers.BatchNormalization,
        FusedBatchNormalization,
        in_float32=not bfloat16_is_native(),
    )
    fused.jit_compile = jit_compile()
    return fused


def jit_compile() -> bool | str:
    """What to tell Keras' `compile`: no XLA on TensorFlow, where it would replace the fused kernel."""
    return False if keras.backend.backend() == "tensorflow" else "auto"


def _rebuilt(
    model: keras.Model, old: type[keras.Layer], new: type[keras.Layer], *, in_float32: bool = False
) -> keras.Model:
    """The same model and weights, not compiled, with every layer of class `old` made a `new`.

    With `in_float32`, layers that compute in bfloat16 do so no more.
    """
    config = model.get_config()
    for layer in config["layers"]:
        dtype = layer["config"].get("dtype")
        if in_float32 and isinstance(dtype, dict) and dtype["config"].get("name") == "mixed_bfloat16":
            dtype["config"]["name"] = "float32"
        if layer["class_name"] == old.__name__:
            layer.update(keras.saving.serialize_keras_object(new.from_config(layer["config"])))
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _window() -> list[keras.Layer]:
    """HU to [0, 1] with Keras' own layers, in float32: bfloat16 would round lung to steps of 4 HU."""
    low, high = WINDOW_HU
    scale = 1 / (high - low)
    return [
        keras.layers.Rescaling(scale, offset=-low * scale, dtype="float32", name="hu_window"),
        keras.layers.ReLU(max_value=1.0, dtype="float32", name="hu_window_clip"),
    ]
