import contextlib
import hashlib
import os
import shutil
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest
import SimpleITK as sitk

from luna_cls.cubes.preparation import prepare
from luna_cls.cubes.store import CubeFormat
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


def _change_last_voxel(tree, uid):
    path = tree.scan_paths[uid].with_suffix(".raw")
    path.write_bytes(path.read_bytes()[:-2] + b"xx")


def test_a_scan_that_changes_after_it_was_cut_is_cut_again(tree, tmp_path):
    """Between two runs the second of four scans changes: it is named, and the store is of the new one."""
    out, lines, reports = tmp_path / "store", [], []
    _prepare_halfway(tree, out, scans=3)
    _change_last_voxel(tree, SECOND)

    prepare(
        tree, tree.candidates(), out, workers=1,
        on_progress=lambda *counts: reports.append(counts), say=lines.append,
    )  # fmt: skip

    assert lines == [f"Cut again because they have changed since: 1 of the scans: {SECOND}"]
    assert reports[0] == (2, 4)
    fresh = prepare(tree, tree.candidates(), tmp_path / "fresh", workers=1)
    assert _digests(out) == _digests(fresh.path)


def test_a_scan_that_was_only_touched_is_not_cut_again(tree, small_store, tmp_path):
    """Copied anew, with another time and the same bytes, its cubes stand."""
    out, reports = tmp_path / "store", []
    _prepare_halfway(tree, out, scans=3)
    for path in tree.scan_paths[SECOND].parent.iterdir():
        os.utime(path, ns=(1, 1))

    prepare(tree, tree.candidates(), out, workers=1, on_progress=lambda *counts: reports.append(counts))

    assert reports[0] == (3, 4)
    assert _digests(out) == _digests(small_store.path)


def test_a_scan_that_is_damaged_after_it_was_cut_leaves_no_cubes(tree, tmp_path):
    """The rows of a scan that cannot be read any more are zeros, as if it had never been cut."""
    out = tmp_path / "store"
    _prepare_halfway(tree, out, scans=3)
    _truncate_scan(tree, SECOND)

    store = prepare(tree, tree.candidates(), out, workers=1)

    fresh = prepare(tree, tree.candidates(), tmp_path / "fresh", workers=1)
    assert not store.cubes[(store.candidates["seriesuid"] == SECOND).to_numpy()].any()
    assert _digests(out) == _digests(fresh.path)


def _remove_voxels(tree, uid):
    tree.scan_paths[uid].with_suffix(".raw").unlink()


def test_a_scan_whose_voxels_go_away_after_it_was_cut_leaves_no_cubes(tree, tmp_path):
    """The header is there, the data beside it are not: the scan is named, and its ten rows are zeros."""
    out, lines = tmp_path / "store", []
    _prepare_halfway(tree, out, scans=3)
    _remove_voxels(tree, SECOND)

    store = prepare(tree, tree.candidates(), out, workers=1, say=lines.append)

    of_second = (store.candidates["seriesuid"] == SECOND).to_numpy()
    assert lines == [f"Cut again because they have changed since: 1 of the scans: {SECOND}"]
    assert store.candidates["status"][of_second].tolist() == ["unreadable"] * 10
    assert not store.cubes[of_second].any()
    assert store.failures["reason"].str.contains(f"its data file {SECOND}.raw is missing").tolist() == [True]


def test_a_scan_that_goes_away_after_it_was_cut_is_told(tree, tmp_path):
    """Its cubes are neither kept in silence nor thrown away."""
    out = tmp_path / "store"
    _prepare_halfway(tree, out, scans=3)
    tree.scan_paths[SECOND].unlink()

    with pytest.raises(InputError, match=f"has cubes of scan {SECOND}, which is gone"):
        prepare(LunaTree.open(tree.root), tree.candidates(), out, workers=1)


