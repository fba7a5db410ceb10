import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import t

from luna_cls.judging.paired_bootstrap import Difference, paired_difference
from luna_cls.judging.resampling import scan_weights


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


def test_two_chances_by_hand():
    """Seen 0.1 and 0.3 by two seeds; draws vary by 0.02 together and by 0.01 one against the other."""
    draws = np.array([-0.02, 0.02]), np.array([0.01, -0.01])
    together, against = (np.tile(of, 3) for of in (np.repeat(draws[0], 2), np.tile(draws[1], 2)))
    values = np.stack([np.r_[0.1, 0.1 + together + against], np.r_[0.3, 0.3 + together - against]])

    found = paired_difference(values, np.zeros_like(values), num_scans=31)

    assert found.difference == pytest.approx(0.2)
    assert found.seed_error == pytest.approx(0.1)  # 0.1 √2 by the root of two seeds
    # Of each seed 0.02² + 0.01², by 12 draws of which 11 are free; what they share is 0.02² - 0.01².
    assert found.scan_error == pytest.approx(np.sqrt((0.02**2 - 0.01**2) * 12 / 11))
    assert found.standard_error == pytest.approx(np.hypot(found.scan_error, 0.1))
    # Student's t at 97.5 %: 12.7062 with one degree of freedom, 2.0423 with 30; half widths in squares.
    half = np.hypot(12.7062 * 0.1, 2.0423 * found.scan_error)
    assert found.interval_95 == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)


def test_a_seed_trained_thrice_says_nothing_new():
    """Three equal rows, or one row of one seed: error, interval and p of a single table."""
    a, b = [0.8, 0.80, 0.81, np.nan, 0.82], [0.7, 0.75, 0.71, 0.5, 0.67]
    once = paired_difference(a, b, 31)

    thrice = paired_difference([a] * 3, [b] * 3, 31)

    assert paired_difference([a], [b], 31) == once
    assert (thrice.seed_error, thrice.num_seeds) == (0.0, 3)
    assert thrice.standard_error == pytest.approx(once.standard_error)
    assert thrice.interval_95 == pytest.approx(once.interval_95)
    assert thrice.p == pytest.approx(once.p)


def test_seeds_that_differ_where_scans_do_not_have_no_interval():
    """All draws of the scans show 0.1 and 0.3: what never differs among these scans may differ elsewhere."""
    values = np.tile([[0.1], [0.3]], 6)

    assert np.isnan(paired_difference(values, np.zeros((2, 6)), 31).interval_95).all()


@settings(deadline=None)
@example(distance=1e-4, share=0.5, num_scans=30, num_seeds=3)  # p of nearly 1
@example(distance=60.0, share=0.5, num_scans=900, num_seeds=2)  # by scans alone it would be 0
@given(
    distance=st.floats(1e-8, 60),
    share=st.floats(0, 1),
    num_scans=st.integers(2, 900),
    num_seeds=st.integers(2, 20),
)
def test_p_is_the_level_at_which_the_interval_touches_0(distance, share, num_scans, num_seeds):
    """With t at p for both chances the half width is the difference; below 0.05 the interval leaves out 0."""
    found = Difference(distance, share, num_scans, 1 - share, num_seeds)

    quantiles = t.isf(found.p / 2, num_scans - 1), t.isf(found.p / 2, num_seeds - 1)
    terms = [q * error for q, error in zip(quantiles, (share, 1 - share), strict=True) if error]
    assert np.hypot.reduce(terms) == pytest.approx(distance, rel=1e-6, abs=1e-6)
    if abs(found.p - 0.05) > 1e-9:
        assert (found.p < 0.05) == (found.interval_95[0] > 0)
    assert Difference(-distance, share, num_scans, 1 - share, num_seeds).p == found.p


def test_a_difference_far_beyond_doubt_has_a_p_of_nearly_0():
    """A thousand standard errors on 888 scans and 900 seeds: too small for float64, and no error."""
    assert Difference(1.0, 0.001, 888, 0.0001, 900).p < 1e-300


