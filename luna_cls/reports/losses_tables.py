"""Tables of a comparison of losses: who is ahead, what accuracy hides, what calibration mends, the cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from luna_cls.judging.verdicts import listed
from luna_cls.reports.blocks import Block, Section, Table, interval, number, percent, plural
from luna_cls.reports.comparison_page import capital, name_of
from luna_cls.reports.terminal import NEVER

_OTHERS = ("cpm", "auc", "average_precision")
_BY_SHARE = ("accuracy", "precision", "f1", "average_precision", "log_loss")
_SHORT = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "f1": "F1",
    "average_precision": "Average precision",
    "log_loss": "Log loss",
}
_HALF = "1\u00a0:\u00a01"
_CHOSEN = "balanced_accuracy_at_chosen_threshold"
_CALIBRATION = {
    "ece": "ECE",
    "ece_of_nodules": "ECE of nodules",
    "log_loss": "Log loss",
    "brier": "Brier score",
}
_MENDED = {"before": "before", "temperature": "temp.", "platt": "Platt"}
_TUNED_BY = {
    "grid": "Each value of its grid was trained to the end",
    "halving": "All of its grid were begun, and each time the better half went on (successive halving)",
}


def monitor_in_words(monitor: str) -> str:
    """A metric of validation as it is said: val_average_precision is average precision."""
    return name_of(monitor.removeprefix("val_"))


def ranking(found: Mapping[str, Any], order: Sequence[str]) -> Section:
    """The section on who is ahead, and how sure that is.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    metric, ranks = found["metric"], found.get("ranks") or {}
    others = [name for name in _OTHERS if name != metric and _is_known(found, name)]
    rows = []
    for name in order:
        rank, score = ranks.get(name) or {}, found["scores"].get(name) or {}
        rows.append(
            (
                name,
                _whole(rank.get("rank")),
                _of_ranks(rank.get("interval_95")),
                percent(rank.get("first"), 0),
                number(score.get(metric)),
                interval(_bounds(found, name, metric)),
                *(number(score.get(other)) for other in others),
            )
        )
    none = {"cpm": 0.0, **_no_skill(found, "natural")}
    rows.append((NEVER, "–", "–", "–", number(none.get(metric)), "–", *(number(none.get(o)) for o in others)))
    several = (found.get("num_seeds") or 1) > 1
    mean, over = (", as a mean over seeds", "scans and seeds") if several else ("", "scans")
    seen = "Mean" if several else "Value"
    table = Table(
        f"The losses by rank, beside always saying “no” ({_on_what(found)})",
        ("Loss", "Seen", "95 %", "First in", seen, "95 %", *(capital(name_of(name)) for name in others)),
        rows,
        groups=(
            ("", 1),
            ("Rank", 3),
            (capital(name_of(metric)), 2),
            *([("", len(others))] if others else ()),
        ),
    )
    draws = (found.get("bootstrap") or {}).get("resamples")
    text = (
        f"The {name_of(metric)} decides{mean}. “First in” is the share of "
        f"{f'{draws:,} ' if draws else ''}draws of {over} in which a loss comes first: one that wins in half "
        "of them is no sure winner."
    )
    if several:
        text += (
            " Draws of few seeds know no other seeds than these, so that ranks look surer than they are: the "
            "differences below are what decides."
        )
    return Section("ranking", "Which loss is ahead", (text,), [table])