@pytest.mark.parametrize("spoil", [_change_last_voxel, _remove_voxels], ids=["changed", "gone"])
def test_a_scan_that_changes_while_others_are_cut_is_told(tree, tmp_path, spoil):
    """A store is never of two states of a scan; the same command puts it right."""
    out = tmp_path / "store"

    def change(done, total):
        if done == 3:
            spoil(tree, SECOND)

    with pytest.raises(InputError, match=f"Scan {SECOND} changed while it was prepared"):
        prepare(tree, tree.candidates(), out, workers=1, on_progress=change)
    assert not out.exists()
    prepare(tree, tree.candidates(), out, workers=1)

    fresh = prepare(tree, tree.candidates(), tmp_path / "fresh", workers=1)
    assert _digests(out) == _digests(fresh.path)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3.5 MB of one's own, which holds a store of 40 cubes and little else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3500k", "none", disk], check=False)
    if made.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_is_one_line_and_then_goes_on(tree, small_store, small_disk, run_cli, workers):
    """Something else fills the disk halfway: status 1, no store; with room again the same bytes."""
    out = small_disk / "store"
    _prepare_halfway(tree, out, scans=1)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(4_000_000))
    free = shutil.disk_usage(small_disk).free
    command = ["prepare", tree.root, out, "--workers", workers]

    refused = run_cli(*command)
    with (small_disk / "filler").open("r+b") as file:
        file.truncate(0)
    went_on = run_cli(*command)

    assert free < 10_000
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("luna-cls: ")
    assert "needs 1.8 MB more; the disk has 0.0 MB" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert went_on.returncode == 0, went_on.stderr
    assert _digests(out) == _digests(small_store.path)


def test_a_disk_that_fills_up_while_a_scan_is_written_is_one_line(tree, small_store, small_disk):
    """The room is there when it is looked for and gone when it is needed: nothing is half-written."""
    out = small_disk / "store"

    def fill(done, total):
        if done == 1:
            with (small_disk / "filler").open("wb") as file, contextlib.suppress(OSError):
                file.write(bytes(4_000_000))

    with pytest.raises(OSError, match="No space left on device"):
        prepare(tree, tree.candidates(), out, workers=1, on_progress=fill)
    assert not out.exists()
    (small_disk / "filler").unlink()
    prepare(tree, tree.candidates(), out, workers=1)

    assert _digests(out) == _digests(small_store.path)


def test_a_disk_that_cannot_be_written_to_is_one_line(tree, small_disk, run_cli):
    """A store on a read-only disk is refused before anything is read, and nothing is there after."""
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    refused = run_cli("prepare", tree.root, small_disk / "store")

    assert refused.returncode == 1
    assert refused.stderr == (
        f"luna-cls: {small_disk}/store cannot be made: {small_disk} is no folder that can be written to.\n"
    )
    assert list(small_disk.iterdir()) == []


def test_a_folder_of_someone_elses_is_not_taken_for_an_unfinished_store(tree, tmp_path):
    """OUT.partial with files that prepare never wrote is refused and left alone."""
    notes = tmp_path / "store.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")

    for force in (False, True):
        with pytest.raises(InputError, match=r"store\.partial is in the way, and not of prepare's making"):
            prepare(tree, tree.candidates(), tmp_path / "store", workers=1, force=force)

    assert notes.read_text() == "mine"


@pytest.mark.parametrize("begun", [False, True], ids=["a folder of that name", "an unfinished store"])
def test_scans_are_never_taken_for_an_unfinished_store(small_tree, tmp_path, begun):
    """Scans that lie in OUT.partial are there after `--force`, too."""
    root = shutil.copytree(small_tree, tmp_path / "store.partial" / "scans")
    if begun:
        (tmp_path / "store.partial" / "request.json").write_text("{}")
    tree = LunaTree.open(root)

    with pytest.raises(InputError, match=r"store\.partial is for unfinished stores, and the scans lie in it"):
        prepare(tree, tree.candidates(), tmp_path / "store", workers=1, force=True)

    assert all(path.is_file() for path in tree.scan_paths.values())


def test_two_runs_at_one_place_do_not_meet(tree, small_store, tmp_path):
    """The second is refused while the first is at work, and the first makes its store."""
    refusals = []

    def start_again(done, total):
        with pytest.raises(InputError, match="Another prepare is at work") as refusal:
            prepare(tree, tree.candidates(), tmp_path / "store", workers=1)
        refusals.append(str(refusal.value))

    prepare(tree, tree.candidates(), tmp_path / "store", workers=1, on_progress=start_again)

    assert len(refusals) == 5
    assert _digests(tmp_path / "store") == _digests(small_store.path)


def test_a_store_that_was_made_meanwhile_is_not_replaced(tree, small_store, tmp_path):
    """What appears at OUT while the cubes are cut stays."""
    out = tmp_path / "store"

    def appear(done, total):
        if done == 4:
            out.mkdir()
            (out / "mine.txt").write_text("mine")

    with pytest.raises(InputError, match="has been made meanwhile"):
        prepare(tree, tree.candidates(), out, workers=1, on_progress=appear)

    assert (out / "mine.txt").read_text() == "mine"


