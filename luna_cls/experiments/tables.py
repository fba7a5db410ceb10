"""AnyLoss on the five imbalanced tables of its paper (Han et al. 2024, arXiv 2405.14745), and its rivals.

A linear unit (SLP) and a net of two hidden units (MLP) are trained on ten stratified folds, as often as there
are seeds, with each method: same folds, first weights and order of batches. Columns are standardised on the
training folds. The last layer starts at 0 for every method, where AnyLoss' gradient is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd
from imblearn.over_sampling import SMOTE
from imblearn.under_sampling import RandomUnderSampler
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import t
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from luna_cls.errors import InputError
from luna_cls.experiments.small_nets import Net, Run, train
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.significance import bayesian_sign_test, correlated_t, error_over_folds
from luna_cls.learning import losses

FOLDS = 10
ROPE = 0.01  # a score that differs by less makes no difference (Benavoli et al. 2017)
DATASETS = {  # its file, and the label of the rarer class
    "haberman": ("haberman.csv", 2),
    "ionosphere": ("ionosphere.csv", "b"),
    "wdbc": (None, None),  # scikit-learn's breast cancer set
    "pima_diabetes": ("pima-indians-diabetes.csv", 1),
    "phoneme": ("phoneme.csv", 1),
}
SCORES = {  # what a loss can aim at: the metric's name here, in the paper, and that of the paper's loss
    "accuracy": ("accuracy", "Acc", "AccAim"),
    "fbeta": ("f1", "F1", "F1Aim"),
    "gmean": ("gmean", "Gmean", "GAim"),
    "balanced_accuracy": ("balanced_accuracy", "B_Acc", "BAim"),
}
METRICS = tuple(metric for metric, _, _ in SCORES.values())
_PAPER_RESULTS = "paper_results_5_datasets.csv"


@dataclass(frozen=True)
class Method:
    """What is done about the imbalance.

    Args:
        loss: Its name, as of `losses.get`.
        parameters: The loss' own.
        resampling: Of the training folds: "undersampling" of the commoner class, at random, or "smote".
        threshold: A row is called one of the rarer class above the probability 1/2, or that class' share of
            the training folds.
    """

    loss: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    resampling: Literal["undersampling", "smote"] | None = None
    threshold: Literal["half", "prevalence"] = "half"


METHODS: dict[str, Method] = {
    "MSE": Method("mse"),
    "BCE": Method("bce"),
    "BCE, threshold at prevalence": Method("bce", threshold="prevalence"),
    "BCE, undersampling": Method("bce", resampling="undersampling"),
    "BCE, SMOTE": Method("bce", resampling="smote"),
    **{f"SOL {metric}": Method("sol", {"score": score}) for score, (metric, _, _) in SCORES.items()},
    **{f"AnyLoss {metric}": Method("anyloss", {"score": score}) for score, (metric, _, _) in SCORES.items()},
}


def _net_of(columns: int, *hidden: keras.layers.Layer) -> keras.Model:
    """Hidden layers and one unit that starts at logit 0."""
    return keras.Sequential(
        [keras.Input((columns,)), *hidden, keras.layers.Dense(1, kernel_initializer="zeros")]
    )


def _mlp(columns: int) -> keras.Model:
    hidden = keras.layers.Dense(2), keras.layers.BatchNormalization(), keras.layers.Activation("sigmoid")
    return _net_of(columns, *hidden)


def _mlp_normalized_last(columns: int) -> keras.Model:
    return _net_of(columns, keras.layers.Dense(2, "sigmoid"), keras.layers.BatchNormalization())


def _slow_adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.001)


NETS: dict[str, Net] = {
    "SLP": Net(_net_of, lambda: keras.optimizers.SGD(0.1)),
    "MLP": Net(_mlp, _slow_adam, batches_per_epoch=20),
    "MLP*": Net(_mlp_normalized_last, _slow_adam, batches_per_epoch=20),  # normalised after the sigmoid
}
STEPS = {"SLP": 1000, "MLP": 2000, "MLP*": 2000}  # the paper's: of the whole set, or 100 epochs of 20


def available(folder: Path) -> list[str]:
    """The datasets whose file is in a folder, and the one that comes with scikit-learn."""
    return [name for name, (file, _) in DATASETS.items() if file is None or (folder / file).is_file()]


def table(name: str, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Inputs `(n, columns)` and labels `(n,)`, 1 for the rarer class.

    Raises:
        InputError: If there is no such dataset, or its file is not in the folder; lists those that are.
    """
    if name not in available(folder):
        raise InputError(f"No table '{name}' in {folder}. There: {', '.join(available(folder))}.")
    file, rare = DATASETS[name]
    if file is None:
        data = load_breast_cancer()
        return data.data, (data.target == 0).astype(np.int64)  # 0 is malignant
    rows = pd.read_csv(folder / file, header=None)
    return rows.iloc[:, :-1].to_numpy(float), (rows.iloc[:, -1] == rare).to_numpy(np.int64)


