"""Tools in view: how a file of them is read, which calls of them are kept, and what of the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from taught import CAPITAL_OF, thinker
from test_calls import CALLS, FORMATS, WEATHER, format_of, written
from test_generate_thinking import LIMITS, lines, made, shown
from test_templates import shipped
from tiny import Run
from typer.testing import CliRunner

from replaykit.checks.calls import begins_call, call_fault
from replaykit.cli import app
from replaykit.data.jsonl import read_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import Record, Tool, dialogue
from replaykit.data.tools import read_tools
from replaykit.engines import Completion, Engine
from replaykit.errors import ChatError, DataError, RunError
from replaykit.model.calls import tool_call
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.generate import Checks, Generate
from replaykit.steps.generate.answering import Answering
from replaykit.steps.generate.conversations import Conversations
from replaykit.steps.generate.job import Job, Tally
from replaykit.steps.generate.replies import Address, Numbering, Replies
from replaykit.steps.generate.result import CallCounts, GenerateResult
from replaykit.steps.generate.step import todos
from replaykit.steps.report.html.samples import replay_cards
from replaykit.steps.step import Context

BARE = WEATHER["function"]
DROPPED = {"unknown_tool", "invalid_arguments", "unreadable_call", "call_truncated"}


def written_to(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def tools(tmp_path: Path) -> str:
    return str(written_to(tmp_path / "tools.json", [CAPITAL_OF]))


# --- a file of tools ------------------------------------------------------------------------------


def with_schema_under(key: str) -> dict[str, Any]:
    """The tool as Anthropic's API and MCP have it."""
    named = {"name": BARE["name"], "description": BARE["description"]}
    return {**named, key: BARE["parameters"]}


@pytest.mark.parametrize(
    "value",
    [
        [WEATHER],
        [BARE],
        {"tools": [WEATHER]},
        WEATHER,
        BARE,
        with_schema_under("input_schema"),
        {"tools": [with_schema_under("inputSchema")]},
    ],
)
def test_tools_are_read_in_every_form(tmp_path: Path, value: object) -> None:
    assert read_tools(written_to(tmp_path / "tools.json", value)) == (WEATHER,)


def test_tools_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "tools.jsonl"
    clock = {"name": "clock", "description": "The time."}
    path.write_text(f"{json.dumps(WEATHER)}\n\n{json.dumps(clock)}\n", encoding="utf-8")
    weather, made_clock = read_tools(path)
    assert weather == WEATHER
    # Templates ask for parameters.
    none = {"type": "object", "properties": {}}
    assert made_clock == {"type": "function", "function": {**clock, "parameters": none}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "there is no tool in it"),
        ("weather", "tools: not JSON"),
        ([{"description": "?"}], "tool 1 is no function with a name"),
        ([BARE, {"type": "function"}], "tool 2 is no function with a name"),
        ([BARE, WEATHER], "several tools are called get_weather"),
        ([{"name": "get weather"}], "tool 'get weather': a name has letters, digits, '_', '-'"),
        ([{"name": "f", "parameters": [1]}], "tool f: parameters is a list, not a JSON schema"),
        ([{"name": "f", "parameters": {"type": "array"}}], "tool f: parameters is a schema of type 'array'"),
        (
            [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "int"}}}}],
            r"tool f: parameters\.properties\.x\.type is no JSON schema: 'int' is not valid",
        ),
        ([{"name": "f", "parameters": {"required": "x"}}], r"tool f: parameters\.required is no JSON"),
        (
            [{"name": "f", "parameters": {"properties": {"x": {"pattern": "("}}}}],
            r"tool f: parameters\.properties\.x\.pattern is no JSON schema: '\(' is not a 'regex'",
        ),
        ([{"name": "f", "parameters": {"city": {"type": "str"}}}], 'f: .*"properties"'),
        (
            [{"name": "f", "parameters": {"properties": {"x": {"$ref": "http://127.0.0.1:9/s"}}}}],
            "f: parameters refers to http://127.0.0.1:9/s, which is not in it",
        ),
        ([{"name": "f", "parameters": {"$ref": "#/$defs/x"}}], "f: parameters refers to #/.defs/x"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tool_is_said_with_its_name(
    tmp_path: Path, value: object, words: str
) -> None:
    path = written_to(tmp_path / "tools.json", value)
    with pytest.raises(DataError, match=words):
        read_tools(path)


def test_a_line_that_is_no_json_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps(WEATHER) + "\n{no JSON}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tools\.jsonl:2: "):
        read_tools(path)
    with pytest.raises(DataError, match="absent.json: tools cannot be read from it: .*No such fi"):
        read_tools(tmp_path / "absent.json")


