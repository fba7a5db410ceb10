"""A model for other programs: converted, and compared with Keras before it is called done."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from luna_cls import __version__
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.store import WINDOW_HU
from luna_cls.errors import InputError
from luna_cls.files import require_new, sha256, whole_folder, write_json
from luna_cls.inference.bundle import Bundle
from luna_cls.inference.findings import RESEARCH_ONLY
from luna_cls.inference.model_card import CARD, FORMAT
from luna_cls.scans.volume import AIR_HU

if TYPE_CHECKING:
    import keras

Format = Literal["savedmodel", "onnx", "openvino"]
Cubes = NDArray[np.int16]  # (n, z, y, x), HU
Logits = NDArray[np.float64]  # (n,)

TOLERANCE = 1e-4  # of a logit; relative where it is larger than 1
NUM_CUBES = 64
_AT_A_TIME = 16


class _Kind(NamedTuple):
    """A format: what it needs, its file, how it is written, and how it is run by its own runtime."""

    packages: tuple[str, ...]
    file: str
    write: Callable[[keras.Model, Path], None]
    runner: Callable[[Path], Callable[[Cubes], Any]]
    runtime: str
    notes: str


def export(
    bundle: Bundle,
    out: str | Path,
    format: Format,  # noqa: A002
    *,
    cubes: Cubes | None = None,
    force: bool = False,
) -> float:
    """Converts a model, and compares what it then says with Keras before it takes its place.

    What is made takes int16 HU `(batch, z, y, x, 1)`, any number at a time, and gives float32 logits
    `(batch, 1)`, not calibrated; the window is in it. It computes in float32, whatever the model was trained
    in. Beside it, `bundle.json` says what it is: the card of the model, and `export`. ONNX is the same bytes
    every time, OpenVINO is from process to process; TensorFlow writes random marks into a SavedModel.

    Args:
        bundle: The model.
        out: The folder to make.
        format: "savedmodel" (TensorFlow), "onnx" or "openvino".
        cubes: What both are compared on, of the size that the model reads; None for 64 that are drawn.
        force: Replace an earlier export.

    Returns:
        The largest difference from Keras, in logits; relative where a logit is larger than 1.

    Raises:
        InputError: If the format is unknown or its packages are not there, the model cannot be loaded, the
            cubes do not fit it, `out` exists, or the difference is more than `TOLERANCE`.
    """
    out = Path(out)
    if format not in get_args(Format):
        raise InputError(f"Unknown format '{format}'. Known: {', '.join(get_args(Format))}.")
    kind = _KINDS[format]
    missing = next((name for name in kind.packages if importlib.util.find_spec(name) is None), None)
    if missing:
        raise InputError(f"An export to {format} needs {missing}: pip install 'luna_cls[{format}]'.")
    require_new(out, force=force, sign=CARD, inputs=[bundle.model_path])
    if cubes is None:
        cubes = drawn_cubes(bundle.spec)
    if cubes.shape[1:] != bundle.spec.shape_zyx or cubes.dtype != np.int16 or not len(cubes):
        raise InputError(
            f"The model reads int16 cubes (n, {', '.join(map(str, bundle.spec.shape_zyx))}). "
            f"Received: {cubes.dtype} {cubes.shape}."
        )
    model = bundle.load()
    from luna_cls.learning import models

    # Fused, as `predict` runs it, for the truth; as other tools know its layers, for the conversion.
    expected = _logits(models.fused(model, in_float32=True).predict_on_batch, cubes)
    with whole_folder(out) as folder:
        plain = models.plain(model, in_float32=True)
        plain(cubes[:1, ..., None])  # Keras exports to ONNX only what was called once
        try:
            kind.write(plain, folder)
            received = _logits(kind.runner(folder / kind.file), cubes)
        except Exception as error:  # whatever a layer that the format does not know makes a converter raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{bundle.name} cannot be exported to {format}: {reason}") from error
        largest = _largest_difference(received, expected)
        if not largest <= TOLERANCE:
            raise InputError(
                f"The {format} of {bundle.name} differs from Keras by {largest:.2g} on {len(cubes)} cubes; "
                f"{TOLERANCE:g} is allowed. Nothing was written."
            )
        write_json(folder / CARD, _card(bundle, format, kind, folder, len(cubes)))
    return largest


def drawn_cubes(spec: CubeSpec, count: int = NUM_CUBES) -> Cubes:
    """Cubes that look like those of a CT, the same every time: lung, nodules, vessels, chest wall and air.

    Args:
        spec: Their size.
        count: How many.

    Returns:
        int16 array `(count, z, y, x)`, HU.
    """
    rng = np.random.default_rng(0)
    axis = spec.offsets_mm
    z, y, x = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    half_mm = -axis[0]
    cubes = np.empty((count, *spec.shape_zyx), np.int16)
    for number in range(count):
        hu = rng.uniform(-950, -750) + 60 * gaussian_filter(rng.normal(size=spec.shape_zyx), 1.5)
        center = rng.uniform(-0.3, 0.3, 3) * half_mm
        distance_mm = np.sqrt((z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2)
        hu = np.where(distance_mm < rng.uniform(0.1, 0.8) * half_mm, rng.uniform(-600, 200), hu)  # a nodule
        along = rng.normal(size=3)
        along /= np.linalg.norm(along)
        along_mm = along[0] * z + along[1] * y + along[2] * x
        from_axis_mm = np.sqrt(np.maximum(z**2 + y**2 + x**2 - along_mm**2, 0))
        hu = np.where(from_axis_mm < rng.uniform(0.02, 0.2) * half_mm, 40, hu)  # a vessel
        if number % 3 == 0:
            hu = np.where(
                along_mm > rng.uniform(0, 0.8) * half_mm, rng.uniform(-100, 300), hu
            )  # the chest wall
        if number % 5 == 0:
            hu = np.where(z > rng.uniform(0, 0.9) * half_mm, AIR_HU, hu)  # outside the scan
        cubes[number] = np.rint(hu + rng.uniform(0, 60) * rng.normal(size=hu.shape))
    return cubes


def _logits(run: Callable[[Cubes], Any], cubes: Cubes) -> Logits:
    batches = [
        np.asarray(run(cubes[start : start + _AT_A_TIME, ..., None]))
        for start in range(0, len(cubes), _AT_A_TIME)
    ]
    return np.concatenate(batches).reshape(-1).astype(np.float64)


def _largest_difference(received: Logits, expected: Logits) -> float:
    return float((np.abs(received - expected) / np.maximum(np.abs(expected), 1)).max())


def _card(bundle: Bundle, name: Format, kind: _Kind, folder: Path, num_cubes: int) -> dict[str, Any]:
    """The card of the model, or what is known of one that has none; and what was made of it."""
    known = {
        "format": FORMAT,
        "name": bundle.name,
        "research_only": RESEARCH_ONLY,
        "cube_spec": asdict(bundle.spec),
        "window_hu": list(WINDOW_HU),
        "calibration": bundle.calibration.to_json() if bundle.calibration else None,
        "operating_point": (
            None if bundle.threshold is None else {"threshold_probability": bundle.threshold}
        ),
        "model_sha256": bundle.model_sha256,
    }
    size = bundle.spec.size_vox
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        **(bundle.card or known),
        "export": {
            "format": name,
            "file": kind.file,
            "input": f"int16 HU (batch, {size}, {size}, {size}, 1), axes z, y, x",
            "output": "float32 logits (batch, 1), before the calibration",
            "runtime": f"{kind.runtime} {importlib.import_module(kind.runtime).__version__}",
            "compared_with_keras": {"cubes": num_cubes, "tolerance_logit": TOLERANCE},
            "notes": kind.notes,
            "sha256": {str(path.relative_to(folder)): sha256(path) for path in files},
            "luna_cls": __version__,
        },
    }


def _write_savedmodel(model: keras.Model, folder: Path) -> None:
    _export(model, folder, "tf_saved_model")


def _run_savedmodel(path: Path) -> Callable[[Cubes], Any]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path.parent))
    return lambda cubes: loaded.signatures["serving_default"](hu=tf.constant(cubes))["output_0"]


def _write_onnx(model: keras.Model, folder: Path) -> None:
    _export(model, folder / "model.onnx", "onnx")
    _rename(folder / "model.onnx")


def _rename(path: Path) -> None:
    """Calls the input hu, the output logit, and the rest by number: tf2onnx's names are others each time."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    graph.doc_string = RESEARCH_ONLY
    (hu,), (logit,) = graph.input, graph.output
    names = {"": "", hu.name: "hu", logit.name: "logit"}
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        for values in (node.input, node.output):
            values[:] = [names.setdefault(name, f"value_{len(names)}") for name in values]
    weights = {names[tensor.name]: tensor for tensor in graph.initializer if tensor.name in names}
    for name, tensor in weights.items():
        tensor.name = name
    order = sorted(weights, key=list(names.values()).index)
    kept = [weights[name] for name in order]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    for value, name in ((hu, "hu"), (logit, "logit")):
        value.name = name
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run_onnx(path: Path) -> Callable[[Cubes], Any]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it tells its maker of every use
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda cubes: session.run(["logit"], {"hu": cubes})[0]


