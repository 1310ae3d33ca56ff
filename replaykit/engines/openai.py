"""The engine for a server that takes token ids and returns token ids: vLLM's, or one like it.

    vllm serve meta-llama/Meta-Llama-3-8B-Instruct
    replaykit generate --model llama3 --server http://localhost:8000/v1

A request is one ``POST /v1/completions``; what is not OpenAI's is vLLM's extension, as of 0.32:

    {"model": "...", "prompt": [128000, 128006], "max_tokens": 256, "seed": 7,
     "stop_token_ids": [128009], ...}

Thoughts and calls of tools are among the answer's token ids: vLLM's parsers of them
(--reasoning-parser, --tool-call-parser) work on its chat endpoint alone. A server that takes a
thought out of a completion is refused.

Requests that fail are tried again as ``engines.http`` says; each row has its own seed, so a second
try gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Annotated, Literal

import httpx2
from pydantic import BaseModel, Field, ValidationError

from replaykit.engines import Completion, Request, in_order, room_for, to_score
from replaykit.engines.http import KEY, Body, Client, Fault, Patience, key_in, problem
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.pair import Scored
from replaykit.recipe.engine import EngineOptions

CHAT_ONLY = (
    "a chat endpoint applies the template itself and ends it with the assistant's header, so the "
    "model cannot be given "
    "only the start of a user's turn; give the address of a completions server, such as "
    "http://localhost:8000/v1"
)
NO_IDS = (
    "the server returns text without token ids, and text that is tokenised again may give other "
    "tokens than the model "
    "drew; vLLM's server returns them (`vllm serve MODEL`)"
)


class OpenAIEngine:
    """A model on a server.

    ``limit`` is the server's max_model_len, else what the tokenizer's own config says.
    """

    name = "openai"

    def __init__(self, model: str, *, revision: str | None = None, options: EngineOptions):
        self._url = _base(options.server or "")
        patience = Patience(options.concurrency, options.timeout_seconds, options.retries)
        self._client = Client(patience, key=key_in(KEY))
        try:
            self._served, limit = self._find(model)
            self._vocabulary = loading.vocabulary_size(model, revision)
            if not limit:
                # Without a limit transformers says 10^30.
                size = loading.load_tokenizer(model, revision).model_max_length
                limit = min(int(size), 1 << 20)
            self.limit: int = limit
        except BaseException:
            self._client.close()
            raise

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with closing(self._run(requests, {})) as answers:
            for request, choice in answers:
                tokens = choice.token_ids or []
                # vLLM returns the stop token too. It is looked for anywhere, so a server that does
                # not know stop_token_ids will do.
                stop = request.sampling.stop
                end = next((k for k, token in enumerate(tokens) if token in stop), None)
                reason = choice.finish_reason if end is None else "stop"
                yield Completion(request.row, tuple(tokens[:end]), reason)

    def score(self, sequences: Iterable[Scored]) -> Iterator[list[float]]:
        # With 0 further tokens a position, it tells of the prompt's own tokens and no others.
        with closing(self._run(to_score(sequences), {"prompt_logprobs": 0})) as answers:
            scored = ((request.row, choice.scores(request)) for request, choice in answers)
            yield from in_order(scored)

    def close(self) -> None:
        self._client.close()

    def _run(
        self, requests: Iterable[Request | None], more: Body
    ) -> Generator[tuple[Request, _Choice]]:
        """Each request with the server's answer, as they finish; ``more`` is added to each
        request's JSON.
        """

        def ask(request: Request, left: Event) -> _Choice:
            body = self._body(request) | more
            what = f"row {request.row}: {self._url}/completions"
            return self._client.patiently(lambda: self._post(request, body), left, what)

        return self._client.each(requests, ask)

    def _body(self, request: Request) -> Body:
        sampling = request.sampling
        body = {
            "model": self._served,
            "prompt": request.tokens,
            "max_tokens": room_for(request, self.limit),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed,
            "stop_token_ids": sampling.stop,
            # Only our own stops end an answer, not what the server takes for the end.
            "ignore_eos": True,
            # The prompt has its BOS, and the answer is read by its ids.
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            # Said even where off: for what is not said, vLLM takes the model's
            # generation_config.json.
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        if sampling.schema is not None:
            body["structured_outputs"] = {"json": sampling.schema}
        return body

    def _post(self, request: Request, body: Body) -> _Choice:
        """One try. Raises Fault for what may pass, EngineError for what will not."""
        # /models answered, or there would be no engine.
        hint = f"Does it serve chat alone? {CHAT_ONLY}."
        response = self._client.post(
            f"{self._url}/completions", body, f"row {request.row}", hint=hint
        )
        try:
            choice = _Answer.model_validate_json(response.content).choices[0]
        except ValidationError as error:
            raise Fault(problem(error)) from error
        choice.check(body, self._vocabulary)
        return choice

    def _find(self, model: str) -> tuple[str, int | None]:
        """The server's name for the model, and its max_model_len if the server says it."""
        try:
            response = self._client.get(f"{self._url}/models")
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            start = (
                f"start one with `vllm serve {loading.resolve(model)}`, or correct the address "
                f"(--server)"
            )
            raise EngineError(f"no server at {self._url}: {error}\n  {start}.") from error
        if response.status_code != 200:
            raise EngineError(f"{self._url}/models answers {self._client.said(response)}")
        try:
            cards = _Models.model_validate_json(response.content).data
        except ValidationError as error:
            raise EngineError(
                f"{self._url}/models is no list of models: {problem(error)}"
            ) from error
        own = _names(model)
        found = [card for card in cards if card.id in own]
        if not found:
            found = [card for card in cards if own & _names_of_folder(card.root or card.id)]
        if not found:
            served = ", ".join(card.id for card in cards) or "nothing"
            resolved = loading.resolve(model)
            raise EngineError(
                f"{self._url} does not serve {model}; it serves {served}\n  --model names one of "
                f"them; where one of them is {model} under another name, start the server with "
                f"`--served-model-name {resolved}`."
            )
        return found[0].id, found[0].max_model_len


