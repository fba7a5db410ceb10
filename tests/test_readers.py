"""Every format gives the same voxels at the same world points, and one clear line when it is damaged."""

import gzip
import locale
import os
import re
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from directions import FLIPPED_XY, IDENTITY, PERMUTED, TILTED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import read_candidates
from luna_cls.scans.readers import nifti
from luna_cls.scans.volume import READERS, find_scans, read_volume

SHAPE_ZYX = (6, 7, 8)
SPACING_XYZ_MM = (0.7, 0.8, 2.5)
ORIGIN_XYZ_MM = (-195.0, 12.5, -378.25)
DIRECTIONS = {"aligned": IDENTITY, "flipped": FLIPPED_XY, "permuted": PERMUTED, "oblique": TILTED}
HU = np.random.default_rng(0).integers(-1000, 2000, SHAPE_ZYX).astype(np.int16)


def _image(hu=HU, direction=DIRECTIONS["oblique"]):
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING_XYZ_MM)
    image.SetOrigin(ORIGIN_XYZ_MM)
    image.SetDirection(np.ravel(direction).tolist())
    return image


def _affine_ras_mm(direction=DIRECTIONS["oblique"]):
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(SPACING_XYZ_MM)
    affine[:3, 3] = ORIGIN_XYZ_MM
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _nifti(hu=HU, direction=DIRECTIONS["oblique"]):
    image = nibabel.Nifti1Image(hu.T, _affine_ras_mm(direction))
    image.header.set_xyzt_units("mm")
    image.set_qform(_affine_ras_mm(direction), code=1)
    return image


def _write(path, hu=HU, direction=DIRECTIONS["oblique"], *, compressed=False):
    if ".nii" in path.name:
        nibabel.save(_nifti(hu, direction), path)
    else:
        sitk.WriteImage(_image(hu, direction), str(path), useCompression=compressed)
    return path


def _assert_where_it_was(volume, direction, atol_mm=1e-4):
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.hu.dtype == np.int16
    np.testing.assert_allclose(volume.grid.spacing_xyz_mm, SPACING_XYZ_MM, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.origin_xyz_mm, ORIGIN_XYZ_MM, rtol=0, atol=atol_mm)
    np.testing.assert_allclose(volume.grid.direction, direction, rtol=0, atol=1e-6)


PACKING = [(ending, packed) for ending in READERS for packed in (False, True) if ".nii" not in ending]
PACKING += [(".nii", False), (".nii.gz", True)]


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize(("ending", "compressed"), PACKING)
def test_every_format_gives_the_voxels_where_they_were(tmp_path, ending, compressed, direction):
    """Voxels to the last bit, and their places to 0.0001 mm, from each file ending, packed and not."""
    volume = read_volume(_write(tmp_path / f"1.2.3{ending}", direction=direction, compressed=compressed))

    assert volume.series_uid == "1.2.3"
    _assert_where_it_was(volume, direction)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3))
def test_axes_in_any_order_and_sense_hold_the_same_world(tmp_path, ending, order, flips):
    """Permuted and flipped, a file holds other arrays, and the same HU at each world point."""
    image = sitk.Flip(sitk.PermuteAxes(_image(), order), flips)
    path = tmp_path / f"turned{ending}"
    if ending == ".nrrd":
        sitk.WriteImage(image, str(path))
    else:
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        turned = nibabel.Nifti1Image(
            sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        )
        nibabel.save(turned, path)
    places_zyx_vox = np.argwhere(HU > -2000)
    plain = read_volume(_write(tmp_path / "plain.mha"))

    volume = read_volume(path)

    points_xyz_mm = plain.grid.to_world_xyz_mm(places_zyx_vox)
    found = np.rint(volume.grid.to_voxel_zyx(points_xyz_mm)).astype(int)
    np.testing.assert_array_equal(volume.hu[tuple(found.T)], HU[tuple(places_zyx_vox.T)])


