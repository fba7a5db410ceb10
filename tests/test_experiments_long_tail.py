"""Long tails of images: their losses, their counts, CIFAR-10's files, trainings that are fair by pairs."""

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from luna_cls.errors import InputError
from luna_cls.experiments import long_tail
from luna_cls.experiments.long_tail import Budget, Images

NAMES = ("ce", "focal", "cefl", "cefl2")
LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 1.0, 4.0], [0.0, 0.0, 0.0]], np.float32)
ONE_HOT = np.eye(3, dtype=np.float32)[[0, 1, 2]]
CE = -(log_softmax(LOGITS, axis=1) * ONE_HOT).sum(axis=1)
P = (softmax(LOGITS, axis=1) * ONE_HOT).sum(axis=1)


# ------------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ce", CE),
        ("focal", (1 - P) ** 2 * CE),
        ("cefl", (1 - P) * CE + P * (1 - P) ** 2 * CE),
        ("cefl2", ((1 - P) ** 2 * CE + P**2 * (1 - P) ** 2 * CE) / ((1 - P) ** 2 + P**2)),
    ],
)
def test_losses_of_a_softmax_are_the_papers_formulas(name, expected):
    """Of three classes, at gamma 2, one sample right, one wrong, one undecided."""
    actual = long_tail.softmax_loss(name, gamma=2).call(ONE_HOT, LOGITS)

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_gamma_all_are_cross_entropy(name):
    """As Keras counts it."""
    expected = keras.losses.CategoricalCrossentropy(from_logits=True)(ONE_HOT, LOGITS)

    np.testing.assert_allclose(long_tail.softmax_loss(name, gamma=0)(ONE_HOT, LOGITS), expected, rtol=1e-5)


def test_an_unknown_loss_is_refused():
    """The error lists those that are known."""
    with pytest.raises(InputError, match=r"'hinge'\. Known: ce, focal, cefl, cefl2"):
        long_tail.softmax_loss("hinge")


def test_curves_of_an_undecided_sample():
    """At p = 1/2 and gamma 2, weights are 1, 1/4, and 5/8 for CEFL and CEFL2; CE's gradient is 1/2.

    Focal's gradient is (1 - p)^2 (1 - p + 2 p CE) = (1/2 + log 2)/4.
    """
    curves = long_tail.loss_curves(NAMES, (2,), (0.5,)).set_index("loss")

    np.testing.assert_allclose(curves.loc[list(NAMES), "weight"], [1, 1 / 4, 5 / 8, 5 / 8], rtol=1e-5)
    np.testing.assert_allclose(curves.loc["ce", "gradient"], 1 / 2, rtol=1e-5)
    np.testing.assert_allclose(curves.loc["focal", "gradient"], (1 / 2 + np.log(2)) / 4, rtol=1e-5)


def test_curves_hold_cross_entropy_once():
    """It has no gamma; the others have a curve for each."""
    curves = long_tail.loss_curves(("ce", "cefl"), (1, 5), (0.2, 0.8))

    sizes = curves.fillna({"gamma": 0}).groupby(["loss", "gamma"]).size()
    assert sizes.to_dict() == {("ce", 0): 2, ("cefl", 1): 2, ("cefl", 5): 2}


# ------------------------------------------------------------------------------------------------- long tails


@pytest.mark.parametrize(
    ("most", "rho", "expected"),
    [
        (5000, 1, [5000] * 10),
        (5000, 100, [50, 83, 139, 232, 387, 646, 1077, 1797, 2997, 5000]),
        (120, 500, [1, 1, 1, 2, 4, 8, 15, 30, 60, 120]),
    ],
)
def test_counts_of_a_long_tail(most, rho, expected):
    """N rho^(i/9 - 1): the last class has them all, the first one in rho, and one at least."""
    assert long_tail.long_tail_counts(most, rho).tolist() == expected


@pytest.mark.parametrize(("most", "rho"), [(0, 10), (10, 0.5)])
def test_a_tail_the_wrong_way_is_refused(most, rho):
    """Neither no images nor a rho below 1 makes a long tail."""
    with pytest.raises(InputError, match="1 or more"):
        long_tail.long_tail_counts(most, rho)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(1, 500), st.floats(1, 500))
def test_a_longer_tail_keeps_images_of_the_shorter_one(seed, rho_a, rho_b):
    """From one seed, so that tails differ by what they leave out alone; no image is kept twice."""
    labels = np.repeat(np.arange(10), 20)
    short, long = (long_tail.long_tail_counts(20, rho) for rho in sorted((rho_a, rho_b)))

    kept = long_tail.long_tailed(labels, long, seed)

    assert np.bincount(labels[kept], minlength=10).tolist() == long.tolist()
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(long_tail.long_tailed(labels, short, seed))


def test_more_images_than_there_are_cannot_be_kept():
    """The error names the class."""
    with pytest.raises(InputError, match="Class 0 is to keep 3 images, and there are 2"):
        long_tail.long_tailed(np.repeat(np.arange(10), 2), np.full(10, 3), seed=0)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(0, 100))
