"""A run that was killed or paused at any moment, and gone on with, is the run that never stopped."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from luna_cls.cubes.preparation import prepare
from luna_cls.errors import InputError
from luna_cls.learning import checkpoints, models, runs
from luna_cls.learning.checkpoints import Checkpoint
from luna_cls.learning.training import train
from luna_cls.scans.luna16 import LunaTree
from luna_cls.settings import load_settings

SETTINGS = (
    "seed=5",
    "precision=float32",
    "split.validation_folds=[3]",
    "augmentation.symmetries=cube",
    "augmentation.noise_hu=20",
    "model.filters=[4, 8]",
    "model.dense_units=8",
    "model.dropout=0.4",
    "training.epochs=4",
    "training.batch_size=8",
    "training.steps_per_epoch=5",
    "training.ema=0.8",
    "optimizer.schedule=cosine",
    "optimizer.warmup_steps=3",
    "optimizer.clip_norm=1.0",
)
EPOCHS, STEPS = 4, 5


def _settings(*overrides):
    return load_settings("seed", [*SETTINGS, *overrides])


def _options():
    return [part for setting in SETTINGS for part in ("--set", setting)]


def _quiet(line):
    """Says nothing."""


class _StopAfter:
    """Asks to stop once it has been looked at so many times: after every step and at every epoch's end."""

    def __init__(self, looks):
        self.left = looks

    def __call__(self):
        self.left -= 1
        return self.left < 0


def _result(run):
    """What must be the same to the last bit."""
    weights = models.load(run / "model.keras").get_weights()
    newest = checkpoints.newest(run / "checkpoint", pytest.fail)
    return {
        "best model": [weight.tobytes() for weight in weights],
        "every variable": dict(zip(newest.names, (value.tobytes() for value in newest.values), strict=True)),
        **{
            name: (run / name).read_bytes()
            for name in ("history.csv", "validation_predictions.csv", "metrics.json")
        },
    }


@pytest.fixture(scope="module")
def whole(small_store, tmp_path_factory):
    """A run that never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(small_store, _settings(), run, say=_quiet)
    return run


@pytest.fixture(scope="module")
def paused(small_store, tmp_path_factory):
    """A run that paused after two steps of its second epoch."""
    run = tmp_path_factory.mktemp("runs") / "paused"
    assert train(small_store, _settings(), run, asked_to_stop=_StopAfter(STEPS + 2), say=_quiet) is None
    return run


@pytest.fixture
def begun(paused, tmp_path):
    """A copy of that run, to be spoilt or gone on with."""
    return shutil.copytree(paused, tmp_path / "begun")


# A look after each step but the last of an epoch, and one at its end: epoch e, step s is look 5 e + s.
@pytest.mark.parametrize("looks", [1, 4, 18])
def test_a_paused_run_ends_as_one_that_never_stopped(small_store, whole, tmp_path, looks):
    """Dropout, augmentation, optimizer, averaged weights, learning rate, metrics and history, bit for bit."""
    run, lines = tmp_path / "run", []

    assert train(small_store, _settings(), run, asked_to_stop=_StopAfter(looks), say=lines.append) is None
    paused = len(lines)
    train(small_store, _settings(), run, resume=True, say=lines.append)

    epoch, step = divmod(looks + 1, STEPS)
    place = f"after step {step} of 5 in epoch {epoch + 1}" if step else f"after epoch {epoch}"
    assert lines[paused - 1] == (
        f"Asked to stop: saved {place}. luna-cls train {small_store.path} {run} --resume goes on from there."
    )
    assert any(line.startswith(f"Going on after epoch {epoch}") for line in lines[paused:])
    assert _result(run) == _result(whole)


@pytest.mark.slow
def test_a_run_killed_three_times_ends_the_same(small_store, whole, tmp_path):
    """SIGKILL at three moments of the training, each time another, and --resume after each."""
    run, luck = tmp_path / "run", np.random.default_rng(4)
    command = [
        sys.executable,
        "-m",
        "luna_cls",
        "train",
        str(small_store.path),
        str(run),
        "--resume",
        *_options(),
    ]
    kills = 0
    for _ in range(3):
        before = _stands_at(run)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            limit = time.monotonic() + 120
            while process.poll() is None and _stands_at(run) == before and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(luck.uniform(0, 0.3))
            kills += process.poll() is None
            process.kill()
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)

    assert kills >= 2
    assert ended.returncode == 0, ended.stderr
    assert _result(run) == _result(whole)


def _stands_at(run):
    return sorted(path.name for path in run.glob("checkpoint/[0-9]*.npz"))


@pytest.mark.slow
def test_the_command_pauses_when_asked_to_end(small_store, whole, tmp_path, run_cli):
    """SIGTERM: status 0 and a line that says how to go on; --resume alone takes the run's own settings."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "luna_cls", "train", str(small_store.path), str(run), *_options()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        limit = time.monotonic() + 120
        while not _stands_at(run) and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    resumed = run_cli("train", small_store.path, run, "--resume")
    again = run_cli("train", small_store.path, run, "--resume")

    assert process.returncode == 0
    assert said.rstrip().endswith(f"luna-cls train {small_store.path} {run} --resume goes on from there.")
    assert resumed.returncode == 0, resumed.stderr
    assert _result(run) == _result(whole)
    assert again.returncode == 0
    assert "finished already: nothing is left to do." in again.stderr


