"""Which parameters of its own a loss is to have: as many tries for each loss, judged on validation alone."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, log2
from typing import Any, Literal

from luna_cls.errors import InputError
from luna_cls.learning.held_out import Training
from luna_cls.settings import LossSettings

# Four tries for each, around its default.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "bce": {"positive_weight": [0.3, 1.0, 3.0, 10.0]},
    "mse": {"class_weights": [[1.0, 0.3], [1.0, 1.0], [1.0, 3.0], [1.0, 10.0]]},
    "focal": {"gamma": [1.0, 2.0, 3.0, 5.0]},
    "cefl": {"gamma": [0.5, 1.0, 2.0, 4.0]},
    "cefl2": {"gamma": [0.5, 1.0, 2.0, 4.0]},
    "anyloss": {"amplification": [10.0, 30.0, 73.0, 110.0]},
    "sol": {"prior": ["raised_cosine"], "half_width": [0.1, 0.2, 0.35, 0.5]},
}


@dataclass(frozen=True)
class Tuning:
    """What is tried for each loss.

    Args:
        method: "grid" trains every try to its end. "halving" trains all for a part of the epochs, keeps the
            better half, doubles the epochs, and so on (successive halving, Jamieson & Talwalkar 2016).
        grids: Values by parameter by loss, in place of `GRIDS`.
    """

    method: Literal["grid", "halving"]
    grids: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)

    def tries(self, loss: LossSettings) -> list[dict[str, Any]]:
        """The parameters to try, in order: all combinations of those that the loss was not given itself."""
        grid = {**self.grids.get(loss.name, GRIDS.get(loss.name, {}))}
        free = {name: values for name, values in grid.items() if name not in loss.parameters}
        return [dict(zip(free, values, strict=True)) for values in product(*free.values())]

    def rungs(self, tries: int, epochs: int) -> list[int]:
        """After how many epochs those that are left are judged; the last is all of them.

        Each keeps the better half, rounded up, of those before it.
        """
        if self.method == "grid" or tries == 1:
            return [epochs]
        halvings = ceil(log2(tries))
        return [max(1, ceil(epochs / 2 ** (halvings - rung))) for rung in range(halvings + 1)]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {"method": self.method, "grids": self.grids}

    @classmethod
    def from_json(cls, entry: Any) -> Tuning | None:
        """Reads one; None stays None."""
        return None if entry is None else cls(entry["method"], entry["grids"])


def check_fair(tuning: Tuning, entrants: Mapping[str, LossSettings]) -> None:
    """Refuses to try more for one loss than for another: more tries are more luck.

    Raises:
        InputError: If so, or if a grid is of a loss that is not compared.
    """
    compared = {loss.name for loss in entrants.values()}
    for name in tuning.grids:
        if name not in compared:
            raise InputError(f"--grid {name}...: no such loss is compared. Compared: {', '.join(compared)}.")
    counts = {label: len(tuning.tries(loss)) for label, loss in entrants.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{label} {count}" for label, count in counts.items())
        raise InputError(
            f"Every loss must have as many tries, for more tries are more luck. Received: {listed}. Give "
            "each as many with --grid, and leave parameters that are tried out of --loss."
        )


def parse_grids(given: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Reads `focal.gamma=1,2,5`, values in TOML; several of one loss are all combined.

    Raises:
        InputError: If one cannot be read.
    """
    grids: dict[str, dict[str, list[Any]]] = {}
    for text in given:
        path, equals, values = text.partition("=")
        loss, dot, parameter = path.strip().partition(".")
        try:
            found = tomllib.loads(f"values = [{values}]")["values"]
        except tomllib.TOMLDecodeError:
            found = []
        if not (equals and dot and loss and parameter and found):
            raise InputError(
                f"--grid takes LOSS.PARAMETER=VALUE,VALUE,..., as focal.gamma=1,2,5. Received: '{text}'."
            )
        if any(value in found[:place] for place, value in enumerate(found)):
            raise InputError(f"--grid names a value twice. Received: '{text}'. Name each once.")
        grids.setdefault(loss, {})[parameter] = found
    return grids


def score(training: Training, monitor: str, until_epoch: int) -> float:
    """The best by what a training monitors, in so many epochs; -inf if there is none."""
    history = training.history()
    values = history[monitor].head(until_epoch).dropna() if len(history) else ()
    return float(max(values, default=float("-inf")))


def better_half(scores: Sequence[float]) -> list[int]:
    """The places of the better half, rounded up, in order; of equals the first."""
    best_first = sorted(range(len(scores)), key=lambda place: -scores[place])
    return sorted(best_first[: ceil(len(scores) / 2)])
