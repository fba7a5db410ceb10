"""A chest as fields on a coarse lattice: two lungs, and all that bounds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.phantom.bones import JOINT_Y_MM, along_ribs, bones
from luna_cls.scans.phantom.build import (
    APEX_Z_MM,
    CAGE_HALF_XY_MM,
    CAGE_WIDEST_Z_MM,
    CARTILAGE_HU,
    HILUM_XYZ_MM,
    SPINE_Y_MM,
    SQUARENESS,
    VERTEBRA_MM,
    Build,
)
from luna_cls.scans.phantom.lattice import Field, Lattice
from luna_cls.scans.phantom.shapes import Mesh, ellipsoid, join, overlap
from luna_cls.scans.phantom.tissue import aorta, heart, paint, tissue


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A chest on a lattice. Distances are in mm and negative inside.

    Args:
        build: Whose chest it is.
        lattice: The points of every field.
        lung_mm: Distance to the surface of the lungs.
        left: Whether a point is on the left lung's side.
        wall_mm: Distance to the rib cage's inner surface.
        heart_mm: Distance to the heart.
        diaphragm_mm: Distance to the diaphragm's upper surface.
        fissure_mm: Signed distance to the nearest fissure.
        bone_mm: Distance to bone.
        tissue_hu: HU of everything but lung and bone.
        parenchyma_hu: HU of lung without its vessels.
    """

    build: Build
    lattice: Lattice
    lung_mm: Field
    left: NDArray[np.bool_]
    wall_mm: Field
    heart_mm: Field
    diaphragm_mm: Field
    fissure_mm: Field
    bone_mm: Field
    tissue_hu: Field
    parenchyma_hu: Field


def make_anatomy(lattice: Lattice, build: Build, rng: np.random.Generator) -> Anatomy:
    """Builds one person's chest on a lattice."""
    mesh = _warped(lattice, build, rng)
    _, y, x = mesh
    heart_mm, aorta_mm = heart(mesh, build), aorta(mesh)
    wall = _rib_cage(mesh) + 1.2 * lattice.noise(rng, 20) + 0.5 * lattice.noise(rng, 7)
    rib_mm = along_ribs(mesh, build)
    bulge_mm = build.bulge_mm * np.clip(1 + 0.7 * lattice.noise(rng, 16), 0, 2)
    bulge_mm = bulge_mm * (1 + 0.9 * np.exp(-(((y - JOINT_Y_MM) / 8) ** 2)))
    pleura = wall + bulge_mm * np.exp(-((rib_mm / 6.5) ** 2))
    spine_spurs = _spurs(mesh, build)  # they push the pleura before them
    mediastinum = (
        np.minimum(_mediastinum(mesh, heart_mm, aorta_mm), spine_spurs - 1.5)
        + 1.3 * lattice.noise(rng, 12)
        + 0.6 * lattice.noise(rng, 6)
    )
    diaphragm = _diaphragm(mesh) + 1.5 * lattice.noise(rng, 25)
    lung = overlap(overlap(pleura, -mediastinum, 5), -diaphragm, 4)
    bone, cartilage = bones(mesh, wall, rib_mm, build)
    bone = np.minimum(bone, spine_spurs + 1.5 * lattice.noise(rng, 8)).astype(np.float32)
    soft_hu = tissue(lattice, mesh, wall, diaphragm, heart_mm, aorta_mm, build, rng)
    paint(soft_hu, cartilage, CARTILAGE_HU)
    size = np.float32(build.size)
    return Anatomy(
        build,
        lattice,
        lung_mm=lung * size,
        left=np.broadcast_to(x > 0, lung.shape),
        wall_mm=wall * size,
        heart_mm=heart_mm * size,
        diaphragm_mm=diaphragm * size,
        fissure_mm=_fissures(mesh) * size,
        bone_mm=bone * size,
        tissue_hu=soft_hu,
        parenchyma_hu=_parenchyma(lattice, mesh, lung, build, rng),
    )


def _warped(lattice: Lattice, build: Build, rng: np.random.Generator) -> Mesh:
    """Lattice coordinates at middle size, bent by a few mm so that nobody is an ellipse."""
    size = np.float32(build.size)
    z, y, x = (axis / size for axis in lattice.mesh_zyx_mm())
    return tuple(axis + np.float32(3.5) * lattice.noise(rng, 45) for axis in (z, y, x))  # type: ignore[return-value]


