"""Every loss gets the same folds, seeds, first weights, order of data and budget; killed, it goes on."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from test_crossval import _with_table
from test_resume import _StopAfter
from typer.testing import CliRunner

from luna_cls.cli import app
from luna_cls.errors import InputError
from luna_cls.files import alone_in
from luna_cls.judging.binary import binary_metrics
from luna_cls.learning import checkpoints, held_out, models
from luna_cls.learning.contest import EACH, Contest, Entrant
from luna_cls.learning.held_out import Means, plan_turns
from luna_cls.learning.loss_comparison import compare_losses
from luna_cls.learning.loss_results import _complete
from luna_cls.learning.tuning import GRIDS, Tuning, better_half, check_fair, parse_grids
from luna_cls.settings import load_settings

SETTINGS = (
    "precision=float32",
    "augmentation.symmetries=cube",
    "sampling.positives_per_batch=4",
    "model.filters=[2]",
    "model.size_vox=29",
    "model.dense_units=4",
    "model.dropout=0.4",
    "training.epochs=2",
    "training.batch_size=8",
    "training.steps_per_epoch=3",
)
FOLDS = ((0, 1), (2, 3))
SAME = ("comparison.csv", "failures.csv", "compare.json", "compare.toml", "seriesuids.csv")


def _settings(*overrides):
    return load_settings("seed", [*SETTINGS, *overrides])


def _contest(*losses, **options):
    return Contest(tuple(map(Entrant.parse, losses)), **{"seeds": 2, "tested": FOLDS, **options})


def _means(lines=None, asked_to_stop=lambda: False):
    return Means(asked_to_stop=asked_to_stop, say=(lines if lines is not None else []).append)


def _results(out):
    """What must be the same to the last byte."""
    return {
        **{name: (out / name).read_bytes() for name in SAME},
        **{path.name: path.read_bytes() for path in sorted((out / "predictions").iterdir())},
    }


def _options():
    return [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="module")
def annotations(small_tree):
    return small_tree / "annotations.csv"


@pytest.fixture(scope="module")
def compared(small_store, annotations, tmp_path_factory):
    """The folder of a comparison of two losses in one go, its result, and the lines it said: 8 trainings."""
    out, lines = tmp_path_factory.mktemp("compare") / "out", []
    contest = _contest("bce", "focal,gamma=5")
    result = compare_losses(
        small_store, _settings(), contest, out, annotations=annotations, resamples=50, means=_means(lines)
    )
    return out, result, lines


@pytest.fixture
def copy(compared, tmp_path):
    """A copy of that folder, to be spoilt."""
    return shutil.copytree(compared[0], tmp_path / "out")


def test_every_loss_has_the_same_trainings(compared):
    """Two losses, two seeds, two turns: eight runs whose settings differ in nothing but the loss."""
    out = compared[0]

    runs = sorted(path.parent.relative_to(out / "runs") for path in out.rglob("metrics.json"))
    names = ["seed0-folds0-1", "seed0-folds2-3", "seed1-folds0-1", "seed1-folds2-3"]
    assert [str(run) for run in runs] == [
        f"{loss}/{name}" for loss in ("bce", "focal-gamma-5") for name in names
    ]
    for name in names:
        bce, focal = (
            load_settings(str(out / "runs" / loss / name / "settings.toml"))
            for loss in ("bce", "focal-gamma-5")
        )
        assert focal.differences(bce) == ["loss.gamma was None, is 5", "loss.name was bce, is focal"]
        assert bce.seed == int(name[4])


def test_losses_of_a_seed_begin_with_the_same_weights_and_data(small_store, tmp_path):
    """At a learning rate of 1e-12 nothing is learned: weights after an epoch are equal, those of seeds not.

    The moving averages of batch normalisation are among them: they are of the very cubes that were seen.
    """
    out = tmp_path / "out"
    still = _settings("optimizer.learning_rate=1e-12", "training.epochs=1", "optimizer.weight_decay=0")

    compare_losses(small_store, still, _contest("bce", "sol", tested=FOLDS[:1]), out, means=_means())

    (bce, sol), (other, _) = (
        [
            models.load(out / "runs" / loss / f"seed{seed}-folds0-1" / "model.keras").get_weights()
            for loss in ("bce", "sol")
        ]
        for seed in (0, 1)
    )
    for ours, theirs in zip(bce, sol, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert max(np.abs(a - b).max() for a, b in zip(bce, other, strict=True)) > 0.1


def test_comparison_csv_has_every_metric_of_every_training(compared, small_store):
    """Rows of a loss and seed are metrics of its predictions, of all 40 candidates and of each turn's 20."""
    out, result, _ = compared
    long = pd.read_csv(out / "comparison.csv")
    pooled = pd.read_csv(out / "predictions" / "focal-gamma-5-seed1.csv", dtype={"seriesuid": str})
    rows = long[(long["loss"] == "focal, gamma=5") & (long["seed"] == 1)]

    assert list(long.columns) == ["loss", "seed", "folds", "prevalence", "metric", "value"]
    assert len(pooled) == len(small_store.candidates) == 40
    fold = small_store.candidates["fold"].to_numpy()
    for folds, kept in {"0+1 2+3": fold >= 0, "0+1": fold < 2, "2+3": fold >= 2}.items():
        own = rows[(rows["folds"] == folds) & (rows["prevalence"] == "natural")]
        expected = binary_metrics(pooled["class"][kept], pooled["logit"][kept])
        values = own.set_index("metric")["value"]
        for name in ("accuracy", "balanced_accuracy", "auc", "average_precision", "recall", "mcc"):
            assert values[name] == pytest.approx(expected[name]), (folds, name)
    balanced = rows[(rows["folds"] == "0+1 2+3") & (rows["prevalence"] == "balanced")]
    value = balanced.set_index("metric")["value"]
    assert value["accuracy"] == pytest.approx(
        binary_metrics(pooled["class"], pooled["logit"])["balanced_accuracy"]
    )
    assert set(long["loss"]) == {"bce", "focal, gamma=5", "always no"}
    seen = long[(long["loss"] == "always no") & (long["metric"] == "accuracy")].set_index("prevalence")[
        "value"
    ]
    assert seen.to_dict() == pytest.approx({"natural": 0.7, "balanced": 0.5})
    assert result["no_skill"]["natural"]["accuracy"] == pytest.approx(0.7)
    cpm = long[(long["loss"] == "bce") & (long["metric"] == "cpm")].set_index("seed")["value"]
    assert cpm.to_list() == result["by_seed"]["bce"]["cpm"]


