import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from luna_cls.cubes.augmentation import (
    augmented,
    blurred,
    brightened,
    every_symmetry,
    margin_vox,
    middle,
    moved,
    noisy,
    symmetries,
)
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.settings import AugmentationSettings

ALL = AugmentationSettings(
    symmetries="cube", shift_mm=1, scale=0.05, rotation_degrees=10, blur_mm=0.5, noise_hu=20, shift_hu=20
)
NONE = AugmentationSettings(symmetries="none")
OPERATIONS = {
    "in_plane": lambda cubes, generator: symmetries(cubes, generator, "in_plane"),
    "cube": lambda cubes, generator: symmetries(cubes, generator, "cube"),
    "moved": lambda cubes, generator: moved(cubes, generator, 5, shift_vox=1, scale=0.1, rotation_degrees=20),
    "blurred": lambda cubes, generator: blurred(cubes, generator, 1.0),
    "noisy": lambda cubes, generator: noisy(cubes, generator, 20),
    "brightened": lambda cubes, generator: brightened(cubes, generator, 20),
    "all": lambda cubes, generator: list(augmented(cubes, [generator.integers(100)], ALL, CubeSpec(5))),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def _images(cube, kind):
    """The 16 or 48 ways to mirror and turn a cube (z, y, x) onto itself."""
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    axes_of = [[axis for axis in range(3) if number >> axis & 1] for number in range(8)]
    return [
        np.flip(cube, axes).transpose(order)
        for order in orders[: 2 if kind == "in_plane" else 6]
        for axes in axes_of
    ]


def _cubes(count, edge=9, dtype=np.int16):
    """Cubes in which no value occurs twice."""
    rng = np.random.default_rng(0)
    return np.reshape([rng.permutation(edge**3) for _ in range(count)], (count, edge, edge, edge)).astype(
        dtype
    )


@each_operation
def test_the_same_seed_gives_the_same_cubes_and_another_gives_others(operation):
    """Called twice, on an array and on views of it that are not contiguous, one seed gives one result."""
    cubes = _cubes(32)
    views = [np.asfortranarray(cube) for cube in cubes]

    once, again, of_views, other = (
        np.stack(operation(some, np.random.default_rng(seed)))
        for some, seed in ((cubes, 7), (cubes, 7), (views, 7), (cubes, 8))
    )

    np.testing.assert_array_equal(again, once)
    np.testing.assert_array_equal(of_views, once)
    assert not np.array_equal(other, once)


@each_operation
def test_in_map_an_operation_gives_what_it_gives_eagerly(operation):
    """Inside `Dataset.map`, on whichever thread, the cubes are those of a call by hand."""
    cubes = _cubes(16).astype(np.float32)

    def call(some, seed):
        return np.stack(operation(some, np.random.default_rng(seed))).astype(np.float32)

    dataset = tf.data.Dataset.range(8).map(
        lambda seed: tf.numpy_function(call, [cubes, seed], tf.float32), num_parallel_calls=4
    )

    for seed, result in enumerate(dataset):
        np.testing.assert_array_equal(result.numpy(), call(cubes, seed))


@each_operation
def test_the_given_cubes_stay_as_they_are(operation):
    """Cubes of a store are read, never written."""
    cubes = _cubes(8)
    cubes.setflags(write=False)

    assert len(list(operation(cubes, np.random.default_rng(0)))) == 8
    np.testing.assert_array_equal(cubes, _cubes(8))


@pytest.mark.parametrize(("kind", "count"), [("in_plane", 16), ("cube", 48)])
def test_every_symmetry_occurs_as_often_as_any_other(kind, count):
    """Of 9,600 cubes each of the 16 or 48 ways gets its equal share, give or take five deviations."""
    cubes = _cubes(9600, edge=2)
    results = symmetries(cubes, np.random.default_rng(3), kind)

    images = np.stack([_images(cube, kind) for cube in cubes])
    matches = (images == np.stack(results)[:, None]).all(axis=(2, 3, 4))

    assert (matches.sum(axis=1) == 1).all()
    deviation = np.sqrt(9600 / count * (1 - 1 / count))
    assert (np.abs(matches.sum(axis=0) - 9600 / count) < 5 * deviation).all()


@pytest.mark.parametrize(("kind", "ways"), [("none", 1), ("in_plane", 16), ("cube", 48)])
def test_every_symmetry_is_given_once_and_the_cube_as_it_is_first(kind, ways):
    """All cubes of a batch are turned alike; of the images of the first none is missing or there twice."""
    cubes = _cubes(2, edge=3)

    turned = list(every_symmetry(cubes, kind))

    expected = {image.tobytes() for image in _images(cubes[0], kind)} if ways > 1 else {cubes[0].tobytes()}
    assert len(turned) == ways
    assert {both[0].tobytes() for both in turned} == expected
    assert all(both.flags.c_contiguous and both.shape == cubes.shape for both in turned)
    np.testing.assert_array_equal(turned[0], cubes)


def test_in_plane_z_stays_z():
    """Whatever is done in plane, planes of one height stay together; head and feet may change places."""
    cubes = np.tile(np.arange(5, dtype=np.int16)[:, None, None], (100, 1, 5, 5))

    results = np.stack(symmetries(cubes, np.random.default_rng(3), "in_plane"))

    assert (results == results[:, :, :1, :1]).all()
    assert set(results[:, 0, 0, 0]) == {0, 4}


def _positions_zyx_vox(count, edge_vox, size_vox, seed=5, **how_far):
    """Where `moved` has read: ramps along an axis, linearly interpolated, are the coordinate itself."""
    ramps = np.meshgrid(*[np.arange(edge_vox, dtype=np.float32)] * 3, indexing="ij")
    return np.stack(
        [
            moved([ramp] * count, np.random.default_rng(seed), size_vox, **how_far) for ramp in ramps
        ], axis=1
    ).reshape(count, 3, -1)  # fmt: skip


def test_moved_cubes_are_what_scipy_reads_at_the_same_places():
    """Each voxel is the trilinear interpolation of the cube where the move puts it, within 0.01 HU."""
    cubes = np.random.default_rng(1).normal(0, 300, (6, 17, 17, 17)).astype(np.float32)
    how_far = {"shift_vox": 1.0, "scale": 0.1, "rotation_degrees": 25.0}

    results = moved(cubes, np.random.default_rng(5), 9, **how_far)

    for cube, result, positions in zip(cubes, results, _positions_zyx_vox(6, 17, 9, **how_far), strict=True):
        expected = map_coordinates(cube, positions, order=1, mode="nearest")
        np.testing.assert_allclose(result.ravel(), expected, atol=0.01)


def test_a_move_is_a_shift_a_scale_and_a_turn_about_z_as_far_as_wished():
    """Of 400 moves each stays within 1.5 voxels, 1.2 times and 30 degrees, and reaches nearly as far."""
    positions = _positions_zyx_vox(400, 41, 9, shift_vox=1.5, scale=0.2, rotation_degrees=30.0)
    grids = positions.reshape(400, 3, 9, 9, 9)
    shifts = grids[:, :, 4, 4, 4] - 20
    along_z, along_y = (
        grids[:, :, 5, 4, 4] - grids[:, :, 4, 4, 4],
        grids[:, :, 4, 5, 4] - grids[:, :, 4, 4, 4],
    )
    zooms = 1 / np.linalg.norm(along_y, axis=1)
    angles = np.degrees(np.arctan2(along_y[:, 2], along_y[:, 1]))

    assert 1.45 < np.abs(shifts).max() <= 1.5001
    assert 1 / 1.2001 < zooms.min() < 0.84
    assert 1.19 < zooms.max() < 1.2001
    assert 29 < np.abs(angles).max() < 30.01
    np.testing.assert_allclose(along_z[:, 1:], 0, atol=1e-4)
    np.testing.assert_allclose(along_z[:, 0], 1 / zooms, atol=1e-4)
    assert abs(np.log(zooms).mean()) < 5 * np.log(1.2) / np.sqrt(3 * 400)
    assert abs(angles.mean()) < 5 * 30 / np.sqrt(3 * 400)


def test_not_moved_at_all_a_cube_is_its_middle():
    """A shift, scale and turn of nothing give back the voxels of the middle."""
    cubes = _cubes(4, edge=11)

    results = moved(cubes, np.random.default_rng(0), 5)

    np.testing.assert_array_equal(results, middle(cubes, 5))
    np.testing.assert_array_equal(results, cubes[:, 3:8, 3:8, 3:8])


@settings(deadline=None, max_examples=40)
@given(shift=st.floats(0, 3), scale=st.floats(0, 0.3), degrees=st.floats(0, 180), size_vox=st.integers(1, 9))
def test_the_margin_asked_for_is_enough(shift, scale, degrees, size_vox):
    """With it nothing is read from beyond the cube: two voxels of margin more change no place."""
    wanted = AugmentationSettings(shift_mm=shift, scale=scale, rotation_degrees=degrees)
    edge = size_vox + 2 * margin_vox(wanted, CubeSpec(size_vox))
    how_far = {"shift_vox": shift, "scale": scale, "rotation_degrees": degrees}

    enough = _positions_zyx_vox(20, edge, size_vox, **how_far)
    more = _positions_zyx_vox(20, edge + 4, size_vox, **how_far)

    np.testing.assert_allclose(enough + 2, more, atol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "margin"),
    [
        ({}, 0),
        ({"shift_mm": 2.0}, 2),
        ({"scale": 0.1}, 2),
        ({"rotation_degrees": 180.0}, 7),
        ({"shift_mm": 1.0, "scale": 0.05, "rotation_degrees": 10.0}, 5),
    ],
    ids=["nothing", "shift", "scale", "turn", "all"],
)
def test_margins_worked_out_by_hand(wanted, margin):
    """15 voxels to each side of the middle: 1.5 more for a tenth, 15 (sqrt 2 - 1) = 6.2 for any turn."""
    assert margin_vox(AugmentationSettings(**wanted), CubeSpec()) == margin


