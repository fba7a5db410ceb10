"""NRRD: `.nrrd` with its data inside, or `.nhdr` with its data beside it."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

from luna_cls.errors import InputError
from luna_cls.scans.readers.itk import Voxels, check_size, check_unpacked, data_beside, read_image

_BYTES_OF_TYPE = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4,
    "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4, "float": 4, "double": 8,
}  # fmt: skip
_SPACES = {  # ITK turns the last four into LPS
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
_LONGEST_HEADER = 65_536


def read(path: Path) -> Voxels:
    """Reads an NRRD volume.

    Raises:
        InputError: If the header makes no sense, does not say where left is, or names a file elsewhere,
            or data are missing or damaged.
    """
    header, length = _read_header(path)
    if header.get("space", "").lower() not in _SPACES:
        raise InputError(
            f"{path} does not say where left is: its 'space' must be one of left-posterior-superior, "
            f"right-anterior-superior, left-anterior-superior. Received: '{header.get('space', '')}'."
        )
    data = _data_path(path, header)
    start = length if data == path else 0
    is_compressed = header.get("encoding", "") in ("gzip", "gz")
    if is_compressed or header.get("encoding") == "raw":
        there = data.stat().st_size - start
        check_size(data, _unpacked_bytes(header), there, is_compressed=is_compressed)
    volume = read_image(path, "NrrdImageIO")
    if is_compressed and header.get("endian", "little") == "little":
        # gzip ends in the checksum of what it unpacks to, and its size.
        check_unpacked(data, zlib.crc32(volume.values.data), data.stat().st_size - 8, "little")
    return volume


def files(path: Path) -> list[Path]:
    """The files that an NRRD volume is: the header, and its data where they are apart.

    Raises:
        InputError: If the header names no file beside it.
    """
    return list(dict.fromkeys([path, _data_path(path, _read_header(path)[0])]))


def _data_path(path: Path, header: dict[str, str]) -> Path:
    """The file that holds the data, which must be the header's or lie beside it."""
    name = header.get("data file", header.get("datafile"))
    if name is None:
        return path
    if Path(name).name != name or name.startswith("LIST") or "%" in name:
        raise InputError(f"{path}: 'data file' must name one file beside the header. Received: '{name}'.")
    return data_beside(path, name)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, and its length."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    if not start.startswith(b"NRRD"):
        raise InputError(f"{path} is no NRRD file: it does not begin with NRRD. Fetch the scan again.")
    header, length = {}, 0
    for line in start.splitlines(keepends=True):
        length += len(line)
        text = line.decode(errors="replace").strip()
        if not text:
            break
        field, colon, value = text.partition(":")
        if colon and not text.startswith("#"):
            header[field.strip().lower()] = value.strip()
    return header, length


def _unpacked_bytes(header: dict[str, str]) -> int | None:
    """Bytes of the volume; None where the header does not say."""
    try:
        return math.prod(int(n) for n in header["sizes"].split()) * _BYTES_OF_TYPE[header["type"].lower()]
    except (KeyError, ValueError):
        return None
