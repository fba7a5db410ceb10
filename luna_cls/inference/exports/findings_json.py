"""All findings of a scan, for programs: `findings.json`, which `findings.schema.json` describes."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from luna_cls.files import write_json
from luna_cls.inference.exports.ranked import Finding, ranked
from luna_cls.inference.findings import RESEARCH_ONLY, ScanFindings

FILE = "findings.json"
FORMAT = "luna_cls findings 1"  # another number if what is there already changes its meaning


def write(findings: ScanFindings, folder: Path) -> None:
    """Writes `findings.json`: all findings, marked or not, and what made them."""
    grid = findings.grid
    document = {
        "format": FORMAT,
        "notice": RESEARCH_ONLY,
        "luna_cls": findings.about["luna_cls"],
        "models": [
            {name: model.get(name) for name in ("name", "sha256", "calibration")}
            for model in findings.about["models"]
        ],
        "threshold": findings.about["threshold"],
        "scan": {
            "series_uid": findings.source.series_uid,
            "shape_zyx": list(grid.shape_zyx),
            "spacing_xyz_mm": grid.spacing_xyz_mm.tolist(),
            "origin_xyz_mm": grid.origin_xyz_mm.tolist(),
            "direction": grid.direction.tolist(),
        },
        "findings": [_entry(finding) for finding in ranked(findings)],
    }
    write_json(folder / FILE, document)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `findings.json`."""
    text = resources.files(__package__).joinpath("findings.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _entry(finding: Finding) -> dict[str, Any]:
    known = {"class": finding.label, "diameter_mm": finding.diameter_mm, "merged": finding.merged}
    return {
        "rank": finding.rank,
        "position_xyz_mm": finding.position_xyz_mm,
        "voxel_zyx": finding.voxel_zyx,
        "probability": finding.probability,
        "logit": finding.logit,
        "marked": finding.is_marked,
        **{name: value for name, value in known.items() if value is not None},
    }
