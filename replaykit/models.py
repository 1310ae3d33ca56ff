"""What ``--model`` may say: an alias of the table below, a Hub id, or a folder."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from replaykit.errors import EngineError, did_you_mean
from replaykit.records import file_fingerprint, fingerprint

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALL = (
    64 << 20
)  # bytes below which a file is hashed whole to tell two folders apart; of a larger one a sample is
# of that sample: how many, and the bytes of each
BLOCKS = 1024
BLOCK = 4096

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
    """The folder or Hub id that an alias, a Hub id or a folder stands for. Raises EngineError for
    anything else.
    """
    if model in ALIASES:
        return ALIASES[model]
    if Path(model).is_dir():
        return model
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return model
    raise EngineError(
        f"--model {model}: neither a folder here, nor a Hub id (owner/name), nor one of the "
        f"aliases "
        f"{', '.join(ALIASES)}{did_you_mean(model, ALIASES)}"
    )


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises EngineError, with what to do, where it cannot be had."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, model, revision)


def load_model(
    model: str,
    revision: str | None = None,
    *,
    train: bool = False,
    quantisation: Any = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """The language model, causal or encoder-decoder, on the best device here, from safetensors
    only.

    On a GPU in bfloat16; in float32 on a CPU, and wherever all its weights are to be trained.
    ``quantisation`` is a configuration of transformers for fewer bits, ``attention`` the name of an
    implementation (by default transformers' own choice).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and not train else torch.float32
    auto = AutoModelForSeq2SeqLM if encoder_decoder(model, revision) else AutoModelForCausalLM
    options = {"dtype": dtype, "use_safetensors": True, "quantization_config": quantisation}
    options |= {"attn_implementation": attention} if attention is not None else {}
    loaded = _load(auto.from_pretrained, model, revision, **options)
    return loaded if quantisation is not None else loaded.to(device)


def encoder_decoder(model: str, revision: str | None = None) -> bool:
    """Whether the model is of the class of T5: an encoder reads the question, and a decoder writes
    the answer.
    """
    from transformers import AutoConfig

    try:
        return bool(_load(AutoConfig.from_pretrained, model, revision).is_encoder_decoder)
    except (
        EngineError
    ):  # a tokenizer alone has no config.json; whoever loads the model says that it is missing
        return False


def load_reward_model(model: str, revision: str | None = None) -> PreTrainedModel:
    """The sequence-classification model with one output, placed and typed as by ``load_model``,
    from safetensors only.

    Raises EngineError for a model with more outputs, and for one that has no trained weights for
    its output.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    outputs = _load(AutoConfig.from_pretrained, model, revision).num_labels
    if outputs != 1:
        raise EngineError(
            f"{model} has {outputs} outputs as a classifier; a reward model has one (num_labels 1)"
        )
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    loader = AutoModelForSequenceClassification.from_pretrained
    loaded, info = _load(
        loader, model, revision, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise EngineError(
            f"{model} has no weights for {missing}, so it is not a trained reward model"
        )
    return loaded.to(device)


def parameter_count(model: str, revision: str | None = None) -> int:
    """How many parameters the causal language model has, by its config.json alone; shared ones
    count once.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _load(AutoConfig.from_pretrained, model, revision)
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except ValueError as error:  # such as an encoder, which is no causal language model
        raise cannot_load(model, error) from error
    return sum(parameter.numel() for parameter in empty.parameters())


def identity(model: str) -> str | None:
    """16 hexadecimal digits for a folder's files, their names, sizes and bytes; None for a model on
    the Hub.

    Of a file of 64 MiB or more 4 MiB are looked at, spread over all of it. Training moves nearly
    every number of a model, so that tells; a change of a few numbers in so large a file may not be
    seen.
    """
    folder = Path(resolve(model))
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint(
        [
            (
                f.name,
                f.stat().st_size,
                file_fingerprint(f) if f.stat().st_size < SMALL else _sampled(f),
            )
            for f in files
        ]
    )


def _sampled(path: Path) -> str:
    """16 hexadecimal digits of blocks of a file at equal distances, the first and the last bytes
    among them.
    """
    digest = hashlib.blake2b(digest_size=8)
    last = path.stat().st_size - BLOCK
    with path.open("rb", buffering=0) as stream:
        for k in range(BLOCKS):
            stream.seek(k * last // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def generation_config(model: str, revision: str | None = None) -> GenerationConfig | None:
    """The model's generation_config.json: its eos ids and the sampling it is deployed with; None
    where it has none.
    """
    from transformers import GenerationConfig

    try:
        return _load(GenerationConfig.from_pretrained, model, revision)
    except (
        EngineError
    ):  # the tokenizer is loaded beside this and says what is missing, if it is more than the file
        return None


def deployed_sampling(model: str, revision: str | None = None) -> dict[str, float]:
    """The temperature, top_p and top_k of the model's generation_config.json; temperature 0 where
    it says not to sample.

    A value that the file leaves out is that of the bare distribution: 1, 1 and 0. Raises
    EngineError where there is none.
    """
    config = generation_config(model, revision)
    if config is None:
        raise EngineError(
            f"{model} has no generation_config.json, so it names no sampling of its own; give "
            f"temperatures"
        )
    if config.do_sample is False:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    named = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k")}
    bare = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return {name: value if value is not None else bare[name] for name, value in named.items()}


def stored_dtype(model: str, revision: str | None = None) -> Any:
    """The torch dtype of the weights as they are stored, None where the config does not say."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model, revision).dtype


def fetched(model: str, revision: str | None = None) -> str | None:
    """The commit of a Hub model as it was last fetched, None for a folder: what a manifest should
    name.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    name = resolve(model)
    if Path(name).is_dir():
        return None
    file = cached_file(
        name,
        "config.json",
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )
    return extract_commit_hash(file, None)


def _load(loader: Any, model: str, revision: str | None, **options: Any) -> Any:
    name = resolve(model)
    if not Path(name).is_dir() and not _hub_has_address():
        options["local_files_only"] = (
            True  # what was fetched before serves; else this fails at once, not after retries
        )
    try:
        return loader(name, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise cannot_load(model, error) from error


def _hub_has_address() -> bool:
    """Whether the Hub's name can be resolved; behind a proxy that is not ours to ask."""
    from huggingface_hub import constants

    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def cannot_load(model: str, error: Exception) -> EngineError:
    """The EngineError for a model that did not load: what failed, and what the user can do about
    it.
    """
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
            f"check the network and the name; where the Hub cannot be reached, fetch the model "
            f"elsewhere with "
            f"`hf download {name}` and give its folder to --model"
        )
    return EngineError(
        f"{shown} cannot be loaded: {reason}\n  {todo}.\n  `--model nano` needs no download."
    )
