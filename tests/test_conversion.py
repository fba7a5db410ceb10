"""Models for other programs say what Keras says."""

import json
import os
import sys

import keras
import numpy as np
import pytest

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES, sha256
from luna_cls.inference import conversion
from luna_cls.inference.bundle import open_bundles
from luna_cls.inference.conversion import drawn_cubes, export
from luna_cls.learning import models
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import read_volume

FORMATS = {"savedmodel": "saved_model.pb", "onnx": "model.onnx", "openvino": "model.xml"}
NETS = {
    "seed_cnn": {"size_vox": 8, "filters": (3, 5), "dense_units": 7},
    "resnet": {"size_vox": 8, "filters": (3, 4), "blocks": 2},
    "contextual": {"size_vox": 8, "contexts_vox": (4, 8), "filters": (3, 5), "dense_units": 7},
}


def _bundle(folder, name="seed_cnn", policy="float32"):
    """A net whose weights, moving statistics included, are drawn at random; built under a policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    model = models.get(name, **NETS[name])
    keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(4)
    model.set_weights([rng.uniform(0.05, 0.4, weight.shape) for weight in model.get_weights()])
    models.save(model, folder / f"{name}.keras")
    return open_bundles(folder / f"{name}.keras")[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small seed CNN trained in bfloat16."""
    return _bundle(tmp_path_factory.mktemp("model"), policy="mixed_bfloat16")


@pytest.fixture(scope="module")
def phantom():
    """The model that comes with the package."""
    return open_bundles("phantom")[0]


def test_drawn_cubes_look_like_those_of_a_ct():
    """64 of 31 voxels, the same every time: lung, soft tissue and air, none like another."""
    cubes = drawn_cubes(CubeSpec())

    assert cubes.shape == (64, 31, 31, 31)
    assert cubes.dtype == np.int16
    assert -1300 < cubes.min() < -1000
    assert 100 < cubes.max() < 700
    assert -900 < np.median(cubes) < -500
    assert len(np.unique(cubes.reshape(64, -1), axis=0)) == 64
    np.testing.assert_array_equal(cubes, drawn_cubes(CubeSpec()))


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_says_what_keras_says(bundle, tmp_path, kind):
    """On 64 cubes within 1e-4 of a logit, and its card tells what it is and what its files are."""
    difference = export(bundle, tmp_path / "out", kind)

    card = json.loads((tmp_path / "out" / "bundle.json").read_text())
    about = card["export"]
    assert 0 <= difference <= 1e-4
    assert (card["name"], card["model_sha256"]) == ("seed_cnn", bundle.model_sha256)
    assert card["research_only"] == "For research, not for diagnosis."
    assert (about["format"], about["file"]) == (kind, FORMATS[kind])
    assert about["input"] == "int16 HU (batch, 8, 8, 8, 1), axes z, y, x"
    assert about["compared_with_keras"] == {"cubes": 64, "tolerance_logit": 1e-4}
    assert about["sha256"][FORMATS[kind]] == sha256(tmp_path / "out" / FORMATS[kind])
    assert str(tmp_path) not in json.dumps(card)
    with pytest.raises(InputError, match="out is an export for other programs"):
        open_bundles(tmp_path / "out")


