"""A limit in seconds for code that may never end, in whatever thread it runs.

    with deadline(10.0):
        template.render(...)   # raises TimeUp in here, if it takes longer

A signal would reach the main thread only, and a process of its own would cost more than all
rendering. So one thread looks once in a while at what is running, and raises in the thread that is
late (CPython's ``PyThreadState_SetAsyncExc``). It reaches Python code, as templates are, and not a
call that waits in C.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOK_SECONDS = 0.25  # how often the watching thread looks


class TimeUp(Exception):
    """What ran under a deadline took longer."""


@dataclass
class _Entry:
    """One thread under a deadline, by the clock of ``time.monotonic``."""

    thread: int
    until: float
    fired: bool = False


_running: dict[int, _Entry] = {}
_lock = threading.Lock()
_watcher: threading.Thread | None = None


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TimeUp within the block about ``seconds`` after it began. Deadlines do not nest."""
    entry = _Entry(threading.get_ident(), time.monotonic() + seconds)
    _watch(entry)
    try:
        yield
    finally:
        with _lock:
            _running.pop(entry.thread, None)
            if entry.fired:
                # It may have ended by itself in the meantime: nothing is raised outside the block.
                _raise_in(entry.thread, None)


def _watch(entry: _Entry) -> None:
    global _watcher
    with _lock:
        _running[entry.thread] = entry
        # A forked process has the memory of its parent and none of its threads.
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look, name="deadlines", daemon=True)
            _watcher.start()


def _look() -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        with _lock:
            for entry in _running.values():
                if now > entry.until and not entry.fired:
                    entry.fired = True
                    _raise_in(entry.thread, TimeUp)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Has the thread raise the error at its next step; with None, forgets one not raised yet."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
