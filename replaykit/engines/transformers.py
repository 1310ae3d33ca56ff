"""The engine for any machine: a plain loop over transformers, batched, with a key-value cache.

Every row draws its tokens with its own stream of numbers (``engines/draw.py``), so what else is in
the batch does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from itertools import islice
from typing import Any, Literal

import torch

from replaykit.engines import Completion, Request, Sampling, room_for, until_none
from replaykit.engines.draw import Numbers, draw
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.lm_head import NUMBERS, Head, split_head
from replaykit.model.logprobs import IGNORED
from replaykit.model.pair import Pair, Scored
from replaykit.model.reads import stated_length
from replaykit.recipe.engine import EngineOptions

BATCH_ROWS = 64
# Requests to choose from, so that a batch has rows of similar length.
READ_AHEAD = 1024


class TransformersEngine:
    """A language model in this process, causal or encoder-decoder, on a GPU if there is one."""

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
        self.model: Any = loading.load_model(model, revision) if isinstance(model, str) else model
        self.model.eval()
        self._head: Head | None = None
        # Whether the head may be apart from the rest, which the first scoring finds out.
        self._apart = True
        # Models with relative positions, such as T5, have no such number.
        self.limit: int = stated_length(self.model.config) or 1 << 20
        self._pairs = bool(self.model.config.is_encoder_decoder)

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        waiting = iter(requests)
        ahead: list[_Row] = []
        while True:
            for request in until_none(waiting, READ_AHEAD - len(ahead), unanswered=bool(ahead)):
                ahead.append(_Row(request, room_for(request, self.limit, apart=self._pairs)))
            if not ahead:
                return
            # The one that has waited longest and those nearest to it in length: little padding, and
            # none waits for good.
            oldest = ahead[0].length
            distance = [abs(row.length - oldest) for row in ahead]
            batch = sorted(range(len(ahead)), key=distance.__getitem__)[:BATCH_ROWS]
            yield from self._batch([ahead[k] for k in batch])
            taken = set(batch)
            ahead = [row for k, row in enumerate(ahead) if k not in taken]

    @torch.inference_mode()
    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        waiting = iter(sequences)
        while ahead := list(islice(waiting, READ_AHEAD)):
            order = sorted(range(len(ahead)), key=lambda k: len(ahead[k]))
            scores: list[list[float]] = [[]] * len(ahead)
            for start in range(0, len(order), BATCH_ROWS // 4):
                rows = order[start : start + BATCH_ROWS // 4]
                for k, row in zip(rows, self._scored([ahead[k] for k in rows]), strict=True):
                    scores[k] = row
            yield from scores

    def _scored(self, batch: list[Scored]) -> Iterator[list[float]]:
        """The scores of one batch. Raises EngineError for what is not for such a model."""
        pairs = [one for one in batch if isinstance(one, Pair)]
        if len(pairs) != len(batch) * self._pairs:
            kind = "an encoder-decoder" if self._pairs else "a causal model"
            wanted = "pairs of question and answer" if self._pairs else "sequences"
            raise EngineError(f"{kind} scores {wanted} and nothing else; give it `example.scored`")
        if self._pairs:
            return self._score_pairs(pairs)
        return self._score_batch([one for one in batch if not isinstance(one, Pair)])

    def close(self) -> None:
        self.model = None
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _batch(self, rows: list[_Row]) -> Iterator[Completion]:
        """Completes one batch; rows that are done leave it when they are half of it."""
        reader = _Encoded if self._pairs else _Decoder
        reading = reader(self.model, [row.request.tokens for row in rows])
        while rows:
            chosen = draw(reading.logits().float(), [row.wanted() for row in rows])
            for row, token in zip(rows, chosen, strict=True):
                if not row.done and row.take(token):
                    yield row.completion()
            reading.take(chosen)
            alive = [k for k, row in enumerate(rows) if not row.done]
            if len(alive) <= len(rows) // 2:
                reading.keep(alive)
                rows = [rows[k] for k in alive]

    def _score_batch(self, sequences: list[Sequence[int]]) -> Iterator[list[float]]:
        """The scores of one right-padded batch, of at most NUMBERS logits at a time.

        Where that is less than those of one token, they are those of one token.
        """
        width = max(map(len, sequences))
        padded = [[*tokens, *[0] * (width - len(tokens))] for tokens in sequences]
        ids = torch.tensor(padded, device=self.model.device)
        if self._head is None and self._apart:
            self._head = split_head(self.model)
            self._apart = self._head is not None
        vocabulary = self.model.get_output_embeddings().out_features
        room = max(1, NUMBERS // vocabulary)  # tokens at a time
        if self._head is not None:
            found = self._by_token(self._head, ids, room)
        else:
            found = self._by_row(ids, max(1, room // width))
        scores = torch.cat(found).view(len(ids), -1).tolist()
        # A score is of the token after its position, so padding on the right comes after the end.
        yield from (row[: len(tokens) - 1] for tokens, row in zip(sequences, scores, strict=True))

    def _score_pairs(self, pairs: list[Pair]) -> Iterator[list[float]]:
        """The scores of one right-padded batch of pairs, of at most NUMBERS logits at a time.

        Where that is less than those of one row, they are those of one row. What the decoder reads
        is made of the answers by the model's own function, as its loss and our trainer make it.
        """
        vocabulary = self.model.get_output_embeddings().out_features
        # An answer may have no token; a model reads one at least.
        longest = max(1, *(len(pair.answer) for pair in pairs))
        size = max(1, NUMBERS // vocabulary // longest)
        for start in range(0, len(pairs), size):
            yield from self._score_some_pairs(pairs[start : start + size])

    def _score_some_pairs(self, pairs: list[Pair]) -> Iterator[list[float]]:
        device = self.model.device
        asked, mask = _right_padded([pair.question for pair in pairs], device)
        answers, written = _right_padded([pair.answer for pair in pairs], device)
        labels = answers.masked_fill(written == 0, IGNORED)
        logits = self.model(
            input_ids=asked,
            attention_mask=mask,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits
        scores = _chosen(logits.flatten(0, 1), answers.flatten()).view_as(answers).tolist()
        # A decoder does not look ahead, so padding on the right comes after the end.
        yield from (row[: len(pair.answer)] for pair, row in zip(pairs, scores, strict=True))

    def _by_token(self, head: Head, ids: torch.Tensor, room: int) -> list[torch.Tensor]:
        """The log probabilities of ids [rows, width], logits being made of ``room`` tokens."""
        hidden = head.hidden(self.model, {"input_ids": ids})[:, :-1].flatten(0, 1)
        tokens = ids[:, 1:].flatten()
        pairs = zip(hidden.split(room), tokens.split(room), strict=True)
        return [_chosen(head.logits(states), wanted) for states, wanted in pairs]

    def _by_row(self, ids: torch.Tensor, room: int) -> list[torch.Tensor]:
        """The same from a model that does something to its logits, logits being made of rows."""
        found = []
        for part in ids.split(room):
            logits = self.model(input_ids=part, use_cache=False).logits[:, :-1]
            found.append(_chosen(logits.flatten(0, 1), part[:, 1:].flatten()))
        return found


def _chosen(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log probabilities [n] of tokens [n] by logits [n, vocabulary], in float32."""
    logits = logits.float()
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


