"""Trains the seed CNN with the fused batch normalisation and with Keras' own, in turns.

python benchmarks/batch_normalization.py [--batch 64] [--rounds 5] [--steps 4]

Prints cubes/s and their ratio in float32 and in bfloat16. The nets take turns within a round and the
medians over the rounds are compared, so a machine whose speed drifts slows both.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from luna_cls.learning import models
from luna_cls.learning.layers import FusedBatchNormalization


def compiled_net(layer: type[keras.layers.BatchNormalization], precision: str) -> keras.Model:
    """The seed CNN with every batch normalisation of the class given, ready to train."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    net = models.seed_cnn()
    net = keras.models.clone_model(
        net,
        clone_function=lambda old: (
            layer if isinstance(old, FusedBatchNormalization) else type(old)
        ).from_config(old.get_config()),
    )
    net.compile("adamw", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    return net


def cubes_per_second(net: keras.Model, cubes: np.ndarray, labels: np.ndarray, steps: int) -> float:
    """Cubes trained on in a second, over `steps` steps."""
    start = time.perf_counter()
    for _ in range(steps):
        net.train_on_batch(cubes, labels)
    return steps * len(cubes) / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    cubes = generator.integers(-1000, 400, (options.batch, 31, 31, 31, 1), np.int16)
    labels = generator.integers(0, 2, (options.batch, 1)).astype("float32")
    for precision in ("float32", "mixed_bfloat16"):
        nets = {
            "fused": compiled_net(FusedBatchNormalization, precision),
            "keras": compiled_net(keras.layers.BatchNormalization, precision),
        }
        speeds: dict[str, list[float]] = {name: [] for name in nets}
        for net in nets.values():
            cubes_per_second(net, cubes, labels, 2)
        for _ in range(options.rounds):
            for name, net in nets.items():
                speeds[name].append(cubes_per_second(net, cubes, labels, options.steps))
        fused, stock = np.median(speeds["fused"]), np.median(speeds["keras"])
        print(
            f"{precision:15} fused {fused:6.1f} cubes/s   keras {stock:6.1f} cubes/s   "
            f"ratio {fused / stock:.2f}"
        )


if __name__ == "__main__":
    main()
