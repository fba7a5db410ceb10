"""The networks, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import keras
from pydantic import Field, validate_call

from luna_cls.cubes.store import WINDOW_HU
from luna_cls.errors import InputError
from luna_cls.files import written_whole
from luna_cls.learning import model_file
from luna_cls.learning.layers import FusedBatchNormalization
from luna_cls.learning.model_file import ModelFile
from luna_cls.learning.naming import build
from luna_cls.learning.precision import bfloat16_is_native

PRETRAINED, path_of = model_file.PRETRAINED, model_file.path_of  # the models that come with the package

_MOST_VALUES = 1 << 27  # of the output of a layer for one cube: 512 MiB

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
    _check_edge(size_vox, 2 ** len(filters), f"{len(filters)} blocks halve")

    def normalization(name: str) -> keras.Layer:
        return FusedBatchNormalization(momentum=normalization_momentum, name=name)

    layers: list[keras.Layer] = [_hu(size_vox), *_window()]
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


@validate_call
def resnet(
    size_vox: Positive = 31,
    filters: Sequence[Positive] = (16, 32, 64, 128),
    blocks: Positive = 1,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4,
    normalization_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95,
) -> keras.Model:
    """A 3D residual network with pre-activation (He et al. 2016, Identity Mappings).

    A convolution of `filters[0]`, then a stage for each further entry, which halves every edge and adds to
    its input, `blocks` times, what two convolutions make of it, each after normalisation and ReLU.

    Args:
        size_vox: Edge of the cubes.
        filters: Of the first convolution, and of each stage.
        blocks: Residual blocks in a stage.
        dropout: Share of the averaged features dropped in training.
        normalization_momentum: As in `seed_cnn`.

    Returns:
        A model as `seed_cnn` gives.

    Raises:
        InputError: If there is no stage, or the cube is too small for so many.
    """
    stages = filters[1:]
    if not stages:
        raise InputError(
            "model.filters of a resnet are those of its first convolution and of each stage: name two or "
            f"more. Received: {list(filters)}."
        )
    _check_edge(size_vox, 2 ** len(stages), f"{len(stages)} stages halve")

    def activated(outputs: Any, name: str) -> Any:
        outputs = FusedBatchNormalization(momentum=normalization_momentum, name=f"{name}_norm")(outputs)
        return keras.layers.ReLU(name=f"{name}_relu")(outputs)

    def convolved(outputs: Any, count: int, name: str, size: int = 3, strides: int = 1) -> Any:
        layer = keras.layers.Conv3D(
            count, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
        )
        return layer(outputs)

    hu = _hu(size_vox)
    outputs = convolved(_windowed(hu), filters[0], "stem_conv")
    for stage, count in enumerate(stages, 1):
        for block in range(1, blocks + 1):
            name, strides = f"stage{stage}_block{block}", 2 if block == 1 else 1
            inner = activated(outputs, f"{name}_a")
            kept = convolved(inner, count, f"{name}_project", 1, strides) if block == 1 else outputs
            inner = convolved(inner, count, f"{name}_a_conv", strides=strides)
            inner = convolved(activated(inner, f"{name}_b"), count, f"{name}_b_conv")
            outputs = keras.layers.Add(name=f"{name}_add")([kept, inner])
    outputs = keras.layers.GlobalAveragePooling3D(name="head_average")(activated(outputs, "head"))
    outputs = keras.layers.Dropout(dropout, name="head_dropout")(outputs)
    return keras.Model(hu, keras.layers.Dense(1, dtype="float32", name="logit")(outputs), name="resnet")


@validate_call
def contextual(
    size_vox: Positive = 41,
    contexts_vox: Annotated[Sequence[Positive], Field(min_length=1)] = (21, 31, 41),
    filters: Sequence[Positive] = (16, 32, 64),
    dense_units: Positive = 64,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4,
    normalization_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95,
) -> keras.Model:
    """A net that looks at a candidate in contexts of several sizes, after Dou et al. 2017.

    Each context is a cube of its own, 20, 30 and 40 mm from the first voxel's centre to the last's, cut from
    the middle of the one that goes in, and has its own convolutions. What they find is joined before the
    logit, where Dou et al. add up the probabilities of three nets that are trained apart.

    Args:
        size_vox: Edge of the cubes: 31 with a margin of 5 on each side, unless `contexts_vox` says otherwise.
        contexts_vox: Edge of each context.
        filters: Filters of each block; a block halves every edge.
        dense_units: Features of each context.
        dropout: Share of them dropped in training.
        normalization_momentum: As in `seed_cnn`.

    Returns:
        A model as `seed_cnn` gives.

    Raises:
        InputError: If a context is named twice, does not fit into the middle of the cube, or is too small
            for so many blocks.
    """
    if len(set(contexts_vox)) < len(contexts_vox):
        raise InputError(f"model.contexts_vox names a context twice. Received: {list(contexts_vox)}.")
    for edge in contexts_vox:
        if edge > size_vox or (size_vox - edge) % 2:
            raise InputError(
                f"model.contexts_vox: {edge} voxels cannot be cut from the middle of {size_vox}: it takes "
                "no more than that, and an even number less."
            )
        _check_edge(edge, 2 ** len(filters), f"{len(filters)} blocks halve")

    def normalized(outputs: Any, name: str) -> Any:
        return FusedBatchNormalization(momentum=normalization_momentum, name=name)(outputs)

    hu = _hu(size_vox)
    windowed, features = _windowed(hu), []
    for edge in contexts_vox:
        name = f"context{edge}"
        outputs = keras.layers.Cropping3D((size_vox - edge) // 2, name=f"{name}_crop")(windowed)
        for block, count in enumerate(filters, 1):
            outputs = keras.layers.Conv3D(
                count, 3, padding="same", activation="relu", name=f"{name}_block{block}_conv"
            )(outputs)
            outputs = normalized(outputs, f"{name}_block{block}_norm")
            outputs = keras.layers.MaxPool3D(2, name=f"{name}_block{block}_pool")(outputs)
        outputs = keras.layers.GlobalAveragePooling3D(name=f"{name}_average")(outputs)
        outputs = keras.layers.Dense(dense_units, activation="relu", name=f"{name}_dense")(outputs)
        features.append(normalized(outputs, f"{name}_dense_norm"))
    outputs = keras.layers.Concatenate(name="head_join")(features) if len(features) > 1 else features[0]
    outputs = keras.layers.Dropout(dropout, name="head_dropout")(outputs)
    return keras.Model(hu, keras.layers.Dense(1, dtype="float32", name="logit")(outputs), name="contextual")


MODELS: dict[str, Callable[..., keras.Model]] = {
    "seed_cnn": seed_cnn,
    "resnet": resnet,
    "contextual": contextual,
}


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
    saved = plain(model)
    if logit_shift:
        saved.layers[-1].bias.assign_add([logit_shift])
    with written_whole(path) as temporary:
        saved.save(temporary)


def load(path: str | Path) -> keras.Model:
    """Opens a `.keras` file for inference, without running code from it; its layers are fused again.

    A model trained in bfloat16 computes in float32 on a machine that has no bfloat16 of its own.

    Args:
        path: The file, or the name of one in `PRETRAINED`.

    Raises:
        InputError: If the file is missing, no Keras model, asks for code of its own, or is refused by
            `model_file`.
    """
    return opened(ModelFile.read(path_of(path)))


def opened(file: ModelFile) -> keras.Model:
    """`load` of a file that was read and checked already.

    Raises:
        InputError: If Keras cannot make a model of it, or only one that is too large for its file.
    """
    try:
        _check_size(file)
        with TemporaryDirectory() as private:  # Keras opens paths alone, and a path may change its file
            path = Path(private) / "model.keras"
            path.write_bytes(file.content)
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        return fused(model, in_float32=not bfloat16_is_native())
    except InputError:
        raise
    except Exception as error:  # whatever a hostile or damaged file makes Keras raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{file.what} cannot be loaded as a Keras model: {model_file.printable(reason)}"
        ) from error


def _check_size(file: ModelFile) -> None:
    """Refuses a model that takes more memory than its file stands for, before any of it is taken."""

    def sizes() -> tuple[str, int, int]:
        """What it is; how many weights it has; how many values the largest output of a layer has."""
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(deepcopy(dict(file.config)), safe_mode=True)
            if not isinstance(model, keras.Model) or "layers" not in model.get_config():
                return type(model).__name__, 0, 0
            return "", model.count_params(), max(_output_sizes(model), default=0)

    # Keras keeps, for each thread, a list of variables without values; this one ends with its thread.
    with ThreadPoolExecutor(1) as thread:
        other, weights, values = thread.submit(sizes).result()
    if other:
        raise InputError(f"{file.what} is not a Keras model of layers. Received: a {other}.")
    if weights > file.weight_bytes:  # one takes a byte at least
        raise InputError(
            f"{file.what} cannot be loaded as a Keras model: its layers ask for {weights:,} weights, and "
            f"there are {file.weight_bytes:,} bytes of them."
        )
    if values > _MOST_VALUES:
        raise InputError(
            f"{file.what} cannot be loaded as a Keras model: a layer of it makes {values:,} numbers of one "
            f"cube; at most {_MOST_VALUES:,} are made."
        )


def _output_sizes(model: keras.Model) -> Iterator[int]:
    """How many values each operation of a model, and of the models in it, gives for one cube."""
    for operation in getattr(model, "operations", model.layers):
        for node in operation._inbound_nodes:
            for tensor in node.output_tensors:
                yield math.prod(edge for edge in tensor.shape if edge is not None)
        if isinstance(operation, keras.Model):
            yield from _output_sizes(operation)


def fused(model: keras.Model, *, in_float32: bool = False) -> keras.Model:
    """A model with the same weights whose normalisations are fused, for inference.

    Args:
        model: Any.
        in_float32: Whether layers that compute in bfloat16 do so no more.
    """
    copy = _rebuilt(model, keras.layers.BatchNormalization, FusedBatchNormalization, in_float32=in_float32)
    copy.jit_compile = jit_compile()
    return copy


def plain(model: keras.Model, *, in_float32: bool = False) -> keras.Model:
    """A model with the same weights that has layers of Keras alone, as other tools know them.

    Args:
        model: Any.
        in_float32: Whether layers that compute in bfloat16 do so no more.
    """
    return _rebuilt(model, FusedBatchNormalization, keras.layers.BatchNormalization, in_float32=in_float32)


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
    copy = _model_of(type(model), config)
    copy.set_weights(model.get_weights())
    return copy


def _model_of(kind: type[keras.Model], config: dict[str, Any]) -> keras.Model:
    """Keras' `from_config`, which would build a Sequential model anew with each layer it adds."""
    if kind is not keras.Sequential:
        return kind.from_config(config)
    layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
    return keras.Sequential(layers, name=config["name"])


def _hu(size_vox: int) -> Any:
    return keras.Input((size_vox,) * 3 + (1,), dtype="int16", name="hu")


def _windowed(hu: Any) -> Any:
    for layer in _window():
        hu = layer(hu)
    return hu


def _check_edge(size_vox: int, smallest_vox: int, reason: str) -> None:
    if size_vox < smallest_vox:
        raise InputError(f"model.filters: {reason} a cube of {size_vox} voxels to nothing. Name fewer.")


def _window() -> list[keras.Layer]:
    """HU to [0, 1] with Keras' own layers, in float32: bfloat16 would round lung to steps of 4 HU."""
    low, high = WINDOW_HU
    scale = 1 / (high - low)
    return [
        keras.layers.Rescaling(scale, offset=-low * scale, dtype="float32", name="hu_window"),
        keras.layers.ReLU(max_value=1.0, dtype="float32", name="hu_window_clip"),
    ]
