import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis.extra.numpy import arrays

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.cubes.preparation import needs, prepare
from luna_cls.cubes.store import CubeFormat, CubeStore
from luna_cls.errors import InputError
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import read_volume

COORDINATES = ["coordX", "coordY", "coordZ"]
FILES = ["candidates.csv", "cubes.npy", "failures.csv", "scans.csv", "store.json"]
FIRST, THIRD = "1.2.826.0.1", "1.2.826.0.3"  # of the scans of small_tree


@pytest.fixture
def tree(small_tree, tmp_path):
    """A small tree of one's own, to break."""
    return LunaTree.open(shutil.copytree(small_tree, tmp_path / "tree"))


@pytest.fixture
def copy(small_store, tmp_path):
    """The folder of a whole store of one's own, to break."""
    return shutil.copytree(small_store.path, tmp_path / "store")


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_store_is_five_files(small_store):
    """A store holds its facts, its tables, its cubes and its failures, and no trace of the making."""
    facts = json.loads((small_store.path / "store.json").read_text())

    assert sorted(path.name for path in small_store.path.iterdir()) == FILES
    assert not small_store.path.with_name("store.partial").exists()
    assert len(facts.pop("checksum")) == 64
    assert facts == {
        "format": 2, "spec": {"size_vox": 31, "spacing_mm": 1.0}, "margin_vox": 0,
        "dtype": "int16", "unit": "HU", "cubes": 40, "nodules": 12, "scans": 4, "rows_without_cube": 0,
    }  # fmt: skip


def test_the_table_is_the_candidates_with_fold_and_status(small_store, small_tree):
    """Rows keep the order, text and float64 of candidates_V2.csv; a fold is the scan's subset."""
    tree = LunaTree.open(small_tree)
    candidates = tree.candidates()

    table = CubeStore.open(small_store.path).candidates

    pd.testing.assert_frame_equal(table[list(candidates.columns)], candidates)
    assert list(table.columns[-2:]) == ["fold", "status"]
    assert table["fold"].tolist() == candidates["seriesuid"].map(tree.subsets).tolist()
    assert (table["status"] == "ok").all()
    assert small_store.labels.tolist() == candidates["class"].tolist()
    assert small_store.failures.empty


def test_row_i_is_cube_i(small_store, small_tree):
    """Each of the 40 cubes is the one cut around its row's point, in a table that mixes the scans."""
    tree = LunaTree.open(small_tree)
    volumes = {uid: read_volume(path) for uid, path in tree.scan_paths.items()}
    points = small_store.candidates[COORDINATES].to_numpy()
    expected = [
        cut_cubes(volumes[uid], point)[0]
        for uid, point in zip(small_store.candidates["seriesuid"], points, strict=True)
    ]

    assert small_store.cubes.dtype == np.int16
    np.testing.assert_array_equal(small_store.cubes, expected)
    assert len({cube.tobytes() for cube in expected}) == 40


def test_workers_do_not_change_a_byte(small_store, small_tree, tmp_path):
    """Two processes make the files that one makes, and report each scan done."""
    tree = LunaTree.open(small_tree)
    out, reports = tmp_path / "store", []

    prepare(tree, tree.candidates(), out, workers=2, on_progress=lambda *counts: reports.append(counts))

    assert _digests(out) == _digests(small_store.path)
    assert reports == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_cubes_of_another_size(tree, tmp_path):
    """The spec is kept in the store and read back."""
    prepare(tree, tree.candidates(), tmp_path / "store", CubeFormat(CubeSpec(8, 0.5)), workers=1)

    store = CubeStore.open(tmp_path / "store")

    assert store.spec == CubeSpec(8, 0.5)
    assert store.cubes.shape == (40, 8, 8, 8)


def test_a_margin_lies_around_the_same_cubes(small_store, small_tree, tmp_path):
    """With 4 voxels of margin cubes of 39 are kept; their middle 31 are those of none, but for rounding."""
    tree = LunaTree.open(small_tree)

    prepare(tree, tree.candidates(), tmp_path / "store", CubeFormat(margin_vox=4), workers=1)
    store = CubeStore.open(tmp_path / "store")

    assert (store.format, store.spec) == (CubeFormat(CubeSpec(31), 4, "int16"), CubeSpec(31))
    assert store.cubes.shape == (40, 39, 39, 39)
    off = np.abs(store.cubes[:, 4:35, 4:35, 4:35].astype(int) - small_store.cubes)
    assert off.max() <= 1
    assert off.mean() < 1e-4
    volume = read_volume(tree.scan_paths[store.candidates["seriesuid"][0]])
    point = store.candidates.loc[0, COORDINATES].to_numpy(float)
    np.testing.assert_array_equal(store.cubes[0], cut_cubes(volume, point, CubeSpec(39))[0])


