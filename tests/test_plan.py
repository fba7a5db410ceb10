import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_cls.cubes.plan import Plan
from luna_cls.errors import InputError

POSITIVES = np.array([3, 10, 14, 21, 40])
NEGATIVES = np.setdiff1d(np.arange(52), POSITIVES)  # 47 of them

BALANCED = {"batch_size": 8, "positives_per_batch": 3}


def _plan(negatives=NEGATIVES, positives=POSITIVES, batch_size=8, seed=1, **options):
    return Plan(negatives, positives, batch_size, seed, **options)


def test_one_pass_holds_every_row_once():
    """At natural prevalence an epoch is a shuffle of all 52 rows: 7 batches of 8, the last of 4."""
    plan = _plan()

    rows = plan.epoch(0)

    assert plan.steps == 7
    assert sorted(rows) == list(range(52))
    assert rows.tolist() != list(range(52))


def test_every_epoch_has_another_order():
    """Ten epochs are ten different shuffles."""
    plan = _plan()

    assert len({tuple(plan.epoch(epoch)) for epoch in range(10)}) == 10


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 5}, BALANCED], ids=["pass", "steps", "balanced"])
def test_the_order_follows_from_seed_and_epoch_alone(options):
    """Epoch 3 of seed 1 is the same asked first or last, and another than that of seed 2."""
    asked_last = [_plan(**options).epoch(epoch) for epoch in range(4)][3]
    asked_first = _plan(**options).epoch(3)

    np.testing.assert_array_equal(asked_first, asked_last)
    assert not np.array_equal(asked_first, _plan(seed=2, **options).epoch(3))


def test_natural_order_is_numpys_under_seed_and_pass():
    """Epoch 2 of seed 1 is NumPy's permutation of the rows under the key (1, 0, 2), in any release."""
    expected = np.random.default_rng([1, 0, 2]).permutation(52)

    np.testing.assert_array_equal(_plan().epoch(2), expected)


def test_balanced_order_is_numpys_under_seed_class_and_pass():
    """Nodules come by the key (1, 1, pass), the rest by (1, 2, pass); (1, 3, epoch) shuffles each batch."""
    nodules = np.concatenate(
        [np.random.default_rng([1, 1, index]).permutation(POSITIVES) for index in (0, 1)]
    )
    rest = np.random.default_rng([1, 2, 0]).permutation(NEGATIVES)
    batches = np.hstack([nodules[:9].reshape(3, 3), rest[:15].reshape(3, 5)])

    expected = np.random.default_rng([1, 3, 0]).permuted(batches, axis=1).ravel()

    np.testing.assert_array_equal(_plan(**BALANCED, steps_per_epoch=3).epoch(0), expected)


def test_a_plan_is_itself_alone_and_stays_so():
    """It cannot be changed; another plan of the same arrays is another plan, and can be kept beside it."""
    plan = _plan()

    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.seed = 2
    assert len({plan, plan, _plan()}) == 2


def test_the_order_does_not_depend_on_how_the_classes_are_listed():
    """The natural order is of the rows, not of positives before negatives."""
    np.testing.assert_array_equal(_plan().epoch(2), _plan(NEGATIVES[::-1], POSITIVES[::-1]).epoch(2))


