import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from luna_cls.errors import InputError
from luna_cls.judging.reliability import assess, figures, wilson_95
from luna_cls.judging.resampling import scan_weights

HUNDRED = [0.2] * 50 + [0.9] * 50  # probabilities of two kinds
TRUTH = [1] * 20 + [0] * 30 + [1] * 40 + [0] * 10  # 0.4 and 0.8 of them are nodules


def _candidates(n, seed=0, sharpness=1.0):
    """Labels, probabilities and scans (20 candidates each): true log odds are the logits / sharpness."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 2, n)
    labels = (rng.random(n) < expit(logits)).astype(int)
    return labels, expit(sharpness * logits), np.arange(n) // 20


def test_errors_of_two_bins_worked_out_by_hand():
    """0.2 given where 0.4 are nodules, 0.9 where 0.8 are: off by 0.2 and 0.1, 0.15 on the whole."""
    found = figures(TRUTH, HUNDRED, bins=2)

    assert found["ece"] == pytest.approx((0.2 + 0.1) / 2)
    assert found["max_calibration_error"] == pytest.approx(0.2)
    # 20 of the 60 nodules lie where it is off by 0.2, 40 where by 0.1.
    assert found["ece_of_nodules"] == pytest.approx((20 * 0.2 + 40 * 0.1) / 60)


def test_the_brier_score_and_its_parts_worked_out_by_hand():
    """Prevalence 0.6: uncertainty 0.24, resolution 0.04, reliability (0.04 + 0.01) / 2, together 0.225."""
    parts = assess(TRUTH, HUNDRED, bins=2)["brier_parts"]

    assert parts["uncertainty"] == pytest.approx(0.24)
    assert parts["resolution"] == pytest.approx(0.04)
    assert parts["reliability"] == pytest.approx(0.025)
    assert parts["within_bins"] == pytest.approx(0, abs=1e-15)
    assert figures(TRUTH, HUNDRED)["brier"] == pytest.approx(0.225)
    assert assess(TRUTH, HUNDRED)["brier_skill"] == pytest.approx(1 - 0.225 / 0.24)


def test_the_curve_of_many_candidates_is_scikit_learns():
    """1,500 candidates in 15 bins of 100: means and shares are those of calibration_curve by quantiles."""
    labels, probability, _ = _candidates(1500, sharpness=1.7)

    shares, means = calibration_curve(labels, probability, n_bins=15, strategy="quantile")
    curve = assess(labels, probability)["curve"]

    assert [bin_["count"] for bin_ in curve] == [100] * 15
    np.testing.assert_allclose([bin_["mean_probability"] for bin_ in curve], means)
    np.testing.assert_allclose([bin_["observed_share"] for bin_ in curve], shares)
    assert figures(labels, probability)["ece"] == pytest.approx(np.abs(shares - means).mean())


def test_brier_score_and_log_loss_are_scikit_learns():
    """On 1,000 candidates, and with a sure mistake, which costs 36 nats and not infinitely many."""
    labels, probability, _ = _candidates(1000)
    probability[0], labels[0] = 1.0, 0

    found = figures(labels, probability)

    assert found["brier"] == pytest.approx(brier_score_loss(labels, probability))
    assert found["log_loss"] == pytest.approx(log_loss(labels, probability))


def test_slope_and_intercept_are_those_of_a_logistic_regression():
    """Probabilities 1.7 times too sure: the slope is about 1 / 1.7, and scikit-learn's without a penalty."""
    labels, probability, _ = _candidates(20_000, sharpness=1.7)
    logits = np.log(probability / (1 - probability))

    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    found = figures(labels, probability)

    assert found["slope"] == pytest.approx(1 / 1.7, abs=0.03)
    assert found["slope"] == pytest.approx(expected.coef_[0, 0], rel=1e-4)
    assert found["intercept"] == pytest.approx(expected.intercept_[0], abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60), st.integers(1, 20))
def test_the_parts_of_the_brier_score_add_up_to_it(rows, bins):
    """With ties, few candidates or one class: reliability - resolution + uncertainty + within_bins is all."""
    labels, probability = [int(label) for label, _ in rows], [n / 20 for _, n in rows]

    parts = assess(labels, probability, bins=bins)["brier_parts"]

    together = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"]
    assert together == pytest.approx(np.mean((np.array(probability) - labels) ** 2), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60))
def test_bins_never_part_what_is_equally_probable(rows):
    """Every candidate is in one bin, every probability too, and bins rise."""
    labels, probability = [int(label) for label, _ in rows], [n / 20 for _, n in rows]

    for name in ("curve", "curve_of_nodules"):
        curve = assess(labels, probability, bins=5)[name]

        means = [bin_["mean_probability"] for bin_ in curve]
        assert sum(bin_["count"] for bin_ in curve) == len(rows)
        assert sum(bin_["num_nodules"] for bin_ in curve) == sum(labels)
        assert len(curve) <= min(5 + (name == "curve_of_nodules"), len(set(probability)))
        assert means == sorted(means)


def test_bins_of_nodules_see_what_bins_of_candidates_do_not():
    """Of 4,900 candidates 10 get 0.25 and 10 get 0.75; of both, half are nodules: 0.25 off, either way.

    All 20 are in the highest fifteenth, where that cancels: ECE 0. Around nodules it is 0.25. The 4,880 that
    get less than any nodule are a bin of their own.
    """
    probability = np.r_[np.zeros(4880), np.full(10, 0.25), np.full(10, 0.75)]
    labels = np.r_[np.zeros(4880, int), np.tile([1, 0], 10)]

    found = figures(labels, probability)

    assert found["ece"] == pytest.approx(0, abs=1e-12)
    assert found["ece_of_nodules"] == pytest.approx(0.25)


