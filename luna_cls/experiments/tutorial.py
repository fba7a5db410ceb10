"""A tutorial's experiment: 6,000 points, 99 : 1, and two nets that differ by their loss alone.

The tutorial ("Focal Loss vs Binary Cross-Entropy: A Practical Guide for Imbalanced Classification", 2025)
trains a net for 30 steps of the whole training set with binary cross-entropy and with focal loss, once each,
and counts what each finds of the 28 test points of the rarer class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from luna_cls.experiments.small_nets import Net, Run, Trained, train
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.resampling import interval_95, scan_weights
from luna_cls.learning import losses

RANDOM_STATE = 42
STEPS = 30  # the tutorial's
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "BCE": ("bce", {}),
    "BCE, balanced weights": ("bce", {"class_weights": "balanced"}),
    "MSE": ("mse", {}),
    "focal": ("focal", {}),  # the tutorial's, up to a factor of 1/4, which Adam takes out
    "focal, alpha 0.25": ("focal", {"apply_class_balancing": True}),
    "focal, balanced weights": ("focal", {"class_weights": "balanced"}),
    "CEFL": ("cefl", {}),
    "CEFL2": ("cefl2", {}),
    "AnyLoss, balanced accuracy": ("anyloss", {"score": "balanced_accuracy"}),
    "AnyLoss, F1": ("anyloss", {"score": "fbeta"}),
    "SOL, balanced accuracy": ("sol", {"score": "balanced_accuracy"}),
    "SOL, F1": ("sol", {"score": "fbeta"}),
}
METRICS = ("found", "false_alarms", "balanced_accuracy", "average_precision")


class Points(NamedTuple):
    """Points of two columns, and their labels.

    Args:
        x: float64 `(n, 2)`.
        y: `(n,)`, 1 for the rarer class.
        by_chance: Booleans `(n,)`, whether the label was flipped whatever the point: half a percent of all
            points were called 1 in this way, and lie where the others are.
    """

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    by_chance: NDArray[np.bool_]


def points() -> tuple[Points, Points]:
    """The tutorial's 4,200 training and 1,800 test points: 60 and 28 of them of the rarer class."""
    x, y, by_chance = _drawn()
    parts = train_test_split(x, y, by_chance, test_size=0.3, random_state=RANDOM_STATE)
    return Points(*parts[0::2]), Points(*parts[1::2])


def _drawn() -> Points:
    how: dict[str, Any] = {
        "n_samples": 6000,
        "n_features": 2,
        "n_redundant": 0,
        "n_clusters_per_class": 1,
        "weights": [0.99, 0.01],
        "class_sep": 1.5,
        "random_state": RANDOM_STATE,
    }
    x, y = make_classification(**how)
    # Unshuffled, rows are the same with and without flips; shuffled, rows and columns have another order.
    kept, unflipped = make_classification(**how, flip_y=0, shuffle=False)
    columns = [
        int(np.argmin(np.abs(np.sort(kept, axis=0) - np.sort(x[:, [i]], axis=0)).sum(axis=0))) for i in (0, 1)
    ]
    was = np.empty_like(y)
    was[np.lexsort(x.T)] = unflipped[np.lexsort(kept[:, columns].T)]
    return Points(x, y, y != was)