def prevalence(found: Mapping[str, Any], order: Sequence[str]) -> Section:
    """The section on what metrics are worth here: as candidates are, and as if half were nodules.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    natural, balanced = _no_skill(found, "natural"), _no_skill(found, "balanced")
    measured = {metric for score in found["scores"].values() for metric in score}
    shown = [name for name in _BY_SHARE if name in measured]
    rows = []
    for name in [*order, NEVER]:
        here = natural if name == NEVER else found["scores"].get(name) or {}
        half = balanced if name == NEVER else (found.get("balanced") or {}).get(name) or {}
        cells = [_cell(metric, values.get(metric)) for metric in shown for values in (here, half)]
        rows.append((name, *cells))
    here = _ratio(found)
    by_share = Table(
        f"The same scores as nodules are among candidates ({here}), and as if half were nodules ({_HALF})",
        ("Loss", *([here, _HALF] * len(shown))),
        rows,
        groups=(("", 1), *((_SHORT[name], 2) for name in shown)),
    )
    blocks: list[Block] = [by_share, _decisions(found, order)]
    hint = (
        "Accuracy, precision and F1 are those of calling a nodule what has a probability above 1/2. For its "
        "log loss, always saying “no” gives every candidate the share of nodules as its probability."
    )
    if any(cell == "–" for row in rows for cell in row):
        hint += " –: not defined; precision needs a candidate that is called a nodule."
    return Section("prevalence", "What accuracy is worth here", _on_accuracy(found, order), blocks, hint)


def _on_accuracy(found: Mapping[str, Any], order: Sequence[str]) -> tuple[str, ...]:
    """Accuracy of the first loss, never without what always saying no gets."""
    idle, first = _no_skill(found, "natural").get("accuracy"), order[0]
    score = found["scores"].get(first) or {}
    got, share = score.get("accuracy"), found.get("prevalence")
    if idle is None or got is None or not share:
        return ()
    said = (
        f"{percent(share, 2)} of the candidates are on nodules, so that always saying “no” is right in "
        f"{percent(idle, 2)} and finds none of them."
    )
    words = "the same" if percent(got, 2) == percent(idle, 2) else "more" if got > idle else "less"
    said += f" The first in rank, {quoted(first)}, is right in {percent(got, 2)}: {words}."
    recall, specificity = score.get("recall"), score.get("specificity")
    if recall is not None and specificity is not None:
        said += (
            f" What accuracy cannot tell: at probability 1/2 it finds {percent(recall)} of the nodules and "
            f"dismisses {percent(specificity)} of the others."
        )
    half = (found.get("balanced") or {}).get(first, {}).get("accuracy")
    idle_half = _no_skill(found, "balanced").get("accuracy")
    if half is not None and idle_half is not None:
        said += (
            f" Were half of the candidates nodules, its accuracy would be {percent(half)}, and that of "
            f"always saying “no” {percent(idle_half)}."
        )
    return (said,)


def _decisions(found: Mapping[str, Any], order: Sequence[str]) -> Table:
    """Sensitivity and specificity, which do not hang on the share of nodules."""
    has_chosen = _is_known(found, _CHOSEN)
    none, rows = _no_skill(found, "natural"), []
    for name in [*order, NEVER]:
        score = none if name == NEVER else found["scores"].get(name) or {}
        cells = [percent(score.get("recall")), percent(score.get("specificity"))]
        for metric in ("balanced_accuracy", *([_CHOSEN] if has_chosen else ())):
            value = none.get(metric, none.get("balanced_accuracy")) if name == NEVER else score.get(metric)
            bounds = None if name == NEVER else _bounds(found, name, metric)
            cells += [percent(value), _percents(bounds)]
        rows.append((name, *cells))
    chosen = ("Balanced accuracy", "95 %") if has_chosen else ()
    return Table(
        "Decisions, whatever the share of nodules",
        ("Loss", "Sensitivity", "Specificity", "Balanced accuracy", "95 %", *chosen),
        rows,
        groups=(
            ("", 1),
            ("At probability 1/2", 4),
            *([("At the threshold chosen on validation", 2)] if has_chosen else ()),
        ),
    )


def calibration(found: Mapping[str, Any], order: Sequence[str]) -> Section | None:
    """The section on probabilities before and after a temperature and Platt's line; None if none was fitted.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    fitted = {
        name: found["calibration"][name] for name in order if (found.get("calibration") or {}).get(name)
    }
    if not fitted:
        return None
    rows = [
        (
            name,
            *(
                number((own.get(how) or {}).get(key), 3 if key == "ece_of_nodules" else 4)
                for key in _CALIBRATION
                for how in _MENDED
            ),
        )
        for name, own in fitted.items()
    ]
    table = Table(
        "How far probabilities are off: before, after a temperature, after Platt's line; less is better",
        ("Loss", *(list(_MENDED.values()) * len(_CALIBRATION))),
        rows,
        groups=(("", 1), *((label, len(_MENDED)) for label in _CALIBRATION.values())),
    )
    text = (
        "A loss shapes what a probability means, and calibration can mend that afterwards. Each model's was "
        "fitted to its validation scans and is measured on its test scans; the figures are means over seeds. "
        "ECE, the expected calibration error, is the mean distance of a probability from the share of "
        "nodules that it should be; that of nodules looks where they are. Both ways keep the order of a "
        "model's candidates, and with it what CPM, AUC and average precision say of that model."
    )
    return Section(
        "calibration",
        "Can the probabilities be taken at their word?",
        (text, *_mended(found, fitted)),
        [table],
    )


def _mended(found: Mapping[str, Any], fitted: Mapping[str, Any]) -> list[str]:
    """What the table says: whose probabilities are farthest off, what each way makes of it."""

    def errors(how: str) -> dict[str, float]:
        of_each = {name: (own.get(how) or {}).get("ece") for name, own in fitted.items()}
        return {name: value for name, value in of_each.items() if value is not None}

    before, ways = errors("before"), {how: errors(how) for how in ("temperature", "platt")}
    if not before:
        return []
    worst, best = max(before, key=lambda name: before[name]), min(before, key=lambda name: before[name])
    said = f"As trained, the probabilities of {quoted(worst)} are off by {number(before[worst], 4)}"
    if best != worst:
        said += f", farthest of all, those of {quoted(best)} by {number(before[best], 4)}, least of all"
    after = [f"{number(values[worst], 4)} {words}" for how, words in _AFTER if worst in (values := ways[how])]
    said += f". The former are off by {' and '.join(after)}." if after else "."
    losses = {entry["label"]: entry["name"] for entry in found.get("losses") or ()}
    if losses.get(worst) == "focal":
        said += (
            " That is what a focal loss does: what is nearly sure costs it next to nothing, so that its "
            "probabilities stay near 1/2."
        )
    return [said]


_AFTER = (("temperature", "after one temperature"), ("platt", "after Platt's slope and intercept"))


