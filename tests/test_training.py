import json
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from luna_cls.cubes.cutting import CubeSpec
from luna_cls.cubes.store import CubeFormat
from luna_cls.errors import InputError
from luna_cls.files import sha256
from luna_cls.judging.binary import binary_metrics, no_skill_metrics
from luna_cls.learning import losses, models
from luna_cls.learning.health import TrainingHealth
from luna_cls.learning.losses.weighting import WEIGHTINGS
from luna_cls.learning.metrics import streaming_metrics
from luna_cls.learning.training import train
from luna_cls.settings import load_settings

VALIDATION_FOLD = 3
TINY = (
    "seed=5",
    "precision=float32",
    f"split.validation_folds=[{VALIDATION_FOLD}]",
    "augmentation.symmetries=in_plane",
    "model.filters=[4, 8]",
    "model.dense_units=8",
    "training.epochs=2",
    "training.batch_size=8",
    "training.steps_per_epoch=4",
)
STREAMED = {metric.name for metric in streaming_metrics()}


def _quiet(line):
    """Says nothing."""


def _tiny(*overrides):
    return load_settings("seed", [*TINY, *overrides])


@pytest.fixture(scope="module")
def trained(small_store, tmp_path_factory):
    """A run of two epochs and the lines it said."""
    lines = []
    run = tmp_path_factory.mktemp("runs") / "run"
    train(small_store, _tiny(), run, say=lines.append)
    return run, lines


@pytest.fixture
def run(trained):
    return trained[0]


def test_a_run_holds_what_the_design_names(run):
    """The run folder has its eight entries, and nothing half-written."""
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint",
        "environment.json",
        "history.csv",
        "metrics.json",
        "model.keras",
        "settings.toml",
        "tensorboard",
        "validation_predictions.csv",
    ]


def test_its_settings_read_back(run):
    """settings.toml, read as a recipe, gives the settings of the run."""
    assert load_settings(str(run / "settings.toml")) == _tiny()


def test_it_says_what_it_does(trained):
    """It counts cubes, nodules, steps and how often each is seen; then comes one line an epoch."""
    _, lines = trained

    assert lines[0].startswith(
        "30 training cubes, 9 of them nodules (1 in 3); 10 validation cubes; 4 steps an epoch; seed_cnn"
    )
    assert lines[1] == (
        "An epoch is 32 cubes, 30.00% of them nodules: it sees every nodule 1.07 times and every other cube "
        "1.07 times."
    )
    epochs = [line for line in lines[2:] if not line.startswith("Warning: ")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert not any("\n" in line for line in lines)


def test_its_environment_names_versions_and_data(run, small_store):
    """environment.json has the versions, the policy, and the digest of the store's candidates."""
    environment = json.loads((run / "environment.json").read_text())

    assert environment["versions"]["keras"] == keras.__version__
    assert environment["dtype_policy"] == "float32"
    assert environment["store"] == {
        "checksum": small_store.checksum,
        "rows": 40,
    }


def test_history_has_training_and_exact_validation_metrics(run):
    """A row an epoch: the loss and the streaming metrics, and every exact metric as val_*."""
    history = pd.read_csv(run / "history.csv")

    exact = {f"val_{name}" for name in binary_metrics([0, 1], [0, 1])}
    assert history["epoch"].tolist() == [1, 2]
    watched = {"val_largest_logit", "largest_gradient_norm", "learning_rate"}
    assert set(history.columns) == {"epoch", "loss", "val_loss"} | STREAMED | exact | watched
    assert (history[sorted(watched)] > 0).all(axis=None)
    assert history[["tp", "fp", "tn", "fn"]].sum(axis=1).tolist() == [32, 32]
    assert history[["val_tp", "val_fp", "val_tn", "val_fn"]].sum(axis=1).tolist() == [10, 10]


def test_metrics_are_those_of_the_predictions_file(run):
    """validation_predictions.csv gives metrics.json again, every metric exactly."""
    table = pd.read_csv(run / "validation_predictions.csv")
    metrics = json.loads((run / "metrics.json").read_text())

    again = binary_metrics(table["class"], table["logit"])
    loss = metrics["validation"].pop("loss")
    expected = {name: None if np.isnan(value) else value for name, value in again.items()}
    assert metrics["validation"] == expected
    assert metrics["no_skill"]["balanced_accuracy"] == no_skill_metrics(table["class"])["balanced_accuracy"]
    softplus = np.logaddexp(0, np.where(table["class"] == 1, -table["logit"], table["logit"]))
    assert loss == pytest.approx(softplus.mean(), rel=1e-5)


def test_metrics_are_those_of_the_best_epoch(run):
    """The kept epoch is the first of the highest val_average_precision, and its metrics are in history."""
    history = pd.read_csv(run / "history.csv")
    metrics = json.loads((run / "metrics.json").read_text())

    best = history["val_average_precision"].argmax()
    assert metrics["monitor"] == "val_average_precision"
    assert metrics["best_epoch"] == best + 1
    assert metrics["validation"]["auc"] == history["val_auc"][best]
    assert metrics["validation"]["loss"] == pytest.approx(history["val_loss"][best], rel=1e-5)


def test_predictions_are_a_submission_of_the_validation_scan(run, small_store):
    """One row for each of the fold's ten candidates, in the store's order, probability = sigmoid(logit)."""
    table = pd.read_csv(run / "validation_predictions.csv", dtype={"seriesuid": str})

    rows = small_store.candidates[small_store.candidates["fold"] == VALIDATION_FOLD].reset_index(drop=True)
    points = ["seriesuid", "coordX", "coordY", "coordZ"]
    assert list(table.columns) == [*points, "probability", "logit", "class"]
    pd.testing.assert_frame_equal(table[[*points, "class"]], rows[[*points, "class"]])
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-table["logit"])), rtol=1e-12)