def test_the_constant_prevalence_is_calibrated_and_has_no_skill():
    """1 in 10 given to all: ECE 0, Brier score 0.09, skill 0, and these are the figures of no skill."""
    labels = np.tile([1] + [0] * 9, 30)

    found = assess(labels, np.full(300, 0.1))

    assert found["ece"] == pytest.approx(0, abs=1e-12)
    assert found["brier_skill"] == pytest.approx(0, abs=1e-12)
    assert found["no_skill"]["brier"] == pytest.approx(0.09) == found["brier"]
    assert found["no_skill"]["log_loss"] == pytest.approx(found["log_loss"])
    assert len(found["curve"]) == len(found["curve_of_nodules"]) == 1


def test_wilsons_interval_of_published_shares():
    """Newcombe (1998), table I: of 81 in 263, 15 in 148 and 0 in 20."""
    actual = wilson_95([81, 15, 0], [263, 148, 20])

    np.testing.assert_allclose(actual.T, [[0.2553, 0.3662], [0.0624, 0.1605], [0, 0.1611]], atol=5e-5)


def test_chance_alone_explains_the_error_of_right_probabilities():
    """Over 40 draws of 2,000 right probabilities the mean ECE is that of chance; intervals begin at 0."""
    found = [assess(*_candidates(2000, seed), resamples=100) for seed in range(40)]

    mean = np.mean([one["ece"] for one in found])
    held = sum(one["interval_95"]["ece"][0] == 0 for one in found)
    assert mean == pytest.approx(np.mean([one["ece_by_chance"] for one in found]), rel=0.1)
    assert held >= 34


def test_intervals_hold_what_is_wrong():
    """Twice too sure: the interval of the ECE is far from 0, around the figure, and the same every time."""
    labels, probability, series = _candidates(4000, sharpness=2.0)

    found = assess(labels, probability, series)
    again = assess(labels, probability, series)

    assert found["interval_95"]["ece"][0] > 0.05
    assert found["interval_95"] == again["interval_95"]
    for name, (low, high) in found["interval_95"].items():
        assert low <= found[name] <= high


def test_intervals_are_those_of_scans_resampled_row_by_row():
    """Brier scores of scans drawn and put together row by row have the same middle 95 %."""
    labels, probability, series = _candidates(200)
    rows = [np.flatnonzero(series == scan) for scan in range(10)]
    drawn = [
        np.concatenate([np.repeat(own, times) for own, times in zip(rows, weights, strict=True)])
        for weights in scan_weights(10, 200, 3)
    ]
    scores = [np.mean((probability[draw] - labels[draw]) ** 2) for draw in drawn]

    found = assess(labels, probability, series, resamples=200, seed=3)

    np.testing.assert_allclose(found["interval_95"]["brier"], np.percentile(scores, [2.5, 97.5]))


def test_bars_of_the_curve_are_those_of_scans_resampled_row_by_row():
    """Bins held, scans drawn and put together: the same middle 95 % of each bin's share."""
    labels, probability, series = _candidates(600)
    rows = [np.flatnonzero(series == scan) for scan in range(30)]
    middle = probability > np.median(probability)  # two bins of 300
    shares = []
    for weights in scan_weights(30, 200, 3):
        draw = np.concatenate([np.repeat(own, times) for own, times in zip(rows, weights, strict=True)])
        shares.append([labels[draw][middle[draw] == upper].mean() for upper in (False, True)])

    curve = assess(labels, probability, series, bins=2, resamples=200, seed=3)["curve"]

    expected = np.percentile(shares, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose([bin_["interval_95"] for bin_ in curve], expected)


def test_bars_are_wilsons_without_scans_and_where_no_draw_differs():
    """20 of 50 and 40 of 50; one scan is drawn alike each time, and 0 of 2 are 0 in every draw."""
    without, alone = assess(TRUTH, HUNDRED, bins=2), assess(TRUTH, HUNDRED, ["a"] * 100, bins=2)
    lower, upper = assess([0, 0, 1, 0, 1, 1], [0.1, 0.1, 0.8, 0.8, 0.8, 0.8], [*"abaabb"], bins=2)["curve"]

    expected = wilson_95([20, 40], [50, 50]).T
    np.testing.assert_allclose([bin_["interval_95"] for bin_ in without["curve"]], expected)
    np.testing.assert_allclose([bin_["interval_95"] for bin_ in alone["curve"]], expected)
    np.testing.assert_allclose(lower["interval_95"], wilson_95(0, 2))
    assert upper["interval_95"] == [0.5, 1]  # of scan a alone 1 of 2, of b alone 2 of 2


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_an_error_but_no_slope(label):
    """What needs both classes is NaN; nothing warns, nothing fails."""
    found = assess([label] * 4, [0.1, 0.2, 0.3, 0.4], ["a", "a", "b", "b"])

    assert found["ece"] == pytest.approx(0.25 if label == 0 else 0.75)
    assert np.isnan(found["slope"])
    assert np.isnan(found["brier_skill"])
    assert np.isnan(found["ece_of_nodules"]) == (label == 0)


@pytest.mark.parametrize(
    ("labels", "probability", "words"),
    [
        ([0, 1], [0.5, np.nan], "1 of 2 probabilities are not in [0, 1]. Received: nan."),
        ([0, 1], [0.5, 1.5], "Received: 1.5."),
        ([0, 1], [0.5], "Received: 1 probabilities, 2 labels."),
        ([], [], "and some"),
    ],
    ids=["nan", "above 1", "too few", "none"],
)
def test_what_is_no_probability_is_refused(labels, probability, words):
    """The line says how many are wrong and what was received."""
    with pytest.raises(InputError) as caught:
        assess(labels, probability)

    assert words in str(caught.value)
