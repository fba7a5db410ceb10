"""What may happen to a training cube: one operation per function, on a batch, in the graph.

Every operation takes cubes `(batch, z, y, x, 1)` of any type and a stateless seed, int `(2,)`, and
returns cubes of the same shape and type. The same seed gives the same result.
"""

from __future__ import annotations

import tensorflow as tf

Z, Y, X = 1, 2, 3


def flips(cubes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each cube along z, y and x, each with probability 1/2."""
    coins = _coins(cubes, seed, 3)
    for index, axis in enumerate((Z, Y, X)):
        cubes = _where(coins[:, index], tf.reverse(cubes, [axis]), cubes)
    return cubes


def quarter_turns(cubes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Turns each cube about z by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    coins = _coins(cubes, seed, 2)
    turned = tf.reverse(_swap_y_and_x(cubes), [X])
    cubes = _where(coins[:, 0], turned, cubes)
    return _where(coins[:, 1], tf.reverse(cubes, [Y, X]), cubes)


def _swap_y_and_x(cubes: tf.Tensor) -> tf.Tensor:
    # int16 travels as bfloat16, bit for bit: oneDNN moves that twice as fast, and complains about int16.
    as_is = cubes.dtype
    if as_is == tf.int16:
        cubes = tf.bitcast(cubes, tf.bfloat16)
    return tf.bitcast(tf.transpose(cubes, (0, Z, X, Y, 4)), as_is)


def _coins(cubes: tf.Tensor, seed: tf.Tensor, count: int) -> tf.Tensor:
    """Fair coins, bool `(batch, count)`."""
    return tf.random.stateless_uniform((tf.shape(cubes)[0], count), seed) < 0.5


def _where(chosen: tf.Tensor, these: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.reshape(chosen, (-1, 1, 1, 1, 1)), these, others)
