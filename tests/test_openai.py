"""The engine for a server: against a faulty one made here, and against vLLM's own on loopback."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

from replaykit.data.record import dialogue
from replaykit.engines import Completion, Engine, Request, Sampling, http
from replaykit.engines.openai import OpenAIEngine
from replaykit.errors import EngineError
from replaykit.model.chat import Chat
from replaykit.model.loading import resolve, vocabulary_size
from replaykit.recipe.engine import EngineOptions

LIMIT, STOP = 512, 3
FAULTS = ("busy", "broken", "malformed", "no_choices", "dropped", "stalled", "short", "aborted")
STALL_SECONDS = 0.6  # and the client waits half of it


def drawn(body: dict[str, Any]) -> list[int]:
    """What this server's model says: at most max_tokens ids, of which one in 16 is STOP."""
    tokens: list[int] = []
    while len(tokens) < body["max_tokens"] and STOP not in tokens:
        state = hashlib.sha256(
            json.dumps([body["prompt"], body["seed"], len(tokens)]).encode()
        ).digest()
        tokens.append(state[0] % 16 or STOP)
    return tokens


class Server(ThreadingHTTPServer):
    """A completions server on loopback, with faults on order, that counts what is done to it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, faults: Iterator[str | None] | None = None, models: tuple[str, ...] = ("nano",)
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.models = faults, models
        self.answer: Any = (
            None  # a status and a body for all of /completions, instead of a completion
        )
        self.with_ids, self.seconds, self.stall_seconds = True, 0.0, STALL_SECONDS
        self.lock, self.given, self.bodies = (
            threading.Lock(),
            Counter[str](),
            list[dict[str, Any]](),
        )
        self.times: list[float] = []
        self.connections = self.busy = self.busiest = 0
        self.headers: Any = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> str | None:
        with self.lock:
            fault = next(self.faults, None) if self.faults else None
            self.given[fault or "none"] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.headers = dict(self.headers)
        cards = [
            {"id": name, "object": "model", "max_model_len": LIMIT} for name in self.server.models
        ]
        self.send(200, {"data": cards} if self.path == "/v1/models" else {"detail": "Not Found"})

    def do_POST(self) -> None:
        server = self.server
        size = int(self.headers["Content-Length"])
        if len(sent := self.rfile.read(size)) < size:
            raise ConnectionResetError("the client hung up between the header and the body")
        body = json.loads(sent)
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self.complete(body, server.next_fault())
        finally:
            with server.lock:
                server.busy -= 1

    def complete(self, body: dict[str, Any], fault: str | None) -> None:
        assert self.path == "/v1/completions"
        tokens = drawn(body)
        reason = "stop" if tokens[-1] == STOP else "length"
        if fault == "short":
            tokens, reason = tokens[: len(tokens) // 2], "length"
        choice = {
            "index": 0,
            "text": "?",
            "finish_reason": "abort" if fault == "aborted" else reason,
        }
        if self.server.with_ids:
            choice |= {"token_ids": tokens, "prompt_token_ids": body["prompt"]}
        time.sleep(self.server.stall_seconds if fault == "stalled" else self.server.seconds)
        if fault == "dropped":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "malformed":
            self.send(200, None, raw=json.dumps({"choices": [choice]}).encode()[:-9])
        elif fault in ("busy", "broken"):
            self.send(429 if fault == "busy" else 500, {"error": {"message": f"so {fault} today"}})
        elif self.server.answer:
            self.send(*self.server.answer)
        else:
            self.send(200, {"choices": [] if fault == "no_choices" else [choice]})

    def send(
        self,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> None:
        payload = json.dumps(content).encode() if raw is None else raw
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)


@contextmanager
def serving(*args: Any, **options: Any) -> Iterator[Server]:
    with Server(*args, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.05)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def load(server: Server | str, **options: Any) -> closing[OpenAIEngine]:
    url = server if isinstance(server, str) else server.url
    settings = {"concurrency": 8, "timeout_seconds": 10.0, "retries": 3} | options
    return closing(
        OpenAIEngine("nano", options=EngineOptions(name="openai", server=url, **settings))
    )


def requests(n: int, *, max_tokens: int = 24, first: int = 0) -> list[Request]:
    sampling = Sampling(max_tokens=max_tokens, stop=(STOP,))
    return [
        Request(row, (1, 2, row % 7), sampling, seed=2**62 + row) for row in range(first, first + n)
    ]


def expected(asked: Iterable[Request]) -> list[Completion]:
    """What the faulty server's model says to each, sorted by row."""
    rows = []
    for request in asked:
        body = {
            "prompt": list(request.tokens),
            "seed": request.seed,
            "max_tokens": request.sampling.max_tokens,
        }
        tokens = drawn(body)
        stopped = tokens[-1] == STOP
        rows.append(
            Completion(
                request.row,
                tuple(tokens[:-1] if stopped else tokens),
                "stop" if stopped else "length",
            )
        )
    return rows


