"""Scores a submission through the command line, on one core.

python benchmarks/evaluate.py [LUNA16] [--submission CSV] [--rounds 3] [--json FILE]

LUNA16 is a folder with annotations.csv, annotations_excluded.csv and seriesuids.csv; without it, tables of as
many scans, nodules and excluded findings at random points stand in. Without a submission, 754,975 random
marks of the scans are scored, as many as LUNA16 has candidates. Prints the seconds and the peak memory of a
whole `luna-cls evaluate`, start included, without and with 1,000 resamples and a page: medians and quartiles
of the rounds; of a submission also the CPM.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import rows
from turns import in_turns

from luna_cls.files import read_series_uids

NUM_CANDIDATES, NUM_NODULES = 754_975, 1_557
NUM_SCANS, NUM_ANNOTATED, NUM_EXCLUDED = 888, 1_186, 35_192
POINT = ["coordX", "coordY", "coordZ"]
VARIANTS = {
    "figures alone": ["--resamples", "0", "--no-report"],
    "with 1,000 resamples": ["--no-report"],
    "with those, page and pictures": [],
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("luna16", type=Path, nargs="?")
    parser.add_argument("--submission", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with TemporaryDirectory() as folder:
        luna16 = options.luna16 or _random_reference(Path(folder) / "reference")
        submission = options.submission or _random_submission(luna16, Path(folder))
        contenders = {
            name: partial(_evaluate, luna16, submission, Path(folder), arguments)
            for name, arguments in VARIANTS.items()
        }
        seconds = in_turns(contenders, options.rounds, warm_up=0)
        scores = json.loads((Path(folder) / "scores" / "froc.json").read_text(encoding="utf-8"))
        marks = sum(1 for _ in submission.open(encoding="utf-8")) - 1
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    kind = options.submission.stem if options.submission else "random"
    what = f"the whole of evaluate, one core, start included; {marks:,} marks ({kind})"
    measured = [rows.row(what, name, own, "s", headline=True) for name, own in seconds.items()]
    measured.append(rows.row(what, "peak memory", [gigabytes], "GB", counted=True))
    if options.submission:
        measured.append(rows.row(what, "its CPM", [scores["cpm"]], "", digits=5, counted=True, headline=True))
    for row in measured:
        print(f"{row['what']}: {row['with']:30} {row['figure']}")
    rows.write(options.json, measured)


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


def _random_reference(folder: Path) -> Path:
    """Tables as large as LUNA16's."""
    folder.mkdir()
    rng = np.random.default_rng(16)
    uids = [f"1.2.{number}" for number in range(NUM_SCANS)]
    (folder / "seriesuids.csv").write_text("\n".join(uids) + "\n", encoding="utf-8")
    annotations = pd.DataFrame(rng.uniform(-200, 200, (NUM_ANNOTATED, 3)), columns=POINT)
    annotations.insert(0, "seriesuid", rng.choice(uids, NUM_ANNOTATED))
    annotations["diameter_mm"] = rng.uniform(3, 30, NUM_ANNOTATED)
    excluded = pd.DataFrame(rng.uniform(-200, 200, (NUM_EXCLUDED, 3)), columns=POINT)
    excluded.insert(0, "seriesuid", rng.choice(uids, NUM_EXCLUDED))
    excluded["diameter_mm"] = -1.0
    annotations.to_csv(folder / "annotations.csv", index=False)
    excluded.to_csv(folder / "annotations_excluded.csv", index=False)
    return folder


def _random_submission(luna16: Path, folder: Path) -> Path:
    """As many marks as candidates_V2.csv has, a few of them at nodules."""
    rng = np.random.default_rng(0)
    uids = read_series_uids(luna16 / "seriesuids.csv")
    nodules = pd.read_csv(luna16 / "annotations.csv", dtype={"seriesuid": str}).sample(
        NUM_NODULES, replace=True, random_state=0
    )
    count = NUM_CANDIDATES - NUM_NODULES
    points = rng.uniform(-200, 200, (count, 3))
    marks = pd.DataFrame(points, columns=POINT)
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
