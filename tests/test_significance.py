import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from luna_cls.errors import InputError
from luna_cls.judging.significance import (
    auc_interval_95,
    bayesian_sign_test,
    correlated_t,
    delong,
    holm,
    mcnemar,
)


def _covariance_of_components(labels, scores, clusters):
    """Obuchowski's equations, pair by pair: S10/M + S01/N + (S11 + S11')/MN; DeLong's for clusters of one."""
    nodules, others = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    names = np.unique(clusters)
    above = []
    for row in scores:
        gap = row[nodules][:, None] - row[others]
        above.append((gap > 0) + 0.5 * (gap == 0))
    auc = [psi.mean() for psi in above]
    total = np.zeros((len(scores), len(scores)))
    num_of_nodules, num_of_others = len(set(clusters[nodules])), len(set(clusters[others]))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = s01 = s11 = 0.0
            for name in names:
                i, j = clusters[nodules] == name, clusters[others] == name
                v10 = [above[k].mean(axis=1)[i].sum() - i.sum() * auc[k] for k in (r, s)]
                v01 = [above[k].mean(axis=0)[j].sum() - j.sum() * auc[k] for k in (r, s)]
                s10 += v10[0] * v10[1]
                s01 += v01[0] * v01[1]
                s11 += v10[0] * v01[1] + v01[0] * v10[1]
            total[r, s] = (
                s10 * num_of_nodules / (num_of_nodules - 1) / len(nodules) ** 2
                + s01 * num_of_others / (num_of_others - 1) / len(others) ** 2
                + s11 * len(names) / (len(names) - 1) / (len(nodules) * len(others))
            )
    return total


def test_delong_by_hand():
    """Nodules 3, 1 among others 2, 0, and 3, 3 among 2, 0: AUCs 3/4 and 1, variances 1/8 + 1/8 and 0."""
    # Of the nodules 1 and 1/2 of the others lie below: variance (1/4)²·2 = 1/8, by 2 nodules 1/16.
    # Below 1/2 and 1 of the nodules lie the others: 1/16 too. The second scores have no spread at all.
    result = delong([1, 1, 0, 0], [3, 1, 2, 0], [3, 3, 2, 0])

    assert (result.auc_a, result.auc_b) == (0.75, 1.0)
    np.testing.assert_allclose(result.covariance, [[0.125, 0], [0, 0]])
    assert result.interval_95 == pytest.approx((-0.25 - 1.959964 * 0.125**0.5, -0.25 + 1.959964 * 0.125**0.5))
    assert result.p == pytest.approx(0.4795, abs=1e-4)  # z = 0.25 / 0.35355 = 0.7071


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 9), clusters=st.integers(2, 8))
def test_delong_agrees_with_its_equations_pair_by_pair(seed, levels, clusters):
    """Few levels, many ties: AUCs are scikit-learn's, variances those of the equations, in clusters too."""
    rng = np.random.default_rng(seed)
    labels = np.r_[1, 1, 0, 0, rng.integers(0, 2, 20)]
    scores = rng.integers(0, levels, (2, 24)) + labels * rng.integers(0, 2)
    scans = np.r_[0, 1, 0, 1, rng.integers(0, clusters, 20)]

    single, clustered = delong(labels, *scores), delong(labels, *scores, clusters=scans)

    assert single.auc_a == pytest.approx(roc_auc_score(labels, scores[0]), abs=1e-12)
    assert single.auc_b == pytest.approx(roc_auc_score(labels, scores[1]), abs=1e-12)
    expected = _covariance_of_components(labels, scores, np.arange(24))
    np.testing.assert_allclose(single.covariance, expected, atol=1e-12)
    expected = _covariance_of_components(labels, scores, scans)
    np.testing.assert_allclose(clustered.covariance, expected, atol=1e-12)
    variance = clustered.covariance @ [1, -1] @ [1, -1]
    assert clustered.standard_error**2 == pytest.approx(max(variance, 0), abs=1e-12)


def test_candidates_that_hang_together_count_less():
    """Every scan entered four times over: the scans' variance stays, the candidates' shrinks to a quarter."""
    rng = np.random.default_rng(3)
    labels = np.r_[np.ones(40), np.zeros(60)]
    scores = rng.normal(size=(2, 100)) + labels
    four = np.repeat(np.arange(100), 4)

    once = delong(labels, *scores)
    as_candidates = delong(labels[four], *scores[:, four])
    as_scans = delong(labels[four], *scores[:, four], clusters=four)

    assert as_scans.standard_error == pytest.approx(once.standard_error)
    assert as_candidates.standard_error == pytest.approx(once.standard_error / 2, rel=0.02)


