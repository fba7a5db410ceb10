"""Trainings on two devices, and in two processes, against the same training on one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from luna_cls.cubes.plan import Plan
from luna_cls.errors import InputError
from luna_cls.learning import distribution

pytestmark = pytest.mark.slow

# Where a gradient is nothing but rounding, AdamW makes a full step of it: so large an `epsilon` stops that.
OPTIONS = [
    *("--val-folds", "3"),
    *("--set", "model.filters=[2,4]"),
    *("--set", "model.dense_units=8"),
    *("--set", "model.normalization_momentum=0.9"),
    *("--set", "training.epochs=2"),
    *("--set", "training.batch_size=6"),
    *("--set", "training.steps_per_epoch=4"),
    *("--set", "training.ema=0.9"),
    *("--set", "sampling.positives_per_batch=2"),
    *("--set", "optimizer.learning_rate=0.05"),
    *("--set", "optimizer.epsilon=1"),
    *("--set", "optimizer.clip_norm=0.5"),
    *("--set", "precision=float32"),
]

TWO_LOGICAL_DEVICES = """
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from luna_cls.__main__ import main
main()
"""

KEPT = """
import contextlib, os, sys
from luna_cls.learning import training
training.TemporaryDirectory = lambda: contextlib.nullcontext(os.environ["KEPT"])
from luna_cls.__main__ import main
main()
"""  # what a process that is not the first writes for itself can be looked at


def _started(program, *arguments, **environment):
    command = [sys.executable, "-c", program, "train", *map(str, arguments), *OPTIONS]
    return subprocess.Popen(
        command,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **{key: str(v) for key, v in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process, status=0):
    out, said = process.communicate(timeout=300)
    assert process.returncode == status, said[-2000:]
    return out, said


def _variables(run):
    """The model's variables, and the averages of its weights, in the last checkpoint."""
    with np.load(max(run.glob("checkpoint/*.npz"))) as file:
        names = json.loads(file["about"].tobytes())["names"]
        return {
            name: file[f"v{index}"]
            for index, name in enumerate(names)
            if name.endswith("_average") or (name.startswith("model/") and "seed" not in name)
        }


def _assert_close(actual, expected):
    """Weights to 1e-5; what batch normalisation counts, in float32 over 180,000 voxels, to a thousandth."""
    assert actual.keys() == expected.keys()
    assert len(actual) == 66
    for name, values in expected.items():
        rtol, atol = (1e-3, 1e-4) if "moving" in name else (0, 1e-5)
        np.testing.assert_allclose(actual[name], values, rtol=rtol, atol=atol, err_msg=name)


def _moved_by(run, name="model/0/kernel"):
    """How far the farthest weight of the first convolution has gone between the last two checkpoints."""
    before, after = (np.load(path) for path in sorted(run.glob("checkpoint/*.npz")))
    with before, after:
        index = json.loads(after["about"].tobytes())["names"].index(name)
        return np.abs(after[f"v{index}"] - before[f"v{index}"]).max()


def test_two_logical_devices_end_where_one_does(small_store, tmp_path, run_cli):
    """TensorFlow, mirrored: after 8 steps, batch normalisation over both, no weight is 1e-5 away."""
    options = ["--set", "model.dropout=0"]  # each device draws for its own cubes
    arguments = small_store.path, tmp_path / "two", *options, "--set", "distribution=mirrored"
    _ended(_started(TWO_LOGICAL_DEVICES, *arguments))
    one = run_cli("train", small_store.path, tmp_path / "one", *options, *OPTIONS)

    assert one.returncode == 0, one.stderr
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert environment["devices"] == ["cpu:0", "cpu:1"]
    assert _moved_by(tmp_path / "one") > 3e-4
    _assert_close(_variables(tmp_path / "two"), _variables(tmp_path / "one"))


def test_two_processes_end_where_one_does(small_store, tmp_path):
    """JAX, multihost: after 8 steps both have the same bits, and no weight is 1e-5 from one process's.

    Dropout and its luck included. The first writes the run and prints the results; the other neither.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = small_store.path, tmp_path / "two", "--set", "distribution=multihost"
    processes = [
        _started(
            KEPT,
            *arguments,
            KERAS_BACKEND="jax",
            KERAS_DISTRIBUTION_JOB_ADDRESSES=f"127.0.0.1:{port}",
            KERAS_DISTRIBUTION_NUM_PROCESSES=2,
            KERAS_DISTRIBUTION_PROCESS_ID=process,
            KEPT=tmp_path / "other",
        )
        for process in range(2)
    ]
    said = [_ended(process) for process in processes]
    _ended(_started(KEPT, small_store.path, tmp_path / "one", KERAS_BACKEND="jax"))

    first, other, one = (_variables(tmp_path / name) for name in ("two", "other", "one"))
    for name, values in first.items():
        np.testing.assert_array_equal(other[name], values, err_msg=name)
    assert _moved_by(tmp_path / "one") > 3e-4
    _assert_close(first, one)
    assert str(tmp_path / "two") in said[0][0]
    assert "validation" not in said[1][0] + said[1][1]
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert len(environment["devices"]) == 2
    assert (tmp_path / "two" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("backend", "name", "message"),
    [
        ("jax", "mirrored", "distribution = mirrored is for TensorFlow. On jax choose multihost"),
        (
            "tensorflow",
            "multihost",
            "distribution = multihost needs KERAS_BACKEND=jax. Received: tensorflow.",
        ),
        ("jax", "multihost", "The processes of distribution = multihost do not find each other: "),
    ],
)
def test_devices_that_cannot_be_had_are_refused(small_store, tmp_path, backend, name, message):
    """The wrong backend, and a process by itself: one line, status 1, no run."""
    arguments = small_store.path, tmp_path / "run", "--set", f"distribution={name}"
    _, said = _ended(_started(KEPT, *arguments, KERAS_BACKEND=backend), status=1)

    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "replicas", "message"),
    [
        ({"batch_size": 6}, 4, "multiple of the number of devices, 4. Received: 6"),
        ({"batch_size": 8}, 4, r"of 6 cubes, cannot be split evenly over 4 .*steps_per_epoch, as 3"),
        ({"batch_size": 32}, 4, r"of 30 cubes, cannot be split evenly over 4 .*steps_per_epoch, as 1"),
    ],
)
def test_every_batch_must_be_split_evenly(options, replicas, message):
    """An epoch of 30 cubes on four devices: neither its batches nor its last one may leave a remainder."""
    with pytest.raises(InputError, match=message):
        distribution.check_split(Plan(np.arange(25), np.arange(25, 30), seed=0, **options), replicas)


def test_batches_that_are_split_evenly_pass():
    """Batches of 6, the last one whole, on three devices; of 8, with 3 steps an epoch, on four."""
    distribution.check_split(Plan(np.arange(25), np.arange(25, 30), 6, 0), 3)
    distribution.check_split(Plan(np.arange(25), np.arange(25, 30), 8, 0, steps_per_epoch=3), 4)
