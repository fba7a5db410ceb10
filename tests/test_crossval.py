"""Every usable cube is scored once, by a model that has not seen its scan; however the folds were run."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from test_resume import _StopAfter
from test_store_on_a_cluster import _cluster
from typer.testing import CliRunner

from luna_cls.cli import app
from luna_cls.cubes.folds import LeakError
from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import alone_in
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.evaluation import evaluate_submission
from luna_cls.judging.submission import Reference
from luna_cls.learning import models, training
from luna_cls.learning.crossvalidation import crossvalidate
from luna_cls.processes import shares
from luna_cls.settings import load_settings

SETTINGS = (
    "seed=5",
    "precision=float32",
    "augmentation.symmetries=cube",
    "model.filters=[2]",
    "model.size_vox=29",
    "model.dense_units=4",
    "model.dropout=0.4",
    "training.epochs=2",
    "training.batch_size=8",
    "training.steps_per_epoch=3",
)
TURNS = {0: 1, 1: 2, 2: 0}  # test fold: validation fold
SAME = ("predictions.csv", "metrics.json", "failures.csv", "crossval.json", "crossval.toml")


def _settings(*overrides):
    return load_settings("seed", [*SETTINGS, *overrides])


def _options():
    return [part for setting in SETTINGS for part in ("--set", setting)]


def _quiet(line):
    """Says nothing."""


def _results(out):
    """What must be the same to the last byte."""
    return {name: (out / name).read_bytes() for name in SAME}


def _with_table(store, path, change):
    """A store whose table is another, and its cubes the same."""
    table = store.candidates.copy()
    change(table)
    shutil.copytree(store.path, path)
    table.to_csv(path / "candidates.csv", index=False)
    return CubeStore.open(path)


@pytest.fixture(scope="module")
def store(small_store, tmp_path_factory):
    """The small store, its fourth scan, fold 3, marked as unreadable: 30 usable cubes in folds 0 to 2."""

    def lose_a_scan(table):
        table.loc[table["fold"] == 3, "status"] = "unreadable"

    return _with_table(small_store, tmp_path_factory.mktemp("crossval") / "store", lose_a_scan)


@pytest.fixture(scope="module")
def annotations(small_tree):
    return small_tree / "annotations.csv"


@pytest.fixture(scope="module")
def crossed(store, annotations, tmp_path_factory):
    """The folder of a cross-validation in one go, its result, and the lines it said."""
    out, lines = tmp_path_factory.mktemp("crossval") / "out", []
    result = crossvalidate(store, _settings(), out, annotations=annotations, say=lines.append)
    return out, result, lines


@pytest.fixture
def copy(crossed, tmp_path):
    """A copy of that folder, to be spoilt."""
    return shutil.copytree(crossed[0], tmp_path / "out")


def test_every_usable_row_is_predicted_once(crossed, store):
    """predictions.csv has the store's 30 usable rows, in its order; probability = sigmoid(logit)."""
    table = pd.read_csv(crossed[0] / "predictions.csv", dtype={"seriesuid": str})

    rows = store.candidates[store.candidates["status"] == "ok"].reset_index(drop=True)
    columns = ["seriesuid", "coordX", "coordY", "coordZ", "class"]
    assert len(table) == 30
    pd.testing.assert_frame_equal(table[columns], rows[columns])
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-table["logit"])), rtol=1e-12)


@pytest.mark.parametrize("fold", TURNS)
def test_a_prediction_is_that_of_its_folds_model(crossed, store, fold):
    """foldK/model.keras gives the logits of the rows of fold K; neither it nor its choice saw that fold."""
    run = crossed[0] / f"fold{fold}"
    is_own = (store.candidates["fold"] == fold).to_numpy()
    is_usable = (store.candidates["status"] == "ok").to_numpy()
    logits = pd.read_csv(crossed[0] / "predictions.csv")["logit"]

    middle = store.cubes[is_own][:, 1:-1, 1:-1, 1:-1, None]  # the model reads 29 of 31 voxels
    actual = models.load(run / "model.keras").predict(middle, verbose=0)

    settings = load_settings(str(run / "settings.toml"))
    np.testing.assert_allclose(actual[:, 0], logits[is_own[is_usable]], rtol=1e-5, atol=1e-6)
    assert settings.split.test_folds == (fold,)
    assert settings.split.validation_folds == (TURNS[fold],)
    assert settings.seed == 5 + fold