def test_the_model_gives_the_predictions_again(run, small_store):
    """model.keras, loaded, gives the logits of validation_predictions.csv."""
    cubes = small_store.cubes[small_store.candidates["fold"] == VALIDATION_FOLD]

    actual = models.load(run / "model.keras").predict(cubes[..., None], verbose=0)

    expected = pd.read_csv(run / "validation_predictions.csv")["logit"]
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(actual[:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_history(run, small_store, tmp_path):
    """Trained again, history.csv has the same bytes."""
    train(small_store, _tiny(), tmp_path / "same", say=_quiet)

    assert (tmp_path / "same" / "history.csv").read_bytes() == (run / "history.csv").read_bytes()


@pytest.mark.slow
def test_training_stops_when_patience_runs_out(small_store, tmp_path):
    """With patience 2 on val_loss, the run ends two epochs after the one of lowest loss, which is kept."""
    settings = _tiny(
        "training.monitor=val_loss",
        "training.patience=2",
        "training.epochs=40",
        "training.steps_per_epoch=1",
        "optimizer.learning_rate=0.1",
    )

    result = train(small_store, settings, tmp_path / "run", say=_quiet)

    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) < 40
    assert result["best_epoch"] == history["val_loss"].argmin() + 1
    assert len(history) == result["best_epoch"] + 2


def _one_class(small_store, *, in_validation):
    is_validation = small_store.candidates["fold"] == VALIDATION_FOLD
    label = small_store.candidates["class"].where(is_validation != in_validation, 0)
    return replace(small_store, candidates=small_store.candidates.assign(**{"class": label}))


@pytest.mark.parametrize(
    ("in_validation", "message"),
    [(False, "No training cube is a nodule"), (True, "validation set has 10 cubes of class 0 and none")],
    ids=["training", "validation"],
)
def test_one_class_alone_is_refused(small_store, tmp_path, in_validation, message):
    """Look-alikes alone, for training or for validation, are refused in one line; nothing is written."""
    with pytest.raises(InputError, match=message) as refusal:
        train(_one_class(small_store, in_validation=in_validation), _tiny(), tmp_path / "run")

    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.monitor=val_precision",
            "training.monitor 'val_precision'. Known: epoch, val_loss, val_accuracy",
        ),
        ("loss.name=hinge", "Unknown loss 'hinge'. Known: bce, mse, focal, cefl, cefl2, anyloss, sol"),
        ("loss.gama=2", "loss bce has no parameter 'gama'. Known: label_smoothing"),
        ("model.name=vgg", "Unknown model 'vgg'. Known: seed_cnn, resnet, contextual"),
        ("model.filters=[4, 4, 4, 4, 4]", "5 blocks halve a cube of 31 voxels to nothing"),
        ("split.validation_folds=[7]", "No cube is left for validation"),
        ("sampling.positives_per_batch=8", "positives_per_batch must lie between 1 and 7"),
        (("loss.name=sol", "sampling.correct_prior=true"), "correct_prior is for losses whose prob.* sol"),
        (("loss.name=cefl", "loss.categorical=true"), "loss.categorical is for the logits of a softmax"),
        ("loss.class_weights=[1, 2, 3]", r"class_weights takes two, .* Received: \[1.0, 2.0, 3.0\]"),
        ("loss.class_counts=[1, 2]", "loss bce has no parameter 'class_counts'"),
        ("sampling.negatives_per_positive=1e-20", "negatives_per_positive must lie between 0.143"),
        (
            "training.batch_size=31",
            "batch_size must be at most the number of training cubes, 30, unless sampling says .* 31",
        ),
        ("optimizer.warmup_steps=3", "warmup_steps goes with optimizer.schedule = cosine"),
    ],
)
def test_settings_that_do_not_fit_are_refused(small_store, tmp_path, override, message):
    """The refusal is one line that lists what is known; nothing is written."""
    overrides = (override,) if isinstance(override, str) else override

    with pytest.raises(InputError, match=message) as refusal:
        train(small_store, _tiny(*overrides), tmp_path / "run")

    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.LOSSES)
