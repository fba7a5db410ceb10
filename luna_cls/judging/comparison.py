"""Two or more systems on the same scans: which is better, by how much, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_cls.errors import InputError
from luna_cls.files import read_csv
from luna_cls.judging import froc, verdicts
from luna_cls.judging.labelled import LabelledCandidates, labelled_candidates
from luna_cls.judging.pairs import Pair, differences_of, pair_of
from luna_cls.judging.ranks import Rank, ranks
from luna_cls.judging.resampling import RESAMPLES, SEED, scan_weights
from luna_cls.judging.scored_system import ScoredSystem, curve_in_band, intervals_95, means
from luna_cls.judging.significance import holm

Floats = NDArray[np.float64]
Weights = NDArray[np.int32]

FEW_SCANS = 30
FEW_SEEDS = 3
_FOLD = re.compile(r"fold\d+").fullmatch

_OF_TESTS = (
    "DeLong's interval is over scans, as the bootstrap is. McNemar's test takes nodules to be independent "
    "and thresholds to be given; nodules of one scan are not quite, and thresholds are of these very scans, "
    "so its p-values may be somewhat too small."
)
_OF_SEEDS = (
    "Every score is the mean over {seeds} seeds, each of which began all systems alike. Intervals and "
    "p-values have both chances in them: which scans were tested and which seeds were trained. DeLong's and "
    "McNemar's tests know of one training and are left out. Bands of FROC curves are over scans alone."
)
_OF_METRICS = (
    "{metric} decides. Intervals and p-values of the other metrics are each by itself: among so many, one in "
    "twenty differs by chance."
)


@dataclass(frozen=True)
class Comparison:
    """What two or more systems are to each other.

    Args:
        names: Of the systems, in the order given.
        metric: The one that decides.
        num_scans: Scans that all were scored on.
        num_nodules: Annotated nodules in them; None without annotations.
        num_seeds: How many seeds each was trained from.
        bootstrap: `resamples` and `seed`.
        scores: Metrics by name, by system: means over seeds.
        intervals_95: Of each of them, as `scored_system.intervals_95` gives them.
        by_seed: Each metric's value for each seed, by system.
        balanced: Metrics of labelled candidates as if half of them were nodules; empty without labels.
        balanced_intervals_95: Of each of them.
        ranks: The place of each, by the metric that decides.
        froc: Of each the curve, mean over seeds, with its band; None without annotations.
        pairs: All of them, each once.
        verdict: In plain words.
        notes: What to know of the figures, a sentence or two each.
    """

    names: tuple[str, ...]
    metric: str
    num_scans: int
    num_nodules: int | None
    num_seeds: int
    bootstrap: dict[str, int]
    scores: dict[str, dict[str, Any]]
    intervals_95: dict[str, dict[str, tuple[float, float]]]
    by_seed: dict[str, dict[str, list[float]]]
    balanced: dict[str, dict[str, float]]
    balanced_intervals_95: dict[str, dict[str, tuple[float, float]]]
    ranks: dict[str, Rank]
    froc: dict[str, dict[str, list[float]]] | None
    pairs: tuple[Pair, ...]
    verdict: str
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds."""
        return {
            "names": self.names,
            "metric": self.metric,
            "num_scans": self.num_scans,
            "num_nodules": self.num_nodules,
            "num_seeds": self.num_seeds,
            "bootstrap": self.bootstrap,
            "scores": self.scores,
            "intervals_95": self.intervals_95,
            "by_seed": self.by_seed,
            "balanced": self.balanced,
            "balanced_intervals_95": self.balanced_intervals_95,
            "ranks": {name: rank.summary() for name, rank in self.ranks.items()},
            "froc": self.froc,
            "pairs": [pair.summary() for pair in self.pairs],
            "verdict": self.verdict,
            "notes": self.notes,
        }


