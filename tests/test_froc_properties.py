"""What holds of every submission, not of chosen ones."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_cls.judging import froc
from luna_cls.judging.resampling import scan_weights

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]


def _spheres(*rows):
    """Annotations on the x axis: (scan, x mm, diameter mm) each."""
    return pd.DataFrame([(uid, x, 0.0, 0.0, d) for uid, x, d in rows], columns=[*POINT, "diameter_mm"])


NODULES = _spheres(("a", 0, 10), ("a", 8, 12), ("b", 0, 6), ("c", 30, 20))
EXCLUDED = _spheres(("a", 0, 10), ("a", 40, -1), ("b", 20, 8))
SCANS = ["a", "b", "c", "d"]

mark_rows = st.lists(
    st.tuples(
        st.sampled_from([*SCANS, "z"]), st.integers(-10, 50), st.integers(0, 100).map(lambda n: n / 100)
    ),
    max_size=40,
)


def _score(rows):
    """The curve of marks on the x axis: (scan, x mm, probability) each."""
    marks = pd.DataFrame([(uid, x, 0.0, 0.0, p) for uid, x, p in rows], columns=[*POINT, "probability"])
    return froc.evaluate(marks, NODULES, SCANS, EXCLUDED)


@settings(deadline=None)
@given(mark_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, random):
    """Shuffled marks have the same score."""
    shuffled = random.sample(rows, len(rows))

    assert _score(shuffled).summary() == _score(rows).summary()


@settings(deadline=None)
@given(mark_rows)
def test_only_the_ranking_of_probabilities_matters(rows):
    """The square of every probability, halved, has the same score."""
    squared = [(uid, x, p * p / 2) for uid, x, p in rows]

    assert _score(squared).summary() == _score(rows).summary()


@settings(deadline=None)
@given(mark_rows)
def test_curves_rise_within_bounds(rows):
    """Both axes start at 0 and never fall, and sensitivity stays within 1."""
    curve = _score(rows)

    assert curve.fps_per_scan[0] == curve.sensitivity[0] == 0
    assert (np.diff(curve.fps_per_scan) >= 0).all()
    assert (np.diff(curve.sensitivity) >= 0).all()
    assert curve.sensitivity[-1] <= 1
    assert 0 <= curve.cpm <= 1


@settings(deadline=None)
@given(mark_rows, st.sampled_from(SCANS), st.floats(0, 1))
def test_another_false_positive_never_helps(rows, uid, probability):
    """A mark far from everything lowers the CPM or leaves it."""
    assert _score([*rows, (uid, 500, probability)]).cpm <= _score(rows).cpm + 1e-12


# Halves and quarters of a mm, so that marks also lie exactly on spheres; few places, so that much overlaps.
places = st.tuples(*[st.integers(-24, 24).map(lambda n: n / 4)] * 3)
diameters_mm = st.sampled_from([-1.0, 3.0, 4.0, 6.0, 10.0, 12.5])
probabilities = st.integers(0, 12).map(lambda n: n / 12)
uids = st.sampled_from([*SCANS, "z"])
mark_table = st.lists(st.tuples(uids, places, probabilities), max_size=25)
sphere_table = st.lists(st.tuples(uids, places, diameters_mm), max_size=6)


@st.composite
def crowds(draw):
    """Marks of one scan around the hundredth, many with the same probability."""
    uid, size = draw(uids), draw(st.integers(95, 125))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 200))
    return [
        (uid, tuple(rng.integers(-24, 25, 3) / 4), float(rng.integers(0, levels + 1) / levels))
        for _ in range(size)
    ]


def _read_by_hand(marks, nodules, excluded, scans):
    """LUNA16's rules one after the other, mark by mark: counts, and (probability, is nodule) of the sweep."""

    def is_hit(point, sphere):
        center, diameter_mm = sphere
        radius_mm = (10.0 if diameter_mm == -1 else diameter_mm) / 2
        return sum((a - b) ** 2 for a, b in zip(point, center, strict=True)) < radius_mm**2

    counts = dict.fromkeys(
        ("true_positives", "false_positives", "false_negatives", "ignored", "doubles", "candidates"), 0
    )
    events = []
    for scan in scans:
        own = [(point, p) for uid, point, p in marks if uid == scan]
        if len(own) > 100:
            limit = sorted((p for _, p in own), reverse=True)[100]
            own = [(point, p) for point, p in own if p > limit]
        counts["candidates"] += len(own)
        pool = set(range(len(own)))
        for uid, center, diameter_mm in nodules:
            if uid != scan:
                continue
            hits = [number for number, (point, _) in enumerate(own) if is_hit(point, (center, diameter_mm))]
            pool -= set(hits)
            if hits:
                counts["true_positives"] += 1
                counts["doubles"] += len(hits) - 1
                events.append((max(own[number][1] for number in hits), True))
            else:
                counts["false_negatives"] += 1
        for uid, center, diameter_mm in excluded:
            if uid == scan:
                ignored = {number for number in pool if is_hit(own[number][0], (center, diameter_mm))}
                counts["ignored"] += len(ignored)
                pool -= ignored
        counts["false_positives"] += len(pool)
        events += [(own[number][1], False) for number in pool]
    return counts, events


