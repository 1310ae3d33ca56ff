"""Requests to a server, so many at a time, each tried again while its fault may pass.

    patience = Patience(concurrency=8, timeout_seconds=60, retries=8)
    client = Client(patience, key=key_in("OPENAI_API_KEY"))

    def ask(request, left):                                   # in a thread
        return client.patiently(lambda: client.post(url, body, what), left, what)

    for request, answer in client.each(requests, ask):        # as they finish
        ...

What may pass (a busy server, a dropped connection, half an answer) is tried again after a random
wait that doubles in length, "full jitter"
(aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter), and after the time that the
server asks for. What will not pass is Refused, an EngineError with the server's own words. The key
is in no message: where a server repeats it, it is taken out.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar
from weakref import WeakSet

import httpx2
from pydantic import ValidationError

from replaykit.engines import until_none
from replaykit.errors import EngineError

Body = dict[str, Any]
"""The JSON of a request to the server."""
T = TypeVar("T")
A = TypeVar("A")

# Requests for each that the server may have at a time: one on its way and one at the door.
READ_AHEAD = 2
# Seconds: the longest wait before the second try, which doubles from try to try, and its bound.
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
CONNECT_SECONDS = 10.0
# HTTP's codes of what may pass, beside all of 500 and above.
TRANSIENT = {408, 425, 429}
SERVERS_WORDS = 500  # characters of a server's message that are shown, at most
KEY = "OPENAI_API_KEY"
"""The environment variable that has the key of a server where no other is named."""
HIDDEN = "[key]"


@dataclass(frozen=True)
class Patience:
    """How many requests are with the server at a time, and how long it is waited for."""

    concurrency: int
    timeout_seconds: float
    """Of one request."""
    retries: int
    """Further tries of a request that failed."""


class Fault(Exception):
    """What may not happen again. ``retry_after``: the seconds that the server asks for."""

    def __init__(self, what: str, retry_after: float = 0.0):
        super().__init__(what)
        self.retry_after = retry_after


class Exhausted(EngineError):
    """All tries of a request failed, each for a fault that might have passed."""


class Refused(EngineError):
    """The server will not answer such a request, however often it is asked."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
        """HTTP's code."""


def key_in(variable: str) -> str | None:
    """The key in the environment variable, if it is set. Raises EngineError, which does not show
    it, for one that cannot stand in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EngineError(
            f"the environment variable {variable} has characters that no key has, such as a space "
            "or a line break; set it anew"
        )
    return key


class Client:
    """Sends requests to a server in threads, and hangs up on what nobody waits for any more."""

    def __init__(self, patience: Patience, *, key: str | None, variable: str = KEY):
        self.patience = patience
        self._key = key
        self._variable = variable
        n = patience.concurrency
        seconds = patience.timeout_seconds
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n),
            timeout=httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        )
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="replaykit-server")
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = Lock()  # of the sockets, which the threads add to
        # One for each iteration that is not over, set when it is.
        self._running: set[Event] = set()

    def each(
        self, requests: Iterable[T | None], ask: Callable[[T, Event], A]
    ) -> Generator[tuple[T, A]]:
        """Each request with its answer, as they finish; ``ask`` makes it, in a thread.

        The event that ``ask`` is given is set when nobody waits for answers any more. None among
        the requests is as an engine takes it. One iteration may feed another, and may be left
        early.
        """
        most = READ_AHEAD * self.patience.concurrency
        waiting = iter(requests)
        flying: dict[Future[A], T] = {}
        left = Event()
        self._running.add(left)
        try:
            while True:
                room = most - len(flying)
                for request in until_none(waiting, room, unanswered=bool(flying)):
                    flying[self._threads.submit(ask, request, left)] = request
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    yield flying.pop(future), future.result()
        finally:
            left.set()
            self._running.discard(left)
            unfinished = [future for future in flying if not future.cancel() and not future.done()]
            # Nobody reads their answers, so the server need not make them. Connections cannot be
            # told apart, so another iteration that runs keeps all of them.
            if unfinished and not self._running:
                self._hang_up()

    def patiently(self, once: Callable[[], A], left: Event, what: str) -> A:
        """What ``once`` gives; called again while it raises a Fault, as often as the patience says.

        Raises Exhausted, which begins with ``what``, where all tries failed. It ends when ``left``
        is set: then nobody waits for the answer.
        """
        patience = self.patience
        for tried in range(1, patience.retries + 2):
            if left.is_set():
                raise CancelledError
            try:
                return once()
            except Fault as error:
                fault = error
            if tried <= patience.retries:
                # Random, so that many clients do not come back all at once.
                pause = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tried - 1)))
                wanted = min(fault.retry_after, patience.timeout_seconds)
                left.wait(max(pause, wanted))
        times = "once" if tried == 1 else f"{tried} times"
        raise Exhausted(f"{what} was tried {times}; the last time: {fault}")

    def post(self, url: str, body: Body, what: str, hint: str = "") -> httpx2.Response:
        """The server's answer to one try.

        Raises Fault for what may pass, Refused for what will not, with ``hint`` where there is no
        such address.
        """
        try:
            response = self._http.post(url, json=body, extensions={"trace": self._trace})
        except httpx2.RequestError as error:
            raise Fault(self.hidden(f"{type(error).__name__} {error}")) from error
        if response.status_code == 200:
            return response
        said = self.said(response)
        if response.status_code in TRANSIENT or response.status_code >= 500:
            raise Fault(said, _seconds(response.headers.get("Retry-After", "")))
        if response.status_code in (404, 405) and hint:
            said += f"\n  {hint}"
        raise Refused(f"{what}: {response.url} answers {said}", response.status_code)

    def get(self, url: str) -> httpx2.Response:
        """Raises httpx2.RequestError or httpx2.InvalidURL where there is no answer."""
        return self._http.get(url, extensions={"trace": self._trace})

    def said(self, response: httpx2.Response) -> str:
        """The status and the server's message."""
        text = response.text
        status = response.status_code
        with suppress(ValueError, AttributeError):  # it is not such JSON
            # vLLM and OpenAI wrap the message as error.message, FastAPI as detail.
            found = response.json().get("error") or response.json().get("detail") or text
            if isinstance(found, dict):
                found = found.get("message", found)
            text = str(found)
        short = " ".join(self.hidden(text).split())[:SERVERS_WORDS]
        said = f"{status} {response.reason_phrase}: {short}".removesuffix(": ")
        if status in (401, 403):
            said += f"\n  The environment variable {self._variable} is what the server is given."
        return said

    def hidden(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def close(self) -> None:
        # Threads that wait for the server are hung up on, since a request may take ten minutes.
        for left in self._running:
            left.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._hang_up()
        self._threads.shutdown()
        self._http.close()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Notes the socket of a connection that is made, by httpx's hook, for ``_hang_up``."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))

    def _hang_up(self) -> None:
        """Ends every connection, so no thread waits any more, and the server can stop its work."""
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # it is closed already
                    # Not TLS's own, which takes its state from under the thread that reads.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)


def problem(error: ValidationError) -> str:
    """The first thing that is wrong with an answer: choices.0.finish_reason: Field required."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place or 'the answer'}: {first['msg']}"


def _seconds(retry_after: str) -> float:
    """What the header asks for; 0 where it is absent or a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0