def test_it_says_what_it_costs_and_that_four_scans_decide_nothing(compared):
    """8 trainings are announced; 2 epochs of 24 cubes each: 48, times 4; a verdict takes ten scans."""
    _, result, lines = compared

    assert lines[0].startswith("8 trainings of 2 epochs: 2 losses, seeds 0, 1, folds 0, 1 tested (fold 2 ")
    assert result["cost"]["bce"]["cubes"] == 4 * 48
    assert result["cost"]["bce"]["trainings"] == 4
    assert result["cost"]["focal, gamma=5"]["seconds"] > 0
    assert "cannot be told apart" in result["verdict"]
    assert "a verdict takes 10 scans or more" in result["verdict"]
    assert (result["num_scans"], result["num_nodules"], result["num_seeds"]) == (4, 12, 2)
    assert result["candidates"] == 40
    assert result["failures"] == []


def test_calibration_is_fitted_on_validation_and_measured_on_test(compared):
    """Of each loss the ECE as trained and after temperature and Platt, numbers between 0 and 1."""
    _, result, _ = compared

    for found in result["calibration"].values():
        assert list(found) == ["before", "temperature", "platt"]
        assert all(0 < found[name]["ece"] < 1 for name in found)


def test_the_chosen_threshold_is_that_of_validation(compared):
    """Balanced accuracy at the chosen threshold is that of thresholds found where the epoch was chosen."""
    from luna_cls.judging.binary import best_threshold

    out, result, _ = compared
    right = []
    for name in ("seed0-folds0-1", "seed0-folds2-3"):
        run = out / "runs" / "bce" / name
        chose, tested = (pd.read_csv(run / f"{which}_predictions.csv") for which in ("validation", "test"))
        threshold = best_threshold(chose["class"], chose["logit"])
        right.append(pd.DataFrame({"class": tested["class"], "chosen": tested["logit"] - threshold}))
    both = pd.concat(right)

    expected = binary_metrics(both["class"], both["chosen"])["balanced_accuracy"]
    assert result["by_seed"]["bce"]["balanced_accuracy_at_chosen_threshold"][0] == pytest.approx(expected)


