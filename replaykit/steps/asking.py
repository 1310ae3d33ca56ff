"""Prompts to a model, stage after stage, with every reply in one ledger.

    asking = Asking("augment", ("to_pivot", "from_pivot"), seed=1, ledger=ledger, max_tokens=512)
    asking.replies("to_pivot", {0: dialogue("Translate ...")}, engine, chat)[0].text

A reply that is in the ledger is not asked for again. A request has the seed of its stage and row,
so a reply does not depend on which others are asked for, nor on their order.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from replaykit.data.ledger import Ledger
from replaykit.data.record import Message
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import ChatError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.runs import Watch, unwatched


class Reply(NamedTuple):
    """What a model wrote, without a thought before it."""

    text: str
    fault: str | None
    """Why it cannot be used, whatever it says: template_refuses (the chat template refuses the
    prompt), too_long (the prompt leaves no room for a reply), truncated, empty."""


@dataclass(frozen=True)
class Asking:
    """Asks for the replies of one step."""

    step: str
    """Its name, which is a part of every request's seed."""
    stages: Sequence[str]
    """All of the step, in a fixed order: a reply is known by its row and its stage's place."""
    seed: int
    ledger: Ledger
    max_tokens: int
    temperature: float = 0.0
    watch: Watch = unwatched

    def replies(
        self, stage: str, prompts: Mapping[int, Sequence[Message]], engine: Engine, chat: Chat
    ) -> dict[int, Reply]:
        """What the model replies to each row's prompt."""
        number = {row: row * len(self.stages) + self.stages.index(stage) for row in prompts}
        tokens: dict[int, array[int]] = {}
        unasked: dict[int, str] = {}
        limit = min(engine.limit, chat.tokenizer.model_max_length)
        for row, prompt in prompts.items():
            if number[row] in self.ledger:
                continue
            try:
                # An array has 4 bytes a token; a tuple would have 8 and more.
                tokens[row] = array("I", chat.prompt(prompt))
            except ChatError:
                unasked[row] = "template_refuses"
                continue
            if len(tokens[row]) >= limit:
                del tokens[row]
                unasked[row] = "too_long"
        self._ask(stage, tokens, number, engine, chat, total=len(prompts))
        found = {}
        for row in prompts:
            if row in unasked:
                found[row] = Reply("", unasked[row])
            else:
                found[row] = _reply(self.ledger[number[row]])
        return found

    def _ask(
        self,
        stage: str,
        tokens: Mapping[int, Sequence[int]],
        number: Mapping[int, int],
        engine: Engine,
        chat: Chat,
        *,
        total: int,
    ) -> None:
        """Writes the replies to these prompts to the ledger as they come."""
        sampling = Sampling(
            temperature=self.temperature, max_tokens=self.max_tokens, stop=chat.stop
        )
        requests = (
            Request(
                number[row], tuple(prompt), sampling, derive_seed(self.seed, self.step, stage, row)
            )
            for row, prompt in tokens.items()
        )
        done = total - len(tokens)
        self.watch(stage, done, total)
        for completion in engine.complete(requests):
            line = {
                "row": completion.row,
                "stage": stage,
                "text": chat.reply(completion.tokens).message["content"].strip(),
                "finish_reason": completion.finish_reason,
            }
            self.ledger.append(line)
            done += 1
            self.watch(stage, done, total)


def _reply(line: Mapping[str, str]) -> Reply:
    """The reply on a line of the ledger."""
    text = line["text"]
    fault = None
    if not text:
        fault = "empty"
    elif line["finish_reason"] == "length":
        fault = "truncated"
    return Reply(text, fault)
