"""The scanner: which voxels it takes, how it blurs them and what noise it adds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from luna_cls.scans.grid import Grid
from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.build import CAGE_HALF_XY_MM, Build
from luna_cls.scans.phantom.lattice import Canvas, Field, Floats
from luna_cls.scans.volume import LOWEST_MEASURED_HU

LUNG_Z_MM = (-80.0, 215.0)  # from the deepest recess to above the apices, at middle size
FLIPPED = np.diag([-1.0, -1.0, 1.0])
HIGHEST_HU = 3071  # what a 12-bit scanner can say, from LOWEST_MEASURED_HU on
# Chosen, and so that edges in the lung are as wide as in real scans.
SHARP_MM, SOFT_MM = 0.25, 0.75  # standard deviation of a kernel's blur; 0.5 is a full width of 1.2 mm
ENHANCING_BELOW_MM = 0.48  # sharper kernels (bone, lung) also lift edges
THICKEST_MM = 3.0
PROFILE = 0.4  # standard deviation of a slice's sensitivity profile, in slice thicknesses
# Chosen: shares of scans with each fault, and how much of it.
METAL_SHARE, METAL_HU, METAL_REACH_MM = 0.10, (80.0, 260.0), 60.0
MOVING_SHARE, BEAT_MM, BREATH_MM = 0.4, (1.5, 4.0), (2.0, 7.0)
PADDED_SHARE = 0.6
# Chosen: above that height shoulders take the light away, more so over the next 60 mm.
STARVED_Z_MM, STARVED_OVER_MM, STARVED_GAIN = 120.0, 60.0, 5.0
HEART_REACH_MM, DIAPHRAGM_REACH_MM = 14.0, 22.0  # chosen: how far from it lung moves along


@dataclass(frozen=True)
class Acquisition:
    """The settings a scanner draws from. The defaults give small matrices, in seconds.

    Pixels and slices lie within those of LUNA16's scans (0.46 to 0.98 mm, 0.6 to 2.5 mm), but for slices of
    3 mm, which other screening data have. The rest is chosen.

    Args:
        num_slices: Fewest and most slices.
        num_pixels: Fewest and most pixels along each side of a slice.
        pixel_mm: Smallest and largest pixel.
        slice_mm: Distances between slices, one of which is drawn.
        noise_hu: Least and most noise, standard deviation.
        flipped_share: Share of scans whose x and y axes run the other way.
        view: Width of the field of view, in widths of the lungs.
    """

    num_slices: tuple[int, int] = (100, 130)
    num_pixels: tuple[int, int] = (320, 400)
    pixel_mm: tuple[float, float] = (0.65, 0.9)
    slice_mm: tuple[float, ...] = (1.0, 1.25, 1.25, 1.5, 1.8, 2.0, 2.0, 2.5, 2.5, 3.0)
    noise_hu: tuple[float, float] = (8.0, 70.0)
    flipped_share: float = 0.25
    view: tuple[float, float] = (1.12, 1.5)

    @classmethod
    def full(cls) -> Acquisition:
        """Scans as large as LUNA16's: 512 x 512 pixels, 100 to 320 slices of 0.6 to 3 mm."""
        slice_mm = (0.6, 0.75, 1.0, 1.25, 1.25, 1.5, 1.8, 2.0, 2.0, 2.5, 2.5, 3.0)
        return cls((100, 320), (512, 512), (0.5, 0.9), slice_mm, view=(1.12, 1.8))


