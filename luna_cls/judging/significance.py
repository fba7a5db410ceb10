"""Tests of whether two systems differ: each a pure function of arrays, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import binom, norm, rankdata, t

from luna_cls.errors import InputError

Floats = NDArray[np.float64]

_Z_95 = float(norm.ppf(0.975))
_ROUNDING = 1e-12  # far below what one candidate changes


@dataclass(frozen=True, eq=False)
class DeLong:
    """Two AUCs on the same candidates.

    Args:
        auc_a: Of the first scores.
        auc_b: Of the second.
        covariance: float64 `(2, 2)`, of the two AUCs; NaN if a class has a single cluster.
        standard_error: Of `difference`; 0 where all scans show the same. There is then neither interval nor
            p-value of a difference: what never differs here may differ elsewhere.
    """

    auc_a: float
    auc_b: float
    covariance: Floats
    standard_error: float

    @property
    def difference(self) -> float:
        """How much larger the first AUC is."""
        return self.auc_a - self.auc_b

    @property
    def interval_95(self) -> tuple[float, float]:
        """Of the difference, by the normal distribution; NaN where there is none."""
        if self.difference != 0 and self.standard_error == 0:
            return np.nan, np.nan
        half = _Z_95 * self.standard_error
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """Two-sided, of no difference; 1 if the scores rank all pairs alike."""
        if self.standard_error == 0:
            return 1.0 if self.difference == 0 else np.nan
        return float(2 * norm.sf(abs(self.difference) / self.standard_error))

    def summary(self) -> dict[str, Any]:
        """What `comparison.json` holds of it."""
        intervals = [
            auc_interval_95(auc, float(variance))
            for auc, variance in zip((self.auc_a, self.auc_b), np.diag(self.covariance), strict=True)
        ]
        return {
            "auc_a": self.auc_a,
            "auc_a_interval_95": intervals[0],
            "auc_b": self.auc_b,
            "auc_b_interval_95": intervals[1],
            "difference": self.difference,
            "interval_95": self.interval_95,
            "p": self.p,
        }


class McNemar(NamedTuple):
    """Cases that one system alone gets right, and the p-value of both being as likely to."""

    only_a: int
    only_b: int
    p: float


class Beliefs(NamedTuple):
    """Probabilities that add up to 1: of one being better by more than the rope, and of neither being so."""

    a_better: float
    equivalent: float
    b_better: float


def delong(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, clusters: ArrayLike | None = None
) -> DeLong:
    """Compares the AUCs of two scores of the same candidates, ties counting half.

    DeLong's variance takes candidates to be independent. Candidates of one scan are not: give `clusters`,
    and the variance is that over scans (Obuchowski 1997), the same where each cluster is one candidate.

    Args:
        labels: `(n,)`, 1 for a nodule, 0 for the rest.
        scores_a: `(n,)`, higher for more like a nodule.
        scores_b: `(n,)`, likewise.
        clusters: `(n,)`, whose each candidate is; by default every candidate is a cluster of its own.

    Raises:
        InputError: If the shapes differ, a score is not finite, or a class is not there.

    Sources:
        DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44:837; by midranks, Sun & Xu (2014), IEEE Signal
        Processing Letters 21:1389; clusters, Obuchowski (1997), Biometrics 53:567.
    """
    is_nodule = np.asarray(labels).reshape(-1) == 1
    scores = [np.asarray(given, float).reshape(-1) for given in (scores_a, scores_b)]
    groups = np.arange(len(is_nodule)) if clusters is None else np.asarray(clusters).reshape(-1)
    if any(len(given) != len(is_nodule) for given in (*scores, groups)):
        raise InputError(
            "Labels, scores and clusters must be as many. Received: "
            f"{len(is_nodule)} labels, {len(scores[0])} and {len(scores[1])} scores, {len(groups)} clusters."
        )
    if not all(np.isfinite(given).all() for given in scores):
        raise InputError("AUCs are compared on finite scores. Received: some that are not.")
    if is_nodule.all() or not is_nodule.any():
        raise InputError(
            "An AUC takes nodules and others. "
            f"Received: {int(is_nodule.sum())} nodules among {len(is_nodule)} candidates."
        )
    _, cluster = np.unique(groups, return_inverse=True)
    parts = np.stack([_structural_components(is_nodule, given) for given in scores])
    auc = parts[:, is_nodule].mean(axis=1)
    # Of the difference by itself, so that equal scores have exactly none.
    variance = _clustered_covariance(parts[:1] - parts[1:], is_nodule, cluster)[0, 0]
    covariance = _clustered_covariance(parts, is_nodule, cluster)
    error = float(np.sqrt(max(variance, 0.0)))
    return DeLong(float(auc[0]), float(auc[1]), covariance, 0.0 if error < _ROUNDING else error)


def auc_interval_95(auc: float, variance: float) -> tuple[float, float]:
    """The 95 % interval of one AUC, symmetric in its log odds, so that it stays between 0 and 1.

    NaN for an AUC of 0 or 1, whose variance DeLong's components do not tell.

    Source: Qin & Hotilovac (2008), Statistical Methods in Medical Research 17:207.
    """
    if not 0 < auc < 1:
        return np.nan, np.nan
    half = _Z_95 * np.sqrt(variance) / (auc * (1 - auc))
    return float(expit(logit(auc) - half)), float(expit(logit(auc) + half))


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Whether one of two systems is right more often, on the same cases.

    The p-value is McNemar's mid-p, two-sided, for any number of cases: the exact test's less half the
    probability of what was seen. The exact test rejects too rarely, chi-square too often when few cases
    differ and, with its continuity correction, too rarely again; mid-p keeps near its level throughout.

    Args:
        correct_a: Booleans `(n,)`.
        correct_b: Booleans `(n,)`, of the same cases.

    Raises:
        InputError: If the shapes differ.

    Source: Fagerland, Lydersen & Laake (2013), BMC Medical Research Methodology 13:91.
    """
    first, second = np.asarray(correct_a, bool).reshape(-1), np.asarray(correct_b, bool).reshape(-1)
    if len(first) != len(second):
        raise InputError(f"McNemar's test takes pairs. Received: {len(first)} and {len(second)} cases.")
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    fewer, either = min(only_a, only_b), only_a + only_b
    mid_p = 2 * binom.cdf(fewer, either, 0.5) - binom.pmf(fewer, either, 0.5)
    return McNemar(only_a, only_b, min(1.0, float(mid_p)))  # rounding can carry it past 1


