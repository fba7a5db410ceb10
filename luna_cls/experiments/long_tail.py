"""Ten classes, each rarer than the next: cross-entropy, focal loss, CEFL and CEFL2 on long-tailed images.

After Wang 2020, who trained ResNet-18 on CIFAR-10: class i of 0 to 9 keeps N_max rho^(i/9 - 1) training
images, so that class 9 has them all and class 0 one in rho; the test set has as many of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import ops
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from luna_cls.errors import InputError
from luna_cls.judging.significance import holm
from luna_cls.learning import losses

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

NUM_CLASSES = 10
DIGITS_OF_A_CLASS, TEST_DIGITS_OF_A_CLASS = 174, 54  # scikit-learn has from 174 to 183 of each
TRAINING_DIGITS_OF_A_CLASS = DIGITS_OF_A_CLASS - TEST_DIGITS_OF_A_CLASS
GROUPS = {"rarest three": range(3), "middle four": range(3, 7), "most frequent three": range(7, 10)}
METRICS = ("recall", "precision", "f1")

_CIFAR_EDGE, _CIFAR_CHANNELS = 32, 3
_CIFAR_RECORD_BYTES = 1 + _CIFAR_CHANNELS * _CIFAR_EDGE**2
_STEPS_AT_ONCE = 100  # of CIFAR-10, 157 MB of batches of 128
_IMAGES_AT_ONCE = 540  # to be tested


@dataclass(frozen=True, eq=False)
class Images:
    """Small images of ten classes, to learn from and to be tested on.

    Args:
        train: float32 `(n, y, x, channels)`, from 0 to 1.
        train_labels: int64 `(n,)`, 0 to 9.
        test: float32 `(m, y, x, channels)`, as many of each class.
        test_labels: int64 `(m,)`.
    """

    train: Floats
    train_labels: Integers
    test: Floats
    test_labels: Integers


@dataclass(frozen=True)
class Budget:
    """What every training may spend, the same for each loss and each rho.

    Args:
        steps: Batches.
        batch_size: Images in each.
        learning_rate: Adam's, at the start; it falls to 0 along a cosine. Adam makes no difference between a
            loss and a multiple of it, so a loss of small gradients does not learn more slowly for that alone.
        width: Channels of the first stage of ResNet-18; He et al. 2016 have 64.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    width: int = 64


