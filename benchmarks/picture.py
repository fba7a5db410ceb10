"""The picture of `results.json`: how many times as fast luna_cls is as what else does the same."""

from __future__ import annotations

import io
from itertools import groupby
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

WIDTH_PX, LABELS_PX, RIGHT_PX = 800, 350, 50
TITLE_PX, HEAD_PX, ROW_PX, GAP_PX, FOOT_PX = 34, 22, 21, 10, 48
PX_PER_INCH = 96
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
STYLE = {
    "svg.hashsalt": "luna_cls",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
}


def compared(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of what is not luna_cls, but was measured in turns with it."""
    return [
        row
        for row in results["rows"]
        if row["ratio"]
        and row["ratio"]["to"].startswith("luna_cls")
        and not row["with"].startswith("luna_cls")
    ]


def times(ratio: dict[str, Any]) -> str:
    """What stands at the end of a bar."""
    return f"{ratio['median']:.{2 if ratio['median'] < 10 else 1}f}×"


def draw(results: dict[str, Any]) -> bytes:
    """An SVG, the same bytes for the same results and the same Matplotlib.

    A bar is as long as luna_cls is times as fast, on a logarithmic axis; its whisker goes from the lower to
    the upper quartile over the rounds. Bars of contenders that took turns stand together, below what luna_cls
    itself did.
    """
    figures = {(row["what"], row["with"]): row["figure"] for row in results["rows"]}
    groups = [(what, list(rows)) for what, rows in groupby(compared(results), key=lambda row: row["what"])]
    bars_px = sum(HEAD_PX + ROW_PX * len(rows) + GAP_PX for _, rows in groups)
    height_px = TITLE_PX + bars_px + FOOT_PX
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH_PX / PX_PER_INCH, height_px / PX_PER_INCH))
        width = (WIDTH_PX - LABELS_PX - RIGHT_PX) / WIDTH_PX
        axes = figure.add_axes((LABELS_PX / WIDTH_PX, FOOT_PX / height_px, width, bars_px / height_px))
        ends = [row["ratio"][key] for _, rows in groups for row in rows for key in ("median", "q1", "q3")]
        axes.set_xscale("log")
        axes.set_xlim(min([1, *ends]) * 0.97, max([2, *ends]))
        axes.set_ylim(bars_px, 0)
        title = f"How many times as fast luna_cls is, on {results['machine']['cores']} cores"
        figure.text(8 / WIDTH_PX, 1 - 18 / height_px, title, size=11, weight="bold", va="center")
        y_px, labels = 0.0, {}
        for index, (what, rows) in enumerate(groups):
            reference = rows[0]["ratio"]["to"]
            head = f"{what[0].upper()}{what[1:]} ({reference}: {figures[what, reference].partition(' (')[0]})"
            place = 8 / WIDTH_PX, 1 - (TITLE_PX + y_px + HEAD_PX / 2) / height_px
            figure.text(*place, head, va="center", style="italic")
            y_px += HEAD_PX
            bottom_px = y_px + ROW_PX * len(rows)
            for row in rows:
                labels[y_px + ROW_PX / 2] = row["with"]
                _bar(axes, y_px + ROW_PX / 2, row["ratio"], COLORS[index % len(COLORS)])
                y_px += ROW_PX
            axes.vlines(
                _ticks(axes), bottom_px - ROW_PX * len(rows), bottom_px, color="0.88", lw=0.6, zorder=0
            )
            axes.vlines(1, bottom_px - ROW_PX * len(rows), bottom_px, color="black", lw=1.2, zorder=3)
            y_px += GAP_PX
        _finish(axes, labels)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return written.getvalue()


def _bar(axes: Any, middle_px: float, ratio: dict[str, Any], color: str) -> None:
    axes.barh(middle_px, ratio["median"] - 1, ROW_PX * 0.68, left=1, color=color, zorder=1)
    axes.hlines(middle_px, ratio["q1"], ratio["q3"], color="black", lw=1.2, zorder=2)
    ends = [ratio["q1"], ratio["q3"]]
    axes.vlines(ends, middle_px - ROW_PX / 6, middle_px + ROW_PX / 6, color="black", lw=1.2, zorder=2)
    furthest = max(ratio["median"], ratio["q3"], 1)
    place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(times(ratio), (furthest, middle_px), **place)


def _ticks(axes: Any) -> list[float]:
    low, high = axes.get_xlim()
    return [tick for tick in TICKS if low <= tick <= high]


def _finish(axes: Any, labels: dict[float, str]) -> None:
    ticks = _ticks(axes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast; logarithmic; whiskers: quartiles over the rounds")
    axes.spines[["top", "right", "left"]].set_visible(False)
