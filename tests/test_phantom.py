import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest

from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.scans.phantom.acquisition import draw_grid
from luna_cls.scans.phantom.build import Build
from luna_cls.scans.phantom.lattice import Canvas, Lattice
from luna_cls.scans.phantom.nodules import HU_RANGES, SITE_SHARES, draw_diameter_mm
from luna_cls.scans.phantom.scan import LEFT_LUNG, RIGHT_LUNG, make_scan, series_uid
from luna_cls.scans.phantom.strokes import Brush
from luna_cls.scans.readers import metaimage
from luna_cls.scans.volume import read_volume

# 45 slices of 3 mm hold half a chest; such a scan takes a third of a full one's time.
COARSE = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), noise_hu=(5.0, 10.0), candidates_per_scan=60)
FLIPPED = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), flipped_share=1.0)
STRAIGHT = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), flipped_share=0.0)
NUM_SCANS = 2
SEED = 5


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom(
        tmp_path_factory.mktemp("phantom") / "one", NUM_SCANS, SEED, workers=1, acquisition=COARSE
    )


@pytest.fixture(scope="module")
def scans():
    return [make_scan(SEED, index, COARSE) for index in range(5)]


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _hu_at(scan, points_xyz_mm):
    places = np.rint(scan.volume.grid.to_voxel_zyx(points_xyz_mm)).astype(int)
    return scan.volume.hu[tuple(places.T)].astype(float)


@pytest.mark.slow
def test_workers_do_not_change_a_byte(tree, tmp_path):
    """Two processes write the very files that one writes."""
    again = write_phantom(tmp_path / "two", NUM_SCANS, SEED, workers=2, acquisition=COARSE)

    assert _digests(again) == _digests(tree)


def test_a_scan_does_not_depend_on_how_many_there_are(tree, tmp_path):
    """The first scan of two is the only scan of one."""
    alone = write_phantom(tmp_path / "alone", 1, SEED, workers=1, acquisition=COARSE)

    of_two = _digests(tree)
    scans = {name: digest for name, digest in _digests(alone).items() if name.endswith(("mhd", "zraw"))}
    assert len(scans) == 4  # a scan and its mask, two files each
    assert scans.items() <= of_two.items()


def test_another_seed_gives_another_scan():
    """Seeds 1 and 2 share no UID, and no diameter."""
    first, second = make_scan(1, 0, COARSE), make_scan(2, 0, COARSE)

    assert first.volume.series_uid != second.volume.series_uid
    assert not set(first.nodule_diameters_mm) & set(second.nodule_diameters_mm)


def test_the_tree_has_the_layout_of_luna16(tree):
    """Scan i lies in subset i % 10, its mask in seg-lungs-LUNA16, and the CSVs beside them."""
    uids = [series_uid(SEED, 0), series_uid(SEED, 1)]

    assert sorted(path.name for path in tree.iterdir()) == sorted(
        ["annotations.csv", "candidates_V2.csv", "phantom.json", "seriesuids.csv", "seg-lungs-LUNA16"]
        + [f"subset{number}" for number in range(10)]
    )
    assert (tree / "subset0" / f"{uids[0]}.mhd").is_file()
    assert (tree / "subset1" / f"{uids[1]}.zraw").is_file()
    assert (tree / "seriesuids.csv").read_text() == f"{uids[0]}\n{uids[1]}\n"


def test_a_download_is_never_replaced_by_a_phantom(tree, tmp_path):
    """A LUNA16 tree, which has every file of a phantom but phantom.json, is refused even with force."""
    download = shutil.copytree(tree, tmp_path / "LUNA16")
    (download / "phantom.json").unlink()

    with pytest.raises(InputError, match="not replaced, even by --force"):
        write_phantom(download, 1, SEED, force=True)

    assert len(list(download.glob("subset*/*.mhd"))) == 2


def test_the_tables_read_back(tree):
    """Columns are LUNA16's own, and every row names a scan of the tree."""
    annotations = pd.read_csv(tree / "annotations.csv")
    candidates = pd.read_csv(tree / "candidates_V2.csv")

    assert list(annotations.columns) == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
    assert list(candidates.columns) == ["seriesuid", "coordX", "coordY", "coordZ", "class"]
    uids = set((tree / "seriesuids.csv").read_text().split())
    assert set(candidates.seriesuid) == uids
    assert set(annotations.seriesuid) <= uids
    assert annotations.diameter_mm.between(3, 30).all()


