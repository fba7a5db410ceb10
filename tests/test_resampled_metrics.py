import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
)

from luna_cls.errors import InputError
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.resampled_metrics import resampled_balanced_accuracy, resampled_metrics
from luna_cls.judging.resampling import scan_weights

COUNTS = {"tp", "fp", "tn", "fn"}


def test_a_scan_drawn_twice_counts_twice():
    """Scan 0 has a nodule at 0.9, scan 1 one at 0.4, others at 0.6 and 0.1; scan 1 drawn once, twice."""
    actual = resampled_metrics(
        labels=[1, 1, 0, 0],
        scores=[0.9, 0.4, 0.6, 0.1],
        probability=[0.9, 0.4, 0.6, 0.1],
        scan=[0, 1, 1, 1],
        weights=[[1, 1], [1, 2]],
        threshold=0.5,
    )

    assert actual["recall"].tolist() == [1 / 2, 1 / 3]
    assert actual["specificity"].tolist() == [1 / 2, 1 / 2]
    assert actual["auc"].tolist() == [3 / 4, 8 / 12]  # pairs won: 3 of 4; 4 and 2·2 of 3·4
    assert actual["brier"] == pytest.approx([(0.01 + 0.36 + 0.36 + 0.01) / 4, (0.01 + 2 * 0.73) / 7])


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 100_000),
    levels=st.integers(1, 12),
    num_scans=st.integers(1, 6),
    num_candidates=st.integers(1, 40),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_weighted_metrics_are_those_of_the_candidates_written_out(
    seed, levels, num_scans, num_candidates, share
):
    """In each of 4 draws, with ties, empty scans and missing classes: equal to `binary_metrics`."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num_candidates) < share).astype(int)
    scan = rng.integers(0, num_scans, num_candidates)
    logits = np.linspace(-2, 3, levels)[rng.integers(0, levels, num_candidates)] + 0.3 * labels
    weights = scan_weights(num_scans, 4, seed)

    actual = resampled_metrics(labels, logits, expit(logits), scan, weights)

    for draw, times in enumerate(weights):
        row = np.repeat(np.arange(num_candidates), times[scan])
        if not len(row):
            assert all(np.isnan(values[draw]) for values in actual.values())
            continue
        expected = binary_metrics(labels[row], logits[row])
        assert set(actual) - set(expected) == {"brier", "log_loss"}
        for name in set(expected) - COUNTS:
            value = pytest.approx(expected[name], abs=1e-12, nan_ok=True)
            assert actual[name][draw] == value, name
        assert actual["brier"][draw] == pytest.approx(brier_score_loss(labels[row], expit(logits[row])))
        entropy = log_loss(labels[row], expit(logits[row]), labels=[0, 1])
        assert actual["log_loss"][draw] == pytest.approx(entropy)


def test_a_certain_mistake_costs_a_finite_cross_entropy():
    """Probability 1 for a look-alike: as scikit-learn has it, 36.04, not infinity."""
    actual = resampled_metrics([0, 1], [1.0, 1.0], [1.0, 1.0], [0, 0], [[1]], threshold=0.5)

    assert actual["log_loss"] == pytest.approx(log_loss([0, 1], [1.0, 1.0]))
    assert actual["log_loss"] == pytest.approx(36.04 / 2, abs=0.01)


def test_draws_go_through_in_pieces(monkeypatch):
    """However many draws fit into memory at once, the metrics are the same."""
    rng = np.random.default_rng(5)
    labels, scan = rng.integers(0, 2, 60), rng.integers(0, 7, 60)
    logits = rng.normal(size=60) + labels
    weights = scan_weights(7, 50)

    whole = resampled_metrics(labels, logits, expit(logits), scan, weights)
    monkeypatch.setattr("luna_cls.judging.resampled_metrics._VALUES_AT_ONCE", 1000)
    in_pieces = resampled_metrics(labels, logits, expit(logits), scan, weights)

    for name, values in whole.items():
        np.testing.assert_array_equal(in_pieces[name], values)


LABELS, PROBABILITY = [1, 0, 0, 0, 0], [0.8, 0.9, 0.2, 0.2, 0.2]


def test_as_if_half_were_nodules():
    """One nodule at 0.8, of four others one at 0.9: each of those weighs a quarter of the nodule."""
    given = LABELS, PROBABILITY, PROBABILITY, [0] * 5, [[1]]

    as_it_is = resampled_metrics(*given, threshold=0.5)
    balanced = resampled_metrics(*given, threshold=0.5, prevalence=0.5)

    assert (as_it_is["accuracy"], balanced["accuracy"]) == (4 / 5, 7 / 8)
    assert (as_it_is["precision"], balanced["precision"]) == (1 / 2, 1 / 1.25)
    assert (as_it_is["average_precision"], balanced["average_precision"]) == (1 / 2, 1 / 1.25)
    assert balanced["brier"] == pytest.approx(0.5 * 0.04 + 0.5 * (0.81 + 3 * 0.04) / 4)
    same = ("balanced_accuracy", "auc", "recall", "specificity", "gmean", "sensitivity_at_specificity_0.9")
    assert {name: balanced[name] for name in same} == {name: as_it_is[name] for name in same}


def test_always_saying_no_is_right_as_often_as_there_are_no_nodules():
    """99 in 100 are right as it is, half of them as if half were nodules: what 99 % accuracy is worth."""
    labels, never = np.arange(100) == 0, np.full(100, 0.1)

    for prevalence, expected in ((None, 0.99), (0.5, 0.5), (0.01, 0.99), (0.25, 0.75)):
        actual = resampled_metrics(labels, never, never, np.zeros(100, int), [[1]], 0.5, prevalence)
        assert actual["accuracy"] == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 100_000),
    levels=st.integers(1, 12),
    num_candidates=st.integers(2, 40),
    prevalence=st.floats(0.001, 0.999),
)
def test_a_prevalence_is_a_weight_of_each_class(seed, levels, num_candidates, prevalence):
    """In each of 4 draws what scikit-learn makes of the candidates written out, with sample weights."""
    rng = np.random.default_rng(seed)
    labels = np.r_[1, 0, rng.integers(0, 2, num_candidates)]
    scan = rng.integers(0, 4, len(labels))
    logits = np.linspace(-2, 3, levels)[rng.integers(0, levels, len(labels))] + 0.3 * labels
    weights = scan_weights(4, 4, seed)

    actual = resampled_metrics(labels, logits, expit(logits), scan, weights, prevalence=prevalence)

    for draw, times in enumerate(weights):
        row = np.repeat(np.arange(len(labels)), times[scan])
        truth, given_logits, called = labels[row], logits[row], logits[row] > 0
        if len(np.unique(truth)) < 2:
            of_both = set(actual) - {"recall", "specificity"}
            assert all(np.isnan(actual[name][draw]) for name in of_both)
            continue
        share = np.where(truth == 1, prevalence / truth.sum(), (1 - prevalence) / (1 - truth).sum())
        expected = {
            "accuracy": accuracy_score(truth, called, sample_weight=share),
            "average_precision": average_precision_score(truth, given_logits, sample_weight=share),
            "f1": f1_score(truth, called, sample_weight=share, zero_division=0),
            "mcc": matthews_corrcoef(truth, called, sample_weight=share),
            "precision": precision_score(truth, called, sample_weight=share, zero_division=np.nan),
            "brier": brier_score_loss(truth, expit(given_logits), sample_weight=share),
            "log_loss": log_loss(truth, expit(given_logits), sample_weight=share),
        }
        for name, value in expected.items():
            assert actual[name][draw] == pytest.approx(value, abs=1e-9, nan_ok=True), name
        natural = binary_metrics(truth, given_logits)
        for name in set(actual) - set(expected):
            assert actual[name][draw] == pytest.approx(natural[name], abs=1e-12), name


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, float("nan")])
def test_a_prevalence_of_one_class_alone_is_refused(prevalence):
    """It lies between 0 and 1."""
    with pytest.raises(InputError, match="Received"):
        resampled_metrics(LABELS, PROBABILITY, PROBABILITY, [0] * 5, [[1]], prevalence=prevalence)


def test_balanced_accuracy_of_any_decision():
    """Scan 0 has both classes, scan 1 others alone: drawn once each, scan 0 twice, scan 1 alone."""
    labels, called, scan = [1, 1, 0, 0, 0], [True, False, False, True, False], [0, 0, 0, 1, 1]

    actual = resampled_balanced_accuracy(labels, called, scan, [[1, 1], [2, 0], [0, 2]])

    assert actual[0] == pytest.approx(balanced_accuracy_score(labels, called))
    assert actual[:2] == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 2 + 1) / 2])
    assert np.isnan(actual[2])
