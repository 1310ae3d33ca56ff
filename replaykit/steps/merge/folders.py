"""Model folders as transformers writes them, in safetensors: read and written one tensor at a time.

    weights = Weights(Path("base"))
    weights["model.norm.weight"]          # read from whichever file has it
    write_merged("base", ["tuned"], "out", lambda name, tensors: ...)

Folders may be in one file or many, cut differently or not. What is written has the base's files:
its tensors, their precision and its config.json; tokenizer and chat template are the tuned model's.
No more than a few tensors are in memory, for files are written as they come. The folder appears
when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from replaykit.errors import DataError, RunError
from replaykit.model import loading
from replaykit.model.loading import SHOWN, listed
from replaykit.runs import Watch, read_json

if TYPE_CHECKING:
    from safetensors import safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# What stands beside weights: config, tokenizer, template.
COPIED = (".json", ".jinja", ".model", ".txt", ".tiktoken")

# The base's tensor, then the tuned models', of one name, in the base's shape.
Tensors = Sequence[torch.Tensor]
Combine = Callable[[str, Tensors], torch.Tensor]


def folder_of(model: str, revision: str | None = None) -> Path:
    """The folder of a model's files: itself, or the Hub's snapshot, which is fetched if it is not
    here.
    """
    from huggingface_hub import snapshot_download

    name = loading.resolve(model)
    if Path(name).is_dir():
        return Path(name)
    wanted = ["*.safetensors", *(f"*{suffix}" for suffix in COPIED)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise loading.cannot_load(model, error) from error


# --- reading --------------------------------------------------------------------------------------


class Weights:
    """The tensors of a folder by name, read one at a time from whichever file has them.

    Raises DataError for a folder that is no model in safetensors, or not whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file_of: dict[str, str] = {}
        self.shapes: dict[str, list[int]] = {}
        index = read_json(folder / INDEX)
        promised: dict[str, str] = {}
        if index is None:
            self.files = self._single()
        else:
            promised = index["weight_map"]
            self.files = sorted(set(promised.values()))
        for file in self.files:
            tensors, _ = _header(folder / file)
            for name, shape in tensors.items():
                self.file_of[name] = file
                self.shapes[name] = shape
        missing = promised.keys() - self.file_of.keys()
        if missing:
            raise DataError(
                f"{folder}: {INDEX} names {listed(missing)}, which no file has; fetch the model "
                f"again"
            )
        if not (folder / "config.json").exists():
            raise DataError(
                f"{folder}: no config.json, so this is no model as transformers saves it"
            )

    def _single(self) -> list[str]:
        if (self.folder / SINGLE).exists():
            return [SINGLE]
        if (self.folder / ADAPTER_CONFIG).exists():
            raise DataError(
                f"{self.folder} is an adapter, not a whole model; --method adapter scales it"
            )
        raise DataError(
            f"{self.folder}: no {SINGLE} and no {INDEX}; only safetensors are read, save the model "
            f"in that form"
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        with opened(self.folder / self.file_of[name]) as file:
            return file.get_tensor(name)

    def twin(self, name: str, of: Iterable[str]) -> str | None:
        """A matrix among ``of`` that is tied to this one: the same numbers, in a model whose
        embeddings are tied.
        """
        if len(self.shapes[name]) != 2 or not self._tied:
            return None
        own = self[name]
        for other in of:
            alike = other != name and self.shapes.get(other) == self.shapes[name]
            if alike and torch.equal(self[other], own):
                return other
        return None

    @cached_property
    def _tied(self) -> bool:
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            config = found.get_text_config()
        except (OSError, ValueError) as error:
            raise loading.cannot_load(str(self.folder), error) from error
        return bool(getattr(config, "tie_word_embeddings", True))


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file to read from. Raises DataError for one that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _header(path: Path) -> tuple[dict[str, list[int]], bytes]:
    """The shapes of a safetensors file's tensors, in the order of their data, and the bytes before
    the data.

    The format: 8 bytes, little-endian, the length of a JSON object; the object; the data
    (huggingface/safetensors README).
    """
    try:
        with path.open("rb") as stream:
            length = stream.read(8)
            text = stream.read(struct.unpack("<Q", length)[0])
        tensors: dict[str, dict[str, Any]] = json.loads(text)
        tensors.pop("__metadata__", None)
        in_order = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
        return {name: tensors[name]["shape"] for name in in_order}, length + text
    except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _names(base: Weights, tuned: Weights) -> dict[str, str]:
    """The tuned model's name for each of the base's tensors. Raises DataError where one has no
    counterpart of its shape.
    """
    common = base.file_of.keys() & tuned.file_of.keys()
    names = {name: name for name in common}
    for name in base.file_of.keys() - common:
        twin = base.twin(name, common)
        if twin is not None:
            names[name] = twin
    lost = base.file_of.keys() - names.keys()
    new = {name for name in tuned.file_of.keys() - common if tuned.twin(name, common) is None}
    reshaped = [name for name, other in names.items() if base.shapes[name] != tuned.shapes[other]]
    problems = []
    if lost:
        problems.append(f"{listed(lost)} only in the base")
    if new:
        problems.append(f"{listed(new)} only in the tuned model")
    for name in sorted(reshaped)[:SHOWN]:
        other = tuned.shapes[names[name]]
        problems.append(f"{name} {base.shapes[name]} in the base, {other} in the tuned model")
    if problems:
        raise DataError(f"{tuned.folder} was not tuned from {base.folder}: {'; '.join(problems)}")
    return names


# --- writing --------------------------------------------------------------------------------------


def write_merged(
    base_folder: Path, tuned_folders: Sequence[Path], out: Path, combine: Combine, watch: Watch
) -> int:
    """Writes the base's files with what ``combine`` makes of each tensor; returns how many tensors
    are not the base's.

    Raises DataError for folders that are not states of one model, RunError if ``out`` is there
    already.
    """
    base = Weights(base_folder)
    tuned = [Weights(folder) for folder in tuned_folders]
    names = [_names(base, other) for other in tuned]
    changed = 0
    done = 0
    with whole_folder(out) as unfinished, torch.no_grad():
        for file in base.files:
            shapes, start = _header(base.folder / file)
            with (unfinished / file).open("wb") as stream:
                # The tensors keep their precision and order, so the header is the base's own.
                stream.write(start)
                for name in shapes:
                    before = base[name]
                    others = [model[own[name]] for model, own in zip(tuned, names, strict=True)]
                    after = combine(name, [before, *others]).to(before.dtype)
                    changed += not same_bits(before, after)
                    stream.write(_bytes(after).numpy())
                    done += 1
                    watch("merge", done, len(base.file_of))
                _to_disk(stream)
        if (base.folder / INDEX).exists():
            shutil.copyfile(base.folder / INDEX, unfinished / INDEX)
        copy_beside([base.folder, tuned_folders[0]], unfinished)
        shutil.copyfile(base.folder / "config.json", unfinished / "config.json")
    return changed


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are alike bit for bit: NaN equals itself, and 0.0 is not -0.0."""
    return torch.equal(_bytes(one), _bytes(other))


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``: renamed to it in the end, removed if something fails.

    Raises RunError if ``out`` is there already.
    """
    if out.exists():
        raise RunError(f"{out} is there already; choose another place with --out")
    unfinished = out.with_name(out.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_beside(folders: Sequence[Path], out: Path) -> None:
    """Copies the files that belong to the weights; of two with one name the last folder's stays."""
    for folder in folders:
        for path in sorted(folder.iterdir()):
            wanted = path.suffix in COPIED and not path.name.endswith(".index.json")
            licence = path.name.startswith(("LICENSE", "NOTICE"))
            if path.is_file() and (wanted or licence):
                shutil.copyfile(path, out / path.name)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
