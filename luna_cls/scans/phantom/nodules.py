"""Lung nodules: how many, how large, of which kind, where, and what they look like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.lattice import Box, Canvas, Field, Floats
from luna_cls.scans.phantom.strokes import Brush, Distance
from luna_cls.scans.phantom.vessels import Tree

NONE_SHARE = 0.33  # of scans; 287 of LUNA16's 888 have no nodule
# Chosen: 3.2 on average where there is one. LUNA16 has 2.0, too few to learn from in a small set.
LAST_SHARE, MOST_PER_SCAN = 0.32, 12
# Quantiles of the diameters in LUNA16's annotations.csv; 42 % lie below 6 mm, 24 % from 10.
DIAMETER_QUANTILES = (0.0, 0.01, 0.10, 0.25, 0.42, 0.50, 0.76, 0.90, 0.99, 1.0)
DIAMETERS_MM = (3.25, 3.6, 4.4, 5.1, 6.0, 6.4, 10.0, 15.5, 24.0, 32.0)
# All of the following is chosen, after the mix of a screening population: two in three are solid.
KIND_SHARES = {"solid": 0.66, "part-solid": 0.09, "ground-glass": 0.12, "calcified": 0.09, "cavitary": 0.04}
LEAST_MM = {"part-solid": 6.0, "ground-glass": 5.0, "cavitary": 8.0}  # smaller ones drown: solid instead
SHAPE_SHARES = {"round": 0.42, "lobulated": 0.38, "spiculated": 0.20}
LARGE_FROM_MM = 12.0  # large nodules are seldom round, and more often hollow
SHAPE_SHARES_OF_LARGE = {"round": 0.10, "lobulated": 0.40, "spiculated": 0.50}
HOLLOW_SHARE_OF_LARGE = 0.12
LEAST_SPICULATED_MM = 6.0
SITE_SHARES = {"free": 0.29, "vessel": 0.23, "pleura": 0.42, "fissure": 0.06}
HU_RANGES = {
    "solid": (-20.0, 70.0),
    "part-solid": (-680.0, -420.0),  # its outer part; the core is solid
    "ground-glass": (-720.0, -420.0),
    "calcified": (150.0, 800.0),
    "cavitary": (0.0, 60.0),  # its wall
}
# Chosen: standard deviation of a nodule's own unevenness.
TEXTURE_HU = {"solid": 20.0, "part-solid": 40.0, "ground-glass": 40.0, "calcified": 20.0, "cavitary": 25.0}
CAVITY_HU = -930.0
# Findings that LUNA16 lists in annotations_excluded.csv: what was too small to be called a nodule.
MICRO_DIAMETERS_MM, MICRO_PER_SCAN = (1.4, 2.9), 5
GAP_MM = 4.0  # between two nodules' surfaces
TRIES = 60  # places tried for a nodule before it is given up


@dataclass(frozen=True, eq=False)
class Nodule:
    """A nodule to draw.

    Args:
        center_xyz_mm: Its centre in the body frame.
        diameter_mm: Diameter of the sphere of its mean radius.
        kind: A key of `KIND_SHARES`.
        shape: A key of `SHAPE_SHARES`.
        attachment: A key of `SITE_SHARES`: what it touches.
        hu: Its attenuation before the scanner blurs it: of a part-solid one's outer part, a calcified one's
            core, a cavitary one's wall.
        edge_mm: Over how much its edge fades.
        waves: Its outline: `(k, 5)` direction xyz, height and phase of each ripple.
        spikes_xyz: Tips `(k, 3)` of spicules, from the centre, in radii.
        stretch_xyz: Factors on its three axes.
        core_xyz: Middle of a solid or calcified core, from the centre, in radii.
        core_size: Size of that core, in radii.
    """

    center_xyz_mm: Floats
    diameter_mm: float
    kind: str
    shape: str
    attachment: str
    hu: float
    edge_mm: float
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
    anatomy: Anatomy,
    trees: list[Tree],
    canvas: Canvas,
    lungs: NDArray[np.uint8],
    count: int | None,
    rng: np.random.Generator,
) -> list[Nodule]:
    """Draws `count` nodules as far as there is room; None draws their number too.

    No two touch, and each lies in the scan, its centre in the lung mask.
    """
    nodules: list[Nodule] = []
    for _ in range(draw_count(rng) if count is None else count):
        nodule = _draw_nodule(draw_diameter_mm(rng), rng)
        for center_xyz_mm in _places_xyz_mm(anatomy, trees, nodule.attachment, nodule.radius_mm, rng):
            if _fits(center_xyz_mm, nodule.radius_mm, canvas, lungs, nodules):
                nodules.append(replace(nodule, center_xyz_mm=center_xyz_mm))
                break
    return nodules


def place_micronodules(
    anatomy: Anatomy,
    trees: list[Tree],
    canvas: Canvas,
    lungs: NDArray[np.uint8],
    nodules: list[Nodule],
    rng: np.random.Generator,
) -> list[Nodule]:
    """Draws what is too small to count as a nodule, clear of those that count."""
    small: list[Nodule] = []
    for _ in range(int(rng.integers(MICRO_PER_SCAN, endpoint=True))):
        nodule = _draw_nodule(float(rng.uniform(*MICRO_DIAMETERS_MM)), rng)
        for center_xyz_mm in _places_xyz_mm(anatomy, trees, nodule.attachment, nodule.radius_mm, rng)[:8]:
            if _fits(center_xyz_mm, nodule.radius_mm, canvas, lungs, nodules + small):
                small.append(replace(nodule, center_xyz_mm=center_xyz_mm))
                break
    return small


def draw_nodule(hu: Field, brush: Brush, nodule: Nodule) -> None:
    """Draws a nodule into a scan. Tissue brighter than the nodule stays as it is."""
    if nodule.kind == "part-solid":
        _brighten(hu, brush, nodule, nodule.hu, nodule.edge_mm)
        _brighten(hu, brush, _core(nodule), 20.0, 0.8)
    elif nodule.kind == "calcified":
        _brighten(hu, brush, nodule, 40.0, nodule.edge_mm)
        _brighten(hu, brush, _core(nodule), nodule.hu, 1.0)
    else:
        _brighten(hu, brush, nodule, nodule.hu, nodule.edge_mm)
    if nodule.kind == "cavitary":
        _hollow(hu, brush, _core(nodule))
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
    """A diameter with the quantiles of LUNA16's annotations."""
    return float(np.interp(rng.uniform(), DIAMETER_QUANTILES, DIAMETERS_MM))


