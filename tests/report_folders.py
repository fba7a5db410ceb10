"""Folders of each kind that can be reported, for tests of pages."""

import json
import shutil

import numpy as np
import pandas as pd

from luna_cls.files import COORDINATES
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.scans.luna16 import LunaTree


def make_folders(root, tree, store):
    """Folders as the commands leave them: a run, findings, an evaluation and a comparison."""
    rng = np.random.default_rng(7)
    table = store.candidates[[*("seriesuid", *COORDINATES), "class"]]
    logits = rng.normal(3 * table["class"] - 2, 1.5)
    scored = table.assign(probability=1 / (1 + np.exp(-logits)), logit=logits)
    scored = scored[["seriesuid", *COORDINATES, "probability", "logit", "class"]]

    run = root / "run"
    run.mkdir()
    scored.to_csv(run / "validation_predictions.csv", index=False)
    metrics = {
        "best_epoch": 2,
        "monitor": "val_average_precision",
        "validation": {"loss": 0.3, **binary_metrics(scored["class"], scored["logit"])},
        "no_skill": {**no_skill_metrics(scored["class"]), "precision": None},
        "health": [{"epoch": 1, "kind": "stuck", "finding": "The ranking is <poor>."}],
        "diverged_in": None,
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    history = {"epoch": [1, 2, 3], "loss": [0.6, 0.4, 0.3], "val_loss": [0.5, 0.4, 0.5]}
    pd.DataFrame({**history, "val_auc": [0.6, 0.8, 0.7]}).to_csv(run / "history.csv", index=False)
    (run / "settings.toml").write_text("seed = 0\n")
    (run / "environment.json").write_text("{}\n")

    findings = root / "findings"
    findings.mkdir()
    scored.to_csv(findings / "findings.csv", index=False)
    failures = [{"seriesuid": "9.9", "row": None, "status": "unreadable", "reason": "No scan & no hope."}]
    pd.DataFrame(failures).to_csv(findings / "failures.csv", index=False)
    uids = [*sorted(tree_uids := LunaTree.open(tree).scan_paths), "9.9"]
    (findings / "seriesuids.csv").write_text("".join(f"{uid}\n" for uid in uids))

    comparison = root / "comparison"
    for name, shift in (("first", 0.0), ("second", 1.0)):
        own = scored.assign(probability=1 / (1 + np.exp(-(logits - shift * rng.normal(size=len(logits))))))
        own = own.drop(columns=["logit", "class"])
        own.to_csv(root / f"{name}.csv", index=False)
        evaluate_submission(
            root / f"{name}.csv", tree / "annotations.csv", comparison / name,
            series_uids=tree / "seriesuids.csv", resamples=50,
        )  # fmt: skip
    shutil.copytree(comparison / "first", root / "evaluation")
    difference = {"difference": 0.02, "interval_95": [-0.01, 0.05], "p": 0.2}
    (comparison / "comparison.json").write_text(
        json.dumps(
            {
                "names": ["first", "second"],
                "metric": "cpm",
                "verdict": "first and second cannot be told apart with these 4 scans.",
                "num_scans": len(tree_uids),
                "num_nodules": 12,
                "bootstrap": {"resamples": 50, "seed": 0},
                "scores": {"first": {"cpm": 0.5, "cpm_interval_95": [0.4, 0.6]}, "second": {"cpm": 0.48}},
                "pairs": [
                    {
                        "a": "first",
                        "b": "second",
                        "verdict": "first and second cannot be told apart.",
                        "differences": {"cpm": difference, "sensitivity_at_fps_0.125": difference},
                        "p_holm": 0.2,
                        "mcnemar": {"nodules": {"fps_per_scan": 1.0, "only_a": 3, "only_b": 1, "p": 0.6}},
                    }
                ],
            }
        )
    )
    return {"run": run, "findings": findings, "evaluation": root / "evaluation", "comparison": comparison}
