"""Arteries, veins and bronchi: trees that fill a lung and taper as they branch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_cls.scans.phantom.anatomy import Anatomy
from luna_cls.scans.phantom.build import CARINA_XYZ_MM, HILUM_XYZ_MM
from luna_cls.scans.phantom.lattice import Field, Floats
from luna_cls.scans.phantom.strokes import Brush

NODES_PER_TREE = 2600  # chosen: as many dots and strands on a slice as real scans show
DETOUR = 0.35  # chosen: 0 gives the shortest tree, 1 a straight line to every point
MURRAY = 2.6  # 3 in Murray's law; 2.6 to 2.9 measured in pulmonary arteries
TIP_RADIUS_MM = (0.25, 0.48)  # chosen: below a voxel
VESSEL_DEPTH_MM = 3.0  # the lung's outermost millimetres show no vessel
BRONCHUS_FROM_MM = 1.0  # chosen: the smallest artery whose bronchus CT shows
WALL_HU = 20.0  # chosen: a little below muscle


@dataclass(frozen=True, eq=False)
class Tree:
    """A branching tube.

    Args:
        points_xyz_mm: Nodes `(n, 3)`, the root first.
        parent: Each node's parent; the root is its own.
        radius_mm: Radius at each node.
    """

    points_xyz_mm: Floats
    parent: NDArray[np.intp]
    radius_mm: Floats


def grow_trees(anatomy: Anatomy, rng: np.random.Generator) -> list[Tree]:
    """An artery and a vein for each lung: left artery, left vein, right artery, right vein."""
    trees = []
    for on_left in (True, False):
        inside = (anatomy.lung_mm < -VESSEL_DEPTH_MM) & (anatomy.left == on_left)
        places_xyz_mm = anatomy.lattice.points_xyz_mm(inside)
        for shift_z_mm in (0.0, -14.0):  # veins enter the heart below the arteries
            hilum = np.array(HILUM_XYZ_MM) * ((1 if on_left else -1), 1, 1) + (0, 0, shift_z_mm)
            root_xyz_mm = hilum * anatomy.build.size + rng.normal(0, 2, 3)
            count = min(NODES_PER_TREE, len(places_xyz_mm))
            chosen = rng.choice(places_xyz_mm, count, replace=False, shuffle=False)
            targets_xyz_mm = chosen + rng.uniform(-1.2, 1.2, chosen.shape)
            trees.append(_grow(np.vstack([root_xyz_mm, targets_xyz_mm]), anatomy.build.calibre, rng))
    return trees


def vessel_part(brush: Brush, trees: list[Tree]) -> Field:
    """The part of each voxel that vessels fill, 0 to 1."""
    part = np.zeros(brush.canvas.grid.shape_zyx, np.float32)
    for tree in trees:
        start, end = tree.parent[1:], np.arange(1, tree.parent.size)
        radii = np.minimum(tree.radius_mm[start], 1.6 * tree.radius_mm[end])
        _draw(part, brush, tree.points_xyz_mm[start], tree.points_xyz_mm[end], radii, tree.radius_mm[end])
    return part


def bronchi_parts(brush: Brush, anatomy: Anatomy, trees: list[Tree]) -> tuple[Field, Field]:
    """The parts of each voxel inside an airway's outer wall, and inside its lumen, 0 to 1.

    A bronchus runs beside its artery and is about as wide; windpipe and main bronchi join them.
    """
    outer, lumen = (np.zeros(brush.canvas.grid.shape_zyx, np.float32) for _ in range(2))
    size = anatomy.build.size
    carina = np.array(CARINA_XYZ_MM) * size
    for tree, side in ((trees[0], 1), (trees[2], -1)):
        beside = np.array([0.35 * side, 0.85, 0.4])  # behind and outside the artery
        points = tree.points_xyz_mm + 1.9 * tree.radius_mm[:, None] * beside
        start, end = tree.parent[1:], np.arange(1, tree.parent.size)
        shown = tree.radius_mm[end] > BRONCHUS_FROM_MM
        start, end = start[shown], end[shown]
        radii = np.minimum(0.95 * tree.radius_mm, 4.5)
        _draw(outer, brush, points[start], points[end], radii[start], radii[end])
        _draw(lumen, brush, points[start], points[end], 0.68 * radii[start], 0.68 * radii[end])
        _draw_airway(outer, lumen, brush, carina, points[0], (6.8 * size, 5.2))
    windpipe_top = np.array([2.0, 8.0, 260.0]) * size
    _draw_airway(outer, lumen, brush, carina, windpipe_top, (9.5 * size, 9.5 * size))
    return outer, lumen


def _draw_airway(
    outer: Field, lumen: Field, brush: Brush, start: Floats, end: Floats, radii_mm: tuple[float, float]
) -> None:
    first, last = np.array([radii_mm[0]]), np.array([radii_mm[1]])
    _draw(outer, brush, start[None], end[None], first, last)
    _draw(lumen, brush, start[None], end[None], first - 1.5, last - 1.5)  # 1.5 mm: a large airway's wall


def _draw(
    part: Field, brush: Brush, starts: Floats, ends: Floats, start_radii: Floats, end_radii: Floats
) -> None:
    for box, filled in brush.tubes(starts, ends, start_radii, end_radii):
        np.maximum(part[box], filled, out=part[box])


def _grow(points_xyz_mm: Floats, calibre: float, rng: np.random.Generator) -> Tree:
    """Joins points to a tree: each in turn to the node that costs least.

    The cost is the new piece's length plus `DETOUR` times the way back to the root, which gives
    the shapes of trees that grow (Cuntz et al. 2010, doi 10.1371/journal.pcbi.1000877).
    """
    count = len(points_xyz_mm)
    x_mm, y_mm, z_mm = np.ascontiguousarray(points_xyz_mm.T)

    def away_mm(node: int) -> Floats:
        dx, dy, dz = x_mm - x_mm[node], y_mm - y_mm[node], z_mm - z_mm[node]
        return np.sqrt(dx * dx + dy * dy + dz * dz)

    parent = np.zeros(count, np.intp)
    order = [0]
    from_root_mm = np.zeros(count)
    cost = away_mm(0)
    cost[0] = np.inf  # what has been joined
    while len(order) < count:
        node = int(cost.argmin())
        order.append(node)
        away = away_mm(node)
        from_root_mm[node] = from_root_mm[parent[node]] + away[parent[node]]
        cost[node] = np.inf
        offer = away + DETOUR * from_root_mm[node]
        better = (offer < cost) & (cost < np.inf)
        cost[better] = offer[better]
        parent[better] = node
    radius_mm = calibre * _radii(parent, order, rng)
    return Tree(_smoothed(points_xyz_mm, parent, radius_mm), parent, radius_mm)


def _radii(parent: NDArray[np.intp], order: list[int], rng: np.random.Generator) -> Floats:
    """Murray's law: a parent's radius to the power `MURRAY` is the sum of its children's."""
    tips = rng.uniform(*TIP_RADIUS_MM, parent.size) ** MURRAY
    power = np.zeros(parent.size)
    for node in reversed(order[1:]):
        power[node] = max(power[node], tips[node])
        power[parent[node]] += power[node]
    return power ** (1 / MURRAY)


def _smoothed(points_xyz_mm: Floats, parent: NDArray[np.intp], radius_mm: Floats) -> Floats:
    """Straightens the tree: each node moves towards its parent and its thickest child."""
    main = np.arange(parent.size)
    by_radius = np.argsort(radius_mm[1:], kind="stable") + 1
    main[parent[by_radius]] = by_radius  # the last to be written is the thickest
    points = points_xyz_mm.copy()
    for _ in range(3):
        moved = 0.4 * points + 0.3 * points[parent] + 0.3 * points[main]
        points[1:] = moved[1:]
    return points