def test_a_tool_may_refer_within_its_schema_and_say_nothing_of_itself(tmp_path: Path) -> None:
    parameters = {"properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}
    path = written_to(tmp_path / "tools.json", {"name": "f", "parameters": parameters})
    [tool] = read_tools(path)
    # Some templates ask for a description.
    assert tool["function"] == {"name": "f", "description": "", "parameters": parameters}


# --- calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "reason", "problem"),
    [
        ("get_weather", {"city": "Oslo"}, None, None),
        ("get_weather", {"city": "Oslo", "days": 3}, None, None),
        ("weather", {"city": "Oslo"}, "unknown_tool", "it was offered get_weather"),
        ("get_weather", {}, "invalid_arguments", "'city' is a required property"),
        ("get_weather", {"city": 7}, "invalid_arguments", "city: 7 is not of type 'string'"),
        ("get_weather", {"city": "Oslo", "days": "3"}, "invalid_arguments", "days: '3' is not of type 'integer'"),
    ],
)  # fmt: skip
def test_a_call_is_checked_against_its_schema(
    name: str, arguments: dict[str, Any], reason: str | None, problem: str | None
) -> None:
    verdict = call_fault(
        [tool_call("get_weather", {"city": "Rome"}), tool_call(name, arguments)], [WEATHER]
    )
    if reason is None:
        assert verdict is None
        return
    assert verdict is not None
    assert verdict.reason == reason
    wrong = {"name": name, "arguments": arguments, "problem": problem}
    assert verdict.evidence == {"wrong_call": wrong}


def test_a_schema_that_refers_to_an_address_fetches_nothing() -> None:
    far: Tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"$ref": "http://127.0.0.1:9/schema.json"}},
    }
    verdict = call_fault([tool_call("f", {})], [far])
    assert verdict is not None
    assert verdict.reason == "invalid_tool"
    assert "refers to http://127.0.0.1:9/schema.json" in verdict.evidence["wrong_call"]["problem"]


@pytest.mark.parametrize("name", [*FORMATS, "gemma4", "gptoss", "nemotron_3_nano", "muse_glimmer"])
def test_what_begins_as_a_call_and_is_none_is_known(name: str) -> None:
    made_format = format_of(name)
    whole = written(name, CALLS[0])
    mark = made_format.mark.split("fq7ZxKw")[0].strip() or made_format.around[0] or "{"
    whole = whole[whole.index(mark) :]
    cut = whole[: whole.index("Oslo") + 2]
    assert not made_format.read(cut, [WEATHER]).calls
    assert begins_call(cut, made_format, [WEATHER])
    for words in ("It is 7 C.", "", 'An object: {"a": 3}', "I would use <b>it</b>."):
        assert not begins_call(words, made_format, [WEATHER])


def test_an_answer_that_speaks_of_the_mark_is_words() -> None:
    qwen = format_of("qwen3")
    assert not begins_call("Qwen writes <tool_call> before a call.", qwen, [WEATHER])
    assert begins_call("I look.\n<tool_call>\n{", qwen, [WEATHER])
    assert begins_call(f"First {QWEN_CALL} then Rome.", qwen, [WEATHER])


# --- one answer -----------------------------------------------------------------------------------


def answered(
    chat: Chat, folder: Path, said: str, *, finish: str = "stop", **settings: Any
) -> tuple[Record, str | None]:
    """The record of a prompt with a tool that was answered with these words, as after a stop."""
    prompts = [Record(dialogue("How is the weather in Oslo?"), "generate", {}, (WEATHER,))]
    job = Job(Generate(**settings), 1, prompts=prompts)
    numbering = Numbering(1, 1)
    tokens = chat.encode(said)
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "q.jsonl") as questions, Ledger(folder / "a.jsonl") as answers:
        talk = Conversations(chat, job, Replies(questions, answers, numbering), limit=4096)
        request = numbering.of_request(Address("answer", 0))
        talk.take(Completion(request, tokens, finish))  # type: ignore[arg-type]
    with Ledger(folder / "q.jsonl") as questions, Ledger(folder / "a.jsonl") as answers:
        talk = Conversations(chat, job, Replies(questions, answers, numbering), limit=4096)
        [one] = talk.next(0).records
    return one.record, None if one.verdict is None else one.verdict.reason


OSLO = [tool_call("get_weather", {"city": "Oslo"})]
QWEN_CALL = FORMATS["qwen3"][1]


