"""MetaImage: `.mhd` with its data beside it in `.raw` or `.zraw`, or `.mha` with its data inside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers.itk import Voxels, check_size, data_beside, read_grid, read_image

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_TRUE = ("T", "t", "1")  # as ITK reads it
_LONGEST_HEADER = 65_536
_BYTES_AT_A_TIME = 131_072


class _Data(NamedTuple):
    """Where the data are: the file, and how many bytes of it come before them."""

    path: Path
    start: int


class Header(NamedTuple):
    """What a scan is, from its header alone.

    Args:
        grid: Where its voxels are.
        data_bytes: Size of its data on disk.
    """

    grid: Grid
    data_bytes: int


def inspect(path: Path) -> Header:
    """Looks at a MetaImage volume without reading its voxels.

    Raises:
        InputError: If the header makes no sense or names a file elsewhere, or data are missing or short.
    """
    header, data = _read_header(path)
    _check_data(header, data)
    return Header(read_grid(path, "MetaImageIO"), data.path.stat().st_size)


def files(path: Path) -> list[Path]:
    """The files that a MetaImage volume is: the header, and its data where they are apart.

    Raises:
        InputError: If the header names no file beside it.
    """
    return list(dict.fromkeys([path, _read_header(path)[1].path]))


def read(path: Path) -> Voxels:
    """Reads a MetaImage volume.

    Raises:
        InputError: If the header makes no sense or names a file elsewhere, or data are missing or damaged.
    """
    header, data = _read_header(path)
    _check_data(header, data)
    if not _is_compressed(header):
        return read_image(path, "MetaImageIO")
    grid = read_grid(path, "MetaImageIO")
    if header.get("ElementType") not in _TYPES or header.get("HeaderSize", "0") != "0":
        raise InputError(f"{path}: packed data need a known ElementType and no HeaderSize.")
    dtype = np.dtype(_TYPES[header["ElementType"]]).newbyteorder(">" if _is_big_endian(header) else "<")
    size = math.prod(grid.shape_zyx) * dtype.itemsize
    if size != _unpacked_bytes(header):
        raise InputError(f"{path}: DimSize must be three positive numbers. Received: {header['DimSize']}.")
    values = _unpacked(header, data, size).view(dtype).reshape(grid.shape_zyx)
    return Voxels(values.astype(dtype.newbyteorder("="), copy=False), grid)


def _unpacked(header: dict[str, str], data: _Data, size: int) -> NDArray[np.uint8]:
    """The data, unpacked (zlib), of which there must be `size` bytes; found whole by their own checksum.

    ITK takes half as long again, and hands out whatever the memory held where data do not unpack.
    """
    values, filled = np.empty(size, np.uint8), 0
    there = data.path.stat().st_size - data.start
    left = min(_number(header, "CompressedDataSize") or there, there)
    if left < 0:
        raise InputError(f"{data.path}: CompressedDataSize cannot be negative. Received: {left}.")
    stream = isal_zlib.decompressobj()
    try:
        with data.path.open("rb", buffering=0) as file:
            file.seek(data.start)
            while not stream.eof and (packed := file.read(min(left, _BYTES_AT_A_TIME))):
                left -= len(packed)
                some = stream.decompress(packed)
                if filled + len(some) > size:
                    break
                values[filled : filled + len(some)] = np.frombuffer(some, np.uint8)
                filled += len(some)
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub calls the class an instance
        raise InputError(f"{data.path} is damaged: it does not unpack. Fetch the scan again.") from error
    if filled < size or not stream.eof:
        raise InputError(f"{data.path} is damaged: it unpacks to another size. Fetch the scan again.")
    return values


def _read_header(path: Path) -> tuple[dict[str, str], _Data]:
    """The header's pairs, and where its data are, which must be in it or beside it."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    header, length = {}, 0
    for line in start.splitlines(keepends=True):
        length += len(line)
        key, equals, value = line.decode(errors="replace").partition("=")
        if equals:
            header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    name = header.get("ElementDataFile", "")
    if name == "LOCAL" and path.suffix.lower() == ".mha":
        return header, _Data(path, length)
    if not name or name == "LOCAL" or name.startswith("LIST") or "%" in name:
        raise InputError(f"{path}: ElementDataFile must name one data file. Received: '{name}'.")
    if Path(name).name != name:
        raise InputError(f"{path}: ElementDataFile must lie beside the header. Received: '{name}'.")
    return header, _Data(data_beside(path, name), 0)


def _check_data(header: dict[str, str], data: _Data) -> None:
    """Refuses data that are too short, before ITK tries."""
    there = data.path.stat().st_size - data.start
    is_compressed = _is_compressed(header)
    if is_compressed:
        check_size(data.path, _number(header, "CompressedDataSize"), there, is_compressed=False)
    check_size(data.path, _unpacked_bytes(header), there, is_compressed=is_compressed)


def _is_compressed(header: dict[str, str]) -> bool:
    return header.get("CompressedData", "False")[:1] in _TRUE


def _is_big_endian(header: dict[str, str]) -> bool:
    order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    return order[:1] in _TRUE


def _number(header: dict[str, str], key: str) -> int | None:
    try:
        return int(header[key])
    except (KeyError, ValueError):
        return None


def _unpacked_bytes(header: dict[str, str]) -> int | None:
    """Bytes of the volume; None where the header does not say."""
    try:
        voxels = math.prod(int(n) for n in header["DimSize"].split())
        channels = int(header.get("ElementNumberOfChannels", "1"))
        return voxels * channels * np.dtype(_TYPES[header["ElementType"]]).itemsize
    except (KeyError, ValueError):
        return None
