"""One phantom scan, from a person at random to int16 voxels and their candidates."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.lungs import Lungs
from luna_cls.scans.phantom.acquisition import (
    Acquisition,
    Protocol,
    acquire,
    draw_grid,
    on_the_table,
)
from luna_cls.scans.phantom.anatomy import Anatomy, make_anatomy
from luna_cls.scans.phantom.build import Build
from luna_cls.scans.phantom.candidates import detect, in_nodules, mark_nodules
from luna_cls.scans.phantom.lattice import STEP_MM, Canvas, Field, Floats, Lattice
from luna_cls.scans.phantom.mimics import draw_mimics
from luna_cls.scans.phantom.nodules import Nodule, draw_nodule, place_micronodules, place_nodules
from luna_cls.scans.phantom.strokes import Brush
from luna_cls.scans.phantom.vessels import WALL_HU, bronchi_parts, grow_trees, vessel_part
from luna_cls.scans.volume import AIR_HU, LOWEST_MEASURED_HU, CTVolume

LEFT_LUNG, RIGHT_LUNG = 3, 4  # labels of LUNA16's lung masks
MARROW_HU, CORTEX_HU, CORTEX_MM = 190.0, 650.0, 1.3  # textbook values; a rib's cortex is 1 to 2 mm
FISSURE_HU = 110.0  # chosen: what a fissure of a third of a mm adds to lung in a voxel
UID_NAMESPACE = uuid.UUID("5d5e2f0a-3f6b-5c0e-9a53-2d0a2f3c7e11")  # ours, drawn once


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """A finished scan and what is known of it. Points are in the world, xyz mm.

    Args:
        volume: The scan as it reads.
        stored_hu: int16 `(z, y, x)`, as it is stored: outside the field of view it may hold -2048 or -3024.
        lungs: uint8 `(z, y, x)`: 3 in the left lung, 4 in the right one, 0 elsewhere.
        build: Whose chest it is.
        protocol: How it was taken.
        nodules: What counts.
        micronodules: What is too small to count.
        mimics_xyz_mm: `(n, 3)`: plaques, scars, streaks and haze.
        marks_xyz_mm: `(m, 3)`: the detector's on nodules, all nearer a centre than its radius.
        others_xyz_mm: `(k, 3)`: its marks on no nodule, in the order in which to keep them.
    """

    volume: CTVolume
    stored_hu: NDArray[np.int16]
    lungs: NDArray[np.uint8]
    build: Build
    protocol: Protocol
    nodules: tuple[Nodule, ...]
    micronodules: tuple[Nodule, ...]
    mimics_xyz_mm: Floats
    marks_xyz_mm: Floats
    others_xyz_mm: Floats


def series_uid(seed: int, index: int) -> str:
    """A valid DICOM UID that is the same whenever seed and index are."""
    return f"2.25.{uuid.uuid5(UID_NAMESPACE, f'{seed}/{index}').int}"


def make_scan(seed: int, index: int, acquisition: Acquisition, num_nodules: int | None = None) -> PhantomScan:
    """Makes scan number `index` of the phantom of this seed; it depends on nothing but the arguments.

    Args:
        seed: Of the whole phantom.
        index: Of the scan in it.
        acquisition: The scanner's settings.
        num_nodules: Nodules to draw, as far as there is room; None for a number as LUNA16 has it.
    """
    rng = np.random.default_rng([seed, index])
    build = Build.draw(rng)
    body_grid = draw_grid(acquisition, build, rng)
    protocol = Protocol.draw(acquisition, body_grid, rng)
    grid, shift_xyz_mm = on_the_table(body_grid, rng)
    canvas = Canvas(body_grid)
    brush = Brush(canvas)
    anatomy = make_anatomy(Lattice.covering(body_grid), build, rng)
    trees = grow_trees(anatomy, rng)
    lung_part = _lung_part(anatomy, canvas)
    labels = _lung_labels(lung_part, anatomy, canvas)
    nodules = place_nodules(anatomy, trees, canvas, labels, num_nodules, rng)
    small = place_micronodules(anatomy, trees, canvas, labels, nodules, rng)

    hu = _lung_hu(anatomy, canvas, vessel_part(brush, trees))
    tissue = _wall_hu(anatomy, canvas)
    hu -= tissue
    hu *= lung_part
    hu += tissue
    del tissue, lung_part
    outer, lumen = bronchi_parts(brush, anatomy, trees)
    hu += outer * np.maximum(WALL_HU - hu, 0)
    hu += lumen * (-990.0 - hu)
    del outer, lumen
    mimics_xyz_mm = draw_mimics(hu, brush, anatomy, [*nodules, *small], rng)
    for nodule in (*nodules, *small):
        draw_nodule(hu, brush, nodule)
    values = acquire(hu, canvas, anatomy, protocol, rng)
    del hu, anatomy

    nodules = [replace(nodule, center_xyz_mm=nodule.center_xyz_mm + shift_xyz_mm) for nodule in nodules]
    small = [replace(nodule, center_xyz_mm=nodule.center_xyz_mm + shift_xyz_mm) for nodule in small]
    as_read = np.where(values < LOWEST_MEASURED_HU, np.int16(AIR_HU), values)
    volume = CTVolume(series_uid(seed, index), as_read, grid)
    found = detect(volume, Lungs(labels > 0, grid), rng)
    marks = np.vstack([mark_nodules(nodules, rng), found])
    marks = marks[grid.contains(marks)]
    is_hit = in_nodules(marks, _centers_xyz_mm(nodules), np.array([one.diameter_mm for one in nodules]))
    mimics_xyz_mm = mimics_xyz_mm + shift_xyz_mm
    return PhantomScan(
        volume,
        values,
        labels,
        build,
        protocol,
        tuple(nodules),
        tuple(small),
        mimics_xyz_mm[grid.contains(mimics_xyz_mm)],
        marks[is_hit],
        marks[~is_hit],
    )


def _centers_xyz_mm(nodules: list[Nodule]) -> Floats:
    return np.reshape([nodule.center_xyz_mm for nodule in nodules], (-1, 3)).astype(float)


def _lung_part(anatomy: Anatomy, canvas: Canvas) -> Field:
    """The part of each voxel that lies in a lung. A level edge is as soft as the slices are thick."""
    slope = np.abs(np.gradient(anatomy.lung_mm, STEP_MM, axis=0))
    pixel_mm, _, slice_mm = (float(size) for size in canvas.grid.spacing_xyz_mm)
    edge_mm = np.hypot(pixel_mm, np.minimum(slope, 1) * slice_mm)
    part = anatomy.lattice.onto(0.5 - anatomy.lung_mm / edge_mm, canvas)
    return np.clip(part, 0, 1, out=part)


def _lung_labels(lung_part: Field, anatomy: Anatomy, canvas: Canvas) -> NDArray[np.uint8]:
    left = anatomy.lattice.nearest_onto(anatomy.left, canvas)
    labels = np.where(left, np.uint8(LEFT_LUNG), np.uint8(RIGHT_LUNG))
    labels[lung_part < 0.5] = 0
    return labels


def _lung_hu(anatomy: Anatomy, canvas: Canvas, vessels: Field) -> Field:
    """Lung tissue with its fissures and vessels."""
    hu = anatomy.lattice.onto(anatomy.parenchyma_hu, canvas)
    fissure = anatomy.lattice.onto(anatomy.fissure_mm, canvas)
    near = np.flatnonzero(np.abs(fissure) < 2)
    hu.reshape(-1)[near] += FISSURE_HU * np.exp(-((fissure.reshape(-1)[near] / 0.6) ** 2))
    vessels *= anatomy.build.blood_hu - hu
    hu += vessels
    return hu


def _wall_hu(anatomy: Anatomy, canvas: Canvas) -> Field:
    """Everything but lung: soft tissue, and bone with its dense cortex."""
    hu = anatomy.lattice.onto(anatomy.tissue_hu, canvas)
    bone = anatomy.lattice.onto(anatomy.bone_mm, canvas).reshape(-1)
    inside = np.flatnonzero(bone < 0.4)
    depth = -bone[inside]
    value = np.where(depth < CORTEX_MM, np.float32(CORTEX_HU), np.float32(MARROW_HU))
    part = np.clip(0.5 + depth / 0.8, 0, 1)
    flat = hu.reshape(-1)
    flat[inside] += part * (value - flat[inside])
    return hu
