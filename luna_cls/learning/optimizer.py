"""AdamW with a learning rate that goes by a schedule, that averages weights and tells its gradients' norm."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from luna_cls.errors import InputError
from luna_cls.settings import OptimizerSettings

_AVERAGE_WARMUP = 9  # steps after which an average keeps half of what it was, unless it is to keep less


class WatchedAdamW(keras.optimizers.AdamW):
    """Keras' AdamW that watches its gradients and may average the weights.

    `largest_gradient_norm` is the largest norm of a gradient, before it is clipped, since that was last set
    to 0. Gradients are clipped by the norm of the whole batch's; Keras' own `global_clipnorm` clips the share
    of each replica, which is another thing.

    `averages`, one for each trainable weight, follow the weights after every step: a step keeps the share
    `ema` of an average, or less at the beginning, so that it forgets where the weights began. Keras' own
    `use_ema` does not, and puts its averages in the weights' place whenever `fit` ends.

    Args:
        ema: That share; None for no averages.
        clip_norm: The largest norm, of all gradients together; None for any.
        **kwargs: Those of `keras.optimizers.AdamW`.
    """

    def __init__(self, *, ema: float | None = None, clip_norm: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ema, self._clip_norm = ema, clip_norm
        self.averages: list[Any] = []

    def build(self, variables: list[Any]) -> None:
        """Adds the variables."""
        if self.built:
            return
        self.largest_gradient_norm = self.add_variable(
            (), name="largest_gradient_norm", aggregation="only_first_replica"
        )
        super().build(variables)
        if self._ema is not None:
            self.averages = [self.add_variable_from_reference(variable, "average") for variable in variables]

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates the weights."""
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        known = [ops.cast(grad, "float32") for grad in grads if grad is not None]
        norm = ops.sqrt(ops.sum(ops.stack([ops.sum(ops.square(grad)) for grad in _of_all_replicas(known)])))
        self.largest_gradient_norm.assign(ops.maximum(self.largest_gradient_norm, norm))
        if self._clip_norm is not None:
            scale = self._clip_norm / ops.maximum(norm, self._clip_norm)
            grads = [None if grad is None else grad * ops.cast(scale, grad.dtype) for grad in grads]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one weight, and its average."""
        super().update_step(gradient, variable, learning_rate)
        if self._ema is None:
            return
        average = self.averages[self._get_variable_index(variable)]
        steps = ops.cast(self.iterations, average.dtype)
        kept = ops.minimum(ops.cast(self._ema, average.dtype), steps / (steps + _AVERAGE_WARMUP))
        self.assign(average, average * kept + ops.cast(variable, average.dtype) * (1 - kept))


def adamw(settings: OptimizerSettings, steps: int, ema: float | None = None) -> WatchedAdamW:
    """A new optimizer.

    Args:
        settings: What it is to be.
        steps: Those of the whole training.
        ema: What share of its average of the weights a step keeps; None for no average.

    Raises:
        InputError: If the learning rate is to warm up longer than the training goes on, or by a schedule that
            does not.
    """
    optimizer = WatchedAdamW(
        learning_rate=_schedule(settings, steps),
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        ema=ema,
    )
    if not settings.decay_biases_and_normalization:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _of_all_replicas(grads: list[Any]) -> list[Any]:
    """The gradients of the whole batch, where TensorFlow has split it over several replicas."""
    if keras.backend.backend() != "tensorflow":
        return grads
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return grads
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, grads))


def _schedule(settings: OptimizerSettings, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    warmup, peak = settings.warmup_steps, settings.learning_rate
    if settings.schedule == "exponential":
        if warmup:
            raise InputError(
                "optimizer.warmup_steps goes with optimizer.schedule = cosine. Received: "
                f"{warmup} with exponential. Set it to 0, or choose cosine."
            )
        return keras.optimizers.schedules.ExponentialDecay(
            peak, settings.decay_steps, settings.decay_rate, staircase=settings.staircase
        )
    if warmup >= steps:
        raise InputError(
            f"optimizer.warmup_steps must be fewer than the {steps:,} steps of the training. "
            f"Received: {warmup:,}."
        )
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(peak, steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=peak, warmup_steps=warmup
    )
