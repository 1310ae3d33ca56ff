"""Whether a model reads rows as training takes for granted, found out by trying it on a few tokens.

No token may see a later one: what comes after it is what it is asked for. And rows that are packed
behind one another may not see each other. They are kept apart by their positions, which begin anew
in each (``batches.collate``); models that read states instead of looking back (Mamba), or that make
their positions of the mask (OPT, BLOOM), make no use of these.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from replaykit.errors import EngineError, RecipeError
from replaykit.model.lm_head import Batch, as_trained, beneath, evaluating, inputs
from replaykit.steps.train.batches import Row, collate, to_device

# Tokens that are tried, of two rows: each has more than a convolution of a layer looks back.
TRIED = 16
FIRST = 7
# How far the logits of a packed row may be from those of the row alone, in parts of their own
# spread: more than kernels for other shapes differ by in bfloat16.
TOLERANCE = 0.1


def check_reading(model: Any, *, packing: bool = False) -> None:
    """Raises EngineError where a token of the causal model, loaded and as it is trained, sees a
    later one, and RecipeError where rows are to be packed and see more than each by itself.
    """
    base = beneath(model)
    if base.config.is_encoder_decoder:
        return
    kind = type(base).__name__
    rows = [row(model, 0, FIRST), row(model, FIRST, TRIED)]
    if _gradients(model, rows[:1], says=slice(0, FIRST // 2))[FIRST // 2 :].any():
        raise EngineError(
            f"in this {kind} a token sees those after it, so it would learn to copy them; choose a "
            f"causal model (BERT and its like are causal with is_decoder: true in config.json)"
        )
    if not packing:
        return
    problem = None
    if not _takes_positions(base):
        problem = "it takes no position_ids, which keep them apart"
    elif _gradients(model, rows, says=slice(FIRST, TRIED))[:FIRST].any():
        problem = "one sees those before it"
    elif _far_from_alone(model, rows):
        problem = "a row has other positions than alone"
    if problem is not None:
        raise RecipeError(
            "the recipe",
            [
                f"train.packing: a {kind} does not keep packed rows apart: {problem}; set "
                f"train.packing: false"
            ],
        )


def row(model: Any, first: int, last: int) -> Row:
    """A row of the token ids from the first to before the last."""
    tokens = torch.arange(first, last, dtype=torch.int32)
    tokens %= beneath(model).get_input_embeddings().weight.shape[0]
    weight = torch.ones(len(tokens))
    facts = {"source": 0, "replay": False, "index": 0}
    return {"tokens": tokens, "labels": tokens, "weight": weight, **facts}  # type: ignore[typeddict-item]


def packed(model: Any, rows: list[Row]) -> Batch:
    """What the model is given of the rows behind one another, where it is."""
    batch = to_device(collate(rows, pad=0, packing=True), beneath(model).device)
    return inputs(batch)


def _gradients(model: Any, rows: list[Row], says: slice) -> torch.Tensor:
    """The gradient of what the model says at some positions of packed rows at the embedding of each
    token, [length, width]: exactly 0 at those that it does not see.
    """
    read: list[torch.Tensor] = []

    # Runs after the embeddings: what they give is a leaf, whatever is frozen. The model has a copy,
    # which it may change in place, as CTRL does.
    def keep(_: nn.Module, __: Any, vectors: torch.Tensor) -> torch.Tensor:
        read.append(vectors.detach().requires_grad_())
        return read[-1].clone()

    hook = beneath(model).get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad(), evaluating(model), as_trained(model):
            said = model(**packed(model, rows)).logits[0, says].float()
            # Any weights would do that are not all alike.
            weights = torch.arange(said.numel(), device=said.device).cos().view_as(said)
            (gradient,) = torch.autograd.grad((said * weights).sum(), read[0])
    finally:
        hook.remove()
    # Of one row, so it is the same whether the batch comes first or, as in XLNet, the position.
    found = gradient.reshape(-1, gradient.shape[-1])
    length = sum(len(row["tokens"]) for row in rows)
    if len(found) != length:
        kind = type(beneath(model)).__name__
        raise EngineError(
            f"this {kind} embeds {length} tokens as {len(found)}, so which of them a token sees "
            f"cannot be tried; choose another model"
        )
    return found


@torch.no_grad()
def _far_from_alone(model: Any, rows: list[Row]) -> bool:
    """Whether the last of the packed rows has other logits than by itself."""
    with evaluating(model), as_trained(model):
        alone = model(**packed(model, rows[-1:])).logits[0].float()
        among = model(**packed(model, rows)).logits[0, -len(alone) :].float()
    distance = (among - alone).square().mean().sqrt()
    return bool(distance > TOLERANCE * alone.std())


def _takes_positions(model: Any) -> bool:
    parameters = signature(model.forward).parameters
    anything = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    return anything or "position_ids" in parameters
