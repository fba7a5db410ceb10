"""The losses of a whole batch: AnyLoss and the score-oriented loss."""

from typing import get_args

import keras
import numpy as np
import pytest
from gradients import WAYS, value_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.special import expit
from sklearn.metrics import accuracy_score, balanced_accuracy_score, fbeta_score, recall_score

from luna_cls.learning import losses
from luna_cls.learning.callbacks import AmplificationRamp
from luna_cls.learning.losses.soft_confusion import Confusion, Score, anyloss, one_minus_score, sol

pytestmark = pytest.mark.usefixtures("float32_policy")

every_score = pytest.mark.parametrize("score", get_args(Score))


def _score(score, tp, fn, fp, tn, beta=1.0):
    """The score of a confusion matrix with both classes, in float64."""
    if score == "accuracy":
        return (tp + tn) / (tp + fn + fp + tn)
    if score == "fbeta":
        return (1 + beta**2) * tp / ((1 + beta**2) * tp + beta**2 * fn + fp)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return np.sqrt(sensitivity * specificity) if score == "gmean" else (sensitivity + specificity) / 2


def _of_decisions(score, labels, called, beta):
    """The same score by scikit-learn."""
    if score == "fbeta":
        return fbeta_score(labels, called, beta=beta, zero_division=0)
    sensitivity, specificity = recall_score(labels, called), recall_score(1 - labels, ~called)
    known = {
        "accuracy": accuracy_score,
        "balanced_accuracy": balanced_accuracy_score,
        "gmean": lambda *_: np.sqrt(sensitivity * specificity),
    }
    return known[score](labels, called)


def _with_both_classes():
    logit = st.floats(0.0625, 15, width=32).flatmap(lambda size: st.sampled_from([size, -size]))
    sample = st.tuples(st.integers(0, 1), logit)
    rest = st.sampled_from([0, 3, 30]).flatmap(lambda size: st.lists(sample, min_size=size, max_size=size))
    return st.tuples(logit, logit, rest).map(lambda x: np.array([(0, x[0]), (1, x[1]), *x[2]], float))


@every_score
@settings(max_examples=50, deadline=None)
@given(batch=_with_both_classes(), beta=st.sampled_from([0.5, 1, 2]))
def test_a_large_amplification_gives_one_minus_the_score_of_decisions(score, batch, beta):
    """At L = 1,000,000 the loss is 1 - scikit-learn's score of logit > 0, whatever the batch."""
    labels, logits = batch[:, 0].astype(int), batch[:, 1]

    beta = beta if score == "fbeta" else 1
    loss = losses.get("anyloss", score=score, beta=beta, amplification=1e6)

    actual, _ = value_and_gradient(loss, labels[:, None], logits[:, None])

    assert actual == pytest.approx(1 - _of_decisions(score, labels, logits > 0, beta), abs=2e-6)


@every_score
@pytest.mark.parametrize("size", [2, 7, 128, 1000])
def test_the_size_of_the_batch_is_the_batchs(score, size):
    """Batches of 2 to 1,000 samples lose the score of their own soft confusion matrix."""
    rng = np.random.default_rng(size)
    logits = rng.normal(0, 0.2, size)
    labels = np.arange(size) % 3 == 0
    step = 1 / (1 + np.exp(-73 * (expit(logits) - 0.5)))

    actual, _ = value_and_gradient(losses.get("anyloss", score=score), labels[:, None], logits[:, None])

    tp, fp = step[labels].sum(), step[~labels].sum()
    expected = 1 - _score(score, tp, labels.sum() - tp, fp, (~labels).sum() - fp)
    assert actual == pytest.approx(expected, rel=1e-5)


@every_score
@pytest.mark.parametrize(
    ("options", "center", "half_width"),
    [
        ({"prior": "uniform"}, None, None),
        ({"prior": "raised_cosine"}, 0.5, 0.5),
        ({"prior": "raised_cosine", "center": 0.3, "half_width": 0.2}, 0.3, 0.2),
    ],
    ids=["uniform", "raised cosine", "narrow raised cosine"],
)
def test_sol_scores_the_matrix_expected_over_thresholds(score, options, center, half_width):
    """It is 1 - the score of the confusion matrices of 20,000 thresholds, averaged by their prior."""
    rng = np.random.default_rng(7)
    labels = np.arange(60) % 4 == 0
    logits = rng.normal(labels - 0.5, 1.5).astype("float32")
    thresholds = (np.arange(20_000) + 0.5) / 20_000
    if center is None:
        weights = np.ones(20_000)
    else:
        place = (thresholds - center) / half_width
        weights = np.where(np.abs(place) < 1, 1 + np.cos(np.pi * place), 0)
    called = ((expit(logits.astype(float)) > thresholds[:, None]) * (weights / weights.sum())[:, None]).sum(0)

    beta = 2 if score == "fbeta" else 1
    loss = losses.get("sol", score=score, beta=beta, **options)

    actual, _ = value_and_gradient(loss, labels[:, None], logits[:, None])

    tp, fp = called[labels].sum(), called[~labels].sum()
    expected = 1 - _score(score, tp, labels.sum() - tp, fp, (~labels).sum() - fp, beta)
    assert actual == pytest.approx(expected, abs=1e-4)


