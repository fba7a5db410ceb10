"""How the command line behaves towards those who type, read and script it."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from luna_cls import __version__, demo
from luna_cls.cli import app, completion
from luna_cls.judging import evaluation
from luna_cls.judging.calibration import METHODS
from luna_cls.judging.submission import Reference

LUNA_CLS = [sys.executable, "-m", "luna_cls"]
GROUP = typer.main.get_command(app)
PATH = ["demo", "phantom", "audit", "prepare", "train", "crossval", "compare", "evaluate", "calibrate"]
COMMANDS = [*PATH, "report", "predict", "export"]
COLOUR = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(?:3[0-8]|9[0-7])[0-9;]*m")
TINY = (
    "--set",
    "training.batch_size=30",
    "--set",
    "model.filters=[2]",
    "--set",
    "training.epochs=1",
    "--set",
    "training.steps_per_epoch=1",
)


def _invoke(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="luna-cls", **options)


def _strictly(text):
    """Reads JSON as a strict reader does: no NaN, no Infinity, one object and nothing else."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def scored(submission, monkeypatch):
    """The arguments that score the small submission, which lies in the working folder, into `scores`."""
    monkeypatch.chdir(submission)
    given = ["evaluate", "marks.csv", "--annotations", "annotations.csv", "--out", "scores"]
    return [*given, "--resamples", "10", "--no-report"]


# Help and examples


def test_help_groups_the_commands_in_the_order_of_use():
    """The path comes in four lines, and the twelve commands under five headings, demo first."""
    shown = _invoke("--help").stdout

    assert [line.split()[1] for line in shown.splitlines() if line.startswith(" luna-cls ")] == [
        "prepare", "train", "calibrate", "predict",
    ]  # fmt: skip
    assert [name for name in re.findall(r"^│ (\w+) ", shown, re.MULTILINE) if name in COMMANDS] == COMMANDS
    assert [entry.rich_help_panel for entry in GROUP.commands.values()].count(None) == 0
    assert list(GROUP.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_stand_in_help_as_they_are_typed_and_parse(command):
    """Two or three, each a line of at most 78 characters, in 80 columns unbroken, with options that exist."""
    registered = GROUP.commands[command]
    examples = [line for line in registered.epilog.splitlines() if line.startswith("luna-cls ")]

    shown = _invoke(command, "--help", env={"COLUMNS": "80"}).stdout.splitlines()

    assert len(examples) in (2, 3)
    for example in examples:
        _, name, *arguments = shlex.split(example.partition(" > ")[0])
        assert name == command
        registered.make_context(name, arguments)
        assert f" {example}" in [line.rstrip() for line in shown]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_same_manners(command):
    """--quiet (-q), --verbose (-v) and --json, with a word on each, in help that fits 60 columns."""
    options = {option: parameter for parameter in GROUP.commands[command].params for option in parameter.opts}

    shown = _invoke(command, "--help", env={"COLUMNS": "60"}).stdout

    assert {"--quiet", "-q", "--verbose", "-v", "--json"} <= set(options)
    assert all(parameter.help for parameter in GROUP.commands[command].params)
    assert max(map(len, shown.splitlines())) <= 60


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trian store run", ["No such command 'trian'", "Did you mean 'train'?", "See luna-cls --help."]),
        (
            "train s r --val-fold 3",
            ["--val-fold.", "Did you mean --val-folds?", "luna-cls train --help"],
        ),
        ("train store", ["Missing argument 'run'", "luna-cls train --help"]),
        ("-v train store", ["Missing argument 'run'", "luna-cls train --help"]),
        ("phantom out --scans many", ["--scans", "valid integer", "Received: 'many'"]),
        ("phantom out --scans 0", ["--scans", "greater than or equal to 1", "Received: '0'"]),
        ("audit tree --dtype int8", ["--dtype", "'int8' is not one of 'int16', 'uint8'"]),
        ("evaluate p.csv --out o --seed -1", ["--seed", "greater than or equal to 0", "Received: '-1'"]),
        ("-q audit tree -v", ["--quiet says less, --verbose more"]),
    ],
)
def test_wrong_usage_is_one_line_with_a_way_out(arguments, words):
    """Status 2, nothing on standard output, and one line without a box that says what to do."""
    done = _invoke(*arguments.split())

    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("luna-cls: ")
    for word in words:
        assert word in done.stderr


