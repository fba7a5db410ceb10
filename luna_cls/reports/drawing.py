"""Drawings as SVG: with colours of the page they stand in, or for paper."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LINES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))  # so that curves differ without colour, too
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK_LINE_IN = 0.17  # from a line of words to the next
_LONGEST_LINE = 56  # characters that fit across a drawing of 4.4 inches


@dataclass(frozen=True)
class Palette:
    """Colours by what they are for.

    Args:
        ink: Words and the frame.
        quiet: Less of it: ticks, what is there to compare with.
        grid: Lines behind.
        paper: What is drawn on.
        series: One for each curve.
    """

    ink: str
    quiet: str
    grid: str
    paper: str
    series: tuple[str, ...]


# Not colours to be seen: `to_svg` puts the page's own variables in their place.
PAGE = Palette("#010101", "#020202", "#030303", "#040404", ("#050501", "#050502", "#050503", "#050504"))
PAPER = Palette("#000000", "#555555", "#dddddd", "#ffffff", ("#0b5fa5", "#b4480b", "#12745a", "#85398f"))

_VARIABLES = {
    PAGE.ink: "var(--ink)",
    PAGE.quiet: "var(--quiet)",
    PAGE.grid: "var(--grid)",
    PAGE.paper: "var(--card)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(PAGE.series, 1)},
}


def axes(
    size_in: tuple[float, float], x_label: str, y_label: str, palette: Palette = PAGE
) -> tuple[Figure, Axes]:
    """An empty drawing.

    Args:
        size_in: Width and height in inches, at which words have 9 points.
        x_label: What is along x, with its unit.
        y_label: And along y.
        palette: Its colours.
    """
    figure = Figure(figsize=size_in, layout="constrained", facecolor=palette.paper)
    drawn = figure.add_subplot(facecolor=palette.paper)
    drawn.set_xlabel(x_label, color=palette.ink, fontsize=9)
    drawn.set_ylabel(y_label, color=palette.ink, fontsize=9)
    drawn.tick_params(colors=palette.quiet, labelsize=8.5, length=3)
    drawn.grid(color=palette.grid, linewidth=0.8)
    drawn.set_axisbelow(True)
    for name, spine in drawn.spines.items():
        spine.set_color(palette.quiet)
        spine.set_visible(name in ("left", "bottom"))
    return figure, drawn


def named_rows(names: Sequence[str], x_label: str) -> tuple[Figure, Axes, Floats]:
    """An empty drawing with a row for each name, which stands above its row and is wrapped if it is long.

    Args:
        names: From the top.
        x_label: What is along x.

    Returns:
        The drawing, its axes, and where each row is along y, `(names,)`, in inches.
    """
    wrapped = [wrap(name, _LONGEST_LINE) or [""] for name in names]
    heights_in = np.array([0.40 + _INK_LINE_IN * len(lines) for lines in wrapped])
    places_in = 0.16 - heights_in.cumsum()
    figure, drawn = axes((4.4, 0.6 + heights_in.sum()), x_label, "")
    for lines, place_in in zip(wrapped, places_in, strict=True):
        drawn.annotate(
            "\n".join(lines), (0, place_in), (0, 8.5), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="bottom", color=PAGE.ink, fontsize=8.5,
            bbox={"facecolor": PAGE.paper, "edgecolor": "none", "pad": 1.5},  # over a line that crosses it
        )  # fmt: skip
    drawn.set(yticks=[], ylim=(-heights_in.sum(), 0))
    drawn.locator_params(axis="x", nbins=6)
    drawn.grid(visible=False, axis="y")
    drawn.spines["left"].set_visible(False)
    return figure, drawn, places_in


def style_of(position: int, palette: Palette = PAGE) -> dict[str, Any]:
    """Colour, line and marker of a curve: of sixteen, no two have both the same colour and the same line."""
    rounds, colour = divmod(position, len(palette.series))
    return {
        "color": palette.series[colour],
        "linestyle": LINES[(colour + rounds) % len(LINES)],
        "marker": MARKERS[position % len(MARKERS)],
    }


def legend_below(figure: Figure, drawn: Axes, palette: Palette = PAGE) -> None:
    """Names the curves below the drawing, a line each and as high as that takes: for many, or long names."""
    handles, labels = drawn.get_legend_handles_labels()
    wrapped = ["\n".join(wrap(label, _LONGEST_LINE - 8)) for label in labels]
    lines = sum(label.count("\n") + 1 for label in wrapped)
    figure.set_figheight(figure.get_figheight() + _INK_LINE_IN * lines + 0.1)
    figure.legend(
        handles, wrapped, loc="outside lower left", fontsize=8.5, frameon=False, labelcolor=palette.ink,
        handlelength=3.2,
    )  # fmt: skip


def legend(drawn: Axes, palette: Palette = PAGE, **where: Any) -> None:
    """Names the curves, in words of the page's ink."""
    drawn.legend(fontsize=8.5, frameon=False, labelcolor=palette.ink, handlelength=2.6, **where)


def in_percent(drawn: Axes, names: str) -> None:
    """Writes shares along "x", "y" or "xy" as percent, from 0 to 100."""
    for name in names:
        ticks = np.linspace(0, 1, 6)
        labels = [f"{100 * tick:.0f} %" for tick in ticks]
        drawn.set(**{f"{name}lim": (-0.01, 1.01), f"{name}ticks": ticks, f"{name}ticklabels": labels})


def to_svg(figure: Figure, name: str, palette: Palette = PAGE) -> str:
    """A drawing as SVG: the same bytes for the same drawing.

    Args:
        figure: The drawing.
        name: Goes before all its ids, so that none is twice on a page.
        palette: Its colours; those of `PAGE` become variables of CSS.

    Returns:
        An `<svg>` element without width and height, to be put into a page; for another palette, a file.
    """
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None}, facecolor=palette.paper)
    svg = written.getvalue()
    if palette is not PAGE:
        return svg
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>", r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"<[^>]+>", _shortened, svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def _shortened(tag: re.Match[str]) -> str:
    """A tag with places to a hundredth of a point, finer than any screen."""
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0])


def every(rows: Sequence[Sequence[str]], most: int = 21) -> list[Sequence[str]]:
    """At most so many of some rows, evenly; the first and the last stay."""
    if len(rows) <= most:
        return list(rows)
    return [rows[index] for index in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]
