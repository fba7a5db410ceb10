"""Measures the whole table of the README in one command, and draws its picture.

make peers openvino .venv-torch/installed
python benchmarks/run.py [--rounds N] [--only PART ...] [--real FOLDER] [--venvs FOLDER] [--out FILE]

On two quiet cores it takes about a quarter of an hour. Each part is one of the benchmarks in this folder, in
a process of its own; one that fails or takes longer than --limit seconds is recorded with its reason, and
stops no other. What it prints is in runs/benchmarks/PART.log. A part with peers does without those that are
not there; the first line above makes them: TorchIO and MONAI, OpenVINO, PyTorch. Of the variants of a peer,
those run that were the fastest when a benchmark tried them all.

No data are needed: scans are a phantom's, made once in runs/benchmarks. With --real, or $LUNA_CLS_REAL_DATA,
a folder that holds luna16/ (annotations.csv, annotations_excluded.csv, seriesuids.csv and submission_*.csv),
a real submission is scored, too.

Results go to benchmarks/results.json, as results.schema.json describes it, and benchmarks/results.svg. With
--only, the other parts stay as they were; they must be from such a machine, with these versions.

python benchmarks/run.py --table README.md [PAGE ...]

measures nothing and puts the table of results.json between the markers of each page (see table.py);
--draw draws the picture alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import picture
import table

from luna_cls.files import write_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "benchmarks"
FLAGS = ("avx512f", "avx512_bf16", "amx_bf16")
PEERS = {  # package: (its name, its folder of Python)
    "torch": ("PyTorch", ".venv-torch"),
    "openvino": ("OpenVINO", ".venv-openvino"),
    "torchio": ("TorchIO", ".venv-peers"),
    "monai": ("MONAI", ".venv-peers"),
}
# The fastest of each when all were tried, and Keras as it comes.
TRAINED = "jit_compile=False|PyTorch, bfloat16, .*compiled"
INFERRED = "^bfloat16, channels_last_3d, compiled and frozen$"


@dataclass(frozen=True)
class Part:
    """A benchmark as this command calls it.

    Args:
        name: For `--only`, and in the results.
        script: In this folder.
        shown: Its arguments, with a word in capitals where a path is to be.
        rounds: How many, unless told; 0 if it has none.
        paths: What stands for the words in capitals: makes the path, or None if it cannot be had.
        venv: The Python to call it with, where it is there.
    """

    name: str
    script: str
    shown: str = ""
    rounds: int = 0
    paths: tuple[tuple[str, Callable[[argparse.Namespace], Path | None]], ...] = ()
    venv: str | None = None


def _phantom_scan(_: argparse.Namespace) -> Path | None:
    """A scan of LUNA16's usual shape, made when first needed."""
    tree = FOLDER / "phantom"
    if not (tree / "annotations.csv").is_file():
        command = [sys.executable, str(ROOT / "benchmarks" / "phantom.py"), "scan", str(tree)]
        subprocess.run(command, check=True, env=_environment())
    return next((tree / "subset0").glob("*.mhd"))


def _real_luna16(options: argparse.Namespace) -> Path | None:
    folder = options.real and options.real / "luna16"
    return folder if folder and (folder / "annotations.csv").is_file() else None


def _real_submission(options: argparse.Namespace) -> Path | None:
    folder = _real_luna16(options)
    return next(iter(sorted(folder.glob("submission_*.csv"))), None) if folder else None


SCAN = (("SCAN.mhd", _phantom_scan),)
REAL = (("LUNA16", _real_luna16), ("CSV", _real_submission))
PARTS = (
    Part("start", "start_up.py", rounds=5),
    Part("cut", "cutting.py", rounds=5),
    Part("read", "prepare.py", "SCAN.mhd --scans 0", rounds=3, paths=SCAN, venv=".venv-peers"),
    Part("batches", "batches.py", rounds=3),
    Part("train", "train.py", f"--match '{TRAINED}'", rounds=5),
    Part("normalization", "batch_normalization.py", "--steps 2", rounds=5),
    Part("infer", "predict.py", f"--batches 64 --match '{INFERRED}'", rounds=5),
    Part("predict", "predict.py", "--scan SCAN.mhd --copies 4", rounds=3, paths=SCAN),
    Part("evaluate", "evaluate.py", rounds=2),
    Part("evaluate-real", "evaluate.py", "LUNA16 --submission CSV", rounds=3, paths=REAL),
    Part("networks", "models.py", rounds=3),
    Part("metrics", "streaming_metrics.py"),
    Part("phantom", "phantom.py", "time --scans 10"),
)


