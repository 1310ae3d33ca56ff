"""What ``--model`` may say: an alias of the table below, a Hub id, a folder, or a GGUF file."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from replaykit.errors import EngineError, did_you_mean
from replaykit.hashing import file_fingerprint, fingerprint
from replaykit.model.gguf import folder_of, is_gguf

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

log = logging.getLogger(__name__)

# To tell two folders apart, a file of fewer bytes than this is hashed whole, a larger one sampled.
SMALL = 64 << 20
# Of that sample: how many blocks, and the bytes of each.
BLOCKS = 1024
BLOCK = 4096
SHOWN = 5  # weights that an error names
# Environment variables that name a proxy for the Hub.
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")

ALIASES = {
    "nano": str(Path(__file__).parents[1] / "nano" / "weights"),
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


class OwnCodeError(EngineError):
    """A model that only code of its own can load."""


def resolve(model: str) -> str:
    """The folder or Hub id that a name stands for. Raises EngineError for any other name.

    A GGUF file is dequantised into a folder when it is first asked for.
    """
    if model in ALIASES:
        return ALIASES[model]
    if is_gguf(model):
        file = _gguf_file(model)
        return str(folder_of(file, _file_hash(file)))
    if Path(model).is_dir():
        inner = Path(model) / "model"
        if not _has_config(Path(model)) and _has_config(inner):
            raise EngineError(f"--model {model}: the folder of a training; its model is {inner}")
        return model
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return model
    raise EngineError(
        f"--model {model}: neither a folder here, nor a Hub id (owner/name), nor one of the "
        f"aliases "
        f"{', '.join(ALIASES)}{did_you_mean(model, ALIASES)}"
    )


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _gguf_file(model: str) -> Path:
    file = Path(model).expanduser()
    if not file.is_file():
        raise EngineError(f"--model {model}: there is no such file here")
    return file


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
    narrow: bool = False,
    shards: int = 1,
) -> PreTrainedModel:
    """The language model, causal or encoder-decoder, on the best device here, from safetensors.

    On a GPU in bfloat16; in float32 on a CPU, and wherever all its weights are to be trained, but
    for ``narrow``, which asks for bfloat16.
    ``quantisation`` is a configuration of transformers for fewer bits, ``attention`` the name of an
    implementation (by default transformers' own choice). Of more than one of ``shards`` each
    process holds its own, and all have to load at once.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device, dtype = placement(train=train, narrow=narrow)
    config = language_model(model, revision)
    loader = AutoModelForCausalLM if config is None else _auto_class(config)
    options = {"dtype": dtype, "quantization_config": quantisation}
    if attention is not None:
        options["attn_implementation"] = attention
    if shards > 1:
        options["distributed_config"] = _sharding(shards)
    loaded = _load_whole(loader.from_pretrained, model, revision, **options)
    # Quantised weights, and those that are shared out, are placed as they are loaded.
    if quantisation is not None or shards > 1:
        return loaded
    return loaded.to(device)


def _sharding(shards: int) -> Any:
    """How transformers shares weights out. Raises EngineError for a version that does not."""
    try:
        from transformers.distributed import DistributedConfig

        return DistributedConfig(fsdp_size=shards)
    except (ImportError, TypeError) as error:
        raise EngineError(
            "train.fsdp needs transformers 5.19 or newer; `pip install -U transformers`"
        ) from error


def placement(*, train: bool = False, narrow: bool = False) -> tuple[str, Any]:
    """The device for a model, and the torch dtype.

    Weights that are trained are float32, since small steps are lost in the 8 bits of a bfloat16's
    fraction; so are all weights on a CPU, where bfloat16 is mostly emulated. ``narrow`` asks for
    bfloat16 all the same.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if narrow or (device == "cuda" and not train):
        return device, torch.bfloat16
    return device, torch.float32


def language_model(model: str, revision: str | None = None) -> PretrainedConfig | None:
    """What config.json says of a language model; None where there is none, as for a GGUF file or a
    tokenizer alone: whoever loads the model says that it is missing.

    Raises EngineError for an adapter, for a model that transformers takes for no language model
    (of sounds, of images), and for one whose weights have another head, such as a classifier.
    """
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    if is_gguf(model):
        return None
    try:
        config = _load(AutoConfig.from_pretrained, model, revision)
    except OwnCodeError:
        raise
    except EngineError as error:
        if _load(find_adapter_config_file, model, revision) is not None:
            raise _adapter(model, revision) from error
        return None
    loader = _auto_class(config)
    if type(config) not in loader._model_mapping:
        kind = config.model_type
        raise EngineError(
            f"{model} is of the kind {kind}, which transformers loads as no language model of text "
            f"alone ({loader.__name__} does not know it); choose one that it does"
        )
    _check_head(model, config)
    return config


def _check_head(model: str, config: PretrainedConfig) -> None:
    """Raises EngineError where the weights were saved with another head than a language model's."""
    import transformers

    names = config.architectures or []
    base = transformers.AutoModel._model_mapping.get(type(config), None)
    for name in names:
        saved = getattr(transformers, name, None)
        # A name that transformers does not know is of the model's own code; the weights will tell.
        if saved is not None and saved is not base and not saved.can_generate():
            raise EngineError(
                f"{model} was saved as {name}, which is no language model: its head would be "
                f"thrown away and another one made up. Choose a model that writes text; a text "
                f"classifier is trained with `task: classification`"
            )


def _adapter(model: str, revision: str | None) -> EngineError:
    """The EngineError for an adapter: of which model it is, and how the two become one."""
    from peft import PeftConfig

    name = resolve(model)
    beside = Path(name).with_name("model")
    todo = (
        f'merge it into its base: `python -c "from peft import AutoPeftModelForCausalLM as A; '
        f"A.from_pretrained('{name}').merge_and_unload().save_pretrained('merged')\"`, copy the "
        f"tokenizer's files there, and give that folder"
    )
    # As ``train`` leaves an adapter.
    if (beside / "config.json").exists():
        todo = f"give {beside}, where it is merged"
    base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
    return EngineError(f"{model} is an adapter of {base}, and no whole model; {todo}")


def encoder_decoder(model: str, revision: str | None = None) -> bool:
    """Whether the model is like T5: an encoder reads the question, a decoder writes the answer.

    Raises EngineError as ``language_model`` does.
    """
    config = language_model(model, revision)
    return config is not None and bool(config.is_encoder_decoder)


def load_reward_model(model: str, revision: str | None = None) -> PreTrainedModel:
    """The sequence-classification model with one output, placed and typed as by ``load_model``.

    From safetensors only. Raises EngineError for a model with more outputs, and for one that has no
    trained weights for its output, as a language model has none.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    outputs = _load(AutoConfig.from_pretrained, model, revision).num_labels
    if outputs != 1:
        raise EngineError(
            f"{model} has {outputs} outputs as a classifier; a reward model has one (num_labels 1)"
        )
    logging.disable_progress_bar()
    device, dtype = placement()
    loader = AutoModelForSequenceClassification.from_pretrained
    return _load_whole(loader, model, revision, dtype=dtype).to(device)


def parameter_count(model: str, revision: str | None = None) -> int:
    """How many parameters the causal language model has, by its config.json alone.

    Shared ones count once, as the embeddings that are the head as well.
    """
    return sum(parameter.numel() for parameter in untrained(model, revision).parameters())


def untrained(model: str, revision: str | None = None, *, dtype: Any = None) -> Any:
    """The language model without its weights, on a device whose tensors have shapes and no memory.

    Raises EngineError for what is none, such as an encoder.
    """
    from transformers import AutoConfig

    config = _load(AutoConfig.from_pretrained, model, revision)
    try:
        return without_weights(config, dtype=dtype)
    except ValueError as error:  # such as an encoder, which is no causal language model
        raise cannot_load(model, error) from error


def without_weights(config: PretrainedConfig, *, dtype: Any = None) -> PreTrainedModel:
    """The language model on a device whose tensors have shapes and no memory."""
    import torch

    with torch.device("meta"):
        empty: PreTrainedModel = _auto_class(config).from_config(config, dtype=dtype)
    return empty


def _auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that loads such a language model."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def vocabulary_size(model: str, revision: str | None = None) -> int:
    """How many token ids the model has: by config.json, or the tokenizer where that has more."""
    from transformers import AutoConfig

    size = len(load_tokenizer(model, revision))
    config = _load(AutoConfig.from_pretrained, model, revision).get_text_config()
    return max(size, getattr(config, "vocab_size", 0))


def identity(model: str) -> str | None:
    """16 hexadecimal digits for a folder's files, or a GGUF file; None for a model on the Hub.

    They depend on the files' names, sizes and bytes. Of a file of 64 MiB or more 4 MiB are looked
    at, spread over all of it. Training moves nearly every number of a model, so that tells; a
    change of a few numbers in so large a file may not be seen.
    """
    if is_gguf(model):
        return _file_hash(_gguf_file(model))
    folder = Path(resolve(model))
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint([(file.name, file.stat().st_size, _file_hash(file)) for file in files])


def _file_hash(path: Path) -> str:
    if path.stat().st_size < SMALL:
        return file_fingerprint(path)
    return _sampled(path)


def _sampled(path: Path) -> str:
    """16 hexadecimal digits of blocks at equal distances, the first and the last among them."""
    digest = hashlib.blake2b(digest_size=8)
    last = path.stat().st_size - BLOCK
    with path.open("rb", buffering=0) as stream:
        for k in range(BLOCKS):
            stream.seek(k * last // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def generation_config(model: str, revision: str | None = None) -> GenerationConfig | None:
    """The model's generation_config.json, with its eos ids and its sampling; None without one."""
    from transformers import GenerationConfig

    try:
        return _load(GenerationConfig.from_pretrained, model, revision)
    except EngineError:
        # Where more than this file is missing, the tokenizer, loaded beside it, says so.
        return None


def save_model(network: PreTrainedModel, folder: str | Path, **options: Any) -> None:
    """Saves config.json and the weights; ``keep_generation_config`` says how it is sampled from.

    transformers refuses to save some ways that it loads, such as a temperature with do_sample:
    false, and the weights with them.
    """
    from transformers import GenerationConfig

    # A text classifier has none.
    own = getattr(network, "generation_config", None)
    if own is None:
        network.save_pretrained(folder, **options)
        return
    network.generation_config = GenerationConfig()
    try:
        network.save_pretrained(folder, **options)
    finally:
        network.generation_config = own


def keep_generation_config(model: str, revision: str | None, folder: Path) -> None:
    """Writes the model's generation_config.json to a folder as it came, byte for byte; of a model
    without one, what its config.json says of generation.
    """
    from transformers import GenerationConfig

    file = _file(model, revision, "generation_config.json")
    if file is not None:
        shutil.copyfile(file, folder / "generation_config.json")
        return
    options = {"config_file_name": "config.json", "_from_model_config": True}
    found = _load(GenerationConfig.from_pretrained, model, revision, **options)
    found.to_json_file(folder / "generation_config.json")


def named_sampling(model: str, revision: str | None = None) -> dict[str, float] | None:
    """The temperature, top_p and top_k that the model is deployed with, by generation_config.json.

    None without that file. A value that it leaves out is that of the bare distribution, 1, 1 and 0;
    where it says not to sample, the temperature is 0.
    """
    config = generation_config(model, revision)
    if config is None:
        return None
    if config.do_sample is False:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    for name in sampling:
        value = getattr(config, name, None)
        if value is not None:
            sampling[name] = value
    return sampling


def stored_dtype(model: str, revision: str | None = None) -> Any:
    """The torch dtype of the weights as they are stored, None where the config does not say."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, model, revision).dtype


def fetched(model: str, revision: str | None = None) -> str | None:
    """The commit of a Hub model as it was last fetched; None for a folder or a file."""
    from transformers.utils.hub import extract_commit_hash

    if is_gguf(model) or Path(resolve(model)).is_dir():
        return None
    return extract_commit_hash(_file(model, revision, "config.json"), None)


def _file(model: str, revision: str | None, name: str) -> str | None:
    """The path of a file of the model that is here; None where there is no such file."""
    from transformers.utils.hub import cached_file

    return cached_file(
        resolve(model),
        name,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
    )


def _load(loader: Any, model: str, revision: str | None, **options: Any) -> Any:
    """What the loader makes of the model. Raises EngineError, with what to do, where it fails."""
    name = resolve(model)
    # Without a network what was fetched before serves; else it fails at once, not after retries.
    if not Path(name).is_dir() and not _hub_has_address():
        options["local_files_only"] = True
    # Without the word no, transformers asks on the terminal whether to run a model's own code.
    if getattr(getattr(loader, "__self__", None), "__name__", "").startswith("Auto"):
        options["trust_remote_code"] = False
    try:
        return loader(name, revision=revision, **options)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise OwnCodeError(
                f"{model} comes with code of its own, without which transformers cannot load it; "
                "replaykit runs no code of models. Choose a model that transformers knows"
            ) from error
        raise cannot_load(model, error) from error


def _load_whole(loader: Any, model: str, revision: str | None, **options: Any) -> Any:
    """The model with all its weights, from safetensors.

    Raises EngineError where weights are missing or of other sizes than config.json says, which
    transformers fills with random numbers. Weights that the model has no place for are told.
    """
    whole = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded, info = _load(loader, model, revision, **whole, **options)
    kind = type(loaded).__name__
    if getattr(loaded, "_hf_peft_config_loaded", False):
        raise _adapter(model, revision)
    missing = sorted(info["missing_keys"])
    if missing:
        raise EngineError(
            f"{model} has no weights for {listed(missing)}, which a {kind} needs, so it is no "
            f"trained one; fetch the model again, or choose one that was saved as a {kind}"
        )
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise EngineError(
            f"{model}: {name} has the size {tuple(found)}, and config.json asks for "
            f"{tuple(wanted)}; the two are not of one model, fetch it again"
        )
    if info["unexpected_keys"]:
        log.warning(
            "%s has weights that a %s has no place for, and that are left out: %s",
            model,
            kind,
            listed(info["unexpected_keys"]),
        )
    return loaded


def _hub_has_address() -> bool:
    """Whether the Hub's name can be resolved; behind a proxy, which resolves it itself, it is."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in PROXIES):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    found = sorted(names)
    text = ", ".join(found[:SHOWN])
    if len(found) > SHOWN:
        text += f" and {len(found) - SHOWN} more"
    return text


def cannot_load(model: str, error: Exception) -> EngineError:
    """The EngineError for a model that did not load: what failed, and what the user can do."""
    name = resolve(model)
    shown = f"{model} ({name})"
    if model in (name, "nano"):  # of nano the folder is ours, and of no use to the user
        shown = model
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
