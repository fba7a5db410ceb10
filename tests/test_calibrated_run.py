import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from luna_cls.errors import InputError
from luna_cls.judging import calibrated_run, operating_points
from luna_cls.judging.calibrated_run import calibrate
from luna_cls.judging.calibration import Isotonic, Platt
from luna_cls.judging.operating_points import Goal
from luna_cls.judging.reliability import figures


def _validation(scans=8, of_each=100):
    """What train leaves: true log odds are 3 * logit - 2."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, scans * of_each)
    points = rng.uniform(-100, 100, (len(logits), 3))
    return pd.DataFrame(points, columns=["coordX", "coordY", "coordZ"]).assign(
        seriesuid=[f"1.2.{i // of_each}" for i in range(len(logits))],
        probability=expit(logits),
        logit=logits,
        **{"class": (rng.random(len(logits)) < expit(3 * logits - 2)).astype(int)},
    )


@pytest.fixture
def run(tmp_path):
    """What calibrate reads of a run: the bytes of a model, and validation predictions."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"a model")
    _validation().to_csv(folder / "validation_predictions.csv", index=False)
    return folder


def _read(run, name):
    return json.loads((run / name).read_text())


def test_the_command_leaves_a_calibration_and_thresholds_beside_the_model(run, run_cli):
    """Platt's slope and intercept are found again; the table shows every method; both paths are printed."""
    done = run_cli("calibrate", run)

    stored = _read(run, "calibration.json")
    points = _read(run, "operating_points.json")["points"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        str(run / "calibration.json"),
        str(run / "operating_points.json"),
    ]
    assert all(name in done.stdout for name in ("as trained", "temperature", "platt", "beta", "isotonic"))
    assert stored["method"] == "platt"
    assert stored["parameters"]["slope"] == pytest.approx(3, abs=0.5)
    assert stored["parameters"]["intercept"] == pytest.approx(-2, abs=0.4)
    assert stored["fitted_on"]["model_sha256"] == hashlib.sha256(b"a model").hexdigest()
    assert stored["fitted_on"]["num_scans"] == 8
    assert stored["crossfit"]["folds"] == 5
    assert [(point["goal"], point["value"]) for point in points] == [
        ("sensitivity", 0.9),
        ("fps_per_scan", 1),
    ]


def test_after_is_better_than_before(run):
    """Fitted to other scans, Platt takes the ECE from 0.2 or so to less than a third."""
    crossfit = calibrate(run)["crossfit"]

    assert crossfit["before"]["ece"] > 0.15
    assert crossfit["after"]["platt"]["ece"] < crossfit["before"]["ece"] / 3


def test_thresholds_are_probabilities_of_the_calibrated_model(run):
    """Applied to the calibrated logits by hand, they do what operating_points.json says."""
    calibrate(run, goals=[Goal("sensitivity", 0.8)])
    table = _validation()
    (point,) = operating_points.read(run / "operating_points.json")["points"]

    calibrated = calibrated_run.read(run / "calibration.json", run / "model.keras")(table["logit"].to_numpy())
    is_called = expit(calibrated) >= point["threshold_probability"]

    assert is_called[table["class"] == 1].mean() == point["sensitivity"] >= 0.8
    assert (is_called & (table["class"] == 0)).sum() / 8 == point["fps_per_scan"]


def test_what_is_stored_is_what_was_fitted(run):
    """An isotonic curve of many numbers reads back the same, to the last bit."""
    calibrate(run, "isotonic")
    table = _validation()

    read = calibrated_run.read(run / "calibration.json", run / "model.keras")

    assert read.method == Isotonic.fit(table["class"], table["logit"])
    assert str(read) == "isotonic"


def test_a_prevalence_shifts_to_where_the_model_is_used(run):
    """From that of validation to 1 in 490: log odds are added after the fit, and PPV is told for there."""
    calibrate(run, prevalence=1 / 490)
    table = _validation()
    found = table["class"].mean()

    read = calibrated_run.read(run / "calibration.json", run / "model.keras")
    plain = Platt.fit(table["class"], table["logit"])(table["logit"])

    shift = np.log(1 / 489) - np.log(found / (1 - found))
    np.testing.assert_allclose(read(table["logit"].to_numpy()), plain + shift)
    assert str(read) == f"platt, then log odds {shift:.3g}"
    assert _read(run, "operating_points.json")["points"][0]["natural_prevalence"] == 1 / 490


def test_thresholds_may_be_asked_for_repeatedly(run, run_cli):
    """Two sensitivities and a rate give three thresholds, in that order."""
    done = run_cli("calibrate", run, "--fps", 2, "--sensitivity", 0.8, "--sensitivity", 0.95)

    points = _read(run, "operating_points.json")["points"]
    assert done.returncode == 0, done.stderr
    assert [point["value"] for point in points] == [0.8, 0.95, 2.0]


def test_nothing_is_replaced_unasked(run, run_cli):
    """The second time it is refused in a line; with --force another method takes the place of the first."""
    calibrate(run)
    before = (run / "calibration.json").read_bytes()

    with pytest.raises(InputError) as refused:
        calibrate(run, "beta")
    after = (run / "calibration.json").read_bytes()
    forced = run_cli("calibrate", run, "--method", "beta", "--force")

    assert str(refused.value) == f"{run / 'calibration.json'} exists already. Pass --force to calibrate anew."
    assert before == after
    assert forced.returncode == 0
    assert _read(run, "calibration.json")["method"] == "beta"