class _Card(BaseModel):
    """A model that the server has."""

    id: str
    root: str | None = None  # in vLLM the folder or Hub id, whatever name it is served under
    max_model_len: int | None = None


class _Models(BaseModel):
    """The answer of /models."""

    data: list[_Card]


class _Logprob(BaseModel):
    """A token's natural log probability."""

    logprob: float


class _Choice(BaseModel):
    """A completion, as far as we read it."""

    finish_reason: Literal["stop", "length"]  # others are "abort" and "error"
    token_ids: list[int] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None
    """For each position, by token; nothing for the first, which nothing predicts."""

    def scores(self, request: Request) -> list[float]:
        """The log probability of each of the prompt's tokens but the first."""
        positions = (self.prompt_logprobs or [])[1:]
        pairs = zip(request.tokens[1:], positions, strict=True)
        return [by_token[token].logprob for token, by_token in pairs if by_token]

    def check(self, body: Body, vocabulary: int) -> None:
        """Raises Fault if it is not a whole answer to the request.

        Raises EngineError if such a server never gives one. The model has ``vocabulary`` token ids.
        """
        prompt = list(body["prompt"])
        if self.token_ids is None:
            raise EngineError(f"{NO_IDS}.")
        if self.reasoning_content or self.reasoning:
            raise EngineError(
                "the server takes the thought out of the answer, so what the model wrote does not "
                "arrive whole; start it without a reasoning parser"
            )
        if self.prompt_token_ids not in (None, prompt):
            raise EngineError("the server changes the prompt, such as by a second BOS")
        strange = [token for token in self.token_ids if not 0 <= token < vocabulary]
        if strange:
            raise EngineError(
                f"the server answers with the token {strange[0]}, and {body['model']} has the "
                f"tokens 0 to {vocabulary - 1} here; does the server have another model under "
                "that name?"
            )
        got = len(self.token_ids)
        most = body["max_tokens"]
        if self.finish_reason == "length" and got != most:
            raise Fault(f"{got} tokens of {most}, and yet finish_reason is 'length'")
        if "prompt_logprobs" in body:
            if self.prompt_logprobs is None:
                raise EngineError(
                    "the server gives no prompt_logprobs, which scores are made of; vLLM's server "
                    "does"
                )
            positions = self.prompt_logprobs[1:]
            pairs = list(zip(prompt[1:], positions, strict=False))
            known = all(token in (by_token or {}) for token, by_token in pairs)
            if not known or len(pairs) != len(prompt) - 1:
                raise Fault("prompt_logprobs are not of the prompt's tokens")


class _Answer(BaseModel):
    """The answer of /completions."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


def _base(server: str) -> str:
    """The address up to and with /v1, from any of the ways to write it.

    Raises EngineError for a chat endpoint.
    """
    url = server.rstrip("/")
    if url.endswith("/chat/completions"):
        raise EngineError(f"{server}: {CHAT_ONLY}.")
    return url.removesuffix("/completions").removesuffix("/v1") + "/v1"


def _names(model: str) -> set[str]:
    """The names by which a server may know the model: as given, its Hub id, or its folder."""
    resolved = loading.resolve(model)
    return {model, resolved} | _names_of_folder(resolved)


def _names_of_folder(name: str) -> set[str]:
    """The whole path of a folder here; the name itself where it is none."""
    folder = Path(name)
    if not folder.is_dir():
        return {name}
    return {str(folder.resolve())}