@pytest.mark.real_data
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_real_scan_written_otherwise_is_the_same_scan(real_data, tmp_path, ending):
    """Of the real scan ...059720603192, every voxel and, to 0.001 mm, its corners come back."""
    (path,) = (real_data / "lidc").rglob("*059720603192.mhd")
    real = read_volume(path)
    if ending == ".nii.gz":
        affine = np.eye(4)
        affine[:3, :3] = real.grid.direction * real.grid.spacing_xyz_mm
        affine[:3, 3] = real.grid.origin_xyz_mm
        copy = nibabel.Nifti1Image(real.hu.T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
        nibabel.save(copy, tmp_path / "copy.nii.gz")
    else:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"copy{ending}"), useCompression=True)

    volume = read_volume(tmp_path / f"copy{ending}")

    np.testing.assert_array_equal(volume.hu, real.hu)
    corners = np.array([[0, 0, 0], real.grid.shape_zyx])
    expected = real.grid.to_world_xyz_mm(corners)
    np.testing.assert_allclose(volume.grid.to_world_xyz_mm(corners), expected, rtol=0, atol=1e-3)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("order", "flips", "ending"),
    [
        ([0, 1, 2], [True, False, False], ".mha"),
        ([0, 1, 2], [True, True, False], ".nii"),
        ([0, 1, 2], [False, False, True], ".nrrd"),
        ([2, 0, 1], [False, False, False], ".nrrd"),
        ([1, 2, 0], [True, False, True], ".nii"),
        ([2, 1, 0], [True, True, True], ".mha"),
    ],
    ids=["x flipped", "x and y flipped", "z flipped", "turned", "turned and flipped", "all reversed"],
)
def test_cubes_of_a_real_scan_do_not_mind_how_its_axes_lie(real_data, tmp_path, order, flips, ending):
    """Of ...059720603192 with its axes flipped or permuted, cubes at its candidates stay within 1 HU."""
    (path,) = (real_data / "lidc").rglob("*059720603192.mhd")
    points = read_candidates(real_data / "lidc" / "candidates_V2.csv")
    points_xyz_mm = points.loc[points["seriesuid"] == path.stem, COORDINATES].to_numpy()
    turned = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(path)), order), flips)
    sitk.WriteImage(turned, str(tmp_path / f"turned{ending}"))

    cubes = cut_cubes(read_volume(tmp_path / f"turned{ending}"), points_xyz_mm)

    expected = cut_cubes(read_volume(path), points_xyz_mm)
    assert len(cubes) == 46
    assert np.abs(cubes.astype(int) - expected).max() <= 1


# ------------------------------------------------------------------------------------------------------ NIfTI


def test_slope_and_intercept_of_nifti_are_applied(tmp_path):
    """Stored 0, 1, 2 with slope 2 and intercept -1000 are -1000, -998 and -996 HU."""
    path = _write(tmp_path / "scaled.nii", np.arange(3, dtype=np.int16).reshape(1, 1, 3))
    _set_numbers(path, np.float32, {112: 2, 116: -1000})

    assert read_volume(tmp_path / "scaled.nii").hu.ravel().tolist() == [-1000, -998, -996]


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_one_form_of_nifti_will_do(tmp_path, form):
    """With the other switched off, sform or qform alone places the voxels."""
    image = _nifti()
    (image.set_qform if form == "sform" else image.set_sform)(None, code=0)
    nibabel.save(image, tmp_path / "one.nii.gz")

    _assert_where_it_was(read_volume(tmp_path / "one.nii.gz"), DIRECTIONS["oblique"])


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e3), ("micron", 1e-3)])
def test_units_of_nifti_become_mm(tmp_path, unit, factor):
    """Steps of 0.7, 0.8 and 2.5 metres are 700, 800 and 2,500 mm; micrometres likewise."""
    image = _nifti()
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "unit.nii")

    grid = read_volume(tmp_path / "unit.nii").grid

    np.testing.assert_allclose(grid.spacing_xyz_mm, np.array(SPACING_XYZ_MM) * factor, rtol=1e-5)
    np.testing.assert_allclose(grid.origin_xyz_mm, np.array(ORIGIN_XYZ_MM) * factor, rtol=1e-5)