def by_row(completions: Iterable[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda completion: completion.row)


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_row_completes_once_and_as_without_faults_where_three_requests_in_ten_fail() -> None:
    chance = random.Random(5)
    faults = iter(lambda: chance.choice(FAULTS) if chance.random() < 0.3 else "", None)
    with (
        serving(faults) as server,
        load(server, timeout_seconds=STALL_SECONDS / 2, retries=12) as engine,
    ):
        done = list(engine.complete(iter(requests(300))))
    assert by_row(done) == expected(requests(300))
    assert {done.finish_reason for done in expected(requests(300))} == {"stop", "length"}
    assert set(FAULTS) <= set(server.given) and server.given["none"] >= 300
    assert (
        server.busiest <= 8 + server.given["stalled"]
    )  # a request that the client gave up is still with the server


@pytest.mark.slow
def test_a_fault_that_stays_is_an_error_with_the_row_the_fault_and_the_number_of_tries() -> None:
    for fault, words in {
        "busy": "429 Too Many Requests: so busy today",
        "broken": "500 Internal Server Error: so broken today",
        "malformed": "the answer: Invalid JSON",
        "no_choices": "choices: List should have at least 1 item",
        "dropped": "RemoteProtocolError Server disconnected",
        "stalled": "ReadTimeout",
        "short": "tokens of 24, and yet finish_reason is 'length'",
        "aborted": "choices.0.finish_reason: Input should be 'stop' or 'length'",
    }.items():
        with (
            serving(itertools.repeat(fault)) as server,
            load(server, retries=2, timeout_seconds=STALL_SECONDS / 2) as engine,
            pytest.raises(
                EngineError, match=f"row 41: .*/v1/completions was tried 3 times.*{words}"
            ),
        ):
            list(engine.complete(requests(1, first=41)))
        assert len(server.bodies) == 3


def test_without_retries_one_fault_is_the_end() -> None:
    with serving(iter(["busy"])) as server, load(server, retries=0) as engine:
        with pytest.raises(EngineError, match="was tried once"):
            list(engine.complete(requests(1)))
        assert by_row(engine.complete(requests(1))) == expected(requests(1))


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(server: Server) -> None:
    def not_before(retry_after: str) -> float:
        server.times.clear()
        server.answer = (503, {"detail": "loading"}, {"Retry-After": retry_after})
        with (
            load(server, retries=1) as engine,
            pytest.raises(EngineError, match="503 Service Unavailable: loading"),
        ):
            list(engine.complete(requests(1)))
        return server.times[1] - server.times[0]

    assert not_before("0.4") >= 0.4
    assert not_before("Wed, 21 Oct 2015 07:28:00 GMT") < 0.4


@pytest.mark.parametrize("status", [400, 401, 403, 422])
def test_a_refusal_is_not_tried_again_and_keeps_the_servers_words(
    server: Server, status: int
) -> None:
    server.answer = (
        status,
        {"error": {"message": "No,\nnever.", "type": "Refused", "code": status}},
    )
    with load(server, concurrency=1) as engine:
        with pytest.raises(
            EngineError, match=rf"row 6: .*/v1/completions answers {status} .*: No, never\."
        ) as error:
            list(engine.complete(requests(1, first=6)))
        assert ("OPENAI_API_KEY" in str(error.value)) == (status in (401, 403))
        assert len(server.bodies) == 1
        server.answer = None
        assert by_row(engine.complete(requests(3))) == expected(requests(3))


# --- what kind of server --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_only_chats_is_refused_with_the_reason(server: Server, status: int) -> None:
    server.answer = (status, {"detail": "Not Found"})
    with (
        load(server) as engine,
        pytest.raises(EngineError, match="(?s)Not Found.*applies the template itself"),
    ):
        list(engine.complete(requests(1)))


def test_the_address_of_a_chat_endpoint_is_refused_with_the_reason(server: Server) -> None:
    with pytest.raises(
        EngineError, match="ends it with the assistant's header, so the model cannot be given only"
    ):
        load(f"{server.url}/v1/chat/completions")


def test_a_server_that_returns_no_ids_is_refused_with_the_reason(server: Server) -> None:
    server.with_ids = False
    with (
        load(server) as engine,
        pytest.raises(EngineError, match="text that is tokenised again .* vLLM's server"),
    ):
        list(engine.complete(requests(1)))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_a_server_that_takes_thoughts_out_of_answers_is_refused(server: Server, key: str) -> None:
    choice = {"finish_reason": "stop", "token_ids": [7], "text": "42", key: "27 + 15"}
    server.answer = (200, {"choices": [choice]})
    with (
        load(server) as engine,
        pytest.raises(EngineError, match="takes the thought out .*without a reasoning parser"),
    ):
        list(engine.complete(requests(1)))
    assert len(server.bodies) == 1


def test_a_server_that_adds_to_the_prompt_is_refused(server: Server) -> None:
    choice = {"finish_reason": "stop", "token_ids": [7], "prompt_token_ids": [0, 1, 2, 0]}
    server.answer = (200, {"choices": [choice]})
    with (
        load(server) as engine,
        pytest.raises(EngineError, match="the server changes the prompt, such as by a second BOS"),
    ):
        list(engine.complete(requests(1)))


def test_a_server_that_gives_no_log_probabilities_is_refused_for_scores(server: Server) -> None:
    with (
        load(server) as engine,
        pytest.raises(EngineError, match="no prompt_logprobs, which scores are made of"),
    ):
        list(engine.score([(1, 2, 3)]))


def test_a_server_that_does_not_end_at_our_stops_gives_the_same_answers(server: Server) -> None:
    choice = {"finish_reason": "length", "token_ids": [5, STOP, 5, 9, STOP, 1]}
    server.answer = (200, {"choices": [choice]})
    with load(server) as engine:
        assert list(engine.complete(requests(1, max_tokens=6))) == [Completion(0, (5,), "stop")]


def test_where_nothing_answers_the_error_says_how_to_start_a_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            EngineError, match=f"(?s)no server at {url}/v1: .*`vllm serve {resolve('nano')}`"
        ):
            load(url)
    with pytest.raises(EngineError, match="no server at localhost:8000/v1: .*missing an 'http://'"):
        load("localhost:8000")


