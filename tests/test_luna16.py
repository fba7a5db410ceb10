import re

import numpy as np
import pytest

from luna_cls.errors import InputError
from luna_cls.scans.luna16 import LunaTree, find_csv, read_candidates

HEADER = "seriesuid,coordX,coordY,coordZ,class\n"
FIRST, SECOND = "1.2.3,-12.5,30.25,-100.0,0\n", "1.2.4,7,8,9,1\n"


@pytest.fixture
def add_scan(tmp_path, write_scan):
    """A function that puts a scan of one voxel into a folder of the tree."""
    return lambda uid, folder=".": write_scan(tmp_path / folder, uid, np.zeros((1, 1, 1), np.int16))


@pytest.fixture
def write_csv(tmp_path):
    def write(text):
        path = tmp_path / "points.csv"
        path.write_text(text, encoding="latin-1")
        return path

    return write


def test_scans_are_found_in_their_subsets(tmp_path, add_scan):
    """A scan in subset0 to subset9 belongs to that subset, also where unpacking nested the folder."""
    for subset in range(10):
        add_scan(f"1.{subset}", f"subset{subset}")
    nested = add_scan("2.0", "subset0/subset0")

    tree = LunaTree.open(tmp_path)

    assert tree.subsets == {f"1.{subset}": subset for subset in range(10)} | {"2.0": 0}
    assert tree.scan_paths["1.7"] == tmp_path / "subset7" / "1.7.mhd"
    assert tree.scan_paths["2.0"] == nested


def test_scans_may_lie_flat(tmp_path, add_scan):
    """A scan beside the CSVs has no subset."""
    path = add_scan("1.2.3")

    tree = LunaTree.open(str(tmp_path))

    assert tree.scan_paths == {"1.2.3": path}
    assert tree.subsets == {}


@pytest.mark.parametrize("second", ["subset4", "subset3/subset3", "."], ids=["subset", "nested", "flat"])
def test_a_scan_that_is_there_twice_is_refused(tmp_path, add_scan, second):
    """Two files of one UID are refused: both are named, none is picked."""
    paths = [add_scan("1.2.3", "subset3"), add_scan("1.2.3", second)]

    with pytest.raises(InputError, match="twice") as refusal:
        LunaTree.open(tmp_path)

    assert all(str(path) in str(refusal.value) for path in paths)


def test_a_folder_without_scans_is_refused(tmp_path):
    """A missing folder and one without scans are refused by name."""
    with pytest.raises(InputError, match=re.escape(f"No folder at {tmp_path / 'gone'}.")):
        LunaTree.open(tmp_path / "gone")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path} holds no scan.")):
        LunaTree.open(tmp_path)


@pytest.mark.parametrize("folder", [".", "CSVFILES", "evaluationScript/annotations"])
def test_csvs_are_found_where_luna16_puts_them(tmp_path, add_scan, folder):
    """The CSVs may lie in the root, in CSVFILES or in evaluationScript/annotations."""
    add_scan("1.2.3", "subset0")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    path = tmp_path / folder / "candidates_V2.csv"
    path.write_text(HEADER + FIRST)

    tree = LunaTree.open(tmp_path)

    assert find_csv(tree.root, "candidates_V2.csv") == path
    assert tree.candidates()["coordX"].tolist() == [-12.5]


def test_another_list_of_candidates_may_be_named(tmp_path, add_scan, write_csv):
    """A path given takes the place of candidates_V2.csv; without either, the missing name is told."""
    add_scan("1.2.3")
    tree = LunaTree.open(tmp_path)

    assert len(tree.candidates(write_csv(HEADER + FIRST + SECOND))) == 2
    with pytest.raises(InputError, match=re.escape(f"No candidates_V2.csv in {tmp_path}")):
        tree.candidates()


def test_candidates_are_read_in_order_with_luna16s_columns(write_csv):
    """Rows keep the file's order, UIDs stay text, class is int, further columns are dropped."""
    path = write_csv("note,class,seriesuid,coordX,coordY,coordZ\na,1,1.20,1,2,3\nb,0,007,4.5,5,6\n")

    table = read_candidates(path)

    assert list(table.columns) == ["seriesuid", "coordX", "coordY", "coordZ", "class"]
    assert table["seriesuid"].tolist() == ["1.20", "007"]
    assert table["coordX"].tolist() == [1, 4.5]
    assert table["class"].tolist() == [1, 0]
    assert table["class"].dtype == np.int64


