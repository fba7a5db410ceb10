"""The findings of a scan, written in each format and opened by another program's reader."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from directions import FLIPPED_XY, IDENTITY, PERMUTED, TILTED, each_direction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luna_cls.errors import InputError
from luna_cls.inference import exports
from luna_cls.inference.exports import findings_json, nifti
from luna_cls.inference.findings import ScanFindings
from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import ScanSource

UID = "1.2.826.0.1.3680043.2"
ABOUT = {
    "luna_cls": "0.1.0",
    "models": [
        {
            "name": "seed_cnn.keras",
            "sha256": "0123456789abcdef" * 4,
            "calibration": {"method": "temperature", "parameters": {"temperature": 1.7}},
        }
    ],
    "threshold": 0.5,
    "begun": "2026-11-22T03:00:00+00:00",
}
FILES = {
    "json": ["findings.json"],
    "slicer": ["findings.mrk.json"],
    "nifti": ["findings_labels.nii.gz", "findings_probability.nii.gz"],
    "sr": [],  # the scan here is no DICOM
}


def make(grid, points_xyz_mm, probabilities, *, marked=None, **columns):
    """The findings of a scan that lies in a file."""
    table = pd.DataFrame(np.reshape(points_xyz_mm, (-1, 3)), columns=["coordX", "coordY", "coordZ"])
    table.insert(0, "seriesuid", UID)
    probability = np.array(probabilities, float)
    table["probability"] = probability
    table["logit"] = np.log(probability / (1 - probability))
    table["marked"] = probability >= 0.5 if marked is None else marked
    return ScanFindings(ScanSource(Path("scan.mhd"), UID), grid, table.assign(**columns), ABOUT)


GRID = Grid((40, 50, 60), (0.7, 0.8, 2.5), (-195.0, 12.5, -378.25), TILTED)
PLACES_ZYX_VOX = np.array([[20.3, 25.1, 30.4], [5.8, 40.2, 8.0], [33.0, 7.6, 52.2]])


@pytest.fixture
def findings():
    """Three findings, two of them marked, on a tilted grid."""
    return make(GRID, GRID.to_world_xyz_mm(PLACES_ZYX_VOX), [0.95, 0.625, 0.125])


# -------------------------------------------------------------------------------------------- all formats


@pytest.mark.parametrize("name", exports.WRITERS)
def test_the_same_findings_are_the_same_bytes(tmp_path, findings, name):
    """Each format writes its files and nothing beside them, twice alike."""
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        exports.WRITERS[name](findings, folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})

    assert sorted(written[0]) == FILES[name]
    assert written[0] == written[1]


def test_a_format_that_is_unknown_is_refused():
    """The line says which there are."""
    exports.check(["json", "sr"])

    with pytest.raises(
        InputError, match=r"as 'dcm'\. Choose among json, slicer, nifti, sr, html; or none\.$"
    ):
        exports.check(["json", "dcm"])


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    """Without highdicom, sr alone is refused, with what to install."""
    monkeypatch.setattr(exports, "find_spec", lambda name: None if name == "highdicom" else object())

    exports.check(["json", "slicer", "nifti"])
    with pytest.raises(InputError, match=r"highdicom is not installed.*pip install 'luna_cls\[dicom\]'"):
        exports.check(["sr"])


def test_the_table_of_formats_loads_no_writer():
    """Asking what formats there are loads neither highdicom nor the modules that write."""
    code = (
        "import sys; from luna_cls.inference import exports; exports.check(exports.WRITERS); "
        "print([name for name in sys.modules if name.startswith(('highdicom', exports.__name__ + '.'))])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------- JSON


def _document(findings, folder):
    exports.WRITERS["json"](findings, folder)
    return json.loads((folder / "findings.json").read_text())


def _validate(document):
    schema = findings_json.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_json_holds_every_finding_to_the_last_bit(tmp_path, findings):
    """Three findings, the third not marked; place, probability and logit are the table's float64."""
    document = _document(findings, tmp_path)

    _validate(document)
    table = findings.table
    assert [entry["rank"] for entry in document["findings"]] == [1, 2, 3]
    assert [entry["marked"] for entry in document["findings"]] == [True, True, False]
    positions = [entry["position_xyz_mm"] for entry in document["findings"]]
    np.testing.assert_array_equal(positions, table[["coordX", "coordY", "coordZ"]])
    np.testing.assert_array_equal([entry["logit"] for entry in document["findings"]], table["logit"])
    np.testing.assert_array_equal(
        [entry["probability"] for entry in document["findings"]], [0.95, 0.625, 0.125]
    )
    assert [entry["voxel_zyx"] for entry in document["findings"]] == [[20, 25, 30], [6, 40, 8], [33, 8, 52]]


