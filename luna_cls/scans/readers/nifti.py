"""NIfTI: `.nii` and `.nii.gz`. The only place that turns RAS into LPS, and back."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers.itk import Voxels, check_size, grid_of

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_MM_OF_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}
_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError)
_CHUNK_BYTES = 1 << 22


def read(path: Path, most_voxels: int | None = None) -> Voxels:
    """Reads a NIfTI volume, scaled as its header says.

    Args:
        path: The file.
        most_voxels: Refuse what has more; None to read any size.

    Raises:
        InputError: If it is no NIfTI, not 3-D, too large, does not say where it lies, or data are missing or
            damaged.
    """
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise InputError(f"{path} is no NIfTI file but {type(image).__name__}.")
        grid = _grid(path, image)
        if most_voxels is not None and math.prod(image.shape) > most_voxels:
            shape = " x ".join(map(str, image.shape))
            raise InputError(f"{path} is too large: {shape} voxels, {most_voxels:,} at most are expected.")
        dtype = image.get_data_dtype()
        if dtype.kind not in "iuf":
            raise InputError(f"{path} must hold single numbers. Received: {dtype}.")
        is_compressed = path.suffix.lower() == ".gz"
        needed = math.prod(image.shape) * dtype.itemsize
        check_size(path, needed, path.stat().st_size, is_compressed=is_compressed)
        if is_compressed:
            image = type(image).from_bytes(_unpacked(path, image.dataobj.offset + needed))
        values = _scaled(image.dataobj)
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as NIfTI: {reason}. Fetch the scan again.") from error
    return Voxels(np.ascontiguousarray(values.reshape(grid.shape_zyx[::-1]).T), grid)


def header_of(grid: Grid, dtype: DTypeLike, about: str) -> nibabel.Nifti1Header:
    """The header of a `.nii` file of one volume on a grid, in the scanner's coordinates, RAS.

    Args:
        grid: Where its voxels are.
        dtype: Theirs.
        about: What it holds, in at most 79 ASCII characters.
    """
    affine_ras_mm = np.eye(4)
    affine_ras_mm[:3, :3] = RAS_TO_LPS[:, None] * grid.direction * grid.spacing_xyz_mm
    affine_ras_mm[:3, 3] = RAS_TO_LPS * grid.origin_xyz_mm
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape_zyx[::-1])
    header.set_data_offset(header.single_vox_offset)
    header.set_qform(affine_ras_mm, code="scanner")
    header.set_sform(affine_ras_mm, code="scanner")
    header.set_xyzt_units("mm")
    header["descrip"] = about
    return header


def _grid(path: Path, image: nibabel.Nifti1Pair) -> Grid:
    shape = image.shape
    if len(shape) < 3 or math.prod(shape[3:]) != 1:
        raise InputError(f"{path} must hold one 3-D volume. Received: {' x '.join(map(str, shape))} voxels.")
    if not image.get_sform(coded=True)[1] and not image.get_qform(coded=True)[1]:
        raise InputError(f"{path} does not say where it lies: neither its sform nor its qform is set.")
    unit = image.header.get_xyzt_units()[0]
    affine_lps_mm = RAS_TO_LPS[:, None] * image.affine[:3] * _MM_OF_UNIT[unit]
    steps_xyz_mm = affine_lps_mm[:, :3]
    spacing_xyz_mm = np.linalg.norm(steps_xyz_mm, axis=0)
    direction = steps_xyz_mm / np.where(spacing_xyz_mm > 0, spacing_xyz_mm, 1)
    return grid_of(path, shape[2::-1], spacing_xyz_mm, affine_lps_mm[:, 3], direction)


def _unpacked(path: Path, length: int) -> bytes:
    """The first bytes of what a gzip file unpacks to, whose checksum is right to its end."""
    with gzip.open(path) as file:
        first = file.read(length)
        while file.read(_CHUNK_BYTES):
            pass
    return first


def _scaled(data: Any) -> NDArray[Any]:
    if (data.slope, data.inter) == (1, 0):
        return data.get_unscaled()
    return np.asarray(data, dtype=np.float32)
