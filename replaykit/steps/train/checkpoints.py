"""Checkpoints: how one becomes whole, and from which a training goes on.

    folder/checkpoint.tmp/      one under way; where a training was cut short, it is left
    folder/checkpoint-200/      a whole one, of 200 steps
        model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, remedies.safetensors,
        trainer_state.json
        files.json              {"model.safetensors": 1203, ...}: the sizes of the others, in bytes

Every file is on the disk before ``files.json`` is written, and that is on the disk before the
folder gets its name, so a machine that loses power leaves no checkpoint that only looks whole.

A checkpoint that is not whole is passed over, with the reason, and never deleted for that: the
user may have the missing file. Those of earlier versions have no ``files.json``; they are read if
everything that a training needs to go on is there, can be read, and is finite.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open

from replaykit.runs import write_json

FILES = "files.json"
UNFINISHED = "checkpoint.tmp"
STATE = "trainer_state.json"
# Of a checkpoint without ``files.json``, beside the weights and the state of random numbers.
NEEDED = ("optimizer.pt", "scheduler.pt", "remedies.safetensors", STATE)
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
# What torch.save writes is a zip archive.
ARCHIVES = (".pt", ".pth", ".bin")
# What reading a damaged file raises, by its kind: any, JSON of another form, safetensors, archives.
UNREADABLE = (
    *(OSError, ValueError),
    *(TypeError, AttributeError),
    SafetensorError,
    *(zipfile.BadZipFile, EOFError),
)


class Found(NamedTuple):
    """Where a training goes on."""

    checkpoint: str | None
    """The folder of the newest whole checkpoint; None where there is none."""
    notes: Sequence[str] = ()
    """Of each newer one: why it was passed over."""


def newest_whole(folder: Path) -> Found:
    """The newest whole checkpoint of a training's folder, and which ones it was preferred to."""
    passed: list[str] = []
    for checkpoint in reversed(_checkpoints(folder)):
        why = problem(checkpoint)
        if why is None:
            return Found(str(checkpoint), _told(passed, f"the training went on from {checkpoint}"))
        passed.append(f"{checkpoint.name} is not whole ({why})")
    return Found(None, _told(passed, "the training began anew"))


def last_whole(folder: Path) -> str:
    """In words, what a training that failed has left. A loss that is no number may have begun to
    grow before it was saved, so nothing says that it is good.
    """
    found = newest_whole(folder).checkpoint
    if found is None:
        return "there is no checkpoint yet"
    return f"the last whole checkpoint is {found}"


def _told(passed: Iterable[str], instead: str) -> list[str]:
    return [f"{what} and was passed over: {instead}" for what in passed]


def _checkpoints(folder: Path) -> list[Path]:
    """By their steps, the newest last."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _step(path) > 0]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    """The steps in a checkpoint's name; 0 where it names none."""
    steps = checkpoint.name.removeprefix("checkpoint-")
    return int(steps) if steps.isdecimal() else 0


# --- writing --------------------------------------------------------------------------------------


def begin(folder: Path) -> Path:
    """Where the next checkpoint is written; what an earlier one left there is removed."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    return unfinished


def finish(checkpoint: Path, folder: Path) -> None:
    """Makes a written checkpoint whole, and gives it its name in the folder of the training.

    The newest whole one before it stays; those before that are removed.
    """
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    to_disk(checkpoint)
    write_json(checkpoint / FILES, sizes)
    _sync(checkpoint)
    place = folder / checkpoint.name
    # One of the same step that was passed over: this one is what it should have been.
    shutil.rmtree(place, ignore_errors=True)
    checkpoint.rename(place)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)
    _sync(folder)
    kept = None
    for before in reversed(_checkpoints(folder)):
        if _step(before) >= _step(place):
            continue
        if kept is not None:
            shutil.rmtree(before)
        elif problem(before) is None:
            kept = before


def remove_all(folder: Path) -> None:
    """Removes the checkpoints of a training that is over."""
    for path in [*_checkpoints(folder), folder / UNFINISHED]:
        shutil.rmtree(path, ignore_errors=True)


def to_disk(folder: Path) -> None:
    """Waits until all files of a folder, and the names of these, are on the disk."""
    if folder.is_dir():
        for path in [*sorted(folder.rglob("*")), folder]:
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading --------------------------------------------------------------------------------------


def problem(checkpoint: Path) -> str | None:
    """Why a training cannot go on from a checkpoint; None where it is whole."""
    try:
        listed = (checkpoint / FILES).exists()
        why = _missing(checkpoint) if listed else _missing_unlisted(checkpoint)
    except (OSError, ValueError, AttributeError) as error:
        return f"{FILES if listed else INDEX} cannot be read: {error}"
    if why is not None:
        return why
    for path in sorted(checkpoint.rglob("*")):
        try:
            _read(path, checkpoint)
        except UNREADABLE as error:
            return f"{path.relative_to(checkpoint)} cannot be read: {error}"
    # Those of one with a list were looked at before they were written.
    if not listed and not finite(checkpoint):
        return "its weights are not finite"
    return None


def _missing(checkpoint: Path) -> str | None:
    """What differs from the list that was written last."""
    sizes: Mapping[str, int] = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
    if STATE not in sizes:
        return f"{FILES} does not name {STATE}"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes and had {size:,}"
    return None


def _missing_unlisted(checkpoint: Path) -> str | None:
    """What a training cannot go on without, where no list was written."""
    needed = list(NEEDED)
    if (checkpoint / INDEX).exists():
        index = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
        needed += sorted(set(index["weight_map"].values()))
    elif not any((checkpoint / name).exists() for name in WEIGHTS):
        return f"{' or '.join(WEIGHTS)} is missing"
    for name in needed:
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    if not any(checkpoint.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    return None


def _read(path: Path, checkpoint: Path) -> None:
    """Reads enough of a file to see that it is whole. Raises what reading it raises, or ValueError
    for the state of another step.
    """
    if path.is_dir():
        return
    if path.suffix == ".safetensors":
        # The header, which must account for every byte of the file.
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in ARCHIVES:
        # The directory of an archive is at its end.
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    archive.read(name)
    elif path.name == STATE and path.parent == checkpoint:
        steps = transformers.TrainerState.load_from_json(str(path)).global_step
        if steps != _step(checkpoint):
            raise ValueError(f"it is of step {steps}")
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))


def finite(folder: Path) -> bool:
    """Whether all weights in the files of a model or an adapter are finite."""
    for path in folder.glob("*model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            # A file's keys are no mapping's.
            names = file.keys()
            if not all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in names):
                return False
    return True
