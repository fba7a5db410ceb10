"""Where phantom anatomy is computed: a coarse lattice for organs, a canvas for what is small.

All of the phantom lives in the body frame: xyz in mm, LPS, the origin between the lungs. Only
when a scan is finished is its grid moved to where the scanner's table stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from luna_cls.scans.grid import Grid, interpolated

Field = NDArray[np.floating[Any]]  # float32, but for a few values on their way
Floats = NDArray[np.float64]
Box = tuple[slice, slice, slice]

STEP_MM = 2.5  # chosen: distances vary linearly over it, and a chest has only 1.5 million points
COARSE_FROM_MM = 16.0  # chosen: noise of such a grain is as good on every second point
MARGIN_MM = 12.0  # chosen: structures just outside the scan still shape what is in it


@dataclass(frozen=True, eq=False)
class Lattice:
    """Coarse points on which distances to large structures are computed.

    A signed distance is smooth where the structure's edge is not, so it is computed here and
    interpolated to the scan's own grid, where the edge is then drawn sharp.

    Args:
        axes_zyx_mm: Ascending body coordinates along z, y and x.
    """

    axes_zyx_mm: tuple[Field, Field, Field]

    @classmethod
    def covering(cls, grid: Grid) -> Lattice:
        """The lattice over a grid and a margin around it."""
        corners_zyx_vox = np.array([[0, 0, 0], np.subtract(grid.shape_zyx, 1)])
        corners_zyx_mm = grid.to_world_xyz_mm(corners_zyx_vox)[:, ::-1]
        low, high = corners_zyx_mm.min(axis=0) - MARGIN_MM, corners_zyx_mm.max(axis=0) + MARGIN_MM
        z, y, x = (
            np.arange(a, b + STEP_MM, STEP_MM, dtype=np.float32) for a, b in zip(low, high, strict=True)
        )
        return cls((z, y, x))

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Number of points along each axis."""
        z, y, x = self.axes_zyx_mm
        return z.size, y.size, x.size

    def mesh_zyx_mm(self) -> tuple[Field, Field, Field]:
        """Body coordinates, z, y and x, shaped to broadcast over the lattice."""
        z, y, x = self.axes_zyx_mm
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def points_xyz_mm(self, where: NDArray[np.bool_]) -> Floats:
        """Body points `(n, 3)`, xyz mm, of the lattice points selected."""
        axes = zip(self.axes_zyx_mm, np.nonzero(where), strict=True)
        return np.stack([axis[index] for axis, index in axes][::-1], axis=1).astype(float)

    def noise(self, rng: np.random.Generator, size_mm: float) -> Field:
        """A smooth random field of mean 0 and standard deviation 1; `size_mm` is its grain."""
        stride = 2 if size_mm >= COARSE_FROM_MM else 1
        counts = [(count + stride - 2) // stride + 1 for count in self.shape_zyx]
        field = rng.standard_normal(counts, dtype=np.float32)
        width = max(2, round(size_mm / STEP_MM / stride))
        for _ in range(2):
            field = ndimage.uniform_filter(field, width, mode="wrap")
        if stride > 1:
            z, y, x = (np.arange(count) / stride for count in self.shape_zyx)
            field = interpolated(field, (z, y, x))
        return (field - field.mean()) / field.std()

    def at(self, field: Field, points_xyz_mm: ArrayLike) -> Floats:
        """The field's values `(n,)` at body points `(n, 3)`."""
        starts_xyz_mm = np.array([axis[0] for axis in self.axes_zyx_mm])[::-1]
        places_xyz = (np.asarray(points_xyz_mm, float) - starts_xyz_mm) / STEP_MM
        return ndimage.map_coordinates(field, places_xyz[:, ::-1].T, order=1, mode="nearest")

    def onto(self, field: Field, canvas: Canvas) -> Field:
        """The field interpolated to every voxel of a canvas."""
        z, y, x = (
            (wanted - axis[0]) / STEP_MM
            for axis, wanted in zip(self.axes_zyx_mm, canvas.axes_zyx_mm, strict=True)
        )
        return interpolated(field, (z, y, x))

    def nearest_onto(self, field: NDArray[np.bool_], canvas: Canvas) -> NDArray[np.bool_]:
        """The nearest lattice value for every voxel of a canvas."""
        for number, (axis, wanted) in enumerate(zip(self.axes_zyx_mm, canvas.axes_zyx_mm, strict=True)):
            place = np.clip(np.rint((wanted - axis[0]) / STEP_MM).astype(int), 0, axis.size - 1)
            field = np.take(field, place, axis=number)
        return field


@dataclass(frozen=True, eq=False)
class Canvas:
    """The scan's own voxels, in the body frame.

    Args:
        grid: The scan's grid, its axes along the body's (either way round).
    """

    grid: Grid

    @property
    def axes_zyx_mm(self) -> tuple[Floats, Floats, Floats]:
        """Body coordinates of the voxel centres along z, y and x; descending where an axis is flipped."""
        lines = []
        for axis, count in enumerate(self.grid.shape_zyx):
            places_zyx_vox = np.zeros((count, 3))
            places_zyx_vox[:, axis] = np.arange(count)
            lines.append(self.grid.to_world_xyz_mm(places_zyx_vox)[:, 2 - axis])
        return lines[0], lines[1], lines[2]

    def boxes(self, low_xyz_mm: ArrayLike, high_xyz_mm: ArrayLike) -> list[Box]:
        """The voxels within each of the `(n, 3)` bounds; an empty slice where there are none."""
        ends = np.stack([self.grid.to_voxel_zyx(low_xyz_mm), self.grid.to_voxel_zyx(high_xyz_mm)])
        shape = np.asarray(self.grid.shape_zyx)
        starts = np.clip(np.floor(ends.min(axis=0)), 0, shape).astype(int)
        stops = np.clip(np.ceil(ends.max(axis=0)) + 1, 0, shape).astype(int)
        return [
            (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))
            for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
