"""Jobs done by several processes, here or on a cluster, with the results in the order of the jobs.

    executor = LocalExecutor(2)      # this process and one worker; RayExecutor(): a Ray cluster
    for counts in executor.map(count, chunks): ...
    executor.close()

A job and its result are pickled. The results are the same for any number of processes. The jobs of
one ``map`` may come from the results of another one of the same executor.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from signal import SIGTERM
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar

from replaykit.engines.children import deaf
from replaykit.errors import EngineError, MissingExtra, ReplaykitError

Job = TypeVar("Job")
Result = TypeVar("Result")

QUEUED = 2  # jobs that are sent to a worker at a time, so that it need not wait for the next one
AHEAD = 4  # results for each process that may wait for an earlier one: they bound the memory
JOBS_PER_CPU = 4  # of a cluster, in one round of Ray Data


class Executor(Protocol):
    """Does jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs.

        The function, the jobs and the results must be picklable.
        """
        ...

    def close(self) -> None:
        """Ends what it started; a later ``map`` starts it anew."""
        ...


@dataclass(frozen=True)
class Shared(Generic[Job, Result]):
    """A function that is pickled as the path of a file, which each process reads once: for what is
    too large to be sent with each job.

    The file is written when it is pickled first; the caller deletes it.
    """

    function: Callable[[Job], Result]
    path: Path

    def __call__(self, job: Job) -> Result:
        return self.function(job)

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.path.exists():
            with self.path.open("wb") as stream:
                pickle.dump(self.function, stream, protocol=5)
        return _shared, (self.path,)


@lru_cache(maxsize=2)
def _shared(path: Path) -> Any:
    with path.open("rb") as stream:
        return pickle.load(stream)


# --- this machine ---------------------------------------------------------------------------------


def processors() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # absent on a Mac
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalExecutor:
    """This process and its workers, ``processes`` in all: by default one for each CPU that this
    process may use.

    The workers end with ``close``, or with this process, even if that is killed; Ctrl-C does not
    reach them. Raises ReplaykitError where a worker dies.
    """

    def __init__(self, processes: int | None = None):
        if processes is not None and processes < 1:
            raise ValueError(f"processes: {processes} is not a number of at least 1")
        self.processes = processes or processors()
        self._pool: ProcessPoolExecutor | None = None
        self._exit_code: int | None = None  # of the worker that died last

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs.

        Workers get jobs first. While all of them are starting or busy, results that have come are
        given; where there are none, this process does a job itself. A single job starts no worker.
        What the function raises for a job is raised in the place of its result.
        """
        # To start a worker takes about a second, so it is not done for a single job.
        first = list(islice(jobs, 2))
        jobs = chain(first, jobs)
        if self.processes == 1 or len(first) < 2:
            yield from map(function, jobs)
            return
        try:
            yield from self._map(function, jobs)
        except BrokenProcessPool as error:
            raise self._died() from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        results = deque[Future[Result]]()
        try:
            for job in jobs:
                if self._all_busy(results):
                    results.append(_done_here(function, job))
                else:
                    results.append(self._submit(function, job))
                while len(results) >= AHEAD * self.processes or self._can_give(results):
                    yield results.popleft().result()
            while results:
                yield results.popleft().result()
        finally:
            for result in results:  # a map that was left early
                result.cancel()

    def _submit(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        if self._pool is None:
            # Not "fork": a fork of a process with threads, as torch has, may wait for ever.
            self._pool = ProcessPoolExecutor(
                self.processes - 1, get_context("spawn"), initializer=_end_with_parent
            )
        with deaf():  # the pool starts its workers when it needs them, in here
            return self._pool.submit(function, job)

    def _all_busy(self, results: deque[Future[Result]]) -> bool:
        unfinished = sum(not result.done() for result in results)
        return unfinished >= QUEUED * (self.processes - 1)

    def _can_give(self, results: deque[Future[Result]]) -> bool:
        """Whether the next result has come, and no worker waits for a job meanwhile."""
        return bool(results) and results[0].done() and self._all_busy(results)

    def _died(self) -> ReplaykitError:
        if self._pool is not None:  # None where another map has met the same death before
            workers = list(self._pool._processes.values())
            self.close()
            # When one worker dies, the pool terminates the others: those do not say what happened.
            codes = {worker.exitcode for worker in workers} - {-SIGTERM}
            self._exit_code = next(iter(codes), -SIGTERM)
        return ReplaykitError(
            f"a process that compared texts ended unasked (exit code {self._exit_code}); if it was "
            "short of memory, use fewer processes. In a script, what calls replaykit belongs under "
            '`if __name__ == "__main__":`'
        )


def _done_here(function: Callable[[Job], Result], job: Job) -> Future[Result]:
    future = Future[Result]()
    try:
        future.set_result(function(job))
    except Exception as error:  # noqa: BLE001 - raised again in the place of the result
        future.set_exception(error)
    return future


def _end_with_parent() -> None:
    """Ends this worker when its parent ends. The pool does not do that where the parent is killed.

    Each worker holds both ends of the pipe that jobs come through, so it never reads an end of it.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


# --- a cluster ------------------------------------------------------------------------------------


class RayExecutor:
    """All machines of a Ray cluster, by Ray Data: the one that RAY_ADDRESS names or that runs here,
    else this machine alone.

    Jobs are done in rounds of a few for each CPU of the cluster. What a job reads and writes by its
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

        def do(row: dict[str, bytes]) -> dict[str, bytes]:
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
