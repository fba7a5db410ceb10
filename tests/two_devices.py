"""Trains under each loss on one device and on two, and prints what came of it as JSON.

A program of its own, since a process has to split its processor in two before the backend looks at it.
"""

import contextlib
import json
import sys

import keras
import numpy as np

from luna_cls.learning import losses
from luna_cls.learning.callbacks import AmplificationRamp
from luna_cls.learning.metrics import streaming_metrics

BACKEND = keras.backend.backend()
BATCH, BATCHES, EPOCHS = 16, 3, 2


def samples():
    """Batches whose nodules all fall to the first device, and one without any."""
    rng = np.random.default_rng(3)
    labels = np.zeros((BATCHES, BATCH, 1), "float32")
    labels[0, :5] = labels[1, :2] = 1
    inputs = rng.normal(labels - 0.5, 1.0, (BATCHES, BATCH, 4)).astype("float32")
    weights = rng.integers(0, 4, (BATCHES, BATCH, 1)).astype("float32")
    return [array.reshape(BATCHES * BATCH, -1) for array in (inputs, labels, weights)]


def trained(name, parameters, *, weighted):
    """The weights after the last step, and the logs of every epoch; BCE's, with all streaming metrics."""
    keras.utils.set_random_seed(1)
    inputs, labels, weights = samples()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    loss = losses.get(name, **parameters)
    metrics = streaming_metrics() if name == "bce" else []  # they count logits, whatever made them
    model.compile(keras.optimizers.SGD(0.1), loss, weighted_metrics=metrics, jit_compile=False)
    history = model.fit(
        inputs,
        labels,
        batch_size=BATCH,
        sample_weight=weights if weighted else None,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[AmplificationRamp(loss)] if name == "anyloss" else [],
    ).history
    return {
        "weights": np.concatenate([np.ravel(weight) for weight in model.get_weights()]).tolist(),
        "logs": {key: [float(value) for value in values] for key, values in history.items()},
    }


@contextlib.contextmanager
def two_devices():
    """Training inside is spread over both."""
    if BACKEND == "jax":
        spread = keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))
        keras.distribution.set_distribution(spread)
        yield spread.device_mesh.devices.size
        keras.distribution.set_distribution(None)
    else:
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy()
        with strategy.scope():
            yield strategy.num_replicas_in_sync


def main():
    """Trains under each of the variants on standard input."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    variants = json.load(sys.stdin)
    one = [trained(name, parameters, weighted=weighted) for name, parameters, weighted in variants]
    with two_devices() as count:
        two = [trained(name, parameters, weighted=weighted) for name, parameters, weighted in variants]
    json.dump({"devices": count, "one": one, "two": two}, sys.stdout)


if __name__ == "__main__":
    main()