def test_a_fourth_axis_of_one_is_no_matter(tmp_path):
    """NIfTI of 8 x 7 x 6 x 1 voxels is a scan."""
    nibabel.save(nibabel.Nifti1Image(HU.T[..., None], _affine_ras_mm()), tmp_path / "four.nii.gz")

    np.testing.assert_array_equal(read_volume(tmp_path / "four.nii.gz").hu, HU)


# ------------------------------------------------------------------------------------------------------- NRRD


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_the_space_of_nrrd_is_turned_into_lps(tmp_path, space, signs):
    """The same voxels said in LPS, RAS or LAS lie at the same world points."""
    steps = (DIRECTIONS["oblique"] * np.array(SPACING_XYZ_MM)).T * signs
    origin = np.array(ORIGIN_XYZ_MM) * signs
    vectors = " ".join("(" + ",".join(f"{x:.12g}" for x in step) + ")" for step in steps)
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 8 7 6\nspace directions: {vectors}\n"
        f"kinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: ({','.join(map(str, origin))})\n\n"
    )
    (tmp_path / "said.nrrd").write_bytes(header.encode() + HU.tobytes())

    _assert_where_it_was(read_volume(tmp_path / "said.nrrd"), DIRECTIONS["oblique"])


# ------------------------------------------------------------------------------------------------------ DICOM

CT_STORAGE, SC_STORAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
UID, OTHER_UID = "1.2.826.0.1.3680043.2", "1.2.826.0.1.3680043.3"