def test_the_same_ranks_differ_by_nothing():
    """Logits and their probabilities rank alike: difference 0, interval 0 to 0, p 1."""
    logits = np.random.default_rng(0).normal(size=50)

    result = delong(np.arange(50) % 2, logits, 1 / (1 + np.exp(-logits)))

    assert (result.difference, result.interval_95, result.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_difference_that_never_varies_has_neither_interval_nor_p():
    """AUCs of 1 and 0, and 1 and 0.9 with each nodule above 9 of 10 others: every candidate says the same."""
    opposite = delong([1, 1, 0, 0], [3, 3, 1, 1], [1, 1, 3, 3])
    # Each scan has a nodule and ten others, and the scores of all scans are the same.
    labels, second = np.tile([1] + [0] * 10, 7), np.tile([5.0, 9] + [1] * 9, 7)
    alike = delong(labels, labels, second, np.repeat(np.arange(7), 11))

    assert (opposite.difference, opposite.standard_error) == (1.0, 0.0)
    assert (alike.difference, alike.standard_error) == (pytest.approx(0.1), 0.0)
    for result in (opposite, alike):
        assert np.isnan([result.p, *result.interval_95]).all()


def test_delongs_interval_holds_its_level():
    """Binormal scores of AUC 0.7602, no difference: one is claimed in 5 % of 2,000 trials, ± 1.5."""
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0], [30, 120])
    claims, covers = 0, 0
    for _ in range(2000):
        shared, own = rng.normal(size=150), rng.normal(size=(2, 150))
        result = delong(labels, *(labels + (shared + own) / np.sqrt(2)))
        claims += result.p < 0.05
        low, high = result.summary()["auc_a_interval_95"]
        covers += low < 0.76025 < high

    assert claims / 2000 == pytest.approx(0.05, abs=0.015)
    assert covers / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_interval_of_an_auc_stays_below_1():
    """0.99 with a standard error of 0.01: log odds 4.595 ± 1.96 · 1.0101, so 0.9318 to 0.9986."""
    assert auc_interval_95(0.99, 0.0001) == pytest.approx((0.9318, 0.9986), abs=1e-4)
    assert np.isnan(auc_interval_95(1.0, 0.0)).all()


def test_a_single_nodule_has_no_variance():
    """One nodule tells no spread of nodules: AUC 1/2 and 1, but neither interval nor p."""
    result = delong([1, 0, 0], [2, 1, 3], [3, 1, 2])

    assert (result.auc_a, result.auc_b) == (0.5, 1.0)
    assert np.isnan([result.p, *result.interval_95]).all()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [[1, 2], [1, 2]], "2 nodules among 2 candidates"),
        ([1, 0], [[1, 2], [1, 2, 3]], "2 labels, 2 and 3 scores"),
        ([1, 0], [[1, 2], [1, np.nan]], "finite scores"),
    ],
    ids=["one class", "lengths", "nan"],
)
def test_delong_refuses_what_has_no_auc(labels, scores, message):
    """One line says what was received."""
    with pytest.raises(InputError, match=message):
        delong(labels, *scores)


def test_mcnemar_as_published():
    """Airways of 21 children, 7 against 1 changed: mid-p 0.0391, where the exact test has 0.0703."""
    # Bentur et al. (2009), the example of Fagerland, Lydersen & Laake (2013), who give both.
    before = np.repeat([True, True, False, False], [1, 1, 7, 12])
    after = np.repeat([True, False, True, False], [1, 1, 7, 12])

    result = mcnemar(before, after)

    assert (result.only_a, result.only_b) == (1, 7)
    assert result.p == pytest.approx(0.0391, abs=5e-5)
    assert result.p == pytest.approx(0.0703125 - 8 / 2**8)


def test_mcnemar_against_statsmodels():
    """11 against 23: statsmodels 0.15.0 has 0.0576 for the exact test; mid-p is that less P(11 of 34)."""
    result = mcnemar(np.arange(34) < 11, np.arange(34) >= 11)

    assert result.p == pytest.approx(0.05761267291381955 - 286_097_760 / 2**34)


