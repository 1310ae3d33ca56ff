"""Several engines, each whole and in a process of its own, as one: data parallelism.

    engine = Workers("llama3", options=EngineOptions(name="vllm", workers=4))  # on four GPUs

A request goes to the worker that has the fewest, a bounded number to each, and completions come
back as they finish. Every request draws by its own seed, so the rows are those of one engine. What
a worker has not answered when it dies, the others do.

The parent sends lists of jobs, and lists of the numbers of jobs to drop; a worker sends one answer
at a time. Each side sees the other's death as the end of the pipe.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from signal import SIG_IGN, SIGTERM, pthread_kill, signal
from threading import Thread, main_thread
from time import sleep
from typing import Any

import torch

from replaykit.engines import Completion, Engine, Request, choose, in_order, load_engine, until_none
from replaykit.engines.children import deaf
from replaykit.errors import EngineError, ReplaykitError
from replaykit.model import loading
from replaykit.model.gguf import is_gguf
from replaykit.model.pair import Pair, Scored
from replaykit.recipe.engine import EngineOptions

ROUND = 64  # requests to a worker that are read before any are sent
GRACE_SECONDS = 10  # for a worker to close its engine

log = logging.getLogger(__name__)

_Work = Request | tuple[int, ...] | Pair
"""What to do: complete a request, or score tokens."""


@dataclass(frozen=True)
class _Ready:
    """What the first message of a worker says of its engine."""

    limit: int
    read_ahead: int


@dataclass(frozen=True)
class _Failed:
    """Why a worker ends; or, with a number, why it refuses this one job."""

    reason: str
    number: int | None = None


@dataclass(frozen=True)
class _Job:
    """A piece of work on its way."""

    number: int
    """This job's alone: two iterations may have the same row."""
    row: int
    """What errors call it."""
    work: _Work


class _Drop(list[int]):
    """Numbers of jobs whose answers nobody waits for any more."""


@dataclass
class _Stream:
    """One iteration over ``complete`` or ``score``."""

    places: dict[int, int] = field(default_factory=dict)
    """The numbers of the jobs that it waits for, with their places in the iteration."""
    ready: deque[tuple[int, Any]] = field(default_factory=deque)
    """The answers that have come for it, by number."""


# --- the parent -----------------------------------------------------------------------------------


