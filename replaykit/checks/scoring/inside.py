"""Runs an answer's code and its tests in the process that ``sandbox`` started for them.

It is a script, read by an interpreter without packages, so it imports the standard library alone.
The job comes on stdin as JSON; the nonce goes to stdout if all of the code ran to its end.

The code runs in a thread that starts in C (``list.extend`` of ``map(exec, ...)``): above its frames
is none of ours from which the nonce could be read, and what is appended to ``done`` says how many
parts ended without an exception. Whatever the code does to builtins and modules, what decides here
was taken before it ran. What is refused ends the process at once, so the guard cannot be caught,
looked at or changed by way of an exception.
"""

from __future__ import annotations

import _thread
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

FAILED = 98  # the exit code where something raised, or the code ended early
REFUSED = 99  # where the code did what it may not
WRITES = 100  # files that may be written, folders that may be made

# Events of sys.audit that touch nothing outside the interpreter.
HARMLESS = frozenset(
    {
        "_thread.start_joinable_thread",
        "_thread.start_new_thread",
        "array.__new__",
        "builtins.id",
        "builtins.input",
        "builtins.input/result",
        "compile",
        "exec",
        "function.__new__",
        "glob.glob",
        "glob.glob/2",
        "marshal.dumps",
        "marshal.load",
        "marshal.loads",
        "object.__delattr__",
        "object.__getattr__",
        "object.__setattr__",
        "os.fwalk",
        "os.putenv",
        "os.unsetenv",
        "os.walk",
        "pickle.find_class",
        "setopencodehook",
        "shutil.rmtree",
        "sys._getframe",
        "sys._getframemodulename",
        "sys.excepthook",
        "sys.unraisablehook",
        "tempfile.mkdtemp",
        "tempfile.mkstemp",
        "time.sleep",
    }
)
# Events whose arguments are paths, which must be in the folder.
CHANGES = frozenset({"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"})
READS = frozenset({"os.listdir", "os.scandir"})
# Modules that reach memory or processes without an event.
UNSAFE = frozenset(
    {"_ctypes", "_posixsubprocess", "_interpreters", "_xxsubinterpreters", "_testcapi"}
)
# Functions that reach other processes, or make files anywhere, without an event.
SILENT = (
    "mkfifo",
    "mknod",
    "pidfd_open",
    "sched_setaffinity",
    "sched_setparam",
    "sched_setscheduler",
    "setpriority",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    job = json.loads(_all_of(0))
    nonce = job.pop("nonce").encode()
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    end = os._exit
    write = os.write
    size = len
    sleep = time.sleep
    running = _thread._count
    try:
        _limit(job)
        done, parts, go = _held(job["parts"], job["memory"])
        sys.addaudithook(_guard(os.getcwd(), tuple(sys.path)))
        go()
        while size(done) < parts and running():
            sleep(0.001)
        if size(done) == parts:
            write(verdict, nonce)
            end(0)
    finally:
        # Not by the name of an exception: the code may have given another one that name.
        end(FAILED)


def _all_of(stream: int) -> bytes:
    parts = []
    while part := os.read(stream, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _limit(job: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: job["cpu_seconds"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NOFILE: job["files"],
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS has no limit of the address space that it keeps
        limits[resource.RLIMIT_AS] = job["memory"]
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))


def _held(sources: list[str], memory: int) -> tuple[list[None], int, Callable[[], None]]:
    """The list that gets an entry for each part that ended without an exception, how many parts
    there are, and what lets the thread go that runs them; no thread or process can be started
    after that one, but by root.
    """
    module = ModuleType("answer")
    sys.modules["answer"] = module  # a dataclass looks its module up there
    space = vars(module)
    hold = _thread.allocate_lock()
    ready = _thread.allocate_lock()
    hold.acquire()
    ready.acquire()
    wait = compile("ready.release()\nhold.acquire()", "<start>", "exec")
    codes = [wait, *(compile(source, "<answer>", "exec") for source in sources)]
    spaces = [{"hold": hold, "ready": ready}, *(space for _ in sources)]
    run: Any = exec
    done: list[None] = []
    _thread.stack_size(min(64 << 20, memory // 8))
    _thread.start_new_thread(done.extend, (map(run, codes, spaces),))
    ready.acquire()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for place in ("os", "posix"):
        for name in SILENT:
            vars(sys.modules[place]).pop(name, None)
    return done, len(codes), hold.release


def _guard(  # noqa: C901  # as said below
    folder: str, library: tuple[str, ...]
) -> Callable[[str, tuple[Any, ...]], None]:
    """What ends the process at an event that is not allowed.

    Everything that it uses is a default of a parameter: names of a module, of builtins or of a
    closure could be given other values by the code that it watches.
    """
    counted = itertools.count(1).__next__

    # One function, since whatever it called would be looked up by name.
    def guard(
        event: str,
        args: tuple[Any, ...],
        harmless: frozenset[str] = HARMLESS,
        changes: frozenset[str] = CHANGES,
        reads: frozenset[str] = READS,
        unsafe: frozenset[str] = UNSAFE,
        here: str = folder + "/",
        library: tuple[str, ...] = tuple(f"{path}/" for path in library) + library,
        folder: str = folder,
        writing: int = WRITING,
        written: Any = counted,
        kind: Any = type,
        text: type = str,
        number: type = int,
        most: int = WRITES,
        end: Any = os._exit,
        refused: int = REFUSED,
    ) -> None:
        try:
            if event in harmless:
                return
            if event == "import":
                if kind(args[0]) is not text or args[0].rpartition(".")[2] in unsafe:
                    end(refused)
                return
            is_open = event == "open"
            if not is_open and event not in changes and event not in reads:
                end(refused)
            alters = event in changes or (is_open and args[2] & writing != 0)
            if alters and written() > most:
                end(refused)
            for path in args[:1] if is_open else args:
                if path is None or kind(path) is number:
                    continue
                if kind(path) is not text or ".." in path.split("/"):
                    end(refused)
                if path[:1] != "/" or path == folder or path.startswith(here):
                    continue
                # A folder outside is not opened: names beside it would be found through it.
                if alters or (is_open and args[1] is None) or not path.startswith(library):
                    end(refused)
            return
        except:  # noqa: E722  # as in main
            end(refused)

    return guard


if __name__ == "__main__":
    main()
