import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from luna_cls.cubes.preparation import prepare
from luna_cls.scans.grid import Grid
from luna_cls.scans.luna16 import LunaTree

TILTED = Rotation.from_euler("xyz", [20, -10, 5], degrees=True).as_matrix()

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def slow_tree(tmp_path_factory, write_scan):
    """Six tilted scans of 100 candidates: a tilted scan's cubes are the slowest to cut."""
    root = tmp_path_factory.mktemp("slow") / "tree"
    rng = np.random.default_rng(4)
    tables = []
    for uid in (f"1.2.826.1.{number}" for number in range(6)):
        grid = Grid((40, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), TILTED)
        hu = rng.integers(-1000, 400, grid.shape_zyx).astype(np.int16)
        write_scan(root / "subset0", uid, hu, direction=TILTED)
        points = grid.to_world_xyz_mm(rng.uniform(0, 39, (100, 3)))
        table = pd.DataFrame(points, columns=["coordX", "coordY", "coordZ"]).assign(seriesuid=uid)
        tables.append(table.assign(**{"class": np.arange(100) % 2}))
    pd.concat(tables).to_csv(root / "candidates_V2.csv", index=False)
    return root


@pytest.fixture(scope="module")
def uninterrupted(slow_tree, tmp_path_factory):
    """What the files of the slow tree's store must be."""
    tree = LunaTree.open(slow_tree)
    out = tmp_path_factory.mktemp("slow") / "store"
    return _digests(prepare(tree, tree.candidates(), out, workers=2).path)


def _start_prepare(tree, out):
    command = [sys.executable, "-m", "luna_cls", "prepare", str(tree), str(out), "--workers", "2"]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=_hear_interrupts,
    )  # fmt: skip


def _hear_interrupts():
    """What a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.01)
    return found


def _wait_for_first_scan(process, out):
    done = out.with_name(out.name + ".partial") / "done"
    _wait_until(lambda: process.poll() is not None or any(done.glob("[!.]*.json")), "the first scan")
    assert process.poll() is None, process.communicate()


def _workers(pid):
    """The worker processes of process `pid`, from /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it ended in the meantime
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(folder.name))
    return found


def _is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@needs_proc
@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_ends_with_the_same_bytes(slow_tree, uninterrupted, tmp_path):
    """SIGKILL at 20 random moments, as the command starts, workers start and scans are cut: all end whole."""
    tree, found = LunaTree.open(slow_tree), []
    for number, moment in enumerate(np.random.default_rng(9).uniform(0, 0.7, 20)):
        out = tmp_path / f"store {number}"
        process = _start_prepare(slow_tree, out)
        if number % 4 == 1:  # the others as the command starts
            _wait_until(lambda process=process: len(_workers(process.pid)) == 2, "the start of two workers")
        elif number % 4 > 1:
            _wait_for_first_scan(process, out)
        time.sleep(moment)
        workers = _workers(process.pid)
        process.kill()
        process.communicate()
        _wait_until(lambda pids=workers: not any(map(_is_alive, pids)), "the workers' end")
        done = len(list((tmp_path / f"store {number}.partial" / "done").glob("[!.]*.json")))
        found.append("whole" if out.exists() else done)

        if not out.exists():
            prepare(tree, tree.candidates(), out, workers=1)

        assert _digests(out) == uninterrupted, f"killed after {moment:.2f} s, with {done} scans done"
        shutil.rmtree(out)
    assert found.count(0) > 4, found
    assert len(set(found)) > 1, found


@pytest.mark.slow
def test_interrupted_and_started_again_ends_with_the_same_bytes(slow_tree, uninterrupted, run_cli, tmp_path):
    """Ctrl-C ends with status 130 and a word, not a traceback; the same command goes on."""
    out = tmp_path / "store"
    process = _start_prepare(slow_tree, out)
    _wait_for_first_scan(process, out)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Interrupted." in stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    again = run_cli("prepare", slow_tree, out, "--workers", "2")
    assert again.returncode == 0, again.stderr
    assert "Cutting cubes: 0 of 6" not in again.stderr
    assert _digests(out) == uninterrupted


@needs_proc
def test_an_interrupt_while_the_workers_start_is_quiet(slow_tree, tmp_path):
    """Ctrl-C in the second in which the workers load ends with status 130 and no traceback, too."""
    process = _start_prepare(slow_tree, tmp_path / "store")
    _wait_until(lambda: len(_workers(process.pid)) == 2, "the start of two workers")
    time.sleep(0.05)  # in the middle of their imports

    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in stderr


@needs_proc
@pytest.mark.slow
def test_a_worker_killed_for_want_of_memory_is_one_line(slow_tree, uninterrupted, run_cli, tmp_path):
    """When a worker is killed the command ends with status 1 and advice that works: fewer workers."""
    out = tmp_path / "store"
    process = _start_prepare(slow_tree, out)
    _wait_for_first_scan(process, out)
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)

    again = run_cli("prepare", slow_tree, out, "--workers", "1")

    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("luna-cls: A worker process was killed")
    assert "Traceback" not in stderr
    assert again.returncode == 0, again.stderr
    assert _digests(out) == uninterrupted