def test_a_blur_keeps_what_there_is_and_spreads_it():
    """A point of 1000 HU keeps its sum; its spread is that of the Gaussian, 0 to 1 voxels, evenly."""
    point = np.zeros((15, 15, 15), np.int16)
    point[7, 7, 7] = 1000

    results = np.stack(blurred([point] * 200, np.random.default_rng(2), 1.0))

    offsets = np.arange(15) - 7
    variances = (results.sum(axis=(2, 3)) * offsets**2).sum(axis=1) / 1000
    np.testing.assert_allclose(results.sum(axis=(1, 2, 3)), 1000, rtol=1e-3)
    assert results.dtype == np.float32
    assert variances.max() < 1.0
    assert 0.4 < np.sqrt(variances).mean() < 0.6


def test_noise_is_noise_of_the_size_asked_for():
    """Its deviation is spread evenly from 0 to 30 HU, its mean is 0, and no two cubes share it."""
    cubes = np.full((300, 11, 11, 11), -850, np.int16)

    noise = np.stack(noisy(cubes, np.random.default_rng(2), 30.0)) + 850

    deviations = noise.std(axis=(1, 2, 3))
    assert 28 < deviations.max() < 32
    assert 13 < deviations.mean() < 17
    assert np.abs(noise.mean(axis=(1, 2, 3)) / deviations).max() < 5 / np.sqrt(11**3)
    shapes = noise.reshape(300, -1) / np.linalg.norm(noise.reshape(300, -1), axis=1, keepdims=True)
    assert np.abs(np.triu(shapes @ shapes.T, 1)).max() < 0.3


