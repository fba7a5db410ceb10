"""AdamW with a decaying learning rate, that tells how large its gradients are."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from luna_cls.settings import OptimizerSettings


class WatchedAdamW(keras.optimizers.AdamW):
    """Keras' AdamW, and the largest norm of a gradient since `largest_gradient_norm` was last set to 0.

    On several replicas, that of the first one's share.
    """

    def build(self, variables: list[Any]) -> None:
        """Adds the variables."""
        if not self.built:
            self.largest_gradient_norm = self.add_variable(
                (), name="largest_gradient_norm", aggregation="only_first_replica"
            )
        super().build(variables)

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates the weights."""
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        squares = [ops.sum(ops.square(ops.cast(grad, "float32"))) for grad in grads if grad is not None]
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        self.largest_gradient_norm.assign(ops.maximum(self.largest_gradient_norm, norm))
        super().apply(grads, trainable_variables)


def adamw(settings: OptimizerSettings) -> WatchedAdamW:
    """A new optimizer, as the settings say."""
    optimizer = WatchedAdamW(
        keras.optimizers.schedules.ExponentialDecay(
            settings.learning_rate, settings.decay_steps, settings.decay_rate, staircase=settings.staircase
        ),
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    if not settings.decay_biases_and_normalization:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
