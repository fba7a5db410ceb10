import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.resampled_metrics import resampled_metrics
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