def _right_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, width] and a mask of the same shape, 1 where a row has a token; width is 1
    at least.
    """
    width = max(1, *map(len, rows))
    ids = [[*tokens, *[0] * (width - len(tokens))] for tokens in rows]
    mask = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _Decoder:
    """A left-padded batch as a decoder reads it: what it has read is in its cache, or in its state
    (``cache_params``, as Mamba has it).
    """

    def __init__(self, model: Any, prompts: list[tuple[int, ...]]):
        width = max(map(len, prompts))
        ids = [[0] * (width - len(tokens)) + list(tokens) for tokens in prompts]
        mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]
        self.model = model
        self.name = "past_key_values"
        if "cache_params" in signature(model.forward).parameters:
            self.name = "cache_params"
        self.cache: Any = None
        self.ids = torch.tensor(ids, device=model.device)
        self.mask = torch.tensor(mask, device=model.device)
        # Padding has position 0; it is masked, so any would do.
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)

    def logits(self) -> torch.Tensor:
        """The logits of each row's next token, [rows, vocabulary]."""
        # A state has no padding in it; a mask would be of more than the tokens that are new.
        mask = self.mask
        if self.cache is not None and self.name == "cache_params":
            mask = None
        out = self.model(
            input_ids=self.ids,
            attention_mask=mask,
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **{self.name: self.cache},
        )
        self.cache = out.get(self.name)
        if self.cache is None:
            raise EngineError(
                f"a {type(self.model).__name__} keeps what it has read in no cache that the engine "
                f"transformers knows; take `--engine vllm`"
            )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def take(self, tokens: list[int]) -> None:
        """The next token of each row, to be read in the next call of the model."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Leaves only these rows in the batch."""
        kept = torch.tensor(rows, device=self.ids.device, dtype=torch.long)
        self.ids = self.ids[kept]
        self.mask = self.mask[kept]
        self.positions = self.positions[kept]
        self.cache.reorder_cache(kept)


class _Encoded:
    """A right-padded batch: an encoder has read the questions, a decoder writes the answers."""

    def __init__(self, model: Any, prompts: list[tuple[int, ...]]):
        self.model = model
        self.cache: Any = None
        ids, self.mask = _right_padded(prompts, model.device)
        self.read = model.get_encoder()(input_ids=ids, attention_mask=self.mask)
        start = model.config.decoder_start_token_id
        self.ids = torch.full((len(prompts), 1), start, device=model.device)

    def logits(self) -> torch.Tensor:
        """The logits of each row's next token, [rows, vocabulary]."""
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
        """The next token of each row, to be read in the next call of the model."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]

    def keep(self, rows: list[int]) -> None:
        """Leaves only these rows in the batch."""
        kept = torch.tensor(rows, device=self.ids.device, dtype=torch.long)
        self.ids = self.ids[kept]
        self.mask = self.mask[kept]
        self.read.last_hidden_state = self.read.last_hidden_state[kept]
        self.cache.reorder_cache(kept)


class _Row:
    """A row of a batch on its way: its tokens so far and its stream of numbers."""

    def __init__(self, request: Request, room: int):
        self.request = request
        self.room = room
        self.tokens: list[int] = []
        self.stopped = False
        self.done = False
        self._numbers = Numbers(request.seed)

    @property
    def length(self) -> int:
        """How many tokens the prompt has."""
        return len(self.request.tokens)

    def wanted(self) -> tuple[Sampling, float] | None:
        """How the next token is drawn, and with which number; None where there is none to draw."""
        if self.done:
            return None
        return self.request.sampling, self._numbers.at(len(self.tokens))

    def completion(self) -> Completion:
        reason: Literal["stop", "length"] = "stop" if self.stopped else "length"
        return Completion(self.request.row, tuple(self.tokens), reason)

    def take(self, token: int) -> bool:
        """Adds a token, or sees that the row is finished; returns whether it is."""
        if token in self.request.sampling.stop:
            self.stopped = True
            self.done = True
        else:
            self.tokens.append(token)
            self.done = len(self.tokens) >= self.room
        return self.done
