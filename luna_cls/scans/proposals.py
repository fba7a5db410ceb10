"""Candidate points for a scan that has none: what is round in its lungs, at several scales."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_cls.files import COORDINATES
from luna_cls.scans.grid import interpolated
from luna_cls.scans.lungs import Lungs, find_lungs
from luna_cls.scans.volume import AIR_HU, CTVolume

FINE_MM = 1.25
DIAMETERS_MM = (4.0, 6.0, 9.0, 14.0, 21.0, 30.0)
COARSE_FROM_MM = 12.0  # balls so large lose nothing on a lattice of 2.5 mm
ANTIALIAS_VOX = 0.8
DENSEST_HU = 100  # bone and calcium are no more of a blob than soft tissue
LEAST_RESPONSE_HU = 30.0
MOST = 600

Images = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Scale:
    """A box smoothed for balls of one size; its voxels are every `stride`-th of the 1.25 mm lattice."""

    smooth: Images
    sigma_vox: float
    stride: int

    def laplacian(self) -> Images:
        """Minus the Laplacian, times sigma squared."""
        return -(self.sigma_vox**2) * ndimage.laplace(self.smooth)

    def roundness(self, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """Thrice the least downward curvature, times sigma squared, at places `(n, 3)` of the lattice."""
        last = np.array(self.smooth.shape) - 1
        nearest = places // self.stride

        def at(*step: int) -> NDArray[np.float64]:
            return self.smooth[tuple(np.clip(nearest + step, 0, last).T)].astype(float)

        hessian = np.empty((len(places), 3, 3))
        steps = np.eye(3, dtype=int)
        for i in range(3):
            hessian[:, i, i] = at(*steps[i]) + at(*-steps[i]) - 2 * at(0, 0, 0)
            for j in range(i):
                along, across = steps[i] + steps[j], steps[i] - steps[j]
                mixed = at(*along) + at(*-along) - at(*across) - at(*-across)
                hessian[:, i, j] = hessian[:, j, i] = mixed / 4
        return -3 * self.sigma_vox**2 * np.asarray(np.linalg.eigvalsh(hessian)[:, -1], np.float64)


def propose(volume: CTVolume, lungs: Lungs | None = None, most: int = MOST) -> pd.DataFrame:
    """The most ball-like points in the lungs of a scan.

    The scan is smoothed by a Gaussian that fits a ball, one after another for balls of 4 to 30 mm
    (sigma = diameter / (2 sqrt 3)). A point is a peak, within 2.5 mm, of the largest normalised Laplacian.
    Its score is thrice the least of the three curvatures (eigenvalues of the Hessian, downwards, times
    sigma squared) at its best size, in HU: 92 % of the contrast for a ball that fits, some 0 for a vessel,
    which is straight along itself.

    Args:
        volume: The scan.
        lungs: Where to look; None to find them.
        most: How many points at the most.

    Returns:
        Table `seriesuid, coordX, coordY, coordZ, score`, world mm, LPS, the highest score first.

    Raises:
        InputError: If no lung is found.
    """
    lungs = lungs or find_lungs(volume)
    fine, first_zyx_vox, steps_zyx_vox = _resampled(volume, lungs)
    scales = _scales(fine)
    response = _response(scales, fine.shape)
    is_peak = (response == ndimage.maximum_filter(response, 5)) & (response > LEAST_RESPONSE_HU)
    peaks = np.argwhere(is_peak)
    points_xyz_mm = volume.grid.to_world_xyz_mm(first_zyx_vox + peaks * steps_zyx_vox)
    scores = np.max([scale.roundness(peaks) for scale in scales], axis=0)
    order = np.flatnonzero(lungs.contains(points_xyz_mm))
    order = order[np.argsort(-scores[order], kind="stable")][:most]
    table = pd.DataFrame(points_xyz_mm[order], columns=COORDINATES)
    table.insert(0, "seriesuid", volume.series_uid)
    return table.assign(score=scores[order].astype(float))


def _resampled(volume: CTVolume, lungs: Lungs) -> tuple[Images, NDArray[np.intp], NDArray[np.float64]]:
    """The box of the lungs at 1.25 mm, the voxel of its first corner, and its steps in voxels, zyx."""
    corners = np.argwhere(lungs.inside)
    ends = np.array([corners.min(axis=0), corners.max(axis=0)])
    reach = np.array(np.meshgrid(*ends.T)).reshape(3, -1).T  # the grids may lie askew to each other
    places = volume.grid.to_voxel_zyx(lungs.grid.to_world_xyz_mm(reach))
    margin = max(DIAMETERS_MM) / 2 / volume.grid.spacing_xyz_mm[::-1]
    start = np.maximum(np.floor(places.min(axis=0) - margin), 0).astype(int)
    stop = np.minimum(np.ceil(places.max(axis=0) + margin) + 1, volume.grid.shape_zyx).astype(int)
    box = volume.hu[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    clipped = np.clip(box, AIR_HU, DENSEST_HU).astype(np.float32)
    shape = np.maximum(np.rint((stop - start) * volume.grid.spacing_xyz_mm[::-1] / FINE_MM), 1)
    steps = (np.array(clipped.shape) - 1) / np.maximum(shape - 1, 1)
    z, y, x = (np.arange(count) * step for count, step in zip(shape.astype(int), steps, strict=True))
    fine = interpolated(clipped, (z, y, x))
    return fine, start, steps


def _scales(fine: Images) -> list[_Scale]:
    """The box smoothed for a ball of each of the diameters; for the large ones on every second voxel."""
    coarse = ndimage.gaussian_filter(fine, ANTIALIAS_VOX, truncate=3)[::2, ::2, ::2]
    scales = []
    for diameter_mm in DIAMETERS_MM:
        image, stride, had_vox = (
            (fine, 1, 0.0) if diameter_mm < COARSE_FROM_MM else (coarse, 2, ANTIALIAS_VOX / 2)
        )
        sigma_vox = diameter_mm / (2 * np.sqrt(3) * stride * FINE_MM)
        smooth = ndimage.gaussian_filter(image, np.sqrt(sigma_vox**2 - had_vox**2), truncate=3.5)
        scales.append(_Scale(smooth, sigma_vox, stride))
    return scales


def _response(scales: list[_Scale], shape: tuple[int, ...]) -> Images:
    """Minus the normalised Laplacian of the scale where it is largest, at every voxel; not below 0."""
    fine, coarse = ([s for s in scales if s.stride == stride] for stride in (1, 2))
    z, y, x = (np.arange(count) / 2 for count in shape)
    best = interpolated(functools.reduce(np.maximum, (scale.laplacian() for scale in coarse)), (z, y, x))
    for scale in fine:
        np.maximum(best, scale.laplacian(), out=best)
    return np.maximum(best, 0, out=best)
