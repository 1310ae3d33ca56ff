"""A classification head with a row for every label, and the model that it is on.

    model = load_classifier("my-news-classifier", None, labels, tuned=False, seed=1, pad=0)
    model.config.id2label        # {0: "World", 1: "Sports", 2: "yes", 3: "no"}

The old rows of a head that is widened are the model's, bit for bit. The new ones are initialised as
transformers initialises the model's head, by the seed, so the base that is widened twice is the
same model. What a model cannot do is found by looking at it: where its logits come from, whether
padding changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.labels import PROBLEM, Labels, config_of, own_labels
from replaykit.model.lm_head import evaluating

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SHOWN = 5  # weights that a message names


def load_classifier(
    name: str | None,
    revision: str | None,
    labels: Labels,
    *,
    tuned: bool,
    seed: int,
    pad: int,
    train: bool = False,
    quantisation: Any = None,
    narrow: bool = False,
) -> Any:
    """The model with a row of its head for every label, placed as by ``loading.load_model``; one
    that is ``tuned`` has them already. ``pad`` is the tokenizer's padding.

    Raises EngineError for a tuned model with other labels, where weights are missing that are not
    those of a new head, and where the padding of a text changes what the model says of it.
    """
    name = str(name)
    config = config_of(name, revision)
    own = own_labels(name, config)
    every = labels.every
    if tuned and own != every:
        raise EngineError(
            f"{name} has the labels {', '.join(own) or 'of no head'}, and the recipe's are "
            f"{', '.join(every)}; `replaykit train` makes it anew"
        )
    # A bare model is loaded with a head for all of them.
    _give_head(config, labels, len(own or every), pad)
    # The new head is drawn by the seed, and nothing that is drawn later is changed by it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _loaded(
            name,
            revision,
            config,
            train=train,
            quantisation=quantisation,
            narrow=narrow,
            bare=not own,
        )
        if own and len(own) < len(every):
            torch.manual_seed(seed)
            _widen(model, len(own), len(every))
    model.config.id2label = dict(enumerate(every))
    model.config.label2id = {label: number for number, label in enumerate(every)}
    _check_padding(model, name, pad)
    return model


def untrained_classifier(
    name: str, revision: str | None, labels: Labels, *, pad: int, dtype: Any = None
) -> Any:
    """The same without its weights, on a device whose tensors have shapes and no memory."""
    from transformers import AutoModelForSequenceClassification

    config = config_of(name, revision)
    _give_head(config, labels, len(labels.every), pad)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def _give_head(config: PretrainedConfig, labels: Labels, count: int, pad: int) -> None:
    """Gives a model's configuration a head of so many rows."""
    config.num_labels = count
    config.problem_type = PROBLEM[labels.multi]
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = pad
        config.pad_token_id = pad


