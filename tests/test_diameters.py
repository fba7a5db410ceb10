import numpy as np
import pandas as pd
import pytest
from directions import each_direction

from luna_cls.files import COORDINATES
from luna_cls.inference.diameters import estimate_diameters_mm
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.scans.volume import CTVolume, read_volume

LUNG_HU, TISSUE_HU = -850.0, 30.0


def _volume(draw, spacing_xyz_mm=(0.8, 0.8, 1.25), direction=None):
    """A scan of lung, 60 mm wide, its middle at (10, -20, 30) mm, with what `draw` gives for points from it.

    `draw` takes `(n, 3)` mm xyz and gives the share of tissue, 0 to 1.
    """
    direction = np.eye(3) if direction is None else direction
    shape_zyx = np.ceil(60 / np.array(spacing_xyz_mm[::-1])).astype(int)
    corner = direction @ ((shape_zyx[::-1] - 1) / 2 * spacing_xyz_mm)
    grid = Grid(shape_zyx, spacing_xyz_mm, np.array([10, -20, 30]) - corner, direction)
    points = grid.to_world_xyz_mm(np.indices(shape_zyx).reshape(3, -1).T) - [10, -20, 30]
    hu = LUNG_HU + (TISSUE_HU - LUNG_HU) * draw(points).reshape(shape_zyx)
    noise = np.random.default_rng(5).normal(0, 20, hu.shape)
    return CTVolume("ball", np.rint(hu + noise).astype(np.int16), grid)


def _ball(diameter_mm, center_xyz_mm=(0, 0, 0)):
    """A ball whose edge fades over 1 mm."""
    return lambda points: np.clip(
        diameter_mm / 2 + 0.5 - np.linalg.norm(points - center_xyz_mm, axis=1), 0, 1
    )


def _estimate(volume, *from_middle_xyz_mm):
    return estimate_diameters_mm(volume, np.array([10, -20, 30]) + np.reshape(from_middle_xyz_mm, (-1, 3)))


@pytest.mark.parametrize("diameter_mm", [4.0, 8.0, 15.0, 28.0])
def test_the_diameter_of_a_ball_is_found_from_beside_its_middle(diameter_mm):
    """From the middle and from a third of the radius away: within 8 %, the ball of 4 mm within 0.5 mm."""
    aside = diameter_mm / 6 * np.array([0.6, -0.48, 0.64])

    found = _estimate(_volume(_ball(diameter_mm)), (0, 0, 0), aside)

    np.testing.assert_allclose(found, diameter_mm, atol=max(0.5, 0.08 * diameter_mm))


@each_direction
def test_it_does_not_matter_how_the_scan_lies(direction):
    """A ball of 10 mm, 4 mm beside the scan's middle, is found to be 9.4 to 10.6 mm."""
    volume = _volume(_ball(10.0, (4, 0, -3)), direction=direction)

    assert 9.4 < _estimate(volume, (4, 1, -3))[0] < 10.6


def test_vessels_and_chest_wall_are_no_part_of_it():
    """A ball of 10 mm half sunk in the wall, and one on a vessel of 3 mm: both within 10 %."""

    def on_the_wall(points):
        return np.maximum(_ball(10.0)(points), np.clip(points[:, 0] - 1.0, 0, 1))

    def on_a_vessel(points):
        return np.maximum(_ball(10.0)(points), np.clip(2.0 - np.linalg.norm(points[:, 1:], axis=1), 0, 1))

    np.testing.assert_allclose(_estimate(_volume(on_the_wall), (-1, 0, 0)), 10, rtol=0.1)
    np.testing.assert_allclose(_estimate(_volume(on_a_vessel), (0, 1, 0)), 10, rtol=0.1)


def test_a_cavity_is_no_surface():
    """A ball of 16 mm with air of 7 mm inside is measured from outside: within 10 %."""
    volume = _volume(lambda points: _ball(16.0)(points) - _ball(7.0, (1, 0, 0))(points))

    np.testing.assert_allclose(_estimate(volume, (0, 0, 0)), 16, rtol=0.1)


def test_where_there_is_nothing_there_is_no_diameter():
    """Plain lung, a point outside the scan, and no point: NaN, NaN, and none; the ball beside has one."""
    volume = _volume(_ball(8.0))

    found = _estimate(volume, (20, 18, -15), (1000, 0, 0), (0, 0, 0))

    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(8, abs=0.6)
    assert estimate_diameters_mm(volume, np.empty((0, 3))).shape == (0,)


@pytest.mark.slow
def test_nodules_of_phantom_scans_are_measured(tmp_path):
    """24 in two scans, from up to a third of the radius away: half within 8 %, three in four within 16 %."""
    taken = Acquisition(num_slices=(100, 100), slice_mm=(1.5,))
    tree = LunaTree.open(write_phantom(tmp_path / "tree", 2, 31, num_nodules=12, acquisition=taken).root)
    nodules = pd.read_csv(tree.root / "nodules.csv")
    rng = np.random.default_rng(0)
    away = rng.normal(size=(len(nodules), 3))
    away *= (rng.uniform(0, 1 / 6, len(nodules)) / np.linalg.norm(away, axis=1))[:, None]
    nodules[COORDINATES] += away * nodules["diameter_mm"].to_numpy()[:, None]

    errors = []
    for uid, own in nodules.groupby("seriesuid"):
        found = estimate_diameters_mm(read_volume(tree.scan_paths[uid]), own[COORDINATES])
        errors.append(np.abs(found / own["diameter_mm"].to_numpy() - 1))

    errors = np.nan_to_num(np.concatenate(errors), nan=1.0)
    assert len(errors) > 15
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.75) < 0.16


@pytest.mark.slow
@pytest.mark.real_data
def test_real_nodules_are_measured(real_data):
    """The four nodules of two scans come out at most 13 % from the mean of the radiologists' diameters."""
    tree = LunaTree.open(real_data / "lidc")
    nodules = pd.read_csv(real_data / "lidc" / "annotations.csv")

    for uid, own in nodules.groupby("seriesuid"):
        found = estimate_diameters_mm(read_volume(tree.scan_paths[uid]), own[COORDINATES])
        np.testing.assert_allclose(found, own["diameter_mm"], rtol=0.13)
