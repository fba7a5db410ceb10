"""The scanner: which voxels it takes, how it blurs them and what noise it adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_cls.scans.grid import Grid
from luna_cls.scans.phantom.build import CAGE_HALF_XY_MM, Build
from luna_cls.scans.phantom.lattice import Field, Floats

LUNG_Z_MM = (-80.0, 215.0)  # from the deepest recess to above the apices, at middle size
FLIPPED = np.diag([-1.0, -1.0, 1.0])
LOWEST_HU, HIGHEST_HU = -1024, 3071  # what a 12-bit scanner can say


@dataclass(frozen=True)
class Acquisition:
    """The settings a scanner draws from. The defaults are the range of LUNA16, with small matrices.

    Args:
        num_slices: Fewest and most slices.
        num_pixels: Fewest and most pixels along each side of a slice.
        pixel_mm: Smallest and largest pixel.
        slice_mm: Distances between slices, one of which is drawn.
        noise_hu: Least and most noise, standard deviation.
        flipped_share: Share of scans whose x and y axes run the other way.
        candidates_per_scan: Look-alikes wanted in a scan.
    """

    num_slices: tuple[int, int] = (100, 130)
    num_pixels: tuple[int, int] = (320, 400)
    pixel_mm: tuple[float, float] = (0.65, 0.9)
    slice_mm: tuple[float, ...] = (1.25, 1.5, 1.8, 2.0, 2.0, 2.5, 2.5)
    noise_hu: tuple[float, float] = (10.0, 60.0)
    flipped_share: float = 0.25
    candidates_per_scan: int = 120


def draw_grid(acquisition: Acquisition, build: Build, rng: np.random.Generator) -> Grid:
    """A scan's grid in the body frame: wide enough for the lungs, not always for the whole body."""
    lungs_mm = 2 * CAGE_HALF_XY_MM[0] * build.size
    view_mm = lungs_mm * rng.uniform(1.12, 1.4)
    pixel_mm = float(
        np.clip(view_mm / rng.integers(*acquisition.num_pixels, endpoint=True), *acquisition.pixel_mm)
    )
    pixels = int(np.clip(round(view_mm / pixel_mm), *acquisition.num_pixels))
    slice_mm = float(rng.choice(acquisition.slice_mm))
    low_z_mm, high_z_mm = np.array(LUNG_Z_MM) * build.size
    slices = int(np.clip(round((high_z_mm - low_z_mm) / slice_mm), *acquisition.num_slices))
    # Where all slices do not span the lungs, the scan takes a part of them at random.
    slack_mm = (high_z_mm - low_z_mm) - slices * slice_mm
    start_z_mm = low_z_mm + slack_mm * rng.uniform(0.2, 0.8)
    start_xy_mm = -0.5 * (pixels - 1) * pixel_mm + rng.uniform(-6, 6, 2) + (0, 8)
    spacing_xyz_mm = np.array([pixel_mm, pixel_mm, slice_mm])
    origin_xyz_mm = np.array([*start_xy_mm, start_z_mm])
    if rng.uniform() >= acquisition.flipped_share:
        return Grid((slices, pixels, pixels), spacing_xyz_mm, origin_xyz_mm)
    origin_xyz_mm[:2] += (pixels - 1) * pixel_mm
    return Grid((slices, pixels, pixels), spacing_xyz_mm, origin_xyz_mm, FLIPPED)


def on_the_table(body_grid: Grid, rng: np.random.Generator) -> tuple[Grid, Floats]:
    """The grid in the world, and the shift from the body frame to the world, xyz mm."""
    shift_xyz_mm = np.round(rng.uniform((-25, -190, -420), (25, 60, 120)), 3)
    origin_xyz_mm = body_grid.origin_xyz_mm + shift_xyz_mm
    grid = Grid(body_grid.shape_zyx, body_grid.spacing_xyz_mm, origin_xyz_mm, body_grid.direction)
    return grid, shift_xyz_mm


def acquire(
    hu: Field, spacing_xyz_mm: Floats, acquisition: Acquisition, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Blurs, adds noise, pads what lies outside the field of view, and rounds to int16.

    Args:
        hu: What there is, float32 `(z, y, x)`; overwritten.
        spacing_xyz_mm: Size of a voxel.
        acquisition: The scanner's settings.
        rng: Source of chance.
    """
    pixel_mm, slice_mm = float(spacing_xyz_mm[0]), float(spacing_xyz_mm[2])
    blur_mm = rng.uniform(0.35, 0.75)  # from a sharp to a soft kernel; 0.5 is a full width of 1.2 mm
    sigma_zyx_vox = (0.35 * max(slice_mm, 1.5) / slice_mm, blur_mm / pixel_mm, blur_mm / pixel_mm)
    ndimage.gaussian_filter(hu, sigma_zyx_vox, output=hu, truncate=3)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    grain_vox = 1.1 * blur_mm / pixel_mm  # the kernel that blurs also gives noise its grain
    ndimage.gaussian_filter(noise, (0.3, grain_vox, grain_vox), output=noise, truncate=3)
    low_hu, high_hu = acquisition.noise_hu
    wanted_hu = low_hu * (high_hu / low_hu) ** rng.uniform()  # most scans are quiet
    noise *= np.float32(wanted_hu / noise[::8].std())
    hu += noise
    np.clip(hu, LOWEST_HU, HIGHEST_HU, out=hu)
    values = np.rint(hu, out=hu).astype(np.int16)
    if rng.uniform() < 0.6:
        pad_hu = int(rng.choice([-2048, -3024]))
        ring = np.hypot(*np.ogrid[-1 : 1 : values.shape[1] * 1j, -1 : 1 : values.shape[2] * 1j]) > 1
        values[:, ring] = pad_hu
    return values