def test_paused_and_gone_on_with_it_ends_the_same(compared, copy, small_store, annotations):
    """A run is lost and one more has not been scored; paused in it, gone on with: the same bytes."""
    shutil.rmtree(copy / "runs" / "focal-gamma-5" / "seed1-folds0-1")
    (copy / "runs" / "bce" / "seed0-folds2-3" / "test_predictions.csv").unlink()
    for name in ("comparison.csv", "comparison.json", "failures.csv"):
        (copy / name).unlink()
    lines, contest = [], _contest("bce", "focal,gamma=5")
    options = {"annotations": annotations, "resamples": 50, "resume": True}

    stop = _means(lines, _StopAfter(4))
    paused = compare_losses(small_store, _settings(), contest, copy, means=stop, **options)
    has_result = (copy / "comparison.csv").exists()
    compare_losses(small_store, _settings(), contest, copy, means=_means(), **options)

    assert paused is None
    assert not has_result
    assert f"--resume --annotations {annotations} goes on from there." in lines[-1]
    assert _results(copy) == _results(compared[0])


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_table(compared, small_store, annotations, tmp_path):
    """Three times kill -9, up to three seconds after it got on: comparison.csv is equal to the last digit."""
    out = tmp_path / "out"
    losses = ["--loss", "bce", "--loss", "focal,gamma=5", "--seeds", "2", "--folds", "0,1", "--folds", "2,3"]
    command = [
        *(sys.executable, "-m", "luna_cls", "compare", str(small_store.path), str(out), *losses),
        *_options(),
        *("--annotations", str(annotations), "--resume"),
    ]
    chance = np.random.default_rng(9)
    for delay_s in chance.uniform(0, 3, 3):
        before = set(out.rglob("*.npz"))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None and set(out.rglob("*.npz")) <= before:
                time.sleep(0.05)
            time.sleep(delay_s)
            ended = process.poll()
            process.kill()
        if ended is not None:
            break
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stderr
    ours, theirs = (pd.read_csv(folder / "comparison.csv") for folder in (out, compared[0]))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for name in sorted(path.name for path in (out / "predictions").iterdir()):
        assert (out / "predictions" / name).read_bytes() == (compared[0] / "predictions" / name).read_bytes()


def test_a_loss_and_a_seed_may_join(compared, copy, small_store, annotations):
    """Gone on with for one seed and another loss: what is there stays, and what is new is trained."""
    kept = copy / "runs" / "bce" / "seed0-folds0-1" / "model.keras"
    before = kept.stat().st_mtime_ns
    lines = []

    result = compare_losses(
        small_store,
        _settings(),
        _contest("bce", "focal,gamma=5", "mse", seeds=1),
        copy,
        annotations=annotations,
        resamples=50,
        means=_means(lines),
        resume=True,
    )

    assert kept.stat().st_mtime_ns == before
    assert result["names"] == ("bce", "focal, gamma=5", "mse")
    assert result["verdict"].startswith("Of one training each: ")
    assert sorted(path.name for path in (copy / "predictions").iterdir()) == [
        "bce-seed0.csv",
        "focal-gamma-5-seed0.csv",
        "mse-seed0.csv",
    ]
    assert result["seeds"] == [0]
    assert any("One seed: how much of a difference is the luck" in warning for warning in result["warnings"])
    assert sum("finished already" in line for line in lines) == 4