ONE_CLASS = {  # of four samples of one class, s the soft number of those that are called wrongly
    "accuracy": lambda s, _: s / 4,
    "fbeta": lambda s, label: s / (2 * (4 - s) + s) if label else s / (2 + s),
    "gmean": lambda s, _: 1 - np.sqrt(1 - s / 4),
    "balanced_accuracy": lambda s, _: s / 8,
}


@pytest.mark.parametrize("label", [0, 1], ids=["no nodule", "nodules alone"])
@every_score
def test_a_missing_class_counts_as_one_sample_called_rightly(score, label):
    """Without nodules, F1's matrix has one that is found, and the means have a sensitivity of 1."""
    logits = np.array([-0.1, 0.05, 0.02, -2.0])
    step = 1 / (1 + np.exp(-73 * (expit(logits) - 0.5)))
    wrong = (1 - step).sum() if label else step.sum()

    actual, _ = value_and_gradient(
        losses.get("anyloss", score=score), np.full((4, 1), label), logits[:, None]
    )

    assert actual == pytest.approx(ONE_CLASS[score](wrong, label), rel=1e-5)


def test_half_called_look_alikes_are_half_false_alarms():
    """Four look-alikes at p = 1/2 are two false alarms under a raised cosine: F1 of one found is 1/2."""
    loss = losses.get("sol", score="fbeta", prior="raised_cosine")

    actual, _ = value_and_gradient(loss, np.zeros((4, 1)), np.zeros((4, 1)))

    assert actual == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("label", [0, 1], ids=["no nodule", "nodules alone"])
@pytest.mark.parametrize("name", ["anyloss", "sol"])
@every_score
def test_a_missing_class_leaves_a_useful_gradient(name, score, label):
    """It pushes samples of the other class that are wrong, or nearly so, to their side."""
    loss = losses.get(name, score=score)
    labels = np.full((5, 1), label)
    towards_wrong = 1 - 2 * label

    _, gradient = value_and_gradient(
        loss, labels, towards_wrong * np.array([-0.2, -0.1, 0, 0.1, 0.2])[:, None]
    )
    all_right, _ = value_and_gradient(loss, labels, np.full((5, 1), -60.0 * towards_wrong))

    assert (gradient * towards_wrong > 1e-4).all()
    assert all_right == pytest.approx(0, abs=1e-6)


@every_score
@settings(max_examples=30, deadline=None)
@given(logits=st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6), label=st.integers(0, 1))
def test_a_missing_class_never_loses_more_than_a_wrong_sample_of_it_would(score, logits, label):
    """Adding a sample of the missing class that is called wrongly cannot lower the loss."""
    loss = losses.get("anyloss", score=score)
    logits = np.array(logits)[:, None]
    wrong = np.concatenate([logits, [[60.0 if label else -60.0]]])

    without, _ = value_and_gradient(loss, np.full(logits.shape, label), logits)
    beside, _ = value_and_gradient(loss, np.append(np.full(len(logits), label), 1 - label)[:, None], wrong)

    assert without <= beside + 1e-6


def test_confident_mistakes_feel_a_small_amplification_alone():
    """A nodule at logit -3 gets a gradient below 1e-6 at L = 73, and of more than 1e-3 at L = 4."""
    labels, logits = np.array([1, 0.0])[:, None], np.array([-3.0, -3.0])[:, None]

    _, steep = value_and_gradient(losses.get("anyloss"), labels, logits)
    _, gentle = value_and_gradient(losses.get("anyloss", amplification=4), labels, logits)

    assert abs(steep[0, 0]) < 1e-6
    assert gentle[0, 0] < -1e-3