def _sensitivity_by_hand(events, num_scans, num_nodules, rate):
    """Threshold by threshold from the highest, linear between, flat past the last."""
    points = [(0.0, 0.0)]
    for threshold in sorted({p for p, _ in events}, reverse=True):
        alarms = sum(p >= threshold and not is_nodule for p, is_nodule in events)
        hits = sum(p >= threshold and is_nodule for p, is_nodule in events)
        points.append((alarms / num_scans, hits / num_nodules))
    before = [point for point in points if point[0] <= rate][-1]
    after = [point for point in points if point[0] > rate][:1]
    if not after:
        return before[1]
    (x0, y0), (x1, y1) = before, after[0]
    return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)


def _table(rows, last):
    return pd.DataFrame([(uid, *point, value) for uid, point, value in rows], columns=[*POINT, last])


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(
    mark_table,
    st.lists(crowds(), max_size=1),
    st.tuples(st.sampled_from(SCANS), places, diameters_mm),
    sphere_table,
    sphere_table,
    st.lists(st.sampled_from(SCANS), min_size=1, max_size=5),
)
def test_it_is_what_the_rules_say_read_one_by_one(rows, crowd, nodule, nodules, excluded, twice):
    """500 random cases, with ties, overlaps, caps, empty scans, -1 diameters and repeated rows: equal."""
    marks = [*rows, *(mark for group in crowd for mark in group), *rows[:3]]
    nodules = [nodule, *nodules, *nodules[:1]]
    listed = list(dict.fromkeys([nodule[0], *twice]))

    curve = froc.evaluate(
        _table(marks, "probability"),
        _table(nodules, "diameter_mm"),
        [*listed, listed[0]],  # a scan that is listed twice is read once
        _table(excluded, "diameter_mm"),
    )

    counts, events = _read_by_hand(marks, nodules, excluded, listed)
    num_nodules = sum(uid in listed for uid, _, _ in nodules)
    by_hand = [_sensitivity_by_hand(events, len(listed), num_nodules, rate) for rate in froc.RATES_PER_SCAN]
    assert curve.counts == counts
    assert (curve.num_scans, curve.num_nodules) == (len(listed), num_nodules)
    assert list(curve.summary()["sensitivity_at_fps"].values()) == pytest.approx(by_hand, abs=1e-12)
    assert curve.cpm == pytest.approx(math.fsum(by_hand) / 7, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(mark_rows, st.integers(0, 100))
def test_a_resample_is_the_score_of_the_scans_drawn(rows, seed):
    """Scans drawn twice count as two scans with the same marks and nodules: the curve is theirs."""
    marks = pd.DataFrame([(uid, x, 0.0, 0.0, p) for uid, x, p in rows], columns=[*POINT, "probability"])
    weights = scan_weights(len(SCANS), 3, seed)
    drawn = froc.match(marks, NODULES, SCANS, EXCLUDED).bootstrap(weights)

    for scans, sensitivities in zip(weights, drawn, strict=True):
        copies = [
            (uid, f"{uid}{copy}") for uid, times in zip(SCANS, scans, strict=True) for copy in range(times)
        ]
        tables = [
            pd.concat([table[table["seriesuid"] == uid].assign(seriesuid=name) for uid, name in copies])
            for table in (marks, NODULES, EXCLUDED)
        ]
        if tables[1].empty:
            assert np.isnan(sensitivities).all()
            continue
        expected = froc.evaluate(tables[0], tables[1], [name for _, name in copies], tables[2]).summary()
        assert sensitivities.tolist() == pytest.approx(list(expected["sensitivity_at_fps"].values()))


@settings(deadline=None)
@given(mark_rows)
def test_corners_are_enough(rows):
    """Points between corners lie on straight lines: at any rate the corners give the curve's sensitivity."""
    curve = _score(rows)
    corners = curve.corners()

    rates = np.unique(np.concatenate([curve.fps_per_scan + 1e-9, np.linspace(0.01, 12, 50)]))
    whole = np.interp(rates, curve.fps_per_scan, curve.sensitivity)
    assert np.interp(rates, corners["fps_per_scan"], corners["sensitivity"]) == pytest.approx(whole, abs=1e-6)
    assert corners["threshold"].is_monotonic_decreasing
    assert set(corners["threshold"]) <= set(curve.threshold)
