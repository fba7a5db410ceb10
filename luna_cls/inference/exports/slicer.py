"""Marked findings as points in 3D Slicer: `findings.mrk.json`, its markups format, version 1.0.3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luna_cls.files import write_json
from luna_cls.inference.exports.ranked import Finding, ranked
from luna_cls.inference.findings import RESEARCH_ONLY, ScanFindings

FILE = "findings.mrk.json"
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_YELLOW = [1.0, 0.85, 0.0]  # seen on lung, vessel and bone alike
_DISPLAY = {
    "visibility": True,
    "opacity": 1.0,
    "color": _YELLOW,
    "selectedColor": _YELLOW,
    "activeColor": [0.4, 1.0, 0.0],
    "propertiesLabelVisibility": False,
    "pointLabelsVisibility": True,
    "textScale": 3.0,  # per cent of the window
    "glyphType": "StarBurst2D",  # lines, between which the finding is seen
    "glyphScale": 2.0,
    "useGlyphScale": True,
    "sliceProjection": False,
}


def write(findings: ScanFindings, folder: Path) -> None:
    """Writes `findings.mrk.json`: a locked list of points, each named by its rank and probability.

    Slicer reads it by Add Data or by dragging it onto the window; the points then lie in the scan's own
    world, LPS. Probabilities, and diameters where all are known, are measurements of the list, too.
    """
    marked = ranked(findings, only_marked=True)
    node = {
        "type": "Fiducial",
        "name": "luna_cls findings",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(marked),
        "controlPoints": [_point(finding) for finding in marked],
        "measurements": _measurements(marked),
        "display": _DISPLAY,
    }
    write_json(folder / FILE, {"@schema": SCHEMA, "markups": [node]})


def _point(finding: Finding) -> dict[str, Any]:
    size = "" if finding.diameter_mm is None else f", diameter {finding.diameter_mm:.1f} mm"
    told = f"Finding {finding.rank}, probability {finding.probability:.4f}{size}"
    return {
        "id": str(finding.rank),
        "label": f"{finding.rank}: {finding.probability:.3f}",
        "description": f"{told}. {RESEARCH_ONLY}",
        "associatedNodeID": "",
        "position": finding.position_xyz_mm,
        "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],  # as Slicer itself in LPS
        "selected": True,
        "locked": True,
        "visibility": True,
        "positionStatus": "defined",
    }


def _measurements(marked: list[Finding]) -> list[dict[str, Any]]:
    measurements = [("probability", "", [finding.probability for finding in marked])]
    diameters_mm = [finding.diameter_mm for finding in marked if finding.diameter_mm is not None]
    if len(diameters_mm) == len(marked):
        measurements.append(("diameter", "mm", diameters_mm))
    return [
        {"name": name, "enabled": True, "units": units, "controlPointValues": values}
        for name, units, values in measurements
        if values
    ]
