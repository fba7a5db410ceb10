"""Where predict works: what is done stays, nothing is lost, nothing lies elsewhere."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_cls.errors import InputError
from luna_cls.inference.pipeline import BATCH_SIZE, _Batches, _CutScan
from luna_cls.inference.prediction_folder import Made, Outcome, PredictionFolder, failures_table

ABOUT = {"models": [{"name": "a", "sha256": "1"}], "threshold": 0.5}
MADE = Made([["/scans/a.mha", 10, 20]], "")


def _begun(folder, about=ABOUT, *, resume=False, force=False, scans=0, fails=False):
    """Begins a prediction, does so many scans, and fails or ends; what prediction.json said."""
    with folder.begun(about, resume=resume, force=force, inputs=[]) as said:
        for number in range(scans):
            with folder.writing(Outcome(f"9.{number}", 0, []), MADE) as scan:
                (scan / "findings.csv").touch()
        if fails:
            raise InputError("broken")
    return said


@pytest.fixture
def folder(tmp_path):
    """A prediction in which the scan 1.2.3 is done: two findings, a candidate outside."""
    made = PredictionFolder(tmp_path / "out")
    with made.begun(ABOUT, resume=False, force=False, inputs=[]):
        outcome = Outcome("1.2.3", 2, [("1.2.3", 7, "outside", "far away")])
        with made.writing(outcome, MADE) as scan:
            (scan / "findings.csv").write_text("seriesuid,logit\n1.2.3,1\n1.2.3,0.5\n")
    return made


def test_what_is_done_is_known_again(folder):
    """The same files and candidates: the same outcome. Another size, time or list of candidates: not done."""
    assert folder.done("1.2.3", MADE) == Outcome("1.2.3", 2, [("1.2.3", 7, "outside", "far away")])
    assert folder.done("1.2.3", Made([["/scans/a.mha", 11, 20]], "")) is None
    assert folder.done("1.2.3", Made([["/scans/a.mha", 10, 21]], "")) is None
    assert folder.done("1.2.3", Made(MADE.files, "other")) is None
    assert folder.done("1.2.4", MADE) is None


def test_a_scan_whose_findings_are_gone_is_not_done(folder):
    """However good the note is."""
    (folder.of_scan("1.2.3") / "findings.csv").unlink()

    assert folder.done("1.2.3", MADE) is None


def test_a_scan_that_lacks_a_format_is_not_done(folder):
    """What could not be written is tried again."""
    with folder.writing(Outcome("1.2.3", 0, [("1.2.3", None, "export", "sr: broken")]), MADE) as scan:
        (scan / "findings.csv").touch()

    assert folder.done("1.2.3", MADE) is None


def test_a_second_one_with_force_is_refused_while_the_first_is_at_work(folder):
    """Nothing of the first goes."""
    with (
        folder.begun(ABOUT, resume=False, force=True, inputs=[]),
        pytest.raises(InputError, match="Another predict is at work in"),
    ):
        _begun(folder, force=True)


def test_what_a_killed_force_put_aside_goes_when_the_new_one_is_done(folder):
    """It is kept until then."""
    aside = folder.path.with_name(".out.replaced")
    aside.mkdir()

    _begun(folder, resume=True)

    assert not aside.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}'])
def test_a_damaged_note_is_no_note(folder, content):
    """The scan is read again."""
    (folder.of_scan("1.2.3") / "scan.json").write_text(content)

    assert folder.done("1.2.3", MADE) is None


@pytest.mark.parametrize(
    "uid", ["../../outside", "/etc/x", "..", ".", "", "a/b", ".hidden", "x" * 300, "a\0b"]
)
def test_a_series_uid_that_is_no_file_name_leads_nowhere(folder, uid):
    """A UID out of a DICOM file is text by a stranger: its folder lies beside the others all the same."""
    place = folder.of_scan(uid)

    assert place.parent == folder.path / "scans"
    assert place.name.startswith("sha256-")
    with folder.writing(Outcome(uid, 0, []), MADE) as scan:
        (scan / "findings.csv").touch()
    assert folder.done(uid, MADE) == Outcome(uid, 0, [])


def test_it_goes_on_only_with_the_same(folder):
    """Another threshold is named with both values, and nothing is touched; when it was begun may differ."""
    with pytest.raises(InputError, match=r"threshold was 0\.5, is 0\.7\. .* --force to start over"):
        _begun(folder, {**ABOUT, "threshold": 0.7}, resume=True)
    assert _begun(folder, {**ABOUT, "begun": "now"}, resume=True) == ABOUT
    assert folder.done("1.2.3", MADE) is not None


def test_an_earlier_prediction_is_named_with_both_ways_out(folder):
    """Without an option, both are offered."""
    words = r"exists already\. Pass --resume to go on with it, --force to replace"
    with pytest.raises(InputError, match=words):
        _begun(folder)


def test_findings_of_scans_that_are_not_given_are_not_forgotten(folder):
    """The first is named."""
    folder.check_scans(["1.2.3", "1.2.4"])
    with pytest.raises(
        InputError, match=r"findings of 1 scans that are not given now\. .*scans/1\.2\.3, \.\.\."
    ):
        folder.check_scans(["1.2.4"])


def test_two_at_a_time_are_refused(folder):
    """The second is told to wait."""
    with (
        folder.begun(ABOUT, resume=True, force=False, inputs=[]),
        pytest.raises(InputError, match="Another predict is at work in"),
    ):
        _begun(folder, resume=True)


@pytest.mark.parametrize("scans", [0, 1])
def test_what_fails_early_leaves_what_was_there(folder, scans):
    """With --force an earlier prediction goes when the first scan is done, and not before."""
    with pytest.raises(InputError, match="broken"):
        _begun(folder, force=True, scans=scans, fails=True)

    assert [path.name for path in (folder.path / "scans").iterdir()] == (["9.0"] if scans else ["1.2.3"])
    assert [path.name for path in folder.path.parent.iterdir()] == ["out"]


def test_tables_of_all_scans_are_put_together(folder):
    """Findings in the order of the scans under one header; scans without any and unread ones left out."""
    with folder.writing(Outcome("1.2.2", 1, []), MADE) as scan:
        (scan / "findings.csv").write_text("seriesuid,logit\n1.2.2,3\n")
    with folder.writing(Outcome("1.2.1", 0, []), MADE) as scan:
        (scan / "findings.csv").write_text("seriesuid,logit\n")
    unread = Outcome("1.2.0", 0, [("1.2.0", None, "unreadable", "torn")], is_read=False)
    outcomes = {"1.2.0": unread, "1.2.3": folder.done("1.2.3", MADE)}
    outcomes |= {uid: folder.done(uid, MADE) for uid in ("1.2.1", "1.2.2")}

    folder.finish(["1.2.0", "1.2.1", "1.2.2", "1.2.3"], outcomes, [("1.2.3", None, "twice", "again")])

    assert (folder.path / "findings.csv").read_text() == "seriesuid,logit\n1.2.2,3\n1.2.3,1\n1.2.3,0.5\n"
    assert (folder.path / "failures.csv").read_text() == (
        "seriesuid,row,status,reason\n1.2.0,,unreadable,torn\n1.2.3,7,outside,far away\n1.2.3,,twice,again\n"
    )
    assert (folder.path / "seriesuids.csv").read_text() == "1.2.0\n1.2.1\n1.2.2\n1.2.3\n"
    assert json.loads((folder.path / "prediction.json").read_text()) == ABOUT


def test_failures_have_whole_row_numbers():
    """A row is a whole number, or missing for a scan as a whole."""
    table = failures_table([("a", 3, "outside", ""), ("a", None, "unreadable", "")])

    assert table["row"].tolist() == [3, pd.NA]


@given(st.lists(st.integers(0, 3 * BATCH_SIZE), max_size=12), st.integers(0, 5))
def test_every_scan_gets_its_own_logits_however_batches_fall(counts, most_waiting):
    """Scans of 0 to 384 cubes: each logit is that of its cube, in order; no more scans wait than may."""
    calls = []

    def score(batch):
        calls.append(len(batch))
        return batch[:, 0, 0, 0].astype(float)

    batches = _Batches(score, most_waiting)
    numbers = iter(range(sum(counts)))
    scans, got = [], []
    for count in counts:
        cubes = np.array([next(numbers) for _ in range(count)], np.int16).reshape(-1, 1, 1, 1)
        scan = _CutScan(None, None, None, cubes, [], None, None)
        scans.append((scan, cubes.ravel().tolist()))
        got += batches.add(scan)
        assert len(scans) - len(got) <= most_waiting
    got += batches.flush()

    assert [(scan, logits.tolist()) for scan, logits in got] == scans
    assert set(calls) <= {BATCH_SIZE}
    assert all(scan.cubes.base is None for scan, _ in scans)
