"""Findings as a DICOM structured report: what four other programs read in it."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from directions import IDENTITY, TILTED, each_direction

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.inference import exports
from luna_cls.inference.findings import ScanFindings
from luna_cls.scans.luna16 import read_candidates
from luna_cls.scans.volume import ScanSource, find_scans, read_volume

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install luna_cls[dicom]")
sr = pytest.importorskip("highdicom.sr", reason="needs highdicom: pip install luna_cls[dicom]")

ROOT = "1.2.826.0.1.3680043.2."
STUDY, SERIES, FRAME_OF_REFERENCE = f"{ROOT}1", f"{ROOT}2", f"{ROOT}3"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SHAPE_ZYX, SPACING_XYZ_MM, ORIGIN_XYZ_MM = (8, 20, 24), (0.7, 0.8, 2.5), (-195.0, 12.5, -378.25)
PLACES_ZYX_VOX = np.array([[2.3, 5.1, 10.4], [2.2, 12.0, 3.7], [6.6, 17.9, 20.2], [0.0, 3.0, 4.0]])
ABOUT = {
    "luna_cls": "0.1.0",
    "models": [
        {"name": "größer.keras", "sha256": "0123456789abcdef" * 4, "calibration": {"method": "platt"}}
    ],
    "threshold": 0.5,
    "begun": "2026-11-22T03:00:00+00:00",
}
PATIENT = {
    "PatientID": "P-17",
    "PatientName": "Müller^Jürgen",
    "PatientBirthDate": "19500228",
    "PatientSex": "M",
    "AccessionNumber": "A5",
    "StudyID": "S1",
    "StudyDate": "20260102",
    "StudyTime": "112233",
    "ReferringPhysicianName": "Doe^Jane",
    "StudyDescription": "Thorax",
    "PatientAge": "075Y",
}


def write_series(folder, direction=IDENTITY, **changes):
    """A CT series of 8 slices whose names do not tell their order; changes of None leave an attribute out."""
    folder.mkdir(parents=True)
    for z in range(SHAPE_ZYX[0]):
        one = pydicom.Dataset()
        one.SpecificCharacterSet = "ISO_IR 100"
        one.SOPClassUID, one.SOPInstanceUID = CT_STORAGE, instance_uid(z)
        one.StudyInstanceUID, one.SeriesInstanceUID = STUDY, SERIES
        one.FrameOfReferenceUID, one.Modality = FRAME_OF_REFERENCE, "CT"
        one.Manufacturer, one.SeriesNumber, one.InstanceNumber = "Scanner", 3, SHAPE_ZYX[0] - z
        position = np.array(ORIGIN_XYZ_MM) + z * SPACING_XYZ_MM[2] * direction[:, 2]
        one.ImagePositionPatient = [f"{x:.8g}" for x in position]
        one.ImageOrientationPatient = [f"{x:.8f}" for x in (*direction[:, 0], *direction[:, 1])]
        one.PixelSpacing = [SPACING_XYZ_MM[1], SPACING_XYZ_MM[0]]
        one.Rows, one.Columns = SHAPE_ZYX[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleIntercept, one.RescaleSlope = 0, 1
        one.PixelData = np.full(SHAPE_ZYX[1:], z, np.int16).tobytes()
        with pydicom.config.disable_value_validation():
            for keyword, value in (PATIENT | changes).items():
                if value is not None:
                    setattr(one, keyword, value)
                elif keyword in one:
                    delattr(one, keyword)
            one.file_meta = pydicom.dataset.FileMetaDataset()
            one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            one.save_as(folder / f"{z * 5 % 8}.dcm", enforce_file_format=True)
    return folder


def instance_uid(z):
    return f"{ROOT}4.{z + 1}"


def find(folder, places_zyx_vox=PLACES_ZYX_VOX, **columns):
    """Findings at places of the one scan of a folder, 15/16, 14/16, ... probable; the last not marked."""
    (source,) = find_scans([folder])
    grid = read_volume(*source).grid
    table = pd.DataFrame(grid.to_world_xyz_mm(places_zyx_vox), columns=COORDINATES)
    table.insert(0, "seriesuid", source.series_uid)
    table["probability"] = 1 - np.arange(1, len(table) + 1) / 16
    table["logit"] = np.log(table["probability"] / (1 - table["probability"]))
    table["marked"] = np.arange(len(table)) < len(table) - 1
    return ScanFindings(source, grid, table.assign(**columns), ABOUT)


def write(findings, folder):
    folder.mkdir(exist_ok=True)
    exports.WRITERS["sr"](findings, folder)
    return folder / "findings.dcm"


@pytest.fixture(scope="module")
def tilted(tmp_path_factory):
    """Findings in a tilted series, with diameters, and their report."""
    root = tmp_path_factory.mktemp("tilted")
    findings = find(write_series(root / "series", TILTED), diameter_mm=[8.25, np.nan, 4.5, 5.0])
    return findings, write(findings, root / "out")


@pytest.fixture
def tool():
    """A function that runs a program on a report and returns what it printed, if it is installed."""

    def run(name, package, path):
        if shutil.which(name) is None:
            pytest.skip(f"needs {name} of Debian's {package}")
        done = subprocess.run([name, path], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    return run


def assert_valid(tool, path):
    said = tool("dciodvfy", "dicom3tools", path)
    assert "Comprehensive3DSR" in said
    assert "Error" not in said, said


def test_the_validator_sees_faults(tmp_path, tilted, tool):
    """A report without its flag of completion is an error to dciodvfy."""
    report = pydicom.dcmread(tilted[1])
    del report.CompletionFlag
    report.save_as(tmp_path / "broken.dcm")

    assert "Error" in tool("dciodvfy", "dicom3tools", tmp_path / "broken.dcm")


def groups_of(path):
    """The findings, asked for as 3D Slicer's QuantitativeReporting asks."""
    report = sr.MeasurementReport.from_sequence([sr.srread(path)])
    return report.get_planar_roi_measurement_groups(
        graphic_type=sr.GraphicTypeValues3D.POINT, reference_type=pydicom.sr.codedict.codes.DCM.ImageRegion
    )