def test_mcnemar_without_a_difference():
    """Nobody differs, or both differ as often: p is 1."""
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0)
    assert mcnemar([True, False], [False, True]) == pytest.approx((1, 1, 1.0))


def test_no_p_value_of_mcnemar_is_above_1():
    """As many of either, 1 to 200 of each: p is 1, where rounding alone would make it a little more."""
    p_values = [mcnemar(np.arange(2 * n) < n, np.arange(2 * n) >= n).p for n in range(1, 201)]

    assert max(p_values) <= 1
    np.testing.assert_allclose(p_values, 1)


def test_mcnemar_takes_pairs():
    """Two cases against three are refused."""
    with pytest.raises(InputError, match="2 and 3 cases"):
        mcnemar([True, False], [True, False, True])


def test_holm_by_hand():
    """0.005·4, 0.01·3, 0.03·2, and 0.04·1 raised to 0.06; in the order given. So statsmodels 0.15.0."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.7, 0.6]), [1, 1])
    np.testing.assert_allclose(holm([0.02]), [0.02])


FOLDS = [0.012, 0.004, -0.003, 0.021, 0.009, 0.015, -0.001, 0.007, 0.018, 0.005]


def test_the_correlated_t_test_is_baycomps():
    """Ten folds, rope 0.01, correlation 1/10: the three probabilities of baycomp 1.0.3, two_on_single."""
    actual = correlated_t(FOLDS, rope=0.01, correlation=0.1)

    assert actual == pytest.approx((0.3638293597795578, 0.6358764052908523, 0.00029423492958979836))


def test_without_correlation_or_rope_it_is_students_t():
    """Then the probability of being better is one less the p-value of a one-sided t-test."""
    from scipy.stats import ttest_1samp

    actual = correlated_t(FOLDS, rope=0, correlation=0)

    assert actual.b_better == pytest.approx(ttest_1samp(FOLDS, 0, alternative="greater").pvalue)
    assert actual.equivalent == pytest.approx(0)


@pytest.mark.parametrize(
    ("difference", "expected"), [(0.02, (1, 0, 0)), (0.0, (0, 1, 0)), (-0.02, (0, 0, 1))], ids=str
)
def test_folds_that_all_agree_leave_no_doubt(difference, expected):
    """The same difference in every fold has no spread."""
    assert correlated_t([difference] * 5, rope=0.01, correlation=0.2) == expected


DATASETS = [0.03, -0.002, 0.011, 0.05, 0.004, -0.02, 0.027, 0.016, 0.02, 0.018, -0.03, 0.04]


def test_the_sign_test_is_baycomps():
    """Twelve data sets, 8 better, 2 alike, 2 worse: baycomp 1.0.3 has 0.9306, 0.0527, 0.0168 of 4 million."""
    actual = bayesian_sign_test(DATASETS, rope=0.01)

    assert actual == pytest.approx((0.9306, 0.0527, 0.0168), abs=0.004)
    assert sum(actual) == pytest.approx(1)


def test_the_sign_test_draws_the_same_for_a_seed():
    """Seed 1 twice gives the same, seed 2 another."""
    first, again, other = (bayesian_sign_test(DATASETS, rope=0.01, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_kind_never_seen_is_never_the_most_frequent():
    """Five data sets, all better: the other system has probability 0, equivalence that of its prior."""
    actual = bayesian_sign_test([0.1] * 5, rope=0.01)

    assert actual.b_better == 0
    assert actual.equivalent == pytest.approx(1 / 2**5, abs=0.004)  # P(Beta(1, 5) > 1/2)


@pytest.mark.parametrize("test", [lambda d, rope: correlated_t(d, rope, 0.1), bayesian_sign_test])
@pytest.mark.parametrize(
    ("differences", "rope"), [([], 0.0), ([np.nan, 0.1], 0.0), ([0.1, 0.2], -1)], ids=str
)
def test_bayesian_tests_refuse_what_they_cannot_take(test, differences, rope):
    """No difference, one that is not finite, a rope below 0."""
    with pytest.raises(InputError, match="Received"):
        test(differences, rope)


def test_a_correlation_of_1_is_refused():
    """Folds that say the same say nothing by their number."""
    with pytest.raises(InputError, match="Received: 1"):
        correlated_t(FOLDS, rope=0.01, correlation=1)