def measured(
    datasets: Sequence[str],
    folder: Path,
    net: str,
    methods: Mapping[str, Method] = METHODS,
    seeds: int = 3,
    at: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Trains and scores on held-out folds.

    Args:
        datasets: Names in `DATASETS`.
        folder: Holds their files.
        net: A name in `NETS`.
        methods: By the name they shall have.
        seeds: How many times the folds are drawn.
        at: Steps to score after; by default the end of the paper's training.

    Returns:
        A row for each dataset, method, seed, fold and step, `net, dataset, method, seed, fold, step`, and its
        `METRICS` and `average_precision`, on the held-out fold.

    Raises:
        InputError: If a table is not there.
    """
    steps = (STEPS[net],) if at is None else at
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        splits = _splits(*table(dataset, folder), seeds)
        for name, method in methods.items():
            runs = [_run(split, method.resampling) for split in splits]
            loss = losses.get(method.loss, **method.parameters)
            for split, logits in zip(splits, train(NETS[net], loss, runs, steps).logits, strict=True):
                threshold = logit(split.y.mean()) if method.threshold == "prevalence" else 0.0
                place = {
                    "net": net,
                    "dataset": dataset,
                    "method": name,
                    "seed": split.seed,
                    "fold": split.fold,
                }
                for step, of_step in zip(steps, logits, strict=True):
                    metrics = binary_metrics(split.y_test, of_step, threshold)
                    rows.append(
                        {
                            **place,
                            "step": step,
                            **{key: metrics[key] for key in (*METRICS, "average_precision")},
                        }
                    )
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class _Split:
    """Training folds and a held-out one, columns standardised on the former."""

    seed: int
    fold: int
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.int64]

    @property
    def of_run(self) -> int:
        """The seed of what is trained here."""
        return FOLDS * self.seed + self.fold


def _splits(x: NDArray[np.float64], y: NDArray[np.int64], seeds: int) -> list[_Split]:
    splits = []
    for seed in range(seeds):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (training, test) in enumerate(folds.split(x, y)):
            scaler = StandardScaler().fit(x[training])
            inputs = scaler.transform(x[training]), scaler.transform(x[test])
            splits.append(_Split(seed, fold, inputs[0], y[training], inputs[1], y[test]))
    return splits


def _run(split: _Split, resampling: str | None) -> Run:
    x, y = split.x, split.y
    if resampling == "undersampling":
        x, y = RandomUnderSampler(random_state=split.of_run).fit_resample(x, y)
    elif resampling == "smote":
        x, y = SMOTE(random_state=split.of_run).fit_resample(x, y)
    return Run(split.of_run, x, y, split.x_test)


def aimed_differences(
    results: pd.DataFrame, rival: str, family: str = "AnyLoss", metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """How much more of a metric the loss aimed at it has than a rival, on each dataset.

    Folds are paired. Those of one draw share what they were trained on, so that their differences hang
    together by 1 in `FOLDS` (Nadeau & Bengio 2003), as in `significance.correlated_t`.

    Args:
        results: Of `measured`, of one net and one step.
        rival: A method; or a family of losses, such as "SOL", of which the one aimed at the metric counts.
        family: Of the aimed losses.
        metrics: That are aimed at.

    Returns:
        A row for each dataset and metric: `dataset, metric, difference, low, high`, the mean and its 95 %
        interval, NaN where no fold differs from another; and `better, equivalent, worse`, what to believe
        where a difference below `ROPE` counts as none.
    """
    rows = []
    for (dataset, of_one), metric in product(results.groupby("dataset", sort=False), metrics):
        values = of_one.pivot_table(index=["seed", "fold"], columns="method", values=metric)
        other = rival if rival in values else f"{rival} {metric}"
        difference = (values[f"{family} {metric}"] - values[other]).to_numpy()
        low, high = interval_over_folds(difference)
        beliefs = correlated_t(difference, ROPE, 1 / FOLDS)
        rows.append((dataset, metric, difference.mean(), low, high, *beliefs))
    names = ["dataset", "metric", "difference", "low", "high", "better", "equivalent", "worse"]
    return pd.DataFrame(rows, columns=names)


def interval_over_folds(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a mean difference `(folds,)` of repeated cross-validation; NaN if none varies."""
    scale = error_over_folds(differences, 1 / FOLDS)
    if scale == 0:
        return np.nan, np.nan
    low, high = t(len(differences) - 1, differences.mean(), scale).interval(0.95)
    return float(low), float(high)


def means(results: pd.DataFrame) -> pd.DataFrame:
    """Means over folds and seeds, as `paper_means` has them: `net, dataset, method, metric, value`."""
    mean = results.groupby(["net", "dataset", "method"], sort=False)[list(METRICS)].mean().reset_index()
    return mean.melt(["net", "dataset", "method"], METRICS, "metric")


def paper_means(folder: Path, datasets: Sequence[str]) -> pd.DataFrame:
    """The paper's figures: `net, dataset, method, metric, value`, in our names."""
    given = pd.read_csv(folder / _PAPER_RESULTS).rename(columns={"network": "net"})
    methods = {"MSE": "MSE", "BCE": "BCE", **{aim: f"AnyLoss {ours}" for ours, _, aim in SCORES.values()}}
    rows = given.melt(["net", "dataset", "metric"], methods, "method")
    rows["metric"] = rows["metric"].map({theirs: ours for ours, theirs, _ in SCORES.values()})
    rows["method"] = rows["method"].map(methods)
    kept = rows.dropna(subset="metric")
    return kept[kept["dataset"].isin(datasets)].reset_index(drop=True)


def aimed_wins(values: pd.DataFrame, rivals: Sequence[str], family: str = "AnyLoss") -> pd.DataFrame:
    """On how many datasets the loss aimed at a metric has more of it than a rival, and what follows.

    Args:
        values: Of `means` or `paper_means`.
        rivals: As of `aimed_differences`.
        family: Of the aimed losses.

    Returns:
        A row for each net, metric and rival, and for "all rivals", the best of them: `datasets` and `won`,
        how many there are and on how many it has more; `better, equivalent, worse`, of the Bayesian sign test
        over datasets with the rope `ROPE`.
    """
    rows = []
    for (net, metric), of_one in values.groupby(["net", "metric"], sort=False):
        table_of = of_one.pivot_table(index="dataset", columns="method", values="value")
        others = {rival: table_of[rival if rival in table_of else f"{rival} {metric}"] for rival in rivals}
        others["all rivals"] = pd.concat(others, axis=1).max(axis=1)
        for rival, other in others.items():
            difference = table_of[f"{family} {metric}"] - other
            beliefs = bayesian_sign_test(difference, ROPE)
            rows.append((net, metric, rival, len(difference), int((difference > 0).sum()), *beliefs))
    names = ["net", "metric", "rival", "datasets", "won", "better", "equivalent", "worse"]
    return pd.DataFrame(rows, columns=names)
