"""Marked findings as spheres in NIfTI volumes on the scan's own grid."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from luna_cls.files import written_whole
from luna_cls.inference.exports.ranked import Finding, ranked
from luna_cls.inference.findings import RESEARCH_ONLY, ScanFindings
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers.nifti import header_of

LABELS, PROBABILITY = "findings_labels.nii.gz", "findings_probability.nii.gz"
DEFAULT_DIAMETER_MM = 6.0
_GZIP_LEVEL = 1  # nearly all is zero: higher levels take longer and gain little


class _Sphere(NamedTuple):
    """The voxels of a finding: a box of them that starts at a corner, True inside the sphere."""

    finding: Finding
    corner_zyx: NDArray[np.intp]
    inside: NDArray[np.bool_]


def write(findings: ScanFindings, folder: Path) -> None:
    """Writes two volumes of the scan's shape and place, zero but for a sphere at every marked finding.

    In `findings_labels.nii.gz` a sphere has the finding's rank (uint8, or more bits beyond rank 255), in
    `findings_probability.nii.gz` its probability (float32). Its diameter is the finding's, or 6 mm where
    that is not known. It takes the voxels whose centres are in it, and at least the nearest voxel. Where
    spheres overlap, the more probable is seen.

    Memory is that of a slice, whatever the size of the scan.
    """
    marked = ranked(findings, only_marked=True)
    spheres = [_sphere(findings.grid, finding) for finding in marked]
    ranks = [finding.rank for finding in marked]
    probabilities = [finding.probability for finding in marked]
    _write(folder / LABELS, findings, spheres, ranks, np.min_scalar_type(max(ranks, default=0)))
    _write(folder / PROBABILITY, findings, spheres, probabilities, np.float32)


def _sphere(grid: Grid, finding: Finding) -> _Sphere:
    radius_mm = (finding.diameter_mm or DEFAULT_DIAMETER_MM) / 2
    nearest_zyx = np.array(finding.voxel_zyx)
    reach_zyx = np.ceil(radius_mm / grid.spacing_xyz_mm[::-1]).astype(int) + 1
    lower = np.maximum(nearest_zyx - reach_zyx, 0)
    upper = np.minimum(nearest_zyx + reach_zyx + 1, grid.shape_zyx)
    voxels_zyx = np.stack(np.meshgrid(*map(np.arange, lower, upper), indexing="ij"), axis=-1)
    distances_mm = np.linalg.norm(grid.to_world_xyz_mm(voxels_zyx) - finding.position_xyz_mm, axis=-1)
    inside = distances_mm <= radius_mm
    inside[tuple(nearest_zyx - lower)] = True
    return _Sphere(finding, lower, inside)


def _write(
    path: Path, findings: ScanFindings, spheres: list[_Sphere], values: list[Any], dtype: DTypeLike
) -> None:
    """Writes one volume slice by slice."""
    about = f"luna_cls {findings.about['luna_cls']} {path.name.split('.')[0]}. {RESEARCH_ONLY}"
    header = header_of(findings.grid, dtype, about)
    painted = list(zip(spheres, values, strict=True))[::-1]  # the most probable last: it is on top
    plane = np.zeros(findings.grid.shape_zyx[1:], header.get_data_dtype())
    with (
        written_whole(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed,
    ):
        packed.write(header.binaryblock + bytes(4))  # four zeros: no extension follows
        for z in range(findings.grid.shape_zyx[0]):
            plane[:] = 0
            for sphere, value in painted:
                first_z, first_y, first_x = sphere.corner_zyx
                if first_z <= z < first_z + len(sphere.inside):
                    inside = sphere.inside[z - first_z]
                    height, width = inside.shape
                    plane[first_y : first_y + height, first_x : first_x + width][inside] = value
            packed.write(plane.data)
