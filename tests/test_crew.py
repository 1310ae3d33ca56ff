"""Crews: whoever does the jobs, the results come in their order, and what goes wrong is said."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import neg
from typing import Any

import pytest

from replaykit.crew import AHEAD, LocalCrew, RayCrew
from replaykit.errors import ReplaykitError


def doubled(number: int) -> int:
    return 2 * number


def slow_process_id(number: int) -> tuple[int, int]:
    time.sleep(0.1)
    return number, os.getpid()


def shout(text: str) -> str:
    return text.upper()


def waited_for(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.05) for _ in range(400))


@pytest.fixture
def crew() -> Iterator[LocalCrew]:
    with closing(LocalCrew(2)) as two:
        yield two


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_results_come_in_the_order_of_the_jobs(processes: int, count: int) -> None:
    with closing(LocalCrew(processes)) as crew:
        assert list(crew.map(doubled, iter(range(count)))) == [
            2 * number for number in range(count)
        ]
        assert len(crew._helpers) == (processes - 1 if count > 1 else 0), (
            "a single job starts nobody"
        )
    assert not crew._helpers


def test_jobs_are_done_here_and_by_helpers() -> None:
    with closing(LocalCrew(3)) as crew:
        results = list(crew.map(slow_process_id, iter(range(30))))
    assert [number for number, _ in results] == list(range(30))
    assert len({process for _, process in results}) > 1
    assert os.getpid() in {process for _, process in results}


def test_no_more_jobs_are_taken_than_results_may_wait(crew: LocalCrew) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 200:
            taken += 1
            yield taken

    for given, _ in enumerate(crew.map(doubled, jobs())):
        assert taken - given <= 2 * AHEAD + 2
    assert taken == 200


def test_jobs_and_results_larger_than_a_pipe_holds_block_nobody(crew: LocalCrew) -> None:
    texts = [chr(97 + k) * 3_000_000 for k in range(12)]
    assert list(crew.map(shout, iter(texts))) == [text.upper() for text in texts]


# --- one map inside another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_jobs_of_one_map_may_be_the_results_of_another_of_the_same_crew(processes: int) -> None:
    with closing(LocalCrew(processes)) as crew:
        texts = (str(number) + "x" * number for number in crew.map(doubled, iter(range(300))))
        assert list(crew.map(shout, texts)) == [f"{2 * k}{'X' * (2 * k)}" for k in range(300)]


def test_two_maps_may_be_read_in_turn(crew: LocalCrew) -> None:
    one, other = crew.map(doubled, iter(range(100))), crew.map(shout, iter("ab" * 50))
    assert list(zip(one, other, strict=True)) == [(2 * k, "AB"[k % 2]) for k in range(100)]


def test_a_map_that_was_left_early_disturbs_no_later_one(crew: LocalCrew) -> None:
    stream = crew.map(doubled, itertools.count())
    assert list(itertools.islice(stream, 10)) == list(range(0, 20, 2))
    stream.close()
    assert list(crew.map(shout, iter("abc" * 20))) == list("ABC" * 20)


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_fails_for_a_job_is_raised_in_the_place_of_its_result(processes: int) -> None:
    jobs: list[Any] = [*"abcdefgh", 9, *"ijkl"]
    done = []
    with closing(LocalCrew(processes)) as crew:
        with pytest.raises(AttributeError, match="upper"):
            for result in crew.map(shout, iter(jobs)):
                done.append(result)
        assert done == list("ABCDEFGH")[: len(done)]
        assert list(crew.map(shout, iter("xyz"))) == ["X", "Y", "Z"]


def unpicklable(number: int) -> Any:
    return (lambda: number) if number >= 10 else number


def test_a_result_that_cannot_be_sent_is_an_error_and_no_wait_without_end(crew: LocalCrew) -> None:
    with pytest.raises(Exception, match="pickle"):
        while True:  # until a helper, and not this process, has such a job
            list(crew.map(unpicklable, iter(range(40))))


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(crew: LocalCrew) -> None:
    stream = crew.map(doubled, itertools.count())
    next(stream)
    process = crew._helpers[0].process
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(ReplaykitError, match="use fewer processes"):
        list(itertools.islice(stream, 100))


def test_helpers_end_with_close_even_while_they_work(crew: LocalCrew) -> None:
    stream = crew.map(slow_process_id, itertools.count())
    next(stream)
    (process,) = (helper.process for helper in crew._helpers)
    crew.close()
    assert waited_for(lambda: not process.is_alive())


def test_a_crew_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalCrew(0)


# --- a cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_cluster_gives_the_same_results_in_the_same_order_and_one_map_may_feed_another() -> None:
    pytest.importorskip("ray")
    with closing(RayCrew()) as crew:
        assert list(crew.map(neg, iter([]))) == []
        texts = (f"{number}x" for number in crew.map(neg, iter(range(40))))
        assert list(crew.map(str.upper, texts)) == [f"{-k}X" for k in range(40)]
