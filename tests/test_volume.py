import os
import re
import shutil
import zlib

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import AIR_HU, CTVolume, files_of, find_scans, read_volume

SHAPE_ZYX = (6, 7, 8)
SPACING_XYZ_MM = (0.7, 0.8, 2.5)
ORIGIN_XYZ_MM = (-195.0, 12.5, -378.25)
FLIPPED_XY = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture
def hu():
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE_ZYX).astype(np.int16)


def _set_header(path, key, value):
    text = re.sub(rf"(?m)^{key} = .*\n", f"{key} = {value}\n" if value is not None else "", path.read_text())
    path.write_text(text)


def _refusal(path):
    with pytest.raises(InputError) as refusal:
        read_volume(path)
    return str(refusal.value)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zraw"])
def test_the_voxels_and_where_they_lie_are_read_as_written(write_scan, tmp_path, hu, compressed):
    """Every voxel, the spacing, the origin and the direction come back, from .raw as from .zraw."""
    path = write_scan(tmp_path, "1.2.3", hu, SPACING_XYZ_MM, ORIGIN_XYZ_MM, FLIPPED_XY, compressed=compressed)

    volume = read_volume(path)

    assert path.with_suffix(".zraw" if compressed else ".raw").is_file()
    assert volume.series_uid == "1.2.3"
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.grid.shape_zyx == SHAPE_ZYX
    np.testing.assert_allclose(volume.grid.spacing_xyz_mm, SPACING_XYZ_MM)
    np.testing.assert_allclose(volume.grid.origin_xyz_mm, ORIGIN_XYZ_MM)
    np.testing.assert_array_equal(volume.grid.direction, FLIPPED_XY)


def test_padding_outside_the_field_of_view_becomes_air(write_scan, tmp_path):
    """-3024, -2048 and -1025 HU become -1000; -1024 HU and above stay."""
    hu = np.int16([[[-3024, -2048, -1025, -1024, -1000, 3071]]])

    volume = read_volume(write_scan(tmp_path, "padded", hu))

    np.testing.assert_array_equal(volume.hu, [[[-1000, -1000, -1000, -1024, -1000, 3071]]])
    assert AIR_HU == -1000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[[-999.6, 41.4, 1e6, np.nan]]]), [-1000, 41, 32767, -1000]),
        (np.int32([[[-999, 41, 100_000, -100_000]]]), [-999, 41, 32767, -1000]),
        (np.uint16([[[0, 41, 65535, 7]]]), [0, 41, 32767, 7]),
    ],
    ids=["float32", "int32", "uint16"],
)
def test_other_number_types_are_rounded_into_int16(write_scan, tmp_path, values, expected):
    """A scan of another type is rounded and clipped; NaN is air."""
    volume = read_volume(write_scan(tmp_path, "other", values))

    assert volume.hu.dtype == np.int16
    assert volume.hu.ravel().tolist() == expected


@pytest.mark.real_data
def test_a_real_nodule_lies_where_the_annotations_put_it(real_data):
    """At the four real nodule centres the nearest voxel holds -22, 15 and -11 HU, and 91."""
    annotations = pd.read_csv(real_data / "lidc" / "annotations.csv", dtype={"seriesuid": str})
    nearest = {}
    for source in find_scans([real_data / "lidc"]):
        volume = read_volume(*source)
        nodules = annotations[annotations["seriesuid"] == volume.series_uid]
        places = volume.grid.to_voxel_zyx(nodules[["coordX", "coordY", "coordZ"]].to_numpy())
        nearest[volume.series_uid[-12:]] = volume.hu[tuple(np.rint(places).astype(int).T)].tolist()

    assert nearest == {"033480003264": [-22, 15, -11], "059720603192": [91]}