def test_other_folds_or_settings_are_refused(copy, small_store, annotations):
    """What decides what a run is scored on cannot change on the way; each is named."""
    contest = _contest("bce", "focal,gamma=5", tested=((0,), (1,)))
    with pytest.raises(InputError, match=r"begun with another --folds: it was \[\[0, 1\], \[2, 3\]\], is"):
        compare_losses(
            small_store, _settings(), contest, copy, resume=True, annotations=annotations, means=_means()
        )
    contest = _contest("bce", "focal,gamma=5")
    with pytest.raises(InputError, match=r"begun with other settings: training\.epochs was 2, is 3"):
        compare_losses(
            small_store,
            _settings("training.epochs=3"),
            contest,
            copy,
            resume=True,
            annotations=annotations,
            means=_means(),
        )
    with pytest.raises(InputError, match=r"exists already\. Pass --resume to go on with it, --force"):
        compare_losses(small_store, _settings(), contest, copy, means=_means())
    with alone_in(copy, ""), pytest.raises(InputError, match="Another compare is at work in"):
        compare_losses(
            small_store, _settings(), contest, copy, resume=True, annotations=annotations, means=_means()
        )


def test_a_loss_that_cannot_be_trained_stops_no_other(copy, small_store, annotations, monkeypatch):
    """One loss breaks down: it is listed with the reason, the other two are compared."""
    train = held_out._train_and_score

    def break_down(job, asked_to_stop, say):
        if job.training.settings.loss.name == "sol":
            raise RuntimeError("the device\nis lost")
        train(job, asked_to_stop, say)

    monkeypatch.setattr(held_out, "_train_and_score", break_down)
    result = compare_losses(
        small_store,
        _settings(),
        _contest("bce", "focal,gamma=5", "sol"),
        copy,
        annotations=annotations,
        resamples=50,
        means=_means(),
        resume=True,
    )

    assert result["names"] == ("bce", "focal, gamma=5")
    assert [row[:4] for row in result["failures"]] == [
        ("sol", seed, folds, "failed") for seed in (0, 1) for folds in ("0+1", "2+3")
    ]
    assert result["missing"][0]["reason"] == "RuntimeError: the device is lost"
    assert "sol: could not be trained, and is not compared." in result["warnings"]


def test_two_folds_leave_none_to_choose_the_epoch(small_store, tmp_path):
    """Each is tested by the last epoch of what the other taught; there is no threshold and no calibration."""

    def lose_scans(table):
        table.loc[table["fold"] > 1, "status"] = "unreadable"

    small = _with_table(small_store, tmp_path / "small", lose_scans)
    out = tmp_path / "out"

    result = compare_losses(
        small, _settings(), _contest("bce", "mse", tested=None, seeds=1), out, resamples=20, means=_means()
    )

    assert result["turns"] == [
        {"test_folds": (0,), "validation_folds": ()},
        {"test_folds": (1,), "validation_folds": ()},
    ]
    assert json.loads((out / "runs/bce/seed0-folds1/metrics.json").read_text())["best_epoch"] == 2
    assert result["calibration"] is None
    assert "balanced_accuracy_at_chosen_threshold" not in result["scores"]["bce"]
    assert result["metric"] == "auc"
    assert any("Too few folds for one to choose the epoch" in warning for warning in result["warnings"])


