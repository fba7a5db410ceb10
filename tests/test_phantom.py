import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.lungs import Lungs, find_lungs
from luna_cls.scans.phantom import Acquisition, candidates, write_phantom
from luna_cls.scans.phantom.acquisition import THICKEST_MM, Protocol, acquire, blurred, draw_grid
from luna_cls.scans.phantom.anatomy import make_anatomy
from luna_cls.scans.phantom.build import Build
from luna_cls.scans.phantom.candidates import detect
from luna_cls.scans.phantom.lattice import STEP_MM, Canvas, Lattice
from luna_cls.scans.phantom.nodules import (
    HU_RANGES,
    MICRO_DIAMETERS_MM,
    SITE_SHARES,
    draw_count,
    draw_diameter_mm,
)
from luna_cls.scans.phantom.scan import LEFT_LUNG, RIGHT_LUNG, make_scan, series_uid
from luna_cls.scans.phantom.strokes import Brush
from luna_cls.scans.phantom.tree import quotas_of
from luna_cls.scans.proposals import propose
from luna_cls.scans.readers import metaimage
from luna_cls.scans.volume import read_volume

# 45 slices of 3 mm hold half a chest; such a scan takes a third of a full one's time.
COARSE = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), noise_hu=(5.0, 10.0))
FLIPPED = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), flipped_share=1.0)
STRAIGHT = Acquisition((45, 45), (150, 200), (1.5, 1.7), (3.0,), flipped_share=0.0)
NUM_SCANS = 2
SEED = 5


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom(
        tmp_path_factory.mktemp("phantom") / "one",
        NUM_SCANS,
        SEED,
        num_nodules=4,
        workers=1,
        acquisition=COARSE,
    ).root


@pytest.fixture(scope="module")
def scans():
    return [make_scan(SEED, index, COARSE, num_nodules=4) for index in range(5)]


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _centers_xyz_mm(nodules):
    return np.reshape([nodule.center_xyz_mm for nodule in nodules], (-1, 3))


def _diameters_mm(nodules):
    return np.array([nodule.diameter_mm for nodule in nodules])


def _hu_at(scan, points_xyz_mm):
    places = np.rint(scan.volume.grid.to_voxel_zyx(points_xyz_mm)).astype(int)
    return scan.volume.hu[tuple(places.T)].astype(float)


@pytest.mark.slow
def test_workers_do_not_change_a_byte(tree, tmp_path):
    """Two processes write the very files that one writes."""
    again = write_phantom(tmp_path / "two", NUM_SCANS, SEED, num_nodules=4, workers=2, acquisition=COARSE)

    assert _digests(again.root) == _digests(tree)


def test_a_scan_does_not_depend_on_how_many_there_are(tree, tmp_path):
    """The first scan of two is the only scan of one."""
    alone = write_phantom(tmp_path / "alone", 1, SEED, num_nodules=4, workers=1, acquisition=COARSE)

    of_two = _digests(tree)
    scans = {name: digest for name, digest in _digests(alone.root).items() if name.endswith(("mhd", "zraw"))}
    assert len(scans) == 4  # a scan and its mask, two files each
    assert scans.items() <= of_two.items()


def test_another_seed_gives_another_scan():
    """Seeds 1 and 2 share no UID, and no diameter."""
    first, second = (make_scan(seed, 0, COARSE, num_nodules=4) for seed in (1, 2))

    assert first.volume.series_uid != second.volume.series_uid
    assert not set(_diameters_mm(first.nodules)) & set(_diameters_mm(second.nodules))


