"""Cubes side by side in three planes, with words under them, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from luna_cls.cubes.store import WINDOW_HU

PLANES = ("axial", "coronal", "sagittal")
TILE_PX, GAP_PX = 124, 4
LEFT_PX, TOP_PX, LINE_PX = 66, 52, 16
DPI = 100


def draw_planes(
    cubes: NDArray[np.int16], captions: Sequence[str], heading: str, subheading: str, columns: int
) -> NDArray[np.uint8]:
    """Draws a column for every cube: the axial, coronal and sagittal plane through its middle, and words.

    Front and head are up; the patient's right is on the left, in the sagittal plane the front is. HU are
    shown in `WINDOW_HU`, what a model sees.

    Args:
        cubes: HU `(n, z, y, x)`, at most `columns` of them.
        captions: Words under each, lines apart, all of as many.
        heading: A line above.
        subheading: A smaller one below it.
        columns: For how many cubes there is room; what is not needed stays black.

    Returns:
        A picture, RGB `(height, width, 3)`.
    """
    num_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    step = TILE_PX + GAP_PX
    width, height = LEFT_PX + columns * step, TOP_PX + len(PLANES) * step + num_lines * LINE_PX + GAP_PX
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(GAP_PX, 16, heading, color="white", fontsize=11, va="center")
    axes.text(GAP_PX, 37, subheading, color="silver", fontsize=8, va="center")
    for row, plane in enumerate(PLANES):
        axes.text(GAP_PX, TOP_PX + (row + 0.5) * step, plane, color="silver", fontsize=9, va="center")
    for column, (cube, caption) in enumerate(zip(cubes, captions, strict=True)):
        left = LEFT_PX + column * step
        for row, picture in enumerate(middle_planes(cube)):
            top = TOP_PX + row * step
            extent = (left, left + TILE_PX, top + TILE_PX, top)
            axes.imshow(picture, "gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], extent=extent, aspect="auto")
        bottom = TOP_PX + len(PLANES) * step
        axes.text(left, bottom, caption, color="white", fontsize=9, va="top", linespacing=1.25)
    axes.set(xlim=(0, width), ylim=(height, 0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def middle_planes(cube: NDArray[np.integer[Any]]) -> tuple[NDArray[np.integer[Any]], ...]:
    """The axial, coronal and sagittal plane through the middle of a cube, each as it is looked at.

    Front and head are up, the patient's right is on the left; in the sagittal plane the front is.

    Args:
        cube: `(z, y, x)`, LPS.
    """
    z, y, x = (length // 2 for length in cube.shape)
    return cube[z], cube[::-1, y], cube[::-1, :, x]
