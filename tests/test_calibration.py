import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from luna_cls.errors import InputError
from luna_cls.judging import calibration
from luna_cls.judging.calibration import (
    METHODS,
    Beta,
    Isotonic,
    Platt,
    PriorShift,
    Temperature,
    crossfit,
    shift_of,
)


def _candidates(n=20_000, seed=0, slope=1.0, shift=0.0):
    """Labels and a model's logits; the true ones are slope * logits + shift."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-2, 2, n)
    labels = (rng.random(n) < expit(true)).astype(int)
    return labels, (true - shift) / slope


def _loss(labels, logits):
    return np.logaddexp(0, logits).sum() - logits[labels == 1].sum()


def test_temperature_undoes_a_factor():
    """Logits three times too small, as after focal loss, need a temperature of 1/3."""
    fitted = Temperature.fit(*_candidates(slope=3.0))

    assert fitted.temperature == pytest.approx(1 / 3, rel=0.03)


def test_platt_undoes_a_factor_and_a_shift():
    """Logits half as large as they should be, and meant for 20 times the odds."""
    fitted = Platt.fit(*_candidates(slope=2.0, shift=-3.0))

    assert fitted.slope == pytest.approx(2.0, rel=0.03)
    assert fitted.intercept == pytest.approx(-3.0, abs=0.06)


def test_platt_is_scikit_learns_logistic_regression():
    """Without a penalty the coefficients agree to 1 in 10,000."""
    labels, logits = _candidates(slope=0.5, shift=1.0)

    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    fitted = Platt.fit(labels, logits)

    assert fitted.slope == pytest.approx(expected.coef_[0, 0], rel=1e-4)
    assert fitted.intercept == pytest.approx(expected.intercept_[0], abs=1e-4)


def test_platts_prior_is_that_of_a_ridge_on_the_spread():
    """On 40 candidates: scikit-learn's with C = 100 on logits divided by their spread."""
    labels, logits = _candidates(40)

    expected = LogisticRegression(C=100, tol=1e-10).fit(logits[:, None] / logits.std(), labels)
    fitted = Platt.fit(labels, logits)

    assert fitted.slope == pytest.approx(expected.coef_[0, 0] / logits.std(), rel=1e-5)
    assert fitted.intercept == pytest.approx(expected.intercept_[0], abs=1e-5)


def test_beta_undoes_different_slopes_at_both_ends():
    """True log odds 2 ln p - 0.5 ln(1 - p) + 1 are found again, to the precision of 200,000 candidates."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 200_000)
    true = Beta(2.0, 0.5, 1.0)(logits)

    fitted = Beta.fit((rng.random(len(logits)) < expit(true)).astype(int), logits)

    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((2.0, 0.5, 1.0), abs=0.05)
    assert true[0] == pytest.approx(2 * np.log(expit(logits[0])) - 0.5 * np.log(expit(-logits[0])) + 1)


def test_beta_at_its_bound_is_the_most_likely_there():
    """Where b would be negative it is 0.001, and no a and c beside those found are likelier."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < expit(2 * np.log(expit(logits)) + 0.6 * np.log(expit(-logits)) + 1)).astype(
        int
    )

    fitted = Beta.fit(labels, logits)

    assert fitted.b == 0.001
    for da, dc in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        beside = Beta(fitted.a + da, fitted.b, fitted.c + dc)
        assert _loss(labels, beside(logits)) > _loss(labels, fitted(logits))


def test_isotonic_is_scikit_learns_at_the_centres_of_its_blocks():
    """With half a nodule at the lowest logit and half another candidate at the highest counted in both."""
    labels, logits = _candidates(300)
    fitted = Isotonic.fit(labels, logits)

    expected = IsotonicRegression().fit(
        np.r_[logits, logits.min(), logits.max()],
        np.r_[labels, 1, 0],
        sample_weight=np.r_[np.ones(300), 0.5, 0.5],
    )
    centers = np.array(fitted.centers)

    assert len(centers) > 5
    np.testing.assert_allclose(expit(fitted(centers)), expected.predict(centers), rtol=1e-6)


