"""The calibration of a run, stored beside its model: fitted on its validation set, read by `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import expit

from luna_cls.errors import InputError
from luna_cls.files import POINT_COLUMNS, PREDICTION, read_csv, read_json, sha256, write_json, written_whole
from luna_cls.judging import calibration, operating_points
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.calibration import Method, PriorShift
from luna_cls.judging.logistic import Floats
from luna_cls.judging.operating_points import Goal
from luna_cls.judging.resampling import RESAMPLES, SEED

MODEL, VALIDATION = "model.keras", "validation_predictions.csv"
CALIBRATION, OPERATING_POINTS = "calibration.json", "operating_points.json"
DEFAULT = "platt"
GOALS = (Goal("sensitivity", 0.9), Goal("fps_per_scan", 1.0))


@dataclass(frozen=True)
class Calibration:
    """What is done to a model's logits.

    Args:
        method: The curve, fitted on validation.
        then: A shift to the share of nodules where the model is used, 0 if it is that of validation.
    """

    method: Method
    then: PriorShift

    def __call__(self, logits: Floats) -> Floats:
        """Calibrated logits, float64, of the shape of `logits`."""
        return self.then(self.method(logits))

    def to_json(self) -> dict[str, Any]:
        """What files hold of it: `method`, `parameters`, `then`."""
        return {**calibration.to_json(self.method), "then": calibration.to_json(self.then)}

    @classmethod
    def from_json(cls, entry: Any) -> Calibration:
        """What `to_json` gave.

        Raises:
            InputError: If it is something else; says what.
        """
        method = calibration.from_json(entry)
        then = calibration.from_json(entry.get("then"))
        if not isinstance(then, PriorShift):
            raise InputError("'then' is no prior_shift.")
        return cls(method, then)

    def __str__(self) -> str:
        """The method by name, and the shift."""
        name = calibration.to_json(self.method)["method"]
        return f"{name}, then log odds {self.then.shift:+.3g}" if self.then.shift else str(name)


def calibrate(
    run: Path,
    method: str = DEFAULT,
    goals: Sequence[Goal] = GOALS,
    prevalence: float | None = None,
    *,
    force: bool = False,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Fits a calibration to the validation set of a run, and thresholds to what it makes of it.

    Writes `calibration.json` and `operating_points.json` beside the model.

    `platt` is the default because its two numbers mend the two things that training bends: how sure the
    model is (focal loss: too little), and how often it expects a nodule (batches with more of them than
    nature has). `temperature` cannot undo the second; it is for who wants what is above 1/2 to stay there.
    On test scans of the demo ECE fell from 0.134 to 0.0095 by `platt` and to 0.032 by `temperature` after
    focal loss, from 0.034 to 0.0091 and to 0.029 after cross-entropy; `beta` and `isotonic` did no better.

    Args:
        run: A finished run: `model.keras` and `validation_predictions.csv`.
        method: A name in `calibration.METHODS`.
        goals: For thresholds.
        prevalence: The share of nodules among candidates where the model is to be used; None for that of the
            validation set.
        force: Replace an earlier calibration.
        seed: Of the cross-fitting and the bootstrap.
        resamples: Of the bootstrap.

    Returns:
        What `calibration.json` holds (`method`, `parameters`, `then`, `fitted_on`, `crossfit`), and `points`
        as in `operating_points.json`.

    Raises:
        InputError: If the run lacks something, the method is unknown, a goal is none, the validation set
            has one class, or the model ranks no better than chance there; or if the run is calibrated
            already and is not to be calibrated anew.
    """
    kind = calibration.get(method)
    for goal in goals:
        goal.check()
    model, validation = run / MODEL, run / VALIDATION
    if not run.is_dir():
        raise InputError(f"No run at {run}. Give the folder that luna-cls train has made.")
    if not model.is_file():
        raise InputError(
            f"{run} has no {MODEL}: it is no finished run. Train one: luna-cls train STORE {run}."
        )
    for name in (CALIBRATION, OPERATING_POINTS):
        if (run / name).exists() and not force:
            raise InputError(f"{run / name} exists already. Pass --force to calibrate anew.")
    table = read_csv(validation, (*POINT_COLUMNS, "logit", "class"), "validation predictions")
    labels, logits, series = (table[name].to_numpy() for name in ("class", "logit", "seriesuid"))
    try:
        fitted = kind.fit(labels, logits)
    except InputError as error:
        raise InputError(f"{validation}: {error} Validate on other folds.") from error
    auc = binary_metrics(labels, logits)["auc"]
    if auc <= 0.5:
        raise InputError(
            f"{validation}: the model ranks nodules no better than chance (AUC {auc:.3f}): there is nothing "
            "to calibrate. Train it longer, or otherwise."
        )
    found = float(labels.mean())
    then = PriorShift(0.0 if prevalence is None else calibration.shift_of(found, prevalence))
    mended = Calibration(fitted, then)
    fitted_on = {
        "model_sha256": sha256(model),
        "validation_sha256": sha256(validation),
        "num_scans": len(set(series)),
        "num_candidates": len(labels),
        "num_nodules": int(labels.sum()),
        "prevalence": found,
        "auc": auc,
    }
    stored = {
        **mended.to_json(),
        "fitted_on": fitted_on,
        "crossfit": calibration.crossfit(labels, logits, series, seed=seed),
    }
    calibrated = mended(logits)
    meant = operating_points.NATURAL_PREVALENCE if prevalence is None else prevalence
    chosen = operating_points.choose(labels, calibrated, series, goals, seed, resamples)
    points = {
        "calibration": mended.to_json(),
        "fitted_on": fitted_on,
        "points": operating_points.apply(
            chosen, labels, calibrated, series, prevalence=meant, seed=seed, resamples=resamples
        ),
        # At the prevalence of these candidates: without the shift to another.
        "decision_curve": operating_points.decision_curve(labels, expit(fitted(logits))),
    }
    with ExitStack() as stack:  # both are written before the first takes its place
        files = {
            name: stack.enter_context(written_whole(run / name)) for name in (OPERATING_POINTS, CALIBRATION)
        }
        write_json(files[OPERATING_POINTS], points)
        write_json(files[CALIBRATION], stored)
    return {**stored, "points": points["points"]}


