"""Lungs and proposals, in a chest of simple shapes, in phantom scans and in real ones."""

import numpy as np
import pandas as pd
import pytest
from directions import IDENTITY, each_direction

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.lungs import Lungs, find_lungs, read_lungs
from luna_cls.scans.phantom import write_phantom
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import CTVolume, find_scans, read_volume

LUNG_CENTERS_XYZ_MM = np.array([[-55.0, 0, 0], [55, 0, 0]])
LUNG_RADII_XYZ_MM = np.array([40.0, 60, 70])
NODULES = {  # centre in mm from the middle of the chest, and diameter
    "free": ((-55.0, 10.0, 20.0), 8.0),
    "small": ((60.0, -20.0, -30.0), 5.0),
    "large": ((50.0, 25.0, 30.0), 24.0),
    "at the pleura": ((-92.0, 0.0, 0.0), 10.0),
}


def _chest(direction=IDENTITY, spacing_xyz_mm=(0.9, 0.8, 1.5)):
    """Two lungs of air in a body of water in air, a trachea, a vessel 6 mm wide, and the nodules."""
    spacing = np.array(spacing_xyz_mm)
    shape_xyz = np.ceil([260, 200, 180] / spacing).astype(int)
    direction = np.reshape(direction, (3, 3))
    origin = -direction @ ((shape_xyz - 1) / 2 * spacing)
    grid = Grid(shape_xyz[::-1], spacing, origin, direction)
    places = (np.indices(grid.shape_zyx).reshape(3, -1).T[:, ::-1] - (shape_xyz - 1) / 2) * spacing
    hu = np.full(len(places), -1000.0)
    hu[((places / [125, 90, 1e9]) ** 2).sum(axis=1) < 1] = 40
    for center in LUNG_CENTERS_XYZ_MM:
        hu[(((places - center) / LUNG_RADII_XYZ_MM) ** 2).sum(axis=1) < 1] = -850
    hu[(np.hypot(places[:, 0] + 55, places[:, 1] + 20) < 3) & (np.abs(places[:, 2]) < 50)] = 40
    hu[np.hypot(places[:, 0], places[:, 1]) < 7] = -1000
    for center, diameter in NODULES.values():
        hu[((places - center) ** 2).sum(axis=1) < (diameter / 2) ** 2] = 30
    noise = np.random.default_rng(3).normal(0, 20, len(places))
    volume = CTVolume("chest", np.rint(hu + noise).reshape(grid.shape_zyx).astype(np.int16), grid)
    world = {name: (direction @ center, diameter) for name, (center, diameter) in NODULES.items()}
    return volume, world


def _volume_ml(lungs):
    return float(lungs.inside.sum() * np.prod(lungs.grid.spacing_xyz_mm) / 1000)


def _away_mm(points, center_xyz_mm):
    """How far each of the points of a table lies from one point."""
    return np.linalg.norm(points[COORDINATES].to_numpy(float) - np.asarray(center_xyz_mm, float), axis=1)


@pytest.fixture(scope="module")
def chest():
    return _chest()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A LUNA16 tree of two phantom scans with their own masks."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "tree", 2, 3, num_nodules=16, workers=2).root


def test_both_lungs_are_found_with_what_lies_in_them(chest):
    """Two ellipsoids of 704 ml each, to 5 %, with all nodules and the vessel; body and air are out."""
    volume, nodules = chest

    lungs = find_lungs(volume)

    centers = np.array([center for center, _ in nodules.values()])
    assert _volume_ml(lungs) == pytest.approx(2 * 4 / 3 * np.pi * LUNG_RADII_XYZ_MM.prod() / 1000, rel=0.05)
    assert lungs.contains(centers).all()
    assert lungs.contains([[-55, -20, 0], [55, 0, 60]]).all()
    assert not lungs.contains([[0, 60, 0], [0, -75, 0], [128, 95, 0], [1e4, 0, 0]]).any()


def test_the_trachea_alone_is_no_lung():
    """A tube of 16 x 9 mm through a body of water holds 26 ml."""
    volume, _ = _chest()
    hu = np.full_like(volume.hu, 40)
    hu[:, 120:140, 140:150] = -1000

    with pytest.raises(InputError, match="No lung was found in the scan chest"):
        find_lungs(CTVolume("chest", hu, volume.grid))


@pytest.mark.slow
def test_lungs_of_the_phantom_are_those_it_knows(phantom):
    """Of its own masks' voxels nine in ten are found, and as many of what is found are theirs."""
    for uid, path in LunaTree.open(phantom).scan_paths.items():
        known = read_lungs(phantom / "seg-lungs-LUNA16" / f"{uid}.mhd")
        found = find_lungs(read_volume(path))
        of_known = known.grid.to_world_xyz_mm(np.argwhere(known.inside)[::97])
        of_found = found.grid.to_world_xyz_mm(np.argwhere(found.inside)[::97])
        assert found.contains(of_known).mean() > 0.9
        assert known.contains(of_found).mean() > 0.9


