"""What a reward model says of each row: one number, on the model's own scale.

    Reward("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2").score(records)  ->  13.6, -2.1, None, ...

A reward model is a sequence-classification model with one output, read at the end of the
conversation in the model's own chat template. Magpie (arXiv 2406.08464) scores its rows this way.
The number describes a row; it drops none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from replaykit.data.record import Record
from replaykit.errors import ChatError
from replaykit.model import loading
from replaykit.model.reads import stated_length

BATCH_ROWS = 16
READ_AHEAD = 512  # records sorted by length at a time, so that a batch has rows of like length


class Reward:
    """A reward model in this process, on a GPU if there is one.

    Raises EngineError where the model cannot be loaded or has not exactly one trained output, and
    ChatError where it has no chat template.
    """

    def __init__(self, model: str, revision: str | None = None):
        self.name = model
        self.model: Any = loading.load_reward_model(model, revision).eval()
        self.tokenizer: Any = loading.load_tokenizer(model, revision)
        if not self.tokenizer.chat_template:
            raise ChatError(
                f"{model} has no chat template, so it is not known how it reads a conversation"
            )
        self.limit: int = stated_length(self.model.config) or 1 << 20
        # transformers reads the score at the last token that is not the padding token. A model that
        # names no such token gets one row at a time.
        self._pad: int | None = self.model.config.get_text_config().pad_token_id
        self._batch_rows = 1 if self._pad is None else BATCH_ROWS

    @torch.inference_mode()
    def score(self, records: Iterable[Record]) -> Iterator[float | None]:
        """The reward of each record, in order; None for one that has no answer or is longer than
        the model reads.

        On a CPU it is the same in any batch to 1e-4; a GPU computes in bfloat16, less exactly.
        Raises ChatError for a conversation that the model's chat template refuses.
        """
        waiting = iter(records)
        while ahead := list(islice(waiting, READ_AHEAD)):
            tokens = [self._tokens(record) for record in ahead]
            scored = [k for k in range(len(ahead)) if 0 < len(tokens[k]) <= self.limit]
            scored.sort(key=lambda k: len(tokens[k]))
            rewards: list[float | None] = [None] * len(ahead)
            for start in range(0, len(scored), self._batch_rows):
                rows = scored[start : start + self._batch_rows]
                batch = self._batch([tokens[k] for k in rows])
                for k, reward in zip(rows, batch, strict=True):
                    rewards[k] = reward
            yield from rewards

    def _batch(self, rows: list[list[int]]) -> list[float]:
        """The rewards of some conversations, padded on the right to the same length."""
        width = max(map(len, rows))
        device = self.model.device
        pad = self._pad or 0
        padded = [row + [pad] * (width - len(row)) for row in rows]
        real = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, device=device)
        mask = torch.tensor(real, device=device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return [float(reward) for reward in logits[:, 0].float().tolist()]

    def _tokens(self, record: Record) -> list[int]:
        """Token ids of the conversation up to its last answer; none where it has no answer."""
        from jinja2.exceptions import TemplateError

        if record.messages[-1]["role"] != "assistant":
            return []
        messages = [dict(message) for message in record.messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in record.messages)
            raise ChatError(
                f"{self.name}: its chat template refuses a conversation of {roles}: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