def test_an_epoch_of_the_demo_works_under_each_loss_by_its_name(small_store, tmp_path, name):
    """Ten steps of the demo's recipe leave a model, whichever the loss, and a finite val_loss."""
    overrides = [
        f"loss.name={name}",
        "training.epochs=1",
        "training.steps_per_epoch=10",
        "training.batch_size=30",  # as many as there are
        "split.validation_folds=[3]",
        "split.test_folds=[]",
    ]

    result = train(small_store, load_settings("demo", overrides), tmp_path / "run", say=_quiet)

    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert (tmp_path / "run" / "model.keras").is_file()
    assert len(history) == 1
    assert np.isfinite(history[["loss", "val_loss", "val_auc"]]).all(axis=None)
    assert history["largest_gradient_norm"][0] > 0
    assert result["validation"]["auc"] == history["val_auc"][0]


def test_the_amplification_of_anyloss_grows_from_epoch_to_epoch(small_store, tmp_path):
    """A ramp from 1 makes the first epoch's loss milder than L = 73 does; validation uses 73."""
    options = [
        "loss.name=anyloss",
        "training.epochs=1",
        "training.steps_per_epoch=1",
        "optimizer.learning_rate=1e-9",
    ]
    histories = {}
    for name, more in {"ramp": ["loss.ramp_from=1"], "none": []}.items():
        train(small_store, _tiny(*options, *more), tmp_path / name, say=_quiet)
        histories[name] = pd.read_csv(tmp_path / name / "history.csv")

    assert abs(histories["ramp"]["loss"][0] - 0.5) < abs(histories["none"]["loss"][0] - 0.5)
    assert histories["ramp"]["val_loss"][0] == pytest.approx(histories["none"]["val_loss"][0], abs=1e-4)


@pytest.mark.parametrize("weighting", ["balanced", "effective_number"])
def test_class_weights_come_from_the_training_cubes(small_store, tmp_path, weighting):
    """9 nodules among 30 training cubes weigh 21 / 9 times as much as the rest; val_loss shows it."""
    options = ["training.epochs=1", "training.steps_per_epoch=1", f"loss.class_weights={weighting}"]

    result = train(small_store, _tiny(*options), tmp_path / "run", say=_quiet)

    table = pd.read_csv(tmp_path / "run" / "validation_predictions.csv")
    negative, positive = WEIGHTINGS[weighting]([21, 9])
    each = np.logaddexp(0, np.where(table["class"] == 1, -table["logit"], table["logit"]))
    assert positive / negative == pytest.approx(21 / 9, rel=1e-3)
    assert result["validation"]["loss"] == pytest.approx(
        (each * np.where(table["class"] == 1, positive, negative)).mean(), rel=1e-5
    )