# ------------------------------------------------------------------------------------------ where things are


@each_direction
def test_points_lie_where_the_findings_are(tmp_path, tool, direction):
    """Whichever way the slices lie: within 0.01 mm in highdicom, and the nearest slice is the source."""
    findings = find(write_series(tmp_path / "series", direction))

    path = write(findings, tmp_path / "out")

    groups = groups_of(path)
    points_xyz_mm = np.concatenate([group.roi.value for group in groups])
    np.testing.assert_allclose(points_xyz_mm, findings.marked[COORDINATES], rtol=0, atol=0.01)
    assert {group.roi.frame_of_reference_uid for group in groups} == {FRAME_OF_REFERENCE}
    sources = [group.get_measurements()[0].referenced_images[0] for group in groups]
    assert [one.referenced_sop_instance_uid for one in sources] == [instance_uid(z) for z in (2, 2, 7)]
    assert_valid(tool, path)


def test_a_point_and_its_slice_are_the_voxel_that_luna_cls_reads(tilted):
    """The slice named for a finding holds, in the volume read, the HU at the report's point."""
    findings, path = tilted
    volume = read_volume(*findings.source)

    for group in groups_of(path):
        (place,) = np.rint(volume.grid.to_voxel_zyx(group.roi.value)).astype(int)
        named = group.get_measurements()[0].referenced_images[0].referenced_sop_instance_uid
        hu_of_slice = next(
            z for z in range(SHAPE_ZYX[0]) if instance_uid(z) == named
        )  # each slice holds its z
        assert volume.hu[tuple(place)] == hu_of_slice


def test_dcmtk_reads_the_report(tilted, tool):
    """Its dsrdump prints the same points to 0.01 mm, and that the report is not verified."""
    findings, path = tilted

    said = tool("dsrdump", "dcmtk", path)

    printed = re.findall(r'SCOORD3D:\(,,"Image Region"\)=\(POINT,,([^)]*)\)', said)
    points_xyz_mm = [[float(x) for x in point.split("/")] for point in printed]
    np.testing.assert_allclose(points_xyz_mm, findings.marked[COORDINATES], rtol=0, atol=0.01)
    assert "Verification Flag   : UNVERIFIED" in said
    assert "Preliminary Flag    : PRELIMINARY" in said
    assert "luna_cls findings. For research, not for diagnosis." in said


