"""Scans and their candidates at a glance, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.files import COORDINATES
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import CTVolume, read_volume

WINDOW_HU = (-1350.0, 250.0)  # a radiologist's lung window: level -550, width 1600
SLAB_MM = 20.0
CUBES_PER_ROW = 12
COLOURS = {1: "#ffb000", 0: "#5fb4ff"}
NAMES = {1: "nodules", 0: "not nodules"}

Picture = NDArray[np.int16]


def write_scan_sheet(tree: LunaTree, candidates: pd.DataFrame, path: Path, most: int = 12) -> None:
    """Draws up to `most` scans, a row each: three planes, and a maximum-intensity projection of 20 mm.

    The planes run through the scan's first nodule, or its middle where it has none; candidates within
    5 mm of a plane are marked on it, nodules in yellow. Front is up, the patient's right on the left.

    Args:
        tree: Its scans.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class`.
        path: The PNG to write.
        most: How many scans, the first by UID.
    """
    uids = sorted(tree.scan_paths)[:most]
    figure = Figure(figsize=(14, 3.4 * len(uids)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(uids), 4, squeeze=False)
    for row, uid in zip(axes, uids, strict=True):
        of_scan = candidates[candidates["seriesuid"] == uid]
        _draw_scan(row, read_volume(tree.scan_paths[uid]), of_scan)
    for axis, title in zip(axes[0], ("axial", "coronal", "sagittal", "coronal, 20 mm at most"), strict=True):
        axis.set_title(title, color="white")
    figure.savefig(path, dpi=70)


def write_cube_sheet(tree: LunaTree, candidates: pd.DataFrame, path: Path, most: int = 60) -> None:
    """Draws the middle axial slice of up to `most` cubes of each class, 31 mm wide, nodules first.

    Args:
        tree: The scans they lie in.
        candidates: Table `seriesuid, coordX, coordY, coordZ, class`; drawn evenly from the rows of its scans.
        path: The PNG to write.
        most: How many of each class.
    """
    rows = []
    candidates = candidates[candidates["seriesuid"].isin(tree.scan_paths)]
    for label in (1, 0):
        of_class = candidates[candidates["class"] == label]
        if of_class.empty:
            rows.append(of_class)
            continue
        rows.append(of_class.iloc[np.unique(np.linspace(0, len(of_class), most, endpoint=False).astype(int))])
    shown = pd.concat(rows) if len(candidates) else candidates
    cubes: dict[Any, Picture] = {}
    for uid, points in shown.groupby("seriesuid"):
        cut = cut_cubes(read_volume(tree.scan_paths[str(uid)]), points[COORDINATES].to_numpy())
        cubes |= dict(zip(points.index, cut, strict=True))
    write_montage(
        {
            f"{NAMES[label]}, {len(part)} of {(candidates['class'] == label).sum():,}": [
                (cubes[index], "") for index in part.index
            ]
            for label, part in zip((1, 0), rows, strict=True)
        },
        path,
    )


def write_montage(groups: dict[str, Sequence[tuple[Picture, str]]], path: Path) -> None:
    """Draws the middle axial slice of cubes, in groups under a heading.

    Args:
        groups: By heading, cubes `(z, y, x)` in HU, each with the words to write on it.
        path: The PNG to write.
    """
    heights = [max(1, -(-len(group) // CUBES_PER_ROW)) for group in groups.values()]
    figure = Figure(figsize=(CUBES_PER_ROW, sum(heights) + 0.4 * len(groups)), facecolor="black")
    ratios = [height + 0.4 for height in heights]
    parts = figure.subfigures(len(groups), 1, height_ratios=ratios, squeeze=False).ravel()
    for part, (heading, group), height in zip(parts, groups.items(), heights, strict=True):
        part.set_facecolor("black")
        part.suptitle(heading, color="white", fontsize=11, y=1 - 0.05 / height)
        axes = part.subplots(
            height,
            CUBES_PER_ROW,
            squeeze=False,
            gridspec_kw={
                "left": 0,
                "right": 1,
                "bottom": 0,
                "top": 1 - 0.4 / (height + 0.4),
                "wspace": 0.03,
                "hspace": 0.03,
            },
        )
        for axis in axes.flat:
            axis.axis("off")
        for axis, (cube, words) in zip(axes.flat, group, strict=False):
            _show(axis, cube[len(cube) // 2], 1.0)
            axis.text(1, 29, words, color="white", fontsize=7)
    figure.savefig(path, dpi=100)


def _draw_scan(axes: Sequence[Any], volume: CTVolume, candidates: pd.DataFrame) -> None:
    hu, spacing_zyx_mm, to_upright = upright(volume)
    points_zyx = to_upright(candidates[COORDINATES].to_numpy(float))
    is_nodule = candidates["class"].to_numpy() == 1
    middle = points_zyx[is_nodule.argmax()] if is_nodule.any() else (np.array(hu.shape) - 1) / 2
    place = np.clip(np.rint(middle).astype(int), 0, np.array(hu.shape) - 1)
    for plane, axis in enumerate(axes[:3]):
        rows, columns = [number for number in range(3) if number != plane]
        picture = hu.take(place[plane], axis=plane)
        _show(axis, picture, spacing_zyx_mm[rows] / spacing_zyx_mm[columns], upside_down=plane > 0)
        near = np.abs(points_zyx[:, plane] - place[plane]) * spacing_zyx_mm[plane] < 5
        for label in (0, 1):
            y, x = points_zyx[near & (is_nodule == label)][:, [rows, columns]].T
            axis.plot(
                x, y, "o", markerfacecolor="none", markersize=5, markeredgewidth=0.7, color=COLOURS[label]
            )
    half = max(1, round(SLAB_MM / 2 / spacing_zyx_mm[1]))
    slab = hu[:, max(place[1] - half, 0) : place[1] + half].max(axis=1)
    _show(axes[3], slab, spacing_zyx_mm[0] / spacing_zyx_mm[2], upside_down=True)


def _show(axis: Any, picture: Picture, aspect: float, *, upside_down: bool = False) -> None:
    low, high = WINDOW_HU
    origin = "lower" if upside_down else "upper"
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect, origin=origin)
    axis.axis("off")


def upright(volume: CTVolume) -> tuple[Picture, NDArray[np.float64], Any]:
    """A scan with its axes z, y, x towards head, back and left, as near as its voxels lie to them.

    Returns:
        HU `(z, y, x)`, the spacing along those axes in mm, and a function from world points `(n, 3)`, xyz mm,
        to places in that array, zyx.
    """
    direction = volume.grid.direction[::-1, ::-1]  # rows: world z, y, x; columns: voxel axes z, y, x
    world, order = linear_sum_assignment(-np.abs(direction))
    signs = direction[world, order]
    flip = tuple(slice(None, None, -1) if sign < 0 else slice(None) for sign in signs)
    hu = volume.hu.transpose(order)[flip]

    def to_upright(points_xyz_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        places = volume.grid.to_voxel_zyx(points_xyz_mm)[:, order]
        return np.where(signs < 0, np.array(hu.shape) - 1 - places, places)

    return hu, volume.grid.spacing_xyz_mm[::-1][order], to_upright
