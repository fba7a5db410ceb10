"""Submissions and what they are scored against: read, and looked at for what ruins scores unseen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, read_csv, read_series_uids
from luna_cls.judging.froc import MAX_MARKS_PER_SCAN, RATES_PER_SCAN, Matches

# What stands for the scores of a folder that a command has made.
OF_FOLDER = ("validation_predictions.csv", "predictions.csv", "findings.csv")

_FEW_DECIMALS = 4
_MANY_SCANS = 100
_ONE_SUBSET = 0.3  # a share of scans with marks that looks like one fold of ten, or a few


@dataclass(frozen=True)
class Reference:
    """What predictions are scored against, as files.

    Args:
        annotations: CSV of the nodules; None for metrics of labelled candidates alone.
        excluded: CSV of findings to ignore.
        series_uids: List of all scans that were read; None for those that have predictions.
        subset: One of LUNA16's subsets, to score against its own scans only.
        subsets: What tells the subsets: a LUNA16 tree, or a CSV with `seriesuid,subset`.
    """

    annotations: Path | None = None
    excluded: Path | None = None
    series_uids: Path | None = None
    subset: int | None = None
    subsets: Path | None = None

    def __post_init__(self) -> None:
        if self.excluded and not self.annotations:
            raise InputError(
                "Excluded findings are for FROC, which takes nodules too: add --annotations. Received: "
                f"--excluded {self.excluded} alone."
            )
        if (self.subset is None) != (self.subsets is None):
            received = f"--subset {self.subset}" if self.subsets is None else f"--subsets {self.subsets}"
            raise InputError(
                "A subset takes a number and what tells the subsets: --subset K --subsets LUNA_DIR, or a CSV "
                f"with seriesuid,subset. Received: {received} alone."
            )

    @property
    def lists_scans(self) -> bool:
        """Whether it says which scans were read."""
        return self.series_uids is not None or self.subset is not None

    @property
    def paths(self) -> list[Path]:
        """All files and folders named."""
        return [path for path in asdict(self).values() if isinstance(path, Path)]

    def findings(self) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """Tables of the nodules and of the findings to ignore; None for what was not given."""
        return (
            read_annotations(self.annotations) if self.annotations else None,
            read_annotations(self.excluded, "excluded findings") if self.excluded else None,
        )

    def scans_of(self, marks: pd.DataFrame) -> list[str]:
        """The scans that count: those listed, or else those with marks; with a subset, its own of them."""
        listed = read_series_uids(self.series_uids) if self.series_uids else None
        if self.subset is None or self.subsets is None:
            return list(dict.fromkeys(listed or marks["seriesuid"]))
        own = read_subset(self.subsets, self.subset)
        if listed is None:
            return own
        both = [uid for uid in listed if uid in set(own)]
        if not both:
            raise InputError(
                f"No scan of {self.series_uids} is in subset {self.subset}. Received: scans {listed[0]}, "
                f"...; in the subset are {own[0]}, ..."
            )
        return both


def submission_in(path: Path) -> Path:
    """The predictions of a run, a cross-validation or a folder of findings; a file is what it is.

    Raises:
        InputError: If a folder holds none.
    """
    if not path.is_dir():
        return path
    for name in OF_FOLDER:
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path} holds no predictions. Give a CSV, or a folder with {', '.join(OF_FOLDER)}.")


def read_submission(path: Path) -> pd.DataFrame:
    """Reads a LUNA16 submission: `seriesuid, coordX, coordY, coordZ, probability`.

    `logit` and `class` may be there too; further columns are left as they are.

    Raises:
        InputError: If the file, a column or a cell is wrong, or a probability is none.
    """
    return read_csv(path, (*POINT_COLUMNS, "probability"), "predictions", optional=("logit", "class"))


def read_annotations(path: Path, what: str = "annotated nodules") -> pd.DataFrame:
    """Reads nodules or excluded findings: `seriesuid, coordX, coordY, coordZ, diameter_mm`.

    Raises:
        InputError: If the file, a column or a cell is wrong.
    """
    return read_csv(path, (*POINT_COLUMNS, "diameter_mm"), what)


def read_subset(path: Path, subset: int) -> list[str]:
    """The scans of one of LUNA16's subsets.

    Args:
        path: A LUNA16 tree, with `subset0` to `subset9`; or a CSV with `seriesuid,subset`.
        subset: Which.

    Raises:
        InputError: If there is no such file, column or subset.
    """
    if path.is_dir():
        uids = sorted(scan.stem for scan in path.glob(f"subset{subset}/**/*.mhd"))
    else:
        table = read_csv(path, ("seriesuid", "subset"), "subsets")
        uids = table["seriesuid"][table["subset"] == subset].tolist()
    if not uids:
        raise InputError(f"{path} has no scan in subset {subset}. Give a number from 0 to 9 that is in it.")
    return uids


def check_scans(submission: Path, marks: pd.DataFrame, uids: list[str]) -> None:
    """Refuses marks of other scans altogether, as with running numbers for UIDs.

    Raises:
        InputError: If there are marks, and none is of a listed scan.
    """
    if len(marks) and not marks["seriesuid"].isin(uids).any():
        raise InputError(
            f"{submission}: no mark is of a listed scan. Received: seriesuid {marks['seriesuid'].iloc[0]}, "
            f"...; listed are {uids[0]}, ... Write the series UIDs that the list has."
        )


def warnings(
    submission: pd.DataFrame,
    annotations: pd.DataFrame,
    excluded: pd.DataFrame | None,
    matches: Matches,
    reference: Reference,
) -> list[str]:
    """What may ruin a score unseen, a sentence or two each.

    Args:
        submission: All rows, as `read_submission` gives them.
        annotations: All nodules.
        excluded: All findings to ignore; None if no list of them was given.
        matches: What hit what.
        reference: Where nodules, findings and scans are from.
    """
    found = [
        *_of_the_lists(submission, annotations, excluded, matches, reference),
        *_of_the_probabilities(matches),
    ]
    if not (matches.nodules["hits"] > 0).any():
        found.append("No mark lies in a nodule. Are the coordinates x, y, z in mm, and of the same scans?")
    repeated = int(matches.marks.duplicated([*POINT_COLUMNS]).sum())
    if repeated:
        found.append(
            f"{repeated:,} marks repeat the point of another: outside nodules they are false alarms again."
        )
    return found


def _of_the_lists(
    submission: pd.DataFrame,
    annotations: pd.DataFrame,
    excluded: pd.DataFrame | None,
    matches: Matches,
    reference: Reference,
) -> list[str]:
    found = []
    scans = pd.Index(matches.scans)
    unlisted = submission["seriesuid"][~submission["seriesuid"].isin(scans)]
    if len(unlisted) and reference.subset is None:
        found.append(
            f"{len(unlisted):,} marks of {unlisted.nunique()} scans that are not listed were left out, as "
            f"LUNA16 does; the first is {unlisted.iloc[0]}."
        )
    left_out = annotations[~annotations["seriesuid"].isin(scans)]
    if not reference.lists_scans and len(left_out):
        found.append(
            f"{len(left_out):,} nodules of {left_out['seriesuid'].nunique()} scans without a prediction were "
            "left out. If those scans were read, list all scans with --seriesuids: their nodules were missed."
        )
    silent = ~scans.isin(submission["seriesuid"])
    if silent.any():
        missed = int(silent[matches.nodules["scan"]].sum())
        sentence = (
            f"{silent.sum():,} of {len(scans):,} listed scans have no mark; their {missed:,} nodules count "
            "as missed."
        )
        if silent.mean() > 1 - _ONE_SUBSET:
            sentence += " If the marks are one subset's, score it against its own scans: --subset K."
        found.append(sentence)
    if len(scans) >= _MANY_SCANS and len(matches.nodules["scan"].unique()) == len(scans):
        found.append(
            "Every listed scan has a nodule. LUNA16 divides false positives by all 888 scans, of which 287 "
            "have none: list every scan that was read with --seriesuids."
        )
    if excluded is None:
        found.append(
            "No list of excluded findings was given: marks on findings that LUNA16 ignores count as false "
            "alarms, which costs a tenth of the CPM or so. Pass --excluded annotations_excluded.csv."
        )
    elif not excluded["seriesuid"].isin(scans).any():
        found.append("No excluded finding is in a listed scan. Is that list of the same data?")
    elif (excluded["diameter_mm"] > 0).all() and len(excluded.merge(annotations, on=[*POINT_COLUMNS])) == len(
        excluded
    ):
        found.append("The excluded findings are the annotated nodules. Is --excluded the right list?")
    if (matches.nodules["diameter_mm"] <= 0).any():
        found.append(
            f"{int((matches.nodules['diameter_mm'] <= 0).sum()):,} annotated nodules have no diameter. Was "
            "the list of excluded findings given as --annotations?"
        )
    return found


def _of_the_probabilities(matches: Matches) -> list[str]:
    found = []
    if matches.cut_by_ties:
        found.append(
            f"In {matches.cut_by_ties:,} scans equal probabilities around the {MAX_MARKS_PER_SCAN}th mark "
            f"were all dropped, as LUNA16's rule has it: fewer than {MAX_MARKS_PER_SCAN} marks count there. "
            "Write probabilities with more digits."
        )
    probability = matches.marks["probability"].to_numpy(float)
    at_one = int((probability == 1).sum())
    if at_one > RATES_PER_SCAN[0] * len(matches.scans) and at_one > 1:
        found.append(
            f"{at_one:,} marks have a probability of exactly 1: no threshold tells them apart, and the curve "
            "begins behind them. Write probabilities as float64, or from logits."
        )
    distinct = len(np.unique(probability))
    if distinct == 1 < len(probability):
        found.append(f"All {len(probability):,} marks have the same probability: nothing is ranked.")
    for decimals in range(1, _FEW_DECIMALS + 1):
        if distinct > 1 and (probability == probability.round(decimals)).all():
            if distinct < len(probability) / 2:
                found.append(
                    f"Probabilities have {decimals} decimals: {len(probability):,} marks share {distinct:,} "
                    "values, and ties cost false positives. Write all their digits."
                )
            break
    return found