def test_metrics_are_those_of_the_predictions(crossed):
    """Pooled: of all 30 rows. Over folds: mean and sd (n - 1) of the three folds' own, each of ten rows."""
    out, result, _ = crossed
    table = pd.read_csv(out / "predictions.csv")
    written = json.loads((out / "metrics.json").read_text())

    own = [binary_metrics(part["class"], part["logit"]) for _, part in table.groupby("seriesuid", sort=False)]
    auc = [metrics["auc"] for metrics in own]
    assert written["metrics"]["auc"] == binary_metrics(table["class"], table["logit"])["auc"]
    assert sorted(entry["metrics"]["auc"] for entry in written["folds"]) == sorted(auc)
    assert written["over_folds"]["auc"]["mean"] == pytest.approx(np.mean(auc))
    assert written["over_folds"]["auc"]["standard_deviation"] == pytest.approx(np.std(auc, ddof=1))
    assert written["over_folds"]["auc"]["folds"] == 3
    assert "tp" not in written["over_folds"]
    assert written["pooled_folds"] == [0, 1, 2]
    assert written["missing_folds"] == []
    assert result["failures"] == []


def test_the_cpm_is_over_all_scans_of_the_store(crossed, annotations, tmp_path):
    """It is that of evaluate on predictions.csv; the scan without a cube counts: 4 scans, 12 nodules."""
    out, result, _ = crossed

    again = evaluate_submission(
        out / "predictions.csv",
        Reference(annotations, series_uids=out / "seriesuids.csv"),
        tmp_path / "again",
    )

    assert result["froc"] == again["froc"]
    assert (result["froc"]["num_scans"], result["froc"]["num_nodules"]) == (4, 12)
    assert result["froc"]["counts"]["false_negatives"] >= 3
    assert json.loads((out / "evaluation" / "froc.json").read_text())["cpm"] == again["froc"]["cpm"]


def test_every_line_says_its_fold(crossed):
    """Each line begins with "fold 0: " or another; of each fold there are two epochs."""
    lines = crossed[2]

    for fold in TURNS:
        own = [line for line in lines if line.startswith(f"fold {fold}: ")]
        assert sum(line.startswith(f"fold {fold}: epoch ") for line in own) == 2
    assert all(line.startswith("fold ") for line in lines)


def _forget(out, *folds):
    """Takes the folder back to where these folds were not begun."""
    for fold in folds:
        shutil.rmtree(out / f"fold{fold}")
    for name in ("predictions.csv", "metrics.json", "failures.csv"):
        (out / name).unlink()


def test_paused_and_gone_on_with_it_ends_the_same(crossed, copy, store):
    """Stopped in a fold, it says how to go on; then the others are left as they are; same bytes."""
    _forget(copy, 1)
    lines, others = [], [copy / f"fold{fold}" / "test_predictions.csv" for fold in (0, 2)]
    looks = _StopAfter(1 + 1)  # before the fold, and after its first step

    paused = crossvalidate(store, _settings(), copy, resume=True, asked_to_stop=looks, say=lines.append)
    has_metrics = (copy / "metrics.json").exists()
    before = [path.stat().st_mtime_ns for path in others]
    crossvalidate(store, _settings(), copy, resume=True, say=lines.append)

    go_on = f"luna-cls crossval {store.path} {copy} --resume goes on from there."
    assert paused is None
    assert not has_metrics
    assert f"fold 1: Asked to stop: saved after step 2 of 3 in epoch 1. {go_on}" in lines
    assert f"Asked to stop. {go_on}" in lines
    assert lines[:2] == ["fold 0: finished already", "fold 2: finished already"]
    assert [path.stat().st_mtime_ns for path in others] == before
    assert _results(copy) == _results(crossed[0])


