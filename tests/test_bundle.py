"""Bundles: what they tell, what they are opened from, and what is refused before anything of it runs."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import archives
import keras
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from luna_cls.cubes.cutting import CubeSpec
from luna_cls.errors import InputError
from luna_cls.files import sha256
from luna_cls.inference.bundle import open_bundles, write_bundle
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.calibrated_run import calibrate
from luna_cls.learning import models

TINY = {"size_vox": 8, "filters": (3, 5), "dense_units": 7}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A `.keras` file of cubes of 8 voxels."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    keras.utils.set_random_seed(0)
    models.save(models.get("seed_cnn", **TINY), path)
    return path


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A calibrated run called tiny, as its files stand: 8 scans of 50 candidates to validate on."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    run.mkdir()
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, 400)
    table = pd.DataFrame(rng.uniform(-100, 100, (400, 3)), columns=["coordX", "coordY", "coordZ"]).assign(
        seriesuid=[f"1.2.{i // 50}" for i in range(400)],
        probability=expit(logits),
        logit=logits,
        **{"class": (rng.random(400) < expit(3 * logits - 2)).astype(int)},
    )
    table.to_csv(run / "validation_predictions.csv", index=False)
    environment = {
        "versions": {"keras": keras.__version__},
        "backend": "tensorflow",
        "data": {"cube_spec": {"size_vox": 8, "spacing_mm": 0.5}, "scans": 80, "nodules": 90},
        "threads": {"onednn": str(run)},
    }
    metrics = {"validation": binary_metrics(table["class"], table["logit"])}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "settings.toml").write_text('[model]\nname = "seed_cnn"\nsize_vox = 8\n[loss]\nname = "focal"\n')
    shutil.copy(model, run)
    calibrate(run, resamples=20)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "tiny")


# What a bundle tells


def test_a_bundle_tells_what_its_run_was(finished, tmp_path):
    """Architecture, cubes, calibration, threshold, metrics, data, settings and checksums, from the run."""
    bundle = write_bundle(finished, tmp_path / "bundle", licence="CC BY 4.0")

    card = json.loads((bundle / "bundle.json").read_text())
    points = json.loads((finished / "operating_points.json").read_text())["points"]
    metrics = json.loads((finished / "metrics.json").read_text())["validation"]
    assert sorted(path.name for path in bundle.iterdir()) == [
        "bundle.json",
        "model.keras",
        "operating_points.json",
    ]
    assert (card["format"], card["name"], card["architecture"]) == (1, "tiny", "seed_cnn")
    assert card["research_only"] == "For research, not for diagnosis."
    assert card["licence"] == "CC BY 4.0"
    assert card["cube_spec"] == {"size_vox": 8, "spacing_mm": 0.5}
    assert card["window_hu"] == [-1000, 400]
    assert card["calibration"]["method"] == "platt"
    assert card["operating_point"]["goal"] == "sensitivity"
    assert card["operating_point"]["threshold_probability"] == points[0]["threshold_probability"]
    assert card["metrics"]["auc"] == metrics["auc"]
    assert (card["metrics"]["scans"], card["metrics"]["candidates"]) == (8, 400)
    assert card["training"]["data"] == {"scans": 80, "nodules": 90}
    assert card["training"]["settings"]["loss"] == {"name": "focal"}
    assert card["model_sha256"] == sha256(finished / "model.keras")
    assert card["keras"] == keras.__version__


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_the_same_run_gives_the_same_bytes(finished, tmp_path, name):
    """Made twice, in other places and at other times, a bundle is the same; no path of here is in it."""
    copy = shutil.copytree(finished, tmp_path / "elsewhere" / "tiny")

    first = write_bundle(finished, tmp_path / "a" / name)
    second = write_bundle(copy, tmp_path / "b" / name)

    files = [path for path in (first, *first.glob("*")) if path.is_file()]
    assert len(files) == (1 if name.endswith(".zip") else 3)
    for path in files:
        other = second if path == first else second / path.name
        assert path.read_bytes() == other.read_bytes()
        if path.name != "model.keras":
            assert str(finished.parent).encode() not in path.read_bytes()
            assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_bundle_opens_as_the_run_does(finished, tmp_path, name):
    """Folder or zip: name, cubes, calibration, threshold and logits are those of the run."""
    (run,), (bundle,) = open_bundles(finished), open_bundles(write_bundle(finished, tmp_path / name))
    cubes = np.random.default_rng(0).integers(-1000, 400, (3, 8, 8, 8, 1)).astype(np.int16)

    logits = bundle.load().predict(cubes, verbose=0)

    assert (bundle.name, bundle.model_sha256) == (run.name, run.model_sha256) == ("tiny", run.model_sha256)
    assert bundle.spec == run.spec == CubeSpec(8, 0.5)
    assert bundle.calibration == run.calibration
    assert 0 < bundle.threshold == run.threshold < 1
    assert run.card == {}
    assert bundle.card["name"] == "tiny"
    np.testing.assert_array_equal(logits, models.load(finished / "model.keras").predict(cubes, verbose=0))


def test_a_run_that_was_not_calibrated_has_no_threshold(run, tmp_path):
    """Its bundle holds null for both, and has no operating_points.json."""
    for name in ("calibration.json", "operating_points.json"):
        (run / name).unlink()

    (bundle,) = open_bundles(write_bundle(run, tmp_path / "bundle"))

    assert bundle.calibration is bundle.threshold is bundle.card["calibration"] is None
    assert not (tmp_path / "bundle" / "operating_points.json").exists()


@pytest.mark.parametrize("what", ["run", "bundle"])
def test_a_calibration_can_be_left_out(run, tmp_path, what):
    """Neither it nor the thresholds that were chosen after it are there, and a wrong one is not looked at."""
    path = run if what == "run" else write_bundle(run, tmp_path / "bundle")
    if what == "run":
        (run / "calibration.json").write_text("{}")

    (bundle,) = open_bundles(path, calibrated=False)

    assert bundle.calibration is bundle.threshold is None
    assert bundle.spec == CubeSpec(8, 0.5)


def test_a_model_lies_where_users_say(finished, tmp_path):
    """A run, its model.keras, a bundle's model.keras, a .keras file of its own, and ten folds in order."""
    bare = Path(shutil.copy(finished / "model.keras", tmp_path / "mine.keras"))
    bundle = write_bundle(finished, tmp_path / "bundle", name="other")
    for fold in range(10):
        (tmp_path / "crossval" / f"fold{fold}").mkdir(parents=True)
        shutil.copy(bare, tmp_path / "crossval" / f"fold{fold}" / "model.keras")

    assert [own.name for own in open_bundles(finished / "model.keras")] == ["tiny"]
    assert [own.name for own in open_bundles(bundle / "model.keras")] == ["other"]
    assert [(own.name, own.spec) for own in open_bundles(bare)] == [("mine", CubeSpec(8))]
    assert [own.name for own in open_bundles(str(tmp_path / "crossval"))] == [f"fold{n}" for n in range(10)]


