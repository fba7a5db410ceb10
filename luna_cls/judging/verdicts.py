"""What a comparison comes to, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from luna_cls.judging.paired_bootstrap import Difference

LEVEL = 0.05
_ROUNDING = 1e-12  # far below what one candidate changes
FEWEST_SCANS = 10  # with fewer a bootstrap hardly varies, and no verdict is given
IN_WORDS = {  # of each metric that may decide; of all of them, more is better
    "cpm": "CPM",
    "auc": "AUC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
}


def of_pair(
    names: tuple[str, str],
    metric: str,
    found: Difference,
    p_holm: float,
    num_pairs: int,
) -> str:
    """Says which of two systems is better and by how much; or that these scans do not tell.

    Args:
        names: Of the two.
        metric: Which the difference is of, one of `IN_WORDS`.
        found: The first system's metric less the second's.
        p_holm: The p-value adjusted for all pairs that were compared; it decides.
        num_pairs: How many these are.
    """
    a, b = names
    if found.difference == 0:
        return (
            f"{a} and {b} cannot be told apart with {_these(found)}: they have the same {IN_WORDS[metric]}."
        )
    if found.difference < 0:
        a, b = b, a
    if found.num_scans < FEWEST_SCANS:
        return (
            f"{a} and {b} cannot be told apart with {found.num_scans} scans alone: {a} is ahead by "
            f"{_amount(metric, found)}, but a verdict takes {FEWEST_SCANS} scans or more."
        )
    if p_holm < LEVEL:
        among = f"; {_p(p_holm)} among {num_pairs} pairs" if num_pairs > 1 else ""
        return f"{a} is better than {b} by {_amount(metric, found, among)}."
    sentence = (
        f"{a} and {b} cannot be told apart with {_these(found)}: {a} is ahead by {_amount(metric, found)}"
    )
    if found.p < LEVEL:
        sentence += f", which is not enough among {num_pairs} pairs"
    return f"{sentence}.{_needed(found, LEVEL / num_pairs)}"


def of_all(
    metric: str,
    scores: Mapping[str, float],
    pairs: Mapping[tuple[str, str], Difference],
    p_holm: Sequence[float],
) -> str:
    """Names the best of several systems, whom it beats, and whom it cannot be told from.

    Where several are equally good, all of them are named; they beat whom each of them beats.

    Args:
        metric: One of `IN_WORDS`.
        scores: The metric of each system.
        pairs: The difference of each pair of them, first less second.
        p_holm: Of each pair, adjusted for all.
    """
    highest = max(scores.values())
    best = [name for name, score in scores.items() if score >= highest - _ROUNDING]
    any_pair = next(iter(pairs.values()))
    # Of each other system, the pairs with the best; and whether all of them are told apart.
    against: dict[str, Difference] = {}
    is_beaten: dict[str, bool] = {}
    for ((a, b), found), p in zip(pairs.items(), p_holm, strict=True):
        if (a in best) != (b in best):
            other = b if a in best else a
            against[other] = found
            is_beaten[other] = is_beaten.get(other, True) and p < LEVEL and found.num_scans >= FEWEST_SCANS
    word, score = IN_WORDS[metric], f"{highest:.3f}"
    if len(best) == 1:
        sentences = [f"{best[0]} has the highest {word}, {score}."]
        beats, cannot = "It is better than", "It cannot be told from"
    else:
        rank = "" if len(best) == len(scores) else ", the highest"
        sentences = [f"{listed(best)} have the same {word}, {score}{rank}."]
        beats, cannot = "Each of them is better than", "Not each of them can be told from"
    beaten = [
        # How sure the difference is depends on the pair, so that of several best only its size is told.
        f"{other} by {_amount(metric, found) if len(best) == 1 else _size(metric, found)}"
        for other, found in against.items()
        if is_beaten[other]
    ]
    alike = [other for other in against if not is_beaten[other]]
    if beaten:
        sentences.append(f"{beats} {listed(beaten)}.")
    if alike:
        sentences.append(f"{cannot} {listed(alike)} with {_these(any_pair)}.")
    if any_pair.num_scans < FEWEST_SCANS:
        sentences.append(f"A verdict takes {FEWEST_SCANS} scans or more.")
    return " ".join(sentences)


def _these(found: Difference) -> str:
    seeds = f" and {found.num_seeds:,} seeds" if found.num_seeds > 1 else ""
    return f"these {found.num_scans:,} scans{seeds}"


def _needed(found: Difference, level: float) -> str:
    """What would show a difference that these scans and seeds do not; empty where that cannot be told."""
    for number, of in ((found.scans_needed(level), "scans"), (found.seeds_needed(level), "seeds")):
        if number:
            return f" About {number:,} {of} would be needed."
    if found.num_seeds > 1 and np.isfinite(found.standard_error):
        return " More scans and more seeds would be needed."
    return ""


def _amount(metric: str, found: Difference, more: str = "") -> str:
    """`0.021 CPM (95 % 0.004 to 0.039)`, as seen by the better of the two."""
    low, high = found.interval_95 if found.difference > 0 else (-found.interval_95[1], -found.interval_95[0])
    digits = _digits(found)
    bounds = f"95 % {low:.{digits}f} to {high:.{digits}f}" if low < high else "no interval from so few scans"
    return f"{_size(metric, found)} ({bounds}{more})"


def _size(metric: str, found: Difference) -> str:
    return f"{abs(found.difference):.{_digits(found)}f} {IN_WORDS[metric]}"


def _digits(found: Difference) -> int:
    return min(max(3, int(np.ceil(-np.log10(abs(found.difference))))), 9)


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def listed(names: Sequence[str]) -> str:
    """`A`; `A and B`; `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
