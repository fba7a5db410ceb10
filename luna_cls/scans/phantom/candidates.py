"""Points a detector would mark: every nodule, and what it takes for one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.lattice import Canvas, Field, Floats
from luna_cls.scans.phantom.nodules import Nodule
from luna_cls.scans.phantom.vessels import Tree

JITTER_MM = 1.5  # a detector's mark lies this far from a nodule's centre along each axis
APART_MM = 5.0  # LUNA16 merges candidates nearer than this
CLEAR_OF_NODULE_MM = 3.0  # a mark on a nodule's rim would be a nodule in all but label
BLOB_STEP_MM = 2.0
BLOB_SIGMAS_MM = (1.6, 2.6, 4.2, 6.7)  # blobs of about 5 to 20 mm
# Shares of look-alikes by where they come from (chosen: half are what a detector finds, the rest
# makes sure that every place a real detector errs in is there).
SITE_SHARES = {
    "blob": 0.46,
    "fork": 0.10,
    "costal pleura": 0.18,
    "mediastinal pleura": 0.09,
    "diaphragm": 0.07,
    "fissure": 0.04,
    "anywhere": 0.06,
}


def nodule_candidates(nodules: list[Nodule], canvas: Canvas, rng: np.random.Generator) -> Floats:
    """One or two marks `(n, 3)` on every nodule, each nearer its centre than its radius."""
    marks = []
    for nodule in nodules:
        for _ in range(int(rng.integers(1, 3))):
            jitter_mm = rng.normal(0, min(JITTER_MM, 0.4 * nodule.radius_mm), 3)
            jitter_mm *= min(1.0, 0.9 * nodule.radius_mm / float(np.linalg.norm(jitter_mm)))
            marks.append(nodule.center_xyz_mm + jitter_mm)
    points = np.reshape(marks, (-1, 3))
    return points[canvas.grid.contains(points)]


def look_alikes(
    values_hu: NDArray[np.int16],
    canvas: Canvas,
    anatomy: Anatomy,
    trees: list[Tree],
    mimics_xyz_mm: Floats,
    nodules: list[Nodule],
    wanted: int,
    rng: np.random.Generator,
) -> Floats:
    """Marks `(n, 3)` where there is no nodule, `wanted` of them unless the scan has fewer.

    Args:
        values_hu: The finished scan.
        canvas: Its voxels, body frame.
        anatomy: Whose chest it is.
        trees: Its vessels.
        mimics_xyz_mm: Plaques, scars, streaks and haze; all of them are marked.
        nodules: What must not be marked here.
        wanted: How many marks.
        rng: Source of chance.
    """
    pools = {"blob": _blobs_xyz_mm(values_hu, canvas, anatomy, 4 * wanted)}
    pools["fork"] = np.vstack([tree.branch_points_xyz_mm(0.6) for tree in trees])
    pools |= _surface_points_xyz_mm(anatomy)
    chosen = [mimics_xyz_mm]
    for site, share in SITE_SHARES.items():
        pool = pools[site]
        # Twice as many as wanted: some fall out of the scan, on nodules or on each other.
        count = min(len(pool), round(2 * share * wanted))
        chosen.append(rng.choice(pool, count, replace=False) if count else pool)
    order = [(rank / max(len(points), 1), mark) for points in chosen[1:] for rank, mark in enumerate(points)]
    marks = [*mimics_xyz_mm, *(mark for _, mark in sorted(order, key=lambda pair: pair[0]))]
    return _thinned(np.reshape(marks, (-1, 3)), canvas, nodules, wanted)


def is_nodule(points_xyz_mm: Floats, nodules: list[Nodule]) -> NDArray[np.bool_]:
    """LUNA16's rule: a point is a nodule's if it is nearer its centre than its radius."""
    hit = np.zeros(len(points_xyz_mm), bool)
    for nodule in nodules:
        hit |= np.linalg.norm(points_xyz_mm - nodule.center_xyz_mm, axis=1) < nodule.radius_mm
    return hit


def _blobs_xyz_mm(values_hu: NDArray[np.int16], canvas: Canvas, anatomy: Anatomy, most: int) -> Floats:
    """The strongest bright blobs in and just around the lungs, over several sizes."""
    spacing_zyx_mm = canvas.grid.spacing_xyz_mm[::-1]
    factors = np.maximum(1, np.rint(BLOB_STEP_MM / spacing_zyx_mm)).astype(int)
    small = np.clip(_block_mean(values_hu, factors), -1000, 200)  # above 200 all is bone or contrast
    step_zyx_mm = spacing_zyx_mm * factors
    best = np.full(small.shape, -np.inf, np.float32)
    for sigma_mm in BLOB_SIGMAS_MM:
        inner = ndimage.gaussian_filter(small, sigma_mm / step_zyx_mm, truncate=2.5)
        outer = ndimage.gaussian_filter(small, 1.5 * sigma_mm / step_zyx_mm, truncate=2.5)
        np.maximum(best, inner - outer, out=best)
    peaks_zyx = np.argwhere((best == ndimage.maximum_filter(best, 3)) & (best > 10))
    centers_zyx_vox = peaks_zyx * factors + (factors - 1) / 2
    points_xyz_mm = canvas.grid.to_world_xyz_mm(centers_zyx_vox)
    strengths = best[tuple(peaks_zyx.T)]
    inside = anatomy.lattice.at(anatomy.lung_mm, points_xyz_mm) < 5
    points_xyz_mm, strengths = points_xyz_mm[inside], strengths[inside]
    return points_xyz_mm[np.argsort(-strengths, kind="stable")[:most]]


def _block_mean(values: NDArray[np.int16], factors: NDArray[np.int_]) -> Field:
    counts = np.array(values.shape) // factors
    cut = values[tuple(slice(0, n) for n in counts * factors)]
    shape = [number for pair in zip(counts, factors, strict=True) for number in pair]
    return cut.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)


def _surface_points_xyz_mm(anatomy: Anatomy) -> dict[str, Floats]:
    """Points on each of the lung's surfaces, on fissures, and anywhere in the lung."""
    lung = anatomy.lung_mm
    surface = np.abs(lung) < 2
    near = 3.0  # mm; the lung's surface is where one of its bounds is
    masks = {
        "costal pleura": surface & (np.abs(anatomy.wall_mm) < near),
        "mediastinal pleura": surface & (np.abs(anatomy.mediastinum_mm) < near),
        "diaphragm": surface & (np.abs(anatomy.diaphragm_mm) < near),
        "fissure": (lung < -3) & (np.abs(anatomy.fissure_mm) < 1),
        "anywhere": lung < -3,
    }
    return {site: anatomy.lattice.points_xyz_mm(mask) for site, mask in masks.items()}


def _thinned(points_xyz_mm: Floats, canvas: Canvas, nodules: list[Nodule], most: int) -> Floats:
    """The first `most` points that lie in the scan, clear of nodules and of one another."""
    points = points_xyz_mm[canvas.grid.contains(points_xyz_mm)]
    for nodule in nodules:
        gaps = np.linalg.norm(points - nodule.center_xyz_mm, axis=1) - nodule.radius_mm
        points = points[gaps > CLEAR_OF_NODULE_MM]
    kept = np.empty((0, 3))
    for point in points:
        if len(kept) == most:
            break
        if not len(kept) or np.linalg.norm(kept - point, axis=1).min() >= APART_MM:
            kept = np.vstack([kept, point])
    return kept
