import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.inference.merging import merge

_scans = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(0, 60), st.floats(0, 30), st.sampled_from([1, 3, 1000]))
)


def _findings(places_xyz_mm, logits, **more):
    table = pd.DataFrame(np.reshape(places_xyz_mm, (-1, 3)).astype(float), columns=COORDINATES)
    table.insert(0, "seriesuid", "1.2.3")
    logits = np.asarray(logits, float)
    return table.assign(probability=expit(logits), logit=logits, **more)


def _random(seed, count, levels):
    """Findings of a box of 50 mm, most probable first; with few levels many logits are equal."""
    rng = np.random.default_rng(seed)
    logits = np.sort(rng.integers(0, levels, count) * (8 / levels) - 5)[::-1]
    return _findings(rng.uniform(0, 50, (count, 3)), logits)


def test_a_cluster_is_its_most_probable_finding_at_the_mean_place():
    """Of 0.8 at x = 0 and 0.2 at x = 5 mm one of 0.8 at x = 1 is made; what is 20 mm away stays alone."""
    table = _findings([[0, 0, 0], [20, 0, 0], [5, 0, 0]], np.log([4.0, 1.0, 0.25]))

    merged = merge(table, 6.0)

    np.testing.assert_allclose(merged[COORDINATES], [[1, 0, 0], [20, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(merged["probability"], [0.8, 0.5])
    assert merged["logit"].tolist() == table["logit"].iloc[[0, 1]].tolist()
    assert merged["merged"].tolist() == [2, 1]
    assert list(merged.columns) == [*table.columns, "merged"]


def test_a_finding_between_two_tops_goes_to_the_more_probable():
    """Tops at 0 and 10 mm; one at 6 mm is nearer to the second, within 7 mm of both: it is the first's."""
    merged = merge(_findings([[0, 0, 0], [10, 0, 0], [6, 0, 0]], [3.0, 2.0, 1.0]), 7.0)

    assert merged["merged"].tolist() == [2, 1]
    assert merged["coordX"][1] == 10.0


def test_a_chain_does_not_become_one():
    """Points every 4 mm, merged within 5 mm: a top takes its neighbours alone, not theirs."""
    merged = merge(_findings([[4 * n, 0, 0] for n in range(6)], np.arange(6)[::-1]), 5.0)

    assert merged["merged"].tolist() == [2, 2, 2]


def test_the_distance_itself_is_apart():
    """Two findings 5 mm apart stay two at 5 mm, and become one at 5.001 mm."""
    table = _findings([[0, 0, 0], [3, 4, 0]], [1.0, 0.0])

    assert len(merge(table, 5.0)) == 2
    assert len(merge(table, 5.001)) == 1


@pytest.mark.parametrize(("classes", "expected"), [([0, 1, 0], [1, 0]), ([0.0, np.nan, np.nan], [0, np.nan])])
def test_the_class_is_the_highest_that_is_known(classes, expected):
    """One member on a nodule is enough; not known is only what is known of none."""
    table = _findings([[0, 0, 0], [1, 0, 0], [30, 0, 0]], [2.0, 1.0, 0.0], **{"class": classes})

    np.testing.assert_array_equal(merge(table, 5.0)["class"], expected)


def test_probabilities_of_nothing_give_the_plain_mean():
    """Logits of -800 have a probability of 0 in float64: the mean of 0 and 4 mm is 2."""
    merged = merge(_findings([[0, 0, 0], [4, 0, 0]], [-800.0, -801.0]), 5.0)

    assert merged[COORDINATES].to_numpy().tolist() == [[2.0, 0.0, 0.0]]


def test_no_finding_stays_none():
    """An empty table gives an empty one with the column."""
    merged = merge(_findings([], []), 5.0)

    assert len(merged) == 0
    assert merged.columns[-1] == "merged"


@settings(max_examples=60, deadline=None)
@given(_scans)
def test_every_finding_is_in_one_cluster_and_tops_are_apart(drawn):
    """Members add up; tops, the rows with a cluster's logit, are never nearer than the distance."""
    seed, count, within_mm, _ = drawn
    table = _random(seed, count, 10**6)

    merged = merge(table, within_mm)

    tops = table.set_index("logit").loc[merged["logit"], COORDINATES].to_numpy()
    apart_mm = np.linalg.norm(tops[:, None] - tops, axis=-1) + np.where(np.eye(len(tops)), np.inf, 0)
    assert merged["merged"].sum() == count
    assert merged["logit"].is_monotonic_decreasing
    assert (apart_mm >= within_mm).all()
    assert (np.linalg.norm(merged[COORDINATES] - tops, axis=1) <= within_mm).all()
    to_tops_mm = np.linalg.norm(table[COORDINATES].to_numpy()[:, None] - tops, axis=-1)
    first = (to_tops_mm < within_mm).argmax(axis=1) if within_mm and count else np.arange(count)
    np.testing.assert_array_equal(np.bincount(first, minlength=len(tops)), merged["merged"])


@settings(max_examples=60, deadline=None)
@given(_scans)
def test_the_order_of_the_rows_does_not_matter(drawn):
    """Shuffled findings merge to the same ones, equal logits included; only those may change places."""
    seed, count, within_mm, levels = drawn
    table = _random(seed, count, levels)

    def ordered(findings):
        return findings.sort_values(["logit", *COORDINATES], ignore_index=True)

    shuffled = merge(table.sample(frac=1, random_state=seed), within_mm)

    pd.testing.assert_frame_equal(ordered(shuffled), ordered(merge(table, within_mm)), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(_scans)
def test_no_distance_changes_nothing_but_the_column(drawn):
    """Within 0 mm every finding is its own, to the last bit and in its order, even two at one place."""
    seed, count, _, levels = drawn
    table = _random(seed, count, levels)
    table = pd.concat([table, table]).sort_values("logit", ascending=False, kind="stable", ignore_index=True)

    merged = merge(table, 0)

    pd.testing.assert_frame_equal(merged.drop(columns="merged"), table, check_exact=True)
    assert (merged["merged"] == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(0.5, 20))
def test_clusters_well_apart_stay_as_they_are(seed, groups, within_mm):
    """Groups less wide than the distance, and twice that apart: merging again changes nothing at all."""
    rng = np.random.default_rng(seed)
    middles = np.arange(groups)[:, None] * [3.0 * within_mm, 0, 0]
    places = np.repeat(middles, 5, axis=0) + rng.uniform(-0.28, 0.28, (5 * groups, 3)) * within_mm
    once = merge(_findings(places, rng.normal(0, 3, len(places))), within_mm)

    assert once["merged"].tolist() == [5] * groups
    pd.testing.assert_frame_equal(merge(once, within_mm), once, check_exact=True)


@pytest.mark.parametrize("within_mm", [-1.0, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(within_mm):
    """Negative, not a number, or without end: one line."""
    with pytest.raises(InputError, match="0 mm or more"):
        merge(_findings([[0, 0, 0]], [0.0]), within_mm)
