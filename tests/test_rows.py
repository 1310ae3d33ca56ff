"""Rows of other people's files: what was lost or altered without a word is read, or refused by name."""

from __future__ import annotations

import datetime
import gzip
import json
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from replaykit.data.dataset import to_dataset
from replaykit.data.files import Hub, raw_rows
from replaykit.data.formats import Columns, read_prompts, read_records, record_of
from replaykit.data.record import Message, Record, dialogue
from replaykit.errors import DataError
from replaykit.recipe.data import Data
from replaykit.steps.inputs import load, load_prompts

Row = Mapping[str, Any]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def one(row: Row, **columns: Any) -> Record:
    return record_of("rows.jsonl:7", row, "target", Columns(**columns))


def messages(row: Row, **columns: Any) -> tuple[Message, ...]:
    return one(row, **columns).messages


def refusal(row: Row, **columns: Any) -> str:
    with pytest.raises(DataError) as raised:
        one(row, **columns)
    assert str(raised.value).startswith("rows.jsonl:7: ")
    return str(raised.value).removeprefix("rows.jsonl:7: ")


def answered(turn: Row) -> Message:
    """What is read of an answer to "q"."""
    return messages({"messages": [{"role": "user", "content": "q"}, turn]})[1]


def read_all(path: Path, **options: Any) -> tuple[list[str], dict[str, str]]:
    """The texts that are read of a file, and why other rows are refused, by line."""
    refused: dict[str, str] = {}

    def note(place: str, error: DataError) -> None:
        refused[place.rpartition(":")[2]] = str(error)

    records = list(read_records(path, "select", unparsed=note, **options))
    return [record.question for record in records], refused