def test_the_tree_has_the_layout_of_luna16(tree):
    """Scan i lies in subset i % 10, its mask in seg-lungs-LUNA16, and the tables beside them."""
    uids = [series_uid(SEED, 0), series_uid(SEED, 1)]

    assert sorted(path.name for path in tree.iterdir()) == sorted(
        ["annotations.csv", "annotations_excluded.csv", "candidates_V2.csv", "seriesuids.csv"]
        + ["nodules.csv", "scans.csv", "phantom.json", "seg-lungs-LUNA16"]
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
    assert annotations.diameter_mm.between(3.2, 32).all()


def test_a_written_scan_is_the_scan_that_was_made(tree, scans):
    """Voxels and grid survive the disk; padding below -1024 HU reads as air."""
    for index in (0, 1):
        made = scans[index].volume
        read = read_volume(tree / f"subset{index}" / f"{made.series_uid}.mhd")
        np.testing.assert_array_equal(read.hu, made.hu)
        np.testing.assert_allclose(read.grid.origin_xyz_mm, made.grid.origin_xyz_mm)
        np.testing.assert_allclose(read.grid.spacing_xyz_mm, made.grid.spacing_xyz_mm)
        np.testing.assert_array_equal(read.grid.direction, made.grid.direction)

    assert {int(scan.stored_hu.min()) for scan in scans} & {-2048, -3024}
    assert all(scan.volume.hu.min() >= -1024 for scan in scans)


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
    """A mark is a nodule's exactly if it is nearer its centre than its radius, and every nodule has one."""
    for scan in scans:
        centers, radii = _centers_xyz_mm(scan.nodules), _diameters_mm(scan.nodules) / 2
        for marks, is_nodule in ((scan.marks_xyz_mm, True), (scan.others_xyz_mm, False)):
            inside = np.linalg.norm(marks[:, None] - centers, axis=2) < radii
            assert (inside.any(axis=1) == is_nodule).all()
            if is_nodule:
                assert inside.any(axis=0).all()


def test_others_are_what_the_detector_finds(scans):
    """Over 200 a scan, all in the volume, and each a point that it gives for the finished scan."""
    for scan in scans:
        found = detect(scan.volume, Lungs(scan.lungs > 0, scan.volume.grid), np.random.default_rng(0))

        assert len(scan.others_xyz_mm) > 200
        assert scan.volume.grid.contains(scan.others_xyz_mm).all()
        assert {*map(tuple, scan.others_xyz_mm)} <= {*map(tuple, found)}


def test_the_detector_keeps_half_of_the_surest_and_some_of_all(scans, monkeypatch):
    """Of 200 points kept of n, 100 + 20,000 / n on average are among its 200 best, the others from all."""
    volume, lungs = scans[0].volume, Lungs(scans[0].lungs > 0, scans[0].volume.grid)
    table = propose(volume, find_lungs(volume), 10_000)
    ranked = table[COORDINATES].to_numpy()
    rank = {tuple(point): number for number, point in enumerate(ranked)}
    monkeypatch.setattr(candidates, "propose", lambda *_: table)
    orders = [
        np.array([rank[tuple(point)] for point in detect(volume, lungs, np.random.default_rng(seed))])
        for seed in range(20)
    ]

    kept = orders[0]
    assert sorted(kept) == list(range(len(ranked)))
    best = np.mean([(order[:200] < 200).sum() for order in orders])
    assert best == pytest.approx(100 + 20_000 / len(ranked), abs=6)
    assert kept[:200].max() > 0.8 * len(ranked)


def test_where_no_lungs_are_found_the_known_ones_are_searched(scans):
    """A scan without air has no lungs to be found; a bright spot in the known ones is marked."""
    volume = scans[0].volume
    hu = np.where(scans[0].lungs > 0, np.int16(-390), np.int16(0))
    z, y, x = np.argwhere(scans[0].lungs == LEFT_LUNG)[5000]
    hu[z - 1 : z + 2, y - 2 : y + 3, x - 2 : x + 3] = 100

    found = detect(replace(volume, hu=hu), Lungs(scans[0].lungs > 0, volume.grid), np.random.default_rng(0))

    spot_xyz_mm = volume.grid.to_world_xyz_mm([[z, y, x]])
    assert np.linalg.norm(found - spot_xyz_mm, axis=1).min() < 4


def test_as_many_are_kept_as_asked(tree, tmp_path):
    """30 are kept for each on a nodule if 30 are asked for, as many of each scan within one; else 100."""
    made = write_phantom(
        tmp_path / "some", 2, SEED, imbalance=30, num_nodules=4, workers=1, acquisition=COARSE
    )
    table = pd.read_csv(made.root / "candidates_V2.csv")
    others = table[table["class"] == 0].groupby("seriesuid").size()

    assert made.num_on_nodules == (table["class"] == 1).sum() > 7
    assert made.num_others == others.sum() == 30 * made.num_on_nodules
    assert others.max() - others.min() <= 1

    written = json.loads((tree / "phantom.json").read_text())
    assert written["other_candidates"] == 100 * written["candidates_on_nodules"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 500))
