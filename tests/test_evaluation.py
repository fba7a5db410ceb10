import json

import numpy as np
import pandas as pd
import pytest

from luna_cls.errors import InputError
from luna_cls.files import sha256
from luna_cls.judging.evaluation import compare_submissions, evaluate_submission
from luna_cls.judging.resampling import scan_weights
from luna_cls.judging.submission import Reference

POINTS = "seriesuid,coordX,coordY,coordZ"


def _reference(folder, **subset):
    lists = folder / "annotations.csv", folder / "excluded.csv", folder / "seriesuids.csv"
    return Reference(*lists, **subset)


def test_a_submission_is_scored_into_a_folder(submission):
    """The files hold what is returned; four scans are listed, two nodules annotated."""
    result = evaluate_submission(submission / "marks.csv", _reference(submission), submission / "out")

    curve = pd.read_csv(submission / "out" / "froc.csv")
    assert json.loads((submission / "out" / "froc.json").read_text()) == result["froc"]
    assert sorted(path.name for path in (submission / "out").iterdir()) == [
        "CADAnalysis.txt",
        "evaluation.json",
        "false_positives.csv",
        "froc.csv",
        "froc.json",
        "froc_gt_prob_vectors_marks.csv",
        "froc_marks.txt",
        "froc_marks_bootstrapping.csv",
        "metrics.json",
        "nodules.csv",
        "nodulesWithoutCandidate_marks.txt",
        "operating_points.json",
        "precision_recall.csv",
        "reliability.json",
        "roc.csv",
        "scans.csv",
    ]
    assert (result["froc"]["num_scans"], result["froc"]["num_nodules"]) == (4, 2)
    assert result["froc"]["counts"] == {
        "true_positives": 1,
        "false_positives": 1,
        "false_negatives": 1,
        "ignored": 1,
        "doubles": 0,
        "candidates": 3,
    }
    assert result["froc"]["cpm"] == 0.5
    assert list(result["froc"]["sensitivity_at_fps"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert curve["fps_per_scan"].tolist() == [0, 0, 0.25]
    assert curve["sensitivity"].tolist() == [0, 0.5, 0.5]
    assert curve["threshold"].tolist() == [np.inf, 0.9, 0.6]


def test_without_a_list_the_scans_are_those_with_marks(submission):
    """Scans c and d have no marks: false positives are divided by two scans, not four."""
    result = evaluate_submission(
        submission / "marks.csv", Reference(submission / "annotations.csv"), submission / "out"
    )

    curve = pd.read_csv(submission / "out" / "froc.csv")
    assert result["froc"]["num_scans"] == 2
    assert curve["fps_per_scan"].tolist() == [0, 0, 1]  # the point at 0.5 is on the straight line between


@pytest.mark.parametrize("column", ["logit", None], ids=["with logit", "probability alone"])
def test_known_classes_add_metrics(submission, column):
    """With a column class, metrics.json holds the binary metrics of the rows and of always saying no."""
    marks = pd.read_csv(submission / "marks.csv").assign(**{"class": [1, 0, 0]})
    if column:
        marks[column] = [2.0, 0.5, 1.5]
    marks.to_csv(submission / "marks.csv", index=False)

    evaluate_submission(
        submission / "marks.csv", Reference(submission / "annotations.csv"), submission / "out"
    )

    written = json.loads((submission / "out" / "metrics.json").read_text())
    assert {name: written["metrics"][name] for name in ("tp", "fp", "tn", "fn")} == {
        "tp": 1, "fp": 2, "tn": 0, "fn": 0,
    }  # fmt: skip
    assert written["metrics"]["auc"] == 1
    assert written["no_skill"]["accuracy"] == pytest.approx(2 / 3)
    assert written["no_skill"]["precision"] is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("marks.csv", f"{POINTS}\na,0,0,0\n", "marks.csv lacks the column probability"),
        ("marks.csv", f"{POINTS},probability,class\na,0,0,0,0.5,2\n", "class must"),
        ("marks.csv", f"{POINTS},probability,class\na,0,0,0,0.5,\n", "class must"),
        ("marks.csv", f"{POINTS},probability,class,logit\na,0,0,0,0.5,1,high\n", "logit must be a finite"),
        ("annotations.csv", f"{POINTS}\na,0,0,0\n", "annotations.csv lacks the column diameter_mm"),
        ("annotations.csv", f"{POINTS},diameter_mm\nz,0,0,0,5\n", "No annotated nodule"),
        ("seriesuids.csv", "\n", "seriesuids.csv lists no scan"),
        ("seriesuids.csv", "\udc93NUMPY", "seriesuids.csv"),
    ],
    ids=[
        "no probability",
        "class 2",
        "no class",
        "text logit",
        "no diameter",
        "no nodule",
        "no scans",
        "binary",
    ],
)
def test_wrong_files_are_refused_before_anything_is_written(submission, name, text, message):
    """The refusal is one line that names the file and what is wrong; no folder appears."""
    (submission / name).write_text(text, errors="surrogateescape")

    with pytest.raises(InputError, match=message) as refusal:
        evaluate_submission(submission / "marks.csv", _reference(submission), submission / "out")

    assert "\n" not in str(refusal.value)
    assert not (submission / "out").exists()


