import json

import numpy as np
import pandas as pd
import pytest

from luna_cls.errors import InputError
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.judging.submission import Reference

POINTS = "seriesuid,coordX,coordY,coordZ"


def _warnings(folder, **options):
    reference = Reference(folder / "annotations.csv", **options)
    result = evaluate_submission(folder / "marks.csv", reference, folder / "out")
    return " ".join(result["warnings"])


def test_nodules_of_scans_without_a_mark_are_not_left_out_silently(submission):
    """Without a list of scans, scan b, which has a nodule but no mark, is missing: that is said."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,0,0,0,0.9\n")

    said = _warnings(submission)

    assert said.startswith("1 nodules of 1 scans without a prediction were left out.")


def test_marks_beside_every_nodule_are_suspected_of_other_coordinates(submission):
    """No hit at all looks like voxels for mm or x for z."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,70,0,0,0.9\nb,70,0,0,0.5\n")

    assert "No mark lies in a nodule. Are the coordinates x, y, z in mm" in _warnings(submission)


def test_logits_that_contradict_the_probabilities_are_not_scored(submission):
    """Where 0.9 and a logit of -5 stand side by side, FROC and metrics are of the probabilities."""
    rows = "a,0,0,0,0.9,-5,1\na,50,0,0,0.1,5,0\n"
    (submission / "marks.csv").write_text(f"{POINTS},probability,logit,class\n{rows}")

    said = _warnings(submission)

    assert "logit and probability differ" in said
    assert json.loads((submission / "out" / "metrics.json").read_text())["metrics"]["auc"] == 1.0


def test_probabilities_near_zero_keep_their_order(submission):
    """1e-30 against 1e-20 is a difference: the AUC is 1, not that of a tie, 0.5."""
    rows = "a,0,0,0,1e-20,1\na,50,0,0,1e-30,0\n"
    (submission / "marks.csv").write_text(f"{POINTS},probability,class\n{rows}")

    _warnings(submission)

    assert json.loads((submission / "out" / "metrics.json").read_text())["metrics"]["auc"] == 1.0


def test_ties_at_the_hundredth_mark_are_said(submission):
    """101 marks of probability 1 on a nodule all go, by LUNA16's rule: it is missed, with a warning."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\n" + "a,0,0,0,1\n" * 101)

    assert "In 1 scans equal probabilities around the 100th mark were all dropped" in _warnings(submission)


def test_nothing_is_said_of_a_submission_without_fault(submission):
    """Marks of all scans, told apart, with a list of excluded findings: no warning."""
    assert _warnings(submission, excluded=submission / "excluded.csv") == ""


def test_a_missing_list_of_excluded_findings_is_said(submission):
    """Without --excluded, marks that LUNA16 ignores count as false alarms."""
    assert _warnings(submission).startswith("No list of excluded findings was given")


def test_excluded_findings_of_other_scans_are_said(submission):
    """A list without one finding in the listed scans is of other data."""
    (submission / "excluded.csv").write_text(f"{POINTS},diameter_mm\nz,90,0,0,-1\n")

    said = _warnings(submission, excluded=submission / "excluded.csv")

    assert "No excluded finding is in a listed scan" in said


def test_nodules_given_as_excluded_findings_are_said(submission):
    """The list of nodules in both places ignores every mark on one."""
    said = _warnings(submission, excluded=submission / "annotations.csv")

    assert "The excluded findings are the annotated nodules." in said


def test_excluded_findings_take_nodules(submission):
    """Without annotations there is no FROC that they could be left out of."""
    with pytest.raises(InputError, match=r"add --annotations\. Received: --excluded"):
        Reference(excluded=submission / "excluded.csv")


def test_equal_probabilities_throughout_are_said(submission):
    """Three marks of 0.5 rank nothing."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,0,0,0,0.5\na,50,0,0,0.5\nb,90,0,0,0.5\n")

    assert "All 3 marks have the same probability: nothing is ranked." in _warnings(submission)


def test_a_subset_without_a_listed_scan_is_refused(submission):
    """Scans a and b are listed, subset 3 has c alone."""
    (submission / "seriesuids.csv").write_text("a\nb\n")
    (submission / "subsets.csv").write_text("seriesuid,subset\nc,3\n")

    with pytest.raises(InputError, match=r"is in subset 3\. Received: scans a, .*; in the subset are c"):
        _warnings(
            submission,
            series_uids=submission / "seriesuids.csv",
            subset=3,
            subsets=submission / "subsets.csv",
        )


def test_an_empty_submission_scores_nothing_where_scans_are_listed(submission):
    """No mark at all: CPM 0 of the listed scans; without a list there is nothing to divide by."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\n")
    (submission / "seriesuids.csv").write_text("a\nb\n")

    said = _warnings(submission, series_uids=submission / "seriesuids.csv")

    assert "2 of 2 listed scans have no mark; their 2 nodules count as missed." in said
    with pytest.raises(InputError, match=r"marks\.csv has no row"):
        evaluate_submission(submission / "marks.csv", Reference(), submission / "again")


def test_excluded_findings_given_as_nodules_are_said(submission):
    """Nodules of diameter -1 are none."""
    (submission / "annotations.csv").write_text(f"{POINTS},diameter_mm\na,1,0,0,8\nb,0,0,0,-1\n")

    assert "1 annotated nodules have no diameter" in _warnings(submission)


def test_unlisted_scans_are_said(submission):
    """Of three marks, that of b is left out where only a and c are listed; c has no mark."""
    (submission / "seriesuids.csv").write_text("a\nc\n")

    said = _warnings(submission, series_uids=submission / "seriesuids.csv")

    assert "1 marks of 1 scans that are not listed were left out, as LUNA16 does; the first is b." in said
    assert "1 of 2 listed scans have no mark; their 0 nodules count as missed." in said
    assert "--subset" not in said


def test_one_subset_against_all_scans_is_said(submission):
    """Marks in two scans of ten look like one fold's."""
    (submission / "seriesuids.csv").write_text("\n".join("abcdefghij"))

    said = _warnings(submission, series_uids=submission / "seriesuids.csv")

    assert "8 of 10 listed scans have no mark; their 0 nodules count as missed." in said
    assert "score it against its own scans: --subset K" in said