class Workers:
    """As many engines as ``options.workers``, of one model given by name or folder.

    On GPUs each has ``options.tensor_parallel`` of the visible ones for itself; on a CPU they share
    out the threads. ``limit`` is the smallest of theirs.
    """

    def __init__(self, model: str, *, revision: str | None = None, options: EngineOptions):
        # A misspelt name is found, and a GGUF file dequantised, before any process starts.
        found = loading.resolve(model)
        if is_gguf(model):
            model = found
        self.name = choose(options, model, revision)
        self._numbers = count()
        self._workers: list[_Worker] = []
        self._ended: list[_Worker] = []
        self._last_words = "the engine was closed"
        inner = options.model_copy(update={"name": self.name, "workers": 1})
        # At the end of the program this runs before multiprocessing's own exit, which waits for
        # processes that wait for us.
        atexit.register(self.close)
        try:
            environments = _environments(options.workers, options.tensor_parallel)
            for place, environment in enumerate(environments):
                self._workers.append(_Worker(place, environment, model, revision, inner))
            # All of them load at the same time, and are waited for only then.
            ready = [worker.first_message() for worker in self._workers]
        except BaseException:
            self._end(seconds=0)
            raise
        self.limit = min(message.limit for message in ready)
        self.read_ahead = min(message.read_ahead for message in ready)

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with closing(self._run(requests)) as answers:
            for _, completion in answers:
                yield completion

    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        with closing(self._run(map(_to_send, sequences))) as answers:
            yield from in_order(answers)

    def close(self) -> None:
        self._end(seconds=GRACE_SECONDS)

    def _end(self, *, seconds: float) -> None:
        atexit.unregister(self.close)
        workers = [*self._workers, *self._ended]
        self._workers = []
        self._ended = []
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join(seconds)
            worker.process.kill()
            worker.process.join()

    def _run(self, works: Iterable[_Work | None]) -> Generator[tuple[int, Any], None, None]:
        """Each answer with the place of its work, from 0, as they finish.

        One iteration may feed another, and may be left early.
        """
        waiting = iter(works)
        places = count()
        stream = _Stream()
        try:
            while True:
                while (free := self._room() - len(stream.places)) > 0:
                    size = min(free, len(self._workers) * ROUND)
                    taken: list[_Work] = list(
                        until_none(waiting, size, unanswered=bool(stream.places))
                    )
                    self._send([self._job(work, next(places), stream) for work in taken])
                    if len(taken) < size:
                        break
                if not stream.places:
                    return
                while not stream.ready:
                    self._receive()
                while stream.ready:
                    number, answer = stream.ready.popleft()
                    place = stream.places.pop(number)
                    if isinstance(answer, _Failed):
                        raise EngineError(answer.reason)
                    yield place, answer
        finally:
            self._drop(stream)

    def _room(self) -> int:
        """How many jobs of one iteration may be with the workers.

        Raises EngineError where no worker is left.
        """
        if not self._workers:
            raise EngineError(f"no worker is left: {self._last_words}")
        return len(self._workers) * self.read_ahead

    def _job(self, work: _Work, place: int, stream: _Stream) -> tuple[_Job, _Stream]:
        number = next(self._numbers)
        stream.places[number] = place
        row = work.row if isinstance(work, Request) else place
        return _Job(number, row, work), stream

    def _send(self, jobs: Iterable[tuple[_Job, _Stream]]) -> None:
        """Sends each job to the worker that has the fewest."""
        self._room()
        lists: dict[_Worker, list[_Job]] = {}
        for job, stream in jobs:
            worker = min(self._workers, key=lambda worker: len(worker.flying))
            worker.flying[job.number] = (job, stream)
            lists.setdefault(worker, []).append(job)
        for worker, mine in lists.items():
            worker.send(mine)

    def _receive(self) -> None:
        """Waits for messages, and gives each answer to the stream that asked for it."""
        self._room()
        for pipe in wait([worker.pipe for worker in self._workers]):
            worker = next(worker for worker in self._workers if worker.pipe is pipe)
            try:
                message = worker.receive()
            except EngineError as error:
                self._bury(worker, str(error))
                return
            if isinstance(message, _Failed):
                message = (message.number, message)
            number, answer = message
            if number in worker.flying:  # else its iteration has been left
                _, stream = worker.flying.pop(number)
                stream.ready.append((number, answer))

    def _bury(self, worker: _Worker, reason: str) -> None:
        """A worker has died: the others do what it had not answered."""
        self._workers.remove(worker)
        self._ended.append(worker)
        self._last_words = reason
        worker.pipe.close()
        if self._workers:
            log.warning(
                "a worker ended: %s; its %d open rows go to the others", reason, len(worker.flying)
            )
        self._send(worker.flying.values())

    def _drop(self, stream: _Stream) -> None:
        """Nobody waits for the stream any more, so nobody need work for it."""
        for worker in self._workers:
            mine = _Drop(number for number in stream.places if worker.flying.pop(number, None))
            if mine:
                worker.send(mine)


def _to_send(scored: Scored) -> _Work:
    return scored if isinstance(scored, Pair) else tuple(scored)


