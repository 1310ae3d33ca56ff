"""Work that is cut into jobs and done by several processes, here or on a cluster, with the results
in the order of the jobs.

    crew = LocalCrew(2)               # this process and one that helps it; RayCrew(): all machines of a Ray cluster
    for counts in crew.map(count, chunks): ...
    crew.close()

A job and its result are pickled. Whoever does a job, and however many there are, the results are
the same. The jobs of one map may come from the results of another of the same crew.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from multiprocessing import get_context
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from replaykit.engines.children import deaf
from replaykit.errors import EngineError, MissingExtra, ReplaykitError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Job = TypeVar("Job")
Result = TypeVar("Result")

TAKEN = 2  # jobs at most that are with a process, so that it need not wait for the next
AHEAD = 4  # results for each process that may wait for an earlier one
JOBS_PER_CPU = 4  # of a cluster, in one round of Ray Data


class Mapper(Protocol):
    """What does jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs. ``function`` can be pickled, and so can its jobs
        and results.
        """
        ...

    def close(self) -> None:
        """Ends what it started; a later ``map`` starts it anew."""
        ...


# --- this machine ---------------------------------------------------------------------------------


def processors() -> int:
    """The CPUs that this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # absent on a Mac


class LocalCrew:
    """This process and others that help it, ``processes`` in all: by default one for each CPU that
    it may use.

    They end with ``close``, or with this process, by the end of their pipes. Raises ReplaykitError
    where one ends unasked.
    """

    def __init__(self, processes: int | None = None):
        if processes is not None and processes < 1:
            raise ValueError(f"processes: {processes} is not a number of at least 1")
        self.processes = processes or processors()
        self._helpers: list[_Helper] = []

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs.

        Helpers are given jobs first; while all of them start, or have all they can take, results
        are given that have come, and without these a job is done here. A single job starts nobody.
        What the function raises for a job is raised in the place of its result.
        """
        first = list(islice(jobs, TAKEN))
        jobs = chain(first, jobs)
        if self.processes == 1 or len(first) < TAKEN:
            yield from map(function, jobs)
            return
        self._start()
        places = deque[_Place]()
        more = True
        while more or places:
            room = more and len(places) < AHEAD * self.processes
            if not room or (places and places[0].answer and self._free() is None):
                yield places.popleft().wait()
                continue
            for job in islice(
                jobs, 1
            ):  # it may take a while to come, and be the result of another map
                helper = self._free()
                places.append(
                    helper.take(function, job) if helper else _Place([(True, function(job))])
                )
                break
            else:
                more = False

    def close(self) -> None:
        helpers = self._helpers
        self._helpers = []
        for helper in helpers:
            helper.end()

    def _free(self) -> _Helper | None:
        """The one that has the least to do, or None where all have all they can take."""
        for helper in self._helpers:
            helper.listen()
        free = min(self._helpers, key=_Helper.load)
        return free if free.load() < TAKEN else None

    def _start(self) -> None:
        while len(self._helpers) < self.processes - 1:
            with deaf():
                self._helpers.append(_Helper())


class _Helper:
    """A process that does jobs in order, of whichever maps they are."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self._function: object = None
        self._places = deque(
            [_Place([])] * TAKEN
        )  # which no job has: for the first messages, that it has started

    def load(self) -> int:
        return len(self._places)

    def take(self, function: Callable[[Job], Any], job: Job) -> _Place:
        try:
            if self._function is not function:
                self._pipe.send(function)
                self._function = function
            self._pipe.send((job,))
        except OSError as error:
            raise self._ended() from error
        self._places.append(_Place([], self))
        return self._places[-1]

    def listen(self, *, wait: bool = False) -> None:
        """Takes the answers that have come, and with ``wait`` at least one. Nobody may be waiting
        for them any more.
        """
        while self._places and (wait or self._pipe.poll()):
            try:
                answer = self._pipe.recv()
            except (EOFError, OSError) as error:
                raise self._ended() from error
            self._places.popleft().answer.append(answer)
            wait = False

    def end(self) -> None:
        self._pipe.close()
        self.process.terminate()
        self.process.join()

    def _ended(self) -> ReplaykitError:
        self.process.join()
        return ReplaykitError(
            f"a process that compared texts ended unasked (exit code {self.process.exitcode}); if "
            f"it was short of memory, "
            "use fewer processes. In a script, what calls replaykit belongs under "
            '`if __name__ == "__main__":`'
        )


@dataclass(frozen=True)
class _Place:
    """Where an answer comes to stand: empty, or with one, that a result is there and it, or that it
    failed and the error.
    """

    answer: list[tuple[bool, Any]]
    helper: _Helper | None = None

    def wait(self) -> Any:
        while not self.answer:
            assert self.helper is not None
            self.helper.listen(wait=True)
        done, result = self.answer[0]
        if not done:
            raise result
        return result


def _work(pipe: Connection) -> None:
    """What a helper does: a function, then jobs for it in tuples, then perhaps another function,
    until the pipe ends.

    Threads read and write while a job is done, so that nobody waits for the other end to read.
    """
    inbox = SimpleQueue[Any]()
    outbox = SimpleQueue[bytes]()
    Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    Thread(target=_send, args=(pipe, outbox), daemon=True).start()
    for _ in range(TAKEN):
        outbox.put(pickle.dumps((True, "ready")))
    function: Callable[[Any], Any] | None = None
    while (message := inbox.get()) is not None:
        if not isinstance(message, tuple):
            function = message
            continue
        assert function is not None
        try:
            outbox.put(pickle.dumps((True, function(*message)), protocol=5))
        except Exception as error:  # noqa: BLE001 - raised again in the process that asked
            outbox.put(pickle.dumps((False, error)))


def _receive(pipe: Connection, inbox: SimpleQueue[Any]) -> None:
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            inbox.put(None)
            return


def _send(pipe: Connection, outbox: SimpleQueue[bytes]) -> None:
    while True:
        try:
            pipe.send_bytes(outbox.get())
        except OSError:  # nobody reads any more: _receive sees it too
            return


# --- a cluster ------------------------------------------------------------------------------------


class RayCrew:
    """All machines of a Ray cluster, by Ray Data: the one that RAY_ADDRESS names or that runs here,
    else this machine alone.

    Jobs go out in rounds of a few for each CPU of the cluster. What a job reads and writes by its
    path must be on storage that all machines see, and each needs replaykit. Raises MissingExtra
    without ray.
    """

    def __init__(self) -> None:
        if find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError) as error:
                raise EngineError(
                    f"no Ray cluster could be had: {error}; `ray start --head` starts one"
                ) from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.DataContext.get_current().execution_options.preserve_order = True

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        import ray

        def do(row: dict[str, Any]) -> dict[str, Any]:
            return {"result": pickle.dumps(function(pickle.loads(row["job"])))}

        # A round is done before its first result is given. If that leads to another round, neither
        # holds the other's CPUs.
        size = JOBS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while round_ := list(islice(jobs, size)):
            rows = ray.data.from_items(
                [{"job": pickle.dumps(job)} for job in round_], override_num_blocks=len(round_)
            )
            for row in rows.map(do).materialize().iter_rows():
                yield pickle.loads(row["result"])

    def close(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()
