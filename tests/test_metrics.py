import keras
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from luna_cls.judging.evaluation import binary_metrics
from luna_cls.learning.metrics import streaming_metrics

pytestmark = pytest.mark.usefixtures("float32_policy")

NAMES = [
    "accuracy",
    "balanced_accuracy",
    "auc",
    "specificity_at_sensitivity_0.5",
    "precision",
    "recall",
    "fn",
    "fp",
    "tn",
    "tp",
]
COUNT, NODULES = 200_000, 400  # 1 in 500


def _labels():
    labels = np.zeros(COUNT, int)
    labels[:NODULES] = 1
    return np.random.default_rng(1).permutation(labels)


def _calibrated(labels):
    """Logits as a good detector's: the middle look-alike has a probability of about 4e-5."""
    return np.random.default_rng(2).normal(np.where(labels == 1, -2.5, -10.1), 2.7).astype("float32")


def _saturated(labels):
    """Logits of a network sure of itself: float32 has p = 1 above 17, and many lie beyond ±20."""
    return np.random.default_rng(3).normal(np.where(labels == 1, 6, -16), 6).astype("float32")


def _read(metrics):
    return {metric.name: float(metric.result()) for metric in metrics}


def _fed(labels, logits, batches=1, weights=None):
    """New metrics, fed with float32 labels `(n, 1)` and logits `(n, 1)` in so many batches."""
    metrics = streaming_metrics()
    labels = np.asarray(labels, "float32")
    for rows in np.array_split(np.arange(len(labels)), batches):
        for metric in metrics:
            metric.update_state(
                labels[rows, None], logits[rows, None], None if weights is None else weights[rows]
            )
    return metrics


