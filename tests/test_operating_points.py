import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from luna_cls.errors import InputError
from luna_cls.files import write_json
from luna_cls.judging import operating_points
from luna_cls.judging.operating_points import Goal, choose, decision_curve
from luna_cls.judging.resampling import scan_weights

# Two scans; nodules at logits 9, 7, 5, 3, other candidates at 8, 6, 4, 2, 1, 0.
LOGITS = np.arange(10.0)
LABELS = np.isin(LOGITS, [9, 7, 5, 3]).astype(int)
SERIES = np.where(LOGITS % 3 == 0, "a", "b")


def _threshold(goal, labels=LABELS, logits=LOGITS, series=SERIES):
    (point,) = choose(labels, logits, series, [goal], resamples=10)
    return point["threshold_logit"]


@pytest.mark.parametrize(
    ("sensitivity", "threshold"), [(0.25, 9), (0.26, 7), (0.5, 7), (0.75, 5), (0.9, 3), (1.0, 3)], ids=str
)
def test_the_highest_threshold_that_calls_so_many_nodules(sensitivity, threshold):
    """Of nodules at 9, 7, 5 and 3, half are called from 7 on, nine tenths from 3 on only."""
    assert _threshold(Goal("sensitivity", sensitivity)) == threshold


@pytest.mark.parametrize(
    ("fps_per_scan", "threshold"), [(0, 9), (0.49, 9), (0.5, 7), (1, 5), (2, 2), (3, 0), (100, 0)], ids=str
)
def test_the_lowest_threshold_with_no_more_false_positives(fps_per_scan, threshold):
    """Others at 8, 6, 4, 2, 1, 0 in two scans: 0.5 a scan is one, at 8, so from 7 on; at 6 is the second."""
    assert _threshold(Goal("fps_per_scan", fps_per_scan)) == threshold


def test_no_false_positive_at_all_where_the_highest_candidate_is_one():
    """Nothing is called: the threshold is just above the highest logit."""
    threshold = _threshold(Goal("fps_per_scan", 0), [0, 1], [2.0, 1.0], ["a", "a"])

    assert threshold == np.nextafter(2.0, np.inf)


def test_tied_false_positives_are_called_together_or_not_at_all():
    """Three at 1.0 in one scan, where two are allowed: none of them is called, nor the nodule at 1.0."""
    threshold = _threshold(Goal("fps_per_scan", 2), [1, 0, 0, 0, 1], [2.0, 1.0, 1.0, 1.0, 1.0], ["a"] * 5)

    assert threshold == 2.0


def test_a_rounded_goal_is_met_by_what_it_means():
    """0.7 of 10 nodules are 7, although 0.7 times 10 is not quite 7 in binary; 0.1 a scan of 30 are 3."""
    logits = np.arange(20.0)
    labels = np.repeat([0, 1], 10)

    assert _threshold(Goal("sensitivity", 0.7), labels, logits, ["a"] * 20) == 13
    assert _threshold(Goal("fps_per_scan", 0.1), np.r_[1, [0] * 29], np.arange(30.0), np.arange(30)) == 27


def test_a_candidate_at_the_threshold_is_called():
    """From 5 on: nodules at 9, 7, 5, others at 8, 6."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES)

    assert (result["tp"], result["fp"], result["fn"], result["tn"]) == (3, 2, 1, 4)
    assert result["sensitivity"] == 3 / 4
    assert result["specificity"] == 4 / 6
    assert result["ppv"] == 3 / 5
    assert result["npv"] == 4 / 5
    assert result["fps_per_scan"] == 1.0


def test_predictive_values_at_natural_prevalence_are_bayes():
    """Sensitivity 3/4, specificity 2/3; among 1,000 candidates 10 nodules: 7.5 found, 330 false alarms."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES, prevalence=0.01)

    assert result["natural_ppv"] == pytest.approx(7.5 / 337.5)
    assert result["natural_npv"] == pytest.approx(660 / 662.5)