def test_uint8_takes_half_the_room_and_keeps_the_window(small_store, small_tree, tmp_path):
    """A byte a voxel, read back as HU of the window from -1000 to 400, each within 3 of what it was."""
    tree = LunaTree.open(small_tree)

    prepare(tree, tree.candidates(), tmp_path / "store", CubeFormat(dtype="uint8"), workers=1)
    store = CubeStore.open(tmp_path / "store")

    assert store.cubes.dtype == np.uint8
    assert (small_store.cubes.nbytes, store.cubes.nbytes) == (40 * 31**3 * 2, 40 * 31**3)
    wanted = np.clip(small_store.cubes, -1000, 400).astype(int)
    assert 0 < np.abs(store.format.unpack(store.cubes) - wanted).max() <= 3


@given(hu=arrays(np.int16, 50))
def test_any_hu_comes_back_from_a_byte_within_3(hu):
    """Below the window it is -1000 HU, above it 400, within it at most 3 HU off; int16 keeps it all."""
    stored = CubeFormat(dtype="uint8")

    back = stored.unpack(stored.pack(hu)).astype(int)

    assert np.abs(back - np.clip(hu, -1000, 400)).max() <= 3
    assert (back[hu <= -1000] == -1000).all()
    assert (back[hu >= 400] == 400).all()
    np.testing.assert_array_equal(CubeFormat().unpack(CubeFormat().pack(hu)), hu)


@pytest.mark.parametrize(
    "wrong", [{"margin_vox": -1}, {"margin_vox": 101}, {"dtype": "float32"}], ids=["less", "wide", "type"]
)
def test_cubes_that_cannot_be_stored_are_refused(wrong):
    """A negative margin and another type are one line."""
    with pytest.raises(InputError, match=r"Received: (-1|101|float32)\."):
        CubeFormat(**wrong)


def test_every_scan_is_checksummed(tree, small_store, tmp_path):
    """scans.csv has the SHA-256 of each scan's header and data; one voxel more changes the store's own."""
    scans = pd.read_csv(small_store.path / "scans.csv", dtype=str).set_index("seriesuid")

    path = tree.scan_paths[THIRD]
    data = path.with_suffix(".raw")
    whole = hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    assert scans.loc[THIRD].tolist() == ["2", "ok", whole]
    assert scans["sha256"].nunique() == 4
    same = prepare(tree, tree.candidates(), tmp_path / "same", workers=1)
    data.write_bytes(data.read_bytes()[:-2] + b"xx")
    other = prepare(tree, tree.candidates(), tmp_path / "other", workers=1)
    assert same.checksum == small_store.checksum != other.checksum


def test_scans_of_any_format_give_the_same_cubes(small_tree, small_store, tmp_path):
    """NRRD and NIfTI files in folders of any name, beside the list of points, are prepared like LUNA16."""
    for number, path in enumerate(sorted(small_tree.glob("subset*/*.mhd"))):
        folder = tmp_path / "mine" / f"patient {number}"
        folder.mkdir(parents=True)
        ending = ".nrrd" if number % 2 else ".nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / (path.stem + ending)))
    tree = LunaTree.open(tmp_path / "mine")
    candidates = LunaTree.open(small_tree).candidates()

    store = prepare(tree, candidates, tmp_path / "store", workers=1)

    assert (store.candidates["status"] == "ok").all()
    assert np.abs(store.cubes.astype(int) - small_store.cubes).max() <= 1


def _truncate_scan(tree, uid):
    data_path = tree.scan_paths[uid].with_suffix(".raw")
    data_path.write_bytes(data_path.read_bytes()[:-100])


