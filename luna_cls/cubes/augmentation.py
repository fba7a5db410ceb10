"""What may happen to a training cube: one operation per function, on a batch.

An operation takes cubes `(n, z, y, x)`, as one array or as a sequence of cubes, of any real type, and a
generator; it returns as many cubes in the same order. The same generator gives the same cubes.
Each cube has its own luck. They are NumPy and run where the batches are made: on this machine's processor,
beside the reading (`benchmarks/batches.py` has the figures).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luna_cls.cubes.cutting import CubeSpec
from luna_cls.settings import AugmentationSettings

Cubes = Sequence[NDArray[Any]] | NDArray[Any]

_ORDERS: dict[str, list[tuple[int, ...]]] = {
    "in_plane": [(0, 1, 2), (0, 2, 1)],
    "cube": list(itertools.permutations(range(3))),
}
_NOISE_EDGE_VOX = 128
_AT_A_TIME = 8  # so that they stay in the processor's cache from one operation to the next


def augmented(
    cubes: Cubes, seed: Sequence[int], settings: AugmentationSettings, spec: CubeSpec
) -> Iterator[NDArray[Any]]:
    """Cubes as training sees them: every operation that is wanted, one after the other.

    Args:
        cubes: `(n, z, y, x)` HU, with the margin that `margin_vox` asks for on every side, or more.
        seed: Same seed, same result; an operation's luck does not depend on which others are wanted.
        settings: What is wanted, and how much.
        spec: The cubes a model reads.

    Yields:
        n cubes `(size_vox, size_vox, size_vox)`, HU, of any real type.
    """
    luck = [np.random.default_rng([*seed, number]) for number in range(5)]
    for start in range(0, len(cubes), _AT_A_TIME):
        yield from _augmented(cubes[start : start + _AT_A_TIME], luck, settings, spec)


def _augmented(
    cubes: Cubes, luck: Sequence[np.random.Generator], settings: AugmentationSettings, spec: CubeSpec
) -> Cubes:
    if settings.symmetries != "none":
        cubes = symmetries(cubes, luck[0], settings.symmetries)
    if settings.shift_mm or settings.scale or settings.rotation_degrees:
        shift_vox = settings.shift_mm / spec.spacing_mm
        size_vox, angle = spec.size_vox, settings.rotation_degrees
        cubes = moved(
            cubes, luck[1], size_vox, shift_vox=shift_vox, scale=settings.scale, rotation_degrees=angle
        )
    else:
        cubes = middle(cubes, spec.size_vox)
    if settings.blur_mm:
        cubes = blurred(cubes, luck[2], settings.blur_mm / spec.spacing_mm)
    if settings.noise_hu:
        cubes = noisy(cubes, luck[3], settings.noise_hu)
    if settings.shift_hu:
        cubes = brightened(cubes, luck[4], settings.shift_hu)
    return cubes


def margin_vox(settings: AugmentationSettings, spec: CubeSpec) -> int:
    """How many voxels around a cube `moved` may need, at most."""
    half_vox = (spec.size_vox - 1) / 2
    angle = math.radians(min(settings.rotation_degrees, 45))
    reach_vox = half_vox * (1 + settings.scale) * (math.cos(angle) + math.sin(angle))
    return math.ceil(reach_vox + settings.shift_mm / spec.spacing_mm - half_vox - 1e-9)


def middle(cubes: Cubes, size_vox: int) -> list[NDArray[Any]]:
    """The middle of each cube, `size_vox` along each edge; no copy."""
    margins = [(edge - size_vox) // 2 for edge in cubes[0].shape] if len(cubes) else []
    inner = tuple(slice(margin, margin + size_vox) for margin in margins)
    return [cube[inner] for cube in cubes]


def symmetries(
    cubes: Cubes, generator: np.random.Generator, kind: Literal["in_plane", "cube"]
) -> list[NDArray[Any]]:
    """Mirrors and turns each cube onto itself, every way as likely as any other; no copy.

    Args:
        cubes: `(n, z, y, x)`, edges of one length.
        generator: The luck.
        kind: "in_plane" keeps z along z: 16 ways, the quarter turns about z with all mirror images.
            "cube": all 48.
    """
    orders = _ORDERS[kind]
    chosen = generator.integers(0, len(orders), len(cubes)).tolist()
    steps = (1 - 2 * generator.integers(0, 2, (len(cubes), 3))).tolist()
    return [
        cube[::z, ::y, ::x].transpose(orders[order])
        for cube, order, (z, y, x) in zip(cubes, chosen, steps, strict=True)
    ]


def every_symmetry(cubes: NDArray[Any], kind: str) -> Iterator[NDArray[Any]]:
    """Cubes `(n, z, y, x)` in each way that `symmetries` may turn them, the way they are first.

    Args:
        cubes: Edges of one length.
        kind: "in_plane", "cube", or "none" for the one way they are.
    """
    orders = _ORDERS.get(kind, [(0, 1, 2)])
    for order in orders:
        for z, y, x in itertools.product((1, -1), repeat=3) if kind != "none" else [(1, 1, 1)]:
            turned = cubes[:, ::z, ::y, ::x].transpose(0, *(axis + 1 for axis in order))
            yield np.ascontiguousarray(turned)


def moved(
    cubes: Cubes,
    generator: np.random.Generator,
    size_vox: int,
    *,
    shift_vox: float = 0.0,
    scale: float = 0.0,
    rotation_degrees: float = 0.0,
) -> NDArray[np.float32]:
    """Shifts, scales and turns each cube by fractions of a voxel, interpolated (trilinear) once for all.

    Args:
        cubes: `(n, z, y, x)` with a margin to move within; beyond it the outermost voxel goes on.
        generator: The luck.
        size_vox: Edge of the cubes returned.
        shift_vox: Farthest shift along each axis.
        scale: Things become up to `1 + scale` times as large or as small, evenly in the logarithm.
        rotation_degrees: Farthest turn about z, either way.

    Returns:
        float32 `(n, size_vox, size_vox, size_vox)`.
    """
    count, edge = len(cubes), cubes[0].shape[0]
    shifts = generator.uniform(-shift_vox, shift_vox, (count, 3, 1))
    zooms = np.exp(generator.uniform(-1, 1, (count, 1)) * math.log1p(scale))
    angles = np.radians(generator.uniform(-rotation_degrees, rotation_degrees, (count, 1)))
    offsets = (np.arange(size_vox) - (size_vox - 1) / 2) / zooms
    center = (edge - 1) / 2
    y, x = np.repeat(offsets, size_vox, axis=1), np.tile(offsets, size_vox)
    cosine, sine = np.cos(angles), np.sin(angles)
    z_lower, z_share = _split(center + offsets + shifts[:, 0], edge)
    y_lower, y_share = _split(center + cosine * y - sine * x + shifts[:, 1], edge)
    x_lower, x_share = _split(center + sine * y + cosine * x + shifts[:, 2], edge)

    # Between planes first, then between the four columns around each point: whole planes and whole columns
    # are read, never single voxels.
    number = np.arange(count)[:, None]
    planes = _stacked(cubes).reshape(count * edge, -1)
    between = _between(planes, z_lower + number * edge, z_share[..., None])
    columns = np.ascontiguousarray(between.transpose(0, 2, 1)).reshape(-1, size_vox)
    corners = y_lower * edge + x_lower + number * edge**2
    values = _between(columns, corners, x_share[..., None])
    values += (_between(columns, corners + edge, x_share[..., None]) - values) * y_share[..., None]
    return values.reshape(count, size_vox, size_vox, size_vox).transpose(0, 3, 1, 2)


def _split(positions: NDArray[np.float64], edge: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The voxel at or below each position, and how far on to the next it lies."""
    positions = positions.clip(0, edge - 1)
    lower = np.minimum(positions.astype(np.intp), max(edge - 2, 0))
    return lower, (positions - lower).astype(np.float32)


