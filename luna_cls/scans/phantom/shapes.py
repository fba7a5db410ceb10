"""Signed distances, in mm and negative inside, from which organs are composed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from luna_cls.scans.phantom.lattice import Field

Mesh = tuple[Field, Field, Field]  # z, y, x in mm, broadcastable


def join(first: Field, second: Field, blend_mm: float) -> Field:
    """The union of two shapes, its crease filled over `blend_mm` (a polynomial smooth minimum)."""
    weight = np.clip(0.5 + 0.5 * (second - first) / blend_mm, 0, 1)
    return second + weight * (first - second) - blend_mm * weight * (1 - weight)


def overlap(first: Field, second: Field, blend_mm: float) -> Field:
    """What two shapes share, its edge rounded over `blend_mm`."""
    return -join(-first, -second, blend_mm)


def ellipsoid(mesh: Mesh, center_xyz_mm: tuple[float, ...], radii_xyz_mm: tuple[float, ...]) -> Field:
    """An ellipsoid; its distance is exact on the surface and about right near it."""
    (z, y, x), (cx, cy, cz), (rx, ry, rz) = mesh, center_xyz_mm, radii_xyz_mm
    norm = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
    slope = np.sqrt(((x - cx) / rx**2) ** 2 + ((y - cy) / ry**2) ** 2 + ((z - cz) / rz**2) ** 2)
    return norm * (norm - 1) / np.maximum(slope, 1e-3)


def pipe(mesh: Mesh, points_xyz_mm: list[tuple[float, ...]], radius_mm: float) -> Field:
    """A tube through the points given."""
    z, y, x = mesh
    nearest: Any = np.float32(np.inf)
    for (ax, ay, az), (bx, by, bz) in pairwise(points_xyz_mm):
        dx, dy, dz = bx - ax, by - ay, bz - az
        along = ((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx * dx + dy * dy + dz * dz)
        along = np.clip(along, 0, 1)
        away2 = (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 + (z - az - along * dz) ** 2
        nearest = np.minimum(nearest, away2)
    return np.sqrt(nearest) - radius_mm


def block(mesh: Mesh, center_xyz_mm: tuple[float, ...], half_xyz_mm: tuple[float, ...]) -> Field:
    """A box with sides along the axes."""
    (z, y, x), (cx, cy, cz), (hx, hy, hz) = mesh, center_xyz_mm, half_xyz_mm
    return np.maximum(np.maximum(np.abs(x - cx) - hx, np.abs(y - cy) - hy), np.abs(z - cz) - hz)
