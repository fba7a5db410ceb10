import configparser
import fnmatch
import http.server
import os
import re
import runpy
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
import yaml

from luna_cls.cli import app

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
PAGE = ROOT / "docs" / "how-to" / "containers.md"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
TRAININGS = ["train", "train-gpu"]


def _instructions():
    """The Dockerfile's instructions as (stage, word, rest); the stage is None before the first FROM."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    stage, found = None, []
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stage = rest.split()[-1]
        found.append((stage, word, rest))
    return found


INSTRUCTIONS = _instructions()
BASES = {stage: rest.split()[0] for stage, word, rest in INSTRUCTIONS if word == "FROM"}


def _of(target, word):
    """What a target says with a word, its base stages first."""
    before = _of(BASES[target], word) if BASES[target] in BASES else []
    return before + [rest for stage, said, rest in INSTRUCTIONS if stage == target and said == word]


def test_every_stage_stands_on_one_release_of_python_and_of_debian():
    """The base image is named to the patch release, such as 3.11.16-slim-bookworm, and once."""
    ((_, _, pinned),) = [found for found in INSTRUCTIONS if found[:2] == (None, "ARG")]

    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", pinned)
    assert set(BASES.values()) - set(BASES) == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_target_runs_luna_cls_as_nobody_in_particular(target):
    """User 1000, `luna-cls` as the process that SIGTERM reaches, a health check, and nothing installed."""
    assert _of(target, "USER") == ["1000:1000"]
    assert _of(target, "ENTRYPOINT") == ['["luna-cls"]']
    assert _of(target, "STOPSIGNAL") == ["SIGTERM"]
    assert _of(target, "HEALTHCHECK")[0].endswith('CMD ["luna-health"]')
    assert not any("pip" in step or "apt" in step for step in _of(target, "RUN"))


def test_what_is_installed_is_held_to_the_constraints():
    """Each `pip install` names constraints.txt, and extras that setup.cfg has; only gpu takes `gpu`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {}
    for stage, word, rest in INSTRUCTIONS:
        if word == "RUN" and "pip install" in rest:
            assert "pip install -c constraints.txt" in rest
            extras[stage] = set(re.search(r"\[([a-z,]+)\]", rest)[1].split(","))

    assert extras == {"build-cpu": {"dicom", "cluster"}, "build-gpu": {"gpu"}}
    assert extras["build-cpu"] | extras["build-gpu"] <= set(setup["options.extras_require"])
    assert BASES["build-gpu"] == "build-cpu"


def test_the_context_holds_what_is_copied_and_nothing_else():
    """Of what is here, .dockerignore lets through what a COPY names, and no more."""
    copied = [
        source
        for _, word, rest in INSTRUCTIONS
        if word == "COPY" and "--from" not in rest
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]
    ]
    listed = [path.relative_to(ROOT).as_posix() for path in ROOT.iterdir() if path.is_file()]
    for folder in ("luna_cls", "docker", "tests", "data", "benchmarks", "notebooks"):
        listed += [path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*")]

    let_through = {path for path in listed if _in_context(path)}

    assert all((ROOT / source).exists() for source in copied)
    assert let_through == {
        path
        for path in listed
        if any(path == source or path.startswith(f"{source}/") for source in copied)
        and "__pycache__" not in path
    }
    assert not _in_context("luna_cls/cubes/__pycache__/plan.cpython-311.pyc")


def _in_context(path):
    """Whether .dockerignore lets a path through: the last pattern that fits it or a folder of it decides."""
    above = [path, *map(str, Path(path).parents)]
    is_in = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        if pattern and not pattern.startswith("#"):
            matched = [*above, *(Path(part).name for part in above if pattern.startswith("**/"))]
            if any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in matched):
                is_in = line.startswith("!")
    return is_in


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_few_rights(name):
    """None is privileged, none may write but in its volumes and /tmp, none runs as root."""
    service = SERVICES[name]

    assert "privileged" not in service
    assert service["read_only"] is True
    assert service["tmpfs"] == "/tmp"  # noqa: S108
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "${USER_ID:-1000}:${GROUP_ID:-1000}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_built_as_make_builds_it(name):
    """Its target is one of the Dockerfile, and its tag the one that `make image` gives."""
    target = SERVICES[name]["build"]["target"]

    assert target in BASES
    assert f"--target {target} " in (ROOT / "Makefile").read_text()
    assert SERVICES[name]["image"] == f"luna-cls:{target}"


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_goes_on_after_a_reboot_and_ends_once(name):
    """It is begun again with --resume whatever ended it, and `until-done` keeps what is done from that."""
    service = SERVICES[name]

    assert service["restart"] == "unless-stopped"
    assert service["entrypoint"] == ["until-done", "luna-cls"]
    assert "--resume" in service["command"]
    assert service["stop_grace_period"] == "2m"