def write_table(path: Path, columns: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    return path


# --- what stands beside question and answer -------------------------------------------------------

BEFORE = ({"role": "system", "content": "SYS"}, *dialogue("Capital of France?", "Paris."))
BESIDE = {
    "ms-swift": (
        {"system": "SYS", "query": "And of Peru?", "response": "Lima.", "history": [["Capital of France?", "Paris."]]},
        (*BEFORE, *dialogue("And of Peru?", "Lima.")),
    ),
    "messages beside a system column": (
        {"system": "SYS", "messages": list(dialogue("q", "a"))},
        dialogue("q", "a", system="SYS"),
    ),
    "a system column that the conversation repeats": (
        {"system": "SYS", "conversations": list(dialogue("q", "a", system="SYS"))},
        dialogue("q", "a", system="SYS"),
    ),
    "a history of turns, as JSON text": (
        {"query": "c", "response": "d", "history": json.dumps(dialogue("a", "b"))},
        (*dialogue("a", "b"), *dialogue("c", "d")),
    ),
    "a question on a context": (
        {"question": "Who won?", "context": "Ada won the race.", "answer": "Ada"},
        dialogue("Ada won the race.\n\nWho won?", "Ada"),
    ),
    "a question on several passages": (
        {"question": "q", "passage": ["a", "b"], "answer": "c"},
        dialogue("a\n\nb\n\nq", "c"),
    ),
    "a prompt with an empty context": (
        {"prompt": "q", "context": "", "completion": "a"},
        dialogue("q", "a"),
    ),
    "Dolly's original": (
        {"instruction": "Sum up", "context": "Long.", "response": "Short.", "category": "x"},
        dialogue("Sum up\n\nLong.", "Short."),
    ),
    "Dolly's original without a context": (
        {"instruction": "q", "context": "", "response": "a", "category": "x"},
        dialogue("q", "a"),
    ),
    "Magpie": ({"instruction": "q", "response": "a"}, dialogue("q", "a")),
    "Magpie with the conversation beside it": (
        {
            "conversation_id": "x1", "instruction": "q", "response": "a",
            "conversations": list(dialogue("q", "a")),
        },
        dialogue("q", "a"),
    ),
    "OpenOrca": (
        {"id": "flan.1", "system_prompt": "SYS", "question": "q", "response": "a"},
        dialogue("q", "a", system="SYS"),
    ),
    "OpenOrca without a system prompt": (
        {"id": "flan.1", "system_prompt": "", "question": "q", "response": "a"},
        dialogue("q", "a"),
    ),
    "inputs and targets": ({"inputs": "q", "targets": "a"}, dialogue("q", "a")),
    "inputs and targets of a named task": (
        {"inputs": "q", "targets": "a", "task_name": "nli", "template_idx": 3},
        dialogue("q", "a"),
    ),
    "messages as JSON text": ({"messages": json.dumps(dialogue("q", "a"))}, dialogue("q", "a")),
    "a ShareGPT conversation as JSON text": (
        {"conversations": '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'},
        dialogue("q", "a"),
    ),
    "null beside another format": (
        {"messages": None, "instruction": None, "output": None, "question": "q", "answer": "a"},
        dialogue("q", "a"),
    ),
    "a conversation beside nulls": (
        {"prompt": "q", "completion": None, "text": float("nan"), "messages": list(dialogue("c", "d"))},
        dialogue("c", "d"),
    ),
    "a system that is NaN": (
        {"system": float("nan"), "instruction": "q", "input": float("nan"), "output": "a"},
        dialogue("q", "a"),
    ),
    "a system beside a conversation that is NaN": (
        {"system": float("nan"), "messages": list(dialogue("q", "a"))},
        dialogue("q", "a"),
    ),
    "a history that is NaN": (
        {"query": "q", "response": "a", "history": float("nan")},
        dialogue("q", "a"),
    ),
    "a history whose last question has no answer": (
        {"query": "q3", "response": "a", "history": [["q1", "a1"], ["q2", float("nan")]]},
        (*dialogue("q1", "a1"), *dialogue("q2"), *dialogue("q3", "a")),
    ),
    "a history without an answer": (
        {"instruction": "q2", "output": "a", "history": [["q", None]]},
        (*dialogue("q"), *dialogue("q2", "a")),
    ),
    "a thought beside question and answer": (
        {"question": "2 + 2?", "reasoning_content": "two and two", "answer": "4"},
        (*dialogue("2 + 2?"), {"role": "assistant", "content": "4", "reasoning_content": "two and two"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_a_format_reads_the_columns_that_its_own_documentation_names(name: str) -> None:
    row, expected = BESIDE[name]
    assert messages(row) == expected


@pytest.mark.parametrize("kind", [".parquet", ".jsonl"])
def test_each_row_is_read_by_its_own_columns_where_those_of_another_format_are_null(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{kind}"
    rows = [
        {"instruction": "q1", "output": "a1"},
        {"question": "q2", "answer": "a2"},
        {"query": "q3", "response": "a3", "system": "SYS"},
        {"instruction": "q4", "input": "in", "output": "a4"},
    ]
    names = ("instruction", "input", "output", "question", "answer", "query", "response", "system")
    whole = [{name: row.get(name) for name in names} for row in rows]
    if kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, whole)))
    else:
        write_table(path, {name: [row[name] for row in whole] for name in names})
    assert [record.messages for record in read_records(path, "target")] == [
        dialogue("q1", "a1"),
        dialogue("q2", "a2"),
        dialogue("q3", "a3", system="SYS"),
        dialogue("q4\n\nin", "a4"),
    ]


def test_a_context_that_is_no_text_is_refused_rather_than_lost() -> None:
    said = refusal({"question": "q", "context": {"title": ["t"]}, "answer": "a"})
    assert said == "'context' is dict, not text"


def test_two_system_messages_that_differ_are_refused() -> None:
    said = refusal({"system": "SYS", "messages": list(dialogue("q", "a", system="Other"))})
    assert said == "'system' and the conversation's own system message differ"


def test_a_question_without_its_answer_keeps_what_stands_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    row = {"system": "SYS", "query": "c", "history": [["a", "b"]], "topic": "x", "id": 4}
    path.write_text(json.dumps(row))
    [record] = read_prompts(path)
    assert record.messages == (
        {"role": "system", "content": "SYS"},
        *dialogue("a", "b"),
        *dialogue("c"),
    )
    assert record.meta == {"topic": "x", "id": 4, "line": 1}


# --- roles, tools, thoughts, weights --------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("model", "assistant"), ("User", "user"), ("human", "user"), ("gpt", "assistant"), ("observation", "tool"),
        ("developer", "developer"), ("tool", "tool"), (" ASSISTANT ", "assistant"), ("ipython", "tool"),
    ],
)  # fmt: skip
def test_a_role_has_the_names_that_chat_data_gives_it(role: str, expected: str) -> None:
    assert messages({"conversations": [{"from": role, "value": "x"}]}) == (
        {"role": expected, "content": "x"},
    )
    assert messages({"messages": [{"role": role, "content": "x"}]}) == (
        {"role": expected, "content": "x"},
    )


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("as_text", [True, False])
def test_tools_calls_and_results_are_read(content: str | None, as_text: bool) -> None:
    arguments: Any = '{"city":"Oslo"}' if as_text else {"city": "Oslo"}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    record = one(
        {
            "messages": [
                {"role": "user", "content": "Weather in Oslo?"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "content": "7 C", "tool_call_id": "c1", "name": "weather"},
                {"role": "assistant", "content": "Seven degrees."},
            ],
            "tools": json.dumps([WEATHER]) if as_text else [WEATHER],
        }
    )
    assert record.messages == (
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]},
        {"role": "tool", "content": "7 C", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "Seven degrees."},
    )
    assert record.tools == (WEATHER,)
    assert record.meta == {"line": 7}


