"""Lung nodules: how many, how large, of which kind, where, and what they look like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.lattice import Canvas, Field, Floats
from luna_cls.scans.phantom.strokes import Brush
from luna_cls.scans.phantom.vessels import Tree

MEAN_PER_SCAN, MOST_PER_SCAN = 3.0, 6  # chosen: LUNA16 has 1.3 a scan, too few to learn from in a small set
# Shares of diameters in LUNA16's annotations.csv: 3 to 6, 6 to 10, 10 to 30 mm.
DIAMETER_EDGES_MM = (3.2, 6.0, 10.0, 30.0)
DIAMETER_SHARES = (0.42, 0.34, 0.24)
# Chosen, after the mix of a screening population: solid nodules are about three in four.
KIND_SHARES = {"solid": 0.70, "part-solid": 0.10, "ground-glass": 0.11, "calcified": 0.09}
LEAST_SUBSOLID_MM = 6.0  # smaller ones drown in noise; what would have been one is solid
SITE_SHARES = {"free": 0.32, "vessel": 0.23, "pleura": 0.45}
HU_RANGES = {
    "solid": (0.0, 60.0),
    "part-solid": (-620.0, -420.0),  # its outer part; the core is solid
    "ground-glass": (-650.0, -400.0),
    "calcified": (200.0, 700.0),
}
GAP_MM = 4.0  # between two nodules' surfaces
TRIES = 60  # places tried for a nodule before it is given up


@dataclass(frozen=True, eq=False)
class Nodule:
    """A nodule to draw.

    Args:
        center_xyz_mm: Its centre in the body frame.
        diameter_mm: Diameter of the sphere of its mean radius.
        kind: A key of `KIND_SHARES`.
        hu: Its attenuation before the scanner blurs it.
        waves: Its outline: `(k, 5)` direction xyz, height and phase of each ripple.
        spikes_xyz: Tips `(k, 3)` of spicules, from the centre, in radii.
        stretch_xyz: Factors on its three axes.
        core_xyz: Middle of a solid or calcified core, from the centre, in radii.
        core_size: Size of that core, in radii.
    """

    center_xyz_mm: Floats
    diameter_mm: float
    kind: str
    hu: float
    waves: Floats
    spikes_xyz: Floats
    stretch_xyz: Floats
    core_xyz: Floats
    core_size: float

    @property
    def radius_mm(self) -> float:
        """Half the diameter."""
        return self.diameter_mm / 2


def place_nodules(
    anatomy: Anatomy, trees: list[Tree], canvas: Canvas, lungs: NDArray[np.uint8], rng: np.random.Generator
) -> list[Nodule]:
    """Draws a scan's nodules; no two touch, and each lies in the scan, its centre in the lung mask."""
    wanted = min(int(rng.poisson(MEAN_PER_SCAN)), MOST_PER_SCAN)
    nodules: list[Nodule] = []
    for _ in range(wanted):
        diameter_mm = draw_diameter_mm(rng)
        site = str(rng.choice(list(SITE_SHARES), p=list(SITE_SHARES.values())))
        for center_xyz_mm in _places_xyz_mm(anatomy, trees, site, diameter_mm / 2, rng):
            if _fits(center_xyz_mm, diameter_mm / 2, canvas, lungs, nodules):
                nodules.append(_draw_nodule(center_xyz_mm, diameter_mm, rng))
                break
    return nodules


def draw_nodule(hu: Field, brush: Brush, nodule: Nodule) -> None:
    """Draws a nodule into a scan. Tissue brighter than the nodule stays as it is."""
    if nodule.kind == "part-solid":
        _brighten(hu, brush, nodule, nodule.hu, 1.2)
        _brighten(hu, brush, _core(nodule), 20.0, 0.8)
    elif nodule.kind == "ground-glass":
        _brighten(hu, brush, nodule, nodule.hu, 1.2)
    elif nodule.kind == "calcified":
        _brighten(hu, brush, nodule, 40.0, 0.0)
        _brighten(hu, brush, _core(nodule), nodule.hu, 1.0)
    else:
        _brighten(hu, brush, nodule, nodule.hu, 0.0)
    _draw_spikes(hu, brush, nodule)


def _core(nodule: Nodule) -> Nodule:
    """The dense part of a nodule, as a nodule of its own within the first."""
    return replace(
        nodule,
        center_xyz_mm=nodule.center_xyz_mm + nodule.core_xyz * nodule.radius_mm,
        diameter_mm=nodule.diameter_mm * nodule.core_size,
        waves=nodule.waves * (1, 1, 1, 2, 1) + (0, 0, 0, 0, 2),  # more ragged, and not the outline again
    )


def draw_diameter_mm(rng: np.random.Generator) -> float:
    """A diameter with LUNA16's shares of small, middle and large."""
    band = int(rng.choice(3, p=DIAMETER_SHARES))
    low, high = DIAMETER_EDGES_MM[band], DIAMETER_EDGES_MM[band + 1]
    if band < 2:
        return float(rng.uniform(low, high))
    return float(min(high, low + rng.exponential(5.0)))  # 5 mm: the mean above 10 mm is 15 in LUNA16


