"""Folders of each kind that can be reported, for tests of pages."""

import json
import shutil

import numpy as np
import pandas as pd

from luna_cls.files import COORDINATES
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.calibrated_run import calibrate
from luna_cls.judging.evaluation import compare_submissions
from luna_cls.judging.submission import Reference
from luna_cls.scans.luna16 import LunaTree

RESAMPLES = 50


def make_folders(root, tree, store):
    """Folders as the commands leave them: a calibrated run, findings, a comparison and an evaluation of it.

    Args:
        root: Where they are made.
        tree: A LUNA16 tree.
        store: The store of its cubes.
    """
    rng = np.random.default_rng(7)
    table = store.candidates[["seriesuid", *COORDINATES, "class"]]
    logits = rng.normal(3 * table["class"] - 2, 1.5)
    scored = table.assign(probability=1 / (1 + np.exp(-logits)), logit=logits)
    scored = scored[["seriesuid", *COORDINATES, "probability", "logit", "class"]]
    folders = {kind: root / kind for kind in ("run", "findings", "evaluation", "comparison")}
    _make_run(folders["run"], scored)
    _make_findings(folders["findings"], scored, sorted(LunaTree.open(tree).scan_paths))
    second = logits + rng.normal(size=len(logits))
    for name, own in (("first", logits), ("second", second)):
        marks = scored[["seriesuid", *COORDINATES]].assign(probability=1 / (1 + np.exp(-own)))
        marks.to_csv(root / f"{name}.csv", index=False)
    compare_submissions(
        [root / "first.csv", root / "second.csv"],
        Reference(tree / "annotations.csv", series_uids=tree / "seriesuids.csv"),
        folders["comparison"],
        resamples=RESAMPLES,
    )
    shutil.copytree(folders["comparison"] / "first", folders["evaluation"])
    return folders


def _make_run(folder, scored):
    folder.mkdir()
    scored.to_csv(folder / "validation_predictions.csv", index=False)
    metrics = {
        "best_epoch": 2,
        "monitor": "val_average_precision",
        "validation": {"loss": 0.3, **binary_metrics(scored["class"], scored["logit"])},
        "no_skill": {**no_skill_metrics(scored["class"]), "precision": None},
        "health": [{"epoch": 1, "kind": "stuck", "finding": "The ranking is <poor>."}],
        "diverged_in": None,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    history = {"epoch": [1, 2, 3], "loss": [0.6, 0.4, 0.3], "val_loss": [0.5, 0.4, 0.5]}
    pd.DataFrame({**history, "val_auc": [0.6, 0.8, 0.7]}).to_csv(folder / "history.csv", index=False)
    (folder / "settings.toml").write_text("seed = 0\n")
    (folder / "environment.json").write_text("{}\n")
    (folder / "model.keras").write_bytes(b"a model")
    calibrate(folder, "platt", resamples=RESAMPLES)


def _make_findings(folder, scored, uids):
    folder.mkdir()
    scored.to_csv(folder / "findings.csv", index=False)
    failures = [{"seriesuid": "9.9", "row": None, "status": "unreadable", "reason": "No scan & no hope."}]
    pd.DataFrame(failures).to_csv(folder / "failures.csv", index=False)
    (folder / "seriesuids.csv").write_text("".join(f"{uid}\n" for uid in [*uids, "9.9"]))
