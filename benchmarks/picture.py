"""The picture of `results.json`: how many times as fast luna_cls is as what else does the same."""

from __future__ import annotations

import io
from itertools import groupby
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

WIDTH_PX, ROW_PX, HEAD_PX, FOOT_PX = 800, 24, 24, 64
PX_PER_INCH = 96
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
TICKS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
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


def draw(results: dict[str, Any]) -> bytes:
    """An SVG, the same bytes for the same results and the same Matplotlib.

    A bar is as long as luna_cls is times as fast, on a logarithmic axis; its whisker goes from the lower to
    the upper quartile over the rounds. Bars of contenders that took turns stand together.
    """
    groups = [(what, list(rows)) for what, rows in groupby(compared(results), key=lambda row: row["what"])]
    speeds = {(row["what"], row["with"]): row["figure"] for row in results["rows"]}
    heads = sum(HEAD_PX + ROW_PX * len(rows) for _, rows in groups)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH_PX / PX_PER_INCH, (heads + FOOT_PX) / PX_PER_INCH))
        y, labels, ends = 0.0, {}, []
        for index, (what, rows) in enumerate(groups):
            reference = rows[0]["ratio"]["to"]
            head = f"{_capital(what)}: {reference} {_without_spread(speeds[what, reference])}"
            axes.text(
                0.0, y + HEAD_PX * 0.6, head, transform=axes.get_yaxis_transform(), weight="bold", va="center"
            )
            y += HEAD_PX
            for row in rows:
                middle, ratio = y + ROW_PX / 2, row["ratio"]
                axes.barh(
                    middle, ratio["median"] - 1, ROW_PX * 0.68, left=1, color=COLORS[index % len(COLORS)]
                )
                axes.plot(
                    [ratio["q1"], ratio["q3"]], [middle] * 2, color="black", lw=1.2, solid_capstyle="butt"
                )
                for end in (ratio["q1"], ratio["q3"]):
                    axes.plot([end] * 2, [middle - ROW_PX / 6, middle + ROW_PX / 6], color="black", lw=1.2)
                end = max(ratio["median"], ratio["q3"], 1)
                axes.annotate(
                    f"{ratio['median']:.2f}", (end, middle), (5, 0), textcoords="offset points", va="center"
                )
                labels[middle] = row["with"]
                ends += [ratio["q1"], end]
                y += ROW_PX
        _finish(figure, axes, y, labels, (min(1.0, *ends), max(ends)))
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return written.getvalue()


def _finish(
    figure: Any, axes: Any, height: float, labels: dict[float, str], reach: tuple[float, float]
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(reach[0] * (0.9 if reach[0] < 1 else 1), reach[1] * 1.18)
    axes.set_ylim(height, 0)
    axes.axvline(1, color="black", lw=1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([tick for tick in TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(list(labels), list(labels.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("luna_cls is so many times as fast (logarithmic; whiskers: quartiles over the rounds)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="0.85", lw=0.6)
    axes.set_axisbelow(True)
    figure.tight_layout(pad=0.6)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _without_spread(figure: str) -> str:
    return figure.partition(" (")[0]