def test_opening_loads_no_keras(finished, tmp_path):
    """A fresh process opens a bundle, a zip and a run without Keras and TensorFlow."""
    paths = [write_bundle(finished, tmp_path / name) for name in ("bundle", "bundle.zip")]
    code = (
        "import sys\nfrom luna_cls.inference.bundle import open_bundles\n"
        "print([open_bundles(path)[0].name for path in sys.argv[1:]])\n"
        "print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*paths, finished])],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == ["['tiny', 'tiny', 'tiny']", "[]"]


def test_a_bundle_travels_to_other_processes(finished):
    """Pickled, as a cluster does, it is the same and loads."""
    (bundle,) = open_bundles(finished)

    copy = pickle.loads(pickle.dumps(bundle))  # noqa: S301

    assert (copy.name, copy.spec, copy.calibration) == (bundle.name, bundle.spec, bundle.calibration)
    assert copy.load().input_shape == (None, 8, 8, 8, 1)


# Nothing is overwritten unasked


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_an_earlier_bundle_is_kept_unless_forced(finished, tmp_path, name):
    """Refused at first, replaced with force; something else is not replaced even so."""
    out = write_bundle(finished, tmp_path / name, name="first")
    with pytest.raises(InputError, match="exists already"):
        write_bundle(finished, out, name="second")
    assert open_bundles(out)[0].name == "first"

    write_bundle(finished, out, name="second", force=True)

    assert open_bundles(out)[0].name == "second"
    other = tmp_path / f"other-{name}"
    archives.write(other, {"thesis.tex": b""}) if other.suffix else (other / "thesis").mkdir(parents=True)
    with pytest.raises(InputError, match="is not replaced, even by --force"):
        write_bundle(finished, other, force=True)


@pytest.mark.parametrize("missing", ["model.keras", "metrics.json", "settings.toml", "environment.json"])
def test_an_unfinished_run_makes_no_bundle(run, tmp_path, missing):
    """It is refused with what it lacks, and nothing is left."""
    (run / missing).unlink()

    with pytest.raises(InputError, match=f"has no {missing}: it is no finished run"):
        write_bundle(run, tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "spacing_mm", ["x", 1e308, True, 0, 10**400], ids=["word", "huge", "true", "0", "long"]
)
def test_a_spacing_that_is_none_is_refused(run, spacing_mm):
    """By whatever opens the run, in one line that names the file."""
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["cube_spec"]["spacing_mm"] = spacing_mm
    (run / "environment.json").write_text(json.dumps(environment))

    for read in (open_bundles, lambda run: write_bundle(run, run.with_name("bundle"))):
        with pytest.raises(InputError, match=r"environment.json: spacing_mm lies above 0 and up to 1000"):
            read(run)


def test_operating_points_without_a_calibration_stay_where_they_are(run, tmp_path):
    """Nothing says of which probabilities they are, and nothing has read them."""
    (run / "calibration.json").unlink()
    (run / "operating_points.json").write_text("anything")

    bundle = write_bundle(run, tmp_path / "bundle")

    assert sorted(path.name for path in bundle.iterdir()) == ["bundle.json", "model.keras"]


def test_a_bundle_is_not_bundled_again(finished, tmp_path):
    """Neither one that was made nor one that comes with the package."""
    for bundle in (write_bundle(finished, tmp_path / "bundle"), Path("phantom")):
        with pytest.raises(InputError, match=f"{bundle} is a bundle already"):
            write_bundle(bundle, tmp_path / "again")


def test_a_name_is_a_name(finished, tmp_path):
    """One that leads out of a folder is refused."""
    with pytest.raises(InputError, match=r"name has up to 80 letters.*Received: '\.\./evil'"):
        write_bundle(finished, tmp_path / "bundle", name="../evil")


def test_operating_points_of_another_model_are_refused(run):
    """Thresholds that another model was calibrated with say nothing of this one."""
    path = run / "operating_points.json"
    stored = json.loads(path.read_text())
    stored["fitted_on"]["model_sha256"] = "0" * 64
    path.write_text(json.dumps(stored))

    with pytest.raises(InputError, match="was made for another model or calibration"):
        open_bundles(run)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.exists, r"No model at .*nothing\. Give a run"),
        (lambda path: path.mkdir(), "nothing holds no model: no bundle"),
        (lambda path: path.write_text("no model"), "nothing is not a .keras file"),
        (lambda path: (path / "fold0").mkdir(parents=True), "fold0 has no model.keras: .*not finished"),
    ],
    ids=["missing", "empty", "text", "unfinished fold"],
)
def test_what_is_no_model_is_refused(tmp_path, make, message):
    """In one line that says what to give."""
    make(tmp_path / "nothing")

    with pytest.raises(InputError, match=message) as refusal:
        open_bundles(tmp_path / "nothing")

    assert "\n" not in str(refusal.value)


