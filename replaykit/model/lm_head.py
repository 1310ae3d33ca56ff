"""A causal language model's last layer by itself, so that logits are made only where wanted.

    head = split_head(model)          # None where its product with hidden states is not the logits
    hidden = head.hidden(model, {"input_ids": ids})      # [rows, length, width]
    for part in slices(len(tokens), vocabulary):         # at most NUMBERS logits at a time
        head.logits(hidden[where][part])                 # [n, vocabulary]

The logits of a batch are most of a forward pass's memory: of 16 rows of 2,048 tokens and a
vocabulary of 128,256, they are 16.8 GB in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from replaykit.model.shards import is_shard

# What a model is given, and facts of its rows: tensors by name, as ``batches.collate`` makes them.
Batch = dict[str, Any]
# Logits at a time: 64 MiB in float32. With 2**26 a step was slower, and took 600 MiB more.
NUMBERS = 2**24
# The logit of a label that cannot be meant: its probability is 0, and its logarithm is finite.
IMPOSSIBLE = -1e4


class Head:
    """The last layer of a causal language model, apart from the rest."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear

    def hidden(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """What the model gives to its last layer, [rows, length, width].

        ``model`` may be wrapped, or under an adapter. Its own forward pass is used, so wrappers see
        it; its last layer is given no position at all, and so makes no logits.
        """
        found: list[torch.Tensor] = []

        # Runs before the last layer: keeps its input, and leaves it no position to work on.
        def take(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            found.append(args[0])
            return (args[0][:, :0],)

        hook = self.linear.register_forward_pre_hook(take)
        try:
            model(**inputs(batch))
        finally:
            hook.remove()
        return found[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, width] to [n, vocabulary]."""
        return nn.functional.linear(hidden, self.linear.weight, self.linear.bias)


def slices(count: int, vocabulary: int, numbers: int = NUMBERS) -> Iterator[slice]:
    """Slices of ``count`` tokens, each of which has at most ``numbers`` logits, or is one token."""
    size = max(1, numbers // vocabulary)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def beneath(model: Any) -> Any:
    """The model under its adapter, or the model itself."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def as_trained(model: Any) -> torch.autocast:
    """Within it a forward pass outside of the trainer computes as the trainer does.

    They differ where the attention takes no float32, which the trainer casts to bfloat16.
    """
    flash = getattr(model.config, "_attn_implementation", None) == "flash_attention_2"
    return torch.autocast("cuda" if flash else "cpu", torch.bfloat16, enabled=flash)


def inputs(batch: Batch) -> Batch:
    """What of a batch the model reads."""
    # An encoder-decoder.
    if "decoder_input_ids" in batch:
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return {name: batch[name] for name in names} | {"use_cache": False}
    given = {"input_ids": batch["input_ids"], "use_cache": False}
    # A text classifier looks at padding, or needs to know where it begins.
    if "known" in batch:
        given["attention_mask"] = batch["attention_mask"]
    # Positions of packed rows, by which they are kept apart.
    if "position_ids" in batch:
        given["position_ids"] = batch["position_ids"]
    return given


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """What a model without a head of its own says of a batch, [rows, length, vocabulary].

    A text classifier says one thing of a row: length is 1, and the vocabulary are its labels, of
    which those that are not ``among`` the row's cannot be meant. Where a row has any number of
    labels, each is a choice of its own between no and yes: length is the number of labels, and the
    vocabulary is 2. The logits of no are 0, so that the softmax of both is the sigmoid.
    """
    logits: torch.Tensor = model(**inputs(batch)).logits
    if "known" not in batch:
        return logits
    if "among" in batch:
        return logits.masked_fill(~batch["among"], IMPOSSIBLE)[:, None]
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def split_head(model: Any) -> Head | None:
    """The model's head, or None where hidden states times its weights are not the model's logits.

    They are not in encoder-decoder models, in heads under an adapter, in models that change their
    logits afterwards (Gemma 2's cap, Granite's and Cohere's scale), and where several processes
    share the weights out.
    """
    base = beneath(model)
    linear = base.get_output_embeddings()
    if base.config.is_encoder_decoder or type(linear) is not nn.Linear:
        return None
    # It is whole only in the model's own forward pass.
    if is_shard(linear.weight):
        return None
    head = Head(linear)
    tried = {"input_ids": torch.tensor([[0, 1]], device=linear.weight.device)}
    # Models differ in what they do to logits, so it is tried, on two tokens.
    with torch.no_grad(), evaluating(model), as_trained(model):
        if not _gives_logits(model, linear, tried):
            return None
        whole = model(**inputs(tried)).logits
        apart = head.logits(head.hidden(model, tried))
    if not torch.allclose(whole, apart, rtol=1e-3, atol=1e-3):
        return None
    return head


def _gives_logits(model: Any, linear: nn.Linear, batch: Batch) -> bool:
    """Whether what the last layer gives are the model's logits as they are.

    It is made to give numbers far from 0, for a cap hardly shows in the small logits of a model
    that has learned little.
    """
    given = torch.linspace(-100, 100, linear.out_features, device=linear.weight.device)

    # Runs after the last layer, and stands for what it gives.
    def replace(_: nn.Module, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return given.to(logits.dtype).expand_as(logits)

    hook = linear.register_forward_hook(replace)
    try:
        logits = model(**inputs(batch)).logits
    finally:
        hook.remove()
    return torch.equal(logits, given.to(logits.dtype).expand_as(logits))
