"""Trains the seed CNN with luna_cls, with stock Keras and with PyTorch, in turns.

make test-torch
python benchmarks/train.py [--batch 64] [--rounds 5] [--steps 4] [--torch-python .venv-torch/bin/python]

Each framework is a process of its own, on all cores. All stay alive; one computes at a time:

- luna_cls, bare step: the compiled training step on one batch of int16 cubes, binary cross-entropy, AdamW,
  bfloat16 where it is native; no metrics.
- luna_cls, fit: `luna_cls.learning.training.train` itself on a store of random cubes on the disk (in the page
  cache), with in-plane symmetries, streaming metrics and all its callbacks.
- Keras: the same layers of Keras' own, `compile("adamw")` and `fit` on float32 cubes in [0, 1] from NumPy, in
  float32 and mixed_bfloat16, with jit_compile "auto" (XLA) and False.
- PyTorch: the same layers, one batch of float32 cubes in [0, 1] that is there already, fused AdamW; float32
  and autocast to bfloat16, contiguous and channels_last_3d, eager and through torch.compile.

A turn is so many steps in a row after one that does not count; what happens between epochs is in none. First
every variant has one turn, on a processor of two steps. The two fastest of Keras and of PyTorch then go on
with luna_cls into rounds of turns. Prints medians over the rounds: cubes/s, milliseconds a step, milliseconds
of processor time a step on all cores together; and how many times as fast luna_cls's bare step is, the median
of the ratios within a round. A machine whose speed drifts slows all alike.

python benchmarks/train.py --device gpu --steps 500 [--backend jax]

The same on a GPU: the clock is read once the GPU is done; and the share of time that it is busy during `fit`,
as nvidia-smi tells it. With --backend jax Keras runs on JAX, always compiled; `fit` from the store reads with
TensorFlow, and is left out where that is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

FRAMEWORKS = ("luna_cls", "Keras", "PyTorch")
FINALISTS = 2  # of Keras and of PyTorch
BARE = "luna_cls, bare step"
FIT = "luna_cls, fit"
SHAPE_ZYX = (31, 31, 31)
POLL_MS = 200
TOLD = ("device", "backend", "batch", "filters", "steps", "cubes", "folder")  # to every process

Turn = Callable[[int], dict[str, float]]  # takes so many steps; returns seconds and core_seconds a step
Contenders = tuple[int, dict[str, Turn]]  # parameters of the net, and what trains it, by name


def main() -> None:
    """Measures and prints; with --serve, is one of the processes that take turns."""
    options = _options()
    if options.serve:
        _serve(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, contextlib.ExitStack() as stack:
        options.folder = folder
        turns: dict[str, Turn] = {}
        for framework in options.frameworks:
            turns |= stack.enter_context(_process(framework, options))
        print(f"\nbatches of {options.batch}, {len(os.sched_getaffinity(0))} cores; a turn of each:")
        heats = {}
        for name, turn in turns.items():
            heats[name] = turn(2 if options.device == "cpu" else options.steps)
            print(f"{name:50} {options.batch / heats[name]['seconds']:8.1f} cubes/s", flush=True)
        finalists = [name for framework in options.frameworks for name in _fastest(framework, heats)]
        rounds = [{name: turns[name](options.steps) for name in finalists} for _ in range(options.rounds)]
    print(f"\nmedians of {options.rounds} rounds, {options.steps} steps a turn:")
    _print_table(rounds, options.batch)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--filters", default="16,32,64,128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cubes", type=int, default=4096, help="in the store")
    parser.add_argument("--folder", help="where the store is made; a temporary one")
    parser.add_argument("--torch-python", default=".venv-torch/bin/python")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--serve", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _fastest(framework: str, heats: dict[str, dict[str, float]]) -> list[str]:
    own = [name for name in heats if name.startswith(framework)]
    if framework == "luna_cls":
        return own
    return sorted(own, key=lambda name: heats[name]["seconds"])[:FINALISTS]


def _print_table(rounds: list[dict[str, dict[str, float]]], batch: int) -> None:
    print(f"{'':50} {'cubes/s':>8} {'ms':>8} {'core-ms':>8} {'luna_cls is':>12}")
    for name in rounds[0]:
        seconds, core_seconds = (
            statistics.median(turns[name][what] for turns in rounds) for what in ("seconds", "core_seconds")
        )
        line = f"{name:50} {batch / seconds:8.1f} {1000 * seconds:8.1f} {1000 * core_seconds:8.1f}"
        if BARE in rounds[0]:
            ratio = statistics.median(turns[name]["seconds"] / turns[BARE]["seconds"] for turns in rounds)
            line += f" {ratio:6.2f} times"
        if "busy" in rounds[0][name]:
            line += f"   GPU busy {statistics.median(turns[name]['busy'] for turns in rounds):.0%}"
        print(line)


# The processes that take turns.


@contextlib.contextmanager
def _process(framework: str, options: argparse.Namespace) -> Iterator[dict[str, Turn]]:
    """A process for a framework: what it has take turns, each a function that asks for one."""
    python = options.torch_python if framework == "PyTorch" else sys.executable
    if not Path(python).is_file():
        sys.exit(f"No {python}. Run `make test-torch`, or name a Python with PyTorch by --torch-python.")
    told = [f"--{name}={value}" for name, value in vars(options).items() if name in TOLD]
    environment = {
        **os.environ,
        "KERAS_BACKEND": options.backend,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the others need memory, too
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with subprocess.Popen(
        [python, __file__, f"--serve={framework}", *told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        to, from_ = process.stdin, process.stdout
        assert to is not None
        assert from_ is not None

        def answer() -> Any:
            line = from_.readline()
            if not line:
                sys.exit(f"The process of {framework} died.")
            return json.loads(line)

        def turn_of(name: str) -> Turn:
            def turn(steps: int) -> dict[str, float]:
                print(json.dumps([name, steps]), file=to, flush=True)
                return answer()

            return turn

        parameters, names = answer()
        print(f"{framework}: {parameters:,} parameters", flush=True)
        yield {name: turn_of(name) for name in names}


def _serve(options: argparse.Namespace) -> None:
    """Takes the turns it is told to on stdin; answers on stdout, where nothing else may write."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contenders = {"luna_cls": _luna_cls, "Keras": _keras, "PyTorch": _pytorch}[options.serve]
    parameters, turns = contenders(options)
    print(json.dumps([parameters, list(turns)]), file=answers, flush=True)
    for line in sys.stdin:
        name, steps = json.loads(line)
        print(json.dumps(turns[name](steps)), file=answers, flush=True)