def test_one_scan_with_nodules_is_calibrated_but_not_judged(run, run_cli):
    """Nothing is left to judge it on: the command says so, and crossfit is null."""
    table = _validation()
    table.loc[table["seriesuid"] != "1.2.0", "class"] = 0
    table.to_csv(run / "validation_predictions.csv", index=False)

    done = run_cli("calibrate", run)

    assert done.returncode == 0
    assert "cannot be said" in done.stderr
    assert _read(run, "calibration.json")["crossfit"] is None


def _one_class(run):
    _validation().assign(**{"class": 0}).to_csv(run / "validation_predictions.csv", index=False)


def _no_number(run):
    table = _validation()
    table.loc[4, "logit"] = np.nan
    table.to_csv(run / "validation_predictions.csv", index=False)


def _reversed(run):
    table = _validation()
    table.assign(logit=-table["logit"]).to_csv(run / "validation_predictions.csv", index=False)


@pytest.mark.parametrize(
    ("spoil", "given", "words"),
    [
        (shutil.rmtree, {}, "No run at "),
        (lambda run: (run / "model.keras").unlink(), {}, "has no model.keras: it is no finished run"),
        (
            lambda run: (run / "validation_predictions.csv").unlink(),
            {},
            "No validation predictions file at",
        ),
        (_one_class, {}, "0 nodules among 800 candidates. Validate on other folds."),
        (_no_number, {}, "line 6: logit must be a finite number. Received: nan."),
        (_reversed, {}, "no better than chance (AUC 0."),
        (None, {"method": "magic"}, "Known: temperature, platt, beta, isotonic, prior_shift."),
        (None, {"prevalence": 2.0}, "between 0 and 1. Received: 2.0."),
    ],
    ids=["no run", "no model", "no predictions", "one class", "nan", "reversed", "method", "prevalence"],
)
def test_wrong_input_leaves_nothing(run, spoil, given, words):
    """What is wrong is said before anything is written."""
    if spoil:
        spoil(run)

    with pytest.raises(InputError) as caught:
        calibrate(run, **given)

    assert words in str(caught.value)
    assert not list(run.glob("*.json"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--sensitivity", "1.5", "sensitivity must be above 0 and at most 1. Received: 1.5."),
        ("--fps", "-1", "fps_per_scan must be 0 or more. Received: -1.0."),
    ],
)
def test_a_goal_that_is_none_is_one_line(run, run_cli, option, value, words):
    """Status 1, no traceback, no file."""
    done = run_cli("calibrate", run, option, value)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"luna-cls: The goal {words}"]
    assert not list(run.glob("*.json"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "holds no calibration (it is no JSON: Expecting property name"),
        ("[]", "holds no calibration (it holds no JSON object. Received: a list"),
        ("[" * 200_000, "holds no calibration (it is refused: it is nested more than 64 deep"),
        (
            '{"fitted_on": {"model_sha256": "0"}, "method": "platt", "parameters": '
            '{"intercept": 0, "slope": 1' + "0" * 400 + "}}",
            "holds no calibration (OverflowError",
        ),
        ("{}", "holds no calibration (KeyError: 'fitted_on')"),
        (
            '{"fitted_on": {"model_sha256": "0"}, "method": "magic", "parameters": {}}',
            "Unknown calibration 'magic'",
        ),
    ],
    ids=["broken", "list", "deep", "huge", "empty", "unknown"],
)
def test_a_damaged_calibration_is_refused(run, text, words):
    """The line names the file, what is wrong and two ways out."""
    (run / "calibration.json").write_text(text)

    with pytest.raises(InputError) as caught:
        calibrated_run.read(run / "calibration.json", run / "model.keras")

    assert words in str(caught.value)
    assert f"luna-cls calibrate {run} --force; or leave it off: --calibration none." in str(caught.value)


def test_a_calibration_that_is_not_there_is_not_read(run):
    """The line says where it was looked for, and how one is made."""
    with pytest.raises(InputError) as caught:
        calibrated_run.read(run / "calibration.json", run / "model.keras")

    assert str(caught.value) == (
        f"No calibration at {run / 'calibration.json'}. Make one: luna-cls calibrate RUN."
    )


def test_a_calibration_is_looked_for_beside_the_model(run):
    """There is none before the run is calibrated, and its `calibration.json` after."""
    before = calibrated_run.beside(run / "model.keras")
    calibrate(run)

    assert before is None
    assert calibrated_run.beside(run / "model.keras") == run / "calibration.json"


def test_a_calibration_whose_shift_is_something_else_is_refused(run):
    """`then` is a prior_shift and nothing else."""
    calibrate(run)
    stored = _read(run, "calibration.json")
    stored["then"] = {"method": "platt", "parameters": stored["parameters"]}
    (run / "calibration.json").write_text(json.dumps(stored))

    with pytest.raises(InputError, match="'then' is no prior_shift"):
        calibrated_run.read(run / "calibration.json", run / "model.keras")


def test_a_calibration_of_another_model_is_refused(run):
    """The model was trained anew since: its checksum differs."""
    calibrate(run)
    (run / "model.keras").write_bytes(b"another model")

    with pytest.raises(InputError, match="was fitted to another model than"):
        calibrated_run.read(run / "calibration.json", run / "model.keras")


def test_temperature_keeps_what_is_above_one_half_there(run):
    """And Platt does not: it undoes what favoured nodules."""
    table = _validation()
    calibrate(run, "temperature")
    calibrated = calibrated_run.read(run / "calibration.json", run / "model.keras")(table["logit"].to_numpy())

    assert ((calibrated > 0) == (table["logit"] > 0)).all()
    before, after = (figures(table["class"], expit(logits)) for logits in (table["logit"], calibrated))
    assert after["log_loss"] < before["log_loss"]
