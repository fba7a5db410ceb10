"""The page of a comparison of losses: which to use, how sure that is, and what accuracy hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luna_cls.errors import InputError
from luna_cls.reports import losses_figures, losses_tables
from luna_cls.reports.blocks import Block, Listing, Page, Section, Table, interval, number, plural
from luna_cls.reports.comparison_page import decided_by, differences, name_of, notes, pair_detail
from luna_cls.reports.evidence import need, read_json, warn_of_few
from luna_cls.reports.losses_tables import in_words, quoted
from luna_cls.reports.terminal import ranked
from luna_cls.reports.viewer import Cubes

_MOST_MISSING = 4  # trainings named one by one
_KEYS = ("names", "metric", "verdict", "pairs", "scores", "num_scans", "losses")


def losses_page(folder: Path, _cubes: Cubes) -> Page:
    """Reads a comparison of losses into a page.

    Args:
        folder: As `luna-cls compare` makes it, finished: compare.json, comparison.json and `runs/`.

    Raises:
        InputError: If it is not finished, or a file is damaged.
    """
    path = folder / "comparison.json"
    found = read_json(path)
    if found is None:
        raise InputError(
            f"The comparison {folder} is not finished: it has no comparison.json. Go on with it: luna-cls "
            "compare with --resume."
        )
    need(found, path, *_KEYS)
    for pair in found["pairs"]:
        need(pair, path, "a", "b", "verdict", "differences")
    order = ranked(found)
    found = {**found, "pairs": _by_rank(found["pairs"], order)}
    sections = [
        losses_tables.ranking(found, order),
        losses_tables.prevalence(found, order),
        _differences(found),
        _seeds(found, order),
        _curves(folder, found, order),
        losses_tables.calibration(found, order),
        losses_tables.cost(found, order),
        _pairs(found),
        notes(found),
        _done(folder, found),
    ]
    return Page(
        kind="Comparison of losses",
        title=" · ".join(found["names"]),
        verdict=found["verdict"],
        facts=_facts(found, order),
        warnings=_warnings(found),
        sections=[section for section in sections if section is not None],
    )


def _by_rank(pairs: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[Mapping[str, Any]]:
    """Pairs with the first loss first, then those with the second."""
    return sorted(pairs, key=lambda pair: sorted(order.index(pair[side]) for side in "ab"))


def _facts(found: Mapping[str, Any], order: Sequence[str]) -> list[tuple[str, str, str]]:
    metric, facts = found["metric"], []
    for name in order:
        bounds = ((found.get("intervals_95") or {}).get(name) or {}).get(metric)
        word = f", 95\u00a0%: {interval(bounds)}" if bounds and None not in bounds else ""
        facts.append(
            (name, number((found["scores"].get(name) or {}).get(metric)), f"{name_of(metric)}{word}")
        )
    nodules, candidates = found.get("num_nodules"), found.get("candidates")
    of_scans = [] if nodules is None else [plural(nodules, "nodule")]
    if candidates is not None:
        of_scans.append(plural(candidates, "candidate"))
    facts.append(("Scans", f"{found['num_scans']:,}", ", ".join(of_scans)))
    facts.append(("Seeds", f"{found.get('num_seeds') or 1:,}", "the same for every loss"))
    return facts


def _warnings(found: Mapping[str, Any]) -> list[str]:
    warnings = [*map(str, found.get("warnings") or ()), *warn_of_few(found["num_scans"])]
    missing = found.get("missing") or []
    warnings += [f"Missing: {_training(entry)}: {entry['reason']}" for entry in missing[:_MOST_MISSING]]
    if len(missing) > _MOST_MISSING:
        rest = plural(len(missing) - _MOST_MISSING, "further training")
        warnings.append(f"Missing: {rest}, as failures.csv says.")
    return list(dict.fromkeys(warnings))


def _training(entry: Mapping[str, Any]) -> str:
    return f"{quoted(entry['loss'])}, seed {entry['seed']}, test {_folds(entry['folds'])}"


def _folds(folds: str | Sequence[int]) -> str:
    """Folds that are tested together, as 0+1+2 or one by one."""
    numbers = folds.split("+") if isinstance(folds, str) else [str(fold) for fold in folds]
    return f"fold{'' if len(numbers) == 1 else 's'} {', '.join(numbers)}"


def _differences(found: Mapping[str, Any]) -> Section:
    drawn = differences(found)
    return Section("differences", "How far apart they are", (decided_by(found),), [drawn] if drawn else [])


def _seeds(found: Mapping[str, Any], order: Sequence[str]) -> Section | None:
    drawn = losses_figures.by_seed(found, order)
    if drawn is None:
        return None
    text = "A training begun from other random numbers ends elsewhere. This is how far, of each loss."
    return Section("seeds", "How much is luck", (text,), [drawn])


def _curves(folder: Path, found: Mapping[str, Any], order: Sequence[str]) -> Section | None:
    drawn = (losses_figures.validation(folder, found, order), losses_figures.froc(found, order))
    blocks: list[Block] = [one for one in drawn if one is not None]
    return Section("curves", "Curves", (), blocks) if blocks else None


def _pairs(found: Mapping[str, Any]) -> Section | None:
    seeds = found.get("num_seeds") or 1
    blocks: list[Block] = [pair_detail(pair, found["metric"], seeds) for pair in found["pairs"]]
    over = "scans" if seeds == 1 else "scans and seeds"
    text = (
        f"Every metric of each two losses, with intervals over {over}. p in a heading is adjusted for all "
        "pairs."
    )
    return Section("pairs", "Pair by pair", (text,), blocks) if blocks else None


def _done(folder: Path, found: Mapping[str, Any]) -> Section:
    blocks: list[Block] = [_losses(found["losses"], is_tuned=bool(found.get("tuning")))]
    turns = found.get("turns") or []
    if turns:
        rows = [
            (
                str(position),
                _folds(turn["test_folds"]),
                _folds(turn["validation_folds"])
                if turn["validation_folds"]
                else "none: the last epoch is kept",
            )
            for position, turn in enumerate(turns, 1)
        ]
        columns = ("Turn", "Tested", "Chose the epoch")
        blocks.append(Table("What the folds were for; the others trained", columns, rows, of_words=True))
    settings = folder / "compare.toml"
    if settings.is_file():
        blocks.append(Listing("Settings of all runs (compare.toml)", settings.read_text(encoding="utf-8")))
    seeds = ", ".join(map(str, found.get("seeds") or ()))
    per_loss = len(found.get("seeds") or ()) * len(turns)
    text = (
        "Every loss trained the same network on the same folds"
        + (f", from the same seeds ({seeds})" if seeds else "")
        + ", with the same first weights, the same order of cubes and at most as many epochs"
        + (f": {plural(per_loss, 'training')} of each." if per_loss else ".")
        + " What a model is tested on, it has not seen."
    )
    hint = (
        "To watch and compare the trainings: tensorboard --logdir OUT/runs (OUT is this folder). Its tab "
        "HParams has a row for each, with its settings and its best epoch."
    )
    return Section("done", "What was done", (text,), blocks, hint)


def _losses(losses: Sequence[Mapping[str, Any]], *, is_tuned: bool) -> Table:
    rows = []
    for entry in losses:
        row = [entry["label"], entry["name"], in_words(entry.get("parameters") or {}) or "as they come"]
        if is_tuned:
            turns: dict[str, list[str]] = {}
            for folds, parameters in (entry.get("tuned") or {}).items():
                turns.setdefault(in_words(parameters), []).append(_folds(folds))
            row.append("; ".join(_on(words, on) for words, on in turns.items() if words) or "–")
        rows.append(row)
    columns = ("Called here", "Loss", "Parameters", *(["Chosen by tuning"] if is_tuned else []))
    return Table("The losses", columns, rows, of_words=True)


def _on(parameters: str, folds: Sequence[str]) -> str:
    return f"{parameters} (to test {' and '.join(folds)})"
