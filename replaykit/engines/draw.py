"""How a token is drawn: the k-th of a completion by the k-th number of the request's own stream.

    numbers = Numbers(request.seed)
    token, = draw(logits, [(request.sampling, numbers.at(len(tokens)))])

The numbers are Philox's, keyed by the seed; a number picks a token by inverting the cumulative
distribution in float64. Nothing is remembered from one draw to the next, so it does not matter what
else is in the batch, nor whether the engine makes the logits of a place twice: for a prompt that is
read in parts, or for a row that was put aside and is taken up again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from replaykit.engines import Sampling


class Numbers:
    """A request's uniform numbers in [0, 1), by place."""

    def __init__(self, seed: int):
        self._stream = np.random.Generator(np.random.Philox(key=seed))
        self._drawn: list[float] = []

    def at(self, place: int) -> float:
        """The number for the completion's token at ``place``, from 0."""
        while len(self._drawn) <= place:
            self._drawn.append(float(self._stream.random()))
        return self._drawn[place]


def draw(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, float] | None]) -> list[int]:
    """The next token of each row from logits [rows, vocabulary], float32.

    ``wanted`` has a row's sampling and its number. Where that is None the row needs no token, and
    gets the likeliest.
    """
    tokens = logits.argmax(dim=1).tolist()
    # What is cut is drawn in another order of the tokens than what is not. So they are drawn apart,
    # and a row does not depend on its neighbours.
    whole: list[int] = []
    cut: list[int] = []
    for row, each in enumerate(wanted):
        if each is None or each[0].temperature <= 0:
            continue
        sampling = each[0]
        group = cut if sampling.top_k or sampling.top_p < 1 else whole
        group.append(row)
    for group in (whole, cut):
        if group:
            alike = [each for each in (wanted[row] for row in group) if each is not None]
            chosen = _draw_alike(logits[group], alike, cut=group is cut)
            for row, token in zip(group, chosen, strict=True):
                tokens[row] = token
    return [int(token) for token in tokens]


def _draw_alike(
    logits: torch.Tensor, wanted: list[tuple[Sampling, float]], *, cut: bool
) -> list[int]:
    """As ``draw``, of rows that are all sampled, and all or none of them ``cut``.

    To cut is to keep the ``top_k`` most probable tokens, and of those the fewest with ``top_p`` of
    their probability.
    """
    settings = [sampling for sampling, _ in wanted]
    temperature = logits.new_tensor([s.temperature for s in settings], dtype=torch.float64)[:, None]
    probabilities = torch.softmax(logits.double() / temperature, dim=1)
    uniform = probabilities.new_tensor([number for _, number in wanted])[:, None]
    size = probabilities.shape[1]
    order = torch.arange(size, device=logits.device).expand_as(probabilities)
    if cut:
        top_k = torch.tensor([s.top_k or size for s in settings], device=logits.device)[:, None]
        top_p = probabilities.new_tensor([s.top_p for s in settings])[:, None]
        places = order
        # Stable, so that among equal tokens the order is that of their ids on every machine.
        probabilities, order = probabilities.sort(dim=1, descending=True, stable=True)
        probabilities = probabilities.masked_fill(places >= top_k, 0.0)
        before = probabilities.cumsum(dim=1) - probabilities
        beyond = before >= top_p * probabilities.sum(dim=1, keepdim=True)
        probabilities = probabilities.masked_fill(beyond, 0.0)
    # The number picks the token whose stretch of the cumulative distribution it lies in.
    heights = probabilities.cumsum(dim=1)
    place = torch.searchsorted(heights, uniform * heights[:, -1:], right=True).clamp(max=size - 1)
    return order.gather(1, place)[:, 0].tolist()