def _shorten(data_path):
    data_path.write_bytes(data_path.read_bytes()[:-100])


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zraw"])
def test_a_truncated_data_file_is_refused(write_scan, tmp_path, hu, compressed):
    """A data file 100 bytes short is refused, and named with the bytes it has and should have."""
    path = write_scan(tmp_path, "short", hu, compressed=compressed)
    data_path = path.with_suffix(".zraw" if compressed else ".raw")
    whole = data_path.stat().st_size
    _shorten(data_path)

    message = _refusal(path)

    assert str(data_path) in message
    assert f"truncated: {whole - 100} bytes of {whole}" in message
    assert "\n" not in message


def test_packed_data_of_either_byte_order_are_read(write_scan, tmp_path, hu):
    """Data packed with the most significant byte first, as the header says, are the same scan."""
    path = write_scan(tmp_path, "1.2.3", hu, compressed=True)
    packed = zlib.compress(hu.astype(">i2").tobytes())
    path.with_suffix(".zraw").write_bytes(packed)
    _set_header(path, "CompressedDataSize", len(packed))
    _set_header(path, "BinaryDataByteOrderMSB", "True")

    np.testing.assert_array_equal(read_volume(path).hu, hu)


def _shorten_and_say_so(path):
    data_path = path.with_suffix(".zraw")
    _shorten(data_path)
    _set_header(path, "CompressedDataSize", data_path.stat().st_size)


def _shorten_and_keep_silent(path):
    _shorten(path.with_suffix(".zraw"))
    _set_header(path, "CompressedDataSize", None)


def _replace_by_noise(path):
    data_path = path.with_suffix(".zraw")
    data_path.write_bytes(np.random.default_rng(1).bytes(data_path.stat().st_size))


def _invert_one_byte(path):
    data = bytearray(path.with_suffix(".zraw").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.with_suffix(".zraw").write_bytes(data)


def _unpack_to_much_more(path):
    packed = zlib.compress(bytes(300_000_000), 9)
    path.with_suffix(".zraw").write_bytes(packed)
    _set_header(path, "CompressedDataSize", len(packed))


def _unpack_to_a_little_less(path):
    packed = zlib.compress(zlib.decompress(path.with_suffix(".zraw").read_bytes())[:-2])
    path.with_suffix(".zraw").write_bytes(packed)
    _set_header(path, "CompressedDataSize", len(packed))


@pytest.mark.parametrize(
    "damage",
    [
        _shorten_and_say_so,
        _shorten_and_keep_silent,
        _replace_by_noise,
        _invert_one_byte,
        _unpack_to_much_more,
        _unpack_to_a_little_less,
    ],
    ids=[
        "short as the header says",
        "short, size not in the header",
        "noise",
        "one byte inverted",
        "much more than the header says",
        "a voxel less",
    ],
)
def test_a_damaged_zraw_is_refused(write_scan, tmp_path, hu, damage):
    """Compressed data that do not unpack to the scan are refused: no voxel may be made up."""
    path = write_scan(tmp_path, "damaged", hu, compressed=True)
    damage(path)

    message = _refusal(path)

    assert "damaged." in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ElementDataFile", "gone.raw"),
        ("ElementDataFile", "../scan.raw"),
        ("ElementDataFile", "/scan.raw"),
        ("ElementDataFile", "LOCAL"),
        ("ElementDataFile", "LIST"),
        ("ElementDataFile", "scan%03d.raw 1 6 1"),
        ("ElementDataFile", None),
        ("ElementSpacing", "0.7 0.8 0"),
        ("DimSize", "-8 7 6"),
        ("DimSize", "-8 -7 6"),
        ("DimSize", "0 7 6"),
        ("TransformMatrix", "1 0 0 0 1 0 0 0 0"),
        ("TransformMatrix", "1 0 0 0.3 1 0 0 0 1"),
        ("DimSize", "8 7"),
        ("DimSize", "8 7 0"),
        ("DimSize", "8 7 -6"),
        ("DimSize", "80000 70000 60000"),
        ("ElementType", "MET_NOTHING"),
        ("ElementType", None),
    ],
    ids=lambda value: {None: "absent"}.get(value, value),
)
def test_a_header_that_makes_no_sense_is_refused(write_scan, tmp_path, hu, key, value):
    """Whatever is wrong in the header, one line says so and names the file."""
    path = write_scan(tmp_path / "inside", "scan", hu)
    (tmp_path / "scan.raw").write_bytes(hu.tobytes())
    _set_header(path, key, value)

    message = _refusal(path)

    assert str(path.with_suffix("")) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DimSize", "-8 7 6"),
        ("DimSize", "-8 -7 6"),
        ("DimSize", "8 7"),
        ("DimSize", "80000 70000 60000"),
        ("ElementType", "MET_NOTHING"),
        ("ElementType", "MET_CHAR"),
        ("ElementType", "MET_INT"),
        ("CompressedDataSize", "-1"),
        ("CompressedDataSize", "3"),
        ("CompressedDataSize", "1000000"),
    ],
)
def test_a_header_that_does_not_fit_packed_data_is_refused(write_scan, tmp_path, hu, key, value):
    """Packed data are unpacked to what the header says, or refused in one line."""
    path = write_scan(tmp_path, "scan", hu, compressed=True)
    _set_header(path, key, value)

    message = _refusal(path)

    assert str(path.with_suffix("")) in message
    assert "\n" not in message