def test_a_list_of_scans_with_nodules_alone_is_said(submission):
    """A hundred listed scans with a nodule each: LUNA16 also divides by those without one."""
    uids = [f"s{number}" for number in range(100)]
    rows = "".join(f"{uid},0,0,0,8\n" for uid in uids)
    (submission / "annotations.csv").write_text(f"{POINTS},diameter_mm\n{rows}")
    marks = "".join(f"{uid},0,0,0,0.{number + 100}\n" for number, uid in enumerate(uids))
    (submission / "marks.csv").write_text(f"{POINTS},probability\n{marks}")

    assert "Every listed scan has a nodule." in _warnings(submission)


@pytest.mark.parametrize(("decimals", "is_said"), [(1, True), (2, True), (6, False)], ids=str)
def test_rounded_probabilities_are_said(submission, decimals, is_said):
    """A thousand marks that share 11 or 101 values are said to; with 6 decimals they share few."""
    probability = np.random.default_rng(0).random(1000).round(decimals)
    scans = [f"s{number // 50}" for number in range(1000)]
    marks = pd.DataFrame({"seriesuid": scans, "coordX": range(1000), "coordY": 0, "coordZ": 0})
    marks.assign(probability=probability).to_csv(submission / "marks.csv", index=False)
    (submission / "annotations.csv").write_text(f"{POINTS},diameter_mm\ns0,0,0,0,8\n")

    assert (f"Probabilities have {decimals} decimals" in _warnings(submission)) is is_said


def test_saturated_probabilities_are_said(submission):
    """Two marks of exactly 1 in two scans hide what lies below 1/8 false positives a scan."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,0,0,0,1\na,50,0,0,1\nb,90,0,0,0.8\n")

    assert "2 marks have a probability of exactly 1" in _warnings(submission)


def test_repeated_marks_are_said(submission):
    """The same point twice counts twice."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,50,0,0,0.9\na,50,0,0,0.6\nb,0,0,0,0.8\n")

    assert "1 marks repeat the point of another" in _warnings(submission)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,0,0,0,nan\n", "marks.csv, line 2: probability must be from 0 to 1"),
        ("a,0,0,0,1.01\n", "marks.csv, line 2: probability must be from 0 to 1.* Received: 1.01"),
        ("a,0,0,0,0.5\na,0,0,0,-3.5\n", "marks.csv, line 3: probability must .* Received: -3.5"),
        ("17,0,0,0,0.5\n", "no mark is of a listed scan. Received: seriesuid 17"),
    ],
    ids=["NaN", "above 1", "a logit", "integer UID"],
)
def test_a_wrong_submission_is_refused_in_a_line(submission, rows, message):
    """The line says which file and line, what it holds and what it should."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\n{rows}")
    (submission / "seriesuids.csv").write_text("a\nb\n")

    with pytest.raises(InputError, match=message) as refusal:
        _warnings(submission, series_uids=submission / "seriesuids.csv")

    assert "\n" not in str(refusal.value)
    assert not (submission / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 3}, "Received: --subset 3 alone."),
        ({"subset": 3, "subsets": "subsets.csv"}, "subsets.csv has no scan in subset 3"),
        ({"subset": 3, "subsets": "gone.csv"}, "No subsets file at .*gone.csv"),
    ],
    ids=["no list", "not in it", "no such file"],
)
def test_a_subset_that_cannot_be_told_is_refused(submission, options, message):
    """A subset takes its number and what tells the subsets."""
    (submission / "subsets.csv").write_text("seriesuid,subset\na,1\n")
    if "subsets" in options:
        options = {**options, "subsets": submission / options["subsets"]}

    with pytest.raises(InputError, match=message):
        _warnings(submission, **options)


def test_a_folder_of_a_command_stands_for_its_predictions(submission):
    """A folder with findings.csv is scored as that file; one without predictions is refused."""
    (submission / "findings").mkdir()
    (submission / "marks.csv").rename(submission / "findings" / "findings.csv")

    result = evaluate_submission(
        submission / "findings", Reference(submission / "annotations.csv"), submission / "findings" / "scores"
    )

    assert result["froc"]["counts"]["true_positives"] == 1
    with pytest.raises(InputError, match="holds no predictions"):
        evaluate_submission(submission / "findings" / "scores", Reference(), submission / "out")


def test_labels_are_needed_where_there_are_no_nodules(submission):
    """Neither annotations nor a column class: nothing to score against."""
    with pytest.raises(InputError, match="has no column class"):
        evaluate_submission(submission / "marks.csv", Reference(), submission / "out")
