import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from distributed import Client

from luna_cls.cubes.preparation import prepare
from luna_cls.errors import InputError
from luna_cls.scans.luna16 import LunaTree

SCHEDULER = "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"
WORKERS = "distributed.cli.dask_worker", "--nworkers", "2", "--nthreads", "1"


@contextmanager
def _running(module, *options, folder):
    """A part of a Dask cluster, as its own process."""
    command = [
        sys.executable,
        "-m",
        module,
        "--scheduler-file",
        folder / "cluster",
        "--no-dashboard",
        *options,
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _address(folder):
    """Where the scheduler is, once it is there."""
    deadline = time.monotonic() + 60
    while not (folder / "cluster").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return json.loads((folder / "cluster").read_text())["address"]


@contextmanager
def _cluster(folder, workers, count):
    """The address of a Dask scheduler on this machine, once all of its worker processes are there."""
    with _running(*SCHEDULER, folder=folder), _running(*workers, folder=folder):
        address = _address(folder)
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        yield address


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a Dask scheduler on this machine with two worker processes."""
    with _cluster(tmp_path_factory.mktemp("cluster"), WORKERS, 2) as address:
        yield address


def _digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_cluster_makes_the_same_bytes(small_tree, small_store, scheduler, run_cli, tmp_path):
    """Two Dask workers, each a process of its own, make the store that one process makes."""
    out = tmp_path / "store"

    done = run_cli("prepare", small_tree, out, "--dask", scheduler)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert done.stderr.splitlines()[-2:] == [
        "Cutting cubes: 4 of 4",
        "40 cubes of 4 scans: 12 nodules, 28 not",
    ]
    assert _digests(out) == _digests(small_store.path)


def test_a_bad_scan_stops_neither_the_cluster_nor_the_store(
    small_tree, small_store, scheduler, run_cli, tmp_path
):
    """One scan of four is cut off: status 3, its ten rows are marked, and thirty cubes are there."""
    tree = LunaTree.open(shutil.copytree(small_tree, tmp_path / "tree"))
    path = next(iter(tree.scan_paths.values()))
    data = next(path.parent.glob("*raw"))
    data.write_bytes(data.read_bytes()[:100])

    done = run_cli("prepare", tree.root, tmp_path / "store", "--dask", scheduler)

    assert done.returncode == 3
    assert "30 cubes of 3 scans" in done.stderr
    assert "failures.csv says what and why, in 1 line." in done.stderr


def test_what_a_process_began_a_cluster_ends(small_tree, small_store, scheduler, tmp_path):
    """Stopped after two of four scans on this machine, the rest is cut by the cluster, to the same bytes."""
    tree, out, reports = LunaTree.open(small_tree), tmp_path / "store", []

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tree, tree.candidates(), out, workers=1, on_progress=stop)
    prepare(
        tree, tree.candidates(), out, dask=scheduler,
        on_progress=lambda *counts: reports.append(counts),
    )  # fmt: skip

    assert reports == [(2, 4), (3, 4), (4, 4)]
    assert _digests(out) == _digests(small_store.path)


def test_a_lost_worker_costs_nothing(small_tree, small_store, scheduler, tmp_path):
    """A worker is killed in the middle: its scan goes to another, and the bytes are the same."""
    tree, out = LunaTree.open(small_tree), tmp_path / "store"

    def kill(done, total):
        if done == 1:
            with Client(scheduler, set_as_default=False) as client:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    prepare(tree, tree.candidates(), out, dask=scheduler, on_progress=kill)

    assert _digests(out) == _digests(small_store.path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1:1", "No Dask scheduler answers at tcp://127.0.0.1:1. Start one"),
        ("nonsense", "--dask takes a scheduler's address, as tcp://HOST:8786. Received: 'nonsense'"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(small_tree, run_cli, tmp_path, address, words):
    """Nothing answers, or the address is none: status 1 and what to do; the work can go on without."""
    refused = run_cli("prepare", small_tree, tmp_path / "store", "--dask", address)

    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"luna-cls: {words}")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "store").exists()


def test_a_scheduler_without_workers_is_one_line(small_tree, tmp_path):
    """A cluster that would never do anything is not waited for."""
    tree = LunaTree.open(small_tree)
    with _running(*SCHEDULER, folder=tmp_path):
        address = _address(tmp_path)
        with pytest.raises(InputError, match=f"{address} has no workers"):
            prepare(tree, tree.candidates(), tmp_path / "store", dask=address)


def test_workers_of_its_own_and_of_a_cluster_exclude_each_other(small_tree, tmp_path):
    """--workers says nothing to a cluster."""
    tree = LunaTree.open(small_tree)

    with pytest.raises(InputError, match="--workers and --dask exclude each other"):
        prepare(tree, tree.candidates(), tmp_path / "store", workers=2, dask="tcp://127.0.0.1:1")