def test_a_shift_of_hu_is_one_number_for_a_cube():
    """From -25 to 25 HU, evenly, the same for all voxels of a cube."""
    cubes = _cubes(300)

    added = np.stack(brightened(cubes, np.random.default_rng(2), 25.0)) - cubes

    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-3
    assert 24 < np.abs(added).max() <= 25
    assert abs(added.mean()) < 5 * 25 / np.sqrt(3 * 300)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
def test_any_number_of_cubes_is_served(count):
    """No cubes in, no cubes out; and a cube's luck does not depend on how many come after it."""
    cubes = _cubes(30)
    every = list(augmented(cubes, [1, 2], ALL, CubeSpec(5)))

    some = list(augmented(cubes[:count], [1, 2], ALL, CubeSpec(5)))

    assert len(some) == count
    for cube, same in zip(some[: count // 8 * 8], every, strict=False):
        np.testing.assert_array_equal(cube, same)


def test_what_is_not_wanted_is_not_done():
    """Without any augmentation a cube is its middle; one more wanted leaves the luck of the rest alone."""
    cubes = _cubes(20)

    plain = list(augmented(cubes, [3], NONE, CubeSpec(5)))
    turned = list(augmented(cubes, [3], AugmentationSettings(), CubeSpec(5)))
    brighter = list(augmented(cubes, [3], AugmentationSettings(shift_hu=9), CubeSpec(5)))

    np.testing.assert_array_equal(plain, middle(cubes, 5))
    for cube, other in zip(turned, brighter, strict=True):
        assert np.ptp(other - cube) < 1e-3
