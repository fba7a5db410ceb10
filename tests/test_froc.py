import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from luna_cls.errors import InputError
from luna_cls.files import read_series_uids
from luna_cls.judging import froc
from luna_cls.judging.resampling import interval_95, scan_weights
from luna_cls.judging.submission import read_annotations, read_submission

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]


def _marks(*rows):
    """Marks on the x axis: (scan, x mm, probability) each."""
    return pd.DataFrame([(uid, x, 0.0, 0.0, p) for uid, x, p in rows], columns=[*POINT, "probability"])


def _spheres(*rows):
    """Annotations on the x axis: (scan, x mm, diameter mm) each."""
    return pd.DataFrame([(uid, x, 0.0, 0.0, d) for uid, x, d in rows], columns=[*POINT, "diameter_mm"])


def _points(curve):
    return list(zip(curve.fps_per_scan.tolist(), curve.sensitivity.tolist(), strict=True))


@pytest.mark.parametrize(
    ("x_mm", "is_hit"), [(4.999, True), (5.0, False), (-4.999, True), (-5.0, False)], ids=str
)
def test_a_mark_hits_strictly_inside_the_radius(x_mm, is_hit):
    """A nodule of 10 mm is hit at 4.999 mm from its centre, not at 5."""
    curve = froc.evaluate(_marks(("a", x_mm, 0.9)), _spheres(("a", 0, 10)), ["a"])

    assert curve.counts["true_positives"] == int(is_hit)
    assert curve.counts["false_positives"] == int(not is_hit)
    assert curve.counts["false_negatives"] == int(not is_hit)


def test_distance_is_measured_along_all_three_axes():
    """A mark at (3, 3, 3) mm is 5.196 mm away: outside a sphere of 10.39 mm, inside one of 10.40."""
    mark = pd.DataFrame([("a", 3.0, 3.0, 3.0, 0.9)], columns=[*POINT, "probability"])

    outside = froc.evaluate(mark, _spheres(("a", 0, 10.39)), ["a"])
    inside = froc.evaluate(mark, _spheres(("a", 0, 10.40)), ["a"])

    assert (outside.counts["true_positives"], inside.counts["true_positives"]) == (0, 1)


def test_nodules_come_before_excluded_findings():
    """A mark inside both a nodule and an excluded sphere finds the nodule."""
    curve = froc.evaluate(_marks(("a", 0, 0.9)), _spheres(("a", 0, 10)), ["a"], _spheres(("a", 0, 10)))

    assert curve.counts["true_positives"] == 1
    assert curve.counts["ignored"] == 0


