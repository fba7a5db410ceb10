"""A model bundle: a trained model that says what it is, and is safe to open.

A bundle is a folder, or a `.zip` file, of `model.keras`, its card `bundle.json`, and `operating_points.json`
where the run was calibrated. Opening one loads neither Keras nor TensorFlow; `Bundle.load` does.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_cls.cubes.cutting import CubeSpec
from luna_cls.errors import InputError
from luna_cls.files import MOST_JSON_BYTES, json_text, read_json, require_new, whole_folder, written_whole
from luna_cls.inference import model_card
from luna_cls.inference.model_card import CARD, ENVIRONMENT, METRICS, NO_LICENCE, SETTINGS
from luna_cls.judging import calibrated_run
from luna_cls.judging.calibrated_run import MODEL, OPERATING_POINTS, VALIDATION, Calibration
from luna_cls.learning.model_file import (
    MOST_MODEL_BYTES,
    PRETRAINED,
    ModelFile,
    read_archive,
    read_bytes,
)

if TYPE_CHECKING:
    import keras

_MEMBERS = {CARD: MOST_JSON_BYTES, MODEL: MOST_MODEL_BYTES, OPERATING_POINTS: MOST_JSON_BYTES}
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in an archive: the earliest that zip knows


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model, looked through and not loaded yet.

    Args:
        name: What it is called.
        model_path: The file that the model lies in: a `.keras` file, or the `.zip` of the bundle.
        model_sha256: The SHA-256 of the model's bytes, in hexadecimal.
        spec: The cubes that it reads.
        calibration: What is to be done to its logits; None for nothing.
        threshold: The probability from which on a candidate is called a nodule, after the calibration: the
            first of its operating points; None if it has none.
        card: What `bundle.json` says; empty for a model without one.
    """

    name: str
    model_path: Path
    model_sha256: str
    spec: CubeSpec
    calibration: Calibration | None = None
    threshold: float | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def calibrated_by(self, path: Path) -> Bundle:
        """The same with the calibration of a file, and the threshold that was chosen after it, beside that.

        Raises:
            InputError: If it is no calibration, or of another model.
        """
        calibration = calibrated_run.read(path, self.model_path, self.model_sha256)
        point = model_card.operating_point(path, self.model_sha256, calibration)
        return replace(
            self, calibration=calibration, threshold=point["threshold_probability"] if point else None
        )

    def load(self) -> keras.Model:
        """The model, from int16 HU `(batch, z, y, x, 1)` to logits `(batch, 1)`; loads Keras and TensorFlow.

        Raises:
            InputError: If its bytes are not those of `model_sha256`, or it cannot be loaded, or it reads
                other cubes or gives something else.
        """
        file = _model_in(self.model_path, self.model_sha256)
        from luna_cls.learning import models

        model = models.opened(file)
        expected = (None, *self.spec.shape_zyx, 1), (None, 1)
        received = model.input_shape, model.output_shape
        if received != expected:
            raise InputError(
                f"{file.what} is not a model from cubes to logits. Received: {received[0]} to {received[1]}; "
                f"expected {expected[0]} to {expected[1]}."
            )
        return model


def open_bundles(model: str | Path, *, calibrated: bool = True) -> list[Bundle]:
    """What a user may name as a model, without loading it.

    Args:
        model: A bundle, a folder or a `.zip` file; a run; its `model.keras`, or any other `.keras` file (with
            `calibration.json` and `operating_points.json` beside it, if they are there); a folder of
            `luna-cls crossval`; or the name of a model that comes with the package.
        calibrated: Whether calibrations are read. Without, none is there, and thresholds chosen after one
            are left out too.

    Returns:
        One bundle; of a cross-validation one of each fold, by number.

    Raises:
        InputError: If it is none of these, or one that is refused.
    """
    path = PRETRAINED[str(model)].parent if str(model) in PRETRAINED else Path(model)
    if path.is_file():
        bundles = [_open_file(path, calibrated)]
    elif (path / CARD).is_file():
        bundles = [_open_folder(path)]
    elif (path / MODEL).is_file():
        bundles = [_open_model(path / MODEL, calibrated)]
    elif folds := _folds(path):
        bundles = [_open_model(fold / MODEL, calibrated) for fold in folds]
    elif path.is_dir():
        raise InputError(
            f"{path} holds no model: no {CARD}, no {MODEL} and no fold0. Give a run or a bundle."
        )
    else:
        raise InputError(
            f"No model at {path}. Give a run, its {MODEL}, a bundle, a crossval, or one that comes with "
            f"luna_cls: {', '.join(PRETRAINED)}."
        )
    return bundles if calibrated else [_uncalibrated(bundle) for bundle in bundles]