def test_turns_go_round(small_store):
    """Of folds 0 to 3, the next one chooses the epoch: 1 for 0, 0 for 3; with two left, one of them."""
    assert [(turn.test, turn.validation) for turn in plan_turns(small_store)] == [
        ((0,), (1,)),
        ((1,), (2,)),
        ((2,), (3,)),
        ((3,), (0,)),
    ]
    assert [(turn.test, turn.validation) for turn in plan_turns(small_store, [[3, 2], [0]])] == [
        ((2, 3), (0,)),
        ((0,), (1,)),
    ]
    (turn,) = plan_turns(small_store, [[0, 1, 2]])
    assert turn.validation == ()
    with pytest.raises(InputError, match=r"Fold 1 would be tested twice\. Name it once\."):
        plan_turns(small_store, [[0, 1], [1]])
    with pytest.raises(InputError, match="no usable cube in folds 7, 8, only in 0, 1, 2, 3"):
        plan_turns(small_store, [[7, 8]])
    with pytest.raises(InputError, match="nothing to train on but what is tested"):
        plan_turns(small_store, [[0, 1, 2, 3]])


def test_halving_stops_the_hopeless_early_and_ends_with_the_run_that_was_never_paused(small_store, tmp_path):
    """Of four gammas all have one epoch, two have two, one four: that one is, to the bit, a run in one go."""
    out, lines = tmp_path / "out", []
    settings = _settings("training.epochs=4")
    halving = Tuning("halving", {"focal": {"gamma": [1, 2, 3, 5]}, "bce": {"positive_weight": [1, 2, 3, 4]}})
    contest = _contest("focal", "bce", seeds=1, tested=((0, 1),), tuning=halving)

    result = compare_losses(small_store, settings, contest, out, resamples=20, means=_means(lines))

    trials = result["tuning"]["trials"]["focal"]
    assert sorted(trial["epochs"] for trial in trials) == [1, 1, 2, 4]
    (chosen,) = (trial for trial in trials if trial["chosen"])
    assert chosen["epochs"] == 4
    assert result["losses"][0]["tuned"] == {"0+1": chosen["parameters"]}
    cost = result["cost"]["focal"]
    assert (cost["cubes"], cost["tuning_cubes"], cost["tuning_trainings"]) == (4 * 24, (1 + 1 + 2) * 24, 3)
    gamma = chosen["parameters"]["gamma"]
    paused = out / "runs" / "focal" / f"gamma-{gamma}" / "seed0-folds0-1"
    own = load_settings(str(paused / "settings.toml"))
    once = tmp_path / "once"
    from luna_cls.learning.training import train

    train(small_store, own, once, say=lines.append)
    assert (paused / "history.csv").read_bytes() == (once / "history.csv").read_bytes()
    ours, theirs = (checkpoints.newest(run / "checkpoint", pytest.fail).values for run in (paused, once))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_grid_trains_every_try_and_keeps_the_best_by_validation(small_store, tmp_path):
    """Two tries each for two losses: the chosen one has the highest val_average_precision of its history."""
    out = tmp_path / "out"
    grid = Tuning("grid", parse_grids(["cefl.gamma=0.5,4", "bce.positive_weight=1,9"]))
    contest = _contest("cefl", "bce", seeds=1, tested=((0, 1),), tuning=grid)

    result = compare_losses(small_store, _settings(), contest, out, resamples=20, means=_means())

    for trials in result["tuning"]["trials"].values():
        scores = [trial["score"] for trial in trials]
        assert [trial["chosen"] for trial in trials] == [score == max(scores) for score in scores]
    history = pd.read_csv(out / "runs" / "cefl" / "gamma-4" / "seed0-folds0-1" / "history.csv")
    assert result["tuning"]["trials"]["cefl"][1]["score"] == history["val_average_precision"].max()


def test_every_loss_has_as_many_tries():
    """The grids have four tries each; a loss that is given what would be tried has fewer, and is refused."""
    tuning = Tuning("grid")
    every = {name: Entrant.parse(name).loss for name in GRIDS}

    assert {len(tuning.tries(loss)) for loss in every.values()} == {4}
    check_fair(tuning, every)
    with pytest.raises(InputError, match=r"more tries are more luck\. Received: bce 4, focal, gamma=5 1\."):
        _contest("bce", "focal,gamma=5", tuning=tuning)
    with pytest.raises(InputError, match="no such loss is compared"):
        _contest("bce", "mse", tuning=Tuning("grid", {"sol": {"half_width": [0.1]}}))


