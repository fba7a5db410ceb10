"""The findings of one scan: what predict knows of it when it writes its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import ScanSource

RESEARCH_ONLY = "For research, not for diagnosis."

# Columns: whether a finding is shown to a reader; its size; how many findings it was made from.
MARKED, DIAMETER, MERGED = "marked", "diameter_mm", "merged"


@dataclass(frozen=True, eq=False)
class ScanFindings:
    """The findings of one scan.

    Args:
        source: The scan's files and its series UID.
        grid: Where its voxels are.
        table: `seriesuid, coordX, coordY, coordZ, probability, logit, marked`, perhaps `class`,
            `diameter_mm` and `merged`; world mm, LPS; the most probable first. Formats for viewers show what
            is marked: what reaches the threshold, at most so many a scan.
        about: What `prediction.json` says: `luna_cls` (version), `models` (of each `name`, `sha256`,
            `calibration`), `threshold` (a probability) and, for the format "sr" alone, `begun` (UTC, as
            2026-11-22T03:00:00+00:00).
    """

    source: ScanSource
    grid: Grid
    table: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def marked(self) -> pd.DataFrame:
        """The findings to be shown, the most probable first; the index tells their rank, from 0."""
        return self.table[self.table[MARKED]]


def saliency_name(rank: int) -> str:
    """What the map that explains a finding is called; ranks count from 1."""
    return f"saliency_{rank}.nii.gz"
