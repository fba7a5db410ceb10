import numpy as np
import pandas as pd
import pytest
from directions import each_direction
from matplotlib.image import imread

from luna_cls.reports.contact_sheet import upright, write_cube_sheet, write_montage, write_scan_sheet
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import CTVolume


@each_direction
def test_a_scan_is_turned_upright(direction):
    """Whichever way a scan lies, x grows with the last index, y and z likewise; points keep their voxels."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 400, (9, 11, 13), np.int16)
    volume = CTVolume("1.2.3", hu, Grid(hu.shape, (0.7, 0.8, 2.5), (-10.0, 20.0, 30.0), direction))
    places = rng.integers(0, hu.shape, (50, 3))
    points_xyz_mm = volume.grid.to_world_xyz_mm(places)

    turned, spacing_zyx_mm, to_upright = upright(volume)

    there = np.rint(to_upright(points_xyz_mm)).astype(int)
    np.testing.assert_array_equal(turned[tuple(there.T)], hu[tuple(places.T)])
    if np.isin(np.abs(direction), (0, 1)).all():
        steps_zyx_mm = np.diff(points_xyz_mm[:, ::-1], axis=0)
        np.testing.assert_allclose(np.diff(there, axis=0) * spacing_zyx_mm, steps_zyx_mm, atol=1e-6)


def test_sheets_are_drawn_of_any_tree(small_tree, tmp_path):
    """Four scans are four rows of pictures; without any candidate there still is a sheet of scans."""
    tree = LunaTree.open(small_tree)
    candidates = tree.candidates()

    write_scan_sheet(tree, candidates, tmp_path / "scans.png")
    write_scan_sheet(tree, candidates[:0], tmp_path / "one.png", most=1)
    write_cube_sheet(tree, candidates, tmp_path / "cubes.png")

    assert imread(tmp_path / "scans.png").shape[0] > 3 * imread(tmp_path / "one.png").shape[0]
    assert imread(tmp_path / "cubes.png").std() > 0.1


@pytest.mark.parametrize("count", [0, 1, 12, 13])
def test_a_montage_has_a_row_for_every_twelve(tmp_path, count):
    """0, 1 and 12 cubes take one row; 13 take two."""
    cube = np.zeros((31, 31, 31), np.int16)

    write_montage({"some": [(cube, "0.5")] * count}, tmp_path / "montage.png")

    assert imread(tmp_path / "montage.png").shape[0] == (240 if count == 13 else 140)


def test_cubes_of_one_class_alone_are_drawn(small_tree, tmp_path):
    """A tree without a nodule has an empty group of them; candidates of other scans are passed over."""
    tree = LunaTree.open(small_tree)
    candidates = tree.candidates()

    elsewhere = candidates.assign(seriesuid="1.2.3")  # as one subset of LUNA16 with all its candidates
    write_cube_sheet(
        tree, pd.concat([candidates[candidates["class"] == 0], elsewhere]), tmp_path / "cubes.png"
    )

    assert imread(tmp_path / "cubes.png").max() > 0.2
