import io
import json
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from luna_cls.errors import InputError
from luna_cls.learning import models
from luna_cls.learning.layers import FusedBatchNormalization

pytestmark = pytest.mark.usefixtures("float32_policy")

TINY = {"size_vox": 8, "filters": (3, 5), "dense_units": 7}
ALL_TINY = {
    "seed_cnn": TINY,
    "resnet": {"size_vox": 8, "filters": (3, 4, 5), "blocks": 2},
    "contextual": {"size_vox": 8, "contexts_vox": (4, 8), "filters": (3, 5), "dense_units": 7},
}


def _cubes(count, size_vox=8):
    cubes = np.random.default_rng(3).integers(-1100, 600, (count, *(size_vox,) * 3, 1))
    return cubes.astype(np.int16)


def _shaken(model):
    """The model with all weights, moving statistics included, drawn at random from 0.05 to 0.15."""
    rng = np.random.default_rng(4)
    model.set_weights([rng.uniform(0.05, 0.15, weight.shape) for weight in model.get_weights()])
    return model


def _contents(path):
    """The lines of a .keras file's config, without memory addresses, and every dataset of its weights."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"), object_hook=_without_address)
        weights = archive.read("model.weights.h5")
    names = []
    with h5py.File(io.BytesIO(weights)) as file:
        file.visit(names.append)
        datasets = {name: file[name][()] for name in names if isinstance(file[name], h5py.Dataset)}
    return json.dumps(config, indent=1).splitlines(), datasets


def _without_address(entry):
    return {key: value for key, value in entry.items() if key != "shared_object_id"}


def test_seed_cnn_is_the_forum_network():
    """A window, four blocks of conv-norm-conv-norm-pool-norm, and the dense head that ends in a logit."""
    block = ["Conv3D", "FusedBatchNormalization"] * 2 + ["MaxPooling3D", "FusedBatchNormalization"]
    head = ["GlobalAveragePooling3D", "Dense", "FusedBatchNormalization", "Dropout", "Dense"]

    model = models.get("seed_cnn")

    assert [type(layer).__name__ for layer in model.layers] == ["Rescaling", "ReLU", *block * 4, *head]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv3D)]
    assert [layer.filters for layer in convolutions] == [16, 16, 32, 32, 64, 64, 128, 128]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3, 3)}
    assert {layer.padding for layer in convolutions} == {"same"}
    assert {layer.activation.__name__ for layer in convolutions} == {"relu"}
    assert [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)] == [512, 1]
    assert model.layers[-2].rate == 0.4
    assert model.layers[-1].activation.__name__ == "linear"
    assert model.input_shape == (None, 31, 31, 31, 1)
    assert model.output_shape == (None, 1)


def test_parameter_count():
    """Filters 16, 32, 64, 128 and 512 dense units make 950,225 parameters."""
    convolutions = sum(
        27 * before * count + count + 27 * count * count + count
        for before, count in [(1, 16), (16, 32), (32, 64), (64, 128)]
    )
    normalizations = 4 * 3 * (16 + 32 + 64 + 128) + 4 * 512
    dense = 128 * 512 + 512 + 512 + 1

    assert convolutions + normalizations + dense == 950_225
    assert models.get("seed_cnn").count_params() == 950_225


def test_parameter_counts_of_the_other_networks():
    """A resnet of filters 16, 32, 64 and 128 has 884,081, the contextual net of three contexts 223,777."""
    stages = [(16, 32), (32, 64), (64, 128)]
    resnet = 27 * 16 + sum(
        4 * before + before * count + 27 * before * count + 4 * count + 27 * count * count
        for before, count in stages
    )
    context = sum(27 * before * count + count + 4 * count for before, count in [(1, 16), (16, 32), (32, 64)])
    context += 64 * 64 + 64 + 4 * 64

    assert resnet + 4 * 128 + 128 + 1 == 884_081
    assert models.get("resnet").count_params() == 884_081
    assert 3 * context + 3 * 64 + 1 == 223_777
    assert models.get("contextual").count_params() == 223_777


def test_a_block_of_a_resnet_adds_to_its_input():
    """With the last convolutions of all blocks at 0, nothing but projections is left of two stages."""
    model = _shaken(models.get("resnet", size_vox=8, filters=(2, 3, 4), blocks=3))
    for layer in model.layers:
        if layer.name.endswith("_b_conv"):
            layer.set_weights([np.zeros(weight.shape) for weight in layer.get_weights()])
    through = keras.Model(model.inputs, [model.get_layer(f"stage1_block{n}_add").output for n in (1, 2, 3)])

    first, second, third = through.predict(_cubes(2), verbose=0)

    assert first.shape == (2, 4, 4, 4, 3)
    assert np.ptp(first) > 0
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_a_contextual_net_looks_at_the_middle_in_contexts():
    """Of a cube of 41 voxels the contexts are its middle 21 and 31, and itself."""
    model = models.get("contextual", filters=(2, 2))
    crops = [model.get_layer(f"context{edge}_crop").output for edge in (21, 31, 41)]
    cubes = np.clip(_cubes(2, 41), -1000, 400)

    for seen, margin in zip(
        keras.Model(model.inputs, crops).predict(cubes, verbose=0), (10, 5, 0), strict=True
    ):
        inner = slice(margin, 41 - margin)
        np.testing.assert_allclose(seen, (cubes[:, inner, inner, inner] + 1000) / 1400, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ALL_TINY)
def test_the_logit_is_float32(policy, name):
    """int16 cubes go in and float32 logits `(batch, 1)` come out, under either policy."""
    keras.config.set_dtype_policy(policy)
    model = models.get(name, **ALL_TINY[name])

    logits = model(_cubes(2))

    assert model.inputs[0].dtype == "int16"
    assert logits.shape == (2, 1)
    assert logits.dtype == "float32"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_window_is_float32_from_minus_1000_to_400(policy):
    """-1000 HU and below give 0, 400 and above 1, -300 gives 0.5; neighbouring HU stay apart."""
    keras.config.set_dtype_policy(policy)
    model = models.get("seed_cnn", **TINY)
    hu = np.array([-3024, -1000, -999, -300, -299, 399, 400, 5892], np.int16).reshape(1, 2, 2, 2, 1)

    window, clip = model.get_layer("hu_window"), model.get_layer("hu_window_clip")
    actual = clip(window(hu))

    assert actual.dtype == "float32"
    expected = [0, 0, 1 / 1400, 0.5, 701 / 1400, 1399 / 1400, 1, 1]
    np.testing.assert_allclose(np.ravel(actual), expected, rtol=0, atol=1e-6)
    assert window.compute_dtype == clip.compute_dtype == "float32"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_saved_file_is_that_of_keras_own_layers(policy, tmp_path, monkeypatch):
    """The file is the one that the same net with Keras' own BatchNormalization would give."""
    keras.config.set_dtype_policy(policy)
    keras.utils.clear_session()  # layer names count from the beginning
    fused = _shaken(models.seed_cnn(**TINY))
    models.save(fused, tmp_path / "saved.keras")
    monkeypatch.setattr(models, "FusedBatchNormalization", keras.layers.BatchNormalization)
    keras.utils.clear_session()
    _shaken(models.seed_cnn(**TINY)).save(tmp_path / "keras.keras")

    config, datasets = _contents(tmp_path / "saved.keras")

    expected_config, expected_datasets = _contents(tmp_path / "keras.keras")
    assert "luna_cls" not in "".join(config)
    assert datasets.keys() == expected_datasets.keys()
    for name, expected in expected_datasets.items():
        np.testing.assert_array_equal(datasets[name], expected, err_msg=name)
    assert config == expected_config


