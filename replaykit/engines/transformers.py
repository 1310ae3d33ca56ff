"""The engine for any machine: a plain loop over transformers, batched, with a key-value cache.

Every row draws its tokens from its own stream of uniform numbers (Philox, keyed by the request's
seed) by inverting the cumulative distribution in float64, so what else is in the batch does not
matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from replaykit import models
from replaykit.engines import Completion, Request, until_none
from replaykit.errors import EngineError
from replaykit.head import NUMBERS, Head, split_head
from replaykit.settings import EngineOptions

BATCH_ROWS = 64
READ_AHEAD = 1024  # requests to choose from, so that a batch has rows of like length


class TransformersEngine:
    """A causal language model in this process, on a GPU if there is one."""

    name = "transformers"
    read_ahead = READ_AHEAD

    def __init__(
        self, model: str | Any, *, revision: str | None = None, options: EngineOptions | None = None
    ):
        if options is not None and options.tensor_parallel > 1:
            raise EngineError(
                f"engine.tensor_parallel: {options.tensor_parallel} GPUs share one model in vllm "
                f"only, and transformers "
                f"has it on one; take `--engine vllm`, or leave tensor_parallel at 1"
            )
        self.model: Any = models.load_model(model, revision) if isinstance(model, str) else model
        self.model.eval()
        self._head: Head | None = None
        self._apart = True  # until it is known that this model has no head of its own
        self.limit: int = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        waiting = iter(requests)
        ahead = list[Request]()
        while True:
            for request in until_none(waiting, READ_AHEAD - len(ahead), unanswered=bool(ahead)):
                if len(request.tokens) >= self.limit:
                    raise EngineError(
                        f"row {request.row}: its prompt has {len(request.tokens)} tokens and the "
                        f"model reads {self.limit}"
                    )
                ahead.append(request)
            if not ahead:
                return
            # The one that has waited longest and those nearest to it in length: little padding, and
            # none waits for good.
            distance = [abs(len(request.tokens) - len(ahead[0].tokens)) for request in ahead]
            batch = sorted(range(len(ahead)), key=distance.__getitem__)[:BATCH_ROWS]
            yield from self._batch([ahead[k] for k in batch])
            ahead = [ahead[k] for k in sorted(set(range(len(ahead))) - set(batch))]

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
        """Completes one batch; rows that are done leave it when they are half of it."""
        rows = [
            _Row(request, min(request.sampling.max_tokens, self.limit - len(request.tokens)))
            for request in requests
        ]
        reading = (_Encoded if self.model.config.is_encoder_decoder else _Decoder)(
            self.model, requests
        )
        while rows:
            chosen = _draw(reading.logits().float(), rows)
            for row, token in zip(rows, chosen, strict=True):
                if not row.done and row.take(token):
                    yield Completion(
                        row.request.row, tuple(row.tokens), "stop" if row.stopped else "length"
                    )
            reading.take(chosen)
            alive = [k for k, row in enumerate(rows) if not row.done]
            if len(alive) <= len(rows) // 2:
                reading.keep(alive)
                rows = [rows[k] for k in alive]

    def _score_batch(self, sequences: list[Sequence[int]]) -> Iterator[list[float]]:
        """The scores of one right-padded batch, of at most NUMBERS logits at a time (or those of
        one token).
        """
        width = max(map(len, sequences))
        ids = torch.tensor(
            [[*tokens, *[0] * (width - len(tokens))] for tokens in sequences],
            device=self.model.device,
        )
        if self._head is None and self._apart:
            self._head = split_head(self.model)
            self._apart = self._head is not None
        room = max(
            1, NUMBERS // self.model.get_output_embeddings().out_features
        )  # tokens at a time
        if self._head is not None:
            hidden = self._head.hidden(self.model, {"input_ids": ids})[:, :-1].flatten(0, 1)
            tokens = ids[:, 1:].flatten()
            pairs = zip(hidden.split(room), tokens.split(room), strict=True)
            found = [_chosen(self._head.logits(states), wanted) for states, wanted in pairs]
        # the model does something to its logits: they are asked for, of as many rows as there is
        # room for
        else:
            found = [
                _chosen(
                    self.model(input_ids=some, use_cache=False).logits[:, :-1].flatten(0, 1),
                    some[:, 1:].flatten(),
                )
                for some in ids.split(max(1, room // width))
            ]
        scores = torch.cat(found).view(len(ids), -1).tolist()
        yield from (row[: len(tokens) - 1] for tokens, row in zip(sequences, scores, strict=True))


def _chosen(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probabilities [n] of tokens [n] by logits [n, vocabulary]."""
    logits = logits.float()
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