def test_what_cut_nothing_yet_is_in_nobodys_way(tree, small_store, tmp_path, monkeypatch):
    """A run refused for want of room leaves no claim: another one, for other cubes, begins unasked."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(InputError, match="Make room"):
            prepare(tree, tree.candidates(), tmp_path / "store", CubeFormat(dtype="uint8"), workers=1)

    prepare(tree, tree.candidates(), tmp_path / "store", workers=1)

    assert _digests(tmp_path / "store") == _digests(small_store.path)


class KilledError(BaseException):
    """Stands for a kill: nothing is noted on the way out."""


def _killed_after(tree, out, monkeypatch, cut):
    """Stops prepare as a kill does, once some scans are cut and none of them is noted."""
    from luna_cls.cubes import preparation

    def cut_scan(job, original=preparation._cut_scan, seen=[]):  # noqa: B006
        seen.append(job)
        outcome = original(job)
        if len(seen) == cut:
            raise KilledError
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_cut_scan", cut_scan)
        patch.setattr(preparation, "_SECONDS_BETWEEN_NOTES", 1e9)
        with pytest.raises(KilledError):
            prepare(tree, tree.candidates(), out, workers=1)


def test_a_scan_that_changes_and_changes_back_is_the_one_it_is(tree, small_store, tmp_path, monkeypatch):
    """Noted as it was, changed, killed while it is cut again, put back: its cubes are of what it is."""
    out, path = tmp_path / "store", tree.scan_paths[SECOND].with_suffix(".raw")
    as_it_was, when = path.read_bytes(), path.stat()
    _prepare_halfway(tree, out, scans=2)
    path.write_bytes(bytes(len(as_it_was)))
    _killed_after(tree, out, monkeypatch, cut=1)
    path.write_bytes(as_it_was)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))

    prepare(tree, tree.candidates(), out, workers=1)

    assert _digests(out) == _digests(small_store.path)


def test_a_scan_that_was_cut_not_noted_and_goes_away_leaves_no_cubes(tree, tmp_path, monkeypatch):
    """Killed between the cutting of a scan and the note of it; then the scan is gone, its cubes are too."""
    out = tmp_path / "store"
    _killed_after(tree, out, monkeypatch, cut=2)
    tree.scan_paths[SECOND].unlink()
    tree = LunaTree.open(tree.root)

    store = prepare(tree, tree.candidates(), out, workers=1)

    fresh = prepare(tree, tree.candidates(), tmp_path / "fresh", workers=1)
    assert (store.candidates["status"] == "no_scan").sum() == 10
    assert _digests(out) == _digests(fresh.path)


def test_data_beside_a_header_of_any_format_are_watched(small_tree, tmp_path):
    """A `.nrrd` whose data lie in a file of their own: a change there is noticed."""
    for path in sorted(small_tree.glob("subset*/*.mhd"))[:2]:
        copy = tmp_path / "mine" / f"{path.stem}.nhdr"
        copy.parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.ReadImage(str(path)), str(copy))
        copy.rename(copy.with_suffix(".nrrd"))
    tree, lines = LunaTree.open(tmp_path / "mine"), []
    candidates = LunaTree.open(small_tree).candidates()
    candidates = candidates[candidates["seriesuid"].isin(tree.scan_paths)]
    with pytest.raises(StopError):
        prepare(tree, candidates, tmp_path / "store", workers=1, on_progress=_stop_after(1))
    first = sorted((tmp_path / "mine").glob("*.raw*"))[0]
    first.write_bytes(first.read_bytes()[:-2] + b"xx")

    prepare(tree, candidates, tmp_path / "store", workers=1, say=lines.append)

    assert len(lines) == 1


def test_what_a_power_cut_left_behind_is_not_in_the_store(tree, small_store, tmp_path):
    """A half-written table of a killed process does not become a sixth file."""
    out = tmp_path / "store"
    _prepare_halfway(tree, out)
    (begun,) = (tmp_path / "store.partial").glob("*/cubes.npy")
    begun.with_name(".candidates.csv.99.partial.csv").write_text("seriesuid,co")
    (tmp_path / "store.partial" / ".request.json.99.partial.json").write_text("{")

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