def test_a_file_that_is_no_metaimage_is_refused(tmp_path):
    """Bytes that are no header are refused in one line that names the file."""
    path = tmp_path / "noise.mhd"
    path.write_bytes(np.random.default_rng(2).bytes(500))

    message = _refusal(path)

    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(7, 8), (2, 6, 7, 8)], ids=["2-D", "4-D"])
def test_an_image_that_is_not_3d_is_refused(tmp_path, shape):
    """A slice or a film is no scan."""
    path = tmp_path / "flat.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, np.int16), isVector=False), str(path))

    message = _refusal(path)

    assert f"{path} must hold one 3-D volume" in message
    assert f"Received: {len(shape)} axes" in message


def test_an_image_of_several_values_a_voxel_is_refused(tmp_path):
    """A colour volume is no scan."""
    path = tmp_path / "colour.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*SHAPE_ZYX, 3), np.uint8), isVector=True), str(path))

    assert "3 values a voxel" in _refusal(path)


def test_a_missing_file_and_another_format_are_refused(tmp_path):
    """A path that does not exist, a folder and a text file are refused by name."""
    (tmp_path / "notes.txt").write_text("no scan")

    assert _refusal(tmp_path / "gone.mhd").startswith(f"No scan at {tmp_path / 'gone.mhd'}")
    assert _refusal(tmp_path).startswith(f"The folder {tmp_path} holds no CT slices in DICOM")
    assert f"{tmp_path / 'notes.txt'} is not in a format read here" in _refusal(tmp_path / "notes.txt")


def test_a_volume_fits_its_grid(hu):
    """Voxels of another type or shape than the grid's are refused."""
    grid = Grid(SHAPE_ZYX, SPACING_XYZ_MM, ORIGIN_XYZ_MM)

    with pytest.raises(InputError, match="float32"):
        CTVolume("uid", hu.astype(np.float32), grid)
    with pytest.raises(InputError, match=re.escape("(8, 7, 6)")):
        CTVolume("uid", hu.T, grid)


def test_find_scans_searches_folders_and_keeps_files(write_scan, tmp_path, hu):
    """A folder gives the scans in and below it, sorted; a file stays where it stood; nothing comes twice."""
    a, b, c = (write_scan(tmp_path / place, "s", hu) for place in ("one/a", "one/b", "two"))

    assert [source.path for source in find_scans([c, tmp_path / "one"])] == [c, a, b]
    assert [source.path for source in find_scans([b, tmp_path / "one", b])] == [b, a]
    assert {source.series_uid for source in find_scans([tmp_path])} == {"s"}