def test_a_fold_that_another_stopped_is_missing(copy, store, monkeypatch):
    """Its process was asked to end, crossval was not: no success, and the line says what to do."""
    (copy / "fold1" / "test_predictions.csv").unlink()
    monkeypatch.setattr(training, "train", lambda *_, **__: None)

    result = crossvalidate(store, _settings(), copy, resume=True, say=_quiet)

    assert result["missing_folds"] == [1]
    ((fold, status, reason),) = result["failures"]
    assert (fold, status) == (1, "failed")
    assert "asked to stop, but not by crossval. Go on with --resume" in reason


def test_stopped_before_anything_was_learned_what_was_there_stays(copy, store):
    """--force over a finished one, and a stop at once: the old files are all there, to the byte."""
    before, lines = _results(copy), []

    result = crossvalidate(
        store, _settings("seed=6"), copy, force=True, asked_to_stop=lambda: True, say=lines.append
    )

    assert result is None
    assert lines == ["Asked to stop before anything was learned: nothing was changed."]
    assert _results(copy) == before
    assert sorted(path.name for path in copy.parent.iterdir()) == [copy.name]


def test_nothing_is_replaced_while_another_is_at_work(copy, store):
    """--force on a folder that another process holds is an error, for crossval and for a run of it."""
    before = _results(copy)
    with alone_in(copy, ""), pytest.raises(InputError, match="Another crossval is at work in"):
        crossvalidate(store, _settings(), copy, force=True, say=_quiet)
    own = _settings("split.validation_folds=[1]")
    with alone_in(copy / "fold0", ""), pytest.raises(InputError, match="Another training is at work in"):
        training.train(store, own, copy / "fold0", force=True, say=_quiet)

    assert _results(copy) == before


@pytest.mark.parametrize("option", ["force", "resume"])
def test_it_is_no_run_of_train(copy, store, option):
    """`train` neither replaces the folder of a crossval nor goes on with it."""
    before = _results(copy)
    with pytest.raises(InputError):
        training.train(store, _settings(), copy, **{option: True}, say=_quiet)

    assert _results(copy) == before


def test_several_processes_for_one_model_are_refused(store, tmp_path):
    """Of `distribution = multihost` a line says what to use instead."""
    settings = load_settings("seed", [*SETTINGS, "distribution=multihost"])
    with pytest.raises(InputError, match=r"multihost is for several\. Use mirrored, or --workers or --dask"):
        crossvalidate(store, settings, tmp_path / "out", say=_quiet)


def test_a_fold_that_fails_stops_no_other(crossed, copy, store, annotations, monkeypatch):
    """Fold 1 breaks down: 20 rows of folds 0 and 2, no CPM; gone on with later, the bytes are the same."""
    (copy / "fold1" / "test_predictions.csv").unlink()
    train = training.train

    def break_down(store, settings, run, **options):
        if run.name == "fold1":
            raise RuntimeError("the device\nis lost")
        return train(store, settings, run, **options)

    lines = []
    with monkeypatch.context() as patched:
        patched.setattr(training, "train", break_down)
        result = crossvalidate(
            store, _settings(), copy, resume=True, annotations=annotations, say=lines.append
        )
    partial = pd.read_csv(copy / "predictions.csv", dtype={"seriesuid": str})
    has_evaluation = (copy / "evaluation").exists()
    crossvalidate(store, _settings(), copy, resume=True, say=_quiet)

    assert result["failures"] == [(1, "failed", "RuntimeError: the device is lost")]
    assert "fold 1: failed: RuntimeError: the device is lost" in lines
    assert (result["pooled_folds"], result["missing_folds"]) == ([0, 2], [1])
    assert result["metrics"]["tp"] + result["metrics"]["fn"] == 6
    assert len(partial) == 20
    assert not has_evaluation
    assert "froc" not in result
    assert _results(copy) == _results(crossed[0])