def test_quotas_are_fair(have, wanted):
    """They sum to what is wanted, or to all there is; only a scan that has less gives less."""
    quotas = np.array(quotas_of(have, wanted))

    assert quotas.sum() == min(wanted, sum(have))
    assert (quotas >= 0).all()
    assert (quotas <= have).all()
    short = quotas < have
    if short.any():
        assert quotas[short].min() >= quotas.max() - 1


def test_nodules_lie_in_lungs(scans):
    """The voxel at every annotated centre is in the lung mask."""
    for scan in scans:
        centers = _centers_xyz_mm(scan.nodules)
        places = np.rint(scan.volume.grid.to_voxel_zyx(centers)).astype(int)
        assert len(centers) >= 3
        assert (scan.lungs[tuple(places.T)] > 0).all()


def test_nothing_overlaps(scans):
    """Two nodules, counted or too small to count, are further apart than both radii together."""
    for scan in scans:
        both = scan.nodules + scan.micronodules
        centers, radii = _centers_xyz_mm(both), _diameters_mm(both) / 2
        gaps = np.linalg.norm(centers[:, None] - centers, axis=2) - radii[:, None] - radii
        assert (gaps[~np.eye(len(radii), dtype=bool)] > 0).all()


def test_nodules_have_the_hu_of_their_kind():
    """Over 8 mm, the median around the centre is what the kind says, within 120 HU for blur and noise."""
    checked = dict.fromkeys(HU_RANGES, 0)
    for index in range(6):
        scan = make_scan(11, index, COARSE, num_nodules=14)
        for nodule in scan.nodules:
            if nodule.diameter_mm < 8:
                continue
            steps_mm = np.mgrid[-2:3, -2:3, -2:3].reshape(3, -1).T / 8 * nodule.diameter_mm
            hu = np.median(_hu_at(scan, nodule.center_xyz_mm + steps_mm))
            low, high = HU_RANGES[nodule.kind]
            if nodule.kind in ("part-solid", "calcified"):  # some of it core, some not
                low, high = min(low, 20), max(high, 60)
            if nodule.kind == "cavitary":
                low, high = -930, 60
            assert low - 120 < hu < high + 120, nodule
            checked[nodule.kind] += 1

    assert checked["solid"] > 5
    assert sum(checked.values()) > 12


def test_nodules_touch_what_they_are_said_to_touch(scans):
    """One on the pleura reaches to within a slice of the lung's edge or beyond it; a free one does not."""
    from scipy.ndimage import distance_transform_edt

    for scan in scans:
        depth_mm = distance_transform_edt(scan.lungs > 0, sampling=scan.volume.grid.spacing_xyz_mm[::-1])
        for nodule in scan.nodules:
            place = np.rint(scan.volume.grid.to_voxel_zyx(nodule.center_xyz_mm)).astype(int)
            from_edge_mm = depth_mm[tuple(place)] - nodule.diameter_mm / 2
            if nodule.attachment == "pleura":
                assert from_edge_mm < 3  # a slice
            elif nodule.attachment == "free":
                assert from_edge_mm > -1