class OfSoftmax(keras.losses.Loss):
    """A loss of this package for classes that exclude each other.

    The losses of each sample are functions of the margin z, of which p = sigmoid(z) is the probability of
    the true class. For a softmax that is z = (the true logit) - log(sum of exp(the others)): a loss of one
    logit is given this z and the label 1. CEFL and CEFL2 do so by themselves (`categorical`) and are not
    wrapped.

    Args:
        loss: One of `luna_cls.learning.losses`, of each sample.
        **standard: Keras' `reduction`, `name` and `dtype`.
    """

    def __init__(self, loss: losses.PerSample, **standard: Any) -> None:
        super().__init__(**standard)
        self._loss = loss

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each sample, `(batch,)`, of one-hot labels and logits `(batch, classes)`."""
        is_true = ops.cast(y_true, "bool")
        true = ops.sum(ops.where(is_true, y_pred, 0.0), axis=-1, keepdims=True)
        others = ops.logsumexp(ops.where(is_true, -float("inf"), y_pred), axis=-1, keepdims=True)
        return self._loss.call(ops.ones_like(true), true - others)


def softmax_loss(name: str, gamma: float = 2.0) -> keras.losses.Loss:
    """A loss for one-hot labels and the logits of a softmax, both `(batch, classes)`.

    Args:
        name: "ce", "focal", "cefl" or "cefl2".
        gamma: Of all but "ce".

    Raises:
        InputError: If the name is another.
    """
    known: dict[str, Callable[[], keras.losses.Loss]] = {
        "ce": lambda: OfSoftmax(losses.get("bce")),
        "focal": lambda: OfSoftmax(losses.get("focal", gamma=gamma)),
        "cefl": lambda: losses.get("cefl", gamma=gamma, categorical=True),
        "cefl2": lambda: losses.get("cefl2", gamma=gamma, categorical=True),
    }
    if name not in known:
        raise InputError(f"No loss of a softmax is called {name!r}. Known: {', '.join(known)}.")
    return known[name]()


def loss_curves(names: Sequence[str], gammas: Sequence[float], probability: ArrayLike) -> pd.DataFrame:
    """Losses of one sample against the probability of its true class, of a softmax of two classes.

    Args:
        names: As `softmax_loss` takes them.
        gammas: Likewise; "ce" has none and stands once, with NaN.
        probability: Of the true class `(n,)`, above 0 and below 1.

    Returns:
        Table `loss, gamma, probability, value, weight, gradient`: the weight is the value over that of
        cross-entropy, the gradient the loss's by the logit of the true class, without its sign.
    """
    import tensorflow as tf

    p = np.asarray(probability, float).reshape(-1)
    logits = tf.constant(np.stack([np.zeros_like(p), np.log(p) - np.log1p(-p)], axis=1), tf.float32)
    labels = tf.constant(np.tile([0.0, 1.0], (len(p), 1)), tf.float32)
    tables = []
    for name, gamma in product(names, gammas):
        if name == "ce" and gamma != gammas[0]:
            continue
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = softmax_loss(name, gamma).call(labels, logits)
        table = {
            "loss": name,
            "gamma": np.nan if name == "ce" else gamma,
            "probability": p,
            "value": value.numpy(),
            "weight": value.numpy() / -np.log(p),
            "gradient": np.abs(tape.gradient(value, logits).numpy()[:, 1]),
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def digits(seed: int = 0) -> Images:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels, 120 of each to learn from and 54 to test on.

    Args:
        seed: Of the draw of which are which.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [rng.permutation(np.flatnonzero(labels == label))[:DIGITS_OF_A_CLASS] for label in range(NUM_CLASSES)]
    )
    test, train = drawn[:, :TEST_DIGITS_OF_A_CLASS].ravel(), drawn[:, TEST_DIGITS_OF_A_CLASS:].ravel()
    return Images(images[train], labels[train].astype(int), images[test], labels[test].astype(int))


def cifar10(folder: str | Path) -> Images:
    """CIFAR-10 from the binary version's files, which hold bytes alone and can run nothing.

    An image is a byte for its class and 3 x 32 x 32 for red, green and blue, row by row.

    Args:
        folder: It holds data_batch_1.bin to data_batch_5.bin and test_batch.bin.

    Raises:
        InputError: If a file is missing, is not made of such records, or names an eleventh class; or if the
            test set has not as many of each.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version".
    """
    folder = Path(folder)
    batches = [_cifar_batch(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    train, train_labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    test, test_labels = _cifar_batch(folder / "test_batch.bin")
    if len(set(np.bincount(test_labels, minlength=NUM_CLASSES))) > 1:
        raise InputError(f"{folder / 'test_batch.bin'} has not as many images of each class: is it whole?")
    return Images(train, train_labels, test, test_labels)


def _cifar_batch(path: Path) -> tuple[Floats, Integers]:
    if not path.is_file():
        raise InputError(f"{path} is missing. Unpack the binary version of CIFAR-10, cifar-10-binary.tar.gz.")
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % _CIFAR_RECORD_BYTES:
        raise InputError(
            f"{path} is not CIFAR-10's binary version: records have {_CIFAR_RECORD_BYTES:,} bytes. "
            f"Received: {len(content):,}."
        )
    records = content.reshape(-1, _CIFAR_RECORD_BYTES)
    labels = records[:, 0].astype(int)
    if labels.max() >= NUM_CLASSES:
        raise InputError(f"{path} is not CIFAR-10: classes go from 0 to 9. Received: {labels.max()}.")
    channels_first = records[:, 1:].reshape(-1, _CIFAR_CHANNELS, _CIFAR_EDGE, _CIFAR_EDGE)
    return np.moveaxis(channels_first, 1, -1).astype(np.float32) / np.float32(255), labels


def long_tail_counts(most: int, rho: float) -> Integers:
    """How many training images class i of 0 to 9 keeps: `most` rho^(i/9 - 1), rounded, and 1 at least.

    Args:
        most: Those of class 9.
        rho: How many times as many that is as those of class 0.

    Returns:
        int64 `(10,)`, rising.

    Raises:
        InputError: If `most` or `rho` is below 1.
    """
    if most < 1 or rho < 1:
        raise InputError(f"A long tail takes most and rho of 1 or more. Received: {most} and {rho:g}.")
    place = np.arange(NUM_CLASSES) / (NUM_CLASSES - 1)
    return np.maximum(np.rint(most * float(rho) ** (place - 1)), 1).astype(int)


def long_tailed(labels: Integers, counts: Integers, seed: int) -> Integers:
    """Which images `(sum of counts,)` a long tail keeps: the first so many of each class, in a drawn order.

    So for one seed the images of a longer tail are among those of a shorter one.

    Args:
        labels: int64 `(n,)`.
        counts: Of each class `(10,)`.
        seed: Of the order.

    Raises:
        InputError: If a class has fewer.
    """
    rng, kept = np.random.default_rng(seed), []
    for label, count in enumerate(counts):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) < count:
            raise InputError(f"Class {label} is to keep {count} images, and there are {len(own)} of it.")
        kept.append(own[:count])
    return np.concatenate(kept)


def resnet18(shape: tuple[int, int, int], width: int = 64) -> keras.Model:
    """ResNet-18 for small images: the first convolution is 3 x 3 and keeps their size, no pooling follows.

    Args:
        shape: `(y, x, channels)`; 8 x 8 pixels at least keep one after three halvings.
        width: Channels of the first stage; each further stage has twice as many.

    Returns:
        A model from float32 `(batch, y, x, channels)` to logits `(batch, 10)`.

    Source: He, Zhang, Ren & Sun (2016), CVPR, with the first layer of its section 4.2 for CIFAR-10.
    """
    images = keras.Input(shape)
    outputs = keras.layers.ReLU()(_normalized_conv(images, width, 3, 1))
    for stage, block in product(range(4), range(2)):
        filters, stride = width * 2**stage, 2 if stage and not block else 1
        shortcut = outputs
        if stage and not block:
            shortcut = _normalized_conv(outputs, filters, 1, stride)
        outputs = keras.layers.ReLU()(_normalized_conv(outputs, filters, 3, stride))
        outputs = _normalized_conv(outputs, filters, 3, 1)
        outputs = keras.layers.ReLU()(keras.layers.Add()([outputs, shortcut]))
    outputs = keras.layers.GlobalAveragePooling2D()(outputs)
    return keras.Model(images, keras.layers.Dense(NUM_CLASSES)(outputs), name="resnet18")


def _normalized_conv(inputs: Any, filters: int, size: int, stride: int) -> Any:
    outputs = keras.layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(inputs)
    return keras.layers.BatchNormalization(momentum=0.9)(outputs)


def batch_plan(num_images: int, steps: int, batch_size: int, seed: int) -> Integers:
    """Which image is where in which batch: one drawn order of all after another.

    Returns:
        int64 `(steps, batch_size)`, places from 0 to `num_images` - 1.
    """
    rng, rounds = np.random.default_rng(seed), -(-steps * batch_size // num_images)
    order = np.concatenate([rng.permutation(num_images) for _ in range(rounds)])
    return order[: steps * batch_size].reshape(steps, batch_size)


def train_long_tailed(
    images_of: Callable[[int], Images],
    names: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    budget: Budget,
    *,
    most: int,
    gamma: float = 2.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Trains ResNet-18 on every long tail with every loss, from every seed, and tests it class by class.

    A seed draws which label is class 0, 1, ... of the tail (so that rare is not another word for the digit
    0), which images are kept, the first weights, and the order of batches: all the same for every loss.

    Args:
        images_of: The images of a seed: `digits`, or a function that gives those of `cifar10`.
        names: Losses, as `softmax_loss` takes them.
        rhos: How many times as frequent class 9 is as class 0.
        seeds: Each is a start of its own.
        budget: What every training may spend.
        most: Training images of class 9.
        gamma: Of the losses that have one.
        on_progress: Told how many trainings are done, and how many there are.

    Returns:
        Table of a row for each class of each training: `rho, seed, loss, rank` (0 the rarest), `label` (what
        it shows), `count` (training images), `recall, precision, f1` on the test set; precision and F1 are 0
        where nothing is called so.
    """
    rows, done, total = [], 0, len(rhos) * len(seeds) * len(names)
    models: dict[str, keras.Model] = {}
    images_by_seed = {seed: images_of(seed) for seed in seeds}
    # All before the first training: to set a seed makes TensorFlow forget what it has compiled.
    starts = {seed: _first_weights(images, budget, seed) for seed, images in images_by_seed.items()}
    for seed, images in images_by_seed.items():
        label_of_rank = np.random.default_rng([seed, 0]).permutation(NUM_CLASSES)
        for rho in rhos:
            counts = long_tail_counts(most, rho)
            of_label = counts[np.argsort(label_of_rank)]
            kept = long_tailed(images.train_labels, of_label, seed)
            batches = kept[batch_plan(len(kept), budget.steps, budget.batch_size, seed)]
            for name in names:
                if name not in models:
                    models[name] = _compiled(images, budget, softmax_loss(name, gamma))
                _fit(models[name], starts[seed], images, batches)
                called = _called(models[name], images.test)
                scores = class_scores(images.test_labels, called).loc[label_of_rank]
                rows.append(
                    scores.reset_index(names="label").assign(
                        rho=rho, seed=seed, loss=name, rank=range(NUM_CLASSES), count=counts
                    )
                )
                done += 1
                if on_progress:
                    on_progress(done, total)
    return pd.concat(rows, ignore_index=True)[["rho", "seed", "loss", "rank", "label", "count", *METRICS]]


