"""What holds for every loss, and the losses of each sample alone; `test_soft_confusion.py` has the others."""

import json
from functools import partial
from typing import get_args

import keras
import numpy as np
import pytest
from gradients import WAYS, value_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.special import expit, softmax

from luna_cls.errors import InputError
from luna_cls.learning import losses
from luna_cls.learning.losses.per_sample import bce, cefl, cefl2, focal, mse
from luna_cls.learning.losses.soft_confusion import PerBatch, Score, anyloss, sol
from luna_cls.learning.losses.weighting import balanced, effective_number

pytestmark = pytest.mark.usefixtures("float32_policy")

SCORES = get_args(Score)
PER_SAMPLE = [name for name, loss in losses.LOSSES.items() if not issubclass(loss, PerBatch)]

LABELS = np.array([0, 0, 1, 1, 0, 1, 0, 0.0])[:, None]
LOGITS = np.array([-4.0, -0.5, 0.25, 3.5, 2.0, -0.4, 0.1, -3.0])[:, None]

# Every loss by its name, and the parameters that lead elsewhere in its code.
VARIANTS = [(name, {}) for name in losses.LOSSES]
VARIANTS += [("bce", {"label_smoothing": 0.1, "positive_weight": 490.0})]
VARIANTS += [("focal", {"gamma": gamma, "apply_class_balancing": True}) for gamma in (0, 0.5, 5)]
VARIANTS += [(name, {"gamma": gamma}) for name in ("cefl", "cefl2") for gamma in (0.5, 5)]
VARIANTS += [(name, {"score": score}) for name in ("anyloss", "sol") for score in SCORES]
VARIANTS += [("anyloss", {"score": "fbeta", "beta": 2, "amplification": 300})]
VARIANTS += [("anyloss", {"ramp_from": 1, "ramp_epochs": 3})]
VARIANTS += [("sol", {"score": score, "prior": "raised_cosine"}) for score in SCORES]
VARIANTS += [("sol", {"prior": "raised_cosine", "center": 0.4, "half_width": 0.3})]
VARIANTS += [(name, {"class_weights": [0.5, 245]}) for name in PER_SAMPLE]

every_variant = pytest.mark.parametrize(
    ("name", "parameters"), VARIANTS, ids=[f"{name} {parameters or ''}" for name, parameters in VARIANTS]
)
in_every_way = pytest.mark.parametrize("way", WAYS)


def _of_each(name, **parameters):
    """The loss of each sample."""
    return losses.LOSSES[name](reduction=None, **parameters)


# ---------------------------------------------------------------------------------------------- golden values


@pytest.mark.real_data
@in_every_way
def test_golden_values_and_gradients_of_each_sample(real_data, way):
    """For logits from -30 to 30, both agree with those of 60 digits to 1 in 100,000, or 1e-7 near zero."""
    golden = json.loads((real_data / "golden" / "losses.json").read_text())["per_sample"]

    for entry in golden:
        parameters = {} if entry["loss"] == "bce" else {"gamma": entry["gamma"]}
        if entry["alpha"] is not None:
            parameters |= {"alpha": entry["alpha"], "apply_class_balancing": True}
        rows = np.array(entry["rows"], float)
        actual = value_and_gradient(_of_each(entry["loss"], **parameters), rows[:, 1:2], rows[:, :1], way)
        np.testing.assert_allclose(actual[0], rows[:, 2], rtol=1e-5, atol=1e-7, err_msg=str(parameters))
        np.testing.assert_allclose(actual[1][:, 0], rows[:, 3], rtol=1e-5, atol=1e-7, err_msg=str(parameters))

    assert sum(len(entry["rows"]) for entry in golden) == 220
    assert {entry["loss"] for entry in golden} == {"bce", "focal", "cefl", "cefl2"}


@pytest.mark.real_data
@in_every_way
def test_golden_values_and_gradients_of_batches(real_data, way):
    """For batches of 8 to 128 at L = 30 and 73, AnyLoss and its gradient agree to 1 in 100,000, or 1e-7."""
    golden = json.loads((real_data / "golden" / "losses.json").read_text())["batch"]

    for entry in golden:
        loss = losses.get("anyloss", **{key: entry[key] for key in ("score", "beta", "amplification")})
        labels, logits = np.array(entry["labels"])[:, None], np.array(entry["logits"])[:, None]
        value, gradient = value_and_gradient(loss, labels, logits, way)
        actual = [value, gradient[0, 0]]
        expected = [float(entry["loss"]), float(entry["grad_of_first_logit"])]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7, err_msg=str(entry))

    assert len(golden) == 48
    assert {entry["score"] for entry in golden} == set(SCORES)