# Bundles that were tampered with


def _card(change):
    def tamper(entries):
        card = json.loads(entries["bundle.json"])
        change(card)
        entries["bundle.json"] = json.dumps(card).encode()

    return tamper


def _other_model(entries):
    entries["model.keras"] += b" "


@pytest.mark.parametrize("is_zip", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_other_model, "its model is not the one its bundle.json tells of .the checksums differ"),
        (_card(lambda card: card.update(model_sha256="0" * 64)), "the checksums differ"),
        (
            _card(lambda card: card["cube_spec"].update(size_vox=9)),
            r"tells of cubes of 9 voxels, its model reads \(None, 8, 8, 8, 1\)",
        ),
        (_card(lambda card: card.update(format=7)), "has bundle format 7; this version reads 1"),
        (
            _card(lambda card: card.update(keras="99.1")),
            "written by Keras 99.1, .* pip install 'keras>=99.1'",
        ),
        (_card(lambda card: card.update(keras="99.1'; id; '")), "keras of bundle.json: "),
        (_card(lambda card: card.update(name="../../evil")), "name of bundle.json: .* Received: ../../evil"),
        (
            _card(lambda card: card["cube_spec"].update(spacing_mm="wide")),
            "cube_spec.spacing_mm of bundle.json",
        ),
        (_card(lambda card: card.update(licence="\x1b[2J")), r"licence of bundle.json: .* Received: \?\[2J"),
        (_card(lambda card: card.pop("licence")), "licence of bundle.json: Field required"),
        (_card(lambda card: card.update(calibration={"method": "eval"})), "holds no calibration"),
        (
            _card(lambda card: card["operating_point"].update(threshold_probability=2)),
            "operating_point.threshold_probability of bundle.json",
        ),
        (lambda entries: entries.update({"bundle.json": b"[" * 200_000}), "nested more than 64 deep"),
        (lambda entries: entries.update({"bundle.json": b"[1, 2]"}), "no JSON object. Received: a list"),
        (lambda entries: entries.update({"bundle.json": b"{"}), "is no JSON"),
        (
            lambda entries: entries.update({"bundle.json": b" " * ((1 << 23) + 1)}),
            "8,388,60[89]",
        ),
    ],
    ids=[
        "model",
        "checksum",
        "cubes",
        "format",
        "newer keras",
        "words for a shell",
        "name",
        "spacing",
        "licence for a terminal",
        "no licence",
        "calibration",
        "threshold",
        "deep",
        "list",
        "half",
        "large",
    ],
)
def test_a_bundle_that_was_tampered_with_is_refused(finished, tmp_path, tamper, message, is_zip):
    """With the reason, in one line."""
    entries = archives.entries(write_bundle(finished, tmp_path / "made.zip"))
    tamper(entries)
    path = tmp_path / ("tampered.zip" if is_zip else "tampered")
    if is_zip:
        archives.write(path, entries)
    else:
        path.mkdir()
        for name, content in entries.items():
            (path / name).write_bytes(content)

    with pytest.raises(InputError, match=message) as refusal:
        open_bundles(path)

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_a_model_exchanged_after_it_was_opened_is_not_loaded(finished, tmp_path, name):
    """The checksum is of the very bytes that are loaded."""
    out = write_bundle(finished, tmp_path / name)
    (bundle,) = open_bundles(out)
    keras.utils.set_random_seed(1)
    models.save(models.get("seed_cnn", **TINY), finished.parent / "other.keras")
    entries = {
        **(archives.entries(out) if out.is_file() else {}),
        "model.keras": (finished.parent / "other.keras").read_bytes(),
    }
    if out.is_file():
        archives.write(out, entries)
    else:
        (out / "model.keras").write_bytes(entries["model.keras"])

    with pytest.raises(InputError, match="has changed since it was looked at"):
        bundle.load()