@dataclass(frozen=True)
class Protocol:
    """How one scan was taken.

    Args:
        kernel_mm: Standard deviation of the blur within a slice.
        enhancement: How much the kernel lifts edges; 0 if it does not.
        thickness_mm: Thickness of a slice, at least the distance to the next.
        noise_hu: Standard deviation of the noise in the middle of the body, below the shoulders.
        metal: Whether something in it throws streaks.
        beat_mm: How far the heart moved; 0 if it seemed still.
        breath_mm: How far the diaphragm moved.
        pad_hu: What stands outside the circle of the field of view; 0 for the air itself.
    """

    kernel_mm: float
    enhancement: float
    thickness_mm: float
    noise_hu: float
    metal: bool
    beat_mm: float
    breath_mm: float
    pad_hu: int

    @classmethod
    def draw(cls, acquisition: Acquisition, grid: Grid, rng: np.random.Generator) -> Protocol:
        """A protocol at random for a scan with this grid. Most scans are quiet."""
        slice_mm = float(grid.spacing_xyz_mm[2])
        low_hu, high_hu = acquisition.noise_hu
        kernel_mm = rng.uniform(SHARP_MM, SOFT_MM)
        moving = rng.uniform(size=2) < MOVING_SHARE
        return cls(
            kernel_mm=kernel_mm,
            enhancement=rng.uniform(0, 0.6) if kernel_mm < ENHANCING_BELOW_MM else 0.0,
            thickness_mm=min(max(THICKEST_MM, slice_mm), slice_mm * float(rng.choice([1.0, 1.25, 2.0]))),
            noise_hu=low_hu * (high_hu / low_hu) ** rng.beta(1.1, 1.7),
            metal=bool(rng.uniform() < METAL_SHARE),
            beat_mm=float(moving[0] * rng.uniform(*BEAT_MM)),
            breath_mm=float(moving[1] * rng.uniform(*BREATH_MM)),
            pad_hu=int(rng.choice([-2048, -3024])) if rng.uniform() < PADDED_SHARE else 0,
        )


