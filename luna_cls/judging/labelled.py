"""Candidates that several submissions score alike: the same points, with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.judging.froc import Matches

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_POINTS_PER_MM = 1000


@dataclass(frozen=True, eq=False)
class Scores:
    """What one submission says of the candidates.

    Args:
        ranking: float64 `(n,)`, the finest scores it has: its logits if they are those of its probabilities.
        threshold: The score of a probability of 1/2.
        probability: float64 `(n,)`.
    """

    ranking: Floats
    threshold: float
    probability: Floats

    @classmethod
    def of(cls, table: pd.DataFrame) -> Scores:
        """Takes the columns `probability` and, if it is there, `logit`."""
        probability = table["probability"].to_numpy(float)
        if "logit" in table.columns:
            logits = table["logit"].to_numpy(float)
            if np.allclose(expit(logits), probability, rtol=0, atol=1e-6):
                return cls(logits, 0.0, probability)
        return cls(probability, 0.5, probability)


@dataclass(frozen=True, eq=False)
class LabelledCandidates:
    """The candidates of all submissions, in one order.

    Args:
        labels: Integers `(n,)`, 1 for a nodule, 0 for the rest.
        scan: Integers `(n,)`, the place of each's scan in the list of scans.
        scores: Of each submission, by its name.
        chosen: float64 `(n,)` of each submission, how far its logits lie above a threshold of its own that
            was chosen elsewhere; empty unless all have a column `chosen`.
    """

    labels: Integers
    scan: Integers
    scores: dict[str, Scores]
    chosen: dict[str, Floats]


def labelled_candidates(
    submissions: Mapping[str, pd.DataFrame], matches: Mapping[str, Matches], scans: Sequence[str]
) -> tuple[LabelledCandidates | None, str]:
    """Brings the candidates of several submissions into one order, by their points to the micrometre.

    Args:
        submissions: Tables by name, the rows of each numbered from 0.
        matches: What hit what, by name, of the same tables; empty without annotations.
        scans: The listed scans.

    Returns:
        The candidates, and a sentence on their labels: those of a column `class`, or else of which marks lie
        in nodules. None, and a sentence that says why, if the points differ, none has a label, or all have
        the same.

    Raises:
        InputError: If two submissions label a candidate differently, or a cell of `chosen` is no number.
    """
    tables, points = {}, {}
    for name, given in submissions.items():
        scan = pd.Index(scans).get_indexer(given["seriesuid"])
        table = given.assign(scan=scan)[scan >= 0]
        at = np.rint(table[COORDINATES].to_numpy(float) * _POINTS_PER_MM).astype(np.int64)
        order = np.lexsort((*at.T[::-1], table["scan"]))
        tables[name], points[name] = table.iloc[order], np.column_stack([table["scan"], at])[order]
    first, *others = submissions
    for name in others:
        if not np.array_equal(points[first], points[name]):
            return None, (
                f"{first} and {name} do not score the same points ({len(points[first]):,} and "
                f"{len(points[name]):,} in the listed scans): metrics of candidates are not compared."
            )
    labels, note = _labels_of_column(tables) if _have_class(tables) else _labels_of_nodules(tables, matches)
    is_labelled = labels >= 0
    if len(np.unique(labels[is_labelled])) < 2:
        return None, "Metrics of labelled candidates take nodules and others: the submissions have not both."
    return (
        LabelledCandidates(
            labels[is_labelled],
            points[first][is_labelled, 0],
            {name: Scores.of(table[is_labelled]) for name, table in tables.items()},
            {name: above[is_labelled] for name, above in _above_chosen(tables).items()},
        ),
        note,
    )


def _above_chosen(tables: Mapping[str, pd.DataFrame]) -> dict[str, Floats]:
    """The columns `chosen`, if all tables have one."""
    if not all("chosen" in table.columns for table in tables.values()):
        return {}
    above = {
        name: pd.to_numeric(table["chosen"], errors="coerce").to_numpy(float)
        for name, table in tables.items()
    }
    for name, values in above.items():
        if np.isnan(values).any():
            received = tables[name]["chosen"].iloc[int(np.isnan(values).argmax())]
            raise InputError(
                f"{name}: the column chosen holds the logit less a threshold, a number in every row. "
                f"Received: {received}."
            )
    return above


def _have_class(tables: Mapping[str, pd.DataFrame]) -> bool:
    return any("class" in table.columns for table in tables.values())


def _labels_of_column(tables: Mapping[str, pd.DataFrame]) -> tuple[Integers, str]:
    given = {name: table["class"].to_numpy(int) for name, table in tables.items() if "class" in table.columns}
    first, *others = given
    for name in others:
        differ = given[first] != given[name]
        if differ.any():
            where = tables[first].iloc[int(differ.argmax())]
            raise InputError(
                f"{first} and {name} give {int(differ.sum()):,} candidates another class, the first at "
                f"{where['seriesuid']} {', '.join(f'{where[axis]:g}' for axis in COORDINATES)} mm. "
                "Compare predictions of the same candidates."
            )
    return given[first], "Candidates are labelled by the column class."


def _labels_of_nodules(
    tables: Mapping[str, pd.DataFrame], matches: Mapping[str, Matches]
) -> tuple[Integers, str]:
    """1 in a nodule, 0 outside; -1 on an excluded finding, and where no submission's mark counts."""
    labels = np.full(len(next(iter(tables.values()))), -1)
    for name, found in matches.items():
        own = found.labels.reindex(tables[name].index, fill_value=-1).to_numpy()
        labels[own >= 0] = own[own >= 0]
    return labels, (
        "Candidates are labelled by which marks lie in nodules; those on excluded findings are left out, and "
        "those beyond the hundredth of their scan in every submission. Those that count in another one alone "
        "are in, so a metric may differ a little from that of a submission by itself."
    )