class _Clock:
    """Reads the time and the processor time that all threads took."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def a_step(self, steps: int) -> dict[str, float]:
        """What each of so many steps took since then."""
        seconds, core_seconds = (
            (now - then) / steps
            for now, then in zip((time.perf_counter(), time.process_time()), self._start, strict=True)
        )
        return {"seconds": seconds, "core_seconds": core_seconds}


def _turn(run: Callable[[int], None]) -> Turn:
    """A turn of what does so many steps and waits until they are done."""

    def turn(steps: int) -> dict[str, float]:
        run(1)
        clock = _Clock()
        run(steps)
        return clock.a_step(steps)

    return turn


def _filters(options: argparse.Namespace) -> list[int]:
    return [int(count) for count in options.filters.split(",")]


def _random_hu(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, (count, *SHAPE_ZYX, 1), np.int16)


def _random_labels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, (count, 1)).astype(np.float32)


def _unit_range(hu: np.ndarray) -> np.ndarray:
    return ((hu + np.float32(1000)) / np.float32(1400)).astype(np.float32)


# luna_cls.


def _luna_cls(options: argparse.Namespace) -> Contenders:
    if find_spec("tensorflow"):
        from luna_cls.startup import load_tensorflow_quietly

        load_tensorflow_quietly()
    import keras

    from luna_cls.learning import losses, models
    from luna_cls.learning.optimizer import adamw
    from luna_cls.learning.precision import set_policy
    from luna_cls.settings import OptimizerSettings

    set_policy("auto")
    keras.utils.set_random_seed(0)
    net = models.get("seed_cnn", filters=_filters(options))
    net.compile(adamw(OptimizerSettings(), 1), losses.get("bce"), jit_compile=models.jit_compile())
    turns = {BARE: _turn(_bare_step(net, _random_hu(options.batch), _random_labels(options.batch)))}
    if find_spec("tensorflow"):
        turns[FIT] = _FitFromStore(options)
    return net.count_params(), turns


def _bare_step(net: Any, cubes: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """Takes so many training steps of a compiled net on one batch, and waits until they are done."""
    import keras

    net.train_on_batch(cubes, labels)  # the optimizer's variables come to be
    batch = keras.ops.convert_to_tensor(cubes), keras.ops.convert_to_tensor(labels)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda: net.train_step(batch))

        def run(steps: int) -> None:
            for _ in range(steps):
                logs = step()
            float(logs["loss"])

        return run
    import jax

    step = jax.jit(net.train_step, donate_argnums=0)
    groups = (
        net.trainable_variables,
        net.non_trainable_variables,
        net.optimizer.variables,
        net.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in groups)

    def run_on_jax(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            _, state = step(state, batch)
        jax.block_until_ready(state)

    return run_on_jax


class _FitFromStore:
    """`train` on a store on the disk, stopped between its epochs: a turn is one of them.

    `train` asks after every step, once all callbacks have acted, and after every epoch whether it is to stop:
    there the clock is read, and there it waits for its next turn.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._looks_of_epoch = itertools.cycle(range(1, options.steps + 3))  # the last one is at its end
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._measured: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._train, daemon=True)

    def __call__(self, steps: int) -> dict[str, float]:  # noqa: ARG002 (an epoch has as many as it has)
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turns.put(None)
        measured = self._measured.get()
        if measured is None:
            self._thread.join()
            sys.exit("luna_cls's fit failed.")
        return measured

    def _train(self) -> None:
        from luna_cls.learning.training import train
        from luna_cls.settings import load_settings

        options, folder = self._options, Path(self._options.folder)
        overrides = [
            f"model.filters=[{options.filters}]",
            f"training.batch_size={options.batch}",
            f"training.steps_per_epoch={options.steps + 2}",
            "training.epochs=1000000",
            "augmentation.symmetries=in_plane",
        ]
        try:
            train(
                _random_store(folder / "store", options.cubes),
                load_settings("seed", overrides),
                folder / "run",
                asked_to_stop=self._look,
                say=lambda _: None,
            )
        finally:
            self._measured.put(None)

    def _look(self) -> bool:
        steps, look = self._options.steps, next(self._looks_of_epoch)
        if look == 1:
            self._gpu = _GpuLoad() if self._options.device == "gpu" else None
            self._clock = _Clock()
        elif look == steps + 1:
            self._result = self._clock.a_step(steps)
            if self._gpu is not None:
                self._result["busy"] = self._gpu.mean()
        elif look == steps + 2:
            self._measured.put(self._result)
            self._turns.get()
        return False