def test_isotonic_of_six_candidates_by_hand():
    """Labels 0 0 1 0 1 1 at logits 1 to 6: blocks 1-2 (0.5 of 2.5), 3-4 (1 of 2), 5-6 (2 of 2.5)."""
    fitted = Isotonic.fit([0, 0, 1, 0, 1, 1], [1.0, 2, 3, 4, 5, 6])

    np.testing.assert_allclose(fitted.centers, [1.5, 3.5, 5.5])
    np.testing.assert_allclose(fitted.calibrated, logit([0.2, 0.5, 0.8]), atol=1e-6)
    np.testing.assert_allclose(fitted([2.5, 7.5]), [logit(0.2) / 2, logit(0.8) + 0.002], atol=1e-6)


def test_prior_shift_makes_the_mean_probability_the_share_of_nodules():
    """Logits meant for 20 times the odds are shifted by -3; the mean probability is then the prevalence."""
    labels, logits = _candidates(shift=-3.0)

    fitted = PriorShift.fit(labels, logits)

    assert fitted.shift == pytest.approx(-3.0, abs=0.06)
    assert expit(fitted(logits)).mean() == pytest.approx(labels.mean(), rel=1e-6)


def test_the_shift_between_two_prevalences():
    """From 1 in 2 to 1 in 101, the odds fall from 1 to 1/100."""
    assert shift_of(1 / 2, 1 / 101) == pytest.approx(-np.log(100))


@pytest.mark.parametrize("prevalence", [0.0, 1.0, np.nan])
def test_a_prevalence_is_between_0_and_1(prevalence):
    """Others have no log odds."""
    with pytest.raises(InputError, match="between 0 and 1"):
        shift_of(0.5, prevalence)


def test_temperature_leaves_the_auc_as_it_is_to_the_last_bit():
    """20,000 logits as a model gives them, in float32."""
    labels, logits = _candidates(slope=3.1)
    logits = logits.astype(np.float32)

    assert roc_auc_score(labels, Temperature.fit(labels, logits)(logits)) == roc_auc_score(labels, logits)


@pytest.mark.parametrize("name", METHODS)
def test_every_curve_keeps_the_order_and_makes_no_ties(name):
    """Of float32 logits, also far outside those it was fitted on, and with rates of 0 and 1 at the ends."""
    labels, logits = _candidates(2000, slope=0.7)
    fitted = METHODS[name].fit(labels, logits)
    given = np.unique(np.r_[logits, np.linspace(-30, 30, 5000)].astype(np.float32)).astype(float)

    calibrated = fitted(given)

    assert np.isfinite(calibrated).all()
    assert (np.diff(calibrated) > 0).all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(-20, 20, width=16)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    ),
    st.sampled_from(sorted(METHODS)),
)
def test_every_curve_rises_and_survives_json_whatever_it_is_fitted_to(rows, name):
    """Separable, reversed, tied or tiny data: finite, strictly rising, and read back the same."""
    labels, logits = [int(label) for label, _ in rows], [value for _, value in rows]

    fitted = METHODS[name].fit(labels, logits)
    values = fitted(np.linspace(-25, 25, 400))

    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()
    assert calibration.from_json(json.loads(json.dumps(calibration.to_json(fitted)))) == fitted


@pytest.mark.parametrize("name", METHODS)
def test_separable_data_give_probabilities_short_of_certainty(name):
    """100 candidates, all nodules above all others: no probability is 0 or 1."""
    logits = np.r_[np.linspace(-3, -1, 90), np.linspace(1, 3, 10)]
    labels = np.repeat([0, 1], [90, 10])

    probability = expit(METHODS[name].fit(labels, logits)(logits))

    assert 0 < probability.min() < 0.5 < probability.max() < 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("labels", "logits", "words"),
    [
        ([0, 0], [1.0, 2.0], "0 nodules among 2 candidates"),
        ([1, 1], [1.0, 2.0], "2 nodules among 2 candidates"),
        ([0, 1], [1.0, np.nan], "1 of 2 logits are not finite"),
        ([0, 1], [1.0], "as many"),
        ([0, 2], [1.0, 2.0], "1 for a nodule"),
    ],
    ids=["no nodule", "only nodules", "nan", "too few", "label 2"],
)
def test_what_nothing_can_be_fitted_to_is_refused(name, labels, logits, words):
    """In one line, by every method."""
    with pytest.raises(InputError) as caught:
        METHODS[name].fit(labels, logits)

    assert words in str(caught.value)