def main() -> None:
    """Measures what is asked for, or renders what was."""
    options = _options()
    if options.table or options.draw:
        results = json.loads(options.out.read_text(encoding="utf-8"))
        for page in options.table:
            table.rewrite(page, results)
        if options.draw:
            options.out.with_suffix(".svg").write_bytes(picture.draw(results))
        return
    wanted = [part for part in PARTS if part.name in (options.only or [part.name])]
    results = _begun(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    began, commit = time.perf_counter(), _commit()  # before results.json changes
    for part in wanted:
        record, measured = _run(part, options, commit)
        _replace(results, record, measured)
        write_text(options.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        said = f"failed: {record['failure']}" if record["failure"] else f"{len(measured)} rows"
        print(
            f"{time.perf_counter() - began:5.0f} s  {part.name}: {record['seconds']:.0f} s, {said}",
            flush=True,
        )
    if picture.compared(results):
        options.out.with_suffix(".svg").write_bytes(picture.draw(results))
    print(options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    real = os.environ.get("LUNA_CLS_REAL_DATA")
    parser.add_argument("--rounds", type=int, help="of every part; else each has its own")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--real", type=Path, default=real and Path(real))
    parser.add_argument("--venvs", type=Path, default=ROOT, help="where .venv-torch and the others are")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for a part")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--table", type=Path, nargs="+", default=[], metavar="PAGE")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    options.venvs, options.real = options.venvs.absolute(), options.real and options.real.absolute()
    return options


def _begun(options: argparse.Namespace) -> dict[str, Any]:
    """The results so far, of which parts are replaced; says who is missing and who else is at work."""
    machine = _machine(options.venvs)
    missing = [name for package, (name, _) in PEERS.items() if name not in machine["peers"]]
    if missing:
        print(
            f"Without {', '.join(missing)}: `make peers openvino .venv-torch/installed` makes them.",
            flush=True,
        )
    if os.getloadavg()[0] > 0.5:
        print(
            f"Others are at work here: a load of {os.getloadavg()[0]:.1f}. Figures will be low.", flush=True
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.only and options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        same = ("cpu", "cores", "flags", "python", "tensorflow", "keras")
        if any(before["machine"][key] != machine[key] for key in same):
            sys.exit(f"{options.out} is of another machine or other versions: name another --out.")
        machine["peers"] = before["machine"]["peers"] | machine["peers"]
        return before | {"machine": machine}
    return {"machine": machine, "parts": [], "rows": []}


def _run(part: Part, options: argparse.Namespace, commit: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs a part: what is recorded of it, and its rows."""
    venv = part.venv and options.venvs / part.venv / "bin" / "python"
    is_there = bool(venv) and venv.is_file()
    shown = [f"{part.venv}/bin/python" if is_there else "python", f"benchmarks/{part.script}", part.shown]
    record = {
        "part": part.name,
        "command": " ".join(word for word in shown if word),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit,
        "seconds": 0.0,
        "others": None,
        "failure": None,
    }
    (FOLDER / f"{part.name}.log").unlink(missing_ok=True)  # an earlier run's reason is not this one's
    began, busy = time.perf_counter(), _busy_elsewhere()
    measured: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        left = Path(folder) / "rows.json"
        try:
            command = [str(venv) if is_there else sys.executable, *_arguments(part, options, left)]
            _call(command, FOLDER / f"{part.name}.log", options.limit)
            measured = json.loads(left.read_text(encoding="utf-8"))
        except Exception as error:  # whatever it was, the next part goes on
            record["failure"] = _reason(error, FOLDER / f"{part.name}.log")
    seconds = time.perf_counter() - began
    record["seconds"] = round(seconds, 1)
    if busy is not None:
        record["others"] = round(max(_busy_elsewhere() - busy, 0.0) / seconds, 2)
    own = {"part": part.name, "command": record["command"]}
    return record, [own | row for row in measured]


def _busy_elsewhere() -> float | None:
    """Seconds that the cores have worked for others than this process and those it started, on Linux."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, path.read_text().splitlines()[0].split()[1:])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


class _UnavailableError(Exception):
    """A part lacks something to work on."""


def _arguments(part: Part, options: argparse.Namespace, left: Path) -> list[str]:
    """The arguments of a Python for a part, which leaves its rows in a file."""
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", part.shown)]
    paths = dict(part.paths)
    for index, word in enumerate(words):
        if word in paths:
            path = paths[word](options)
            if path is None:
                raise _UnavailableError(f"no {word}: name a folder of real data by --real")
            words[index] = str(path)
    rounds = options.rounds or part.rounds
    told = [f"--rounds={rounds}"] if part.rounds else []
    for name in ("torch", "openvino"):
        if (part.script, name) in {
            ("train.py", "torch"),
            ("predict.py", "torch"),
            ("predict.py", "openvino"),
        }:
            told.append(f"--{name}-python={options.venvs / f'.venv-{name}' / 'bin' / 'python'}")
    return [str(ROOT / "benchmarks" / part.script), *words, *told, f"--json={left}"]


def _call(command: list[str], log: Path, limit: float) -> None:
    """Runs a command in a group of its own, which ends with it, whatever it has started."""
    with log.open("w", encoding="utf-8") as said:
        started = subprocess.Popen(
            command, stdout=said, stderr=said, cwd=ROOT, env=_environment(), start_new_session=True
        )
        try:
            status = started.wait(limit)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)


def _reason(error: Exception, log: Path) -> str:
    """A line that says why a part failed."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"took longer than {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError) and log.is_file():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit status {error.returncode}: {said[-1][:300] if said else 'nothing said'}"
    return f"{error}"


def _replace(results: dict[str, Any], record: dict[str, Any], measured: list[dict[str, Any]]) -> None:
    """Puts a part and its rows where they belong, in place of earlier ones."""
    order = [part.name for part in PARTS]
    for key, new in (("parts", [record]), ("rows", measured)):
        kept = [old for old in results[key] if old["part"] != record["part"]]
        results[key] = sorted([*kept, *new], key=lambda entry: order.index(entry["part"]))


def _environment() -> dict[str, str]:
    """This checkout is what is measured, whatever is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _machine(venvs: Path) -> dict[str, Any]:
    """What the figures depend on."""
    described = _processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": described.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory, 1),
        "flags": [flag for flag in FLAGS if flag in described.get("flags", "").split()],
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "peers": _peers(venvs),
    }


def _processor() -> dict[str, str]:
    """The first processor, as Linux describes it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _peers(venvs: Path) -> dict[str, str]:
    """The versions of the peers that are there, by name."""
    found = {}
    for package, (name, venv) in PEERS.items():
        python = venvs / venv / "bin" / "python"
        if python.is_file():
            ask = f"from importlib.metadata import version; print(version({package!r}))"
            done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name] = done.stdout.strip().partition("+")[0]
    return found


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
