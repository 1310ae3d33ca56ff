"""Code that a model wrote runs in a sandbox: what it may do, and what becomes of attempts to escape."""

import gzip
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from replaykit.checks.scoring import sandbox
from replaykit.checks.scoring.sandbox import Limits, outcome

MBPP = Path(__file__).parent.parent.parent / "shared" / "data" / "mbpp.jsonl.gz"
WRONG = "assert double(4) == 8"
SHORT = Limits(seconds=6, cpu_seconds=1)


def test_code_passes_its_tests_or_does_not():
    assert outcome("def double(x):\n    return 2 * x", "assert double(4) == 8") == "passed"
    assert outcome("def double(x):\n    return 3 * x", "assert double(4) == 8") == "failed"
    assert outcome("def double(x): return", "assert double(4) == 8") == "failed"
    assert outcome("def double(x) return", "assert True") == "failed"


def test_lines_before_are_there_for_the_answer():
    assert outcome("y = x + 1", "assert y == 3", before="x = 2") == "passed"


@pytest.mark.parametrize(
    "code",
    [
        "import math, re, random, heapq, itertools, collections, functools, bisect, cmath, decimal\n"
        "import fractions, statistics, string, datetime, typing, dataclasses, enum, copy, operator\n"
        "import json, hashlib, textwrap, queue, array, struct, time, calendar, sys, os, unittest",
        "from collections import namedtuple\nP = namedtuple('P', 'x y')",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 0",
        "from functools import lru_cache\n@lru_cache\ndef f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nf(300)",
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nassert f(9000) == 9000",
        "print('x' * 10_000_000)",
        "with open('notes.txt', 'w') as file:\n    file.write('mine')\nassert open('notes.txt').read() == 'mine'",
        "import tempfile, os\nwith tempfile.TemporaryDirectory() as folder:\n    open(os.path.join(folder, 'a'), 'w').close()",
        "from __future__ import annotations\ndef f(x: int | Unknown): pass",
    ],
)
def test_what_short_programs_do_is_allowed(code):
    assert outcome(code, "assert True") == "passed"


# Each is followed by a test that fails. None may pass.
FORGERIES = {
    "exits with 0": "import sys\nsys.exit(0)",
    "ends the process with 0": "import os\nos._exit(0)",
    "exits in a test": "def double(x):\n    raise SystemExit(0)",
    "ends the thread": "import _thread\n_thread.exit()",
    "says that it has passed": "import os\nfor n in range(32):\n    try:\n        os.write(n, b'passed')\n    except OSError:\n        pass",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = type('Fine', (BaseException,), {})\nAssertionError = ValueError",
    "replaces builtins": "import builtins\nbuiltins.len = lambda x: 99\nbuiltins.BaseException = ValueError\nbuiltins.exec = print\nbuiltins.map = print",
    "replaces what the wrapper uses": "import os, time, _thread\nold = os._exit\nos._exit = lambda code: old(0)\ntime.sleep = lambda s: old(0)\n_thread._count = lambda: 0",
    "looks for the nonce in its frames": (
        "import sys\nframe = sys._getframe()\nfound = []\nwhile frame:\n    found.append(frame)\n    frame = frame.f_back\n"
        "names = {f.f_code.co_name for f in found}\nassert names == {'<module>'}\nassert 'nonce' not in str([f.f_locals for f in found])"
    ),
    "looks for the nonce by a traceback": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    frame = error.__traceback__.tb_frame\n    assert frame.f_back is None"
    ),
    "looks for the nonce in main": (
        "import sys\nmain = vars(sys.modules['__main__'])\nassert not [v for v in main.values() if isinstance(v, str | bytes) and len(v) == 64]"
    ),
    "looks for the nonce on its command line and in stdin": (
        "import sys\nassert len(sys.argv) == 1\nassert sys.stdin.read() == ''\nimport os\nassert os.read(0, 10) == b''"
    ),
    "waits for the wrapper's exception": (
        "import sys, _thread, os\n"
        "def hook(kind, value, trace):\n"
        "    while trace:\n"
        "        nonce = trace.tb_frame.f_locals.get('nonce')\n"
        "        for n in range(32):\n"
        "            try:\n                os.write(n, nonce)\n            except (OSError, TypeError):\n                pass\n"
        "        trace = trace.tb_next\n    old(0)\n"
        "old = os._exit\nsys.excepthook = hook\n_thread.interrupt_main()\nimport time\ntime.sleep(1)"
    ),
    "kills itself": "import signal\nsignal.raise_signal(signal.SIGKILL)",
    "runs deep": "def double(x):\n    return double(x)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_is_not_forged(name):
    assert outcome(FORGERIES[name], "assert double(4) == 8 and False") in ("failed", "stopped")