def _write_slice(path, index, pixels, uid=UID, *, step_xyz_mm=None, slope=1, intercept=-1024, **tags):
    """One CT slice of `pixels`, HU `(y, x)` or colours `(y, x, 3)`, at its place in the oblique stack."""
    row, column, normal = DIRECTIONS["oblique"].T
    step_xyz_mm = normal * SPACING_XYZ_MM[2] if step_xyz_mm is None else step_xyz_mm
    position = np.array(ORIGIN_XYZ_MM) + index * step_xyz_mm
    image = sitk.GetImageFromArray(pixels.astype(np.int16) if pixels.ndim == 2 else pixels, pixels.ndim == 3)
    image.SetSpacing(SPACING_XYZ_MM[:2])
    said = {
        "0008|0016": CT_STORAGE,
        "0008|0060": "CT",
        "0020|000e": uid,
        "0020|0032": "\\".join(f"{x:.10g}" for x in position),
        "0020|0037": "\\".join(f"{x:.10g}" for x in (*row, *column)),
        **({"0028|1052": str(intercept), "0028|1053": str(slope)} if pixels.ndim == 2 else {}),
        **tags,
    }
    for tag, value in said.items():
        image.SetMetaData(tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM writes in the locale C, and leaves the process in it


def _write_series(folder, hu=HU, uid=UID, **options):
    for index, plane in enumerate(hu):
        _write_slice(folder / f"{(index * 5) % 7}_{index}.dcm", index, plane, uid, intercept=0, **options)


def test_slices_are_stacked_by_their_places_not_their_names(tmp_path):
    """Slices in nested folders, named at random, among XML, text and a report, are the volume they were."""
    _write_series(tmp_path / "a" / "b")
    _write_series(tmp_path / "damaged", uid=OTHER_UID)
    _cut(tmp_path / "damaged" / "4_5.dcm")
    (tmp_path / "a" / "b" / "4_5.dcm").rename(tmp_path / "a" / "elsewhere")
    (tmp_path / "a" / "notes.xml").write_text("<xml/>")
    (tmp_path / "a" / "empty.dcm").write_bytes(b"")
    (tmp_path / "a" / "junk.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 10)
    _write_slice(tmp_path / "report.dcm", 9, HU[0], "1.2.3", **{"0008|0060": "SR", "0008|0016": SC_STORAGE})
    _cut(tmp_path / "report.dcm")

    volume = read_volume(tmp_path, UID)

    assert volume.series_uid == UID
    _assert_where_it_was(volume, DIRECTIONS["oblique"])
    assert find_scans([tmp_path]) == [(tmp_path / "a", UID), (tmp_path / "damaged", OTHER_UID)]
    assert "4_5.dcm is a damaged CT slice" in _refusal(tmp_path, OTHER_UID)


def test_reading_leaves_the_locale_of_the_process_alone(tmp_path):
    """Text of other processes, decoded after a scan was read or refused, is still UTF-8 where it was."""
    before = locale.setlocale(locale.LC_ALL)
    _write_series(tmp_path / "whole")
    _write_series(tmp_path / "damaged")
    _cut(tmp_path / "damaged" / "4_5.dcm")

    read_volume(tmp_path / "whole")
    _refusal(tmp_path / "damaged")
    for ending in READERS:
        read_volume(_write(tmp_path / f"1.2.3{ending}"))

    assert locale.setlocale(locale.LC_ALL) == before


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    """10 HU, stored as 1034 with intercept -1024 and as 505 with slope 2 and -1000, are 10 HU in both."""
    _write_slice(tmp_path / "0.dcm", 0, np.full((4, 4), 10))
    _write_slice(tmp_path / "1.dcm", 1, np.full((4, 4), 10), slope=2, intercept=-1000)

    hu = read_volume(tmp_path).hu

    assert (tmp_path / "0.dcm").read_bytes()[-2:] == np.uint16(1034).tobytes()
    assert (tmp_path / "1.dcm").read_bytes()[-2:] == np.uint16(505).tobytes()
    assert hu[:, 0, 0].tolist() == [10, 10]


def test_of_several_series_one_is_asked_for(tmp_path):
    """Two series mixed in a folder are named with their slices; each is read by its UID, and found."""
    _write_series(tmp_path)
    _write_series(tmp_path / "more", HU[:4] + 1, OTHER_UID)

    assert f"2 CT series: {UID} (6 slices), {OTHER_UID} (4 slices)" in _refusal(tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path, UID).hu, HU)
    np.testing.assert_array_equal(read_volume(tmp_path, OTHER_UID).hu, HU[:4] + 1)
    assert f"has no CT series 1.2.3. Known: {UID}, {OTHER_UID}" in _refusal(tmp_path, "1.2.3")
    assert set(find_scans([tmp_path])) == {(tmp_path, UID), (tmp_path / "more", OTHER_UID)}


def _refusal(path, series_uid=None):
    with pytest.raises(InputError) as refusal:
        read_volume(path, series_uid)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


NORMAL = DIRECTIONS["oblique"][:, 2]
TILTED_MM = NORMAL * 2.5 + DIRECTIONS["oblique"][:, 1] * 2.5 * np.tan(np.radians(15))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "1_3.dcm").unlink(),
            "1 of the slices are missing between 3_2.dcm and 6_4.dcm",
        ),
        (lambda folder: _write_slice(folder / "twin.dcm", 2, HU[2]), "two slices lie at"),
        (lambda folder: _write_slice(folder / "late.dcm", 6.4, HU[2]), "slices lie 2.5 mm apart, but 3.5 mm"),
        (lambda folder: _write_series(folder, step_xyz_mm=TILTED_MM), "tilted by 15.0 degrees"),
        (
            lambda folder: _write_slice(folder / "6.dcm", 6, HU[2][:5]),
            "differ in size, spacing or orientation",
        ),
        (
            lambda folder: _write_slice(folder / "6.dcm", 6, HU[2], **{"0020|0037": "1\\0\\0\\0\\1\\0"}),
            "differ in size, spacing or orientation",
        ),
        (
            lambda folder: [path.unlink() for path in folder.iterdir() if path.name != "0_0.dcm"],
            "is one slice, not a volume",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no CT slices in DICOM"),
        (
            lambda folder: [
                _write_slice(path, int(path.name[2]), np.zeros((7, 8, 3), np.uint8))
                for path in folder.iterdir()
            ],
            "3 values a pixel",
        ),
        (lambda folder: _cut(folder / "1_3.dcm", 60), "1_3.dcm is a damaged CT slice"),
        (lambda folder: _cut(folder / "4_5.dcm", 60), "4_5.dcm is a damaged CT slice"),
    ],
    ids=[
        "missing",
        "double",
        "uneven",
        "tilted",
        "size",
        "turned",
        "alone",
        "none",
        "colour",
        "cut",
        "last one cut",
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, change, words):
    """One line names the folder, the fault and, where there are some, the slices."""
    _write_series(tmp_path / "series")
    change(tmp_path / "series")

    assert words in _refusal(tmp_path / "series")


