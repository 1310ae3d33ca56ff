"""Runs code that a model wrote, and its tests, in a process with limits.

    outcome("def double(x):\\n    return 2 * x", "assert double(4) == 8")     ->  "passed"

The process is an interpreter without packages, in a session of its own, with an empty folder that
is deleted, without input and output, without the user's environment. It has limits of processor
time, time, memory, open files and the size of files, and can start no process and no thread. A
guard (``sys.addaudithook``) ends it where it reads anything but the standard library and its
folder, writes outside the folder, opens a socket, signals a process, or does anything else that
Python announces and that is not on a list of harmless things. On Linux it has, where the kernel
lets us and util-linux is installed, no network and no other process that it could reach
(``unshare``), and in place of root's rights those of a user whom nothing belongs to (``setpriv``).

What it is not: a virtual machine. Python's guard cannot hold code that corrupts the interpreter's
own memory (crafted bytecode, a bug in a C module), and that code then has the rights of the user
who started replaykit, without a network where ``unshare`` works. Whether a file exists can be seen.
The tests run in the interpreter of the answer: an answer that is written to deceive them, with an
``__eq__`` that is always true, passes them. That all tests ran to their end is not so easily
feigned: what says so is a nonce that the code does not have (see ``inside``).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from replaykit.errors import RunError

INSIDE = Path(__file__).with_name("inside.py")
PROBE_SECONDS = 10
NOBODY = 64_999  # the user that root's sandbox becomes: an account that no system has by itself

Outcome = Literal["passed", "failed", "refused", "stopped"]
"""All ran to its end; something raised; it did what it may not; a limit, a signal, or the code
itself, ended the process."""


@dataclass(frozen=True)
class Limits:
    """What the code may use."""

    seconds: float = 20
    cpu_seconds: int = 5
    memory: int = 512 << 20
    """Bytes of address space; Linux alone keeps it."""
    file_bytes: int = 1 << 20
    """Of each file that it writes."""
    files: int = 32
    """Open at once."""


LIMITS = Limits()


def outcome(answer: str, *others: str, before: str = "", limits: Limits = LIMITS) -> Outcome:
    """What came of running ``before``, the answer and the others, one after another in one module.

    Raises RunError where it can run nothing, as on Windows, which has no such limits.
    """
    _check()
    return _run([before, answer, *others], limits)


@cache
def _check() -> None:
    if os.name != "posix":
        raise RunError(
            "score: code runs what a model wrote in a process with limits that Windows does not "
            "have; run the evaluation on Linux or macOS, or in WSL"
        )
    found = _run(["x = 1", "assert x == 1"], LIMITS)
    if found != "passed":
        raise RunError(
            f"score: code cannot run Python here: a program that does nothing has {found}; look "
            f"whether {sys.executable} starts with -I -S in a folder of {tempfile.gettempdir()}, "
            f"with {LIMITS.memory >> 20} MiB"
        )


def _run(parts: Sequence[str], limits: Limits) -> Outcome:
    from replaykit.checks.scoring.inside import FAILED, REFUSED

    nonce = secrets.token_hex(32)
    job = {"parts": parts, "nonce": nonce, **asdict(limits)}
    with (
        tempfile.TemporaryDirectory(prefix="replaykit-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
    ):
        apart = _apart()
        if "setpriv" in apart:
            os.chown(folder, NOBODY, NOBODY)
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [*apart, sys.executable, "-I", "-S", "-B", str(INSIDE)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"TMPDIR": folder},
            start_new_session=True,
        )
        code = _ended(process, limits.seconds)
        # The limit of a file's size is kept for this one too.
        stdout.seek(0)
        passed = stdout.read(len(nonce) + 1) == nonce.encode()
    if passed and code == 0:
        return "passed"
    # unshare does not pass on by which signal its child was ended.
    known: dict[int, Outcome] = {FAILED: "failed", REFUSED: "refused"}
    return known.get(code, "stopped")


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code, below 0 after a signal, as after so many seconds. Whatever the process has
    left running in its session is ended with it.
    """
    # Popen.wait with a time looks every 50 ms, which is longer than most programs run.
    clock = threading.Timer(seconds, _end, [process])
    clock.start()
    try:
        return process.wait()
    finally:
        clock.cancel()
        _end(process)
        process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@cache
def _apart() -> tuple[str, ...]:
    """The command that starts another one without a network, apart from other processes, and
    instead of root as a user without rights; without the parts for which the tools are not
    installed or the kernel does not allow it.
    """
    is_root = os.geteuid() == 0
    unshare = ["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
    if not is_root:
        unshare.append("--map-root-user")
    apart = _first_that_works([unshare])
    if not is_root:
        return tuple(apart)
    ways = []
    # To read everything, since Python may lie in root's own folder; the guard says what is read.
    for rights in ("-all,+dac_read_search", "-all"):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        user += [f"--{kind}={rights}" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
        ways.append([*apart, *user])
    return tuple(_first_that_works(ways) or apart)


def _first_that_works(ways: Sequence[Sequence[str]]) -> Sequence[str]:
    """The first command that can start the interpreter on the script; none where no one can."""
    python = [sys.executable, "-I", "-S", "-B", "-c", f"import json; open({str(INSIDE)!r})"]
    for way in ways:
        try:
            found = subprocess.run([*way, *python], capture_output=True, timeout=PROBE_SECONDS)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
        if found.returncode == 0:
            return way
    return ()
