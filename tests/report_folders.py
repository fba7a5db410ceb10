"""Folders of each kind that can be reported, for tests of pages."""

import json
import shutil

import nibabel
import numpy as np
import pandas as pd

from luna_cls.files import COORDINATES
from luna_cls.inference.exports import findings_json
from luna_cls.inference.findings import ScanFindings
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.calibrated_run import calibrate
from luna_cls.judging.evaluation import compare_submissions
from luna_cls.judging.submission import Reference
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import ScanSource, read_volume

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
    folders = {kind: root / kind for kind in ("run", "findings", "scan", "evaluation", "comparison")}
    _make_run(folders["run"], scored)
    _make_findings(folders["findings"], scored, sorted(LunaTree.open(tree).scan_paths))
    make_scan(folders["scan"], scored, tree, threshold=0.2)
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


def make_scan(folder, scored, tree, threshold, explained=(1,), **more):
    """The folder of the first scan: its findings, a diameter for each, maps of some ranks.

    A map is 2 in the one voxel 3 mm to the left of the finding, 1 mm to the front and 5 mm to the head, -1
    in the one opposite.

    Args:
        folder: To be made.
        scored: Table of findings.
        tree: A LUNA16 tree.
        threshold: From which probability they are marked.
        explained: Ranks that get a map.
        **more: Further columns.
    """
    folder.mkdir()
    uid, path = sorted(LunaTree.open(tree).scan_paths.items())[0]
    own = scored[scored["seriesuid"] == uid].sort_values("logit", ascending=False, ignore_index=True)
    own = own.assign(marked=own["probability"] >= threshold, diameter_mm=6.0, **more)
    model = {"name": "a model", "sha256": "0" * 64, "calibration": {"method": "platt"}}
    about = {"luna_cls": "0.1.0", "models": [model], "threshold": threshold}
    found = ScanFindings(ScanSource(path, uid), read_volume(path).grid, own, about)
    findings_json.write(found, folder)
    values = np.zeros((31, 31, 31), np.float32)
    values[20, 14, 18], values[10, 16, 12] = 2, -1
    for rank in explained:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[:3, 3] = [-1, -1, 1] * (own.loc[rank - 1, COORDINATES].to_numpy(float) - 15)
        nibabel.save(nibabel.Nifti1Image(values.T, affine), folder / f"saliency_{rank}.nii.gz")


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
