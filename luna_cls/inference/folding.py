"""A network as a TensorFlow graph for the CPU, with its batch normalisation folded away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from luna_cls.learning.layers import FusedBatchNormalization

Cubes = NDArray[np.int16]  # (n, z, y, x, 1), HU
PerChannel = NDArray[np.float64]  # (channels,), or one number for all

_AS_THEY_ARE = (  # layers that are called on tensors
    keras.layers.Rescaling,
    keras.layers.ReLU,
    keras.layers.Cropping3D,
)
_WIDEST_ROW = 64  # two of AMX' tiles


def fast(model: keras.Model) -> Callable[[Cubes], NDArray[np.float32]]:
    """The fastest way from cubes to logits here.

    On TensorFlow's CPU, a graph of its own, with what normalisation in inference is, `scale * x + offset`,
    folded into its neighbours in float64: into the convolution, the sum or the dense layer before it if
    nothing lies between; past max pooling, where a negative scale makes the pooling one of minima; into
    other normalisations; into the layer after it. Only before a convolution that pads with zeros an offset
    cannot be folded: there one kernel applies all that has come together. Weights are then rounded to what
    their layer computes in. What a pooling leaves out is not computed. Dropout is gone.

    The logits are those of the model up to rounding. Those of a cube depend neither on the other cubes of
    its batch nor on its place among them. The model's weights are read once: later changes do not count.

    A model with layers that this module does not know, other backends and GPUs run the model itself.

    Args:
        model: From int16 HU `(n, s, s, s, 1)` to logits `(n, 1)`, as `learning.models.load` gives it.

    Returns:
        A function from int16 HU `(n, s, s, s, 1)` to float32 logits `(n,)`.
    """

    def itself(cubes: Cubes) -> NDArray[np.float32]:
        return np.asarray(model.predict_on_batch(cubes), np.float32).reshape(-1)

    if keras.backend.backend() != "tensorflow":
        return itself
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU") or len(model.inputs) != 1 or len(model.outputs) != 1:
        return itself

    @tf.function(input_signature=[tf.TensorSpec(model.inputs[0].shape, tf.int16)], autograph=False)
    def graph(hu: Any) -> Any:
        return tf.cast(tf.reshape(_run(model, hu), (-1,)), tf.float32)

    try:
        graph.get_concrete_function()
    except _Unknown:
        return itself
    return lambda cubes: np.asarray(graph(cubes))


class _Unknown(Exception):  # noqa: N818
    """The model has something that this module does not fold."""


# What passes between layers.


@dataclass(frozen=True)
class _Affine:
    """`scale * tensor + offset`."""

    tensor: Any
    scale: PerChannel
    offset: PerChannel


@dataclass(frozen=True)
class _Linear:
    """A convolution, a dense layer or a sum that is not computed before its neighbours are known.

    Args:
        compute: Gives `scale * x + offset`, if told so rectified; of each axis perhaps only the first voxels.
    """

    compute: Callable[[PerChannel, PerChannel, bool, tuple[int, ...] | None], Any]


@dataclass(frozen=True)
class _Rectified:
    """`scale * max(linear, 0) + offset`."""

    linear: _Linear
    scale: PerChannel
    offset: PerChannel


_Value = _Affine | _Linear | _Rectified
_ONE, _ZERO = np.ones(1), np.zeros(1)


def _settled(value: _Value) -> _Affine:
    """With a tensor that is computed."""
    if isinstance(value, _Affine):
        return value
    if isinstance(value, _Linear):
        return _Affine(value.compute(_ONE, _ZERO, False, None), _ONE, _ZERO)
    return _Affine(value.linear.compute(_ONE, _ZERO, True, None), value.scale, value.offset)


def _tensor(value: _Value) -> Any:
    """The value itself, nothing pending."""
    value = _settled(value)
    if np.all(value.scale == 1) and not np.any(value.offset):
        return value.tensor
    import tensorflow as tf

    # oneDNN's batch normalisation; multiplication and addition of bfloat16 take four times as long.
    shape, channels = tf.shape(value.tensor), value.tensor.shape[-1]
    outputs, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(value.tensor, (shape[0], -1, 1, channels)),
        scale=np.broadcast_to(value.scale, channels).astype(np.float32),
        offset=np.broadcast_to(value.offset, channels).astype(np.float32),
        mean=np.zeros(channels, np.float32),
        variance=np.ones(channels, np.float32),
        epsilon=0.0,
        is_training=False,
    )
    return tf.reshape(outputs, shape)


# The graph.


def _run(model: keras.Model, hu: Any) -> Any:
    """The output of a model of layers for `hu`."""
    order: dict[int, Any] = {}  # nodes by the tensor they give, each after what it needs

    def visit(tensor: Any) -> None:
        if id(tensor) not in order and tensor is not model.inputs[0]:
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            for needed in node.input_tensors:
                visit(needed)
            order[id(tensor)] = node

    visit(model.outputs[0])
    uses = Counter(id(tensor) for node in order.values() for tensor in node.input_tensors)
    values: dict[int, _Value] = {id(model.inputs[0]): _Affine(hu, _ONE, _ZERO)}
    for name, node in order.items():
        value = _through(node, [values[id(tensor)] for tensor in node.input_tensors])
        values[name] = value if uses[name] < 2 else _settled(value)
    return _tensor(values[id(model.outputs[0])])


def _through(node: Any, inputs: list[_Value]) -> _Value:
    layer = node.operation
    is_told_more = any(option not in (None, False) for option in node.arguments.kwargs.values())
    dtype = getattr(layer, "compute_dtype", None)
    if is_told_more or len(node.outputs) != 1 or dtype not in ("float32", "bfloat16"):
        raise _Unknown
    if type(layer) in _LAYERS:
        return _LAYERS[type(layer)](node, *inputs)
    if type(layer) in _AS_THEY_ARE:
        return _called(node, *inputs)
    raise _Unknown


def _called(node: Any, value: _Value) -> _Value:
    return _Affine(node.operation(_tensor(value)), _ONE, _ZERO)


def _dropout(node: Any, value: _Value) -> _Value:
    del node
    return value


def _normalized(node: Any, value: _Value) -> _Value:
    layer = node.operation
    if layer.axis not in (-1, len(node.outputs[0].shape) - 1):
        raise _Unknown
    deviation = np.sqrt(_numbers(layer.moving_variance) + layer.epsilon)
    scale = (_numbers(layer.gamma) if layer.scale else _ONE) / deviation
    offset = (_numbers(layer.beta) if layer.center else _ZERO) - _numbers(layer.moving_mean) * scale
    if not isinstance(value, _Linear):
        return replace(value, scale=value.scale * scale, offset=value.offset * scale + offset)
    compute = value.compute
    return _Linear(lambda more, shift, *how: compute(more * scale, more * offset + shift, *how))


def _relu(node: Any, value: _Value) -> _Value:
    layer = node.operation
    is_plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
    if is_plain and isinstance(value, _Linear):
        return _Rectified(value, _ONE, _ZERO)
    return _called(node, value)


def _pooled(node: Any, value: _Value) -> _Value:
    """Maxima of `scale * x + offset`: those of x, or where the scale is negative its minima."""
    import tensorflow as tf

    layer = node.operation
    if layer.padding != "valid" or layer.data_format != "channels_last":
        raise _Unknown

    def pool(tensor: Any) -> Any:
        return tf.nn.max_pool3d(tensor, layer.pool_size, layer.strides, "VALID")

    if isinstance(value, _Linear):
        value = _settled(value)
    is_upright = np.all(value.scale >= 0)
    sign = np.where(value.scale < 0, -1.0, 1.0)
    if isinstance(value, _Affine):
        tensor = pool(value.tensor if is_upright else _tensor(_Affine(value.tensor, sign, _ZERO)))
        return _Affine(tensor, np.abs(value.scale), value.offset)
    windows = zip(node.outputs[0].shape[1:4], layer.pool_size, layer.strides, strict=True)
    read = tuple((count - 1) * stride + size for count, size, stride in windows)
    if is_upright:
        return _Affine(pool(value.linear.compute(_ONE, _ZERO, True, read)), value.scale, value.offset)
    extremes = pool(value.linear.compute(sign, _ZERO, False, read))
    extremes = tf.nn.relu(_tensor(_Affine(extremes, sign, _ZERO)))
    return _Affine(extremes, value.scale, value.offset)


def _averaged(node: Any, value: _Value) -> _Value:
    import tensorflow as tf

    layer = node.operation
    if layer.keepdims or layer.data_format != "channels_last":
        raise _Unknown
    value = _settled(value)
    means = tf.reduce_mean(tf.cast(value.tensor, tf.float32), (1, 2, 3))
    return replace(value, tensor=tf.cast(means, layer.compute_dtype))


def _joined(node: Any, *values: _Value) -> _Value:
    import tensorflow as tf

    layer = node.operation
    if layer.axis != -1:
        raise _Unknown
    settled = [_settled(value) for value in values]
    scales, offsets = (
        np.concatenate([np.broadcast_to(getattr(value, name), value.tensor.shape[-1]) for value in settled])
        for name in ("scale", "offset")
    )
    return _Affine(tf.concat([value.tensor for value in settled], -1), scales, offsets)


def _added(node: Any, *values: _Value) -> _Value:
    import tensorflow as tf

    del node

    def compute(scale: PerChannel, offset: PerChannel, rectified: bool, read: Any) -> Any:
        terms = []
        for value in values:
            if isinstance(value, _Linear):
                terms.append(value.compute(scale, offset, False, read))
            else:
                known = _settled(value)
                known = replace(known, scale=known.scale * scale, offset=known.offset * scale + offset)
                terms.append(_tensor(known))
            offset = _ZERO
        total = sum(terms[1:], start=terms[0])
        return tf.nn.relu(total) if rectified else total

    return _Linear(compute)


def _dense(node: Any, value: _Value) -> _Value:
    import tensorflow as tf

    layer = node.operation
    kernel, bias = _weights(layer)
    value = _settled(value)
    tensor = tf.cast(value.tensor, layer.compute_dtype)
    if len(tensor.shape) != 2:
        raise _Unknown
    bias = bias + np.broadcast_to(value.offset, len(kernel)) @ kernel
    kernel = kernel * np.reshape(value.scale, (-1, 1))

    def compute(scale: PerChannel, offset: PerChannel, rectified: bool, read: Any) -> Any:
        del read
        outputs = tf.matmul(tensor, _constant(kernel * scale, tensor.dtype))
        outputs = tf.nn.bias_add(outputs, _constant(bias * scale + offset, tensor.dtype))
        return tf.nn.relu(outputs) if rectified else outputs

    return _activated(layer, _Linear(compute))


def _convolved(node: Any, value: _Value) -> _Value:
    import tensorflow as tf

    layer = node.operation
    if layer.groups != 1 or layer.data_format != "channels_last" or set(layer.dilation_rate) != {1}:
        raise _Unknown
    kernel, bias = _weights(layer)
    value = _settled(value)
    is_padded = layer.padding == "same" and max(layer.kernel_size) > 1
    if is_padded and np.any(value.offset):
        value = _Affine(_tensor(value), _ONE, _ZERO)
    tensor = tf.cast(value.tensor, layer.compute_dtype)
    bias = bias + np.einsum("zyxio,i->o", kernel, np.broadcast_to(value.offset, kernel.shape[3]))
    kernel = kernel * np.reshape(value.scale, (-1, 1))
    *edges, channels = tensor.shape[1:]
    is_banded = (
        channels == 1
        and layer.padding == "same"
        and set(layer.strides) == {1}
        and edges[2] <= _WIDEST_ROW
        and layer.compute_dtype == "bfloat16"
        and _cpu_has_amx()
    )

    def compute(scale: PerChannel, offset: PerChannel, rectified: bool, read: tuple[int, ...] | None) -> Any:
        folded, shift = kernel * scale, np.broadcast_to(bias * scale + offset, kernel.shape[-1])
        if is_banded:
            folded, shift = _band(folded, edges[2]), np.tile(shift, edges[2])
            outputs = tf.nn.conv2d(tensor[..., 0], _constant(folded, tensor.dtype), 1, "SAME")
        else:
            needed, padding = tensor, layer.padding.upper()
            if is_padded and read is not None and set(layer.strides) == {1} and list(read) != edges:
                needed, padding = _first(tensor, read, layer.kernel_size), "VALID"
            strides = (1, *layer.strides, 1)
            outputs = tf.nn.conv3d(needed, _constant(folded, tensor.dtype), strides, padding)
        outputs = tf.nn.bias_add(outputs, _constant(shift, tensor.dtype))
        outputs = tf.nn.relu(outputs) if rectified else outputs
        return tf.reshape(outputs, (-1, *edges, kernel.shape[-1])) if is_banded else outputs

    return _activated(layer, _Linear(compute))


def _first(tensor: Any, read: tuple[int, ...], kernel_size: tuple[int, ...]) -> Any:
    """What a convolution padded with zeros needs for the first voxels of its output, the zeros with it."""
    import tensorflow as tf

    before = [(size - 1) // 2 for size in kernel_size]
    needed = [edge + size - 1 - zeros for edge, size, zeros in zip(read, kernel_size, before, strict=True)]
    after = [max(last - edge, 0) for last, edge in zip(needed, tensor.shape[1:4], strict=True)]
    z, y, x = needed
    return tf.pad(tensor[:, :z, :y, :x], [[0, 0], *zip(before, after, strict=True), [0, 0]])


def _band(kernel: NDArray[np.float64], edge: int) -> NDArray[np.float64]:
    """A convolution of one channel with zero padding as one in which a row's voxels are channels.

    AMX multiplies 32 channels in the time of one, so that three times the speed is left of computing mostly
    with zeros.

    Args:
        kernel: Shape `(z, y, x, 1, channels)`.
        edge: Voxels in a row.

    Returns:
        Shape `(z, y, edge, edge * channels)`, for `(n, z, y, edge)` to `(n, z, y, edge * channels)`.
    """
    depth, height, width, _, channels = kernel.shape
    band = np.zeros((depth, height, edge, edge, channels))
    for x in range(edge):
        for tap in range(width):
            source = x + tap - (width - 1) // 2
            if 0 <= source < edge:
                band[:, :, source, x] = kernel[:, :, tap, 0]
    return band.reshape(depth, height, edge, edge * channels)


def _activated(layer: keras.Layer, linear: _Linear) -> _Value:
    if layer.activation is keras.activations.linear:
        return linear
    if layer.activation is keras.activations.relu:
        return _Rectified(linear, _ONE, _ZERO)
    raise _Unknown


def _weights(layer: keras.Layer) -> tuple[NDArray[np.float64], PerChannel]:
    return _numbers(layer.kernel), _numbers(layer.bias) if layer.use_bias else _ZERO


def _numbers(variable: Any) -> NDArray[np.float64]:
    import tensorflow as tf

    with tf.init_scope():  # not a part of the graph that is being made
        return np.asarray(variable.value.numpy(), np.float64)


def _constant(values: NDArray[np.float64], dtype: Any) -> Any:
    import tensorflow as tf

    return tf.constant(values.astype(dtype.as_numpy_dtype))  # in the graph: kernels are rearranged but once


def _cpu_has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")


_LAYERS: dict[type, Callable[..., _Value]] = {
    keras.layers.BatchNormalization: _normalized,
    FusedBatchNormalization: _normalized,
    keras.layers.Conv3D: _convolved,
    keras.layers.Dense: _dense,
    keras.layers.ReLU: _relu,
    keras.layers.MaxPooling3D: _pooled,
    keras.layers.GlobalAveragePooling3D: _averaged,
    keras.layers.Add: _added,
    keras.layers.Concatenate: _joined,
    keras.layers.Dropout: _dropout,
}
