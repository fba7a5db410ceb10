"""Reading through SimpleITK, and what all readers give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid

MOST_DEFLATED = 1032  # zlib makes no bytes from fewer than their 1032nd part
SLACK_BYTES = 4096


class Voxels(NamedTuple):
    """A scan as its file has it.

    Args:
        values: Array `(z, y, x)` of any number type.
        grid: Where they are.
    """

    values: NDArray[Any]
    grid: Grid


def read_image(path: Path, image_io: str) -> Voxels:
    """Reads one volume with the named reader of ITK.

    Raises:
        InputError: If ITK cannot, or it is not 3-D, or has several values a voxel.
    """
    reader = _reader(path, image_io)
    grid = _grid(path, reader)
    try:
        values = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise _refused(path, image_io, error) from error
    return Voxels(values, grid)


def read_grid(path: Path, image_io: str) -> Grid:
    """The grid of a volume, from its header alone.

    Raises:
        InputError: As of `read_image`, as far as the header tells.
    """
    return _grid(path, _reader(path, image_io))


def _reader(path: Path, image_io: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(file_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _refused(path, image_io, error) from error
    return reader


def file_name(path: Path) -> str:
    """A path as ITK takes it, which ends the process at one that is not UTF-8.

    Raises:
        InputError: If it is such a one.
    """
    try:
        path.as_posix().encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a} is no name in UTF-8. Rename the file or its folder.") from error
    return str(path)


def _refused(path: Path, image_io: str, error: RuntimeError) -> InputError:
    reason = str(error).strip().splitlines()[-1].removeprefix("Reason: ")
    return InputError(
        f"{path} cannot be read as {image_io.removesuffix('ImageIO')}: {reason}. Fetch the scan again."
    )


def _grid(path: Path, reader: sitk.ImageFileReader) -> Grid:
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path} must hold one 3-D volume of single values. Received: {reader.GetDimension()} axes, "
            f"{reader.GetNumberOfComponents()} values a voxel."
        )
    direction = np.reshape(reader.GetDirection(), (3, 3))
    return grid_of(path, reader.GetSize()[::-1], reader.GetSpacing(), reader.GetOrigin(), direction)


def grid_of(path: Path, *arguments: ArrayLike) -> Grid:
    """A `Grid` of its arguments, whose refusal names the file."""
    try:
        return Grid(*arguments)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def data_beside(path: Path, name: str) -> Path:
    """The data file that a header names, in the header's folder.

    Raises:
        InputError: If it is not there.
    """
    data = path.with_name(name)
    if not data.is_file():
        raise InputError(f"{path}: its data file {name} is missing. Fetch the scan again.")
    return data


def check_unpacked(path: Path, checksum: int, at: int, byteorder: Literal["little", "big"]) -> None:
    """Refuses compressed data that did not unpack whole: ITK then hands out whatever the memory held.

    Args:
        path: The file that holds the data.
        checksum: Of what they unpacked to.
        at: Where in the file the four bytes of the right one are.
        byteorder: Theirs.

    Raises:
        InputError: If the two differ.
    """
    with path.open("rb") as file:
        file.seek(at)
        stored = int.from_bytes(file.read(4), byteorder)
    if checksum != stored:
        raise InputError(f"{path} is damaged: it does not unpack to what it should. Fetch the scan again.")


def check_size(path: Path, needed: int | None, there: int, *, is_compressed: bool) -> None:
    """Refuses data that are too few for the volume that a header announces, before memory is taken.

    Args:
        path: The file that holds the data.
        needed: Bytes of the volume, unpacked; None where the header does not say.
        there: Bytes of the data in the file.
        is_compressed: Whether they are packed with zlib.

    Raises:
        InputError: If they cannot be all.
    """
    most = there * MOST_DEFLATED + SLACK_BYTES if is_compressed else there
    if needed is not None and most < needed:
        unpacked = " unpacked" if is_compressed else ""
        raise InputError(
            f"{path} is truncated: {there} bytes of {needed}{unpacked} are there. Fetch the scan again."
        )