def cost(found: Mapping[str, Any], order: Sequence[str]) -> Section | None:
    """The section on what each loss cost, its tuning included; None if nothing is known.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    costs = {name: found["cost"][name] for name in order if (found.get("cost") or {}).get(name)}
    if not costs:
        return None
    seconds = {name: own.get("seconds") for name, own in costs.items()}
    least = min((value for value in seconds.values() if value), default=None)
    is_tuned = any(own.get("tuning_trainings") for own in costs.values())
    rows = []
    for name, own in costs.items():
        took = seconds[name]
        counts = ("trainings", "cubes", *(("tuning_trainings", "tuning_cubes") if is_tuned else ()))
        times = f"{took / least:.2f} ×" if took and least else "–"
        rows.append((name, *(_count(own.get(key)) for key in counts), _duration(took), times))
    table = Table(
        "What each loss cost",
        (
            "Loss",
            *(("Trainings", "Cube-epochs") * (2 if is_tuned else 1)),
            "Of both" if is_tuned else "In all",
            "Of the fastest",
        ),
        rows,
        groups=(("", 1), ("Comparison", 2), *([("Tuning", 2)] if is_tuned else ()), ("Time", 2)),
    )
    text = (
        "A cube-epoch is a cube trained on once; each counts as often as it was seen. Time is that of the "
        "steps of training, added up, and hangs on what else the machine did."
    )
    tried = _tuning(found, order)
    blocks: list[Block] = [table, *([tried[1]] if tried else ())]
    return Section("cost", "What it cost", (text, *(tried[0] if tried else ())), blocks)


def _tuning(found: Mapping[str, Any], order: Sequence[str]) -> tuple[list[str], Table] | None:
    """How parameters were chosen, and what was tried of each loss, the turns of the folds taken together."""
    tuning = found.get("tuning")
    if not tuning:
        return None
    trials = {name: own for name in order if (own := (tuning.get("trials") or {}).get(name))}
    by, rows = monitor_in_words(tuning["monitor"]), []
    for name, own in trials.items():
        tried: dict[str, list[Mapping[str, Any]]] = {}
        for trial in own:
            tried.setdefault(in_words(trial["parameters"]) or "as given", []).append(trial)
        for parameters, same in tried.items():
            scores = [trial["score"] for trial in same if trial["score"] is not None]
            epochs = sorted({trial["epochs"] for trial in same})
            rows.append(
                (
                    f"{name}: {parameters}",
                    " or ".join(f"{count:,}" for count in epochs),
                    number(fmean(scores) if scores else None),
                    _chosen([bool(trial["chosen"]) for trial in same]),
                )
            )
    how = _TUNED_BY.get(tuning["method"], f"Parameters were tuned by {tuning['method']}")
    text = f"Tuning chose parameters by the {by} on validation candidates, never on test. {how}."
    idle = [name for name in order if name not in trials]
    if idle:
        text += f" Nothing was tuned of {listed([quoted(name) for name in idle])}."
    columns = ("Tried", "Epochs", f"{capital(by)}, validation", "Chosen")
    return [text], Table("What tuning tried", columns, rows)


def _chosen(times: Sequence[bool]) -> str:
    return ("yes" if times[0] else "no") if len(times) == 1 else f"{sum(times)} of {len(times)} turns"


def in_words(parameters: Mapping[str, Any]) -> str:
    """Parameters of a loss: gamma = 5, apply_class_balancing = true."""
    return ", ".join(
        f"{name} = {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in parameters.items()
    )


def quoted(name: str) -> str:
    """A loss in a sentence: in quotes where its name has a comma."""
    return f"“{name}”" if "," in name else name


def _is_known(found: Mapping[str, Any], metric: str) -> bool:
    return any((found["scores"].get(name) or {}).get(metric) is not None for name in found["names"])


def _bounds(found: Mapping[str, Any], name: str, metric: str) -> Sequence[float | None] | None:
    return ((found.get("intervals_95") or {}).get(name) or {}).get(metric)


def _no_skill(found: Mapping[str, Any], share: str) -> Mapping[str, Any]:
    return (found.get("no_skill") or {}).get(share) or {}


def _ratio(found: Mapping[str, Any]) -> str:
    share = found.get("prevalence")
    return f"1\u00a0:\u00a0{(1 - share) / share:,.0f}" if share else "as they are"


def _on_what(found: Mapping[str, Any]) -> str:
    seeds = found.get("num_seeds") or 1
    return f"{plural(found['num_scans'], 'scan')}, {plural(seeds, 'seed')}"


def _cell(metric: str, value: float | None) -> str:
    if metric == "accuracy":
        return percent(value, 2)
    return number(value, 4 if metric == "log_loss" else 3)


def _percents(bounds: Sequence[float | None] | None) -> str:
    if bounds is None or None in bounds:
        return "–"
    return " to ".join(percent(bound).removesuffix(" %") for bound in bounds)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _of_ranks(bounds: Sequence[float | None] | None) -> str:
    if bounds is None or None in bounds:
        return "–"
    return " to ".join(f"{bound:g}" for bound in bounds)


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
