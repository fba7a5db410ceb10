import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from directions import FLIPPED_XY, IDENTITY, PERMUTED, TILTED, each_direction
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid, interpolated

millimetres = st.floats(-1000, 1000)
points = st.lists(st.tuples(*[st.floats(-600, 600)] * 3), min_size=1, max_size=4)


@st.composite
def grids(draw):
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    origin = draw(st.tuples(*[millimetres] * 3))
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    mirror = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ mirror
    return Grid((40, 48, 56), spacing, origin, direction)


@pytest.mark.parametrize(
    ("direction", "expected_xyz_mm"),
    [(IDENTITY, (11.5, 22, 32)), (FLIPPED_XY, (8.5, 18, 32)), (PERMUTED, (12, 21.5, 32))],
    ids=["aligned", "flipped", "permuted"],
)
def test_a_voxel_lies_where_a_pencil_puts_it(direction, expected_xyz_mm):
    """Voxel z=1, y=2, x=3 of spacing 0.5, 1, 2 lies 1.5, 2 and 2 mm along the x, y and z index axes."""
    grid = Grid((4, 5, 6), (0.5, 1, 2), (10, 20, 30), direction)

    actual = grid.to_world_xyz_mm([[1, 2, 3]])

    np.testing.assert_allclose(actual, [expected_xyz_mm])


@each_direction
def test_voxel_zero_is_centered_on_the_origin(direction):
    """The origin is the centre of voxel (0, 0, 0), whichever way the scan lies."""
    grid = Grid((40, 50, 60), (0.7, 0.7, 2.5), (-195.0, 12.5, -378.0), direction)

    np.testing.assert_array_equal(grid.to_world_xyz_mm([[0, 0, 0]]), [[-195.0, 12.5, -378.0]])
    np.testing.assert_array_equal(grid.to_voxel_zyx([[-195.0, 12.5, -378.0]]), [[0, 0, 0]])


@each_direction
def test_world_to_voxel_inverts_voxel_to_world(direction):
    """A point survives the round trip whichever way the scan lies."""
    grid = Grid((40, 50, 60), (0.7, 0.7, 2.5), (-195.0, 12.5, -378.0), direction)

    actual = grid.to_voxel_zyx(grid.to_world_xyz_mm([[30.0, 20.0, 10.0], [-0.25, 49.5, 0.0]]))

    np.testing.assert_allclose(actual, [[30.0, 20.0, 10.0], [-0.25, 49.5, 0.0]], atol=1e-9)


