"""Facts about an editor on a chat server that fails: whatever it does, every row comes out once."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_rewrite import REFERENCE, REPAIRED, WRONG, Scripted, run, target_of

from replaykit.checks.verifiers import verdict
from replaykit.data.record import Record, dialogue
from replaykit.engines import chat_server, http
from replaykit.engines.chat_server import ChatServer
from replaykit.engines.http import Refused
from replaykit.errors import EngineError
from replaykit.model.chat import Chat
from replaykit.recipe.rewrite import Editor, Rewrite, Verify

KEY = "sk-very-secret-0123456789"
ROWS = 30
TARGET = target_of(*((f"question {n}: what is 27 + 15?", REFERENCE) for n in range(ROWS)))


class Server(ThreadingHTTPServer):
    """A chat server on loopback that answers as it is told: by its number, each request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, manner: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manner = manner
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.add(self.headers["Authorization"])
            number = len(self.server.bodies)
        assert self.path == "/v1/chat/completions"
        status, content, headers = answer_in(self.server.manner, number, body)
        payload = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)


def answer_in(manner: str, number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    said = {
        "chatty": f"Sure, I can help with that! {REPAIRED}",
        "empty": None,
        "other script": "二十七加十五等于四十二。",
        "leaks": f"The reference answer says 42.\n{REPAIRED}",
    }
    reply = {"message": {"content": said.get(manner, REPAIRED)}, "finish_reason": "stop"}
    broken = {"error": {"message": f"not today, {KEY}"}}
    match manner:
        case "rude" if number % 3 == 0:
            return 429, broken, {"Retry-After": "0.01"}
        case "rude" if number % 3 == 1:
            return 500, broken, {}
        case "down":
            return 503, broken, {}
        case "no key":
            return 401, broken, {}
        case "refuses all":
            return 400, broken, {}
        case "refuses one" if "question 7:" in body["messages"][0]["content"]:
            return 400, broken, {}
        case "too long":
            reply["finish_reason"] = "length"
        case "filters":
            reply["finish_reason"] = "content_filter"
    return 200, {"choices": [reply]}, {}


@contextmanager
def editing(manner: str, **choices: Any) -> Iterator[tuple[Server, ChatServer]]:
    with Server(manner) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        editor = Editor.model_validate({"model": "gpt-4", "server": server.url, **choices})
        try:
            with closing(ChatServer(editor)) as client:
                yield server, client
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.002)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("nano")


def edited(chat: Chat, path: Path, editor: ChatServer) -> list[Record]:
    return run(TARGET, Scripted(chat, ("question", WRONG)), chat, path, editor=editor)