class _Worker:
    """A process with an engine, seen from the parent."""

    def __init__(self, place: int, environment: dict[str, str], *what: Any):
        self.place = place
        self.flying: dict[int, tuple[_Job, _Stream]] = {}
        """The jobs that it has not answered, by number, and the iterations they are for."""
        self.pipe, theirs = Pipe()
        self.process = get_context("spawn").Process(
            target=_work, args=(theirs, *what), name=f"worker-{place}"
        )
        # Its end of the pipe is closed here, or the parent would never see it end.
        with closing(theirs), _environment(environment), deaf():
            self.process.start()

    def first_message(self) -> _Ready:
        message = self.receive(
            " before it was ready; a script that starts workers does so under `if __name__ == "
            '"__main__":`'
        )
        assert isinstance(message, _Ready)
        return message

    def receive(self, when: str = "") -> Any:
        """Its next message. Raises EngineError with the reason where it has ended."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(GRACE_SECONDS)
            raise EngineError(
                f"worker {self.place} ended with exit code {self.process.exitcode}{when}"
            ) from error
        if isinstance(message, _Failed) and message.number is None:
            raise EngineError(message.reason)
        return message

    def send(self, message: list[_Job] | _Drop) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:
            # ``receive`` sees that it has ended, and then its jobs go to the others.
            log.debug("worker %d takes nothing: %s", self.place, error)


def _environments(workers: int, tensor_parallel: int) -> list[dict[str, str]]:
    """What each worker finds in its environment. Raises EngineError where GPUs are too few."""
    if not torch.cuda.is_available():
        threads = str(max(1, torch.get_num_threads() // workers))
        return [{"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}] * workers
    here = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(here)]
    if named is not None:
        gpus = named.split(",")[:here]
    needed = workers * tensor_parallel
    if len(gpus) < needed:
        each = f" of {tensor_parallel} GPUs each" if tensor_parallel > 1 else ""
        raise EngineError(
            f"engine.workers: {workers} workers{each} need {needed} GPUs, and {len(gpus)} are "
            f"visible here; take fewer, or look at CUDA_VISIBLE_DEVICES"
        )
    starts = range(0, needed, tensor_parallel)
    shares = [gpus[start : start + tensor_parallel] for start in starts]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Processes that are started inside have these changes in their environment."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- a worker -------------------------------------------------------------------------------------


def _work(pipe: Connection, model: str, revision: str | None, options: EngineOptions) -> None:
    """The life of a worker's process, from loading the engine to the end of the pipe."""
    inbox: SimpleQueue[list[_Job] | _Drop] = SimpleQueue()
    signal(SIGTERM, _end)
    Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    try:
        engine: Any = load_engine(model, options, revision=revision)
        try:
            pipe.send(_Ready(engine.limit, engine.read_ahead))
            _Service(engine, pipe, inbox).run()
        finally:
            signal(SIGTERM, SIG_IGN)  # to close is not to be broken off
            engine.close()
    except (_End, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone, perhaps with an answer on its way
    except ReplaykitError as error:
        pipe.send(_Failed(str(error)))
    except Exception as error:
        pipe.send(_Failed(f"{type(error).__name__}: {error}"))
        raise


class _End(BaseException):
    """The pipe has ended, whatever the engine is doing."""


def _end(*_: object) -> None:
    raise _End


def _read(pipe: Connection, inbox: SimpleQueue[list[_Job] | _Drop]) -> None:
    """Takes what the parent sends at once, so its sending never waits; then ends the process.

    The main thread may be deep in the engine when the pipe ends. So it gets a signal, and where
    that does not help in time, the process exits.
    """
    try:
        while True:
            inbox.put(pipe.recv())
    finally:  # EOFError, or nonsense after a message that was broken off
        pthread_kill(main_thread().ident or 0, SIGTERM)
        sleep(GRACE_SECONDS)
        os._exit(1)


class _Again(Exception):
    """Open jobs were dropped: the engine leaves its work, and is given again what remains."""


class _Service:
    """Gives an engine the jobs of the inbox, and the parent its answers."""

    def __init__(self, engine: Engine, pipe: Connection, inbox: SimpleQueue[list[_Job] | _Drop]):
        self.engine = engine
        self.pipe = pipe
        self.inbox = inbox
        self.open: dict[int, Request] = {}
        """Requests that have not been answered, by number."""

    def run(self) -> None:
        """Never returns; ``_End`` or an error ends it."""
        while True:
            try:
                for completion in self.engine.complete(self._requests()):
                    number = completion.row
                    self.pipe.send((number, replace(completion, row=self.open.pop(number).row)))
            except _Again:
                continue
            except EngineError as error:
                rows = {number: request.row for number, request in self.open.items()}
                self._refuse(error, {number: (number, row) for number, row in rows.items()})

    def _requests(self) -> Iterator[Request | None]:
        """All that is open and all that comes, each with its number for a row.

        Two requests of different iterations may have the same row, but never the same number.
        """
        yield from [replace(request, row=number) for number, request in self.open.items()]
        while True:
            if self.open and self.inbox.empty():
                yield None
                continue
            message = self.inbox.get()
            if isinstance(message, _Drop):
                dropped = [number for number in message if self.open.pop(number, None)]
                if dropped:
                    raise _Again
                continue
            requests = {job.number: job.work for job in message if isinstance(job.work, Request)}
            self.open |= requests
            yield from [replace(request, row=number) for number, request in requests.items()]
            self._score([job for job in message if job.number not in requests])

    def _score(self, jobs: list[_Job]) -> None:
        sequences = [job.work for job in jobs if not isinstance(job.work, Request)]
        try:
            for job, scores in zip(jobs, self.engine.score(sequences), strict=True):
                self.pipe.send((job.number, scores))
        except EngineError as error:
            self._refuse(error, {k: (job.number, job.row) for k, job in enumerate(jobs)})

    def _refuse(self, error: EngineError, named: dict[int, tuple[int, int]]) -> None:
        """Tells the parent which job the error is about; an error about none is the engine's end.

        ``named`` has each job's number and row, by what the engine calls it: "row <name>: ...".
        """
        for name, (number, row) in named.items():
            prefix, _, reason = str(error).partition(": ")
            if prefix == f"row {name}":
                self.open.pop(number, None)
                self.pipe.send(_Failed(f"row {row}: {reason}", number))
                return
        raise error
