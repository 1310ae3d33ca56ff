"""What ``--model`` may say: an alias of the table below, a Hub id, or a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from replaykit.errors import EngineError, did_you_mean
from replaykit.records import file_fingerprint, fingerprint

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALL = 64 << 20  # bytes of a file that are hashed to tell two folders apart; of larger ones the size must do

ALIASES = {
    "nano": str(Path(__file__).parent / "nano" / "weights"),
    "llama3": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "llama3.1": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "gemma2-2b": "google/gemma-2-2b-it",
    "gemma2-9b": "google/gemma-2-9b-it",
    "gemma3-1b": "google/gemma-3-1b-it",
    "gemma3-4b": "google/gemma-3-4b-it",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "phi3.5": "microsoft/Phi-3.5-mini-instruct",
    "phi4": "microsoft/phi-4",
    "smollm2": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "olmo2": "allenai/OLMo-2-1124-7B-Instruct",
}


def resolve(model: str) -> str:
    """The folder or Hub id that an alias, a Hub id or a folder stands for. Raises EngineError for anything else."""
    if model in ALIASES:
        return ALIASES[model]
    if Path(model).is_dir():
        return model
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return model
    raise EngineError(
        f"--model {model}: neither a folder here, nor a Hub id (owner/name), nor one of the aliases "
        f"{', '.join(ALIASES)}{did_you_mean(model, ALIASES)}"
    )


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises EngineError, with what to do, where it cannot be had."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, model, revision)


def load_model(model: str, revision: str | None = None, *, train: bool = False) -> PreTrainedModel:
    """The causal language model on the best device here, from safetensors only.

    On a GPU in bfloat16; in float32 on a CPU, and wherever all its weights are to be trained.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and not train else torch.float32
    loaded = _load(AutoModelForCausalLM.from_pretrained, model, revision, dtype=dtype, use_safetensors=True)
    return loaded.to(device)


def identity(model: str) -> str | None:
    """16 hexadecimal digits for a folder's files, their names and sizes and the bytes of the small ones; None on the Hub."""
    folder = Path(resolve(model))
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint(
        [(f.name, f.stat().st_size, file_fingerprint(f) if f.stat().st_size < SMALL else None) for f in files]
    )


def generation_config(model: str, revision: str | None = None) -> GenerationConfig | None:
    """The model's generation_config.json: its eos ids and the sampling it is deployed with; None where it has none."""
    from transformers import GenerationConfig

    try:
        return _load(GenerationConfig.from_pretrained, model, revision)
    except EngineError:  # the tokenizer is loaded beside this and says what is missing, if it is more than the file
        return None


def stored_dtype(model: str, revision: str | None = None) -> Any:
    """The torch dtype of the weights as they are stored, None where the config does not say."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model, revision).dtype


def fetched(model: str, revision: str | None = None) -> str | None:
    """The commit of a Hub model as it was last fetched, None for a folder: what a manifest should name."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    name = resolve(model)
    if Path(name).is_dir():
        return None
    file = cached_file(
        name, "config.json", revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return extract_commit_hash(file, None)


def _load(loader: Any, model: str, revision: str | None, **options: Any) -> Any:
    name = resolve(model)
    if not Path(name).is_dir() and not _hub_has_address():
        options["local_files_only"] = True  # what was fetched before serves; else this fails at once, not after retries
    try:
        return loader(name, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise cannot_load(model, error) from error


def _hub_has_address() -> bool:
    """Whether the Hub's name can be resolved; behind a proxy that is not ours to ask."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def cannot_load(model: str, error: Exception) -> EngineError:
    """The EngineError for a model that did not load: what failed, and what the user can do about it."""
    name = resolve(model)
    shown = model if model == name or model == "nano" else f"{model} ({name})"
    text = str(error)
    reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    if Path(name).is_dir():
        return EngineError(f"{shown} cannot be loaded: {reason}")
    if "gated" in text or "401" in text or "403" in text:
        todo = f"ask for access at huggingface.co/{name}, then log in with `hf auth login`"
    else:
        todo = (
            f"check the network and the name; where the Hub cannot be reached, fetch the model elsewhere with "
            f"`hf download {name}` and give its folder to --model"
        )
    return EngineError(f"{shown} cannot be loaded: {reason}\n  {todo}.\n  `--model nano` needs no download.")