@pytest.mark.parametrize(
    ("name", "said", "thinking"),
    [
        ("qwen3", QWEN_CALL, False),
        ("qwen3", f"<think>\nI look.\n</think>\n\n{QWEN_CALL}", True),
        ("qwen2_5", QWEN_CALL, None),
        ("llama3_1", FORMATS["llama3_1"][1], None),
        ("glm4moe", FORMATS["glm4moe"][1], False),
        ("gptoss", " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Oslo\"}", False),
    ],
)  # fmt: skip
def test_a_call_is_kept_as_a_call(
    tmp_path: Path, name: str, said: str, thinking: bool | None
) -> None:
    record, reason = answered(shipped(name), tmp_path, said, thinking=thinking)
    assert reason is None
    assert list(record.messages[-1]["tool_calls"]) == OSLO
    assert record.messages[-1]["content"] == ""
    assert record.messages[-1].get("reasoning_content") == ("I look." if thinking else None)
    assert record.tools == (WEATHER,)


@pytest.mark.parametrize(
    ("said", "finish", "reason"),
    [
        ("Seven degrees.", "stop", None),
        ("Qwen writes <tool_call> before a call.", "stop", None),
        (QWEN_CALL.replace("get_weather", "weather"), "stop", "unknown_tool"),
        (QWEN_CALL.replace("city", "town"), "stop", "invalid_arguments"),
        (QWEN_CALL.replace('"Oslo"}}', '"Oslo"'), "stop", "unreadable_call"),
        (QWEN_CALL.replace("arguments", "parameters"), "stop", "unreadable_call"),
        (QWEN_CALL.replace('{"name"', '{"id": 3, "name"'), "stop", "unreadable_call"),
        (QWEN_CALL.replace('"Oslo"', '"Oslo", "city": "Rome"'), "stop", "unreadable_call"),
        (QWEN_CALL.replace("\n</", '\n{"name": "get_weather", "arguments": {}}\n</'), "stop", "unreadable_call"),
        (f"First {QWEN_CALL} then Rome.", "stop", "unreadable_call"),
        (f"{QWEN_CALL}\nThat was all.", "stop", "unreadable_call"),
        (f"First Oslo.\n{QWEN_CALL}", "stop", None),
        (QWEN_CALL.replace(": ", ":").replace(", ", ","), "stop", None),
        (f"{QWEN_CALL}\n{QWEN_CALL}", "stop", None),
        (f"{QWEN_CALL}\n{QWEN_CALL[:30]}", "length", "call_truncated"),
        (f"{QWEN_CALL[:30]}\n{QWEN_CALL}", "stop", "unreadable_call"),
        (QWEN_CALL[:40], "length", "call_truncated"),
        (QWEN_CALL.replace("Oslo", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"), "stop", "call_secret"),
    ],
)  # fmt: skip
def test_a_call_that_is_wrong_is_dropped_with_the_reason_and_words_stay(
    tmp_path: Path, said: str, finish: str, reason: str | None
) -> None:
    record, why = answered(shipped("qwen2_5"), tmp_path, said, finish=finish)
    assert why == reason
    if reason in ("unknown_tool", "invalid_arguments"):
        assert record.meta["wrong_call"]["arguments"]


QWEN_XML = FORMATS["qwen3_6"][1]


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("qwen3_6", QWEN_XML, None),
        # Where the first argument ends cannot be known.
        ("qwen3_6", QWEN_XML.replace("</tool_call>", f"{QWEN_XML[12:]}"), "unreadable_call"),
        (
            "qwen3_6",
            QWEN_XML.replace("</function>", "<parameter=city>\nRome\n</parameter>\n</function>"),
            "unreadable_call",
        ),
        # In a format without marks a right JSON answer is no call, whatever its first key.
        ("llama3_1", '{"name": "Bob", "age": 3}', None),
        ("llama3_1", '{"name": "Bob", "parameters": {}}', "unknown_tool"),
        ("llama3_1", '{"name": "get_weather", "arguments": {"city": "Oslo"}}', "unreadable_call"),
        ("llama3_1", '{"name": "get_we', "call_truncated"),
        # The template leaves out what is said beside a call, or shows it behind the call.
        (
            "gemma4",
            'I look.<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>',
            "unreadable_call",
        ),
        ("gemma4", '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>', None),
        ("llama3_1", f"I look.\n{FORMATS['llama3_1'][1]}", "unreadable_call"),
    ],
)
def test_what_the_template_would_write_otherwise_is_no_call(
    tmp_path: Path, name: str, said: str, reason: str | None
) -> None:
    finish = "length" if reason == "call_truncated" else "stop"
    record, why = answered(shipped(name), tmp_path, said, finish=finish, thinking=None)
    assert why == reason
    if reason is None and name == "llama3_1":
        assert record.answer == said


