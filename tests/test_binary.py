import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk

from luna_cls.errors import InputError
from luna_cls.judging.binary import (
    best_threshold,
    binary_metrics,
    no_skill_metrics,
    precision_recall_points,
    roc_points,
)


def test_five_samples_by_hand():
    """Nodules at 3, 1, -1 and others at 2, -2: one false alarm, one miss, 4 of 6 pairs in order."""
    actual = binary_metrics([1, 1, 1, 0, 0], [3, 1, -1, 2, -2])

    assert actual == {
        "accuracy": 3 / 5,
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "auc": pytest.approx(4 / 6),
        # Down the ranking: nodule, other, nodule, nodule, other.
        "average_precision": pytest.approx((1 + 2 / 3 + 3 / 4) / 3),
        "specificity_at_sensitivity_0.5": 0.5,
        "specificity_at_sensitivity_0.9": 0.5,
        "sensitivity_at_specificity_0.9": pytest.approx(1 / 3),
        "gmean": pytest.approx((2 / 3 * 1 / 2) ** 0.5),
        "f1": pytest.approx(2 / 3),
        "mcc": pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "specificity": 0.5,
        "tp": 2,
        "fp": 1,
        "tn": 1,
        "fn": 1,
    }


def test_they_agree_with_scikit_learn():
    """On 20,000 samples at 1 in 100, with many ties, every metric is scikit-learn's."""
    rng = np.random.default_rng(1)
    labels = (rng.random(20_000) < 0.01).astype(int)
    scores = rng.normal(3 * labels - 2, 1.5).round(1)

    actual = binary_metrics(labels, scores)

    called = scores > 0
    assert actual["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert actual["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called))
    assert actual["auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert actual["average_precision"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert actual["precision"] == pytest.approx(sk.precision_score(labels, called))
    assert actual["f1"] == pytest.approx(sk.f1_score(labels, called))
    assert actual["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, called))
    assert actual["recall"] == pytest.approx(sk.recall_score(labels, called))
    assert actual["specificity"] == pytest.approx(sk.recall_score(1 - labels, ~called))
    counts = [actual[name] for name in ("tn", "fp", "fn", "tp")]
    assert counts == sk.confusion_matrix(labels, called).ravel().tolist()


def test_probabilities_take_a_threshold_of_a_half():
    """Probabilities cut at 0.5 give what their logits give."""
    logits = np.array([-2.0, 0.5, 1.0, -0.5])
    labels = [0, 1, 0, 1]

    assert binary_metrics(labels, 1 / (1 + np.exp(-logits)), 0.5) == binary_metrics(labels, logits)


def test_a_score_at_the_threshold_says_no():
    """Scores of exactly 0 call nothing a nodule."""
    actual = binary_metrics([0, 1], [0.0, 0.0])

    assert (actual["tn"], actual["fn"]) == (1, 1)


def test_saying_no_to_luna16_has_998_accuracy_and_no_skill():
    """At 1 nodule in 490, always saying no is 99.8 % accurate, with a balanced accuracy of 50 %."""
    labels = np.zeros(490)
    labels[0] = 1

    actual = no_skill_metrics(labels)

    assert round(actual["accuracy"], 3) == 0.998
    assert actual["balanced_accuracy"] == 0.5
    assert actual["auc"] == 0.5
    assert actual["average_precision"] == pytest.approx(1 / 490)
    assert actual["recall"] == 0
    assert np.isnan(actual["precision"])


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        (0, {"recall", "precision", "f1"}),
        (1, {"specificity"}),
    ],
    ids=["no nodule", "nodules alone"],
)
def test_what_needs_a_missing_class_is_nan(label, undefined):
    """With one class, and no score above 0, ranking metrics and those of the other class are NaN."""
    actual = binary_metrics([label] * 3, [-1.0, -2.0, 1.0 if label else -3.0])

    ranking = {"auc", "average_precision", "specificity_at_sensitivity_0.5"}
    ranking |= {
        "specificity_at_sensitivity_0.9",
        "sensitivity_at_specificity_0.9",
        "balanced_accuracy",
        "gmean",
        "mcc",
    }
    assert {name for name, value in actual.items() if np.isnan(value)} == ranking | undefined


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf], ids=str)
def test_scores_that_are_not_finite_are_refused(wrong):
    """A NaN or infinite score is refused, with how many there are."""
    with pytest.raises(InputError, match="2 of 4 scores are not finite"):
        binary_metrics([0, 1, 0, 1], [0.0, wrong, 1.0, wrong])


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([0, 1], [0.5])], ids=["none", "too few"])
def test_as_many_scores_as_labels_are_needed(labels, scores):
    """No score at all, or fewer scores than labels, are refused with both numbers."""
    with pytest.raises(InputError, match=f"Received: {len(scores)} scores, {len(labels)} labels"):
        binary_metrics(labels, scores)


def test_thinned_curves_lie_on_the_whole_ones():
    """Of 20,000 scores at most 500 points of each curve are kept, ends included, all as scikit-learn's."""
    rng = np.random.default_rng(2)
    labels = (rng.random(20_000) < 0.3).astype(int)
    scores = rng.normal(labels, 1.0)

    roc, precision_recall = roc_points(labels, scores), precision_recall_points(labels, scores)

    for points in (roc, precision_recall):
        assert len(points) == 500
    for _, point in roc.iloc[1:].sample(20, random_state=0).iterrows():
        called = scores >= point["threshold"]
        assert point["sensitivity"] == pytest.approx(sk.recall_score(labels, called))
        assert point["false_positive_rate"] == pytest.approx(1 - sk.recall_score(1 - labels, ~called))
    for _, point in precision_recall.sample(20, random_state=0).iterrows():
        called = scores >= point["threshold"]
        assert point["recall"] == pytest.approx(sk.recall_score(labels, called))
        assert point["precision"] == pytest.approx(sk.precision_score(labels, called))
    assert roc.iloc[[0, -1], :2].to_numpy().tolist() == [[0, 0], [1, 1]]
    assert precision_recall["recall"].iloc[-1] == 1
    assert precision_recall["recall"].is_monotonic_increasing


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=30))
def test_the_best_threshold_has_the_best_balanced_accuracy(cases):
    """No threshold at, between, below or above the scores does better; and it is never a score itself."""
    labels, scores = np.array([case[0] for case in cases], int), np.array([case[1] for case in cases], float)
    assume(0 < labels.sum() < len(labels))

    threshold = best_threshold(labels, scores)

    tried = [binary_metrics(labels, scores, at)["balanced_accuracy"] for at in np.arange(-5, 5.5, 0.5)]
    assert binary_metrics(labels, scores, threshold)["balanced_accuracy"] == pytest.approx(max(tried))
    assert threshold not in scores


def test_the_best_threshold_lies_in_the_middle():
    """Nodules at 1 and 3, others at -2 and -1: midway between -1 and 1; of one class there is none."""
    assert best_threshold([1, 0, 1, 0], [3.0, -2.0, 1.0, -1.0]) == 0.0
    with pytest.raises(InputError, match="0 nodules among 2 candidates"):
        best_threshold([0, 0], [1.0, 2.0])
