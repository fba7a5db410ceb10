"""Two or more submissions on the same scans: which is better, by how much, and how sure that is."""

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
from luna_cls.judging.froc import RATES_PER_SCAN, Matches
from luna_cls.judging.labelled import LabelledCandidates, labelled_candidates
from luna_cls.judging.paired_bootstrap import Difference, paired_difference
from luna_cls.judging.resampled_metrics import resampled_metrics
from luna_cls.judging.resampling import RESAMPLES, SEED, interval_95, scan_weights
from luna_cls.judging.significance import (
    Beliefs,
    DeLong,
    McNemar,
    bayesian_sign_test,
    correlated_t,
    delong,
    holm,
    mcnemar,
)

Floats = NDArray[np.float64]
Weights = NDArray[np.int32]

OPERATING_FPS_PER_SCAN = 1.0
ROPE = 0.01  # a CPM or AUC that differs by less makes no difference (Benavoli et al. 2017)
FEW_SCANS = 30
_FOLD = re.compile(r"fold\d+").fullmatch

_OF_TESTS = (
    "DeLong's interval is over scans, as the bootstrap is. McNemar's test takes nodules to be independent "
    "and thresholds to be given; nodules of one scan are not quite, and thresholds are of these very scans, "
    "so its p-values may be somewhat too small."
)
_OF_METRICS = (
    "{metric} decides. Intervals and p-values of the other metrics are each by itself: among so many, one in "
    "twenty differs by chance."
)


@dataclass(frozen=True)
class OverFolds:
    """A metric fold by fold of a cross-validation, and what to believe after it.

    Args:
        metric: "cpm" or "auc".
        differences: Of each fold.
        beliefs: Of the Bayesian correlated t-test.
        sign_test: Those of the Bayesian sign test, which takes folds to be independent.
    """

    metric: str
    differences: tuple[float, ...]
    beliefs: Beliefs
    sign_test: Beliefs

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        return {
            "metric": self.metric,
            "folds": len(self.differences),
            "differences": self.differences,
            "rope": ROPE,
            "correlation": 1 / len(self.differences),
            **self.beliefs._asdict(),
            "sign_test": self.sign_test._asdict(),
        }


@dataclass(frozen=True)
class Pair:
    """Two of the systems.

    Args:
        a: Name of the first.
        b: Name of the second.
        verdict: In plain words.
        differences: Of each metric, first less second, by its name.
        p_holm: P-value of the metric that decides, adjusted for all pairs; None if scans are too
            few for a verdict.
        scans_needed: To tell them apart; None if they are, or if nothing differs.
        delong: Of labelled candidates, over scans; None where there is no AUC.
        mcnemar_nodules: Nodules found at one false positive a scan each; None without annotations.
        mcnemar_candidates: Labelled candidates told rightly at a probability of 1/2; None without labels.
        over_folds: None if the submissions are not of one cross-validation.
    """

    a: str
    b: str
    verdict: str
    differences: dict[str, Difference]
    p_holm: float | None
    scans_needed: int | None
    delong: DeLong | None
    mcnemar_nodules: McNemar | None
    mcnemar_candidates: McNemar | None
    over_folds: OverFolds | None

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        nodules, candidates = self.mcnemar_nodules, self.mcnemar_candidates
        return {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "differences": {name: found.summary() for name, found in self.differences.items()},
            "p_holm": self.p_holm,
            "scans_needed": self.scans_needed,
            "delong": self.delong and self.delong.summary(),
            "mcnemar": {
                "nodules": nodules and {"fps_per_scan": OPERATING_FPS_PER_SCAN, **nodules._asdict()},
                "candidates": candidates and {"probability": 0.5, **candidates._asdict()},
            },
            "over_folds": self.over_folds and self.over_folds.summary(),
        }


