"""Makes the bundle that comes with the package of a trained model, with what it scores on its card.

python benchmarks/model_card.py RUN PHANTOM FINDINGS OUT [--real FILE.json]

RUN is the run, PHANTOM what it was trained on, FINDINGS what `luna-cls predict` found in the scans of it that
were kept aside (fold 9), and FILE.json what `benchmarks/transfer.py --json` said of real scans. Makes the
folder `OUT/phantom`. The operating point is the logit at which, of the candidates of those scans, one a scan
that is no nodule is marked. `make model` calls this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from luna_cls.inference.bundle import write_bundle
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.calibrated_run import MODEL
from luna_cls.judging.froc import evaluate

NAME, LICENCE = "phantom", "Apache-2.0"
FALSE_ALARMS_PER_SCAN = 1
MOST_BYTES = 4_000_000


def main() -> None:
    """Scores and writes."""
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
    facts = {
        "operating_point": {
            "goal": "fps_per_scan",
            "value": float(FALSE_ALARMS_PER_SCAN),
            "threshold_probability": float(expit(threshold)),
            "threshold_logit": threshold,
            "chosen_on": "scans kept aside",
            "sensitivity_for_nodules": froc.sensitivity_at(FALSE_ALARMS_PER_SCAN),
        },
        "metrics": {
            "on": "scans kept aside",
            "scans": froc.num_scans,
            "candidates": len(findings),
            "nodules": froc.num_nodules,
            "auc": metrics["auc"],
            "average_precision": metrics["average_precision"],
            "cpm": froc.cpm,
        },
        "purpose": "a first ranking of candidates in chest CT",
        "made_by": "make model",
        "training_scans": "synthetic scans of luna-cls phantom alone; no scan of a person",
        "phantom": json.loads((options.phantom / "phantom.json").read_text()),
        "real_scans": json.loads(options.real.read_text()) if options.real else None,
    }
    size = (options.run / MODEL).stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{options.run / MODEL} has {size:,} bytes; at most {MOST_BYTES:,} are shipped.")
    made = write_bundle(options.run, options.out / NAME, name=NAME, licence=LICENCE, force=True, facts=facts)
    print(f"{made}: {size:,} bytes, CPM {froc.cpm:.3f} on {len(uids)} scans kept aside")


if __name__ == "__main__":
    main()
