"""Runs one function over many jobs: in worker processes that never outlive their parent, or on a cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from luna_cls import __version__
from luna_cls.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(workers: int | None) -> None:
    """Refuses a number of workers that is not positive.

    Raises:
        InputError: If it is not.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1. Received: {workers}.")


def run_in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None
) -> Generator[Result, None, None]:
    """Yields the result of every job as it is done, in any order.

    On Ctrl-C the workers finish the jobs they hold, start no other, and the interrupt goes on up.

    Args:
        function: A module-level function of one job.
        jobs: What to call it with; each must pickle.
        workers: Processes; None for one per core. With one, the jobs run in this process.

    Raises:
        InputError: If `workers` is not positive, or a worker is killed from outside.
    """
    check_workers(workers)
    count = min(workers or available_cores(), len(jobs))
    if count <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")  # the parent has threads: fork would copy their locks
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        try:
            with _interrupts_held_back():
                futures = [pool.submit(function, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "A worker process was killed, most likely for want of memory. "
                "Run the same command again with fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Share:
    """What one of several processes may use of this machine.

    Args:
        cores: Their numbers; every share has as many, so that results do not depend on which it is.
        gpus: As CUDA_VISIBLE_DEVICES names them.
        is_crowded: Whether other processes use them, too.
    """

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    is_crowded: bool = False

    def take(self) -> None:
        """Keeps this process to its share, before it loads what looks for cores and GPUs."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if self.is_crowded:
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def shares(count: int) -> list[Share]:
    """This machine's cores divided among so many processes, its GPUs dealt out to them in turn."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = visible_gpus()
    each = max(1, len(cores) // count)
    return [
        Share(
            tuple(cores[(index * each + place) % len(cores)] for place in range(each) if cores),
            tuple(gpus[index::count] or gpus[index % len(gpus) :][:1] if gpus else ()),
            is_crowded=0 < len(gpus) < count,
        )
        for index in range(count)
    ]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names; without it, the numbers of this machine's NVIDIA GPUs."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return listed.stdout.split() if listed.returncode == 0 else []


def run_apart(
    function: Callable[[Job, Callable[[], bool]], Result],
    jobs: Sequence[Job],
    workers: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Job, Result | None], None, None]:
    """Runs each of a few long jobs in a fresh process with a share of this machine.

    However this ends, the jobs that run are asked to end themselves, and waited for.

    Args:
        function: A module-level function of one job, and of whether it was asked to end.
        jobs: What to call it with; each must pickle.
        workers: How many at a time, and among how many the machine is divided, however few jobs there are.
        asked_to_stop: Once it is true, no further job is begun, and those that run are asked to end.

    Yields:
        Each job that was begun, as it ends, and its result; None if its process ended without one.

    Raises:
        InputError: If `workers` is not positive.
    """
    check_workers(workers)
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    free = deque(shares(workers))
    running: dict[connection.Connection, tuple[SpawnProcess, Job, Share]] = {}
    is_stopping = False
    try:
        while running or (waiting and not is_stopping):
            while waiting and free and not is_stopping:
                receiver, sender = context.Pipe(duplex=False)
                job, share = waiting.popleft(), free.popleft()
                process = context.Process(target=_apart, args=(function, job, share, sender))
                with _interrupts_held_back():
                    process.start()
                sender.close()
                running[receiver] = process, job, share
            ready = connection.wait(list(running), timeout=0.5)
            for receiver in [receiver for receiver in running if receiver in ready]:
                process, job, share = running.pop(receiver)
                with receiver:
                    result = _received(receiver)
                process.join()
                free.append(share)
                yield job, result
            if asked_to_stop() and not is_stopping:
                is_stopping = True
                for process, _, _ in running.values():
                    process.terminate()
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _received(receiver: connection.Connection) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        return None


def _apart(
    function: Callable[[Job, Callable[[], bool]], Result],
    job: Job,
    share: Share,
    sender: connection.Connection,
) -> None:
    with termination_watched() as asked_to_stop:
        _start_worker()
        share.take()
        sender.send(function(job, asked_to_stop))


def run_on_cluster(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    address: str,
    folders: Sequence[Path] = (),
    lost: Callable[[Job], Result] | None = None,
) -> Generator[Result, None, None]:
    """Yields the result of every job as it is done, in any order, by the workers of a Dask cluster.

    A job whose worker is lost goes to another worker. However this ends, no further job is begun.

    Args:
        function: A module-level function of one job; done twice, it must leave what it leaves once.
        jobs: What to call it with; each must pickle.
        address: The scheduler's, as `tcp://host:8786`.
        folders: What every worker must see.
        lost: The result of a job over which too many workers were lost; None if that is an error.

    Raises:
        InputError: If Dask is not installed, no scheduler answers or none has workers, a worker does not see
            a folder or cannot run the function, or too many workers are lost.
    """
    if not re.fullmatch(r"(tcp|tls)://[^/\s]+:\d+", address):
        raise InputError(f"--dask takes a scheduler's address, as tcp://HOST:8786. Received: '{address}'.")
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask needs Dask: pip install 'luna_cls[cluster]'.") from error
    try:
        client = distributed.Client(address, set_as_default=False, timeout="8s")
    except OSError as error:
        raise InputError(
            f"No Dask scheduler answers at {address}. Start one (dask scheduler), or correct the address."
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told in one line
    with client:
        try:
            seen = client.run(_unseen, list(folders), __version__)
        except Exception as error:  # Dask wraps whatever a worker without luna_cls says in this
            raise InputError(
                f"The workers of {address} cannot run luna_cls {__version__}: {error}. Install it there."
            ) from error
        if not seen:
            raise InputError(f"The scheduler at {address} has no workers. Start some: dask worker {address}")
        for worker, unseen in seen.items():
            if unseen:
                raise InputError(f"The worker {worker} does not see {unseen}. Use what all workers share.")
        futures = client.map(function, jobs, pure=False)
        job_of = dict(zip((future.key for future in futures), jobs, strict=True))
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                try:
                    result = future.result()
                except distributed.KilledWorker as error:
                    if lost is None:
                        raise InputError(
                            "Four workers of the cluster were lost over one job, most likely for want of "
                            "memory. Run the same command again on workers with more."
                        ) from error
                    result = lost(job_of[future.key])
                yield result
                future.release()
        except CancelledError as error:
            raise InputError(
                f"The Dask scheduler at {address} was lost. Run the same command again."
            ) from error
        finally:
            with suppress(OSError, CancelledError, TimeoutError):
                client.cancel(futures, force=True)


def _unseen(folders: Sequence[Path], wanted: str) -> str:
    """What this machine lacks: the version of luna_cls, or the first such folder; empty if nothing."""
    if wanted != __version__:
        return f"luna_cls {wanted} but {__version__}"
    return next((str(folder) for folder in folders if not folder.is_dir()), "")


@contextmanager
def _interrupts_held_back() -> Generator[None]:
    """Processes started in the block never see Ctrl-C; this one sees it at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def termination_watched(*, interrupts: bool = False) -> Iterator[Callable[[], bool]]:
    """Tells in the block whether the process was asked to end (SIGTERM), in place of ending it.

    Batch systems ask so before they take a machine back. It works in the main thread alone.

    Args:
        interrupts: Whether Ctrl-C asks so, too; `KeyboardInterrupt` then comes at the end of the block, and
            at once for a second Ctrl-C.
    """
    asked, interrupted = threading.Event(), threading.Event()

    def ask_at_first(*_: Any) -> None:
        asked.set()
        interrupted.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: asked.set())}
    if interrupts:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, ask_at_first)
    try:
        yield asked.is_set
        if interrupted.is_set():
            raise KeyboardInterrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
