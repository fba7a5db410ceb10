"""Trains the seed CNN with luna_cls, with stock Keras and with PyTorch, in turns.

make test-torch
python benchmarks/train.py [--batch 64] [--rounds 5] [--steps 4] [--torch-python .venv-torch/bin/python]
    [--match REGEX] [--json FILE]

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
of the ratios within a round. A machine whose speed drifts slows all alike. --match leaves out variants of
Keras and PyTorch whose names do not fit. Without a Python that has PyTorch, it goes on without.

python benchmarks/train.py --device gpu --steps 500 [--backend jax]

The same on a GPU: the clock is read once the GPU is done; and the share of time that it is busy during `fit`,
as nvidia-smi tells it. With --backend jax Keras runs on JAX, always compiled; `fit` from the store reads with
TensorFlow, and is left out where that is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import rows
from turns import Clock, Measured, Offered, Turn, process, serve

FRAMEWORKS = ("luna_cls", "Keras", "PyTorch")
FINALISTS = 2  # of Keras and of PyTorch
HEAT_STEPS = 2  # of a first turn, on a processor
BARE = "luna_cls, bare step"
FIT = "luna_cls, fit"
SHAPE_ZYX = (31, 31, 31)
POLL_MS = 200
TOLD = ("device", "backend", "batch", "filters", "steps", "cubes", "folder", "match")  # to every process

# A turn is so many steps; what is measured is of each. A process offers the parameters of its net.


def main() -> None:
    """Measures and prints; with --serve, is one of the processes that take turns."""
    options = _options()
    offers = {"luna_cls": _luna_cls, "Keras": _keras, "PyTorch": _pytorch}
    if options.serve:
        serve(lambda: offers[options.serve](options))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, contextlib.ExitStack() as stack:
        options.folder = folder
        turns: dict[str, Turn] = {}
        for framework in options.frameworks:
            turns |= _started(framework, options, stack)
        print(f"\nbatches of {options.batch}, {len(os.sched_getaffinity(0))} cores; a turn of each:")
        heats = {}
        for name, turn in turns.items():
            heats[name] = turn(HEAT_STEPS if options.device == "cpu" else options.steps)
            print(f"{name:50} {options.batch / heats[name]['seconds']:8.1f} cubes/s", flush=True)
        finalists = [name for framework in options.frameworks for name in _fastest(framework, heats)]
        measured = [{name: turns[name](options.steps) for name in finalists} for _ in range(options.rounds)]
    print(f"\nmedians of {options.rounds} rounds, {options.steps} steps a turn:")
    _print_table(measured, options.batch)
    what = f"training step of the seed CNN, {options.batch} cubes"
    speeds = {
        name: [options.batch / of_round[name]["seconds"] for of_round in measured] for name in finalists
    }
    if BARE in speeds:
        rows.write(options.json, rows.in_turn(what, speeds, "cubes/s", to=BARE, headlines=speeds))


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
    parser.add_argument("--match", default="", help="of Keras and PyTorch, only what this is found in")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _fastest(framework: str, heats: dict[str, dict[str, float]]) -> list[str]:
    own = [name for name in heats if name.startswith(framework)]
    if framework == "luna_cls":
        return own
    return sorted(own, key=lambda name: heats[name]["seconds"])[:FINALISTS]


def _print_table(measured: list[dict[str, Measured]], batch: int) -> None:
    print(f"{'':50} {'cubes/s':>8} {'ms':>8} {'core-ms':>8} {'luna_cls is':>12}")
    for name in measured[0]:
        seconds, core_seconds = (
            statistics.median(of_round[name][what] for of_round in measured)
            for what in ("seconds", "core_seconds")
        )
        line = f"{name:50} {batch / seconds:8.1f} {1000 * seconds:8.1f} {1000 * core_seconds:8.1f}"
        if BARE in measured[0]:
            ratio = statistics.median(
                of_round[name]["seconds"] / of_round[BARE]["seconds"] for of_round in measured
            )
            line += f" {ratio:6.2f} times"
        if "busy" in measured[0][name]:
            line += f"   GPU busy {statistics.median(of_round[name]['busy'] for of_round in measured):.0%}"
        print(line)


# The processes that take turns.


def _started(framework: str, options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Turn]:
    """Starts a process for a framework; what it has, each a function that asks for a turn."""
    python = options.torch_python if framework == "PyTorch" else sys.executable
    if not Path(python).is_file():
        print(f"No {python}: no {framework}. `make test-torch` makes it.", flush=True)
        return {}
    told = [f"--{name}={value}" for name, value in vars(options).items() if name in TOLD]
    environment = {
        **os.environ,
        "KERAS_BACKEND": options.backend,
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the others need memory, too
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [python, __file__, f"--serve={framework}", *told]
    parameters, turns = stack.enter_context(process(framework, command, environment))
    if turns:
        print(f"{framework}: {parameters:,} parameters", flush=True)
    return turns


def _turn(run: Callable[[int], None]) -> Turn:
    """A turn of what does so many steps and waits until they are done."""

    def turn(steps: float) -> Measured:
        run(1)
        clock = Clock()
        run(int(steps))
        return clock.each_of(int(steps))

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


def _luna_cls(options: argparse.Namespace) -> Offered:
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
        self._measured: queue.SimpleQueue[Measured | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._train, daemon=True)

    def __call__(self, steps: float) -> Measured:  # noqa: ARG002 (an epoch has as many as it has)
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
        from random_store import random_store, training_table

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
                random_store(folder / "store", training_table(options.cubes)),
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
            self._clock = Clock()
        elif look == steps + 1:
            self._result = self._clock.each_of(steps)
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


# Keras as it comes.


def _keras(options: argparse.Namespace) -> Offered:
    if find_spec("tensorflow"):
        from luna_cls.startup import load_tensorflow_quietly

        load_tensorflow_quietly()
    import keras

    cubes = _unit_range(_random_hu(options.batch * (max(options.steps, HEAT_STEPS) + 1)))
    labels = _random_labels(len(cubes))
    parameters, turns = 0, {}
    for policy in ("float32", "mixed_bfloat16"):
        for jit_compile in (False, "auto") if options.backend == "tensorflow" else ("auto",):
            name = f"Keras, {policy}, jit_compile={jit_compile!r}"
            if not re.search(options.match, name):
                continue
            keras.config.set_dtype_policy(policy)
            net = _keras_net(_filters(options))
            loss = keras.losses.BinaryCrossentropy(from_logits=True)
            net.compile("adamw", loss, jit_compile=jit_compile)
            parameters = net.count_params()
            turns[name] = _keras_turn(net, cubes, labels, options.batch)
    return parameters, turns


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

    def turn(amount: float) -> Measured:
        steps, clocks, measured = int(amount), [], {}

        def end_of(step: int, logs: dict[str, float]) -> None:
            if step == 0:
                clocks.append(Clock())
            elif step == steps:
                float(logs["loss"])
                measured.update(clocks[0].each_of(steps))

        clock = keras.callbacks.LambdaCallback(on_train_batch_end=end_of)
        count = batch * (steps + 1)
        net.fit(cubes[:count], labels[:count], batch_size=batch, verbose=0, callbacks=[clock])
        return measured

    return turn


# PyTorch.


def _pytorch(options: argparse.Namespace) -> Offered:
    import torch
    from torch_net import seed_cnn

    device = "cuda" if options.device == "gpu" else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    parameters, turns = 0, {}
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
                if not re.search(options.match, name):
                    continue
                torch.manual_seed(0)
                net = seed_cnn(_filters(options)).to(device, memory_format=getattr(torch, layout))
                cubes = torch.from_numpy(
                    _unit_range(_random_hu(options.batch)).transpose(0, 4, 1, 2, 3).copy()
                )
                cubes = cubes.to(device, memory_format=getattr(torch, layout))
                labels = torch.from_numpy(_random_labels(options.batch)).to(device)
                forward = torch.compile(net) if is_compiled else net
                turns[name] = _turn(_pytorch_step(net, forward, cubes, labels, is_bfloat16=is_bfloat16))
                floating = (buffer for buffer in net.buffers() if buffer.is_floating_point())
                parameters = sum(tensor.numel() for tensor in (*net.parameters(), *floating))
    return parameters, turns


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