def test_a_key_in_the_environment_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(server):
        assert "Authorization" not in server.headers
    monkeypatch.setenv("OPENAI_API_KEY", "sk-17")
    with load(server):
        assert server.headers["Authorization"] == "Bearer sk-17"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/completions"])
def test_the_address_may_be_written_in_any_way(server: Server, ending: str) -> None:
    with load(f"{server.url}{ending}") as engine:
        assert by_row(engine.complete(requests(2))) == expected(requests(2))


def test_the_models_own_name_is_used(server: Server) -> None:
    folder = resolve("nano")
    for names, used in {
        ("other/model", "nano"): "nano",
        ("other/model", folder): folder,
        # As vLLM was started with it in another working directory.
        (os.path.relpath(folder),): os.path.relpath(folder),
    }.items():
        server.models = names
        with load(server) as engine:
            list(engine.complete(requests(1)))
            assert (server.bodies[-1]["model"], engine.limit) == (used, LIMIT)


@pytest.mark.parametrize("models", [("a/b",), ("a/b", "c/d"), ("weights",), ()])
def test_a_server_with_other_models_alone_is_refused_and_both_are_named(
    server: Server, models: tuple[str, ...]
) -> None:
    server.models = models
    served = ", ".join(models) or "nothing"
    with pytest.raises(EngineError, match=f"does not serve nano; it serves {served}\n.*--served-m"):
        load(server)
    assert server.bodies == []


@pytest.mark.parametrize("strange", [-1, 10**6, 2**70])
@pytest.mark.parametrize("place", [0, 2])
def test_a_token_that_the_model_does_not_have_is_one_error_at_once(
    server: Server, strange: int, place: int
) -> None:
    tokens = [5, 6, 7]
    tokens[place] = strange
    server.answer = (200, {"choices": [{"finish_reason": "length", "token_ids": tokens}]})
    with (
        load(server) as engine,
        pytest.raises(
            EngineError, match=rf"answers with the token {strange}, and nano has .* 0 to"
        ),
    ):
        list(engine.complete(requests(1, max_tokens=3)))
    assert len(server.bodies) == 1