def test_find_scans_refuses_what_is_not_there(tmp_path):
    """A missing path and a folder without a scan are refused by name."""
    with pytest.raises(InputError, match=r"No scan at .*gone"):
        find_scans([tmp_path / "gone"])
    with pytest.raises(InputError, match=f"{tmp_path} holds no scan"):
        find_scans([tmp_path])


def test_lung_masks_are_not_taken_for_scans(small_tree, tmp_path):
    """A LUNA16 tree with its masks is searched as a whole: four scans, and no mask of the same name."""
    tree = shutil.copytree(small_tree, tmp_path / "tree")
    masks = tree / "seg-lungs-LUNA16"
    masks.mkdir()
    for path in tree.glob("subset*/*.mhd"):
        shutil.copy(path, masks)

    found = find_scans([tree])

    assert len(found) == 4
    assert all("seg-lungs" not in str(source.path) for source in found)


def test_folders_behind_links_are_searched_once(tmp_path, write_scan):
    """A link to a folder leads into it; a loop of links ends; each scan is found once."""
    write_scan(tmp_path / "real", "1.2", np.zeros((4, 4, 4), np.int16))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "links")

    (found,) = find_scans([tmp_path / "links"])

    assert found.series_uid == "1.2"


def test_a_list_without_a_path_is_refused(tmp_path):
    """A header line alone lists no scan."""
    (tmp_path / "night.csv").write_text("path\n\n")

    with pytest.raises(InputError, match=r"night\.csv lists no scan\. Give at least one path"):
        find_scans([tmp_path / "night.csv"])


def test_a_name_that_is_no_text_can_be_written(tmp_path, write_scan):
    """A byte that is no UTF-8 is spelled out in the series UID, and the scan is read."""
    path = write_scan(tmp_path, "plain", np.zeros((4, 4, 4), np.int16))
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    strange = tmp_path / os.fsdecode(b"gr\xf6sse.nrrd")
    (tmp_path / "x.nrrd").rename(strange)

    (found,) = find_scans([strange])

    assert found.series_uid.encode() == b"gr\\udcf6sse"


def test_a_list_names_files_and_folders_from_its_own_place(tmp_path, write_scan, hu):
    """A scan, a folder of two, and the first scan again: three scans, in the order of the list."""
    write_scan(tmp_path / "scans", "1.2.3", hu)
    for uid in ("1.2.4", "1.2.5"):
        write_scan(tmp_path / "scans" / "more", uid, hu)
    (tmp_path / "list.csv").write_text("path\nscans/1.2.3.mhd\nscans/more\nscans/1.2.3.mhd\n")

    found = find_scans([tmp_path / "list.csv"])

    assert [scan.series_uid for scan in found] == ["1.2.3", "1.2.4", "1.2.5"]
    assert found[0].path == tmp_path / "scans" / "1.2.3.mhd"


def test_a_file_is_the_scan_of_its_name(write_scan, tmp_path, hu):
    """Asked for as another scan than it is, it is refused; as itself it is read."""
    path = write_scan(tmp_path, "1.2.3", hu)

    assert read_volume(path, "1.2.3").series_uid == "1.2.3"
    with pytest.raises(InputError) as refusal:
        read_volume(path, "1.2.4")
    assert str(refusal.value) == f"{path} is the scan 1.2.3. Received: 1.2.4."


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("1.mha", ["1.mha"]),
        ("1.mhd", ["1.mhd", "1.raw"]),
        ("1.nrrd", ["1.nrrd"]),
        ("1.nhdr", ["1.nhdr", "1.raw"]),
        ("1.nii", ["1.nii"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scan_is_its_header_and_its_data(tmp_path, hu, name, files):
    """One file, or two where a header names another: what is watched for changes."""
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / name))

    assert [path.name for path in files_of(tmp_path / name, "1")] == files
