import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy.special import expit
from sklearn import metrics as sk

from luna_cls.judging.binary import binary_metrics
from luna_cls.learning import metrics as streaming
from luna_cls.learning.metrics import HistogramMetric, LogitHistogram, streaming_metrics

pytestmark = pytest.mark.usefixtures("float32_policy")

NAMES = [
    "accuracy",
    "balanced_accuracy",
    "gmean",
    "f1",
    "mcc",
    "auc",
    "average_precision",
    "specificity_at_sensitivity_0.5",
    "specificity_at_sensitivity_0.9",
    "sensitivity_at_specificity_0.9",
    "precision",
    "recall",
    "tp",
    "fp",
    "tn",
    "fn",
]
COUNT, ONE_IN = 550_000, 500
SHAPES = {  # the logits of look-alikes and of nodules: mean and standard deviation
    "calibrated": ((-10.1, 2.7), (-2.5, 2.7)),  # the middle look-alike has a probability of 4e-5
    "around a half": ((-0.12, 0.18), (0.25, 0.18)),  # as focal loss leaves them
    "saturated": ((-16, 6), (6, 6)),  # float32 has p = 1 above 17
}


def _large(shape):
    """550,000 samples at 1 in 500: labels `(n,)` and logits `(n,)`."""
    (mean_0, sd_0), (mean_1, sd_1) = SHAPES[shape]
    rng = np.random.default_rng(1)
    labels = rng.permutation((np.arange(COUNT) < COUNT // ONE_IN).astype(int))
    logits = rng.normal(np.where(labels, mean_1, mean_0), np.where(labels, sd_1, sd_0))
    return labels, logits.astype("float32")


def _read(metrics):
    return {metric.name: float(ops.convert_to_numpy(metric.result())) for metric in metrics}


def _fed(labels, logits, batches=1, weights=None, metrics=None):
    """Metrics, new ones unless given, fed with float32 columns of labels and logits in so many batches."""
    metrics = metrics or streaming_metrics()
    labels, logits = np.asarray(labels, "float32"), np.asarray(logits, "float32")
    for rows in np.array_split(np.arange(len(labels)), batches):
        for metric in metrics:
            metric.update_state(
                labels[rows, None], logits[rows, None], None if weights is None else weights[rows]
            )
    return metrics


@pytest.mark.parametrize("shape", SHAPES)
def test_they_agree_with_scikit_learn_at_one_in_500(shape):
    """AUC within 1e-4, specificity at sensitivity 0.9 and the rest within 1e-3; all counts are exact."""
    labels, logits = _large(shape)

    actual = _read(_fed(labels, logits, batches=11))

    called = logits > 0
    false_positive_rate, sensitivity, _ = sk.roc_curve(labels, logits, drop_intermediate=False)
    specificity = 1 - false_positive_rate
    assert [actual[name] for name in ("tn", "fp", "fn", "tp")] == sk.confusion_matrix(
        labels, called
    ).ravel().tolist()
    assert actual["auc"] == pytest.approx(sk.roc_auc_score(labels, logits), abs=1e-4)
    expected = {
        "average_precision": sk.average_precision_score(labels, logits),
        "specificity_at_sensitivity_0.5": specificity[sensitivity >= 0.5].max(),
        "specificity_at_sensitivity_0.9": specificity[sensitivity >= 0.9].max(),
        "sensitivity_at_specificity_0.9": sensitivity[specificity >= 0.9].max(),
    }
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    expected = {
        "accuracy": sk.accuracy_score(labels, called),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "gmean": np.sqrt(sk.recall_score(labels, called) * sk.recall_score(1 - labels, ~called)),
        "f1": sk.f1_score(labels, called),
        "mcc": sk.matthews_corrcoef(labels, called),
        "precision": sk.precision_score(labels, called),
        "recall": sk.recall_score(labels, called),
    }
    assert {name: actual[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_kerass_own_see_nothing_of_small_probabilities():
    """Of calibrated scores, Keras reads specificity 0 at sensitivity 0.9, and AUC more than .05 too low."""
    labels, logits = _large("calibrated")
    theirs = [keras.metrics.AUC(name="auc"), keras.metrics.SpecificityAtSensitivity(0.9, name="specificity")]

    theirs = _read(_fed(labels, expit(logits), batches=11, metrics=theirs))

    assert theirs["specificity"] == 0
    assert theirs["auc"] < sk.roc_auc_score(labels, logits) - 0.05


def test_four_samples_by_hand():
    """Nodules at 2 and -1, others at 1 and -3: one of each outcome, and 3 of 4 pairs in order."""
    labels, logits = np.array([1, 1, 0, 0]), np.array([2.0, -1.0, 1.0, -3.0])

    actual = _read(_fed(labels, logits))

    assert actual == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": 0.5,
            "gmean": 0.5,
            "f1": 0.5,
            "mcc": 0.0,
            "auc": 0.75,
            "average_precision": (1 + 2 / 3) / 2,
            "specificity_at_sensitivity_0.5": 1.0,
            "specificity_at_sensitivity_0.9": 0.5,
            "sensitivity_at_specificity_0.9": 0.5,
            "precision": 0.5,
            "recall": 0.5,
            "fn": 1,
            "fp": 1,
            "tn": 1,
            "tp": 1,
        }
    )
    assert list(actual) == NAMES


@settings(deadline=None, max_examples=40)
@given(
    samples=st.sampled_from([2, 3, 17]).flatmap(
        lambda size: st.lists(
            st.tuples(st.integers(0, 1), st.integers(-400, 400)), min_size=size, max_size=size
        )
    )
)
def test_they_are_the_exact_metrics_where_no_bin_holds_two_values(samples):
    """For logits on a grid of 1/8 from -50 to 50, every metric is that of `binary_metrics`, NaN included."""
    labels, logits = np.array(samples).T / [[1], [8]]

    actual, exact = _read(_fed(labels, logits)), binary_metrics(labels, logits)

    assert actual == pytest.approx({name: exact[name] for name in NAMES}, rel=1e-5, abs=1e-6, nan_ok=True)


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

    assert _read(_fed(labels, logits, metrics=metrics)) == _read(_fed(labels, logits))


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


@pytest.mark.parametrize("threshold_logit", [-6.2, -0.05, 0.05, 2.0, 70.0])
def test_another_threshold_is_met_to_a_bin(threshold_logit):
    """Decisions at a threshold of its own agree with scikit-learn's, but for logits within 0.01 of it."""
    labels = np.arange(2000) % 2
    logits = np.random.default_rng(8).normal(4 * labels - 4, 3)
    logits = logits[np.abs(logits - threshold_logit) > 0.01]
    labels = labels[: len(logits)]
    metric = streaming.BalancedAccuracy(threshold_logit=threshold_logit)

    actual = _read(_fed(labels, logits, metrics=[metric]))

    expected = sk.balanced_accuracy_score(labels, logits > threshold_logit)
    assert actual["balanced_accuracy"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_f_beta_takes_its_beta(beta):
    """It is scikit-learn's of the same beta, and named after it."""
    labels = np.arange(200) % 4 == 0
    logits = np.random.default_rng(9).normal(labels, 1)

    actual = _read(_fed(labels, logits, metrics=[streaming.FBeta(beta)]))

    assert actual == {f"f{beta:g}": pytest.approx(sk.fbeta_score(labels, logits > 0, beta=beta))}


@pytest.mark.parametrize(("label", "also"), [(0, {"recall"}), (1, set())], ids=["no nodule", "nodules alone"])
def test_what_needs_the_missing_class_is_nan(label, also):
    """With one class only, whatever needs the other is NaN, and nothing else is."""
    actual = _read(_fed(np.full(4, label), np.array([-2.0, -1.0, 1.0, 2.0])))

    both = {"balanced_accuracy", "gmean", "mcc", "auc", "average_precision"}
    both |= {name for name in NAMES if "_at_" in name}
    assert {name for name, value in actual.items() if np.isnan(value)} == both | also
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
    labels, logits = np.array([1, 1, 0, 0]), np.array([2.0, -1.0, 1.0, -3.0], "float32")
    metrics = streaming_metrics()

    for metric in metrics:
        metric.update_state(labels[:, None].astype(dtype), logits[:, None])

    assert _read(metrics) == _read(_fed(labels, logits))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_logits_are_counted_where_they_are(dtype):
    """Logits of 16 bits give what the same numbers give in 32, and 20,000 of a kind are 20,000."""
    labels = np.arange(20_000) % 2
    logits = ops.cast(np.random.default_rng(3).integers(-8, 9, (20_000, 1)), dtype)
    metrics = streaming_metrics()

    for metric in metrics:
        metric.update_state(labels[:, None], logits)

    assert _read(metrics) == _read(_fed(labels, ops.convert_to_numpy(ops.cast(logits, "float32"))[:, 0]))


def test_they_share_one_histogram(monkeypatch):
    """Sixteen metrics keep one array between them, and an update counts the batch once."""
    counted = []
    count = LogitHistogram.update_state
    monkeypatch.setattr(
        LogitHistogram,
        "update_state",
        lambda self, *batch: (counted.append(len(batch[0])), count(self, *batch)),
    )

    metrics = _fed(np.array([0, 1, 1]), np.array([-1.0, 0, 1]))

    variables = {id(variable) for metric in metrics for variable in metric.variables}
    assert len(metrics) == 16
    assert len(variables) == 1
    assert counted == [3]
    assert len({id(metric.histogram) for metric in metrics}) == 1


def _kinds():
    kinds = [kind for kind in vars(streaming).values() if isinstance(kind, type)]
    return [
        kind
        for kind in kinds
        if issubclass(kind, HistogramMetric)
        and kind is not HistogramMetric
        and not kind.__name__.startswith("_")
    ]


ARGUMENTS = {
    "SpecificityAtSensitivity": [0.8],
    "SensitivityAtSpecificity": [0.8],
    "FBeta": [2.0],
    "Count": ["fp"],
}


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_each_works_alone_and_outlives_saving(kind):
    """One metric keeps its own histogram, and Keras gives back one that reads the same."""
    labels = np.arange(100) % 2
    logits = np.random.default_rng(2).normal(labels, 1)
    metric = kind(*ARGUMENTS.get(kind.__name__, []), name="mine")

    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))

    assert type(copy) is kind
    actual = _read(_fed(labels, logits, metrics=[copy]))
    assert actual == _read(_fed(labels, logits, metrics=[metric]))
    assert np.isfinite(actual["mine"])


def _model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse", metrics=streaming_metrics(), jit_compile=False)
    model.layers[0].set_weights([np.ones((1, 1))])
    return model


def test_evaluate_reports_them():
    """Model.evaluate gives, beside the loss, each name once with the value fed by hand."""
    labels = np.random.default_rng(5).integers(0, 2, 100).astype("float32")
    logits = np.random.default_rng(6).normal(labels, 2).astype("float32")

    actual = _model().evaluate(logits[:, None], labels[:, None], batch_size=32, verbose=0, return_dict=True)

    actual.pop("loss")
    assert actual == pytest.approx(_read(_fed(labels, logits)), rel=1e-6)


def test_fit_logs_each_name_once_and_starts_anew_each_epoch():
    """History holds the loss and the sixteen names, and every epoch counts its own 100 samples."""
    labels = np.random.default_rng(5).integers(0, 2, (100, 1)).astype("float32")
    inputs = np.random.default_rng(6).normal(labels, 2).astype("float32")

    history = _model().fit(inputs, labels, epochs=3, batch_size=32, verbose=0).history

    counts = np.array([history[name] for name in ("tp", "fp", "tn", "fn")])
    assert sorted(history) == sorted(["loss", *NAMES])
    assert counts.sum(axis=0).tolist() == [100, 100, 100]


def test_a_histogram_by_itself_is_the_weight_of_what_it_has_seen():
    """Three samples of weight 1, 2 and 0.5 come to 3.5, and to nothing once they are forgotten."""
    histogram = LogitHistogram()

    histogram.update_state([[0.0], [1.0], [1.0]], [[-3.0], [0.5], [40.0]], [1.0, 2.0, 0.5])

    assert float(histogram.result()) == 3.5
    histogram.reset_state()
    assert float(histogram.result()) == 0.0
