"""What the trainings of a comparison of losses come to: tables, intervals, calibration, cost, a verdict."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import clear, write_csv, write_json, write_text
from luna_cls.judging import calibration, comparison, reliability
from luna_cls.judging.binary import best_threshold
from luna_cls.judging.comparison import Comparison
from luna_cls.judging.resampled_metrics import resampled_metrics
from luna_cls.judging.submission import Reference
from luna_cls.learning.contest import Entrant, Place, Planned, Tried
from luna_cls.learning.held_out import (
    DIVERGED,
    FAILED,
    Training,
    Turn,
    divergence,
    pooled,
    predictions,
    validation_predictions,
)
from luna_cls.startup import load_tensorflow_quietly

PREDICTIONS, SERIES_UIDS, LONG, RESULT, FAILURES = (
    "predictions",
    "seriesuids.csv",
    "comparison.csv",
    "comparison.json",
    "failures.csv",
)
PAGE = "report.html"
ALWAYS_NO = "always no"
TRY_FAILED = "try failed"

_CALIBRATIONS: dict[str, type[calibration.Method]] = {
    "temperature": calibration.Temperature,
    "platt": calibration.Platt,
}
_FIGURES = ("ece", "ece_of_nodules", "log_loss", "brier")
_PREVALENCES = {"natural": None, "balanced": 0.5}


def judge(
    store: CubeStore,
    planned: Planned,
    final: Mapping[Place, Training],
    tried: Mapping[tuple[Entrant, Turn], Tried],
    reasons: Mapping[Training, str],
    reference: Reference,
    scans: Sequence[str],
    resamples: int,
    out: Path,
) -> dict[str, Any]:
    """Writes what all runs say.

    The same runs give the same bytes, but for the seconds in `comparison.json`.
    """
    entrants, seeds, turns = planned.contest.entrants, planned.seeds, planned.turns
    failures = [*_failures(final, reasons), *_failed_tries(tried, seeds[0])]
    columns = ["loss", "seed", "folds", "status", "reason"]
    write_csv(out / FAILURES, pd.DataFrame(failures, columns=columns))
    of = {
        (entrant, seed): [final[Place(entrant, seed, turn)] for turn in turns]
        for entrant in entrants
        for seed in seeds
    }
    complete = {key for key, trainings in of.items() if all(training.is_scored for training in trainings)}
    kept, shared = _complete(entrants, seeds, complete)
    if len(kept) < 2:
        clear_results(out)  # of an earlier state
        first = next(row[-1] for row in failures if row[3] == FAILED)
        raise InputError(f"No two losses could be trained from one seed. The first reason: {first}")
    judged = {
        (entrant, seed): _Judged.read(store, of[entrant, seed], out) for entrant in kept for seed in shared
    }
    clear(out / PREDICTIONS)
    for (entrant, seed), one in judged.items():
        path = out / PREDICTIONS / f"{entrant.folder}-seed{seed}.csv"
        path.parent.mkdir(exist_ok=True)
        write_csv(path, one.table.drop(columns="chosen", errors="ignore"))
    write_text(out / SERIES_UIDS, "".join(f"{uid}\n" for uid in scans))
    fold_of = _fold_of(store)
    nodules, ignored = reference.findings()
    compared = comparison.compare(
        {entrant.label: [judged[entrant, seed].table for seed in shared] for entrant in kept},
        nodules,
        scans,
        ignored,
        metric=planned.contest.metric,
        folds={uid: next(i for i, turn in enumerate(turns) if fold_of[uid] in turn.test) for uid in scans},
        resamples=resamples,
    )
    write_csv(out / LONG, _long(judged, turns, compared, shared))
    any_table = judged[kept[0], shared[0]].table
    labels = any_table["class"].to_numpy(int)
    result = {
        **compared.summary(),
        "verdict": compared.verdict if len(shared) > 1 else f"Of one training each: {compared.verdict}",
        "losses": [_about(entrant, tried, turns, planned) for entrant in kept],
        "seeds": shared,
        "turns": [turn.to_json() for turn in turns],
        "candidates": len(labels),
        "nodule_candidates": int(labels.sum()),
        "prevalence": float(labels.mean()),
        "no_skill": {name: _no_skill(labels, at) for name, at in _PREVALENCES.items()},
        "calibration": _calibrations(judged, kept, shared),
        "cost": {entrant.label: _cost(planned, entrant, final, tried) for entrant in kept},
        "tuning": _tuning_in_json(planned, tried),
        "missing": [
            {"loss": loss, "seed": seed, "folds": folds, "reason": reason}
            for loss, seed, folds, status, reason in failures
            if status == FAILED
        ],
        "warnings": [*_warnings(entrants, kept, seeds, shared, turns), *_of_tries(tried)],
    }
    write_json(out / RESULT, result)
    return {**result, "failures": failures}


def clear_results(out: Path) -> None:
    """Removes what was made of the runs; the runs stay."""
    clear(out / PREDICTIONS)
    for name in (LONG, RESULT, PAGE):
        (out / name).unlink(missing_ok=True)


def tested_scans(store: CubeStore, turns: Sequence[Turn]) -> list[str]:
    """All scans of the tested folds, those without a usable cube included."""
    fold_of, tested = _fold_of(store), {fold for turn in turns for fold in turn.test}
    return [uid for uid in store.series_uids if fold_of[uid] in tested]


def _fold_of(store: CubeStore) -> dict[str, int]:
    return dict(store.candidates[["seriesuid", "fold"]].drop_duplicates().itertuples(index=False))


def _complete(
    entrants: Sequence[Entrant], seeds: Sequence[int], complete: Collection[tuple[Entrant, int]]
) -> tuple[list[Entrant], list[int]]:
    """Losses, and the seeds that all have; those with the fewest seeds are left out where it takes that."""
    own = {entrant: {seed for seed in seeds if (entrant, seed) in complete} for entrant in entrants}
    kept = [entrant for entrant in entrants if own[entrant]]
    while kept:
        shared = [seed for seed in seeds if all(seed in own[entrant] for entrant in kept)]
        if shared:
            return kept, shared
        kept.remove(min(kept, key=lambda entrant: len(own[entrant])))
    return [], []


@dataclass(frozen=True, eq=False)
class _Judged:
    """What a loss says from one seed, pooled over turns.

    Args:
        table: Predictions, with `chosen` (the logit less the threshold chosen on validation) where all turns
            have validation folds.
        calibrated: Logits `(n,)` after each calibration, by its name; empty without validation folds.
        turn: Of each row, the number of the turn.
    """

    table: pd.DataFrame
    calibrated: dict[str, np.ndarray]
    turn: np.ndarray

    @classmethod
    def read(cls, store: CubeStore, trainings: Sequence[Training], out: Path) -> _Judged:
        parts = []
        for number, training in enumerate(trainings):
            own = predictions(store, training).assign(turn=number)
            if training.turn.validation:
                chose = validation_predictions(store, training)
                labels, logits = chose["class"].to_numpy(int), chose["logit"].to_numpy(float)
                own["chosen"] = own["logit"] - best_threshold(labels, logits)
                for name, method in _CALIBRATIONS.items():
                    own[name] = method.fit(labels, logits)(own["logit"].to_numpy(float))
            parts.append(own)
        table = pooled(store, parts, [training.turn for training in trainings], out)
        has_validation = all(training.turn.validation for training in trainings)
        calibrated = {name: table[name].to_numpy() for name in _CALIBRATIONS} if has_validation else {}
        extra = ["turn", *(name for name in _CALIBRATIONS if name in table)]
        kept = table.drop(columns=extra if has_validation else [*extra, "chosen"], errors="ignore")
        return cls(kept, calibrated, table["turn"].to_numpy())


def _failures(
    final: Mapping[Place, Training], reasons: Mapping[Training, str]
) -> list[tuple[str, int, str, str, str]]:
    """Rows of `failures.csv`: loss, seed, folds, status, reason."""
    rows = []
    for place, training in final.items():
        row = place.entrant.label, place.seed, _folds(place.turn)
        if training in reasons:
            rows.append((*row, FAILED, reasons[training]))
        elif words := divergence(training.about()):
            rows.append((*row, DIVERGED, words))
    return rows


def _failed_tries(
    tried: Mapping[tuple[Entrant, Turn], Tried], seed: int
) -> list[tuple[str, int, str, str, str]]:
    """Likewise, of parameters that were tried."""
    return [
        (entrant.label, seed, _folds(turn), TRY_FAILED, f"With {found.parameters[place]}: {reason}")
        for (entrant, turn), found in tried.items()
        for place, reason in found.failed.items()
    ]


def _of_tries(tried: Mapping[tuple[Entrant, Turn], Tried]) -> list[str]:
    """A warning where losses had fewer tries than others."""
    lost = sorted({entrant.label for (entrant, _), found in tried.items() if found.failed})
    return [f"{'; '.join(lost)}: some tries failed, so that it had fewer than the others."] if lost else []


def _long(
    judged: Mapping[tuple[Entrant, int], _Judged],
    turns: Sequence[Turn],
    compared: Comparison,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Every metric by loss, seed, folds and prevalence, a row each."""
    rows: list[tuple[str, int | None, str, str, str, float]] = []
    everything = " ".join(_folds(turn) for turn in turns)
    parts = [(_folds(turn), number) for number, turn in enumerate(turns)] if len(turns) > 1 else []
    for (entrant, seed), one in judged.items():
        for folds, number in [(everything, None), *parts]:
            table = one.table if number is None else one.table[one.turn == number]
            labels = table["class"].to_numpy(int)
            for name, prevalence in _PREVALENCES.items():
                values = _metrics(labels, table["logit"].to_numpy(float), prevalence)
                if number is None and prevalence is None:
                    place = seeds.index(seed)
                    ours = compared.by_seed[entrant.label]
                    values = {**values, **{metric: of[place] for metric, of in ours.items()}}
                rows += [
                    (entrant.label, seed, folds, name, metric, value) for metric, value in values.items()
                ]
    labels = next(iter(judged.values())).table["class"].to_numpy(int)
    for name, prevalence in _PREVALENCES.items():
        for metric, value in _no_skill(labels, prevalence).items():
            rows.append((ALWAYS_NO, None, everything, name, metric, value))
    table = pd.DataFrame(rows, columns=["loss", "seed", "folds", "prevalence", "metric", "value"])
    return table.astype({"seed": "Int64"})


