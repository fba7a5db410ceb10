"""The cube store: every candidate's cube in one memory-mapped array."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.cubes.cutting import CubeSpec
from luna_cls.errors import InputError
from luna_cls.files import read_csv
from luna_cls.scans.luna16 import CANDIDATE_COLUMNS

FORMAT = 2
WINDOW_HU = (-1000.0, 400.0)  # what a model sees, and all that uint8 keeps
FAILURE_COLUMNS = ("seriesuid", "row", "status", "reason")

OK, NO_SCAN, UNREADABLE, OUTSIDE = "ok", "no_scan", "unreadable", "outside"

CubeType = Literal["int16", "uint8"]

_WIDEST_MARGIN_VOX = 100
_LEVELS = 255
_HU_OF_LEVEL = np.rint(np.linspace(*WINDOW_HU, _LEVELS + 1)).astype(np.int16)


@dataclass(frozen=True)
class CubeFormat:
    """How cubes lie in a store.

    Args:
        spec: The cubes that a model reads.
        margin_vox: Voxels kept around each of them on every side, to shift, scale and turn it within.
        dtype: "int16" holds HU; "uint8" the window from -1000 to 400 HU in 256 levels, in half the room,
            each within 3 HU of what it was.

    Raises:
        InputError: If the margin is negative, or the type another.
    """

    spec: CubeSpec = field(default_factory=CubeSpec)
    margin_vox: int = 0
    dtype: CubeType = "int16"

    def __post_init__(self) -> None:
        if not 0 <= self.margin_vox <= _WIDEST_MARGIN_VOX:
            raise InputError(f"A margin is of 0 to {_WIDEST_MARGIN_VOX} voxels. Received: {self.margin_vox}.")
        if self.dtype not in get_args(CubeType):
            raise InputError(
                f"Cubes are stored as {' or '.join(get_args(CubeType))}. Received: {self.dtype}."
            )

    @property
    def with_margin(self) -> CubeSpec:
        """The cubes on disk."""
        return CubeSpec(self.spec.size_vox + 2 * self.margin_vox, self.spec.spacing_mm)

    @property
    def cube_bytes(self) -> int:
        """Bytes of one cube on disk."""
        return int(self.with_margin.size_vox**3 * np.dtype(self.dtype).itemsize)

    def pack(self, hu: NDArray[np.int16]) -> NDArray[Any]:
        """HU as they are stored."""
        if self.dtype == "int16":
            return hu
        low, high = WINDOW_HU
        return np.rint((np.clip(hu, low, high) - low) * np.float32(_LEVELS / (high - low))).astype(np.uint8)

    def unpack(self, values: NDArray[Any]) -> NDArray[np.int16]:
        """HU of what is stored."""
        return values if self.dtype == "int16" else _HU_OF_LEVEL.take(values)


@dataclass(frozen=True, eq=False)
class CubeStore:
    """A folder of cubes: `store.json`, `candidates.csv`, `scans.csv`, `cubes.npy`, `failures.csv`.

    Args:
        path: The folder.
        format: How the cubes are stored.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class, fold, status`; row i is cube i.
            A row whose status is not "ok" has no cube (all zeros).
        checksum: SHA-256 of all that decides what the cubes are: format, candidates, the scans' files.
    """

    path: Path
    format: CubeFormat
    candidates: pd.DataFrame
    checksum: str = ""

    @classmethod
    def open(cls, path: str | Path) -> CubeStore:
        """Opens a store that `prepare` made.

        Raises:
            InputError: If the folder is no store, or its files do not fit each other.
        """
        path = Path(path)
        if not (path / "store.json").is_file():
            raise InputError(f"{path} is no cube store. Give the folder that luna-cls prepare has made.")
        try:
            facts = json.loads((path / "store.json").read_text(encoding="utf-8"))
            made_by = facts["format"]
            if made_by == FORMAT:
                stored = CubeFormat(CubeSpec(**facts["spec"]), facts["margin_vox"], facts["dtype"])
                checksum = facts["checksum"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}/store.json is damaged: {error!r}. Prepare it again.") from error
        if made_by != FORMAT:
            raise InputError(
                f"{path} has store format {made_by}; this version reads {FORMAT}. Prepare it again."
            )
        candidates = read_csv(path / "candidates.csv", (*CANDIDATE_COLUMNS, "fold"), "candidates")
        if "status" not in candidates.columns:
            raise InputError(f"{path}/candidates.csv lacks the column status. Prepare it again.")
        store = cls(path, stored, candidates, checksum)
        shape = len(candidates), *stored.with_margin.shape_zyx
        if store.cubes.shape != shape or store.cubes.dtype != stored.dtype:
            raise InputError(
                f"{path}: cubes.npy has shape {store.cubes.shape} of {store.cubes.dtype}; store.json and the "
                f"{len(candidates)} rows of candidates.csv need {shape} of {stored.dtype}. Prepare it again."
            )
        return store

    @property
    def spec(self) -> CubeSpec:
        """The cubes that a model reads."""
        return self.format.spec

    def seen_as(self, size_vox: int) -> CubeStore:
        """The same store for a model that reads more of the margin, or less of the cubes.

        Args:
            size_vox: Edge of its cubes.

        Raises:
            InputError: If they cannot be cut from the middle of what is stored.
        """
        stored_vox = self.format.with_margin.size_vox
        margin_vox = (stored_vox - size_vox) // 2
        if margin_vox < 0 or stored_vox != size_vox + 2 * margin_vox:
            parity = "an odd" if stored_vox % 2 else "an even"
            wanted_vox = (size_vox - self.spec.size_vox) // 2
            can_be_prepared = (size_vox - stored_vox) % 2 == 0 and wanted_vox <= _WIDEST_MARGIN_VOX
            raise InputError(
                f"The model reads cubes of {size_vox} voxels (model.size_vox). Those in {self.path} have "
                f"{self.spec.size_vox} and a margin of {self.format.margin_vox} on every side: take {parity} "
                f"number up to {stored_vox}"
                + (f", or prepare them with --margin {wanted_vox}." if can_be_prepared else ".")
            )
        spec = CubeSpec(size_vox, self.spec.spacing_mm)
        return replace(self, format=CubeFormat(spec, margin_vox, self.format.dtype))

    def check_begun_with(self, checksum: str, what: Path) -> None:
        """Refuses to go on with what was begun with other cubes.

        Raises:
            InputError: If it was.
        """
        if checksum != self.checksum:
            raise InputError(
                f"{what} was begun with other cubes than {self.path} holds: their checksums begin with "
                f"{checksum[:8]} and {self.checksum[:8]}. Give the store it was begun with, or choose "
                "another path."
            )

    @cached_property
    def cubes(self) -> NDArray[Any]:
        """Memory-mapped array `(n, z, y, x)` of what is stored, margin included; `hu` reads it."""
        try:
            return np.load(self.path / "cubes.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}/cubes.npy is damaged: {error}. Prepare it again.") from error

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every row, int64 `(n,)`: 1 nodule, 0 not."""
        return self.candidates["class"].to_numpy(np.int64)

    @property
    def series_uids(self) -> list[str]:
        """All scans that the candidates were of, those without a usable cube included."""
        uids: list[str] = read_csv(self.path / "scans.csv", ("seriesuid",), "scans")["seriesuid"].tolist()
        return uids

    @property
    def failures(self) -> pd.DataFrame:
        """What has no cube and why: `seriesuid, row, status, reason`; without row, the whole scan."""
        return pd.read_csv(self.path / "failures.csv", dtype={"seriesuid": str, "row": "Int64"})