def test_a_verdict_needs_every_test():
    assert (
        outcome("def double(x):\n    return 2 * x", "assert double(4) == 8\nassert False")
        == "failed"
    )
    assert outcome("import atexit, os\natexit.register(os._exit, 0)", "assert False") == "failed"


def test_an_answer_made_to_equal_everything_passes_as_the_documents_say():
    cheat = "class All:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return All()"
    assert outcome(cheat, "assert double(4) == 8") == "passed"
    assert "``__eq__``" in (sandbox.__doc__ or "")


REFUSED = {
    "starts a program": "import os\nos.system('true')",
    "executes a program": "import os\nos.execv('/bin/true', ['true'])",
    "spawns a program": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "forks": "import os\nos.fork()",
    "loads subprocess": "import subprocess",
    "loads C libraries": "import ctypes",
    "loads C libraries under another name": (
        "import importlib.util, importlib.machinery, sys\n"
        "import _json\nplace = _json.__file__.replace('_json', '_ctypes') if hasattr(_json, '__file__') else ''\n"
        "spec = importlib.util.spec_from_file_location('x._ctypes', place)\nimportlib.util.module_from_spec(spec)"
    ),
    "loads C libraries by a name that hides": "class Name(str):\n    def __hash__(self):\n        return 0\n__import__(Name('_ctypes'))",
    "opens a socket": "import socket\nsocket.socket()",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "asks for an address": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills its group": "import os\nos.killpg(0, 9)",
    "reads the home folder": f"import os\nos.listdir({str(Path.home())!r})",
    "reads passwords": "open('/etc/passwd').read()",
    "reads a file by a path of dots": "open('../../../../etc/passwd').read()",
    "reads the environment of its parent": "open('/proc/self/environ').read()",
    "reads its own memory": "open('/proc/self/mem', 'rb')",
    "reads bytes that name a file": "open(b'/etc/passwd')",
    "opens a folder": "import os\nos.open('/', os.O_RDONLY)",
    "opens the library's folder": "import os\nos.open(os.path.dirname(os.__file__), os.O_RDONLY)",
    "writes to the library": "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'x.py'), 'w')",
    "writes elsewhere": "open('/tmp/replaykit-escaped', 'w')",
    "deletes files": "import os\nos.remove('/tmp/replaykit-escaped')",
    "deletes folders": "import shutil\nshutil.rmtree('/tmp')",
    "renames out of its folder": "import os\nopen('a', 'w').close()\nos.rename('a', '/tmp/replaykit-escaped')",
    "links": "import os\nos.symlink('/etc/passwd', 'a')",
    "changes its folder": "import os\nos.chdir('/')",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "watches the interpreter": "import sys\nsys.addaudithook(print)",
    "looks at all objects": "import gc\ngc.get_objects()",
    "looks at all frames": "import sys\nsys._current_frames()",
    "traces": "import sys\nsys.settrace(print)",
    "makes bytecode": "(lambda: 0).__code__.replace(co_consts=())",
    "writes many files": "for n in range(200):\n    open(str(n), 'w').close()",
    "catches everything": "try:\n    open('/etc/passwd')\nexcept BaseException:\n    pass",
    "refuses when memory is short": (
        "held = []\ntry:\n    while True:\n        held.append(bytearray(1 << 20))\nexcept MemoryError:\n    pass\n"
        "import os\ntry:\n    os.listdir('/')\nexcept BaseException as error:\n    print(error)"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_out_ends_the_process(name):
    assert outcome(REFUSED[name], "assert True") == "refused"
    assert not Path("/tmp/replaykit-escaped").exists()


def test_memory_is_limited():
    assert outcome("held = bytearray(2 << 30)", "assert True") == "failed"
    small = Limits(memory=128 << 20)
    assert outcome("held = bytearray(200 << 20)", "assert True", limits=small) == "failed"


def test_a_file_is_limited():
    code = "file = open('a', 'wb')\nfile.write(bytes(3 << 20))\nfile.flush()"
    assert outcome(code, "assert True") in ("failed", "stopped")
    assert outcome("held = [open('a', 'w') for _ in range(60)]", "assert True") == "failed"


def test_no_process_and_no_thread_can_be_started_even_without_the_guard():
    """The guard knows nothing of a thread, so what holds here is the kernel's limit."""
    code = "import threading\ntry:\n    threading.Thread(target=print).start()\nexcept RuntimeError:\n    held = True"
    assert outcome(code, "assert held") == "passed"


@pytest.mark.parametrize(
    "code", ["while True:\n    pass", "def f():\n    return 10 ** 10 ** 10\nf()"]
)
@pytest.mark.slow
def test_a_loop_without_end_is_stopped_by_its_processor_time(code):
    assert outcome(code, "assert True", limits=SHORT) == "stopped"


@pytest.mark.slow
def test_waiting_without_end_is_stopped_by_the_clock():
    began = time.monotonic()
    code = "import time\ntime.sleep(100)"
    assert outcome(code, "assert True", limits=Limits(seconds=1.5)) == "stopped"
    assert time.monotonic() - began < 10


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert outcome("import os\nos.mkdir('a')\nopen('a/b', 'w').close()", "assert True") == "passed"
    assert list(tmp_path.iterdir()) == []
    after = {process.pid for process in psutil.Process().children(recursive=True)}
    assert after <= before


def test_nothing_of_the_environment_is_seen(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = "import os\nassert set(os.environ) <= {'TMPDIR', 'LC_CTYPE'}, os.environ"
    assert outcome(code, "assert True") == "passed"


def test_no_packages_are_there():
    assert outcome("import numpy", "assert True") == "failed"


def test_there_is_no_network_where_the_kernel_allows_it_to_be_taken():
    """Without the guard: the command that starts the sandbox, with a program that connects."""
    command = sandbox._apart()
    if not command:
        pytest.skip("unshare is not installed here, or the kernel does not allow it")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        plain = subprocess.run([sys.executable, "-c", connect], capture_output=True)
        apart = subprocess.run([*command, sys.executable, "-c", connect], capture_output=True)
    assert plain.returncode == 0
    assert apart.returncode != 0


def test_it_holds_without_unshare(monkeypatch):
    monkeypatch.setattr(sandbox, "_apart", lambda: ())
    assert outcome("x = 1", "assert x == 1") == "passed"
    assert outcome("import socket\nsocket.socket()", "assert True") == "refused"
    assert outcome("import os\nos.kill(os.getppid(), 9)", "assert True") == "refused"


@pytest.mark.skipif("setpriv" not in sandbox._apart(), reason="not root, or no setpriv")
def test_root_becomes_a_user_without_rights():
    code = "import os\nassert os.getuid() != 0 and os.geteuid() != 0\ntry:\n    os.setuid(0)\nexcept PermissionError:\n    held = True"
    assert outcome(code, "assert held") == "passed"


@pytest.mark.realdata
@pytest.mark.slow
def test_the_reference_solutions_of_mbpp_pass_their_tests():
    if not MBPP.exists():
        pytest.skip(f"no {MBPP}")
    with gzip.open(MBPP, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    assert len(rows) == 974
    found = Counter(
        outcome(row["code"], row["test_setup_code"], "\n".join(row["test_list"])) for row in rows
    )
    assert found == {"passed": 974}
