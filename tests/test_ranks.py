import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_cls.judging.ranks import ranks


def test_ranks_by_hand():
    """Four draws of the scans: a is first in two of them and shares the first place in a third; c is last."""
    actual = ranks(
        {
            "a": np.array([[0.8, 0.9, 0.9, 0.7, 0.5]]),
            "b": np.array([[0.7, 0.8, 0.8, 0.7, 0.6]]),
            "c": np.array([[0.1, 0.1, 0.1, 0.1, 0.1]]),
        },
        seed=0,
    )

    assert actual["a"] == (1, (1, 2), (1 + 1 + 1 / 2) / 4)
    assert actual["b"] == (2, (1, 2), (1 / 2 + 1) / 4)
    assert actual["c"] == (3, (3, 3), 0.0)
    assert actual["a"].summary() == {"rank": 1, "interval_95": (1, 2), "first": 0.625}


def test_equals_share_their_place():
    """The same but for rounding: both are first, and each is so in half of the draws; the third is third."""
    one, other = np.array([[0.3, 0.3, 0.6]]), np.array([[0.1 + 0.2, 0.1 + 0.2, 0.6]])

    actual = ranks({"one": one, "other": other, "worse": one - 0.1}, seed=0)

    assert [place.rank for place in actual.values()] == [1, 1, 3]
    assert [place.first for place in actual.values()] == [0.5, 0.5, 0]


def test_a_draw_that_tells_nothing_is_left_out():
    """The one draw with a nodule counts; with none at all a place has no interval."""
    a, b = np.array([[0.9, np.nan, 0.8]]), np.array([[0.8, np.nan, 0.9]])

    assert ranks({"a": a, "b": b}, seed=0)["a"] == (1, (2, 2), 0.0)
    place = ranks({"a": a[:, :2], "b": b[:, :2]}, seed=0)["a"]
    assert place.rank == 1
    assert np.isnan([*place.interval_95, place.first]).all()


def test_seeds_are_drawn_as_scans_are():
    """On scans that say 0.01 for a, seeds 0.02, 0.02 and -0.01: not sure, as their mean moves by 0.01."""
    by_seed = np.array([[0.02], [0.02], [-0.01]])
    a, b = 0.5 + np.tile(by_seed, 4001), np.full((3, 4001), 0.5)

    actual = ranks({"a": a, "b": b}, seed=1)

    # Of 27 draws of the three, the last is in one of all three places, in six of two and in twelve of one.
    # About 0.01 their means 0.02, 0.01, 0 and -0.01 are widened by the root of 3 / 2: below 0 is the last,
    # in one, and the third, 0.01 - 1.22 * 0.01, in six.
    assert actual["a"].first == pytest.approx(20 / 27, abs=0.02)
    assert ranks({"a": a[:1], "b": b[:1]}, seed=1)["a"].first == 1
    assert ranks({"a": a, "b": b}, seed=1) == actual


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), systems=st.integers(2, 6), seeds=st.integers(1, 4))
def test_one_is_first_in_every_draw(seed, systems, seeds):
    """Shares of being first add up to 1; the best mean ranks first, the worst last."""
    values = np.random.default_rng(seed).normal(size=(systems, seeds, 51)).round(1)

    actual = ranks({str(at): own for at, own in enumerate(values)}, seed)

    assert sum(place.first for place in actual.values()) == pytest.approx(1)
    assert all(1 <= place.interval_95[0] <= place.interval_95[1] <= systems for place in actual.values())
    best = values[:, :, 0].mean(axis=1)
    assert actual[str(best.argmax())].rank == 1
    assert sorted(actual, key=lambda name: actual[name].rank)[-1] in {
        str(at) for at in np.flatnonzero(np.isclose(best, best.min()))
    }
