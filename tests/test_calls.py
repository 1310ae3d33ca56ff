"""Tool calls are read back as the model's own template writes them, with no table of families."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError

from replaykit.data.record import Tool, ToolCall
from replaykit.errors import ChatError
from replaykit.model.calls import CallFormat, Render, tool_call
from replaykit.model.loading import load_tokenizer

TRL = Path(str(find_spec("trl") and find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
WEATHER: Tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "units": {"type": "object"},
            },
            "required": ["city"],
        },
    },
}
OSLO = tool_call("get_weather", {"city": "Oslo"})
CALLS = [
    [OSLO],
    [tool_call("get_weather", {})],
    [tool_call("get_weather", {"city": 'São Paulo, "SP" {1}', "days": 3})],
    [tool_call("get_weather", {"city": "12345", "units": {"wind": "m/s", "list": [1, 2.5]}})],
    [tool_call("get_weather", {"city": "two\nlines"}), tool_call("list-files", {"path": "/a b"})],
]


def rendering(template: str, *, as_text: bool = False) -> Render:
    """What the template writes of an answer, with the embedded model's tokenizer around it."""
    tokenizer = load_tokenizer("nano")

    def render(content: str, calls: Sequence[ToolCall]) -> str:
        answer: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            answer["tool_calls"] = [_as_text(call) if as_text else call for call in calls]
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": "Q1zz"}, answer],
                chat_template=template,
                tools=[dict(WEATHER)],
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatError(str(error)) from error
        return str(text).rpartition("Q1zz")[2]

    return render


def _as_text(call: ToolCall) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}


def format_of(name: str) -> tuple[CallFormat, Render]:
    """The format of a template of TRL's, and how that renders."""
    template = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    for as_text in (False, True):
        render = rendering(template, as_text=as_text)
        try:
            found = CallFormat.derive(render)
        except ChatError:
            continue
        if found is not None:
            return found, render
    raise AssertionError(f"{name}: no format")


def families() -> list[str]:
    """The templates of TRL's that show a call at all."""
    names = []
    for path in sorted(TRL.glob("*.jinja")):
        for as_text in (False, True):
            try:
                shown = rendering(path.read_text(encoding="utf-8"), as_text=as_text)("", [OSLO])
            except ChatError:
                continue
            if "Oslo" in shown:
                names.append(path.stem)
            break
    return names


FAMILIES = families()


def written(render: Render, calls: Sequence[ToolCall]) -> str | None:
    """What the template writes after the question; None where it refuses so many calls."""
    try:
        return render("", calls)
    except ChatError:
        return None


def test_most_templates_show_calls() -> None:
    assert len(FAMILIES) >= 40


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_read_as_the_template_writes_them(name: str) -> None:
    made, render = format_of(name)
    for calls in CALLS:
        text = written(render, calls)
        if text is None or (len(calls) > 1 and "/a b" not in text):
            assert len(calls) > 1, "one call is never refused"
            continue
        read = made.read(text, [WEATHER])
        assert list(read.calls) == calls, text


FORMATS = {
    "qwen3": (
        "object",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
    "llama3_1": ("object", '{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
    "glm4moe": (
        "pieces",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    ),
    "qwen3_6": (
        "pieces",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    ),
    "lfm2_v2": ("pieces", "<|tool_call_start|>[get_weather(city='Oslo')]<|tool_call_end|>"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_words_before_a_call_are_its_content(name: str) -> None:
    kind, text = FORMATS[name]
    made, _ = format_of(name)
    assert made.kind == kind
    read = made.read(f"Let me look.\n{text}", [WEATHER])
    assert (read.content, list(read.calls)) == ("Let me look.", [OSLO])


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_without_a_call_is_left_as_it_is(name: str) -> None:
    made, _ = format_of(name)
    for text in ("Seven degrees.", "", 'An object: {"name": 3}', "f(x=1) is a function", "[1, 2]"):
        read = made.read(text, [WEATHER])
        assert not read.calls or text.startswith("f(")
        if not read.calls:
            assert read.content == text


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_was_cut_is_no_call(name: str) -> None:
    made, _ = format_of(name)
    _, text = FORMATS[name]
    cut = text[: text.index("Oslo") + 2]
    read = made.read(cut, [WEATHER])
    assert read.calls == ()
    assert read.content == cut


def test_the_schema_tells_a_text_from_a_number() -> None:
    made, _ = format_of("qwen3_6")
    text = FORMATS["qwen3_6"][1].replace("Oslo", "12345")
    assert made.read(text, [WEATHER]).calls[0]["function"]["arguments"] == {"city": "12345"}
    assert made.read(text).calls[0]["function"]["arguments"] == {"city": 12345}


def test_a_template_without_calls_has_no_format() -> None:
    for name in ("llama3", "phi3", "gemma"):
        template = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
        assert CallFormat.derive(rendering(template)) is None
