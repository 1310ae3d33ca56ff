"""Tool calls are read back as the model's own template writes them, with no table of families."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest

from replaykit.data.record import Message, Tool, ToolCall
from replaykit.errors import ChatError
from replaykit.model.calls import CallFormat, tool_call
from replaykit.model.loading import load_tokenizer
from replaykit.model.template import Renderer
from replaykit.recipe.chat import ChatOptions

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
    [tool_call("get_weather", {"days": 3, "city": "it's"})],
    [tool_call("get_weather", {"first name": "Ada", "a/b": 2, "city": "Oslo"})],
    [tool_call("get_weather", {"units": {"none": None, "in words": True}})],
    [tool_call("get_weather", {"city": "two\nlines"}), tool_call("list-files", {"path": "/a b"})],
]


@cache
def renderer(name: str) -> Renderer:
    """A template of TRL's with the embedded model's tokenizer."""
    tokenizer = load_tokenizer("nano")
    tokenizer.chat_template = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    return Renderer(tokenizer, ChatOptions(), name=name)


def format_of(name: str) -> CallFormat:
    found = renderer(name).call_format
    assert found is not None, f"{name}: no format"
    return found


def written(name: str, calls: Sequence[ToolCall]) -> str:
    """What the template writes after the answer's header, to the end of the turn. Raises ChatError
    where it refuses.
    """
    turns: list[Message] = [
        {"role": "user", "content": "Q1zz"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    render = renderer(name)
    _, _, text = render(turns, tools=[WEATHER]).rpartition("Q1zz")
    _, _, asked = render(turns[:1], answer=True, tools=[WEATHER]).rpartition("Q1zz")
    header = commonprefix([text, asked])  # noqa: RUF071 - they are no paths
    header = re.sub(r"<[^<>]*\Z", "", header)  # not in the middle of a mark
    return text[len(header) :].removesuffix(render.template.end_of_answer)


NAMES = sorted(path.stem for path in TRL.glob("*.jinja"))
CALLING = 40  # of TRL's templates show a call, at least


def shows_a_call(name: str) -> bool:
    try:
        return "Oslo" in written(name, [OSLO])
    except ChatError:
        return False


@pytest.mark.slow
def test_calls_are_read_as_each_template_writes_them() -> None:
    families = [name for name in NAMES if shows_a_call(name)]
    assert len(families) >= CALLING
    for name in families:
        made = format_of(name)
        for calls in CALLS:
            try:
                text = written(name, calls)
            except ChatError:
                text = ""
            # Some templates refuse a second call of a turn, or leave it out.
            if len(calls) > 1 and "/a b" not in text:
                continue
            assert list(made.read(text, [WEATHER]).calls) == calls, f"{name}: {text}"


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
    made = format_of(name)
    assert made.kind == kind
    read = made.read(f"Let me look.\n{text}", [WEATHER])
    assert (read.content, list(read.calls)) == ("Let me look.", [OSLO])


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_without_a_call_is_left_as_it_is(name: str) -> None:
    made = format_of(name)
    for text in ("Seven degrees.", "", 'An object: {"name": 3}', "f(x=1) is a function", "[1, 2]"):
        read = made.read(text, [WEATHER])
        assert not read.calls or text.startswith("f(")
        if not read.calls:
            assert read.content == text


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_was_cut_is_no_call(name: str) -> None:
    made = format_of(name)
    _, text = FORMATS[name]
    cut = text[: text.index("Oslo") + 2]
    read = made.read(cut, [WEATHER])
    assert read.calls == ()
    assert read.content == cut


def test_the_schema_tells_a_text_from_a_number() -> None:
    made = format_of("qwen3_6")
    text = FORMATS["qwen3_6"][1].replace("Oslo", "12345")
    assert made.read(text, [WEATHER]).calls[0]["function"]["arguments"] == {"city": "12345"}
    assert made.read(text).calls[0]["function"]["arguments"] == {"city": 12345}


NULL = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}


@pytest.mark.parametrize(
    ("schema", "written_as", "value"),
    [
        (NULL, "90210", "90210"),
        (NULL, "null", None),
        ({"type": ["string", "null"]}, "90210", "90210"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/zip"}, "90210", "90210"),
        ({"description": "of any type"}, "90210", "90210"),
        ({"description": "of any type"}, "[1, 2]", [1, 2]),
        ({"type": "string"}, "[1, 2]", "[1, 2]"),
        ({"type": "string"}, "null", "null"),
        ({"type": "number"}, "3", 3),
        ({"type": "boolean"}, "true", True),
        ({"type": ["integer", "null"]}, "90210", 90210),
    ],
)
def test_a_number_is_a_text_where_the_schema_admits_the_text(
    schema: dict[str, Any], written_as: str, value: object
) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": schema},
        "$defs": {"zip": {"type": "string"}},
    }
    tool: Tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    text = FORMATS["qwen3_6"][1].replace("Oslo", written_as)
    [call] = format_of("qwen3_6").read(text, [tool]).calls
    assert call["function"]["arguments"] == {"city": value}


@pytest.mark.parametrize("name", ["gemma4", "llama3_1"])
def test_words_before_a_call_are_read_though_the_template_shows_none_there(name: str) -> None:
    made = format_of(name)
    assert not made.words_first
    read = made.read(f"Let me look.{written(name, [OSLO])}", [WEATHER])
    assert (read.content, list(read.calls)) == ("Let me look.", [OSLO])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe"])
def test_where_something_would_be_lost_or_moved_nothing_is_read(name: str) -> None:
    made = format_of(name)
    _, text = FORMATS[name]
    cut = text[: text.index("Oslo")]
    for said in (f"First {text} then Rome.", f"{text} Done.", f"{text}\n{cut}"):
        assert made.found(said, [WEATHER]).calls
        assert made.read(said, [WEATHER]) == (said, ())


WITH_IDS = """
{%- for m in messages %}
    {%- if m.role == "user" %}[INST]{{ m.content }}[/INST]
    {%- elif m.tool_calls and m.content %}{{ raise_exception("no words beside calls") }}
    {%- elif m.tool_calls %}[TOOL_CALLS][
        {%- for c in m.tool_calls %}
            {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' }}
            {{- ", " if not loop.last }}
        {%- endfor %}]</s>
    {%- else %}{{ m.content }}</s>{% endif %}
{%- endfor %}"""


def test_a_call_with_an_id_of_its_own_is_read() -> None:
    tokenizer = load_tokenizer("nano")
    tokenizer.chat_template = WITH_IDS
    made = Renderer(tokenizer, ChatOptions(), name="with ids").call_format
    assert made is not None
    call = '{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "VvvODy9mT"}'
    assert list(made.read(f"[TOOL_CALLS][{call}]", [WEATHER]).calls) == [OSLO]
    other = call.replace("VvvODy9mT", "a1B2c3D4e")
    assert list(made.read(f"[TOOL_CALLS][{call}, {other}]", [WEATHER]).calls) == [OSLO, OSLO]
    said = made.read(f"I look. [TOOL_CALLS][{call}]", [WEATHER])
    assert (said.content, list(said.calls), made.words_first) == ("I look.", [OSLO], False)
    wrong = call.replace('"id"', '"key"')
    assert not made.read(f"[TOOL_CALLS][{wrong}]", [WEATHER]).calls


def test_a_template_without_calls_has_no_format() -> None:
    for name in ("llama3", "phi3", "gemma"):
        assert renderer(name).call_format is None
