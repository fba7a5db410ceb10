import re
import shutil

import numpy as np
import pandas as pd
import pytest

from luna_cls.errors import InputError
from luna_cls.scans.audit import audit

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]
ADVICE = "Put it there, or name it."
UIDS = [f"1.2.826.0.{n}" for n in (1, 2, 3, 4)]


@pytest.fixture
def tree(small_tree, tmp_path):
    """A copy of the small tree, to spoil: four scans of 40 x 48 x 56 voxels, 40 candidates, 12 nodules."""
    return shutil.copytree(small_tree, tmp_path / "tree")


def _edit(path, change):
    table = pd.read_csv(path, dtype={"seriesuid": str})
    change(table).to_csv(path, index=False)


def _header(tree, subset):
    (path,) = (tree / f"subset{subset}").glob("*.mhd")
    return path


def test_a_sound_tree_has_no_fault(tree):
    """Its scans, candidates and sizes are counted; that six subsets are not there is worth a note."""
    found = audit(tree)

    assert found.faults == []
    missing = ", ".join(f"subset{n}" for n in range(4, 10))
    assert found.notes == [
        f"Of LUNA16's ten subsets {missing} are not there, or empty.",
        f"No annotations_excluded.csv in {tree}, its CSVFILES or its evaluationScript/annotations. {ADVICE}",
    ]
    assert sorted(found.grids) == UIDS
    assert found.num_candidates == 40
    assert found.data_bytes == sum(path.stat().st_size for path in tree.glob("subset*/*raw"))
    assert {grid.shape_zyx for grid in found.grids.values()} == {(40, 48, 56)}


@pytest.mark.real_data
def test_real_scans_have_no_fault(real_data):
    """The two scans of the real LUNA16 and their 157 candidates are sound; all four nodules are hit."""
    found = audit(real_data / "lidc")

    assert found.faults == []
    assert (len(found.grids), found.num_candidates) == (2, 157)
    assert not any("hit by no candidate" in note for note in found.notes)


def _truncate(tree):
    data = next(_header(tree, 1).parent.glob("*.raw"))
    data.write_bytes(data.read_bytes()[:-1000])


def _break_header(tree):
    path = _header(tree, 2)
    path.write_text(re.sub("ElementSpacing = .*", "ElementSpacing = 0.9 0 1", path.read_text()))


def _double_scan(tree):
    shutil.copytree(tree / "subset0", tree / "subset5")


def _remove_scans(tree):
    shutil.rmtree(tree / "subset0")
    shutil.rmtree(tree / "subset3")


def _double_rows(tree):
    _edit(tree / "candidates_V2.csv", lambda table: pd.concat([table, table[:3]]))


def _mangle_uids(tree):
    _edit(
        tree / "candidates_V2.csv",
        lambda table: table.assign(seriesuid=table["seriesuid"].replace({UIDS[1]: "1.2826E+05"})),
    )


def _move_points(tree):
    _edit(
        tree / "candidates_V2.csv",
        lambda table: table.assign(coordZ=table["coordZ"].mask(table.index < 5, 9e3)),
    )


def _put_nan(tree):
    _edit(tree / "annotations.csv", lambda table: table.assign(coordX=table["coordX"].mask(table.index == 2)))


def _drop_class(tree):
    _edit(tree / "candidates_V2.csv", lambda table: table.drop(columns="class"))


def _swap_labels(tree):
    _edit(tree / "candidates_V2.csv", lambda table: table.assign(**{"class": 1 - table["class"]}))


def _call_all_look_alikes(tree):
    _edit(tree / "candidates_V2.csv", lambda table: table.assign(**{"class": 0}))


def _list_another_scan(tree):
    with (tree / "seriesuids.csv").open("a") as file:
        file.write("1.2.826.0.99\n")


FAULTS = {
    _truncate: "is truncated: 214040 bytes of 215040",
    _break_header: "Voxel spacing must be positive. Received: [0.9, 0.0, 1.0]",
    _double_scan: f"1 series UIDs have several scans: {UIDS[0]}.",
    _remove_scans: f"candidates_V2.csv: 2 series UIDs have no scan: {UIDS[0]}, {UIDS[3]}.",
    _double_rows: "candidates_V2.csv: 3 points are there more than once, first 1.2.826.0.",
    _mangle_uids: "candidates_V2.csv: 1 series UIDs are none, as after a spreadsheet: 1.2826E+05. Fetch",
    _move_points: "5 candidates lie outside their scan, first [",
    _put_nan: "annotations.csv, line 4: coordX must be a finite number",
    _drop_class: "lacks the column class",
    _swap_labels: "nodules are hit by candidates of class 0 alone: the two files do not belong together",
    _call_all_look_alikes: "No candidate is a nodule (class 1)",
    _list_another_scan: "seriesuids.csv: 1 series UIDs have no scan: 1.2.826.0.99.",
    lambda tree: (tree / "candidates_V2.csv").unlink(): "No candidates_V2.csv in",
    lambda tree: (tree / "candidates_V2.csv").write_bytes("seriesuid".encode("utf-16")): "no text in UTF-8",
    lambda tree: (tree / "annotations.csv").write_text("seriesuid;coordX\n1;2\n"): "separated by semicolons",
    lambda tree: (tree / "seriesuids.csv").write_text(""): "lists no scan",
}