@pytest.mark.slow
def test_keras_alone_opens_a_saved_file(tmp_path):
    """A process without luna_cls loads the file and predicts the same logits."""
    model, cubes = _shaken(models.get("seed_cnn", **TINY)), _cubes(5)
    models.save(model, tmp_path / "model.keras")
    np.save(tmp_path / "cubes.npy", cubes)
    script = (
        "import sys, numpy, keras\n"
        "model = keras.saving.load_model('model.keras')\n"
        "numpy.save('logits.npy', model.predict(numpy.load('cubes.npy'), verbose=0))\n"
        "assert 'luna_cls' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)

    expected = model.predict(cubes, verbose=0)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "normalizations"), [("seed_cnn", 7), ("resnet", 9), ("contextual", 6)])
def test_load_gives_back_fused_layers_and_equal_logits(tmp_path, name, normalizations):
    """Saved and loaded, a model has its fused layers again and gives bit-identical logits, shifted by 2."""
    model, cubes = _shaken(models.get(name, **ALL_TINY[name])), _cubes(5)
    models.save(model, tmp_path / "model.keras", logit_shift=2.0)

    loaded = models.load(tmp_path / "model.keras")
    plain = keras.saving.load_model(tmp_path / "model.keras")

    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert sum(isinstance(layer, FusedBatchNormalization) for layer in loaded.layers) == normalizations
    assert not any(isinstance(layer, FusedBatchNormalization) for layer in plain.layers)
    expected = model.predict(cubes, verbose=0)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(loaded.predict(cubes, verbose=0), expected + 2, rtol=1e-6)
    np.testing.assert_allclose(plain.predict(cubes, verbose=0), expected + 2, rtol=1e-5)


def test_load_keeps_the_precision_of_the_file(tmp_path):
    """A model trained in bfloat16 computes in bfloat16 in a process set to float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, cubes = models.get("seed_cnn", **TINY), _cubes(5)
    models.save(model, tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")

    loaded = models.load(tmp_path / "model.keras")

    assert [layer.compute_dtype for layer in loaded.layers] == [layer.compute_dtype for layer in model.layers]
    assert loaded.layers[2].compute_dtype == "bfloat16"
    np.testing.assert_array_equal(loaded.predict(cubes, verbose=0), model.predict(cubes, verbose=0))


def test_saving_leaves_the_model_in_training(tmp_path):
    """After a save the model still has its fused layers, its optimizer and its weights."""
    model = models.get("seed_cnn", **TINY)
    model.compile("sgd", "mse")
    before = model.get_weights()

    models.save(model, tmp_path / "model.keras")

    assert model.compiled
    assert isinstance(model.layers[3], FusedBatchNormalization)
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def _write_lambda(path):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(path)


def _write_lone_layer(path):
    """A .keras file whose config is a layer, not a model."""
    models.save(models.get("seed_cnn", **TINY), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    layer = keras.saving.serialize_keras_object(keras.layers.Dense(3))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, json.dumps(layer) if name == "config.json" else content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.with_name("other").touch(), "No model at .*model.keras"),
        (lambda path: path.write_text("no zip"), "model.keras is not a .keras file"),
        (_write_lambda, "model.keras cannot be loaded as a Keras model"),
        (_write_lone_layer, "model.keras is not a Keras model of layers. Received: a Dense"),
    ],
    ids=["missing", "no zip", "Lambda", "layer"],
)
def test_what_is_no_safe_model_is_refused(tmp_path, write, message):
    """A missing, foreign or code-bearing file is refused in one line that names it."""
    path = tmp_path / "model.keras"
    write(path)

    with pytest.raises(InputError, match=message) as refusal:
        models.load(path)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("vgg", {}, "Unknown model 'vgg'. Known: seed_cnn, resnet, contextual"),
        ("seed_cnn", {"width": 3}, "no parameter 'width'. Known: size_vox, filters, dense_units, dropout"),
        ("seed_cnn", {"dropout": 1.0}, "dropout of model seed_cnn: .* Received: 1.0"),
        ("seed_cnn", {"filters": [8, 0]}, "filters.1 of model seed_cnn: .* Received: 0"),
        ("seed_cnn", {"size_vox": 7, "filters": [1, 1, 1]}, "3 blocks halve a cube of 7 voxels to nothing"),
        ("resnet", {"filters": [8]}, r"each stage: name two or more. Received: \[8\]"),
        ("resnet", {"size_vox": 3, "filters": [1, 2, 3]}, "2 stages halve a cube of 3 voxels to nothing"),
        ("contextual", {"contexts_vox": [43]}, "43 voxels cannot be cut from the middle of 41"),
        ("contextual", {"contexts_vox": [20]}, "20 voxels cannot be cut from the middle of 41"),
        ("contextual", {"contexts_vox": []}, "contexts_vox of model contextual: .*at least 1 item"),
        ("contextual", {"contexts_vox": [31, 31]}, r"names a context twice. Received: \[31, 31\]"),
        ("contextual", {"contexts_vox": [7]}, "3 blocks halve a cube of 7 voxels to nothing"),
    ],
    ids=[
        "name",
        "parameter",
        "all dropped",
        "no filters",
        "too deep",
        "no stage",
        "too many stages",
        "too wide a context",
        "not in the middle",
        "no context",
        "a context twice",
        "too small a context",
    ],
)
def test_wrong_names_and_values_are_refused(name, parameters, message):
    """The refusal says what was received and what is known, in one line."""
    with pytest.raises(InputError, match=message) as refusal:
        models.get(name, **parameters)

    assert "\n" not in str(refusal.value)
