"""Two made-up systems on the same candidates, whose true difference is known from very many scans."""

import numpy as np
import pandas as pd
from scipy.special import expit

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]


def simulate(num_scans, advantage=0.0, seed=0):
    """Submissions of systems A and B, and the nodules.

    A scan has 1.3 nodules on average, often none, and 12 look-alikes; one nodule in twenty has no
    candidate. Logits are normal: nodules lie 2.5 standard deviations above look-alikes, for A `advantage`
    more. Some scans are harder than others, for both; the systems' logits have a correlation of 0.7.

    Returns:
        Tables `a`, `b` (with `logit` and `class`) and `nodules`.
    """
    rng = np.random.default_rng(seed)
    num_nodules = rng.negative_binomial(1.5, 1.5 / 2.8, num_scans)
    num_nodules[0] = max(num_nodules[0], 1)  # without a nodule there is no sensitivity
    num_others = rng.poisson(12 * rng.gamma(4, 1 / 4, num_scans))
    uids = np.array([f"1.2.{i}" for i in range(num_scans)], dtype=object)
    scan = np.repeat(np.tile(np.arange(num_scans), 2), np.concatenate([num_nodules, num_others]))
    is_nodule = np.arange(len(scan)) < num_nodules.sum()
    points = pd.DataFrame({"seriesuid": uids[scan], "coordX": 20.0 * np.arange(len(scan))})
    points = points.assign(coordY=0.0, coordZ=0.0)
    is_candidate = ~is_nodule | (rng.random(len(scan)) < 0.95)
    shared = 0.5 * rng.normal(size=num_scans)[scan] + np.sqrt(0.45) * rng.normal(size=len(scan))
    tables = []
    for shift in (2.5 + advantage, 2.5):
        logit = shift * is_nodule - 2 + shared + np.sqrt(0.3) * rng.normal(size=len(scan))
        table = points.assign(probability=expit(logit), logit=logit, **{"class": is_nodule.astype(int)})
        tables.append(table[is_candidate].reset_index(drop=True))
    nodules = points[is_nodule].assign(diameter_mm=8.0)
    return *tables, nodules
