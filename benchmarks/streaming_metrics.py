"""Streaming metrics against exact ones and Keras' own, on 550,000 samples at 1 in 500.

python benchmarks/streaming_metrics.py [--samples 550000] [--one-in 500] [--json FILE]

Prints a Markdown table for three shapes of scores: the exact value (scikit-learn, from all samples at
once), ours and Keras', both fed batch by batch; then what one training step spends on updating and
reading each. Keras' metrics get probabilities, the only scores they are right for.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rows
from scipy.special import expit

from luna_cls.judging.binary import binary_metrics
from luna_cls.learning.metrics import streaming_metrics

SHAPES: dict[
    str, tuple[tuple[float, float], tuple[float, float]]
] = {  # mean and sd of the logits of each class
    "calibrated": ((-10.1, 2.7), (-2.5, 2.7)),
    "around .5": ((-0.12, 0.18), (0.25, 0.18)),
    "saturated": ((-16.0, 6.0), (6.0, 6.0)),
}
RANKING = (
    "auc",
    "average_precision",
    "specificity_at_sensitivity_0.9",
    "sensitivity_at_specificity_0.9",
)
DECISIONS = ("accuracy", "balanced_accuracy", "gmean", "f1", "mcc", "precision", "recall")
BATCH = 5000


def scores(shape: str, samples: int, one_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits `(samples, 1)`, in random order."""
    generator = np.random.default_rng(550)
    labels = generator.permutation(np.arange(samples) < samples // one_in).astype("float32")[:, None]
    (mean_0, sd_0), (mean_1, sd_1) = SHAPES[shape]
    logits = generator.normal(np.where(labels, mean_1, mean_0), np.where(labels, sd_1, sd_0))
    return labels, logits.astype("float32")


def keras_metrics() -> list[keras.metrics.Metric]:
    """Keras' own, of probabilities, under our names."""
    return [
        keras.metrics.AUC(name="auc"),
        keras.metrics.AUC(curve="PR", name="average_precision"),
        keras.metrics.SpecificityAtSensitivity(0.9, name="specificity_at_sensitivity_0.9"),
        keras.metrics.SensitivityAtSpecificity(0.9, name="sensitivity_at_specificity_0.9"),
    ]


def fed(metrics: list[keras.metrics.Metric], labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """What they say after all batches."""
    for start in range(0, len(labels), BATCH):
        for metric in metrics:
            metric.update_state(labels[start : start + BATCH], scores[start : start + BATCH])
    return {metric.name: float(metric.result()) for metric in metrics}


def milliseconds(make: Callable[[], list[keras.metrics.Metric]]) -> list[float]:
    """What a step with a batch of 128 spends on them: update all, read all, compiled. Of five times."""
    import tensorflow as tf

    metrics = make()

    @tf.function
    def step(labels: tf.Tensor, scores: tf.Tensor) -> list[tf.Tensor]:
        for metric in metrics:
            metric.update_state(labels, scores)
        return [metric.result() for metric in metrics]

    labels, scores = tf.constant(np.arange(128.0)[:, None] % 2), tf.random.uniform((128, 1))
    step(labels, scores)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            step(labels, scores)
        took.append((time.perf_counter() - start) * 10)
    return took


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=550_000)
    parser.add_argument("--one-in", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| scores | metric | exact | ours | Keras |\n|---|---|--:|--:|--:|")
    apart, off = 0.0, {"luna_cls": 0.0, "Keras' own": 0.0}
    for shape in SHAPES:
        labels, logits = scores(shape, options.samples, options.one_in)
        exact = binary_metrics(labels, logits)
        ours = fed(streaming_metrics(), labels, logits)
        theirs = fed(keras_metrics(), labels, expit(logits))
        for name in RANKING:
            print(f"| {shape} | {name} | {exact[name]:.5f} | {ours[name]:.5f} | {theirs[name]:.5f} |")
            off["luna_cls"] = max(off["luna_cls"], abs(ours[name] - exact[name]))
            off["Keras' own"] = max(off["Keras' own"], abs(theirs[name] - exact[name]))
        apart = max(apart, *(abs(ours[name] - exact[name]) for name in DECISIONS))
    print(f"\nOf {', '.join(DECISIONS)}, ours are off by {apart:.0e} at most.")
    step_ms = {"luna_cls": milliseconds(streaming_metrics), "Keras' own": milliseconds(keras_metrics)}
    counts = {"luna_cls": len(streaming_metrics()), "Keras' own": len(keras_metrics())}
    for name, own in step_ms.items():
        print(f"A step: {counts[name]} of {name} {min(own):.1f} ms at best.")
    what = (
        f"metrics while training, {options.samples:,} samples in three shapes of scores: farthest from exact"
    )
    measured = [rows.row(what, name, [own], "", digits=2, counted=True) for name, own in off.items()]
    what = "what a training step spends on its metrics"
    measured += [
        rows.row(what, f"{name}, {counts[name]} metrics", own, "ms") for name, own in step_ms.items()
    ]
    rows.write(options.json, measured)


if __name__ == "__main__":
    main()
