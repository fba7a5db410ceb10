"""One phantom scan, from a person at random to int16 voxels and their candidates."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.phantom.acquisition import Acquisition, acquire, draw_grid, on_the_table
from luna_cls.scans.phantom.anatomy import Anatomy, make_anatomy
from luna_cls.scans.phantom.build import Build
from luna_cls.scans.phantom.candidates import is_nodule, look_alikes, nodule_candidates
from luna_cls.scans.phantom.lattice import STEP_MM, Canvas, Field, Floats, Lattice
from luna_cls.scans.phantom.mimics import draw_mimics
from luna_cls.scans.phantom.nodules import draw_nodule, place_nodules
from luna_cls.scans.phantom.strokes import Brush
from luna_cls.scans.phantom.vessels import WALL_HU, bronchi_parts, grow_trees, vessel_part
from luna_cls.scans.volume import CTVolume

LEFT_LUNG, RIGHT_LUNG = 3, 4  # labels of LUNA16's lung masks
MARROW_HU, CORTEX_HU, CORTEX_MM = 190.0, 650.0, 1.3  # textbook values; a rib's cortex is 1 to 2 mm
FISSURE_HU = 160.0  # chosen: what a fissure of about half a mm adds to lung in a voxel
UID_NAMESPACE = uuid.UUID("5d5e2f0a-3f6b-5c0e-9a53-2d0a2f3c7e11")  # ours, drawn once


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """A finished scan and what is known of it, in the world.

    Args:
        volume: The scan; outside its field of view it may hold -2048 or -3024.
        lungs: uint8 `(z, y, x)`: 3 in the left lung, 4 in the right one, 0 elsewhere.
        nodule_centers_xyz_mm: `(n, 3)`.
        nodule_diameters_mm: `(n,)`.
        nodule_kinds: What each is made of: solid, part-solid, ground-glass or calcified.
        candidates_xyz_mm: `(m, 3)`, all in the scan.
        candidate_classes: `(m,)`, 1 where a candidate is nearer a nodule's centre than its radius.
    """

    volume: CTVolume
    lungs: NDArray[np.uint8]
    nodule_centers_xyz_mm: Floats
    nodule_diameters_mm: Floats
    nodule_kinds: tuple[str, ...]
    candidates_xyz_mm: Floats
    candidate_classes: NDArray[np.int64]


def series_uid(seed: int, index: int) -> str:
    """A valid DICOM UID that is the same whenever seed and index are."""
    return f"2.25.{uuid.uuid5(UID_NAMESPACE, f'{seed}/{index}').int}"


def make_scan(seed: int, index: int, acquisition: Acquisition) -> PhantomScan:
    """Makes scan number `index` of the phantom of this seed; it depends on nothing else."""
    rng = np.random.default_rng([seed, index])
    build = Build.draw(rng)
    body_grid = draw_grid(acquisition, build, rng)
    grid, shift_xyz_mm = on_the_table(body_grid, rng)
    canvas = Canvas(body_grid)
    brush = Brush(canvas)
    anatomy = make_anatomy(Lattice.covering(body_grid), build, rng)
    trees = grow_trees(anatomy, rng)
    lung_part = _lung_part(anatomy, canvas)
    lungs = _lung_labels(lung_part, anatomy, canvas)
    nodules = place_nodules(anatomy, trees, canvas, lungs, rng)
    centers_xyz_mm = np.reshape([nodule.center_xyz_mm for nodule in nodules], (-1, 3))

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
    mimics_xyz_mm = draw_mimics(hu, brush, anatomy, centers_xyz_mm, rng)
    for nodule in nodules:
        draw_nodule(hu, brush, nodule)
    values = acquire(hu, body_grid.spacing_xyz_mm, acquisition, rng)
    del hu

    hits = nodule_candidates(nodules, canvas, rng)
    others = look_alikes(
        values, canvas, anatomy, trees, mimics_xyz_mm, nodules, acquisition.candidates_per_scan, rng
    )
    candidates = rng.permutation(np.vstack([hits, others]))
    return PhantomScan(
        CTVolume(series_uid(seed, index), values, grid),
        lungs,
        centers_xyz_mm + shift_xyz_mm,
        np.array([nodule.diameter_mm for nodule in nodules]),
        tuple(nodule.kind for nodule in nodules),
        candidates + shift_xyz_mm,
        is_nodule(candidates, nodules).astype(np.int64),
    )


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
    hu.reshape(-1)[near] += FISSURE_HU * np.exp(-((fissure.reshape(-1)[near] / 0.7) ** 2))
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