def _metrics(labels: np.ndarray, logits: np.ndarray, prevalence: float | None) -> dict[str, float]:
    of_one_scan = np.zeros(len(labels), int)
    found = resampled_metrics(labels, logits, expit(logits), of_one_scan, [[1]], prevalence=prevalence)
    return {name: float(value[0]) for name, value in found.items()}


def _no_skill(labels: np.ndarray, prevalence: float | None) -> dict[str, float]:
    """Of always saying no, with the probability that a candidate is a nodule."""
    share = float(labels.mean()) if prevalence is None else prevalence
    below = np.full(len(labels), -1.0)
    found = _metrics(labels, below, prevalence)
    surprise = -(share * np.log(share) + (1 - share) * np.log1p(-share)) if 0 < share < 1 else 0.0
    return {**found, "brier": share * (1 - share), "log_loss": float(surprise)}


def _calibrations(
    judged: Mapping[tuple[Entrant, int], _Judged], kept: Sequence[Entrant], seeds: Sequence[int]
) -> dict[str, Any] | None:
    """What is wrong with probabilities, as trained and calibrated, means over seeds."""
    if not all(one.calibrated for one in judged.values()):
        return None
    found: dict[str, Any] = {}
    for entrant in kept:
        by_method: dict[str, list[dict[str, float]]] = {}
        for seed in seeds:
            one = judged[entrant, seed]
            labels = one.table["class"].to_numpy(int)
            for name, logits in {"before": one.table["logit"].to_numpy(float), **one.calibrated}.items():
                by_method.setdefault(name, []).append(reliability.figures(labels, expit(logits)))
        found[entrant.label] = {
            name: {figure: float(np.mean([each[figure] for each in figures])) for figure in _FIGURES}
            for name, figures in by_method.items()
        }
    return found


