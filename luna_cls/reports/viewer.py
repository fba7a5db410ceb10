"""Points in scans as cards, each with a cube to look through."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
from luna_cls.scans.volume import CTVolume, find_scans, read_volume

CUT = CubeSpec(size_vox=41, spacing_mm=1.0)  # a little more than a model sees: what lies around
GAP_PX = 2
# Orange and blue are told apart by those who do not see red or green, and neither is a grey.
RAISED, LOWERED = (255, 152, 0), (64, 156, 255)
NEUTRAL, STRONGEST, FAINT, MOST_OPAQUE = 128, 127, 0.1, 0.75
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
        volumes: Scans that have been read.

    Raises:
        InputError: If a path holds no scan.
    """

    def __init__(
        self,
        store: CubeStore | None = None,
        scans: Iterable[Path] = (),
        volumes: Iterable[CTVolume] = (),
    ) -> None:
        self._store = store
        self._paths = _paths_of(scans)
        self._volumes = {volume.series_uid: volume for volume in volumes}
        self.is_there = store is not None or bool(self._paths or self._volumes)

    def around(self, points: pd.DataFrame) -> list[Cube]:
        """The cube around every point of a table `seriesuid, coordX, coordY, coordZ`, in its order."""
        cubes = self._of_store(points)
        left = [row for row, cube in enumerate(cubes) if cube.hu is None]
        for uid, of_scan in points.iloc[left].assign(row=left).groupby("seriesuid", sort=False):
            if str(uid) not in self._volumes and str(uid) not in self._paths:
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
            volume = self._volumes.get(uid) or read_volume(self._paths[uid], uid)
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
        made.append(card(f"{rank}. {heading(row)}", everything, cube))
    return made


def card(
    heading: str,
    facts: Sequence[tuple[str, str]],
    cube: Cube,
    explanation: NDArray[np.floating[Any]] | None = None,
) -> Card:
    """A card for one point.

    Args:
        heading: A few words, first of all its rank.
        facts: Pairs of a name and a value.
        cube: What lies around it.
        explanation: What each voxel of the cube added to the logit, of its shape; None if not known.
    """
    if cube.hu is None:
        return Card(heading, facts, missing=cube.missing)
    planes = in_window(cube.hu)
    made = Card(
        heading,
        facts,
        still=_png(still(planes)),
        sprite=_png(sprite(planes)),
        size_vox=len(planes),
        spacing_mm=cube.spacing_mm,
    )
    if explanation is None:
        return made
    strength = in_strength(explanation)
    overlay_still = _png(coloured(still(planes), still(strength, NEUTRAL)))
    return replace(made, overlay_still=overlay_still, overlay_sprite=_png(sprite(strength)))


def place_of(row: Mapping[str, Any]) -> str:
    """Where a point is, as x, y and z in mm with one digit."""
    return ", ".join(number(row[name], 1) for name in COORDINATES)


def in_window(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    """HU as grey values: `WINDOW_HU` becomes 0 to 255."""
    low, high = WINDOW_HU
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def in_strength(explanation: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """What voxels added to the logit, as grey values for `coloured`.

    `NEUTRAL` is nothing; `STRONGEST` steps above it is the strongest of all, or all but one in a thousand;
    below it is what lowered the logit. What is weaker than a tenth of the strongest is nothing, too.
    """
    strongest = float(np.quantile(np.abs(explanation), 0.999)) or 1.0
    share = np.clip(explanation / strongest, -1, 1)
    share = np.where(np.abs(share) < FAINT, 0, share)
    return (NEUTRAL + np.rint(STRONGEST * share)).astype(np.uint8)


def coloured(picture: NDArray[np.uint8], strength: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey picture `(h, w)` under colours: `RAISED` and `LOWERED`, the more opaque the stronger.

    Args:
        picture: Grey values `(h, w)`.
        strength: Of the same shape, as `in_strength` gives it.

    Returns:
        RGB `(h, w, 3)`.
    """
    steps = strength.astype(float)[..., None] - NEUTRAL
    opaque = np.abs(steps) * (MOST_OPAQUE / STRONGEST)
    colour = np.where(steps > 0, np.array(RAISED, float), np.array(LOWERED, float))
    return np.rint(picture[..., None] * (1 - opaque) + colour * opaque).astype(np.uint8)


def still(cube: NDArray[np.uint8], between: int = 0) -> NDArray[np.uint8]:
    """Its `middle_planes` side by side.

    Args:
        cube: Grey values `(n, n, n)`, axes z, y, x, LPS.
        between: The grey value of what is between them.

    Returns:
        Grey values `(n, 3 n + 2 GAP_PX)`.
    """
    gap = np.full((len(cube), GAP_PX), between, np.uint8)
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