def test_a_fold_that_diverged_is_scored_and_listed(copy, store):
    """The model of its best epoch is what there is, and failures.csv says so."""
    path = copy / "fold2" / "metrics.json"
    path.write_text(path.read_text().replace('"diverged_in": null', '"diverged_in": 2'))

    result = crossvalidate(store, _settings(), copy, resume=True, say=_quiet)

    ((fold, status, reason),) = pd.read_csv(copy / "failures.csv").to_numpy().tolist()
    assert (fold, status) == (2, "diverged")
    assert reason.startswith("its training diverged in epoch 2; the model of epoch ")
    assert result["missing_folds"] == []


def test_a_fold_without_nodules_ends_with_3(store, tmp_path):
    """Fold 2 alone can teach 0 and 1, which fail; 2 is scored; the table says what it rests on."""

    def lose_nodules(table):
        table.loc[table["fold"] == 2, "class"] = 0

    dull, out = _with_table(store, tmp_path / "dull", lose_nodules), tmp_path / "out"

    done = CliRunner().invoke(app, ["crossval", str(dull.path), str(out), *_options()])

    failures = pd.read_csv(out / "failures.csv")
    words = " ".join(done.output.split())
    assert done.exit_code == 3, done.output
    assert failures[["fold", "status"]].to_numpy().tolist() == [
        [0, "failed"],
        [1, "failed"],
        [2, "one_class"],
    ]
    assert "No training cube is a nodule" in failures["reason"][0]
    assert "1 of 3 folds, each by a model that has not seen it; 0, 1 failed" in words
    assert "No CPM: folds 0, 1 are missing, and their nodules with them." in words
    assert "--resume tries what failed again" in words
    assert len(pd.read_csv(out / "predictions.csv")) == 10


def _two_folds(store):
    table = store.candidates
    kept = store.candidates["status"].where(table["fold"] != 2, "unreadable")
    return CubeStore(store.path, store.format, table.assign(status=kept), store.checksum)


def test_two_folds_are_too_few(store, tmp_path):
    """One to test and one to choose the epoch leave none to train on: one line, and nothing is written."""
    with pytest.raises(InputError, match=r"needs three folds .* has cubes in folds \[0, 1\]") as refusal:
        crossvalidate(_two_folds(store), _settings(), tmp_path / "out", say=_quiet)

    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_scan_in_two_folds_is_a_leak(store, tmp_path):
    """A table that has one row of a scan in another fold is refused before anything is trained."""

    def split_a_scan(table):
        table.loc[table.index[table["fold"] == 0][0], "fold"] = 1

    leaky = _with_table(store, tmp_path / "leaky", split_a_scan)

    with pytest.raises(LeakError, match="Scores would be worthless"):
        crossvalidate(leaky, _settings(), tmp_path / "out", say=_quiet)

    assert not (tmp_path / "out").exists()


def test_a_model_that_saw_its_test_fold_is_a_leak(copy, store):
    """fold1 says of itself that it was validated on what it is scored on: nothing is pooled."""
    path = copy / "fold1" / "settings.toml"
    path.write_text(path.read_text().replace("    2,\n", "    1,\n", 1))

    with pytest.raises(LeakError, match=r"fold1 was not trained for its fold: split.validation_folds was"):
        crossvalidate(store, _settings(), copy, resume=True, say=_quiet)


def test_predictions_of_another_fold_are_a_leak(copy, store):
    """fold1 with the predictions of fold 0 would score fold 0 twice, once by a model that has seen it."""
    shutil.copy(copy / "fold0" / "test_predictions.csv", copy / "fold1" / "test_predictions.csv")

    with pytest.raises(LeakError, match="does not hold each of the 10 usable candidates of fold 1 once"):
        crossvalidate(store, _settings(), copy, resume=True, say=_quiet)


def test_what_was_begun_is_not_replaced_unasked(copy, store):
    """Without --resume or --force an earlier folder is an error that names both."""
    with pytest.raises(InputError, match=r"exists already\. Pass --resume to go on with it, --force"):
        crossvalidate(store, _settings(), copy, say=_quiet)