def test_a_mark_on_an_excluded_finding_alone_is_ignored():
    """Of marks at 0, 50 and 80 mm, the excluded sphere at 50 takes the second, the third is false."""
    marks = _marks(("a", 0, 0.9), ("a", 50, 0.8), ("a", 80, 0.7))

    curve = froc.evaluate(marks, _spheres(("a", 0, 10)), ["a"], _spheres(("a", 50, 10)))

    assert curve.counts == {
        "true_positives": 1,
        "false_positives": 1,
        "false_negatives": 0,
        "ignored": 1,
        "doubles": 0,
        "candidates": 3,
    }
    assert _points(curve) == [(0, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize(("x_mm", "is_ignored"), [(4.999, True), (5.0, False)], ids=str)
def test_diameter_minus_1_stands_for_10_mm(x_mm, is_ignored):
    """An excluded finding of unknown size swallows marks nearer than 5 mm."""
    curve = froc.evaluate(
        _marks(("a", 100 + x_mm, 0.9)), _spheres(("a", 0, 10)), ["a"], _spheres(("a", 100, -1))
    )

    assert curve.counts["ignored"] == int(is_ignored)
    assert curve.counts["false_positives"] == int(not is_ignored)


def test_a_nodule_takes_its_best_hit_and_the_others_leave_the_pool():
    """Hits of 0.3, 0.9 and 0.5 on one nodule: found at 0.9, two doubles, no false positive."""
    marks = _marks(("a", 1, 0.3), ("a", 0, 0.9), ("a", 2, 0.5))

    curve = froc.evaluate(marks, _spheres(("a", 0, 10)), ["a"])

    assert curve.counts["true_positives"] == 1
    assert curve.counts["doubles"] == 2
    assert curve.counts["false_positives"] == 0
    assert curve.threshold.tolist() == [np.inf, 0.9]


def test_one_mark_may_find_two_nodules():
    """A mark between nodules at 0 and 6 mm, 10 mm wide each, finds both."""
    curve = froc.evaluate(_marks(("a", 3, 0.9)), _spheres(("a", 0, 10), ("a", 6, 10)), ["a"])

    assert curve.counts["true_positives"] == 2
    assert _points(curve) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("tied", "kept"),
    [(0, 100), (1, 100), (2, 99), (31, 70), (130, 0)],
    ids=["no tie", "one at it", "two at it", "31 at it", "all equal"],
)
def test_marks_above_the_101st_probability_are_kept(tied, kept):
    """Of 130 marks, those strictly above the 101st highest stay; ties at it all go."""
    probability = np.linspace(0.99, 0.10, 130)
    probability[max(101 - tied, 0) : 101] = probability[100]
    if tied == 130:
        probability[:] = 0.5
    marks = _marks(*[("a", 1000 + 20 * i, p) for i, p in enumerate(probability)])

    curve = froc.evaluate(marks, _spheres(("a", 0, 10)), ["a"])

    assert curve.counts["candidates"] == kept
    assert curve.counts["false_positives"] == kept


def test_a_hundred_marks_all_stay():
    """The rule begins at 101 marks: a hundred, equal ones included, count."""
    marks = _marks(*[("a", 1000 + 20 * i, 0.5) for i in range(100)])

    assert froc.evaluate(marks, _spheres(("a", 0, 10)), ["a"]).counts["candidates"] == 100


def test_scans_without_marks_and_missed_nodules_stay_in_the_denominators():
    """Four scans, one false positive: 1/4 a scan; two nodules, one found: sensitivity 1/2 for good."""
    marks = _marks(("a", 0, 0.9), ("a", 90, 0.4))

    curve = froc.evaluate(marks, _spheres(("a", 0, 10), ("b", 0, 10)), ["a", "b", "c", "d"])

    assert (curve.num_scans, curve.num_nodules) == (4, 2)
    assert _points(curve) == [(0, 0), (0, 0.5), (0.25, 0.5)]
    assert curve.counts["false_negatives"] == 1


def test_rows_of_unlisted_scans_are_ignored():
    """Marks, nodules and excluded findings of scan z change nothing if z is not listed."""
    listed = froc.evaluate(_marks(("a", 0, 0.9)), _spheres(("a", 0, 10)), ["a"], _spheres(("a", 50, 10)))
    all_rows = froc.evaluate(
        _marks(("a", 0, 0.9), ("z", 0, 0.8), ("z", 90, 0.7)),
        _spheres(("a", 0, 10), ("z", 0, 10)),
        ["a"],
        _spheres(("a", 50, 10), ("z", 90, 10)),
    )

    assert all_rows.summary() == listed.summary()


def test_the_curve_is_linear_between_points_and_flat_past_the_last():
    """Points (0, 0), (1, 1/2), (2, 1) give 1/4 at 1/2, 3/4 at 3/2 and 1 at 8; CPM by hand 0.6964."""
    # At 0.9 one false positive and one nodule appear together, at 0.8 another of each; one scan.
    marks = _marks(("a", 0, 0.9), ("a", 500, 0.9), ("a", 100, 0.8), ("a", 600, 0.8))

    curve = froc.evaluate(marks, _spheres(("a", 0, 10), ("a", 100, 10)), ["a"])

    assert _points(curve) == [(0, 0), (1, 0.5), (2, 1)]
    assert [curve.sensitivity_at(rate) for rate in (0.5, 1.5, 8)] == [0.25, 0.75, 1.0]
    assert curve.cpm == pytest.approx((1 / 16 + 1 / 8 + 1 / 4 + 1 / 2 + 1 + 1 + 1) / 7)


def test_no_marks_at_all_score_nothing():
    """An empty submission has sensitivity 0 everywhere and CPM 0."""
    curve = froc.evaluate(_marks(), _spheres(("a", 0, 10)), ["a"])

    assert _points(curve) == [(0, 0)]
    assert curve.cpm == 0


def _two_scans():
    """Two of three nodules found, one of them twice and by the first mark; two false alarms; one ignored."""
    marks = _marks(
        ("b", 0, 0.9), ("a", 90, 0.8), ("b", 1, 0.7), ("a", 50, 0.6), ("a", 0, 0.5), ("b", 90, 0.5)
    )
    return froc.match(
        marks, _spheres(("a", 0, 10), ("b", 0, 10), ("b", 300, 10)), ["a", "b"], _spheres(("a", 50, 10))
    )


def test_each_mark_and_nodule_says_what_became_of_it():
    """The nodule in b is first hit by mark 0, that in a by mark 4, and the third by none."""
    matches = _two_scans()

    assert matches.marks["outcome"].tolist() == [
        "on nodule", "false positive", "on nodule", "ignored", "on nodule", "false positive",
    ]  # fmt: skip
    assert matches.labels.tolist() == [1, 0, 1, -1, 1, 0]
    assert matches.marks["scan"].tolist() == [1, 0, 1, 0, 0, 1]
    assert matches.nodules["scan"].tolist() == [0, 1, 1]
    assert matches.nodules["hits"].tolist() == [1, 2, 0]
    assert matches.nodules["mark"].tolist() == [4, 0, -1]
    assert matches.nodules["probability"].tolist() == pytest.approx([0.5, 0.9, np.nan], nan_ok=True)
    assert matches.cut_by_ties == 0
    assert matches.counts == {
        "true_positives": 2,
        "false_positives": 2,
        "false_negatives": 1,
        "ignored": 1,
        "doubles": 1,
        "candidates": 6,
    }


def test_a_curve_is_read_both_ways():
    """Points (0, 0), (0, 1/3), (1/2, 1/3), (1, 2/3) at thresholds of infinity, 0.9, 0.8 and 0.5."""
    curve = _two_scans().curve()

    assert curve.fps_per_scan.tolist() == [0, 0, 0.5, 1]
    assert curve.sensitivity.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.5]
    assert curve.fps_per_scan_at([1, 0.9, 0.85, 0.8, 0.6, 0.5, 0.1]).tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]
    assert [curve.threshold_at(rate) for rate in (0, 0.4, 0.5, 0.9, 1, 8)] == [0.9, 0.9, 0.8, 0.8, 0.5, 0.5]


