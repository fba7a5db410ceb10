"""Two devices train as one does: `two_devices.py` is the program that does both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from test_losses import PER_SAMPLE, VARIANTS

# What a parameter makes of one sample's loss knows of no device; what it makes of a batch's may.
CASES = [
    (name, parameters, False) for name, parameters in VARIANTS if not parameters or name not in PER_SAMPLE
]
CASES += [(name, {}, True) for name in ("bce", "anyloss", "sol")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras spreads torch over no devices"),
]


@pytest.fixture(scope="module")
def both():
    """What the program printed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("two_devices.py")],
        input=json.dumps(CASES),
        env={
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",  # JAX reads it
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name} {rest}" for name, *rest in CASES])
def test_two_devices_end_where_one_does(both, case):
    """After two epochs of three batches, one device without nodules, weights differ by 1e-5 at most.

    So do the losses of both epochs, with sample weights or without, and BCE's streaming metrics.
    """
    one, two = both["one"][case], both["two"][case]

    assert both["devices"] == 2
    assert np.ptp(one["weights"]) > 0.1
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=0, atol=1e-5)
    wanted = {"loss", "auc", "tn"} if CASES[case][0] == "bce" else {"loss"}
    assert two["logs"].keys() == one["logs"].keys() >= wanted
    for log, values in one["logs"].items():
        np.testing.assert_allclose(two["logs"][log], values, rtol=1e-5, atol=1e-5, err_msg=log)


def test_training_moves_the_weights(both):
    """No two losses end at the same weights, so equal ends are no sign of standing still."""
    ends = {tuple(np.round(end["weights"], 7)) for end in both["one"]}

    assert len(ends) >= len(CASES) - 4  # a few variants name their defaults