def test_the_example_sets_all_that_compose_asks_for():
    """Each ${NAME} of compose.yaml stands in example.env, but the version, and nothing else does."""
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    given = set(re.findall(r"^(\w+)=", (DOCKER / "example.env").read_text(), re.MULTILINE))

    assert asked - {"VERSION"} == given


def _lines():
    """Every command of luna-cls in docker/, and of its images in the page on them, as (file, words)."""
    for name, service in SERVICES.items():
        if service.get("entrypoint", ["luna-cls"])[-1] == "luna-cls":
            yield f"compose.yaml {name}", service["command"]
    said = r'(?:srun "|\[")(?:luna-cls|\$\{luna_cls\[@\]\})\W+([a-z].*)'
    for path in [DOCKER / "Dockerfile", *sorted(DOCKER.glob("*.sh")), *sorted(DOCKER.glob("*.py")), PAGE]:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            match = re.search(r"luna-cls:[cg]pu ([a-z].*)" if path == PAGE else said, line)
            if match and "--entrypoint" not in line:
                yield path.name, re.split(r'[\s",]+', match[1])


@pytest.mark.parametrize(("where", "words"), [pytest.param(*line, id=line[0]) for line in _lines()])
def test_a_command_has_only_options_that_exist(where, words):
    """The command is one of luna-cls, and each option one of its own."""
    command = typer.main.get_command(app).commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts}

    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_parses(path):
    """Its own shell reads it without complaint, and it may be executed."""
    shell = path.read_text().splitlines()[0].removeprefix("#!")

    assert subprocess.run([shell, "-n", path], check=False).returncode == 0
    assert path.stat().st_mode & stat.S_IXUSR


@pytest.fixture
def until_done():
    """A function that starts a shell's script under until-done."""
    started = []

    def start(script):
        command = ["/bin/sh", DOCKER / "until_done.sh", "sh", "-c", script]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.communicate(timeout=10)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 1", 1), ("kill -KILL $$", 137)], ids=["wrong", "killed"]
)
def test_until_done_ends_with_what_has_to_be_begun_again(until_done, script, status):
    """A status that says that something is wrong, or a kill, goes on to the restart policy."""
    assert until_done(script).wait(10) == status


@pytest.mark.parametrize("status", [0, 3])
def test_until_done_stays_when_the_command_is_done(until_done, status):
    """Done, or done but diverged: it says so and stays; asked to end, it ends at once."""
    process = until_done(f"exit {status}")

    said = process.stderr.readline()
    process.terminate()

    assert said.startswith(f"Done, with exit status {status}.")
    assert process.wait(10) == -signal.SIGTERM


def test_until_done_lets_the_command_save(until_done):
    """SIGTERM goes to the command, which takes its time; the exit status is the command's own."""
    process = until_done('trap "sleep 0.3; echo saved; exit 0" TERM; echo up; while :; do sleep 0.05; done')
    process.stdout.readline()

    process.terminate()

    assert process.wait(10) == 0
    assert process.stdout.read() == "saved\n"


@pytest.fixture
def container(tmp_path, monkeypatch, capsys):
    """A function that says how luna-health finds a container with one process, and what it says."""
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cwd").symlink_to(tmp_path)

    def look(*words, minutes=0.0):
        ticks = os.sysconf("SC_CLK_TCK")
        (proc / "uptime").write_text(f"{60 * minutes + 100:.2f} 0.00\n")
        (proc / "7" / "stat").write_text(" ".join(["7 (luna-cls) S", *["0"] * 18, str(100 * ticks), "0"]))
        (proc / "7" / "cmdline").write_text("\0".join(words) + "\0")
        health = runpy.run_path(str(DOCKER / "health.py"))["main"]
        monkeypatch.setitem(health.__globals__, "PROCESSES", proc)
        return health(), capsys.readouterr().out.strip()

    return look


TRAIN = "/opt/luna_cls/bin/python", "/opt/luna_cls/bin/luna-cls", "train", "store", "run", "--resume"


