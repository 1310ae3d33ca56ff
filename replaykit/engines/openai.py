"""The engine for a server that completes token ids and returns token ids: vLLM's own, or one that
speaks like it.

    vllm serve meta-llama/Meta-Llama-3-8B-Instruct
    replaykit generate --model llama3 --server http://localhost:8000/v1

A request is one ``POST /v1/completions``; what is not OpenAI's is vLLM's extension, as of 0.32:

    {"model": "...", "prompt": [128000, 128006], "max_tokens": 256, "seed": 7, "stop_token_ids": [128009], ...}

What may pass (a busy server, a dropped connection, half an answer) is tried again after a random
wait that doubles in length, "full jitter"
(aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter); each row has its own seed, so a
second try gives the same tokens. What will not pass ends the step with the server's own words.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from itertools import islice
from threading import Event, Lock
from typing import Annotated, Any, Literal
from weakref import WeakSet

import httpx2
from pydantic import BaseModel, Field, ValidationError

from replaykit import models
from replaykit.engines import Completion, Request, Sampling
from replaykit.errors import EngineError
from replaykit.settings import EngineOptions

READ_AHEAD = 2  # requests for each that the server may have: one on its way and one at the door
FIRST_WAIT, LONGEST_WAIT = (
    0.5,
    30.0,
)  # seconds; the most before the second try, which doubles, and where that ends
CONNECT_SECONDS = 10.0
TRANSIENT = {408, 425, 429}  # and all of 500 and above
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
    """A model on a server. ``limit`` is the server's max_model_len, else what the tokenizer's own
    config says.
    """

    name = "openai"

    def __init__(self, model: str, *, revision: str | None = None, options: EngineOptions):
        self._url = _base(options.server or "")
        self._options = options
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = Lock()  # of the sockets, which the threads add to
        key = os.environ.get("OPENAI_API_KEY")
        n = options.concurrency
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n),
            timeout=httpx2.Timeout(
                options.timeout_seconds, connect=min(CONNECT_SECONDS, options.timeout_seconds)
            ),
        )
        try:
            self._served, limit = self._find(model)
            self.limit: int = limit or min(
                int(models.load_tokenizer(model, revision).model_max_length), 1 << 20
            )
        except BaseException:
            self._client.close()
            raise
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="replaykit-openai")
        self._running: set[Event] = set()  # one for each iteration that is not over, set when it is

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        with closing(self._run(requests, {})) as answers:
            for request, choice in answers:
                tokens = choice.token_ids or []
                stop = request.sampling.stop
                # vLLM returns the stop token too. Looked for anywhere, so a server that does not
                # know stop_token_ids will do.
                end = next((k for k, token in enumerate(tokens) if token in stop), None)
                yield Completion(
                    request.row,
                    tuple(tokens[:end]),
                    choice.finish_reason if end is None else "stop",
                )

    def score(self, sequences: Iterable[Sequence[int]]) -> Iterator[list[float]]:
        # The server must draw one token. With prompt_logprobs 0 it tells of the prompt's own tokens
        # and no others.
        requests = (
            Request(k, tuple(s), Sampling(temperature=0.0, max_tokens=1))
            for k, s in enumerate(sequences)
        )
        waiting: dict[int, list[float]] = {}
        turn = 0
        with closing(self._run(requests, {"prompt_logprobs": 0})) as answers:
            for request, choice in answers:
                told = zip(request.tokens[1:], (choice.prompt_logprobs or [])[1:], strict=True)
                waiting[request.row] = [of[token].logprob for token, of in told if of]
                while turn in waiting:
                    yield waiting.pop(turn)
                    turn += 1

    def close(self) -> None:
        for left in self._running:
            left.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._hang_up()
        self._threads.shutdown()
        self._client.close()

    def _run(
        self, requests: Iterable[Request | None], more: dict[str, Any]
    ) -> Generator[tuple[Request, _Choice]]:
        """Each request with the server's answer, as they finish. One iteration may feed another,
        and may be left early.
        """
        waiting = iter(requests)
        flying = dict[Future[_Choice], Request]()
        left = Event()
        self._running.add(left)
        try:
            while True:
                for request in islice(
                    waiting, READ_AHEAD * self._options.concurrency - len(flying)
                ):
                    if request is None:
                        assert flying, (
                            "None among the requests is for when another one is unanswered"
                        )
                        break
                    flying[
                        self._threads.submit(self._ask, request, self._body(request) | more, left)
                    ] = request
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    yield flying.pop(future), future.result()
        finally:
            left.set()
            self._running.discard(left)
            unfinished = [future for future in flying if not future.cancel() and not future.done()]
            if (
                unfinished and not self._running
            ):  # else their answers are waited for, and nobody reads them
                self._hang_up()

    def _body(self, request: Request) -> dict[str, Any]:
        size = len(request.tokens)
        s = request.sampling
        if size >= self.limit:
            raise EngineError(
                f"row {request.row}: its prompt has {size} tokens and the model reads {self.limit}"
            )
        body = {
            "model": self._served,
            "prompt": request.tokens,
            "max_tokens": min(s.max_tokens, self.limit - size),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "seed": request.seed,
            "stop_token_ids": s.stop,
            "ignore_eos": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            # Said even where off: for what is not said, vLLM takes the model's
            # generation_config.json.
            "top_k": s.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        return body | ({} if s.schema is None else {"structured_outputs": {"json": s.schema}})

    def _ask(self, request: Request, body: dict[str, Any], left: Event) -> _Choice:
        """The server's answer, in a thread, tried again as long as the fault may pass and the
        iteration is not over.
        """
        for tried in range(1, self._options.retries + 2):
            if left.is_set():
                raise CancelledError
            try:
                return self._post(request, body)
            except _Fault as error:
                fault = error
            if tried <= self._options.retries:
                pause = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tried - 1)))
                left.wait(max(pause, min(fault.retry_after, self._options.timeout_seconds)))
        times = "once" if tried == 1 else f"{tried} times"
        raise EngineError(
            f"row {request.row}: {self._url}/completions was tried {times}; the last time: {fault}"
        )

    def _post(self, request: Request, body: dict[str, Any]) -> _Choice:
        """One try. Raises _Fault for what may pass, EngineError for what will not."""
        try:
            response = self._client.post(
                f"{self._url}/completions", json=body, extensions={"trace": self._trace}
            )
        except httpx2.RequestError as error:
            raise _Fault(f"{type(error).__name__} {error}") from error
        if response.status_code != 200:
            raise _refusal(request, response)
        try:
            choice = _Answer.model_validate_json(response.content).choices[0]
        except ValidationError as error:
            raise _Fault(_problem(error)) from error
        choice.check(body)
        return choice

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))

    def _hang_up(self) -> None:
        """Ends every connection, which ends every thread's waiting for it; a server that sees it
        stops its work.
        """
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # it is closed already
                    socket.socket.shutdown(
                        each, socket.SHUT_RDWR
                    )  # TLS's own takes its state from under the reader

    def _find(self, model: str) -> tuple[str, int | None]:
        """The name under which the server has the model, and its max_model_len if the server
        says.
        """
        try:
            response = self._client.get(f"{self._url}/models", extensions={"trace": self._trace})
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            start = (
                f"start one with `vllm serve {models.resolve(model)}`, or correct the address "
                f"(--server)"
            )
            raise EngineError(f"no server at {self._url}: {error}\n  {start}.") from error
        if response.status_code != 200:
            raise EngineError(f"{self._url}/models answers {_said(response)}")
        try:
            cards = _Models.model_validate_json(response.content).data
        except ValidationError as error:
            raise EngineError(
                f"{self._url}/models is no list of models: {_problem(error)}"
            ) from error
        own = {model, models.resolve(model)}
        found = (
            [card for card in cards if card.id in own]
            or [card for card in cards if card.root in own]
            or cards
        )
        if not found or (found is cards and len(cards) > 1):
            names = ", ".join(card.id for card in cards) or "nothing"
            raise EngineError(
                f"{self._url} does not serve {model}; it serves {names}\n  --model names one of "
                f"them."
            )
        return found[0].id, found[0].max_model_len


class _Fault(Exception):
    """What may not happen again. ``retry_after``: the seconds that the server asks for."""

    def __init__(self, what: str, retry_after: float = 0.0):
        super().__init__(what)
        self.retry_after = retry_after


class _Card(BaseModel):
    id: str
    root: str | None = None  # in vLLM the folder or Hub id, whatever name it is served under
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Card]


class _Logprob(BaseModel):
    logprob: float


class _Choice(BaseModel):
    finish_reason: Literal["stop", "length"]  # others are "abort" and "error"
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None

    def check(self, body: dict[str, Any]) -> None:
        """Raises _Fault if it is not a whole answer to the request, EngineError if such a server
        never gives one.
        """
        prompt = list(body["prompt"])
        asked = body["max_tokens"]
        if self.token_ids is None:
            raise EngineError(f"{NO_IDS}.")
        if self.prompt_token_ids not in (None, prompt):
            raise EngineError("the server changes the prompt, such as by a second BOS")
        if self.finish_reason == "length" and len(self.token_ids) != asked:
            raise _Fault(
                f"{len(self.token_ids)} tokens of {asked}, and yet finish_reason is 'length'"
            )
        if "prompt_logprobs" in body:
            if self.prompt_logprobs is None:
                raise EngineError(
                    "the server gives no prompt_logprobs, which scores are made of; vLLM's server "
                    "does"
                )
            told = [
                token in (of or {})
                for token, of in zip(prompt[1:], self.prompt_logprobs[1:], strict=False)
            ]
            if not all(told) or len(told) != len(prompt) - 1:
                raise _Fault("prompt_logprobs are not of the prompt's tokens")


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


def _base(server: str) -> str:
    """The address up to and with /v1, from any of the ways to write it. Raises EngineError for a
    chat endpoint.
    """
    url = server.rstrip("/")
    if url.endswith("/chat/completions"):
        raise EngineError(f"{server}: {CHAT_ONLY}.")
    url = url.removesuffix("/completions")
    return url if url.endswith("/v1") else f"{url}/v1"


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong with an answer, as in ``choices.0.finish_reason: Field
    required``.
    """
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the answer'}: {problem['msg']}"


def _refusal(request: Request, response: httpx2.Response) -> _Fault | EngineError:
    status = response.status_code
    said = _said(response)
    if status in TRANSIENT or status >= 500:
        return _Fault(said, _seconds(response.headers.get("Retry-After", "")))
    if status in (404, 405):  # /models answered, or there would be no engine
        said += f"\n  Does it serve chat alone? {CHAT_ONLY}."
    return EngineError(f"row {request.row}: {response.url} answers {said}")


def _said(response: httpx2.Response) -> str:
    """The status and the server's message, which vLLM and OpenAI wrap as error.message and FastAPI
    as detail.
    """
    text = response.text
    status = response.status_code
    with suppress(ValueError, AttributeError):  # it is not such JSON
        found = response.json().get("error") or response.json().get("detail") or text
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    hint = (
        "\n  The environment variable OPENAI_API_KEY is what the server is given."
        if status in (401, 403)
        else ""
    )
    return (
        f"{status} {response.reason_phrase}: {' '.join(text.split())[:500]}".removesuffix(": ")
        + hint
    )


def _seconds(retry_after: str) -> float:
    """What the header asks for; 0 where it is absent or a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0
