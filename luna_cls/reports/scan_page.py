"""The page of the findings of one scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.inference.findings import saliency_name
from luna_cls.reports.blocks import Card, Cards, Page, Section, Table, number, plural, probability
from luna_cls.reports.calibration_sections import METHODS
from luna_cls.reports.candidates import AXES, PICTURES_HINT, how_to_look
from luna_cls.reports.evidence import need, read_json
from luna_cls.reports.viewer import Cube, Cubes, card, place_of
from luna_cls.scans.grid import Grid
from luna_cls.scans.readers import nifti

FINDINGS = "findings.json"
MOST_CARDS = 20
MOST_ROWS = 50
MOST_VOXELS = 200**3  # of a map: more than any cube a model reads
FEWEST_SHOWN = 3  # where none is marked
# Where an axis of the world begins and ends, in the patient: x, y, z.
_ENDS = (("right", "left"), ("front", "back"), ("feet", "head"))
_COLOURS = (
    "Colours show what moved the logit, by integrated gradients: orange voxels raised it above that of "
    "plain lung, blue ones lowered it, the stronger the colour the more. They tell what the model looked at, "
    "not whether it is right."
)

Finding = Mapping[str, Any]


def scan_page(folder: Path, cubes: Cubes) -> Page:
    """Reads the findings of one scan into a page.

    Args:
        folder: With `findings.json`, as `luna-cls predict` makes it for each scan; `saliency_N.nii.gz`
            explains the finding of rank N.
        cubes: Where pictures come from.

    Raises:
        InputError: If a file is missing or damaged.
    """
    path = folder / FINDINGS
    about = read_json(path)
    if about is None:
        raise InputError(f"{folder} has no {FINDINGS}. Predict with --formats json.")
    need(about, path, "models", "threshold", "scan", "findings", "luna_cls")
    scan, found, threshold = about["scan"], _with_places(about), float(about["threshold"])
    grid = Grid(scan["shape_zyx"], scan["spacing_xyz_mm"], scan["origin_xyz_mm"], scan["direction"])
    marked = [finding for finding in found if finding["marked"]]
    shown = marked[:MOST_CARDS] or found[:FEWEST_SHOWN]
    ranks_shown = {finding["rank"] for finding in shown}
    others = [finding for finding in found if finding["rank"] not in ranks_shown]
    calibrated = _calibration_in_words(about["models"])
    x_mm, y_mm, z_mm = (f"{step:.3g}" for step in grid.spacing_xyz_mm)
    sections = [_shown(folder, shown, len(marked), grid, cubes)] if shown else []
    if others:
        sections.append(_others(others, len(marked) - len(shown), grid))
    return Page(
        kind="Findings of one scan",
        title=str(scan["series_uid"]),
        verdict=f"{_verdict(found, marked, threshold)} {calibrated}",
        facts=[
            ("Marked", f"{len(marked):,} of {len(found):,}", "findings"),
            ("Threshold", probability(threshold), "marked from this probability"),
            (
                "Highest probability",
                probability(found[0]["probability"] if found else None),
                "of all findings",
            ),
            ("Slices", f"{grid.shape_zyx[0]:,}", f"voxels of {x_mm} × {y_mm} × {z_mm}\N{NO-BREAK SPACE}mm"),
        ],
        sections=[*sections, _made_by(about)],
    )


def _with_places(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The findings in order of rank, each with the columns of a table of points."""
    uid = str(about["scan"]["series_uid"])
    found = [
        {**finding, "seriesuid": uid, **dict(zip(COORDINATES, finding["position_xyz_mm"], strict=True))}
        for finding in about["findings"]
    ]
    for finding in found:
        if not isinstance(finding["rank"], int) or finding["rank"] < 1:  # it names files
            raise ValueError(f"rank is {finding['rank']!r}, no whole number from 1")
    return sorted(found, key=lambda finding: finding["rank"])


def _verdict(found: Sequence[Finding], marked: Sequence[Finding], threshold: float) -> str:
    level = f"a probability of {probability(threshold)} or more"
    if not found:
        return "Nothing in this scan was scored: there is no finding."
    highest = probability(found[0]["probability"])
    if not marked:
        return (
            f"No finding in this scan has {level}, the threshold. The most probable of "
            f"{plural(len(found), 'finding')} has {highest}."
        )
    likely = sum(finding["probability"] >= threshold for finding in found)
    if len(marked) < likely:
        what = f"The {len(marked):,} most probable of {likely:,} findings with {level} are marked"
        return f"{what}. The first has {highest}."
    if len(marked) == 1:
        return f"One finding in this scan has {level}: it has {highest}."
    return f"{len(marked):,} findings in this scan have {level}; the most probable has {highest}."


def _calibration_in_words(models: Sequence[Mapping[str, Any]]) -> str:
    """Whether probabilities are calibrated, and by what."""
    methods = {str(model["calibration"]["method"]) if model.get("calibration") else "" for model in models}
    if methods <= {""}:
        return "The probabilities are as trained, not calibrated."
    if "" in methods:
        return "The probabilities of some of the models are calibrated, those of others are not."
    names = " and ".join(METHODS.get(method, method) for method in sorted(methods))
    return f"The probabilities are calibrated, by {names}."


