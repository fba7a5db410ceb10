"""AnyLoss on five imbalanced tables, beside the figures of its paper (Han et al. 2024).

python benchmarks/anyloss_tables.py TABLES [--seeds 3] [--dataset haberman ...]

TABLES holds haberman.csv, ionosphere.csv, phoneme.csv, pima-indians-diabetes.csv and the paper's
results, paper_results_5_datasets.csv; the fifth table is scikit-learn's breast cancer set. A linear unit
(SLP: 1,000 steps of 0.1 on the whole set) and the paper's small net (MLP: two sigmoid units, batch
normalisation, Adam 0.001, 100 epochs, batches of 5 %) are trained with MSE, BCE and AnyLoss aimed at
accuracy, F1, G-mean and balanced accuracy, on ten stratified folds, as often as there are seeds. Columns
are standardised on the training folds; output weights start at zero, for every loss alike, where AnyLoss'
gradient is. Batch normalisation stands before the sigmoid; MLP* has it after, which lets MSE and BCE
learn further in so few steps, and is shown for comparison.

Prints, for each net and dataset, the mean over folds of the metric that each loss aims at, beside that of
MSE and BCE, ours and the paper's; then in how many datasets the aimed loss beats both. The exit status is
1 if, for SLP or MLP and any metric, that is in fewer datasets than in the paper, less one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from luna_cls.judging.binary import binary_metrics
from luna_cls.learning import losses

FOLDS = 10
DATASETS = {  # its file, and the label of the rarer class
    "haberman": ("haberman.csv", 2),
    "ionosphere": ("ionosphere.csv", "b"),
    "wdbc": (None, None),
    "pima_diabetes": ("pima-indians-diabetes.csv", 1),
    "phoneme": ("phoneme.csv", 1),
}
LOSSES = {  # the paper's column
    "MSE": ("mse", {}),
    "BCE": ("bce", {}),
    "AccAim": ("anyloss", {"score": "accuracy"}),
    "F1Aim": ("anyloss", {"score": "fbeta"}),
    "GAim": ("anyloss", {"score": "gmean"}),
    "BAim": ("anyloss", {"score": "balanced_accuracy"}),
}
AIMED_AT = {  # the paper's name of the metric, and ours
    "AccAim": ("Acc", "accuracy"),
    "F1Aim": ("F1", "f1"),
    "GAim": ("Gmean", "gmean"),
    "BAim": ("B_Acc", "balanced_accuracy"),
}


def table(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `(n, columns)` and labels `(n,)`, 1 for the rarer class."""
    file, rare = DATASETS[name]
    if file is None:
        data = load_breast_cancer()
        return data.data, (data.target == 0).astype(int)  # 0 is malignant
    rows = pd.read_csv(folder / file, header=None)
    return rows.iloc[:, :-1].to_numpy(float), (rows.iloc[:, -1] == rare).to_numpy(int)


def net_of(columns: int, *hidden: keras.layers.Layer) -> keras.Model:
    """Hidden layers and one unit that starts at logit 0."""
    return keras.Sequential(
        [keras.Input((columns,)), *hidden, keras.layers.Dense(1, kernel_initializer="zeros")]
    )


def mlp(columns: int) -> keras.Model:
    """The paper's small net."""
    hidden = keras.layers.Dense(2), keras.layers.BatchNormalization(), keras.layers.Activation("sigmoid")
    return net_of(columns, *hidden)


def mlp_normalized_last(columns: int) -> keras.Model:
    """The same with batch normalisation after the sigmoid."""
    return net_of(columns, keras.layers.Dense(2, "sigmoid"), keras.layers.BatchNormalization())


def slp_steps(count: int, _generator: np.random.Generator) -> np.ndarray:
    """The rows of each of 1,000 steps: all of them."""
    return np.tile(np.arange(count), (1000, 1))


def mlp_steps(count: int, generator: np.random.Generator) -> np.ndarray:
    """The rows of each step of 100 shuffled epochs of 20 batches."""
    size = count // 20
    return np.concatenate([generator.permutation(count)[: 20 * size].reshape(20, size) for _ in range(100)])


NETS: dict[str, tuple[Callable, Callable, Callable]] = {
    "SLP": (net_of, slp_steps, lambda: keras.optimizers.SGD(0.1)),
    "MLP": (mlp, mlp_steps, lambda: keras.optimizers.Adam(0.001)),
    "MLP*": (mlp_normalized_last, mlp_steps, lambda: keras.optimizers.Adam(0.001)),
}


