"""What is compared: losses, seeds and folds, and the trainings that this takes."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luna_cls.errors import InputError
from luna_cls.files import read_json
from luna_cls.learning.held_out import Training, Turn
from luna_cls.learning.tuning import Tuning, check_fair
from luna_cls.settings import LossSettings, Settings, parse_value

ASKED, RUNS = "compare.json", "runs"
EACH: Literal["each"] = "each"  # as `Contest.tested`: every fold by itself


@dataclass(frozen=True)
class Entrant:
    """A loss that is compared.

    Args:
        loss: Its name, with its own parameters.
    """

    loss: LossSettings

    @classmethod
    def parse(cls, text: str) -> Entrant:
        """Reads `focal` or `focal,gamma=5`; values are TOML, or else text.

        Raises:
            InputError: If it cannot be read.
        """
        name, *given = re.split(r",(?=\s*\w+\s*=)", text)
        parameters = {}
        for parameter in given:
            key, _, value = parameter.partition("=")
            parameters[key.strip()] = parse_value(value.strip())
        if not re.fullmatch(r"\w+", name.strip()) or "name" in parameters:
            raise InputError(
                f"--loss takes a name, with its parameters behind it, as focal,gamma=5. Received: '{text}'."
            )
        return cls(LossSettings(name=name.strip(), **parameters))

    @property
    def label(self) -> str:
        """What it is called: "focal, gamma=5"."""
        return ", ".join([self.loss.name, *_written(self.loss.parameters)])

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return _as_name(self.label)

    def with_parameters(self, tried: Mapping[str, Any]) -> LossSettings:
        """The loss with further parameters."""
        return LossSettings(name=self.loss.name, **self.loss.parameters, **tried)


@dataclass(frozen=True)
class Contest:
    """What is compared, and how.

    Args:
        entrants: Two or more, each once.
        seeds: How many trainings of each on every turn, the first with the settings' seed, each further one
            with one more.
        tested: Folds that are tested together, in turn; or `EACH`; None for the settings' own split if it has
            test folds, else each.
        metric: What decides: "cpm", "auc", "average_precision" or "balanced_accuracy"; None for CPM where
            there are annotations, else AUC.
        tuning: What is tried of each loss's own parameters; None for nothing.

    Raises:
        InputError: If there are fewer than two entrants, two are the same, or there is no seed.
    """

    entrants: tuple[Entrant, ...]
    seeds: int = 3
    tested: tuple[tuple[int, ...], ...] | Literal["each"] | None = None
    metric: str | None = None
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        labels = [entrant.label for entrant in self.entrants]
        if len(labels) < 2:
            raise InputError(
                "A comparison takes two losses or more, each with --loss. Received: "
                f"{', '.join(labels) or 'none'}."
            )
        names = [entrant.folder for entrant in self.entrants]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise InputError(f"The loss {labels[place]} is there twice. Name each once.")
        if self.seeds < 1:
            raise InputError(f"--seeds must be 1 or more. Received: {self.seeds}.")
        if self.tuning is not None:
            check_fair(self.tuning, {entrant.label: entrant.loss for entrant in self.entrants})

    def to_json(self) -> dict[str, Any]:
        """What `compare.json` holds of it."""
        return {
            "losses": [
                {"label": entrant.label, **entrant.loss.model_dump(), "folder": entrant.folder}
                for entrant in self.entrants
            ],
            "seeds": self.seeds,
            "tested": self.tested,
            "metric": self.metric,
            "tuning": self.tuning and self.tuning.to_json(),
        }

    @classmethod
    def begun(cls, out: Path) -> Contest | None:
        """What a folder was begun with; None if it was not.

        Raises:
            InputError: If its `compare.json` is damaged.
        """
        path = out / ASKED
        if not path.is_file():
            return None
        try:
            entry = read_json(path.read_bytes(), str(path))
            losses = [
                {key: value for key, value in loss.items() if key not in ("label", "folder")}
                for loss in entry["losses"]
            ]
            tested = entry["tested"]
            if tested is not None and tested != EACH:
                tested = tuple(tuple(map(operator.index, group)) for group in tested)
            return cls(
                tuple(Entrant(LossSettings(**loss)) for loss in losses),
                operator.index(entry["seeds"]),
                tested,
                entry["metric"],
                Tuning.from_json(entry["tuning"]),
            )
        except InputError as error:
            raise InputError(f"{path} is damaged. {error} Start over with --force.") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error!r}. Start over with --force.") from error


@dataclass(frozen=True)
class Place:
    """Which of the trainings."""

    entrant: Entrant
    seed: int
    turn: Turn


@dataclass(frozen=True)
class Tried:
    """What came of tuning a loss for a turn.

    Args:
        parameters: Those tried, in order.
        epochs: Done of each.
        scores: Of each; -inf if it failed.
        best: The place of the best.
        failed: Why those at some places failed.
    """

    parameters: Sequence[Mapping[str, Any]]
    epochs: Sequence[int]
    scores: Sequence[float]
    best: int
    failed: Mapping[int, str] = field(default_factory=dict)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The best."""
        return self.parameters[self.best]


