"""Contenders take turns, so that a machine whose speed drifts slows all alike.

Within one process there is `in_turns`. Frameworks that cannot share a process, or a Python, each have one of
their own (`process`), which stays alive and computes when told to (`serve`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Measured = dict[str, float]
Turn = Callable[[float], Measured]  # does so much; what "so much" is, the benchmark says
Offered = tuple[Any, dict[str, Turn]]  # what a process says of itself, and its contenders by name


def in_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """What each contender measured in every round but the first ones, which warm up."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(-warm_up, rounds):
        for name, measure in contenders.items():
            value = measure()
            if index >= 0:
                measured[name].append(value)
    return measured


class Clock:
    """Reads the time, and the processor time that all threads of this process took."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._start[0]

    def each_of(self, count: int) -> Measured:
        """What each of so many steps or cubes took since then: `seconds`, `core_seconds`."""
        now = time.perf_counter(), time.process_time()
        seconds, core_seconds = ((end - start) / count for end, start in zip(now, self._start, strict=True))
        return {"seconds": seconds, "core_seconds": core_seconds}


@contextmanager
def process(name: str, command: list[str], environment: Mapping[str, str]) -> Iterator[Offered]:
    """Starts a process that calls `serve`; every turn asked for here is taken there.

    One that ends before it has offered anything is told of, and offers nothing: the others go on.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
    ) as started:
        to, from_ = started.stdin, started.stdout
        assert to is not None
        assert from_ is not None

        def turn_of(contender: str) -> Turn:
            def turn(amount: float) -> Measured:
                print(json.dumps([contender, amount]), file=to, flush=True)
                line = from_.readline()
                if not line:
                    sys.exit(f"The process of {name} died in a turn of {contender}.")
                return json.loads(line)

            return turn

        first = from_.readline()
        if not first:
            print(f"The process of {name} died: no {name}.", flush=True)
            yield None, {}
            return
        about, contenders = json.loads(first)
        yield about, {contender: turn_of(contender) for contender in contenders}


def serve(offer: Callable[[], Offered]) -> None:
    """Takes the turns told on standard input; answers on standard output, where nothing else may write."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        about, turns = offer()
        print(json.dumps([about, list(turns)]), file=answers, flush=True)
        for line in sys.stdin:
            contender, amount = json.loads(line)
            print(json.dumps(turns[contender](amount)), file=answers, flush=True)
