import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from luna_cls.cubes.folds import Split
from luna_cls.cubes.plan import Plan
from luna_cls.cubes.preparation import prepare
from luna_cls.errors import InputError
from luna_cls.learning.health import Course, TrainingHealth, diagnose, diagnose_plan
from luna_cls.learning.optimizer import adamw
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.settings import OptimizerSettings

COURSE = Course(
    steps_per_epoch=600,
    one_in=490,
    favours_nodules=False,
    corrects_prior=False,
    loss="bce",
    is_of_batch=False,
    is_proper=True,
    normalization_momentum=0.99,
)
FEW_STEPS = Course(**{**vars(COURSE), "steps_per_epoch": 50})
BALANCED = Course(**{**vars(COURSE), "favours_nodules": True})
CORRECTED = Course(**{**vars(BALANCED), "corrects_prior": True})
ANYLOSS = Course(**{**vars(COURSE), "loss": "anyloss", "is_of_batch": True, "is_proper": False})
SOL = Course(**{**vars(ANYLOSS), "loss": "sol"})
DISTORTED = Course(**{**vars(CORRECTED), "loss": "focal", "is_proper": False})
NO_NORMALIZATION = Course(**{**vars(FEW_STEPS), "normalization_momentum": 0.0})
ALL_NO = {
    "val_tp": 0, "val_fp": 0, "val_tn": 4890, "val_fn": 10,
    "val_accuracy": 4890 / 4900, "val_balanced_accuracy": 0.5, "val_auc": 0.93, "val_average_precision": 0.2,
}  # fmt: skip
ALL_YES = {**ALL_NO, "val_tp": 10, "val_fp": 4890, "val_tn": 0, "val_fn": 0, "val_accuracy": 10 / 4900}
HALF = {**ALL_NO, "val_tp": 1, "val_fp": 490, "val_tn": 4400, "val_fn": 9, "val_balanced_accuracy": 0.4999}
HEALTHY = {
    **HALF, "val_tp": 8, "val_fn": 2, "val_balanced_accuracy": 0.85,
    "auc": 0.97, "balanced_accuracy": 0.9, "val_largest_logit": 12.0, "largest_gradient_norm": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("history", "course", "kind", "words"),
    [
        ([ALL_NO], COURSE, "one_class_threshold", ["No validation cube", "99.80%", "AUC 0.93", "1 in 490"]),
        ([ALL_NO], COURSE, "one_class_threshold", ["set sampling.positives_per_batch"]),
        ([ALL_NO], BALANCED, "one_class_threshold", ["threshold: hardly any", "move the threshold"]),
        ([ALL_NO], CORRECTED, "one_class_threshold", ["at 1 in 490, hardly any", "move the threshold"]),
        ([ALL_NO], ANYLOSS, "one_class_threshold", ["threshold: hardly any", "move the threshold"]),
        ([ALL_NO], NO_NORMALIZATION, "one_class_threshold", ["at 1 in 490"]),
        ([ALL_YES], COURSE, "one_class_threshold", ["Every validation cube", "0.20%", "most probabilities"]),
        ([ALL_YES], BALANCED, "one_class_threshold", ["most prob", "set sampling.correct_prior, or favour"]),
        ([{**ALL_NO, "val_auc": 0.6}], COURSE, "one_class_unlearned", ["AUC 0.60", "learned little yet"]),
        ([ALL_NO], FEW_STEPS, "one_class_lag", ["500 steps (10.0 epochs)", "model.normalization_momentum"]),
        ([HALF] * 3, COURSE, "stuck_threshold", [".50 for 3 epochs"]),
        ([{**HEALTHY, "val_auc": 0.5}], COURSE, "does_not_carry_over", ["is 0.97", "AUC 0.50", "by heart"]),
        ([{**HEALTHY, "val_auc": 0.5}], FEW_STEPS, "does_not_carry_over_lag", ["500 steps"]),
        ([{**HEALTHY, "val_largest_logit": 57.4}], COURSE, "too_sure", ["±57", "optimizer.learning_rate"]),
        ([{**HEALTHY, "largest_gradient_norm": 0.0}], COURSE, "no_gradient", ["learning_rate"]),
        ([{**HEALTHY, "largest_gradient_norm": 1e-12}], ANYLOSS, "no_gradient", ["loss.ramp_from=4"]),
        ([{**HEALTHY, "largest_gradient_norm": 1e-12}], SOL, "no_gradient", ["uniform prior"]),
    ],
)
def test_each_disease_has_its_line(history, course, kind, words):
    """A history with one fault gives that finding alone: one line that says what, how much, what to do."""
    found = diagnose(history, course)

    assert list(found) == [kind]
    assert all(word in found[kind] for word in words)
    assert "\n" not in found[kind]