def test_batches_see_every_image_equally_often(num_images, steps, batch_size, seed):
    """But for the last round, which may stop before it has seen them all."""
    plan = long_tail.batch_plan(num_images, steps, batch_size, seed)

    visits = np.bincount(plan.ravel(), minlength=num_images)
    assert plan.shape == (steps, batch_size)
    assert np.ptp(visits) <= 1


# ----------------------------------------------------------------------------------------------------- images


def test_digits_are_balanced_and_apart():
    """120 of each to learn from, 54 of each to test on; no image is in both; another seed draws others."""
    images, others = long_tail.digits(0), long_tail.digits(1)

    assert images.train.shape == (1200, 8, 8, 1)
    assert np.bincount(images.train_labels).tolist() == [120] * 10
    assert np.bincount(images.test_labels).tolist() == [54] * 10
    assert (images.train.min(), images.train.max()) == (0, 1)
    seen = {image.tobytes() for image in images.train}
    assert not any(image.tobytes() in seen for image in images.test)
    assert not np.array_equal(images.test, others.test)


@pytest.fixture
def cifar_folder(tmp_path):
    """CIFAR-10's binary files, of ten images each: class i is red in its first i pixels."""
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        records = np.zeros((10, 3073), np.uint8)
        records[:, 0] = np.arange(10)
        for label in range(10):
            records[label, 1 : 1 + label] = 255
        records[:, -1] = 51  # blue, the last pixel of the last row
        records.tofile(tmp_path / name)
    return tmp_path


def test_cifar_is_read_from_its_bytes(cifar_folder):
    """A class, then red, green and blue, each row by row; 255 becomes 1."""
    images = long_tail.cifar10(cifar_folder)

    assert images.train.shape == (50, 32, 32, 3)
    assert images.train.dtype == np.float32
    assert images.test_labels.tolist() == list(range(10))
    assert images.test[3, 0, :4, 0].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(images.test[3, 31, 31], [0, 0, 51 / 255])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data_batch_2.bin is missing. Unpack"),
        (b"", "records have 3,073 bytes. Received: 0"),
        (bytes(3072), "records have 3,073 bytes. Received: 3,072"),
        (b"\x0a" + bytes(3072), "classes go from 0 to 9. Received: 10"),
    ],
    ids=["missing", "empty", "cut short", "eleventh class"],
)
def test_what_is_not_cifar_is_refused(cifar_folder, content, message):
    """In one line that names the file."""
    path = cifar_folder / "data_batch_2.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=message) as error:
        long_tail.cifar10(cifar_folder)

    assert str(path) in str(error.value)


def test_an_unbalanced_test_set_is_refused(cifar_folder):
    """Half a file would otherwise pass for a whole one."""
    path = cifar_folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[: 5 * 3073])

    with pytest.raises(InputError, match="not as many images of each class"):
        long_tail.cifar10(cifar_folder)


# ------------------------------------------------------------------------------------------------ the network


def test_resnet18_has_eighteen_layers_and_the_parameters_of_the_paper():
    """17 convolutions and a dense layer in the way of the image; 11,173,962 weights to train on CIFAR-10."""
    model = long_tail.resnet18((32, 32, 3))

    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert sum(layer.kernel_size == (3, 3) for layer in convolutions) == 17
    assert sum(layer.kernel_size == (1, 1) for layer in convolutions) == 3  # beside it
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 11_173_962
    assert model.output_shape == (None, 10)


# --------------------------------------------------------------------------------------------------- training


def _bars(seed):
    """Ten classes of 8 x 8 pixels: a bright row or column, on noise; 12 of each to learn from, 4 to test."""
    rng = np.random.default_rng(seed)

    def draw(count):
        labels = np.repeat(np.arange(10), count)
        images = 0.1 * rng.random((len(labels), 8, 8, 1), np.float32)
        for image, label in zip(images, labels, strict=True):
            image[(label, slice(None)) if label < 5 else (slice(None), label - 5)] += 0.9
        return images, labels

    return Images(*draw(12), *draw(4))


@pytest.fixture(scope="module")
def trained():
    """Two losses that are the same where gamma is 0, on two tails, from two seeds."""
    keras.config.set_dtype_policy("float32")
    told = []
    results = long_tail.train_long_tailed(
        _bars,
        ("ce", "focal"),
        (1, 12),
        (0, 1),
        Budget(steps=6, batch_size=16, width=4),
        most=12,
        gamma=0.0,
        on_progress=lambda done, total: told.append((done, total)),
    )
    return results, told


@pytest.mark.slow
def test_equal_losses_learn_the_same(trained):
    """Cross-entropy and focal loss of gamma 0: same start, same batches, so the very same results.

    It would not be so if a training began where the last one had ended.
    """
    results, told = trained
    by_loss = {name: table.reset_index(drop=True) for name, table in results.groupby("loss")}

    pd.testing.assert_frame_equal(by_loss["ce"].drop(columns="loss"), by_loss["focal"].drop(columns="loss"))
    assert results["recall"].std() > 0
    assert told == [(done, 8) for done in range(1, 9)]


