"""The networks side by side: size, speed, and what each makes of the demo's phantom.

python benchmarks/models.py [--batch 64] [--rounds 5] [--steps 3] [--json FILE]
python benchmarks/models.py phantom OUT

The first prints parameters, floating-point operations a cube (two for each multiplication and addition of
convolutions and dense layers), and cubes/s of training and inference; the networks take turns. The second
makes the demo's phantom in OUT, trains each network, as slim as the demo's own, for as many steps, and prints
average precision and CPM on its test scans, and the seconds of training. OUT/phantom and OUT/store, where
they are there, are used again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from luna_cls.startup import load_tensorflow_quietly

load_tensorflow_quietly()

import keras
import numpy as np
import rows
from turns import in_turns

from luna_cls import demo
from luna_cls.cubes.preparation import prepare
from luna_cls.cubes.store import CubeFormat, CubeStore
from luna_cls.inference.predictor import predict
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.judging.submission import Reference
from luna_cls.learning import losses, models
from luna_cls.learning.optimizer import adamw
from luna_cls.learning.precision import set_policy
from luna_cls.learning.training import train
from luna_cls.scans.luna16 import LunaTree, find_csv
from luna_cls.scans.phantom import write_phantom
from luna_cls.settings import ModelSettings, OptimizerSettings, load_settings

MARGIN_VOX = 5  # what the contextual network reads beyond the others

SLIM = {
    "seed_cnn": {"filters": [8, 16, 32, 64], "dense_units": 128},
    "resnet": {"filters": [8, 16, 32, 64]},
    "contextual": {"filters": [8, 16, 32], "dense_units": 64},
}


def operations(model: keras.Model) -> int:
    """Floating-point operations of convolutions and dense layers for one cube."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv3D | keras.layers.Dense):
            places = math.prod(layer.output.shape[1:-1])
            total += 2 * places * math.prod(layer.kernel.shape)
    return total


def speeds(batch: int, rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Cubes/s of training and of inference of every round, by model."""
    generator, works = np.random.default_rng(0), {}
    for name in models.MODELS:
        net = models.get(name)
        net.compile(adamw(OptimizerSettings(), 1000), losses.get("bce"), jit_compile=models.jit_compile())
        cubes = generator.integers(-1000, 400, (batch, *net.input_shape[1:]), np.int16)
        labels = generator.integers(0, 2, (batch, 1)).astype("float32")
        works["training", name] = partial(net.train_on_batch, cubes, labels)
        works["inference", name] = partial(net.predict_on_batch, cubes)
    for work in works.values():
        work()

    def cubes_per_second(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            work()
        return steps * batch / (time.perf_counter() - start)

    contenders = {key: partial(cubes_per_second, work) for key, work in works.items()}
    seen = in_turns(contenders, rounds, warm_up=0)
    return {kind: {name: seen[kind, name] for name in models.MODELS} for kind in ("training", "inference")}


def compare_sizes(batch: int, rounds: int, steps: int) -> list[rows.Row]:
    """Prints what each network is and how fast."""
    policy = set_policy("auto")
    print(f"batches of {batch}, {policy}")
    print("| network | cube, voxels | parameters | GFLOP a cube | training, cubes/s | inference, cubes/s |")
    print("|---|--:|--:|--:|--:|--:|")
    measured = speeds(batch, rounds, steps)
    for name in models.MODELS:
        net = models.get(name)
        training, inference = (statistics.median(own[name]) for own in measured.values())
        print(
            f"| `{name}` | {net.input_shape[1]} | {net.count_params():,} | {operations(net) / 1e9:.2f} "
            f"| {training:.0f} | {inference:.0f} |"
        )
    return [
        rows.row(f"{kind} through Keras, {batch} cubes, by network", f"`{name}`", own[name], "cubes/s")
        for kind, own in measured.items()
        for name in models.MODELS
    ]


def compare_on_phantom(out: Path) -> None:
    """Prints what each network makes of the demo's phantom."""
    if not (out / "phantom" / "annotations.csv").is_file():
        write_phantom(
            out / "phantom",
            demo.NUM_SCANS,
            demo.SEED,
            num_nodules=demo.NUM_NODULES,
            imbalance=demo.IMBALANCE,
        )
    tree = LunaTree.open(out / "phantom")
    if not (out / "store").is_dir():
        prepare(tree, tree.candidates(), out / "store", CubeFormat(margin_vox=MARGIN_VOX))
    store = CubeStore.open(out / "store")
    settings = load_settings("demo")
    is_test = store.candidates["fold"].isin(settings.split.test_folds)
    scans = [tree.scan_paths[uid] for uid in sorted(store.candidates["seriesuid"][is_test].unique())]
    print("| network | parameters | seconds of training | average precision | CPM |")
    print("|---|--:|--:|--:|--:|")
    for name, parameters in SLIM.items():
        own = ModelSettings(name=name, dropout=0.4, normalization_momentum=0.9, **parameters)
        start = time.perf_counter()
        train(store, settings.model_copy(update={"model": own}), out / name, force=True, say=lambda _: None)
        seconds = time.perf_counter() - start
        findings = out / f"{name}_findings"
        candidates = find_csv(tree.root, "candidates_V2.csv")
        predict(out / name / "model.keras", scans, candidates, findings, force=True)
        scores = evaluate_submission(
            findings / "findings.csv",
            Reference(
                find_csv(tree.root, "annotations.csv"),
                find_csv(tree.root, "annotations_excluded.csv"),
                findings / "seriesuids.csv",
            ),
            out / f"{name}_scores",
            force=True,
        )
        count = models.load(out / name / "model.keras").count_params()
        print(
            f"| `{name}` | {count:,} | {seconds:.0f} | {scores['metrics']['average_precision']:.3f} "
            f"| {scores['froc']['cpm']:.3f} |",
            flush=True,
        )


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["phantom"])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what is None:
        rows.write(options.json, compare_sizes(options.batch, options.rounds, options.steps))
    elif options.out is None:
        parser.error("phantom takes the folder to make")
    else:
        compare_on_phantom(options.out)


if __name__ == "__main__":
    main()
