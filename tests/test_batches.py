import sys
import threading

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from luna_cls.cubes.batches import ordered_batches, training_batches
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.plan import Plan
from luna_cls.cubes.preparation import prepare
from luna_cls.cubes.store import CubeFormat, CubeStore
from luna_cls.errors import InputError
from luna_cls.scans.luna16 import LunaTree
from luna_cls.settings import AugmentationSettings

NUM_CUBES, EDGE = 52, 4
IN_PLANE = AugmentationSettings(symmetries="in_plane")
EVERYTHING = AugmentationSettings(symmetries="cube", noise_hu=9, shift_hu=9, blur_mm=0.5)
BALANCED = {"positives_per_batch": 3}


@pytest.fixture(autouse=True)
def _measured_on_threads_of_tensorflow(monkeypatch):
    """What TensorFlow calls on threads of its own, which Python's hook for new threads does not reach."""
    numpy_function = tf.numpy_function

    def measured(function, *arguments):
        def call(*values):
            if sys.gettrace() is None:
                sys.settrace(threading.gettrace())
            return function(*values)

        return numpy_function(call, *arguments)

    monkeypatch.setattr(tf, "numpy_function", measured)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """52 cubes of 4 x 4 x 4 voxels, every fifth a nodule; cube i holds 64 i to 64 i + 63 once each."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(2)
    voxels = [64 * row + rng.permutation(EDGE**3) for row in range(NUM_CUBES)]
    np.save(folder / "cubes.npy", np.reshape(voxels, (NUM_CUBES, EDGE, EDGE, EDGE)).astype(np.int16))
    table = pd.DataFrame({"seriesuid": "1.2.3", "class": np.arange(NUM_CUBES) % 5 == 0})
    return CubeStore(folder, CubeFormat(CubeSpec(EDGE)), table.astype({"class": int}))


def _plan(store, **options):
    rows = np.arange(NUM_CUBES)
    return Plan(rows[store.labels == 0], rows[store.labels == 1], 8, seed=5, **options)


def _numpy(dataset):
    return [tuple(part.numpy() for part in batch) for batch in dataset]


def _assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, [8] * 6 + [4]), ({"steps_per_epoch": 9}, [8] * 9), (BALANCED, [8] * 9)],
    ids=["one pass", "nine steps", "balanced"],
)
def test_batches_are_what_the_plan_says(store, options, sizes):
    """Over two epochs, batch by batch, cubes and labels are those of the plan's rows, in its order."""
    plan = _plan(store, **options)
    rows = np.concatenate([plan.epoch(epoch) for epoch in range(2)])

    batches = _numpy(training_batches(store, plan, range(2)))

    assert [len(cubes) for cubes, _ in batches] == sizes * 2
    cubes, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(cubes, store.cubes[rows][..., None])
    np.testing.assert_array_equal(labels, store.labels[rows][:, None])
    assert cubes.dtype == np.int16
    assert labels.dtype == np.float32


def test_batches_of_a_real_store(small_store):
    """Cubes of 31 voxels come as they lie in cubes.npy."""
    rows = np.arange(40)
    plan = Plan(rows[small_store.labels == 0], rows[small_store.labels == 1], 16, seed=5)

    batches = _numpy(training_batches(small_store, plan, range(1)))

    cubes, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(cubes, small_store.cubes[plan.epoch(0)][..., None])
    assert labels.sum() == 12


def test_shapes_are_known_before_the_first_batch(store):
    """A model can be built from the dataset's own description."""
    cubes, labels = training_batches(store, _plan(store), range(1), IN_PLANE).element_spec

    assert cubes == tf.TensorSpec((None, EDGE, EDGE, EDGE, 1), tf.int16)
    assert labels == tf.TensorSpec((None, 1), tf.float32)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_change_a_batch(store, threads):
    """Augmented batches on one thread and on four are those of TensorFlow's own choice."""
    dataset = training_batches(store, _plan(store, **BALANCED), range(3), EVERYTHING)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = threads

    _assert_same(_numpy(dataset.with_options(options)), _numpy(dataset))


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 5}, BALANCED], ids=["pass", "steps", "balanced"])
def test_a_resumed_epoch_is_the_one_that_was_missed(store, options):
    """Starting at epoch 1 gives the second half of epochs 0 and 1, augmentation included."""
    plan, operations = _plan(store, **options), EVERYTHING

    both = _numpy(training_batches(store, plan, range(2), operations))
    resumed = _numpy(training_batches(store, plan, range(1, 2), operations))

    _assert_same(resumed, both[plan.steps :])


