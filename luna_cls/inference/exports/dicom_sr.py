"""Marked findings as a DICOM structured report: `findings.dcm`, for archives and viewers such as OHIF.

A Comprehensive 3D SR, template TID 1500. Each finding is a group of TID 1410 whose place is a point
(SCOORD3D) in the scan's own frame of reference: patient coordinates in mm, which keep the height between two
slices. A point on an image (SCOORD) would be shown by a few older readers more, but moves a finding to the
centre of its slice; the template allows one of the two. OHIF, and 3D Slicer with QuantitativeReporting, read
points in space. For readers that go by images, the nearest slice is named as the source of each finding's
measurements and stands in the image library, which OHIF requires.
"""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from highdicom import sr
from pydicom import Dataset, config, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DT

from luna_cls.errors import InputError
from luna_cls.files import written_whole
from luna_cls.inference.exports.ranked import Finding, ranked
from luna_cls.inference.findings import RESEARCH_ONLY, ScanFindings
from luna_cls.scans.volume import files_of

FILE = "findings.dcm"
NAME = "luna_cls"
SERIES_NUMBER = 9901  # behind those of the scanner

_Group = sr.PlanarROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations

_EVALUATIONS = sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
_SOURCE = sr.CodedConcept("260753009", "SCT", "Source")
_PERCENT = sr.CodedConcept("%", "UCUM", "Percent")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient")
_COPIED = (  # what every report must have of its patient and study, be it empty
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write(findings: ScanFindings, folder: Path) -> None:
    """Writes `findings.dcm` if the scan is a DICOM series; for a scan in another format, nothing.

    Patient and study are those of the scan, word for word; the report is a new series of that study,
    preliminary and not verified. Its UIDs follow from what is in it, and its dates, in UTC, are those of
    `about["begun"]`.

    Raises:
        InputError: If slices have gone, or lack what a report must refer to.
    """
    if not findings.source.path.is_dir():
        return
    with config.disable_value_validation():  # what is odd in the scan's headers stays as it is
        report = _report(findings, _slices(findings))
        with written_whole(folder / FILE) as temporary:
            report.save_as(temporary, enforce_file_format=True)


def _slices(findings: ScanFindings) -> list[Dataset]:
    """The headers of the scan's slices, in the order of its grid's z."""
    folder, uid = findings.source
    slices = []
    for path in files_of(folder, uid):
        one = dcmread(path, stop_before_pixels=True)
        missing = next((keyword for keyword in _NEEDED if not one.get(keyword)), None)
        if missing:
            raise InputError(
                f"{path} has no {missing}, so that no report can refer to it. Leave sr out of the formats."
            )
        slices.append(one)
    if len(slices) != findings.grid.shape_zyx[0]:
        raise InputError(
            f"{folder}: the series {uid} has changed since it was read. Received: {len(slices)} slices; "
            f"expected {findings.grid.shape_zyx[0]}. Predict again."
        )
    if len({(one.StudyInstanceUID, one.FrameOfReferenceUID) for one in slices}) > 1:
        raise InputError(
            f"{folder}: slices of the series {uid} differ in StudyInstanceUID or FrameOfReferenceUID, so "
            "that no report can place findings in it. Leave sr out of the formats."
        )
    positions_xyz_mm = np.array([one.ImagePositionPatient for one in slices], float)
    heights_vox = findings.grid.to_voxel_zyx(positions_xyz_mm)[:, 0]
    return [slices[at] for at in np.argsort(heights_vox)]


def _report(findings: ScanFindings, slices: list[Dataset]) -> sr.Comprehensive3DSR:
    begun = datetime.fromisoformat(findings.about["begun"]).astimezone(UTC)
    first = slices[0]
    first.decode()
    without_patient = deepcopy(first)
    for keyword in _COPIED:
        setattr(without_patient, keyword, "")
    whole = [findings.source.series_uid, json.dumps(findings.about, sort_keys=True, default=str)]
    report = sr.Comprehensive3DSR(
        evidence=[without_patient, *slices[1:]],
        content=_content(findings, slices),
        series_instance_uid=_uid("series", *whole),
        series_number=SERIES_NUMBER,
        sop_instance_uid=_uid("instance", *whole, repr(ranked(findings))),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=findings.about["luna_cls"],
        series_description=f"{NAME} findings. {RESEARCH_ONLY}",
        content_qualification="RESEARCH",
        content_date=begun.date(),
        content_time=begun.time(),
        series_date=begun.date(),
        series_time=begun.time(),
        specific_character_set="ISO_IR 192",  # UTF-8: names of models may need it
        is_complete=True,
    )
    for keyword in _COPIED:
        if keyword in first:
            report[keyword] = first[keyword]
    report.InstanceCreationDate, report.InstanceCreationTime = report.ContentDate, report.ContentTime
    # The last is highdicom itself, with the time of day.
    report.ContributingEquipmentSequence[-1].ContributionDateTime = DT(begun.strftime("%Y%m%d%H%M%S"))
    return report


def _content(findings: ScanFindings, slices: list[Dataset]) -> sr.MeasurementReport:
    """The document: who observed, the findings, and what is to be said of the scan as a whole."""
    about, marked = findings.about, ranked(findings, only_marked=True)
    algorithm = sr.AlgorithmIdentification(
        name=NAME, version=about["luna_cls"], parameters=_parameters(findings)
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", about["luna_cls"], *(model["sha256"] for model in about["models"])),
        name=NAME,
        manufacturer_name=NAME,
        model_name=NAME,
    )
    sources = [slices[finding.voxel_zyx[0]] for finding in marked] or [slices[len(slices) // 2]]
    uid = findings.source.series_uid
    groups: list[_Group] = [
        _group(uid, finding, source, algorithm) for finding, source in zip(marked, sources, strict=False)
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=groups or [_no_finding(uid, sources[0], algorithm)],
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, _library(sources))  # the template has it before the measurements
    items.append(_evaluations(findings, len(marked)))
    return content


def _library(sources: list[Dataset]) -> sr.ContainerContentItem:
    """The slices that the report refers to (TID 1600), each once; highdicom's would repeat all headers."""
    contains, context = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    frame_of_reference = sources[0].FrameOfReferenceUID
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=contains)
    group.ContentSequence = sr.ContentSequence(
        [
            sr.CodeContentItem(codes.DCM.Modality, codes.cid29.ComputedTomography, context),
            sr.UIDRefContentItem(codes.DCM.FrameOfReferenceUID, frame_of_reference, context),
            *(
                sr.ImageContentItem(_SOURCE, one.SOPClassUID, one.SOPInstanceUID, relationship_type=contains)
                for one in {one.SOPInstanceUID: one for one in sources}.values()
            ),
        ]
    )
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _parameters(findings: ScanFindings) -> list[str]:
    """What else decided the findings: models, how they were calibrated, the threshold."""
    about = findings.about
    models = [
        f"model {model['name']}, SHA-256 {model['sha256']}, calibration "
        f"{(model['calibration'] or {}).get('method', 'none')}"
        for model in about["models"]
    ]
    return [*models, f"threshold {about['threshold']:.6g}"]


def _group(
    series_uid: str, finding: Finding, source: Dataset, algorithm: sr.AlgorithmIdentification
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """One finding (TID 1410). The same point of the same scan has the same tracking UID in every report."""
    measured = [(codes.DCM.CertaintyOfFinding, round(100 * finding.probability, 4), _PERCENT)]
    if finding.diameter_mm is not None:
        measured.append((codes.SCT.Diameter, round(finding.diameter_mm, 2), codes.UCUM.Millimeter))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid("finding", series_uid, repr(finding.position_xyz_mm)),
            identifier=f"{NAME} finding {finding.rank}",
        ),
        referenced_region=sr.ImageRegion3D(
            graphic_type=sr.GraphicTypeValues3D.POINT,
            graphic_data=np.array([finding.position_xyz_mm]),
            frame_of_reference_uid=source.FrameOfReferenceUID,
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(
                name=name,
                value=value,
                unit=unit,
                referenced_images=[sr.SourceImageForMeasurement.from_source_image(source)],
            )
            for name, value, unit in measured
        ],
    )


def _no_finding(
    series_uid: str, source: Dataset, algorithm: sr.AlgorithmIdentification
) -> sr.MeasurementsAndQualitativeEvaluations:
    """The one group (TID 1501) of a report without findings, as readers look for a group in every report."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid("no finding", series_uid), identifier=f"{NAME}: no finding"
        ),
        algorithm_id=algorithm,
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        qualitative_evaluations=[_summary(0)],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
    )


def _summary(num_marked: int) -> sr.QualitativeEvaluation:
    return sr.QualitativeEvaluation(
        name=codes.DCM.CADProcessingAndFindingsSummary,
        value=codes.DCM.AllAlgorithmsSucceededWithFindings
        if num_marked
        else codes.DCM.AllAlgorithmsSucceededWithoutFindings,
    )


def _evaluations(findings: ScanFindings, num_marked: int) -> sr.ContainerContentItem:
    """What is to be said of the scan as a whole."""
    candidates, threshold = len(findings.table), f"{findings.about['threshold']:.6g}"
    shown = (
        f"{num_marked} of {candidates} candidates are shown, each with a probability of {threshold} or more."
        if num_marked
        else f"None of {candidates} candidates has a probability of {threshold} or more."
    )
    contains = sr.RelationshipTypeValues.CONTAINS
    container = sr.ContainerContentItem(name=_EVALUATIONS, relationship_type=contains)
    comment = sr.TextContentItem(codes.DCM.Comment, f"{RESEARCH_ONLY} {shown}", contains)
    container.ContentSequence = sr.ContentSequence([*_summary(num_marked), comment])
    return container


def _uid(*entropy: str) -> UID:
    """A UID that is the same whenever its sources are."""
    return generate_uid(entropy_srcs=[part + "\n" for part in (NAME, *entropy)])