def _evaluate(folder, reference=None, **options):
    return evaluate_submission(
        folder / "marks.csv", reference or _reference(folder), folder / "out", **options
    )


def test_the_official_files_have_the_official_lines(submission):
    """One nodule of two found by the better of three marks; the miss, the curve and the vectors by hand."""
    _evaluate(submission)

    lines = (submission / "out" / "CADAnalysis.txt").read_text().splitlines()
    assert lines[:5] == ["", "*" * 60, "CAD Analysis: marks", "*" * 60, ""]
    assert lines[5:] == [
        "Candidate detection results:",
        "    True positives: 1",
        "    False positives: 1",
        "    False negatives: 1",
        "    True negatives: 0",
        "    Total number of candidates: 3",
        "    Total number of nodules: 2",
        "    Ignored candidates on excluded nodules: 1",
        "    Ignored candidates which were double detections on a nodule: 0",
        "    Sensitivity: 0.500000000",
        "    Average number of candidates per scan: 0.750000000",
    ]
    assert (submission / "out" / "nodulesWithoutCandidate_marks.txt").read_text() == (
        "b,None,0,0,0,8.000000000,-1\n"
    )
    assert (submission / "out" / "froc_marks.txt").read_text().splitlines() == [
        "0.000000000,0.000000000,inf",
        "0.000000000,0.500000000,0.900000000",
        "0.250000000,0.500000000,0.600000000",
    ]
    assert (submission / "out" / "froc_gt_prob_vectors_marks.csv").read_text().splitlines() == [
        "1,0.900000000",
        "0,0.600000000",
        "1,-1000000000.000000000",
    ]
    bootstrapped = (submission / "out" / "froc_marks_bootstrapping.csv").read_text().splitlines()
    assert bootstrapped[0] == "FPrate,Sensivity[Mean],Sensivity[Lower bound],Sensivity[Upper bound]"
    assert len(bootstrapped) == 10_001
    assert bootstrapped[1].startswith("0.125000000,")
    assert bootstrapped[-1].startswith("8.000000000,")


def test_misses_false_alarms_and_scans_are_told_one_by_one(submission):
    """B's nodule was missed, a's found before any false alarm; the false alarm in a is the only one."""
    _evaluate(submission)

    nodules = pd.read_csv(submission / "out" / "nodules.csv")
    false_positives = pd.read_csv(submission / "out" / "false_positives.csv")
    scans = pd.read_csv(submission / "out" / "scans.csv")
    assert nodules[["seriesuid", "coordX"]].to_numpy().tolist() == [["b", 0], ["a", 1]]
    assert nodules["probability"].isna().tolist() == [True, False]
    assert nodules.iloc[1][["probability", "fps_per_scan"]].tolist() == [0.9, 0.0]
    assert false_positives.to_numpy().tolist() == [["a", 50, 0, 0, 0.6]]
    assert scans.to_numpy().tolist() == [
        ["a", 1, 1, 2, 1, 1, 1],
        ["b", 1, 0, 1, 0, 0, 0],
        ["c", 0, 0, 0, 0, 0, 0],
        ["d", 0, 0, 0, 0, 0, 0],
    ]