def _first_weights(images: Images, budget: Budget, seed: int) -> list[NDArray[Any]]:
    keras.utils.set_random_seed(seed)
    weights: list[NDArray[Any]] = resnet18(images.train.shape[1:], budget.width).get_weights()
    return weights


def _compiled(images: Images, budget: Budget, loss: keras.losses.Loss) -> keras.Model:
    """A model of one loss for all seeds: to compile its step takes longer than many a training."""
    model = resnet18(images.train.shape[1:], budget.width)
    rate = keras.optimizers.schedules.CosineDecay(budget.learning_rate, budget.steps)
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss, jit_compile=False)
    return model


def _fit(model: keras.Model, start: list[NDArray[Any]], images: Images, batches: Integers) -> None:
    model.set_weights(start)
    for variable in model.optimizer.variables:
        variable.assign(ops.zeros_like(variable))
    one_hot = np.eye(NUM_CLASSES, dtype=np.float32)
    for first in range(0, len(batches), _STEPS_AT_ONCE):
        order = batches[first : first + _STEPS_AT_ONCE].ravel()
        model.fit(
            images.train[order],
            one_hot[images.train_labels[order]],
            batch_size=batches.shape[1],
            shuffle=False,
            verbose=0,
        )


def _called(model: keras.Model, images: Floats) -> Integers:
    parts = np.array_split(images, -(-len(images) // _IMAGES_AT_ONCE))
    logits = [ops.convert_to_numpy(model(part, training=False)) for part in parts]
    return np.concatenate(logits).argmax(axis=1)


def class_scores(labels: ArrayLike, called: ArrayLike) -> pd.DataFrame:
    """Recall, precision and F1 of each class.

    Args:
        labels: Integers `(n,)`, 0 to 9.
        called: Integers `(n,)`, what each was said to be.

    Returns:
        Table `recall, precision, f1` by class. Precision and F1 are 0 of a class that nothing is called;
        recall is NaN of one that is not there.
    """
    truth, said = np.asarray(labels, int), np.asarray(called, int)
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES))
    np.add.at(confusion, (truth, said), 1)
    hits, there, calls = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall = np.divide(hits, there, out=np.full(NUM_CLASSES, np.nan), where=there > 0)
    f1 = np.divide(2 * hits, there + calls, out=np.zeros(NUM_CLASSES), where=there + calls > 0)
    return pd.DataFrame({"recall": recall, "precision": hits / np.maximum(calls, 1), "f1": f1})


