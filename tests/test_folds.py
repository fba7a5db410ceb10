import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from luna_cls.cubes.folds import LeakError, Split, assign_folds, check_no_leak, split_by_fold
from luna_cls.errors import InputError

UIDS = [f"1.2.826.{number}" for number in range(40)]


def _table(folds, status="ok"):
    """One row for each fold given; a scan of each fold."""
    return pd.DataFrame({"seriesuid": [f"scan{fold}" for fold in folds], "fold": folds, "status": status})


def test_luna16s_subsets_are_the_folds():
    """A scan in subset n is in fold n."""
    subsets = {uid: number % 10 for number, uid in enumerate(UIDS)}

    assert assign_folds(UIDS, subsets) == subsets


def test_a_scan_without_subset_keeps_its_fold_when_others_join():
    """A fold follows from the UID alone: the first eight bytes of its SHA-256, modulo ten."""
    alone = assign_folds([UIDS[3]], {})
    together = assign_folds(reversed(UIDS), {UIDS[5]: 5})
    digest = hashlib.sha256(UIDS[3].encode()).hexdigest()

    assert alone == {UIDS[3]: int(digest[:16], 16) % 10}
    assert together[UIDS[3]] == alone[UIDS[3]]
    assert together[UIDS[5]] == 5


def test_hashed_folds_are_about_equally_full():
    """Of 10,000 UIDs each fold gets 1,000, give or take 150 (five standard deviations)."""
    folds = assign_folds([f"1.3.6.1.4.{number}" for number in range(10_000)], {})

    counts = np.bincount(list(folds.values()), minlength=10)

    assert len(counts) == 10
    assert (np.abs(counts - 1000) < 150).all()


def test_every_fold_goes_where_it_is_named():
    """Fold 9 validates, fold 8 tests, the rest trains; a row without cube is in no set."""
    table = _table([0, 9, 8, 0, 9, 5])
    table.loc[3, "status"] = "outside"

    split = split_by_fold(table, [9], [8])

    assert split.train.tolist() == [0, 5]
    assert split.validation.tolist() == [1, 4]
    assert split.test.tolist() == [2]


def test_without_test_folds_the_test_set_is_empty():
    """Naming test folds is optional."""
    split = split_by_fold(_table([0, 1, 2]), [1])

    assert split.train.tolist() == [0, 2]
    assert split.test.tolist() == []


@given(
    rows=st.lists(st.tuples(st.sampled_from(UIDS), st.booleans()), min_size=15, max_size=60),
    validation=st.sets(st.integers(0, 9), min_size=1, max_size=4),
    test=st.sets(st.integers(0, 9), max_size=4),
)
def test_no_scan_is_ever_in_two_sets(rows, validation, test):
    """Whatever the folds, the sets share no scan and together hold each usable row once."""
    uids, usable = zip(*rows, strict=True)
    table = pd.DataFrame({"seriesuid": uids, "status": np.where(usable, "ok", "unreadable")})
    table["fold"] = table["seriesuid"].map(assign_folds(uids, {}))
    try:
        split = split_by_fold(table, validation, test - validation)
    except InputError:  # a set is empty
        assume(False)

    sets = [set(table["seriesuid"].iloc[rows]) for rows in (split.train, split.validation, split.test)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    together = np.concatenate([split.train, split.validation, split.test])
    assert sorted(together) == np.flatnonzero(usable).tolist()


def test_a_fold_cannot_be_for_two_things():
    """Fold 9 named for validation and for test is refused."""
    with pytest.raises(InputError, match="Fold 9 cannot be for validation and for test"):
        split_by_fold(_table([0, 8, 9]), [8, 9], [9])


@pytest.mark.parametrize(
    ("folds", "validation", "test", "kind"),
    [([0, 1], [9], [], "validation"), ([9, 9], [9], [], "training"), ([8, 9], [9], [8], "training")],
    ids=["fold not in the store", "all validate", "the rest is for test"],
)
def test_an_empty_set_is_refused(folds, validation, test, kind):
    """Nothing to train or to validate on is refused, and the store's folds are listed."""
    with pytest.raises(InputError, match=f"No cube is left for {kind}") as refusal:
        split_by_fold(_table(folds), validation, test)

    assert f"the store has folds {sorted(set(folds))}" in str(refusal.value)


def test_rows_without_cube_do_not_fill_a_set():
    """A validation fold whose every scan is unreadable is empty."""
    table = _table([0, 9])
    table.loc[1, "status"] = "unreadable"

    with pytest.raises(InputError, match="No cube is left for validation"):
        split_by_fold(table, [9])


@pytest.mark.parametrize(
    ("rows", "names"),
    [(([0, 1], [2], []), "train and the validation"), (([0], [3], [2]), "validation and the test"),
     (([0], [3], [1]), "train and the test")],
    ids=["train and validation", "validation and test", "train and test"],
)  # fmt: skip
def test_a_forged_split_is_a_leak(rows, names):
    """One scan on both sides is an error that names the scan and the sets."""
    uids = pd.Series(["1.2.3", "1.2.3", "1.2.3" if rows[0] == [0, 1] else "1.2.9", "1.2.9"])
    split = Split(*(np.array(part, np.int64) for part in rows))
    leaking = "1.2.9" if names.startswith("validation") else "1.2.3"

    with pytest.raises(LeakError, match=f"Scan {leaking} is in both the {names} set"):
        check_no_leak(uids, split)


def test_a_scan_in_two_folds_is_a_leak():
    """A store table that puts one scan in folds 0 and 9 cannot be split between them."""
    table = _table([0, 9, 1])
    table["seriesuid"] = ["1.2.3", "1.2.3", "1.2.4"]

    with pytest.raises(LeakError, match=r"Scan 1\.2\.3 is in both the train and the validation set"):
        split_by_fold(table, [9])
