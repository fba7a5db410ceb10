import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from luna_cls import files
from luna_cls.errors import InputError


def test_float64_survives_a_csv(tmp_path):
    """A thousand random doubles of all sizes, and the awkward ones, read back bit for bit."""
    drawn = np.random.default_rng(1).integers(0, 2**63, 2000).view(np.float64)
    awkward = [0.1, 1 / 3, 5e-324, 2.2250738585072014e-308, np.nextafter(1, 2), 9.357622968839299e-14]
    values = np.concatenate([drawn[np.abs(drawn) < 1e12][:1000], awkward])
    table = pd.DataFrame({"seriesuid": "1.2.840", "logit": values})

    files.write_csv(tmp_path / "table.csv", table)
    actual = files.read_csv(tmp_path / "table.csv", ("seriesuid", "logit"), "predictions")

    assert len(values) == 1006
    np.testing.assert_array_equal(actual["logit"].to_numpy().view(np.int64), values.view(np.int64))


def test_series_uids_stay_text(tmp_path):
    """UIDs that look like numbers keep their zeros."""
    (tmp_path / "table.csv").write_text("seriesuid,coordX\n1.20,1\n007,2\n")

    actual = files.read_csv(tmp_path / "table.csv", ("seriesuid", "coordX"), "candidates")

    assert actual["seriesuid"].tolist() == ["1.20", "007"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No candidates file at .*table.csv. Give the path of a CSV with seriesuid,coordX"),
        ("", "table.csv is empty. A CSV of candidates has seriesuid,coordX."),
        ('seriesuid,coordX\n"a,1\n', "table.csv cannot be read as a CSV of candidates"),
        ("seriesuid,x\na,1\n", "table.csv lacks the column coordX. Received: seriesuid,x"),
        ("seriesuid,coordX\na,1\na,\n", "table.csv, line 3: coordX must be a finite number"),
        ("seriesuid,coordX\na,left\n", "table.csv, line 2: coordX must .* Received: left"),
        ("seriesuid,coordX\na,inf\n", "table.csv, line 2: coordX must .* Received: inf"),
        ("seriesuid,coordX\na,1\n,2\n", "table.csv, line 3: seriesuid must be a series UID"),
        ("seriesuid,coordX\na,1\n  ,2\n", "table.csv, line 3: seriesuid must be a series UID"),
    ],
    ids=["missing", "empty", "quote", "column", "no number", "text", "infinite", "no UID", "blank UID"],
)
def test_wrong_csvs_are_refused_in_one_line(tmp_path, text, message):
    """The refusal names file, line, column and what was received."""
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputError, match=message) as refusal:
        files.read_csv(path, ("seriesuid", "coordX"), "candidates")

    assert "\n" not in str(refusal.value)


def test_a_binary_file_is_no_csv(tmp_path):
    """Bytes that are no text are refused in one line."""
    (tmp_path / "table.csv").write_bytes(b"seriesuid,coordX\n\xff\xfe\x00\x80,1\n")

    with pytest.raises(InputError, match="no text in UTF-8"):
        files.read_csv(tmp_path / "table.csv", ("seriesuid", "coordX"), "candidates")


def _fail_halfway(target):
    with files.written_whole(target) as path:
        path.write_text("half")
        raise RuntimeError("halfway")


def test_a_failed_write_leaves_nothing(tmp_path):
    """If the block fails, no file appears, not even a temporary one."""
    with pytest.raises(RuntimeError, match="halfway"):
        _fail_halfway(tmp_path / "new.txt")

    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """If the block fails, what was there before is still there, untouched."""
    old = tmp_path / "old.txt"
    old.write_text("whole")

    with pytest.raises(RuntimeError, match="halfway"):
        _fail_halfway(old)

    assert old.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [old]


def test_a_write_shows_nothing_until_it_is_whole(tmp_path):
    """Inside the block the path does not exist; after it, the path alone is there."""
    target = tmp_path / "deep" / "new.csv"

    with files.written_whole(target) as path:
        path.write_text("whole")
        assert path.suffix == ".csv"
        assert not target.exists()

    assert list(target.parent.iterdir()) == [target]