def test_the_last_token_of_the_vocabulary_is_a_token(server: Server) -> None:
    last = vocabulary_size("nano") - 1
    server.answer = (200, {"choices": [{"finish_reason": "length", "token_ids": [last]}]})
    with load(server) as engine:
        assert list(engine.complete(requests(1, max_tokens=1))) == [
            Completion(0, (last,), "length")
        ]


# --- how requests are sent ------------------------------------------------------------------------


def test_a_request_says_all_that_the_answer_depends_on(server: Server) -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=20,
        max_tokens=24,
        stop=(STOP, 9),
        schema='{"type": "string"}',
    )
    with load(server) as engine:
        list(
            engine.complete(
                [Request(0, (1, 2), sampling, seed=2**63 - 1), Request(1, (1,) * 500, Sampling())]
            )
        )
    first, second = sorted(server.bodies, key=lambda body: len(body["prompt"]))
    assert first == {
        "model": "nano", "prompt": [1, 2], "max_tokens": 24, "temperature": 0.7, "top_p": 0.9, "top_k": 20,
        "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "seed": 2**63 - 1, "stop_token_ids": [STOP, 9], "ignore_eos": True,
        "add_special_tokens": False, "skip_special_tokens": False, "return_token_ids": True,
        "structured_outputs": {"json": '{"type": "string"}'},
    }  # fmt: skip
    assert (second["max_tokens"], second["top_k"]) == (
        LIMIT - 500,
        0,
    ) and "structured_outputs" not in second


@pytest.mark.slow
def test_requests_are_at_most_as_many_as_allowed_and_share_connections(server: Server) -> None:
    server.seconds = 0.01
    with load(server, concurrency=5) as engine:
        assert by_row(engine.complete(requests(100))) == expected(requests(100))
        list(engine.complete(requests(20)))
    assert server.busiest == 5 and len(server.bodies) == 120
    assert server.connections <= 5


def test_completions_come_as_they_finish_and_requests_are_read_as_they_are_needed(
    server: Server,
) -> None:
    read = 0

    def counted() -> Iterator[Request]:
        nonlocal read
        for request in requests(1000):
            read += 1
            yield request

    server.faults, server.stall_seconds = iter(["stalled"]), 8.0
    with load(server) as engine, closing(engine.complete(counted())) as completions:
        rows = [next(completions).row for _ in range(100)]
    assert read <= 100 + http.READ_AHEAD * 8
    assert sorted(rows) != list(range(100)) and len(set(rows)) == 100


def test_none_among_the_requests_asks_again_after_the_next_completion(server: Server) -> None:
    answered: list[int] = []
    asked = requests(30)

    def one_after_another() -> Iterator[Request | None]:
        for k, request in enumerate(asked):
            while len(answered) < k - 1:  # two are on their way
                yield None
            yield request

    with load(server) as engine:
        for completion in engine.complete(one_after_another()):
            answered.append(completion.row)
    assert sorted(answered) == list(range(30))
    assert server.busiest <= 2


def test_a_prompt_without_room_is_an_error_that_names_the_row(server: Server) -> None:
    with load(server) as engine:
        full = Request(17, (1,) * LIMIT, Sampling())
        with pytest.raises(
            EngineError, match=f"row 17: its prompt has {LIMIT} tokens and the model reads {LIMIT}"
        ):
            list(engine.complete([*requests(3), full]))
        assert by_row(engine.complete(requests(3))) == expected(requests(3))


# --- leaving --------------------------------------------------------------------------------------


def test_an_iteration_that_is_left_early_hangs_up_and_leaves_the_engine_usable(
    server: Server,
) -> None:
    server.faults, server.stall_seconds = iter([None, *["stalled"] * 8]), 8.0
    with load(server) as engine:
        completions = engine.complete(requests(300))
        next(completions)
        until_sent(server, 9)  # so each thread waits for an answer
        begun = time.monotonic()
        completions.close()  # type: ignore[attr-defined]
        assert by_row(engine.complete(requests(5))) == expected(requests(5))
        assert time.monotonic() - begun < server.stall_seconds / 2
        assert len(server.bodies) == 9 + 5


def until_sent(server: Server, n: int) -> None:
    while len(server.bodies) < n:
        time.sleep(0.01)