# -------------------------------------------------------------------------------- what holds for every loss

SWEEP = np.linspace(-60, 60, 121)
BATCHES = {  # of two sizes, so that a compiled step is compiled twice
    "both classes": (np.arange(121) % 2, SWEEP),
    "all positive": (np.ones(121), SWEEP),
    "all negative": (np.zeros(121), SWEEP),
    "all right": (SWEEP > 0, np.where(SWEEP > 0, 60, -60)),
    "all wrong": (SWEEP > 0, np.where(SWEEP > 0, -60, 60)),
    "one look-alike among nodules": (SWEEP > -60, np.full(121, 60)),
    "one nodule among look-alikes": (SWEEP == 60, np.full(121, -60)),
    **{
        f"one of {label} at {logit}": (np.array([label]), np.array([logit]))
        for label in (0, 1)
        for logit in (-60, -1, 0, 1, 60)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@every_variant
def test_values_and_gradients_are_finite(name, parameters, dtype):
    """For logits from -60 to 60, batches of one class and of one sample, in 32 and 16 bits, in every way."""
    for way in WAYS:
        loss = losses.LOSSES[name](dtype=dtype, **parameters)
        for batch, (labels, logits) in BATCHES.items():
            value, gradient = value_and_gradient(loss, labels[:, None], logits[:, None], way, dtype)
            assert np.isfinite(value), (way, batch)
            assert value >= 0, (way, batch)
            assert np.isfinite(gradient).all(), (way, batch)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@every_variant
def test_logits_far_beyond_stay_finite(name, parameters, logit):
    """At ±10,000 nothing becomes NaN either."""
    for labels in ([[0.0]], [[1.0]], [[0.0], [1.0]]):
        value, gradient = value_and_gradient(
            losses.get(name, **parameters), labels, np.full((len(labels), 1), logit)
        )
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def _batches(smallest=-15.0, largest=15.0):
    """Labels and logits, of few sizes, since some backends compile for each."""
    sample = st.tuples(st.integers(0, 1), st.floats(smallest, largest, width=32))
    return st.sampled_from([1, 2, 5, 24]).flatmap(
        lambda size: st.lists(sample, min_size=size, max_size=size).map(lambda batch: np.array(batch, float))
    )


@every_variant
@settings(max_examples=20, deadline=None)
@given(batch=_batches(), seed=st.integers(0, 2**31))
def test_the_order_of_a_batch_does_not_matter(name, parameters, batch, seed):
    """Shuffling samples leaves the loss and moves the gradients along, whatever the batch."""
    loss = losses.get(name, **parameters)
    order = np.random.default_rng(seed).permutation(len(batch))

    value, gradient = value_and_gradient(loss, batch[:, :1], batch[:, 1:])
    shuffled, moved = value_and_gradient(loss, batch[order, :1], batch[order, 1:])

    assert shuffled == pytest.approx(value, rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(moved, gradient[order], rtol=1e-4, atol=1e-7)


@every_variant
def test_better_logits_lose_less(name, parameters):
    """Moving every logit a little down the gradient lowers the loss by what the gradient says."""
    loss = losses.get(name, **parameters)
    value, gradient = value_and_gradient(loss, LABELS, LOGITS)
    step = 1e-3 / np.abs(gradient).max()

    after, _ = value_and_gradient(loss, LABELS, LOGITS - step * gradient)
    before, _ = value_and_gradient(loss, LABELS, LOGITS + step * gradient)

    assert after < value < before
    assert (before - after) / (2 * step) == pytest.approx((gradient**2).sum(), rel=1e-2)


@every_variant
def test_they_outlive_saving(name, parameters):
    """Keras gives back a loss with equal parameters and value from its serialised form."""
    loss = losses.get(name, **parameters)

    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))

    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert {**loss.parameters, **parameters}.items() <= copy.get_config().items()
    assert value_and_gradient(copy, LABELS, LOGITS)[0] == value_and_gradient(loss, LABELS, LOGITS)[0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@every_variant
def test_fit_lowers_them(name, parameters, policy):
    """Ten steps of a linear unit, compiled as `fit` does it, lower the loss of 64 samples."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    labels = np.tile([0.0, 1.0], 32)[:, None].astype("float32")
    inputs = np.random.default_rng(0).normal(labels - 0.5, 1.0, (64, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.01), losses.get(name, **parameters), jit_compile=False)

    history = model.fit(inputs, labels, batch_size=64, epochs=10, shuffle=False, verbose=0).history["loss"]

    assert np.isfinite(history).all()
    assert history[-1] < history[0]


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_batch_counts_as_the_mean_of_its_samples(name):
    """The loss of eight samples is the mean of their eight losses, and a scalar."""
    value, _ = value_and_gradient(losses.get(name), LABELS, LOGITS)
    alone, _ = value_and_gradient(_of_each(name), LABELS, LOGITS)

    assert value.shape == ()
    assert alone.shape == (8,)
    assert value == pytest.approx(alone.mean(), rel=1e-6)


# ------------------------------------------------------------------------------------------------- formulas


def test_bce_smooths_labels_and_weights_nodules():
    """Smoothing by 0.2 makes labels of 0.1 and 0.9; a positive weight of 3 triples the loss of nodules."""
    actual, _ = value_and_gradient(_of_each("bce", label_smoothing=0.2, positive_weight=3.0), LABELS, LOGITS)

    p, target = expit(LOGITS[:, 0]), 0.1 + 0.8 * LABELS[:, 0]
    expected = np.where(LABELS[:, 0] == 1, 3, 1) * (-target * np.log(p) - (1 - target) * np.log(1 - p))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_mse_is_that_of_probabilities():
    """It is (p - y)², with the gradient 2 (p - y) p (1 - p), and keeps its digits where p is close to y."""
    logits = np.array([-30.0, -4.0, 0.0, 2.0, 10.0, -4.0, 0.0, 30.0])[:, None]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])[:, None]

    value, gradient = value_and_gradient(_of_each("mse"), labels, logits)

    error = np.where(labels == 1, -expit(-logits), expit(logits))
    np.testing.assert_allclose(value, error[:, 0] ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * error * expit(logits) * expit(-logits), rtol=1e-5)


@pytest.mark.parametrize("gamma", [1, 2.5, 5])
@pytest.mark.parametrize("alpha", [None, 0.1, 0.25])
def test_focal_is_what_keras_means(gamma, alpha):
    """It equals keras.losses.BinaryFocalCrossentropy from logits, for logits that Keras does not clip."""
    options = {"gamma": gamma}
    if alpha is not None:
        options |= {"alpha": alpha, "apply_class_balancing": True}
    logits = np.linspace(-8, 8, 33)[:, None]

    for label in (0, 1):
        labels = np.full_like(logits, label)
        actual = value_and_gradient(_of_each("focal", **options), labels, logits)
        theirs = keras.losses.BinaryFocalCrossentropy(from_logits=True, reduction=None, **options)
        expected = value_and_gradient(theirs, labels, logits)
        np.testing.assert_allclose(actual[0], expected[0], rtol=2e-3, atol=1e-7)
        np.testing.assert_allclose(actual[1], expected[1], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["focal", "cefl", "cefl2"])
@settings(max_examples=50, deadline=None)
@given(batch=_batches(-60, 60))
def test_without_focus_they_are_cross_entropy(name, batch):
    """With gamma = 0 they give BCE's values and gradients, whatever the batch."""
    actual = value_and_gradient(_of_each(name, gamma=0), batch[:, :1], batch[:, 1:])
    expected = value_and_gradient(_of_each("bce"), batch[:, :1], batch[:, 1:])

    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-6)


def _by_formula(name, p, gamma):
    """The papers' formulas (of CEFL and CEFL2 Wang 2020, eq. 9 and 11) of the true class's probability."""
    ce, discounted = -np.log(p), -((1 - p) ** gamma) * np.log(p)
    return {
        "bce": ce,
        "mse": (1 - p) ** 2,
        "focal": discounted,
        "cefl": (1 - p) * ce + p * discounted,
        "cefl2": ((1 - p) ** 2 * ce + p**2 * discounted) / ((1 - p) ** 2 + p**2),
    }[name]


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["cefl", "cefl2"])
def test_categorical_losses_take_logits_of_a_softmax(name, gamma):
    """Of five classes, the loss is the paper's formula of the softmax probability of the true one."""
    rng = np.random.default_rng(4)
    logits, classes = rng.normal(0, 3, (50, 5)).astype("float32"), rng.integers(0, 5, 50)
    loss = _of_each(name, gamma=gamma, categorical=True)

    value, gradient = value_and_gradient(loss, np.eye(5)[classes], logits)

    def expected(logits):
        return _by_formula(name, softmax(logits, axis=1)[np.arange(50), classes], gamma)

    exact = logits.astype(float)
    slopes = [(expected(exact + step) - expected(exact - step)) / 2e-6 for step in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(value, expected(exact), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, np.transpose(slopes), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cefl", "cefl2"])
@settings(max_examples=50, deadline=None)
@given(batch=_batches(-60, 60), offset=st.floats(-10, 10))
def test_a_softmax_of_two_classes_is_a_sigmoid(name, batch, offset):
    """Two logits, c and c + x, lose as the single logit x does."""
    labels, logits = batch[:, 0].astype(int), batch[:, 1:]
    pairs = np.concatenate([np.zeros_like(logits), logits], axis=1) + offset

    actual, _ = value_and_gradient(_of_each(name, categorical=True), np.eye(2)[labels], pairs)
    expected, _ = value_and_gradient(_of_each(name), labels[:, None], logits)

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["cefl", "cefl2"])
def test_categorical_losses_are_finite_at_sure_logits(name, dtype):
    """With one logit at 60 and the others at -60, right or wrong, values and gradients are numbers."""
    logits = np.where(np.eye(4)[[0, 1, 2, 3]], 60.0, -60.0)
    for way in WAYS:
        for classes in ([0, 1, 2, 3], [1, 1, 1, 1]):
            loss = _of_each(name, categorical=True, dtype=dtype)
            value, gradient = value_and_gradient(loss, np.eye(4)[classes], logits, way, dtype)
            assert np.isfinite(value).all()
            assert np.isfinite(gradient).all()
            assert (np.abs(gradient).sum(axis=1) > 0.5).tolist() == [c != i for i, c in enumerate(classes)]


def test_categorical_needs_two_classes():
    """One logit a sample is no softmax; the message says what was received."""
    with pytest.raises(ValueError, match=r"two classes at least, in the last axis. Received: \(8, 1\)"):
        cefl(LABELS.astype("float32"), LOGITS.astype("float32"), categorical=True)


@pytest.mark.parametrize(
    "function",
    [bce, mse, focal, cefl, cefl2]
    + [partial(anyloss, score=score) for score in SCORES]
    + [partial(sol, score=score, prior=prior) for score in SCORES for prior in ("uniform", "raised_cosine")],
)
def test_functions_keep_the_type_of_float64_logits_and_widen_shorter_ones(function):
    """float64 stays, as far as the backend has it; 16 bits become float32."""
    wanted = {"float64": ops.convert_to_tensor(LOGITS).dtype, "float32": "float32", "bfloat16": "float32"}
    for dtype, expected in wanted.items():
        logits = ops.convert_to_tensor(LOGITS) if dtype == "float64" else ops.cast(LOGITS, dtype)
        actual = keras.backend.standardize_dtype(function(LABELS, logits).dtype)
        assert actual == keras.backend.standardize_dtype(expected)


# -------------------------------------------------------------------------------------------------- weights


def test_class_weights_multiply_each_sample():
    """Weights 0.5 and 245: the loss of a look-alike is halved, that of a nodule 245 times as much."""
    plain, _ = value_and_gradient(_of_each("focal"), LABELS, LOGITS)
    weighted, _ = value_and_gradient(_of_each("focal", class_weights=[0.5, 245]), LABELS, LOGITS)

    np.testing.assert_allclose(weighted, plain * np.where(LABELS[:, 0] == 1, 245, 0.5), rtol=1e-6)


@pytest.mark.parametrize(("weights", "classes"), [([1, 2, 4], [0, 1, 2, 1]), ([1, 3], [0, 1, 1])])
def test_class_weights_of_a_softmax_go_by_the_true_class(weights, classes):
    """Of three classes weighing 1, 2 and 4, or two weighing 1 and 3, each sample gets its own's."""
    labels = np.eye(len(weights))[classes]
    logits = np.random.default_rng(5).normal(size=labels.shape)

    plain, _ = value_and_gradient(_of_each("cefl", categorical=True), labels, logits)
    loss = _of_each("cefl", categorical=True, class_weights=weights)

    weighted, _ = value_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(weighted, plain * np.take(weights, classes), rtol=1e-6)


def test_balanced_weights_by_hand():
    """With 490 look-alikes and 10 nodules, 500 / (2 * 490) and 500 / (2 * 10)."""
    assert balanced([490, 10]) == pytest.approx([500 / 980, 25])


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.9999])
def test_effective_number_weights_are_the_papers(beta):
    """They are in proportion to (1 - beta) / (1 - beta^n) and sum to the number of classes (Cui 2019)."""
    counts = np.array([5000, 500, 12])

    actual = effective_number(counts, beta)

    expected = (1 - beta) / (1 - beta**counts)
    assert actual == pytest.approx(expected * 3 / expected.sum())


