"""The LUNA16 tree on disk: its scans by series UID and its CSVs as typed tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, read_csv
from luna_cls.scans.volume import ScanSource, find_scans

CANDIDATE_COLUMNS = (*POINT_COLUMNS, "class")

_CSV_FOLDERS = (".", "CSVFILES", "evaluationScript/annotations")


@dataclass(frozen=True)
class LunaTree:
    """The scans of a LUNA16 download, or of any folder.

    Args:
        root: The folder they lie in.
        scan_paths: The file, or the folder of DICOM slices, of every series UID.
        subsets: Which of the ten subsets a scan is in; a scan that lies flat has no entry.
    """

    root: Path
    scan_paths: Mapping[str, Path]
    subsets: Mapping[str, int]

    @classmethod
    def open(cls, root: str | Path) -> LunaTree:
        """Finds LUNA16's `.mhd` files in `root/subset0..9/` (also one folder deeper) and in `root` itself.

        Where there is none, scans of every format are looked for in all folders below.

        Raises:
            InputError: If the folder is missing, holds no scan, or holds one UID twice.
        """
        root = Path(root)
        scan_paths: dict[str, Path] = {}
        subsets: dict[str, int] = {}
        sources = [ScanSource(path, path.stem) for path in scan_files(root)] or find_scans([root])
        for path, uid in sources:
            if uid in scan_paths:
                raise InputError(f"Scan {uid} is there twice: {scan_paths[uid]} and {path}. Remove one.")
            scan_paths[uid] = path
            subset = re.fullmatch(r"subset(\d)", path.relative_to(root).parts[0]) if path != root else None
            if subset:
                subsets[uid] = int(subset[1])
        return cls(root, scan_paths, subsets)

    def candidates(self, path: Path | None = None) -> pd.DataFrame:
        """The labelled candidates of `path`, or of the tree's own `candidates_V2.csv`."""
        return read_candidates(path or find_csv(self.root, "candidates_V2.csv"))


def scan_files(root: Path) -> list[Path]:
    """The `.mhd` files in `root/subset0..9/`, also one folder deeper, and in `root` itself, sorted.

    Raises:
        InputError: If there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"No folder at {root}. Give the folder that holds LUNA16's subset0 to subset9.")
    return sorted([*root.glob("*.mhd"), *root.glob("subset*/**/*.mhd")])


def find_csv(root: Path, name: str) -> Path:
    """Where one of LUNA16's CSVs lies: the root, `CSVFILES` or `evaluationScript/annotations`.

    Raises:
        InputError: If it is in none of them.
    """
    for folder in _CSV_FOLDERS:
        path = root / folder / name
        if path.is_file():
            return path
    option = " with --candidates" if name.startswith("candidates") else ""
    raise InputError(
        f"No {name} in {root}, its CSVFILES or its evaluationScript/annotations. Put it there, or name "
        f"it{option}."
    )


def read_candidates(path: Path, *, labelled: bool = True) -> pd.DataFrame:
    """Reads candidate points.

    Args:
        path: A CSV with `seriesuid,coordX,coordY,coordZ`, world mm, LPS.
        labelled: Whether `class` must be there too (0 or 1). Unlabelled files may have it.

    Returns:
        Table of those columns, in the file's order; `class` is int.

    Raises:
        InputError: If the file is missing or empty, or a column or cell is wrong.
    """
    columns = CANDIDATE_COLUMNS if labelled else POINT_COLUMNS
    table = read_csv(path, columns, "candidates", optional=("class",))
    if table.empty:
        raise InputError(f"{path} lists no candidate. Give at least one point under its header line.")
    if "class" not in table.columns:
        return table[list(POINT_COLUMNS)]
    return table[list(CANDIDATE_COLUMNS)].astype({"class": int})