def _torch_dense(units: int, inputs: int, activation: str | None = None) -> keras.layers.Dense:
    """A linear layer that starts as PyTorch's do: weights and biases even within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return keras.layers.Dense(
        units,
        activation,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
    )


def _two_layers(columns: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((columns,)),
            _torch_dense(16, columns, "relu"),
            _torch_dense(8, 16, "relu"),
            _torch_dense(1, 8),
        ]
    )


def _one_layer(columns: int) -> keras.Model:
    return keras.Sequential([keras.Input((columns,)), _torch_dense(8, columns, "relu"), _torch_dense(1, 8)])


def _adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.01)


NETS: dict[str, Net] = {"16 and 8 units": Net(_two_layers, _adam), "8 units": Net(_one_layer, _adam)}


def measured(
    net: str = "16 and 8 units",
    names: Sequence[str] = tuple(LOSSES),
    seeds: Sequence[int] = range(50),
    at: Sequence[int] = (STEPS,),
    threshold: float = 0.5,
) -> pd.DataFrame:
    """Trains from each seed with each loss and scores the test points.

    Args:
        net: A name in `NETS`.
        names: Of `LOSSES`.
        seeds: Of first weights; each starts every loss alike.
        at: Steps to score after.
        threshold: Points above this probability are called ones of the rarer class.

    Returns:
        A row for each loss, seed and step: `loss, seed, step, training_loss`; `found` of the 28 points of
        the rarer class, `found_truly` of those whose label is no chance, `false_alarms` among the 1,772
        others and `balanced_accuracy`; and, without a threshold, `average_precision`.
    """
    training, test = points()
    rows = []
    for name in names:
        logits, training_loss = _trained(net, name, seeds, training, test.x, at)
        for i, seed in enumerate(seeds):
            for j, step in enumerate(at):
                cut = float(logit(threshold))
                metrics = binary_metrics(test.y, logits[i][j], cut)
                found = (logits[i][j] > cut) & (test.y == 1)
                rows.append(
                    {
                        "loss": name,
                        "seed": seed,
                        "step": step,
                        "training_loss": float(training_loss[i, j]),
                        "found": int(metrics["tp"]),
                        "found_truly": int((found & ~test.by_chance).sum()),
                        "false_alarms": int(metrics["fp"]),
                        "balanced_accuracy": metrics["balanced_accuracy"],
                        "average_precision": metrics["average_precision"],
                    }
                )
    return pd.DataFrame(rows)


def probability(
    name: str, seed: int, x: NDArray[np.float64], steps: int = STEPS, net: str = "16 and 8 units"
) -> NDArray[np.float64]:
    """What a net trained from a seed with a loss says of points `(n, 2)`: `(n,)`, from 0 to 1."""
    logits, _ = _trained(net, name, [seed], points()[0], x, [steps])
    return expit(logits[0][0].astype(float))


def _trained(
    net: str,
    name: str,
    seeds: Sequence[int],
    training: Points,
    x_scored: NDArray[np.float64],
    at: Sequence[int],
) -> Trained:
    loss_name, parameters = LOSSES[name]
    counts = np.bincount(training.y).tolist() if "class_weights" in parameters else None
    loss = losses.get(loss_name, counts, **parameters)
    return train(NETS[net], loss, [Run(seed, training.x, training.y, x_scored) for seed in seeds], at)


def paired_differences(results: pd.DataFrame, against: str = "BCE", resamples: int = 2000) -> pd.DataFrame:
    """How far each loss is from another one, seed by seed.

    Args:
        results: Of `measured`.
        against: The other loss.
        resamples: Of the bootstrap over seeds, which the intervals are of.

    Returns:
        A row for each other loss, step and metric: `loss, step, metric, difference, low, high`, mean and 95 %
        interval, NaN where all seeds differ by the same; `more` and `less`, the seeds with more and less. The
        seeds vary the start alone: the interval says nothing of other points.
    """
    rows = []
    for step, of_step in results.groupby("step", sort=False):
        for metric in METRICS:
            values = of_step.pivot_table(index="seed", columns="loss", values=metric, sort=False)
            weights = scan_weights(len(values), resamples) / len(values)
            for name in values.columns.drop(against):
                difference = (values[name] - values[against]).to_numpy(float)
                low, high = interval_95(weights @ difference)
                more, less = int((difference > 0).sum()), int((difference < 0).sum())
                rows.append((name, step, metric, difference.mean(), low, high, more, less))
    return pd.DataFrame(rows, columns=["loss", "step", "metric", "difference", "low", "high", "more", "less"])


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """The distribution over seeds, a row for each step and loss.

    Columns: the median, `_low` and `_high` quarter of `found`; `found_none`, the seeds that found none; the
    medians of the other metrics.
    """
    grouped = results.groupby(["step", "loss"], sort=False)
    found = grouped["found"]
    quarters = {"found": 0.5, "found_low": 0.25, "found_high": 0.75}
    columns = {name: found.quantile(share) for name, share in quarters.items()}
    columns["found_none"] = found.apply(lambda of_seeds: int((of_seeds == 0).sum()))
    columns |= {metric: grouped[metric].median() for metric in METRICS[1:]}
    return pd.DataFrame(columns).reset_index()