def test_a_truncated_scan_is_listed_and_the_rest_is_made(tree, small_store, tmp_path):
    """The ten rows of a scan that cannot be read say so, failures.csv says why, thirty cubes are whole."""
    _truncate_scan(tree, THIRD)

    store = prepare(tree, tree.candidates(), tmp_path / "store", workers=1)

    broken = (store.candidates["seriesuid"] == THIRD).to_numpy()
    assert store.candidates.loc[broken, "status"].tolist() == ["unreadable"] * 10
    assert store.candidates.loc[~broken, "status"].tolist() == ["ok"] * 30
    assert not store.cubes[broken].any()
    np.testing.assert_array_equal(store.cubes[~broken], small_store.cubes[~broken])
    failure = store.failures.iloc[0]
    assert len(store.failures) == 1
    assert failure[["seriesuid", "status"]].tolist() == [THIRD, "unreadable"]
    assert pd.isna(failure["row"])
    assert f"{THIRD}.raw is truncated" in failure["reason"]
    facts = json.loads((store.path / "store.json").read_text())
    assert (facts["cubes"], facts["nodules"], facts["scans"], facts["rows_without_cube"]) == (30, 9, 3, 10)


def test_a_scan_that_is_not_there_is_listed(tree, tmp_path):
    """Rows of a UID without file have no cube, and a fold all the same."""
    candidates = tree.candidates()
    candidates.loc[7, "seriesuid"] = "9.9.9"

    store = prepare(tree, candidates, tmp_path / "store", workers=1)

    assert store.candidates["status"].tolist() == ["ok"] * 7 + ["no_scan"] + ["ok"] * 32
    assert store.candidates["fold"].between(0, 9).all()
    assert store.failures[["seriesuid", "status"]].to_numpy().tolist() == [["9.9.9", "no_scan"]]
    assert "has no scan 9.9.9" in store.failures["reason"][0]


def test_a_point_outside_its_scan_is_listed_never_moved(tree, small_store, tmp_path):
    """Row 5, moved 1 m away, has no cube; its neighbours in the same scan have theirs."""
    candidates = tree.candidates()
    candidates.loc[5, "coordX"] += 1000

    store = prepare(tree, candidates, tmp_path / "store", workers=1)

    assert store.candidates["status"].tolist() == ["ok"] * 5 + ["outside"] + ["ok"] * 34
    assert store.candidates.loc[5, "coordX"] == candidates.loc[5, "coordX"]
    assert not store.cubes[5].any()
    np.testing.assert_array_equal(np.delete(store.cubes, 5, axis=0), np.delete(small_store.cubes, 5, axis=0))
    assert store.failures[["row", "status"]].to_numpy().tolist() == [[5, "outside"]]
    assert str(candidates.loc[5, "coordX"]) in store.failures["reason"][0]


def test_a_store_without_a_single_cube_is_refused(tree, tmp_path):
    """If nothing could be cut there is no store, the first reason is told, and nothing is in the way."""
    with pytest.raises(InputError, match=r"Not one cube could be cut.*no scan 9\.9\.9"):
        prepare(tree, tree.candidates().assign(seriesuid="9.9.9"), tmp_path / "store", workers=1)

    assert not (tmp_path / "store").exists()
    assert len(prepare(tree, tree.candidates(), tmp_path / "store", workers=1).candidates) == 40


def test_what_exists_is_not_overwritten_unasked(tree, copy):
    """A store is replaced with force alone."""
    before = _digests(copy)
    candidates = tree.candidates().iloc[:3]

    with pytest.raises(InputError, match="exists already"):
        prepare(tree, candidates, copy, workers=1)
    assert _digests(copy) == before
    assert len(prepare(tree, candidates, copy, workers=1, force=True).candidates) == 3


@pytest.mark.parametrize("place", [".", ".."], ids=["the tree itself", "the folder the tree is in"])
def test_force_never_deletes_the_scans(tree, place):
    """A store to be made where the scans lie is refused, forced or not."""
    with pytest.raises(InputError):
        prepare(tree, tree.candidates(), (tree.root / place).resolve(), workers=1, force=True)

    assert tree.scan_paths[FIRST].is_file()


def test_a_refused_force_keeps_the_old_store(tree, copy):
    """A call that cannot start, for want of workers, leaves the store it was to replace."""
    before = _digests(copy)

    with pytest.raises(InputError, match="--workers must be at least 1"):
        prepare(tree, tree.candidates(), copy, workers=0, force=True)

    assert _digests(copy) == before


