import resource
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from luna_cls import __version__
from luna_cls.cli import app
from luna_cls.learning.health import TrainingHealth

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(typer.main.get_command(app).commands)
HEADER = "seriesuid,coordX,coordY,coordZ"
TINY = ("--set", "precision=float32", "--set", "model.filters=[2]")
TINY += ("--set", "training.epochs=1", "--set", "training.steps_per_epoch=1")
WRONG_INPUTS = {
    "prepare gone store": ("No folder at gone",),
    "prepare out store": ("out holds no scan",),
    "prepare tree store --candidates gone.csv": ("No candidates file at gone.csv",),
    "prepare tree store --candidates no_x.csv": ("no_x.csv lacks the column coordX",),
    "prepare tree store --candidates empty.csv": ("empty.csv lists no candidate",),
    "prepare tree store --candidates class_2.csv": ("line 2", "class must be 0 or 1"),
    "prepare tree store --workers 0": ("--workers must be at least 1",),
    "train gone run": ("gone is no cube store", "luna-cls prepare"),
    "train gone run --recipe sed": ("No recipe 'sed'", "demo", "seed"),
    "train gone run --recipe words.toml": ("words.toml is not TOML",),
    "train gone run --set training.epoch=3": ("'training.epoch'", "epochs, batch_size"),
    "train gone run --set training.epochs": ("--set needs key.path=value",),
    "train gone run --val-folds nine": ("--val-folds takes folds from 0 to 9",),
    "evaluate gone.csv --annotations annotations.csv --out new": ("No predictions file at gone.csv",),
    "evaluate no_x.csv --annotations annotations.csv --out new": ("no_x.csv lacks the column coordX",),
    "evaluate marks.csv --annotations gone.csv --out new": ("No annotated nodules file at gone.csv",),
    "evaluate marks.csv --annotations annotations.csv --seriesuids gone.csv --out new": (
        "No list of scans at gone.csv",
    ),
    "phantom out": ("out exists already", "--force"),
    "prepare tree out": ("out exists already", "--force"),
    "evaluate marks.csv --annotations annotations.csv --out out": ("out exists already", "--force"),
    "evaluate marks.csv --out new": ("marks.csv has no column class", "--annotations"),
    "evaluate logits.csv --annotations annotations.csv --out new": (
        "line 2",
        "from 0 to 1",
        "Received: -2.5",
    ),
    "evaluate nan.csv --annotations annotations.csv --out new": ("line 2", "probability must be from 0 to 1"),
    "evaluate tabs.csv --annotations annotations.csv --out new": ("tabs", "Save it with commas"),
    "evaluate semicolons.csv --annotations annotations.csv --out new": ("semicolons", "Save it with commas"),
    "evaluate numbers.csv --annotations annotations.csv --seriesuids uids.txt --out new": (
        "no mark is of a listed scan",
        "Received: seriesuid 17",
        "listed are a",
    ),
    "evaluate marks.csv --annotations other.csv --out new": ("No annotated nodule is in the listed scans",),
    "evaluate marks.csv --annotations annotations.csv --subset 3 --out new": ("--subsets LUNA_DIR",),
    "evaluate marks.csv marks.csv --annotations annotations.csv --resamples 0 --out new": ("--resamples 0",),
    "evaluate marks.csv marks.csv --thresholds uids.txt --out new": ("--thresholds", "one submission"),
    "evaluate marks.csv --annotations annotations.csv --thresholds uids.txt --out new": (
        "uids.txt holds no operating points",
    ),
    "demo --out out": ("out exists already", "--force"),
}