def _between(
    rows: NDArray[np.float32], lower: NDArray[np.intp], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Linear interpolation between some rows and the next ones."""
    values = rows.take(lower, axis=0, mode="clip")
    upper = rows.take(lower + 1, axis=0, mode="clip")  # the last one has no share
    upper -= values
    upper *= share
    values += upper
    return values


def _stacked(cubes: Cubes) -> NDArray[np.float32]:
    """Cubes of any real type, and views of them, as one float32 array `(n, z, y, x)` of one's own."""
    stacked = np.empty((len(cubes), *cubes[0].shape), np.float32)
    for place, cube in zip(stacked, cubes, strict=True):
        place[...] = cube
    return stacked


def blurred(cubes: Cubes, generator: np.random.Generator, sd_vox: float) -> NDArray[np.float32]:
    """Blurs each cube with a Gaussian of a standard deviation from 0 to `sd_vox`, evenly.

    Beyond three deviations it ends; beyond the cube its outermost voxel goes on.
    """
    widths = generator.uniform(0, sd_vox, len(cubes))
    reach = math.ceil(3 * sd_vox)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / np.maximum(widths, 1e-3)[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(axis=1, keepdims=True)
    weight_of = weights.astype(np.float32).T[..., None, None, None]
    values = _stacked(cubes)
    for axis in (1, 2, 3):
        size = values.shape[axis]
        around = values.take(np.arange(-reach, size + reach).clip(0, size - 1), axis=axis)
        place = [slice(None)] * axis
        values *= weight_of[0]
        for step in range(1, reach + 1):
            both = around[(*place, slice(reach - step, reach - step + size))]
            both = both + around[(*place, slice(reach + step, reach + step + size))]
            both *= weight_of[step]
            values += both
    return values


def noisy(cubes: Cubes, generator: np.random.Generator, sd_hu: float) -> NDArray[np.float32]:
    """Adds white noise of a standard deviation from 0 to `sd_hu`, evenly.

    The noise is cut out of one large cube of it, at a random place: drawing it anew takes ten times as long.
    """
    sizes = generator.uniform(-sd_hu, sd_hu, len(cubes)).astype(np.float32)
    values = _stacked(cubes)
    noise = _noise(max(_NOISE_EDGE_VOX, 2 * max(values.shape[1:])))
    shape = np.array(values.shape[1:])
    starts = generator.integers(0, noise.shape[0] - shape + 1, (len(cubes), 3))
    for row, start in enumerate(starts):
        values[row] += noise[tuple(map(slice, start, start + shape))] * sizes[row]
    return values


@functools.lru_cache(maxsize=1)
def _noise(edge_vox: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((edge_vox,) * 3, np.float32)


def brightened(cubes: Cubes, generator: np.random.Generator, shift_hu: float) -> NDArray[np.float32]:
    """Adds to all of a cube one number from `-shift_hu` to `shift_hu`, as scanners differ."""
    shifts = generator.uniform(-shift_hu, shift_hu, len(cubes)).astype(np.float32)
    values = _stacked(cubes)
    values += shifts[:, None, None, None]
    return values
