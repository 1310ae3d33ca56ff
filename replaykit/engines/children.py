"""Child processes that Ctrl-C does not reach, and that end when this process does, even by SIGKILL.

    guard = Guard()
    with guard.adopting():
        llm = LLM(...)  # the processes that this starts are the guard's
    ...
    guard.release()  # or guard.end(), and theirs with it

A terminal sends SIGINT to every process of the foreground group. A child would end of it, and lose
its work, before its parent has decided anything; so it is made deaf to SIGINT. And a child whose
parent is killed outright would keep its memory for good; so a guard outlives the parent.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

# Reads pids until its stdin ends, then ends them. A child that is still loading may only note a
# SIGTERM and go on.
WATCH = """
while read -r word; do test "$word" = release && exit; pids="$pids $word"; done
test -n "$pids" && kill $pids; sleep 10; kill -9 $pids
"""


@contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started inside have SIGINT blocked, and so have those that they start.

    Blocked rather than ignored: a program may set another handler, but the mask is inherited.
    """
    # multiprocessing starts this process before its first one, and unblocks SIGINT afterwards.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Guard:
    """A shell that ends the processes it was told of when its stdin ends, as with this process."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        # In a session of its own, so that no signal of the terminal reaches it.
        self._shell = subprocess.Popen(
            ["sh", "-c", WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Every process that multiprocessing starts inside is deaf, and known to the guard.

        That is so whoever starts it: vLLM starts its own, and has no hook for this.
        """
        start = BaseProcess.start

        def adopted(process: BaseProcess) -> None:
            with deaf():
                start(process)
            self._processes.append(process)
            assert self._shell.stdin is not None
            self._shell.stdin.write(f"{process.pid}\n".encode())

        BaseProcess.start = adopted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            BaseProcess.start = start  # type: ignore[method-assign]

    def wait(self) -> None:
        """Returns when the first of the processes has ended."""
        wait([process.sentinel for process in self._processes])

    def release(self) -> None:
        """The guard ends; what it knew goes on."""
        self._shell.communicate(b"release\n")

    def end(self) -> None:
        """What the guard knew ends at once, and so does the guard."""
        for process in self._processes:
            process.kill()
            process.join()
        self.release()