@pytest.mark.parametrize("draw", [_calibrated, _saturated], ids=["calibrated", "saturated"])
def test_they_agree_with_scikit_learn_at_one_in_500(draw):
    """On 200,000 samples counts are exact, AUC is within 1e-4, specificity at sensitivity 0.5 within 1e-3."""
    labels = _labels()
    logits = draw(labels)

    actual = _read(_fed(labels, logits, batches=7))

    called = logits > 0
    false_positive_rate, sensitivity, _ = roc_curve(labels, logits, drop_intermediate=False)
    tn, fp, fn, tp = confusion_matrix(labels, called).ravel()
    assert [actual[name] for name in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
    assert actual["accuracy"] == np.float32(accuracy_score(labels, called))
    assert actual["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, called), rel=1e-6)
    assert actual["precision"] == pytest.approx(precision_score(labels, called), rel=1e-6)
    assert actual["recall"] == pytest.approx(recall_score(labels, called), rel=1e-6)
    assert actual["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
    assert actual["specificity_at_sensitivity_0.5"] == pytest.approx(
        1 - false_positive_rate[sensitivity >= 0.5].min(), abs=1e-3
    )


def test_four_samples_by_hand():
    """Nodules at 2 and -1, others at 1 and -3: one of each outcome, and 3 of 4 pairs in order."""
    labels, logits = np.array([1, 1, 0, 0]), np.array([2.0, -1.0, 1.0, -3.0])

    actual = _read(_fed(labels, logits))

    assert actual == {
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "auc": 0.75,
        "specificity_at_sensitivity_0.5": 1.0,
        "precision": 0.5,
        "recall": 0.5,
        "fn": 1,
        "fp": 1,
        "tn": 1,
        "tp": 1,
    }


def test_there_are_ten_of_them():
    """They are the forum recipe's and balanced accuracy, each name once, in this order."""
    assert [metric.name for metric in streaming_metrics()] == NAMES


def test_batches_add_up():
    """A thousand samples in one batch, or in 13 uneven ones, give equal results."""
    labels = np.random.default_rng(5).integers(0, 2, 1000)
    logits = np.random.default_rng(6).normal(labels, 2)

    assert _read(_fed(labels, logits, batches=13)) == _read(_fed(labels, logits))


def test_reset_forgets_everything():
    """After reset_state, only what is fed from then on counts."""
    labels, logits = np.array([1.0, 1.0, 0.0, 0.0]), np.array([2.0, -1.0, 1.0, -3.0])
    metrics = _fed(np.ones(50, int), np.full(50, 9.0))

    for metric in metrics:
        metric.reset_state()
    for metric in metrics:
        metric.update_state(labels[:, None], logits[:, None])

    assert _read(metrics) == _read(_fed(labels, logits))


@pytest.mark.parametrize(
    ("logit", "is_called_nodule"),
    [(0.0, False), (-0.0, False), (1e-9, True), (-1e-9, False), (1e-30, True), (1e9, True), (-1e9, False)],
)
def test_the_decision_is_logit_above_0(logit, is_called_nodule):
    """A logit of 0 says no and any above it says nodule, as with the exact metrics."""
    actual = _read(_fed(np.array([0, 1]), np.array([logit, logit])))

    exact = binary_metrics([0, 1], [logit, logit])
    assert actual["tp"] == actual["fp"] == int(is_called_nodule)
    assert {name: actual[name] for name in ("tp", "fp", "tn", "fn")} == {
        name: exact[name] for name in ("tp", "fp", "tn", "fn")
    }


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        (0, {"balanced_accuracy", "auc", "specificity_at_sensitivity_0.5", "recall"}),
        (1, {"balanced_accuracy", "auc", "specificity_at_sensitivity_0.5"}),
    ],
    ids=["no nodule", "nodules alone"],
)
def test_what_needs_the_missing_class_is_nan(label, undefined):
    """With one class only, whatever needs the other is NaN, and nothing else is."""
    actual = _read(_fed(np.full(4, label), np.array([-2.0, -1.0, 1.0, 2.0])))

    assert {name for name, value in actual.items() if np.isnan(value)} == undefined
    assert actual["accuracy"] == 0.5


def test_precision_is_nan_if_nothing_is_called_a_nodule():
    """No positive call, no precision, as with the exact metrics."""
    actual = _read(_fed(np.array([0, 1]), np.array([-2.0, -1.0])))

    assert np.isnan(actual["precision"])
    assert np.isnan(binary_metrics([0, 1], [-2, -1])["precision"])


@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=["flat", "column"])
def test_sample_weights_count_samples(shape):
    """Weights 3, 0, 1, 2 are as good as repeating samples 3, 0, 1 and 2 times."""
    labels, logits, weights = np.array([1, 1, 0, 0]), np.array([2.0, -1.0, 1.0, -3.0]), np.array([3, 0, 1, 2])

    actual = _read(_fed(labels, logits, weights=weights.reshape(shape)))

    assert actual == _read(_fed(labels.repeat(weights), logits.repeat(weights)))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integer_labels_are_as_good_as_float_ones(dtype):
    """A label is a nodule's if it is above 1/2, whatever type says so."""
    labels, logits = np.array([1, 1, 0, 0]), np.array([2.0, -1.0, 1.0, -3.0])
    metrics = streaming_metrics()

    for metric in metrics:
        metric.update_state(labels[:, None].astype(dtype), logits[:, None])

    assert _read(metrics) == _read(_fed(labels, logits))


def _model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse", metrics=streaming_metrics())
    model.layers[0].set_weights([np.ones((1, 1))])
    return model


def test_evaluate_reports_them():
    """Model.evaluate gives, beside the loss, each name once with the value fed by hand."""
    labels = np.random.default_rng(5).integers(0, 2, 100).astype("float32")
    logits = np.random.default_rng(6).normal(labels, 2).astype("float32")

    actual = _model().evaluate(logits[:, None], labels[:, None], batch_size=32, verbose=0, return_dict=True)

    actual.pop("loss")
    assert actual == _read(_fed(labels, logits))


def test_fit_logs_each_name_once_and_starts_anew_each_epoch():
    """History holds the loss and the ten names, and every epoch counts its own 100 samples."""
    labels = np.random.default_rng(5).integers(0, 2, (100, 1)).astype("float32")
    inputs = np.random.default_rng(6).normal(labels, 2).astype("float32")

    history = _model().fit(inputs, labels, epochs=3, batch_size=32, verbose=0).history

    counts = np.array([history[name] for name in ("tp", "fp", "tn", "fn")])
    assert sorted(history) == sorted(["loss", *NAMES])
    assert counts.sum(axis=0).tolist() == [100, 100, 100]