# Completion


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("luna-cls cal", ["calibrate"]),
        ("luna-cls train --recipe ", ["demo", "phantom", "seed", "workstation"]),
        ("luna-cls train store run --loss ce", ["cefl", "cefl2"]),
        ("luna-cls compare store out --loss f", ["focal"]),
        ("luna-cls compare store out --metric a", ["auc", "average_precision"]),
        ("luna-cls compare --folds ", ["each"]),
        ("luna-cls calibrate run --method p", ["platt", "prior_shift"]),
        ("luna-cls predict m s --formats json,s", ["json,slicer", "json,sr"]),
        ("luna-cls predict m s --formats n", ["nifti", "none"]),
        ("luna-cls predict m s --symmetries in", ["in_plane"]),
        ("luna-cls predict ph", ["phantom"]),
        ("luna-cls predict --calibration n", ["none"]),
        ("luna-cls export run --format o", ["onnx", "openvino"]),
        ("luna-cls train s r --set se", ["seed="]),
        ("luna-cls train s r --set training.e", ["training.epochs=", "training.ema="]),
        ("luna-cls train s r --set loss.name=any", ["loss.name=anyloss"]),
        ("luna-cls train s r --set precision=b", ["precision=bfloat16"]),
        ("luna-cls train s r --set distribution=", ["distribution=mirrored", "distribution=multihost"]),
        ("luna-cls train s r --set optimizer.staircase=t", ["optimizer.staircase=true"]),
        ("luna-cls prepare ", [""]),
    ],
)  # fmt: skip
def test_a_shell_is_offered_names(line, offered):
    """As bash asks, with the words of the line and which of them is being typed; paths are left to it."""
    words = line.split(" ")
    asked = {
        "_LUNA_CLS_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }

    done = _invoke(env=asked)

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.removesuffix("\n").split("\n") == offered


def test_what_is_offered_is_what_there_is():
    """Losses, models, calibrations, metrics and formats are those that the modules know, none forgotten."""
    from luna_cls.inference.exports import WRITERS
    from luna_cls.inference.options import SYMMETRIES
    from luna_cls.judging.verdicts import IN_WORDS
    from luna_cls.learning.losses import LOSSES
    from luna_cls.learning.models import MODELS

    assert tuple(LOSSES) == completion.LOSSES
    assert tuple(MODELS) == completion.MODELS
    assert set(completion.METHODS) == set(METHODS)
    assert set(completion.FORMATS) == {*WRITERS, "html"}
    assert set(completion.METRICS) == set(IN_WORDS)
    assert completion.SYMMETRIES == SYMMETRIES


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", ".bash_completions/luna-cls.sh"),
        ("zsh", ".zfunc/_luna-cls"),
        ("fish", ".config/fish/completions/luna-cls.fish"),
    ],
)
def test_completion_is_installed_as_it_is_shown(shell, path, tmp_path, monkeypatch):
    """--install-completion writes into the home folder the very script that --show-completion prints."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # then the shell can be named
    monkeypatch.setenv("HOME", str(tmp_path))

    shown, installed = _invoke("--show-completion", shell), _invoke("--install-completion", shell)

    assert (shown.exit_code, installed.exit_code) == (0, 0)
    assert "_LUNA_CLS_COMPLETE=complete_" + shell in shown.stdout
    assert (tmp_path / path).read_text().strip() == shown.stdout.strip()


def test_a_real_bash_completes(tmp_path):
    """Bash, given the script and a line, finds the recipe; nothing slow is loaded for that."""
    (tmp_path / "luna-cls").write_text(
        f"#!{sys.executable}\nimport sys\nfrom luna_cls.__main__ import main\n"
        "try: main()\n"
        "finally: print(*({'tensorflow', 'keras', 'numpy', 'pandas'} & set(sys.modules)), file=sys.stderr)\n"
    )
    (tmp_path / "luna-cls").chmod(0o755)
    script = (
        "source <(luna-cls --show-completion 2> /dev/null)\n"
        "COMP_WORDS=(luna-cls train --recipe work); COMP_CWORD=3\n"
        '_luna_cls_completion luna-cls; echo "${COMPREPLY[*]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, check=False,
        text=True,
    )  # fmt: skip

    assert (done.stdout, done.stderr.strip()) == ("workstation\n", "")


# Quiet, verbose, JSON


def test_quiet_leaves_the_result_alone(small_tree, tmp_path, monkeypatch):
    """Prepare with -q, before or after its name, prints the store's path and nothing on standard error."""
    monkeypatch.chdir(tmp_path)

    after = _invoke("prepare", small_tree, "after", "--workers", 1, "-q")
    before = _invoke("--quiet", "prepare", small_tree, "before", "--workers", 1)

    assert (after.exit_code, after.stdout, after.stderr) == (0, "after\n", "")
    assert (before.exit_code, before.stdout, before.stderr) == (0, "before\n", "")