def _about(
    entrant: Entrant,
    tried: Mapping[tuple[Entrant, Turn], Tried],
    turns: Sequence[Turn],
    planned: Planned,
) -> dict[str, Any]:
    tuned = {_folds(turn): tried[entrant, turn].chosen for turn in turns} if planned.contest.tuning else None
    return {
        "label": entrant.label,
        "name": entrant.loss.name,
        "parameters": entrant.loss.parameters,
        "folder": entrant.folder,
        "tuned": tuned,
    }


def _cost(
    planned: Planned,
    entrant: Entrant,
    final: Mapping[Place, Training],
    tried: Mapping[tuple[Entrant, Turn], Tried],
) -> dict[str, Any]:
    """What was spent: cubes trained on, each as often as it was, and seconds of training steps."""
    own = [training for place, training in final.items() if place.entrant == entrant]
    others = [
        training
        for (of, turn), found in tried.items()
        if of == entrant
        for parameters in found.parameters
        for training in [planned.training(Place(of, planned.seeds[0], turn), parameters)]
        if training not in own
    ]
    spent, on_tuning = [[_spent(training) for training in group] for group in (own, others)]
    seconds = [second for _, second in (*spent, *on_tuning)]
    return {
        "trainings": len(spent),
        "cubes": sum(cubes for cubes, _ in spent),
        "tuning_trainings": len(on_tuning),
        "tuning_cubes": sum(cubes for cubes, _ in on_tuning),
        "seconds": float(sum(seconds)) if np.isfinite(seconds).all() else None,
    }