def test_augmentation_changes_voxels_places_but_not_rows_or_labels(store):
    """With flips and turns each place in the order holds the same cube and label, seldom as it was."""
    plan = _plan(store)

    plain = _numpy(training_batches(store, plan, range(2)))
    augmented = _numpy(training_batches(store, plan, range(2), IN_PLANE))

    same = []
    for (cubes, labels), (moved, moved_labels) in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(moved_labels, labels)
        np.testing.assert_array_equal(
            np.sort(moved.reshape(len(moved), -1)), np.sort(cubes.reshape(len(cubes), -1))
        )
        same += [np.array_equal(cube, other) for cube, other in zip(cubes, moved, strict=True)]
    assert sum(same) < 20  # of 104, one in sixteen is expected to stay as it is


def test_flips_and_turns_are_drawn_apart(store):
    """Over 40 epochs all sixteen symmetries occur equally often, give or take five standard deviations."""
    batches = _numpy(training_batches(store, _plan(store), range(40), IN_PLANE))
    cubes = np.concatenate([cubes[..., 0] for cubes, _ in batches])
    originals = store.cubes[cubes[:, 0, 0, 0] // 64]
    images = [
        np.flip(np.rot90(originals, turns, axes=(2, 3)), axes)
        for turns in range(4)
        for axes in ([], [1], [3], [1, 3])
    ]

    counts = [(cubes == image).all(axis=(1, 2, 3)).sum() for image in images]

    assert sum(counts) == 40 * 52  # 130 each; one standard deviation is 11
    assert max(np.abs(np.array(counts) - 130)) < 55


def test_an_epoch_repeats_no_augmentation_of_another(store):
    """The same cube is turned anew in each epoch: of 52 one in sixteen falls the same way twice."""

    def faces(epoch):
        batches = _numpy(training_batches(store, _plan(store), range(epoch, epoch + 1), IN_PLANE))
        cubes = np.concatenate([cubes for cubes, _ in batches])
        return cubes[np.argsort(cubes.min(axis=(1, 2, 3, 4)))]

    same = (faces(0) == faces(1)).all(axis=(1, 2, 3, 4)).sum()

    assert same < 12


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_ordered_batches_keep_the_order(store, batch_size):
    """Rows come out as they went in, repeated and unsorted ones, too."""
    rows = np.array([51, 3, 3, 0, 17, 4, 51, 2])

    batches = [batch.numpy() for batch in ordered_batches(store, rows, batch_size)]

    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    cubes = np.concatenate(batches)
    assert cubes.dtype == np.int16
    np.testing.assert_array_equal(cubes, store.cubes[rows][..., None])


def test_no_rows_give_no_batches(store):
    """An empty list of rows is an empty dataset."""
    assert list(ordered_batches(store, np.array([], np.int64), 8)) == []


@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_batches_are_of_hu_without_the_margin(small_tree, small_store, tmp_path, dtype):
    """From a store with 2 voxels of margin, in either type, come cubes of 31: 1 HU off, or 4 of a byte."""
    tree = LunaTree.open(small_tree)
    kept = prepare(
        tree, tree.candidates(), tmp_path / "store", CubeFormat(margin_vox=2, dtype=dtype), workers=1
    )
    rows = np.arange(40)
    plan = Plan(rows[kept.labels == 0], rows[kept.labels == 1], 40, seed=5)

    ((trained, _),) = _numpy(training_batches(kept, plan, range(1)))
    (predicted,) = (batch.numpy() for batch in ordered_batches(kept, rows, 40))
    ((moved, _),) = _numpy(training_batches(kept, plan, range(1), AugmentationSettings(shift_mm=2)))

    wanted = np.clip(small_store.cubes, -1000, 400).astype(int)[..., None]
    assert trained.shape == predicted.shape == moved.shape == (40, 31, 31, 31, 1)
    assert trained.dtype == predicted.dtype == moved.dtype == np.int16
    assert np.abs(predicted.clip(-1000, 400) - wanted).max() <= (4 if dtype == "uint8" else 1)
    np.testing.assert_array_equal(trained, predicted[plan.epoch(0)])
    assert not np.array_equal(moved, trained)


def test_cubes_without_a_margin_are_not_moved(small_store):
    """To shift by 2 voxels what has no margin is refused; the margin needed is told."""
    rows = np.arange(40)
    plan = Plan(rows[small_store.labels == 0], rows[small_store.labels == 1], 8, seed=5)

    with pytest.raises(InputError, match=r"need 2 voxels around each cube of 31; .* has 0.*--margin 2"):
        training_batches(small_store, plan, range(1), AugmentationSettings(shift_mm=2))