def test_some_nodules_alone_have_a_curve_of_their_own():
    """Without the missed nodule both others are found: 1/2, then 1, with the same false alarms."""
    matches = _two_scans()

    curve = matches.of_nodules(matches.nodules["hits"].to_numpy() > 0).curve()

    assert _points(curve) == [(0, 0), (0, 0.5), (0.5, 0.5), (1, 1)]
    assert curve.num_nodules == 2


@pytest.mark.parametrize(
    ("x_mm", "expected"),
    [
        ([], [np.inf]),
        ([0], [np.inf, 0.9]),
        ([300, 310], [np.inf, 0.9, 0.8]),
        ([300, 310, 320, 330], [np.inf, 0.9, 0.6]),
        ([0, 100, 200, 300, 310, 320], [np.inf, 0.9, 0.7, 0.4]),
        ([300, 310, 0, 100, 320], [np.inf, 0.9, 0.8, 0.6, 0.5]),
    ],
    ids=["no mark", "one", "two", "one line", "up, then across", "across, up, across"],
)
def test_corners_are_the_first_two_points_the_turns_and_the_last(x_mm, expected):
    """Nodules lie at 0, 100 and 200 mm; marks of 0.9, 0.8, 0.7 ... find them or lie beyond."""
    marks = _marks(*[("a", x, (9 - place) / 10) for place, x in enumerate(x_mm)])

    curve = froc.evaluate(marks, _spheres(("a", 0, 10), ("a", 100, 10), ("a", 200, 10)), ["a"])

    assert curve.corners()["threshold"].tolist() == expected


@pytest.mark.parametrize(
    "rows",
    [
        [(300, 0.9), (310, 0.8), (0, 0.8), (320, 0.7)],
        [(0, 0.9), (100, 0.8), (300, 0.8), (200, 0.7)],
    ],
    ids=["nodules alone turn", "false alarms alone turn"],
)
def test_a_turn_of_either_axis_is_a_corner(rows):
    """At 0.8 a nodule and a false alarm come together, while the other of the two keeps its step."""
    spheres = _spheres(("a", 0, 10), ("a", 100, 10), ("a", 200, 10))

    curve = froc.evaluate(_marks(*[("a", x, p) for x, p in rows]), spheres, ["a", "b"])

    assert curve.corners()["threshold"].tolist() == [np.inf, 0.9, 0.8, 0.7]


def test_the_seven_rates_go_by_their_names():
    """From 1/8 to 8, each twice the one before; seven values are wanted, no fewer."""
    curve = froc.evaluate(_marks(("a", 0, 0.9)), _spheres(("a", 0, 10)), ["a"])

    names = ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert curve.summary()["sensitivity_at_fps"] == dict.fromkeys(names, 1.0)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        froc.by_rate([1.0] * 6)


@pytest.mark.parametrize(
    ("marks", "distinct", "cut"), [(100, 1, 0), (101, 101, 0), (101, 1, 1), (102, 34, 1)]
)
def test_scans_that_ties_cut_short_are_counted(marks, distinct, cut):
    """Of 101 different marks 100 stay; of 101 equal ones none, of 34 times three 99: the scan is counted."""
    rows = [("a", 1000 + 20 * place, (place % distinct) / 200) for place in range(marks)]

    matches = froc.match(_marks(*rows), _spheres(("a", 0, 10)), ["a", "b"])

    assert matches.cut_by_ties == cut