def test_sharegpt_writes_a_call_as_a_turn_and_two_calls_at_once_as_two() -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": call},
        {"from": "tool_call", "value": call},
        {"from": "observation", "value": "7 C"},
        {"from": "gpt", "value": "Seven."},
    ]
    record = one({"conversations": turns, "tools": json.dumps([WEATHER["function"]])})
    assert record.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    assert record.messages[2] == {"role": "tool", "content": "7 C"}
    assert record.tools == (WEATHER,)


def test_the_older_name_of_a_call_is_read_and_arguments_may_be_absent() -> None:
    turn = answered({"role": "assistant", "content": None, "function_call": {"name": "now"}})
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    assert turn == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("Oslo", "turn 1: the arguments of weather: not JSON"),
        ("", "turn 1: the arguments of weather: not JSON"),
        ('["Oslo"]', "turn 1: the arguments of weather are a list, not a JSON object"),
        (4, "turn 1: the arguments of weather are a int, not a JSON object"),
    ],
)
def test_arguments_that_are_no_object_refuse_the_row(arguments: Any, said: str) -> None:
    call = {"function": {"name": "weather", "arguments": arguments}}
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert refusal(row).startswith(said)


def test_tools_that_are_no_functions_refuse_the_row() -> None:
    row = {"messages": list(dialogue("q", "a"))}
    assert refusal({**row, "tools": "hammer"}).startswith("tools: not JSON")
    assert (
        refusal({**row, "tools": [{"type": "web_search"}]}) == "tool 1 is no function with a name"
    )
    assert one({**row, "tools": "[]"}).tools == one({**row, "tools": []}).tools == ()


def test_calls_of_different_tools_keep_their_own_arguments_in_parquet(tmp_path: Path) -> None:
    calls = [
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"name": "add", "arguments": {"a": 1}},
    ]
    rows = [
        {"messages": [*dialogue("q"), {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in calls
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = [record.messages for record in read_records(tmp_path / "rows.parquet", "target")]
    assert [turn[0] for turn in read] == [*dialogue("q"), *dialogue("q")]
    assert [turn[1]["tool_calls"][0]["function"] for turn in read] == calls


THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}


@pytest.mark.parametrize(
    "turn",
    [
        {"reasoning_content": "two and two", "content": "4"},
        {"reasoning": "two and two", "content": "4"},
        {"thinking": "\ntwo and two\n", "content": "4"},
        {"content": "<think>two and two</think>4"},
        {"content": "<think>\ntwo and two\n</think>\n\n4"},
        {"content": "two and two\n</think>\n\n4"},
        {"content": "<think>two and two</think>4", "reasoning_content": "two and two"},
        {"content": [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}]},
    ],
)  # fmt: skip
def test_a_thought_is_kept_as_the_thought_of_its_turn(turn: Row) -> None:
    assert answered({"role": "assistant", **turn}) == THOUGHT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>\n\n</think>\n\n4", "4"),
        ("Write </think> to close it.", "Write </think> to close it."),
        ("First <think>x</think>", "First <think>x</think>"),
        ("<think>never closed", "<think>never closed"),
        ("  4\n", "  4\n"),
    ],
)
def test_an_answer_without_a_thought_has_none(content: str, expected: str) -> None:
    assert answered({"role": "assistant", "content": content}) == {
        "role": "assistant",
        "content": expected,
    }


def test_two_thoughts_that_differ_are_refused() -> None:
    turn = {"role": "assistant", "content": "<think>a</think>4", "reasoning_content": "b"}
    assert "another one in a field" in refusal({"messages": [turn]})
    turn = {"role": "assistant", "content": "4", "reasoning": "a", "thinking": "b"}
    assert refusal({"messages": [turn]}) == "turn 1 has several thoughts that differ"


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": 0.0}]
)
def test_a_turn_that_is_not_to_be_trained_has_weight_0(flag: Row) -> None:
    assert answered({"role": "assistant", "content": "a", **flag}) == {
        "role": "assistant",
        "content": "a",
        "weight": 0,
    }


@pytest.mark.parametrize("flag", [{"weight": 1}, {"train": True}, {"weight": None}, {"loss": 1.0}])
def test_a_turn_that_is_to_be_trained_has_no_weight(flag: Row) -> None:
    assert answered({"role": "assistant", "content": "a", **flag}) == {
        "role": "assistant",
        "content": "a",
    }


def test_a_weight_between_0_and_1_is_refused() -> None:
    turn = {"role": "assistant", "content": "a", "weight": 0.5}
    assert refusal({"messages": [turn]}) == "turn 1 has weight 0.5; replaykit carries 0 and 1"


# --- what cannot be carried -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "holds"),
    [
        ({"type": "image"}, "an image"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "an image"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "video", "video": "x"}, "a video"),
        ({"type": "file", "file": {}}, "a part of type 'file'"),
    ],
)
def test_a_part_that_is_no_text_is_refused_by_name(part: Row, holds: str) -> None:
    content = [part, {"type": "text", "text": "What is in this picture?"}]
    said = refusal({"messages": [{"role": "user", "content": content}]})
    assert said == f"turn 1 holds {holds}; replaykit carries text only"