def _spent(training: Training) -> tuple[int, float]:
    """Cubes, and seconds of training steps by TensorBoard's log, which has those of a resumed run, too."""
    path = training.run / "environment.json"
    if not path.is_file():
        return 0, 0.0
    each = int(json.loads(path.read_text(encoding="utf-8"))["sampling"]["cubes_per_epoch"])
    cubes = each * training.epochs_done
    speeds = _speeds(training.run / "tensorboard" / "train")
    # The speed of an epoch of one step is not told.
    seconds = cubes * float(np.mean(1 / speeds)) if len(speeds) else np.nan
    return cubes, seconds


def _speeds(log: Path) -> np.ndarray:
    """Cubes a second of each epoch of a log; the last word on an epoch counts."""
    load_tensorflow_quietly()  # which TensorBoard loads, and not so
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(log), size_guidance={"tensors": 0}).Reload()  # 0: all of them
    if "speed/cubes_per_second" not in events.Tags()["tensors"]:
        return np.empty(0)
    found = {
        event.step: make_ndarray(event.tensor_proto) for event in events.Tensors("speed/cubes_per_second")
    }
    return np.array([float(value) for value in found.values()])


def _tuning_in_json(planned: Planned, tried: Mapping[tuple[Entrant, Turn], Tried]) -> dict[str, Any] | None:
    if planned.contest.tuning is None:
        return None
    trials: dict[str, list[dict[str, Any]]] = {}
    for (entrant, turn), found in tried.items():
        for number, parameters in enumerate(found.parameters):
            entry = {
                "turn": turn.test,
                "parameters": parameters,
                "epochs": found.epochs[number],
                "score": found.scores[number] if np.isfinite(found.scores[number]) else None,
                "chosen": number == found.best,
            }
            trials.setdefault(entrant.label, []).append(entry)
    return {
        "method": planned.contest.tuning.method,
        "monitor": planned.settings.training.monitor,
        "trials": trials,
    }


def _warnings(
    entrants: Sequence[Entrant],
    kept: Sequence[Entrant],
    seeds: Sequence[int],
    shared: Sequence[int],
    turns: Sequence[Turn],
) -> list[str]:
    found = []
    lost = [entrant.label for entrant in entrants if entrant not in kept]
    if lost:
        found.append(f"{'; '.join(lost)}: could not be trained, and is not compared.")
    if len(shared) < len(seeds):
        found.append(
            f"Compared are seeds {', '.join(map(str, shared))}: of {len(seeds)} seeds, only those that every "
            "loss was trained from."
        )
    if len(shared) == 1:
        found.append(
            "One seed: how much of a difference is the luck of the first weights cannot be told. Take three."
        )
    if not all(turn.validation for turn in turns):
        found.append(
            "Too few folds for one to choose the epoch: the last epoch of each training was tested, and "
            "neither thresholds nor calibration could be fitted."
        )
    return found


def _folds(turn: Turn) -> str:
    return "+".join(map(str, turn.test))
