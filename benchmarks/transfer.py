"""How a model trained on the phantom alone does on real scans.

python benchmarks/transfer.py MODEL LUNA_DIR [--threshold LOGIT] [--sheet PICTURE.png] [--json FILE]

LUNA_DIR holds real scans with `candidates_V2.csv`, `annotations.csv` and `annotations_excluded.csv`. Prints

- the AUC on the candidates of `candidates_V2.csv`, with the 95 % interval of 2,000 resamples of candidates,
  and that of features without any training, from the Hessian's eigenvalues l1 <= l2 <= l3 within 4 mm:
  their ratio l3 / l1, and the dot filter l3^2 / |l1| (Li, Sone and Doi 2003), the best over four scales;
- the AUC of the annotated nodules against far proposals: points that `scans.proposals` finds in the lungs
  over 15 mm from every annotation and over 6 mm from every excluded finding;
- with a threshold, how many of both lie above it.

The picture shows the lowest nodules and the highest of the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.files import COORDINATES
from luna_cls.reports.contact_sheet import write_montage
from luna_cls.scans.luna16 import LunaTree, find_csv
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import CTVolume, read_volume
from luna_cls.startup import load_tensorflow_quietly

FAR_MM, CLEAR_OF_EXCLUDED_MM = 15.0, 6.0
SIGMAS_MM = (1.0, 1.6, 2.6, 4.2)
REACH_MM = 4
RESAMPLES = 2000
SHOWN = 12

Numbers = NDArray[np.float64]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("luna_dir", type=Path)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    listed, far = _points(LunaTree.open(options.luna_dir))
    load_tensorflow_quietly()
    from luna_cls.learning import models

    model = models.load(options.model)
    found: dict[str, Any] = {}
    for name, (cubes, labels) in {"candidates": listed, "far proposals": far}.items():
        logits = model.predict(cubes[..., None], batch_size=64, verbose=0).ravel().astype(float)
        found[name] = {
            "nodules": int(labels.sum()),
            "others": int((labels == 0).sum()),
            **{
                f"auc of {feature}": auc_with_interval(labels, values)
                for feature, values in {"the model": logits, **hessian_features(cubes)}.items()
            },
        }
        if options.threshold is not None:
            above = logits > options.threshold
            found[name]["nodules above the threshold"] = int((above & (labels == 1)).sum())
            found[name]["others above the threshold"] = int((above & (labels == 0)).sum())
        if options.sheet is not None:
            sheet = options.sheet.with_stem(f"{options.sheet.stem}_{name.replace(' ', '_')}")
            _draw_worst(cubes, labels, logits, sheet)
    for name, result in found.items():
        print(f"{name}: {result['nodules']} on nodules, {result['others']} on others")
        for key, value in list(result.items())[2:]:
            text = "{:.3f} ({:.3f} to {:.3f})".format(*value) if isinstance(value, list) else value
            print(f"  {key:40} {text}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def auc_with_interval(labels: NDArray[np.int64], values: Numbers) -> list[float]:
    """AUC, and its 2.5th and 97.5th percentile over resamples of each class."""
    rng = np.random.default_rng(0)
    positives, negatives = values[labels == 1], values[labels == 0]
    resampled = []
    for _ in range(RESAMPLES):
        drawn = rng.choice(positives, len(positives)), rng.choice(negatives, len(negatives))
        resampled.append(roc_auc_score(np.repeat([1, 0], [len(positives), len(negatives)]), np.r_[drawn]))
    return [float(roc_auc_score(labels, values)), *np.percentile(resampled, [2.5, 97.5]).tolist()]


def _points(tree: LunaTree) -> tuple[tuple[NDArray[np.int16], NDArray[np.int64]], ...]:
    """Cubes and labels of the listed candidates, and of nodules and far proposals."""
    annotations = pd.read_csv(find_csv(tree.root, "annotations.csv"), dtype={"seriesuid": str})
    excluded = pd.read_csv(find_csv(tree.root, "annotations_excluded.csv"), dtype={"seriesuid": str})
    candidates = tree.candidates()
    listed, far = [], []
    for uid, path in tree.scan_paths.items():
        volume = read_volume(path)
        own = candidates[candidates["seriesuid"] == uid]
        listed.append((cut_cubes(volume, own[COORDINATES], CubeSpec()), own["class"].to_numpy()))
        nodules, others = (
            table.loc[table["seriesuid"] == uid, COORDINATES].to_numpy(float)
            for table in (annotations, excluded)
        )
        proposals = _far(volume, nodules, others)
        points = np.vstack([nodules, proposals])
        labels = np.repeat([1, 0], [len(nodules), len(proposals)])
        far.append((cut_cubes(volume, points, CubeSpec()), labels))
    return tuple(
        (np.concatenate(cubes), np.concatenate(labels))
        for cubes, labels in (zip(*listed, strict=True), zip(*far, strict=True))
    )


def _far(volume: CTVolume, nodules_xyz_mm: Numbers, excluded_xyz_mm: Numbers) -> Numbers:
    points = propose(volume)[COORDINATES].to_numpy()
    for places, least_mm in ((nodules_xyz_mm, FAR_MM), (excluded_xyz_mm, CLEAR_OF_EXCLUDED_MM)):
        if len(places):
            gaps = np.linalg.norm(points[:, None] - places, axis=2).min(axis=1)
            points = points[gaps > least_mm]
    return points


def hessian_features(cubes: NDArray[np.int16]) -> dict[str, Numbers]:
    """The features of every cube of 1 mm voxels."""
    ratio, dot = np.zeros(len(cubes)), np.zeros(len(cubes))
    middle = cubes.shape[1] // 2
    near = slice(middle - REACH_MM, middle + REACH_MM + 1)
    for number, cube in enumerate(np.clip(cubes, -1000, 100).astype(np.float32)):
        for sigma in SIGMAS_MM:
            blurred = ndimage.gaussian_filter(cube, sigma)
            slopes = np.gradient(blurred)
            hessian = np.empty((*(np.full(3, 2 * REACH_MM + 1)), 3, 3), np.float32)
            for row in range(3):
                for column, second in enumerate(np.gradient(slopes[row])):
                    hessian[..., row, column] = second[near, near, near]
            eigen = np.linalg.eigvalsh(0.5 * (hessian + hessian.swapaxes(-1, -2))) * sigma**2
            lowest, highest = eigen[..., 0], eigen[..., 2]
            is_dot = (highest < 0) & (lowest < -50)  # 50 HU: below it all is noise
            part = np.where(is_dot, highest / np.minimum(lowest, -1e-6), 0)
            ratio[number] = max(ratio[number], part.max())
            dot[number] = max(dot[number], np.where(is_dot, -highest * part, 0).max())
    return {"l3 / l1": ratio, "l3^2 / |l1|": dot}


def _draw_worst(cubes: NDArray[np.int16], labels: NDArray[np.int64], logits: Numbers, path: Path) -> None:
    order = np.argsort(logits)
    nodules, others = order[labels[order] == 1], order[labels[order] == 0][::-1]
    write_montage(
        {
            "nodules, the lowest logit first": [(cubes[n], f"{logits[n]:.1f}") for n in nodules[:SHOWN]],
            "others, the highest logit first": [(cubes[n], f"{logits[n]:.1f}") for n in others[: 2 * SHOWN]],
        },
        path,
    )


if __name__ == "__main__":
    main()
