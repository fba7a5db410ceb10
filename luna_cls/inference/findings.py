"""The findings of one scan: what predict knows of it when it writes its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import ScanSource

MARKED = "marked"  # column: whether a finding is shown to a reader, in viewers and on pages


@dataclass(frozen=True, eq=False)
class ScanFindings:
    """The findings of one scan.

    Args:
        source: The scan's files and its series UID.
        grid: Where its voxels are.
        table: `seriesuid, coordX, coordY, coordZ, probability, logit, marked`, perhaps `class` and
            `diameter_mm`; world mm, LPS; the most probable first. Formats for viewers show what is marked:
            what reaches the threshold, at most so many a scan.
        about: What `prediction.json` says: `luna_cls` (version), `models` (of each `name`, `sha256`,
            `calibration`), `threshold` (a probability), `begun` (UTC, as 2026-11-22T03:00:00+00:00).
    """

    source: ScanSource
    grid: Grid
    table: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def marked(self) -> pd.DataFrame:
        """The findings to be shown, the most probable first; the index tells their rank, from 0."""
        return self.table[self.table[MARKED]]
