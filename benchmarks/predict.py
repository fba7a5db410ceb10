"""How fast the seed CNN reads cubes on the processor: luna_cls, stock inference of Keras, PyTorch, OpenVINO.

make test-torch openvino
python benchmarks/predict.py [--rounds 7] [--seconds 2] [--batches 16 64 128] [--only luna_cls Keras]
    [--match REGEX] [--json FILE]

Filters 16-32-64-128, 512 dense units, cubes of 31 voxels, random weights. Each contender is a process of its
own, on all cores. All stay alive; one computes at a time:

- luna_cls: `luna_cls.inference.folding.fast` of the model as `learning.models.load` gives it, bfloat16 where
  it is native, from int16 HU in NumPy to logits in NumPy.
- Keras: `predict_on_batch` of the same model, its fused batch normalisation included.
- PyTorch: the same layers in inference, from cubes in [0, 1] that are there already, in their format:
  bfloat16 throughout and autocast; contiguous and channels_last_3d; eager, through torch.compile, and so with
  frozen weights. Once more without any normalisation, as if folding it by hand cost nothing, not even where
  zeros are padded; that is another function.
- OpenVINO: the same model, exported as a SavedModel in float32; bfloat16, hints LATENCY and THROUGHPUT.

First every variant has one turn. The fastest of each, two of OpenVINO, and of PyTorch one with normalisation
and one without, then go into rounds of turns. Prints medians over the rounds: cubes/s, microseconds of
processor time a cube on all cores together; and how many times as fast luna_cls is, the median of the ratios
within a round. A machine that others use too slows all alike; processor time tells more then. Without a
Python that has PyTorch or OpenVINO, it goes on without.

python benchmarks/predict.py --scan SCAN.mhd [--copies 12] [--candidates 850] [--rounds 7] [--json FILE]

The whole of predict, with the model that comes with luna_cls, on so many copies of a scan: seconds a scan of
each stage by itself, on all cores and as many scans at a time as predict reads, and of predict from when its
model is loaded to its last file; with listed candidates and without, when it proposes some.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rows
from turns import Clock, Measured, Turn, in_turns, process, serve

FINALISTS = {"luna_cls": 1, "Keras": 1, "PyTorch": 1, "OpenVINO": 2}
WITHOUT = "without normalisation"
FILTERS, SIZE_VOX = (16, 32, 64, 128), 31

# A turn is of so many seconds; what is measured is of each cube.
Run = Callable[[], int]  # reads one batch or several; returns how many cubes


def main() -> None:
    """Measures and prints; with --serve, is one of the processes that take turns."""
    options = _options()
    if options.serve:
        serve(lambda: (None, _turns(options)))
        return
    measured = whole(options) if options.scan else throughput(options)
    rows.write(options.json, measured)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scan", type=Path, help="a .mhd: measure the whole of predict on it instead")
    parser.add_argument("--copies", type=int, default=12, help="of the scan")
    parser.add_argument("--candidates", type=int, default=850, help="of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--batches", type=int, nargs="+", default=(16, 64, 128))
    parser.add_argument("--torch-python", default=".venv-torch/bin/python")
    parser.add_argument("--openvino-python", default=".venv-openvino/bin/python")
    parser.add_argument("--only", nargs="+", choices=FINALISTS, default=tuple(FINALISTS))
    parser.add_argument("--match", default="", help="of PyTorch, only variants it is found in")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=FINALISTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# Throughput of the network.


def throughput(options: argparse.Namespace) -> list[rows.Row]:
    """Cubes a second of every contender, printed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        options.folder = Path(folder)
        subprocess.run([sys.executable, "-c", _EXPORT, folder], check=True, env=_environment())
        print(f"{len(os.sched_getaffinity(0))} cores; a turn of each, cubes/s:")
        take_turn, finalists = {}, []
        for contender in options.only:
            heats = {}
            for name, turn in _started(contender, options, stack).items():
                take_turn[name], heats[name] = turn, turn(0.0)
                print(f"{name:78} {1 / heats[name]['seconds']:8.1f}", flush=True)
            finalists += _fastest(heats, FINALISTS[contender])
        measured = [
            {name: take_turn[name](options.seconds) for name in finalists} for _ in range(options.rounds)
        ]
    print(f"\nmedians of {options.rounds} rounds:")
    print(f"{'':78} {'cubes/s':>8} {'core-µs':>8} {'luna_cls is':>12} {'in core-µs':>12}")
    first = finalists[0]
    for name in finalists:
        line = f"{name:78} {1 / _median(measured, name, 'seconds'):8.1f}"
        line += f" {1e6 * _median(measured, name, 'core_seconds'):8.0f}"
        for what in ("seconds", "core_seconds"):
            ratio = statistics.median(of_round[name][what] / of_round[first][what] for of_round in measured)
            line += f" {ratio:6.2f} times"
        print(line)
    speeds = {name: [1 / of_round[name]["seconds"] for of_round in measured] for name in finalists}
    what = "inference of the seed CNN"
    if len(options.batches) == 1:
        what += f", {options.batches[0]} cubes"
        speeds = {name.partition(", batches of ")[0]: own for name, own in speeds.items()}
    return rows.in_turn(what, speeds, "cubes/s", to=next(iter(speeds)), headlines=speeds)


def _fastest(heats: dict[str, Measured], count: int) -> list[str]:
    order = sorted(heats, key=lambda name: heats[name]["seconds"])
    whole = [name for name in order if WITHOUT not in name]
    return whole[:count] + [name for name in order if WITHOUT in name][:count]


def _median(measured: list[dict[str, Measured]], name: str, what: str) -> float:
    return statistics.median(of_round[name][what] for of_round in measured)


_EXPORT = """
import pathlib, sys
import numpy as np, keras
from luna_cls.learning import models, precision
folder = pathlib.Path(sys.argv[1])
generator, weights = np.random.default_rng(0), None
for policy in ("float32", precision.set_policy("auto")):
    keras.config.set_dtype_policy(policy)
    net = models.seed_cnn()
    weights = weights or [  # as training leaves them: no bias is zero, and TensorFlow leaves out zeros
        array + generator.uniform(0.01, 0.1, array.shape) for array in net.get_weights()
    ]
    net.set_weights(weights)
    if policy == "float32":
        net.export(folder / "saved_model", verbose=False)
    models.save(net, folder / "model.keras")
"""


# The processes that take turns.


def _environment() -> dict[str, str]:
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "KERAS_BACKEND": "tensorflow"}


def _started(contender: str, options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Turn]:
    """Starts a process for a contender: its variants, each a function that asks for a turn."""
    pythons = {"PyTorch": options.torch_python, "OpenVINO": options.openvino_python}
    python = pythons.get(contender, sys.executable)
    if not Path(python).is_file():
        print(f"No {python}: no {contender}. See the head of {Path(__file__).name}.", flush=True)
        return {}
    batches = [str(batch) for batch in options.batches]
    command = [python, __file__, "--serve", contender, "--folder", str(options.folder)]
    command += [f"--match={options.match}", "--batches", *batches]
    _, turns = stack.enter_context(process(contender, command, _environment()))
    return turns


def _turns(options: argparse.Namespace) -> dict[str, Turn]:
    variants = {"luna_cls": _luna_cls, "Keras": _keras, "PyTorch": _pytorch, "OpenVINO": _openvino}
    return {
        f"{options.serve}, {name}, batches of {batch}": partial(_turn, run)
        for batch in options.batches
        for name, run in variants[options.serve](batch, options).items()
    }


def _turn(run: Run, seconds: float) -> Measured:
    """Batches for so many seconds, and at least some 256 cubes, after one that does not count."""
    run()
    clock, cubes = Clock(), 0
    while cubes < 256 or clock.seconds() < seconds:
        cubes += run()
    return clock.each_of(cubes)


def _random_hu(batch: int) -> np.ndarray:
    shape = (batch, SIZE_VOX, SIZE_VOX, SIZE_VOX, 1)
    return np.random.default_rng(0).integers(-1000, 400, shape, np.int16)


def _luna_cls(batch: int, options: argparse.Namespace) -> dict[str, Run]:
    from luna_cls.inference import folding
    from luna_cls.learning import models

    fast, cubes = folding.fast(models.load(options.folder / "model.keras")), _random_hu(batch)
    return {"folded": lambda: len(fast(cubes))}


def _keras(batch: int, options: argparse.Namespace) -> dict[str, Run]:
    from luna_cls.learning import models

    model, cubes = models.load(options.folder / "model.keras"), _random_hu(batch)
    return {"predict_on_batch": lambda: len(model.predict_on_batch(cubes))}


def _openvino(batch: int, options: argparse.Namespace) -> dict[str, Run]:
    sys.modules.setdefault("openvino_telemetry", None)  # it would tell its maker of every import
    import openvino

    model = openvino.convert_model(options.folder / "saved_model")
    model.reshape([batch, SIZE_VOX, SIZE_VOX, SIZE_VOX, 1])
    cubes, runs = _random_hu(batch), {}
    for hint in ("LATENCY", "THROUGHPUT"):
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "bf16"}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        queue = openvino.AsyncInferQueue(compiled)
        runs[hint] = lambda queue=queue: _through(queue, cubes)
    return runs


def _through(queue: Any, cubes: np.ndarray) -> int:
    """A batch for every request that OpenVINO wants at a time."""
    for _ in range(len(queue)):
        queue.start_async([cubes], share_inputs=True)
    queue.wait_all()
    return len(queue) * len(cubes)


def _pytorch(batch: int, options: argparse.Namespace) -> dict[str, Run]:
    import torch
    from torch_net import seed_cnn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    runs = {}
    for layout, is_bare, is_autocast in itertools.product(
        ("channels_last_3d", "contiguous_format"), (True, False), (False, True)
    ):
        memory_format = getattr(torch, layout)
        dtype = torch.float32 if is_autocast else torch.bfloat16
        shape = (batch, 1, SIZE_VOX, SIZE_VOX, SIZE_VOX)
        cubes = torch.rand(shape).to(dtype).to(memory_format=memory_format)
        for how in ("eager", "compiled", "compiled and frozen"):
            name = f"{'autocast' if is_autocast else 'bfloat16'}, {layout.removesuffix('_format')}, {how}"
            name += f", {WITHOUT}" if is_bare else ""
            if not re.search(options.match, name):
                continue
            net = seed_cnn(FILTERS, is_bare=is_bare).eval().to(dtype).to(memory_format=memory_format)
            runs[name] = _pytorch_run(net, cubes, how, is_autocast=is_autocast)
    return runs


def _pytorch_run(net: Any, cubes: Any, how: str, *, is_autocast: bool) -> Run:
    import torch

    torch._dynamo.config.recompile_limit = 1000  # all nets share the code of Sequential
    is_frozen = "frozen" in how
    # Freezing works through the setting alone; the option keeps the nets' compiled code apart.
    forward = net if how == "eager" else torch.compile(net, dynamic=False, options={"freezing": is_frozen})

    def run() -> int:
        torch._inductor.config.freezing = is_frozen
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            forward(cubes)
        return len(cubes)

    return run


# The whole of predict, and its stages.


def whole(options: argparse.Namespace) -> list[rows.Row]:
    """Seconds a scan, of each stage by itself on all cores, and of predict, first scan to last; printed."""
    import pandas as pd

    from luna_cls.cubes.cutting import cut_cubes
    from luna_cls.files import COORDINATES
    from luna_cls.inference.bundle import open_bundles
    from luna_cls.inference.pipeline import BATCH_SIZE, MAX_READERS
    from luna_cls.inference.scoring import Scorer
    from luna_cls.scans.proposals import propose
    from luna_cls.scans.volume import read_volume

    scan, copies = options.scan, options.copies
    volume = read_volume(scan)
    score = Scorer(open_bundles("phantom"))
    proposals = propose(volume)[COORDINATES].to_numpy()
    listed = np.resize(proposals, (options.candidates, 3))
    cubes = {len(points): cut_cubes(volume, points, score.spec) for points in (listed, proposals)}
    readers = min(MAX_READERS, len(os.sched_getaffinity(0)))

    def of_all(work: Callable[[], Any]) -> float:
        """Seconds a scan, so many at a time as predict reads."""
        with ThreadPoolExecutor(readers) as pool:
            start = time.perf_counter()
            for done in [pool.submit(work) for _ in range(copies)]:
                done.result()
            return (time.perf_counter() - start) / copies

    def scored(count: int) -> float:
        """Seconds for so many cubes, in full batches."""
        batch = np.resize(cubes[count], (BATCH_SIZE, *cubes[count].shape[1:]))
        score(batch)
        start = time.perf_counter()
        for _ in range(3):
            score(batch)
        return (time.perf_counter() - start) / 3 / BATCH_SIZE * count

    measured: list[rows.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        names = _under_many_names(scan, Path(folder) / "scans", copies)
        table = pd.concat(pd.DataFrame(listed, columns=COORDINATES).assign(seriesuid=name) for name in names)
        table.to_csv(Path(folder) / "candidates.csv", index=False)
        for points, csv in ((listed, Path(folder) / "candidates.csv"), (proposals, None)):
            stages: dict[str, Callable[[], float]] = {
                "reading": partial(of_all, partial(read_volume, scan)),
                "proposing": partial(of_all, partial(propose, volume)),
                "cutting": partial(of_all, partial(cut_cubes, volume, points, score.spec)),
                "scoring": partial(scored, len(points)),
                "predict": partial(_predicted, Path(folder), csv, copies),
            }
            if csv is not None:
                del stages["proposing"]
            how = "proposed" if csv is None else "listed"
            what = f"predict on all cores, {len(points)} candidates a scan, {how}"
            measured += _stage_rows(what, in_turns(stages, options.rounds, warm_up=0))
    shape = " x ".join(map(str, volume.hu.shape))
    print(f"{copies} scans of {shape} voxels; seconds a scan, {options.rounds} rounds")
    for row in measured:
        ratio = f"; {row['ratio']['median']:.2f} times its slowest stage" if row["ratio"] else ""
        print(f"{row['what']}: {row['with']:10} {row['figure']}{ratio}")
    return measured


def _stage_rows(what: str, taken: dict[str, list[float]]) -> list[rows.Row]:
    """The whole against its slowest stage alone, and the stages."""
    predicted = taken.pop("predict")
    slowest = [max(turn) for turn in zip(*taken.values(), strict=True)]
    ratio = rows.times_as_fast("its slowest stage alone", slowest, predicted, is_speed=False)
    whole = rows.row(what, "the whole of it", predicted, "s a scan", ratio=ratio, headline=True)
    return [whole, *(rows.row(what, f"{name} alone", own, "s a scan") for name, own in taken.items())]


def _predicted(folder: Path, csv: Path | None, copies: int) -> float:
    """Seconds a scan, from when the model is there to the last of them."""
    from luna_cls.inference.options import Options
    from luna_cls.inference.predictor import predict

    started: list[float] = []
    options = Options(formats=("json", "slicer"))
    out = folder / "out"
    predict(
        "phantom",
        [folder / "scans"],
        csv,
        out,
        options,
        force=out.exists(),
        on_progress=lambda *_: started.append(time.perf_counter()),
    )
    return (started[-1] - started[0]) / copies


def _under_many_names(scan: Path, folder: Path, copies: int) -> list[str]:
    """Links to a MetaImage, header and data, under other names."""
    folder.mkdir()
    header = scan.read_text()
    data = header.split("ElementDataFile = ")[1].strip()
    names = [f"1.2.{number}" for number in range(copies)]
    for name in names:
        (folder / f"{name}.mhd").write_text(header.replace(data, f"{name}{Path(data).suffix}"))
        (folder / f"{name}{Path(data).suffix}").symlink_to((scan.parent / data).absolute())
    return names


if __name__ == "__main__":
    main()