def test_sizes_share_the_false_positives(submission):
    """Nodules of 5, 6 and 12 mm, the first missed, the others found, against the same false alarm."""
    nodules = "a,0,0,0,6\na,50,0,0,5\nb,90,0,0,12\n"
    (submission / "annotations.csv").write_text(f"{POINTS},diameter_mm\n{nodules}")
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,0,0,0,0.5\na,9,0,0,0.9\nb,90,0,0,0.8\n")

    sizes = _evaluate(submission)["froc"]["by_size"]

    assert [(size["diameter_mm"], size["num_found"], size["num_nodules"]) for size in sizes] == [
        ("< 6", 0, 1),
        ("6 to 10", 1, 1),
        (">= 10", 1, 1),
    ]
    # One false alarm in four scans, more probable than any hit: nothing found at 1/8 a scan, all from 1/4.
    assert [size["cpm"] for size in sizes] == pytest.approx([0, 6 / 7, 6 / 7])
    assert [len(size["cpm_interval_95"]) for size in sizes] == [2, 2, 2]


def test_without_classes_a_mark_is_what_the_rules_make_of_it(submission):
    """The hit is 1, the false alarm 0 and the mark on an excluded finding is left out: AUC 1 of two marks."""
    result = _evaluate(submission)

    assert result["labels"] == "luna16"
    assert (result["metrics"]["tp"], result["metrics"]["fp"], result["metrics"]["auc"]) == (1, 1, 1)


def test_without_annotations_labelled_candidates_are_measured(submission):
    """A column class is enough for metrics; there is no FROC then."""
    marks = pd.read_csv(submission / "marks.csv").assign(**{"class": [1, 0, 0]})
    marks.to_csv(submission / "marks.csv", index=False)

    result = evaluate_submission(submission / "marks.csv", Reference(), submission / "out")

    assert result["metrics"]["auc"] == 1
    assert "froc" not in result
    assert not (submission / "out" / "froc.json").exists()


def test_resamples_may_be_left_out(submission):
    """With none, the intervals are null and there is no band."""
    result = _evaluate(submission, resamples=0)

    assert result["froc"]["cpm_interval_95"] is None
    assert result["froc"]["bootstrap"] is None
    assert not (submission / "out" / "froc_marks_bootstrapping.csv").exists()


@pytest.mark.parametrize("kind", ["table", "tree"])
def test_a_subset_is_scored_against_its_own_scans(submission, kind):
    """Subset 3 has scans a and c: one nodule, found, and one false alarm in two scans."""
    if kind == "table":
        subsets = submission / "subsets.csv"
        subsets.write_text("seriesuid,subset\na,3\nb,4\nc,3\n")
    else:
        subsets = submission
        for name in ("subset3/a.mhd", "subset3/c.mhd", "subset4/b.mhd"):
            (submission / name).parent.mkdir(exist_ok=True)
            (submission / name).touch()

    froc = _evaluate(submission, _reference(submission, subset=3, subsets=subsets))["froc"]

    assert (froc["num_scans"], froc["num_nodules"]) == (2, 1)
    assert froc["counts"]["false_positives"] == froc["counts"]["true_positives"] == 1


def test_a_subset_without_a_list_has_the_scans_of_its_table(submission):
    """Subset 3 has a, c and d: c and d have no mark, and the false alarm in a is divided by three scans."""
    (submission / "subsets.csv").write_text("seriesuid,subset\na,3\nb,4\nc,3\nd,3\n")
    reference = Reference(submission / "annotations.csv", subset=3, subsets=submission / "subsets.csv")

    froc = _evaluate(submission, reference)["froc"]

    curve = pd.read_csv(submission / "out" / "froc.csv")
    assert (froc["num_scans"], froc["num_nodules"]) == (3, 1)
    assert curve["fps_per_scan"].tolist() == pytest.approx([0, 0, 1 / 3])


def test_what_finishes_a_folder_fails_without_leaving_one(submission):
    """An error while the page is drawn leaves no half-made folder."""

    def fail(folder):
        assert (folder / "froc.json").is_file()
        raise InputError("no ink")

    with pytest.raises(InputError, match="no ink"):
        _evaluate(submission, finish=fail)

    assert not (submission / "out").exists()


def test_thresholds_of_a_run_are_tried_on_a_submission(submission):
    """At a probability of 0.7 the hit is called and the false alarm is not: sensitivity and specificity 1."""
    _findings(submission, calibration=True)

    (point,) = _evaluate(submission, thresholds=submission / "points.json")["points"]

    stored = json.loads((submission / "out" / "operating_points.json").read_text())
    assert {name: stored["points"][0][name] for name in ("goal", "tp", "ppv")} == {
        name: point[name] for name in ("goal", "tp", "ppv")
    }
    assert (point["tp"], point["fp"], point["fn"], point["tn"]) == (1, 0, 0, 1)
    assert point["fps_per_scan"] == 0
    assert len(stored["decision_curve"]) == 81