def test_images_beside_a_conversation_are_refused_by_name() -> None:
    row = {"messages": list(dialogue("<image>What is this?", "A cat."))}
    assert (
        refusal({**row, "images": ["cat.png"]})
        == "'images' holds an image; replaykit carries text only"
    )
    assert (
        refusal({**row, "image": "cat.png"})
        == "'image' holds an image; replaykit carries text only"
    )
    assert messages({**row, "images": []}) == tuple(row["messages"])


def test_strings_in_a_content_are_joined() -> None:
    assert messages({"messages": [{"role": "user", "content": ["a", "b"]}]}) == dialogue("ab")
    turns = [
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": ["c", "d"]},
    ]
    assert messages({"messages": turns}) == dialogue("ab", "cd")
    parts = [{"type": "input_text", "text": "a"}, {"text": "b"}]
    assert messages({"messages": [{"role": "user", "content": parts}]}) == dialogue("ab")


def test_an_undesirable_answer_is_refused_with_its_reason() -> None:
    for label in (False, "False"):
        said = refusal({"prompt": "q", "completion": "bad", "label": label})
        assert said.startswith("an undesirable answer (label: false)")
    assert refusal({"messages": list(dialogue("q", "bad")), "kto_tag": False}).startswith(
        "an undesirable"
    )
    assert messages({"prompt": "q", "completion": "good", "label": True}) == dialogue("q", "good")


def test_a_preference_is_refused_until_the_recipe_asks_for_the_chosen_answer() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert "`preferred: chosen` beside the path" in refusal(row)
    assert messages(row, preferred="chosen") == dialogue("q", "good")
    assert one(row, preferred="chosen").meta == {"rejected": "bad", "line": 7}


def test_a_chosen_conversation_is_read_with_or_without_its_prompt() -> None:
    chosen = list(dialogue("q", "good"))
    rejected = list(dialogue("q", "bad"))
    for prompt in ({}, {"prompt": "q"}, {"prompt": list(dialogue("q"))}):
        row = {**prompt, "chosen": chosen, "rejected": rejected}
        assert messages(row, preferred="chosen") == dialogue("q", "good")
    row = {"prompt": list(dialogue("q")), "chosen": chosen[1:], "rejected": rejected[1:]}
    assert messages(row, preferred="chosen") == dialogue("q", "good")
    assert "no column has its question" in refusal(
        {"chosen": "a", "rejected": "b"}, preferred="chosen"
    )


# --- classification -------------------------------------------------------------------------------

NEWS = {"label": 3, "title": "Chips", "text": "Smaller ones."}
TOPICS = ["World", "Sports", "Business", "Sci/Tech"]


def test_labels_have_words_and_columns_are_joined_by_a_template() -> None:
    record = one(NEWS, prompt="{title}\n{text}", answer="label", labels=TOPICS)
    assert record.messages == dialogue("Chips\nSmaller ones.", "Sci/Tech")
    assert record.meta == {"line": 7}
    pair = {"premise": "A dog runs.", "hypothesis": "It moves.", "label": 0}
    template = "{premise}\n{hypothesis}"
    assert messages(
        pair, prompt=template, answer="label", labels=["yes", "maybe", "no"]
    ) == dialogue("A dog runs.\nIt moves.", "yes")
    named = {"0": "yes", 2: "no", "entailment": "yes"}
    for label, word in ((0, "yes"), ("2", "no"), (2.0, "no"), ("entailment", "yes")):
        row = {**pair, "label": label}
        assert messages(row, prompt=template, answer="label", labels=named)[1]["content"] == word


@pytest.mark.parametrize("label", [4, -1, "x", None, float("nan"), [1]])
def test_a_label_without_a_word_is_refused(label: Any) -> None:
    said = refusal({**NEWS, "label": label}, prompt="text", answer="label", labels=TOPICS)
    assert said.startswith("'label' is ")


def labelled(value: Any, classes: Sequence[str], labels: Any = None) -> str:
    """The answer of a text with this label, or these, where a classifier has the classes."""
    column = "labels" if isinstance(value, list) else "label"
    named = Columns(classes=tuple(classes), labels=labels)
    if labels is not None:
        named = replace(named, prompt="text", answer=column)
    return record_of("rows.jsonl:7", {"text": "Chips", column: value}, "target", named).answer