def test_sizes_and_counts_are_those_of_luna16():
    """42 % below 6 mm and 24 % from 10 mm; a third of scans without a nodule, none with over 12."""
    rng = np.random.default_rng(0)
    diameters_mm = np.array([draw_diameter_mm(rng) for _ in range(4000)])
    counts = np.array([draw_count(rng) for _ in range(4000)])

    assert abs((diameters_mm < 6).mean() - 0.42) < 0.03
    assert abs((diameters_mm >= 10).mean() - 0.24) < 0.03
    assert diameters_mm.min() >= 3.2
    assert diameters_mm.max() <= 32
    assert abs((counts == 0).mean() - 0.33) < 0.03
    assert counts.max() == 12
    assert SITE_SHARES["pleura"] >= 0.3
    assert sum(SITE_SHARES.values()) == pytest.approx(1)


def test_the_sidecars_tell_what_is_in_a_scan(tree, scans):
    """nodules.csv has a row for each annotation, scans.csv for each scan; small ones are excluded."""
    annotations = pd.read_csv(tree / "annotations.csv")
    nodules = pd.read_csv(tree / "nodules.csv")
    excluded = pd.read_csv(tree / "annotations_excluded.csv")
    about = pd.read_csv(tree / "scans.csv")

    pd.testing.assert_frame_equal(nodules[annotations.columns], annotations)
    assert set(nodules["kind"]) <= set(HU_RANGES)
    assert set(nodules["attachment"]) <= set(SITE_SHARES)
    assert about["num_nodules"].tolist() == [len(scan.nodules) for scan in scans[:2]]
    assert about["noise_hu"].between(5, 10).all()
    small = excluded.loc[excluded["diameter_mm"] > 0, "diameter_mm"]
    assert small.between(*MICRO_DIAMETERS_MM).all()
    assert len(small) == sum(len(scan.micronodules) for scan in scans[:2])
    assert (excluded["diameter_mm"] == -1).sum() == sum(len(scan.mimics_xyz_mm) for scan in scans[:2])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_protocols_stay_in_bounds(seed):
    """Slices are no thinner than their distance nor thicker than 3 mm; noise is 8 to 70 HU."""
    rng = np.random.default_rng(seed)
    grid = draw_grid(Acquisition(), Build.draw(rng), rng)

    protocol = Protocol.draw(Acquisition(), grid, rng)

    assert grid.spacing_xyz_mm[2] <= protocol.thickness_mm <= THICKEST_MM
    assert 8 <= protocol.noise_hu <= 70
    assert protocol.pad_hu in (0, -2048, -3024)
    assert (protocol.enhancement > 0) <= (protocol.kernel_mm < 0.48)


@pytest.fixture(scope="module")
def stage():
    """An empty scan on a coarse grid, and the chest it is of."""
    rng = np.random.default_rng(4)
    build = Build.draw(rng)
    canvas = Canvas(draw_grid(STRAIGHT, build, rng))
    return canvas, make_anatomy(Lattice.covering(canvas.grid), build, rng)


PLAIN = Protocol(0.5, 0.0, 3.0, 1e-3, metal=False, beat_mm=0.0, breath_mm=0.0, pad_hu=0)


def _acquired(stage, protocol, hu=-800.0):
    canvas, anatomy = stage
    field = np.full(canvas.grid.shape_zyx, hu, np.float32)
    return acquire(field, canvas, anatomy, protocol, np.random.default_rng(0)).astype(float)