def write_bundle(
    run: Path,
    out: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    force: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Makes a bundle of a finished run. The same run gives the same bytes.

    Args:
        run: The folder that `luna-cls train` has made, perhaps calibrated.
        out: The folder to make; or, if it ends in `.zip`, the file.
        name: What the model is called; None for the name of the run's folder.
        licence: Under which others may use it; None if that is not stated.
        force: Replace an earlier bundle.
        facts: More for the card, or what takes the place of its entries.

    Returns:
        `out`.

    Raises:
        InputError: If the run is not finished, damaged, or its model is refused; if its calibration is of
            another model; if the name is none; or if `out` exists and is not to be replaced.
    """
    run, out = Path(run), Path(out)
    is_zip = out.suffix == ".zip"
    _require_run(run)
    if is_zip:
        _require_new_zip(out, force=force)
    else:
        require_new(out, force=force, sign=CARD, inputs=[run])
    model = ModelFile.read(run / MODEL)
    card = model_card.of_run(run, model, name or run.resolve().name, licence or NO_LICENCE)
    card |= facts or {}
    model_card.check(card, str(out))
    points = run / OPERATING_POINTS
    files = {CARD: json_text(card).encode(), MODEL: model.content}
    if card["calibration"] and points.is_file():  # else nothing was looked at there
        files[OPERATING_POINTS] = points.read_bytes()
    if is_zip:
        with written_whole(out) as partial:
            _write_zip(partial, files)
    else:
        with whole_folder(out) as folder:
            for file, content in files.items():
                (folder / file).write_bytes(content)
    return out


def _open_file(path: Path, calibrated: bool) -> Bundle:
    if path.suffix == ".zip":
        members = _zip_members(path)
        return _of_card(members[CARD], members[MODEL], path)
    if path.name == MODEL and path.with_name(CARD).is_file():
        return _open_folder(path.parent)
    return _open_model(path, calibrated)


def _open_folder(folder: Path) -> Bundle:
    card = read_bytes(folder / CARD, MOST_JSON_BYTES)
    about = read_json(card, str(folder / CARD))
    if "export" in about:
        raise InputError(
            f"{folder} is an export for other programs. Give the bundle or run it was made from."
        )
    return _of_card(card, read_bytes(folder / MODEL), folder / MODEL)


def _of_card(content: bytes, model: bytes, path: Path) -> Bundle:
    what = str(path)
    card = read_json(content, f"{CARD} of {what}")
    checked = model_card.check(card, what)
    if hashlib.sha256(model).hexdigest() != checked.model_sha256:
        raise InputError(
            f"{what} is refused: its model is not the one its {CARD} tells of (the checksums differ). Get "
            "the bundle anew."
        )
    spec = CubeSpec(**checked.cube_spec.model_dump())
    file = ModelFile.of(model, what)
    if file.input_shape != (None, *spec.shape_zyx, 1):
        raise InputError(
            f"{what} is refused: its {CARD} tells of cubes of {spec.size_vox} voxels, its model reads "
            f"{file.input_shape}."
        )
    return Bundle(
        checked.name,
        path,
        checked.model_sha256,
        spec,
        model_card.calibration_of(card, what),
        checked.operating_point.threshold_probability if checked.operating_point else None,
        card,
    )


def _open_model(path: Path, calibrated: bool) -> Bundle:
    """A `.keras` file and what lies beside it."""
    file = ModelFile.read(path)
    shape = file.input_shape
    if shape is None or len(shape) != 5 or shape[1] is None or shape != (None, *(shape[1],) * 3, 1):
        raise InputError(
            f"{path} is not a model from cubes to logits. Received: {shape} as its input; "
            "expected (None, n, n, n, 1)."
        )
    spec = CubeSpec(shape[1])
    environment = path.with_name(ENVIRONMENT)
    if path.name == MODEL and environment.is_file():
        spec = CubeSpec(shape[1], model_card.spacing_mm(model_card.read_own(environment), environment))
    calibration_path = calibrated_run.beside(path) if calibrated else None
    own_name = path.resolve().parent.name if path.name == MODEL else path.stem
    bundle = Bundle(own_name, path, file.sha256, spec)
    return bundle.calibrated_by(calibration_path) if calibration_path else bundle


def _uncalibrated(bundle: Bundle) -> Bundle:
    if bundle.calibration is None:
        return bundle
    return replace(bundle, calibration=None, threshold=None)


def _folds(path: Path) -> list[Path]:
    """The runs of a cross-validation, by number; none if it is something else."""
    numbered = {
        int(match[1]): folder
        for folder in (path.iterdir() if path.is_dir() else ())
        if (match := re.fullmatch(r"fold(\d{1,4})", folder.name))
    }
    folds = [numbered[number] for number in sorted(numbered)]
    for fold in folds:
        if not (fold / MODEL).is_file():
            raise InputError(
                f"{fold} has no {MODEL}: its training is not finished. Go on with it (luna-cls crossval "
                "--resume), or give the other folds one by one."
            )
    return folds


def _model_in(path: Path, expected_sha256: str) -> ModelFile:
    content = _zip_members(path)[MODEL] if path.suffix == ".zip" else read_bytes(path)
    if hashlib.sha256(content).hexdigest() != expected_sha256:
        raise InputError(f"{path} has changed since it was looked at (the checksums differ). Begin again.")
    return ModelFile.of(content, str(path))


def _zip_members(path: Path) -> dict[str, bytes]:
    content = read_bytes(path, sum(_MEMBERS.values()))
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no zip file, or not all of it. Get the bundle anew.")
    return read_archive(content, str(path), _MEMBERS, optional=[OPERATING_POINTS])


def _require_run(run: Path) -> None:
    if (run / CARD).is_file() or (str(run) in PRETRAINED and not run.exists()):
        raise InputError(f"{run} is a bundle already. Give the folder that luna-cls train has made.")
    if not run.is_dir():
        raise InputError(f"No run at {run}. Give the folder that luna-cls train has made.")
    needed = (MODEL, SETTINGS, METRICS, ENVIRONMENT, VALIDATION)
    missing = next((name for name in needed if not (run / name).is_file()), None)
    if missing:
        raise InputError(
            f"{run} has no {missing}: it is no finished run. Train one: luna-cls train STORE {run}."
        )


def _require_new_zip(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out} exists already. Choose another path, or pass --force to replace it.")
    try:
        with zipfile.ZipFile(out) as archive:
            is_bundle = CARD in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        is_bundle = False
    if not is_bundle:
        raise InputError(f"{out} is not replaced, even by --force: it is no bundle. Choose another path.")


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _FIRST_DATE)
            entry.create_system = 3  # Unix: on every system the same bytes
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