def check_thresholds(path: Path, points: Mapping[str, Any], submission: Path) -> list[str]:
    """Refuses thresholds of other probabilities than a submission's, where that can be told.

    Args:
        path: The `operating_points.json`.
        points: What it holds.
        submission: The predictions they are to be tried on.

    Returns:
        A warning, if it cannot be told whether the submission was calibrated alike; or none.

    Raises:
        InputError: If the thresholds were chosen on this very file, or it was calibrated otherwise.
    """
    if points.get("fitted_on", {}).get("validation_sha256") == sha256(submission):
        raise InputError(
            f"The thresholds of {path} were chosen on {submission}: luna-cls calibrate has told what they do "
            "there. Try them on scans that were kept aside."
        )
    about = submission.with_name(PREDICTION)
    if not about.is_file():
        cannot_tell = f"whether {submission.name} was calibrated in the same way cannot be told"
        return [f"Thresholds are of calibrated probabilities; {cannot_tell}."]
    try:
        made_by = read_json(about.read_bytes(), "it")
        own, model = made_by["calibration"], made_by["model_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{about} cannot be read ({_reason(error)}). Predict again.") from error
    if model != points.get("fitted_on", {}).get("model_sha256"):
        raise InputError(
            f"{submission} was predicted by another model than the thresholds of {path} are for."
        )
    if own != points.get("calibration"):
        done = "without a calibration" if own is None else "with another calibration"
        raise InputError(
            f"{submission} was predicted {done}; the thresholds of {path} are for theirs. Predict again with "
            f"--calibration {path.with_name(CALIBRATION)}."
        )
    return []


def beside(model: Path) -> Path | None:
    """The `calibration.json` in the folder of a model, if there is one."""
    path = model.with_name(CALIBRATION)
    return path if path.is_file() else None


def read(path: Path, model: Path, model_sha256: str = "") -> Calibration:
    """Reads a `calibration.json` for the model it was fitted to.

    Args:
        path: The file.
        model: The model's.
        model_sha256: Of the model; empty if it is that of the file.

    Raises:
        InputError: If it is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise InputError(f"No calibration at {path}. Make one: luna-cls calibrate RUN.")
    way_out = f"Make it anew: luna-cls calibrate {path.parent} --force; or leave it off: --calibration none."
    try:
        stored = read_json(path.read_bytes(), "it")
        own = stored["fitted_on"]["model_sha256"]
        read = Calibration.from_json(stored)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} holds no calibration ({_reason(error)}). {way_out}") from error
    if own != (model_sha256 or sha256(model)):
        raise InputError(f"{path} was fitted to another model than {model}. {way_out}")
    return read


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