def _loaded(
    name: str,
    revision: str | None,
    config: PretrainedConfig,
    *,
    train: bool,
    quantisation: Any,
    narrow: bool,
    bare: bool,
) -> Any:
    """The model as it is stored, a ``bare`` one with a new head. Raises EngineError for weights
    that are missing or not used, but for those of heads.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    device, dtype = loading.placement(train=train, narrow=narrow)
    loaded, info = loading._load(
        AutoModelForSequenceClassification.from_pretrained,
        name,
        revision,
        config=config,
        output_loading_info=True,
        dtype=dtype,
        use_safetensors=True,
        quantization_config=quantisation,
    )
    missing = list(info["missing_keys"])
    unused = list(info["unexpected_keys"])
    if bare:
        # Its head for another task is left, and the new one has no weights yet.
        missing = _of_the_encoder(loaded, missing)
        unused = _no_heads(loaded, unused)
    for keys, what in ((missing, "has no weights for"), (unused, "has weights nobody reads:")):
        if keys:
            shown = ", ".join(sorted(keys)[:SHOWN])
            raise EngineError(f"{name} {what} {shown}; fetch or save the model again")
    # Quantised weights are placed as they are loaded, and cannot be moved.
    return loaded if quantisation is not None else loaded.to(device)


def _widen(model: Any, before: int, after: int) -> None:
    """Gives the head ``after`` rows; its first ``before`` rows stay bit for bit."""
    parent, name, old = output_layer(model, before)
    wide = nn.Linear(old.in_features, after, bias=old.bias is not None, dtype=torch.float32)
    with torch.no_grad():
        model._init_weights(wide)
        wide.to(device=old.weight.device, dtype=old.weight.dtype)
        wide.weight[:before] = old.weight
        if old.bias is not None:
            wide.bias[:before] = old.bias
    setattr(parent, name, wide)
    model.config.num_labels = model.num_labels = after


def output_layer(model: Any, count: int) -> tuple[nn.Module, str, nn.Linear]:
    """The linear layer that gives the logits, with the module that holds it and its name there.

    Raises EngineError where none gives exactly them.
    """
    for path, layer in reversed(list(model.named_modules())):
        if not isinstance(layer, nn.Linear) or layer.out_features != count:
            continue
        given: list[Any] = []
        hook = layer.register_forward_hook(lambda _, __, output, to=given: to.append(output))
        with torch.no_grad():
            logits = _on_tokens(model, _some_tokens(model))
        hook.remove()
        # A decoder's head gives logits at every position, of which the last is taken.
        if given and torch.equal(given[0].reshape(-1, count)[-1], logits[-1]):
            holder, _, name = path.rpartition(".")
            return model.get_submodule(holder), name, layer
    raise EngineError(
        f"{type(model).__name__} makes its {count} logits in no linear layer, so its head cannot "
        "be widened; leave classification.labels out"
    )


def _of_the_encoder(model: Any, keys: Sequence[str]) -> list[str]:
    """Those of some parameters that the states of the tokens depend on; the others, such as a
    pooler's, are a head's.
    """
    inner = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    parameters = {key: model.get_parameter(key) for key in keys if key in inner}
    if not parameters:
        return []
    frozen = [each for each in model.parameters() if each.requires_grad]
    for each in frozen:
        each.requires_grad_(False)
    for each in parameters.values():
        each.requires_grad_(True)
    ids = torch.tensor([_some_tokens(model)], device=next(model.parameters()).device)
    with torch.enable_grad(), evaluating(model):
        states = model.base_model(input_ids=ids)[0].float()
        read = [None] * len(parameters)
        if states.requires_grad:
            sums = (states * states.detach().cos()).sum()
            read = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
    for each in frozen:
        each.requires_grad_(True)
    return [key for key, gradient in zip(parameters, read, strict=True) if gradient is not None]


def _no_heads(model: Any, keys: Sequence[str]) -> list[str]:
    """Those of some stored weights that belong among the encoder's own, though its config.json has
    no place for them, as where it names fewer layers than are stored.

    What the bare model knows is a head of it that the classifier leaves out, such as a pooler, and
    a buffer is made anew.
    """
    from transformers import AutoModel

    with torch.device("meta"):
        bare = AutoModel.from_config(model.config)
    known = set(bare.state_dict()) | {name for name, _ in bare.named_buffers()}
    children = {name for name, _ in bare.named_children()}
    found = []
    for key in keys:
        inner = key.removeprefix(f"{model.base_model_prefix}.")
        if inner.split(".")[0] in children and inner not in known:
            found.append(key)
    return found


def positions(config: PretrainedConfig) -> int:
    """How many tokens a model of this config reads; 2**30 where it says nothing.

    Embeddings of positions with a place for padding, as RoBERTa's, begin behind that place.
    """
    from transformers import AutoModelForSequenceClassification

    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or 1 << 30
    if longest < 0:
        return 1 << 30  # XLNet's -1
    with torch.device("meta"):  # tensors with shapes and no memory
        empty = AutoModelForSequenceClassification.from_config(config)
    for name, module in empty.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            before = -1 if module.padding_idx is None else module.padding_idx
            longest = min(longest, module.num_embeddings - before - 1)
    return int(longest)


def _on_tokens(model: Any, tokens: Sequence[int], padding: Sequence[int] = ()) -> Any:
    """The logits of a row, [1, labels]."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*tokens, *padding]], device=device)
    mask = torch.tensor([[1] * len(tokens) + [0] * len(padding)], device=device)
    with torch.no_grad(), evaluating(model):
        return model(input_ids=ids, attention_mask=mask).logits


def _some_tokens(model: Any) -> list[int]:
    """Two tokens of which none is padding."""
    pad = model.config.get_text_config().pad_token_id
    return [token for token in range(3, 6) if token != pad][:2]


def _check_padding(model: Any, name: str, pad: int) -> None:
    """Raises EngineError where a padded text has other logits than the text alone."""
    tokens = _some_tokens(model)
    alone = _on_tokens(model, tokens)
    padded = _on_tokens(model, tokens, [pad] * 3)
    if not torch.allclose(alone, padded, rtol=1e-2, atol=1e-2):
        raise EngineError(
            f"{name}: padding behind a text changes what {type(model).__name__} says of it, so "
            "rows cannot be trained together; take another model"
        )
