"""Train, validation and test sets: whole scans, never parts of one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.errors import InputError

NUM_FOLDS = 10


class LeakError(InputError):
    """A scan is on both sides of a split."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a store's candidate table, int64 `(n,)` each."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def assign_folds(series_uids: Iterable[str], subsets: Mapping[str, int]) -> dict[str, int]:
    """The fold, 0 to 9, of every scan: its LUNA16 subset where it has one, else by a hash of its UID.

    A scan's fold depends on that scan alone, so it stays when others join.
    """
    return {uid: subsets.get(uid, _hashed(uid)) for uid in series_uids}


def split_by_fold(
    candidates: pd.DataFrame, validation_folds: Collection[int], test_folds: Collection[int] = ()
) -> Split:
    """Splits the usable rows of a store's table; what is in neither kind of fold is for training.

    Args:
        candidates: Table with `seriesuid`, `fold` and `status`; rows whose status is not "ok" are left out.
        validation_folds: Folds to validate on.
        test_folds: Folds to leave untouched.

    Raises:
        InputError: If a fold is named for both, or the training or validation set is empty.
        LeakError: If a scan is in two of the sets.
    """
    given = f"validation folds {sorted(validation_folds)}, test folds {sorted(test_folds)}"
    advice = "Name others with --val-folds or --set split.test_folds=[...]."
    both = set(validation_folds) & set(test_folds)
    if both:
        raise InputError(
            f"Fold {min(both)} cannot be for validation and for test. Received, the recipe's included: "
            f"{given}. {advice}"
        )
    usable = (candidates["status"] == "ok").to_numpy()
    fold = candidates["fold"].to_numpy()
    in_validation = np.isin(fold, list(validation_folds))
    in_test = np.isin(fold, list(test_folds))
    split = Split(
        train=np.flatnonzero(usable & ~in_validation & ~in_test),
        validation=np.flatnonzero(usable & in_validation),
        test=np.flatnonzero(usable & in_test),
    )
    for name, rows in (("training", split.train), ("validation", split.validation)):
        if not len(rows):
            raise InputError(
                f"No cube is left for {name}. Received: {given}; the store has folds "
                f"{sorted(set(fold[usable].tolist()))}. {advice}"
            )
    check_no_leak(candidates["seriesuid"], split)
    return split


def check_no_leak(series_uids: pd.Series, split: Split) -> None:
    """Makes sure that no scan has candidates in two of the sets.

    Raises:
        LeakError: If one has; names it.
    """
    seen: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        for uid in series_uids.iloc[getattr(split, name)].unique():
            if uid in seen:
                raise LeakError(
                    f"Scan {uid} is in both the {seen[uid]} and the {name} set. Scores would be worthless; "
                    "prepare the store again."
                )
            seen[uid] = name


def _hashed(series_uid: str) -> int:
    return int.from_bytes(hashlib.sha256(series_uid.encode()).digest()[:8], "big") % NUM_FOLDS
