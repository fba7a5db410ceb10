"""Layers of Keras as TensorFlow's fastest kernels on the CPU, each folded with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from luna_cls.learning.layers import FusedBatchNormalization

PerChannel = NDArray[np.float64]  # (channels,), or one number for all

_WIDEST_ROW = 64  # channels: two tiles of AMX


class UnknownLayerError(Exception):
    """The model has something that cannot be folded here."""


# What passes between layers.


@dataclass(frozen=True)
class Affine:
    """`scale * tensor + offset`."""

    tensor: Any
    scale: PerChannel
    offset: PerChannel


@dataclass(frozen=True)
class Linear:
    """A convolution, a dense layer or a sum that is not computed before its neighbours are known.

    Args:
        compute: Gives `scale * x + offset`, if told so rectified; of each axis perhaps only the first voxels.
    """

    compute: Callable[[PerChannel, PerChannel, bool, tuple[int, ...] | None], Any]


@dataclass(frozen=True)
class Rectified:
    """`scale * max(linear, 0) + offset`."""

    linear: Linear
    scale: PerChannel
    offset: PerChannel


Value = Affine | Linear | Rectified
ONE, ZERO = np.ones(1), np.zeros(1)


def settled(value: Value) -> Affine:
    """With a tensor that is computed."""
    if isinstance(value, Affine):
        return value
    if isinstance(value, Linear):
        return Affine(value.compute(ONE, ZERO, False, None), ONE, ZERO)
    return Affine(value.linear.compute(ONE, ZERO, True, None), value.scale, value.offset)


def tensor_of(value: Value) -> Any:
    """The value itself, nothing pending."""
    value = settled(value)
    if np.all(value.scale == 1) and not np.any(value.offset):
        return value.tensor
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


def through(node: Any, inputs: list[Value]) -> Value:
    """What a layer makes of its inputs.

    Args:
        node: Keras' record of the call of a layer.
        inputs: Its inputs, each for it alone unless settled.

    Raises:
        UnknownLayerError: If the layer, or an option of it, is none that is folded here.
    """
    layer = node.operation
    is_told_more = any(option not in (None, False) for option in node.arguments.kwargs.values())
    dtype = getattr(layer, "compute_dtype", None)
    is_quantized = getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False)
    if is_told_more or is_quantized or len(node.outputs) != 1 or dtype not in ("float32", "bfloat16"):
        raise UnknownLayerError
    if type(layer) in _LAYERS:
        return _LAYERS[type(layer)](node, *inputs)
    raise UnknownLayerError


def _called(node: Any, value: Value) -> Value:
    return Affine(node.operation(tensor_of(value)), ONE, ZERO)


def _dropout(node: Any, value: Value) -> Value:
    del node
    return value


def _normalized(node: Any, value: Value) -> Value:
    layer = node.operation
    if layer.axis not in (-1, len(node.outputs[0].shape) - 1):
        raise UnknownLayerError
    deviation = np.sqrt(_numbers(layer.moving_variance) + layer.epsilon)
    scale = (_numbers(layer.gamma) if layer.scale else ONE) / deviation
    offset = (_numbers(layer.beta) if layer.center else ZERO) - _numbers(layer.moving_mean) * scale
    if isinstance(value, Affine):
        value = replace(value, tensor=tf.cast(value.tensor, layer.compute_dtype))
    if not isinstance(value, Linear):
        return replace(value, scale=value.scale * scale, offset=value.offset * scale + offset)
    compute = value.compute
    return Linear(lambda more, shift, *how: compute(more * scale, more * offset + shift, *how))


def _relu(node: Any, value: Value) -> Value:
    layer = node.operation
    is_plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
    if is_plain and isinstance(value, Linear):
        return Rectified(value, ONE, ZERO)
    return _called(node, value)


def _pooled(node: Any, value: Value) -> Value:
    """Maxima of `scale * x + offset`: those of x, or where the scale is negative its minima."""
    layer = node.operation
    if layer.padding != "valid" or layer.data_format != "channels_last":
        raise UnknownLayerError

    def pool(tensor: Any) -> Any:
        return tf.nn.max_pool3d(tensor, layer.pool_size, layer.strides, "VALID")

    if isinstance(value, Linear):
        value = settled(value)
    is_upright = np.all(value.scale >= 0)
    sign = np.where(value.scale < 0, -1.0, 1.0)
    if isinstance(value, Affine):
        tensor = pool(value.tensor if is_upright else tensor_of(Affine(value.tensor, sign, ZERO)))
        return Affine(tensor, np.abs(value.scale), value.offset)
    windows = zip(node.outputs[0].shape[1:4], layer.pool_size, layer.strides, strict=True)
    read = tuple((count - 1) * stride + size for count, size, stride in windows)
    if is_upright:
        return Affine(pool(value.linear.compute(ONE, ZERO, True, read)), value.scale, value.offset)
    extremes = pool(value.linear.compute(sign, ZERO, False, read))
    extremes = tf.nn.relu(tensor_of(Affine(extremes, sign, ZERO)))
    return Affine(extremes, value.scale, value.offset)


def _averaged(node: Any, value: Value) -> Value:
    layer = node.operation
    if layer.keepdims or layer.data_format != "channels_last":
        raise UnknownLayerError
    value = settled(value)
    means = tf.reduce_mean(tf.cast(value.tensor, tf.float32), (1, 2, 3))
    return replace(value, tensor=tf.cast(means, layer.compute_dtype))


def _joined(node: Any, *values: Value) -> Value:
    layer = node.operation
    if layer.axis != -1:
        raise UnknownLayerError
    known = [settled(value) for value in values]
    scales, offsets = (
        np.concatenate([np.broadcast_to(getattr(value, name), value.tensor.shape[-1]) for value in known])
        for name in ("scale", "offset")
    )
    tensors = [tf.cast(value.tensor, layer.compute_dtype) for value in known]
    return Affine(tf.concat(tensors, -1), scales, offsets)


def _added(node: Any, *values: Value) -> Value:
    dtype = node.operation.compute_dtype
    if len({tuple(tensor.shape) for tensor in node.input_tensors}) > 1:
        raise UnknownLayerError  # one of them is repeated

    def compute(scale: PerChannel, offset: PerChannel, rectified: bool, read: Any) -> Any:
        terms = []
        for value in values:
            if isinstance(value, Linear):
                terms.append(tf.cast(value.compute(scale, offset, False, read), dtype))
            else:
                known = settled(value)
                known = replace(known, scale=known.scale * scale, offset=known.offset * scale + offset)
                terms.append(tf.cast(tensor_of(known), dtype))
            offset = ZERO
        if read is not None:  # a term may have given all of its voxels
            z, y, x = read
            terms = [term[:, :z, :y, :x] for term in terms]
        total = sum(terms[1:], start=terms[0])
        return tf.nn.relu(total) if rectified else total

    return Linear(compute)


def _dense(node: Any, value: Value) -> Value:
    layer = node.operation
    kernel, bias = _weights(layer)
    value = settled(value)
    tensor = tf.cast(value.tensor, layer.compute_dtype)
    if len(tensor.shape) != 2:
        raise UnknownLayerError
    bias = bias + np.broadcast_to(value.offset, len(kernel)) @ kernel
    kernel = kernel * np.reshape(value.scale, (-1, 1))

    def compute(scale: PerChannel, offset: PerChannel, rectified: bool, read: Any) -> Any:
        del read
        outputs = tf.matmul(tensor, _constant(kernel * scale, tensor.dtype))
        outputs = tf.nn.bias_add(outputs, _constant(bias * scale + offset, tensor.dtype))
        return tf.nn.relu(outputs) if rectified else outputs

    return _activated(layer, Linear(compute))


def _convolved(node: Any, value: Value) -> Value:
    layer = node.operation
    if layer.groups != 1 or layer.data_format != "channels_last" or set(layer.dilation_rate) != {1}:
        raise UnknownLayerError
    kernel, bias = _weights(layer)
    value = settled(value)
    is_padded = layer.padding == "same" and max(layer.kernel_size) > 1
    if is_padded and np.any(value.offset):
        value = Affine(tensor_of(value), ONE, ZERO)
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

    return _activated(layer, Linear(compute))


def _first(tensor: Any, read: tuple[int, ...], kernel_size: tuple[int, ...]) -> Any:
    """What a convolution padded with zeros needs for the first voxels of its output, the zeros with it."""
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


def _activated(layer: keras.Layer, linear: Linear) -> Value:
    if layer.activation is keras.activations.linear:
        return linear
    if layer.activation is keras.activations.relu:
        return Rectified(linear, ONE, ZERO)
    raise UnknownLayerError


def _weights(layer: keras.Layer) -> tuple[NDArray[np.float64], PerChannel]:
    return _numbers(layer.kernel), _numbers(layer.bias) if layer.use_bias else ZERO


def _numbers(variable: Any) -> NDArray[np.float64]:
    with tf.init_scope():  # not a part of the graph that is being made
        return np.asarray(variable.value.numpy(), np.float64)


def _constant(values: NDArray[np.float64], dtype: Any) -> Any:
    return tf.constant(values.astype(dtype.as_numpy_dtype))  # in the graph: kernels are rearranged but once


def _cpu_has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")


_LAYERS: dict[type, Callable[..., Value]] = {
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
    keras.layers.Rescaling: _called,
    keras.layers.Cropping3D: _called,
}
