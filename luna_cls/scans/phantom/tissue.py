"""What a chest is made of, lung and bone apart: skin, fat, muscle, heart, vessels, abdomen."""

from __future__ import annotations

import numpy as np

from luna_cls.scans.phantom.build import (
    AIR_HU,
    CAGE_HALF_XY_MM,
    FAT_HU,
    HILUM_XYZ_MM,
    LIVER_HU,
    MUSCLE_HU,
    SPINE_Y_MM,
    Build,
)
from luna_cls.scans.phantom.lattice import Field, Lattice
from luna_cls.scans.phantom.shapes import Mesh, ellipsoid, join, overlap, pipe


def heart(mesh: Mesh, build: Build) -> Field:
    """Distance to the heart: an ellipsoid, and its apex to the left and front."""
    scale = build.heart
    whole = ellipsoid(mesh, (14, -22, 40), (52 * scale, 40 * scale, 46 * scale))
    apex = ellipsoid(mesh, (46, -34, 22), (32 * scale, 28 * scale, 28 * scale))
    return join(whole, apex, 12)


def aorta(mesh: Mesh) -> Field:
    """Distance to the aorta: up, over to the left and back, and down along the spine."""
    arch = [(-12, -16, 70), (-14, -18, 120), (-6, -10, 142), (8, 8, 150), (20, 30, 142), (22, 40, 115)]
    return pipe(mesh, [*arch, (20, 42, 40), (8, 40, -120)], 12.5)


def tissue(
    lattice: Lattice,
    mesh: Mesh,
    wall: Field,
    diaphragm: Field,
    heart_mm: Field,
    aorta_mm: Field,
    build: Build,
    rng: np.random.Generator,
) -> Field:
    """HU of all soft tissue and of the air around the body, painted from the skin inwards."""
    z, y, _ = mesh
    grain = lattice.noise(rng, 9)
    fat = FAT_HU + 8 * grain
    body = _body(mesh, build)
    hu = np.full(lattice.shape_zyx, AIR_HU, np.float32)
    _paint_table(hu, lattice, build)
    paint(hu, body, 10.0)  # skin
    paint(hu, body + 2.5, fat)
    layers = np.sin(wall / 3.2 + 2 * lattice.noise(rng, 20))  # sheets of muscle with fat between
    shoulder = 22 * np.clip((z - 110) / 60, 0, 1) + 10 * np.exp(-(((y - 85) / 20) ** 2))
    muscle = np.maximum(wall - build.muscle_mm - shoulder - 4 * grain, 3 * (-layers - 0.3))
    paint(hu, np.maximum(muscle, body + build.fat_mm * 0.6), MUSCLE_HU + 8 * grain)
    paint(hu, wall - 2.5, MUSCLE_HU)  # intercostal muscle lines the ribs
    paint(hu, wall + 1.5, fat)
    paint(hu, np.maximum(wall, 2 - 3 * grain), MUSCLE_HU - 15)  # strands in the fat of the mediastinum
    if build.arms_down:
        _paint_arms(hu, mesh, build)
    _paint_abdomen(hu, mesh, wall, diaphragm, build, grain)
    _paint_chest(hu, mesh, heart_mm, aorta_mm, build, grain)
    return hu


def _body(mesh: Mesh, build: Build) -> Field:
    """Distance to the skin: a superellipse, wide at the shoulders."""
    z, y, x = mesh
    thick = 12 + build.muscle_mm + build.fat_mm
    shoulder = 45 * np.clip((z - 110) / 70, 0, 1)
    half_x = CAGE_HALF_XY_MM[0] + thick + shoulder
    half_y = CAGE_HALF_XY_MM[1] + 0.8 * thick - 0.25 * shoulder
    y = y - 4 - 0.35 * shoulder
    norm = ((np.abs(x) / half_x) ** 2.5 + (np.abs(y) / half_y) ** 2.5) ** (1 / 2.5)
    return np.hypot(x, y) * (1 - 1 / np.maximum(norm, 1e-3))