def test_a_prompt_with_a_tool_that_has_no_schema_is_not_asked() -> None:
    broken: Tool = {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"type": "str"}}},
        },
    }
    prompts = [Record(dialogue("How is it?"), "generate", {}, (broken,))]
    replies = Replies({}, {}, Numbering(1, 1))  # type: ignore[arg-type]
    talk = Conversations(
        shipped("qwen2_5"), Job(Generate(), 1, prompts=prompts), replies, limit=4096
    )
    following = talk.next(0)
    assert following.requests == []
    [one] = following.records
    assert one.verdict is not None and one.verdict.reason == "invalid_tool"
    assert "'str' is not valid" in one.record.meta["wrong_call"]["problem"]


def test_a_ledger_of_before_with_tools_is_refused(tmp_path: Path) -> None:
    prompts = [Record(dialogue("How is the weather?"), "generate", {}, (WEATHER,))]
    with Ledger(tmp_path / "q.jsonl") as questions, Ledger(tmp_path / "a.jsonl") as answers:
        answers.append({"row": 0, "text": QWEN_CALL, "finish": "stop", "tokens": 30})
        replies = Replies(questions, answers, Numbering(1, 1))
        talk = Conversations(
            shipped("qwen2_5"), Job(Generate(), 1, prompts=prompts), replies, limit=4096
        )
        with pytest.raises(RunError, match="did not keep thoughts and calls apart"):
            talk.next(0)


# --- a model that calls ---------------------------------------------------------------------------


@pytest.mark.slow
def test_kept_calls_are_of_tools_that_were_offered_and_after_their_schemas(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path, tools: str
) -> None:
    rows, monitor = made(taught_engine, taught_chat, tmp_path / "a", 60, tools=tools)
    called = [record for record in rows if "tool_calls" in record.messages[-1]]
    assert len(called) >= 4
    for record in called:
        for call in record.messages[-1]["tool_calls"]:
            assert call["function"]["name"] == "capital_of"
            assert 0 < len(call["function"]["arguments"]["country"]) <= 12
    assert all(record.tools == (CAPITAL_OF,) for record in rows)
    counts = CallCounts(called=len(called), uncalled=60 - len(called))
    assert monitor.tally.calls == counts
    assert f"{len(called)} of 60 rows with tools call them" in counts.words
    assert not any(record.answer.startswith("<tool_call>") for record in rows)
    # What the rows were drawn and answered under.
    asking = taught_chat.decode(taught_chat.asking((), (CAPITAL_OF,)), special=True)
    assert '"capital_of"' in asking
    # They can be learned as they are.
    alone = [record for record in called if not record.answer]
    assert alone
    for record in alone:
        example = taught_chat.example(record)
        said = [token for token, loss in zip(example.tokens, example.loss, strict=True) if loss]
        read = taught_chat.read(said, False, record.tools)
        assert list(read["tool_calls"]) == list(record.messages[-1]["tool_calls"])


@pytest.mark.slow
def test_rows_with_calls_and_thoughts_are_the_same_however_they_are_made(
    taught_engine: Engine,
    taught_chat: Chat,
    tmp_path: Path,
    tools: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"tools": tools, "thinking": 0.5}
    whole, monitor = made(taught_engine, taught_chat, tmp_path / "a", 30, **settings)
    monkeypatch.setattr("replaykit.engines.transformers.BATCH_ROWS", 1)
    few, _ = made(taught_engine, taught_chat, tmp_path / "b", 10, **settings)
    more, resumed = made(taught_engine, taught_chat, tmp_path / "b", 30, **settings)
    assert lines(more) == lines(whole)
    assert lines(few) == lines(whole)[:10]
    assert resumed.tally.calls == monitor.tally.calls
    assert resumed.funnel.counts == monitor.funnel.counts
    kinds = Counter(key for record in whole for key in record.messages[-1])
    assert kinds["reasoning_content"] > 0
    assert kinds["tool_calls"] > 0


@pytest.mark.slow
def test_a_model_that_writes_what_is_no_call_loses_these_rows_by_name(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path, tools: str
) -> None:
    rows, monitor = made(
        taught_engine,
        taught_chat,
        tmp_path / "a",
        40,
        tools=tools,
        answer_temperature=1.6,
        min_yield=0.0,
    )
    assert len(rows) == 40
    assert DROPPED & set(monitor.funnel.counts)


