"""Folders of each kind that can be reported, for tests of pages."""

import json
import shutil
from itertools import combinations, product

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
    """Folders as the commands leave them: a calibrated run, findings, comparisons and an evaluation of one.

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
    folders["losses"] = make_losses(root / "losses")
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


LOSSES = ("bce", "focal, gamma=5, apply_class_balancing=true", "anyloss, score=balanced_accuracy")


def make_losses(folder, labels=LOSSES, seeds=(0, 1)):
    """A comparison of losses as `luna-cls compare` leaves it: of 40 scans, 1 candidate in 100 on a nodule.

    The first loss has an average precision of 0.6, each further one 0.05 less; seed by seed it is 0.02 higher
    or lower in turn. The second one's probabilities are far off until they are calibrated, its parameter was
    tuned, and a training of the last one is missing.

    Args:
        folder: To be made.
        labels: Names of the losses; the first word of each is the loss's own.
        seeds: Of the trainings.
    """
    (folder / "runs").mkdir(parents=True)
    about = [
        {"label": label, "name": label.split(",")[0], "parameters": {}, "folder": f"loss-{at}", "tuned": None}
        for at, label in enumerate(labels)
    ]
    about[1] |= {"parameters": {}, "tuned": {"0+1+2": {"gamma": 5}, "3+4": {"gamma": 5}}}
    scores = {label: _scores_of_a_loss(0.6 - 0.05 * at) for at, label in enumerate(labels)}
    found = {
        "names": labels,
        "metric": "average_precision",
        "num_scans": 40,
        "num_nodules": 120,
        "num_seeds": len(seeds),
        "bootstrap": {"resamples": 1000, "seed": 0},
        "scores": scores,
        "intervals_95": {label: _around(own) for label, own in scores.items()},
        "by_seed": {
            label: {name: [value + 0.02 * (-1) ** seed for seed in seeds] for name, value in own.items()}
            for label, own in scores.items()
        },
        "ranks": {
            label: {"rank": at, "interval_95": [at, at + 1], "first": 0.6 / 2**at}
            for at, label in enumerate(labels, 1)
        },
        "pairs": [_pair_of_losses(a, b, scores) for a, b in combinations(labels, 2)],
        "verdict": f"{labels[0]} has the highest average precision, 0.600.",
        "notes": ["The same points in all predictions."],
        "froc": {label: _froc_of_a_loss(own["cpm"]) for label, own in scores.items()},
        "balanced": {label: {**own, "accuracy": 0.7, "precision": 0.99} for label, own in scores.items()},
        "balanced_intervals_95": {},
        "losses": about,
        "seeds": seeds,
        "turns": [
            {"test_folds": [0, 1, 2], "validation_folds": [5]},
            {"test_folds": [3, 4], "validation_folds": []},
        ],
        "candidates": 20_000,
        "nodule_candidates": 200,
        "prevalence": 0.01,
        "no_skill": {
            "natural": {**_never(), "accuracy": 0.99, "average_precision": 0.01, "log_loss": 0.056},
            "balanced": {**_never(), "accuracy": 0.5, "average_precision": 0.5, "log_loss": 0.6931},
        },
        "calibration": {
            label: {
                way: {"ece": error, "ece_of_nodules": 3 * error, "log_loss": 2 * error, "brier": error / 2}
                for way, error in (
                    ("before", 0.2 if at == 1 else 0.01),
                    ("temperature", 0.008),
                    ("platt", 0.002),
                )
            }
            for at, label in enumerate(labels)
        },
        "cost": {
            label: {"trainings": 4, "cubes": 120_000, "cube_epochs": 120_000, "seconds": 800.0 + 200 * at,
                    "tuning_trainings": 3 if at == 1 else 0, "tuning_cubes": 45_000 if at == 1 else 0}
            for at, label in enumerate(labels)
        },
        "tuning": {
            "method": "halving",
            "monitor": "val_average_precision",
            "trials": {
                labels[1]: [
                    {"parameters": {"gamma": gamma}, "epochs": epochs, "score": score, "chosen": gamma == 5,
                     "turn": [0, 1, 2]}
                    for gamma, epochs, score in ((1, 2, 0.31), (2, 4, 0.38), (5, 8, 0.42))
                ]
            },
        },
        "missing": [
            {"loss": labels[-1], "seed": seeds[-1], "folds": "3+4", "reason": "It ran out of memory."}
        ],
        "warnings": [],
    }  # fmt: skip
    (folder / "compare.json").write_text("{}\n")
    (folder / "compare.toml").write_text("seed = 0\n\n[training]\nepochs = 3\n")
    (folder / "comparison.json").write_text(json.dumps(found))
    for at, seed in product(range(len(labels)), seeds):
        run = folder / "runs" / f"loss-{at}" / ("gamma-5" if at == 1 else "") / f"seed{seed}-folds0-1-2"
        run.mkdir(parents=True)
        (run / "settings.toml").write_text(f'[loss]\nname = "{about[at]["name"]}"\ngamma = 5\n')
        precision = [0.1, 0.4 - 0.05 * at, 0.5 - 0.05 * at + 0.02 * (-1) ** seed]
        history = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": 0.5, "val_average_precision": precision})
        history.to_csv(run / "history.csv", index=False)
        (run / "metrics.json").write_text('{"monitor": "val_average_precision"}\n')
    return folder


def _scores_of_a_loss(average_precision):
    return {
        "cpm": average_precision - 0.05,
        "auc": 0.9 + average_precision / 10,
        "average_precision": average_precision,
        "accuracy": 0.9925,
        "balanced_accuracy": 0.7,
        "balanced_accuracy_at_chosen_threshold": 0.85,
        "precision": 0.8,
        "recall": 0.405,
        "specificity": 0.995,
        "f1": 0.53,
        "log_loss": 0.05,
        "brier": 0.008,
    }


def _never():
    return {
        "balanced_accuracy": 0.5,
        "auc": 0.5,
        "precision": None,
        "recall": 0.0,
        "specificity": 1.0,
        "f1": 0.0,
    }


def _around(scores):
    return {name: [value - 0.06, value + 0.06] for name, value in scores.items()}


def _pair_of_losses(a, b, scores):
    differences = {
        name: {
            "difference": value - scores[b][name],
            "interval_95": [value - scores[b][name] - 0.08, value - scores[b][name] + 0.08],
            "p": 0.02,
            "scan_error": 0.01,
            "seed_error": 0.03,
        }
        for name, value in scores[a].items()
    }
    verdict = f"{a} and {b} cannot be told apart with these 40 scans and 2 seeds."
    nothing = dict.fromkeys(("scans_needed", "delong", "over_folds"))
    mcnemar = {"nodules": None, "candidates": None}
    return {
        "a": a,
        "b": b,
        "verdict": verdict,
        "differences": differences,
        "p_holm": 0.06,
        "mcnemar": mcnemar,
        **nothing,
    }


def _froc_of_a_loss(cpm):
    fps_per_scan = np.geomspace(1 / 16, 16, 33)
    sensitivity = np.clip(cpm + 0.06 * np.log2(fps_per_scan), 0, 1)
    bounds = {"lower": np.clip(sensitivity - 0.08, 0, 1), "upper": np.clip(sensitivity + 0.08, 0, 1)}
    return {
        name: values.tolist()
        for name, values in {"fps_per_scan": fps_per_scan, "sensitivity": sensitivity, **bounds}.items()
    }


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