def test_effective_numbers_lie_between_no_weights_and_balanced_ones():
    """With beta = 0 all classes weigh the same; near 1 they weigh by the count, up to the common factor."""
    assert effective_number([490, 10], 0) == pytest.approx([1, 1])
    nearly = effective_number([490, 10], 1 - 1e-9)
    assert nearly[1] / nearly[0] == pytest.approx(49, rel=1e-5)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_class_counts_give_weights_to_any_loss_of_each_sample(name):
    """class_weights="balanced" and "effective_number" become numbers that the loss carries and saves."""
    even = losses.get(name, (490, 10), class_weights="balanced")
    effective = losses.get(name, (490, 10), class_weights="effective_number", effective_number_beta=0.99)

    assert even.get_config()["class_weights"] == pytest.approx(balanced([490, 10]))
    assert effective.get_config()["class_weights"] == pytest.approx(effective_number([490, 10], 0.99))


@pytest.mark.parametrize("weighting", ["balanced", "effective_number"])
def test_weights_from_counts_undo_what_the_sampling_does(weighting):
    """Where batches already hold a nodule in two, balanced weights are 1; the ratio is undone in any case."""
    natural = np.array([0.98, 0.02]) / 0.5

    loss = losses.get("bce", (490, 10), natural, class_weights=weighting)

    plain = losses.get("bce", (490, 10), class_weights=weighting)
    assert loss.class_weights == pytest.approx(np.array(plain.class_weights) * natural)
    if weighting == "balanced":
        assert loss.class_weights == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("name", "parameters", "is_proper", "weight"),
    [
        ("bce", {}, True, 1),
        ("bce", {"positive_weight": 7, "class_weights": [0.5, 2]}, True, 28),
        ("bce", {"label_smoothing": 0.1}, False, 1),
        ("mse", {"class_weights": [1, 3]}, True, 3),
        ("focal", {}, False, 1),
        ("focal", {"gamma": 0, "alpha": 0.75, "apply_class_balancing": True}, True, 3),
        (
            "focal",
            {"gamma": 0, "alpha": 0.75, "apply_class_balancing": True, "class_weights": [1, 2]},
            True,
            6,
        ),
        ("cefl", {}, False, 1),
        ("cefl2", {"gamma": 0}, True, 1),
    ],
)
def test_proper_losses_are_least_at_the_weighted_probability(name, parameters, is_proper, weight):
    """With 3 nodules in 10, the best p has the odds 3 w / 7; of losses that are not proper it has others."""
    loss = losses.get(name, **parameters)
    logits = np.linspace(-4, 6, 2001)

    each = _of_each(name, **parameters)
    both = [value_and_gradient(each, np.full((2001, 1), label), logits[:, None])[0] for label in (1, 0)]

    best = np.exp(logits[np.argmin(0.3 * both[0] + 0.7 * both[1])])
    assert loss.is_proper == is_proper
    assert loss.weight_of_a_nodule == pytest.approx(weight)
    assert (best == pytest.approx(3 * weight / 7, rel=0.01)) == is_proper


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_row_of_labels_will_do(name):
    """Labels `(8,)` of logits `(8, 1)` are as good as `(8, 1)`, also with class weights."""
    parameters = {"class_weights": [1, 2]} if name in PER_SAMPLE else {}
    loss = losses.get(name, **parameters)

    actual, _ = value_and_gradient(loss, LABELS[:, 0], LOGITS)

    assert actual == value_and_gradient(loss, LABELS, LOGITS)[0]