@pytest.mark.slow
def test_results_have_a_row_for_each_class_of_each_training(trained):
    """Which label is how rare is drawn by the seed, the same for every loss and tail."""
    results, _ = trained

    assert len(results) == 2 * 2 * 2 * 10
    assert results.groupby("rank")["count"].agg(set).tolist() == [
        {12, count} for count in long_tail.long_tail_counts(12, 12)
    ]
    labels = {key: tuple(table["label"]) for key, table in results.groupby(["seed", "rho", "loss"])}
    assert all(sorted(of_ranks) == list(range(10)) for of_ranks in labels.values())
    assert len({labels[key] for key in labels if key[0] == 0}) == 1
    assert labels[0, 1, "ce"] != labels[1, 1, "ce"]


# ----------------------------------------------------------------------------------------------------- scores


def test_scores_of_a_class_by_hand():
    """Of three 0s two are called so, and one 1 with them: recall and precision 2/3; nothing is called 2."""
    scores = long_tail.class_scores([0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 1, 1])

    np.testing.assert_allclose(scores.loc[0], [2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(scores.loc[1], [1 / 2, 1 / 3, 2 / 5])
    np.testing.assert_allclose(scores.loc[2], [0, 0, 0])
    assert np.isnan(scores.loc[3, "recall"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60))
def test_scores_agree_with_scikit_learn(pairs):
    """For any labels of ten classes, where a class is there."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, said = np.array(pairs).T

    scores = long_tail.class_scores(truth, said)

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, said, labels=range(10), zero_division=0
    )
    np.testing.assert_allclose(scores["precision"], precision)
    np.testing.assert_allclose(scores["f1"], f1)
    np.testing.assert_allclose(scores["recall"][support > 0], recall[support > 0])


def _groups(values_by_loss):
    """One tail, one group, recall, precision and F1 alike."""
    tables = [
        pd.DataFrame(
            {"rho": 10, "seed": range(len(values)), "loss": name, "group": "all ten"}
            | dict.fromkeys(long_tail.METRICS, values)
        )
        for name, values in values_by_loss.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_differences_are_paired_by_seed():
    """.1, .2, .3 above cross-entropy, wherever that is: .2 +- 4.303 x .1/sqrt(3); t = 3.464, p = .0742."""
    groups = _groups({"ce": [0.1, 0.9, 0.5], "cefl": [0.2, 1.1, 0.8]})

    row = long_tail.differences_from(groups).query("metric == 'recall'").iloc[0]

    np.testing.assert_allclose(row[["mean", "low", "high"]].astype(float), [0.2, -0.0484, 0.4484], atol=1e-4)
    np.testing.assert_allclose([row["p"], row["p_holm"]], 0.0742, atol=1e-4)


def test_p_values_are_adjusted_for_all_losses_of_a_metric():
    """Two losses with the same p of .0742: Holm doubles the first and keeps the second no smaller."""
    groups = _groups({"ce": [0.0, 0.0, 0.0], "cefl": [0.1, 0.2, 0.3], "cefl2": [-0.1, -0.2, -0.3]})

    table = long_tail.differences_from(groups).query("metric == 'f1'")

    np.testing.assert_allclose(table["p_holm"], [0.1484, 0.1484], atol=2e-4)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]], ids=["one seed", "no spread"])
def test_nothing_is_claimed_where_seeds_show_no_spread(values):
    """What never differs here may differ elsewhere."""
    groups = _groups({"ce": [0.1] * len(values), "focal": values})

    table = long_tail.differences_from(groups)

    np.testing.assert_allclose(table["mean"], 0.2)
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)


def test_differences_need_the_loss_they_are_from():
    """The error lists those that are there."""
    with pytest.raises(InputError, match=r"'ce'\. Received: focal"):
        long_tail.differences_from(_groups({"focal": [0.1, 0.2]}))


def test_groups_are_means_over_their_classes():
    """Recalls 0 to .9 by rank: .45 over all; .1, .45 and .8 over the rarest 3, middle 4, frequent 3."""
    results = pd.DataFrame(
        {"rho": 1, "seed": 0, "loss": "ce", "rank": range(10)}
        | dict.fromkeys(long_tail.METRICS, np.arange(10) / 10)
    )

    recall = long_tail.by_group(results).set_index("group")["recall"]

    np.testing.assert_allclose(
        recall[["all ten", "rarest three", "middle four", "most frequent three"]], [0.45, 0.1, 0.45, 0.8]
    )


def test_means_come_with_an_interval_over_seeds():
    """.1, .2, .3: .2 +- 4.303 x .1/sqrt(3)."""
    row = long_tail.means_with_intervals(_groups({"ce": [0.1, 0.2, 0.3]})).query("metric == 'recall'").iloc[0]

    np.testing.assert_allclose(row[["mean", "low", "high"]].astype(float), [0.2, -0.0484, 0.4484], atol=1e-4)
    assert row["seeds"] == 3