def by_group(results: pd.DataFrame) -> pd.DataFrame:
    """Means over classes, of each training.

    Args:
        results: As `train_long_tailed` gives it.

    Returns:
        Table `rho, seed, loss, group, recall, precision, f1`: over all classes ("all ten"; the mean recall is
        the balanced accuracy), and over the rarest three, the middle four and the most frequent three.
    """
    keys = ["rho", "seed", "loss"]
    parts = {"all ten": range(NUM_CLASSES), **GROUPS}
    tables = [
        results[results["rank"].isin(ranks)]
        .groupby(keys, sort=False)[list(METRICS)]
        .mean()
        .reset_index()
        .assign(group=name)
        for name, ranks in parts.items()
    ]
    return pd.concat(tables, ignore_index=True)[[*keys, "group", *METRICS]]


def means_with_intervals(groups: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds.

    Args:
        groups: As `by_group` gives it.

    Returns:
        Table `rho, group, loss, metric, seeds, mean, low, high`, with Student's 95 % interval over seeds; NaN
        of one seed.
    """
    long = groups.melt(["rho", "seed", "loss", "group"], list(METRICS), "metric", "value")
    found = long.groupby(["rho", "group", "loss", "metric"], sort=False)["value"].agg(_mean_and_interval)
    return _spread(found)


def differences_from(groups: pd.DataFrame, against: str = "ce") -> pd.DataFrame:
    """How much better each loss is than one of them, seed by seed.

    Args:
        groups: As `by_group` gives it.
        against: The loss that the others are compared with.

    Returns:
        Table `rho, group, loss, metric, seeds, mean, low, high, p, p_holm`: the mean over seeds of the loss
        less the other; Student's 95 % interval over seeds, and p, two-sided, of no difference. `p_holm` is
        adjusted for all rhos and losses of the same group and metric. No interval and no p where there is one
        seed, or all show the same difference.

    Raises:
        InputError: If that loss is not there.
    """
    if against not in set(groups["loss"]):
        raise InputError(
            f"No training was made with {against!r}. Received: {', '.join(set(groups['loss']))}."
        )
    keys = ["rho", "seed", "group", "metric"]
    long = groups.melt(["rho", "seed", "loss", "group"], list(METRICS), "metric", "value")
    is_base = long["loss"] == against
    paired = long[~is_base].merge(long[is_base].drop(columns="loss"), on=keys, suffixes=("", "_against"))
    paired["difference"] = paired["value"] - paired["value_against"]
    found = paired.groupby(["rho", "group", "loss", "metric"], sort=False)["difference"].agg(
        _mean_and_interval
    )
    table = _spread(found)
    error = (table["high"] - table["low"]) / 2 / t.isf(0.025, table["seeds"] - 1)
    table["p"] = 2 * t.sf(np.abs(table["mean"]) / error, table["seeds"] - 1)
    table["p_holm"] = table.groupby(["group", "metric"])["p"].transform(_holm_of_defined)
    return table


def _mean_and_interval(values: pd.Series) -> tuple[int, float, float, float]:
    number, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / np.sqrt(number) if number > 1 else np.nan
    half = float(t.isf(0.025, number - 1)) * error if error > 1e-12 else np.nan
    return number, mean, mean - half, mean + half


def _spread(found: pd.Series) -> pd.DataFrame:
    columns = ["seeds", "mean", "low", "high"]
    return pd.DataFrame(found.tolist(), found.index, columns).reset_index()


def _holm_of_defined(p: pd.Series) -> pd.Series:
    adjusted = pd.Series(np.nan, p.index)
    if p.notna().any():
        adjusted[p.notna()] = holm(p.dropna())
    return adjusted
