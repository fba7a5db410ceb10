"""Cuts cubes of HU around points, resampling only what is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna_cls.errors import InputError
from luna_cls.scans.grid import Floats
from luna_cls.scans.volume import AIR_HU, CTVolume

ALIGNED_TOLERANCE_VOX = 1e-4  # how far a cube's corner may lie from where aligned axes would put it


class OutsideScanError(InputError):
    """A cube was asked for around a point outside the scan."""


@dataclass(frozen=True)
class CubeSpec:
    """The cubes to cut.

    Args:
        size_vox: Voxels along each edge.
        spacing_mm: Distance between voxel centres, the same along x, y and z.
    """

    size_vox: int = 31
    spacing_mm: float = 1.0

    def __post_init__(self) -> None:
        if self.size_vox < 1 or not 0 < self.spacing_mm < np.inf:
            raise InputError(
                "A cube has a positive size and spacing. "
                f"Received: {self.size_vox} voxels, {self.spacing_mm} mm."
            )

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """The shape of one cube."""
        return (self.size_vox,) * 3

    @property
    def offsets_mm(self) -> Floats:
        """Distance of each voxel's centre from the cube's centre along one axis, `(size_vox,)`."""
        return np.asarray(np.arange(self.size_vox) - (self.size_vox - 1) / 2, float) * self.spacing_mm


def cut_cubes(volume: CTVolume, centers_xyz_mm: ArrayLike, spec: CubeSpec | None = None) -> NDArray[np.int16]:
    """Cuts one cube of HU around every center.

    A cube's axes are the world's z, y and x, whichever way the scan lies, and its middle is exactly
    on the center: values are interpolated linearly between voxel centres (trilinear, as
    `itk::LinearInterpolateImageFunction`) and rounded. Beyond half a voxel outside the outermost
    voxel centres there is air, -1000 HU.

    Args:
        volume: The scan.
        centers_xyz_mm: Points `(n, 3)`, world mm, LPS. Each inside the scan.
        spec: Edge and spacing of the cubes; `CubeSpec()` if None.

    Returns:
        int16 array `(n, size_vox, size_vox, size_vox)`, axes z, y, x, HU.

    Raises:
        OutsideScanError: If a center lies outside the scan; names the first.
    """
    spec = spec or CubeSpec()
    centers = np.asarray(centers_xyz_mm, float).reshape(-1, 3)
    inside = volume.grid.contains(centers)
    if not inside.all():
        first = int(inside.argmin())
        raise OutsideScanError(
            f"Point {first} lies outside scan {volume.series_uid}. Received: {centers[first].tolist()} mm."
        )
    centers_zyx_vox = volume.grid.to_voxel_zyx(centers)
    step_zyx_vox = volume.grid.world_step_zyx_vox()
    world_axis_of = np.abs(step_zyx_vox).argmax(axis=1)
    aligned = np.zeros_like(step_zyx_vox)
    aligned[range(3), world_axis_of] = step_zyx_vox[range(3), world_axis_of]
    half_edge_mm = np.abs(spec.offsets_mm).max()
    if np.abs(step_zyx_vox - aligned).sum(axis=1).max() * half_edge_mm <= ALIGNED_TOLERANCE_VOX:
        return _cut_aligned(volume.hu, centers_zyx_vox, aligned, world_axis_of, spec)
    return _cut_oblique(volume.hu, centers_zyx_vox, step_zyx_vox, spec)


def _cut_aligned(
    hu: NDArray[np.int16],
    centers_zyx_vox: Floats,
    step_zyx_vox: Floats,
    world_axis_of: NDArray[np.intp],
    spec: CubeSpec,
) -> NDArray[np.int16]:
    """Interpolates one axis after the other: the scan's axes are the world's, in some order and sense."""
    cubes = np.empty((len(centers_zyx_vox), *spec.shape_zyx), np.int16)
    axes = [
        _Axis(centers_zyx_vox[:, axis], step_zyx_vox[axis, world_axis_of[axis]] * spec.offsets_mm, length)
        for axis, length in enumerate(hu.shape)
    ]
    to_world_axes = np.argsort(world_axis_of)
    for row in range(len(cubes)):
        (z0, z1), (y0, y1), (x0, x1) = (axis.span(row) for axis in axes)
        block = hu[z0:z1, y0:y1, x0:x1].astype(np.float32)
        weights_z, weights_y, weights_x = (axis.weights(row) for axis in axes)
        block = block @ weights_x.T  # the finely sampled axes shrink first
        block = weights_y @ block
        block = (weights_z @ block.reshape(z1 - z0, -1)).reshape(spec.shape_zyx)
        np.rint(block, out=block)
        for axis, scan_axis in enumerate(axes):
            outside = scan_axis.outside(row)
            if outside is not None:
                block[(slice(None),) * axis + (outside,)] = AIR_HU
        cubes[row] = block.transpose(to_world_axes)
    return cubes


class _Axis:
    """Where every cube samples one axis of the scan, and with which weights."""

    def __init__(self, centers_vox: Floats, offsets_vox: Floats, length: int) -> None:
        positions = centers_vox[:, None] + offsets_vox
        self._is_outside = (positions < -0.5) | (positions > length - 0.5)
        self._any_outside = np.asarray(self._is_outside.any(axis=1))
        positions = positions.clip(0, length - 1)
        lower = np.floor(positions).astype(np.intp)
        upper = np.minimum(lower + 1, length - 1)
        share = (positions - lower).astype(np.float32)
        start, stop = lower.min(axis=1), upper.max(axis=1) + 1
        self._spans = np.stack([start, stop], axis=1).tolist()
        self._weights = np.zeros((*positions.shape, int((stop - start).max(initial=1))), np.float32)
        rows, samples = np.ogrid[: positions.shape[0], : positions.shape[1]]
        self._weights[rows, samples, lower - start[:, None]] = 1 - share
        self._weights[rows, samples, upper - start[:, None]] += share

    def span(self, row: int) -> list[int]:
        """First voxel the cube needs, and one past the last."""
        return self._spans[row]

    def weights(self, row: int) -> NDArray[np.float32]:
        """`(size_vox, span)`: what each voxel of the span adds to each sample."""
        start, stop = self._spans[row]
        return self._weights[row, :, : stop - start]

    def outside(self, row: int) -> NDArray[np.bool_] | None:
        """Which samples lie beyond the scan; None where none does."""
        return self._is_outside[row] if self._any_outside[row] else None


def _cut_oblique(
    hu: NDArray[np.int16], centers_zyx_vox: Floats, step_zyx_vox: Floats, spec: CubeSpec
) -> NDArray[np.int16]:
    """Interpolates every voxel on its own: the scan lies at an angle to the world."""
    from scipy.ndimage import map_coordinates  # slow to import, and seldom needed

    offsets_zyx_mm = np.stack(np.meshgrid(*[spec.offsets_mm] * 3, indexing="ij")).reshape(3, -1)
    offsets_zyx_vox = step_zyx_vox @ offsets_zyx_mm
    upper_zyx_vox = np.reshape(hu.shape, (3, 1)) - 0.5
    cubes = np.empty((len(centers_zyx_vox), offsets_zyx_vox.shape[1]), np.int16)
    for row, center in enumerate(centers_zyx_vox):
        points = center[:, None] + offsets_zyx_vox
        values = map_coordinates(hu, points, np.float32, order=1, mode="nearest")
        outside = ((points < -0.5) | (points > upper_zyx_vox)).any(axis=0)
        cubes[row] = np.where(outside, AIR_HU, np.rint(values))
    return cubes.reshape(-1, *spec.shape_zyx)