@pytest.mark.parametrize(
    "history",
    [
        [HEALTHY],
        [HALF, HALF],
        [HALF, HEALTHY, HALF],
        [{**HEALTHY, "val_auc": 0.55}],
        [{**HEALTHY, "auc": 0.9, "val_auc": 0.5}],
        [{**HEALTHY, "val_largest_logit": 40.0}],
        [{"loss": 0.5}],
    ],
    ids=["healthy", "two epochs", "not in a row", "AUC .55", "AUC .9", "logit 40", "no metrics"],
)
def test_a_healthy_training_is_left_in_peace(history):
    """Up to the very limits, and where there is nothing to look at, nothing is said."""
    assert diagnose(history, COURSE) == {}


def _candidates(classes_of_folds):
    rows = [(fold, label) for fold, labels in classes_of_folds.items() for label in labels]
    return pd.DataFrame(rows, columns=["fold", "class"])


def test_a_fold_without_nodules_is_named():
    """Of folds 0 to 3, training fold 1 and validation fold 2 have none; test fold 3 is no matter."""
    candidates = _candidates({0: [1, 0, 0], 1: [0, 0], 2: [0, 0], 3: [0]})
    split = Split(np.arange(5), np.array([5, 6]), np.array([7]))
    plan = Plan(np.array([1, 2, 3, 4]), np.array([0]), 2, 0)

    found = diagnose_plan(candidates, split, plan, COURSE)

    assert list(found) == ["fold_without_positives"]
    assert found["fold_without_positives"].startswith("No nodule in folds 1, 2: ")


@pytest.mark.parametrize(
    ("course", "options", "expected"),
    [
        (ANYLOSS, {}, "19 of 20 batches of the first epoch hold no nodule, and anyloss scores one batch"),
        (ANYLOSS, {"negatives_per_positive": 30}, "15 of 21 batches of the first epoch hold"),
        (ANYLOSS, {"positives_per_batch": 1}, None),
        (COURSE, {}, None),
    ],
    ids=["anyloss, natural", "anyloss, too few", "anyloss, one in each", "bce, natural"],
)
def test_batches_without_nodules_starve_a_loss_of_the_batch(course, options, expected):
    """One nodule among 200 cubes in batches of 10 leaves 19 batches without; only AnyLoss minds."""
    candidates = _candidates({0: [1] + [0] * 199, 1: [1, 0]})
    split = Split(np.arange(200), np.array([200, 201]), np.array([], int))
    plan = Plan(np.arange(1, 200), np.array([0]), 10, 0, **options)

    found = diagnose_plan(candidates, split, plan, course).get("batches_without_positives")

    assert (found is None) if expected is None else found.startswith(expected)


def test_distorted_probabilities_are_no_matter_of_prevalence():
    """A corrected prior of focal loss gets a line; of bce it does not, nor does focal loss as it is."""
    candidates = _candidates({0: [1, 0], 1: [1, 0]})
    split, plan = (
        Split(np.arange(2), np.arange(2, 4), np.array([], int)),
        Plan(np.arange(1), np.arange(1, 2), 2, 0),
    )
    uncorrected = Course(**{**vars(DISTORTED), "corrects_prior": False})

    assert list(diagnose_plan(candidates, split, plan, DISTORTED)) == ["distorted"]
    assert diagnose_plan(candidates, split, plan, CORRECTED) == {}
    assert diagnose_plan(candidates, split, plan, uncorrected) == {}