def test_a_written_scan_is_the_scan_that_was_made(tree, scans):
    """Voxels and grid survive the disk; padding below -1024 HU reads as air."""
    made = scans[1].volume

    read = read_volume(tree / "subset1" / f"{made.series_uid}.mhd")

    np.testing.assert_array_equal(read.hu, np.where(made.hu < -1024, -1000, made.hu))
    np.testing.assert_allclose(read.grid.origin_xyz_mm, made.grid.origin_xyz_mm)
    np.testing.assert_allclose(read.grid.spacing_xyz_mm, made.grid.spacing_xyz_mm)
    np.testing.assert_array_equal(read.grid.direction, made.grid.direction)


def test_a_mask_lies_on_its_scan(tree, scans):
    """A mask has its scan's grid, and no labels but 0, 3 and 4."""
    made = scans[0]

    mask = metaimage.read(tree / "seg-lungs-LUNA16" / f"{made.volume.series_uid}.mhd")

    np.testing.assert_array_equal(mask.values, made.lungs)
    np.testing.assert_allclose(mask.grid.origin_xyz_mm, made.volume.grid.origin_xyz_mm)
    assert set(np.unique(mask.values)) == {0, 3, 4}


def test_uids_are_valid_dicom_and_stay():
    """A UID is 2.25. and a number of at most 39 digits without leading zero; the first never changes."""
    uids = {series_uid(seed, index) for seed in range(20) for index in range(20)}

    assert len(uids) == 400
    assert all(uid.startswith("2.25.") and len(uid) <= 44 and uid[5] != "0" for uid in uids)
    assert series_uid(0, 0) == "2.25.270235816478681503955393351832749959277"


def test_labels_follow_the_rule(scans):
    """A candidate is a nodule exactly if it is nearer its centre than half its diameter."""
    for scan in scans:
        offsets = scan.candidates_xyz_mm[:, None] - scan.nodule_centers_xyz_mm
        inside = np.linalg.norm(offsets, axis=2) < scan.nodule_diameters_mm / 2

        np.testing.assert_array_equal(scan.candidate_classes, inside.any(axis=1))
        assert (inside.sum(axis=0) >= 1).all()  # every nodule has a candidate
        assert (inside.sum(axis=0) <= 2).all()


def test_candidates_are_many_apart_and_inside(scans):
    """60 look-alikes were asked for: all lie in the volume, 5 mm from one another."""
    for scan in scans:
        others = scan.candidates_xyz_mm[scan.candidate_classes == 0]
        gaps = np.linalg.norm(others[:, None] - others, axis=2) + 1e3 * np.eye(len(others))

        assert scan.volume.grid.contains(scan.candidates_xyz_mm).all()
        assert len(others) == 60
        assert gaps.min() >= 5


def test_nodules_lie_in_lungs(scans):
    """The voxel at every annotated centre is in the lung mask."""
    for scan in scans:
        places = np.rint(scan.volume.grid.to_voxel_zyx(scan.nodule_centers_xyz_mm)).astype(int)
        assert (scan.lungs[tuple(places.T)] > 0).all()


def test_nodules_do_not_overlap(scans):
    """Two centres are further apart than both radii together."""
    for scan in scans:
        centers, radii = scan.nodule_centers_xyz_mm, scan.nodule_diameters_mm / 2
        gaps = np.linalg.norm(centers[:, None] - centers, axis=2) - radii[:, None] - radii
        assert (gaps[~np.eye(len(radii), dtype=bool)] > 0).all()


def test_nodules_are_brighter_than_lung(scans):
    """A nodule is 60 HU over lung at its centre; one over 6 mm has the HU of its kind."""
    tolerance_hu = 90  # blur, a voxel of 1.6 x 1.6 x 3 mm off the centre, and noise
    checked = 0
    for scan in scans:
        centers_hu = _hu_at(scan, scan.nodule_centers_xyz_mm)
        lung_hu = np.median(scan.volume.hu[scan.lungs > 0])
        for hu, kind, diameter in zip(centers_hu, scan.nodule_kinds, scan.nodule_diameters_mm, strict=True):
            assert hu > lung_hu + 60
            if diameter > 6:
                assert hu > HU_RANGES[kind][0] - tolerance_hu
                checked += 1

    assert checked >= 5