def test_each_is_every_fold_whatever_the_recipe_tests(small_store, tmp_path):
    """With a recipe that tests fold 3: without a word one turn, with 'each' four."""
    settings = _settings("split.validation_folds=[2]", "split.test_folds=[3]", "training.epochs=1")
    lines = []

    for tested in (None, EACH):
        contest = _contest("bce", "mse", seeds=1, tested=tested)
        stop = _means(lines, lambda: True)
        assert compare_losses(small_store, settings, contest, tmp_path / "out", means=stop) is None

    assert lines[0].startswith("2 trainings of 1 epochs: 2 losses, seeds 0, fold 3 tested (fold 2 chooses")
    assert lines[2].startswith("8 trainings of 1 epochs: 2 losses, seeds 0, fold 0 tested (fold 1 chooses")


def test_other_annotations_are_refused(copy, small_store, annotations, tmp_path):
    """They decide: left off, or with one nodule less, they are not those that it was begun with."""
    less = tmp_path / "less.csv"
    pd.read_csv(annotations).iloc[1:].to_csv(less, index=False)
    contest = _contest("bce", "focal,gamma=5")

    for other, words in ((None, "Received: none"), (less, "Received: .*less.csv")):
        with pytest.raises(InputError, match=rf"was begun with --annotations .*annotations.csv\. {words}"):
            compare_losses(
                small_store, _settings(), contest, copy, annotations=other, resume=True, means=_means()
            )


def test_annotations_of_scans_that_are_not_tested_are_refused(small_store, annotations, tmp_path):
    """Nodules of fold 2 alone, and folds 0 and 1 tested: found out before anything is trained."""
    table = pd.read_csv(annotations, dtype={"seriesuid": str})
    fold_of = small_store.candidates.drop_duplicates("seriesuid").set_index("seriesuid")["fold"]
    table[table["seriesuid"].map(fold_of) == 2].to_csv(tmp_path / "some.csv", index=False)

    with pytest.raises(InputError, match="is in a tested scan of"):
        compare_losses(
            small_store,
            _settings(),
            _contest("bce", "mse", tested=FOLDS[:1]),
            tmp_path / "out",
            annotations=tmp_path / "some.csv",
            means=_means(),
        )

    assert not (tmp_path / "out").exists()


def test_tested_folds_of_one_class_are_refused(small_store, tmp_path):
    """Fold 3 without nodules tells nothing, and no training begins."""

    def lose_nodules(table):
        table.loc[table["fold"] == 3, "class"] = 0

    dull = _with_table(small_store, tmp_path / "dull", lose_nodules)
    with pytest.raises(InputError, match=r"hold 10 candidates of class 0 and none of the other"):
        compare_losses(
            dull, _settings(), _contest("bce", "mse", tested=((3,),)), tmp_path / "out", means=_means()
        )