def test_a_training_that_has_just_begun_is_healthy(container):
    """Begun 119 minutes ago, it may still be in its first epoch."""
    assert container(*TRAIN, minutes=119) == (0, "At work, or done.")


def test_a_training_that_writes_is_healthy(container, tmp_path):
    """Begun 300 minutes ago, it has just written its history."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.csv").write_text("epoch\n")

    assert container(*TRAIN, minutes=300)[0] == 0


@pytest.mark.parametrize(("patience", "status"), [("", 1), ("400", 0)])
def test_a_training_that_writes_nothing_any_more_is_not(container, tmp_path, monkeypatch, patience, status):
    """Begun 500 minutes ago, it wrote last 300 minutes ago: more than 120, less than 400."""
    if patience:
        monkeypatch.setenv("LUNA_CLS_STALL_MINUTES", patience)
    history = tmp_path / "run" / "history.csv"
    history.parent.mkdir()
    history.write_text("epoch\n")
    for path in (history, history.parent):
        os.utime(path, (time.time() - 300 * 60,) * 2)

    assert container(*TRAIN, minutes=500)[0] == status


def test_prepare_that_works_beside_its_store_is_healthy(container, tmp_path):
    """It writes to store.partial until it is done."""
    (tmp_path / "store.partial").mkdir()

    assert container("python", "/bin/luna-cls", "prepare", "scans", "store", minutes=500)[0] == 0


def test_a_container_whose_command_is_done_is_healthy(container):
    """`until-done` and `sleep` are all that is left."""
    assert container("/bin/sh", "/usr/local/bin/until-done", "luna-cls", "train", minutes=500)[0] == 0


def test_tensorboard_is_healthy_while_it_answers(container):
    """A server that answers on its port, and then does not."""
    with _answering() as port:
        command = "python", "/bin/tensorboard", "--logdir", "/runs", "--port", str(port)
        assert container(*command) == (0, "At work, or done.")

    assert container(*command) == (1, f"TensorBoard does not answer on port {port}.")


@contextmanager
def _answering():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def slurm(tmp_path):
    """A function that runs slurm_train.sh where srun and scontrol write down what they are told."""
    for name in ("srun", "scontrol"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/told\nexit "${{STATUS:-0}}"\n')
        tool.chmod(0o755)

    def submit(*arguments, **environment):
        (tmp_path / "told").write_text("")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["/bin/bash", DOCKER / "slurm_train.sh", *arguments],
            cwd=tmp_path,
            env={"PATH": path, "SLURM_JOB_ID": "7", **environment},
            check=False,
        )
        return done.returncode, (tmp_path / "told").read_text().splitlines()

    return submit


def test_a_job_that_was_asked_to_end_is_queued_again(slurm):
    """The training ended with 0 and has no metrics.json: it was saved, and is to go on."""
    assert slurm("store", "run", "--recipe", "demo") == (
        0,
        ["srun luna-cls train store run --resume --recipe demo", "scontrol requeue 7"],
    )


def test_a_job_that_is_done_is_not(slurm, tmp_path):
    """metrics.json is written last."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")

    assert slurm("store", "run") == (0, ["srun luna-cls train store run --resume"])


def test_a_job_that_failed_is_not(slurm):
    """Its exit status is the job's."""
    assert slurm("store", "run", STATUS="1") == (1, ["srun luna-cls train store run --resume"])


def test_a_job_of_several_losses_trains_one_in_each_task(slurm):
    """Task 1 of `bce focal` trains with focal in run/focal, out of an image, and is queued again alone."""
    environment = {
        "LOSSES": "bce focal",
        "SLURM_ARRAY_JOB_ID": "6",
        "SLURM_ARRAY_TASK_ID": "1",
        "LUNA_CLS": "apptainer exec --nv luna-cls.sif luna-cls",
    }

    assert slurm("store", "run", "--recipe", "demo", **environment) == (
        0,
        [
            f"srun {environment['LUNA_CLS']} train store run/focal --resume --loss focal --recipe demo",
            "scontrol requeue 6_1",
        ],
    )


def test_slurm_asks_the_training_to_end_in_time():
    """A minute before the time is up, SIGTERM goes to what srun has started; the job may be queued again."""
    options = re.findall(r"^#SBATCH (.*)$", (DOCKER / "slurm_train.sh").read_text(), re.MULTILINE)
    signals = [option for option in options if option.startswith("--signal=")]

    assert "--requeue" in options
    assert signals == [f"--signal={signal.SIGTERM.name.removeprefix('SIG')}@60"]