def _rib_cage(mesh: Mesh) -> Field:
    """A superellipsoid above its widest level, a slowly narrowing cylinder below."""
    z, y, x = mesh
    (half_x, half_y), half_z = CAGE_HALF_XY_MM, APEX_Z_MM - CAGE_WIDEST_Z_MM
    above = np.maximum(z - CAGE_WIDEST_Z_MM, 0)
    y = y - 0.10 * above  # the apices lie towards the back
    powers = (np.abs(x) / half_x) ** SQUARENESS + (np.abs(y) / half_y) ** SQUARENESS
    norm = np.maximum((powers + (above / half_z) ** SQUARENESS) ** (1 / SQUARENESS), 1e-3)
    distance = np.sqrt(x * x + y * y + above * above) * (1 - 1 / norm)
    return distance - 0.05 * np.minimum(z - CAGE_WIDEST_Z_MM, 0)


def _mediastinum(mesh: Mesh, heart_mm: Field, aorta_mm: Field) -> Field:
    z, y, x = mesh
    hx, hy, hz = HILUM_XYZ_MM
    half_width = 5 + 24 * np.exp(-(((y - 14) / 32) ** 2)) - 6 * np.clip((z - 130) / 40, 0, 1)
    shape: Field = np.abs(x) - half_width
    spine = np.hypot(x, (y - SPINE_Y_MM - 6) * 0.85) - 27
    for part, blend_mm in (
        (heart_mm - 4, 8),  # 4 mm of fat around the heart
        (spine, 6),
        (aorta_mm - 2, 5),
        (ellipsoid(mesh, (hx - 4, hy, hz), (15, 14, 22)), 6),
        (ellipsoid(mesh, (4 - hx, hy, hz - 4), (15, 14, 22)), 6),
    ):
        shape = join(shape, part, blend_mm)
    return shape


def _spurs(mesh: Mesh, build: Build) -> Field:
    """Bony spurs at the edges of the vertebrae, on the sides of the discs."""
    z, y, x = mesh
    turns = z / VERTEBRA_MM + build.rib_phase
    from_disc_mm = np.abs(turns - np.rint(turns)) * VERTEBRA_MM
    away2 = (np.abs(x) - 24) ** 2 + (y - SPINE_Y_MM + 4) ** 2
    return np.sqrt(away2 + (0.9 * from_disc_mm) ** 2) - build.spur_mm


def _diaphragm(mesh: Mesh) -> Field:
    """Two domes; they fall outwards, and furthest towards the back."""
    z, y, x = mesh
    side = np.where(x > 0, 62.0, -62.0).astype(np.float32)
    top = np.where(x > 0, -4.0, 10.0).astype(np.float32)  # the liver lifts the right dome
    outwards = (x - side) * np.sign(side)
    across = np.where(outwards > 0, outwards / 58, outwards / 90)
    drop = 42 * (across**2 + ((y + 12) / 78) ** 2) ** 1.2 + 26 * np.clip(y / 80, 0, 1.2) ** 2
    return (z - top + drop) * 0.75  # 0.75: about the cosine of a dome's slope


def _fissures(mesh: Mesh) -> Field:
    """The oblique fissure of each lung, and the horizontal one of the right lung in front of it."""
    z, y, x = mesh
    oblique = ((z - 72) - 1.2 * y + 7 * np.sin(np.abs(x) / 22)) * 0.64  # 0.64: cosine of its slope
    level = np.where((x < 0) & (oblique > 0), z - 84 + 4 * np.sin(y / 18), np.float32(1e3))
    nearest: Field = np.where(np.abs(level) < np.abs(oblique), level, oblique)
    return nearest


def _parenchyma(lattice: Lattice, mesh: Mesh, lung: Field, build: Build, rng: np.random.Generator) -> Field:
    """Lung tissue: denser towards the back, where blood pools, and nowhere quite even.

    With emphysema it has holes, most of them near the apices; the lowest millimetres may be collapsed.
    """
    z, y, _ = mesh
    hu = build.parenchyma_hu + 0.45 * y + 16 * lattice.noise(rng, 22) + 10 * lattice.noise(rng, 6)
    holes = np.clip(lattice.noise(rng, 9) - 1.5, 0, 1)  # lobules that hold more air
    hu = hu - 60 * holes
    if build.emphysema:
        more = build.emphysema * np.clip(0.4 + z / 150, 0.2, 1.3)
        hu = hu - 160 * more * np.clip(lattice.noise(rng, 10) - 0.4, 0, 1.2)
    if build.dependent_hu:
        lowest = np.exp(-((np.minimum(lung, 0) / 9) ** 2)) * np.clip((y - 25) / 30, 0, 1)
        hu = hu + build.dependent_hu * lowest * np.clip(1 + 0.6 * lattice.noise(rng, 12), 0, 2)
    return np.clip(hu, -990, -450).astype(np.float32)