def _places_xyz_mm(
    anatomy: Anatomy, trees: list[Tree], site: str, radius_mm: float, rng: np.random.Generator
) -> Floats:
    """Centres to try for a nodule of this radius, in random order."""
    depth_mm = -anatomy.lung_mm
    if site == "vessel":
        nodes = [tree.points_xyz_mm[(tree.radius_mm > 0.5) & (tree.radius_mm < 2.2)] for tree in trees]
        places = rng.choice(np.vstack(nodes), TRIES)
        places = places + 0.6 * radius_mm * _directions(TRIES, rng)
        return places[anatomy.lattice.at(depth_mm, places) > radius_mm + 1.0]
    if site == "pleura":
        # From nearly half sunk into the pleura to only just touching it; deeper, it could not be seen.
        wanted_mm = rng.uniform(0.45, 1.0) * radius_mm
        where = np.abs(depth_mm - wanted_mm) < 1.0
    else:
        where = depth_mm > radius_mm + 2.0
    points = anatomy.lattice.points_xyz_mm(where)
    if not len(points):
        return points
    return rng.choice(points, TRIES) + rng.uniform(-0.4, 0.4, (TRIES, 3))


def _fits(
    center_xyz_mm: Floats, radius_mm: float, canvas: Canvas, lungs: NDArray[np.uint8], others: list[Nodule]
) -> bool:
    reach = np.array([center_xyz_mm - radius_mm, center_xyz_mm + radius_mm])
    if not canvas.grid.contains(reach).all():
        return False
    z, y, x = np.rint(canvas.grid.to_voxel_zyx(center_xyz_mm)).astype(int)
    if not lungs[z, y, x]:
        return False
    gaps = [
        np.linalg.norm(center_xyz_mm - other.center_xyz_mm) - 1.4 * (radius_mm + other.radius_mm)
        for other in others  # 1.4: ripples and stretch reach beyond the mean radius
    ]
    return all(gap > GAP_MM for gap in gaps)


def _draw_nodule(center_xyz_mm: Floats, diameter_mm: float, rng: np.random.Generator) -> Nodule:
    kind = str(rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
    if diameter_mm < LEAST_SUBSOLID_MM and kind in ("part-solid", "ground-glass"):
        kind = "solid"
    shape = str(rng.choice(["round", "lobulated", "spiculated"], p=[0.45, 0.35, 0.20]))
    height = {"round": 0.05, "lobulated": 0.13, "spiculated": 0.10}[shape]
    frequencies = rng.normal(0, 2.6, (8, 3))  # 2.6: about two to four lobes around the circumference
    heights = height * rng.uniform(0.4, 1.0, 8)
    waves = np.column_stack([frequencies, heights, rng.uniform(0, 2 * np.pi, 8)])
    spiky = shape == "spiculated" and diameter_mm > 6 and kind in ("solid", "part-solid")
    spikes = int(rng.integers(6, 16)) if spiky else 0
    stretch = rng.uniform(0.82, 1.22, 3)
    core_size = float(rng.uniform(0.35, 0.65))
    return Nodule(
        center_xyz_mm,
        diameter_mm,
        kind,
        float(rng.uniform(*HU_RANGES[kind])),
        waves,
        _directions(spikes, rng) * rng.uniform(1.25, 1.75, (spikes, 1)),
        stretch / np.cbrt(stretch.prod()),
        core_xyz=0.6 * core_size * rng.uniform() * _directions(1, rng)[0],  # the core holds the centre
        core_size=core_size,
    )


def _brighten(hu: Field, brush: Brush, nodule: Nodule, value_hu: float, edge_mm: float) -> None:
    """Draws the nodule's shape; `edge_mm` is how soft its edge is."""
    reach_mm = 1.8 * nodule.radius_mm + 2
    (box,) = brush.canvas.boxes([nodule.center_xyz_mm - reach_mm], [nodule.center_xyz_mm + reach_mm])
    cx, cy, cz = nodule.center_xyz_mm.astype(np.float32)
    sx, sy, sz = nodule.stretch_xyz.astype(np.float32)

    def distance(z: Field, y: Field, x: Field) -> Field:
        z, y, x = (z - cz) / sz, (y - cy) / sy, (x - cx) / sx
        away = np.sqrt(z * z + y * y + x * x)
        unit = 1 / np.maximum(away, np.float32(0.3))
        ripple = np.zeros_like(away)
        for kx, ky, kz, height, phase in nodule.waves.astype(np.float32):
            ripple += height * np.sin((x * kx + y * ky + z * kz) * unit + phase)
        return away - np.float32(nodule.radius_mm) * (1 + ripple)

    part = brush.fill(box, distance, edge_mm)
    here = hu[box]
    np.maximum(here, here + part * (value_hu - here), out=here)


def _draw_spikes(hu: Field, brush: Brush, nodule: Nodule) -> None:
    """Thin strands from the nodule into the lung around it."""
    count = len(nodule.spikes_xyz)
    if not count:
        return
    starts = nodule.center_xyz_mm + 0.5 * nodule.radius_mm * nodule.spikes_xyz
    ends = nodule.center_xyz_mm + nodule.radius_mm * nodule.spikes_xyz
    thick = np.full(count, min(1.1, 0.16 * nodule.radius_mm))
    for box, part in brush.tubes(starts, ends, thick, np.full(count, 0.15)):
        here = hu[box]
        np.maximum(here, here + part * (-50.0 - here), out=here)  # -50: strands are thin and partly lung


def _directions(count: int, rng: np.random.Generator) -> Floats:
    """Unit vectors `(count, 3)`, evenly over the sphere."""
    vectors = rng.normal(size=(count, 3))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