def test_a_damaged_checkpoint_is_passed_over(small_store, whole, begun):
    """The one before it serves, and a line says so; the end is the same."""
    newest = max(begun.glob("checkpoint/*.npz"))
    newest.write_bytes(newest.read_bytes()[:-200])
    lines = []

    train(small_store, _settings(), begun, resume=True, say=lines.append)

    assert sum("is damaged" in line and newest.name in line for line in lines) == 1
    assert "Going on after epoch 1." in lines
    assert _result(begun) == _result(whole)


@pytest.mark.parametrize("byte", [3, 70, 200, 1500])
def test_a_flipped_bit_is_passed_over(tmp_path, byte):
    """Wherever one is flipped, the checkpoint before it serves, and the damaged one goes."""
    values = [np.arange(200.0), np.ones((3, 4), np.float32)]
    for epoch in (1, 2):
        checkpoints.save(Checkpoint(epoch, 0, False, {}, ["a", "b"], values), tmp_path)
    newest = tmp_path / "000002-000000000.npz"
    damaged = bytearray(newest.read_bytes())
    damaged[byte] ^= 64
    newest.write_bytes(damaged)
    said = []

    read = checkpoints.newest(tmp_path, said.append)

    assert (read.epoch, len(said)) == (1, 1)
    assert not newest.exists()


def test_a_disk_that_is_full_while_saving_costs_nothing(small_store, whole, tmp_path, monkeypatch):
    """No room for the second epoch's checkpoint: the first one stays whole, and the end is the same."""
    run, save = tmp_path / "run", np.savez

    def without_room(path, **arrays):
        save(path, **arrays)
        if path.name.startswith(".000002"):
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("luna_cls.learning.checkpoints.np.savez", without_room)
        with pytest.raises(OSError, match="No space left on device"):
            train(small_store, _settings(), run, say=_quiet)
    kept = [path.name for path in (run / "checkpoint").iterdir()]
    train(small_store, _settings(), run, resume=True, say=_quiet)

    assert kept == ["000001-000000000.npz"]
    assert _result(run) == _result(whole)


def test_without_a_checkpoint_that_can_be_read_nothing_is_guessed(small_store, begun):
    """Two damaged checkpoints are an error that names the folder."""
    for path in begun.glob("checkpoint/*.npz"):
        path.write_bytes(b"PK\x03\x04 no more")

    with pytest.raises(InputError, match=r"No checkpoint in .*checkpoint can be read. Start the run over"):
        train(small_store, _settings(), begun, resume=True, say=_quiet)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.name=focal"], r"begun with other settings: loss.name was bce, is focal\. To go on"),
        (
            ["optimizer.learning_rate=0.5", "training.epochs=9"],
            r"optimizer.learning_rate was 0.001, is 0.5; training.epochs was 4, is 9",
        ),
        (["training.patience=2"], r"training.patience was None, is 2"),
    ],
)
def test_other_settings_are_refused(small_store, begun, overrides, message):
    """The error lists each that differs, before and now, and nothing is touched."""
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}

    with pytest.raises(InputError, match=message):
        train(small_store, _settings(*overrides), begun, resume=True, say=_quiet)

    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_another_store_is_refused(small_tree, begun, tmp_path):
    """One cube fewer is another store."""
    tree = LunaTree.open(small_tree)
    other = prepare(tree, tree.candidates()[:-1], tmp_path / "other", workers=1)

    with pytest.raises(InputError, match=r"was begun with other cubes than .*other holds"):
        train(other, _settings(), begun, resume=True, say=_quiet)


def test_an_unfinished_run_is_not_begun_again_unasked(small_store, begun):
    """Without --resume or --force it is an error that names both."""
    with pytest.raises(InputError, match=r"unfinished run\. Pass --resume to go on with it, --force"):
        train(small_store, _settings(), begun, say=_quiet)