def test_an_error_among_the_requests_leaves_the_engine_usable(server: Server) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(5)
        raise ValueError("the pool is empty")

    with load(server) as engine:
        with pytest.raises(ValueError, match="the pool is empty"):
            list(engine.complete(broken()))
        assert by_row(engine.complete(requests(5))) == expected(requests(5))


@pytest.mark.slow
def test_an_iteration_that_is_left_does_not_disturb_the_one_that_it_feeds(server: Server) -> None:
    def asked() -> Iterator[Request]:
        for request in requests(40):
            with closing(engine.complete(requests(20))) as inner:
                next(inner)
            yield request

    with load(server, retries=0) as engine:
        assert by_row(engine.complete(asked())) == expected(requests(40))


@pytest.mark.parametrize("waiting_for", ["stalled", "busy"])
def test_close_waits_neither_for_an_answer_nor_for_the_next_try(
    waiting_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(http, "LONGEST_WAIT", 60.0)
    with serving(iter([None, *[waiting_for] * 100])) as server, load(server) as engine:
        server.stall_seconds = 8.0
        completions = engine.complete(requests(20))
        assert next(completions) in expected(requests(20))
        until_sent(server, 9)
        begun = time.monotonic()
        engine.close()
        assert time.monotonic() - begun < server.stall_seconds / 2
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("replaykit-server")
    ]


# --- vLLM's own server ----------------------------------------------------------------------------