STARS = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("value", "classes", "name"),
    [
        ("3", STARS, "3"),
        ("0", ["1", "0"], "0"),
        ("1", ["1", "0"], "1"),
        (1, ["0", "1", "2"], "1"),  # its name and its place are the same
        ("yes", ["1", "yes"], "yes"),
        ("2", TOPICS, "Business"),
        (2, TOPICS, "Business"),
    ],
)
def test_a_text_that_is_a_labels_name_is_that_label_and_a_number_is_a_place(
    value: Any, classes: list[str], name: str
) -> None:
    assert labelled(value, classes) == name


@pytest.mark.parametrize(
    ("value", "classes"),
    [(3, STARS), (5.0, STARS), ("0", STARS), (0, STARS), (1, ["1", "0"]), (0, ["yes", "0"])],
)
def test_a_number_that_may_be_a_place_or_a_name_is_refused_with_what_to_write(
    value: Any, classes: list[str]
) -> None:
    with pytest.raises(
        DataError, match="rows.jsonl:7: 'label' is .* a label's place, from 0 on, or its name"
    ):
        labelled(value, classes)
    # A map says which.
    assert labelled(value, classes, {int(value): "x"}) == "x"


def test_words_beside_a_path_are_for_numbers_unless_a_text_may_be_one_of_them() -> None:
    columns = {"prompt": "text", "answer": "label", "labels": STARS}
    for number in (2, 2.0):
        row = {"text": "Chips", "label": number}
        assert messages(row, **columns) == dialogue("Chips", "3")
    assert "may be a label's place, from 0 on, or its name" in refusal(
        {"text": "Chips", "label": "2"}, **columns
    )
    # Of a map the key is taken that is of the same kind, then the other.
    words = {1: "two", "1": "one", 2: "three"}
    for value, word in ((1, "two"), ("1", "one"), ("2", "three")):
        assert labelled(value, STARS, words) == word


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 0, 0], ["yes"]),
        ([1.0, 0.0, 1.0], ["yes", "maybe"]),
        ([False, True, True], ["no", "maybe"]),
        ([0, 0, 0], []),
        ([0, 2], ["yes", "maybe"]),
        ([2, 0, 1], ["maybe", "yes", "no"]),
        (["maybe", "yes", "no"], ["maybe", "yes", "no"]),
        ([], []),
    ],
)
def test_a_list_of_a_1_or_0_for_each_label_says_which_they_are(
    values: list[Any], names: list[str]
) -> None:
    assert json.loads(labelled(values, ["yes", "no", "maybe"])) == names


