import numpy as np
import pytest

from luna_cls.judging.paired_bootstrap import Difference, paired_difference


def test_a_difference_by_hand():
    """Seen 0.8 and 0.7; in three draws 0.05, 0.10 and 0.15 apart: standard error 0.05, 0.002 to 0.198."""
    found = paired_difference([0.8, 0.80, 0.81, 0.82], [0.7, 0.75, 0.71, 0.67])

    assert found.difference == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(0.05)
    assert found.interval_95 == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=1e-5)
    assert found.p == pytest.approx(0.0455, abs=1e-4)  # z = 2


def test_a_draw_without_the_metric_is_left_out():
    """The draw in which a metric is not defined changes nothing."""
    with_gap = paired_difference([0.8, 0.80, np.nan, 0.82], [0.7, 0.75, 0.71, 0.67])

    assert with_gap == paired_difference([0.8, 0.80, 0.82], [0.7, 0.75, 0.67])


@pytest.mark.parametrize(("seen", "p"), [(0.0, 1.0), (1e-16, 1.0), (0.5, np.nan)], ids=str)
@pytest.mark.parametrize("draws", [1, 5])
def test_draws_that_all_show_the_same_give_no_interval(seen, p, draws):
    """No spread, no interval. What differs by rounding alone does not differ."""
    found = paired_difference([seen] + [0.5] * draws, [0.0] + [0.5] * draws)

    assert np.isnan(found.interval_95).all()
    assert found.p == pytest.approx(p, nan_ok=True)
    assert found.scans_needed(100) is None


def test_scans_needed_by_hand():
    """Half a standard error seen on 888 scans: (1.9600 + 0.8416)² / 0.5² = 31.4 times as many, 27,880."""
    assert Difference(0.01, 0.02).scans_needed(888) == 28_000
    assert Difference(-0.01, 0.02).scans_needed(888) == 28_000
    assert Difference(0.0, 0.02).scans_needed(888) is None
    assert Difference(0.02, 0.02).scans_needed(10) == 79  # 10 · 7.849, rounded up


def test_more_pairs_need_more_scans():
    """At a level of 5 % among six pairs: (2.6383 + 0.8416)² = 12.11 for 7.85, so 43,014 for 27,880."""
    assert Difference(0.01, 0.02).scans_needed(888, level=0.05 / 6) == 44_000


def test_as_many_scans_as_needed_show_it_four_times_in_five():
    """0.01 by scans of standard deviation 0.1: 785, so 790, show it in 80 % of 4,000 trials."""
    needed = Difference(0.01, 0.1 / 10).scans_needed(100)

    seen = np.random.default_rng(0).normal(0.01, 0.1 / np.sqrt(needed), 4000)
    claims = [Difference(value, 0.1 / np.sqrt(needed)).p < 0.05 for value in seen]

    assert needed == 790
    assert np.mean(claims) == pytest.approx(0.8, abs=0.02)