@pytest.fixture
def unit(float32_policy):
    """A linear unit of weight 2."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(adamw(OptimizerSettings(learning_rate=0.01), steps=10), "mse", jit_compile=False)
    model.set_weights([np.full((1, 1), 2.0)])
    return model


def _fitted(model, inputs_of_epochs, health):
    """The history of a unit after an epoch of two steps on each input; labels are 1; and its weights."""
    kept = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: kept.append(model.get_weights()[0][0, 0]))
    inputs = np.repeat(np.array(inputs_of_epochs, "float32"), 2)[:, None]
    batches = tf.data.Dataset.from_tensor_slices((inputs, np.ones_like(inputs))).batch(1)
    history = model.fit(
        batches,
        epochs=len(inputs_of_epochs),
        steps_per_epoch=2,
        verbose=0,
        shuffle=False,
        callbacks=[health, record],
    )
    return history.history, kept


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["NaN", "infinite"])
def test_a_loss_that_is_no_number_ends_the_training_with_the_last_good_weights(bad, unit):
    """Bad input in epoch 3 of 5 ends it there, with the finite weight of epoch 2, and one line says so."""
    lines = []
    health = TrainingHealth(lines.append, unit, COURSE)

    history, kept = _fitted(unit, [1, 1, bad, 1, 1], health)

    assert len(history["loss"]) == 3
    assert kept[2] == kept[1]
    assert 1 < kept[1] < 2
    assert health.diverged_in == 3
    assert [finding["kind"] for finding in health.findings] == ["diverged"]
    assert len(lines) == 1
    assert (
        "in epoch 3, step 1: training has diverged and ends here; epoch 2 was its last good one" in lines[0]
    )


def test_without_a_good_epoch_nothing_is_kept(unit):
    """Bad input in the first epoch is an InputError: there are no good weights yet."""
    with pytest.raises(InputError, match="epoch 1, step 1: training has diverged before any epoch was done"):
        _fitted(unit, [np.nan, 1], TrainingHealth(print, unit, COURSE))


def test_the_largest_gradient_of_each_epoch_is_logged(unit):
    """Of (w x - 1)², at w = 2, the gradient is 2 at x = 1 and 0 at x = 0, which is then reported once."""
    lines = []
    health = TrainingHealth(lines.append, unit, COURSE)

    history, _ = _fitted(unit, [1, 0, 0], health)

    assert history["largest_gradient_norm"] == [pytest.approx(2.0), 0.0, 0.0]
    assert health.findings == [{"epoch": 2, "kind": "no_gradient", "finding": health.findings[0]["finding"]}]
    assert lines == [f"Warning: {health.findings[0]['finding']}"]


def test_what_was_found_beforehand_is_said_first(unit):
    """Findings of the plan are those of epoch 0."""
    lines = []
    health = TrainingHealth(lines.append, unit, COURSE, {"fold_without_positives": "No nodule in fold 4."})

    _fitted(unit, [1], health)

    assert lines == ["Warning: No nodule in fold 4."]
    assert health.findings[0]["epoch"] == 0


@pytest.fixture(scope="module")
def forum_store(tmp_path_factory):
    """Five phantom scans of whose nodules one is left in each: 1 candidate in 120."""
    folder = tmp_path_factory.mktemp("forum")
    taken = Acquisition((60, 80), (200, 240), pixel_mm=(1.0, 1.3), slice_mm=(2.0, 2.5))
    phantom = write_phantom(folder / "luna", 5, seed=7, num_nodules=1, imbalance=150, acquisition=taken)
    tree = LunaTree.open(phantom.root)
    table = tree.candidates()
    first = table[table["class"] == 1].drop_duplicates("seriesuid")
    others = table[table["class"] == 0].groupby("seriesuid").head(119)
    prepare(tree, pd.concat([first, others]), folder / "store")
    return folder / "store"


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        ["--loss", "bce"],
        ["--loss", "focal", "--set", "loss.gamma=5", "--set", "loss.apply_class_balancing=true"],
    ],
    ids=["bce", "focal"],
)
def test_the_forum_run_is_diagnosed(run_cli, forum_store, tmp_path, loss):
    """Over 99 % accuracy and 50 % balanced accuracy at natural prevalence: a line says why."""
    folds = pd.read_csv(forum_store / "candidates.csv")["fold"].unique()
    options = ["--val-folds", str(folds[0]), "--set", "precision=float32", "--set", "model.filters=[4,8]"]
    options += ["--set", "training.epochs=2", "--set", "model.dense_units=16", *loss]

    done = run_cli("train", forum_store, tmp_path / "run", *options)

    metrics = json.loads(Path(tmp_path / "run" / "metrics.json").read_text())
    assert done.returncode == 0, done.stderr
    assert metrics["validation"]["accuracy"] > 0.99
    assert metrics["validation"]["balanced_accuracy"] == 0.5
    assert metrics["health"][0]["kind"].startswith("one_class")
    assert "Warning: No validation cube is called a nodule: accuracy 99.17% is what always" in done.stderr