@dataclass(frozen=True)
class Planned:
    """All trainings that may be needed."""

    settings: Settings
    contest: Contest
    turns: Sequence[Turn]
    out: Path

    @property
    def seeds(self) -> list[int]:
        """Those of the runs."""
        return [(self.settings.seed + number) % 2**32 for number in range(self.contest.seeds)]

    def training(self, place: Place, tried: Mapping[str, Any], until_epoch: int | None = None) -> Training:
        """One of them, with further parameters of the loss."""
        tuned = _as_name(",".join(_written(tried)))
        parts = [RUNS, place.entrant.folder, *([tuned] if tuned else [])]
        folds = "-".join(map(str, place.turn.test))
        run = self.out.joinpath(*parts, f"seed{place.seed}-folds{folds}")
        update = {"loss": place.entrant.with_parameters(tried), "seed": place.seed}
        settings = place.turn.of(self.settings.model_copy(update=update))
        words = [place.entrant.label, *_written(tried), f"seed {place.seed}", str(place.turn)]
        return Training(", ".join(words), place.turn, run, settings, until_epoch)

    def tries(self, entrant: Entrant) -> list[dict[str, Any]]:
        """Parameters to try of a loss; nothing but none where nothing is tuned."""
        return self.contest.tuning.tries(entrant.loss) if self.contest.tuning else [{}]

    def places(self) -> list[Place]:
        """Of what is compared, seed by seed, so that one seed of all losses is soon complete."""
        return [
            Place(entrant, seed, turn)
            for seed in self.seeds
            for turn in self.turns
            for entrant in self.contest.entrants
        ]

    def everything(self) -> list[Training]:
        """Everything that might be trained."""
        return [self.training(place, tried) for place in self.places() for tried in self.tries(place.entrant)]

    def final(self, chosen: Mapping[tuple[Entrant, Turn], Mapping[str, Any]]) -> dict[Place, Training]:
        """What is compared."""
        return {place: self.training(place, chosen[place.entrant, place.turn]) for place in self.places()}

    def in_words(self) -> str:
        """How much there is to do."""
        contest, epochs = self.contest, self.settings.training.epochs
        tries = len(self.tries(contest.entrants[0]))
        before = (
            f", after {tries} tries for each loss and turn with the first seed ({contest.tuning.method})"
            if contest.tuning
            else ""
        )
        most = "" if self.settings.training.patience is None else " at most"
        return (
            f"{len(self.places())} trainings of{most} {epochs} epochs: {len(contest.entrants)} losses, seeds "
            f"{', '.join(map(str, self.seeds))}, {'; '.join(map(_in_words, self.turns))}{before}."
        )


def _in_words(turn: Turn) -> str:
    chooses = f"fold {turn.validation[0]} chooses the epoch" if turn.validation else "the last epoch is kept"
    return f"{turn} tested ({chooses})"


def _written(parameters: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        for name, value in parameters.items()
    ]


def _as_name(words: str) -> str:
    """A name for a folder: "focal, gamma=5" becomes focal-gamma-5; a minus stays."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-")
