"""A system scored on many draws of the scans: all that a comparison with another takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_cls.judging.froc import RATES_PER_SCAN, Matches
from luna_cls.judging.labelled import LabelledCandidates
from luna_cls.judging.paired_bootstrap import paired_difference
from luna_cls.judging.resampled_metrics import resampled_balanced_accuracy, resampled_metrics
from luna_cls.judging.resampling import interval_95

Floats = NDArray[np.float64]
Weights = NDArray[np.int32]

OPERATING_FPS_PER_SCAN = 1.0
BALANCED = 0.5
AT_CHOSEN_THRESHOLD = "balanced_accuracy_at_chosen_threshold"
CURVE_FPS_PER_SCAN = 2.0 ** np.linspace(-4, 4, 129)  # 1/16 to 16, sixteen steps each time it doubles
_OF_RATES = np.searchsorted(CURVE_FPS_PER_SCAN, RATES_PER_SCAN)  # powers of two, all of them in it
_LEAST = {"mcc": -1.0}  # of a metric; that of others is 0
_MOST = {"log_loss": np.inf}  # likewise; 1


@dataclass(frozen=True, eq=False)
class Decisions:
    """What one system decides and how it ranks: tests of two lists of cases take this.

    Args:
        found: Booleans `(nodules,)`, at one false positive a scan; empty without annotations.
        right: Booleans `(candidates,)`, at a probability of 1/2; empty without labels.
        ranking: Scores `(candidates,)`.
    """

    found: NDArray[np.bool_]
    right: NDArray[np.bool_]
    ranking: Floats


@dataclass(frozen=True, eq=False)
class ScoredSystem:
    """One system, trained from one seed or several, in the same draws of the scans as all others.

    Args:
        values: `(seeds, 1 + resamples)` by metric, as `paired_difference` takes them.
        balanced: Likewise, of labelled candidates alone, as if half of them were nodules.
        by_fold: `(folds,)`, of the metric that decides, mean over seeds.
        curve: `(1 + resamples, rates)`, sensitivity at `CURVE_FPS_PER_SCAN`, mean over seeds; None without
            annotations.
        decisions: None of several seeds.
    """

    values: dict[str, Floats]
    balanced: dict[str, Floats]
    by_fold: Floats
    curve: Floats | None
    decisions: Decisions | None

    @classmethod
    def scored(
        cls,
        labels: Sequence[str],
        matches: Mapping[str, Matches],
        candidates: LabelledCandidates | None,
        metric: str,
        draws: Weights,
        of_folds: Weights,
    ) -> ScoredSystem:
        """Scores the tables of a system.

        Args:
            labels: Under which each seed's table is in `matches` and `candidates`.
            matches: What hit what; empty without annotations.
            candidates: None if there are no labels.
            metric: The one that decides.
            draws: `(1 + resamples, scans)`, how often each scan is drawn: once each in the first row.
            of_folds: `(folds, scans)`, which scans are of which fold.
        """
        values, balanced, by_fold, curves = [], [], [], []
        for label in labels:
            of_rates: dict[str, Floats] = {}
            if matches:
                curve = matches[label].bootstrap(draws, CURVE_FPS_PER_SCAN)
                of_rates = _at_rates(curve)
                curves.append(curve)
            values.append(of_rates | _metrics(candidates, label, draws))
            balanced.append(_metrics(candidates, label, draws, BALANCED))
            if metric == "cpm":
                by_fold.append(matches[label].bootstrap(of_folds).mean(axis=1))
            else:
                by_fold.append(_metrics(candidates, label, of_folds)[metric])
        return cls(
            {name: np.stack([own[name] for own in values]) for name in values[0]},
            {name: np.stack([own[name] for own in balanced]) for name in balanced[0]},
            np.mean(by_fold, axis=0),
            np.mean(curves, axis=0) if curves else None,
            _decisions(matches.get(labels[0]), candidates, labels[0]) if len(labels) == 1 else None,
        )

    def froc(self) -> dict[str, list[float]] | None:
        """The curve, mean over seeds, with what the middle 95 % of draws of the scans lie between."""
        if self.curve is None:
            return None
        drawn = self.curve[1:]
        defined = drawn[np.isfinite(drawn[:, 0])]
        if not len(defined):
            defined = np.full((1, len(CURVE_FPS_PER_SCAN)), np.nan)
        lower, upper = np.percentile(defined, [2.5, 97.5], axis=0)
        return {
            "fps_per_scan": CURVE_FPS_PER_SCAN.tolist(),
            "sensitivity": self.curve[0].tolist(),
            "lower": lower.tolist(),
            "upper": upper.tolist(),
        }


def means(values: Mapping[str, Floats]) -> dict[str, float]:
    """Of each metric the mean over seeds, as seen; NaN where a seed does not define it.

    Args:
        values: `(seeds, 1 + resamples)` by metric.
    """
    return {name: float(of_metric[:, 0].mean()) for name, of_metric in values.items()}


def intervals_95(values: Mapping[str, Floats], num_scans: int) -> dict[str, tuple[float, float]]:
    """Of each metric the 95 % interval of the mean over seeds.

    With one seed the middle 95 % of draws of the scans. With several that of `Difference`, over scans and
    seeds together, kept within what the metric can be.

    Args:
        values: `(seeds, 1 + resamples)` by metric.
        num_scans: How many scans there are.
    """
    found = {}
    for name, of_metric in values.items():
        if len(of_metric) == 1:
            low, high = interval_95(of_metric[0, 1:]).tolist()
        else:
            bounds = paired_difference(of_metric, np.zeros_like(of_metric), num_scans).interval_95
            low, high = np.clip(bounds, _LEAST.get(name, 0.0), _MOST.get(name, 1.0)).tolist()
        found[name] = (low, high)
    return found


def _at_rates(curve: Floats) -> dict[str, Floats]:
    """The CPM, and what it is the mean of."""
    sensitivity = np.ascontiguousarray(curve[:, _OF_RATES])
    by_rate = zip(RATES_PER_SCAN, sensitivity.T, strict=True)
    return {"cpm": sensitivity.mean(axis=1)} | {
        f"sensitivity_at_fps_{at:g}": column for at, column in by_rate
    }


def _metrics(
    candidates: LabelledCandidates | None, label: str, draws: Weights, prevalence: float | None = None
) -> dict[str, Floats]:
    """Of labelled candidates, if there are."""
    if candidates is None:
        return {}
    labels, scan, scores = candidates.labels, candidates.scan, candidates.scores[label]
    found = resampled_metrics(
        labels, scores.ranking, scores.probability, scan, draws, scores.threshold, prevalence
    )
    if candidates.chosen:
        called = candidates.chosen[label] > 0
        found[AT_CHOSEN_THRESHOLD] = resampled_balanced_accuracy(labels, called, scan, draws)
    return found


def _decisions(matches: Matches | None, candidates: LabelledCandidates | None, label: str) -> Decisions:
    found, right, ranking = np.empty(0, bool), np.empty(0, bool), np.empty(0)
    if matches is not None:
        threshold = matches.curve().threshold_at(OPERATING_FPS_PER_SCAN)
        found = matches.nodules["probability"].to_numpy() >= threshold
    if candidates is not None:
        scores = candidates.scores[label]
        ranking = scores.ranking
        right = (ranking > scores.threshold) == (candidates.labels == 1)
    return Decisions(found, right, ranking)
