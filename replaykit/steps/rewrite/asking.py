"""What a model is asked while the target is rewritten, and all its replies in one ledger.

    session.replies("sample", {(0, 0): turns, (0, 1): turns}, model)
    ->  {(0, 0): Reply("It is 42.", None), (0, 1): Reply("It is 4", "truncated")}

A prompt's address is its row and its draw: of several samples of a row, or several tries of an
edit, each has a seed and a line in the ledger of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

from replaykit.data.ledger import Ledger
from replaykit.data.record import Message
from replaykit.engines import Engine, Request, Sampling
from replaykit.engines.chat_server import Asked, ChatServer
from replaykit.errors import ChatError, RunError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.recipe.rewrite import Rewrite
from replaykit.runs import Watch

UNASKED = ("template_refuses", "too_long")
"""Why nothing was asked."""

Address = tuple[int, int]
"""The row, and which draw of it."""
Line = dict[str, Any]


class Reply(NamedTuple):
    """What a model wrote."""

    text: str
    fault: str | None
    """Why it cannot stay as it is, whatever it says: one of UNASKED, truncated, empty, filtered,
    refused or no_reply; of an answer of the model's own also refusal, repetitive."""


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, and how the reply is drawn."""

    number: int
    """By which the reply is known in the ledger."""
    row: int
    messages: Sequence[Message]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class Model(Protocol):
    """Whoever replies."""

    def unasked(self, messages: Sequence[Message]) -> str | None:
        """Why it cannot be asked this: one of UNASKED."""
        ...

    def lines(self, prompts: Sequence[Prompt]) -> Iterator[Line]:
        """Lines for the ledger, as the replies come: "row", "text", "finish_reason", and "thought"
        where the model can think. A prompt without a reply has none.
        """
        ...

    @property
    def can_think(self) -> bool: ...


@dataclass(frozen=True)
class Loaded:
    """A model in an engine."""

    engine: Engine
    chat: Chat

    @property
    def can_think(self) -> bool:
        return self.chat.can_think

    def unasked(self, messages: Sequence[Message]) -> str | None:
        limit = min(self.engine.limit, self.chat.tokenizer.model_max_length)
        try:
            size = len(self.chat.prompt(messages))
        except ChatError:
            return "template_refuses"
        return "too_long" if size >= limit else None

    def lines(self, prompts: Sequence[Prompt]) -> Iterator[Line]:
        # An array has 4 bytes a token; a tuple would have 8 and more.
        tokens = {
            prompt.number: array("I", self.chat.prompt(prompt.messages)) for prompt in prompts
        }
        requests = (
            Request(
                prompt.number, tuple(tokens[prompt.number]), self._sampling(prompt), prompt.seed
            )
            for prompt in prompts
        )
        for completion in self.engine.complete(requests):
            reply = self.chat.reply(completion.tokens)
            line = {
                "row": completion.row,
                "text": reply.message["content"].strip(),
                "finish_reason": completion.finish_reason,
            }
            if self.chat.can_think:
                line["thought"] = reply.thought
            yield line

    def _sampling(self, prompt: Prompt) -> Sampling:
        return Sampling(
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            max_tokens=prompt.max_tokens,
            stop=self.chat.stop,
        )


@dataclass
class Served:
    """A model behind a chat server, which has a template of its own. Thoughts stay there."""

    server: ChatServer
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    """That it has read and written, as it says."""
    can_think: bool = False

    def unasked(self, messages: Sequence[Message]) -> str | None:
        return None

    def lines(self, prompts: Sequence[Prompt]) -> Iterator[Line]:
        asked = (
            Asked(
                prompt.number,
                f"row {prompt.row}",
                prompt.messages,
                Sampling(prompt.temperature, prompt.top_p, prompt.max_tokens),
                prompt.seed,
            )
            for prompt in prompts
        )
        for number, reply in self.server.replies(asked):
            self.tokens[0] += reply.prompt_tokens
            self.tokens[1] += reply.completion_tokens
            yield {"row": number, "text": reply.text.strip(), "finish_reason": reply.finish}


@dataclass(frozen=True)
class Session:
    """Sends one stage's prompts after the other's."""

    settings: Rewrite
    seed: int
    ledger: Ledger
    watch: Watch

    @property
    def draws(self) -> dict[str, int]:
        """How many replies a row may have, by stage."""
        settings = self.settings
        return {
            "prediction": 1,
            "edit": 1 + settings.retries,
            "paraphrase": 1,
            "sample": settings.samples,
        }

    def number(self, stage: str, address: Address) -> int:
        """The place of a reply in the ledger, which has all replies of a row side by side."""
        row, draw = address
        draws = self.draws
        before = takewhile(lambda name: name != stage, draws)
        return row * sum(draws.values()) + sum(draws[name] for name in before) + draw

    def replies(
        self,
        stage: str,
        prompts: Mapping[Address, Sequence[Message]],
        model: Model,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> dict[Address, Reply]:
        """What the model replies to each prompt. A reply that is in the ledger is not asked for
        again.
        """
        number = {address: self.number(stage, address) for address in prompts}
        missing = [address for address in prompts if number[address] not in self.ledger]
        unasked = {}
        asked = []
        for address in missing:
            why = model.unasked(prompts[address])
            if why is not None:
                unasked[address] = why
                continue
            row, draw = address
            seed = derive_seed(self.seed, "rewrite", stage, row, *([draw] if draw else []))
            limit = self.settings.max_tokens
            prompt = Prompt(number[address], row, prompts[address], temperature, top_p, limit, seed)
            asked.append(prompt)
        done = len(prompts) - len(asked)
        self.watch(stage, done, len(prompts))
        for line in model.lines(asked):
            self.ledger.append({"row": line.pop("row"), "stage": stage, **line})
            done += 1
            self.watch(stage, done, len(prompts))
        return {
            address: Reply("", unasked[address])
            if address in unasked
            else self._reply(number[address], model)
            for address in prompts
        }

    def _reply(self, number: int, model: Model) -> Reply:
        """The reply in the ledger, without the thought before it; ``no_reply`` where there is none.

        Raises RunError for one that an earlier version of replaykit wrote, its thought in its text.
        """
        if number not in self.ledger:
            return Reply("", "no_reply")
        line = self.ledger[number]
        if model.can_think and "thought" not in line:
            raise RunError(
                "replies.jsonl: it was written by an earlier version of replaykit, which did not "
                "keep thoughts apart from answers; remove it from the step's folder, and all "
                "replies are made again"
            )
        text = line["text"]
        if line["finish_reason"] in ("filtered", "refused"):
            return Reply("", line["finish_reason"])
        if not text:
            return Reply(text, "empty")
        if line["finish_reason"] == "length":
            return Reply(text, "truncated")
        return Reply(text, None)
