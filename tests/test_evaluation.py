import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from luna_cls.errors import InputError
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.judging.evaluation import evaluate_submission

POINTS = "seriesuid,coordX,coordY,coordZ"


def test_five_samples_by_hand():
    """Nodules at 3, 1, -1 and others at 2, -2: one false alarm, one miss, 4 of 6 pairs in order."""
    actual = binary_metrics([1, 1, 1, 0, 0], [3, 1, -1, 2, -2])

    assert actual == {
        "accuracy": 3 / 5,
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "auc": pytest.approx(4 / 6),
        # Down the ranking: nodule, other, nodule, nodule, other.
        "average_precision": pytest.approx((1 + 2 / 3 + 3 / 4) / 3),
        "specificity_at_sensitivity_0.5": 0.5,
        "specificity_at_sensitivity_0.9": 0.5,
        "sensitivity_at_specificity_0.9": pytest.approx(1 / 3),
        "gmean": pytest.approx((2 / 3 * 1 / 2) ** 0.5),
        "f1": pytest.approx(2 / 3),
        "mcc": pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "specificity": 0.5,
        "tp": 2,
        "fp": 1,
        "tn": 1,
        "fn": 1,
    }


def test_they_agree_with_scikit_learn():
    """On 20,000 samples at 1 in 100, with many ties, every metric is scikit-learn's."""
    rng = np.random.default_rng(1)
    labels = (rng.random(20_000) < 0.01).astype(int)
    scores = rng.normal(3 * labels - 2, 1.5).round(1)

    actual = binary_metrics(labels, scores)

    called = scores > 0
    assert actual["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert actual["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, called))
    assert actual["auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert actual["average_precision"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert actual["precision"] == pytest.approx(sk.precision_score(labels, called))
    assert actual["f1"] == pytest.approx(sk.f1_score(labels, called))
    assert actual["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, called))
    assert actual["recall"] == pytest.approx(sk.recall_score(labels, called))
    assert actual["specificity"] == pytest.approx(sk.recall_score(1 - labels, ~called))
    counts = [actual[name] for name in ("tn", "fp", "fn", "tp")]
    assert counts == sk.confusion_matrix(labels, called).ravel().tolist()


def test_probabilities_take_a_threshold_of_a_half():
    """Probabilities cut at 0.5 give what their logits give."""
    logits = np.array([-2.0, 0.5, 1.0, -0.5])
    labels = [0, 1, 0, 1]

    assert binary_metrics(labels, 1 / (1 + np.exp(-logits)), 0.5) == binary_metrics(labels, logits)


def test_a_score_at_the_threshold_says_no():
    """Scores of exactly 0 call nothing a nodule."""
    actual = binary_metrics([0, 1], [0.0, 0.0])

    assert (actual["tn"], actual["fn"]) == (1, 1)


def test_saying_no_to_luna16_has_998_accuracy_and_no_skill():
    """At 1 nodule in 490, always saying no is 99.8 % accurate, with a balanced accuracy of 50 %."""
    labels = np.zeros(490)
    labels[0] = 1

    actual = no_skill_metrics(labels)

    assert round(actual["accuracy"], 3) == 0.998
    assert actual["balanced_accuracy"] == 0.5
    assert actual["auc"] == 0.5
    assert actual["average_precision"] == pytest.approx(1 / 490)
    assert actual["recall"] == 0
    assert np.isnan(actual["precision"])


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        (0, {"recall", "precision", "f1"}),
        (1, {"specificity"}),
    ],
    ids=["no nodule", "nodules alone"],
)
def test_what_needs_a_missing_class_is_nan(label, undefined):
    """With one class, and no score above 0, ranking metrics and those of the other class are NaN."""
    actual = binary_metrics([label] * 3, [-1.0, -2.0, 1.0 if label else -3.0])

    ranking = {"auc", "average_precision", "specificity_at_sensitivity_0.5"}
    ranking |= {
        "specificity_at_sensitivity_0.9",
        "sensitivity_at_specificity_0.9",
        "balanced_accuracy",
        "gmean",
        "mcc",
    }
    assert {name for name, value in actual.items() if np.isnan(value)} == ranking | undefined


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf], ids=str)
def test_scores_that_are_not_finite_are_refused(wrong):
    """A NaN or infinite score is refused, with how many there are."""
    with pytest.raises(InputError, match="2 of 4 scores are not finite"):
        binary_metrics([0, 1, 0, 1], [0.0, wrong, 1.0, wrong])


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([0, 1], [0.5])], ids=["none", "too few"])
def test_as_many_scores_as_labels_are_needed(labels, scores):
    """No score at all, or fewer scores than labels, are refused with both numbers."""
    with pytest.raises(InputError, match=f"Received: {len(scores)} scores, {len(labels)} labels"):
        binary_metrics(labels, scores)


@pytest.fixture
def submission(tmp_path):
    """Two scans: in a, a hit at 0.9 and a false alarm at 0.6; in b, a missed nodule and an excluded hit."""
    files = {
        "marks.csv": f"{POINTS},probability\na,0,0,0,0.9\na,50,0,0,0.6\nb,90,0,0,0.8\n",
        "annotations.csv": f"{POINTS},diameter_mm\na,1,0,0,8\nb,0,0,0,8\n",
        "excluded.csv": f"{POINTS},diameter_mm\nb,90,0,0,-1\n",
        "seriesuids.csv": "a\nb\nc\nd\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_submission_file_is_scored_into_two_files(submission):
    """froc.json and froc.csv hold what is returned; four scans are listed, two nodules annotated."""
    result = evaluate_submission(
        submission / "marks.csv",
        submission / "annotations.csv",
        submission / "out",
        submission / "excluded.csv",
        submission / "seriesuids.csv",
    )

    curve = pd.read_csv(submission / "out" / "froc.csv")
    assert json.loads((submission / "out" / "froc.json").read_text()) == result["froc"]
    assert sorted(path.name for path in (submission / "out").iterdir()) == ["froc.csv", "froc.json"]
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
    result = evaluate_submission(submission / "marks.csv", submission / "annotations.csv", submission / "out")

    curve = pd.read_csv(submission / "out" / "froc.csv")
    assert result["froc"]["num_scans"] == 2
    assert curve["fps_per_scan"].tolist() == [0, 0, 0.5, 1]


@pytest.mark.parametrize("column", ["logit", None], ids=["with logit", "probability alone"])
def test_known_classes_add_metrics(submission, column):
    """With a column class, metrics.json holds the binary metrics of the rows and of always saying no."""
    marks = pd.read_csv(submission / "marks.csv").assign(**{"class": [1, 0, 0]})
    if column:
        marks[column] = [2.0, 0.5, 1.5]
    marks.to_csv(submission / "marks.csv", index=False)

    evaluate_submission(submission / "marks.csv", submission / "annotations.csv", submission / "out")

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
        evaluate_submission(
            submission / "marks.csv",
            submission / "annotations.csv",
            submission / "out",
            submission / "excluded.csv",
            submission / "seriesuids.csv",
        )

    assert "\n" not in str(refusal.value)
    assert not (submission / "out").exists()


def _warnings(folder, **options):
    result = evaluate_submission(folder / "marks.csv", folder / "annotations.csv", folder / "out", **options)
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
