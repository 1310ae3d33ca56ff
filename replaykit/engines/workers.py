"""Several engines, each whole and in a process of its own, as one: data parallelism.

    engine = Workers("llama3", options=EngineOptions(name="vllm", workers=4))  # on four GPUs

Requests go out in turn to the worker that has the fewest, a bounded number to each, and come back
as they finish. Every request draws by its own seed, so the rows are those of one engine. What a
worker that dies had not answered, the others do.

The parent sends lists of jobs and lists of numbers to drop; a worker sends one answer at a time.
Its end, and the parent's, is the end of the pipe.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
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

from replaykit import models
from replaykit.engines import Completion, Engine, Request, choose, load_engine, until_none
from replaykit.engines.children import deaf
from replaykit.errors import EngineError, ReplaykitError
from replaykit.settings import EngineOptions

ROUND = 64  # requests to a worker that are read before any are sent
GRACE_SECONDS = 10  # for a worker to close its engine

log = logging.getLogger(__name__)


_Work = Request | tuple[int, ...]


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
    """A request, or tokens to score. ``number`` is this job's alone; ``row`` is what errors call
    it.
    """

    number: int
    row: int
    work: _Work


class _Drop(list[int]):
    """Numbers of jobs whose answers nobody waits for any more."""


@dataclass
class _Stream:
    """One iteration: the numbers that it waits for, with their places, and what has come for it."""

    places: dict[int, int] = field(default_factory=dict)
    ready: deque[tuple[int, Any]] = field(default_factory=deque)


# --- the parent -----------------------------------------------------------------------------------


class Workers:
    """As many engines as ``options.workers``, of one model given by name or folder. ``limit`` is
    the smallest of theirs.

    On GPUs each has ``options.tensor_parallel`` of the visible ones for itself; on a CPU they share
    out the threads.
    """

    def __init__(self, model: str, *, revision: str | None = None, options: EngineOptions):
        models.resolve(model)  # a misspelt name is found before any process starts
        self.name = choose(options)
        self._numbers = count()
        self._workers: list[_Worker] = []
        self._ended: list[_Worker] = []
        self._last_words = "the engine was closed"
        inner = options.model_copy(update={"name": self.name, "workers": 1})
        atexit.register(self.close)  # before multiprocessing waits for processes that wait for us
        try:
            for place, environment in enumerate(
                _environments(options.workers, options.tensor_parallel)
            ):
                self._workers.append(_Worker(place, environment, model, revision, inner))
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

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        waiting: dict[int, list[float]] = {}
        turn = 0
        with closing(self._run(tuple(tokens) for tokens in sequences)) as answers:
            for place, scores in answers:
                waiting[place] = scores
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1

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
        """Each answer with the place of what was asked. One iteration may feed another, and may be
        left early.
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
        """How many jobs of one iteration may be with the workers. Raises EngineError where none is
        left.
        """
        if not self._workers:
            raise EngineError(f"no worker is left: {self._last_words}")
        return len(self._workers) * self.read_ahead

    def _job(self, work: _Work, place: int, stream: _Stream) -> tuple[_Job, _Stream]:
        number = next(self._numbers)
        stream.places[number] = place
        return _Job(number, work.row if isinstance(work, Request) else place, work), stream

    def _send(self, jobs: Iterable[tuple[_Job, _Stream]]) -> None:
        self._room()
        lists: dict[_Worker, list[_Job]] = {}
        for job, stream in jobs:
            worker = min(self._workers, key=lambda worker: len(worker.flying))
            worker.flying[job.number] = job, stream
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
            number, answer = (message.number, message) if isinstance(message, _Failed) else message
            if number in worker.flying:  # else its iteration has been left
                _, stream = worker.flying.pop(number)
                stream.ready.append((number, answer))

    def _bury(self, worker: _Worker, reason: str) -> None:
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
            if mine := _Drop(number for number in stream.places if worker.flying.pop(number, None)):
                worker.send(mine)


