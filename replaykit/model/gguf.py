"""A model in a GGUF file, such as llama.cpp reads, as a folder that everything else reads.

    --model SmolLM2-135M-Instruct.Q4_1.gguf
    runs/my-task/dequantised/SmolLM2-135M-Instruct.Q4_1-8b1c0f6e/    config.json, model.safetensors

transformers makes the quantised weights float32 (huggingface.co/docs/transformers/gguf). That is
done once: the folder's name has a hash of the file, and a folder that is there is taken.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replaykit.errors import EngineError, MissingExtra
from replaykit.locks import locked

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
FOLDER = "dequantised"
# The folder of the run that is under way.
_run: ContextVar[Path | None] = ContextVar("run", default=None)


def is_gguf(model: str) -> bool:
    """Whether the model's name is that of a GGUF file."""
    return model.endswith(SUFFIX)


@contextmanager
def kept_in(run: Path) -> Iterator[None]:
    """What is dequantised inside is kept in the run's folder; without this, in the user's cache."""
    before = _run.set(run)
    try:
        yield
    finally:
        _run.reset(before)


def folder_of(file: Path, content: str) -> Path:
    """The folder with the file's model; ``content`` is a hash of the file.

    Raises EngineError for a file that cannot be read as a causal language model, and MissingExtra
    without the package gguf.
    """
    name = f"{file.stem}-{content[:8]}"
    places = [place / FOLDER / name for place in (_run.get(), _cache()) if place is not None]
    for place in places:
        if place.is_dir():
            return place
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf")
    folder = places[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes one makes it, and the others wait.
    with locked(folder.with_name(f".{name}.lock"), wait=True):
        if not folder.is_dir():
            _dequantise(file, folder)
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replaykit"


def _dequantise(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Under another name until it is whole, so that one that is cut short is not taken for it.
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "trust_remote_code": False,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        whole = {"dtype": torch.float32, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(**source, **whole)
        # transformers has filled them with random numbers.
        if info["missing_keys"]:
            raise ValueError(f"it has no weights for {', '.join(sorted(info['missing_keys']))}")
    except Exception as error:  # there is no one error for a file that cannot be read
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EngineError(
            f"{file} cannot be dequantised: {reason}\n  transformers reads GGUF files of common "
            "architectures only; give --model the folder or Hub id of the model itself."
        ) from error
    # Its weights are plain now, and a model that says it is quantised is not saved.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.quantization_method = None
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    size = sum(each.stat().st_size for each in folder.iterdir()) / 1e6
    log.warning("%s: dequantised once, to float32: %s (%.0f MB)", file, folder, size)
