"""Pictures of a comparison of losses: seed by seed, epoch by epoch, and FROC of all."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from luna_cls.judging.froc import RATES_PER_SCAN
from luna_cls.reports import figures
from luna_cls.reports.blocks import Figure, Table, number, plural
from luna_cls.reports.comparison_page import capital, name_of
from luna_cls.reports.drawing import MARKERS, PAGE, axes, legend, legend_below, named_rows, style_of, to_svg
from luna_cls.reports.evidence import read_json, read_table
from luna_cls.reports.losses_tables import monitor_in_words

_SPREAD_IN = 0.12  # of the dots of a row, so that equal ones are seen
_MOST_OF_OWN_MARKER = len(MARKERS)
_CLEAREST, _FAINTEST = 0.18, 0.06  # of a band; fainter with many, which lie over each other


def by_seed(found: Mapping[str, Any], order: Sequence[str]) -> Figure | None:
    """The metric that decides, training by training; None with one seed.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    metric, seeds = found["metric"], found.get("seeds") or []
    values = {name: (found.get("by_seed") or {}).get(name, {}).get(metric) for name in order}
    shown = {name: np.array(own, float) for name, own in values.items() if own}
    if len(seeds) < 2 or not shown:
        return None
    drawing, drawn, places_in = named_rows(list(shown), name_of(metric))
    offsets_in = np.linspace(_SPREAD_IN / 2, -_SPREAD_IN / 2, len(seeds))
    rows = []
    for position, (place_in, (name, own)) in enumerate(zip(places_in, shown.items(), strict=True)):
        colour = style_of(position)["color"]
        bounds = (found.get("intervals_95") or {}).get(name, {}).get(metric)
        mean = (found["scores"].get(name) or {}).get(metric)
        if bounds and None not in bounds:
            drawn.plot(bounds, [place_in] * 2, color=colour, linewidth=6, alpha=0.22, solid_capstyle="butt")
        if mean is not None:
            drawn.plot(mean, place_in, color=colour, marker="|", markersize=15, markeredgewidth=2)
        for index, (value, offset_in) in enumerate(zip(own, offsets_in, strict=True)):
            marker = _marker_of(index, len(seeds))
            drawn.plot(value, place_in + offset_in, color=colour, marker=marker, markersize=5, linestyle="")
        rows.append((name, *(number(value) for value in own), number(mean)))
    if len(seeds) <= _MOST_OF_OWN_MARKER:
        for index, seed in enumerate(seeds):
            drawn.plot([], [], color=PAGE.quiet, marker=MARKERS[index], linestyle="", label=f"seed {seed}")
    drawn.plot([], [], color=PAGE.quiet, marker="|", markersize=11, linestyle="", label="mean")
    drawn.plot([], [], color=PAGE.quiet, linewidth=6, alpha=0.35, solid_capstyle="butt", label="95 %")
    legend(
        drawn, loc="lower left", bbox_to_anchor=(-0.03, 1.0), ncols=5, columnspacing=1.0, handletextpad=0.4
    )
    drawn.margins(x=0.1)
    seen = "; ".join(
        f"{name} from {number(np.nanmin(own))} to {number(np.nanmax(own))}"
        for name, own in shown.items()
        if np.isfinite(own).any()
    )
    return Figure(
        capital(name_of(metric)),
        to_svg(drawing, "by-seed"),
        f"{capital(name_of(metric))} of {plural(len(seeds), 'seed')} by loss: {seen}.",
        "Each dot is one seed: its first weights and its order of cubes are the same for every loss. Where "
        "dots of a loss lie wider apart than losses do, one training of each would have told luck.",
        Table(
            f"{capital(name_of(metric))}, seed by seed",
            ("Loss", *(f"Seed {seed}" for seed in seeds), "Mean"),
            rows,
        ),
    )


def _marker_of(index: int, count: int) -> str:
    return MARKERS[index] if count <= _MOST_OF_OWN_MARKER else MARKERS[0]


def validation(folder: Path, found: Mapping[str, Any], order: Sequence[str]) -> Figure | None:
    """The metric that chose the epochs, epoch by epoch; None if no run has it.

    Losses themselves are on scales of their own: where they chose, average precision is shown instead.

    Args:
        folder: With the runs in `runs/LOSS/seedS-foldsF`, or in a folder more where parameters were tuned.
        found: What comparison.json holds.
        order: The losses from the first rank on.

    Raises:
        InputError: If a file is damaged.
    """
    runs = {entry["label"]: _runs(folder, found, entry) for entry in found["losses"]}
    monitor = _monitor([run for own in runs.values() for run in own])
    curves = {name: curve for name in order if not (curve := _curve(runs.get(name, []), monitor)).empty}
    if not curves:
        return None
    what = monitor_in_words(monitor)
    drawing, drawn = axes(figures.WIDE_IN, "epoch", f"{what} on validation")
    opacity = _opacity(len(curves))
    for position, (name, curve) in enumerate(curves.items()):
        style, epochs = style_of(position), curve.index.to_numpy()
        drawn.fill_between(
            epochs, curve["min"], curve["max"], color=style["color"], alpha=opacity, linewidth=0
        )
        few = style["marker"] if len(epochs) < 40 else ""
        drawn.plot(epochs, curve["mean"], **{**style, "marker": few}, markersize=4, linewidth=1.8, label=name)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.margins(x=0.02)
    legend_below(drawing, drawn)
    best = {name: curve["mean"].idxmax() for name, curve in curves.items()}
    rows = [
        (
            name,
            f"{curve['count'].max():.0f}",
            f"{curve.index[-1]:.0f}",
            number(curve["mean"].iloc[0]),
            f"{number(curve['mean'][best[name]])} (epoch {best[name]:.0f})",
            number(curve["mean"].iloc[-1]),
        )
        for name, curve in curves.items()
    ]
    caption = f"Lines are means over {_trainings(curves)}; bands go from the lowest of them to the highest."
    if any(curve["count"].min() < curve["count"].max() for curve in curves.values()):
        caption += " Some trainings ended earlier: later means are of those that went on."
    seen = "; ".join(f"{row[0]} from {row[3]} to {row[5]}, at best {row[4]}" for row in rows)
    return Figure(
        f"{capital(what)} on validation",
        to_svg(drawing, "validation"),
        f"Epoch by epoch: {seen}.",
        caption,
        Table(
            f"{capital(what)} on validation",
            ("Loss", "Trainings", "Epochs", "First epoch", "Best mean", "Last epoch"),
            rows,
        ),
    )