# ------------------------------------------------------------------------------------------ what is said


def test_a_group_says_what_was_found(tilted):
    """Nodule in the lung, 93.75 % and 87.5 and 81.25 sure; 8.25 mm wide where that is known."""
    _, path = tilted

    groups = groups_of(path)

    assert [group.tracking_identifier for group in groups] == [f"luna_cls finding {n}" for n in (1, 2, 3)]
    assert {group.finding_type.meaning for group in groups} == {"Nodule"}
    assert {group.finding_sites[0].value.meaning for group in groups} == {"Lung"}
    measured = [
        [(one.name.meaning, one.value, one.unit.value) for one in group.get_measurements()]
        for group in groups
    ]
    assert measured == [
        [("Certainty of Finding", 93.75, "%"), ("Diameter", 8.25, "mm")],
        [("Certainty of Finding", 87.5, "%")],
        [("Certainty of Finding", 81.25, "%"), ("Diameter", 4.5, "mm")],
    ]


def test_the_report_says_who_observed_by_which_models(tilted):
    """A device; in every group the software, its version, the model with its checksum, the threshold."""
    _, path = tilted
    texts = {}
    for item in _items(pydicom.dcmread(path)):
        if item.ValueType == "TEXT":
            texts.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item.TextValue)

    assert texts["Device Observer Name"] == ["luna_cls"]
    assert texts["Algorithm Name"] == ["luna_cls"] * 3
    assert texts["Algorithm Version"] == ["0.1.0"] * 3
    assert texts["Algorithm Parameters"] == [
        "model größer.keras, SHA-256 " + "0123456789abcdef" * 4 + ", calibration platt", "threshold 0.5",
    ] * 3  # fmt: skip
    (comment,) = texts["Comment"]
    assert comment.startswith("For research, not for diagnosis. 3 of 4 candidates are shown, each with ")


def _items(dataset):
    """All content items below one."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from _items(item)


def test_the_report_is_a_new_series_of_the_patients_study(tilted):
    """Patient and study as in the scan, in UTF-8; series, instance and dates are the report's own."""
    _, path = tilted

    report = pydicom.dcmread(path)

    assert {keyword: str(report[keyword].value) for keyword in PATIENT} == PATIENT
    assert (report.StudyInstanceUID, report.Modality) == (STUDY, "SR")
    assert report.SOPClassUID == report.file_meta.MediaStorageSOPClassUID == COMPREHENSIVE_3D_SR
    assert report.SeriesInstanceUID not in (STUDY, SERIES)
    assert report.SeriesInstanceUID != report.SOPInstanceUID
    assert (report.ContentDate, report.ContentTime) == ("20261122", "030000")
    assert (report.SeriesDate, report.SeriesTime) == ("20261122", "030000")
    assert (report.ContentQualification, report.VerificationFlag) == ("RESEARCH", "UNVERIFIED")


def test_the_report_names_all_slices_as_evidence_and_its_sources_as_library(tilted):
    """Eight slices of the series were read; the findings lie in two of them."""
    _, path = tilted
    report = pydicom.dcmread(path)

    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    library = next(
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    )

    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (STUDY, SERIES)
    evidence = [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence]
    assert evidence == [instance_uid(z) for z in range(8)]
    images = [item for item in _items(library) if item.ValueType == "IMAGE"]
    named = [image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in images]
    assert named == [instance_uid(2), instance_uid(7)]