def test_coordinates_survive_to_the_last_bit(write_csv):
    """17 significant digits are the float64 they stand for."""
    path = write_csv(HEADER + f"1.2.3,{1 / 3!r},{-100 / 7!r},{2**0.5 * 100!r},0\n")

    actual = read_candidates(path).loc[0, ["coordX", "coordY", "coordZ"]]

    assert actual.tolist() == [1 / 3, -100 / 7, 2**0.5 * 100]


def test_unlabelled_candidates_need_no_class(write_csv):
    """Without labels `class` may be absent, and is kept where it is there."""
    bare = read_candidates(write_csv("seriesuid,coordX,coordY,coordZ\n1.2.3,1,2,3\n"), labelled=False)
    kept = read_candidates(write_csv(HEADER + SECOND), labelled=False)

    assert list(bare.columns) == ["seriesuid", "coordX", "coordY", "coordZ"]
    assert kept["class"].tolist() == [1]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("1.2.4,7,nan,9,1", "coordY"),
        ("1.2.4,7,,9,1", "coordY"),
        ("1.2.4,7,8,inf,1", "coordZ"),
        ("1.2.4,left,8,9,1", "coordX"),
        ('1.2.4,"7\n8",8,9,1', "coordX"),
        ("1.2.4,7,8,9", "class"),
        ("1.2.4,7,8,9,", "class"),
        ("1.2.4,7,8,9,2", "class"),
        ("1.2.4,7,8,9,0.5", "class"),
        ("1.2.4,7,8,9,nodule", "class"),
        (",7,8,9,1", "seriesuid"),
        (" ,7,8,9,1", "seriesuid"),
    ],
    ids=[
        "NaN", "blank", "infinite", "text", "text of two lines", "class missing", "class blank", "class 2",
        "class half", "class in words", "no UID", "a space for a UID",
    ],
)  # fmt: skip
def test_a_cell_that_makes_no_sense_is_refused_with_its_line(write_csv, row, column):
    """The header is line 1, so the second row's fault is on line 3, and its column is named."""
    path = write_csv(HEADER + FIRST + row + "\n" + SECOND)

    with pytest.raises(InputError) as refusal:
        read_candidates(path)

    assert f"{path}, line 3: {column} must be" in str(refusal.value)
    assert "Received: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_line_told_is_the_files_own(write_csv):
    """Blank lines are skipped but counted: the fault below one is where an editor shows it."""
    path = write_csv(HEADER + FIRST + "\n" + "1.2.4,left,8,9,1\n")

    with pytest.raises(InputError, match=r"line 4: coordX"):
        read_candidates(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seriesuid,coordX,coordY,class\n1.2.3,1,2,0\n", "lacks the column coordZ"),
        ("seriesuid,coordX,coordY,coordZ\n1.2.3,1,2,3\n", "lacks the column class"),
        (FIRST, "lacks the column seriesuid"),
        (HEADER.replace(",", ";"), "separated by semicolons"),
        (HEADER, "lists no candidate"),
        ("", "is empty. A CSV of candidates has seriesuid,coordX,coordY,coordZ"),
        ("\xff\xfe\n", "no text in UTF-8"),
        (HEADER + '"' + FIRST, "cannot be read as a CSV of candidates"),
        (HEADER + SECOND.replace("\n", ",1\n"), "cells|columns|fields"),
    ],
    ids=[
        "no coordZ", "no class", "no header", "semicolons", "no row", "empty file", "bytes", "open quote",
        "more cells than columns",
    ],
)  # fmt: skip
def test_a_file_that_is_no_candidate_list_is_refused(write_csv, text, words):
    """One line names the file and says what is wrong with it."""
    path = write_csv(text)

    with pytest.raises(InputError, match=words) as refusal:
        read_candidates(path)

    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_candidate_list_is_refused(tmp_path):
    """The path and the columns expected are told."""
    with pytest.raises(InputError, match="No candidates file") as refusal:
        read_candidates(tmp_path / "gone.csv")

    assert str(tmp_path / "gone.csv") in str(refusal.value)
    assert "seriesuid,coordX,coordY,coordZ,class" in str(refusal.value)
