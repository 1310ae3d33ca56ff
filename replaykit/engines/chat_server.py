"""A chat endpoint: conversations in, texts out.

    server = ChatServer(Editor(model="gpt-4", server="https://api.openai.com/v1"))
    for row, reply in server.replies([Asked(0, "row 0", dialogue("Hi?"), Sampling(), seed=7)]):
        print(reply.text)

It is no engine: it applies a template of its own and gives no token ids, so it can edit and judge
texts, and neither be trained nor score. A request is one ``POST /chat/completions`` of OpenAI's
API. Requests that fail are tried again as ``engines.http`` says. Where a row gets no reply all the
same, the others go on; after so many in a row the server is taken to be down, and the rest is not
asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from replaykit.data.record import Message
from replaykit.engines import Sampling
from replaykit.engines.http import (
    Body,
    Client,
    Exhausted,
    Fault,
    Patience,
    Refused,
    key_in,
    problem,
)
from replaykit.errors import EngineError
from replaykit.recipe.rewrite import Editor

log = logging.getLogger(__name__)

PATH = "/chat/completions"
# Rows in a row without a reply, after which the server is taken to be down.
LONGEST_SILENCE = 20
# Rows that the server refuses, none answered before, after which it is taken to refuse them all.
MOST_REFUSED = 3
# HTTP's codes of a request that is refused for what it says: another row may be taken.
OF_THE_ROW = {400, 413, 422}
NO_CHAT = f"It wants the address of a chat server, up to what stands before {PATH}."


@dataclass(frozen=True)
class Asked:
    """A conversation that ends with a question."""

    row: int
    """The address by which the reply is known."""
    name: str
    """What messages call it."""
    messages: Sequence[Message]
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class ChatReply:
    """What the server said."""

    text: str
    finish: Literal["stop", "length", "filtered", "refused"]
    """length: it was cut at max_tokens; filtered: the server took it back; refused: it will not
    answer this row."""
    prompt_tokens: int = 0
    """That the server counted, as those of the reply; 0 where it does not say."""
    completion_tokens: int = 0


class ChatServer:
    """The server that an editor of the recipe names. Raises EngineError where its key cannot be
    sent.
    """

    def __init__(self, editor: Editor):
        assert editor.server is not None
        self.model = editor.model
        self.url = endpoint(editor.server)
        self.trouble = ""
        """Why rows got no reply: the last fault; "" where all got one."""
        self._more = editor.options
        patience = Patience(editor.concurrency, editor.timeout_seconds, editor.retries)
        key = key_in(editor.key_from)
        self._client = Client(patience, key=key, variable=editor.key_from)

    def replies(self, asked: Iterable[Asked]) -> Iterator[tuple[int, ChatReply]]:
        """The replies by row, in the order in which they come; a row without one is left out, and
        ``trouble`` says why.

        Raises EngineError where the server refuses whoever asks, or all that is asked.
        """
        silent = 0
        answered = False
        refused: list[tuple[int, Refused]] = []
        with closing(self._client.each(asked, self._ask)) as answers:
            for request, answer in answers:
                match answer:
                    case Exhausted():
                        silent += 1
                        self._note(answer)
                    case Refused():
                        refused.append((request.row, answer))
                    case ChatReply():
                        silent = 0
                        answered = True
                        yield request.row, answer
                if refused and not answered and len(refused) >= MOST_REFUSED:
                    raise refused[0][1]
                while refused and answered:
                    row, error = refused.pop()
                    self._note(error)
                    yield row, ChatReply("", "refused")
                if silent == LONGEST_SILENCE:
                    log.warning("%s: no reply to %d rows; no more are asked", self.url, silent)
                    return
        if refused:
            raise refused[0][1]

    def close(self) -> None:
        self._client.close()

    def _note(self, error: EngineError) -> None:
        self.trouble = str(error)
        log.warning("%s", error)

    def _ask(self, asked: Asked, left: Event) -> ChatReply | Exhausted | Refused:
        """In a thread. Raises Refused where the server refuses whoever asks."""
        body = self._body(asked)
        what = f"{asked.name}: {self.url}"
        try:
            return self._client.patiently(lambda: self._post(body, asked.name), left, what)
        except Exhausted as error:
            return error
        except Refused as error:
            if error.status not in OF_THE_ROW:
                raise
            return error

    def _body(self, asked: Asked) -> Body:
        body = {
            "model": self.model,
            "messages": [
                {"role": turn["role"], "content": turn["content"]} for turn in asked.messages
            ],
            "max_tokens": asked.sampling.max_tokens,
            "temperature": asked.sampling.temperature,
            "top_p": asked.sampling.top_p,
            "seed": asked.seed,
        }
        return {key: value for key, value in (body | self._more).items() if value is not None}

    def _post(self, body: Body, name: str) -> ChatReply:
        """One try. Raises Fault for what may pass, Refused for what will not."""
        response = self._client.post(self.url, body, name, hint=NO_CHAT)
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise Fault(problem(error)) from error
        choice = answer.choices[0]
        finish: Literal["stop", "length", "filtered"] = "stop"
        if choice.finish_reason == "length":
            finish = "length"
        elif choice.finish_reason == "content_filter" or choice.message.refusal:
            finish = "filtered"
        usage = answer.usage or _Usage()
        text = choice.message.content or ""
        return ChatReply(text, finish, usage.prompt_tokens, usage.completion_tokens)


class _Message(BaseModel):
    """What the model said, as far as we read it."""

    content: str | None = None
    refusal: str | None = None
    """In place of the content, where the model declines."""


class _Choice(BaseModel):
    """A reply; the server's reasons to end it are more than we tell apart."""

    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    """Tokens, as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(BaseModel):
    """The answer of /chat/completions."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


def endpoint(server: str) -> str:
    """The address of the chat endpoint, from that of a server with or without its last parts.

    >>> endpoint("http://localhost:8000")
    'http://localhost:8000/v1/chat/completions'
    """
    base = server.rstrip("/").removesuffix(PATH)
    if not urlsplit(base).path:
        base += "/v1"
    return base + PATH