def test_a_scan_without_a_finding_has_a_report_that_says_so(tmp_path, tilted, tool):
    """Nothing reaches the threshold: a valid report, without a point, in words and in a code."""
    findings, _ = tilted

    path = write(replace(findings, table=findings.table.assign(marked=False)), tmp_path / "out")

    report = sr.MeasurementReport.from_sequence([sr.srread(path)])
    assert report.get_planar_roi_measurement_groups() == []
    (group,) = report.get_image_measurement_groups()
    assert [one.value.meaning for one in group.get_qualitative_evaluations()] == [
        "All algorithms succeeded; without findings"
    ]
    said = [item.TextValue for item in _items(pydicom.dcmread(path)) if item.ValueType == "TEXT"]
    assert said[-1] == (
        "For research, not for diagnosis. None of 4 candidates has a probability of 0.5 or more."
    )
    assert_valid(tool, path)


def test_a_scan_without_a_candidate_has_a_report(tmp_path, tilted, tool):
    """An empty table is a scan without a finding."""
    findings, _ = tilted

    assert_valid(tool, write(replace(findings, table=findings.table[:0]), tmp_path / "out"))


# ------------------------------------------------------------------------------------------------ UIDs


def _uids(path):
    report = pydicom.dcmread(path)
    tracking = [item.UID for item in _items(report) if item.ValueType == "UIDREF"][1:]
    return report.SeriesInstanceUID, report.SOPInstanceUID, tracking


def test_uids_follow_from_what_is_in_the_report(tmp_path, tilted):
    """Twice the same bytes; another probability makes another instance, another run another series."""
    findings, path = tilted
    again = write(findings, tmp_path / "again")
    table = findings.table.assign(probability=[0.9, 0.8, 0.7, 0.1])
    other = write(replace(findings, table=table), tmp_path / "other")
    later = write(replace(findings, about=ABOUT | {"begun": "2026-11-23T03:00:00+00:00"}), tmp_path / "later")

    assert again.read_bytes() == path.read_bytes()
    series, instance, tracking = _uids(path)
    assert _uids(other)[0] == series
    assert _uids(other)[1] != instance
    assert series not in _uids(later)
    assert instance not in _uids(later)
    assert _uids(other)[2] == _uids(later)[2] == tracking
    assert len(set(tracking)) == len(tracking)
    assert all(pydicom.uid.UID(uid).is_valid for uid in (series, instance, *tracking))


def test_dates_are_in_utc(tmp_path, tilted):
    """What began at half past midnight in Berlin began at 22:30 the day before."""
    findings, _ = tilted
    about = ABOUT | {"begun": "2026-07-22T00:30:00+02:00"}

    report = pydicom.dcmread(write(replace(findings, about=about), tmp_path / "out"))

    assert (report.ContentDate, report.ContentTime) == ("20260721", "223000")


# ------------------------------------------------------------------------------------------- odd sources


