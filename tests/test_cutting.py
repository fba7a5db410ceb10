import re

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from directions import IDENTITY, each_direction
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from luna_cls.cubes.cutting import CubeSpec, OutsideScanError, cut_cubes
from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import CTVolume, find_scans, read_volume


def _noise(shape_zyx=(20, 22, 24), spacing=(0.7, 0.8, 1.25), origin=(-195, 12.5, -378), direction=IDENTITY):
    hu = np.random.default_rng(7).integers(-1000, 2000, shape_zyx).astype(np.int16)
    return CTVolume("noise", hu, Grid(shape_zyx, spacing, origin, direction))


def _ramp():
    """HU = 100 z + 10 y + 4 x, on voxels of 1 mm, the first at the world's origin."""
    z, y, x = np.ogrid[:12, :14, :16]
    hu = (100 * z + 10 * y + 4 * x).astype(np.int16)
    return CTVolume("ramp", hu, Grid(hu.shape, (1, 1, 1), (0, 0, 0)))


def _image(volume):
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.grid.spacing_xyz_mm.tolist())
    image.SetOrigin(volume.grid.origin_xyz_mm.tolist())
    image.SetDirection(volume.grid.direction.ravel().tolist())
    return image


def _points_of_cube(center_xyz_mm, spec):
    """World points `(size, size, size, 3)`, xyz mm, of a cube's voxels, axes z, y, x."""
    z, y, x = np.meshgrid(*[spec.offsets_mm] * 3, indexing="ij")
    return np.stack([x, y, z], axis=-1) + center_xyz_mm


def _assert_cut_as_simpleitk(volume, centers_xyz_mm, spec):
    """No voxel inside the scan is more than 1 HU from SimpleITK's, and every voxel outside is air."""
    image = _image(volume)
    for center, cube in zip(centers_xyz_mm, cut_cubes(volume, centers_xyz_mm, spec), strict=True):
        points = _points_of_cube(center, spec)
        resampled = sitk.Resample(
            image, [spec.size_vox] * 3, sitk.Transform(), sitk.sitkLinear,
            points[0, 0, 0].tolist(), [spec.spacing_mm] * 3, IDENTITY.ravel().tolist(), -1000.0,
        )  # fmt: skip
        places = volume.grid.to_voxel_zyx(points.reshape(-1, 3)).reshape(points.shape)
        depth = np.minimum(places + 0.5, np.array(volume.hu.shape) - 0.5 - places).min(axis=-1)
        inside, outside = depth > 1e-3, depth < -1e-3  # on the border itself rounding decides
        expected = sitk.GetArrayFromImage(resampled).astype(int)
        np.testing.assert_array_less(np.abs(cube - expected)[inside], 2)
        assert (cube[outside] == -1000).all()


@pytest.mark.parametrize(
    ("center_xyz_mm", "middle"),
    [((8.0, 7.0, 6.0), 702), ((8.25, 7.3, 6.47), 753), ((3.75, 5.5, 4.11), 481)],
    ids=["on a voxel", "between", "between, too"],
)
def test_a_ramp_has_the_value_worked_out_by_hand(center_xyz_mm, middle):
    """On HU = 100 z + 10 y + 4 x, a step of 1 mm is exactly 100, 10 and 4 HU, and the middle is the sum."""
    cube = cut_cubes(_ramp(), [center_xyz_mm], CubeSpec(3, 1.0))[0]

    step = np.array([-1, 0, 1])
    np.testing.assert_array_equal(cube, middle + 100 * step[:, None, None] + 10 * step[:, None] + 4 * step)


def test_a_cube_of_even_edge_has_its_center_between_voxels():
    """Two voxels of 1 mm lie 0.5 mm before and behind the center: 50, 5 and 2 HU along z, y and x."""
    cube = cut_cubes(_ramp(), [(8.0, 7.0, 6.0)], CubeSpec(2, 1.0))[0]

    sides = np.array([-1, 1])
    np.testing.assert_array_equal(cube, 702 + 50 * sides[:, None, None] + 5 * sides[:, None] + 2 * sides)