def test_quiet_keeps_warnings_and_errors(scored):
    """A missing list of excluded findings is warned of all the same, and a wrong path refused in one line."""
    warned = _invoke(*scored, "--quiet")
    refused = _invoke(*scored, "--quiet")

    assert warned.stderr.startswith("Warning: No list of excluded findings was given")
    assert all(line.startswith("Warning: ") for line in warned.stderr.splitlines())
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("luna-cls: scores exists already")


def test_verbose_tells_versions_seconds_and_memory(scored):
    """Every line has its second; versions come first, the cost last; the result is the same as without."""
    plain = _invoke(*scored, "--force")
    done = _invoke(*scored, "--force", "--verbose")

    lines = done.stderr.splitlines()
    assert done.stdout == plain.stdout
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)
    assert f"luna-cls {__version__}, Python 3" in lines[1]
    assert "keras 3." in lines[1]
    assert re.search(r"evaluate took \d+\.\d s, and \d+\.\d GB of memory at most$", lines[-1])


def test_verbose_shows_what_is_behind_an_error(scored):
    """The traceback, and then the line that stands alone without --verbose."""
    done = _invoke(*scored, "--annotations", "gone.csv", "-v")

    assert (done.exit_code, done.stdout) == (1, "")
    assert "Traceback (most recent call last)" in done.stderr
    assert "InputError" in done.stderr
    assert "luna-cls: No annotated nodules file at gone.csv" in done.stderr


def test_version_tells_all_versions_and_loads_none_of_them():
    """--version --verbose names Keras, TensorFlow and the backend."""
    code = (
        "import sys\nfrom luna_cls.__main__ import main\nsys.argv = ['luna-cls', '--version', '--verbose']\n"
        "try: main()\nexcept SystemExit: print('loaded', *({'keras', 'tensorflow'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=True,
    )

    told = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert told["luna-cls"] == __version__
    assert re.match(r"3\.\d+", told["keras"])
    assert told["backend"] == "jax (KERAS_BACKEND)"
    assert told["loaded"] == ""


def test_json_is_one_strict_object_in_place_of_tables(scored):
    """Scores, paths and warnings under fixed keys; the same before the command's name as after it."""
    after = _invoke(*scored, "--json")
    before = _invoke("--json", *scored, "--force")

    told = _strictly(after.stdout)
    assert list(told) == ["command", "version", "status", "paths", "warnings", "result"]
    assert (told["command"], told["version"], told["status"]) == ("evaluate", __version__, 0)
    assert told["paths"] == {"evaluation": "scores"}
    assert told["warnings"][0].startswith("No list of excluded findings was given")
    assert told["result"]["froc"]["num_nodules"] == 2
    assert told["result"]["froc"] == json.loads(Path("scores/froc.json").read_text())
    assert _strictly(before.stdout) == told


def test_json_has_null_where_nothing_is_defined(submission, monkeypatch):
    """With one scan there are no intervals, and the AUC of one class is none: null, never NaN."""
    monkeypatch.chdir(submission)
    Path("own.csv").write_text("seriesuid,coordX,coordY,coordZ,probability,class\na,0,0,0,0.9,1\n")

    done = _invoke("evaluate", "own.csv", "--out", "scores", "--json", "--no-report")

    assert _strictly(done.stdout)["result"]["metrics"]["auc"] is None


