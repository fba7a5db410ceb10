import hashlib
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from luna_cls.cubes.preparation import prepare
from luna_cls.errors import InputError
from luna_cls.scans.luna16 import LunaTree

SECOND = "1.2.826.0.2"  # of the scans of small_tree


class StopError(Exception):
    """Stands for whatever ends a run halfway."""


@pytest.fixture
def tree(small_tree, tmp_path):
    """A small tree of one's own, to break."""
    return LunaTree.open(shutil.copytree(small_tree, tmp_path / "tree"))


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _truncate_scan(tree, uid):
    data_path = tree.scan_paths[uid].with_suffix(".raw")
    data_path.write_bytes(data_path.read_bytes()[:-100])


def _stop_after(scans):
    def on_progress(done, total):
        if done == scans:
            raise StopError

    return on_progress


def _prepare_halfway(tree, out, scans=2, **options):
    with pytest.raises(StopError):
        prepare(tree, tree.candidates(), out, workers=1, on_progress=_stop_after(scans), **options)


def test_a_stopped_run_goes_on_where_it_stopped(tree, small_store, tmp_path):
    """After two of four scans the same call starts at 2 and ends with the same bytes."""
    out = tmp_path / "store"
    _prepare_halfway(tree, out)
    reports = []

    prepare(tree, tree.candidates(), out, workers=1, on_progress=lambda *counts: reports.append(counts))

    assert reports == [(2, 4), (3, 4), (4, 4)]
    assert _digests(out) == _digests(small_store.path)


def test_a_scan_that_failed_is_tried_again(tree, small_store, small_tree, tmp_path):
    """A data file fetched again between two runs of one command is read."""
    out = tmp_path / "store"
    _truncate_scan(tree, SECOND)
    _prepare_halfway(tree, out, scans=3)
    shutil.copy(small_tree / "subset1" / f"{SECOND}.raw", tree.scan_paths[SECOND].parent)

    prepare(tree, tree.candidates(), out, workers=1)

    assert _digests(out) == _digests(small_store.path)


def test_an_unfinished_store_of_other_inputs_is_refused(tree, small_store, tmp_path):
    """Half a store of ten rows less is neither mixed in nor thrown away, but with force replaced."""
    out = tmp_path / "store"
    with pytest.raises(StopError):
        prepare(tree, tree.candidates().iloc[10:], out, workers=1, on_progress=_stop_after(2))

    with pytest.raises(InputError, match=r"store\.partial was begun from other"):
        prepare(tree, tree.candidates(), out, workers=1)
    prepare(tree, tree.candidates(), out, workers=1, force=True)

    assert _digests(out) == _digests(small_store.path)


def test_a_folder_of_someone_elses_is_not_taken_for_an_unfinished_store(tree, tmp_path):
    """OUT.partial with files that prepare never wrote is refused and left alone."""
    notes = tmp_path / "store.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")

    with pytest.raises(InputError, match=r"store\.partial"):
        prepare(tree, tree.candidates(), tmp_path / "store", workers=1)

    assert notes.read_text() == "mine"


def test_what_a_power_cut_left_behind_is_not_in_the_store(tree, small_store, tmp_path):
    """A half-written table of a killed process does not become a fifth file."""
    out = tmp_path / "store"
    _prepare_halfway(tree, out)
    (tmp_path / "store.partial" / "store" / ".candidates.csv.99.partial.csv").write_text("seriesuid,co")

    prepare(tree, tree.candidates(), out, workers=1)

    assert _digests(out) == _digests(small_store.path)


def test_a_disk_too_small_is_told_before_the_first_cube(tree, tmp_path, monkeypatch):
    """40 cubes of 59,582 bytes need 2.38 MB; a disk with 2 MB left is refused in one line."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))

    with pytest.raises(InputError, match=r"needs 2\.4 MB more") as refusal:
        prepare(tree, tree.candidates(), tmp_path / "store", workers=1)

    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "store").exists()


def test_rows_without_a_scan_take_no_room(tree, tmp_path):
    """Of 21 scans listed for each one fetched, the rows never cut are holes in the file."""
    missing = tree.candidates().assign(seriesuid="1.2.826.0.99")
    candidates = pd.concat([tree.candidates()] + [missing] * 20, ignore_index=True)

    store = prepare(tree, candidates, tmp_path / "store", workers=1)

    array = (store.path / "cubes.npy").stat()
    assert array.st_size > 840 * 31**3 * 2
    assert array.st_blocks * 512 < 2 * 40 * 31**3 * 2


def test_a_stop_in_the_last_instant_does_no_harm(tree, small_store, tmp_path, monkeypatch):
    """Stopped between the store's rename and the clearing up, a forced new run makes it whole again."""

    def stop(path):
        raise StopError

    out = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr("luna_cls.cubes.preparation.shutil.rmtree", stop)
        with pytest.raises(StopError):
            prepare(tree, tree.candidates(), out, workers=1)
    assert _digests(out) == _digests(small_store.path)

    prepare(tree, tree.candidates(), out, workers=1, force=True)

    assert _digests(out) == _digests(small_store.path)
