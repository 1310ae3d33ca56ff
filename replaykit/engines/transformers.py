"""The engine for any machine: a plain loop over transformers, batched, with a key-value cache.

Every row draws its tokens from its own stream of uniform numbers (Philox, keyed by the request's seed) by inverting the
cumulative distribution in float64, so what else is in the batch does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from replaykit import models
from replaykit.engines import Completion, Request
from replaykit.errors import EngineError
from replaykit.recipe import EngineOptions

BATCH_ROWS = 64
READ_AHEAD = 1024  # requests sorted by length at a time, so that a batch has rows of like length


class TransformersEngine:
    """A causal language model in this process, on a GPU if there is one."""

    name = "transformers"

    def __init__(self, model: str | Any, *, revision: str | None = None, options: EngineOptions | None = None):
        self.model: Any = models.load_model(model, revision) if isinstance(model, str) else model
        self.model.eval()
        self.limit: int = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20

    def complete(self, requests: Iterable[Request]) -> Iterator[Completion]:
        waiting = iter(requests)
        while ahead := list(islice(waiting, READ_AHEAD)):
            for request in ahead:
                if len(request.tokens) >= self.limit:
                    raise EngineError(
                        f"row {request.row}: its prompt has {len(request.tokens)} tokens and the model reads {self.limit}"
                    )
            ahead.sort(key=lambda request: len(request.tokens))
            for start in range(0, len(ahead), BATCH_ROWS):
                yield from self._batch(ahead[start : start + BATCH_ROWS])

    @torch.inference_mode()
    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        waiting = iter(sequences)
        while ahead := list(islice(waiting, READ_AHEAD)):
            order = sorted(range(len(ahead)), key=lambda k: len(ahead[k]))
            scores: list[list[float]] = [[]] * len(ahead)
            for start in range(0, len(order), BATCH_ROWS // 4):
                rows = order[start : start + BATCH_ROWS // 4]
                for k, row in zip(rows, self._score_batch([ahead[k] for k in rows]), strict=True):
                    scores[k] = row
            yield from scores

    def close(self) -> None:
        self.model = None
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _batch(self, requests: list[Request]) -> Iterator[Completion]:
        """Completes one batch, left-padded; rows that are done leave it when they are half of it."""
        device, width = self.model.device, max(len(request.tokens) for request in requests)
        ids = torch.tensor([[0] * (width - len(r.tokens)) + list(r.tokens) for r in requests], device=device)
        mask = torch.tensor([[0] * (width - len(r.tokens)) + [1] * len(r.tokens) for r in requests], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        rows = [
            _Row(request, min(request.sampling.max_tokens, self.limit - len(request.tokens))) for request in requests
        ]
        cache = None
        while rows:
            out = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache = out.past_key_values
            chosen = _draw(out.logits[:, -1].float(), rows)
            for row, token in zip(rows, chosen, strict=True):
                if not row.done and row.take(token):
                    yield Completion(row.request.row, tuple(row.tokens), "stop" if row.stopped else "length")
            ids = torch.tensor(chosen, device=device)[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            alive = [k for k, row in enumerate(rows) if not row.done]
            if len(alive) <= len(rows) // 2:
                keep = torch.tensor(alive, device=device, dtype=torch.long)
                rows, ids, mask, positions = [rows[k] for k in alive], ids[keep], mask[keep], positions[keep]
                cache.batch_select_indices(keep)

    def _score_batch(self, sequences: list[Sequence[int]]) -> Iterator[list[float]]:
        width = max(map(len, sequences))
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in sequences], device=self.model.device)
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in sequences], device=self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        chosen = logits.gather(2, ids[:, 1:, None])[..., 0].float() - torch.logsumexp(logits.float(), dim=2)
        for tokens, row in zip(sequences, chosen.tolist(), strict=True):
            yield row[: len(tokens) - 1]


class _Row:
    """A row of a batch on its way: its tokens so far and its stream of uniform numbers."""

    def __init__(self, request: Request, room: int):
        self.request, self.room = request, room
        self.tokens: list[int] = []
        self.stopped = self.done = False
        self._uniform = np.random.Generator(np.random.Philox(key=request.seed))

    def uniform(self) -> float:
        return float(self._uniform.random())

    def take(self, token: int) -> bool:
        """Adds a token, or sees that the row is finished; returns whether it is."""
        if token in self.request.sampling.stop:
            self.stopped = self.done = True
        else:
            self.tokens.append(token)
            self.done = len(self.tokens) >= self.room
        return self.done


def _draw(logits: torch.Tensor, rows: list[_Row]) -> list[int]:
    """The next token of each row from logits [rows, vocabulary], by each row's own temperature, top-p and stream."""
    greedy = logits.argmax(dim=1).tolist()
    sampled = [k for k, row in enumerate(rows) if row.request.sampling.temperature > 0 and not row.done]
    if not sampled:
        return [int(token) for token in greedy]
    settings = [rows[k].request.sampling for k in sampled]
    temperature = logits.new_tensor([s.temperature for s in settings], dtype=torch.float64)[:, None]
    probabilities = torch.softmax(logits[sampled].double() / temperature, dim=1)
    uniform = probabilities.new_tensor([rows[k].uniform() for k in sampled])[:, None]
    order = torch.arange(probabilities.shape[1], device=logits.device).expand_as(probabilities)
    if any(s.top_p < 1 for s in settings):
        probabilities, order = probabilities.sort(dim=1, descending=True, stable=True)
        before = probabilities.cumsum(dim=1) - probabilities
        top_p = probabilities.new_tensor([s.top_p for s in settings])[:, None]
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    heights = probabilities.cumsum(dim=1)
    place = torch.searchsorted(heights, uniform * heights[:, -1:], right=True).clamp(max=probabilities.shape[1] - 1)
    for k, token in zip(sampled, order.gather(1, place)[:, 0].tolist(), strict=True):
        greedy[k] = token
    return [int(token) for token in greedy]