def test_a_try_that_fails_is_listed_and_never_chosen(small_store, tmp_path, monkeypatch):
    """Of gammas 0.5 and 4 the second breaks down: 0.5 is chosen, failures and a warning say so."""
    train = held_out._train_and_score

    def break_down(job, asked_to_stop, say):
        if job.training.settings.loss.parameters.get("gamma") == 4:
            raise RuntimeError("the device is lost")
        train(job, asked_to_stop, say)

    monkeypatch.setattr(held_out, "_train_and_score", break_down)
    grid = Tuning("grid", parse_grids(["cefl.gamma=0.5,4", "bce.positive_weight=1,9"]))
    contest = _contest("cefl", "bce", seeds=1, tested=((0, 1),), tuning=grid)

    result = compare_losses(small_store, _settings(), contest, tmp_path / "out", resamples=20, means=_means())

    assert [trial["chosen"] for trial in result["tuning"]["trials"]["cefl"]] == [True, False]
    assert result["tuning"]["trials"]["cefl"][1]["score"] is None
    assert result["failures"] == [
        ("cefl", 0, "0+1", "try failed", "With {'gamma': 4}: RuntimeError: the device is lost")
    ]
    assert any("some tries failed" in warning for warning in result["warnings"])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("validation_predictions.csv", lambda text: "".join(text.splitlines(True)[:3]), "candidates of its"),
        ("validation_predictions.csv", lambda _: "", "is damaged"),
        ("metrics.json", lambda text: text[:20], "cannot be read"),
        ("metrics.json", lambda _: "{}", "tells no best epoch"),
        ("history.csv", lambda text: text.replace("\n2,", "\n7,"), "does not hold every epoch once"),
        ("settings.toml", lambda _: "=", "no settings that can be read"),
    ],
)
def test_a_damaged_run_is_one_line(copy, small_store, annotations, name, damage, words):
    """What is wrong, where, and what to do; the other runs stay."""
    path = copy / "runs" / "bce" / "seed1-folds0-1" / name
    path.write_text(damage(path.read_text()))

    with pytest.raises(InputError, match=words) as refusal:
        compare_losses(
            small_store,
            _settings(),
            _contest("bce", "focal,gamma=5"),
            copy,
            annotations=annotations,
            resamples=20,
            resume=True,
            means=_means(),
        )

    assert "\n" not in str(refusal.value)
    assert f"Remove {path.parent}, and go on with --resume." in str(refusal.value)


def test_the_loss_with_the_fewest_seeds_is_left_out():
    """The first has seed 0, the second seed 1, the third both: the first goes, the others share seed 1."""
    a, b, c = (Entrant.parse(name) for name in ("bce", "mse", "focal"))

    assert _complete([a, b, c], [0, 1], {(a, 0), (b, 1), (c, 0), (c, 1)}) == ([b, c], [1])
    assert _complete([a, b], [0, 1], {(a, 0), (a, 1), (b, 1)}) == ([a, b], [1])
    assert _complete([a, b], [0], {(a, 0)}) == ([a], [0])


def test_rungs_double():
    """Of 4 tries and 8 epochs: 2, 4, 8; of 5 tries and 15: 2, 4, 8, 15; a grid has one rung."""
    assert Tuning("halving").rungs(4, 8) == [2, 4, 8]
    assert Tuning("halving").rungs(5, 15) == [2, 4, 8, 15]
    assert Tuning("halving").rungs(4, 1) == [1, 1, 1]
    assert Tuning("grid").rungs(4, 8) == [8]
    assert better_half([0.1, 0.4, 0.3, 0.4]) == [1, 3]
    assert better_half([0.1, 0.1, 0.1]) == [0, 1]


@pytest.mark.parametrize(
    ("text", "label", "folder"),
    [
        ("bce", "bce", "bce"),
        ("focal,gamma=5", "focal, gamma=5", "focal-gamma-5"),
        (
            " focal , gamma = 5 , apply_class_balancing=true",
            "focal, gamma=5, apply_class_balancing=true",
            None,
        ),
        ("bce,class_weights=[1, 4]", "bce, class_weights=[1, 4]", "bce-class_weights-1-4"),
        ("anyloss,score=gmean", "anyloss, score=gmean", "anyloss-score-gmean"),
    ],
)
def test_a_loss_is_written_with_its_parameters(text, label, folder):
    entrant = Entrant.parse(text)

    assert entrant.label == label
    assert folder in (None, entrant.folder)
    assert Contest((entrant, Entrant.parse("mse"))).to_json()["losses"][0]["label"] == label


