"""Candidate points for a scan that has none: blobs in its lungs, at several scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_cls.files import COORDINATES
from luna_cls.scans.lungs import Lungs, find_lungs
from luna_cls.scans.volume import AIR_HU, CTVolume

FINE_MM = 1.25
DIAMETERS_MM = (4.0, 6.0, 9.0, 14.0, 21.0, 30.0)
COARSE_FROM_MM = 12.0  # balls so large lose nothing on a lattice of 2.5 mm
ANTIALIAS_VOX = 0.8
DENSEST_HU = 100  # bone and calcium are no more of a blob than soft tissue
LEAST_SCORE = 30.0
MOST = 600

Images = NDArray[np.float32]


def propose(volume: CTVolume, lungs: Lungs | None = None, most: int = MOST) -> pd.DataFrame:
    """The most blob-like points in the lungs of a scan.

    The score is the largest response, over the scales, of a Laplacian of Gaussian that fits a ball of that
    diameter (sigma = diameter / (2 sqrt 3)), in HU: 92 % of the contrast of a ball that fits. A point is
    a peak of it within 2.5 mm.

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
    response = _blobs(fine)
    is_peak = (response == ndimage.maximum_filter(response, 5)) & (response > LEAST_SCORE)
    peaks = np.argwhere(is_peak)
    points_xyz_mm = volume.grid.to_world_xyz_mm(first_zyx_vox + peaks * steps_zyx_vox)
    scores = response[is_peak]
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
    fine = ndimage.zoom(clipped, shape / clipped.shape, order=1)
    steps = (np.array(clipped.shape) - 1) / np.maximum(np.array(fine.shape) - 1, 1)
    return fine, start, steps


def _blobs(fine: Images) -> Images:
    """The largest response to a ball of any of the diameters; the large ones on every second voxel."""
    best = np.zeros_like(fine)
    for diameter_mm in DIAMETERS_MM:
        if diameter_mm < COARSE_FROM_MM:
            np.maximum(best, _response(fine, diameter_mm / FINE_MM), out=best)
    smooth = ndimage.gaussian_filter(fine, ANTIALIAS_VOX, truncate=3)[::2, ::2, ::2]
    coarse = np.zeros_like(smooth)
    for diameter_mm in DIAMETERS_MM:
        if diameter_mm >= COARSE_FROM_MM:
            wanted = diameter_mm / (2 * FINE_MM)
            np.maximum(coarse, _response(smooth, wanted, ANTIALIAS_VOX / 2), out=coarse)
    return np.maximum(best, _doubled(coarse, best.shape), out=best)


def _response(image: Images, diameter_vox: float, had_sigma_vox: float = 0.0) -> Images:
    """Minus the normalised Laplacian of Gaussian; `had_sigma_vox` is how smooth the image is already."""
    sigma = diameter_vox / (2 * np.sqrt(3))
    blurred = ndimage.gaussian_filter(image, np.sqrt(sigma**2 - had_sigma_vox**2), truncate=3.5)
    return -(sigma**2) * ndimage.laplace(blurred)


def _doubled(coarse: Images, shape: tuple[int, ...]) -> Images:
    """An image of every second voxel, interpolated linearly to all of them."""
    for axis, count in enumerate(shape):
        below = np.take(coarse, np.arange(count) // 2, axis)
        above = np.take(coarse, np.minimum(np.arange(1, count + 1) // 2, coarse.shape[axis] - 1), axis)
        coarse = 0.5 * (below + above)
    return coarse