@pytest.mark.parametrize("lowest_mm", [-60.0, 60.0], ids=["lungs", "shoulders"])
@pytest.mark.parametrize("kernel_mm", [0.35, 0.75])
def test_noise_is_as_strong_as_the_protocol_says(stage, lowest_mm, kernel_mm):
    """30 HU in the middle below the shoulders, within a tenth, whatever the kernel; more between them."""
    anatomy = stage[1]
    grid = Grid((60, 120, 120), (1.5, 1.5, 2.0), (-90.0, -90.0, lowest_mm))
    protocol = replace(PLAIN, noise_hu=30.0, kernel_mm=kernel_mm)

    field = np.full(grid.shape_zyx, -500, np.float32)
    noisy = acquire(field, Canvas(grid), anatomy, protocol, np.random.default_rng(0))

    middle = noisy[:, 50:70, 50:70].std(axis=(1, 2))
    z_mm = Canvas(grid).axes_zyx_mm[0]
    assert np.median(middle[z_mm < 110]) == pytest.approx(30, rel=0.1)
    if lowest_mm > 0:
        assert np.median(middle[z_mm > 170]) > 1.3 * 30
    assert _acquired(stage, PLAIN).std() < 1


def test_metal_throws_streaks_over_few_slices(stage):
    """Some voxels at the scanner's limit; at most 18 mm of slices differ from a scan without."""
    hu = _acquired(stage, replace(PLAIN, metal=True))
    changed = np.abs(hu + 800).max(axis=(1, 2)) > 5

    assert hu.max() > 2000
    assert 1 <= changed.sum() <= 18 / 3 + 2  # and a slice either side by blur


def test_motion_smears_only_what_moves(stage):
    """A bright plane beside the heart fades when it beats; the same plane at the apex does not."""
    canvas, anatomy = stage
    heart_mm = anatomy.lattice.onto(anatomy.heart_mm, canvas)
    stripes = np.where(np.arange(canvas.grid.shape_zyx[2]) % 8 < 2, 0.0, -800.0)

    still, moved = (_acquired(stage, replace(PLAIN, beat_mm=beat_mm), stripes) for beat_mm in (0.0, 6.5))

    assert np.abs(moved - still)[heart_mm < 0].max() > 100
    assert np.abs(moved - still)[heart_mm > 45].max() < 5


@pytest.mark.parametrize("breath_mm", [4.0, 5.0, 7.0])
def test_motion_smears_without_moving(stage, breath_mm):
    """A bright slice that moves keeps its middle within a twentieth of a slice, and loses height."""
    canvas, anatomy = stage
    moving = replace(anatomy, diaphragm_mm=np.full_like(anatomy.diaphragm_mm, -1))
    field = np.full(canvas.grid.shape_zyx, -800, np.float32)
    field[20] = 0

    still, seen = (
        acquire(field.copy(), canvas, moving, protocol, np.random.default_rng(0)).mean(axis=(1, 2)) + 800
        for protocol in (PLAIN, replace(PLAIN, breath_mm=breath_mm))
    )

    assert (seen * np.arange(45)).sum() / seen.sum() == pytest.approx(20, abs=0.05)
    assert seen[20] < 0.98 * still[20]