def test_a_scan_that_is_no_dicom_has_no_report(tmp_path, write_scan):
    """No file, and no failure."""
    path = write_scan(tmp_path / "scans", SERIES, np.zeros((4, 5, 6), np.int16))
    findings = find(path.parent, [[1, 2, 3], [0, 0, 0]])

    exports.WRITERS["sr"](findings, tmp_path)

    assert findings.source == ScanSource(path, SERIES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scans"]


def test_attributes_that_may_be_missing_may(tmp_path, tool):
    """Of a scan without any word on its patient, the report has the attributes it must have, empty."""
    findings = find(write_series(tmp_path / "series", **dict.fromkeys(PATIENT), SpecificCharacterSet=None))

    path = write(findings, tmp_path / "out")

    report = pydicom.dcmread(path)
    assert (report.PatientID, str(report.PatientName), report.StudyID) == ("", "", "")
    assert "StudyDescription" not in report
    assert_valid(tool, path)


def test_odd_attributes_stay_as_they_are(tmp_path):
    """A date that is none and a sex that DICOM does not know are the scan's word, and remain it."""
    odd = {"PatientBirthDate": "1950", "PatientSex": "UNKNOWN", "StudyTime": "noon", "PatientAge": "75"}
    findings = find(write_series(tmp_path / "series", **odd))

    path = write(findings, tmp_path / "out")

    with pydicom.config.disable_value_validation():
        report = pydicom.dcmread(path)
        assert {keyword: report[keyword].value for keyword in odd} == odd


def test_names_in_any_script_are_kept(tmp_path, tool):
    """Kanji, written by the scanner in ISO 2022, are the same name in the report's UTF-8."""
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    charset = ["", "ISO 2022 IR 87"]
    findings = find(write_series(tmp_path / "series", PatientName=name, SpecificCharacterSet=charset))

    path = write(findings, tmp_path / "out")

    assert str(pydicom.dcmread(path).PatientName) == name
    assert_valid(tool, path)


def test_text_within_sequences_changes_its_script_too(tmp_path):
    """The meaning of a procedure's code, in Latin-1 in the scan, is the same word in the report's UTF-8."""
    procedure = pydicom.Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator = "1", "99LOCAL"
    procedure.CodeMeaning = "Übersicht des Thorax"
    findings = find(write_series(tmp_path / "series", ProcedureCodeSequence=[procedure]))

    report = pydicom.dcmread(write(findings, tmp_path / "out"))

    assert report.ProcedureCodeSequence[0].CodeMeaning == "Übersicht des Thorax"


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_scan_that_no_report_can_refer_to_is_refused(tmp_path, keyword):
    """One line names the slice and what it lacks; nothing is written."""
    findings = find(write_series(tmp_path / "series", **{keyword: None}))

    with pytest.raises(InputError, match=rf"\.dcm has no {keyword}, .* Leave sr out") as refusal:
        write(findings, tmp_path / "out")

    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_scan_in_two_frames_of_reference_is_refused(tmp_path):
    """Points cannot be placed in a series whose slices do not share their coordinates."""
    findings = find(write_series(tmp_path / "series"))
    one = pydicom.dcmread(tmp_path / "series" / "3.dcm")
    one.FrameOfReferenceUID = f"{ROOT}9"
    one.save_as(tmp_path / "series" / "3.dcm")

    with pytest.raises(InputError, match="differ in StudyInstanceUID or FrameOfReferenceUID"):
        write(findings, tmp_path / "out")


def test_a_scan_that_has_changed_is_refused(tmp_path):
    """A slice that has gone since the scan was read is told in one line."""
    findings = find(write_series(tmp_path / "series"))
    (tmp_path / "series" / "3.dcm").unlink()

    with pytest.raises(InputError, match=r"has changed since it was read\. Received: 7 slices; expected 8"):
        write(findings, tmp_path / "out")


# -------------------------------------------------------------------------------------------- a real scan


@pytest.mark.real_data
def test_the_report_of_a_real_scan_is_valid_and_in_place(real_data, tmp_path, tool):
    """Of ...059720603192 and its 46 candidates: valid, and every point and slice is the candidate's."""
    (source,) = find_scans([real_data / "lidc_dicom"])
    grid = read_volume(*source).grid
    candidates = read_candidates(real_data / "lidc" / "candidates_V2.csv")
    table = candidates[candidates["seriesuid"] == source.series_uid].reset_index(drop=True)
    table = table.assign(probability=np.linspace(0.99, 0.5, 46), logit=0.0, marked=True)

    path = write(ScanFindings(source, grid, table, ABOUT), tmp_path / "out")

    groups = groups_of(path)
    points_xyz_mm = np.concatenate([group.roi.value for group in groups])
    np.testing.assert_allclose(points_xyz_mm, table[COORDINATES], rtol=0, atol=0.01)
    slices = {
        one.SOPInstanceUID: float(one.ImagePositionPatient[2])
        for one in (pydicom.dcmread(file, stop_before_pixels=True) for file in source.path.rglob("*.dcm"))
    }
    for group, (*_, z_mm) in zip(groups, points_xyz_mm, strict=True):
        named = group.get_measurements()[0].referenced_images[0].referenced_sop_instance_uid
        assert abs(slices[named] - z_mm) <= 1.25 + 1e-4
    assert {one.frame_of_reference_uid for one in (group.roi for group in groups)} == {
        "1.3.6.1.4.1.14519.5.2.1.6279.6001.229925374658226729607867499499"
    }
    assert_valid(tool, path)