QUESTIONS = [
    "What is the capital of France?",
    "Reverse the word: stone",
    "Hello",
    "What is 12 + 7?",
]
# The server's own defaults, which a request that left something out would take over.
GENERATION = {
    "temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 0.5,
    "repetition_penalty": 1.5, "presence_penalty": 2.0, "frequency_penalty": 2.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server with the embedded model under two other names; it takes 40 s to start."""
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve("nano"), "--dtype", "float32",
        "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "a-name", "another-name",
        "--override-generation-config", json.dumps(GENERATION),
    ]  # fmt: skip
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    } | os.environ
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        time.sleep(0.25)
    raise AssertionError(f"no server after five minutes:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def served(vllm_url: str) -> Iterator[OpenAIEngine]:
    with closing(
        OpenAIEngine("nano", options=EngineOptions(name="openai", server=vllm_url))
    ) as engine:
        yield engine


def answers(chat: Chat, **sampling: Any) -> list[Request]:
    settings = Sampling(**{"temperature": 0.0, "max_tokens": 60, "stop": chat.stop} | sampling)
    return [
        Request(row, chat.prompt(dialogue(text)), settings, row)
        for row, text in enumerate(QUESTIONS)
    ]


def own_questions(chat: Chat, n: int, **sampling: Any) -> list[Request]:
    settings = Sampling(**{"max_tokens": 24, "stop": chat.stop} | sampling)
    return [
        Request(row, chat.pre_query, settings, row * 0x2545F4914F6CDD1D % 2**63) for row in range(n)
    ]


@pytest.mark.slow
def test_vllms_server_says_how_long_a_prompt_may_be_and_is_known_by_the_models_folder(
    served: OpenAIEngine, transformers_engine: Engine
) -> None:
    assert served.limit == transformers_engine.limit


@pytest.mark.slow
def test_greedy_answers_of_vllms_server_are_those_of_transformers(
    served: OpenAIEngine, transformers_engine: Engine, chat: Chat
) -> None:
    done = by_row(served.complete(answers(chat)))
    assert done == by_row(transformers_engine.complete(answers(chat)))
    assert all(completion.tokens for completion in done)


@pytest.mark.slow
def test_special_tokens_within_an_answer_arrive_as_the_marks_of_a_thought_must(
    served: OpenAIEngine, transformers_engine: Engine, chat: Chat
) -> None:
    # Nothing stops the answer, so its end, and the header after it, are within it.
    done = by_row(served.complete(answers(chat, stop=(), max_tokens=30)))
    assert done == by_row(transformers_engine.complete(answers(chat, stop=(), max_tokens=30)))
    assert all(set(chat.end_of_turn) & set(completion.tokens) for completion in done)


@pytest.mark.slow
def test_a_row_of_vllms_server_draws_the_same_tokens_in_any_order(
    served: OpenAIEngine, chat: Chat
) -> None:
    asked = own_questions(chat, 100)
    together = by_row(served.complete(asked))
    assert by_row(served.complete(reversed(asked))) == together
    assert [next(iter(served.complete([request]))) for request in asked[:5]] == together[:5]
    assert (
        len({completion.tokens for completion in together}) >= 90
    )  # so the server's own top_k of 1 is not used


def test_an_answer_of_vllms_server_ends_before_the_stop_or_at_max_tokens(
    served: OpenAIEngine, chat: Chat
) -> None:
    whole = by_row(served.complete(answers(chat)))
    for k, done in enumerate(whole):
        assert done.finish_reason == "stop" and not set(done.tokens) & set(chat.stop)
        last = done.tokens[-1]
        (again,) = served.complete([answers(chat, stop=(last,))[k]])
        assert again == Completion(k, done.tokens[: done.tokens.index(last)], "stop")
    cut = by_row(served.complete(answers(chat, max_tokens=1)))
    assert cut == [Completion(done.row, done.tokens[:1], "length") for done in whole]
    on = by_row(served.complete(answers(chat, stop=())))
    assert {(len(done.tokens), done.finish_reason) for done in on} == {(60, "length")}


def test_an_answer_of_vllms_server_stops_where_the_model_can_read_no_further(
    served: OpenAIEngine, chat: Chat
) -> None:
    long = (chat.pre_query * served.limit)[: served.limit - 3]
    (done,) = served.complete([Request(0, long, Sampling(temperature=0.0, max_tokens=60))])
    assert (len(done.tokens), done.finish_reason) == (3, "length")


def test_top_k_of_1_draws_greedily_on_vllms_server(served: OpenAIEngine, chat: Chat) -> None:
    drawn = by_row(served.complete(own_questions(chat, 10, top_k=1)))
    greedy = by_row(served.complete(own_questions(chat, 10, temperature=0.0)))
    assert drawn == greedy


@pytest.mark.slow
def test_scores_of_vllms_server_are_those_of_transformers(
    served: OpenAIEngine, transformers_engine: Engine, chat: Chat
) -> None:
    sequences = [
        (*chat.pre_query, *done.tokens) for done in by_row(served.complete(own_questions(chat, 40)))
    ]
    sequences = [
        *sequences,
        sequences[0][:1],
        sequences[0],
    ]  # one token; a prefix that the server has in its cache
    scores = list(served.score(iter(sequences)))
    assert [len(row) for row in scores] == [len(tokens) - 1 for tokens in sequences]
    for row, other in zip(scores, transformers_engine.score(sequences), strict=True):
        assert row == pytest.approx(other, abs=1e-3)


def test_vllms_server_holds_an_answer_to_a_schema(served: OpenAIEngine, chat: Chat) -> None:
    choices = ["Paris", "Rome", "Lima"]
    schema = json.dumps({"enum": choices})
    held = by_row(served.complete(answers(chat, temperature=1.0, schema=schema)))
    assert {done.finish_reason for done in held} == {"stop"}
    assert all(json.loads(chat.decode(done.tokens)) in choices for done in held)
    free = by_row(served.complete(answers(chat, temperature=1.0)))
    assert not any(chat.decode(done.tokens).startswith('"') for done in free)


def test_what_vllms_server_refuses_is_an_error_in_its_own_words(
    served: OpenAIEngine, chat: Chat
) -> None:
    with pytest.raises(EngineError, match="row 0: .*answers 400 Bad Request: .*vocab"):
        list(served.complete([Request(0, (1, 99_999), Sampling())]))
    with pytest.raises(EngineError, match="row 0: .*answers 400 Bad Request: .*temperature"):
        list(served.complete([Request(0, chat.pre_query, Sampling(temperature=-1.0))]))


@pytest.mark.slow
def test_vllms_server_ends_its_work_on_what_was_left(
    served: OpenAIEngine, vllm_url: str, chat: Chat
) -> None:
    def metric(name: str) -> float:
        lines = httpx2.get(f"{vllm_url.removesuffix('/v1')}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}"))

    short, *long = own_questions(chat, 61, max_tokens=1900, stop=())
    requests = [replace(short, sampling=Sampling(max_tokens=1)), *long]
    # On a busy machine the short answer may come when the long ones are there already.
    for _ in range(4):
        before = metric("generation_tokens_total")
        with closing(served.complete(requests)) as completions:
            first = next(completions)
        while metric("num_requests_running") + metric("num_requests_waiting"):
            time.sleep(0.1)
        if first.row == 0:
            break
    assert first.row == 0
    assert metric("generation_tokens_total") - before < 60 * 1900 / 4