def test_metrics_have_intervals_over_scans(submission):
    """Twenty scans, half with a hit and half with a miss at 1/2: the sensitivity's interval holds 1/2."""
    rows = "".join(f"s{n},0,0,0,{0.9 if n % 2 else 0.1},1\ns{n},9,0,0,0.{n + 10},0\n" for n in range(20))
    (submission / "marks.csv").write_text(f"{POINTS},probability,class\n{rows}")

    result = evaluate_submission(submission / "marks.csv", Reference(), submission / "out")

    low, high = result["interval_95"]["recall"]
    assert result["metrics"]["recall"] == 0.5
    assert low == pytest.approx(0.28, abs=0.06)  # the middle 95 % of 20 draws of 1/2
    assert high == pytest.approx(0.72, abs=0.06)


def test_submissions_are_compared_into_a_folder(submission):
    """A finds both nodules, B one: each has its folder, and the comparison its verdict on four scans."""
    (submission / "b").mkdir()
    (submission / "b" / "marks.csv").write_text((submission / "marks.csv").read_text())
    with (submission / "marks.csv").open("a") as file:
        file.write("b,0,0,0,0.95\n")
    paths = [submission / "marks.csv", submission / "b" / "marks.csv"]
    seen = []

    found = compare_submissions(paths, _reference(submission), submission / "out", finish=seen.append)

    names = [f"{submission.name}-marks", "b-marks"]
    stored = json.loads((submission / "out" / "comparison.json").read_text())
    assert list(found["names"]) == stored["names"] == names
    assert found["verdict"] == stored["verdict"]
    assert [stored["scores"][name]["cpm"] for name in names] == [1.0, 0.5]
    assert stored["pairs"][0]["differences"]["cpm"]["difference"] == 0.5
    assert [path.name for path in seen[:2]] == names
    assert json.loads((submission / "out" / "b-marks" / "froc.json").read_text())["cpm"] == 0.5


def test_a_comparison_tells_what_may_mislead(submission):
    """What is wrong with one submission is said with its name, what is wrong with all without."""
    (submission / "b.csv").write_text(f"{POINTS},probability\na,0,0,0,0.9\n")
    reference = Reference(submission / "annotations.csv", series_uids=submission / "seriesuids.csv")

    found = compare_submissions(
        [submission / "marks.csv", submission / "b.csv"], reference, submission / "out"
    )

    assert found["warnings"][1].startswith("No list of excluded findings was given")
    assert found["warnings"][0].startswith("marks: 2 of 4 listed scans have no mark")
    assert found["warnings"][2].startswith("b: 3 of 4 listed scans have no mark")


def test_one_scan_has_no_intervals(submission):
    """A single scan is drawn as it is, again and again: that is no interval."""
    (submission / "seriesuids.csv").write_text("a\n")

    froc = _evaluate(submission)["froc"]

    assert froc["cpm"] == 1.0
    assert froc["cpm_interval_95"] is None


def test_what_never_varies_has_no_interval(submission):
    """Every nodule is found before any false alarm, whichever scans are drawn: CPM 1, interval unknown."""
    (submission / "marks.csv").write_text(f"{POINTS},probability\na,0,0,0,0.9\nb,0,0,0,0.9\na,50,0,0,0.1\n")

    _evaluate(submission)

    froc = json.loads((submission / "out" / "froc.json").read_text())
    assert froc["cpm"] == 1.0
    assert froc["cpm_interval_95"] == [None, None]


def _findings(submission, calibration, model="1"):
    """Marks as predict leaves them, and thresholds of a calibration by a temperature of 2."""
    temperature = {"method": "temperature", "parameters": {"temperature": 2.0}}
    goal = {
        "goal": "sensitivity",
        "value": 0.9,
        "threshold_logit": 0.8473,
        "threshold_probability": 0.7,
        "threshold_interval_95": [0.6, 0.8],
    }
    stored = {
        "calibration": temperature,
        "fitted_on": {"model_sha256": model, "validation_sha256": "0"},
        "points": [goal],
    }
    (submission / "points.json").write_text(json.dumps(stored))
    about = {"model_sha256": "1", "calibration": temperature if calibration else None}
    (submission / "prediction.json").write_text(json.dumps(about))


