"""A CT file becomes Hounsfield units on a grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import PREDICTION, encodable, files_below, read_csv
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers import dicom, metaimage, nifti, nrrd
from luna_cls.scans.readers.itk import Voxels

AIR_HU = -1000
LUNGS_FOLDER = "seg-lungs-LUNA16"  # LUNA16's masks, each named as its scan
LOWEST_MEASURED_HU = -1024  # below this a scanner pads what lies outside its field of view

READERS: dict[str, Callable[[Path], Voxels]] = {
    ".mhd": metaimage.read,
    ".mha": metaimage.read,
    ".nrrd": nrrd.read,
    ".nhdr": nrrd.read,
    ".nii": nifti.read,
    ".nii.gz": nifti.read,
}


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT scan in Hounsfield units.

    Args:
        series_uid: The scan's DICOM series instance UID; LUNA16 names its files by it.
        hu: int16 array `(z, y, x)`. Outside the scanner's field of view it holds air.
        grid: Where the voxels are; `grid.shape_zyx == hu.shape`.
    """

    series_uid: str
    hu: NDArray[np.int16]
    grid: Grid

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16 or self.hu.shape != self.grid.shape_zyx:
            raise InputError(
                f"hu must be int16 of the grid's shape {self.grid.shape_zyx}. "
                f"Received: {self.hu.dtype} {self.hu.shape}."
            )


class ScanSource(NamedTuple):
    """Where a scan is: a file, or a folder of DICOM slices; and its UID."""

    path: Path
    series_uid: str


def read_volume(path: str | Path, series_uid: str | None = None) -> CTVolume:
    """Reads a scan in any of the formats of `READERS`, or a DICOM series.

    World points are LPS whatever the file says. What lies below -1024 HU is padding outside the field of
    view, not tissue: it becomes air. Other numbers than int16 are rounded and clipped; NaN is air.

    Args:
        path: The file; the header where header and data are two; the folder in or below which a DICOM
            series is.
        series_uid: Which series of a folder; None where there is one. Of a file, its name without ending.

    Returns:
        A `CTVolume` whose `series_uid` is a file's name without its ending, or the DICOM series'.

    Raises:
        InputError: If the scan is missing, damaged, in no known format, not one 3-D volume of HU, or does
            not say where it lies.
    """
    path = Path(path)
    if path.is_dir():
        uid, (values, grid) = dicom.read(path, series_uid)
        return CTVolume(uid, _to_hu(values), grid)
    if not path.is_file():
        raise InputError(
            f"No scan at {path}. Give a scan ({', '.join(READERS)}) or a folder of DICOM slices."
        )
    ending = _ending(path)
    if ending is None:
        what = "one DICOM slice: give its folder" if dicom.is_dicom(path) else "not in a format read here"
        raise InputError(f"{path} is {what}. Received: '{path.suffix}'; known: {', '.join(READERS)}.")
    uid = encodable(path.name[: -len(ending)])
    if series_uid not in (None, uid):
        raise InputError(f"{path} is the scan {uid}. Received: {series_uid}.")
    values, grid = READERS[ending](path)
    if values.dtype.itemsize < 2:
        raise InputError(f"{path} holds 8-bit values, which cannot be HU. Give the scan, not a mask of it.")
    return CTVolume(uid, _to_hu(values), grid)


def files_of(path: Path, series_uid: str) -> list[Path]:
    """The files that a scan is read from.

    Args:
        path: A file of one of `READERS`, or a folder with DICOM slices in or below it.
        series_uid: The scan's.

    Raises:
        InputError: If a header names no file beside it.
    """
    if path.is_dir():
        return dicom.files(path, series_uid)
    parts = {".mhd": metaimage, ".mha": metaimage, ".nrrd": nrrd, ".nhdr": nrrd}.get(_ending(path) or "")
    return parts.files(path) if parts else [path]


def find_scans(paths: Iterable[str | Path]) -> list[ScanSource]:
    """The scans among `paths`: files as given, folders searched for files of `READERS` and DICOM series.

    LUNA16's lung masks and what predict has made are passed over. A `.csv` lists further paths in its column
    `path`, from its own folder on; what is wrong with one of these shows when that scan is read.

    Raises:
        InputError: If a path does not exist or a folder holds no scan.
    """
    found: list[ScanSource] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _in_folder(path)
            if not inside:
                raise InputError(
                    f"The folder {path} holds no scan. Expected {', '.join(READERS)} files or DICOM slices "
                    "in or below it."
                )
            found.extend(inside)
        elif path.suffix.lower() == ".csv":
            listed = [path.parent / name.strip() for name in read_csv(path, ("path",), "scans")["path"]]
            if not listed:
                raise InputError(f"{path} lists no scan. Give at least one path under its header line.")
            for one in listed:
                found.extend((_in_folder(one) if one.is_dir() else []) or [_of_file(one)])
        elif path.exists():
            found.append(_of_file(path))
        else:
            raise InputError(f"No scan at {path}. Give scan files or folders that hold them.")
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[ScanSource]:
    files = files_below(folder, leave_out=PREDICTION)
    scans = [file for file in files if _ending(file) and LUNGS_FOLDER not in file.relative_to(folder).parts]
    inside = [_of_file(file) for file in scans]
    for uid, slices in dicom.series_among(files).series.items():
        inside.append(ScanSource(Path(os.path.commonpath([one.path.parent for one in slices])), uid))
    return inside


def _of_file(path: Path) -> ScanSource:
    return ScanSource(path, encodable(path.name[: -len(_ending(path) or "")] or path.name))


def _to_hu(values: NDArray[Any]) -> NDArray[np.int16]:
    if values.dtype != np.int16:
        limits = np.iinfo(np.int16)
        if values.dtype.kind == "f":
            values = np.nan_to_num(np.rint(values), nan=AIR_HU)
        values = np.clip(values, limits.min, limits.max).astype(np.int16)
    elif not values.flags.writeable:
        values = values.copy()
    np.copyto(values, np.int16(AIR_HU), where=values < LOWEST_MEASURED_HU)
    return values


def _ending(path: Path) -> str | None:
    """The ending of `READERS` that a file's name has; None if it has none of them."""
    name = path.name.lower()
    return next((ending for ending in READERS if name.endswith(ending) and name != ending), None)
