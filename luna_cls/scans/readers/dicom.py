"""DICOM: a CT series, its slices files in or below a folder, among whatever else lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import encodable, files_below
from luna_cls.scans.readers.itk import Voxels, file_name, grid_of

_PREAMBLE_BYTES = 128
_SAME_PLACE_MM = 0.01
_UNEVEN = 0.02  # steps of 2 % more or less are rounding
_TILT_DEGREES = 0.1

_CT_STORAGE = (b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.2.1")
_MEDIA_STORAGE_TAG = b"\x02\x00\x02\x00UI"  # in the file's own group, always explicit and little endian
_OWN_GROUP_BYTES = 1024
_IMAGE_TYPE, _LOCALIZER = "0008|0008", "LOCALIZER"


class Slice(NamedTuple):
    """What the header of one slice says, lengths in mm, axes as DICOM has them."""

    path: Path
    series_uid: str
    modality: str
    position_xyz_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]  # six numbers: the directions of a row and of a column
    spacing_yx_mm: NDArray[np.float64]
    shape_yx: tuple[int, int]
    samples: int


class Found(NamedTuple):
    """What there is in and below a folder: CT slices by series UID, and CT files that cannot be read."""

    series: dict[str, list[Slice]]
    damaged: list[Path]


def find_series(folder: Path) -> Found:
    """The CT slices in and below a folder; what is no CT, or no DICOM, is passed over."""
    return series_among(files_below(folder))


def series_among(files: Iterable[Path]) -> Found:
    """The CT slices among files; what is no CT, a localizer, or no DICOM, is passed over."""
    series, damaged = defaultdict(list), []
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for path in files:
        try:
            if not is_dicom(path):
                continue
        except PermissionError:
            damaged.append(path)  # it may be a slice
            continue
        found = _read_header(reader, path)
        if found is not None and found.modality == "CT":
            series[found.series_uid].append(found)
        elif found is None and _says_ct(path):
            damaged.append(path)
    return Found(dict(series), damaged)


def read(folder: Path, series_uid: str | None = None) -> tuple[str, Voxels]:
    """Reads one CT series as HU; returns its UID with it.

    Args:
        folder: Where its slices are, in it or below.
        series_uid: Which series; None where there is one.

    Raises:
        InputError: If there is no such series, or several, or its slices are no volume: one alone, of
            several shapes, in colour, missing, doubled, uneven, or tilted.
    """
    series, damaged = find_series(folder)
    if not series:
        raise InputError(f"The folder {folder} holds no CT slices in DICOM.")
    if series_uid is None and len(series) > 1:
        listed = ", ".join(f"{uid} ({len(slices)} slices)" for uid, slices in series.items())
        raise InputError(f"{folder} holds {len(series)} CT series: {listed}. Say which, by its series UID.")
    uid = series_uid or next(iter(series))
    if uid not in series:
        raise InputError(f"{folder} has no CT series {uid}. Known: {', '.join(series)}.")
    beside = {one.path.parent for one in series[uid]}
    for path in damaged:
        if path.parent in beside:  # it may be the series' last one, whose loss nothing else would show
            raise InputError(
                f"{path} is a damaged CT slice, or may not be read. Fetch it again, or take it out of its "
                "folder."
            )
    slices = _in_order(folder, series[uid])
    first, step_mm = slices[0], _step_mm(folder, slices)
    row, column = first.orientation[:3], first.orientation[3:]
    grid = grid_of(
        folder,
        (len(slices), *first.shape_yx),
        (first.spacing_yx_mm[1], first.spacing_yx_mm[0], step_mm),
        first.position_xyz_mm,
        np.stack([row, column, np.cross(row, column)], axis=1),
    )
    return uid, Voxels(_pixels(folder, slices), grid)


def files(folder: Path, series_uid: str) -> list[Path]:
    """The files of one CT series in and below a folder."""
    return [one.path for one in find_series(folder).series.get(series_uid, [])]


def is_dicom(path: Path) -> bool:
    """Whether a path is a file that says it is DICOM."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(_PREAMBLE_BYTES)
        return file.read(4) == b"DICM"


def _says_ct(path: Path) -> bool:
    """Whether the file's first bytes call it a CT image."""
    with path.open("rb") as file:
        file.seek(_PREAMBLE_BYTES)
        start = file.read(_OWN_GROUP_BYTES)
    at = start.find(_MEDIA_STORAGE_TAG)
    if at < 0:
        return False
    at += len(_MEDIA_STORAGE_TAG)
    length = int.from_bytes(start[at : at + 2], "little")
    return start[at + 2 : at + 2 + length].strip(b"\0 ") in _CT_STORAGE