def test_of_two_labels_ones_and_zeros_may_be_places_and_true_and_false_are_not() -> None:
    two = ["yes", "no"]
    for values, names in (
        ([1, 1], two),
        ([0, 0], []),
        ([1.0, 0.0], ["yes"]),
        ([False, True], ["no"]),
    ):
        assert json.loads(labelled(values, two)) == names
    for refused, classes in (([1, 0], two), ([0, 1], ["0", "1"]), ([0], ["yes"])):
        with pytest.raises(DataError, match="may be places of labels or a mark for each"):
            labelled(refused, classes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2, 2, 0], "has maybe twice"),
        (["no", "no"], "has no twice"),
        (["1", "0", "0"], "has yes twice"),
        ([True, False], "2 marks for 3 labels"),
        ([1.0, 0.0, 0.0, 0.0], "4 marks for 3 labels"),
    ],
)
def test_a_list_that_names_a_label_twice_or_has_too_few_marks_is_refused(
    values: list[Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        labelled(values, ["yes", "no", "maybe"])


def test_a_numeric_label_without_words_is_an_error_that_says_so() -> None:
    assert '`labels: ["World", "Sports", ...]` says the word' in refusal(NEWS)
    assert '`labels: ["first", "second", ...]`' in refusal(NEWS, prompt="text", answer="label")
    assert '`labels: ["no", "yes", ...]`' in refusal(
        {"premise": "a", "hypothesis": "b", "label": 0}
    )


def test_a_template_with_a_column_that_no_row_has_names_the_near_one() -> None:
    said = refusal(NEWS, prompt="{titel}\n{text}", answer="label", labels=TOPICS)
    assert said == "no column 'titel' among ['label', 'text', 'title']; did you mean 'title'?"


def test_the_recipe_has_a_key_for_each(tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").write_text(json.dumps(NEWS))
    [record] = load(Data(path=str(tmp_path / "news.jsonl"), labels=TOPICS), "target").records
    assert record.messages == dialogue("Smaller ones.", "Sci/Tech")
    assert record.meta == {"title": "Chips", "line": 1}
    data = Data(path=str(tmp_path / "news.jsonl"), prompt="{title}: {text}", answer="title")
    assert [record.prompt for record in load_prompts(data).records] == ["Chips: Smaller ones."]
    with pytest.raises(ValidationError, match="given together"):
        Data(path="x", prompt="text")
    with pytest.raises(ValidationError):
        Data(path="x", preferred="rejected")  # type: ignore[arg-type]


# --- the user's own columns -----------------------------------------------------------------------


def test_the_users_id_source_and_meta_stay_in_meta() -> None:
    row = {
        "prompt": "q",
        "completion": "a",
        "id": 7,
        "source": "web",
        "meta": "plain",
        "empty": None,
    }
    assert one(row).meta == {"id": 7, "source": "web", "meta": "plain", "line": 7}
    row = {"messages": list(dialogue("q", "a")), "id": "x1", "source": "select", "meta": {"a": 1}}
    assert one(row).meta == {"id": "x1", "source": "select", "meta": {"a": 1}, "line": 7}


def test_a_row_that_replaykit_wrote_is_read_as_it_was(tmp_path: Path) -> None:
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>kept</think>", "tool_calls": [CALL]},  # type: ignore[list-item]
        {"role": "tool", "content": "7 C", "name": "weather"},
        {"role": "assistant", "content": "a", "reasoning_content": "t", "weight": 0},
    )
    record = Record(turns, "generate", {"score": 0.5}, (WEATHER,))
    again = one(record.to_json())
    assert (again.messages, again.tools, again.id) == (turns, (WEATHER,), record.id)
    assert again.meta == {"score": 0.5, "line": 7}
    to_dataset([record]).to_parquet(tmp_path / "rows.parquet")
    [again] = read_records(tmp_path / "rows.parquet", "target")
    assert (again.messages, again.tools, again.id) == (turns, (WEATHER,), record.id)
    assert again.meta == {"score": 0.5, "line": 1}


# --- folders --------------------------------------------------------------------------------------


def folder_of(root: Path, *names: str) -> Path:
    """A folder of files, each with one row that is its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            write_table(path, {"text": [name]})
        else:
            path.write_text(json.dumps({"text": name}))
    return root


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        ("test", ["test-00000-of-00001.parquet"]),
        ("validation", ["dev.jsonl"]),
        ("all", ["dev.jsonl", "test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
    ],
)  # fmt: skip
def test_of_a_folder_the_split_that_is_asked_for_is_read(
    split: str, expected: list[str], tmp_path: Path
) -> None:
    names = [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "test-00000-of-00001.parquet",
        "dev.jsonl",
    ]
    hidden = [
        ".ipynb_checkpoints/train.jsonl",
        ".cache/x.parquet",
        ".train.jsonl",
        "dataset_infos.json",
    ]
    folder_of(tmp_path, *names, *hidden)
    assert read_all(tmp_path, split=split) == (expected, {})


def test_a_folder_whose_names_say_no_split_is_read_whole(tmp_path: Path) -> None:
    names = ["a.jsonl", "contest.jsonl", "part-00000-of-00001.parquet"]
    folder_of(tmp_path, *names)
    for split in ("train", "test"):
        assert read_all(tmp_path, split=split)[0] == names


def test_the_folder_of_a_file_may_say_its_split_and_the_rest_is_train(tmp_path: Path) -> None:
    folder_of(tmp_path, "test/a.jsonl", "b.jsonl", "data/train_sft-00000-of-00001.parquet")
    assert read_all(tmp_path, split="train")[0] == ["b.jsonl"]
    assert read_all(tmp_path, split="test")[0] == ["test/a.jsonl"]
    assert read_all(tmp_path, split="train_sft")[0] == ["data/train_sft-00000-of-00001.parquet"]
    with pytest.raises(
        DataError,
        match=r"no file of the split 'train_sf'; did you mean 'train_sft'\?.*`split: NAME`",
    ):
        read_all(tmp_path, split="train_sf")
    with pytest.raises(DataError, match="`skip` and `n` take a part of a folder"):
        read_all(tmp_path, split="train[:10]")


def test_a_subset_of_a_folder_is_one_that_readme_lists_or_a_folder_in_it(tmp_path: Path) -> None:
    folder_of(tmp_path, "main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl")
    assert read_all(tmp_path, hub=Hub(subset="main"))[0] == ["main/train.jsonl"]
    with pytest.raises(DataError, match="no folder 'mian' in it"):
        read_all(tmp_path, hub=Hub(subset="mian"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: main\n  data_files:\n  - {split: train, path: main/train*}\n"
        "- config_name: steps\n  data_files: socratic/*\n---\n# A data set\n"
    )
    assert read_all(tmp_path, hub=Hub(subset="steps"))[0] == ["socratic/train.jsonl"]
    with pytest.raises(DataError, match="which subset.*main, steps"):
        read_all(tmp_path)
    with pytest.raises(DataError, match="no file of the split 'test'"):
        read_all(tmp_path, split="test", hub=Hub(subset="main"))


def test_what_datasets_saved_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": [name, "b"]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all")
    parts["test"].select([1]).save_to_disk(tmp_path / "one")
    assert read_all(tmp_path / "all")[0] == ["train", "b"]
    assert read_all(tmp_path / "all", split="test")[0] == ["test", "b"]
    assert read_all(tmp_path / "one")[0] == ["b"]
    with pytest.raises(DataError, match="it has the splits train, test, not 'dev'"):
        read_all(tmp_path / "all", split="dev")


@pytest.mark.parametrize(
    ("path", "subset", "revision", "split"),
    [
        ("openai/gsm8k", "main", "e53f048", "test"),
        ("openai/gsm8k", "socratic", None, "train"),
        ("nyu-mll/glue", "mnli", "bcdcba7", "validation_matched"),
    ],
)
def test_subset_and_revision_of_a_hub_data_set_are_passed_on(
    path: str, subset: str, revision: str | None, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from huggingface_hub import constants

    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> list[Row]:
        asked.append((name, subset, options["revision"], options["split"]))
        if subset is None:
            text = "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']"
            raise ValueError(text)
        return [{"question": "q", "answer": "a"}]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = Data(path=path, subset=subset, revision=revision, split=split)
    assert [record.messages for record in load(data, "target").records] == [dialogue("q", "a")]
    assert asked == [(path, subset, revision, split)]
    with pytest.raises(DataError, match=r"'main', 'socratic'\]; `subset: NAME` beside the path"):
        list(raw_rows(path))


# --- one bad row ----------------------------------------------------------------------------------


def test_a_csv_row_with_a_quote_that_is_never_closed_is_named_and_the_rest_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'prompt,completion\np1,c1\np2,"c2\np3,c3\np4,"x, ""y"""\np5,c5\np6,"c6\np7,c7\n'
    )
    read, refused = read_all(path)
    assert read == ["p1", "p3", "p4", "p5", "p7"]
    assert list(refused) == ["3", "7"]
    assert all("a quote opens in it that is not closed" in reason for reason in refused.values())


def test_a_csv_cell_with_line_breaks_and_a_quote_within_words_are_no_broken_rows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\nb",c\nhe said "hi",d\n\n"say ""x""",e\n')
    assert read_all(path) == (["a\nb", 'he said "hi"', 'say "x"'], {})


def test_csv_bytes_that_are_not_utf_8_cost_their_row_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"prompt,completion\na,b\nZ\xfcrich,c\nd,e\n")
    read, refused = read_all(tmp_path / "rows.csv")
    assert read == ["a", "d"]
    assert "3: not UTF-8 text (invalid start byte)" in refused["3"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="two columns have the name 'text'"):
        read_all(tmp_path / "rows.csv")


DEEP = "[" * 5000 + "]" * 5000
HALF_DEEP = "[" * 600 + "]" * 600  # Python reads it and cannot write it


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "around.json"])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"text": "b", "n": ' + "9" * 5000 + "}", "a whole number of more than 4,300 digits"),
        ('{"text": "b", "n": ' + DEEP + "}", "nested too deep"),
        ('{"text": "b", "n": ' + HALF_DEEP + "}", "nested too deep"),
        ('{"text": "b" "n": 1}', "not JSON (Expecting ',' delimiter"),
        ('{"text": "b", "n": NULL, "c": "]}"}', "not JSON (Expecting value"),
        ('{"text": "\\ud83d"}', "half of a surrogate pair"),
        ('{"text": "Z\udcfcrich"}', "not UTF-8 text"),
    ],
)
def test_one_bad_row_is_named_and_the_rest_is_read(
    name: str, bad: str, said: str, tmp_path: Path
) -> None:
    rows = ['{"text": "a"}', bad, '{"text": "c"}']
    forms = {
        "rows.jsonl": "\n".join(rows),
        "rows.json": f"[{','.join(rows)}]",
        "around.json": f'{{"v": 1, "data": [{", ".join(rows)}]}}',
    }
    (tmp_path / name).write_bytes(forms[name].encode("utf-8", "surrogateescape"))
    read, refused = read_all(tmp_path / name)
    assert read == ["a", "c"]
    assert list(refused) == ["2"]
    assert said in refused["2"]


def test_json_lines_named_json_and_one_object_are_read(tmp_path: Path) -> None:
    (tmp_path / "lines.json").write_text('{"text": "a"}\n{"text": 1}\n{"text": "b"}\n')
    read, refused = read_all(tmp_path / "lines.json")
    assert (read, list(refused)) == (["a", "b"], ["2"])
    row = {"messages": [*dialogue("q", "a")], "tools": [WEATHER]}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=1))
    assert read_all(tmp_path / "one.json") == (["q"], {})
    (tmp_path / "empty.json").write_text("[ ]")
    assert read_all(tmp_path / "empty.json") == ([], {})


def test_a_parquet_date_out_of_range_costs_its_row_alone(tmp_path: Path) -> None:
    days = pyarrow.array([0, 10**9, 1], pyarrow.int32()).cast(pyarrow.date32())
    write_table(tmp_path / "rows.parquet", {"text": ["a", "b", "c"], "day": days})
    read, refused = read_all(tmp_path / "rows.parquet")
    assert (read, list(refused)) == (["a", "c"], ["2"])
    assert "'day' has a value that cannot be read" in refused["2"]
    when = pyarrow.array([2**62, 0], pyarrow.timestamp("ms"))
    write_table(tmp_path / "rows.parquet", {"text": ["a", "b"], "when": when})
    assert read_all(tmp_path / "rows.parquet")[0] == ["b"]


def test_a_parquet_string_that_is_not_utf_8_costs_its_row_alone(tmp_path: Path) -> None:
    # Arrow takes the bytes as they are.
    bad = pyarrow.StringArray.from_buffers(
        3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"a\xff\xfec")
    )
    write_table(tmp_path / "rows.parquet", {"text": bad})
    read, refused = read_all(tmp_path / "rows.parquet")
    assert (read, list(refused)) == (["a", "c"], ["2"])
    assert "'text' has a value that cannot be read" in refused["2"]


def test_a_date_within_range_stays_a_date(tmp_path: Path) -> None:
    write_table(tmp_path / "rows.parquet", {"text": ["a"], "day": [datetime.date(2024, 2, 29)]})
    [record] = read_records(tmp_path / "rows.parquet", "target")
    assert record.meta["day"] == datetime.date(2024, 2, 29)


# --- memory ---------------------------------------------------------------------------------------


def most_memory(path: Path) -> tuple[int, dict[str, str], float]:
    """Rows that are read, rows that are refused, and MiB at most meanwhile."""
    refused: dict[str, str] = {}
    tracemalloc.start()
    rows = raw_rows(path, unparsed=lambda place, error: refused.update({place: str(error)}))
    count = sum(1 for _ in rows)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return count, refused, most / 2**20


def repeated(path: Path, start: str, block: str, times: int, end: str) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(start.encode())
        for _ in range(times):
            stream.write(block.encode())
        stream.write(end.encode())
    return path


LONG = "long " * 200_000  # a megabyte


@pytest.mark.slow
def test_a_packed_csv_of_100_megabytes_in_one_cell_takes_bounded_memory(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.csv.gz", 'prompt,completion\na,b\nc,"', LONG, 100, '"\nd,e\n')
    count, refused, most = most_memory(path)
    assert (count, list(refused)) == (2, [f"{path}:3"])
    assert "longer than 16 MiB" in refused[f"{path}:3"]
    assert most < 100


@pytest.mark.slow
def test_a_quote_that_swallows_100_megabytes_of_lines_costs_its_row_alone(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.csv.gz", 'prompt,completion\na,b\nc,"', LONG + "\n", 40, "d,e\n")
    count, refused, most = most_memory(path)
    assert list(refused) == [f"{path}:3"]
    assert count == 1 + 39 + 1
    assert most < 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "end"),
    [("[", '{"text": "z"}]'), ('{"about": {"n": 1}, "data": [', '{"text": "z"}], "end": 2}')],
)
def test_a_json_list_of_100_megabytes_takes_bounded_memory(
    start: str, end: str, tmp_path: Path
) -> None:
    row = json.dumps({"text": LONG})
    path = repeated(tmp_path / "a.json.gz", start, f"{row},\n", 60, end)
    count, refused, most = most_memory(path)
    assert (count, refused) == (61, {})
    assert most < 150


@pytest.mark.slow
def test_a_row_of_100_megabytes_in_a_json_list_is_passed_over(tmp_path: Path) -> None:
    start = '[{"text": "a"}, {"text": "[\\\\\\"'
    path = repeated(tmp_path / "a.json.gz", start, LONG, 100, '"}, {"text": "b"}]')
    count, refused, most = most_memory(path)
    assert (count, list(refused)) == (2, [f"{path}:2"])
    assert "longer than 16 MiB" in refused[f"{path}:2"]
    assert most < 150


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("instruction,output,question,answer", "q1,a1,,\n,,q2,a2", [("q1", "a1"), ("q2", "a2")]),
        ("prompt,completion,question,answer", ",,q1,a1\nq2,a2,,", [("q1", "a1"), ("q2", "a2")]),
        ("text,question,answer", "t1,,\n,q2,a2", [("t1",), ("q2", "a2")]),
        ("question,answer", "q1,a1\n,a2", [("q1", "a1"), ("", "a2")]),
    ],
)
def test_a_table_of_two_formats_has_empty_cells_in_the_columns_of_the_other(
    tmp_path: Path, header: str, rows: str, said: list[tuple[str, ...]]
) -> None:
    (tmp_path / "both.csv").write_text(f"{header}\n{rows}\n")
    read = list(read_records(tmp_path / "both.csv", "target"))
    assert [tuple(turn["content"] for turn in record.messages) for record in read] == said