def test_a_mask_of_luna16_is_read(write_scan, tmp_path):
    """3 and 4 are lungs, 5 is the trachea; a mask of nothing is refused."""
    values = np.uint8([[[0, 3, 4, 5]]])
    lungs = read_lungs(write_scan(tmp_path, "mask", values, (2.0, 1, 1), (10.0, 0, 0)))

    assert lungs.inside.ravel().tolist() == [False, True, True, False]
    assert lungs.contains([[12, 0, 0], [14, 0, 0], [16, 0, 0]]).tolist() == [True, True, False]
    with pytest.raises(InputError, match="marks no lung: none of its voxels is 3 or 4"):
        read_lungs(write_scan(tmp_path, "none", values * 0))


@each_direction
def test_every_nodule_is_proposed(direction):
    """Each of the four lies within its radius of a point, among the first 20, whichever way the scan lies."""
    volume, nodules = _chest(direction)

    points = propose(volume, most=20)

    assert list(points.columns) == ["seriesuid", *COORDINATES, "score"]
    assert points["score"].is_monotonic_decreasing
    assert len(points) <= 20
    for center, diameter in nodules.values():
        assert _away_mm(points, center).min() < diameter / 2


def test_points_lie_in_the_lungs_that_are_given(chest):
    """With the left half masked out, the points are the other half's two nodules, and nothing else."""
    volume, nodules = chest
    lungs = find_lungs(volume)
    inside = lungs.inside.copy()
    inside[:, :, : inside.shape[2] // 2] = False

    points = propose(volume, Lungs(inside, lungs.grid))

    assert len(points) == 2
    assert _away_mm(points, nodules["large"][0])[0] < 3
    assert _away_mm(points, nodules["small"][0])[1] < 1


def test_a_ball_scores_by_its_contrast(chest):
    """A free ball of 8 mm and 880 HU contrast scores up to 92 % of it."""
    volume, nodules = chest
    points = propose(volume)
    nearest = _away_mm(points, nodules["free"][0]).argmin()

    assert 0.75 * 880 < points["score"][nearest] < 0.95 * 880


@pytest.mark.slow
def test_nodules_of_the_phantom_are_proposed(phantom):
    """600 points a scan hit nine in ten nodules of two scans, but for those on the pleura: half of them."""
    nodules = pd.read_csv(phantom / "nodules.csv", dtype={"seriesuid": str})
    hits = pd.Series(False, nodules.index)
    for uid, path in LunaTree.open(phantom).scan_paths.items():
        points = propose(read_volume(path))
        assert len(points) <= 600
        assert (points["score"].diff().dropna() <= 0).all()
        for row, nodule in nodules[nodules["seriesuid"] == uid].iterrows():
            hits[row] = _away_mm(points, nodule[COORDINATES]).min() < nodule["diameter_mm"] / 2

    on_pleura = nodules["attachment"] == "pleura"
    assert (~on_pleura).sum() >= 10
    assert hits[~on_pleura].mean() >= 0.9
    assert hits[on_pleura].mean() >= 0.5


def test_a_vessel_is_no_ball(chest):
    """Along a vessel 6 mm wide, but for its round ends, no point scores a tenth of what each nodule does."""
    volume, nodules = chest
    points = propose(volume)
    in_vessel = np.hypot(points["coordX"] + 55, points["coordY"] + 20) < 3
    is_end = points["coordZ"].abs() > 40

    of_nodules = [points["score"][_away_mm(points, center).argmin()] for center, _ in nodules.values()]
    assert (in_vessel & ~is_end).sum() >= 3
    assert points["score"][in_vessel & ~is_end].max() < 0.1 * min(of_nodules)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_four_real_nodules_are_proposed(real_data):
    """All four lie within their radius of one of the first ten points; lungs are 3.8 and 6.0 litres."""
    nodules = pd.read_csv(real_data / "lidc" / "annotations.csv", dtype={"seriesuid": str})
    litres, hits = {}, []
    for source in find_scans([real_data / "lidc"]):
        volume = read_volume(*source)
        lungs = find_lungs(volume)
        points = propose(volume, lungs)
        litres[source.series_uid[-6:]] = round(_volume_ml(lungs) / 1000, 1)
        assert len(points) <= 600
        for _, nodule in nodules[nodules["seriesuid"] == source.series_uid].iterrows():
            hits.append(_away_mm(points[:10], nodule[COORDINATES]).min() < nodule["diameter_mm"] / 2)

    assert hits == [True] * 4
    assert litres == {"603192": 3.8, "003264": 6.0}