def test_other_settings_or_cubes_are_refused(copy, store, small_store):
    """What differs is named, before and now; the split of a recipe does not matter."""
    other = CubeStore(store.path, store.format, store.candidates, "f" * 64)

    with pytest.raises(InputError, match=r"begun with other settings: loss.name was bce, is focal\. To go"):
        crossvalidate(store, _settings("loss.name=focal"), copy, resume=True, say=_quiet)
    with pytest.raises(InputError, match=r"begun with other cubes .* their checksums begin with .* ffffffff"):
        crossvalidate(other, _settings(), copy, resume=True, say=_quiet)
    crossvalidate(store, _settings("split.test_folds=[1]"), copy, resume=True, say=_quiet)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "hinge"], "Not one fold could be trained. The first reason: Unknown loss 'hinge'."),
        (["--annotations", "gone.csv"], "No annotated nodules file at gone.csv"),
        (["--excluded", "gone.csv"], "--excluded goes with --annotations"),
        (["--set", "split.test_folds=[1]"], "crossval tests on every fold in turn: leave --set split"),
        (["--workers", "0"], "--workers must be at least 1. Received: 0."),
        (["--workers", "2", "--dask", "tcp://127.0.0.1:1"], "--workers and --dask exclude each other"),
        (["--resume", "--force"], "--resume goes on with a run, --force starts it over"),
    ],
)
def test_wrong_inputs_end_with_1_and_one_line(store, tmp_path, options, words):
    """Whatever all folds would stumble over is said once, and no folder is left."""
    out = tmp_path / "out"

    done = CliRunner().invoke(app, ["crossval", str(store.path), str(out), *_options(), *options])

    assert done.exit_code == 1, done.output
    assert " ".join(done.output.split()).startswith(f"luna-cls: {words}")
    assert len(done.output.splitlines()) == 1
    assert not out.exists()


def test_annotations_of_other_scans_are_refused_before_the_training(store, annotations, tmp_path):
    """Days of training are not spent on what cannot be scored."""
    table = pd.read_csv(annotations).assign(seriesuid="9.9")
    table.to_csv(tmp_path / "other.csv", index=False)

    with pytest.raises(InputError, match=r"No nodule in .*other.csv is in a scan of .*store"):
        crossvalidate(store, _settings(), tmp_path / "out", annotations=tmp_path / "other.csv", say=_quiet)

    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_with_two_workers_each_fold_is_what_train_makes(store, tmp_path, run_cli):
    """Status 0, the path, how to get the CPM; and fold 0 has the bytes of train with as many cores."""
    run, out = tmp_path / "run", tmp_path / "out"

    def take_a_share():
        os.sched_setaffinity(0, shares(2)[0].cores)

    turn = ("--val-folds", TURNS[0], "--set", "split.test_folds=[0]")
    trained = run_cli("train", store.path, run, *_options(), *turn, preexec_fn=take_a_share)
    done = run_cli("crossval", store.path, out, *_options(), "--workers", 2)

    assert trained.returncode == 0, trained.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}\n")
    assert "For FROC and CPM: luna-cls evaluate" in done.stderr
    assert {line[:8] for line in done.stderr.splitlines()[:-1]} == {"fold 0: ", "fold 1: ", "fold 2: "}
    assert len(pd.read_csv(out / "predictions.csv")) == 30
    for name in ("history.csv", "validation_predictions.csv", "metrics.json", "settings.toml"):
        assert (out / "fold0" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(crossed, copy, store, tmp_path):
    """A Dask worker, whose threads draw random numbers of their own, trains a fold to the same bytes."""
    _forget(copy, 1)
    worker = "distributed.cli.dask_worker", "--nworkers", "1", "--nthreads", "2"
    lines = []
    with _cluster(tmp_path, worker, 1) as address:
        crossvalidate(store, _settings(), copy, dask=address, resume=True, say=lines.append)

    assert sorted(lines) == ["fold 0: finished already", "fold 1: done", "fold 2: finished already"]
    assert _results(copy) == _results(crossed[0])
