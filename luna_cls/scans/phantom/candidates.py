"""Points a detector would mark: every nodule, and what it takes for one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.scans.lungs import Lungs, find_lungs
from luna_cls.scans.phantom.lattice import Floats
from luna_cls.scans.phantom.nodules import Nodule
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import CTVolume

JITTER_MM = 1.5  # chosen: how far a mark lies from a nodule's centre, standard deviation along each axis
MARKS = (1, 2, 1, 1)  # chosen: on a nodule, beside the detector's own; LUNA16 has 1,557 on 1,186 in all
STRONGEST_SHARE = 0.5  # chosen
ALL = 10_000  # more points than any scan gives


def mark_nodules(nodules: list[Nodule], rng: np.random.Generator) -> Floats:
    """One or two marks `(n, 3)` on every nodule, each nearer its centre than its radius."""
    marks = []
    for nodule in nodules:
        for _ in range(int(rng.choice(MARKS))):
            jitter_mm = rng.normal(0, min(JITTER_MM, 0.4 * nodule.radius_mm), 3)
            jitter_mm *= min(1.0, 0.9 * nodule.radius_mm / float(np.linalg.norm(jitter_mm)))
            marks.append(nodule.center_xyz_mm + jitter_mm)
    return np.reshape(marks, (-1, 3))


def detect(volume: CTVolume, lungs: Lungs, rng: np.random.Generator) -> Floats:
    """What the detector marks in a finished scan, `(n, 3)`, world mm.

    The order is that in which to keep them: a half, by chance, stand where their scores put them, the others
    have changed places at random. So however few are kept, about half are of the strongest, and half of all.

    Args:
        volume: The scan.
        lungs: Where to look if the lungs cannot be found, as in a scan that shows little of them.
        rng: Source of chance.
    """
    try:
        points = propose(volume, find_lungs(volume), ALL)[COORDINATES].to_numpy()
    except InputError:
        points = propose(volume, lungs, ALL)[COORDINATES].to_numpy()
    key = np.arange(len(points), dtype=float)
    is_drawn = rng.uniform(size=len(points)) >= STRONGEST_SHARE
    key[is_drawn] = rng.permutation(key[is_drawn])
    return points[np.argsort(key, kind="stable")]


def in_nodules(points_xyz_mm: Floats, centers_xyz_mm: Floats, diameters_mm: Floats) -> NDArray[np.bool_]:
    """LUNA16's rule: a point `(n, 3)` is a nodule's if it is nearer its centre than its radius."""
    offsets = points_xyz_mm[:, None] - centers_xyz_mm
    return np.asarray((np.linalg.norm(offsets, axis=2) < diameters_mm / 2).any(axis=1))
