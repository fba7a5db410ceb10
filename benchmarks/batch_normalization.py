"""Trains the seed CNN with the fused batch normalisation and with Keras' own, in turns.

python benchmarks/batch_normalization.py [--batch 64] [--rounds 5] [--steps 4] [--json FILE]

Prints cubes/s and their ratio in float32 and in bfloat16. The nets take turns within a round and the
medians over the rounds are compared, so a machine whose speed drifts slows both.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rows
from turns import in_turns

from luna_cls.learning import models
from luna_cls.learning.layers import FusedBatchNormalization

FUSED = "luna_cls, fused"
LAYERS = {FUSED: FusedBatchNormalization, "Keras' own": keras.layers.BatchNormalization}


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
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    cubes = generator.integers(-1000, 400, (options.batch, 31, 31, 31, 1), np.int16)
    labels = generator.integers(0, 2, (options.batch, 1)).astype("float32")
    measured = []
    for precision in ("float32", "mixed_bfloat16"):
        contenders = {
            name: partial(cubes_per_second, compiled_net(layer, precision), cubes, labels, options.steps)
            for name, layer in LAYERS.items()
        }
        speeds = in_turns(contenders, options.rounds)
        what = f"training the same net with either batch normalisation, {precision}"
        measured += rows.in_turn(what, speeds, "cubes/s", to=FUSED, headlines=LAYERS)
        fused, stock = measured[-2:]
        print(
            f"{precision:15} fused {fused['figure']}   keras {stock['figure']}   "
            f"ratio {stock['ratio']['median']:.2f}"
        )
    rows.write(options.json, measured)


if __name__ == "__main__":
    main()