def test_another_backend_or_precision_is_refused(small_store, begun):
    """Nothing of a checkpoint would mean the same there."""
    path = begun / "environment.json"
    path.write_text(path.read_text().replace('"dtype_policy": "float32"', '"dtype_policy": "mixed_bfloat16"'))

    with pytest.raises(InputError, match="begun with dtype_policy mixed_bfloat16; here it is float32"):
        train(small_store, _settings(), begun, resume=True, say=_quiet)


def test_another_machine_is_told_of(small_store, begun):
    """Other versions, threads or devices may change last digits: one warning names what changed."""
    path = begun / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["keras"], environment["threads"]["cores"] = "3.0.0", 96
    path.write_text(json.dumps(environment))
    lines = []

    train(small_store, _settings(), begun, resume=True, say=lines.append)

    (warning,) = [line for line in lines if "was begun with" in line]
    assert "keras 3.0.0, now" in warning
    assert f"cores 96, now {len(os.sched_getaffinity(0))}" in warning


def test_a_run_that_ended_early_stays_ended(small_store, tmp_path):
    """Patience ran out, then the power, before the predictions were written: resumed, no epoch is added."""
    run = tmp_path / "run"
    settings = _settings("training.patience=1", "training.epochs=40", "training.monitor=val_specificity")
    train(small_store, settings, run, say=_quiet)
    rows = len(pd.read_csv(run / "history.csv"))
    expected = _result(run)
    for name in ("metrics.json", "validation_predictions.csv"):
        (run / name).unlink()

    train(small_store, settings, run, resume=True, say=_quiet)

    assert rows < 40
    assert _result(run) == expected


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """Saving the second of two fails half way: the first is there, whole, and nothing half-written."""
    notes = {"best": {"epoch": 0, "value": float("nan")}}
    first = Checkpoint(1, 0, False, notes, ["a"], [np.arange(5.0)])
    checkpoints.save(first, tmp_path)

    def fail(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(Checkpoint(2, 0, False, notes, ["a"], [np.arange(5.0)]), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["000001-000000000.npz"]
    read = checkpoints.newest(tmp_path, pytest.fail)
    assert (read.epoch, read.step, read.is_over, read.names) == (1, 0, False, ["a"])
    assert np.isnan(read.notes["best"]["value"])
    np.testing.assert_array_equal(read.values[0], np.arange(5.0))


def test_two_checkpoints_are_kept(tmp_path):
    """Of five, in the order of training, the last two; and nothing that a killed process had half-written."""
    (tmp_path / ".000001-000000000.npz.99.partial.npz").touch()
    for epoch, step in ((0, 7), (1, 0), (1, 40), (2, 0), (10, 0)):
        checkpoints.save(Checkpoint(epoch, step, False, {}, [], []), tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000002-000000000.npz",
        "000010-000000000.npz",
    ]


def test_the_command_takes_one_of_them(small_store, tmp_path, run_cli):
    """To go on and to start over are two things: one line, status 1."""
    done = run_cli("train", small_store.path, tmp_path / "run", "--resume", "--force")

    assert done.returncode == 1
    assert "--resume goes on with a run, --force starts it over: give one of them." in done.stderr


def test_a_new_run_may_be_resumed(small_store, whole, tmp_path):
    """--resume on a path where nothing is begins there: a batch script can always pass it."""
    run = tmp_path / "run"
    train(small_store, _settings(), run, resume=True, say=_quiet)
    assert _result(run) == _result(whole)


def test_a_folder_in_which_nothing_came_to_be_may_be_resumed(small_store, whole, tmp_path):
    """Killed before its settings were whole, or made by hand and empty: the run begins there."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".settings.toml.7.partial.toml").touch()

    train(small_store, _settings(), run, resume=True, say=_quiet)

    assert _result(run) == _result(whole)


def test_one_training_at_a_time(small_store, begun):
    """While another process holds the run, going on with it is an error, and nothing is written."""
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with runs.alone(begun), pytest.raises(InputError, match=r"Another training is at work in .*begun"):
        train(small_store, _settings(), begun, resume=True, say=_quiet)

    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_what_replaces_a_run_may_be_gone_on_with(small_store, whole, tmp_path):
    """--force over a finished run fails in its second epoch: the new one stays, to be gone on with."""
    run = tmp_path / "run"
    train(small_store, _settings("seed=9"), run, say=_quiet)

    def fail(line):
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_store, _settings(), run, force=True, say=fail)
    train(small_store, _settings(), run, resume=True, say=_quiet)

    assert _result(run) == _result(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