def test_a_sphere_of_no_size_holds_nothing():
    """Only a negative diameter stands for 10 mm: at one of 0 a mark in the very centre is a false alarm."""
    curve = froc.evaluate(_marks(("a", 50, 0.9)), _spheres(("a", 0, 10)), ["a"], _spheres(("a", 50, 0)))

    assert curve.counts["false_positives"] == 1


def test_a_draw_without_a_nodule_has_no_sensitivity():
    """Of scans a with a found nodule and b without any, b twice is NaN at all rates, a twice is 1."""
    matches = froc.match(_marks(("a", 0, 0.9)), _spheres(("a", 0, 10)), ["a", "b"])

    drawn = matches.bootstrap(np.array([[0, 2], [2, 0]], np.int32))

    assert drawn.shape == (2, 7)
    assert drawn.dtype == np.float64
    assert np.isnan(drawn[0]).all()
    assert (drawn[1] == 1).all()


def test_matches_and_curves_are_themselves_alone_and_stay_so():
    """Neither can be changed, and another of the same tables is another: to compare arrays would raise."""
    matches, other = _two_scans(), _two_scans()
    curve = matches.curve()

    assert len({matches, other, curve, other.curve()}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        matches.scans = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.num_scans = 1


@pytest.mark.parametrize(
    ("nodules", "series_uids", "message"),
    [
        ([("a", 0, 10)], [], "list of scans is empty"),
        ([("a", 0, 10)], ["z"], "No annotated nodule .* Received: scans z, ...; nodules of a, ..."),
        ([], ["z"], "No annotated nodule .* nodules of no scan"),
    ],
    ids=["no scan", "another scan", "no nodule"],
)
def test_an_undefined_score_is_refused(nodules, series_uids, message):
    """Without a listed scan, or without a nodule in one, there is no sensitivity."""
    with pytest.raises(InputError, match=message):
        froc.evaluate(_marks(("a", 0, 0.9)), _spheres(*nodules), series_uids)


@pytest.fixture(scope="module")
def luna16(real_data):
    folder = real_data / "luna16"
    return {
        "golden": json.loads((real_data / "golden" / "froc.json").read_text()),
        "marks": read_submission(folder / "submission_dpn26.csv"),
        "annotations": read_annotations(folder / "annotations.csv"),
        "excluded": read_annotations(folder / "annotations_excluded.csv"),
        "series_uids": read_series_uids(folder / "seriesuids.csv"),
    }


@pytest.mark.real_data
def test_a_real_submission_scores_as_officially(luna16):
    """55,677 marks on 888 scans: the official script's counts, sensitivities to 4 digits and CPM to 5."""
    curve = froc.evaluate(luna16["marks"], luna16["annotations"], luna16["series_uids"], luna16["excluded"])

    golden, actual = luna16["golden"], curve.summary()
    assert actual["counts"] == golden["counts"]
    assert actual["num_scans"] == 888
    assert actual["num_nodules"] == 1186
    assert actual["sensitivity_at_fps"] == pytest.approx(golden["sensitivity_at_fps"], abs=5e-5)
    assert actual["cpm"] == pytest.approx(golden["cpm"], abs=5e-6)


@pytest.mark.real_data
def test_the_interval_of_a_real_cpm_is_the_official_one(luna16):
    """1,000 resamples of 888 scans: the middle 95 % of the CPM within .003 of .812 to .868, for 3 seeds."""
    matches = froc.match(luna16["marks"], luna16["annotations"], luna16["series_uids"], luna16["excluded"])
    for seed in range(3):
        drawn = matches.bootstrap(scan_weights(888, 1000, seed))

        golden = luna16["golden"]["bootstrap_cpm_interval_95"]
        assert interval_95(drawn.mean(axis=1)).tolist() == pytest.approx(golden, abs=0.003)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "departure",
    [
        "excluded list ignored",
        "probabilities rounded to 2 decimals",
        "only the 601 scans with a nodule",
    ],
)
def test_departures_cost_what_they_cost_officially(luna16, departure):
    """Each way of scoring the same file otherwise gives the CPM that the official script gives."""
    marks, uids, excluded = luna16["marks"], luna16["series_uids"], luna16["excluded"]
    if departure == "excluded list ignored":
        excluded = None
    elif departure == "probabilities rounded to 2 decimals":
        marks = marks.assign(probability=marks["probability"].round(2))
    else:
        uids = luna16["annotations"]["seriesuid"].unique().tolist()
        assert len(uids) == 601

    curve = froc.evaluate(marks, luna16["annotations"], uids, excluded)

    assert curve.cpm == pytest.approx(luna16["golden"]["departures_on_the_same_file"][departure], abs=5e-4)
