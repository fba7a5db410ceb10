"""Values and gradients of losses on whichever backend Keras runs on, outside and inside a compiled step."""

import functools

import keras
import numpy as np
from keras import ops

WAYS = {
    "tensorflow": ("eager", "graph", "xla"),
    "jax": ("eager", "jit"),
    "torch": ("eager", "traced"),
}[keras.backend.backend()]


def value_and_gradient(loss, labels, logits, way="eager", dtype="float32"):
    """What a loss says of labels and logits, and the gradient of its sum by the logits, as float64 arrays.

    A compiled step is kept for the next call with the same loss.
    """
    logits = ops.convert_to_tensor(np.asarray(logits, "float32"), dtype=dtype)
    labels = ops.convert_to_tensor(np.asarray(labels, "float32"))
    both = _step(loss, way)(labels, logits)
    value, gradient = (ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in both)
    return value.astype(float), gradient.astype(float)


@functools.lru_cache(maxsize=4)
def _step(loss, way):
    return _STEPS[keras.backend.backend()](loss, way)


def _on_tensorflow(loss, way):
    import tensorflow as tf

    def step(labels, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits)
            total = tf.reduce_sum(value)
        return value, tape.gradient(total, logits)

    return step if way == "eager" else tf.function(step, jit_compile=way == "xla")


def _on_jax(loss, way):
    import jax

    def total(logits, labels):
        value = loss(labels, logits)
        return value.sum(), value

    both = jax.value_and_grad(total, has_aux=True)
    if way == "jit":
        both = jax.jit(both)

    def step(labels, logits):
        (_, value), gradient = both(logits, labels)
        return value, gradient

    return step


def _on_torch(loss, way):
    import torch

    def forward(labels, logits):
        return loss(labels, logits)

    if way == "traced":
        forward = torch.compile(forward, backend="aot_eager")

    def step(labels, logits):
        logits = logits.detach().requires_grad_()
        value = forward(labels, logits)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        return value.detach(), gradient

    return step


_STEPS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}