def _edit_facts(folder, **changes):
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop_last_row(folder):
    lines = (folder / "candidates.csv").read_text().splitlines(keepends=True)
    (folder / "candidates.csv").write_text("".join(lines[:-1]))


def _drop_status(folder):
    table = pd.read_csv(folder / "candidates.csv")
    table.drop(columns="status").to_csv(folder / "candidates.csv", index=False)


def _truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / "store.json").unlink(),
        lambda folder: (folder / "store.json").write_text("{"),
        lambda folder: (folder / "store.json").write_text("{}"),
        lambda folder: _edit_facts(folder, format=1),
        lambda folder: _edit_facts(folder, margin_vox=-3),
        lambda folder: _edit_facts(folder, spec={"size_vox": 30, "spacing_mm": 1.0}),
        lambda folder: (folder / "candidates.csv").unlink(),
        lambda folder: (folder / "candidates.csv").write_text("seriesuid,class\n"),
        _drop_status,
        _drop_last_row,
        lambda folder: (folder / "cubes.npy").unlink(),
        lambda folder: _truncate(folder / "cubes.npy"),
        lambda folder: (folder / "cubes.npy").write_bytes(b"no array"),
        lambda folder: np.save(folder / "cubes.npy", np.zeros((40, 31, 31, 31), np.float32)),
    ],
    ids=[
        "no folder", "no facts", "facts cut off", "facts empty", "another format", "no such margin",
        "another size", "no table", "another table", "no status", "a row less", "no cubes", "cubes cut off",
        "no array", "cubes of another type",
    ],
)  # fmt: skip
def test_a_store_that_is_not_whole_is_refused(copy, damage):
    """Whatever is missing, damaged or does not fit, one line names the store."""
    damage(copy)

    with pytest.raises(InputError) as refusal:
        CubeStore.open(copy)

    assert str(copy) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _with_margin(store, margin_vox):
    """The store's cubes of 31 voxels taken for smaller ones, and what lies around them."""
    return replace(store, format=CubeFormat(CubeSpec(31 - 2 * margin_vox), margin_vox))


@pytest.mark.parametrize(("size_vox", "margin_vox"), [(27, 2), (31, 0), (29, 1), (1, 15)], ids=str)
def test_a_model_may_read_more_of_the_margin_or_less_of_the_cubes(small_store, size_vox, margin_vox):
    """Of 27 voxels and 2 around them, 31 on disk, a model may read any odd number up to 31."""
    seen = _with_margin(small_store, 2).seen_as(size_vox)

    assert (seen.spec.size_vox, seen.format.margin_vox) == (size_vox, margin_vox)
    assert seen.format.with_margin.size_vox == 31
    assert seen.checksum == small_store.checksum


@pytest.mark.parametrize(
    ("size_vox", "words"),
    [
        (30, "take an odd number up to 31."),
        (33, "take an odd number up to 31, or prepare them with --margin 3."),
        (401, "take an odd number up to 31."),
    ],
    ids=str,
)
def test_cubes_that_a_model_cannot_read_are_refused(small_store, size_vox, words):
    """An even edge is not in the middle of an odd one; a wider one is not stored, and may be prepared."""
    store = _with_margin(small_store, 2)

    with pytest.raises(InputError) as refusal:
        store.seen_as(size_vox)

    assert str(refusal.value) == (
        f"The model reads cubes of {size_vox} voxels (model.size_vox). Those in {store.path} have 27 and a "
        f"margin of 2 on every side: {words}"
    )


def test_what_was_begun_with_other_cubes_does_not_go_on(small_store, tmp_path):
    """Its own checksum passes; of another the line shows the first eight digits of both."""
    small_store.check_begun_with(small_store.checksum, tmp_path)

    with pytest.raises(InputError) as refusal:
        small_store.check_begun_with("0123456789", tmp_path)

    assert str(refusal.value) == (
        f"{tmp_path} was begun with other cubes than {small_store.path} holds: their checksums begin with "
        f"01234567 and {small_store.checksum[:8]}. Give the store it was begun with, or choose another path."
    )