@pytest.fixture(scope="module")
def store(small_tree, run_cli, tmp_path_factory):
    """The small tree's cube store, made by the command line."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    done = run_cli("prepare", small_tree, folder, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(tmp_path, small_tree, monkeypatch):
    """The working folder: `tree` (the small tree), wrong CSVs beside it, and an `out` not to be lost."""
    shutil.copytree(small_tree, tmp_path / "tree")
    files = {
        "no_x.csv": "seriesuid,coordY,coordZ,class\na,1,2,0\n",
        "empty.csv": f"{HEADER},class\n",
        "class_2.csv": f"{HEADER},class\na,1,2,3,2\n",
        "marks.csv": f"{HEADER},probability\na,0,0,0,0.9\n",
        "logits.csv": f"{HEADER},probability\na,0,0,0,-2.5\n",
        "nan.csv": f"{HEADER},probability\na,0,0,0,nan\n",
        "tabs.csv": f"{HEADER},probability\na,0,0,0,0.9\n".replace(",", "\t"),
        "semicolons.csv": f"{HEADER},probability\na,0,0,0,0.9\n".replace(",", ";"),
        "numbers.csv": f"{HEADER},probability\n17,0,0,0,0.9\n",
        "uids.txt": "a\nb\n",
        "annotations.csv": f"{HEADER},diameter_mm\na,0,0,0,8\n",
        "other.csv": f"{HEADER},diameter_mm\nz,0,0,0,8\n",
        "words.toml": "training.epochs = soon\n",
        "out/evaluation.json": "an earlier evaluation",
    }
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _assert_refused(done, *words):
    """Status 1, nothing on standard output, and one line on standard error that holds the words."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("luna-cls: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def _files(folder):
    """Every file below a folder and its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_answers_in_half_a_second(run_cli):
    """The fastest of five calls of --help takes less than 0.5 s of a processor, however busy that is."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cli("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert 0 < min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run_cli, command):
    """COMMAND --help prints usage on standard output and ends with 0."""
    done = run_cli(command, "--help")

    assert done.returncode == 0
    assert f"Usage: luna-cls {command}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command):
    """README.md has a row for each command, which leads to its page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert f"\n| [`{command}`](docs/commands/{command}.md) |" in readme


def test_version(run_cli):
    """--version prints the package's version and nothing else."""
    done = run_cli("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"luna-cls {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["train"], ["evaluate", "p.csv", "--oute", "o"], ["phantom", "o", "--scans", "many"], []],
    ids=["command", "arguments", "option", "number", "nothing"],
)
def test_wrong_usage_ends_with_2(run_cli, arguments):
    """An unknown command, a missing or misspelt argument, or none at all is a usage error."""
    assert run_cli(*arguments).returncode == 2