def _shown(folder: Path, shown: Sequence[Finding], num_marked: int, grid: Grid, cubes: Cubes) -> Section:
    """The findings that come first: as cards, or as a table where there are no pictures to be had."""
    if not num_marked:
        name = "Most probable findings"
        text = "None is marked, as none reaches the threshold. The most probable first."
    else:
        name, text = "Marked findings", "The most probable first."
        if num_marked > len(shown):
            text = f"The {len(shown)} most probable of {num_marked:,}; the others are in the table below."
    if not cubes.is_there:
        table = _table(name, shown, grid)
        return Section("findings", name, (f"{text} {AXES}",), [table], PICTURES_HINT)
    made = _cards(folder, shown, grid, cubes)
    colours = [_COLOURS] if any(one.overlay_still for one in made) else []
    return Section("findings", name, (text, *how_to_look(made), *colours), [Cards(made)])


def _cards(folder: Path, shown: Sequence[Finding], grid: Grid, cubes: Cubes) -> list[Card]:
    made = []
    around = cubes.around(pd.DataFrame(shown)[["seriesuid", *COORDINATES]])
    for finding, cube in zip(shown, around, strict=True):
        facts = [
            *_known(finding),
            ("Place x, y, z", f"{place_of(finding)} mm"),
            ("Slice", _slice_in_words(finding["voxel_zyx"], grid)),
        ]
        heading = f"{finding['rank']}. probability {probability(finding['probability'])}"
        path = folder / saliency_name(finding["rank"])
        explanation = _map_around(path, finding, cube) if path.is_file() else None
        made.append(card(heading, facts, cube, explanation))
    return made


def _known(finding: Finding) -> list[tuple[str, str]]:
    """What is known of a finding besides where it is."""
    facts = []
    if finding.get("diameter_mm") is not None:
        facts.append(("Diameter", f"about {number(finding['diameter_mm'], 1)} mm"))
    if finding.get("merged", 1) > 1:
        facts.append(("Made from", plural(finding["merged"], "nearby finding")))
    if finding.get("class") is not None:
        facts.append(("Known to be", "on a nodule" if finding["class"] == 1 else "on no nodule"))
    return facts


def _map_around(path: Path, finding: Finding, cube: Cube) -> NDArray[np.float32] | None:
    """A map of what moved the logit, at the voxels of a cube; 0 where the map does not reach."""
    if cube.hu is None:
        return None
    values, grid = nifti.read(path, MOST_VOXELS)
    edge = len(cube.hu)
    offsets_mm = (np.arange(edge) - (edge - 1) / 2) * cube.spacing_mm
    z, y, x = np.meshgrid(*[offsets_mm] * 3, indexing="ij")
    points_xyz_mm = np.stack([x, y, z], axis=-1) + np.array(finding["position_xyz_mm"], float)
    places = np.moveaxis(grid.to_voxel_zyx(points_xyz_mm), -1, 0)
    return np.asarray(ndimage.map_coordinates(values, places, np.float32, order=1, cval=0.0), np.float32)


def _slice_in_words(voxel_zyx: Sequence[int], grid: Grid) -> str:
    """Which slice of the scan goes through a voxel, from 1, counted from either end."""
    count, index = grid.shape_zyx[0], int(voxel_zyx[0])
    first, last = _ends(grid)
    return f"{index + 1:,} of {count:,} from the {first}, {count - index:,} from the {last}"


def _ends(grid: Grid) -> tuple[str, str]:
    """The ends of the patient that the first and the last slice lie towards."""
    step = grid.direction[:, 2]
    axis = int(np.abs(step).argmax())
    first, last = _ENDS[axis]
    return (first, last) if step[axis] > 0 else (last, first)


def _others(others: Sequence[Finding], marked_among: int, grid: Grid) -> Section:
    text = "Below the threshold, the most probable first."
    if marked_among > 0:
        text = f"The first {marked_among:,} of them {'is' if marked_among == 1 else 'are'} marked, too."
    if len(others) > MOST_ROWS:
        text += f" The first {MOST_ROWS} of {len(others):,}; {FINDINGS} has all."
    table = _table("Other findings", others[:MOST_ROWS], grid)
    return Section("others", "Other findings", (f"{text} {AXES}",), [table])


def _table(caption: str, findings: Sequence[Finding], grid: Grid) -> Table:
    optional = {
        name: heading
        for name, heading in (("diameter_mm", "Diameter in mm"), ("class", "Known to be"))
        if any(finding.get(name) is not None for finding in findings)
    }
    rows = []
    for finding in findings:
        known = {
            "diameter_mm": number(finding.get("diameter_mm"), 1),
            "class": "–" if finding.get("class") is None else "a nodule" if finding["class"] == 1 else "none",
        }
        rows.append(
            (
                f"{finding['rank']:,}",
                probability(finding["probability"]),
                *(known[name] for name in optional),
                place_of(finding),
                f"{finding['voxel_zyx'][0] + 1:,}",
            )
        )
    columns = (
        "Rank",
        "Probability",
        *optional.values(),
        "x, y, z in mm",
        f"Slice, from the {_ends(grid)[0]}",
    )
    return Table(caption, columns, rows)


def _made_by(about: Mapping[str, Any]) -> Section:
    rows = [
        (
            str(model.get("name")),
            str(model["calibration"]["method"]) if model.get("calibration") else "none",
            str(model.get("sha256")),
        )
        for model in about["models"]
    ]
    what = "one model" if len(rows) == 1 else f"{len(rows)} models, whose logits were averaged"
    table = Table("What scored them", ("Model", "Calibration", "SHA-256"), rows, of_words=True)
    text = f"By luna_cls {about['luna_cls']}, with {what}."
    return Section("made-by", "How they were made", (text,), [table])
