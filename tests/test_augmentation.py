import numpy as np
import pytest
import tensorflow as tf

from luna_cls.cubes.augmentation import flips, quarter_turns

SEED = (7, 11)


def _mirrored(cube):
    """The eight mirror images of a cube (z, y, x, 1)."""
    axes_of = [[axis for axis in range(3) if number >> axis & 1] for number in range(8)]
    return [np.flip(cube, axes) for axes in axes_of]


def _turned(cube):
    """The four quarter turns of a cube (z, y, x, 1) about z."""
    return [np.rot90(cube, turns, axes=(1, 2)) for turns in range(4)]


each_operation = pytest.mark.parametrize(
    ("operation", "symmetries"),
    [(flips, _mirrored), (quarter_turns, _turned)],
    ids=["flips", "quarter_turns"],
)


def _cubes(count, edge=5, dtype=np.int16):
    """Cubes in which no value occurs twice."""
    rng = np.random.default_rng(0)
    values = [rng.permutation(edge**3) for _ in range(count)]
    return np.reshape(values, (count, edge, edge, edge, 1)).astype(dtype)


def _in_map(operation, cubes, seed):
    """What `operation` returns inside `Dataset.map`."""
    dataset = tf.data.Dataset.from_tensors(cubes).map(lambda batch: operation(batch, seed))
    return next(iter(dataset)).numpy()


@each_operation
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32], ids=["int16", "uint8", "float32"])
def test_eager_and_in_a_graph_the_same_seed_gives_the_same(operation, symmetries, dtype):
    """Called twice and in `Dataset.map`, one seed gives one result; another seed gives another."""
    cubes = _cubes(32, dtype=dtype)

    eager = operation(tf.constant(cubes), SEED).numpy()

    np.testing.assert_array_equal(operation(tf.constant(cubes), SEED).numpy(), eager)
    np.testing.assert_array_equal(_in_map(operation, cubes, SEED), eager)
    assert not np.array_equal(operation(tf.constant(cubes), (7, 12)).numpy(), eager)


@each_operation
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32], ids=["int16", "uint8", "float32"])
def test_every_cube_becomes_one_of_its_symmetries(operation, symmetries, dtype):
    """Type and shape stay, and each result is the cube itself, mirrored or turned, voxel for voxel."""
    cubes = _cubes(32, dtype=dtype)

    results = operation(tf.constant(cubes), SEED).numpy()

    assert results.dtype == dtype
    assert results.shape == cubes.shape
    for cube, result in zip(cubes, results, strict=True):
        assert any(np.array_equal(result, image) for image in symmetries(cube))


@each_operation
def test_cubes_of_a_batch_are_drawn_one_by_one_and_evenly(operation, symmetries):
    """Of 4,000 cubes each symmetry gets its equal share, give or take five standard deviations."""
    cubes = _cubes(4000, edge=2)
    results = operation(tf.constant(cubes), SEED).numpy()

    drawn = [
        next(index for index, image in enumerate(symmetries(cube)) if np.array_equal(result, image))
        for cube, result in zip(cubes, results, strict=True)
    ]

    share = 1 / len(symmetries(cubes[0]))
    deviation = np.sqrt(4000 * share * (1 - share))
    assert (np.abs(np.bincount(drawn, minlength=round(1 / share)) - 4000 * share) < 5 * deviation).all()


@each_operation
def test_every_int16_value_survives(operation, symmetries):
    """All 65,536 values an int16 can have, NaN patterns of bfloat16 among them, come out bit for bit."""
    every_value = np.arange(-(2**15), 2**15).astype(np.int16)
    cubes = np.tile(every_value.reshape(1, 16, 64, 64, 1), (16, 1, 1, 1, 1))

    for results in (operation(tf.constant(cubes), SEED).numpy(), _in_map(operation, cubes, SEED)):
        seen = {result.tobytes() for result in results}

        assert seen <= {image.tobytes() for image in symmetries(cubes[0])}
        assert len(seen) > 2
        for result in results:
            np.testing.assert_array_equal(np.sort(result, axis=None), every_value)


@each_operation
def test_an_empty_batch_stays_empty(operation, symmetries):
    """No cubes in, no cubes out."""
    assert operation(tf.zeros((0, 4, 4, 4, 1), tf.int16), SEED).shape == (0, 4, 4, 4, 1)