@dataclass(frozen=True)
class Comparison:
    """What two or more submissions are to each other.

    Args:
        names: Of the submissions, in the order given.
        metric: The one that decides: "cpm"; "auc" without annotations.
        num_scans: Scans that all were scored on.
        num_nodules: Annotated nodules in them; None without annotations.
        bootstrap: `resamples` and `seed`.
        scores: Metrics by name, by submission.
        pairs: All of them, each once.
        verdict: In plain words.
        notes: What to know of the figures, a sentence or two each.
    """

    names: tuple[str, ...]
    metric: str
    num_scans: int
    num_nodules: int | None
    bootstrap: dict[str, int]
    scores: dict[str, dict[str, Any]]
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
            "bootstrap": self.bootstrap,
            "scores": self.scores,
            "pairs": [pair.summary() for pair in self.pairs],
            "verdict": self.verdict,
            "notes": self.notes,
        }


def compare(
    submissions: Mapping[str, pd.DataFrame],
    annotations: pd.DataFrame | None,
    series_uids: Sequence[str] | None = None,
    excluded: pd.DataFrame | None = None,
    *,
    folds: Mapping[str, int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compares submissions on the same scans, each with each.

    The bootstrap is paired: every system is scored on the same draws of the scans. With annotations the CPM
    decides, otherwise the AUC. Metrics of labelled candidates are compared where all submissions have the
    same points, in any order: labels are those of a column `class`, or else tell which marks lie in nodules,
    those on excluded findings left out.

    Args:
        submissions: Tables as `evaluate` takes them, by name; two or more.
        annotations: Table of the nodules; None to compare labelled candidates alone.
        series_uids: All scans that were read; None for those that the submissions name, all the same.
        excluded: Table of findings to ignore.
        folds: The fold of a cross-validation each scan was tested in, the same for all submissions.
        resamples: Bootstrap draws of the scans.
        seed: Of these, and of the draws of the sign test over folds.

    Raises:
        InputError: If there are fewer than two submissions, their scans or labels differ, no nodule is in
            the scans, or there is nothing to compare.
    """
    if len(submissions) < 2:
        raise InputError(f"A comparison takes two submissions or more. Received: {len(submissions)}.")
    tables = {name: table.reset_index(drop=True) for name, table in submissions.items()}
    scans = _scans_of_all(tables) if series_uids is None else list(dict.fromkeys(series_uids))
    if len(scans) < 2:
        raise InputError(f"A comparison takes two scans or more. Received: {len(scans)}.")
    matches = {}
    if annotations is not None:
        matches = {name: froc.match(table, annotations, scans, excluded) for name, table in tables.items()}
    candidates, about_candidates = labelled_candidates(tables, matches, scans)
    if not matches and candidates is None:
        raise InputError(f"Without annotations only labelled candidates can be compared. {about_candidates}")

    draws = np.vstack([np.ones((1, len(scans)), np.int32), scan_weights(len(scans), resamples, seed)])
    of_folds = _fold_weights(scans, folds or {})
    systems = {name: _System.scored(name, matches, candidates, draws, of_folds) for name in tables}
    metric = "cpm" if matches else "auc"
    couples = list(combinations(tables, 2))
    found = [_differences(systems[a], systems[b], len(scans)) for a, b in couples]
    p_holm = holm([np.nan_to_num(differences[metric].p, nan=1.0) for differences in found]).tolist()
    pairs = [
        _pair(names, metric, differences, p, len(couples), systems, candidates, seed)
        for names, differences, p in zip(couples, found, p_holm, strict=True)
    ]
    scores = {name: system.summary(metric) for name, system in systems.items()}
    verdict = pairs[0].verdict
    if len(pairs) > 1:
        verdict = verdicts.of_all(
            metric,
            {name: score[metric] for name, score in scores.items()},
            {couple: differences[metric] for couple, differences in zip(couples, found, strict=True)},
            p_holm,
        )
    return Comparison(
        names=tuple(tables),
        metric=metric,
        num_scans=len(scans),
        num_nodules=len(next(iter(matches.values())).nodules) if matches else None,
        bootstrap={"resamples": resamples, "seed": seed},
        scores=scores,
        pairs=tuple(pairs),
        verdict=verdict,
        notes=(about_candidates, *_notes(metric, len(pairs), len(scans))),
    )


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


@dataclass(frozen=True, eq=False)
class _System:
    """One submission, scored.

    Args:
        values: `(1 + resamples,)` by metric, as `paired_difference` takes them.
        by_fold: `(folds,)` of the metric that decides.
        found: Booleans `(nodules,)`, at the operating point.
        right: Booleans `(candidates,)`, at a probability of 1/2.
        ranking: Scores `(candidates,)`.
    """

    values: dict[str, Floats]
    by_fold: Floats
    found: NDArray[np.bool_]
    right: NDArray[np.bool_]
    ranking: Floats

    @classmethod
    def scored(
        cls,
        name: str,
        matches: Mapping[str, Matches],
        candidates: LabelledCandidates | None,
        draws: Weights,
        of_folds: Weights,
    ) -> _System:
        values: dict[str, Floats] = {}
        found, right, by_fold, ranking = np.empty(0, bool), np.empty(0, bool), np.empty(0), np.empty(0)
        if candidates is not None:
            scores = candidates.scores[name]
            ranking = scores.ranking
            given = candidates.labels, ranking, scores.probability, candidates.scan
            values = resampled_metrics(*given, draws, scores.threshold)
            by_fold = resampled_metrics(*given, of_folds, scores.threshold)["auc"]
            right = (ranking > scores.threshold) == (candidates.labels == 1)
        if matches:
            sensitivity = matches[name].bootstrap(draws)
            by_rate = zip(RATES_PER_SCAN, sensitivity.T, strict=True)
            of_rates = {f"sensitivity_at_fps_{rate:g}": column for rate, column in by_rate}
            values = {"cpm": sensitivity.mean(axis=1), **of_rates, **values}
            by_fold = matches[name].bootstrap(of_folds).mean(axis=1)
            threshold = matches[name].curve().threshold_at(OPERATING_FPS_PER_SCAN)
            found = matches[name].nodules["probability"].to_numpy() >= threshold
        return cls(values, by_fold, found, right, ranking)

    def summary(self, metric: str) -> dict[str, Any]:
        """Every metric as seen, and the interval of the one that decides."""
        interval = interval_95(self.values[metric][1:]).tolist()
        seen = {name: float(values[0]) for name, values in self.values.items()}
        return {metric: seen[metric], f"{metric}_interval_95": interval, **seen}


def _pair(
    names: tuple[str, str],
    metric: str,
    differences: dict[str, Difference],
    p_holm: float,
    num_pairs: int,
    systems: Mapping[str, _System],
    candidates: LabelledCandidates | None,
    seed: int,
) -> Pair:
    a, b = (systems[name] for name in names)
    decides = differences[metric]
    verdict = verdicts.of_pair(names, metric, decides, p_holm, num_pairs)
    needed = decides.scans_needed(verdicts.LEVEL / num_pairs)
    few = decides.num_scans < verdicts.FEWEST_SCANS
    by_fold = a.by_fold - b.by_fold
    over_folds = None
    if len(by_fold) > 1 and np.isfinite(by_fold).all():
        beliefs = correlated_t(by_fold, ROPE, correlation=1 / len(by_fold))
        signs = bayesian_sign_test(by_fold, ROPE, seed)
        over_folds = OverFolds(metric, tuple(by_fold.tolist()), beliefs, signs)
    return Pair(
        *names,
        verdict=verdict,
        differences=differences,
        p_holm=None if few else p_holm,
        scans_needed=None if p_holm < verdicts.LEVEL or few else needed,
        delong=delong(candidates.labels, a.ranking, b.ranking, candidates.scan) if candidates else None,
        mcnemar_nodules=mcnemar(a.found, b.found) if metric == "cpm" else None,
        mcnemar_candidates=mcnemar(a.right, b.right) if candidates else None,
        over_folds=over_folds,
    )


def _differences(a: _System, b: _System, num_scans: int) -> dict[str, Difference]:
    return {name: paired_difference(values, b.values[name], num_scans) for name, values in a.values.items()}


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


def _notes(metric: str, num_pairs: int, num_scans: int) -> list[str]:
    notes = [_OF_TESTS, _OF_METRICS.format(metric=verdicts.IN_WORDS[metric])]
    if num_pairs > 1:
        notes.append(f"Whether a pair differs is decided at 5 % for all {num_pairs} pairs together (Holm).")
    if num_scans < FEW_SCANS:
        notes.append(f"Intervals from {num_scans} scans are rough.")
    return notes
