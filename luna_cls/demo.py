"""The whole path on a phantom: scans, cubes, training, findings, scores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna_cls.cubes.preparation import prepare
from luna_cls.files import clear, require_new, write_text
from luna_cls.scans.luna16 import LunaTree, find_csv
from luna_cls.scans.phantom import write_phantom
from luna_cls.settings import load_settings
from luna_cls.startup import load_tensorflow_quietly

NUM_SCANS, SEED = 20, 0
NUM_NODULES, IMBALANCE = 6, 40  # in every scan, and others for each: enough to learn from in minutes

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Demonstration:
    """What `run` made and measured.

    Args:
        result: What `judging.evaluation.evaluate_submission` says of the test scans.
        paths: What was written, by what it is.
    """

    result: dict[str, Any]
    paths: dict[str, Path]


def run(out: Path, *, force: bool, say: Callable[[str], None], progress: Progress) -> Demonstration:
    """Makes a phantom, trains on eight tenths of its scans and scores the rest.

    Args:
        out: The folder to make.
        force: Replace it if it exists.
        say: Prints a line.
        progress: Opens a progress display under a title.

    Raises:
        InputError: If `out` exists.
    """
    require_new(out, force=force, sign="demo.toml")
    settings = load_settings("demo")
    clear(out)
    write_text(out / "demo.toml", settings.to_toml())
    paths = {
        "scans": out / "phantom",
        "cubes": out / "store",
        "run": out / "run",
        "findings": out / "findings",
        "evaluation": out / "evaluation",
        "report": out / "evaluation" / "report.html",
    }
    with progress("Making scans") as on_progress:
        write_phantom(
            paths["scans"],
            NUM_SCANS,
            SEED,
            num_nodules=NUM_NODULES,
            imbalance=IMBALANCE,
            progress=on_progress,
        )
    tree = LunaTree.open(paths["scans"])
    with progress("Cutting cubes") as on_progress:
        store = prepare(tree, tree.candidates(), paths["cubes"], on_progress=on_progress)

    say("Loading TensorFlow")
    load_tensorflow_quietly()
    from luna_cls.inference.predictor import predict
    from luna_cls.judging.evaluation import evaluate_submission
    from luna_cls.judging.submission import Reference
    from luna_cls.learning.training import train
    from luna_cls.reports.page import write_evaluation_report, write_report

    train(store, settings, paths["run"], say=say)
    write_report(paths["run"], store=store)
    test = store.candidates[store.candidates["fold"].isin(settings.split.test_folds)]
    test_uids = sorted(test["seriesuid"].unique())
    with progress("Reading the test scans") as on_progress:
        predict(
            paths["run"] / "model.keras",
            [tree.scan_paths[uid] for uid in test_uids],
            find_csv(tree.root, "candidates_V2.csv"),
            paths["findings"],
            on_progress=on_progress,
        )
    write_report(paths["findings"], scans=[tree.root])
    result = evaluate_submission(
        paths["findings"] / "findings.csv",
        Reference(
            find_csv(tree.root, "annotations.csv"),
            find_csv(tree.root, "annotations_excluded.csv"),
            paths["findings"] / "seriesuids.csv",
        ),
        paths["evaluation"],
        finish=lambda folder: write_evaluation_report(folder, [tree.root]),
    )
    return Demonstration(result, paths)