def _trainings(curves: Mapping[str, pd.DataFrame]) -> str:
    counts = sorted({int(curve["count"].max()) for curve in curves.values()})
    return f"{' or '.join(map(str, counts))} training{'' if counts == [1] else 's'} each (seeds and turns)"


def _runs(folder: Path, found: Mapping[str, Any], loss: Mapping[str, Any]) -> list[Path]:
    """Those that are compared; others beside them were tried by tuning, or from seeds no longer asked for."""
    own, runs = folder / "runs" / loss["folder"], []
    for turn, seed in product(found.get("turns") or (), found.get("seeds") or ()):
        if turn.get("validation_folds") == []:
            continue  # what is in its history then is of the tested folds
        tested = list(map(str, turn["test_folds"]))
        name = f"seed{seed}-folds{'-'.join(tested)}"
        chosen = (loss.get("tuned") or {}).get("+".join(tested))
        if not chosen:
            runs.append(own / name)
            continue
        given = {"name": loss["name"], **loss["parameters"], **chosen}
        runs += [run for run in sorted(own.glob(f"*/{name}")) if _loss_of(run) == given]
    return runs


def _loss_of(run: Path) -> dict[str, Any] | None:
    path = run / "settings.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")).get("loss") if path.is_file() else None


def _monitor(runs: Sequence[Path]) -> str:
    """What chose the epochs; average precision where that was a loss, or the last epoch is kept."""
    results = (read_json(run / "metrics.json") or {} for run in runs)
    monitors = [str(result["monitor"]) for result in results if "monitor" in result]
    of_scores = [name for name in monitors if name.startswith("val_") and name != "val_loss"]
    return of_scores[0] if of_scores else "val_average_precision"


def _curve(runs: Sequence[Path], column: str) -> pd.DataFrame:
    """Table `mean, min, max, count` over runs, by epoch."""
    histories = (read_table(run / "history.csv", ("epoch",)) for run in runs)
    there = [own.set_index("epoch")[column] for own in histories if own is not None and column in own.columns]
    if not there:
        return pd.DataFrame()
    over_runs = pd.concat(there, axis=1).sort_index().astype(float)
    curve = over_runs.agg(["mean", "min", "max", "count"], axis=1)
    return curve[curve["count"] > 0]


def froc(found: Mapping[str, Any], order: Sequence[str]) -> Figure | None:
    """FROC of all losses in one picture; None without annotations.

    Args:
        found: What comparison.json holds.
        order: The losses from the first rank on.
    """
    drawn = [name for name in order if (found.get("froc") or {}).get(name)]
    curves = [
        _froc_of(name, found["froc"][name], (found["scores"].get(name) or {}).get("cpm")) for name in drawn
    ]
    if not curves:
        return None
    seeds = found.get("num_seeds") or 1
    mean = "" if seeds == 1 else f" Curves are means over {seeds} seeds."
    bands = " Bands are 95 % intervals over scans, each by itself." if any(one.band for one in curves) else ""
    return figures.froc(curves, f"Dots are LUNA16's seven rates.{mean}{bands}", _opacity(len(curves)))


def _froc_of(name: str, curve: Mapping[str, Any], cpm: float | None) -> figures.Froc:
    fps, sensitivity, lower, upper = (
        np.array(curve[key], float) for key in ("fps_per_scan", "sensitivity", "lower", "upper")
    )
    at_rates = dict(zip(RATES_PER_SCAN, np.interp(RATES_PER_SCAN, fps, sensitivity), strict=True))
    has_band = bool(np.isfinite([lower, upper]).all())
    return figures.Froc(
        name=name,
        fps_per_scan=fps,
        sensitivity=sensitivity,
        at_rates={f"{rate:g}": float(value) for rate, value in at_rates.items()},
        intervals=None,
        band=(fps, lower, upper) if has_band else None,
        cpm=float(np.mean(list(at_rates.values()))) if cpm is None else cpm,
    )


def _opacity(count: int) -> float:
    return max(_FAINTEST, min(_CLEAREST, 0.5 / count))
