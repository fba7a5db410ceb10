"""Where the lungs are in a scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers import metaimage
from luna_cls.scans.volume import CTVolume

COARSE_MM = 2.0  # fine enough for a mask, and an eighth of the voxels or less
AIRY_HU = -400
SMALLEST_LUNG_ML = 100.0
CLOSED_MM = 10.0  # nodules at the pleura, and vessels, are bays less wide than twice this
LUNA16_LABELS = (3, 4)  # left and right; 5 is the trachea


@dataclass(frozen=True, eq=False)
class Lungs:
    """A mask of both lungs on a grid of its own.

    Args:
        inside: Array `(z, y, x)`.
        grid: Where its voxels are; `grid.shape_zyx == inside.shape`.
    """

    inside: NDArray[np.bool_]
    grid: Grid

    def contains(self, points_xyz_mm: ArrayLike) -> NDArray[np.bool_]:
        """Which of the world points `(n, 3)` lie in a lung: those whose nearest voxel does."""
        nearest = np.rint(self.grid.to_voxel_zyx(points_xyz_mm)).astype(int)
        is_in_grid = ((nearest >= 0) & (nearest < self.grid.shape_zyx)).all(axis=-1)
        found = np.zeros(len(nearest), bool)
        found[is_in_grid] = self.inside[tuple(nearest[is_in_grid].T)]
        return found


def find_lungs(volume: CTVolume) -> Lungs:
    """The lungs of a scan: what is airy, inside the body and large enough, its holes and bays filled.

    Vessels are holes; a nodule at the pleura is a bay, closed over where it is less than 20 mm wide or so.
    The trachea and main bronchi belong to it. Every axis is read at steps of 2 mm or one voxel.

    Raises:
        InputError: If nothing in the scan is a lung.
    """
    spacing_zyx_mm = volume.grid.spacing_xyz_mm[::-1]
    steps = np.maximum(np.rint(COARSE_MM / spacing_zyx_mm), 1).astype(int)
    coarse = volume.hu[:: steps[0], :: steps[1], :: steps[2]]
    spacing_zyx_mm = spacing_zyx_mm * steps
    parts, _ = ndimage.label(coarse < AIRY_HU)
    sizes_ml = np.bincount(parts.ravel()) * np.prod(spacing_zyx_mm) / 1000
    sizes_ml[0] = 0
    sizes_ml[_at_the_sides(parts)] = 0
    is_lung = (sizes_ml >= SMALLEST_LUNG_ML)[parts]
    if not is_lung.any():
        raise InputError(f"No lung was found in the scan {volume.series_uid}. Is it a chest CT, in HU?")
    grid = Grid(coarse.shape, spacing_zyx_mm[::-1], volume.grid.origin_xyz_mm, volume.grid.direction)
    return Lungs(_closed(is_lung, spacing_zyx_mm), grid)


def read_lungs(path: Path) -> Lungs:
    """A mask as LUNA16's `seg-lungs-LUNA16` has it: 3 and 4 are the lungs.

    Raises:
        InputError: If the file is no MetaImage, damaged, or marks no lung.
    """
    values, grid = metaimage.read(path)
    inside = np.isin(values, LUNA16_LABELS)
    if not inside.any():
        raise InputError(f"{path} marks no lung: none of its voxels is 3 or 4, as LUNA16's masks have it.")
    return Lungs(inside, grid)


def _at_the_sides(parts: NDArray[np.int32]) -> NDArray[np.int32]:
    """The parts that reach a side of the field of view: air around the body. Lungs may reach its ends."""
    sides = (parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1])
    return np.unique(np.concatenate([side.ravel() for side in sides]))


def _closed(mask: NDArray[np.bool_], spacing_zyx_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The mask with bays and holes filled: grown by a ball, then shrunk by it, in a box that has room."""
    margin = np.ceil(CLOSED_MM / spacing_zyx_mm).astype(int) + 1
    place = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = np.pad(mask[place], [(n, n) for n in margin])
    grown = ndimage.distance_transform_edt(~box, sampling=spacing_zyx_mm) <= CLOSED_MM
    shrunk = ndimage.distance_transform_edt(grown, sampling=spacing_zyx_mm) > CLOSED_MM
    inner = tuple(slice(n, -n) for n in margin)
    closed = mask.copy()
    closed[place] |= ndimage.binary_fill_holes(shrunk | box)[inner]
    return closed
