"""Two of the systems of a comparison: how far apart they are, by every metric and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna_cls.judging import verdicts
from luna_cls.judging.labelled import LabelledCandidates
from luna_cls.judging.paired_bootstrap import Difference, paired_difference
from luna_cls.judging.scored_system import OPERATING_FPS_PER_SCAN, ScoredSystem
from luna_cls.judging.significance import (
    Beliefs,
    DeLong,
    McNemar,
    bayesian_sign_test,
    correlated_t,
    delong,
    mcnemar,
)

Floats = NDArray[np.float64]

ROPE = 0.01  # a metric that differs by less makes no difference (Benavoli et al. 2017)


@dataclass(frozen=True)
class OverFolds:
    """A metric fold by fold of a cross-validation, and what to believe after it.

    Args:
        metric: The one that decides.
        differences: Of each fold, mean over seeds.
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
        scans_needed: To tell them apart; None if they are, if nothing differs, or if it takes more seeds.
        seeds_needed: Likewise; None if it takes more scans, or if there is one seed.
        delong: Of labelled candidates, over scans; None where there is no AUC, and with several seeds.
        mcnemar_nodules: Nodules found at one false positive a scan each; None without annotations, and with
            several seeds.
        mcnemar_candidates: Labelled candidates told rightly at a probability of 1/2; None without labels, and
            with several seeds.
        over_folds: None if the submissions are not of one cross-validation.
    """

    a: str
    b: str
    verdict: str
    differences: dict[str, Difference]
    p_holm: float | None
    scans_needed: int | None
    seeds_needed: int | None
    delong: DeLong | None
    mcnemar_nodules: McNemar | None
    mcnemar_candidates: McNemar | None
    over_folds: OverFolds | None

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        return {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "differences": {name: found.summary() for name, found in self.differences.items()},
            "p_holm": self.p_holm,
            "scans_needed": self.scans_needed,
            "seeds_needed": self.seeds_needed,
            "delong": self.delong and self.delong.summary(),
            "mcnemar": self._mcnemar(),
            "over_folds": self.over_folds and self.over_folds.summary(),
        }

    def _mcnemar(self) -> dict[str, Any] | None:
        nodules, candidates = self.mcnemar_nodules, self.mcnemar_candidates
        if nodules is None and candidates is None:
            return None
        return {
            "nodules": nodules and {"fps_per_scan": OPERATING_FPS_PER_SCAN, **nodules._asdict()},
            "candidates": candidates and {"probability": 0.5, **candidates._asdict()},
        }


def differences_of(a: ScoredSystem, b: ScoredSystem, num_scans: int) -> dict[str, Difference]:
    """Of each metric, that of the first less that of the second."""
    return {name: paired_difference(values, b.values[name], num_scans) for name, values in a.values.items()}


def pair_of(
    names: tuple[str, str],
    metric: str,
    differences: dict[str, Difference],
    p_holm: float,
    num_pairs: int,
    systems: Mapping[str, ScoredSystem],
    candidates: LabelledCandidates | None,
    seed: int,
) -> Pair:
    """Puts together what is known of two systems.

    Args:
        names: Of the two.
        metric: The one that decides.
        differences: As `differences_of` gives them.
        p_holm: The p-value of the metric that decides, adjusted for all pairs.
        num_pairs: How many these are.
        systems: By name.
        candidates: None if there are no labels.
        seed: Of the draws of the sign test over folds.
    """
    a, b = (systems[name] for name in names)
    decides = differences[metric]
    few = decides.num_scans < verdicts.FEWEST_SCANS
    is_open = p_holm >= verdicts.LEVEL and not few
    level = verdicts.LEVEL / num_pairs
    return Pair(
        *names,
        verdict=verdicts.of_pair(names, metric, decides, p_holm, num_pairs),
        differences=differences,
        p_holm=None if few else p_holm,
        scans_needed=decides.scans_needed(level) if is_open else None,
        seeds_needed=decides.seeds_needed(level) if is_open else None,
        **_tests(a, b, candidates),
        over_folds=_over_folds(metric, a.by_fold - b.by_fold, seed),
    )


def _tests(a: ScoredSystem, b: ScoredSystem, candidates: LabelledCandidates | None) -> dict[str, Any]:
    """Tests of two lists of cases, which know of one training each."""
    found: dict[str, Any] = dict.fromkeys(("delong", "mcnemar_nodules", "mcnemar_candidates"))
    first, second = a.decisions, b.decisions
    if first is None or second is None:
        return found
    if len(first.found):
        found["mcnemar_nodules"] = mcnemar(first.found, second.found)
    if candidates is not None:
        found["mcnemar_candidates"] = mcnemar(first.right, second.right)
        found["delong"] = delong(candidates.labels, first.ranking, second.ranking, candidates.scan)
    return found


def _over_folds(metric: str, differences: Floats, seed: int) -> OverFolds | None:
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    beliefs = correlated_t(differences, ROPE, correlation=1 / len(differences))
    signs = bayesian_sign_test(differences, ROPE, seed)
    return OverFolds(metric, tuple(differences.tolist()), beliefs, signs)
