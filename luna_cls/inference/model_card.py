"""What the card of a bundle, `bundle.json`, tells of its model, and what it must tell."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luna_cls import __version__
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.store import WINDOW_HU
from luna_cls.errors import InputError
from luna_cls.files import MOST_JSON_BYTES, read_csv, read_json
from luna_cls.inference.findings import RESEARCH_ONLY
from luna_cls.judging import calibrated_run, operating_points
from luna_cls.judging.calibrated_run import MODEL, OPERATING_POINTS, VALIDATION, Calibration
from luna_cls.learning.model_file import (
    KERAS_VERSION,
    ModelFile,
    check_version,
    printable,
    read_bytes,
)
from luna_cls.settings import load_settings

FORMAT = 1
CARD = "bundle.json"
SETTINGS, ENVIRONMENT, METRICS = "settings.toml", "environment.json", "metrics.json"
NO_LICENCE = "Not stated: ask whoever made it."

_NAME = r"[A-Za-z0-9][A-Za-z0-9._ +-]{0,79}"
_METRICS = ("auc", "average_precision", "balanced_accuracy")
_OPERATING_POINT = (
    "goal",
    "value",
    "threshold_probability",
    "threshold_logit",
    "sensitivity",
    "fps_per_scan",
)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _Spec(_Part):
    size_vox: Annotated[int, Field(ge=1, le=1000)]
    spacing_mm: Annotated[float, Field(gt=0, le=1000)]


class _OperatingPoint(_Part):
    threshold_probability: Annotated[float, Field(ge=0, le=1)]


_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=1000)]


class Card(_Part):
    """What must be in a `bundle.json`; there may be more."""

    format: Literal[1]
    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    research_only: _Line
    licence: _Line
    cube_spec: _Spec
    calibration: dict[str, Any] | None
    operating_point: _OperatingPoint | None
    model_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    keras: Annotated[str, Field(pattern=f"^{KERAS_VERSION}$")]


def check(card: Mapping[str, Any], what: str) -> Card:
    """What must be in a `bundle.json`, once it is known to be right.

    Args:
        card: What it holds.
        what: Where it is from, for messages.

    Raises:
        InputError: If its format is another, an entry is missing or wrong, or a newer Keras is needed.
    """
    if card.get("format") != FORMAT:
        received = printable(str(card.get("format"))[:20])
        raise InputError(
            f"{what} has bundle format {received}; this version reads {FORMAT}. Use the luna_cls that made "
            "it, or a newer one."
        )
    try:
        checked = Card.model_validate(card)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        received = printable(str(first["input"])[:80])
        raise InputError(f"{what}: {where} of {CARD}: {first['msg']}. Received: {received}.") from error
    check_version(checked.keras, what)
    return checked


def calibration_of(card: Mapping[str, Any], what: str) -> Calibration | None:
    """The calibration that a `bundle.json` holds, as `check` takes it; None if it holds none.

    Raises:
        InputError: If it is something else.
    """
    if card["calibration"] is None:
        return None
    try:
        return Calibration.from_json(card["calibration"])
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what}: {CARD} holds no calibration ({printable(str(error))}).") from error


def of_run(run: Path, model: ModelFile, name: str, licence: str) -> dict[str, Any]:
    """What the files of a run tell of its model: no times, and no paths of this machine.

    Args:
        run: A finished run.
        model: Its model.
        name: What it is called.
        licence: Under which others may use it.

    Raises:
        InputError: If the name is none, a file is damaged, or the calibration is of another model.
    """
    if not re.fullmatch(_NAME, name):
        raise InputError(
            "A bundle's name has up to 80 letters, digits, blanks and . _ + -, and begins with a letter or "
            f"digit. Received: {name[:80]!r}."
        )
    settings = load_settings(str(run / SETTINGS))
    environment, metrics = read_own(run / ENVIRONMENT), read_own(run / METRICS)
    validation = read_csv(run / VALIDATION, ("seriesuid", "class"), "validation predictions")
    if model.input_shape is None or len(model.input_shape) != 5:
        raise InputError(f"{run / MODEL} is no model of cubes. Received: {model.input_shape} as its input.")
    data = environment.get("data", {})
    calibration_path = calibrated_run.beside(run / MODEL)
    calibration = calibrated_run.read(calibration_path, run / MODEL) if calibration_path else None
    point = operating_point(run / MODEL, model.sha256, calibration) if calibration else None
    fitted_on = read_own(calibration_path)["fitted_on"] if calibration_path else None
    return {
        "format": FORMAT,
        "name": name,
        "research_only": RESEARCH_ONLY,
        "licence": licence,
        "architecture": settings.model.name,
        "cube_spec": asdict(CubeSpec(model.input_shape[1] or 0, spacing_mm(environment, run / ENVIRONMENT))),
        "window_hu": list(WINDOW_HU),
        "calibration": {**calibration.to_json(), "fitted_on": fitted_on} if calibration else None,
        "operating_point": point and {key: point[key] for key in _OPERATING_POINT if key in point},
        "metrics": {
            "on": "validation",
            "scans": int(validation["seriesuid"].nunique()),
            "candidates": len(validation),
            "nodules": int((validation["class"] == 1).sum()),
            **{key: metrics.get("validation", {}).get(key) for key in _METRICS},
        },
        "training": {
            "data": {key: value for key, value in data.items() if key != "cube_spec"},
            "settings": tomllib.loads((run / SETTINGS).read_text(encoding="utf-8")),
            "environment": {
                "versions": environment.get("versions"),
                "backend": environment.get("backend"),
                "dtype_policy": environment.get("dtype_policy"),
            },
        },
        "model_sha256": model.sha256,
        "keras": model.keras,
        "luna_cls": __version__,
    }


def operating_point(beside: Path, model_sha256: str, calibration: Calibration) -> dict[str, Any] | None:
    """The first of the `operating_points.json` beside a file; None if there is none.

    Args:
        beside: A `calibration.json`, or a model.
        model_sha256: Of the model that they must be of.
        calibration: What they must have been chosen after.

    Raises:
        InputError: If they are of another model, or of other probabilities.
    """
    path = beside.with_name(OPERATING_POINTS)
    if not path.is_file():
        return None
    stored = operating_points.read(path)
    fitted_on = stored.get("fitted_on")
    is_own = isinstance(fitted_on, dict) and fitted_on.get("model_sha256") == model_sha256
    if not is_own or stored.get("calibration") != json.loads(json.dumps(calibration.to_json())):
        raise InputError(
            f"{path} was made for another model or calibration than the one beside it. Make both anew: "
            f"luna-cls calibrate {beside.parent} --force."
        )
    points: list[dict[str, Any]] = stored["points"]
    return points[0] if points else None


def spacing_mm(environment: Mapping[str, Any], path: Path) -> float:
    """Of the cubes of a run; the default where it was trained by a luna_cls that did not tell.

    Args:
        environment: What its `environment.json` holds.
        path: That file, for the message.

    Raises:
        InputError: If it is no length from above 0 to 1000 mm.
    """
    try:
        told = environment["data"]["cube_spec"]["spacing_mm"]
    except (KeyError, TypeError):
        return CubeSpec().spacing_mm
    if type(told) not in (int, float) or not 0 < told <= 1000:
        received = printable(str(told)[:80])
        raise InputError(f"{path}: spacing_mm lies above 0 and up to 1000. Received: {received}.")
    return float(told)


def read_own(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a run.

    Raises:
        InputError: If it is missing or something else.
    """
    return read_json(read_bytes(path, MOST_JSON_BYTES), str(path))