def test_thresholds_of_calibrated_probabilities_are_not_tried_on_others(submission):
    """Findings of the same calibration pass without a word, those of none are refused."""
    _findings(submission, calibration=True)
    said = _evaluate(submission, thresholds=submission / "points.json", force=True)["warnings"]
    assert "calibrated" not in " ".join(said)

    _findings(submission, calibration=False)
    with pytest.raises(InputError, match="was predicted without a calibration"):
        _evaluate(submission, thresholds=submission / "points.json", force=True)

    _findings(submission, calibration=True, model="2")
    with pytest.raises(InputError, match="was predicted by another model"):
        _evaluate(submission, thresholds=submission / "points.json", force=True)

    (submission / "prediction.json").unlink()
    said = _evaluate(submission, thresholds=submission / "points.json", force=True)["warnings"]
    assert "whether marks.csv was calibrated in the same way cannot be told" in said[-1]


def test_thresholds_of_another_calibration_are_refused(submission):
    """A temperature of 3 made the findings, one of 2 the thresholds: the line names the file to use."""
    _findings(submission, calibration=True)
    about = json.loads((submission / "prediction.json").read_text())
    about["calibration"]["parameters"]["temperature"] = 3.0
    (submission / "prediction.json").write_text(json.dumps(about))

    with pytest.raises(InputError) as caught:
        _evaluate(submission, thresholds=submission / "points.json")

    assert str(caught.value) == (
        f"{submission / 'marks.csv'} was predicted with another calibration; the thresholds of "
        f"{submission / 'points.json'} are for theirs. Predict again with "
        f"--calibration {submission / 'calibration.json'}."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "it is no JSON"), ('{"calibration": null}', "KeyError: 'model_sha256'")],
    ids=["broken", "of no model"],
)
def test_findings_that_do_not_say_what_made_them_are_refused(submission, text, reason):
    """A damaged `prediction.json` is one line, not taken for findings of no calibration."""
    _findings(submission, calibration=True)
    (submission / "prediction.json").write_text(text)

    with pytest.raises(InputError) as caught:
        _evaluate(submission, thresholds=submission / "points.json")

    said = str(caught.value)
    assert said.startswith(f"{submission / 'prediction.json'} cannot be read (")
    assert reason in said
    assert said.endswith("Predict again.")


def test_thresholds_are_tried_on_no_candidate_at_all(submission):
    """Two scans are listed, neither has a mark: there are no points, and it is said."""
    _findings(submission, calibration=True)
    (submission / "marks.csv").write_text(f"{POINTS},probability\n")

    result = _evaluate(submission, thresholds=submission / "points.json")

    assert "The submission has no candidate to try the thresholds on." in result["warnings"]
    assert result["metrics"] is None
    assert not (submission / "out" / "operating_points.json").exists()


def test_draws_without_a_nodule_have_no_sensitivity(submission):
    """Two draws of four scans that happen to be of c and d alone: the official band is not a number."""
    seed = next(seed for seed in range(10_000) if not scan_weights(4, 2, seed)[:, :2].any())

    froc = _evaluate(submission, resamples=2, seed=seed)["froc"]

    band = pd.read_csv(submission / "out" / "froc_marks_bootstrapping.csv")
    assert froc["cpm"] == 0.5
    assert np.isnan(froc["cpm_interval_95"]).all()
    assert len(band) == 10_000
    assert band["FPrate"].notna().all()
    assert band.filter(like="Sensivity").isna().all(axis=None)


def test_thresholds_are_not_tried_where_they_were_chosen(submission):
    """On the very validation file they would flatter."""
    _findings(submission, calibration=True)
    stored = json.loads((submission / "points.json").read_text())
    stored["fitted_on"]["validation_sha256"] = sha256(submission / "marks.csv")
    (submission / "points.json").write_text(json.dumps(stored))

    with pytest.raises(InputError, match=r"were chosen on .*marks\.csv"):
        _evaluate(submission, thresholds=submission / "points.json")


def test_a_comparison_takes_resamples(submission):
    """Without resamples nothing can be said of a difference."""
    with pytest.raises(InputError, match="Received: --resamples 0"):
        compare_submissions([submission / "marks.csv"] * 2, Reference(), submission / "out", resamples=0)
