"""A network as a TensorFlow graph for the CPU, with its batch normalisation folded away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

Cubes = NDArray[np.int16]  # (n, z, y, x, 1), HU


def fast(model: keras.Model) -> Callable[[Cubes], NDArray[np.float32]]:
    """The fastest way from cubes to logits here.

    On TensorFlow's CPU, a graph of its own, with what normalisation in inference is, `scale * x + offset`,
    folded into its neighbours in float64: into the convolution, the sum or the dense layer before it if
    nothing lies between; past max pooling, where a negative scale makes the pooling one of minima; into
    other normalisations; into the layer after it. Only before a convolution that pads with zeros an offset
    cannot be folded: there one kernel applies all that has come together. Weights are then rounded to what
    their layer computes in. What a pooling leaves out is not computed. Dropout is gone.

    The logits are those of the model up to rounding. Those of a cube depend neither on the other cubes of
    its batch nor on its place among them; in a batch of another size they may be rounded otherwise. The
    model's weights are read once: later changes do not count.

    A model with layers that are not known here, or quantised ones, runs itself, as on other backends and on
    GPUs.

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
        logits = _run(model, tf.cast(hu, model.inputs[0].dtype))
        return tf.cast(tf.reshape(logits, (-1,)), tf.float32)

    try:
        graph.get_concrete_function()
    except Exception:  # a layer that is not known, or whatever else a stranger's architecture brings up
        return itself
    return lambda cubes: np.asarray(graph(cubes))


def _run(model: keras.Model, hu: Any) -> Any:
    """The output of a model of layers for `hu`."""
    from luna_cls.inference.folded_layers import ONE, ZERO, Affine, Value, settled, tensor_of, through

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
    values: dict[int, Value] = {id(model.inputs[0]): Affine(hu, ONE, ZERO)}
    for name, node in order.items():
        value = through(node, [values[id(tensor)] for tensor in node.input_tensors])
        values[name] = value if uses[name] < 2 else settled(value)
    return tensor_of(values[id(model.outputs[0])])
