import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from luna_cls.errors import InputError
from luna_cls.learning import losses

LOGITS = np.array([-4.0, -3.0, -0.5, 0.0, 0.25, 2.0, 3.5])
# Beyond it, the focal loss of an easy example falls below what float32 can hold (6.7e-79 at -30).
LARGEST_LOGIT = 12
OWN_PARAMETERS = {"bce": (), "focal": ("gamma", "alpha")}


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def _value(loss, label, logit):
    return float(loss(np.full((1, 1), label, "float32"), np.full((1, 1), logit, "float32")))


def _gradient(loss, label, logit):
    variable = tf.Variable([[float(logit)]])
    with tf.GradientTape() as tape:
        value = loss(tf.constant([[float(label)]]), variable)
    return float(tape.gradient(value, variable)[0, 0])


def _bce(label, logits, label_smoothing=0.0):
    target = label * (1 - label_smoothing) + label_smoothing / 2
    return -target * np.log(_sigmoid(logits)) - (1 - target) * np.log(_sigmoid(-logits))


def _focal(label, logits, gamma, alpha=None):
    toward_truth = logits if label == 1 else -logits
    weight = 1.0 if alpha is None else alpha if label == 1 else 1 - alpha
    return -weight * _sigmoid(-toward_truth) ** gamma * np.log(_sigmoid(toward_truth))


@pytest.mark.parametrize("label", [0, 1], ids=["look-alike", "nodule"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2], ids=["plain", "smoothed"])
def test_bce_is_the_cross_entropy_of_logits(label, label_smoothing):
    """It is -y log(p) - (1 - y) log(1 - p) of p = sigmoid(logit), labels drawn towards 1/2 if asked."""
    loss = losses.get("bce", label_smoothing=label_smoothing)

    actual = [_value(loss, label, logit) for logit in LOGITS]

    np.testing.assert_allclose(actual, _bce(label, LOGITS, label_smoothing), rtol=1e-5)


@pytest.mark.parametrize("label", [0, 1], ids=["look-alike", "nodule"])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 5.0])
def test_focal_discounts_by_the_power_of_the_error(label, gamma):
    """It is -(1 - p)^gamma log(p), p being the probability of the true class."""
    loss = losses.get("focal", gamma=gamma)

    actual = [_value(loss, label, logit) for logit in LOGITS]

    np.testing.assert_allclose(actual, _focal(label, LOGITS, gamma), rtol=1e-5)


@pytest.mark.parametrize(("label", "weight"), [(0, 0.75), (1, 0.25)], ids=["look-alike", "nodule"])
def test_focal_weights_classes_only_if_asked(label, weight):
    """With class balancing and alpha 0.25, nodules weigh 1/4 and the rest 3/4; without, both 1."""
    plain = losses.get("focal", gamma=2.0, alpha=0.25)
    balanced = losses.get("focal", gamma=2.0, alpha=0.25, apply_class_balancing=True)

    assert _value(plain, label, 0.0) == pytest.approx(0.5**2 * np.log(2), rel=1e-6)
    assert _value(balanced, label, 0.0) == pytest.approx(weight * 0.5**2 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_a_batch_counts_as_the_mean_of_its_samples(name):
    """The loss of four samples is the mean of their four losses, and a scalar."""
    loss = losses.get(name)
    labels, logits = np.array([[0], [0], [1], [1]], "float32"), np.array([[-2], [1], [1], [-2]], "float32")

    actual = loss(labels, logits)

    alone = [_value(loss, label, logit) for label, logit in zip(labels[:, 0], logits[:, 0], strict=True)]
    assert actual.shape == ()
    assert float(actual) == pytest.approx(np.mean(alone), rel=1e-6)


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(OWN_PARAMETERS))
def test_golden_values_and_gradients(real_data, name):
    """For logits from -12 to 12, values and gradients agree with those of 60 digits to 1 in 100,000."""
    golden = json.loads((real_data / "golden" / "losses.json").read_text())
    entries = [entry for entry in golden["per_sample"] if entry["loss"] == name]
    actual, expected = [], []
    for entry in entries:
        parameters = {key: entry[key] for key in OWN_PARAMETERS[name] if entry[key] is not None}
        if "alpha" in parameters:
            parameters["apply_class_balancing"] = True
        loss = losses.get(name, **parameters)
        rows = [row for row in entry["rows"] if abs(row[0]) <= LARGEST_LOGIT]
        for logit, label, value, gradient in rows:
            actual.append([_value(loss, label, logit), _gradient(loss, label, logit)])
            expected.append([float(value), float(gradient)])

    assert len(expected) == 18 * len(entries)
    assert len(entries) == {"bce": 1, "focal": 3}[name]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("logit", [-1000.0, -18.0, 18.0, 1000.0])
@pytest.mark.parametrize("label", [0, 1], ids=["look-alike", "nodule"])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bce", {}), ("focal", {"gamma": 0}), ("focal", {"gamma": 0.5}), ("focal", {"gamma": 5})],
    ids=["bce", "focal 0", "focal 1/2", "focal 5"],
)
def test_far_logits_keep_value_and_gradient_finite(name, parameters, label, logit):
    """At logits of ±18, where float32 rounds p to 0 or 1, and far beyond, nothing becomes NaN."""
    loss = losses.get(name, **parameters)

    assert np.isfinite(_value(loss, label, logit))
    assert abs(_gradient(loss, label, logit)) <= 1.5


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("hinge", {}, "Unknown loss 'hinge'. Known: bce, focal"),
        ("focal", {"gama": 2}, "no parameter 'gama'. Known: gamma, alpha, apply_class_balancing"),
        ("focal", {"gamma": -1}, "gamma of loss focal: .* Received: -1"),
        ("focal", {"alpha": 1.5}, "alpha of loss focal: .* Received: 1.5"),
        ("focal", {"gamma": "five"}, "gamma of loss focal: .* Received: 'five'"),
        ("bce", {"gamma": 2}, "no parameter 'gamma'. Known: label_smoothing"),
    ],
    ids=["name", "parameter", "negative", "above 1", "text", "another loss's"],
)
def test_wrong_names_and_values_are_refused(name, parameters, message):
    """The refusal says what was received and what is known, in one line."""
    with pytest.raises(InputError, match=message) as refusal:
        losses.get(name, **parameters)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_loss_is_a_keras_loss(name):
    """Each entry of LOSSES builds a Keras loss that says nothing lower than 0 for a coin toss."""
    loss = losses.get(name)

    assert isinstance(loss, keras.losses.Loss)
    assert _value(loss, 1, 0.0) > 0
