"""What holds of every submission, not of chosen ones."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_cls.judging import froc

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