@pytest.mark.parametrize(("arguments", "words"), WRONG_INPUTS.items(), ids=WRONG_INPUTS)
def test_wrong_inputs_end_with_1_and_one_line(run_cli, folder, arguments, words):
    """The line says what is wrong, where, and what to do; no file changes and none appears."""
    before = _files(folder)

    done = run_cli(*arguments.split())

    _assert_refused(done, *words)
    assert _files(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "hinge"], ["Unknown loss 'hinge'", "bce, mse, focal, cefl, cefl2, anyloss, sol"]),
        (["--loss", "sol", "--set", "loss.gamma=2"], ["sol has no parameter 'gamma'", "score, beta, prior"]),
        (["--set", "sampling.positives_per_batch=200"], ["positives_per_batch must lie between 1 and 127"]),
        (["--val-folds", "3", "--set", "split.test_folds=[0, 1, 2]"], ["No cube is left for training"]),
    ],
    ids=["loss", "parameter", "sampling", "folds"],
)
def test_wrong_settings_of_training_end_with_1_and_one_line(run_cli, store, tmp_path, options, words):
    """What only the store or the losses can tell is refused as plainly, and no run appears."""
    done = run_cli("train", store, tmp_path / "run", "--val-folds", "3", *TINY, *options)

    _assert_refused(done, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_that_ended_early_ends_with_3(store, tmp_path, monkeypatch):
    """Status 3, and the run is there, if the training diverged after an epoch that was good."""
    monkeypatch.setattr(TrainingHealth, "on_train_batch_end", _diverge_in_epoch_2)
    options = ["--val-folds", "3", *TINY, "--set", "training.epochs=3", "--set", "precision=float32"]
    options += ["--set", "training.batch_size=30"]

    done = CliRunner().invoke(app, ["train", str(store), str(tmp_path / "run"), *options])

    assert done.exit_code == 3, done.output
    assert "Warning: The loss became nan in epoch 2" in " ".join(done.output.split())
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 1 + 2


def _diverge_in_epoch_2(health, batch, logs=None):
    if health._epoch == 2:
        health.restore(f"The loss became nan in epoch 2, step {batch + 1}")


@pytest.mark.slow
def test_one_class_alone_cannot_be_trained(run_cli, folder):
    """Candidates without a nodule make a store, and training on it is refused in one line."""
    table = pd.read_csv("tree/candidates_V2.csv", dtype={"seriesuid": str})
    table[table["class"] == 0].to_csv("dull.csv", index=False)
    run_cli("prepare", "tree", "store", "--candidates", "dull.csv", "--workers", 1)

    done = run_cli("train", "store", "run", "--val-folds", "3", *TINY)

    _assert_refused(done, "No training cube is a nodule")
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_wrong_model_ends_with_1_and_one_line(run_cli, folder):
    """A text file given as model is named, without a word from TensorFlow."""
    options = ["--candidates", "tree/candidates_V2.csv", "--out", "new"]

    done = run_cli("predict", "words.toml", "tree", *options)

    _assert_refused(done, "words.toml is not a .keras file")
    assert not Path("new").exists()


def test_results_go_to_stdout_and_messages_to_stderr(run_cli, folder):
    """Prepare prints the store's path alone; counts and progress go to standard error."""
    done = run_cli("prepare", "tree", "store", "--workers", 1)

    assert done.returncode == 0
    assert done.stdout == "store\n"
    assert done.stderr.splitlines()[-1] == "40 cubes of 4 scans: 12 nodules, 28 not"
    assert "\x1b" not in done.stdout + done.stderr


def test_evaluation_prints_the_froc_and_the_path(run_cli, folder):
    """One nodule found without a false positive has CPM 1.000, and the path comes last."""
    done = run_cli("evaluate", "marks.csv", "--annotations", "annotations.csv", "--out", "new")

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: No list of excluded findings was given")
    assert "1 scans, 1 nodules" in lines[0]
    assert any("CPM" in line and "1.000" in line for line in lines)
    assert any("CPM of 1 nodule 6 to 10 mm" in line for line in lines)
    assert lines[-1] == "new"


def test_two_submissions_are_compared_in_a_sentence(run_cli, folder):
    """The same marks twice: the same CPM, a page beside the folders of both, and the path last."""
    done = run_cli(
        "evaluate", "marks.csv", "tree/../marks.csv", "--annotations", "annotations.csv",
        "--seriesuids", "uids.txt", "--out", "new",
    )  # fmt: skip

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: 1 of 2 listed scans have no mark")
    assert any("cannot be told apart with these 2 scans: they have the same CPM." in line for line in lines)
    assert lines[-1] == "new"
    assert sorted(path.name for path in Path("new").iterdir() if path.is_file()) == [
        "comparison.json",
        "report.html",
    ]
    assert len(list(Path("new").glob("*/froc.json"))) == 2


def test_a_missing_and_a_truncated_scan_end_with_3(run_cli, folder):
    """Prepare finishes with the scans there are; failures.csv says which are not and why."""
    (data,) = Path("tree/subset1").glob("*.raw")
    data.write_bytes(data.read_bytes()[:1000])
    with Path("tree/candidates_V2.csv").open("a") as file:
        file.write("9.9.9,1,2,3,0\n")

    done = run_cli("prepare", "tree", "store", "--workers", 1)

    failures = pd.read_csv("store/failures.csv", dtype=str)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("luna-cls: not all could be used: store/failures.csv")
    assert failures[["seriesuid", "status"]].to_numpy().tolist() == [
        ["1.2.826.0.2", "unreadable"],
        ["9.9.9", "no_scan"],
    ]
    assert "truncated" in failures["reason"][0]


def test_a_message_shows_paths_as_they_are(run_cli, tmp_path):
    """Brackets and colons in a path are no markup and no emoji."""
    _assert_refused(run_cli("prepare", tmp_path / "[red]:100:", "store"), "[red]:100:")


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate gone.csv --annotations annotations.csv --out out --force",
        "evaluate out/marks.csv --annotations annotations.csv --out out --force",
        "prepare tree out --candidates empty.csv --force",
        "prepare tree tree --force",
    ],
)
def test_force_deletes_nothing_for_a_command_that_fails(run_cli, folder, arguments):
    """With --force, a wrong input, or one inside the output folder, leaves every file as it was."""
    shutil.copy("marks.csv", "out/marks.csv")
    before = _files(folder)

    done = run_cli(*arguments.split())

    _assert_refused(done)
    assert _files(folder) == before