def draw_count(rng: np.random.Generator) -> int:
    """How many nodules a scan is to have: none in a third of them, few in most others, at most 12."""
    if rng.uniform() < NONE_SHARE:
        return 0
    return min(int(rng.geometric(LAST_SHARE)), MOST_PER_SCAN)


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
        # From half of the radius sunk into the pleura to just touching it; deeper, it is not seen.
        wanted_mm = rng.uniform(0.45, 1.0) * radius_mm
        where = np.abs(depth_mm - wanted_mm) < 1.0
    elif site == "fissure":
        where = (np.abs(anatomy.fissure_mm) < radius_mm) & (depth_mm > radius_mm + 2.0)
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


def _draw_nodule(diameter_mm: float, rng: np.random.Generator) -> Nodule:
    """A nodule of this size, not yet in its place."""
    large = diameter_mm >= LARGE_FROM_MM
    kind, shape, attachment = (
        str(rng.choice(list(shares), p=list(shares.values())))
        for shares in (KIND_SHARES, SHAPE_SHARES_OF_LARGE if large else SHAPE_SHARES, SITE_SHARES)
    )
    if diameter_mm < LEAST_MM.get(kind, 0):
        kind = "solid"
    if large and kind == "solid" and rng.uniform() < HOLLOW_SHARE_OF_LARGE:
        kind = "cavitary"
    if shape == "spiculated" and (diameter_mm < LEAST_SPICULATED_MM or kind in ("ground-glass", "calcified")):
        shape = "lobulated"
    height = {"round": 0.05, "lobulated": 0.14, "spiculated": 0.12}[shape]
    frequencies = rng.normal(0, 2.6, (8, 3))  # 2.6: about two to four lobes around the circumference
    heights = height * rng.uniform(0.4, 1.0, 8)
    if shape == "spiculated":  # a ragged edge beside the lobes
        frequencies = np.vstack([frequencies, rng.normal(0, 6.0, (6, 3))])
        heights = np.append(heights, rng.uniform(0.03, 0.085, 6))
    waves = np.column_stack([frequencies, heights, rng.uniform(0, 2 * np.pi, len(heights))])
    spikes = int(rng.integers(6, 18)) if shape == "spiculated" else 0
    stretch = rng.uniform(0.78, 1.28, 3)
    core_size = float(rng.uniform(0.2, 0.65) if kind == "cavitary" else rng.uniform(0.35, 0.65))
    return Nodule(
        np.zeros(3),
        diameter_mm,
        kind,
        shape,
        attachment,
        hu=float(rng.uniform(*HU_RANGES[kind])),
        edge_mm=float(
            rng.uniform(0.8, 2.5) if kind in ("part-solid", "ground-glass") else rng.uniform(0, 1.2)
        ),
        waves=waves,
        spikes_xyz=_directions(spikes, rng) * rng.uniform(1.25, 2.0, (spikes, 1)),
        stretch_xyz=stretch / np.cbrt(stretch.prod()),
        core_xyz=0.6 * core_size * rng.uniform() * _directions(1, rng)[0],  # the core holds the centre
        core_size=core_size,
    )


def _brighten(hu: Field, brush: Brush, nodule: Nodule, value_hu: float, edge_mm: float) -> None:
    """Draws the nodule's shape; `edge_mm` is how soft its edge is."""
    box = _box(brush, nodule)
    part = brush.fill(box, _outline(nodule), edge_mm)
    here = hu[box]
    np.maximum(here, here + part * (value_hu + _texture_hu(brush, box, nodule) - here), out=here)


def _texture_hu(brush: Brush, box: Box, nodule: Nodule) -> Field:
    """No nodule is even: waves of 4 to 15 mm."""
    z, y, x = (axis[part] for axis, part in zip(brush.canvas.axes_zyx_mm, box, strict=True))
    texture = np.zeros((z.size, y.size, x.size), np.float32)
    for kx, ky, kz, _, phase in nodule.waves[:6] * (0.3, 0.3, 0.3, 1, 2):
        texture += np.sin((z * kz)[:, None, None] + (y * ky)[:, None] + x * kx + phase)
    return texture * np.float32(TEXTURE_HU[nodule.kind] / np.sqrt(3))  # six sines have this deviation


def _hollow(hu: Field, brush: Brush, core: Nodule) -> None:
    """Lets air into a cavity."""
    box = _box(brush, core)
    part = brush.fill(box, _outline(core), 0.6)
    hu[box] += part * (CAVITY_HU - hu[box])


def _box(brush: Brush, nodule: Nodule) -> Box:
    reach_mm = 2.0 * nodule.radius_mm + 2
    (box,) = brush.canvas.boxes([nodule.center_xyz_mm - reach_mm], [nodule.center_xyz_mm + reach_mm])
    return box


def _outline(nodule: Nodule) -> Distance:
    """The distance to a nodule's surface."""
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

    return distance


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