def holm(p_values: ArrayLike) -> Floats:
    """P-values `(n,)` adjusted for their number: one below 0.05 is significant among all `n`.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    p = np.asarray(p_values, float).reshape(-1)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def correlated_t(differences: ArrayLike, rope: float, correlation: float) -> Beliefs:
    """What to believe of two systems after a cross-validation.

    Folds share what they were trained on, so their differences are correlated: with k folds by 1/k, the
    share of the test set (Nadeau & Bengio 2003).

    Args:
        differences: `(folds,)`, of a metric, higher for the first system being better.
        rope: Half the width of the region of practical equivalence: differences this small do not matter.
        correlation: Between the differences of two folds, from 0 to less than 1.

    Raises:
        InputError: If there are fewer than two folds, or an argument is out of range.

    Source: Corani & Benavoli (2015), Machine Learning 100:285.
    """
    given = _differences(differences, rope, at_least=2)
    if not 0 <= correlation < 1:
        raise InputError(f"The correlation of folds lies from 0 to less than 1. Received: {correlation:g}.")
    mean, scale = float(given.mean()), error_over_folds(given, correlation)
    if scale == 0:
        return Beliefs(float(mean > rope), float(abs(mean) <= rope), float(mean < -rope))
    posterior = t(len(given) - 1, mean, scale)
    a_better, b_better = float(posterior.sf(rope)), float(posterior.cdf(-rope))
    return Beliefs(a_better, 1 - a_better - b_better, b_better)


def error_over_folds(differences: Floats, correlation: float) -> float:
    """Standard error of the mean of correlated differences `(folds,)`, as `correlated_t` has it."""
    return float(np.sqrt((1 / len(differences) + correlation / (1 - correlation)) * differences.var(ddof=1)))


def bayesian_sign_test(differences: ArrayLike, rope: float, seed: int = 0, draws: int = 50_000) -> Beliefs:
    """What to believe of two systems after several data sets, or the folds of a cross-validation.

    It takes differences over data sets as well as over folds. Folds it takes to be independent, and of each
    only the sign, so that over them it is the weaker companion of `correlated_t`.

    How often each is better, and how often they are equivalent, follow a Dirichlet distribution, to which
    one data set of equivalence is added beforehand. Each probability is that of being the most frequent of
    the three on the next data sets, or folds.

    Args:
        differences: `(datasets,)` or `(folds,)`, of a metric, higher for the first system being better.
        rope: Half the width of the region of practical equivalence: differences this small do not matter.
        seed: Same seed, same draws.
        draws: From the posterior; 50,000 leave a standard error of 0.002 or less.

    Raises:
        InputError: If there is no data set, or the rope is negative.

    Sources: Benavoli, Mangili, Corani, Zaffalon & Ruggeri (2014), ICML; Benavoli, Corani, Demšar & Zaffalon
        (2017), Journal of Machine Learning Research 18(77):1.
    """
    given = _differences(differences, rope, at_least=1)
    counts = np.array([(given > rope).sum(), (np.abs(given) <= rope).sum() + 1, (given < -rope).sum()])
    # A kind that was never seen, and has no prior, has probability 0; a gamma variable of shape 0 is 0.
    drawn = np.random.default_rng(seed).standard_gamma(counts, (draws, 3))
    shares = np.bincount(drawn.argmax(axis=1), minlength=3) / draws
    return Beliefs(*map(float, shares))


def _structural_components(is_nodule: NDArray[np.bool_], scores: Floats) -> Floats:
    """Of each candidate `(n,)`, the share of the other class that it stands on the right side of."""
    overall = rankdata(scores)
    parts = np.empty(len(scores))
    num_nodules = int(is_nodule.sum())
    parts[is_nodule] = (overall[is_nodule] - rankdata(scores[is_nodule])) / (len(scores) - num_nodules)
    parts[~is_nodule] = 1 - (overall[~is_nodule] - rankdata(scores[~is_nodule])) / num_nodules
    return parts


def _clustered_covariance(parts: Floats, is_nodule: NDArray[np.bool_], cluster: NDArray[np.int64]) -> Floats:
    """Covariance `(k, k)` of the means of components `(k, n)`, candidates of one cluster hanging together."""
    number = int(cluster.max()) + 1
    sums, sizes = [], []
    for of_class in (is_nodule, ~is_nodule):
        own = cluster[of_class]
        centred = parts[:, of_class] - parts[:, of_class].mean(axis=1, keepdims=True)
        sums.append(np.stack([np.bincount(own, row, minlength=number) for row in centred]))
        sizes.append(np.bincount(own, minlength=number))
    total = np.zeros((len(parts), len(parts)))
    for summed, size in zip(sums, sizes, strict=True):
        total += _spread(int((size > 0).sum())) / size.sum() ** 2 * (summed @ summed.T)
    crossed = sums[0] @ sums[1].T / (sizes[0].sum() * sizes[1].sum())
    if crossed.any():  # only where a cluster has both classes, so there are as many clusters as it takes
        total += _spread(number) * (crossed + crossed.T)
    return total


def _spread(clusters: int) -> float:
    """The correction for a mean taken from the clusters themselves."""
    return clusters / (clusters - 1) if clusters > 1 else np.nan


def _differences(differences: ArrayLike, rope: float, at_least: int) -> Floats:
    given = np.asarray(differences, float).reshape(-1)
    finite = int(np.isfinite(given).sum())
    if len(given) < at_least or finite < len(given) or not rope >= 0:
        raise InputError(
            f"This test takes {at_least} differences or more, all finite, and a rope of 0 or more. "
            f"Received: {len(given)} differences, {finite} of them finite; rope {rope:g}."
        )
    return given
