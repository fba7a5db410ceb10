"""Long jobs in processes of their own, each with its share of the machine."""

import os
import signal
import time

import pytest

from luna_cls.processes import run_apart, shares, termination_watched


def _what_it_has(job, asked_to_stop):
    return os.environ.get("CUDA_VISIBLE_DEVICES"), len(os.sched_getaffinity(0)), os.getpid()


def _die_of_one(job, asked_to_stop):
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * 10


def _wait_to_be_asked(job, asked_to_stop):
    job.touch()
    limit = time.monotonic() + 60
    while not asked_to_stop() and time.monotonic() < limit:
        time.sleep(0.01)
    return asked_to_stop()


def test_each_has_a_gpu_and_as_many_cores(monkeypatch):
    """Three jobs, two at a time, two GPUs: each sees one and half the cores, in a process of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")

    had = [result for _, result in run_apart(_what_it_has, [0, 1, 2], workers=2)]

    assert {gpu for gpu, _, _ in had} == {"4", "7"}
    assert {cores for _, cores, _ in had} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    assert len({process for _, _, process in had}) == 3


def test_gpus_go_round_and_are_shared_where_they_are_fewer(monkeypatch):
    """Three processes on two GPUs: the third has the first one's, and none takes all its memory."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")

    dealt = shares(3)

    assert [share.gpus for share in dealt] == [("4",), ("7",), ("4",)]
    assert all(share.is_crowded for share in dealt)
    assert not any(share.is_crowded for share in shares(2))
    assert [share.gpus for share in shares(1)] == [("4", "7")]


def test_no_gpu_is_dealt_where_none_is_visible(monkeypatch):
    """CUDA_VISIBLE_DEVICES=-1 hides them all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")

    assert [share.gpus for share in shares(2)] == [(), ()]


def test_a_killed_process_costs_its_own_job_alone():
    """Of three jobs the second is killed: it has no result, the others have theirs."""
    assert dict(run_apart(_die_of_one, [0, 1, 2], workers=2)) == {0: 0, 1: None, 2: 20}


def test_who_is_asked_to_stop_asks_those_at_work(tmp_path):
    """Two jobs at work end when they are asked; the third is never begun."""
    jobs = [tmp_path / name for name in "abc"]

    ended = dict(
        run_apart(_wait_to_be_asked, jobs, 2, asked_to_stop=lambda: jobs[0].exists() and jobs[1].exists())
    )

    assert ended == {jobs[0]: True, jobs[1]: True}
    assert not jobs[2].exists()


def test_ctrl_c_asks_at_first_and_interrupts_at_the_end():
    """What is at work is asked, finishes, and then the interrupt comes; a second one comes at once."""
    asked = []

    def work(interrupts):
        with termination_watched(interrupts=True) as asked_to_stop:
            asked.append(asked_to_stop())
            for _ in range(interrupts):
                os.kill(os.getpid(), signal.SIGINT)
                asked.append(asked_to_stop())
            asked.append("end")

    with pytest.raises(KeyboardInterrupt):
        work(1)
    with pytest.raises(KeyboardInterrupt):
        work(2)

    assert asked == [False, True, "end", False, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