@every_variant
def test_sample_weights_are_as_good_as_repeating_samples(name, parameters):
    """Weights 3, 0, 1, 2 ... lose what a batch with so many copies does, up to Keras' mean over the batch."""
    loss, weights = losses.get(name, **parameters), np.array([3, 0, 1, 2, 1, 2, 1, 3])

    def weighted(labels, logits):
        return loss(labels, logits, ops.convert_to_tensor(weights.astype("float32")))

    actual, gradient = value_and_gradient(weighted, LABELS, LOGITS)
    expected, apart = value_and_gradient(loss, LABELS.repeat(weights, 0), LOGITS.repeat(weights, 0))

    factor = weights.sum() / len(weights) if name in PER_SAMPLE else 1
    together = np.array([part.sum() for part in np.split(apart, weights.cumsum()[:-1])])
    assert actual == pytest.approx(factor * expected, rel=1e-5)
    np.testing.assert_allclose(gradient[:, 0], factor * together, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("hinge", {}, "Unknown loss 'hinge'. Known: bce, mse, focal, cefl, cefl2, anyloss, sol"),
        ("focal", {"gama": 2}, "no parameter 'gama'. Known: gamma, alpha, apply_class_balancing"),
        ("focal", {"gamma": -1}, "gamma of loss focal: .* Received: -1"),
        ("focal", {"gamma": float("nan")}, "gamma of loss focal: .* Received: nan"),
        ("cefl2", {"gamma": float("inf")}, "gamma of loss cefl2: .* Received: inf"),
        ("focal", {"alpha": 1.5}, "alpha of loss focal: .* Received: 1.5"),
        ("focal", {"gamma": "five"}, "gamma of loss focal: .* Received: 'five'"),
        ("bce", {"gamma": 2}, "no parameter 'gamma'. Known: label_smoothing, positive_weight, class_weights"),
        ("bce", {"positive_weight": 0}, "positive_weight of loss bce: .* Received: 0"),
        ("bce", {"positive_weight": float("inf")}, "positive_weight of loss bce: .* Received: inf"),
        ("bce", {"label_smoothing": -0.1}, "label_smoothing of loss bce: .* Received: -0.1"),
        ("bce", {"label_smoothing": 1}, "label_smoothing of loss bce: .* Received: 1"),
        ("bce", {"class_weights": [1, -1]}, "class_weights.* of loss bce: .* Received: -1"),
        ("mse", {"class_weights": [1, 0]}, "class_weights.* of loss mse: .* Received: 0"),
        ("bce", {"class_weights": [1]}, "class_weights of loss bce: .* Received: \\[1\\]"),
        ("bce", {"class_weights": "even"}, "class_weights 'even'. Known: balanced, effective_number"),
        ("bce", {"class_weights": "balanced"}, "'balanced' needs class_counts"),
        ("anyloss", {"score": "auc"}, "score of loss anyloss: .*'accuracy', 'fbeta', 'gmean'.* 'auc'"),
        ("anyloss", {"amplification": 0}, "amplification of loss anyloss: .* Received: 0"),
        ("anyloss", {"amplification": float("inf")}, "amplification of loss anyloss: .* Received: inf"),
        ("anyloss", {"class_weights": [1, 2]}, "no parameter 'class_weights'. Known: score, beta"),
        ("sol", {"prior": "normal"}, "prior of loss sol: .*'uniform' or 'raised_cosine'.* 'normal'"),
        ("sol", {"prior": "raised_cosine", "center": 0.1}, r"center ± half_width must lie in \[0, 1\]"),
        (
            "sol",
            {"center": 0.3},
            "center and half_width need the prior 'raised_cosine'. Received: 0.3 and 0.5",
        ),
        ("sol", {"beta": 2}, "beta is of the score 'fbeta'. Received: 2.0 with 'balanced_accuracy'"),
        (
            "anyloss",
            {"score": "gmean", "beta": 2},
            "beta is of the score 'fbeta'. Received: 2.0 with 'gmean'",
        ),
        ("anyloss", {"ramp_epochs": 3}, "ramp_epochs needs ramp_from. Received: 3 without"),
        ("focal", {"alpha": 0.75}, "alpha counts with apply_class_balancing only. Received: 0.75 without"),
        ("focal", {"alpha": 1, "apply_class_balancing": True}, "alpha of loss focal: .* Received: 1"),
        ("focal", {"alpha": 0, "apply_class_balancing": True}, "alpha of loss focal: .* Received: 0"),
        ("anyloss", {"ramp_from": 1, "ramp_epochs": 0}, "ramp_epochs of loss anyloss: .* Received: 0"),
        ("sol", {"prior": "raised_cosine", "center": 0}, "center of loss sol: .* Received: 0"),
        ("sol", {"prior": "raised_cosine", "center": 1}, "center of loss sol: .* Received: 1"),
        ("sol", {"prior": "raised_cosine", "half_width": 0}, "half_width of loss sol: .* Received: 0"),
        ("sol", {"prior": "raised_cosine", "half_width": 0.6}, "half_width of loss sol: .* Received: 0.6"),
        ("bce", {"effective_number_beta": 0.9}, "effective_number_beta goes with class_weights 'effective_n"),
        ("anyloss", {"effective_number_beta": 0.9}, "no parameter 'effective_number_beta'"),
        ("bce", {"class_counts": [1, 2]}, "no parameter 'class_counts'"),
    ],
)
def test_wrong_names_and_values_are_refused(name, parameters, message):
    """The refusal says what was received and what is known, in one line."""
    with pytest.raises(InputError, match=message) as refusal:
        losses.get(name, **parameters)

    assert "\n" not in str(refusal.value)