class _Worker:
    """A process with an engine, seen from the parent. ``flying`` are the jobs that it has not
    answered, by number.
    """

    def __init__(self, place: int, environment: dict[str, str], *what: Any):
        self.place = place
        self.flying: dict[int, tuple[_Job, _Stream]] = {}
        self.pipe, theirs = Pipe()
        self.process = get_context("spawn").Process(
            target=_work, args=(theirs, *what), name=f"worker-{place}"
        )
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
        # its end is seen, and what it had not answered sent elsewhere, where it is read
        except OSError as error:
            log.debug("worker %d takes nothing: %s", self.place, error)


def _environments(workers: int, tensor_parallel: int) -> list[dict[str, str]]:
    """What each worker finds in its environment. Raises EngineError where there are too few
    GPUs.
    """
    if not torch.cuda.is_available():
        threads = str(max(1, torch.get_num_threads() // workers))
        return [{"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}] * workers
    here = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(map(str, range(here))) if named is None else named.split(",")[:here]
    if len(gpus) < (needed := workers * tensor_parallel):
        each = f" of {tensor_parallel} GPUs each" if tensor_parallel > 1 else ""
        raise EngineError(
            f"engine.workers: {workers} workers{each} need {needed} GPUs, and {len(gpus)} are "
            f"visible here; take fewer, "
            f"or look at CUDA_VISIBLE_DEVICES"
        )
    starts = range(0, needed, tensor_parallel)
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + tensor_parallel])}
        for start in starts
    ]


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
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
            signal(SIGTERM, SIG_IGN)
            engine.close()
    except (
        _End,
        BrokenPipeError,
        ConnectionResetError,
    ):  # the parent has gone, perhaps with an answer on its way
        return
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
    """Takes what the parent sends at once, so that its sending never waits; at the end of the pipe,
    ends the process.
    """
    try:
        while True:
            inbox.put(pipe.recv())
    finally:  # EOFError, or nonsense after a message that was broken off
        pthread_kill(main_thread().ident or 0, SIGTERM)
        sleep(GRACE_SECONDS)
        os._exit(1)


class _Again(Exception):
    """The jobs have changed: what the engine is doing is left, and what remains is given to it
    again.
    """


class _Service:
    """Gives an engine the jobs of the inbox, and the parent its answers."""

    def __init__(self, engine: Engine, pipe: Connection, inbox: SimpleQueue[list[_Job] | _Drop]):
        self.engine = engine
        self.pipe = pipe
        self.inbox = inbox
        self.open: dict[int, Request] = {}  # requests that have not been answered, by number

    def run(self) -> None:
        while True:
            try:
                for completion in self.engine.complete(self._requests()):
                    number = completion.row
                    self.pipe.send((number, replace(completion, row=self.open.pop(number).row)))
            except _Again:
                continue
            except EngineError as error:
                self._refuse(
                    error, {number: (number, request.row) for number, request in self.open.items()}
                )

    def _requests(self) -> Iterator[Request | None]:
        """All that is open and all that comes, each with its number for a row: two of different
        streams may have one row.
        """
        yield from [replace(request, row=number) for number, request in self.open.items()]
        while True:
            if self.open and self.inbox.empty():
                yield None
                continue
            message = self.inbox.get()
            if isinstance(message, _Drop):
                if [self.open.pop(number) for number in message if number in self.open]:
                    raise _Again
                continue
            requests = {job.number: job.work for job in message if isinstance(job.work, Request)}
            self.open |= requests
            yield from [replace(request, row=number) for number, request in requests.items()]
            self._score([job for job in message if not isinstance(job.work, Request)])

    def _score(self, jobs: list[_Job]) -> None:
        try:
            for job, scores in zip(
                jobs, self.engine.score([job.work for job in jobs]), strict=True
            ):  # type: ignore[misc]
                self.pipe.send((job.number, scores))
        except EngineError as error:
            self._refuse(error, {k: (job.number, job.row) for k, job in enumerate(jobs)})

    def _refuse(self, error: EngineError, named: dict[int, tuple[int, int]]) -> None:
        """Tells the parent which job the error is about, by its own row; an error about none is the
        engine's end.
        """
        for name, (number, row) in named.items():
            prefix, _, reason = str(error).partition(": ")
            if prefix == f"row {name}":
                self.open.pop(number, None)
                self.pipe.send(_Failed(f"row {row}: {reason}", number))
                return
        raise error