def draw_grid(acquisition: Acquisition, build: Build, rng: np.random.Generator) -> Grid:
    """A scan's grid in the body frame: wide enough for the lungs, not always for the whole body."""
    lungs_mm = 2 * CAGE_HALF_XY_MM[0] * build.size
    view_mm = lungs_mm * rng.uniform(*acquisition.view)
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
    hu: Field, canvas: Canvas, anatomy: Anatomy, protocol: Protocol, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Blurs, adds streaks and noise, pads what lies outside the field of view, and rounds to int16.

    Args:
        hu: What there is, float32 `(z, y, x)`; overwritten.
        canvas: Its voxels.
        anatomy: Whose chest it is; says what moves.
        protocol: How it was taken.
        rng: Source of chance.
    """
    pixel_mm, _, slice_mm = (float(size) for size in canvas.grid.spacing_xyz_mm)
    _move(hu, canvas, anatomy, protocol)
    if protocol.metal:
        _add_metal(hu, canvas, rng)
    # The brush has averaged over the distance between slices; the profile is wider by what is left.
    profile_mm = np.sqrt((PROFILE * protocol.thickness_mm) ** 2 - slice_mm**2 / 12)
    blur_vox = protocol.kernel_mm / pixel_mm
    hu = blurred(hu, (profile_mm / slice_mm, blur_vox, blur_vox))
    if protocol.enhancement:
        wide = blurred(hu, (0, 2.2 * blur_vox, 2.2 * blur_vox))
        hu *= 1 + protocol.enhancement
        wide *= protocol.enhancement
        hu -= wide
        del wide
    hu += _noise(canvas, protocol, rng)
    np.clip(hu, LOWEST_MEASURED_HU, HIGHEST_HU, out=hu)
    values = np.rint(hu, out=hu).astype(np.int16)
    if protocol.pad_hu:
        ring = np.hypot(*np.ogrid[-1 : 1 : values.shape[1] * 1j, -1 : 1 : values.shape[2] * 1j]) > 1
        values[:, ring] = protocol.pad_hu
    return values


def blurred(values: Field, sigma_zyx_vox: tuple[float, ...]) -> Field:
    """A Gaussian blur of the deviation given, to 0.5 % up to three voxels, however narrow.

    A Gaussian sampled at voxels blurs too little below half a voxel, and not at all below a quarter; its
    discrete analogue, exp(-t) I_n(t) with t the variance, blurs as it says (Lindeberg 1990, doi
    10.1109/34.49051).

    Args:
        values: Array `(z, y, x)`.
        sigma_zyx_vox: Standard deviation along each axis, in voxels; 0 leaves it.

    Returns:
        A new array.
    """
    result = np.array(values)
    for axis, sigma in enumerate(sigma_zyx_vox):
        if sigma > 0:
            reach = int(np.ceil(3 * sigma)) + 1
            kernel = special.ive(np.abs(np.arange(-reach, reach + 1)), sigma**2)
            ndimage.correlate1d(result, kernel / kernel.sum(), axis, output=result)
    return result


def _move(hu: Field, canvas: Canvas, anatomy: Anatomy, protocol: Protocol) -> None:
    """Smears what the heart moves within the slices, and what the diaphragm moves along the body."""
    pixel_mm, _, slice_mm = (float(size) for size in canvas.grid.spacing_xyz_mm)
    for distance_mm, reach_mm, moved_mm, axes, step_mm in (
        (anatomy.heart_mm, HEART_REACH_MM, protocol.beat_mm, (1, 2), pixel_mm),
        (anatomy.diaphragm_mm, DIAPHRAGM_REACH_MM, protocol.breath_mm, (0,), slice_mm),
    ):
        if not moved_mm:
            continue
        weight = anatomy.lattice.onto(np.exp(-((np.maximum(distance_mm, 0) / reach_mm) ** 2)), canvas)
        # The deviation of a box as wide as the motion; a box itself would have to be of whole voxels.
        sigma_vox = moved_mm / step_mm / np.sqrt(12)
        smeared = blurred(hu, tuple(sigma_vox if axis in axes else 0.0 for axis in range(3)))
        smeared -= hu
        smeared *= weight
        hu += smeared


def _add_metal(hu: Field, canvas: Canvas, rng: np.random.Generator) -> None:
    """A piece of metal, and the streaks it throws over its slices."""
    z_mm, y_mm, x_mm = canvas.axes_zyx_mm
    piece_xyz_mm = np.array([rng.uniform(-70, 70), rng.choice([-75.0, 85.0]), rng.choice(z_mm)])
    slices = np.flatnonzero(np.abs(z_mm - piece_xyz_mm[2]) < rng.uniform(3, 9))
    y, x = y_mm[:, None] - piece_xyz_mm[1], x_mm - piece_xyz_mm[0]
    away_mm = np.hypot(y, x)
    angle = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * 719).astype(int)
    fall = np.exp(-away_mm / METAL_REACH_MM).astype(np.float32)
    strength_hu = rng.uniform(*METAL_HU)
    for index in slices:
        rays = ndimage.gaussian_filter1d(rng.standard_normal(720), 3, mode="wrap")
        hu[index] += (strength_hu * rays / rays.std()).astype(np.float32)[angle] * fall
        hu[index][away_mm < 3] = HIGHEST_HU


def _noise(canvas: Canvas, protocol: Protocol, rng: np.random.Generator) -> Field:
    """Noise with the kernel's grain, strongest in the middle of the body and between the shoulders."""
    pixel_mm = float(canvas.grid.spacing_xyz_mm[0])
    z_mm, y_mm, x_mm = canvas.axes_zyx_mm
    noise = rng.standard_normal(canvas.grid.shape_zyx, dtype=np.float32)
    grain_vox = 1.1 * protocol.kernel_mm / pixel_mm
    noise = blurred(noise, (0.3, grain_vox, grain_vox))
    middle = np.exp(-((x_mm / 130) ** 2)) * np.exp(-((y_mm / 110) ** 2))[:, None]  # 1 inside, 0 outside
    noise *= np.float32(protocol.noise_hu / noise[::8].std()) * (0.65 + 0.35 * middle).astype(np.float32)
    starved = np.clip((z_mm - STARVED_Z_MM) / STARVED_OVER_MM, 0, 1)
    for index in np.flatnonzero(starved > 0):
        drawn_out = ndimage.uniform_filter1d(noise[index], 15, axis=1)
        noise[index] += np.float32(STARVED_GAIN * starved[index]) * drawn_out
    return noise
