import numpy as np
import pytest

from luna_cls.judging.paired_bootstrap import Difference, paired_difference


def test_a_difference_by_hand():
    """Seen 0.8 and 0.7; in three draws 0.05, 0.10 and 0.15 apart: standard error 0.05, two of it seen."""
    found = paired_difference([0.8, 0.80, 0.81, 0.82], [0.7, 0.75, 0.71, 0.67], num_scans=31)

    assert found.difference == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(0.05)
    # Student's t with 30 degrees of freedom: 2.0423 at 97.5 %, and P(|t| > 2) = 0.0546.
    assert found.interval_95 == pytest.approx((0.1 - 2.0423 * 0.05, 0.1 + 2.0423 * 0.05), abs=1e-5)
    assert found.p == pytest.approx(0.0546, abs=1e-4)


def test_two_scans_show_little():
    """Three standard errors by two scans: p is 0.20, with one degree of freedom; by 888 scans 0.003."""
    assert Difference(0.3, 0.1, num_scans=2).p == pytest.approx(0.2048, abs=1e-4)
    assert Difference(0.3, 0.1, num_scans=888).p == pytest.approx(0.0028, abs=1e-4)


def test_a_draw_without_the_metric_is_left_out():
    """The draw in which a metric is not defined changes nothing."""
    with_gap = paired_difference([0.8, 0.80, np.nan, 0.82], [0.7, 0.75, 0.71, 0.67], 31)

    assert with_gap == paired_difference([0.8, 0.80, 0.82], [0.7, 0.75, 0.67], 31)


@pytest.mark.parametrize(("seen", "p"), [(0.0, 1.0), (1e-16, 1.0), (0.5, np.nan)], ids=str)
@pytest.mark.parametrize("draws", [1, 5])
def test_draws_that_all_show_the_same_give_no_interval(seen, p, draws):
    """No spread, no interval. What differs by rounding alone does not differ."""
    found = paired_difference([seen] + [0.5] * draws, [0.0] + [0.5] * draws, 31)

    assert np.isnan(found.interval_95).all()
    assert found.p == pytest.approx(p, nan_ok=True)
    assert found.scans_needed() is None


def test_scans_needed_by_hand():
    """Half a standard error seen on 888 scans: (1.9626 + 0.8420)² / 0.5² = 31.5 times as many, 27,940."""
    assert Difference(0.01, 0.02, 888).scans_needed() == 28_000
    assert Difference(-0.01, 0.02, 888).scans_needed() == 28_000
    assert Difference(0.0, 0.02, 888).scans_needed() is None
    assert Difference(0.02, 0.02, 11).scans_needed() == 110  # (2.2281 + 0.8791)² = 9.66 times


def test_more_pairs_need_more_scans():
    """At a level of 5 % among six pairs: (2.6446 + 0.8420)² = 12.16 for 7.87, so 43,180 for 27,940."""
    assert Difference(0.01, 0.02, 888).scans_needed(level=0.05 / 6) == 44_000


def test_as_many_scans_as_needed_show_it_four_times_in_five():
    """0.01 by scans of standard deviation 0.1: 785, here 790 to 800, show it in 80 % of 4,000 trials."""
    needed = Difference(0.01, 0.1 / 10, 100).scans_needed()

    seen = np.random.default_rng(0).normal(0.01, 0.1 / np.sqrt(needed), 4000)
    claims = [Difference(value, 0.1 / np.sqrt(needed), needed).p < 0.05 for value in seen]

    assert needed == pytest.approx(795, abs=15)
    assert np.mean(claims) == pytest.approx(0.8, abs=0.02)
