"""The findings of a scan one by one, as every format tells them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from luna_cls.files import COORDINATES
from luna_cls.inference.findings import DIAMETER, MARKED, MERGED, ScanFindings


class Finding(NamedTuple):
    """One finding.

    Args:
        rank: 1 for the most probable of its scan.
        position_xyz_mm: World point, LPS.
        voxel_zyx: The voxel of the scan's grid whose centre is nearest.
        probability: From 0 to 1.
        logit: Before it became a probability.
        is_marked: Whether viewers show it.
        label: 1 if it is known to be a nodule, 0 if known not to be, else None.
        diameter_mm: None if not known.
        merged: How many findings it was made from; None if findings were not merged.
    """

    rank: int
    position_xyz_mm: tuple[float, float, float]
    voxel_zyx: tuple[int, int, int]
    probability: float
    logit: float
    is_marked: bool
    label: int | None
    diameter_mm: float | None
    merged: int | None


def ranked(findings: ScanFindings, *, only_marked: bool = False) -> list[Finding]:
    """The findings of a scan, the most probable first.

    Args:
        findings: Of the scan.
        only_marked: Leave out what viewers do not show.
    """
    table = findings.marked if only_marked else findings.table
    positions_xyz_mm = table[COORDINATES].to_numpy(float).reshape(-1, 3)
    last_zyx = np.array(findings.grid.shape_zyx) - 1
    voxels_zyx = np.clip(np.rint(findings.grid.to_voxel_zyx(positions_xyz_mm)), 0, last_zyx).astype(int)
    labels, diameters_mm, merged = (_known(table, name) for name in ("class", DIAMETER, MERGED))
    return [
        Finding(
            int(row) + 1,
            (float(x), float(y), float(z)),
            (int(voxel[0]), int(voxel[1]), int(voxel[2])),
            float(probability),
            float(logit),
            bool(marked),
            None if label is None else int(label),
            diameter_mm,
            None if members is None else int(members),
        )
        for row, (x, y, z), voxel, probability, logit, marked, label, diameter_mm, members in zip(
            table.index,
            positions_xyz_mm,
            voxels_zyx,
            table["probability"],
            table["logit"],
            table[MARKED],
            labels,
            diameters_mm,
            merged,
            strict=True,
        )
    ]


def _known(table: pd.DataFrame, column: str) -> list[float | None]:
    """The numbers of a column; None where there is none, and throughout if there is no such column."""
    if column not in table.columns:
        return [None] * len(table)
    return [None if pd.isna(value) else float(value) for value in table[column]]