class _Decoder:
    """A left-padded batch as a decoder reads it: what it has read is in its cache."""

    def __init__(self, model: Any, requests: list[Request]):
        device = model.device
        width = max(len(request.tokens) for request in requests)
        self.model = model
        self.cache = None
        self.ids = torch.tensor(
            [[0] * (width - len(r.tokens)) + list(r.tokens) for r in requests], device=device
        )
        self.mask = torch.tensor(
            [[0] * (width - len(r.tokens)) + [1] * len(r.tokens) for r in requests], device=device
        )
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def logits(self) -> torch.Tensor:
        """Of each row's next token, [rows, vocabulary]."""
        out = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def take(self, tokens: list[int]) -> None:
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)

    def keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.ids.device, dtype=torch.long)
        self.ids = self.ids[kept]
        self.mask = self.mask[kept]
        self.positions = self.positions[kept]
        self.cache.batch_select_indices(kept)  # type: ignore[attr-defined]


class _Encoded:
    """A batch of which an encoder has read the questions, and a decoder writes the answers."""

    def __init__(self, model: Any, requests: list[Request]):
        device = model.device
        width = max(len(request.tokens) for request in requests)
        self.model = model
        self.cache = None
        ids = torch.tensor(
            [list(r.tokens) + [0] * (width - len(r.tokens)) for r in requests], device=device
        )
        self.mask = torch.tensor(
            [[1] * len(r.tokens) + [0] * (width - len(r.tokens)) for r in requests], device=device
        )
        self.read = model.get_encoder()(input_ids=ids, attention_mask=self.mask)
        self.ids = torch.full(
            (len(requests), 1), model.config.decoder_start_token_id, device=device
        )

    def logits(self) -> torch.Tensor:
        """Of each row's next token, [rows, vocabulary]."""
        out = self.model(
            encoder_outputs=self.read,
            attention_mask=self.mask,
            decoder_input_ids=self.ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def take(self, tokens: list[int]) -> None:
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]

    def keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.ids.device, dtype=torch.long)
        self.ids = self.ids[kept]
        self.mask = self.mask[kept]
        self.read.last_hidden_state = self.read.last_hidden_state[kept]
        self.cache.batch_select_indices(kept)  # type: ignore[attr-defined]


class _Row:
    """A row of a batch on its way: its tokens so far and its stream of uniform numbers."""

    def __init__(self, request: Request, room: int):
        self.request = request
        self.room = room
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
    """The next token of each row from logits [rows, vocabulary], by each row's own sampling and
    stream.
    """
    tokens = logits.argmax(dim=1).tolist()
    sampled = [
        k for k, row in enumerate(rows) if row.request.sampling.temperature > 0 and not row.done
    ]
    cut = [
        k for k in sampled if rows[k].request.sampling.top_k or rows[k].request.sampling.top_p < 1
    ]
    # What is cut is drawn in another order of the tokens than what is not, so a row must not depend
    # on its neighbours.
    for group in (sorted({*sampled} - {*cut}), cut):
        if group:
            chosen = _draw_alike(logits[group], [rows[k] for k in group], cut=group is cut)
            for k, token in zip(group, chosen, strict=True):
                tokens[k] = token
    return [int(token) for token in tokens]


def _draw_alike(logits: torch.Tensor, rows: list[_Row], *, cut: bool) -> list[int]:
    """As _draw, of rows that are all sampled, and all or none ``cut``: to the top k, and of what is
    left to top-p.
    """
    settings = [row.request.sampling for row in rows]
    temperature = logits.new_tensor([s.temperature for s in settings], dtype=torch.float64)[:, None]
    probabilities = torch.softmax(logits.double() / temperature, dim=1)
    uniform = probabilities.new_tensor([row.uniform() for row in rows])[:, None]
    size = probabilities.shape[1]
    order = torch.arange(size, device=logits.device).expand_as(probabilities)
    if cut:
        top_k = torch.tensor([s.top_k or size for s in settings], device=logits.device)[:, None]
        top_p = probabilities.new_tensor([s.top_p for s in settings])[:, None]
        places = order
        probabilities, order = probabilities.sort(dim=1, descending=True, stable=True)
        probabilities = probabilities.masked_fill(places >= top_k, 0.0)
        before = probabilities.cumsum(dim=1) - probabilities
        probabilities = probabilities.masked_fill(
            before >= top_p * probabilities.sum(dim=1, keepdim=True), 0.0
        )
    heights = probabilities.cumsum(dim=1)
    place = torch.searchsorted(heights, uniform * heights[:, -1:], right=True).clamp(max=size - 1)
    return order.gather(1, place)[:, 0].tolist()