def test_json_says_what_made_the_findings_and_where_the_scan_lies(tmp_path, findings):
    """Version, models, threshold and grid; from the grid a reader finds a finding's voxel again."""
    document = _document(findings, tmp_path)

    scan, first = document["scan"], document["findings"][0]
    assert document["notice"] == "For research, not for diagnosis."
    assert document["models"] == ABOUT["models"]
    assert (document["luna_cls"], document["threshold"]) == ("0.1.0", 0.5)
    assert (scan["series_uid"], scan["shape_zyx"]) == (UID, [40, 50, 60])
    steps = np.array(scan["direction"]) * scan["spacing_xyz_mm"]
    place_xyz_vox = np.linalg.solve(steps, np.subtract(first["position_xyz_mm"], scan["origin_xyz_mm"]))
    np.testing.assert_allclose(place_xyz_vox[::-1], PLACES_ZYX_VOX[0], atol=1e-9)


def test_json_tells_class_and_diameter_where_they_are_known(tmp_path, findings):
    """A missing diameter is left out, not written as null; without the columns there is neither."""
    known = replace(
        findings, table=findings.table.assign(**{"class": [1, 0, 0], "diameter_mm": [8.5, np.nan, 4]})
    )

    document = _document(known, tmp_path)

    _validate(document)
    assert [entry["class"] for entry in document["findings"]] == [1, 0, 0]
    assert [entry.get("diameter_mm") for entry in document["findings"]] == [8.5, None, 4.0]
    assert "class" not in _document(findings, tmp_path)["findings"][0]


def test_json_without_a_finding_is_valid(tmp_path):
    """A scan without a candidate has an empty list; a model without calibration has null."""
    none = make(GRID, [], [])
    about = ABOUT | {"models": [{"name": "a", "sha256": "0" * 64, "calibration": None}]}

    document = _document(replace(none, about=about), tmp_path)

    _validate(document)
    assert document["findings"] == []


BREAKAGES = {
    "no notice": lambda document: document.pop("notice"),
    "another notice": lambda document: document.update(notice="For diagnosis."),
    "another format": lambda document: document.update(format="luna_cls findings 2"),
    "a key of nobody": lambda document: document.update(extra=1),
    "no model": lambda document: document.update(models=[]),
    "half a checksum": lambda document: document["models"][0].update(sha256="0123"),
    "a threshold above 1": lambda document: document.update(threshold=1.5),
    "a spacing of 0": lambda document: document["scan"].update(spacing_xyz_mm=[0, 1, 1]),
    "two rows of direction": lambda document: document["scan"]["direction"].pop(),
    "a rank of 0": lambda document: document["findings"][0].update(rank=0),
    "a place in a plane": lambda document: document["findings"][0]["position_xyz_mm"].pop(),
    "a percentage": lambda document: document["findings"][0].update(probability=95),
    "a probability in words": lambda document: document["findings"][0].update(probability="0.95"),
    "half a voxel": lambda document: document["findings"][0].update(voxel_zyx=[1.5, 2, 3]),
    "a class of 2": lambda document: document["findings"][0].update({"class": 2}),
    "no diameter": lambda document: document["findings"][0].update(diameter_mm=None),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_schema_refuses_what_is_no_such_document(tmp_path, findings, breakage):
    """Each fault alone makes a valid document invalid."""
    document = _document(findings, tmp_path)
    BREAKAGES[breakage](document)

    with pytest.raises(jsonschema.ValidationError):
        _validate(document)


# ------------------------------------------------------------------------------------------------- Slicer

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_COLOUR = {**_NUMBERS, "minItems": 3, "maxItems": 3, "items": {"type": "number", "minimum": 0, "maximum": 1}}
_SIZE = {"type": "number", "minimum": 0}
_TEXT, _SWITCH = {"type": "string"}, {"type": "boolean"}
# What Slicer's markups schema 1.0.3 asks of a list of points, stricter: nothing that it does not name.
_SLICER = {
    "type": "object",
    "required": ["@schema", "markups"],
    "additionalProperties": False,
    "properties": {
        "@schema": {
            "const": "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
            "Resources/Schema/markups-schema-v1.0.3.json#"
        },
        "markups": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "coordinateSystem", "controlPoints", "display"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Fiducial"},
                    "name": _TEXT,
                    "coordinateSystem": {"const": "LPS"},
                    "coordinateUnits": {"const": "mm"},
                    "locked": _SWITCH,
                    "fixedNumberOfControlPoints": _SWITCH,
                    "labelFormat": _TEXT,
                    "lastUsedControlPointNumber": {"type": "integer"},
                    "controlPoints": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["label", "position"],
                            "additionalProperties": False,
                            "properties": {
                                "id": _TEXT,
                                "label": _TEXT,
                                "description": _TEXT,
                                "associatedNodeID": _TEXT,
                                "position": {**_NUMBERS, "minItems": 3, "maxItems": 3},
                                "orientation": {**_NUMBERS, "minItems": 9, "maxItems": 9},
                                "selected": _SWITCH,
                                "locked": _SWITCH,
                                "visibility": _SWITCH,
                                "positionStatus": {"enum": ["undefined", "preview", "defined"]},
                            },
                        },
                    },
                    "measurements": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "additionalProperties": False,
                            "properties": {
                                "name": _TEXT,
                                "enabled": _SWITCH,
                                "units": _TEXT,
                                "controlPointValues": {**_NUMBERS, "minItems": 1},
                            },
                        },
                    },
                    "display": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "visibility": _SWITCH,
                            "opacity": {"type": "number", "minimum": 0, "maximum": 1},
                            "color": _COLOUR,
                            "selectedColor": _COLOUR,
                            "activeColor": _COLOUR,
                            "propertiesLabelVisibility": _SWITCH,
                            "pointLabelsVisibility": _SWITCH,
                            "textScale": _SIZE,
                            "glyphType": {"enum": ["Circle2D", "StarBurst2D", "Sphere3D"]},
                            "glyphScale": _SIZE,
                            "useGlyphScale": _SWITCH,
                            "sliceProjection": _SWITCH,
                        },
                    },
                },
            },
        },
    },
}


def _markups(findings, folder):
    exports.WRITERS["slicer"](findings, folder)
    document = json.loads((folder / "findings.mrk.json").read_text())
    jsonschema.Draft202012Validator(_SLICER).validate(document)
    (node,) = document["markups"]
    return node


def test_slicer_gets_a_point_for_each_marked_finding(tmp_path, findings):
    """Two points, LPS mm to the last bit, named by rank and probability, legible and locked."""
    node = _markups(findings, tmp_path)

    positions = [point["position"] for point in node["controlPoints"]]
    np.testing.assert_array_equal(positions, findings.marked[["coordX", "coordY", "coordZ"]])
    assert [point["label"] for point in node["controlPoints"]] == ["1: 0.950", "2: 0.625"]
    assert node["controlPoints"][1]["description"] == (
        "Finding 2, probability 0.6250. For research, not for diagnosis."
    )
    assert node["locked"]
    assert node["display"]["pointLabelsVisibility"]
    assert [(one["name"], one["controlPointValues"]) for one in node["measurements"]] == [
        ("probability", [0.95, 0.625])
    ]


def test_slicer_gets_diameters_where_all_points_have_one(tmp_path, findings):
    """As a measurement in mm with a value for each point, written as fractions, which Slicer asks for."""
    table = findings.table.assign(diameter_mm=[8.0, 4.25, np.nan])

    node = _markups(replace(findings, table=table), tmp_path)

    measured = node["measurements"][1]
    assert (measured["name"], measured["units"]) == ("diameter", "mm")
    assert measured["controlPointValues"] == [8.0, 4.25]
    assert all(isinstance(value, float) for value in measured["controlPointValues"])
    assert "diameter 8.0 mm" in node["controlPoints"][0]["description"]


def test_slicer_gets_an_empty_list_where_nothing_is_marked(tmp_path, findings):
    """A file that opens, without points or measurements."""
    node = _markups(replace(findings, table=findings.table.assign(marked=False)), tmp_path)

    assert (node["controlPoints"], node["measurements"]) == ([], [])


# -------------------------------------------------------------------------------------------------- NIfTI


def _volumes(findings, folder):
    """Labels and probabilities, as nibabel has them."""
    exports.WRITERS["nifti"](findings, folder)
    return nibabel.load(folder / nifti.LABELS), nibabel.load(folder / nifti.PROBABILITY)


def _centroid_by_nibabel(image, value):
    """World point, LPS mm, of the middle of the voxels that hold a value."""
    places_xyz_vox = np.argwhere(np.isclose(np.asanyarray(image.dataobj), value))
    return np.array([-1, -1, 1]) * nibabel.affines.apply_affine(image.affine, places_xyz_vox).mean(axis=0)


def _centroid_by_itk(path, value):
    image = sitk.ReadImage(str(path))
    places_zyx_vox = np.argwhere(np.isclose(sitk.GetArrayFromImage(image), value))
    middle_xyz_vox = places_zyx_vox.mean(axis=0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(middle_xyz_vox.tolist()))


@each_direction
@pytest.mark.parametrize("spacing_xyz_mm", [(0.7, 0.8, 2.5), (1.0, 1.0, 1.0)], ids=["anisotropic", "even"])
def test_spheres_lie_where_the_findings_are(tmp_path, direction, spacing_xyz_mm):
    """Whichever way a scan lies, nibabel and ITK see the middle of each sphere within 0.5 mm."""
    grid = Grid((40, 50, 60), spacing_xyz_mm, (-195.0, 12.5, -378.25), direction)
    points_xyz_mm = grid.to_world_xyz_mm(PLACES_ZYX_VOX)
    known = make(grid, points_xyz_mm, [0.95, 0.625, 0.5], diameter_mm=[12.0, np.nan, 7.5])

    labels, probability = _volumes(known, tmp_path)

    for rank, (point_xyz_mm, value) in enumerate(zip(points_xyz_mm, [0.95, 0.625, 0.5], strict=True), 1):
        for image, path, wanted in (
            (labels, tmp_path / nifti.LABELS, rank),
            (probability, tmp_path / nifti.PROBABILITY, value),
        ):
            assert np.linalg.norm(_centroid_by_nibabel(image, wanted) - point_xyz_mm) < 0.5
            assert np.linalg.norm(_centroid_by_itk(path, wanted) - point_xyz_mm) < 0.5


@each_direction
def test_volumes_lie_on_the_scans_own_grid(tmp_path, direction):
    """ITK reads the shape, spacing, origin and direction of the scan; both forms say scanner, mm."""
    grid = Grid((12, 14, 16), (0.7, 0.8, 2.5), (-195.0, 12.5, -378.25), direction)

    labels, probability = _volumes(make(grid, [], []), tmp_path)

    for image, name, dtype in (
        (labels, nifti.LABELS, np.uint8),
        (probability, nifti.PROBABILITY, np.float32),
    ):
        read = sitk.ReadImage(str(tmp_path / name))
        assert read.GetSize() == (16, 14, 12)
        np.testing.assert_allclose(read.GetSpacing(), grid.spacing_xyz_mm, rtol=1e-6)
        np.testing.assert_allclose(read.GetOrigin(), grid.origin_xyz_mm, rtol=1e-6)
        np.testing.assert_allclose(np.reshape(read.GetDirection(), (3, 3)), direction, atol=1e-6)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert image.header.get_xyzt_units() == ("mm", "unknown")
        assert image.get_data_dtype() == dtype
        assert b"For research, not for diagnosis." in image.header["descrip"].item()
        assert not np.asanyarray(image.dataobj).any()


def test_a_sphere_holds_the_voxels_within_its_radius(tmp_path):
    """At a voxel's centre, 6 mm wide on 1 mm voxels, it has the 123 lattice points within 3 of the origin."""
    grid = Grid((20, 20, 20), (1, 1, 1), (0, 0, 0), FLIPPED_XY)

    labels, _ = _volumes(make(grid, grid.to_world_xyz_mm([[10, 9, 8]]), [0.75]), tmp_path)

    assert (np.asanyarray(labels.dataobj) == 1).sum() == 123


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    direction=st.sampled_from([IDENTITY, FLIPPED_XY, PERMUTED, TILTED]),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    place=st.tuples(st.floats(-0.5, 6.5), st.floats(-0.5, 7.5), st.floats(-0.5, 8.5)),
    diameter_mm=st.floats(0.01, 12),
)
def test_a_finding_anywhere_marks_its_nearest_voxel(tmp_path, direction, spacing, place, diameter_mm):
    """Smaller than a voxel or cut by the border, its voxel is marked, and none whose centre is outside it."""
    grid = Grid((7, 8, 9), spacing, (-100.0, 20.0, 5.0), direction)
    known = make(grid, grid.to_world_xyz_mm([place]), [0.75], diameter_mm=diameter_mm)

    labels, _ = _volumes(known, tmp_path)

    marked = np.asanyarray(labels.dataobj).T.ravel() == 1
    centers_xyz_mm = grid.to_world_xyz_mm(np.indices(grid.shape_zyx).reshape(3, -1).T)
    distances_mm = np.linalg.norm(centers_xyz_mm - grid.to_world_xyz_mm([place]), axis=1)
    nearest = distances_mm <= distances_mm.min() + 1e-6  # two or more where it lies half way between
    is_clear = (np.abs(distances_mm - diameter_mm / 2) > 1e-6) & ~nearest
    assert marked[nearest].any()
    np.testing.assert_array_equal(marked[is_clear], distances_mm[is_clear] < diameter_mm / 2)


def test_where_spheres_overlap_the_more_probable_is_seen(tmp_path):
    """Of two findings 2 mm apart, the voxels nearer than 3 mm to the first are the first's."""
    grid = Grid((20, 20, 20), (1, 1, 1), (0, 0, 0))

    labels, probability = _volumes(make(grid, [[9, 9, 9], [11, 9, 9]], [0.75, 0.625]), tmp_path)

    along_x = np.asanyarray(labels.dataobj)[5:16, 9, 9]
    assert along_x.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 0]
    assert np.asanyarray(probability.dataobj)[[12, 13], 9, 9].tolist() == [0.75, 0.625]


def test_what_is_not_marked_is_not_drawn_and_ranks_stay(tmp_path, findings):
    """With only the third of three marked, the one sphere has label 3."""
    only_third = replace(findings, table=findings.table.assign(marked=[False, False, True]))

    labels, probability = _volumes(only_third, tmp_path)

    assert np.unique(np.asanyarray(labels.dataobj)).tolist() == [0, 3]
    assert np.unique(np.asanyarray(probability.dataobj)).tolist() == [0.0, 0.125]


def test_ranks_beyond_255_have_sixteen_bits(tmp_path):
    """300 findings in a row keep their ranks."""
    grid = Grid((2, 2, 300), (7, 7, 7), (0, 0, 0))
    points_xyz_mm = grid.to_world_xyz_mm([[0, 0, x] for x in range(300)])

    labels, _ = _volumes(make(grid, points_xyz_mm, np.linspace(0.9, 0.6, 300)), tmp_path)

    assert labels.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj)[:, 0, 0], np.arange(1, 301))


def test_packed_volumes_tell_no_time(tmp_path, findings):
    """The four bytes of gzip's time stamp are zero, and there is no file name."""
    exports.WRITERS["nifti"](findings, tmp_path)

    for name in FILES["nifti"]:
        start = (tmp_path / name).read_bytes()[:10]
        assert start[3:8] == bytes(5)
        assert len(gzip.decompress((tmp_path / name).read_bytes())) in (352 + 120_000, 352 + 480_000)