class Trainer:
    """Trains one net with one loss again and again; the loop over steps is compiled once."""

    def __init__(self, net: str, loss: str, columns: int) -> None:
        make, self._steps, make_optimizer = NETS[net]
        self._model, self._loss = make(columns), losses.get(LOSSES[loss][0], **LOSSES[loss][1])
        self._optimizer = make_optimizer()
        self._optimizer.build(self._model.trainable_variables)
        self._blank = [variable.numpy() for variable in self._optimizer.variables]
        self._run = tf.function(self._all_steps, reduce_retracing=True)

    def _all_steps(self, x: tf.Tensor, y: tf.Tensor, steps: tf.Tensor) -> None:
        for rows in steps:
            with tf.GradientTape() as tape:
                logits = self._model(tf.gather(x, rows), training=True)
                value = self._loss(tf.gather(y, rows), logits)
            variables = self._model.trainable_variables
            self._optimizer.apply(tape.gradient(value, variables), variables)

    def logits(self, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, seed: int) -> np.ndarray:
        """Logits `(n,)` of `x_test` after training anew on `x` and `y`; a seed starts each loss alike."""
        keras.utils.set_random_seed(seed)
        fresh = keras.models.clone_model(self._model)
        self._model.set_weights(fresh.get_weights())
        for variable, value in zip(self._optimizer.variables, self._blank, strict=True):
            variable.assign(value)
        steps = self._steps(len(x), np.random.default_rng(seed))
        self._run(tf.constant(x, "float32"), tf.constant(y[:, None], "float32"), tf.constant(steps))
        return self._model(tf.constant(x_test, "float32"), training=False).numpy()[:, 0]


def measured(dataset: str, folder: Path, net: str, loss: str, seeds: int) -> dict[str, float]:
    """Means over folds and seeds of every metric aimed at; none found counts 0."""
    x, y = table(dataset, folder)
    trainer = Trainer(net, loss, x.shape[1])
    found = []
    for seed in range(seeds):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (train, test) in enumerate(folds.split(x, y)):
            scaler = StandardScaler().fit(x[train])
            logits = trainer.logits(
                scaler.transform(x[train]), y[train], scaler.transform(x[test]), FOLDS * seed + fold
            )
            metrics = binary_metrics(y[test], logits)
            found.append({name: np.nan_to_num(metrics[name]) for _, name in AIMED_AT.values()})
    return pd.DataFrame(found).mean().to_dict()


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", choices=DATASETS, action="append")
    options = parser.parse_args()
    datasets = options.dataset or list(DATASETS)
    paper = pd.read_csv(options.tables / "paper_results_5_datasets.csv").set_index(
        ["network", "dataset", "metric"]
    )
    counts = []
    print("| net | dataset | metric | MSE | BCE | aimed | paper: MSE | BCE | aimed |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for net in NETS:
        wins: dict[str, list[tuple[bool, bool]]] = {aim: [] for aim in AIMED_AT}
        for dataset in datasets:
            ours = {loss: measured(dataset, options.tables, net, loss, options.seeds) for loss in LOSSES}
            for aim, (metric, name) in AIMED_AT.items():
                rows = [[ours[loss][name] for loss in ("MSE", "BCE", aim)]]
                rows.append(paper.loc[(net[:3], dataset, metric), ["MSE", "BCE", aim]].tolist())
                wins[aim].append(tuple(row[2] > max(row[:2]) for row in rows))
                figures = " | ".join(f"{value:.3f}" for row in rows for value in row)
                print(f"| {net} | {dataset} | {metric} | {figures} |", flush=True)
        counts += [(net, AIMED_AT[aim][0], *np.sum(won, axis=0).tolist()) for aim, won in wins.items()]
    print(f"\nDatasets, of {len(datasets)}, in which the loss aimed at a metric beats MSE and BCE:\n")
    print("| net | metric | ours | paper |\n|---|---|--:|--:|")
    for row in counts:
        print("| " + " | ".join(map(str, row)) + " |")
    return int(any(ours < theirs - 1 for net, _, ours, theirs in counts if net != "MLP*"))


if __name__ == "__main__":
    sys.exit(main())
