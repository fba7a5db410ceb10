"""MetaImage: `.mhd` with its data beside it in `.raw` or `.zraw`, or `.mha` with its data inside."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers.itk import Voxels, check_size, check_unpacked, data_beside, read_grid, read_image

_BYTES_OF_ELEMENT = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2,
    "MET_INT": 4, "MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
_TRUE = ("T", "t", "1")  # as ITK reads it
_LONGEST_HEADER = 65_536


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
    volume = read_image(path, "MetaImageIO")
    _check_unpacked(header, data, volume.values)
    return volume


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


def _check_unpacked(header: dict[str, str], data: _Data, values: NDArray[Any]) -> None:
    """Refuses compressed data that did not unpack whole.

    They (zlib) end in the checksum of what they unpack to; comparing it takes 30 ms for a LUNA16 scan.
    """
    if not _is_compressed(header) or header.get("BinaryDataByteOrderMSB", "False")[:1] in _TRUE:
        return  # ITK has swapped the bytes that the checksum is of
    size = _number(header, "CompressedDataSize") or data.path.stat().st_size - data.start
    check_unpacked(data.path, zlib.adler32(values.data), data.start + max(size - 4, 0), "big")


def _is_compressed(header: dict[str, str]) -> bool:
    return header.get("CompressedData", "False")[:1] in _TRUE


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
        return voxels * channels * _BYTES_OF_ELEMENT[header["ElementType"]]
    except (KeyError, ValueError):
        return None