@pytest.mark.slow
def test_a_conversation_ends_with_the_answer_that_calls(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path, tools: str
) -> None:
    rows, _ = made(taught_engine, taught_chat, tmp_path / "a", 40, tools=tools, turns=2)
    assert any("tool_calls" in record.messages[-1] for record in rows)
    for record in rows:
        calling = ["tool_calls" in message for message in record.messages]
        assert not any(calling[:-1])
        assert (len(record.messages) == 2) <= (calling[-1] or record.meta.get("finish") == "length")


@pytest.mark.slow
def test_prompts_keep_their_own_tools_and_the_others_get_those_of_the_recipe(
    taught_engine: Engine, taught_chat: Chat, tmp_path: Path, tools: str
) -> None:
    asked = [task.prompt for task in world.draw("capital", 16, seed=9)]
    prompts = [Record(dialogue(text), "generate", {}, (WEATHER,)) for text in asked]
    prompts += [Record(dialogue(text), "generate") for text in asked]
    rows, monitor = made(
        taught_engine, taught_chat, tmp_path / "a", None, prompts=prompts, tools=tools
    )
    for record in rows:
        own = record.meta["row"] < len(asked)
        assert record.tools == ((WEATHER,) if own else (CAPITAL_OF,))
    called = [record for record in rows if "tool_calls" in record.messages[-1]]
    assert called, monitor.funnel.counts
    # The only tool that it has learned to call is no tool of the first four.
    assert all(record.tools == (CAPITAL_OF,) for record in called)
    assert len(rows) + monitor.funnel.counts.total() == len(prompts)


@pytest.mark.slow
def test_the_step_is_done_anew_with_other_tools_and_shows_the_calls(
    taught: Path, tmp_path: Path
) -> None:
    path = written_to(tmp_path / "tools.json", [CAPITAL_OF])
    run = Run(tmp_path, model=str(taught), generate={"tools": str(path), "n": 8} | LIMITS)
    result = run.do("generate")["generate"]
    assert isinstance(result, GenerateResult)
    assert result.calls is not None
    assert result.calls.called + result.calls.uncalled == 8
    assert result.calls.words in shown(result)
    assert result.calls.words in "".join(replay_cards("generate", result))
    tally = Tally()
    for record in read_jsonl(run.folder / "generate/rows.jsonl"):
        tally.add(record, None, kept=True)
    assert tally.calls == result.calls
    written_to(path, [CAPITAL_OF, WEATHER])
    [todo] = todos(run.recipe, Context())
    assert todo.changes(run.folder / "generate") == [f"{path} has changed"]


@pytest.mark.parametrize("said", ["true", 1, "no", 0.5])
def test_a_wish_that_is_neither_true_nor_false_is_refused(said: object) -> None:
    prompts = [Record(dialogue("How is it?"), "generate", {"thinking": said})]
    with pytest.raises(DataError, match="has thinking: .*; it says true or false"):
        Answering(thinker(), Generate(), 1, prompts)
    thought = [Record(dialogue("How is it?"), "generate", {"thinking": "The user asks."})]
    assert Answering(thinker(), Generate(thinking=True), 1, thought).thinking(0) is True


# --- what cannot be -------------------------------------------------------------------------------


def test_tools_that_the_template_does_not_show_are_refused_before_anything_is_drawn(
    chat: Chat, tools: str
) -> None:
    with pytest.raises(ChatError, match="its chat template shows no tools"):
        Answering(chat, Generate(tools=tools), 1, None)
    own = [Record(dialogue("?"), "generate", {}, (WEATHER,))]
    with pytest.raises(ChatError, match="its chat template shows no tools"):
        Answering(chat, Generate(), 1, own)
    assert Answering(thinker(), Generate(tools=tools), 1, None).tools(3) == (CAPITAL_OF,)


@pytest.mark.real
def test_smollm2_which_shows_no_tools_is_refused_by_name(smollm2: Path, tools: str) -> None:
    with pytest.raises(ChatError, match="its chat template shows no tools"):
        Answering(Chat.load(str(smollm2)), Generate(tools=tools), 1, None)


def test_the_command_line_names_a_tool_that_is_wrong(here: Path) -> None:
    written_to(here / "tools.json", [{"name": "f", "parameters": {"type": "int"}}])
    typed = ["generate", "--model", "nano", "--tools", "tools.json", "-n", "2"]
    for command in (typed, [*typed, "--dry-run"]):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 1
        assert "tools.json: tool f: parameters is a schema of type 'int'" in found.output


def test_checks_of_answers_stay_off_where_they_are_off(tmp_path: Path) -> None:
    secret = QWEN_CALL.replace("Oslo", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8")
    _, why = answered(shipped("qwen2_5"), tmp_path, secret, checks=Checks(secrets=False))
    assert why is None