@pytest.mark.parametrize(("spoil", "words"), FAULTS.items(), ids=[words[:40] for words in FAULTS.values()])
def test_each_fault_is_named(tree, spoil, words):
    """One sentence says what, where and how many; the other scans and files are looked at all the same."""
    spoil(tree)

    found = audit(tree)

    assert any(words in fault for fault in found.faults), found.faults
    assert not any("\n" in fault for fault in found.faults)
    assert len(found.grids) >= 2


def test_all_faults_come_in_one_pass(tree):
    """A truncated scan, a broken header, doubled rows and a NaN are four sentences at once."""
    for spoil in (_truncate, _break_header, _double_rows, _put_nan):
        spoil(tree)

    faults = audit(tree).faults

    assert len(faults) == 4
    assert all(any(FAULTS[spoil] in fault for fault in faults) for spoil in (_truncate, _put_nan))


def test_nodules_that_no_candidate_hits_bound_the_sensitivity(tree):
    """With the candidates at 3 of 12 nodules gone, sensitivity cannot pass 0.75."""
    _edit(tree / "candidates_V2.csv", lambda table: table.drop(table.index[table["class"] == 1][:3]))

    assert any(
        "3 of 12 nodules are hit by no candidate: sensitivity cannot pass 0.750" in note
        for note in audit(tree).notes
    )


def test_progress_goes_from_none_to_all_scans(tree):
    """Told before each of the four scans is looked at, and at the end."""
    reports = []

    audit(tree, on_progress=lambda *counts: reports.append(counts))

    assert reports == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_scans_that_lie_flat_have_no_folds(tree):
    """Scans beside the CSVs are found, with a note that folds are to be given."""
    for path in list(tree.glob("subset*/*")):
        path.rename(tree / path.name)

    found = audit(tree)

    assert found.faults == []
    assert "4 scans lie in no subset: give folds by hand." in found.notes


def test_what_is_no_tree_is_refused(tmp_path):
    """A missing folder and one without a scan are an InputError."""
    with pytest.raises(InputError, match="No folder at"):
        audit(tmp_path / "gone")
    with pytest.raises(InputError, match="holds no scan"):
        audit(tmp_path)


@pytest.mark.slow
def test_a_download_of_full_size_is_looked_at_whole(tmp_path, write_scan):
    """888 tiny scans and 754,975 candidates, of which one is outside and one scan is cut, give two faults."""
    rng = np.random.default_rng(16)
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + n}" for n in range(888)]
    for n, uid in enumerate(uids):
        write_scan(tmp_path / f"subset{n % 10}", uid, np.zeros((8, 8, 8), np.int16))
    table = pd.DataFrame(rng.uniform(0, 7, (754_975, 3)), columns=POINT[1:])
    table.insert(0, "seriesuid", np.sort(rng.choice(uids, len(table))))
    table["class"] = (rng.random(len(table)) < 1 / 490).astype(int)
    table.loc[1234, "coordX"] = 99.0
    table.to_csv(tmp_path / "candidates_V2.csv", index=False)
    data = tmp_path / "subset7" / f"{uids[17]}.raw"
    data.write_bytes(b"")

    found = audit(tmp_path)

    assert len(found.faults) == 2
    assert f"{uids[17]}.raw is truncated: 0 bytes of 1024" in found.faults[0]
    assert found.faults[1].startswith("1 candidates lie outside their scan, first [99.0, ")
    assert (len(found.grids), found.num_candidates) == (887, 754_975)


def test_the_command_ends_with_1_if_there_is_a_fault(run_cli, tree):
    """Sound, status 0 and what prepare needs; with a fault, status 1, and the fault on standard output."""
    sound = run_cli("audit", tree)
    _truncate(tree)
    spoilt = run_cli("audit", tree)

    assert sound.returncode == 0, sound.stderr
    lines = sound.stdout.splitlines()
    assert lines[0] == "4 scans, 0.0 GB; 40 candidates"
    assert lines[1].startswith(
        "prepare will need 0.0 GB of disk, 0.3 GB of memory a worker, and some 1 minute of work"
    )
    assert all(line.startswith("note: ") for line in lines[2:])
    assert spoilt.returncode == 1
    assert "fault: " in spoilt.stdout
    assert "is truncated: 214040 bytes of 215040" in spoilt.stdout
    assert "Traceback" not in spoilt.stderr
