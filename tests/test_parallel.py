"""Executors: the results come in the order of the jobs for any number of processes, and what goes
wrong is said.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from operator import neg
from pathlib import Path
from typing import Any

import pytest

from replaykit.errors import ReplaykitError
from replaykit.parallel import AHEAD, LocalExecutor, RayExecutor


def doubled(number: int) -> int:
    return 2 * number


def slow_process_id(number: int) -> tuple[int, int]:
    time.sleep(0.1)
    return number, os.getpid()


def shout(text: str) -> str:
    return text.upper()


def workers_of(executor: LocalExecutor) -> list[BaseProcess]:
    return list(executor._pool._processes.values()) if executor._pool is not None else []


def waited_for(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.05) for _ in range(400))


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    with closing(LocalExecutor(2)) as two:
        yield two


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_results_come_in_the_order_of_the_jobs(processes: int, count: int) -> None:
    with closing(LocalExecutor(processes)) as executor:
        assert list(executor.map(doubled, iter(range(count)))) == [
            2 * number for number in range(count)
        ]
        workers = workers_of(executor)
        assert len(workers) <= processes - 1
        assert bool(workers) == (processes > 1 and count > 1), "a single job starts no worker"
    assert not workers_of(executor)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_jobs_are_done_here_and_by_workers() -> None:
    with closing(LocalExecutor(3)) as executor:
        results = list(executor.map(slow_process_id, iter(range(30))))
    assert [number for number, _ in results] == list(range(30))
    assert len({process for _, process in results}) > 1
    assert os.getpid() in {process for _, process in results}


def test_no_more_jobs_are_taken_than_results_may_wait(executor: LocalExecutor) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 200:
            taken += 1
            yield taken

    for given, _ in enumerate(executor.map(doubled, jobs())):
        assert taken - given <= 2 * AHEAD + 2
    assert taken == 200


def test_jobs_and_results_larger_than_a_pipe_holds_block_nobody(executor: LocalExecutor) -> None:
    texts = [chr(97 + k) * 3_000_000 for k in range(12)]
    assert list(executor.map(shout, iter(texts))) == [text.upper() for text in texts]


# --- one map inside another -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_jobs_of_one_map_may_be_the_results_of_another_of_the_same_executor(
    processes: int,
) -> None:
    with closing(LocalExecutor(processes)) as executor:
        texts = (str(number) + "x" * number for number in executor.map(doubled, iter(range(300))))
        assert list(executor.map(shout, texts)) == [f"{2 * k}{'X' * (2 * k)}" for k in range(300)]


def test_two_maps_may_be_read_in_turn(executor: LocalExecutor) -> None:
    one = executor.map(doubled, iter(range(100)))
    other = executor.map(shout, iter("ab" * 50))
    assert list(zip(one, other, strict=True)) == [(2 * k, "AB"[k % 2]) for k in range(100)]


def test_a_map_that_was_left_early_disturbs_no_later_one(executor: LocalExecutor) -> None:
    stream = executor.map(doubled, itertools.count())
    assert list(itertools.islice(stream, 10)) == list(range(0, 20, 2))
    stream.close()
    assert list(executor.map(shout, iter("abc" * 20))) == list("ABC" * 20)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_fails_for_a_job_is_raised_in_the_place_of_its_result(processes: int) -> None:
    jobs: list[Any] = [*"abcdefgh", 9, *"ijkl"]
    done = []
    with closing(LocalExecutor(processes)) as executor:
        with pytest.raises(AttributeError, match="upper"):
            for result in executor.map(shout, iter(jobs)):
                done.append(result)
        assert done == list("ABCDEFGH")[: len(done)]
        assert list(executor.map(shout, iter("xyz"))) == ["X", "Y", "Z"]


def unpicklable(number: int) -> Any:
    return (lambda: number) if number >= 10 else number


def test_a_result_that_cannot_be_sent_is_an_error_and_no_wait_without_end(
    executor: LocalExecutor,
) -> None:
    with pytest.raises(Exception, match="pickle"):
        while True:  # until a worker, and not this process, has such a job
            list(executor.map(unpicklable, iter(range(40))))


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(executor: LocalExecutor) -> None:
    stream = executor.map(doubled, itertools.count())
    next(stream)
    (process,) = workers_of(executor)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ReplaykitError, match=r"exit code -9.*use fewer processes.*__main__"):
        list(itertools.islice(stream, 100))
    assert list(executor.map(doubled, iter(range(20)))) == list(range(0, 40, 2)), "it starts anew"


def test_workers_end_with_close_even_while_they_work(executor: LocalExecutor) -> None:
    stream = executor.map(slow_process_id, itertools.count())
    next(stream)
    (process,) = workers_of(executor)
    executor.close()
    assert waited_for(lambda: not process.is_alive())


SCRIPT = """
import itertools, os, time
from replaykit.parallel import LocalExecutor

def process_id(number):
    time.sleep(0.05)
    return os.getpid()

{guard}
    executor = LocalExecutor(3)
    seen = set()
    for process in executor.map(process_id, itertools.count()):
        seen.add(process)
        if len(seen) == 3:
            print(*seen - {{os.getpid()}}, flush=True)
            seen.add(None)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that goes on for ever, once it has printed the ids of its two workers."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(guard="if __name__ == '__main__':"))
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def ids_of_workers(script: subprocess.Popen[str]) -> list[int]:
    assert script.stdout is not None
    ids = [int(word) for word in script.stdout.readline().split()]
    assert len(ids) == 2
    return ids


def lives(process: int) -> bool:
    psutil = pytest.importorskip("psutil")
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_workers_end_with_their_parent_even_if_it_is_killed(script: subprocess.Popen[str]) -> None:
    workers = ids_of_workers(script)
    assert all(map(lives, workers))
    script.kill()
    script.wait()
    assert waited_for(lambda: not any(map(lives, workers)))


@pytest.mark.slow
def test_ctrl_c_reaches_the_parent_alone_which_ends_its_workers(
    script: subprocess.Popen[str],
) -> None:
    workers = ids_of_workers(script)
    for worker in workers:
        os.kill(worker, signal.SIGINT)
    time.sleep(0.5)
    assert all(map(lives, workers))
    os.killpg(script.pid, signal.SIGINT)
    _, errors = script.communicate(timeout=20)
    assert errors.count("KeyboardInterrupt") == 1
    assert waited_for(lambda: not any(map(lives, workers)))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(guard="if True:"))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    # The interpreter may add a warning of its own after the error.
    said = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("replaykit.errors.ReplaykitError: ")
    ]
    assert "exit code 1" in said[-1]
    assert said[-1].endswith('belongs under `if __name__ == "__main__":`')


def test_an_executor_of_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalExecutor(0)


# --- a cluster ------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_cluster_gives_the_same_results_in_the_same_order_and_one_map_may_feed_another() -> None:
    pytest.importorskip("ray")
    with closing(RayExecutor()) as executor:
        assert list(executor.map(neg, iter([]))) == []
        texts = (f"{number}x" for number in executor.map(neg, iter(range(40))))
        assert list(executor.map(str.upper, texts)) == [f"{-k}X" for k in range(40)]
