"""A CT file becomes Hounsfield units on a grid."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid

AIR_HU = -1000
LOWEST_MEASURED_HU = -1024  # below this a scanner pads what lies outside its field of view

_BYTES_OF_ELEMENT = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2,
    "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_TRUE = ("T", "t", "1")  # as ITK reads it


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


def read_volume(path: str | Path) -> CTVolume:
    """Reads a MetaImage scan (`.mhd` beside its `.raw` or `.zraw`).

    What lies below -1024 HU is padding outside the field of view, not tissue: it becomes air.

    Args:
        path: The `.mhd` header.

    Returns:
        A `CTVolume` whose `series_uid` is the file's name without its ending.

    Raises:
        InputError: If the file is missing, no MetaImage, not 3-D, or its data are incomplete.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No scan at {path}. Give the path of an .mhd file.")
    if path.suffix.lower() != ".mhd":
        raise InputError(f"{path} is not in a format read here. Received: '{path.suffix}'; known: .mhd.")
    header = _check_data_file(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Reason: ")
        raise InputError(f"{path} cannot be read as MetaImage: {reason}. Fetch the scan again.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path} must hold one 3-D volume of single values. Received: {image.GetDimension()} axes, "
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel."
        )
    values = sitk.GetArrayViewFromImage(image)
    _check_unpacked(path, header, values)
    try:
        grid = Grid(
            values.shape,
            image.GetSpacing(),
            image.GetOrigin(),
            np.reshape(image.GetDirection(), (3, 3)),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return CTVolume(path.stem, _to_hu(values), grid)


def find_scans(paths: Iterable[str | Path]) -> list[Path]:
    """The scan files among `paths`: files as given, folders searched for `.mhd` files, sorted.

    Raises:
        InputError: If a path does not exist or a folder holds no scan.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.rglob("*.mhd"))
            if not inside:
                raise InputError(f"The folder {path} holds no scan. Expected .mhd files in or below it.")
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"No scan at {path}. Give scan files or folders that hold them.")
    return list(dict.fromkeys(found))


def _to_hu(values: NDArray[Any]) -> NDArray[np.int16]:
    if values.dtype != np.int16:
        limits = np.iinfo(np.int16)
        values = np.clip(np.nan_to_num(np.rint(values), nan=AIR_HU), limits.min, limits.max)
        values = values.astype(np.int16)
    return np.where(values < LOWEST_MEASURED_HU, np.int16(AIR_HU), values)


def _check_data_file(path: Path) -> dict[str, str]:
    """Refuses a header whose data are elsewhere, missing or too short, before ITK tries; returns it."""
    header = _read_header(path)
    name = header.get("ElementDataFile", "")
    if not name or name == "LOCAL" or name.startswith("LIST") or "%" in name:
        raise InputError(f"{path}: ElementDataFile must name one data file. Received: '{name}'.")
    if Path(name).name != name:
        raise InputError(f"{path}: ElementDataFile must lie beside the header. Received: '{name}'.")
    data = path.with_name(name)
    if not data.is_file():
        raise InputError(f"{path}: its data file {name} is missing. Fetch the scan again.")
    expected = _expected_bytes(header)
    received = data.stat().st_size
    if expected is not None and received < expected:
        raise InputError(
            f"{data} is truncated: {received} bytes of {expected} are there. Fetch the scan again."
        )
    return header


def _check_unpacked(path: Path, header: dict[str, str], values: NDArray[Any]) -> None:
    """Refuses compressed data that did not unpack whole.

    ITK then hands out whatever the memory held. Compressed data (zlib) end in the checksum of what
    they unpack to; comparing it takes 30 ms for a LUNA16 scan.
    """
    if not _is_compressed(header) or header.get("BinaryDataByteOrderMSB", "False")[:1] in _TRUE:
        return  # ITK has swapped the bytes that the checksum is of
    data = path.with_name(header["ElementDataFile"])
    size = _expected_bytes(header) or data.stat().st_size
    with data.open("rb") as file:
        file.seek(max(size - 4, 0))
        stored = int.from_bytes(file.read(4), "big")
    if zlib.adler32(values.data) != stored:
        raise InputError(f"{data} is damaged: it does not unpack to what it should. Fetch the scan again.")


def _is_compressed(header: dict[str, str]) -> bool:
    return header.get("CompressedData", "False")[:1] in _TRUE


def _read_header(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(65_536).splitlines()
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _expected_bytes(header: dict[str, str]) -> int | None:
    """Bytes the data file must have at least; None where the header does not say."""
    try:
        if _is_compressed(header):
            return int(header["CompressedDataSize"])
        voxels = math.prod(int(n) for n in header["DimSize"].split())
        channels = int(header.get("ElementNumberOfChannels", "1"))
        return voxels * channels * _BYTES_OF_ELEMENT[header["ElementType"]]
    except (KeyError, ValueError):
        return None