def test_seeds_are_named_where_seeds_are_lacking():
    """Seen 0.1: 37 seeds if they spread by 0.2 and 0.01 is by scans; scans if 0.1 is by those."""
    by_seeds = Difference(0.1, 0.01, 100, 0.2 / 3**0.5, 3)
    # By 100 scans (1.9842 + 0.8452)² · 0.01² / 0.1² = 0.080; the other 0.920 is for seeds:
    # (2.0281 + 0.8517)² · 0.2² / 0.1² / 0.920 = 36.06, with the 36 degrees of freedom of 37; of 36, 36.11.
    assert (by_seeds.scans_needed(), by_seeds.seeds_needed()) == (None, 37)
    # At a level of 0.05 among ten pairs it takes more.
    assert by_seeds.seeds_needed(level=0.005) > 37

    by_scans = Difference(0.1, 0.1, 100, 0.001, 3)
    # (4.3027 + 1.0607)² · 0.001² / 0.1² = 0.0029 by seeds; 100 · 2.8294² / (1 - 0.0029) = 803.
    assert (by_scans.scans_needed(), by_scans.seeds_needed()) == (810, None)


def test_neither_scans_nor_seeds_alone_may_do():
    """Both errors as large as the difference: more of the one leaves the other."""
    found = Difference(0.1, 0.1, 100, 0.1, 3)

    assert (found.scans_needed(), found.seeds_needed()) == (None, None)
    assert (Difference(0.0, 0.1, 100, 0.1, 3).seeds_needed(), Difference(0.1, 0.1, 9).seeds_needed()) == (
        None,
        None,
    )


def test_where_the_larger_error_leads_nowhere_the_smaller_is_named():
    """Seen 0.06, 0.02 by scans and 0.015 by three seeds: 5.36 · 0.015 is 0.080, too much for any scans."""
    found = Difference(0.06, 0.02, 100, 0.015, 3)

    # By scans (2.8294 · 0.02 / 0.06)² = 0.890; (2.1314 + 0.8662)² · 3 · 0.015² / 0.06² / 0.110 = 15.2 seeds.
    assert (found.scans_needed(), found.seeds_needed()) == (None, 16)


def test_as_many_seeds_as_needed_show_it_four_times_in_five():
    """0.1 by seeds that spread by 0.2, on scans that hardly do: of 4,000 trials 80 %, ± 2."""
    needed = Difference(0.1, 1e-6, 100, 0.2 / 3**0.5, 3).seeds_needed()
    rng = np.random.default_rng(0)

    seen = rng.normal(0.1, 0.2, (4000, needed))
    errors = seen.std(axis=1, ddof=1) / np.sqrt(needed)
    half = t.isf(0.025, needed - 1) * errors

    assert needed == pytest.approx(34, abs=1)
    assert np.mean(np.abs(seen.mean(axis=1)) > half) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("num_scans", [30, 100])
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.3), (0.1, 0.9, 0.0), (1.0, 0.0, 0.0)], ids=str)
def test_no_difference_is_claimed_more_often_than_said(num_scans, num_seeds, shares):
    """400 trials without a difference, some claim one: 1 to 7 %, by whatever chance.

    Shares of the variance are of scans, of seeds, and of scans that trouble one training alone. With 90 % by
    seeds, scans alone would claim a difference more than four times in ten.
    """
    rng = np.random.default_rng(8)
    draws = np.vstack([np.ones((1, num_scans)), scan_weights(num_scans, 200)]) / num_scans
    by_scan, by_seed, by_both = shares
    claims = claims_by_scans = 0
    for _ in range(400):
        differences = (
            np.sqrt(by_scan * num_scans) * rng.normal(size=(1, num_scans))
            + np.sqrt(by_seed * num_seeds) * rng.normal(size=(num_seeds, 1))
            + np.sqrt(by_both * num_seeds * num_scans) * rng.normal(size=(num_seeds, num_scans))
        )
        values = differences @ draws.T
        low, high = paired_difference(values, np.zeros_like(values), num_scans).interval_95
        claims += not low <= 0 <= high
        mean = values.mean(axis=0)
        low, high = paired_difference(mean, np.zeros_like(mean), num_scans).interval_95
        claims_by_scans += not low <= 0 <= high

    assert 0.01 <= claims / 400 <= 0.07
    if by_seed == 0.9:
        assert claims_by_scans / 400 > 0.4
