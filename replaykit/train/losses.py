"""The loss of answer tokens, from hidden states to one number, without logits of the whole
vocabulary for all of them.

    head = split_head(model)                         # None where the model's last layer cannot be had by itself
    hidden = head.hidden(model, batch)               # [rows, length, width]: the model without its last layer
    total = summed(hidden[where], head, objective)   # the objective sees logits of at most 2**24 numbers at a time

Only positions that carry loss are multiplied by the head, a slice at a time, and the gradient of a
slice is taken at once, so that its logits can be freed: memory for a slice instead of for [tokens,
vocabulary], and each product is done once (the idea of Liger-Kernel's fused linear cross-entropy,
Hsu et al., arXiv 2410.10989; here in torch, for any objective, and no gradient is made for a head
that does not learn).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from replaykit.head import NUMBERS, Head
from replaykit.train.remedies import Term

SMALL = (torch.float16, torch.bfloat16)


def summed(
    hidden: torch.Tensor, head: Head, objective: Term, *, numbers: int = NUMBERS
) -> torch.Tensor:
    """The sum of ``objective(logits, slice)`` over slices of the tokens, a scalar; hidden is [n,
    width].

    Logits are given in float32, or in float64 where the hidden states are. At most ``numbers`` of
    them are there at a time.
    """
    rows = max(1, numbers // head.linear.out_features)
    return _Summed.apply(hidden, head.linear.weight, head.linear.bias, objective, rows)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        objective: Term,
        rows: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad
        gradients = [
            torch.zeros_like(given) if given is not None and wanted[k] else None
            for k, given in enumerate((hidden, weight, bias))
        ]
        total = hidden.new_zeros(
            (), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32
        )
        for start in range(0, len(hidden), rows):
            part = slice(start, min(start + rows, len(hidden)))
            logits = nn.functional.linear(hidden[part], weight, bias)
            logits = (
                (logits.float() if logits.dtype in SMALL else logits)
                .detach()
                .requires_grad_(any(wanted[:3]))
            )
            with torch.enable_grad():
                value = objective(logits, part)
            total += value.detach()
            if any(wanted[:3]):
                _add(gradients, torch.autograd.grad(value, logits)[0], hidden[part], weight, part)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        return (
            *(
                None if given is None else given * outer[0].to(given.dtype)
                for given in ctx.gradients
            ),
            None,
            None,
        )


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


Online = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # logits [n, vocabulary], log-probabilities [n] -> weights [n]


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