def test_one_slice_alone_is_no_scan(tmp_path):
    """The path of a slice gets the advice to give its folder."""
    _write_series(tmp_path)

    assert "is one DICOM slice: give its folder" in _refusal(tmp_path / "0_0.dcm")


@pytest.mark.real_data
def test_a_real_scan_is_the_same_in_dicom(real_data):
    """Of ...059720603192, DICOM gives the voxels of the .zraw, its UID, and its grid to the last bit."""
    (path,) = (real_data / "lidc").rglob("*059720603192.mhd")
    expected = read_volume(path)

    volume = read_volume(real_data / "lidc_dicom")

    assert volume.series_uid == expected.series_uid
    np.testing.assert_array_equal(volume.hu, expected.hu)
    np.testing.assert_array_equal(volume.grid.origin_xyz_mm, expected.grid.origin_xyz_mm)
    np.testing.assert_array_equal(volume.grid.spacing_xyz_mm, expected.grid.spacing_xyz_mm)
    np.testing.assert_array_equal(volume.grid.direction, expected.grid.direction)


# ----------------------------------------------------------------------------------------------------- damage


def _cut(path, count=100):
    path.write_bytes(path.read_bytes()[:-count])


def _invert_a_byte(path, share=0.6):
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0xFF
    path.write_bytes(data)


def _replace(path, pattern, text):
    data = path.read_bytes()
    assert re.search(pattern, data)
    path.write_bytes(re.sub(pattern, text, data, count=1))


def _set_numbers(path, dtype, numbers):
    """Writes numbers into a file, packed or not, each at an offset."""
    is_packed = path.suffix == ".gz"
    data = bytearray(gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes())
    for offset, number in numbers.items():
        raw = np.array(number, dtype).tobytes()
        data[offset : offset + len(raw)] = raw
    path.write_bytes(gzip.compress(bytes(data)) if is_packed else data)


def _no_form(path):
    image = _nifti()
    image.set_qform(None, code=0)
    image.set_sform(None, code=0)
    nibabel.save(image, path)


def _save(image):
    return lambda path: nibabel.save(image(), path)


