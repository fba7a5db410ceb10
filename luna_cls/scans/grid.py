"""Where a scan's voxels are in the world. The only place that reverses axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna_cls.errors import InputError

Floats = NDArray[np.float64]

ORTHONORMAL_TOLERANCE = 1e-3  # DICOM stores direction cosines with as few as four digits


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's voxel lattice in the world.

    World points are xyz in mm, LPS (x to the patient's left, y to the back, z to the head).
    Voxel coordinates are zyx, as arrays are indexed; an integer coordinate is a voxel's centre.

    Args:
        shape_zyx: Number of voxels along each array axis.
        spacing_xyz_mm: Distance between voxel centres along the x, y and z index axes.
        origin_xyz_mm: World point of the centre of voxel (0, 0, 0).
        direction: Orthonormal `(3, 3)` matrix; its columns are the world directions of one step
            along the x, y and z index axes.

    Raises:
        InputError: If a shape or spacing is not positive, a number is not finite, or the
            direction is not orthonormal.
    """

    shape_zyx: tuple[int, int, int]
    spacing_xyz_mm: Floats
    origin_xyz_mm: Floats
    direction: Floats

    def __init__(
        self,
        shape_zyx: ArrayLike,
        spacing_xyz_mm: ArrayLike,
        origin_xyz_mm: ArrayLike,
        direction: ArrayLike = ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ) -> None:
        shape = np.asarray(shape_zyx)
        spacing = np.array(spacing_xyz_mm, float)
        origin = np.array(origin_xyz_mm, float)
        matrix = np.array(direction, float)
        if shape.shape != (3,) or (shape < 1).any():
            raise InputError(f"A scan has three positive axes. Received: shape (z, y, x) {shape.tolist()}.")
        if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise InputError(f"Voxel spacing must be positive. Received: {spacing.tolist()} mm (x, y, z).")
        if origin.shape != (3,) or not np.isfinite(origin).all():
            raise InputError(f"The origin must be finite. Received: {origin.tolist()} mm (x, y, z).")
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise InputError(f"The direction must be a finite 3 x 3 matrix. Received: {matrix.tolist()}.")
        if np.abs(matrix.T @ matrix - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
            raise InputError(f"The direction must be orthonormal. Received: {matrix.tolist()}.")
        for array in (spacing, origin, matrix):
            array.setflags(write=False)
        object.__setattr__(self, "shape_zyx", tuple(int(n) for n in shape))
        object.__setattr__(self, "spacing_xyz_mm", spacing)
        object.__setattr__(self, "origin_xyz_mm", origin)
        object.__setattr__(self, "direction", matrix)

    def to_world_xyz_mm(self, points_zyx_vox: ArrayLike) -> Floats:
        """World points `(n, 3)`, xyz mm, of voxel coordinates `(n, 3)`, zyx."""
        points_xyz_vox = np.asarray(points_zyx_vox, float)[..., ::-1]
        return self.origin_xyz_mm + (points_xyz_vox * self.spacing_xyz_mm) @ self.direction.T

    def to_voxel_zyx(self, points_xyz_mm: ArrayLike) -> Floats:
        """Voxel coordinates `(n, 3)`, zyx, fractional, of world points `(n, 3)`, xyz mm."""
        offsets_xyz_mm = np.asarray(points_xyz_mm, float) - self.origin_xyz_mm
        inverse = np.linalg.inv(self.direction)
        points_xyz_vox = (offsets_xyz_mm @ inverse.T) / self.spacing_xyz_mm
        return points_xyz_vox[..., ::-1]

    def contains(self, points_xyz_mm: ArrayLike) -> NDArray[np.bool_]:
        """Which of the world points `(n, 3)` lie in the scan: within half a voxel of a centre."""
        points_zyx_vox = self.to_voxel_zyx(points_xyz_mm)
        upper = np.asarray(self.shape_zyx) - 0.5
        return np.asarray(((points_zyx_vox >= -0.5) & (points_zyx_vox <= upper)).all(axis=-1))

    def world_step_zyx_vox(self) -> Floats:
        """`(3, 3)` matrix: voxel steps (rows z, y, x) of one mm along world z, y and x (columns).

        With it, both sides of a product are in array order:
        `voxel_zyx = center_zyx_vox + world_step_zyx_vox() @ offset_zyx_mm`.
        """
        step_xyz = np.linalg.inv(self.direction) / self.spacing_xyz_mm[:, None]
        return step_xyz[::-1, ::-1]


def interpolated(
    values: NDArray[np.floating[Any]], places_zyx_vox: tuple[Floats, Floats, Floats]
) -> NDArray[np.float32]:
    """Values between voxels, linearly, at all combinations of places along z, y and x.

    Args:
        values: Array `(z, y, x)`, float32.
        places_zyx_vox: Coordinates wanted along each axis; beyond an end, the value is the end's.

    Returns:
        float32, as many voxels along each axis as there are places.
    """
    lower, upper, weight = [], [], []
    for places, size in zip(places_zyx_vox, values.shape, strict=True):
        inside = np.clip(places, 0, size - 1)
        below = np.floor(inside).astype(np.intp)
        lower.append(below)
        upper.append(np.minimum(below + 1, size - 1))
        weight.append((inside - below).astype(np.float32))
    result = np.empty([len(places) for places in places_zyx_vox], np.float32)
    # Slice by slice, so that all but what is read and written once stays in the processor's cache.
    for index, (first, last, part) in enumerate(zip(lower[0], upper[0], weight[0], strict=True)):
        plane = values[first] + part * (values[last] - values[first])
        left, right = plane.take(lower[2], axis=1), plane.take(upper[2], axis=1)
        right -= left
        right *= weight[2]
        right += left
        above = right.take(lower[1], axis=0)
        np.subtract(right.take(upper[1], axis=0), above, out=result[index])
        result[index] *= weight[1][:, None]
        result[index] += above
    return result
