"""Layers that Keras has, made faster."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("luna_cls")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' `BatchNormalization` through TensorFlow's fused kernel, for tensors of any rank.

    Keras normalises 5-D tensors with some twenty separate operations in float32. The statistics do not
    care how the other axes are arranged, so here the tensor is reshaped to 4-D, where one kernel does it
    all and reads bfloat16 directly. Variables, outputs, gradients and moving statistics are those of
    the layer it stands for, up to rounding.

    What the kernel cannot do (masks, `renorm`, a channel axis that is not the last, missing `gamma` or
    `beta`) and every backend but TensorFlow take Keras' own path.

    When `synchronized`, training takes the statistics of all replicas of TensorFlow's strategy: the mean
    first, and the variance about it, where Keras takes the mean of the squares less the mean's square.

    It takes the arguments of `keras.layers.BatchNormalization`.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises `inputs`, any shape with channels last; the same shape in the compute dtype."""
        if mask is None and training and self.synchronized and self._kernel_serves(inputs):
            return self._over_all_replicas(inputs)
        if mask is not None or self.synchronized or not self._kernel_serves(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        use_batch_statistics = bool(training and self.trainable)
        channels = inputs.shape[-1]
        shape = ops.shape(inputs)
        empty = tf.zeros((0,), tf.float32)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(inputs, (shape[0], -1, 1, channels)),
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=empty if use_batch_statistics else ops.cast(self.moving_mean, "float32"),
            variance=empty if use_batch_statistics else ops.cast(self.moving_variance, "float32"),
            epsilon=self.epsilon,
            is_training=use_batch_statistics,
        )
        if use_batch_statistics:
            # The kernel's variance divides by n - 1, Keras' moving variance is made from n.
            count = ops.cast(tf.size(inputs) // channels, "float32")
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance * (ops.maximum(count, 2.0) - 1.0) / count)
        return ops.cast(tf.reshape(outputs, shape), self.compute_dtype)

    def _over_all_replicas(self, inputs: Any) -> Any:
        import tensorflow as tf

        def total(values: Any) -> Any:
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

        values, axes = ops.cast(inputs, "float32"), list(range(len(inputs.shape) - 1))
        count = total(ops.cast(tf.size(values) // inputs.shape[-1], "float32"))
        mean = total(tf.reduce_sum(values, axes)) / count
        centered = values - mean
        variance = total(tf.reduce_sum(tf.square(centered), axes)) / count
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance)
        scale = ops.cast(self.gamma, "float32") * tf.math.rsqrt(variance + self.epsilon)
        return ops.cast(centered * scale + ops.cast(self.beta, "float32"), self.compute_dtype)

    def _move(self, average: Any, value: Any) -> None:
        average.assign(average * self.momentum + value * (1.0 - self.momentum))

    def _kernel_serves(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) > 2
            and self.axis in (-1, len(inputs.shape) - 1)
            and self.scale
            and self.center
            and not self.renorm
            and inputs.dtype in ("float32", "bfloat16", "float16")
        )