DAMAGE = {  # a file's ending, whether it is packed, what happens to it, and what the line says
    "mha cut": (".mha", False, _cut, "is truncated: 572 bytes of 672"),
    "packed mha cut": (".mha", True, _cut, "is truncated"),
    "packed mha, a byte inverted": (".mha", True, _invert_a_byte, "is damaged"),
    "mha of a huge size": (
        ".mha", False, lambda path: _replace(path, rb"DimSize = 8 7 6", b"DimSize = 80000 7000 60000"),
        "is truncated: 672 bytes of 67200000000000",
    ),
    "packed mha of a huge size": (
        ".mha", True, lambda path: _replace(path, rb"DimSize = 8 7 6", b"DimSize = 80000 7000 60000"),
        "bytes of 67200000000000 unpacked",
    ),
    "nrrd cut": (".nrrd", False, _cut, "is truncated: 572 bytes of 672"),
    "packed nrrd cut": (".nrrd", True, _cut, "scan.nrrd"),
    "packed nrrd, a byte inverted": (".nrrd", True, _invert_a_byte, "scan.nrrd"),
    "nrrd of a huge size": (
        ".nrrd", True, lambda path: _replace(path, rb"sizes: 8 7 6", b"sizes: 80000 7000 60000"),
        "bytes of 67200000000000 unpacked",
    ),
    "nrrd that does not say where left is": (
        ".nrrd", False, lambda path: _replace(path, rb"space: [a-z-]+\n", b"space dimension: 3\n"),
        "does not say where left is",
    ),
    "nhdr with its data elsewhere": (
        ".nhdr", False, lambda path: _replace(path, rb"data file: .*\n", b"data file: ../scan.raw\n"),
        "must name one file beside the header. Received: '../scan.raw'",
    ),
    "nhdr with a list of files": (
        ".nhdr", False, lambda path: _replace(path, rb"data file: .*\n", b"data file: LIST\n"),
        "must name one file beside the header. Received: 'LIST'",
    ),
    "nhdr without its data": (
        ".nhdr", False, lambda path: path.with_suffix(".raw").unlink(), "its data file scan.raw is missing",
    ),
    "nrrd that is none": (".nrrd", False, lambda path: path.write_text("no scan"), "is no NRRD file"),
    "empty nrrd": (".nrrd", False, lambda path: path.write_bytes(b""), "is no NRRD file"),
    "empty mha": (".mha", False, lambda path: path.write_bytes(b""), "must name one data file"),
    "empty nii": (".nii", False, lambda path: path.write_bytes(b""), "cannot be read as NIfTI"),
    "empty nii.gz": (".nii.gz", False, lambda path: path.write_bytes(b""), "cannot be read as NIfTI"),
    "nii cut": (".nii", False, _cut, "scan.nii"),
    "nii.gz cut": (".nii.gz", False, _cut, "cannot be read as NIfTI"),
    "nii.gz, a byte inverted": (".nii.gz", False, _invert_a_byte, "cannot be read as NIfTI"),
    "nii.gz of a huge size": (
        ".nii.gz", False, lambda path: _set_numbers(path, np.int16, {42: 32000, 44: 32000}), "is truncated",
    ),
    "nii.gz of a negative size": (
        ".nii.gz", False, lambda path: _set_numbers(path, np.int16, {42: -8}), "scan.nii.gz",
    ),
    "nii that does not say where it lies": (".nii", False, _no_form, "neither its sform nor its qform is"),
    "nii of 8 bits": (
        ".nii", False, _save(lambda: nibabel.Nifti1Image(np.zeros((8, 7, 6), np.uint8), np.eye(4))),
        "8-bit values, which cannot be HU",
    ),
    "nii in colour": (
        ".nii", False,
        _save(lambda: nibabel.Nifti1Image(
            np.zeros((8, 7, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)
        )),
        "must hold single numbers",
    ),
    "a film": (
        ".nii", False, _save(lambda: nibabel.Nifti1Image(np.zeros((8, 7, 6, 5), np.int16), np.eye(4))),
        "must hold one 3-D volume. Received: 8 x 7 x 6 x 5 voxels",
    ),
    "sheared nii": (
        ".nii", False,
        _save(lambda: nibabel.Nifti1Image(HU.T, np.eye(4) + 0.2 * np.eye(4, k=1) * [[1], [1], [0], [0]])),
        "direction must be orthonormal",
    ),
    "nii with steps that are no numbers": (
        ".nii", False, lambda path: _set_numbers(path, np.float32, {280: np.nan}), "Voxel spacing must be",
    ),
    "nii with steps of nothing": (
        ".nii", False, lambda path: _set_numbers(path, np.float32, {280: 0, 296: 0, 312: 0}),
        "Voxel spacing must be positive. Received: [0.0, ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_gets_one_line(tmp_path, case):
    """It names the file and what is wrong with it; no voxel is made up, and nothing outside is read."""
    ending, compressed, damage, words = DAMAGE[case]
    (tmp_path / "scan.raw").write_bytes(HU.tobytes())
    (tmp_path / "inside").mkdir()
    path = _write(tmp_path / "inside" / f"scan{ending}", compressed=compressed)
    damage(path)

    with pytest.raises(InputError) as refusal:
        read_volume(path)

    message = str(refusal.value)
    assert words in message
    assert str(tmp_path / "inside") in message
    assert "\n" not in message


def test_find_scans_knows_every_format(tmp_path):
    """A folder gives its scans in every format, and nothing else that lies there."""
    for ending in READERS:
        _write(tmp_path / f"scan{ending.replace('.', '_')}{ending}")
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / ".nii").write_text("no name")

    assert [path.name for path, _ in find_scans([tmp_path])] == sorted(
        f"scan{ending.replace('.', '_')}{ending}" for ending in READERS
    )


def test_a_link_to_itself_is_no_file(tmp_path):
    """A scan, its data or a folder that is a link in a circle is missing in one line; search goes past it."""
    (tmp_path / "loop.mha").symlink_to(tmp_path / "loop.mha")
    whole = _write(tmp_path / "whole.mhd")
    (tmp_path / "round").symlink_to(tmp_path)
    assert find_scans([tmp_path]) == [(whole, "whole")]
    whole.with_suffix(".raw").unlink()
    whole.with_suffix(".raw").symlink_to("whole.raw")

    assert "No scan at" in _refusal(tmp_path / "loop.mha")
    assert "its data file whole.raw is missing" in _refusal(whole)
    with pytest.raises(InputError, match="No scan at"):
        find_scans([tmp_path / "loop.mha"])


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path, ending):
    """A folder named in Latin-1 is told in one line that a terminal can show; ITK would end the process."""
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    shutil.copy(_write(tmp_path / f"scan{ending}"), folder)

    with pytest.raises(InputError, match=r"M.udcfcller.* is no name in UTF-8. Rename") as refusal:
        read_volume(folder / f"scan{ending}")

    assert str(refusal.value).isascii()


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_nifti_header_of_a_grid_reads_back_as_the_grid(tmp_path, direction):
    """Spacing, origin and direction in LPS go out as RAS in mm, and come back."""
    grid = Grid(SHAPE_ZYX, SPACING_XYZ_MM, ORIGIN_XYZ_MM, direction)
    header = nifti.header_of(grid, np.int16, "a scan")
    nibabel.save(nibabel.Nifti1Image(HU.T, None, header), tmp_path / "1.2.3.nii")

    values, read = nifti.read(tmp_path / "1.2.3.nii")

    np.testing.assert_array_equal(values, HU)
    np.testing.assert_allclose(read.spacing_xyz_mm, SPACING_XYZ_MM, rtol=1e-6)
    np.testing.assert_allclose(read.origin_xyz_mm, ORIGIN_XYZ_MM, atol=1e-4)
    np.testing.assert_allclose(read.direction, direction, atol=1e-6)
    assert header["descrip"].item() == b"a scan"


def test_more_voxels_of_nifti_than_expected_are_not_read(tmp_path):
    """6 x 7 x 8 are 336: read where so many are expected, refused where they are one more."""
    path = _write(tmp_path / "1.2.3.nii")

    assert nifti.read(path, most_voxels=336).values.shape == SHAPE_ZYX
    with pytest.raises(InputError) as refusal:
        nifti.read(path, most_voxels=335)
    assert str(refusal.value) == f"{path} is too large: 8 x 7 x 6 voxels, 335 at most are expected."