def test_a_ramp_grows_by_the_same_factor_each_epoch():
    """From 1 to 64 in three epochs: 1, 4, 16, then 64 for good; without a ramp, L at once."""
    ramp = losses.get("anyloss", amplification=64, ramp_from=1, ramp_epochs=3)

    assert [ramp.amplification_in(epoch) for epoch in range(5)] == pytest.approx([1, 4, 16, 64, 64])
    assert [losses.get("anyloss").amplification_in(epoch) for epoch in range(2)] == [73, 73]
    ramp = losses.get("anyloss", amplification=54, ramp_from=2, ramp_epochs=3)
    assert [ramp.amplification_in(epoch) for epoch in range(4)] == pytest.approx([2, 6, 18, 54])


def test_a_ramp_takes_five_epochs_unless_told_otherwise_and_one_at_least():
    """From 1 to 73: in epoch 4 it is not there yet, in epoch 5 it is; in one epoch it is there in epoch 1."""
    assert losses.get("anyloss", ramp_from=1).amplification_in(4) == pytest.approx(73**0.8)
    assert losses.get("anyloss", ramp_from=1).amplification_in(5) == 73
    assert losses.get("anyloss", ramp_from=1, ramp_epochs=1).amplification_in(1) == 73


def test_f1_is_the_score_of_a_matrix_unless_another_beta_is_named():
    """2 found, 1 missed, 3 false alarms: F1 is 4/8, F2 10/17."""
    matrix = Confusion(*map(ops.convert_to_tensor, (2.0, 1.0, 3.0, 4.0)))

    assert float(one_minus_score(matrix, "fbeta")) == pytest.approx(1 / 2)
    assert float(one_minus_score(matrix, "fbeta", 2.0)) == pytest.approx(7 / 17)


@every_score
@pytest.mark.parametrize("name", ["anyloss", "sol"])
def test_weights_that_are_all_small_change_nothing(name, score):
    """A batch whose samples weigh a hundredth each loses what it does where they weigh 1."""
    loss = losses.get(name, score=score)
    labels, logits = np.array([[1.0], [0], [0], [1]]), np.array([[0.02], [-0.01], [0.03], [-0.5]])

    lost = [float(loss(labels, logits, np.full((4, 1), weight))) for weight in (1.0, 0.01)]

    assert lost[1] == pytest.approx(lost[0], rel=1e-5)
    assert loss.call(labels, logits).shape == (4,)


def test_a_ramp_moves_the_loss_epoch_by_epoch():
    """In each epoch the loss is that of the epoch's L; the same epoch again changes nothing."""
    labels, logits = np.array([1, 0, 0.0])[:, None], np.array([0.05, 0.02, -0.1])[:, None]
    ramp = losses.get("anyloss", amplification=64, ramp_from=1, ramp_epochs=3)

    for epoch, amplification in enumerate([1, 4, 16, 64, 64]):
        changed = ramp.start_epoch(epoch)
        fixed = losses.get("anyloss", amplification=amplification)
        actual, expected = (value_and_gradient(loss, labels, logits) for loss in (ramp, fixed))
        assert changed == (epoch < 4)
        assert not ramp.start_epoch(epoch)
        assert actual[0] == pytest.approx(expected[0], rel=1e-5)
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)


def test_fit_feels_the_ramp():
    """With weights that stand still, the compiled loss of epochs 1 to 4 is that of L = 1, 4, 16 and 64."""
    labels = np.array([1, 0, 0, 1], "float32")[:, None]
    logits = np.array([0.05, 0.02, -0.1, 0.2], "float32")[:, None]
    ramp = losses.get("anyloss", amplification=64, ramp_from=1, ramp_epochs=3)
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)]
    )
    model.compile(keras.optimizers.SGD(0.0), ramp, jit_compile=False)

    history = model.fit(
        logits, labels, batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[AmplificationRamp(ramp)]
    ).history["loss"]

    expected = [
        float(ops.convert_to_numpy(anyloss(labels, logits, amplification=steepness)))
        for steepness in (1, 4, 16, 64)
    ]
    assert history == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 4) for value in history}) == 4


@pytest.mark.parametrize("way", WAYS)
def test_any_shape_of_samples_will_do(way):
    """`(6,)`, `(6, 1)` and `(2, 3)` hold the same six samples for the pure functions."""
    labels, logits = np.array([1, 0, 0, 1, 0, 0.0]), np.array([0.3, -0.2, 0.1, -0.1, -0.5, 0.2])
    for function in (anyloss, sol):
        values = [
            float(value_and_gradient(function, labels.reshape(shape), logits.reshape(shape), way)[0])
            for shape in ((6,), (6, 1), (2, 3))
        ]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6)
