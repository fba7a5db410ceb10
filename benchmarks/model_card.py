"""Puts a trained model where the package finds it, with a card that says what it is and what it scores.

python benchmarks/model_card.py RUN PHANTOM FINDINGS OUT [--real FILE.json]

RUN is the run, PHANTOM what it was trained on, FINDINGS what `luna-cls predict` found in the scans of it that
were kept aside (fold 9), and FILE.json what `benchmarks/transfer.py --json` said of real scans. Writes
`OUT/phantom.keras` and `OUT/phantom.json`. The operating point is the logit at which, of the candidates of
those scans, one a scan that is no nodule is marked. `make model` calls this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from luna_cls import __version__
from luna_cls.files import write_json
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.froc import evaluate

FALSE_ALARMS_PER_SCAN = 1
MOST_BYTES = 4_000_000


def main() -> None:
    """Copies and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("run", "phantom", "findings", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--real", type=Path)
    options = parser.parse_args()
    findings = pd.read_csv(options.findings / "findings.csv", dtype={"seriesuid": str})
    uids = (options.findings / "seriesuids.csv").read_text().split()
    annotations, excluded = (
        pd.read_csv(options.phantom / name, dtype={"seriesuid": str})
        for name in ("annotations.csv", "annotations_excluded.csv")
    )
    others = np.sort(findings.loc[findings["class"] == 0, "logit"])[::-1]
    threshold = float(others[FALSE_ALARMS_PER_SCAN * len(uids)])
    metrics = binary_metrics(findings["class"], findings["logit"], threshold)
    froc = evaluate(findings, annotations, uids, excluded)
    card = {
        "name": "phantom",
        "purpose": "a first ranking of candidates in chest CT; for research, not for diagnosis",
        "made_by": "make model",
        "luna_cls": __version__,
        "input": "int16 HU (n, 31, 31, 31, 1), cubes of 1 mm voxels, axes z, y, x",
        "output": "logits (n, 1), of natural prevalence in its training set",
        "training_data": "synthetic scans of luna-cls phantom alone; no scan of a person",
        "settings": tomllib.loads((options.run / "settings.toml").read_text()),
        "phantom": json.loads((options.phantom / "phantom.json").read_text()),
        "on_scans_kept_aside": {
            "num_scans": froc.num_scans,
            "num_nodules": froc.num_nodules,
            "num_candidates": len(findings),
            "cpm": froc.cpm,
            "auc": metrics["auc"],
            "average_precision": metrics["average_precision"],
        },
        "operating_point": {
            "logit": threshold,
            "false_alarms_per_scan": FALSE_ALARMS_PER_SCAN,
            "sensitivity_for_nodules": froc.sensitivity_at(FALSE_ALARMS_PER_SCAN),
        },
        "real_scans": json.loads(options.real.read_text()) if options.real else None,
        "sha256": hashlib.sha256((options.run / "model.keras").read_bytes()).hexdigest(),
    }
    size = (options.run / "model.keras").stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{options.run}/model.keras has {size:,} bytes; at most {MOST_BYTES:,} are shipped.")
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.run / "model.keras", options.out / "phantom.keras")
    write_json(options.out / "phantom.json", card)
    print(f"{options.out}/phantom.keras: {size:,} bytes, CPM {froc.cpm:.3f} on {len(uids)} scans kept aside")


if __name__ == "__main__":
    main()
