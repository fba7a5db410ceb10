"""Is a LUNA16 download whole? Everything that is wrong with it, in one pass, without reading a voxel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from scipy.spatial import cKDTree

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES, POINT_COLUMNS, read_csv, read_series_uids
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import CANDIDATE_COLUMNS, find_csv, scan_files
from luna_cls.scans.readers import metaimage

NUM_SUBSETS = 10
DIAMETER_IF_UNKNOWN_MM = 10.0  # as LUNA16's script takes -1
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_LONGEST_UID = 64
_SHOWN = 3


@dataclass
class Audit:
    """What an audit found.

    Args:
        faults: What would spoil a result, a sentence each.
        notes: What is worth knowing.
        grids: The grid of every scan whose header is sound, by series UID.
        num_candidates: Rows of the candidates file.
        data_bytes: Size of all scans on disk.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    num_candidates: int = 0
    data_bytes: int = 0


def audit(
    root: str | Path,
    candidates: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Looks at a LUNA16 tree: headers, sizes on disk, CSVs, and how they go together.

    Args:
        root: The folder with `subset0` to `subset9`.
        candidates: The candidates file; None for the tree's own `candidates_V2.csv`.
        on_progress: Called with the number of scans looked at and of all.

    Returns:
        An `Audit`.

    Raises:
        InputError: If there is no such folder, or no scan in it.
    """
    root = Path(root)
    files = scan_files(root)
    if not files:
        raise InputError(f"{root} holds no scan. Expected .mhd files in it or in its subset0 to subset9.")
    found = Audit()
    known = _scans(root, files, found, on_progress)
    listed = _table(root, "seriesuids.csv", None, found)
    points = _table(root, "candidates_V2.csv", CANDIDATE_COLUMNS, found, given=candidates)
    nodules = _table(root, "annotations.csv", (*POINT_COLUMNS, "diameter_mm"), found)
    excluded = _table(root, "annotations_excluded.csv", (*POINT_COLUMNS, "diameter_mm"), found)
    for name, table in (
        ("seriesuids.csv", listed),
        (candidates.name if candidates else "candidates_V2.csv", points),
        ("annotations.csv", nodules),
        ("annotations_excluded.csv", excluded),
    ):
        if table is not None:
            _check_uids(name, table["seriesuid"], known, found)
    if listed is not None:
        _tell(found.notes, "{} of the scans are not in seriesuids.csv: {}", known - set(listed["seriesuid"]))
    if points is not None:
        found.num_candidates = len(points)
        _check_points(points, found)
        _tell(found.notes, "{} of the scans have no candidate: {}", known - set(points["seriesuid"]))
    if points is not None and nodules is not None:
        _check_nodules(points, nodules[nodules["seriesuid"].isin(known)], found)
    return found


def _scans(
    root: Path, files: list[Path], found: Audit, on_progress: Callable[[int, int], None] | None
) -> set[str]:
    """The UIDs of all scans; looks at each header and the size of its data."""
    known: set[str] = set()
    doubled: set[str] = set()
    subsets: Counter[str] = Counter()
    for done, path in enumerate(files):
        if on_progress:
            on_progress(done, len(files))
        uid, folder = path.stem, path.relative_to(root).parts[0]
        subsets[folder if folder.startswith("subset") else ""] += 1
        if uid in known:
            doubled.add(uid)
            continue
        known.add(uid)
        try:
            header = metaimage.inspect(path)
        except (InputError, OSError) as error:
            found.faults.append(str(error))
        else:
            found.grids[uid] = header.grid
            found.data_bytes += header.data_bytes
    if on_progress:
        on_progress(len(files), len(files))
    _tell(found.faults, "{} series UIDs have several scans: {}", doubled)
    missing = [f"subset{n}" for n in range(NUM_SUBSETS) if not subsets[f"subset{n}"]]
    if subsets[""]:
        found.notes.append(f"{subsets['']} scans lie in no subset: give folds by hand.")
    elif missing:
        found.notes.append(f"Of LUNA16's ten subsets {', '.join(missing)} are not there, or empty.")
    return known


def _table(
    root: Path, name: str, columns: tuple[str, ...] | None, found: Audit, given: Path | None = None
) -> pd.DataFrame | None:
    """One of LUNA16's CSVs; None if it is not there, or wrong, which is noted."""
    try:
        path = given or find_csv(root, name)
    except InputError as error:
        # Without candidates there is nothing to cut; the others serve the score.
        (found.faults if name == "candidates_V2.csv" else found.notes).append(str(error))
        return None
    try:
        if columns is None:
            return pd.DataFrame({"seriesuid": read_series_uids(path)})
        table = read_csv(path, columns, "points")
    except InputError as error:
        found.faults.append(str(error))
        return None
    doubled = table.duplicated(list(POINT_COLUMNS))
    if doubled.any() and name != "annotations_excluded.csv":  # LUNA16's own has some, and they do no harm
        first = " ".join(map(str, table.loc[doubled, list(POINT_COLUMNS)].iloc[0]))
        found.faults.append(f"{path.name}: {doubled.sum():,} points are there more than once, first {first}.")
    return table


def _check_uids(name: str, uids: pd.Series, known: set[str], found: Audit) -> None:
    every = set(uids)
    mangled = {uid for uid in every if not _UID.fullmatch(uid) or len(uid) > _LONGEST_UID}
    _tell(
        found.faults,
        f"{name}: {{}} series UIDs are none, as after a spreadsheet: {{}}. Fetch the file again",
        mangled,
    )
    _tell(found.faults, f"{name}: {{}} series UIDs have no scan: {{}}", every - mangled - known)


def _check_points(points: pd.DataFrame, found: Audit) -> None:
    outside = 0
    first = ""
    for uid, own in points.groupby("seriesuid", sort=False):
        grid = found.grids.get(str(uid))
        if grid is None:
            continue
        places = own[COORDINATES].to_numpy()
        is_outside = ~grid.contains(places)
        if is_outside.any() and not outside:
            first = f"{places[is_outside][0].tolist()} mm of {uid}"
        outside += int(is_outside.sum())
    if outside:
        found.faults.append(f"{outside:,} candidates lie outside their scan, first {first}.")
    counts = points["class"].value_counts()
    for label, kind in ((1, "nodule"), (0, "look-alike")):
        if not counts.get(label, 0):
            found.faults.append(f"No candidate is a {kind} (class {label}): nothing can be learned.")


def _check_nodules(points: pd.DataFrame, nodules: pd.DataFrame, found: Audit) -> None:
    """Nodules that no candidate hits bound the sensitivity; labels that contradict them spoil it."""
    missed, wrong = 0, 0
    of_scan = dict(tuple(points.groupby("seriesuid", sort=False)))
    for uid, own in nodules.groupby("seriesuid", sort=False):
        candidates = of_scan.get(uid)
        if candidates is None:
            missed += len(own)
            continue
        diameters_mm = own["diameter_mm"].where(own["diameter_mm"] > 0, DIAMETER_IF_UNKNOWN_MM)
        tree = cKDTree(candidates[COORDINATES].to_numpy())
        hits = tree.query_ball_point(own[COORDINATES].to_numpy(), (diameters_mm / 2).to_numpy())
        labels = candidates["class"].to_numpy()
        missed += sum(not hit for hit in hits)
        wrong += sum(bool(hit) and not labels[hit].any() for hit in hits)
    if missed:
        found.notes.append(
            f"{missed:,} of {len(nodules):,} nodules are hit by no candidate: sensitivity cannot pass "
            f"{1 - missed / len(nodules):.3f}."
        )
    if wrong:
        found.faults.append(
            f"{wrong:,} of {len(nodules):,} nodules are hit by candidates of class 0 alone: the two files do "
            "not belong together."
        )


def _tell(sentences: list[str], sentence: str, of: Iterable[str]) -> None:
    """Adds a sentence with the number and the first few of something, if there is any."""
    every = sorted(of)
    if every:
        listed = ", ".join(every[:_SHOWN]) + (", ..." if len(every) > _SHOWN else "")
        sentences.append(sentence.format(f"{len(every):,}", listed) + ".")
