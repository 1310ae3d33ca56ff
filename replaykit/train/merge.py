"""Averaging in weight space after training: between the base and what was tuned from it, one tensor
at a time.

    interpolate("base", "tuned", "out", 0.5)              # (1 - alpha) * base + alpha * tuned
    ties("base", ["tuned-a", "tuned-b"], "out")           # several tuned models into one
    scale_adapter("adapter", "out", 0.5)                  # the same as interpolate, for a LoRA adapter by itself

``interpolate`` is WiSE-FT (Wortsman et al., arXiv 2109.01903, section 3): one fine-tuning gives a
whole curve between old and new skills, and each of its points costs an evaluation only. ``ties`` is
TIES-merging (Yadav et al., arXiv 2306.01708, section 4): trim, elect a sign, average those that
agree.

Folders are as transformers writes them, in safetensors, in one file or many, cut differently or
not. The result has the base's files: its tensors, their precision and its config.json; tokenizer
and chat template are the tuned model's. Arithmetic is in float32 (float64 where the base is). No
more than a few tensors are in memory, for files are written as they come. The folder appears when
it is whole.
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
from typing import Any

import numpy as np
import torch

from replaykit import models
from replaykit.errors import DataError, RecipeError, RunError
from replaykit.runs import Watch, read_json, unwatched

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
COPIED = (
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".tiktoken",
)  # what stands beside weights: config, tokenizer, template
AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TAKING = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # beginnings of init_lora_weights that change the base as well
SHOWN = 5  # tensors that an error names

Tensors = Sequence[
    torch.Tensor
]  # the base's, then the tuned models', of one name, in the base's shape
Combine = Callable[[str, Tensors], torch.Tensor]


def interpolate(
    base: Path, tuned: Path, out: Path, alpha: float, *, watch: Watch = unwatched
) -> int:
    """Writes (1 - alpha) * base + alpha * tuned to the folder ``out``; returns how many tensors
    differ from the base.

    alpha 0 gives the base's tensors bit for bit, alpha 1 the tuned ones', where both are stored in
    the same precision; a tensor that was not trained stays as it is. Raises RecipeError for an
    alpha outside of 0 to 1, DataError for folders that are not two states of one model, RunError if
    ``out`` is there already.
    """
    _part("alpha", alpha)

    def between(name: str, tensors: Tensors) -> torch.Tensor:
        before, after = tensors
        if before.dtype not in AVERAGED:
            return _same(name, before, after, alpha)
        exact = torch.promote_types(before.dtype, torch.float32)
        if alpha in (0, 1):
            return after if alpha else before
        return torch.lerp(before.to(exact), after.to(exact), alpha)

    return _merged(base, [tuned], out, between, watch)


def ties(
    base: Path,
    tuned: Sequence[Path],
    out: Path,
    *,
    density: float = 0.2,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    watch: Watch = unwatched,
) -> int:
    """Writes base + scale * (the TIES merge of what each tuned model changed); returns how many
    tensors differ from it.

    Of each change, tuned - base, the ``density`` part of greatest magnitude is kept; the sign of
    their weighted sum is elected at each place; the weighted mean of those that have it is taken.
    Trimmed per tensor, not over the whole model, so that it can be streamed (the paper does not say
    which; its code takes the whole). Weights are 1 by default. Raises as ``interpolate`` does.
    """
    weights = [1.0] * len(tuned) if weights is None else weights
    _part("density", density)
    if density == 0 or not tuned or len(weights) != len(tuned) or min(weights) <= 0:
        raise RecipeError(
            "the merge", ["ties: density is above 0, and each tuned model has one weight above 0"]
        )

    def elect(name: str, tensors: Tensors) -> torch.Tensor:
        before, *after = tensors
        if before.dtype not in AVERAGED:
            for other in after:
                _same(name, before, other, None)
            return before
        exact = torch.promote_types(before.dtype, torch.float32)
        start = before.to(exact)
        return start + scale * elected(
            [other.to(exact) - start for other in after], density, weights
        )

    return _merged(base, tuned, out, elect, watch)


def elected(
    changes: Sequence[torch.Tensor], density: float, weights: Sequence[float]
) -> torch.Tensor:
    """The TIES merge of changes of one shape: trimmed to ``density``, sign elected, disjoint
    weighted mean.

    A place at which nothing is left, or the weighted changes cancel out, is 0 (the authors' code
    gives the latter the sign that most of the model has). Changes as large as the last one kept are
    kept too.
    """
    kept = [
        _trimmed(change, density) * weight for change, weight in zip(changes, weights, strict=True)
    ]
    total = torch.stack(kept).sum(dim=0)
    sign = total.sign()
    amount = torch.zeros_like(total)
    share = torch.zeros_like(total)
    for change, weight in zip(kept, weights, strict=True):
        agrees = (change.sign() == sign) & (sign != 0)
        amount += torch.where(agrees, change, 0)
        share += agrees * weight
    return torch.where(share > 0, amount / share.clamp(min=torch.finfo(share.dtype).tiny), 0)


def _trimmed(change: torch.Tensor, density: float) -> torch.Tensor:
    drop = change.numel() - max(1, round(density * change.numel()))
    if drop <= 0:
        return change
    size = change.abs()
    least = np.partition(size.flatten().numpy(), drop)[drop]  # ten times as fast as torch.kthvalue
    return torch.where(size >= float(least), change, 0)


def scale_adapter(adapter: Path, out: Path, alpha: float) -> int:
    """Writes the LoRA adapter with its effect times alpha: every lora_B is multiplied; returns how
    many there are.

    base + alpha * scaling * B A is what ``interpolate`` makes of base and merged model, without the
    base. Raises DataError for an adapter whose effect is not proportional to its lora_B: another
    kind, DoRA, one with whole trained modules, or one that begins by taking a part of the base's
    weights (PiSSA, OLoRA, ...).
    """
    from safetensors.torch import save_file

    _part("alpha", alpha)
    config = read_json(adapter / ADAPTER_CONFIG)
    if config is None or not (adapter / ADAPTER).exists():
        raise DataError(f"{adapter}: no LoRA adapter in safetensors ({ADAPTER_CONFIG}, {ADAPTER})")
    with _opened(adapter / ADAPTER) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    other = [name for name in tensors if "lora_A" not in name and "lora_B" not in name]
    other = [
        name for name in other if "lora_embedding_A" not in name and "lora_embedding_B" not in name
    ]
    taking = str(config.get("init_lora_weights")).lower().startswith(TAKING)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or other or taking:
        kind = (
            f"it trains {_listed(other)} as well" if other else f"it is {config.get('peft_type')}"
        )
        kind = "it begins by taking a part of the base's weights" if taking else kind
        raise DataError(
            f"{adapter}: only a plain LoRA adapter can be scaled, {kind}; merge it and use "
            f"--method wise-ft"
        )
    with _whole(out) as unfinished:
        scaled = [name for name in tensors if "lora_B" in name or "lora_embedding_B" in name]
        for name in scaled:
            tensors[name] = (tensors[name].float() * alpha).to(tensors[name].dtype)
        save_file(tensors, unfinished / ADAPTER, metadata=metadata)
        _copy_beside([adapter], unfinished)
    return len(scaled)


def folder_of(model: str, revision: str | None = None) -> Path:
    """The folder of a model's files: itself, or the Hub's snapshot, which is fetched if it is not
    here.
    """
    from huggingface_hub import snapshot_download

    name = models.resolve(model)
    if Path(name).is_dir():
        return Path(name)
    wanted = ["*.safetensors", *(f"*{suffix}" for suffix in COPIED)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise models.cannot_load(model, error) from error


# --- reading --------------------------------------------------------------------------------------


class Weights:
    """The tensors of a folder by name, read one at a time from whichever file has them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file_of: dict[str, str] = {}
        self.shapes: dict[str, list[int]] = {}
        index = read_json(folder / INDEX)
        self.files = self._single() if index is None else sorted(set(index["weight_map"].values()))
        for file in self.files:
            for name, facts in _header(folder / file)[0].items():
                self.file_of[name] = file
                self.shapes[name] = facts["shape"]
        if missing := (index or {"weight_map": {}})["weight_map"].keys() - self.file_of.keys():
            raise DataError(
                f"{folder}: {INDEX} names {_listed(missing)}, which no file has; fetch the model "
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
        with _opened(self.folder / self.file_of[name]) as file:
            return file.get_tensor(name)

    def twin(self, name: str, of: Iterable[str]) -> str | None:
        """A matrix among ``of`` that is tied to this one: the same numbers, in a model whose
        embeddings are tied.
        """
        if len(self.shapes[name]) != 2 or not self._tied:
            return None
        own = self[name]
        alike = (
            other for other in of if other != name and self.shapes.get(other) == self.shapes[name]
        )
        return next((other for other in alike if torch.equal(self[other], own)), None)

    @cached_property
    def _tied(self) -> bool:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder).get_text_config()
        except (OSError, ValueError) as error:
            raise models.cannot_load(str(self.folder), error) from error
        return bool(getattr(config, "tie_word_embeddings", True))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], bytes]:
    """A safetensors file's tensors (dtype, shape, data_offsets) in the order of their data, and the
    header's own bytes.

    The format: 8 bytes, little-endian, the length of a JSON object; the object; the data
    (huggingface/safetensors README).
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            text = stream.read(struct.unpack("<Q", start)[0])
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        return dict(sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])), start + text
    except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _names(base: Weights, tuned: Weights) -> dict[str, str]:
    """The tuned model's name for each of the base's tensors. Raises DataError where one has no
    counterpart of its shape.
    """
    common = base.file_of.keys() & tuned.file_of.keys()
    names = {name: name for name in common}
    for name in base.file_of.keys() - common:
        if (twin := base.twin(name, common)) is not None:
            names[name] = twin
    lost = base.file_of.keys() - names.keys()
    new = {name for name in tuned.file_of.keys() - common if tuned.twin(name, common) is None}
    problems = [f"{_listed(lost)} only in the base"] if lost else []
    problems += [f"{_listed(new)} only in the tuned model"] if new else []
    reshaped = [name for name, other in names.items() if base.shapes[name] != tuned.shapes[other]]
    problems += [
        f"{name} {base.shapes[name]} in the base, {tuned.shapes[names[name]]} in the tuned model"
        for name in sorted(reshaped)[:SHOWN]
    ]
    if problems:
        raise DataError(f"{tuned.folder} was not tuned from {base.folder}: {'; '.join(problems)}")
    return names


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:SHOWN]) + (
        f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    )


# --- writing --------------------------------------------------------------------------------------


def _merged(
    base_folder: Path, tuned_folders: Sequence[Path], out: Path, combine: Combine, watch: Watch
) -> int:
    """Writes the base's files with what ``combine`` makes of each tensor; returns how many tensors
    are not the base's.
    """
    base = Weights(base_folder)
    tuned = [Weights(folder) for folder in tuned_folders]
    names = [_names(base, other) for other in tuned]
    changed = done = 0
    with _whole(out) as unfinished, torch.no_grad():
        for file in base.files:
            header, start = _header(base.folder / file)
            with (unfinished / file).open("wb") as stream:
                stream.write(start)
                for name in header:
                    before = base[name]
                    tensors = [
                        before,
                        *(other[own[name]] for other, own in zip(tuned, names, strict=True)),
                    ]
                    after = combine(name, tensors).to(before.dtype)
                    changed += not torch.equal(_bytes(before), _bytes(after))
                    stream.write(_bytes(after).numpy())
                    done += 1
                    watch("merge", done, len(base.file_of))
                stream.flush()
                os.fsync(stream.fileno())
        if (base.folder / INDEX).exists():
            shutil.copyfile(base.folder / INDEX, unfinished / INDEX)
        _copy_beside([base.folder, tuned_folders[0]], unfinished)
        shutil.copyfile(base.folder / "config.json", unfinished / "config.json")
    return changed


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name in the end; it goes where something
    fails.
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


def _copy_beside(folders: Sequence[Path], out: Path) -> None:
    """Copies what stands beside the weights; of files of one name the last folder's."""
    for folder in folders:
        for path in sorted(folder.iterdir()):
            wanted = path.suffix in COPIED and not path.name.endswith(".index.json")
            if path.is_file() and (wanted or path.name.startswith(("LICENSE", "NOTICE"))):
                shutil.copyfile(path, out / path.name)


def _same(
    name: str, before: torch.Tensor, after: torch.Tensor, alpha: float | None
) -> torch.Tensor:
    """A tensor of whole or packed numbers, which has no average. Raises DataError where one between
    two is asked for.
    """
    if alpha not in (0, 1) and not torch.equal(_bytes(before), _bytes(after)):
        raise DataError(
            f"{name} is {before.dtype} and was changed, so there is nothing between; merge weights "
            f"that are not quantised"
        )
    return after if alpha == 1 else before


def _part(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RecipeError("the merge", [f"{name}: must be from 0 to 1 (got {value:g})"])