def _write_openvino(model: keras.Model, folder: Path) -> None:
    _openvino()
    _export(model, folder / "model.xml", "openvino")


def _run_openvino(path: Path) -> Callable[[Cubes], Any]:
    core = _openvino().Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda cubes: compiled(cubes)[0]


def _openvino() -> Any:
    # It tells its maker of every import, unless this package cannot be had.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _export(model: keras.Model, path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*`np\.object`", category=FutureWarning)  # Keras' patch
        model.export(str(path), format=name, verbose=False)


_KINDS: dict[Format, _Kind] = {
    "savedmodel": _Kind(
        ("tensorflow",),
        "saved_model.pb",
        _write_savedmodel,
        _run_savedmodel,
        "tensorflow",
        "model = tf.saved_model.load(FOLDER); logits = model.serve(cubes)",
    ),
    "onnx": _Kind(
        ("tf2onnx", "onnx", "onnxruntime"),
        "model.onnx",
        _write_onnx,
        _run_onnx,
        "onnxruntime",
        "onnxruntime sends usage data to its maker unless ORT_DISABLE_TELEMETRY=1 is set before its import",
    ),
    "openvino": _Kind(
        ("openvino",),
        "model.xml",
        _write_openvino,
        _run_openvino,
        "openvino",
        "compared with INFERENCE_PRECISION_HINT f32; without it OpenVINO computes in bfloat16 where the "
        "processor can. Its Python package sends usage data to its maker until told: opt_in_out --opt_out",
    ),
}
