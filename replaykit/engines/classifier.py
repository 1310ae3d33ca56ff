"""The engine of a text classifier: a request is a text, its completion the numbers of labels.

    engine = ClassifierEngine(classifier)
    request = Request(0, classifier.prompt(messages), Sampling())
    next(engine.complete([request])).tokens      # (2,): the third label

Of a row with one label it is the one of the highest logit; of a row with any number, those whose
probability is above one half.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from replaykit.engines import Completion, Request
from replaykit.engines.transformers import BATCH_ROWS, READ_AHEAD
from replaykit.errors import EngineError
from replaykit.model.classifier import TextClassifier
from replaykit.model.lm_head import IMPOSSIBLE
from replaykit.model.pair import Scored


class ClassifierEngine:
    """A text classifier in this process: the base, its head widened, or what was tuned from it.

    A request may be held to some of the labels, those of its task. It is where the heads are apart,
    and in the base, whose new rows of the head have learned nothing: of a task that it knows in
    part, it answers among the labels that it knows.
    """

    name = "classifier"

    def __init__(self, classifier: TextClassifier, model: str | None = None):
        self.labels = classifier.labels
        self._pad = classifier.tokenizer.pad_token_id
        self.model: Any = classifier.load_model(model).eval()
        self._is_base = model in (None, classifier.name)
        # No room is needed for an answer.
        self.limit = classifier.limit + 1

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        waiting = iter(requests)
        while ahead := [one for one in islice(waiting, READ_AHEAD) if one is not None]:
            # Texts of like length together: little padding.
            ahead.sort(key=lambda request: -len(request.tokens))
            for start in range(0, len(ahead), BATCH_ROWS):
                yield from self._batch(ahead[start : start + BATCH_ROWS])

    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        """Raises EngineError: the tokens of a text have no probability here."""
        raise EngineError("a text classifier gives no probabilities of tokens; score its labels")

    def close(self) -> None:
        self.model = None
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request]) -> Iterator[Completion]:
        width = max(len(request.tokens) for request in requests)
        missing = [width - len(request.tokens) for request in requests]
        device = self.model.device
        ids = [[*one.tokens, *[self._pad] * n] for one, n in zip(requests, missing, strict=True)]
        mask = [[1] * (width - n) + [0] * n for n in missing]
        logits = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
        ).logits.float()
        for request, row in zip(requests, logits.cpu(), strict=True):
            row = row.masked_fill(~self._among(request), IMPOSSIBLE)
            numbers = (int(row.argmax()),)
            if self.labels.multi:
                numbers = tuple((row > 0).nonzero()[:, 0].tolist())
            yield Completion(request.row, numbers, "stop")

    def _among(self, request: Request) -> torch.Tensor:
        """The labels that a request may have, [labels]."""
        every = self.labels.every
        schema = request.sampling.schema
        if schema is None or not (self.labels.apart or self._is_base):
            return torch.ones(len(every), dtype=torch.bool)
        names = json.loads(schema)["enum"]
        if self._is_base:
            names = [name for name in names if name in self.labels.old] or names
        return torch.tensor([name in names for name in every])
