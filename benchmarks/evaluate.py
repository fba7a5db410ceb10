"""Scores a submission through the command line, on one core.

python benchmarks/evaluate.py LUNA16 [--submission CSV] [--rounds 3]

LUNA16 is a folder with annotations.csv, annotations_excluded.csv and seriesuids.csv. Without a submission,
754,975 random marks of its scans are scored, as many as LUNA16 has candidates. Prints the seconds and the
peak memory of a whole `luna-cls evaluate`, start included, without and with 1,000 resamples and a page: the
median, fastest and slowest round.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from luna_cls.files import read_series_uids

NUM_CANDIDATES, NUM_NODULES = 754_975, 1_557
VARIANTS = {
    "figures alone": ["--resamples", "0", "--no-report"],
    "with 1,000 resamples": ["--no-report"],
    "with those, page and pictures": [],
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("luna16", type=Path)
    parser.add_argument("--submission", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with TemporaryDirectory() as folder:
        submission = options.submission or _random_submission(options.luna16, Path(folder))
        for name, arguments in VARIANTS.items():
            seconds = [
                _evaluate(options.luna16, submission, Path(folder), arguments) for _ in range(options.rounds)
            ]
            gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            print(
                f"{name:30} {statistics.median(seconds):5.1f} s ({min(seconds):.1f} to {max(seconds):.1f} in "
                f"{options.rounds} rounds), at most {gigabytes:.2f} GB so far"
            )


def _evaluate(luna16: Path, submission: Path, folder: Path, arguments: list[str]) -> float:
    command = [
        sys.executable,
        "-m",
        "luna_cls",
        "evaluate",
        str(submission),
        "--out",
        str(folder / "scores"),
        "--force",
    ]
    for option, name in (
        ("--annotations", "annotations.csv"),
        ("--excluded", "annotations_excluded.csv"),
        ("--seriesuids", "seriesuids.csv"),
    ):
        command += [option, str(luna16 / name)]
    start = time.perf_counter()
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def _random_submission(luna16: Path, folder: Path) -> Path:
    """As many marks as candidates_V2.csv has, a few of them at nodules."""
    rng = np.random.default_rng(0)
    uids = read_series_uids(luna16 / "seriesuids.csv")
    nodules = pd.read_csv(luna16 / "annotations.csv", dtype={"seriesuid": str}).sample(
        NUM_NODULES, replace=True, random_state=0
    )
    count = NUM_CANDIDATES - NUM_NODULES
    points = rng.uniform(-200, 200, (count, 3))
    marks = pd.DataFrame(points, columns=["coordX", "coordY", "coordZ"])
    marks.insert(0, "seriesuid", rng.choice(uids, count))
    table = pd.concat([marks, nodules[marks.columns]]).assign(**{"class": np.arange(NUM_CANDIDATES) >= count})
    logit = rng.normal(6.0 * table["class"] - 5, 2)
    path = folder / "marks.csv"
    table.assign(probability=1 / (1 + np.exp(-logit)), logit=logit).astype({"class": int}).to_csv(
        path, index=False
    )
    return path


if __name__ == "__main__":
    main()