def test_effective_numbers_may_have_a_beta_of_0():
    """By name, too, all classes weigh the same then."""
    loss = losses.get("bce", (490, 10), class_weights="effective_number", effective_number_beta=0)

    assert loss.class_weights == pytest.approx([1, 1])


@pytest.mark.parametrize("beta", [1, -0.1, "much", float("nan")])
def test_the_beta_of_effective_numbers_is_checked(beta):
    """It must lie in [0, 1)."""
    with pytest.raises(InputError, match=r"effective_number_beta must lie in \[0, 1\)"):
        losses.get("bce", (490, 10), class_weights="effective_number", effective_number_beta=beta)


@pytest.mark.parametrize(
    ("given", "kept"), [("float64", "float64"), ("bfloat16", "float32"), (None, "float32")]
)
def test_a_loss_is_computed_in_the_type_it_is_given_but_never_in_16_bits(given, kept):
    """float64 stays float64; bfloat16, and no word on it where Keras computes in float32, become float32."""
    assert losses.LOSSES["bce"](dtype=given).dtype == kept


@pytest.mark.parametrize("function", [bce, mse, focal, cefl, cefl2])
def test_without_parameters_they_are_the_papers(function):
    """Nothing is weighted, smoothed or balanced, and gamma is 2: for functions and for classes."""
    labels, logits = np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])
    expected = _by_formula(function.__name__, expit([1.0, -1.0]), 2)

    for loss in (function, _of_each(function.__name__)):
        lost = ops.convert_to_numpy(loss(labels, logits))
        np.testing.assert_allclose(lost, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [bce, mse, focal, cefl, cefl2, partial(cefl, categorical=True), partial(cefl2, categorical=True)],
)
def test_classes_are_in_the_last_axis(function):
    """Of two series of three samples of two classes `(2, 3, 2)`, it gives `(2, 3)`: each sample's own."""
    logits = np.linspace(-3, 2, 12).reshape(2, 3, 2)
    labels = np.eye(2)[[[0, 1, 1], [1, 0, 1]]]

    series = ops.convert_to_numpy(function(labels, logits))

    apart = ops.convert_to_numpy(function(labels.reshape(6, 2), logits.reshape(6, 2)))
    np.testing.assert_allclose(np.reshape(series, (6,)), np.ravel(apart), rtol=1e-6)
    assert series.shape == (2, 3)


@pytest.mark.parametrize(
    ("function", "asked", "default"),
    [
        (anyloss, {}, {"score": "balanced_accuracy", "amplification": 73}),
        (anyloss, {"score": "fbeta"}, {"beta": 1}),
        (sol, {}, {"score": "balanced_accuracy", "prior": "uniform"}),
        (sol, {"score": "fbeta", "prior": "raised_cosine"}, {"beta": 1, "center": 0.5, "half_width": 0.5}),
    ],
)
def test_losses_of_a_batch_have_the_papers_defaults(function, asked, default):
    """A batch loses the same whether L = 73, beta = 1 and thresholds around 1/2 are asked for or not."""
    labels, logits = np.array([[1.0], [0], [0], [1]]), np.array([[0.02], [-0.01], [0.03], [-0.5]])

    told = ops.convert_to_numpy(function(labels, logits, **asked, **default))
    for loss in (partial(function, **asked), losses.get(function.__name__, **asked)):
        np.testing.assert_allclose(ops.convert_to_numpy(loss(labels, logits)), told, rtol=1e-6)