@pytest.mark.parametrize("weight", [1, 5])
def test_the_prior_is_corrected_in_the_model_that_is_kept(small_store, tmp_path, weight):
    """Batches of 4 + 4 where 9 in 30 are nodules: kept logits are log(9 / 21) lower, and log(weight) more."""
    options = ["sampling.positives_per_batch=4", "training.epochs=1", f"loss.positive_weight={weight}"]
    for name, more in {"plain": [], "corrected": ["sampling.correct_prior=true"]}.items():
        train(small_store, _tiny(*options, *more), tmp_path / name, say=_quiet)
    read = {
        name: pd.read_csv(tmp_path / name / "validation_predictions.csv")["logit"]
        for name in ("plain", "corrected")
    }

    np.testing.assert_allclose(read["corrected"] - read["plain"], np.log(9 / 21 / weight), atol=1e-5)
    history = pd.read_csv(tmp_path / "corrected" / "history.csv")
    metrics = json.loads((tmp_path / "corrected" / "metrics.json").read_text())
    environment = json.loads((tmp_path / "corrected" / "environment.json").read_text())
    assert metrics["validation"]["loss"] == pytest.approx(history["val_loss"][0], rel=1e-5)
    assert environment["sampling"]["prior_shift"] == pytest.approx(np.log(9 / 21))
    assert environment["sampling"]["positive_share"] == 0.5


def test_a_training_that_diverges_later_keeps_its_best_epoch(small_store, tmp_path, monkeypatch):
    """If epoch 2's loss is no number, the run holds epoch 1's model, two rows of history and the finding."""
    lines = []
    monkeypatch.setattr(TrainingHealth, "on_train_batch_end", _diverge_in_epoch_2)

    result = train(small_store, _tiny("training.epochs=4"), tmp_path / "run", say=lines.append)

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["diverged_in"] == metrics["diverged_in"] == 2
    assert result["best_epoch"] == 1
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2
    assert metrics["health"][-1]["kind"] == "diverged"
    assert any("epoch 1 was its last good one. Lower optimizer.learning_rate" in line for line in lines)


def _diverge_in_epoch_2(self, batch, logs=None):
    if self._epoch == 2 and self.diverged_in is None:
        self.restore("The loss became nan in epoch 2, step 1")


def test_a_failed_training_leaves_the_run_it_was_to_replace(run, small_store, tmp_path):
    """Forced over a good run, a training that diverges puts back every file of it."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    settings = _tiny("optimizer.weight_decay=1e30", "training.epochs=3", "training.steps_per_epoch=4")

    with pytest.raises(InputError, match=r"epoch 1, .* diverged .* Lower optimizer\.learning_rate"):
        train(small_store, settings, copy, force=True, say=lambda _: None)

    assert sha256(copy / "model.keras") == sha256(run / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("spec", "override", "message"),
    [
        (CubeSpec(31, 1.0), "model.size_vox=33", "reads cubes of 33 voxels .* have 31 .* --margin 1"),
        (CubeSpec(31, 1.0), "model.size_vox=30", "reads cubes of 30 voxels .* take an odd number up to 31"),
        (CubeSpec(31, 0.5), "seed=1", "cubes of 0.5 mm spacing"),
    ],
    ids=["size", "even", "spacing"],
)
def test_a_model_is_of_the_cubes_it_will_be_given(small_store, tmp_path, spec, override, message):
    """Neither cubes that the store does not hold nor a spacing that predict would not cut is trained on."""
    with pytest.raises(InputError, match=message):
        train(replace(small_store, format=CubeFormat(spec)), _tiny(override), tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_kept_unless_forced(run, small_store):
    """A run that exists is refused, and keeps its files."""
    before = sha256(run / "model.keras")

    with pytest.raises(InputError, match="run exists already"):
        train(small_store, _tiny(), run)

    assert sha256(run / "model.keras") == before


def test_a_store_is_never_replaced_by_its_own_run(small_store, tmp_path):
    """Even forced, a run cannot take the place of the store that it is trained on."""
    copy = replace(small_store, path=Path(shutil.copytree(small_store.path, tmp_path / "store")))
    before = sorted(copy.path.iterdir())

    with pytest.raises(InputError):
        train(copy, _tiny(), copy.path, force=True)

    assert sorted(copy.path.iterdir()) == before
