"""No part of a question and no bad answer goes to ``meta`` unseen: it is read, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from test_rows import messages, one, refusal

from replaykit.data.formats import prompt_of
from replaykit.data.record import dialogue
from replaykit.errors import DataError
from replaykit.recipe.data import Data
from replaykit.steps.inputs import load

Row = Mapping[str, Any]
FILE = {"bytes": b"\x89PNG", "path": None}
ASKED = {"from": "human", "value": "q"}
GOOD = {"from": "gpt", "value": "good"}
BAD = {"from": "gpt", "value": "bad"}
CALL = {"role": "tool_call", "content": '{"name": "now"}'}


# --- media ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "Colour?", "answer": "red"}, {}),
        ({"text": "t"}, {}),
        ({"messages": list(dialogue("q", "a"))}, {}),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, {"preferred": "chosen"}),
        ({"q": "q", "a": "a"}, {"prompt": "q", "answer": "a"}),
        ({"q": "q", "a": "a"}, {"prompt": "Say {q}", "answer": "{a}"}),
    ],
)
@pytest.mark.parametrize(
    ("media", "holds"),
    [
        ({"image": "cat.png"}, "'image' holds an image"),
        ({"images": ["cat.png"]}, "'images' holds an image"),
        ({"audio": FILE}, "'audio' holds audio"),
        ({"video": "cat.mp4"}, "'video' holds a video"),
        ({"picture": FILE}, "'picture' holds a media file"),
    ],
)
def test_media_are_refused_by_name_whatever_the_format(
    row: Row, columns: Row, media: Row, holds: str
) -> None:
    assert refusal({**row, **media}, **columns) == f"{holds}; replaykit carries text only"
    empty = {name: [None] for name in media}
    assert messages({**row, **empty}, **columns) == messages(row, **columns)


def test_media_beside_a_question_without_answer_are_refused_too() -> None:
    for prompt in (None, "prompt", "{prompt}"):
        with pytest.raises(DataError, match="'images' holds an image"):
            prompt_of("rows.jsonl:7", {"images": [FILE], "prompt": "q"}, prompt)


# --- parts of the question ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        ["red", "blue"],
        {"A": "red", "B": "blue", "C": None},
        {"label": ["A", "B"], "text": ["red", "blue"]},
        '["red", "blue"]',
        "A. red\nB. blue",
    ],
)
@pytest.mark.parametrize("name", ["choices", "options"])
def test_choices_stand_behind_the_question_with_their_letters(choices: Any, name: str) -> None:
    expected = dialogue("Colour?\nA. red\nB. blue", "B")
    assert messages({"question": "Colour?", name: choices, "answer": "B"}) == expected
    row = {"question": "Colour?\nA. red\nB. blue", name: choices, "answer": "B"}
    assert messages(row) == expected


def test_choices_that_have_their_letters_get_no_others() -> None:
    row = {"question": "3 * 7?", "options": ["A)21", "B)22"], "correct": "A", "answer": "A"}
    assert messages(row) == dialogue("3 * 7?\nA)21\nB)22", "A")
    row = {"question": "3 * 7? (A) 21 (B) 22", "options": ["A)21", "B)22"], "answer": "A"}
    assert messages(row) == dialogue("3 * 7? (A) 21 (B) 22", "A")
    said = refusal({"question": "q", "choices": [["a"], ["b"]], "answer": "A"})
    assert said == "'choices' is no list of at most 26 texts"


def test_the_number_of_a_choice_is_read_by_what_its_errors_say_to_type() -> None:
    row = {"question": "Colour?", "choices": ["red", "blue"], "answer": 1}
    assert '`labels: ["first", "second", ...]` says' in refusal(row)
    labels = ["A", "B"]
    said = refusal(row, prompt="question", answer="answer", labels=labels)
    assert '`prompt: "{question}\\n{choices}"` and `answer: answer`' in said
    assert messages(
        row, prompt="{question}\n{choices}", answer="answer", labels=labels
    ) == dialogue("Colour?\nA. red\nB. blue", "B")


@pytest.mark.parametrize("name", ["context", "passage", "document", "article", "story"])
def test_what_a_question_is_about_stands_before_it_once(name: str) -> None:
    row = {name: "Ada won.", "question": "Who won?", "answer": "Ada"}
    assert messages(row) == dialogue("Ada won.\n\nWho won?", "Ada")
    whole = {name: "Ada won.", "question": "Ada won. Who won?", "answer": "Ada"}
    assert messages(whole) == dialogue("Ada won. Who won?", "Ada")


@pytest.mark.parametrize(
    ("row", "lost", "template"),
    [
        ({"prompt": "p", "input": "i", "response": "a"}, "input", "{prompt}\n{input}"),
        ({"question": "p", "input": "i", "output": "a"}, "question", "{question}\n{input}"),
        (
            {"instruction": "i", "question": "p", "answer": "a"},
            "instruction",
            "{instruction}\n{question}",
        ),
        ({"instruction": "i", "prompt": "p", "response": "a"}, "prompt", "{instruction}\n{prompt}"),
        (
            {"instruction": "i", "document": "p", "output": "a"},
            "document",
            "{instruction}\n{document}",
        ),
        ({"text": "i", "question": "p", "answer": "a"}, "text", "{text}\n{question}"),
    ],
)
def test_a_part_whose_place_is_not_known_is_refused_with_a_template_that_reads_it(
    row: Row, lost: str, template: str
) -> None:
    said = refusal(row)
    assert said.startswith(f"'{lost}' stands beside ")
    yaml_template = template.replace("\n", "\\n")
    answer = next(name for name, value in row.items() if value == "a")
    assert f'`prompt: "{yaml_template}"` and `answer: {answer}` beside the path' in said
    asked = "\n".join(row[name] for name in template.strip("{}").split("}\n{"))
    assert messages(row, prompt=template, answer=answer) == dialogue(asked, "a")


def test_a_part_that_is_in_the_conversation_already_is_no_loss() -> None:
    alpaca = {"instruction": "Add", "input": "2", "output": "4", "text": "### Add ### 2 ### 4"}
    assert messages(alpaca) == dialogue("Add\n\n2", "4")
    row = {"prompt": " q ", "chosen": list(dialogue("q", "a")), "rejected": "b"}
    assert messages(row, preferred="chosen") == dialogue("q", "a")


def test_a_named_column_with_a_passage_beside_it_is_refused_and_a_template_is_as_written() -> None:
    row = {"question": "Who?", "context": "Ada won.", "text": "t", "answers": "Ada"}
    said = refusal(row, prompt="question", answer="answers")
    assert '`prompt: "{context}\\n{question}"` and `answer: answers`' in said
    assert messages(row, prompt="{question}", answer="answers") == dialogue("Who?", "Ada")


def test_the_number_0_is_an_input() -> None:
    row = {"instruction": "Square", "input": 0, "output": "0"}
    assert refusal(row).startswith("'input' is int, not text")
    assert messages(row, prompt="{instruction} {input}", answer="output") == dialogue(
        "Square 0", "0"
    )


def test_a_history_beside_a_conversation_is_refused_unless_it_is_in_it() -> None:
    row = {"messages": [*dialogue("x", "y"), *dialogue("q", "a")]}
    assert messages({**row, "history": [["x", "y"]]}) == tuple(row["messages"])
    assert refusal({**row, "history": [["x", "z"]]}).startswith("'history' stands beside")


def test_named_columns_keep_what_stands_beside_them() -> None:
    beside = {"system": "SYS", "history": [["x", "y"]], "tools": [{"name": "now"}]}
    record = one({**beside, "q": "q", "a": "a"}, prompt="q", answer="a")
    assert record.messages == (*dialogue("x", "y", system="SYS"), *dialogue("q", "a"))
    assert [tool["function"]["name"] for tool in record.tools] == ["now"]
    assert record.meta == {"line": 7}
    row = {"system": "SYS", "q": "q", "a": "a"}
    assert messages(row, prompt="{system}: {q}", answer="a") == dialogue("SYS: q", "a")
    assert prompt_of("rows.jsonl:7", row, "q").messages == dialogue("q", system="SYS")


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["summary", "label", "labels", "sentiment", "intent", "target", "code", "answer", "output", "response", "completion"],
)  # fmt: skip
def test_a_text_with_an_answer_is_no_plain_text(name: str) -> None:
    row = {"text": "Long.", name: "Short."}
    assert f"`prompt: text` and `answer: {name}` beside the path" in refusal(row)
    assert messages(row, prompt="text", answer=name) == dialogue("Long.", "Short.")
    assert messages({**row, name: ""}) == ({"role": "text", "content": "Long."},)


def test_a_text_with_a_role_is_a_turn_of_a_conversation() -> None:
    row = {"text": "Hello", "role": "prompter", "parent_id": None}
    assert refusal(row).startswith("text with a role, one turn of a conversation")


def test_turns_as_json_text_are_turns_in_every_column() -> None:
    asked = json.dumps(dialogue("q"))
    said = json.dumps(dialogue("", "{a}")[1:], sort_keys=True)
    both = json.dumps(dialogue("q", "{a}"), indent=1)
    expected = dialogue("q", "{a}")
    assert messages({"prompt": asked, "completion": said}) == expected
    assert messages({"p": asked, "c": said}, prompt="p", answer="c") == expected
    assert messages({"chosen": both, "rejected": both}, preferred="chosen") == expected
    row = {"prompt": asked, "chosen": said, "rejected": said}
    assert messages(row, preferred="chosen") == expected
    for prompt in (None, "prompt"):
        for value in (asked, list(dialogue("q"))):
            assert prompt_of("rows.jsonl:7", {"prompt": value}, prompt).messages == dialogue("q")


@pytest.mark.parametrize(
    "text", ['[{"role": "user", "age": 3}]', '{"from": "a", "to": "b"}', "[1, 2]", "{x} + 1", "[{"]
)
def test_other_json_is_the_text_that_it_is(text: str) -> None:
    assert messages({"prompt": text, "completion": text}) == dialogue(text, text)


def test_turns_as_python_writes_them_are_refused() -> None:
    row = {"prompt": str(list(dialogue("q"))), "completion": "a"}
    assert refusal(row).startswith("'prompt': not JSON")


@pytest.mark.parametrize("before", [[], [ASKED, {"from": "gpt", "value": "earlier"}]])
def test_the_chosen_answer_follows_a_conversation_that_ends_with_a_question(
    before: list[Row],
) -> None:
    row = {"conversations": [*before, ASKED], "chosen": GOOD, "rejected": BAD}
    assert "`preferred: chosen` beside the path" in refusal(row)
    read = messages(row, preferred="chosen")
    assert read[-2:] == dialogue("q", "good")
    assert len(read) == len(before) + 2
    alone = {"conversations": [*before, ASKED], "chosen": GOOD}
    assert "`prompt: conversations` and `answer: chosen`" in refusal(alone)
    assert messages(alone, prompt="conversations", answer="chosen") == read
    assert prompt_of("rows.jsonl:7", alone).messages == read[:-1]


@pytest.mark.parametrize("flag", [False, "False", "false", 0, "0", 0.0])
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_a_bad_answer_is_refused_whatever_the_columns(flag: Any, name: str) -> None:
    for answer in ("completion", "response"):
        assert refusal({"prompt": "q", answer: "bad", name: flag}).startswith("an undesirable")
    row = {"q": "q", "a": "bad", name: flag}
    assert refusal(row, prompt="q", answer="a").startswith("an undesirable answer")
    row = {"messages": list(dialogue("q", "bad")), name: flag}
    assert refusal(row).startswith("an undesirable answer")
    assert one({"prompt": "q", "completion": "a", name: True}).meta[name] is True
    labelled = {"text": "t", "label": 0}
    assert messages(labelled, prompt="text", answer="label", labels=["no", "yes"]) == dialogue(
        "t", "no"
    )


# --- thoughts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_column_belongs_to_the_answer(name: str) -> None:
    thought = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    turns = [{"role": "assistant", "content": "4"}]
    for row in (
        {"question": "2 + 2?", "answer": "4"},
        {"question": "2 + 2?", "answer": "<think>two and two</think>4"},
        {"prompt": list(dialogue("2 + 2?")), "completion": turns},
    ):
        record = one({**row, name: "\ntwo and two\n"})
        assert record.messages == (*dialogue("2 + 2?"), thought)
        assert record.meta == {"line": 7}
    row = {"q": "2 + 2?", "a": "4", name: "two and two"}
    assert messages(row, prompt="q", answer="a") == (*dialogue("2 + 2?"), thought)
    row = {"question": "q", "answer": "<think>other</think>4", name: "two and two"}
    assert refusal(row) == f"'{name}' and another thought of the answer differ"


def test_a_closing_mark_within_words_ends_no_thought() -> None:
    answer = "The tag is </think>\nUse it."
    assert messages({"prompt": "q", "completion": answer}) == dialogue("q", answer)


def test_calls_made_at_once_of_which_one_is_not_trained_are_refused() -> None:
    row = {"messages": [ASKED, {**CALL, "loss": True}, {**CALL, "loss": False}]}
    assert "turn 3 is a call made at once with the one before it" in refusal(row)
    row = {"messages": [ASKED, {**CALL, "loss": False}, {**CALL, "loss": False}]}
    assert messages(row)[1]["weight"] == 0
    assert len(messages(row)[1]["tool_calls"]) == 2


# --- advice ---------------------------------------------------------------------------------------


def test_the_advice_on_labels_can_be_typed(tmp_path: Any) -> None:
    said = refusal({"premise": "a", "label": 1})
    advice = said.split("; `")[-1].split("`")[0]
    assert advice == 'labels: ["no", "yes", ...]'
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "t", "label": 1}))
    data = Data(path=str(path), **yaml.safe_load(advice.replace(", ...", "")))
    assert [record.answer for record in load(data, "target").records] == ["yes"]


def test_a_number_is_read_by_a_template_as_its_error_says() -> None:
    row = {"question": "2 + 2?", "answer": 4}
    assert '"{answer}" in place of its name reads the number as it is' in refusal(row)
    assert messages(row, prompt="question", answer="{answer}") == dialogue("2 + 2?", "4")
    assert "reads the number" not in refusal({"question": "2 + 2?", "answer": True})