def test_a_model_that_gives_two_numbers_is_not_loaded(tmp_path):
    """What its file says of the input fits, but it gives no single logit."""
    inputs = keras.Input((8, 8, 8, 1))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling3D()(inputs))
    models.save(keras.Model(inputs, outputs), tmp_path / "two.keras")
    (bundle,) = open_bundles(tmp_path / "two.keras")

    with pytest.raises(InputError, match=r"not a model from cubes to logits.* to \(None, 2\); expected"):
        bundle.load()


def test_a_hostile_bundle_writes_nothing_outside(finished, tmp_path, monkeypatch):
    """A zip bundle with a path out of it is refused, and no file is there that was not."""
    monkeypatch.chdir(tmp_path)
    entries = archives.entries(write_bundle(finished, tmp_path / "made.zip"))
    archives.write(tmp_path / "made.zip", {**entries, "../../evil": b"evil"})
    before = archives.files(tmp_path.parent)

    with pytest.raises(InputError, match=r"holds '\.\./\.\./evil', which has no place in it"):
        open_bundles(tmp_path / "made.zip")

    assert archives.files(tmp_path.parent) == before


def test_half_a_bundle_is_refused(finished, tmp_path):
    """As a broken download leaves it."""
    path = write_bundle(finished, tmp_path / "bundle.zip")
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(InputError, match="is not whole, or not all of the file"):
        open_bundles(path)