def test_an_unknown_method_is_answered_with_the_known():
    """All five are listed."""
    with pytest.raises(InputError) as caught:
        calibration.get("magic")

    assert "'magic'. Known: temperature, platt, beta, isotonic, prior_shift." in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], "a 'method' and its 'parameters'"),
        ({"method": "platt"}, "a 'method' and its 'parameters'"),
        (
            {"method": "platt", "parameters": {"slope": 1}},
            "has the parameters slope, intercept. Received: slope",
        ),
        ({"method": "platt", "parameters": {"slope": -1, "intercept": 0}}, "a slope above 0"),
        ({"method": "temperature", "parameters": {"temperature": None}}, "temperature above 0"),
        ({"method": "beta", "parameters": {"a": 1, "b": "x", "c": 0}}, "a and b above 0"),
        ({"method": "isotonic", "parameters": {"centers": [1, 1], "calibrated": [0, 1]}}, "rising"),
        ({"method": "isotonic", "parameters": {"centers": 3, "calibrated": [0, 1]}}, "rising"),
        ({"method": "isotonic", "parameters": {"centers": [], "calibrated": []}}, "rising"),
        ({"method": "prior_shift", "parameters": {"shift": np.inf}}, "a number"),
    ],
    ids=str,
)
def test_a_damaged_entry_is_refused(entry, words):
    """The line says what is wrong with it."""
    with pytest.raises(InputError) as caught:
        calibration.from_json(entry)

    assert words in str(caught.value)


def test_cross_fitting_is_what_fits_to_the_other_scans_give():
    """Two scans, two folds: each is calibrated by a fit to the other, and both are judged together."""
    labels, logits = _candidates(400, slope=3.0)
    is_first = np.arange(400) < 200

    found = crossfit(labels, logits, np.where(is_first, "a", "b"))
    calibrated = np.where(
        is_first,
        Platt.fit(labels[~is_first], logits[~is_first])(logits),
        Platt.fit(labels[is_first], logits[is_first])(logits),
    )

    assert found["folds"] == 2
    assert found["after"]["platt"]["brier"] == pytest.approx(((expit(calibrated) - labels) ** 2).mean())
    assert found["before"]["brier"] == pytest.approx(((expit(logits) - labels) ** 2).mean())
    assert found["after"]["platt"]["ece"] < found["before"]["ece"] / 2


def test_cross_fitting_shows_that_isotonic_learns_noise_by_heart():
    """On 200 random labels: of use where it was fitted, worse than the constant prevalence elsewhere."""
    rng = np.random.default_rng(0)
    labels, logits = (rng.random(200) < 0.3).astype(int), rng.normal(size=200)

    own = expit(Isotonic.fit(labels, logits)(logits))
    found = crossfit(labels, logits, np.arange(200) // 4)

    uncertainty = labels.mean() * (1 - labels.mean())
    assert ((own - labels) ** 2).mean() < uncertainty < found["after"]["isotonic"]["brier"]


def test_cross_fitting_needs_nodules_in_two_scans():
    """Nodules in one scan alone: there is nothing to fit to without it."""
    assert crossfit([0, 1, 0, 0], [0.0, 1.0, 2.0, 3.0], ["a", "a", "b", "b"]) is None


@pytest.mark.slow
def test_a_million_candidates_are_fitted_in_seconds():
    """Each method in under 5 seconds, on a machine busy with other things."""
    labels, logits = _candidates(1_000_000, slope=1.5, shift=-2.0)
    for kind in METHODS.values():
        begun = time.process_time()
        kind.fit(labels, logits)

        assert time.process_time() - begun < 5