def test_what_was_asked_reads_back(tmp_path):
    """compare.json gives the contest again: losses, seeds, folds, metric and tuning."""
    tuning = Tuning("halving", {"bce": {"positive_weight": [1, 2, 3, 4]}})
    contest = _contest("bce", "anyloss,score=gmean", metric="auc", tuning=tuning)
    (tmp_path / "compare.json").write_text(json.dumps(contest.to_json()))

    assert Contest.begun(tmp_path) == contest
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(InputError, match=r"compare\.json is damaged"):
        Contest.begun(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "A comparison takes two losses or more, each with --loss. Received: none."),
        (["--loss", "bce"], "A comparison takes two losses or more, each with --loss. Received: bce."),
        (["--loss", "bce", "--loss", "bce"], "The loss bce is there twice."),
        (["--loss", "bce", "--loss", "hinge"], "hinge: Unknown loss 'hinge'. Known: bce, mse"),
        (
            ["--loss", "bce", "--loss", "focal,gama=5"],
            "focal, gama=5: The loss focal has no parameter 'gama'.",
        ),
        (["--loss", "bce", "--loss", "focal gamma=5"], "--loss takes a name, with its parameters behind it"),
        (["--loss", "focal", "--loss", "focal,gamma=2"], "focal and focal, gamma=2 are the same loss."),
        (["--loss", "bce", "--loss", "focal,gamma=2020-01-01"], 'focal, gamma="2020-01-01": Parameter'),
        (
            ["--loss", "bce", "--loss", "anyloss", "--set", "sampling.correct_prior=true"],
            "anyloss: sampling.correct_prior is for losses whose probabilities mean something",
        ),
        (
            ["--loss", "bce", "--loss", "mse", "--set", "training.monitor=val_loss"],
            "training.monitor = val_loss is another metric for every loss.",
        ),
        (
            ["--loss", "bce", "--loss", "mse", "--folds", "3", "--set", "split.validation_folds=[0]"],
            "--folds says what is tested: leave --set split",
        ),
        (
            ["--loss", "bce", "--loss", "mse", "--tune", "grid", "--grid", "bce.positive_weight=1,1"],
            "--grid names a value twice.",
        ),
        (["--loss", "bce", "--loss", "mse", "--seeds", "0"], "--seeds must be 1 or more. Received: 0."),
        (["--loss", "bce", "--loss", "mse", "--folds", "1-3"], "--folds takes folds from 0 to 9 that are"),
        (["--loss", "bce", "--loss", "mse", "--metric", "cpm"], "Without annotations there is no CPM. Give"),
        (["--loss", "bce", "--loss", "mse", "--metric", "f2"], "No metric f2 decides. Give one of cpm, auc,"),
        (["--loss", "bce", "--loss", "mse", "--grid", "bce.x=1"], "--grid says what --tune is to try."),
        (
            ["--loss", "bce", "--loss", "mse", "--tune", "grid", "--grid", "bce"],
            "--grid takes LOSS.PARAMETER=",
        ),
        (
            ["--loss", "bce", "--loss", "mse", "--set", "loss.gamma=5"],
            "Parameters of a loss go behind its name",
        ),
        (["--loss", "bce", "--loss", "mse", "--excluded", "gone.csv"], "--excluded goes with --annotations"),
        (["--loss", "bce", "--loss", "mse", "--resume", "--force"], "--resume goes on with a run, --force"),
        (["--loss", "bce", "--loss", "mse", "--workers", "0"], "--workers must be at least 1. Received: 0."),
    ],
)
def test_wrong_inputs_end_with_1_and_one_line(small_store, tmp_path, options, words):
    """Before anything is trained, and no folder is left."""
    out = tmp_path / "out"

    done = CliRunner().invoke(app, ["compare", str(small_store.path), str(out), *_options(), *options])

    assert done.exit_code == 1, done.output
    assert " ".join(done.output.split()).startswith(f"luna-cls: {words}")
    assert len(done.output.splitlines()) == 1
    assert not out.exists()


def test_the_command_goes_on_with_what_was_begun_and_leaves_a_page(copy, small_store):
    """--resume alone: losses, folds, seeds, annotations are those of compare.json; the verdict is printed."""
    (copy / "comparison.json").unlink()

    done = CliRunner().invoke(app, ["compare", str(small_store.path), str(copy), "--resume"])

    words = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "always" in words
    assert json.loads((copy / "comparison.json").read_text())["metric"] == "cpm"
    assert "cannot be told apart" in words
    assert str(copy) in words
    assert "cannot be told apart" in (copy / "report.html").read_text()