def test_json_tells_faults_and_is_silent_on_errors(small_tree, tmp_path, monkeypatch):
    """A tree with faults ends with 1 and an object that lists them; without a tree, with 1 and a line."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_tree, "tree")
    (data,) = Path("tree/subset1").glob("*.raw")
    data.write_bytes(data.read_bytes()[:1000])

    faulty, wrong = _invoke("audit", "tree", "--json"), _invoke("audit", "gone", "--json")

    told = _strictly(faulty.stdout)
    assert (faulty.exit_code, told["status"]) == (1, 1)
    assert any("1.2.826.0.2" in fault for fault in told["result"]["faults"])
    assert told["result"]["candidates"] == 40
    assert (wrong.exit_code, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)


def test_json_tells_what_prepare_left_out(small_tree, tmp_path, monkeypatch):
    """Status 3: 39 of 40 candidates of scans that are there, and where the list of failures is."""
    monkeypatch.chdir(tmp_path)
    lines = (small_tree / "candidates_V2.csv").read_text().splitlines()
    Path("points.csv").write_text("\n".join([*lines, "9.9.9,1,2,3,0"]) + "\n")

    done = _invoke(
        "prepare", small_tree, "store", "--candidates", "points.csv", "--workers", 1, "--json", "-q"
    )

    told = _strictly(done.stdout)
    assert (done.exit_code, told["status"]) == (3, 3)
    assert told["result"] == {"cubes": 40, "scans": 4, "nodules": 12, "others": 28, "failures": 1}
    assert told["paths"] == {"store": "store", "failures": "store/failures.csv"}


@pytest.mark.slow
def test_json_of_a_training_and_its_bundle(small_store, tmp_path, monkeypatch):
    """Each ends with one object: the metrics and the report of a run, and where the bundle is."""
    monkeypatch.chdir(tmp_path)

    trained = _invoke("train", small_store.path, "run", "--val-folds", 3, *TINY, "--json", "-q")
    exported = _invoke("export", "run", "--out", "model.zip", "--json")

    assert trained.exit_code == 0, trained.stderr
    told = _strictly(trained.stdout)
    assert told["result"] == json.loads(Path("run/metrics.json").read_text())
    assert told["paths"] == {"run": "run", "report": "run/report.html"}
    assert _strictly(exported.stdout)["paths"] == {"model": "model.zip"}
    assert _strictly(exported.stdout)["result"] == {"format": "bundle"}


def test_json_of_a_report_is_its_path(report_folders, tmp_path):
    """Nothing but where it is."""
    own = shutil.copytree(report_folders["evaluation"], tmp_path / "scores")

    told = _strictly(_invoke("report", own, "--json").stdout)

    assert told["paths"] == {"report": str(own / "report.html")}
    assert told["result"] is None


def test_json_of_a_calibration_has_its_thresholds(report_folders, tmp_path):
    """The method, its parameters and the points, as the two files beside the model hold them."""
    own = shutil.copytree(report_folders["run"], tmp_path / "run")

    told = _strictly(_invoke("calibrate", own, "--force", "--json").stdout)

    assert told["result"]["method"] == json.loads((own / "calibration.json").read_text())["method"] == "platt"
    assert len(told["result"]["points"]) == 2
    assert list(told["paths"]) == ["calibration", "operating_points", "report"]


def test_json_of_the_demonstration_has_scores_and_paths(scored, monkeypatch):
    """What the whole path made by name, and the scores of its last step."""
    paths = {name: Path("demo") / name for name in ("scans", "run", "report")}
    result = evaluation.evaluate_submission(
        Path("marks.csv"), Reference(Path("annotations.csv"), None, None), Path("new"), resamples=0
    )
    monkeypatch.setattr(demo, "run", lambda *_, **__: demo.Demonstration(result, paths))

    told = _strictly(_invoke("demo", "--json").stdout)

    assert told["paths"] == {"scans": "demo/scans", "run": "demo/run", "report": "demo/report"}
    assert told["result"]["froc"]["num_nodules"] == 2


def test_what_a_library_prints_stays_off_standard_output(scored, monkeypatch):
    """A line that some library prints on the way goes to standard error; the object stays whole."""
    score = evaluation.evaluate_submission

    def chatter(*arguments, **options):
        print("Saved artifact at")
        return score(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate_submission", chatter)

    done = _invoke(*scored, "--json")

    assert "Saved artifact at" in done.stderr
    assert _strictly(done.stdout)["status"] == 0


# Terminals and pipes


@pytest.mark.parametrize(
    ("is_terminal", "variables", "is_coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
    ],
)
def test_colours_are_for_terminals(is_terminal, variables, is_coloured):
    """An error's first word is red on a terminal; NO_COLOR, TERM=dumb and pipes have none of it."""
    unset = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "PY_COLORS"}
    plain = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {**plain, "TERM": "xterm-256color", **variables}

    shown = _on_terminal(environment) if is_terminal else _through_a_pipe(environment)

    assert "No such command 'trian'" in shown
    assert bool(COLOUR.search(shown)) == is_coloured


def _on_terminal(environment):
    ours, theirs = pty.openpty()
    subprocess.run([*LUNA_CLS, "trian"], env=environment, stdout=theirs, stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return shown


def _through_a_pipe(environment):
    done = subprocess.run([*LUNA_CLS, "trian"], env=environment, capture_output=True, text=True, check=False)
    return done.stderr


def test_nobody_reading_on_is_no_error(scored):
    """With standard output closed behind it, evaluate ends its work, with 0 and without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run([*LUNA_CLS, *scored], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert Path("scores/froc.json").is_file()


def test_an_interrupt_ends_with_130(scored, monkeypatch):
    """Ctrl-C is told in a word, also with --quiet and --json."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_submission", interrupt)

    done = _invoke(*scored, "--quiet", "--json")

    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "Interrupted.\n")