@settings(deadline=None)
@given(grid=grids(), points_xyz_mm=points)
def test_any_grid_round_trips_within_a_nanometre(grid, points_xyz_mm):
    """World to voxel to world moves no point by 1e-6 mm, for any spacing, origin and rotation."""
    there_and_back = grid.to_world_xyz_mm(grid.to_voxel_zyx(points_xyz_mm))

    np.testing.assert_allclose(there_and_back, points_xyz_mm, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(grid=grids(), place_zyx_vox=st.tuples(*[st.floats(-60, 60)] * 3))
def test_world_points_are_those_of_simpleitk(grid, place_zyx_vox):
    """A voxel coordinate means the same point to SimpleITK."""
    image = sitk.Image(grid.shape_zyx[::-1], sitk.sitkInt16)
    image.SetSpacing(grid.spacing_xyz_mm.tolist())
    image.SetOrigin(grid.origin_xyz_mm.tolist())
    image.SetDirection(grid.direction.ravel().tolist())

    expected = image.TransformContinuousIndexToPhysicalPoint(place_zyx_vox[::-1])

    np.testing.assert_allclose(grid.to_world_xyz_mm([place_zyx_vox]), [expected], rtol=0, atol=1e-6)


@each_direction
def test_contains_ends_half_a_voxel_beyond_the_outermost_centers(direction):
    """Of 4 voxels along z, -0.5 and 3.5 are inside, -0.51 and 3.51 are not; so it is along y and x."""
    grid = Grid((4, 5, 6), (0.5, 1.0, 2.0), (0.0, 0.0, 0.0), direction)
    inside = np.repeat([[0, 0, 0]], 6, axis=0) + 0.0
    inside[range(3), range(3)] = -0.499
    inside[range(3, 6), range(3)] = np.array([4, 5, 6]) - 0.501
    outside = inside.copy()
    outside[range(3), range(3)] = -0.501
    outside[range(3, 6), range(3)] = np.array([4, 5, 6]) - 0.499

    assert grid.contains(grid.to_world_xyz_mm(inside)).all()
    assert not grid.contains(grid.to_world_xyz_mm(outside)).any()


def test_contains_includes_its_border():
    """A point exactly half a voxel from the outermost centre is inside."""
    grid = Grid((4, 5, 6), (0.5, 1.0, 2.0), (0.0, 0.0, 0.0))

    np.testing.assert_array_equal(grid.contains([[-0.25, -0.5, -1.0], [2.75, 4.5, 7.0]]), [True, True])


def test_a_scan_of_one_voxel_reaches_half_a_millimetre():
    """One voxel of 1 mm holds what is no more than 0.5 mm from its centre; one point may be asked."""
    grid = Grid((1, 1, 1), (1, 1, 1), (0, 0, 0))

    assert [bool(grid.contains([x_mm, 0, 0])) for x_mm in (-0.51, -0.5, 0.5, 0.51)] == [
        False,
        True,
        True,
        False,
    ]


def test_one_millimetre_is_a_voxel_step_in_array_order():
    """With x, y, z spacings of 0.5, 1 and 2 mm, 1 mm along z, y, x is 0.5, 1 and 2 voxels."""
    aligned = Grid((4, 5, 6), (0.5, 1.0, 2.0), (10.0, 20.0, 30.0))
    flipped = Grid((4, 5, 6), (0.5, 1.0, 2.0), (10.0, 20.0, 30.0), FLIPPED_XY)

    np.testing.assert_allclose(aligned.world_step_zyx_vox(), np.diag([0.5, 1, 2]))
    np.testing.assert_allclose(flipped.world_step_zyx_vox(), np.diag([0.5, -1, -2]))


@each_direction
def test_a_world_step_leads_from_voxel_to_voxel(direction):
    """The step matrix moves a voxel coordinate as the world offset moves the point."""
    grid = Grid((40, 50, 60), (0.7, 0.6, 2.5), (-195.0, 12.5, -378.0), direction)
    center_xyz_mm = np.array([-180.0, 30.0, -350.0])
    offset_zyx_mm = np.array([3.0, -2.0, 7.5])

    stepped = grid.to_voxel_zyx(center_xyz_mm) + grid.world_step_zyx_vox() @ offset_zyx_mm

    np.testing.assert_allclose(stepped, grid.to_voxel_zyx(center_xyz_mm + offset_zyx_mm[::-1]), atol=1e-9)


def test_a_grid_cannot_be_changed():
    """What a grid was built from can change afterwards; the grid cannot."""
    origin = np.zeros(3)
    grid = Grid((4, 5, 6), (1, 1, 1), origin)
    origin[:] = 7

    np.testing.assert_array_equal(grid.origin_xyz_mm, [0, 0, 0])
    with pytest.raises(ValueError, match="read-only"):
        grid.spacing_xyz_mm[0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.spacing_xyz_mm = np.ones(3)


def test_grids_can_be_kept_in_a_set():
    """A grid is itself alone: to compare arrays would raise."""
    grid, other = (Grid((4, 5, 6), (1, 1, 1), (0, 0, 0)) for _ in range(2))

    assert len({grid, grid, other}) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape_zyx": (4, 0, 6)}, "positive axes"),
        ({"shape_zyx": (4, 5)}, "positive axes"),
        ({"spacing_xyz_mm": (0.5, 0.0, 2.0)}, "spacing must be positive"),
        ({"spacing_xyz_mm": (0.5, -1.0, 2.0)}, "spacing must be positive"),
        ({"spacing_xyz_mm": (0.5, np.nan, 2.0)}, "spacing must be positive"),
        ({"spacing_xyz_mm": (0.5, np.inf, 2.0)}, "spacing must be positive"),
        ({"spacing_xyz_mm": (0.5, 1.0)}, "spacing must be positive"),
        ({"origin_xyz_mm": (0.0, np.inf, 0.0)}, "origin must be finite"),
        ({"origin_xyz_mm": (0.0, 0.0)}, "origin must be finite"),
        ({"direction": np.eye(2)}, "3 x 3"),
        ({"direction": np.diag([1.0, 1.0, np.nan])}, "3 x 3"),
        ({"direction": np.diag([1.0, 1.0, 0.0])}, "orthonormal"),
        ({"direction": 2 * np.eye(3)}, "orthonormal"),
        ({"direction": [[1, 0.3, 0], [0, 1, 0], [0, 0, 1]]}, "orthonormal"),
    ],
    ids=[
        "empty axis", "two axes", "zero spacing", "negative spacing", "NaN spacing", "infinite spacing",
        "two spacings", "infinite origin", "two origins", "2 x 2", "NaN direction", "singular", "scaled",
        "sheared",
    ],
)  # fmt: skip
def test_a_grid_that_makes_no_sense_is_refused(change, words):
    """A grid is valid once built: each wrong part is refused in one line that says what was received."""
    parts = {"shape_zyx": (4, 5, 6), "spacing_xyz_mm": (0.5, 1, 2), "origin_xyz_mm": (0, 0, 0)} | change

    with pytest.raises(InputError, match=words) as refusal:
        Grid(**parts)

    assert "Received: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_directions_rounded_to_four_digits_are_accepted():
    """DICOM files give direction cosines with as few as four digits."""
    grid = Grid((4, 5, 6), (1, 1, 1), (0, 0, 0), TILTED.round(4))

    np.testing.assert_allclose(grid.to_voxel_zyx(grid.to_world_xyz_mm([[3, 2, 1]])), [[3, 2, 1]], atol=1e-9)


@pytest.mark.parametrize(("shear", "is_accepted"), [(0.001, True), (0.0011, False)])
def test_the_direction_may_be_a_thousandth_off(shear, is_accepted):
    """Of axes whose product is 0.001 a grid is built, of 0.0011 none."""
    direction = [[1, shear, 0], [0, 1, 0], [0, 0, 1]]

    if is_accepted:
        Grid((4, 5, 6), (1, 1, 1), (0, 0, 0), direction)
    else:
        with pytest.raises(InputError, match="orthonormal"):
            Grid((4, 5, 6), (1, 1, 1), (0, 0, 0), direction)


def test_places_are_wanted_along_every_axis():
    """Places along two axes of three are refused, not guessed at."""
    with pytest.raises(ValueError, match="argument 2 is longer"):
        interpolated(np.zeros((4, 5, 6), np.float32), (np.zeros(1), np.zeros(1)))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    places=st.tuples(*[st.lists(st.floats(-2, 8), min_size=1, max_size=5)] * 3),
    seed=st.integers(0, 1000),
)
def test_values_between_voxels_are_those_of_scipy(shape, places, seed):
    """Linear, the nearest end's value beyond an end, to 1e-5; along an axis of one voxel all are alike."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    z, y, x = (np.array(along) for along in places)

    between = interpolated(values, (z, y, x))

    mesh = np.meshgrid(z, y, x, indexing="ij")
    expected = ndimage.map_coordinates(values, mesh, order=1, mode="nearest")
    np.testing.assert_allclose(between, expected, atol=1e-5)
