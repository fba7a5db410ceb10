import json

import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from luna_cls.judging import calibrated_run
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.reliability import figures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory, run_cli):
    """The demo, run once as a newcomer would; its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = run_cli("demo", "--out", out, timeout=1500)
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_demo_says_how_well_it_did_and_where_everything_is(demo):
    """The table stands beside always saying no, and every path printed exists."""
    out, done = demo

    for words in ("balanced accuracy", "AUC", "CPM", "always 'no'"):
        assert words in done.stdout
    for name in ("phantom", "store", "run", "findings", "evaluation"):
        assert str(out / name) in done.stdout
        assert (out / name).is_dir()
    assert str(out / "evaluation" / "report.html") in done.stdout
    for name in ("run", "findings", "evaluation"):
        assert 'class="cube"' in (out / name / "report.html").read_text()
    assert "Traceback" not in done.stderr
    assert "tensorflow" not in done.stderr.lower().replace("loading tensorflow", "")


def test_the_demo_learns(demo):
    """On scans it never saw, the model ranks better than chance by far: AUC over 0.75."""
    out, _ = demo
    findings = pd.read_csv(out / "findings" / "findings.csv")
    run_settings = json.loads((out / "run" / "metrics.json").read_text())

    metrics = binary_metrics(findings["class"], findings["logit"])

    assert metrics["auc"] > 0.75
    assert metrics["balanced_accuracy"] > run_settings["no_skill"]["balanced_accuracy"]
    assert set(findings["seriesuid"]).isdisjoint(
        pd.read_csv(out / "run" / "validation_predictions.csv")["seriesuid"]
    )


def test_tensorboard_shows_scalars_histograms_and_the_exact_validation_metrics(demo):
    """What TensorBoard reads is what history.csv says, epoch by epoch; scores have a histogram by class."""
    out, _ = demo
    history = pd.read_csv(out / "run" / "history.csv")
    logs = {
        name: EventAccumulator(str(out / "run" / "tensorboard" / name)).Reload()
        for name in ("train", "validation")
    }

    def read(name, tag):
        return [float(make_ndarray(event.tensor_proto)) for event in logs[name].Tensors(tag)]

    shown = {
        "loss": "loss/loss",
        "auc": "ranking/auc",
        "average_precision": "ranking/average_precision",
        "balanced_accuracy": "decisions/balanced_accuracy",
        "specificity_at_sensitivity_0.9": "operating_points/specificity_at_sensitivity_0.9",
    }
    for metric, tag in shown.items():
        assert read("validation", tag) == pytest.approx(history[f"val_{metric}"].tolist(), rel=1e-6)
        assert read("train", tag) == pytest.approx(history[metric].tolist(), rel=1e-6)
    tags = logs["validation"].Tags()["tensors"]
    assert {"scores/nodules", "scores/others", "ranking/precision_recall/pr_curves"} <= set(tags)


def test_calibration_mends_what_focal_loss_bends(demo, tmp_path, run_cli):
    """The demo's scans with focal loss, tested: ECE at most half, or a sixth; AUC the same to the last bit.

    Focal loss draws probabilities to 1/2, and batches with more nodules than there are raise them. Trainings
    end elsewhere with another seed, or on a processor that adds up in another order: ECE 0.172 with one seed,
    0.196 with another. One number, `temperature`, which cannot undo the second, takes that to 0.022 and to
    0.018; two, `platt`, to 0.010 and to 0.011. `predict` applies by itself what `calibrate` left.
    """
    out, _ = demo
    model = tmp_path / "run" / "model.keras"
    scans = [out / "phantom" / "subset8", out / "phantom" / "subset9"]
    reading = (model, *scans, "--candidates", out / "phantom" / "candidates_V2.csv", "--out")

    shorter = ["--set", "training.epochs=3", "--set", "sampling.positives_per_batch=4"]
    trained = run_cli(
        "train", out / "store", model.parent, "--recipe", "demo", "--loss", "focal", *shorter, timeout=1500
    )
    plain = run_cli("predict", *reading, tmp_path / "plain")
    fitted = run_cli("calibrate", model.parent, "--method", "temperature")
    mended = run_cli("predict", *reading, tmp_path / "mended")
    before, after = (pd.read_csv(tmp_path / name / "findings.csv") for name in ("plain", "mended"))
    temperature = json.loads((model.parent / "calibration.json").read_text())["parameters"]["temperature"]

    assert [done.returncode for done in (trained, plain, fitted, mended)] == [0] * 4
    assert "Calibrated by temperature" in mended.stderr
    assert "Calibrated" not in plain.stderr
    assert temperature < 1
    assert (after["logit"] == before["logit"] / temperature).all()
    ece_before, ece_after = (
        figures(table["class"], table["probability"])["ece"] for table in (before, after)
    )
    assert ece_after < ece_before / 2
    assert run_cli("calibrate", model.parent, "--method", "platt", "--force").returncode == 0
    by_platt = calibrated_run.read(model.parent / "calibration.json", model)(before["logit"].to_numpy())
    assert figures(before["class"], expit(by_platt))["ece"] < ece_before / 6
    for scores in ("logit", "probability"):
        assert roc_auc_score(after["class"], after[scores]) == roc_auc_score(before["class"], before[scores])