@pytest.mark.parametrize("name", ["resnet", "contextual"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_net_can_be_exported(tmp_path, name, kind):
    """Sums, crops and joins are converted too."""
    assert export(_bundle(tmp_path, name), tmp_path / "out", kind) <= 1e-4


def test_any_number_of_cubes_goes_in(bundle, tmp_path):
    """One cube or five, by the runtimes alone; as int16."""
    export(bundle, tmp_path / "onnx", "onnx")
    export(bundle, tmp_path / "savedmodel", "savedmodel")
    import onnxruntime  # after the export has switched its reports off
    import tensorflow as tf

    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    saved = tf.saved_model.load(str(tmp_path / "savedmodel"))
    cubes = drawn_cubes(bundle.spec, 5)[..., None]

    (five,), (one,) = (session.run(["logit"], {"hu": some}) for some in (cubes, cubes[:1]))

    assert session.get_inputs()[0].type == "tensor(int16)"
    assert session.get_inputs()[0].shape == ["batch", 8, 8, 8, 1]
    assert (five.shape, one.shape) == ((5, 1), (1, 1))
    np.testing.assert_allclose(five[:1], one, rtol=1e-5)
    np.testing.assert_allclose(saved.serve(cubes), five, rtol=1e-4)


def test_onnx_is_the_same_every_time(bundle, tmp_path):
    """Exported twice, in a process that has converted others before, the folders are equal byte for byte."""
    for name in ("first", "second"):
        export(bundle, tmp_path / name, "onnx")

    for file in ("model.onnx", "bundle.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("kind", FORMATS)
def test_exports_say_what_keras_says_of_real_cubes(phantom, real_data, tmp_path, kind):
    """The model that comes with the package, on 64 real candidates: within 1e-4 of a logit."""
    tree = LunaTree.open(real_data / "lidc")
    candidates = tree.candidates()
    cubes = np.concatenate(
        [
            cut_cubes(read_volume(tree.scan_paths[uid]), points[COORDINATES].to_numpy()[:32], phantom.spec)
            for uid, points in candidates.groupby("seriesuid")
        ]
    )

    assert len(cubes) == 64
    assert export(phantom, tmp_path / "out", kind, cubes=cubes) <= 1e-4


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_that_differs_is_refused(bundle, tmp_path, monkeypatch, kind):
    """Were 0.01 added to every logit on the way, the largest difference is told, and nothing is left."""
    genuine = conversion._KINDS[kind]

    def off(path):
        run = genuine.runner(path)
        return lambda cubes: np.asarray(run(cubes)) * 1.01

    monkeypatch.setitem(conversion._KINDS, kind, genuine._replace(runner=off))

    with pytest.raises(InputError, match=r"differs from Keras by 0\.01 on 64 cubes; 0\.0001 is allowed"):
        export(bundle, tmp_path / "out", kind)

    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_is_told_in_one_line(bundle, tmp_path, monkeypatch):
    """Without a traceback, and nothing is left."""

    def fail(model, folder):
        raise RuntimeError("no such\noperation")

    monkeypatch.setitem(conversion._KINDS, "onnx", conversion._KINDS["onnx"]._replace(write=fail))

    with pytest.raises(InputError, match="seed_cnn cannot be exported to onnx: no such operation"):
        export(bundle, tmp_path / "out", "onnx")

    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_refused(bundle, tmp_path, monkeypatch):
    """NaN is no small difference."""

    def lost(path):
        return lambda cubes: np.full((len(cubes), 1), np.nan)

    monkeypatch.setitem(conversion._KINDS, "onnx", conversion._KINDS["onnx"]._replace(runner=lost))

    with pytest.raises(InputError, match="differs from Keras by nan"):
        export(bundle, tmp_path / "out", "onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coreml"}, "Unknown format 'coreml'. Known: savedmodel, onnx, openvino"),
        (
            {"cubes": np.zeros((2, 9, 9, 9), np.int16)},
            r"int16 cubes \(n, 8, 8, 8\). Received: int16 \(2, 9, 9",
        ),
        ({"cubes": np.zeros((2, 8, 8, 8))}, "Received: float64"),
    ],
    ids=["format", "size", "type"],
)
def test_what_does_not_fit_is_refused(bundle, tmp_path, options, message):
    """In one line, before anything is converted."""
    with pytest.raises(InputError, match=message):
        export(bundle, tmp_path / "out", **{"format": "onnx", **options})


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_missing_package_is_named_with_its_cure(bundle, tmp_path, monkeypatch, kind):
    """Before anything is loaded: pip install 'luna_cls[...]'."""
    monkeypatch.setattr("importlib.util.find_spec", {}.get)

    with pytest.raises(InputError, match=rf"needs .*: pip install 'luna_cls\[{kind}\]'\."):
        export(bundle, tmp_path / "out", kind)


def test_an_earlier_export_is_kept_unless_forced(bundle, tmp_path):
    """Refused at first, replaced as a whole with force."""
    export(bundle, tmp_path / "out", "onnx")
    with pytest.raises(InputError, match="out exists already"):
        export(bundle, tmp_path / "out", "savedmodel")

    export(bundle, tmp_path / "out", "savedmodel", force=True)

    assert not (tmp_path / "out" / "model.onnx").exists()
    assert (tmp_path / "out" / "saved_model.pb").exists()


def test_nobody_is_told_of_an_export(bundle, tmp_path):
    """The runtimes' own reports to their makers are switched off before they load."""
    export(bundle, tmp_path / "onnx", "onnx")
    export(bundle, tmp_path / "openvino", "openvino")

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert sys.modules["openvino_telemetry"] is None