def test_a_cube_of_one_voxel_is_the_value_at_the_center():
    """Size 1 reads the scan at the points themselves."""
    cubes = cut_cubes(_ramp(), [(8.25, 7.3, 6.47), (0, 0, 0)], CubeSpec(1))

    assert cubes.shape == (2, 1, 1, 1)
    assert cubes.ravel().tolist() == [753, 0]


def test_the_spacing_of_the_cube_scales_its_steps():
    """At half a millimetre the ramp's steps are 50, 5 and 2 HU."""
    cube = cut_cubes(_ramp(), [(8.0, 7.0, 6.0)], CubeSpec(5, 0.5))[0].astype(int)

    assert cube[2, 2, 2] == 702
    assert np.unique(np.diff(cube, axis=0)).tolist() == [50]
    assert np.unique(np.diff(cube, axis=1)).tolist() == [5]
    assert np.unique(np.diff(cube, axis=2)).tolist() == [2]


@each_direction
def test_a_cube_lies_along_the_worlds_axes(direction):
    """However the scan lies, a world that brightens by 30, 5 and 2 HU/mm along z, y and x is cut as such."""
    grid = Grid((30, 30, 30), (1.0, 1.1, 0.9), (5.0, -8.0, 20.0), direction)
    places = np.stack(np.meshgrid(*[np.arange(30)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    world = grid.to_world_xyz_mm(places) - grid.to_world_xyz_mm([15, 15, 15])
    hu = np.rint(world @ [2, 5, 30]).astype(np.int16).reshape(30, 30, 30)

    cube = cut_cubes(CTVolume("world", hu, grid), [grid.to_world_xyz_mm([15, 15, 15])], CubeSpec(9))[0]

    step = np.arange(-4, 5)
    expected = 30 * step[:, None, None] + 5 * step[:, None] + 2 * step
    np.testing.assert_allclose(cube, expected, rtol=0, atol=1)  # the world was rounded to whole HU


@each_direction
@pytest.mark.parametrize(
    "spec", [CubeSpec(), CubeSpec(16, 0.6), CubeSpec(9, 2.0), CubeSpec(1)], ids=["31", "16", "9", "1"]
)
def test_cubes_are_those_of_simpleitk(direction, spec):
    """Cubes in noise, some reaching outside, differ by at most 1 HU from SimpleITK's linear resampling."""
    volume = _noise(direction=direction)
    places = np.random.default_rng(3).uniform(-0.49, np.array(volume.hu.shape) - 0.51, (6, 3))

    _assert_cut_as_simpleitk(volume, volume.grid.to_world_xyz_mm(places), spec)


@st.composite
def directions(draw):
    axes = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    size = draw(st.sampled_from([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1.0, 45.0, 180.0]))
    angles = [size * share / 100 for share in draw(st.tuples(*[st.integers(-100, 100)] * 3))]
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ (np.eye(3)[axes] * signs)


@settings(deadline=None, max_examples=60)
@given(
    shape_zyx=st.tuples(*[st.integers(1, 14)] * 3),
    spacing_xyz_mm=st.tuples(*[st.floats(0.3, 4)] * 3),
    origin_xyz_mm=st.tuples(*[st.floats(-500, 500)] * 3),
    direction=directions(),
    center=st.tuples(*[st.floats(0, 1)] * 3),
    spec=st.builds(CubeSpec, st.integers(1, 12), st.floats(0.3, 3)),
)
@example((1, 1, 1), (1, 1, 1), (0, 0, 0), IDENTITY, (0.5, 0.5, 0.5), CubeSpec(3))
def test_any_cube_is_simpleitks(shape_zyx, spacing_xyz_mm, origin_xyz_mm, direction, center, spec):
    """Whatever the scan's shape, spacing, origin and direction, no voxel is 2 HU away from SimpleITK's."""
    volume = _noise(shape_zyx, spacing_xyz_mm, origin_xyz_mm, direction)
    place_zyx_vox = -0.49 + np.array(center) * (np.array(shape_zyx) - 0.02)

    _assert_cut_as_simpleitk(volume, volume.grid.to_world_xyz_mm([place_zyx_vox]), spec)


@pytest.mark.real_data
def test_real_cubes_are_those_of_simpleitk(real_data):
    """All 157 candidates of two real scans are cut within 1 HU of SimpleITK."""
    candidates = pd.read_csv(real_data / "lidc" / "candidates_V2.csv", dtype={"seriesuid": str})
    count = 0
    for path, _ in find_scans([real_data / "lidc"]):
        volume = read_volume(path)
        centers = candidates.loc[candidates["seriesuid"] == volume.series_uid, ["coordX", "coordY", "coordZ"]]
        _assert_cut_as_simpleitk(volume, centers.to_numpy(), CubeSpec())
        count += len(centers)

    assert count == 157


def test_outside_the_scan_there_is_air():
    """Around the corner voxel, a cube of 5 has 3 x 3 x 3 voxels in the scan; the other 98 hold -1000 HU."""
    volume = CTVolume("even", np.full((10, 10, 10), 500, np.int16), Grid((10, 10, 10), (1, 1, 1), (0, 0, 0)))

    cube = cut_cubes(volume, [(0, 0, 0)], CubeSpec(5))[0]

    assert (cube[2:, 2:, 2:] == 500).all()
    assert (cube == -1000).sum() == 98


def test_the_scan_reaches_half_a_voxel_beyond_its_outermost_centers():
    """0.5 voxels beyond the last centre is scan; 0.6 voxels beyond is air."""
    volume = CTVolume("even", np.full((4, 4, 4), 500, np.int16), Grid((4, 4, 4), (1, 1, 1), (0, 0, 0)))

    just_in = cut_cubes(volume, [(3.4, 0, 0)], CubeSpec(3, 0.1))[0]
    just_out = cut_cubes(volume, [(3.5, 0, 0)], CubeSpec(3, 0.1))[0]

    assert just_in[1, 1].tolist() == [500, 500, 500]
    assert just_out[1, 1].tolist() == [500, 500, -1000]


def test_the_first_point_outside_is_named():
    """A point outside is refused, never moved: the message names its place in the list, the scan and mm."""
    centers = [(1, 1, 1), (1, 1, 11.6), (-5, 1, 1)]

    with pytest.raises(OutsideScanError, match=re.escape("Point 1 lies outside scan ramp.")) as refusal:
        cut_cubes(_ramp(), centers)

    assert "[1.0, 1.0, 11.6] mm" in str(refusal.value)
    assert issubclass(OutsideScanError, InputError)


def test_a_point_that_is_no_number_is_outside():
    """NaN is nowhere in the scan."""
    with pytest.raises(OutsideScanError, match="Point 0"):
        cut_cubes(_ramp(), [(np.nan, 1, 1)])


@each_direction
def test_no_centers_give_no_cubes(direction):
    """An empty list of points is an empty array of whole cubes."""
    cubes = cut_cubes(_noise(direction=direction), np.empty((0, 3)))

    assert cubes.shape == (0, 31, 31, 31)
    assert cubes.dtype == np.int16


@pytest.mark.parametrize(
    ("size_vox", "spacing_mm"), [(0, 1.0), (-3, 1.0), (31, 0.0), (31, -1.0), (31, np.nan), (31, np.inf)]
)
def test_a_cube_without_extent_is_refused(size_vox, spacing_mm):
    """Size and spacing must be positive and finite."""
    with pytest.raises(InputError, match="positive size and spacing"):
        CubeSpec(size_vox, spacing_mm)
