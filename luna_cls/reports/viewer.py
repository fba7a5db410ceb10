"""Points in scans as cards, each with a cube to look through."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.cubes.montage import middle_planes
from luna_cls.cubes.store import OK, CubeStore
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.reports.blocks import Card, number
from luna_cls.reports.contact_sheet import WINDOW_HU
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import find_scans, read_volume

CUT = CubeSpec(size_vox=41, spacing_mm=1.0)  # a little more than a model sees: what lies around
GAP_PX = 2
NEAREST_MICRON = 3  # digits of mm by which a point is known again


class Cube(NamedTuple):
    """HU `(z, y, x)` around a point, or why there are none."""

    hu: NDArray[np.int16] | None
    spacing_mm: float = 1.0
    missing: str = ""


class Cubes:
    """Where cubes come from: a store first, then scans.

    Args:
        store: A store that `prepare` made.
        scans: Scan files, and folders of them.

    Raises:
        InputError: If a path holds no scan.
    """

    def __init__(self, store: CubeStore | None = None, scans: Iterable[Path] = ()) -> None:
        self._store = store
        self._paths = _paths_of(scans)
        self.is_there = store is not None or bool(self._paths)

    def around(self, points: pd.DataFrame) -> list[Cube]:
        """The cube around every point of a table `seriesuid, coordX, coordY, coordZ`, in its order."""
        cubes = self._of_store(points)
        left = [row for row, cube in enumerate(cubes) if cube.hu is None]
        for uid, of_scan in points.iloc[left].assign(row=left).groupby("seriesuid", sort=False):
            if str(uid) not in self._paths:
                continue
            for row, cube in zip(of_scan["row"], self._of_scan(str(uid), of_scan), strict=True):
                cubes[row] = cube
        return cubes

    def _of_store(self, points: pd.DataFrame) -> list[Cube]:
        if self._store is None:
            return [Cube(None, missing="its scan is not among those given.")] * len(points)
        stored = self._store.candidates
        near = stored[stored["seriesuid"].isin(set(points["seriesuid"])) & (stored["status"] == OK)]
        row_of = dict(zip(_keys(near), near.index, strict=True))
        return [self._stored(row_of.get(key)) for key in _keys(points)]

    def _stored(self, row: int | None) -> Cube:
        if self._store is None or row is None:
            return Cube(None, missing="it is not in the store.")
        cube = self._store.format.unpack(np.asarray(self._store.cubes[row]))
        rim = max(0, (len(cube) - CUT.size_vox + 1) // 2)
        return Cube(cube[(slice(rim, len(cube) - rim),) * 3], self._store.spec.spacing_mm)

    def _of_scan(self, uid: str, points: pd.DataFrame) -> list[Cube]:
        try:
            volume = read_volume(self._paths[uid], uid)
            places = points[COORDINATES].to_numpy(float)
            inside = volume.grid.contains(places)
            cut = iter(cut_cubes(volume, places[inside], CUT))
        except (InputError, OSError, MemoryError) as error:
            reason = " ".join(str(error).split()) or "there is too little memory."
            return [Cube(None, missing=f"its scan could not be read: {reason}")] * len(points)
        outside = Cube(None, missing="the point lies outside the scan.")
        return [Cube(next(cut), CUT.spacing_mm) if is_inside else outside for is_inside in inside]


def cards(
    points: pd.DataFrame,
    cubes: Cubes,
    heading: Callable[[Mapping[str, Any]], str],
    facts: Callable[[Mapping[str, Any]], list[tuple[str, str]]],
) -> list[Card]:
    """A card for every point.

    Args:
        points: Table `seriesuid, coordX, coordY, coordZ, ...`, the most interesting first.
        cubes: Where their cubes come from.
        heading: A few words on a row.
        facts: Names and values of a row, before where it is.
    """
    made = []
    rows = points.to_dict("records")
    for rank, (row, cube) in enumerate(zip(rows, cubes.around(points), strict=True), 1):
        everything = [*facts(row), ("Place x, y, z", f"{place_of(row)} mm"), ("Scan", row["seriesuid"])]
        about = f"{rank}. {heading(row)}"
        if cube.hu is None:
            made.append(Card(about, everything, missing=cube.missing))
            continue
        planes = in_window(cube.hu)
        made.append(
            Card(
                about,
                everything,
                still=_png(still(planes)),
                sprite=_png(sprite(planes)),
                size_vox=len(planes),
                spacing_mm=cube.spacing_mm,
            )
        )
    return made


def place_of(row: Mapping[str, Any]) -> str:
    """Where a point is, as x, y and z in mm with one digit."""
    return ", ".join(number(row[name], 1) for name in COORDINATES)


def in_window(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    """HU as grey values: `WINDOW_HU` becomes 0 to 255."""
    low, high = WINDOW_HU
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def still(cube: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Its `middle_planes` side by side, black between them.

    Args:
        cube: Grey values `(n, n, n)`, axes z, y, x, LPS.

    Returns:
        Grey values `(n, 3 n + 2 GAP_PX)`.
    """
    gap = np.zeros((len(cube), GAP_PX), np.uint8)
    axial, coronal, sagittal = middle_planes(cube)
    return np.concatenate([axial, gap, coronal, gap, sagittal], axis=1)


def sprite(cube: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All axial planes of a cube in rows of as many as make it about square, the lowest first.

    Args:
        cube: Grey values `(n, n, n)`, axes z, y, x.
    """
    size = len(cube)
    across = math.ceil(math.sqrt(size))
    down = math.ceil(size / across)
    tiles = np.zeros((down * across, size, size), np.uint8)
    tiles[:size] = cube
    return tiles.reshape(down, across, size, size).transpose(0, 2, 1, 3).reshape(down * size, across * size)


def _png(picture: NDArray[np.uint8]) -> str:
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")


def _keys(points: pd.DataFrame) -> list[tuple[Any, ...]]:
    rounded = points[COORDINATES].astype(float).round(NEAREST_MICRON) + 0.0  # -0.0 is 0.0
    return list(zip(points["seriesuid"], *(rounded[name] for name in COORDINATES), strict=True))


def _paths_of(scans: Iterable[Path]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in scans:
        if path.is_dir():
            paths |= LunaTree.open(path).scan_paths
        else:
            paths |= {source.series_uid: source.path for source in find_scans([path])}
    return paths