def test_most_nodules_are_small_and_many_touch_the_pleura():
    """Shares follow LUNA16: 42 % below 6 mm, 24 % from 10 mm, within 5 points in 2,000 draws."""
    rng = np.random.default_rng(0)
    diameters_mm = np.array([draw_diameter_mm(rng) for _ in range(2000)])

    assert abs((diameters_mm < 6).mean() - 0.42) < 0.05
    assert abs((diameters_mm >= 10).mean() - 0.24) < 0.05
    assert diameters_mm.min() >= 3
    assert diameters_mm.max() <= 30
    assert SITE_SHARES["pleura"] >= 0.3
    assert sum(SITE_SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("acquisition", [STRAIGHT, FLIPPED], ids=["straight", "flipped"])
def test_left_is_left_however_the_scan_lies(acquisition):
    """The left lung lies 80 to 160 mm further along x, and most bone further along y."""
    scan = make_scan(3, 0, acquisition)
    grid, hu = scan.volume.grid, scan.volume.hu

    def middle_xyz_mm(where):
        return grid.to_world_xyz_mm(np.argwhere(where)).mean(axis=0)

    left, right = middle_xyz_mm(scan.lungs == LEFT_LUNG), middle_xyz_mm(scan.lungs == RIGHT_LUNG)
    lungs = (left + right) / 2
    assert (grid.direction[0, 0] < 0) == (acquisition is FLIPPED)
    assert 80 < left[0] - right[0] < 160
    assert middle_xyz_mm(hu > 400)[1] > lungs[1]


def test_lungs_are_air_and_walls_are_not(scans):
    """The median lung voxel is between -920 and -780 HU; what is seen of the lungs holds 1 to 4 litres."""
    for scan in scans:
        litres = (scan.lungs > 0).sum() * scan.volume.grid.spacing_xyz_mm.prod() / 1e6
        assert -920 < np.median(scan.volume.hu[scan.lungs > 0]) < -780
        assert 1 < litres < 4


def test_default_scans_have_the_promised_grids():
    """100 to 130 slices of 320 to 400 pixels of 0.65 to 0.9 mm, and about a quarter flipped."""
    rng = np.random.default_rng(0)
    grids = [draw_grid(Acquisition(), Build.draw(rng), rng) for _ in range(400)]

    shapes = np.array([grid.shape_zyx for grid in grids])
    spacings = np.array([grid.spacing_xyz_mm for grid in grids])
    assert shapes[:, 0].min() >= 100
    assert shapes[:, 0].max() <= 130
    assert shapes[:, 1:].min() >= 320
    assert shapes[:, 1:].max() <= 400
    assert spacings[:, :2].min() >= 0.65
    assert spacings[:, :2].max() <= 0.9
    assert set(spacings[:, 2]) == {1.25, 1.5, 1.8, 2.0, 2.5}
    assert 0.2 < np.mean([grid.direction[0, 0] < 0 for grid in grids]) < 0.3


def test_a_lattice_field_arrives_where_it_belongs():
    """The field x + 2y + 3z, taken from the lattice to a flipped scan, is what the scan's grid says it is."""
    rng = np.random.default_rng(0)
    canvas = Canvas(draw_grid(FLIPPED, Build.draw(rng), rng))
    lattice = Lattice.covering(canvas.grid)
    z, y, x = lattice.mesh_zyx_mm()

    values = lattice.onto(x + 2 * y + 3 * z, canvas)

    places = np.array([[0, 0, 0], [10, 20, 30], np.subtract(canvas.grid.shape_zyx, 1)])
    expected = canvas.grid.to_world_xyz_mm(places) @ [1, 2, 3]
    np.testing.assert_allclose(values[tuple(places.T)], expected, atol=0.01)


def test_a_tube_fills_its_volume():
    """A tube of 4 mm radius and 30 mm length with round ends holds 1,776 cubic mm, within 3 %."""
    canvas = Canvas(Grid((30, 24, 24), (1.6, 1.6, 3.0), (-8.0, -14.0, -5.0)))
    start, end, radius = np.array([[10.0, 5.0, 20.0]]), np.array([[10.0, 5.0, 50.0]]), np.array([4.0])

    ((_, part),) = Brush(canvas).tubes(start, end, radius, radius)

    volume = part.sum() * canvas.grid.spacing_xyz_mm.prod()
    assert volume == pytest.approx(np.pi * 16 * 30 + 4 / 3 * np.pi * 64, rel=0.03)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_nothing_behind(tmp_path, workers):
    """When the caller's progress raises after the first scan, no folder is left, not even a hidden one."""

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "out", 2, SEED, workers=workers, progress=stop, acquisition=COARSE)

    assert list(tmp_path.iterdir()) == []


def test_progress_counts_scans(tmp_path):
    """One scan of one is told as (1, 1)."""
    seen = []

    write_phantom(
        tmp_path / "out", 1, SEED, workers=1, progress=lambda *step: seen.append(step), acquisition=COARSE
    )

    assert seen == [(1, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scans": 0, "seed": 0}, "num_scans must be at least 1. Received: 0."),
        ({"num_scans": 1, "seed": -1}, "seed must be at least 0. Received: -1."),
        ({"num_scans": 1, "seed": 0, "workers": 0}, "workers must be at least 1. Received: 0."),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, arguments, message):
    """A count below 1 or a negative seed is refused in one line, before anything is written."""
    with pytest.raises(InputError) as error:
        write_phantom(tmp_path / "out", **arguments)

    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []
