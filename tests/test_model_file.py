"""Model files from anywhere are looked through before Keras opens them."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import archives
import h5py
import keras
import numpy as np
import pytest

from luna_cls.errors import InputError
from luna_cls.inference.bundle import open_bundles
from luna_cls.learning import models
from luna_cls.learning.model_file import ModelFile, read_archive


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A `.keras` file of cubes of 8 voxels."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    models.save(models.get("seed_cnn", size_vox=8, filters=(3, 5), dense_units=7), path)
    return path


# Model files that were made to do harm

MARKER = "executed"


class _Touching:
    """Touches the marker when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path(MARKER),)


def _npz(entries):
    del entries["model.weights.h5"]
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([_Touching()], object))
    entries["model.weights.npz"] = buffer.getvalue()


def _first_layer(entry):
    """The first convolution becomes something else."""

    def tamper(entries):
        config = json.loads(entries["config.json"])
        layers = config["config"]["layers"]
        number = next(n for n, layer in enumerate(layers) if layer["class_name"] == "Conv3D")
        layers[number] = {**layers[number], **entry}
        entries["config.json"] = json.dumps(config).encode()

    return tamper


def _activation(entry):
    def tamper(entries):
        config = json.loads(entries["config.json"])
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv3D")
        layer["config"]["activation"] = entry
        entries["config.json"] = json.dumps(config).encode()

    return tamper


def _function(module, name):
    return {"class_name": "function", "config": name, "module": module, "registered_name": name}


def _lambda(entries):
    inputs = keras.Input((8, 8, 8, 1))
    touching = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("executed").touch(), x)[1])
    buffer = Path("lambda.keras")
    keras.Model(inputs, touching(inputs)).save(buffer)
    entries.update(archives.entries(buffer))
    buffer.unlink()
    Path(MARKER).unlink()  # saving a model builds it, which calls the lambda


def _set(name, content):
    return lambda entries: entries.update({name: content})


def _weights(change):
    """The weights after a change to their HDF5 file."""

    def tamper(entries):
        path = Path("weights.h5")
        path.write_bytes(entries["model.weights.h5"])
        with h5py.File(path, "r+") as file:
            change(file)
        entries["model.weights.h5"] = path.read_bytes()
        path.unlink()

    return tamper


FIRST = "layers/conv3d/vars/0"


def _replaced(**options):
    def change(file):
        del file[FIRST]
        file.create_dataset(FIRST, **options)

    return change


def _linked(link):
    def change(file):
        del file[FIRST]
        file[FIRST] = link

    return change


def _virtual(file):
    del file[FIRST]
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (4,))
    file.create_virtual_dataset(FIRST, layout)


def _many(file):
    group, array = file.create_group("many"), file[FIRST]
    for number in range(10_001):
        group[str(number)] = array


def _not_a_number(file):
    file[FIRST][0] = np.nan


HOSTILE = {
    "Lambda": (_lambda, "it holds a layer Lambda, which can run code or read files"),
    "layer of TensorFlow": (_first_layer({"class_name": "TFSMLayer"}), "holds a layer TFSMLayer"),
    "layer that reads a file": (_first_layer({"class_name": "StringLookup"}), "holds a layer StringLookup"),
    "lambda as activation": (
        _activation({"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}),
        "it asks for None.__lambda__",
    ),
    "os.system": (
        _first_layer({"module": "os", "class_name": "system", "config": {"command": f"touch {MARKER}"}}),
        "it asks for os.system",
    ),
    "exec": (
        _first_layer({"module": "builtins", "class_name": "exec", "config": {"source": "1"}}),
        "it asks for builtins.exec",
    ),
    "function of os": (_activation(_function("os", "system")), "it asks for os.system"),
    "function of Keras that is no layer": (
        _activation(_function("keras.utils", "get_file")),
        "it asks for keras.utils.get_file",
    ),
    "layer by a dotted name": (
        _first_layer({"module": "keras", "class_name": "layers.TFSMLayer"}),
        "it asks for keras.layers.TFSMLayer, and only parts of Keras itself are taken",
    ),
    "layer by a name dotted within": (
        _first_layer({"module": "keras.layers", "class_name": "experimental.TFSMLayer"}),
        "it asks for keras.layers.experimental.TFSMLayer",
    ),
    "setting of Keras": (
        _activation({**_function("keras", ""), "class_name": "config.set_floatx", "config": {}}),
        "it asks for keras.config.set_floatx",
    ),
    "optimizer of Keras": (
        _first_layer({"module": "keras", "class_name": "Optimizer"}),
        "it asks for keras.Optimizer",
    ),
    "function beside the layers": (
        _activation({**_function("keras.layers", ""), "class_name": "deserialize", "config": {}}),
        "it asks for keras.layers.deserialize",
    ),
    "function by a dotted name": (
        _activation(_function("builtins", "nn.relu")),
        "it asks for builtins.nn.relu",
    ),
    "name for a terminal": (
        _first_layer({"module": "os\n\x1b[2J", "class_name": "system"}),
        r"it asks for os \?\[2J\.system",
    ),
    "registered class": (
        _first_layer({"registered_name": "evil>Layer"}),
        "it asks for evil>Layer, and only parts of Keras itself are taken",
    ),
    "pickle for config": (_set("config.json", pickle.dumps(_Touching())), r"\(config.json\) is no JSON"),
    "pickle beside": (_set("model.pkl", pickle.dumps(_Touching())), "holds 'model.pkl', which has no place"),
    "pickled weights": (_npz, "holds 'model.weights.npz', which has no place"),
    "assets": (_set("assets/a.txt", b"a"), "holds 'assets/a.txt', which has no place"),
    "newer Keras": (_set("metadata.json", b'{"keras_version": "99.0.0"}'), "written by Keras 99.0.0, and"),
    "words for a shell": (
        _set("metadata.json", b'{"keras_version": "99.0\'; curl evil.example; \'"}'),
        "does not say which Keras wrote it",
    ),
    "version and a line": (
        _set("metadata.json", b'{"keras_version": "99.0\\n"}'),
        "does not say which Keras wrote it",
    ),
    "no Keras": (_set("metadata.json", b"{}"), "does not say which Keras wrote it"),
    "deep config": (_set("config.json", b'{"a":' * 200_000), "nested more than 64 deep"),
    "large config": (
        _set("config.json", b" " * ((1 << 23) + 1)),
        "claims 8,388,609 bytes for config.json; at",
    ),
    "no HDF5": (_set("model.weights.h5", b"weights"), "its weights are damaged"),
    "shape bomb": (
        _weights(_replaced(shape=(1 << 29,), dtype="f4", chunks=(1 << 20,))),
        "its weights claim 2,147,483,648 bytes for layers/conv3d/vars/0 that are not there",
    ),
    "shape beyond 64 bits": (
        _weights(_replaced(shape=(1 << 40, 1 << 40), dtype="f4", chunks=(1024, 1024))),
        "bytes for layers/conv3d/vars/0 that are not there",
    ),
    "compression bomb": (
        _weights(_replaced(data=np.zeros(1 << 20, "f4"), compression="gzip")),
        "its weights claim 4,194,304 bytes",
    ),
    "external link": (
        _weights(_linked(h5py.ExternalLink("/etc/passwd", "/"))),
        "hold a link out of the file",
    ),
    "soft link": (_weights(_linked(h5py.SoftLink("/layers"))), "hold a link out of the file"),
    "external storage": (
        _weights(_replaced(shape=(4,), dtype="u1", external=[("/etc/passwd", 0, 4)])),
        "which lies in another file",
    ),
    "many links": (_weights(_many), "its weights have more than 10,000 parts"),
    "virtual dataset": (_weights(_virtual), "which lies in another file"),
    "objects": (_weights(_replaced(data=["a"])), "which is no array of numbers"),
    "not a number": (_weights(_not_a_number), "layers/conv3d/vars/0 are not all finite"),
}


@pytest.mark.parametrize(("tamper", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_model_is_refused_and_nothing_of_it_runs(model, tmp_path, monkeypatch, tamper, message):
    """By open_bundles and by models.load, in one line; no file appears, none is changed."""
    monkeypatch.chdir(tmp_path)
    entries = archives.entries(model)
    tamper(entries)
    hostile = tmp_path / "hostile.keras"
    archives.write(hostile, entries)
    before = archives.files(tmp_path)

    for opened in (open_bundles, models.load):
        with pytest.raises(InputError, match=message) as refusal:
            opened(hostile)
        assert str(refusal.value).isprintable()

    assert archives.files(tmp_path) == before == [str(hostile)]


@pytest.mark.parametrize("name", ["Lambda", "os.system", "exec", "function of os"])
def test_keras_would_refuse_them_too(model, tmp_path, monkeypatch, name):
    """Were the file not looked through, Keras' safe mode would stand between it and the machine."""
    monkeypatch.chdir(tmp_path)
    entries = archives.entries(model)
    HOSTILE[name][0](entries)
    archives.write(tmp_path / "hostile.keras", entries)
    config = json.loads(entries["config.json"])
    unchecked = ModelFile((tmp_path / "hostile.keras").read_bytes(), "hostile", config, "3")

    with pytest.raises(InputError, match="hostile cannot be loaded as a Keras model"):
        models.opened(unchecked)

    assert not Path(MARKER).exists()


def _layer(kind, **config):
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}


def _layers(*layers):
    """A model of the input and these layers."""

    def tamper(entries):
        config = json.loads(entries["config.json"])
        config["config"]["layers"][1:] = layers
        entries["config.json"] = json.dumps(config).encode()

    return tamper


NO_MODEL = {
    "large dense layer": (
        _layers(_layer("Flatten"), _layer("Dense", units=4_000_000), _layer("Dense", units=1)),
        "ask for 2,056,000,001 weights, and there are",
    ),
    "large padding": (
        _layers(_layer("ZeroPadding3D", padding=800), _layer("Flatten"), _layer("Dense", units=1)),
        "ask for 4,[0-9,]+ weights, and there are",
    ),
    "large repetition in a model": (
        _layers(_layer("UpSampling3D", size=200), _layer("GlobalMaxPooling3D"), _layer("Dense", units=1)),
        "makes 4,096,000,000 numbers of one cube",
    ),
    "beyond 64 bits": (_layers(_layer("Flatten"), _layer("Dense", units=10**30)), "cannot be loaded as"),
    "a layer": (
        _set("config.json", json.dumps(_layer("Dense", units=1)).encode()),
        "is not a Keras model of layers. Received: a Dense",
    ),
}


@pytest.mark.parametrize(("tamper", "message"), NO_MODEL.values(), ids=NO_MODEL)
def test_a_model_too_large_for_its_file_is_refused_before_it_takes_memory(model, tmp_path, tamper, message):
    """2 billion weights, or 4 billion voxels, of a file of some 10,000 bytes, in one line."""
    entries = archives.entries(model)
    tamper(entries)
    archives.write(tmp_path / "large.keras", entries)

    with pytest.raises(InputError, match=message) as refusal:
        models.load(tmp_path / "large.keras")

    assert str(refusal.value).isprintable()


def test_what_goes_wrong_after_loading_is_one_line_too(model, monkeypatch):
    """A model that Keras opens, and that cannot be fused."""

    def fail(*_, **__):
        raise TypeError("first\nsecond")

    monkeypatch.setattr(models, "fused", fail)

    with pytest.raises(InputError, match=r"cannot be loaded as a Keras model: first$"):
        models.load(model)


# Archives that were made to do harm


def _archive(*added):
    """An archive of a and b, and what else is given: a name or an entry, and its content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("a", b"first"), ("b", b"second"), *added):
            archive.writestr(name, content)
    return buffer.getvalue()


def _link():
    entry = zipfile.ZipInfo("c")
    entry.external_attr = 0o120777 << 16
    return entry, "/etc/passwd"


def _encrypted():
    content = bytearray(_archive())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + at] |= 1
    return bytes(content)


def _understated():
    """Two files in one place: the directory gives b the data of a."""
    content = bytearray(_archive())
    directory = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[directory + 42 : directory + 46] = bytes(4)
    return bytes(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _archive(("../evil", b"")), r"holds '\.\./evil', which has no place in it"),
        (lambda: _archive(("/evil", b"")), "holds '/evil', which has no place in it"),
        (lambda: _archive(("d", b"")), "holds 'd', which has no place in it"),
        (
            lambda: _archive(("c_.txt", b"")).replace(b"c_.txt", b"c\0.txt"),
            r"holds 'c\\x00.txt', which has no place in it",
        ),
        (lambda: _archive(("a", b"again")), "holds a twice"),
        (lambda: _archive(_link()), "holds c as a link"),
        (
            lambda: _archive(("c", bytes(10_000_001))),
            "claims 10,000,001 bytes for c; at most 1,000",
        ),
        (lambda: _archive(("large", bytes(9_000_000))), "claims 9,000,000 bytes for large, packed into 8,"),
        (lambda: _archive()[:-30], "is damaged"),
        (lambda: _archive().replace(b"\x4b\xcb,*.\x01\0", b"\x4b\xcb,*.\x02\0"), "is damaged"),
        (_encrypted, "is damaged: .*encrypted"),
        (_understated, "is damaged"),
        (lambda: _archive()[20:], "is not whole, or not all of the file"),
        (lambda: b"#!/bin/sh" + _archive(), "is not whole, or not all of the file"),
        (lambda: b"", "is damaged"),
    ],
    ids=[
        "up",
        "absolute",
        "unknown",
        "NUL",
        "twice",
        "link",
        "bomb",
        "packed bomb",
        "truncated",
        "flipped bits",
        "encrypted",
        "overlapping",
        "beheaded",
        "script before",
        "empty",
    ],
)
def test_a_hostile_archive_is_refused(make, message):
    """Only files that are expected, once each, are read, and no more of them than allowed."""
    limits = {"a": 1000, "b": 1000, "c": 1000, "large": 1 << 30}

    assert read_archive(_archive(), "it", limits, ["c", "large"]) == {"a": b"first", "b": b"second"}
    with pytest.raises(InputError, match=message) as refusal:
        read_archive(make(), "it", limits, ["c", "large"])

    assert "\n" not in str(refusal.value)
