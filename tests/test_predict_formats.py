"""What predict leaves for each scan, from scans to files that other programs open."""

import json

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_cls.inference.options import Options
from luna_cls.inference.predictor import predict
from luna_cls.reports.page import write_report, write_scan_report
from luna_cls.scans.phantom import Acquisition, write_phantom

ALL = ("json", "slicer", "nifti", "sr", "html")
POINT = ["coordX", "coordY", "coordZ"]


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A phantom scan with six nodules: its LUNA16 tree."""
    taken = Acquisition(num_slices=(70, 70), slice_mm=(2.5,))
    folder = tmp_path_factory.mktemp("chest") / "tree"
    return write_phantom(folder, 1, 4, num_nodules=6, imbalance=10, workers=1, acquisition=taken).root


@pytest.fixture(scope="module")
def read(chest, tmp_path_factory):
    """It is read without a list of candidates, by the model that comes along, and written in all formats."""
    options = Options(
        formats=ALL, merge_mm=8.0, threshold=0.2, most=5, diameters=True, explain=2, symmetries="none"
    )
    out = tmp_path_factory.mktemp("read") / "out"
    made = predict("phantom", [chest / "subset0"], None, out, options, write_page=write_scan_report)
    assert made.failures.empty
    (folder,) = (out / "scans").iterdir()
    return made, folder


@pytest.mark.slow
def test_every_format_is_there(read):
    """All but the report in DICOM, which only a DICOM series has; two of the findings are explained."""
    _, folder = read

    assert sorted(path.name for path in folder.iterdir()) == [
        "findings.csv",
        "findings.json",
        "findings.mrk.json",
        "findings_labels.nii.gz",
        "findings_probability.nii.gz",
        "report.html",
        "saliency_1.nii.gz",
        "saliency_2.nii.gz",
        "scan.json",
    ]


@pytest.mark.slow
def test_all_formats_tell_of_the_same_places(read):
    """CSV, JSON, markups, spheres and maps have the five marked findings within half a millimetre."""
    made, folder = read
    table = made.findings
    marked = table.head(5)[POINT].to_numpy()

    told = json.loads((folder / "findings.json").read_text())["findings"]
    points = json.loads((folder / "findings.mrk.json").read_text())["markups"][0]["controlPoints"]
    labels = sitk.ReadImage(str(folder / "findings_labels.nii.gz"))
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(labels)

    assert len(told) == len(table)
    assert [entry["marked"] for entry in told] == [True] * 5 + [False] * (len(table) - 5)
    np.testing.assert_allclose([entry["position_xyz_mm"] for entry in told[:5]], marked, atol=1e-3)
    np.testing.assert_allclose([point["position"] for point in points], marked, atol=1e-3)
    assert shape.GetLabels() == (1, 2, 3, 4, 5)
    for rank, place in enumerate(marked, 1):
        assert np.linalg.norm(np.array(shape.GetCentroid(rank)) - place) < 0.5
    for rank in (1, 2):
        image = nibabel.load(folder / f"saliency_{rank}.nii.gz")
        middle = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
        np.testing.assert_allclose(middle[:3] * [-1, -1, 1], marked[rank - 1], atol=0.01)


@pytest.mark.slow
def test_what_was_asked_for_is_done(read, chest):
    """No two findings within 8 mm; sizes for the marked alone; the nodules are among the first."""
    made, _ = read
    table = made.findings
    places = table[POINT].to_numpy()
    nodules = pd.read_csv(chest / "annotations.csv")

    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(len(places))

    assert apart.min() > 2
    assert table["diameter_mm"].head(5).notna().sum() >= 3
    assert table["diameter_mm"].iloc[5:].isna().all()
    assert table["merged"].sum() > len(table)
    first = places[:12]
    hit = [
        (np.linalg.norm(first - nodule[POINT].to_numpy(float), axis=1) < nodule["diameter_mm"] / 2).any()
        for _, nodule in nodules.iterrows()
    ]
    assert sum(hit) >= len(nodules) // 2


@pytest.mark.slow
def test_a_dicom_series_gives_the_findings_of_its_copy(real_data, tmp_path):
    """600 points of the real scan are proposed: equal, to 1e-4, from .zraw and from DICOM."""
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
    options = Options(formats=("json", "sr"))
    copy = predict("phantom", [real_data / "lidc" / "subset1"], None, tmp_path / "copy", options)
    series = predict("phantom", [real_data / "lidc_dicom"], None, tmp_path / "series", options)

    numbers = [*POINT, "probability", "logit"]
    assert len(copy.findings) == 600
    np.testing.assert_allclose(series.findings[numbers], copy.findings[numbers], atol=1e-4)
    assert set(series.findings["seriesuid"]) == {uid}
    assert copy.failures.empty
    assert series.failures.empty
    assert (tmp_path / "series" / "scans" / uid / "findings.dcm").is_file()
    assert not (tmp_path / "copy" / "scans" / uid / "findings.dcm").exists()


@pytest.mark.slow
def test_the_page_of_all_scans_leads_to_that_of_each(read):
    """The row of the scan is a link to the page in its own folder."""
    made, folder = read

    page = write_report(made.path).read_text()

    assert f'<a href="scans/{folder.name}/report.html">' in page
    assert "Each leads to its own page." in page
