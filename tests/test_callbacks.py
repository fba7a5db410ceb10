import keras
import numpy as np
import pytest

from luna_cls.judging.binary import binary_metrics
from luna_cls.learning import losses
from luna_cls.learning.callbacks import BestModel, ExactValidation, LiveProgress, PlainLines

NAN = float("nan")


@pytest.mark.parametrize(
    ("monitor", "values", "best_epoch"),
    [
        ("val_auc", [0.5, 0.9, 0.7], 1),
        ("val_loss", [0.5, 0.2, 0.7], 1),
        ("val_auc", [0.5, 0.9, 0.9], 1),
        ("val_auc", [0.5, NAN, 0.4], 0),
        ("val_precision", [NAN, NAN, 0.1], 2),
    ],
    ids=["more", "less loss", "tie", "NaN later", "NaN first"],
)
def test_the_best_epoch_is_kept(tmp_path, monitor, values, best_epoch):
    """The first epoch of the best value is kept; NaN (nothing was called a nodule yet) is never best."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    best = BestModel(model, tmp_path / "model.keras", monitor)

    for epoch, value in enumerate(values):
        model.set_weights([np.full((1, 1), float(epoch))])
        best.on_epoch_end(epoch, {monitor: value})

    kept = keras.saving.load_model(tmp_path / "model.keras").get_weights()
    assert best.epoch == best_epoch
    assert kept == [[[best_epoch]]]


def test_exact_validation_adds_to_the_logs():
    """The logs gain val_loss, every binary metric and the largest logit; what was there stays."""
    labels, logits = np.array([1, 0, 0]), np.array([2.0, -1.0, 1.0])
    logs = {"loss": 0.5}

    ExactValidation(lambda: logits, labels, losses.get("bce"), print).on_epoch_end(0, logs)

    expected = {f"val_{name}": value for name, value in binary_metrics(labels, logits).items()}
    cross_entropy = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 3
    assert logs.pop("val_loss") == pytest.approx(cross_entropy, rel=1e-6)
    assert logs == {"loss": 0.5, "val_largest_logit": 2.0, **expected}


def test_exact_validation_asks_for_other_weights_if_logits_are_not_finite():
    """Logits of NaN call `recover` once, and what is logged is of the weights that it put back."""
    answers = iter([np.array([np.nan, 0.0]), np.array([3.0, -1.0])])
    told, logs = [], {}

    ExactValidation(lambda: next(answers), np.array([1, 0]), losses.get("bce"), told.append).on_epoch_end(
        4, logs
    )

    assert told == ["The model's logits stopped being finite in epoch 5"]
    assert logs["val_auc"] == 1.0


def test_an_epoch_is_one_plain_line():
    """The line holds the epoch, both losses and the three metrics that tell most."""
    lines = []
    callback = PlainLines(lines.append, epochs=15, cubes_per_step=100)
    logs = {"loss": 0.5, "val_loss": 0.25, "val_balanced_accuracy": 0.75, "val_auc": 0.875}

    callback.on_epoch_begin(1)
    callback.on_epoch_end(1, logs | {"val_average_precision": 0.125})

    assert lines[0].startswith(
        "epoch  2/15  loss 0.5000  val_loss 0.2500"
        "  val_balanced_accuracy 0.750  val_auc 0.875  val_average_precision 0.125"
    )
    assert lines[0].endswith(" cubes/s")


def test_progress_is_shown_within_an_epoch(monkeypatch):
    """Of 3 epochs of 10 steps: at a step a second, each; an epoch gone on with after step 7 begins there."""
    clock = iter(range(100))
    monkeypatch.setattr("luna_cls.learning.callbacks.time.perf_counter", lambda: next(clock))
    shown = []
    callback = LiveProgress(lambda *told: shown.append(told), epochs=3, steps=10, cubes_per_step=64)
    logs = {"loss": 0.25, "balanced_accuracy": 0.75}

    for epoch, steps in ((1, 3), (2, 10)):
        callback.set_params({"steps": steps})
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_end(0, logs)
        callback.on_train_batch_end(1, logs)

    assert [done for done, *_ in shown] == [18, 19, 21, 22]
    assert shown[0] == (18, 30, "epoch 2/3  loss 0.2500  balanced accuracy 0.750  64 cubes/s")


def test_progress_is_not_shown_at_every_step():
    """A thousand steps within an instant show next to nothing."""
    shown = []
    callback = LiveProgress(lambda *told: shown.append(told), epochs=1, steps=1000, cubes_per_step=64)
    callback.on_epoch_begin(0)
    for batch in range(1000):
        callback.on_train_batch_end(batch, {"loss": 1.0, "balanced_accuracy": 0.5})

    assert len(shown) <= 4
