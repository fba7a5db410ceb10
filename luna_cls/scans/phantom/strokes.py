"""How much of a voxel a small thing fills: tapering tubes, and any shape given by its distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from luna_cls.scans.phantom.lattice import Box, Canvas, Field, Floats

SUBSLICE_MM = 0.9  # chosen: a slice thicker than this is averaged from several planes

Distance = Callable[[Field, Field, Field], Field]  # (z, y, x) body mm, broadcastable -> mm, below 0 inside


class Brush:
    """Draws on a canvas what its slices are too thick to sample at one plane.

    Args:
        canvas: The scan's voxels.
    """

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        z, y, x = canvas.axes_zyx_mm
        slice_mm = float(canvas.grid.spacing_xyz_mm[2])
        planes = max(1, round(slice_mm / SUBSLICE_MM))
        shifts = ((np.arange(planes) + 0.5) / planes - 0.5) * slice_mm
        self._z = (z[:, None] + shifts).astype(np.float32)[:, :, None, None]
        self._y, self._x = y.astype(np.float32)[:, None], x.astype(np.float32)
        self._edge_mm = float(canvas.grid.spacing_xyz_mm[0])

    def fill(self, box: Box, distance: Distance, edge_mm: float = 0.0) -> Field:
        """The part of each voxel of `box` that lies inside a shape, 0 to 1.

        Args:
            box: Voxels to fill.
            distance: The shape.
            edge_mm: Width over which the shape's own edge fades, beside the voxel's.
        """
        z, y, x = self._z[box[0]], self._y[box[1]], self._x[box[2]]
        part = 0.5 - distance(z, y, x) / max(edge_mm, self._edge_mm)
        part = np.minimum(np.maximum(part, 0), 1)  # np.clip takes longer for so few voxels
        return part[:, 0] if part.shape[1] == 1 else part.mean(axis=1)

    def tubes(
        self, starts_xyz_mm: Floats, ends_xyz_mm: Floats, start_radii_mm: Floats, end_radii_mm: Floats
    ) -> Iterator[tuple[Box, Field]]:
        """For every tapering tube `(n, 3)`, `(n,)`: its voxels, and the part of each that it fills."""
        reach = np.maximum(start_radii_mm, end_radii_mm)[:, None] + self._edge_mm
        boxes = self.canvas.boxes(
            np.minimum(starts_xyz_mm, ends_xyz_mm) - reach, np.maximum(starts_xyz_mm, ends_xyz_mm) + reach
        )
        steps_xyz_mm = (ends_xyz_mm - starts_xyz_mm).astype(np.float32)
        tapers_mm = (end_radii_mm - start_radii_mm).astype(np.float32)
        starts, radii_mm = starts_xyz_mm.astype(np.float32), start_radii_mm.astype(np.float32)
        for box, start, step, radius, taper in zip(
            boxes, starts, steps_xyz_mm, radii_mm, tapers_mm, strict=True
        ):
            if all(part.start < part.stop for part in box):
                yield box, self.fill(box, _tube(start, step, radius, taper))


def _tube(start_xyz_mm: Field, step_xyz_mm: Field, radius: float, taper: float) -> Distance:
    """A tube from a point to that point and a step; all float32."""
    (x0, y0, z0), (dx, dy, dz) = start_xyz_mm, step_xyz_mm
    length2 = max(dx * dx + dy * dy + dz * dz, np.float32(1e-6))

    def distance(z: Field, y: Field, x: Field) -> Field:
        z, y, x = z - z0, y - y0, x - x0
        along = (z * (dz / length2) + y * (dy / length2)) + x * (dx / length2)
        along = np.minimum(np.maximum(along, 0), 1)
        away2 = (z - along * dz) ** 2 + (y - along * dy) ** 2 + (x - along * dx) ** 2
        return np.sqrt(away2) - (radius + along * taper)

    return distance