@pytest.mark.parametrize(
    ("manner", "paths"),
    [
        ("kind", {"edit": ROWS}),
        ("rude", {"edit": ROWS}),
        ("chatty", {"edit": ROWS}),
        ("empty", {"empty": ROWS}),
        ("other script", {"unverified": ROWS}),
        ("leaks", {"leaked_prompt": ROWS}),
        ("too long", {"truncated": ROWS}),
        ("filters", {"filtered": ROWS}),
        ("refuses one", {"edit": ROWS - 1, "refused": 1}),
        ("down", {"no_reply": ROWS}),
    ],
)
def test_every_row_comes_out_once_whatever_the_server_does(
    chat: Chat, tmp_path: Path, manner: str, paths: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    # Two of three requests to the rude one fail, and none of these rows may have bad luck.
    retries = 1 if manner == "down" else 60
    with caplog.at_level(logging.DEBUG), editing(manner, retries=retries) as (server, editor):
        made = edited(chat, tmp_path, editor)
    assert [record.meta["parent"] for record in made] == [record.id for record in TARGET]
    found = Counter(record.meta.get("why", record.meta["path"]) for record in made)
    assert found == paths
    kept = [record.answer for record in made if record.meta["path"] == "reference"]
    assert kept == [REFERENCE] * (ROWS - paths.get("edit", 0))
    assert {record.meta["reference"] for record in made if record.meta["path"] == "edit"} <= {
        REFERENCE
    }
    assert server.keys == {f"Bearer {KEY}"}
    files = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY not in caplog.text + files + editor.trouble


def test_a_server_that_does_not_listen_costs_no_row_and_what_it_missed_is_asked_again(
    chat: Chat, tmp_path: Path
) -> None:
    address = "http://127.0.0.1:9"
    dead = Editor(model="gpt-4", server=address, retries=0)
    with closing(ChatServer(dead)) as editor:
        made = edited(chat, tmp_path, editor)
    assert Counter(record.meta["why"] for record in made) == {"no_reply": ROWS}
    assert "ConnectError" in editor.trouble
    with editing("kind") as (server, alive):
        again = edited(chat, tmp_path, alive)
    assert {record.meta["path"] for record in again} == {"edit"}
    assert len(server.bodies) == ROWS


def test_a_slow_server_is_given_up_for_a_row_after_its_time(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    usual = answer_in

    def slow(manner: str, number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        gate.wait(2)
        return usual(manner, number, body)

    monkeypatch.setattr("test_rewrite_server.answer_in", slow)
    monkeypatch.setattr(chat_server, "LONGEST_SILENCE", 5)
    with editing("kind", retries=0, timeout_seconds=0.2) as (_, editor):
        made = edited(chat, tmp_path, editor)
        gate.set()
    assert [record.meta["parent"] for record in made] == [record.id for record in TARGET]
    assert Counter(record.meta["why"] for record in made) == {"no_reply": ROWS}
    assert "ReadTimeout" in editor.trouble


@pytest.mark.parametrize(("manner", "status"), [("no key", 401), ("refuses all", 400)])
def test_who_is_refused_altogether_is_told_so_without_the_key(
    chat: Chat, tmp_path: Path, manner: str, status: int
) -> None:
    with editing(manner) as (_, editor), pytest.raises(Refused) as refused:
        edited(chat, tmp_path, editor)
    assert f"answers {status}" in str(refused.value)
    assert KEY not in str(refused.value)
    assert ("OPENAI_API_KEY" in str(refused.value)) == (status == 401)


def test_further_keys_of_a_request_stand_beside_ours_or_take_them_out(
    chat: Chat, tmp_path: Path
) -> None:
    options = {"max_tokens": None, "max_completion_tokens": 9}
    with editing("kind", options=options) as (server, editor):
        edited(chat, tmp_path, editor)
    assert all(body["max_completion_tokens"] == 9 for body in server.bodies)
    assert not any("max_tokens" in body for body in server.bodies)
    assert len({body["seed"] for body in server.bodies}) == ROWS


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_from": KEY},
        {"server": f"https://me:{KEY}@host/v1"},
        {"server": f"https://host/v1?key={KEY}"},
        {"server": "host:8000"},
        {"options": {"messages": []}},
    ],
)
def test_an_editor_with_its_key_in_the_recipe_is_refused(wrong: dict[str, Any]) -> None:
    from replaykit.api.arguments import validated
    from replaykit.errors import RecipeError

    with pytest.raises(RecipeError) as refused:
        validated("rewrite", Rewrite, {"editor": {"model": "gpt-4", **wrong}})
    assert KEY not in str(refused.value)


def test_a_key_that_no_header_can_have_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk secret\nkey")
    with pytest.raises(EngineError, match="OPENAI_API_KEY") as refused:
        ChatServer(Editor(model="gpt-4", server="http://localhost:1"))
    assert "secret" not in str(refused.value)


# --- verifiers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verify", "reference", "meta", "right", "wrong"),
    [
        ({"name": "exact"}, "Paris", {}, "Paris.", "Rome"),
        ({"name": "normalised"}, "The Eiffel Tower", {}, "the answer is: Eiffel, tower", "tower"),
        ({"name": "numeric"}, "#### 1200", {}, "So it costs $1,200.", "So it costs $1,201."),
        ({"name": "symbolic"}, r"\boxed{\sqrt{8}}", {}, r"So it is $2\sqrt{2}$.", "$3$"),
        ({"name": "json"}, '{"a": 1}', {}, '```json\n{"a": 1}\n```', '{"a": 2}'),
        ({"name": "choice"}, "Rome", {"choices": {"A": "Paris", "B": "Rome"}}, "B", "A"),
        ({"name": "contains", "column": "must"}, "x", {"must": ["a b", "c"]}, "C, a b", "a b"),
        ({"name": "regex", "text": r"#### \d+$"}, "x", {}, "so #### 42", "so 42"),
        (
            {"name": "json_schema", "column": "schema"},
            "{}",
            {"schema": {"type": "object", "required": ["a"]}},
            '{"a": 1}',
            "{}",
        ),
        (
            {"name": "code"},
            "def two(): return 2",
            {"test_list": ["assert two() == 2"]},
            "```python\ndef two():\n    return 1 + 1\n```",
            "def two(): return 3",
        ),
    ],
)
def test_a_verifier_tells_right_from_wrong(
    verify: dict[str, Any], reference: str, meta: dict[str, Any], right: str, wrong: str
) -> None:
    record = Record(dialogue("?", reference), "target", meta)
    assert verdict(Verify(**verify), right, record) == "right"
    assert verdict(Verify(**verify), wrong, record) == "wrong"


@pytest.mark.parametrize(
    ("verify", "reference"),
    [
        ({"name": "numeric"}, "it depends"),
        ({"name": "symbolic"}, "London"),
        ({"name": "regex", "column": "pattern"}, "x"),
        ({"name": "contains", "column": "must"}, "x"),
        ({"name": "code"}, "no Python at all"),
    ],
)
def test_a_row_that_cannot_be_verified_is_unreadable(
    verify: dict[str, Any], reference: str
) -> None:
    record = Record(dialogue("?", reference), "target", {"must": []})
    assert verdict(Verify(**verify), "42", record) == "unreadable"


def test_a_verifier_that_needs_a_column_says_so() -> None:
    with pytest.raises(ValueError, match="name one, since the reference answer is neither"):
        Verify(name="regex")
    with pytest.raises(ValueError, match="leave one out"):
        Verify(name="exact", column="a", text="b")