def test_a_scan_without_a_usable_cube_is_still_one_of_the_store(tree, small_store, tmp_path):
    """All four were read or tried, and count in scores: the one that is truncated, too."""
    _truncate_scan(tree, THIRD)

    store = prepare(tree, tree.candidates(), tmp_path / "store", workers=1)

    assert store.series_uids == small_store.series_uids
    assert len(store.series_uids) == 4
    assert store.failures["seriesuid"].tolist() == [THIRD]


def test_what_a_store_takes_is_told_before():
    """100 cubes of 31 voxels at 2 bytes; the larger scan three times in memory; a million voxels and all."""
    grids = [Grid((edge, edge, edge), (1, 1, 1), (0, 0, 0)) for edge in (100, 10)]

    needed = needs(grids, 100)
    nothing = needs([], 0)

    assert needed.disk_bytes == 100 * 31**3 * 2
    assert needed.worker_bytes - nothing.worker_bytes == 3 * 2 * 100**3
    assert needed.worker_seconds == pytest.approx(1_001_000 / 60e6 + 100 / 5e3)
    assert needs(grids, 100, CubeFormat(dtype="uint8")).disk_bytes == needed.disk_bytes / 2
    assert (nothing.disk_bytes, nothing.worker_seconds) == (0, 0)


def test_a_cluster_has_its_own_workers(tree, tmp_path):
    """To ask for both is refused before anything is made."""
    with pytest.raises(InputError, match="--workers and --dask exclude each other"):
        prepare(tree, tree.candidates(), tmp_path / "store", workers=2, dask="tcp://127.0.0.1:8786")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the high-water mark is Linux's own")
def test_a_store_of_full_size_is_made_and_opened_in_little_memory(tmp_path, write_scan):
    """888 tiny scans and 754,975 candidates: each row is cut or says why not, in less than 2 GB."""
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + n}" for n in range(888)]
    hu = np.random.default_rng(0).integers(-1000, 400, (8, 8, 8)).astype(np.int16)
    for n, uid in enumerate(uids):
        write_scan(tmp_path / f"subset{n % 10}", uid, hu)
    rng = np.random.default_rng(16)
    table = pd.DataFrame(rng.uniform(0, 7, (754_975, 3)), columns=COORDINATES)
    table.insert(0, "seriesuid", np.sort(rng.choice(uids, len(table))))
    table["class"] = (np.arange(len(table)) % 490 == 0).astype(int)
    table.loc[[5, 700_000], "coordZ"] = 50.0
    table.to_csv(tmp_path / "candidates_V2.csv", index=False)
    script = (
        "import re, sys; from luna_cls.cubes.preparation import *\n"
        "from luna_cls.cubes.cutting import CubeSpec\n"
        "tree = LunaTree.open(sys.argv[1])\n"
        "prepare(tree, tree.candidates(), sys.argv[2], CubeFormat(CubeSpec(1)), workers=1)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )

    # Not getrusage: a child starts at its parent's ru_maxrss, and this process has TensorFlow loaded.
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, tmp_path / "store"], capture_output=True, check=True
    )
    store = CubeStore.open(tmp_path / "store")

    assert int(done.stdout) * 1024 < 2e9
    assert store.candidates["status"].value_counts().to_dict() == {"ok": 754_973, "outside": 2}
    assert store.failures["row"].tolist() == [5, 700_000]
    last = cut_cubes(
        read_volume(tmp_path / "subset7" / f"{uids[-1]}.mhd"), table[COORDINATES].iloc[-1], CubeSpec(1)
    )
    assert store.cubes.shape == (754_975, 1, 1, 1)
    assert store.cubes[[5, -1]].ravel().tolist() == [0, last.item()]


@pytest.mark.real_data
def test_two_real_scans_give_157_cubes(real_data, tmp_path):
    """The two LIDC scans give 157 cubes, 5 of nodules and 152 not, in folds 1 and 9, and no failure."""
    tree = LunaTree.open(real_data / "lidc")

    store = prepare(tree, tree.candidates(), tmp_path / "store")

    assert store.cubes.shape == (157, 31, 31, 31)
    assert np.bincount(store.labels).tolist() == [152, 5]
    assert sorted(store.candidates["fold"].unique()) == [1, 9]
    assert (store.candidates["status"] == "ok").all()
    assert store.failures.empty
    assert store.cubes.min() >= -1024