def test_at_the_prevalence_found_natural_values_are_those_found():
    """4 nodules in 10."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES, prevalence=0.4)

    assert result["natural_ppv"] == pytest.approx(result["ppv"])
    assert result["natural_npv"] == pytest.approx(result["npv"])


def test_scans_without_candidates_count():
    """The same two false positives in four scans are half as many a scan."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES, num_scans=4)

    assert result["fps_per_scan"] == 0.5


def test_nothing_called_has_no_positive_predictive_value():
    """NaN, with its interval, and no warning."""
    (result,) = operating_points.apply([{"threshold_logit": 99.0}], LABELS, LOGITS, SERIES)

    assert np.isnan(result["ppv"])
    assert np.isnan(result["interval_95"]["ppv"]).all()
    assert np.isnan(result["natural_ppv"])
    assert result["npv"] == 0.6


def test_intervals_are_of_draws_of_two_scans():
    """From 5 on, 1 of 2 nodules and 1 of 2 others are called in scan a, 2 of 2 and 1 of 4 in b."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES)
    (only_b,) = operating_points.apply([{"threshold_logit": 7.5}], LABELS, LOGITS, SERIES)

    assert result["interval_95"]["sensitivity"] == [1 / 2, 1]
    assert result["interval_95"]["specificity"] == [1 / 2, 3 / 4]
    assert result["interval_95"]["ppv"] == [1 / 2, 2 / 3]
    assert result["interval_95"]["npv"] == [1 / 2, 1]
    assert np.isnan(result["interval_95"]["fps_per_scan"]).all()  # 1 in either scan: that never varies
    assert only_b["interval_95"]["fps_per_scan"] == [0.0, 1.0]


def test_intervals_are_those_of_scans_resampled_row_by_row():
    """Scans drawn and put together, shares counted by hand: the same middle 95 % of each."""
    labels, logits, series = _candidates()
    rows = [np.flatnonzero(series == scan) for scan in dict.fromkeys(series)]
    seen = []
    for weights in scan_weights(20, 100, 5):
        draw = np.concatenate([np.tile(own, times) for own, times in zip(rows, weights, strict=True)])
        nodule, called = labels[draw] == 1, logits[draw] >= 0.5
        seen.append([called[nodule].mean(), (~called)[~nodule].mean(), nodule[called].mean()])
        seen[-1].append((~nodule)[~called].mean())

    (result,) = operating_points.apply(
        [{"threshold_logit": 0.5}], labels, logits, series, seed=5, resamples=100
    )

    bounds = np.percentile(seen, [2.5, 97.5], axis=0).T
    for name, expected in zip(("sensitivity", "specificity", "ppv", "npv"), bounds, strict=True):
        assert result["interval_95"][name] == pytest.approx(expected)


def test_the_interval_of_specificity_holds_where_candidates_of_a_scan_hang_together():
    """100 scans of 40 others, each scan with its own level: of 400 intervals 95 %, ± 4, hold the true 0.5.

    Wilson's, as if 4,000 candidates were independent, would hold it in 40 %.
    """
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        logits = (rng.normal(0, 1, (100, 1)) + rng.normal(0, 1, (100, 40))).reshape(-1)
        (result,) = operating_points.apply(
            [{"threshold_logit": 0.0}], np.zeros(4000, int), logits, np.arange(4000) // 40, resamples=200
        )
        low, high = result["interval_95"]["specificity"]
        held += low <= 0.5 <= high

    assert held / 400 == pytest.approx(0.95, abs=0.04)


def test_none_of_n_and_a_single_scan_have_wilsons_interval():
    """0 of 6 others called, which no draw changes; 3 of 4 nodules in a scan by itself: 0.301 to 0.954."""
    (none_called,) = operating_points.apply([{"threshold_logit": 8.5}], LABELS, LOGITS, SERIES)
    (one_scan,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, ["a"] * 10)

    # Wilson's of n of n goes down to n / (n + 1.96²).
    assert none_called["interval_95"]["specificity"] == pytest.approx([6 / (6 + 1.96**2), 1], abs=1e-4)
    assert one_scan["interval_95"]["sensitivity"] == pytest.approx([0.301, 0.954], abs=5e-4)


def test_without_resamples_there_is_no_interval():
    """The shares are there all the same; a threshold cannot be chosen without them."""
    (result,) = operating_points.apply([{"threshold_logit": 5.0}], LABELS, LOGITS, SERIES, resamples=0)

    assert result["sensitivity"] == 3 / 4
    assert result["interval_95"] is None
    with pytest.raises(InputError, match="2 resamples or more"):
        choose(LABELS, LOGITS, SERIES, [Goal("sensitivity", 0.9)], resamples=0)


def test_a_point_keeps_its_own_prevalence():
    """0.01 that it was made for, not the 0.4 given; the other point, which has none, takes 0.4."""
    points = [{"threshold_logit": 5.0, "natural_prevalence": 0.01}, {"threshold_logit": 5.0}]

    own, given_one = operating_points.apply(points, LABELS, LOGITS, SERIES, prevalence=0.4)

    assert (own["natural_prevalence"], given_one["natural_prevalence"]) == (0.01, 0.4)
    assert own["natural_ppv"] == pytest.approx(7.5 / 337.5)
    assert given_one["natural_ppv"] == pytest.approx(3 / 5)
    with pytest.raises(InputError, match=r"between 0 and 1. Received: 1.5"):
        operating_points.apply([{"threshold_logit": 5.0, "natural_prevalence": 1.5}], LABELS, LOGITS, SERIES)


def test_one_class_alone_has_what_it_defines():
    """No nodule: specificity and false positives are there, the rest is NaN; but nothing can be chosen."""
    others = np.zeros(10, int)

    (result,) = operating_points.apply([{"threshold_logit": 5.0}], others, LOGITS, SERIES)

    assert (result["specificity"], result["fps_per_scan"], result["ppv"]) == (1 / 2, 5 / 2, 0)
    assert np.isnan([result["sensitivity"], result["natural_ppv"], result["natural_npv"]]).all()
    assert np.isnan(result["interval_95"]["sensitivity"]).all()
    with pytest.raises(InputError, match="0 nodules among 10"):
        choose(others, LOGITS, SERIES, [Goal("sensitivity", 0.9)])


@pytest.mark.parametrize(
    ("labels", "logits", "series", "words"),
    [
        ([0, 1], [0.5], ["a", "a"], r"shapes \(2,\), \(1,\) and \(2,\)"),
        ([0, 1], [0.5, 1.0], ["a"], r"and \(1,\)"),
        ([], [], [], "and some"),
        ([0, 1], [0.5, np.inf], ["a", "a"], "A logit is finite"),
        ([0, 2], [0.5, 1.0], ["a", "a"], "a label 1 for a nodule"),
    ],
    ids=["logits", "scans", "none", "infinite", "label"],
)
def test_what_no_threshold_can_be_applied_to_is_refused(labels, logits, series, words):
    """One line says what was received."""
    with pytest.raises(InputError, match=words):
        operating_points.apply([{"threshold_logit": 0.0}], labels, logits, series)


def _candidates(n=400, scans=20):
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, n)
    return (rng.random(n) < expit(logits)).astype(int), logits, rng.integers(0, scans, n)


@pytest.mark.parametrize("goal", [Goal("sensitivity", 0.8), Goal("fps_per_scan", 1.5)], ids=lambda g: g.name)
def test_the_interval_of_a_threshold_is_that_of_thresholds_of_resampled_scans(goal):
    """Scans drawn and put together row by row, thresholds chosen on each: the same middle 95 %."""
    labels, logits, series = _candidates()
    rows = [np.flatnonzero(series == scan) for scan in dict.fromkeys(series)]
    chosen = []
    for weights in scan_weights(20, 100, 5):
        draw = np.concatenate([np.tile(own, times) for own, times in zip(rows, weights, strict=True)])
        counted = np.sort(logits[draw][labels[draw] == (goal.name == "sensitivity")])[::-1]
        if goal.name == "sensitivity":
            chosen.append(counted[int(np.ceil(0.8 * len(counted) - 1e-6)) - 1])
        else:
            barred = counted[int(1.5 * 20)]
            chosen.append(logits[logits > barred].min())

    (point,) = choose(labels, logits, series, [goal], seed=5, resamples=100)

    low, high = np.percentile(expit(np.array(chosen)), [2.5, 97.5])
    assert point["threshold_interval_95"] == pytest.approx([low, high])
    assert low < point["threshold_probability"] < high


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(-3, 3), st.sampled_from("abc")), min_size=2, max_size=40
    ).filter(lambda rows: len({label for label, _, _ in rows}) == 2),
    st.floats(0.01, 1),
    st.floats(0, 5),
)
def test_a_threshold_reaches_its_goal_where_it_was_chosen_and_none_is_better(rows, sensitivity, fps):
    """With ties: at the threshold the goal is met; at the next one on the better side it is not."""
    labels, logits = np.array([int(row[0]) for row in rows]), np.array([float(row[1]) for row in rows])
    series = [row[2] for row in rows]
    points = choose(
        labels, logits, series, [Goal("sensitivity", sensitivity), Goal("fps_per_scan", fps)], resamples=2
    )
    levels = [*sorted(set(logits)), 99.0]

    def at(threshold):
        return operating_points.apply(
            [{"threshold_logit": float(threshold)}], labels, logits, series, resamples=2
        )[0]

    by_sensitivity, by_fps = (point["threshold_logit"] for point in points)

    assert at(by_sensitivity)["sensitivity"] >= sensitivity - 1e-6
    assert at(min(level for level in levels if level > by_sensitivity))["sensitivity"] < sensitivity
    assert at(by_fps)["fps_per_scan"] <= fps + 1e-6
    lower = [level for level in levels if level < by_fps]
    assert not lower or at(max(lower))["fps_per_scan"] > fps


def test_the_decision_curve_of_vickers_and_elkin_by_hand():
    """At 0.2 a nodule is worth 4 false alarms: 2 found and 1 false of 10 are a benefit of (2 - 1/4) / 10."""
    labels = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    probability = [0.9, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]

    (point,) = decision_curve(labels, probability, [0.2])

    assert point["net_benefit"] == pytest.approx((2 - 1 / 4) / 10)
    assert point["treat_all"] == pytest.approx((3 - 7 / 4) / 10)
    assert point["treat_none"] == 0


def test_right_probabilities_are_never_worse_than_calling_all_or_none():
    """10,000 calibrated candidates, at every threshold, but for chance."""
    labels, logits, _ = _candidates(10_000)

    curve = decision_curve(labels, expit(logits))

    assert len(curve) == 81
    assert all(point["net_benefit"] > max(point["treat_all"], 0) - 0.002 for point in curve)
    assert curve[0]["threshold"] == pytest.approx(1e-4)
    assert logit(curve[-1]["threshold"]) == pytest.approx(logit(0.9))


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Goal("sensitivity", 0.0), "above 0 and at most 1. Received: 0.0."),
        (Goal("sensitivity", 1.1), "above 0 and at most 1. Received: 1.1."),
        (Goal("sensitivity", np.nan), "Received: nan."),
        (Goal("fps_per_scan", -1.0), "0 or more. Received: -1.0."),
        (Goal("fps_per_scan", np.inf), "0 or more"),
        (Goal("luck", 1.0), "a sensitivity or fps_per_scan. Received: 'luck'."),
    ],
    ids=str,
)
def test_a_goal_that_is_none_is_refused(goal, words):
    """The line says what a goal is."""
    with pytest.raises(InputError) as caught:
        choose(LABELS, LOGITS, SERIES, [goal])

    assert words in str(caught.value)


@pytest.mark.parametrize("thresholds", [[0.0], [1.0], [np.nan]], ids=str)
def test_a_threshold_of_a_decision_curve_lies_between_0_and_1(thresholds):
    """At 0 and 1 there are no odds."""
    with pytest.raises(InputError, match="between 0 and 1"):
        decision_curve([0, 1], [0.1, 0.9], thresholds)


@pytest.mark.parametrize(("labels", "probability"), [([], []), ([0, 1], [0.1])], ids=["none", "unlike"])
def test_a_decision_curve_takes_as_many_labels_as_probabilities(labels, probability):
    """None at all, or two labels for one probability: the line counts both."""
    with pytest.raises(InputError, match=f"Received: {len(labels)} and {len(probability)}."):
        decision_curve(labels, probability)


POINT = {
    "goal": "sensitivity",
    "value": 1,
    "threshold_logit": -1,
    "threshold_probability": 0.27,
    "threshold_interval_95": [0, 0.5],
}


def test_a_file_reads_back_in_floats(tmp_path):
    """Whole numbers too, and whatever else is there stays."""
    path = tmp_path / "operating_points.json"
    path.write_text(json.dumps({"points": [{**POINT, "tp": 3}], "fitted_on": {}}))

    read = operating_points.read(path)

    assert read == {"points": [{**POINT, "tp": 3}], "fitted_on": {}}
    assert {type(read["points"][0][name]) for name in ("value", "threshold_logit")} == {float}
    assert [type(bound) for bound in read["points"][0]["threshold_interval_95"]] == [float, float]


def test_a_threshold_that_never_varies_is_read_without_an_interval(tmp_path):
    """What `choose` leaves as NaN stands as null in the file, and is NaN again."""
    path = tmp_path / "operating_points.json"
    write_json(path, {"points": [{**POINT, "threshold_interval_95": [float("nan"), float("nan")]}]})

    (point,) = operating_points.read(path)["points"]

    assert np.isnan(point["threshold_interval_95"]).all()


@pytest.mark.parametrize(
    "changed",
    [
        *({name: None} for name in POINT),
        {"value": "0.9"},
        {"threshold_logit": "0.5"},
        {"threshold_logit": float("inf")},
        {"threshold_logit": float("nan")},
        {"threshold_logit": 10**400},
        {"threshold_probability": 1.5},
        {"threshold_interval_95": [0.1]},
        {"threshold_interval_95": ["0.1", "0.2"]},
        {"threshold_interval_95": [None, 0.2]},
        {"natural_prevalence": 0},
        {"natural_prevalence": "1/490"},
        {"goal": "two\nlines"},
    ],
    ids=str,
)
def test_a_point_that_later_steps_could_not_use_is_refused(tmp_path, changed):
    """A key that is missing or null, a string, a number that is not finite: one line, with the file."""
    path = tmp_path / "operating_points.json"
    (name,) = changed
    for point in ({**POINT, **changed}, {key: value for key, value in POINT.items() if key != name}):
        if point == POINT:
            continue  # natural_prevalence may be missing
        path.write_text(json.dumps({"points": [point]}).replace("Infinity", "1e999"))

        with pytest.raises(InputError) as caught:
            operating_points.read(path)

        assert str(caught.value).startswith(f"{path} holds no operating points (")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 200_000,
        "{}",
        '{"points": null}',
        '{"points": [], "fitted_on": []}',
        '{"points": ["goal"]}',
        '{"points": [{"goal": "luck", "value": 1}]}',
        '{"points": [{"goal": "sensitivity", "value": 0.9}]}',
    ],
    ids=["empty", "list", "deep", "no points", "null", "fitted on", "words", "no goal", "no threshold"],
)
def test_a_file_without_operating_points_is_refused(tmp_path, text):
    """One line, with the command that makes it anew."""
    path = tmp_path / "operating_points.json"
    path.write_text(text)

    with pytest.raises(InputError, match=r"holds no operating points .* luna-cls calibrate RUN --force"):
        operating_points.read(path)
    with pytest.raises(InputError, match="No operating points at"):
        operating_points.read(tmp_path / "missing.json")