@given(
    batch_size=st.integers(1, 40),
    steps_per_epoch=st.integers(1, 12),
    epochs=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_with_fixed_steps_rows_are_seen_equally_often(batch_size, steps_per_epoch, epochs, seed):
    """Over any number of epochs the rows seen most and least differ by one at most."""
    plan = _plan(batch_size=batch_size, seed=seed, steps_per_epoch=steps_per_epoch)

    rows = np.concatenate([plan.epoch(epoch) for epoch in range(epochs)])

    assert len(rows) == batch_size * steps_per_epoch * epochs
    assert np.ptp(np.bincount(rows, minlength=52)) <= 1


def test_epochs_of_fixed_steps_continue_one_stream():
    """Two epochs of 6 steps are the one epoch of 12 steps, cut in half."""
    halves = [_plan(steps_per_epoch=6).epoch(epoch) for epoch in (0, 1)]

    np.testing.assert_array_equal(np.concatenate(halves), _plan(steps_per_epoch=12).epoch(0))


@given(
    batch_size=st.integers(2, 40),
    share=st.floats(0, 1),
    steps_per_epoch=st.none() | st.integers(1, 12),
    epochs=st.integers(1, 6),
)
def test_every_batch_has_its_exact_share_of_nodules(batch_size, share, steps_per_epoch, epochs):
    """Each batch has exactly its nodules; in a class the rows seen most and least differ by one at most."""
    k = 1 + round(share * (batch_size - 2))
    plan = _plan(batch_size=batch_size, steps_per_epoch=steps_per_epoch, positives_per_batch=k)

    batches = np.concatenate([plan.epoch(epoch).reshape(plan.steps, batch_size) for epoch in range(epochs)])

    assert (np.isin(batches, POSITIVES).sum(axis=1) == k).all()
    seen = np.bincount(batches.ravel(), minlength=52)
    assert np.ptp(seen[POSITIVES]) <= 1
    assert np.ptp(seen[NEGATIVES]) <= 1


def test_one_balanced_pass_goes_over_the_negatives():
    """47 look-alikes at 5 a batch take 10 batches, and each is seen in the first epoch."""
    plan = _plan(**BALANCED)

    rows = plan.epoch(0)

    assert plan.steps == 10
    assert len(rows) == 80
    assert set(NEGATIVES) <= set(rows)


def test_nodules_do_not_always_come_first_in_a_batch():
    """Every place in a batch holds a nodule in some of 200 batches, so each replica's shard has some."""
    batches = _plan(**BALANCED, steps_per_epoch=200).epoch(0).reshape(200, 8)

    counts = np.isin(batches, POSITIVES).sum(axis=0)

    assert counts.sum() == 600
    assert (np.abs(counts - 75) < 35).all()  # 75 expected, 35 is five standard deviations


def test_rows_are_int64():
    """Rows index memory maps of any size."""
    assert _plan().epoch(0).dtype == np.int64
    assert _plan(**BALANCED).epoch(0).dtype == np.int64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positives": []}, "No training cube is a nodule"),
        ({"negatives": []}, "No training cube is a look-alike"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -8}, "batch_size"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"steps_per_epoch": -1}, "steps_per_epoch"),
        ({"positives_per_batch": 0}, "positives_per_batch must lie between 1 and 7"),
        ({"positives_per_batch": 8}, "positives_per_batch must lie between 1 and 7"),
        ({"positives_per_batch": -1}, "positives_per_batch must lie between 1 and 7"),
    ],
    ids=[
        "no positives", "no negatives", "batch 0", "batch -8", "steps 0", "steps -1", "positives 0",
        "positives 8", "positives -1",
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_is_refused(change, words):
    """A missing class and a number out of range are refused when the plan is made."""
    change = {key: np.array(value, np.int64) if value == [] else value for key, value in change.items()}

    with pytest.raises(InputError, match=words):
        _plan(**change)


@given(
    batch_size=st.integers(2, 40),
    ratio=st.floats(0.05, 47),
    steps_per_epoch=st.integers(1, 12),
    epochs=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_a_ratio_is_kept_over_any_number_of_epochs(batch_size, ratio, steps_per_epoch, epochs, seed):
    """Nodules are the wanted share of all cubes seen, give or take one; rows are seen equally often."""
    ratio = max(ratio, 1 / (batch_size - 1))
    plan = _plan(
        batch_size=batch_size, seed=seed, steps_per_epoch=steps_per_epoch, negatives_per_positive=ratio
    )

    rows = np.concatenate([plan.epoch(epoch) for epoch in range(epochs)])

    seen = np.isin(rows, POSITIVES).sum()
    wanted = batch_size * steps_per_epoch * epochs / (1 + ratio)
    assert wanted - 1 - 1e-6 <= seen <= wanted + 1e-6
    for kind in (POSITIVES, NEGATIVES):
        counts = np.bincount(rows, minlength=52)[kind]
        assert np.ptp(counts) <= 1


def test_what_an_epoch_sees_is_stated():
    """Batches of 5 + 3 of 47 + 5 rows: 80 cubes; a nodule comes 6 times, another 50 / 47 times."""
    plan = _plan(**BALANCED)

    assert (plan.steps, plan.cubes_per_epoch, plan.positive_share) == (10, 80, 3 / 8)
    assert plan.visits_per_epoch == pytest.approx((50 / 47, 6))
    assert plan.natural_weights == pytest.approx((47 / 52 / (5 / 8), 5 / 52 / (3 / 8)))
    assert plan.prior_shift == pytest.approx(np.log(5 / 47) - np.log(3 / 5))
    assert plan.batches_without_positives() == 0


def test_natural_prevalence_weighs_nothing():
    """As they come, every row is seen once, weighs 1, and there is no prior to correct."""
    plan = _plan(batch_size=4)

    assert plan.visits_per_epoch == pytest.approx((1, 1))
    assert plan.natural_weights == (1, 1)
    assert plan.prior_shift == 0


def test_batches_without_a_nodule_are_counted():
    """Of 13 batches of 4 with 5 nodules, 8 to 11 hold none: as many as a look at each says, by epoch."""
    plan = _plan(batch_size=4)

    without = [
        sum(not np.isin(batch, POSITIVES).any() for batch in plan.epoch(epoch).reshape(13, 4))
        for epoch in range(20)
    ]

    assert [plan.batches_without_positives(epoch) for epoch in range(20)] == without
    assert set(without) <= {8, 9, 10, 11}


def test_batches_without_a_nodule_are_those_of_the_first_epoch_unless_asked():
    """With seed 2, 8 batches of epoch 0 and 10 of epoch 1 hold no nodule."""
    plan = _plan(batch_size=4, seed=2)

    assert (plan.batches_without_positives(), plan.batches_without_positives(1)) == (8, 10)


def test_the_weights_bring_natural_prevalence_back():
    """One nodule to 4 others, weighted, is 5 in 52 again."""
    plan = _plan(negatives_per_positive=4)
    negative, positive = plan.natural_weights
    share = plan.positive_share

    assert share == pytest.approx(1 / 5)
    assert share * positive == pytest.approx(5 / 52)
    assert (1 - share) * negative == pytest.approx(47 / 52)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"negatives_per_positive": 0},
            "must lie between 0.143, where .* and 47, all there are. Received: 0",
        ),
        ({"negatives_per_positive": 0.1}, "Received: 0.1"),
        ({"negatives_per_positive": 48}, "Received: 48"),
        ({"negatives_per_positive": float("inf")}, "Received: inf"),
        ({"negatives_per_positive": float("nan")}, "Received: nan"),
        ({"negatives_per_positive": 1, "batch_size": 1}, "A batch of one cube cannot hold both classes"),
        ({"positives_per_batch": 1, "batch_size": 1}, "A batch of one cube cannot hold both classes"),
        ({"negatives_per_positive": 3, "positives_per_batch": 2}, "exclude each other. Received: 2 and 3"),
    ],
)
def test_a_ratio_that_makes_no_sense_is_refused(options, message):
    """None, endless, or beside an exact count."""
    with pytest.raises(InputError, match=message):
        _plan(**options)
