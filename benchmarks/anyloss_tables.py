"""AnyLoss on five imbalanced tables, beside the figures of its paper (Han et al. 2024).

python benchmarks/anyloss_tables.py TABLES [--seeds 3] [--dataset haberman ...]

TABLES holds haberman.csv, ionosphere.csv, phoneme.csv, pima-indians-diabetes.csv and the paper's results,
paper_results_5_datasets.csv; the fifth table is scikit-learn's breast cancer set. How nets are trained and
scored: luna_cls.experiments.tables. With intervals, more rivals and figures: notebooks/anyloss_tables.ipynb.

Prints, for each net and dataset, the mean over folds of the metric that each loss aims at, beside that of
MSE and BCE, ours and the paper's; then in how many datasets the aimed loss beats both. The exit status is
1 if, for SLP or MLP and any metric, that is in fewer datasets than in the paper, less one.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pandas as pd

from luna_cls.experiments import tables

METHODS = {
    name: method
    for name, method in tables.METHODS.items()
    if name in ("MSE", "BCE") or name.startswith("AnyLoss")
}
INDEX = ["net", "dataset", "metric", "method"]


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", choices=tables.DATASETS, action="append")
    options = parser.parse_args()
    datasets = options.dataset or list(tables.DATASETS)
    paper = tables.paper_means(options.tables, datasets)
    theirs = paper.set_index(INDEX)["value"]
    means = []
    print("| net | dataset | metric | MSE | BCE | aimed | paper: MSE | BCE | aimed |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for net in tables.NETS:
        for dataset in datasets:
            means.append(
                tables.means(tables.measured([dataset], options.tables, net, METHODS, options.seeds))
            )
            ours = means[-1].set_index(INDEX)["value"]
            for metric in tables.METRICS:
                names = ["MSE", "BCE", f"AnyLoss {metric}"]
                values = [ours[net, dataset, metric, name] for name in names]
                values += [theirs[net[:3], dataset, metric, name] for name in names]
                print(
                    f"| {net} | {dataset} | {metric} | {' | '.join(f'{v:.3f}' for v in values)} |", flush=True
                )
    print(f"\nDatasets, of {len(datasets)}, in which the loss aimed at a metric beats MSE and BCE:\n")
    print("| net | metric | ours | paper |\n|---|---|--:|--:|")
    ours_won, theirs_won = won(pd.concat(means)), won(paper)
    counts = [(net, metric, count, theirs_won[net[:3], metric]) for (net, metric), count in ours_won.items()]
    for row in counts:
        print("| " + " | ".join(map(str, row)) + " |")
    return int(any(count < published - 1 for net, _, count, published in counts if net != "MLP*"))


def won(values: pd.DataFrame) -> pd.Series:
    """In how many datasets the aimed loss beats both, by net and metric."""
    wins = tables.aimed_wins(values, ["MSE", "BCE"])
    return wins[wins["rival"] == "all rivals"].set_index(["net", "metric"])["won"]


if __name__ == "__main__":
    sys.exit(main())
