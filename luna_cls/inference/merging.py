"""Findings of one scan that lie near each other become one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.inference.findings import MERGED


def merge(table: pd.DataFrame, within_mm: float) -> pd.DataFrame:
    """Makes one finding of those that lie near each other.

    From the most probable finding down, each that belongs to none yet is the top of a cluster, to which
    belong all others nearer to it than `within_mm` that are still free. A cluster becomes its top, moved to
    the mean of its members' places, weighted by probability.

    Probability and logit are those of the top. A mean would sink with every doubtful neighbour, and FROC,
    which goes by rank, would then punish a nodule for having been found several times.

    Two tops are never nearer to each other than `within_mm`, but the means may be. So merging once more may
    merge further; it does not where clusters lie well apart.

    Args:
        table: Findings of one scan, `coordX, coordY, coordZ, probability, logit`, perhaps more; world mm.
            A column `merged`, of an earlier merging, counts for its findings.
        within_mm: Nearer than this is one finding; 0 merges nothing.

    Returns:
        A table of the same columns and `merged`, the number of members; the highest logit first, and in
        the order given where logits are equal. `class` is the highest that is known among the members,
        every other column the top's.

    Raises:
        InputError: If the distance is negative or not finite.
    """
    if not 0 <= within_mm < np.inf:
        raise InputError(f"Findings merge within a distance of 0 mm or more. Received: {within_mm} mm.")
    counts = table[MERGED].to_numpy() if MERGED in table.columns else np.ones(len(table), np.int64)
    top_of = _tops(table, within_mm)
    tops, cluster_of = np.unique(top_of, return_inverse=True)
    merged = table.iloc[tops].copy()
    merged[COORDINATES] = _means_xyz_mm(table, tops, cluster_of)
    if "class" in table.columns:
        merged["class"] = table["class"].groupby(cluster_of).max().to_numpy()
    merged[MERGED] = np.bincount(cluster_of, counts, len(tops)).astype(np.int64)
    return merged.sort_values("logit", ascending=False, kind="stable", ignore_index=True)


def _tops(table: pd.DataFrame, within_mm: float) -> NDArray[np.intp]:
    """For every row the row of the top of its cluster."""
    places_xyz_mm = table[COORDINATES].to_numpy(float)
    # Equal logits are told apart by their places, so that clusters do not hang on the order of the rows.
    order = np.lexsort((*places_xyz_mm.T[::-1], -table["logit"].to_numpy(float)))
    tree = cKDTree(places_xyz_mm)
    top_of = np.full(len(table), -1, np.intp)
    for row in order:
        if top_of[row] >= 0:
            continue
        near = np.asarray(tree.query_ball_point(places_xyz_mm[row], within_mm), np.intp)
        near = near[np.linalg.norm(places_xyz_mm[near] - places_xyz_mm[row], axis=1) < within_mm]
        top_of[near[top_of[near] < 0]] = row
        top_of[row] = row
    return top_of


def _means_xyz_mm(
    table: pd.DataFrame, tops: NDArray[np.intp], cluster_of: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Each cluster's mean place `(n, 3)`, weighted by probability; evenly where all are 0."""
    places_xyz_mm = table[COORDINATES].to_numpy(float)
    weights = table["probability"].to_numpy(float)
    weights = np.where(weights[tops][cluster_of] > 0, weights, 1.0)
    totals = np.bincount(cluster_of, weights, len(tops))
    from_top_mm = places_xyz_mm - places_xyz_mm[tops][cluster_of]  # a finding alone stays to the last bit
    shifts_mm = [np.bincount(cluster_of, weights * along, len(tops)) / totals for along in from_top_mm.T]
    return np.asarray(places_xyz_mm[tops] + np.stack(shifts_mm, axis=1), np.float64)