def _paint_table(hu: Field, lattice: Lattice, build: Build) -> None:
    """A table like a trough: a thin shell under the back, and another below it."""
    _, y, x = lattice.mesh_zyx_mm()
    back_mm = build.size * (CAGE_HALF_XY_MM[1] + 0.8 * (12 + build.muscle_mm + build.fat_mm) + 4)
    trough = y - (back_mm + 8 - 36 * (x / 200) ** 2)
    for below_mm, value_hu in ((0.0, -250.0), (26.0, -120.0)):
        shell = np.maximum(np.abs(trough - below_mm) - 1.4, np.abs(x) - 205 + below_mm)
        paint(hu, np.broadcast_to(shell, hu.shape), value_hu)


def _paint_arms(hu: Field, mesh: Mesh, build: Build) -> None:
    z, y, x = mesh
    beside = CAGE_HALF_XY_MM[0] + 12 + build.muscle_mm + build.fat_mm + 40
    line: list[tuple[float, ...]] = [(beside, 25, 140), (beside + 14, 20, -150)]
    for radius_mm, value_hu in ((38.0, FAT_HU), (29.0, MUSCLE_HU), (10.5, 700.0), (6.0, 150.0)):
        paint(hu, pipe((z, y, np.abs(x)), line, radius_mm), value_hu)


def _paint_abdomen(hu: Field, mesh: Mesh, wall: Field, diaphragm: Field, build: Build, grain: Field) -> None:
    z, y, x = mesh
    inside = np.maximum(wall + 1, diaphragm)
    enhanced = LIVER_HU + 0.25 * build.contrast_hu
    paint(hu, inside, MUSCLE_HU)  # the diaphragm itself
    paint(hu, inside + 3, FAT_HU + 10 * grain)
    paint(hu, overlap(inside + 3, x - 25 + 0.2 * z, 6), enhanced + 4 * grain)
    spleen = ellipsoid(mesh, (82, 38, -38), (34, 38, 40))
    paint(hu, overlap(inside + 3, spleen, 6), enhanced + 10)
    stomach = overlap(inside + 4, ellipsoid(mesh, (50, -22, -34), (46, 44, 36)), 8)
    paint(hu, stomach, MUSCLE_HU)
    paint(hu, stomach + 4, 20 + 20 * grain)
    paint(hu, np.maximum(stomach + 4, y + 38), AIR_HU)  # its gas rises to the front


def _paint_chest(hu: Field, mesh: Mesh, heart_mm: Field, aorta_mm: Field, build: Build, grain: Field) -> None:
    z, y, x = mesh
    hx, hy, hz = HILUM_XYZ_MM
    paint(hu, heart_mm, MUSCLE_HU + 0.3 * build.contrast_hu)
    chambers = np.maximum(heart_mm + 9, 4 * np.abs(grain) - 6)  # muscle stands between the chambers
    paint(hu, chambers, build.blood_hu + 4 * grain)
    pulmonary = pipe(mesh, [(-hx, hy, hz), (0, 2, 100), (16, -20, 88)], 10)
    left = pipe(mesh, [(8, -8, 98), (hx, hy, hz)], 9)
    cava = pipe(mesh, [(-26, -10, 60), (-28, -12, 160), (-20, -30, 200)], 8.5)
    branches = pipe((z, y, np.abs(x)), [(8, -8, 150), (24, -5, 205)], 5)
    for vessel in (pulmonary, left, cava, branches, aorta_mm):
        paint(hu, vessel, build.blood_hu)
    paint(hu, pipe(mesh, [(4, 34, 220), (6, 36, 80), (14, 30, -20)], 7), MUSCLE_HU - 10)  # oesophagus
    paint(hu, np.hypot(x / 19, (y - SPINE_Y_MM) / 15) * 16 - 16, 80.0)  # discs; bone hides the rest
    paint(hu, np.hypot(x, y - 83) - 9, 20.0)  # spinal canal


def paint(hu: Field, distance_mm: Field, value_hu: Field | float) -> None:
    """Fills a shape, its edge fading over 2.5 mm (the lattice's step)."""
    hu += np.clip(0.5 - distance_mm / 2.5, 0, 1) * (value_hu - hu)
