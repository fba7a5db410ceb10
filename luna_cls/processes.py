"""Runs one function over many jobs: in worker processes that never outlive their parent, or on a cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

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


def run_on_cluster(
    function: Callable[[Job], Result], jobs: Sequence[Job], address: str, folders: Sequence[Path] = ()
) -> Generator[Result, None, None]:
    """Yields the result of every job as it is done, in any order, by the workers of a Dask cluster.

    A job whose worker is lost goes to another worker. However this ends, no further job is begun.

    Args:
        function: A module-level function of one job; done twice, it must leave what it leaves once.
        jobs: What to call it with; each must pickle.
        address: The scheduler's, as `tcp://host:8786`.
        folders: What every worker must see.

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
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                yield future.result()
                future.release()
        except distributed.KilledWorker as error:
            raise InputError(
                "Four workers of the cluster were lost over one job, most likely for want of memory. "
                "Run the same command again on workers with more."
            ) from error
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
def termination_watched() -> Iterator[Callable[[], bool]]:
    """Tells in the block whether the process was asked to end (SIGTERM), in place of ending it.

    Batch systems ask so before they take a machine back. It works in the main thread alone.
    """
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
