"""What looks like a nodule and is none: plaques, scars, streaks and haze."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.lattice import Field, Floats
from luna_cls.scans.phantom.nodules import Nodule
from luna_cls.scans.phantom.strokes import Brush

KEEP_CLEAR_MM = 10.0  # chosen: from a mimic's middle to a nodule's surface


@dataclass(frozen=True)
class Mimics:
    """How many of each a scan holds, drawn evenly between the bounds (chosen)."""

    plaques: tuple[int, int] = (2, 7)
    scars: tuple[int, int] = (1, 4)
    streaks: tuple[int, int] = (1, 4)
    hazes: tuple[int, int] = (0, 4)


@dataclass(frozen=True, eq=False)
class _Spot:
    """A place for a mimic, and which way the nearest pleura lies (a unit vector)."""

    center_xyz_mm: Floats
    outwards_xyz: Floats


def draw_mimics(
    hu: Field, brush: Brush, anatomy: Anatomy, nodules: list[Nodule], rng: np.random.Generator
) -> Floats:
    """Draws a scan's look-alikes into it.

    Args:
        hu: The scan.
        brush: Draws on the scan's voxels.
        anatomy: Whose chest it is.
        nodules: What they stay clear of.
        rng: Source of chance.

    Returns:
        Their places `(n, 3)`, body mm.
    """
    depth_mm = -anatomy.lung_mm
    z, _, _ = anatomy.lattice.mesh_zyx_mm()
    costal = (np.abs(depth_mm) < 1.5) & (np.abs(anatomy.wall_mm) < 4)
    apical = (depth_mm > 2) & (depth_mm < 14) & (z > 135 * anatomy.build.size)
    basal = (depth_mm > 2) & (depth_mm < 18) & (anatomy.diaphragm_mm > -25)
    dependent = (depth_mm > 4) & (depth_mm < 20)
    counts = Mimics()
    places = []
    for where, bounds, draw in (
        (costal, counts.plaques, _draw_plaque),
        (apical, counts.scars, _draw_scar),
        (basal, counts.streaks, _draw_streak),
        (dependent, counts.hazes, _draw_haze),
    ):
        points_xyz_mm = anatomy.lattice.points_xyz_mm(where)
        points_xyz_mm = points_xyz_mm[brush.canvas.grid.contains(points_xyz_mm)]
        for _ in range(int(rng.integers(bounds[0], bounds[1] + 1))):
            if not len(points_xyz_mm):
                break
            place_xyz_mm = rng.choice(points_xyz_mm)
            if all(
                np.linalg.norm(nodule.center_xyz_mm - place_xyz_mm) > nodule.radius_mm + KEEP_CLEAR_MM
                for nodule in nodules
            ):
                draw(hu, brush, _Spot(place_xyz_mm, _outwards(anatomy, place_xyz_mm)), rng)
                places.append(place_xyz_mm)
    return np.reshape(places, (-1, 3))


def _outwards(anatomy: Anatomy, place_xyz_mm: Floats) -> Floats:
    """Unit normal of the lung's surface near a point, pointing out of the lung."""
    steps = 3.0 * np.eye(3)
    ahead = anatomy.lattice.at(anatomy.lung_mm, place_xyz_mm + steps)
    behind = anatomy.lattice.at(anatomy.lung_mm, place_xyz_mm - steps)
    return (ahead - behind) / max(float(np.linalg.norm(ahead - behind)), 1e-6)


def _draw_plaque(hu: Field, brush: Brush, spot: _Spot, rng: np.random.Generator) -> None:
    """A flat swelling of the pleura: four to eight times as wide as it is high."""
    half_mm, height_mm = rng.uniform(4, 9), rng.uniform(1.2, 2.6)
    (box,) = brush.canvas.boxes([spot.center_xyz_mm - half_mm - 2], [spot.center_xyz_mm + half_mm + 2])
    cx, cy, cz = spot.center_xyz_mm.astype(np.float32)
    nx, ny, nz = spot.outwards_xyz.astype(np.float32)

    def distance(z: Field, y: Field, x: Field) -> Field:
        z, y, x = z - cz, y - cy, x - cx
        up = z * nz + y * ny + x * nx
        flat2 = z * z + y * y + x * x - up * up
        return (np.sqrt(np.maximum(flat2, 0) / half_mm**2 + (up / height_mm) ** 2) - 1) * height_mm

    _brighten(hu[box], brush.fill(box, distance), rng.uniform(-20, 60))


def _draw_scar(hu: Field, brush: Brush, spot: _Spot, rng: np.random.Generator) -> None:
    """A small star of strands, one of which reaches the pleura."""
    count = int(rng.integers(4, 8))
    ends = spot.center_xyz_mm + rng.normal(0, 4.5, (count, 3))
    ends[0] = spot.center_xyz_mm + 12 * spot.outwards_xyz
    _draw_strands(hu, brush, np.tile(spot.center_xyz_mm, (count, 1)), ends, rng)


def _draw_streak(hu: Field, brush: Brush, spot: _Spot, rng: np.random.Generator) -> None:
    """A band of collapsed lung, as seen above the diaphragm: a bent, mostly level strand."""
    along = rng.normal(0, 1, 3) * (1, 1, 0.3)
    step = along / np.linalg.norm(along) * rng.uniform(4, 8)
    bends = np.cumsum(step + rng.normal(0, 1.3, (5, 3)), axis=0)
    points = spot.center_xyz_mm + bends - bends[2]
    _draw_strands(hu, brush, points[:-1], points[1:], rng)


def _draw_strands(hu: Field, brush: Brush, starts: Floats, ends: Floats, rng: np.random.Generator) -> None:
    count = len(starts)
    for box, part in brush.tubes(starts, ends, rng.uniform(0.6, 1.5, count), rng.uniform(0.3, 1.1, count)):
        _brighten(hu[box], part, -30.0)


def _draw_haze(hu: Field, brush: Brush, spot: _Spot, rng: np.random.Generator) -> None:
    """A patch of faint, uneven density without an edge."""
    width_mm = rng.uniform(4, 8)
    (box,) = brush.canvas.boxes([spot.center_xyz_mm - 2.2 * width_mm], [spot.center_xyz_mm + 2.2 * width_mm])
    z, y, x = (axis[part] for axis, part in zip(brush.canvas.axes_zyx_mm, box, strict=True))
    cx, cy, cz = spot.center_xyz_mm
    away2 = ((z - cz)[:, None, None] ** 2 + (y - cy)[:, None] ** 2) + (x - cx) ** 2
    sigma_zyx_vox = 1.6 / brush.canvas.grid.spacing_xyz_mm[::-1]  # 1.6 mm: grain of a lobule's parts
    grain = ndimage.gaussian_filter(rng.standard_normal(away2.shape), sigma_zyx_vox)
    grain = 1 + grain / max(float(grain.std()), 1e-6)
    part = np.exp(-away2 / (2 * width_mm**2)) * np.clip(grain, 0, 3) * rng.uniform(0.08, 0.22)
    _brighten(hu[box], part.astype(np.float32), 0.0)


def _brighten(here: Field, part: Field, value_hu: float) -> None:
    np.maximum(here, here + part * (value_hu - here), out=here)
