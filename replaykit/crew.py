"""Work that is cut into jobs, done by processes of this machine or on a cluster, with the results in the order of the jobs.

    crew = Crew(2)                    # or RayCrew(), on all machines of a Ray cluster
    for signatures in crew.map(sign, batches): ...
    crew.close()

A job and its result are pickled. Whoever does a job, and however many there are, the results are the same.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from replaykit.engines.children import deaf
from replaykit.errors import EngineError, MissingExtra, ReplaykitError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_PER_CPU = 4  # of a cluster, in one round of Ray Data
ENDED = (
    "a process that compared texts ended unasked; if it was short of memory, use fewer processes. In a script, what calls "
    'replaykit belongs under `if __name__ == "__main__":`'
)


class Mapper(Protocol):
    """What does jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """The results in the order of the jobs. ``function`` can be pickled, and so can its jobs and results."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


def crew(engine: str = "local", processes: int | None = None) -> Mapper:
    """The crew of an engine: "local" processes, by default one for each CPU that this one may use, or "ray"."""
    return RayCrew() if engine == "ray" else Crew(processes or len(os.sched_getaffinity(0)))


class Crew:
    """Processes that stand by. They end with ``close``, or with this process, by the end of their pipes."""

    def __init__(self, processes: int):
        self._size = processes
        self._workers: list[tuple[Any, Connection]] = []

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        """As ``Mapper.map``. Jobs are made while others are done; a single one is done here."""
        first = list(islice(jobs, 2))
        if self._size == 1 or len(first) < 2:
            yield from map(function, chain(first, jobs))
            return
        finished = False
        try:
            workers = self._started()
            for _, pipe in workers:
                pipe.send(function)
            # Each has one job and no more: with two, it and we might both wait for the other to read.
            busy: deque[tuple[Any, Connection]] = deque()
            for number, job in enumerate(chain(first, jobs)):
                process, pipe = workers[number % len(workers)]
                answer = _answer(*busy.popleft()) if len(busy) == len(workers) else None
                pipe.send((job,))
                busy.append((process, pipe))
                if answer is not None:
                    yield answer[0]
            while busy:
                yield _answer(*busy.popleft())[0]
            finished = True
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ReplaykitError(ENDED) from error
        finally:
            if not finished:  # they may be about to answer what nobody waits for any more
                self.close()

    def close(self) -> None:
        workers, self._workers = self._workers, []
        for _, pipe in workers:
            pipe.close()
        for process, _ in workers:
            process.terminate()
            process.join()

    def _started(self) -> list[tuple[Any, Connection]]:
        from multiprocessing import get_context

        context = get_context("spawn")
        while len(self._workers) < self._size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with deaf():
                process.start()
            theirs.close()
            self._workers.append((process, ours))
        return self._workers


def _answer(process: Any, pipe: Connection) -> tuple[Any]:
    try:
        answer = pipe.recv()
    except EOFError as error:
        process.join()
        raise ReplaykitError(f"{ENDED} (exit code {process.exitcode})") from error
    if isinstance(answer, BaseException):
        raise answer
    return (answer,)


def _work(pipe: Connection) -> None:
    """What a process does: a function, then jobs for it in tuples, then perhaps another function, until the pipe ends."""
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if not isinstance(message, tuple):
            function = message
            continue
        assert function is not None
        try:
            answer = function(*message)
        except Exception as error:  # noqa: BLE001 - raised again in the process that asked
            answer = error
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


class RayCrew:
    """All machines of a Ray cluster, by Ray Data: the one that RAY_ADDRESS names or that runs here, else this machine alone.

    Jobs go out in rounds of a few for each CPU of the cluster. What a job reads and writes by its path must be on storage
    that all machines see, and each needs replaykit. Raises MissingExtra without ray.
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
                raise EngineError(f"no Ray cluster could be had: {error}; `ray start --head` starts one") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.DataContext.get_current().execution_options.preserve_order = True

    def map(self, function: Callable[[Job], Result], jobs: Iterator[Job]) -> Iterator[Result]:
        import ray

        def do(row: dict[str, Any]) -> dict[str, Any]:
            return {"result": pickle.dumps(function(pickle.loads(row["job"])))}

        size = JOBS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while round_ := list(islice(jobs, size)):
            rows = ray.data.from_items([{"job": pickle.dumps(job)} for job in round_], override_num_blocks=len(round_))
            for row in rows.map(do).iter_rows():
                yield pickle.loads(row["result"])

    def close(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()