def compare(
    submissions: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    annotations: pd.DataFrame | None,
    series_uids: Sequence[str] | None = None,
    excluded: pd.DataFrame | None = None,
    *,
    metric: str | None = None,
    folds: Mapping[str, int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compares systems on the same scans, each with each.

    The bootstrap is paired: every system is scored on the same draws of the scans. A system may have been
    trained from several seeds: a table each, the i-th tables of all systems from the same seed, so that
    differences are paired by seed too. With annotations the CPM decides, otherwise the AUC, unless another
    metric is asked for. Metrics of labelled candidates are compared where all submissions have the same
    points, in any order: labels are those of a column `class`, or else tell which marks lie in nodules, those
    on excluded findings left out. Where all have a column `chosen`, the logit less a threshold chosen
    elsewhere, their balanced accuracy at that threshold is compared as well.

    Args:
        submissions: Tables as `evaluate` takes them, by name; two or more. Several of each for several seeds.
        annotations: Table of the nodules; None to compare labelled candidates alone.
        series_uids: All scans that were read; None for those that the submissions name, all the same.
        excluded: Table of findings to ignore.
        metric: The one that decides: "cpm", "auc", "average_precision" or "balanced_accuracy".
        folds: The fold of a cross-validation each scan was tested in, the same for all submissions.
        resamples: Bootstrap draws of the scans.
        seed: Of these, of draws of seeds, and of those of the sign test over folds.

    Raises:
        InputError: If there are fewer than two submissions, not as many seeds of each, their scans or labels
            differ, no nodule is in the scans, there is nothing to compare, or the metric is unknown or cannot
            be had.
    """
    labels, tables = _tables_of_all(submissions)
    scans = _scans_of_all(tables) if series_uids is None else list(dict.fromkeys(series_uids))
    if len(scans) < 2:
        raise InputError(f"A comparison takes two scans or more. Received: {len(scans)}.")
    metric = deciding_metric(metric, has_annotations=annotations is not None)
    matches = {}
    if annotations is not None:
        matches = {label: froc.match(table, annotations, scans, excluded) for label, table in tables.items()}
    candidates, about_candidates = labelled_candidates(tables, matches, scans)
    if not matches and candidates is None:
        raise InputError(f"Without annotations only labelled candidates can be compared. {about_candidates}")
    if metric != "cpm" and candidates is None:
        raise InputError(f"{verdicts.IN_WORDS[metric]} cannot decide. {about_candidates}")

    draws = np.vstack([np.ones((1, len(scans)), np.int32), scan_weights(len(scans), resamples, seed)])
    of_folds = _fold_weights(scans, folds or {})
    systems = {
        name: ScoredSystem.scored(own, matches, candidates, metric, draws, of_folds)
        for name, own in labels.items()
    }
    scores = {name: means(system.values) for name, system in systems.items()}
    intervals = {name: intervals_95(system.values, len(scans)) for name, system in systems.items()}
    pairs, verdict = _pairs_of_all(systems, metric, scores, candidates, len(scans), seed)
    by_seed = {
        name: {of: values[:, 0].tolist() for of, values in system.values.items()}
        for name, system in systems.items()
    }
    curves = {
        name: curve_in_band(system.curve) for name, system in systems.items() if system.curve is not None
    }
    num_seeds = len(next(iter(labels.values())))
    return Comparison(
        names=tuple(labels),
        metric=metric,
        num_scans=len(scans),
        num_nodules=len(next(iter(matches.values())).nodules) if matches else None,
        num_seeds=num_seeds,
        bootstrap={"resamples": resamples, "seed": seed},
        scores={
            name: {
                metric: score[metric],
                f"{metric}_interval_95": list(intervals[name][metric]),
                **score,
            }
            for name, score in scores.items()
        },
        intervals_95=intervals,
        by_seed=by_seed,
        balanced={name: means(system.balanced) for name, system in systems.items()},
        balanced_intervals_95={
            name: intervals_95(system.balanced, len(scans)) for name, system in systems.items()
        },
        ranks=ranks({name: system.values[metric] for name, system in systems.items()}, seed),
        froc=curves or None,
        pairs=pairs,
        verdict=verdict,
        notes=(
            about_candidates,
            *_notes(metric, len(pairs), len(scans), num_seeds),
            *(_undefined(by_seed) if num_seeds > 1 else ()),
        ),
    )


def deciding_metric(metric: str | None, *, has_annotations: bool) -> str:
    """What decides: the metric wished for, or else the CPM with annotations and the AUC without.

    Raises:
        InputError: If the metric is unknown or cannot be had.
    """
    decides = metric or ("cpm" if has_annotations else "auc")
    if decides not in verdicts.IN_WORDS:
        raise InputError(f"No metric {decides} decides. Give one of {', '.join(verdicts.IN_WORDS)}.")
    if decides == "cpm" and not has_annotations:
        raise InputError("Without annotations there is no CPM. Give those, or compare by another metric.")
    return decides


def folds_of(folders: Sequence[Path]) -> dict[str, int]:
    """The fold in which each scan was tested, of cross-validations with the same folds; else empty.

    Nothing is read unless all have folds of the same names.

    Args:
        folders: What is compared; of a cross-validation, the folder with `fold0`, `fold1`, ...

    Raises:
        InputError: If the predictions of a fold are damaged.
    """
    tested = [
        {
            path.parent.name: path
            for path in folder.glob("fold*/test_predictions.csv")
            if _FOLD(path.parent.name)
        }
        for folder in folders
    ]
    if any(set(paths) != set(tested[0]) for paths in tested):
        return {}
    first: dict[str, int] | None = None
    for paths in tested:
        fold_of = {
            uid: int(fold.removeprefix("fold"))
            for fold, path in paths.items()
            for uid in read_csv(path, ("seriesuid",), "predictions")["seriesuid"].unique()
        }
        if first is not None and fold_of != first:
            return {}
        first = fold_of
    return first or {}


def _tables_of_all(
    submissions: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
) -> tuple[dict[str, list[str]], dict[str, pd.DataFrame]]:
    """Of each system the labels of its tables, one for each seed; and the tables by label."""
    if len(submissions) < 2:
        raise InputError(f"A comparison takes two submissions or more. Received: {len(submissions)}.")
    of_seeds = {
        name: [given] if isinstance(given, pd.DataFrame) else list(given)
        for name, given in submissions.items()
    }
    numbers = {len(tables) for tables in of_seeds.values()}
    if len(numbers) > 1 or 0 in numbers:
        received = ", ".join(f"{len(tables)} of {name}" for name, tables in of_seeds.items())
        raise InputError(
            f"Systems are compared by a submission of each, or as many seeds of each. Received: {received}."
        )
    (number,) = numbers
    labels = {
        name: [name] if number == 1 else [f"{name} ({at} of {number})" for at in range(1, number + 1)]
        for name in of_seeds
    }
    tables = {
        label: table.reset_index(drop=True)
        for name, own in labels.items()
        for label, table in zip(own, of_seeds[name], strict=True)
    }
    return labels, tables


def _pairs_of_all(
    systems: Mapping[str, ScoredSystem],
    metric: str,
    scores: Mapping[str, Mapping[str, float]],
    candidates: LabelledCandidates | None,
    num_scans: int,
    seed: int,
) -> tuple[tuple[Pair, ...], str]:
    """All pairs, and the verdict on all systems."""
    couples = list(combinations(systems, 2))
    found = [differences_of(systems[a], systems[b], num_scans) for a, b in couples]
    p_holm = holm([np.nan_to_num(differences[metric].p, nan=1.0) for differences in found]).tolist()
    pairs = tuple(
        pair_of(names, metric, differences, p, len(couples), systems, candidates, seed)
        for names, differences, p in zip(couples, found, p_holm, strict=True)
    )
    if len(pairs) == 1:
        return pairs, pairs[0].verdict
    deciding = {couple: differences[metric] for couple, differences in zip(couples, found, strict=True)}
    by_name = {name: score[metric] for name, score in scores.items()}
    return pairs, verdicts.of_all(metric, by_name, deciding, p_holm)


def _scans_of_all(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The scans that every submission names."""
    first, *others = tables
    scans = tables[first]["seriesuid"].unique().tolist()
    for name in others:
        named = set(tables[name]["seriesuid"])
        only = sorted(named.symmetric_difference(scans))
        if only:
            raise InputError(
                f"{first} and {name} are not of the same scans: {first} names {len(scans):,}, {name} "
                f"{len(named):,}; {only[0]} is in {name if only[0] in named else first} alone. List with "
                "--seriesuids all scans that were read."
            )
    return scans


def _fold_weights(scans: Sequence[str], folds: Mapping[str, int]) -> Weights:
    """Which scans `(folds, scans)` are of which fold."""
    fold = np.array([folds.get(uid, -1) for uid in scans])
    return np.stack([fold == number for number in sorted({-1, *fold.tolist()})]).astype(np.int32)[1:]


def _notes(metric: str, num_pairs: int, num_scans: int, num_seeds: int) -> list[str]:
    word = verdicts.IN_WORDS[metric]
    notes = [
        _OF_TESTS if num_seeds == 1 else _OF_SEEDS.format(seeds=num_seeds),
        _OF_METRICS.format(metric=word[0].upper() + word[1:]),
    ]
    if num_pairs > 1:
        notes.append(f"Whether a pair differs is decided at 5 % for all {num_pairs} pairs together (Holm).")
    if num_scans < FEW_SCANS:
        notes.append(f"Intervals from {num_scans} scans are rough.")
    if 1 < num_seeds < FEW_SEEDS:
        notes.append(f"{num_seeds} seeds hardly tell how much a training varies: intervals are wide.")
    return notes


def _undefined(by_seed: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A note on metrics that have no mean."""
    gaps = [
        f"{metric.replace('_', ' ')} of {name} ({missing} of {len(values)})"
        for name, metrics in by_seed.items()
        for metric, values in metrics.items()
        if (missing := int(np.isnan(values).sum()))
    ]
    if not gaps:
        return []
    return [f"A metric that some seeds do not define has no mean; seeds without it: {', '.join(gaps)}."]