def test_nan_is_null_in_json(tmp_path):
    """NaN, which JSON lacks, is written as null at any depth; keys keep their order."""
    files.write_json(tmp_path / "m.json", {"z": float("nan"), "a": {"b": [1.5, np.nan]}, "c": 0.1})

    text = (tmp_path / "m.json").read_text()
    assert json.loads(text) == {"z": None, "a": {"b": [1.5, None]}, "c": 0.1}
    assert text.index('"z"') < text.index('"a"') < text.index('"c"')


def _contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def earlier(tmp_path):
    """An earlier output: a folder with the sign of its kind."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sign.json").write_text("earlier")
    return folder


def test_an_output_that_exists_is_replaced_only_by_force(earlier, tmp_path):
    """Without force an earlier output is refused; with it, or if nothing is there, all is well."""
    with pytest.raises(InputError, match=r"out exists already\. .* --force"):
        files.require_new(earlier, force=False, sign="sign.json")

    files.require_new(earlier, force=True, sign="sign.json")
    files.require_new(tmp_path / "new", force=False, sign="sign.json")
    assert _contents(earlier) == {"sign.json": "earlier"}


def test_force_replaces_nothing_but_earlier_outputs(earlier, tmp_path):
    """A file, or a folder without the sign, is refused even with force; an empty folder is not."""
    (tmp_path / "empty").mkdir()

    for path in (earlier, earlier / "sign.json"):
        with pytest.raises(InputError, match=r"is not replaced, even by --force: it has no other\.json"):
            files.require_new(path, force=True, sign="other.json")

    files.require_new(tmp_path / "empty", force=True, sign="other.json")


def test_a_whole_folder_takes_the_place_of_the_earlier_one(earlier, tmp_path):
    """The earlier folder stays until the block succeeds; then the new one is there alone."""
    with files.whole_folder(earlier) as folder:
        (folder / "new.txt").write_text("new")
        assert _contents(earlier) == {"sign.json": "earlier"}

    assert _contents(earlier) == {"new.txt": "new"}
    assert list(tmp_path.iterdir()) == [earlier]


def _fail_in_folder(path):
    with files.whole_folder(path) as folder:
        (folder / "half.txt").touch()
        raise RuntimeError("halfway")


def test_a_failed_folder_leaves_the_earlier_one(earlier, tmp_path):
    """If the block fails, the earlier folder is untouched and nothing lies beside it."""
    with pytest.raises(RuntimeError, match="halfway"):
        _fail_in_folder(earlier)

    assert _contents(earlier) == {"sign.json": "earlier"}
    assert list(tmp_path.iterdir()) == [earlier]


def test_clearing_a_link_leaves_what_it_points_to(earlier, tmp_path):
    """A link to an earlier output goes, the output stays; clearing what is not there is no error."""
    link = tmp_path / "link"
    link.symlink_to(earlier)

    files.clear(link)
    files.clear(tmp_path / "nothing")

    assert _contents(earlier) == {"sign.json": "earlier"}
    assert not link.is_symlink()


def test_sha256_is_that_of_the_bytes(tmp_path):
    """The digest of "abc" begins with ba7816bf, as the standard says."""
    (tmp_path / "abc").write_bytes(b"abc")

    actual = files.sha256(tmp_path / "abc")

    assert actual.startswith("ba7816bf")
    assert actual == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "written",
    ["a\nb\n", "seriesuid\na\nb\n", "\ufeffseriesuid\r\na\r\nb\r\n", "\ufeffa\nb", '"a"\n"b"\n'],
    ids=["plain", "header", "spreadsheet's", "spreadsheet's without header", "quoted"],
)
def test_a_list_of_scans_is_read_however_it_was_saved(tmp_path, written):
    """A header, a byte order mark, line ends of any kind and quotes leave the two scans a and b."""
    (tmp_path / "uids.csv").write_text(written, encoding="utf-8", newline="")

    assert files.read_series_uids(tmp_path / "uids.csv") == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("a\nb\na\n", "lists a 2 times"),
        ("a,b\n", "more than a series UID. Received: a,b"),
        ("\n", "lists no scan"),
    ],
    ids=["twice", "two in a line", "none"],
)
def test_a_wrong_list_of_scans_is_refused(tmp_path, written, message):
    """The line says what is wrong with the list."""
    (tmp_path / "uids.csv").write_text(written)

    with pytest.raises(InputError, match=message):
        files.read_series_uids(tmp_path / "uids.csv")