def _read_header(reader: sitk.ImageFileReader, path: Path) -> Slice | None:
    """The header of a slice; None if it is of another kind, as a report or a segmentation."""
    reader.SetFileName(file_name(path))
    try:
        reader.ReadImageInformation()
        width, height = reader.GetSize()[:2]
        return Slice(
            path,
            encodable(reader.GetMetaData("0020|000e").strip("\0 ")) or "no series UID",
            _LOCALIZER if _is_localizer(reader) else reader.GetMetaData("0008|0060").strip(),
            _numbers(reader, "0020|0032", 3),
            _numbers(reader, "0020|0037", 6),
            _numbers(reader, "0028|0030", 2),
            (height, width),
            int(reader.GetMetaData("0028|0002")),
        )
    except (RuntimeError, ValueError):
        return None


def _is_localizer(reader: sitk.ImageFileReader) -> bool:
    """Whether a header is that of the overview on which a scan was planned."""
    return reader.HasMetaDataKey(_IMAGE_TYPE) and _LOCALIZER in reader.GetMetaData(_IMAGE_TYPE)


def _numbers(reader: sitk.ImageFileReader, tag: str, count: int) -> NDArray[np.float64]:
    numbers = np.array([float(text) for text in reader.GetMetaData(tag).split("\\")])
    if numbers.shape != (count,):
        raise ValueError(f"{tag} must hold {count} numbers. Received: {numbers}.")
    return numbers


def _in_order(folder: Path, slices: list[Slice]) -> list[Slice]:
    """The slices from the lowest along their normal to the highest, all of one kind."""
    first = slices[0]
    for other in slices:
        alike = other.shape_yx == first.shape_yx and np.allclose(other.spacing_yx_mm, first.spacing_yx_mm)
        if not alike or not np.allclose(other.orientation, first.orientation, atol=1e-3):
            raise InputError(
                f"{folder}: slices of series {first.series_uid} differ in size, spacing or orientation: "
                f"{first.path.name} and {other.path.name}. Keep the slices of one reconstruction."
            )
        if other.samples != 1:
            raise InputError(
                f"{other.path} must hold single values. Received: {other.samples} values a pixel, as colour."
            )
    return sorted(slices, key=_height_mm)


def _height_mm(of: Slice) -> float:
    return float(of.position_xyz_mm @ np.cross(of.orientation[:3], of.orientation[3:]))


def _step_mm(folder: Path, slices: list[Slice]) -> float:
    """The distance from slice to slice, which must be the same all through and along the normal."""
    if len(slices) < 2:
        raise InputError(f"{folder}: series {slices[0].series_uid} is one slice, not a volume.")
    heights_mm = np.array([_height_mm(one) for one in slices])
    steps_mm = np.diff(heights_mm)
    for at in np.flatnonzero(steps_mm < _SAME_PLACE_MM):
        both = f"{slices[at].path.name} and {slices[at + 1].path.name}"
        raise InputError(
            f"{folder}: two slices lie at {heights_mm[at]:.2f} mm along the series: {both}. Keep one."
        )
    step_mm = float(np.median(steps_mm))
    for at in np.flatnonzero(np.abs(steps_mm - step_mm) > _UNEVEN * step_mm):
        times = steps_mm[at] / step_mm
        between = f"between {slices[at].path.name} and {slices[at + 1].path.name}"
        if abs(times - round(times)) < 0.1 and round(times) > 1:
            raise InputError(
                f"{folder}: {round(times) - 1} of the slices are missing {between}. Fetch the series again."
            )
        raise InputError(
            f"{folder}: slices lie {step_mm:.3g} mm apart, but {steps_mm[at]:.3g} mm {between}. Only even "
            "steps make a volume."
        )
    way_mm = slices[-1].position_xyz_mm - slices[0].position_xyz_mm
    along_mm = heights_mm[-1] - heights_mm[0]
    tilt = np.degrees(np.arccos(np.clip(along_mm / np.linalg.norm(way_mm), -1, 1)))
    if tilt > _TILT_DEGREES:
        raise InputError(
            f"{folder}: the gantry was tilted by {tilt:.1f} degrees, so that slices do not stack into a box. "
            "Resample the series to an upright one first."
        )
    return along_mm / (len(slices) - 1)


def _pixels(folder: Path, slices: list[Slice]) -> NDArray[np.int32]:
    """HU `(z, y, x)`, each slice with its own slope and intercept."""
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([file_name(one.path) for one in slices])
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{folder} cannot be read as DICOM: {reason}. Fetch the series again.") from error