def test_padding_lies_outside_the_circle(stage):
    """The corners hold -3024, the middle does not; without padding nothing is below -1024."""
    padded = _acquired(stage, replace(PLAIN, pad_hu=-3024))

    assert (padded[:, 0, 0] == -3024).all()
    assert padded[:, padded.shape[1] // 2, padded.shape[2] // 2].min() > -1024
    assert _acquired(stage, PLAIN).min() >= -1024


@pytest.mark.parametrize("acquisition", [STRAIGHT, FLIPPED], ids=["straight", "flipped"])
def test_left_is_left_however_the_scan_lies(acquisition):
    """The left lung lies 80 to 160 mm further along x, and most bone further along y."""
    scan = make_scan(3, 0, acquisition, num_nodules=0)
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
    assert set(spacings[:, 2]) == {1.0, 1.25, 1.5, 1.8, 2.0, 2.5, 3.0}
    assert 0.2 < np.mean([grid.direction[0, 0] < 0 for grid in grids]) < 0.3


def test_full_scans_are_as_large_as_those_of_luna16():
    """512 x 512 pixels of 0.5 to 0.9 mm, 100 to 320 slices of 0.6 to 3 mm."""
    rng = np.random.default_rng(0)
    grids = [draw_grid(Acquisition.full(), Build.draw(rng), rng) for _ in range(200)]

    assert {grid.shape_zyx[1:] for grid in grids} == {(512, 512)}
    assert all(100 <= grid.shape_zyx[0] <= 320 for grid in grids)
    assert all(0.5 <= grid.spacing_xyz_mm[0] <= 0.9 for grid in grids)
    assert {grid.spacing_xyz_mm[2] for grid in grids} >= {0.6, 1.25, 2.5, 3.0}


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


@settings(max_examples=30, deadline=None)
@given(sigma_zyx_vox=st.tuples(*[st.floats(0.05, 2.5)] * 3))
def test_a_blur_is_as_wide_as_it_says(sigma_zyx_vox):
    """One voxel of 1 stays 1 in all, and spreads by the deviation given, to 0.5 %, below half a voxel too."""
    point = np.zeros((25, 25, 25))
    point[12, 12, 12] = 1

    spread = blurred(point, sigma_zyx_vox)

    away2 = (np.arange(25) - 12.0) ** 2
    lines = [spread.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    assert spread.sum() == pytest.approx(1)
    assert [np.sqrt(line @ away2) for line in lines] == pytest.approx(list(sigma_zyx_vox), rel=5e-3)


@pytest.mark.parametrize("size_mm", [7.0, 16.0, 45.0])
def test_noise_on_the_lattice_has_the_grain_asked_for(size_mm):
    """Mean 0 and deviation 1, and points half a grain apart are alike, those three grains apart are not."""
    lattice = Lattice(tuple(np.arange(0, 320, STEP_MM, dtype=np.float32) for _ in range(3)))
    noise = lattice.noise(np.random.default_rng(0), size_mm)

    def likeness(apart_mm):
        step = round(apart_mm / STEP_MM)
        return np.corrcoef(noise[step:].ravel(), noise[:-step].ravel())[0, 1]

    assert noise.shape == lattice.shape_zyx
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert likeness(size_mm / 2) > 0.5
    assert abs(likeness(3 * size_mm)) < 0.2


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
        ({"num_scans": 1, "seed": 0, "imbalance": 0}, "imbalance must be at least 1. Received: 0."),
        ({"num_scans": 1, "seed": 0, "num_nodules": -1}, "num_nodules must be at least 0. Received: -1."),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, arguments, message):
    """A count below 1 or a negative seed is refused in one line, before anything is written."""
    with pytest.raises(InputError) as error:
        write_phantom(tmp_path / "out", **arguments)

    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_than_there_is_cannot_be_kept(run_cli, tmp_path):
    """5,000 for each on a nodule are asked for; the scan has fewer, all are kept, and a line says so."""
    asked = ["--scans", "1", "--nodules", "1", "--imbalance", "5000"]

    done = run_cli("phantom", tmp_path / "out", *asked)

    about = pd.read_csv(tmp_path / "out" / "scans.csv")
    table = pd.read_csv(tmp_path / "out" / "candidates_V2.csv")
    assert done.returncode == 0, done.stderr
    assert "These are all the scans have: fewer than 5000 for each on a nodule." in done.stderr
    assert (table["class"] == 0).sum() == about["num_proposals"].sum() < 5000


@pytest.mark.slow
def test_a_preview_is_drawn(run_cli, tmp_path):
    """`phantom --preview` leaves two pictures of some size; a scan without nodules has its sheet too."""
    done = run_cli("phantom", tmp_path / "out", "--scans", "1", "--nodules", "0", "--preview")

    assert done.returncode == 0, done.stderr
    assert "0 candidates on nodules, 100 on none" in done.stderr
    for name in ("preview_scans.png", "preview_candidates.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert pd.read_csv(tmp_path / "out" / "annotations.csv").empty
    assert len(LunaTree.open(tmp_path / "out").candidates()) == 100