class _GpuLoad:
    """Has nvidia-smi look at the first GPU until it is asked for the mean."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [
                *("nvidia-smi", "--id=0", "--query-gpu=utilization.gpu"),
                *("--format=csv,noheader,nounits", f"--loop-ms={POLL_MS}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def mean(self) -> float:
        """The share of time that some kernel ran, 0 to 1."""
        self._process.terminate()
        said, _ = self._process.communicate()
        return statistics.mean(float(line) for line in said.split()) / 100


def _random_store(folder: Path, count: int) -> Any:
    import pandas as pd

    from luna_cls.cubes.store import CubeFormat, CubeStore

    folder.mkdir()
    some, row = _random_hu(100)[..., 0], np.arange(count)
    cubes = np.lib.format.open_memmap(folder / "cubes.npy", "w+", np.int16, (count, *SHAPE_ZYX))
    for start in range(0, count, len(some)):
        cubes[start : start + len(some)] = some[: count - start]
    cubes.flush()
    fold = np.where(row < 64, 9, 0)  # few to validate on
    table = pd.DataFrame({"seriesuid": fold.astype(str), "class": row % 8 // 7, "fold": fold, "status": "ok"})
    store = CubeStore(folder, CubeFormat(), table)
    store.cubes.sum()  # into the page cache
    return store


# Keras as it comes.


def _keras(options: argparse.Namespace) -> Contenders:
    if find_spec("tensorflow"):
        from luna_cls.startup import load_tensorflow_quietly

        load_tensorflow_quietly()
    import keras

    cubes = _unit_range(_random_hu(options.batch * (options.steps + 1)))
    labels = _random_labels(len(cubes))
    turns = {}
    for policy in ("float32", "mixed_bfloat16"):
        for jit_compile in (False, "auto") if options.backend == "tensorflow" else ("auto",):
            keras.config.set_dtype_policy(policy)
            net = _keras_net(_filters(options))
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
            net.compile("adamw", loss, jit_compile=jit_compile)
            turns[f"Keras, {policy}, jit_compile={jit_compile!r}"] = _keras_turn(
                net, cubes, labels, options.batch
            )
    return net.count_params(), turns


def _keras_net(filters: list[int]) -> Any:
    from keras import Input, Sequential, layers

    blocks = [
        layer
        for count in filters
        for layer in (
            layers.Conv3D(count, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Conv3D(count, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPool3D(2),
            layers.BatchNormalization(),
        )
    ]
    head = [
        layers.GlobalAveragePooling3D(),
        layers.Dense(512, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.4),
        layers.Dense(1, dtype="float32"),
    ]
    return Sequential([Input((*SHAPE_ZYX, 1)), *blocks, *head])


def _keras_turn(net: Any, cubes: np.ndarray, labels: np.ndarray, batch: int) -> Turn:
    import keras

    def turn(steps: int) -> dict[str, float]:
        clocks, measured = [], {}

        def end_of(step: int, logs: dict[str, float]) -> None:
            if step == 0:
                clocks.append(_Clock())
            elif step == steps:
                float(logs["loss"])
                measured.update(clocks[0].a_step(steps))

        clock = keras.callbacks.LambdaCallback(on_train_batch_end=end_of)
        count = batch * (steps + 1)
        net.fit(cubes[:count], labels[:count], batch_size=batch, verbose=0, callbacks=[clock])
        return measured

    return turn


# PyTorch.


def _pytorch(options: argparse.Namespace) -> Contenders:
    import torch

    device = "cuda" if options.device == "gpu" else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    turns = {}
    for is_compiled in (False, True):
        for is_bfloat16 in (True, False):
            for layout in ("channels_last_3d", "contiguous_format"):
                name = ", ".join(
                    (
                        "PyTorch",
                        "bfloat16" if is_bfloat16 else "float32",
                        layout.removesuffix("_format"),
                        "compiled" if is_compiled else "eager",
                    )
                )
                torch.manual_seed(0)
                net = _pytorch_net(_filters(options)).to(device, memory_format=getattr(torch, layout))
                cubes = torch.from_numpy(
                    _unit_range(_random_hu(options.batch)).transpose(0, 4, 1, 2, 3).copy()
                )
                cubes = cubes.to(device, memory_format=getattr(torch, layout))
                labels = torch.from_numpy(_random_labels(options.batch)).to(device)
                forward = torch.compile(net) if is_compiled else net
                turns[name] = _turn(_pytorch_step(net, forward, cubes, labels, is_bfloat16=is_bfloat16))
    counted = [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]
    return sum(tensor.numel() for tensor in counted), turns


def _pytorch_net(filters: list[int]) -> Any:
    from torch import nn

    def normalization(count: int, kind: type[nn.Module] = nn.BatchNorm3d) -> nn.Module:
        return kind(count, eps=1e-3, momentum=0.01)  # Keras' defaults

    blocks = [
        layer
        for before, count in itertools.pairwise([1, *filters])
        for layer in (
            nn.Conv3d(before, count, 3, padding=1),
            nn.ReLU(),
            normalization(count),
            nn.Conv3d(count, count, 3, padding=1),
            nn.ReLU(),
            normalization(count),
            nn.MaxPool3d(2),
            normalization(count),
        )
    ]
    head = [
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(filters[-1], 512),
        nn.ReLU(),
        normalization(512, nn.BatchNorm1d),
        nn.Dropout(0.4),
        nn.Linear(512, 1),
    ]
    return nn.Sequential(*blocks, *head)


def _pytorch_step(
    net: Any, forward: Any, cubes: Any, labels: Any, *, is_bfloat16: bool
) -> Callable[[int], None]:
    import torch

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.004, fused=True)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(cubes.device.type, torch.bfloat16, enabled=is_bfloat16):
                logits = forward(cubes)
            loss = loss_of(logits.float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()
        if cubes.device.type == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
