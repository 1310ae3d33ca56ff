"""The loss of answer tokens, from hidden states to one number, without logits of the whole
vocabulary for all of them.

    head = split_head(model)                        # None where the last layer cannot be had apart
    hidden = head.hidden(model, batch)              # [rows, length, width], without the last layer
    total = summed(hidden[where], head, objective)  # it sees at most 2**24 logits at a time

Only positions that carry loss are multiplied by the head, a slice at a time, and the gradient of a
slice is taken at once, so that its logits can be freed: memory for a slice instead of for [tokens,
vocabulary], and each product is done once (the idea of Liger-Kernel's fused linear cross-entropy,
Hsu et al., arXiv 2410.10989; here in torch, for any objective, and no gradient is made for a head
that does not learn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from replaykit.model.lm_head import NUMBERS, Head, slices
from replaykit.steps.train.remedies import Term

SMALL = (torch.float16, torch.bfloat16)


def summed(
    hidden: torch.Tensor, head: Head, objective: Term, *, numbers: int = NUMBERS
) -> torch.Tensor:
    """The sum of ``objective(logits, slice)`` over slices of the tokens, a scalar; hidden is [n,
    width].

    Logits are given in float32, or in float64 where the hidden states are. At most ``numbers`` of
    them are there at a time.
    """
    linear = head.linear
    parts = list(slices(len(hidden), linear.out_features, numbers))
    return _Summed.apply(hidden, linear.weight, linear.bias, objective, parts)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        objective: Term,
        parts: Sequence[slice],
    ) -> torch.Tensor:
        gradients: list[torch.Tensor | None] = []
        for given, wanted in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False):
            wanted = wanted and given is not None
            gradients.append(torch.zeros_like(given) if wanted else None)
        learns = any(gradient is not None for gradient in gradients)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = hidden.new_zeros((), dtype=dtype)
        for part in parts:
            logits = nn.functional.linear(hidden[part], weight, bias)
            if logits.dtype in SMALL:
                logits = logits.float()
            logits = logits.detach().requires_grad_(learns)
            # Inside forward() autograd is off; the slice has a graph of its own, taken at once.
            with torch.enable_grad():
                value = objective(logits, part)
            total += value.detach()
            if learns:
                (of_logits,) = torch.autograd.grad(value, logits)
                _add(gradients, of_logits, hidden[part], weight, part)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        # The gradients are ready: they are only multiplied by that of the sum.
        found = []
        for gradient in ctx.gradients:
            if gradient is not None:
                gradient = gradient * outer[0].to(gradient.dtype)
            found.append(gradient)
        return (*found, None, None)


def _add(
    gradients: list[torch.Tensor | None],
    of_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    part: slice,
) -> None:
    """Adds a slice's gradient to those of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    of_logits = of_logits.to(hidden.dtype)
    if of_hidden is not None:
        of_hidden[part] = of_logits @ weight.to(hidden.dtype)
    if of_weight is not None:
        of_weight += of_logits.T @ hidden
    if of_bias is not None:
        of_bias += of_logits.sum(dim=0)


# Logits [n, vocabulary], log-probabilities [n] -> weights [n].
Online = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    online: Online | None = None,
    losses: torch.Tensor | None = None,
) -> Term:
    """The objective sum of weight x negative log-likelihood; all tensors are [n].

    ``online`` gives further weights from the logits, through which no gradient flows. ``losses`` is
    filled with each token's own negative log-likelihood.
    """

    def objective(logits: torch.Tensor, part: slice) -> torch.Tensor:
        nll = nn.functional.cross_entropy(logits, targets[part], reduction="none")
        weight = weights[part].to(nll.dtype)
        if online is not None:
            with torch.no_grad():
                weight = weight * online(logits, -nll)
        if losses is not None:
            losses[part] = nll.detach()
        return (weight * nll).sum()

    return objective
