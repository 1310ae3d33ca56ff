"""Suites on form and conduct: an ideal answer is right, and one answer to everything is at chance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

from replaykit.checks.scoring import SCORERS, readings_of
from replaykit.checks.scoring.instructions import KINDS, read
from replaykit.checks.texts import language
from replaykit.checks.tool_calls import readings_of_calls
from replaykit.data.formats import record_of
from replaykit.data.record import Message, Record, message_of
from replaykit.data.tools import fault_of
from replaykit.suites import rows, suite_of

NAMES = ("instructions", "json", "json_schema", "tools", "refusals", "language")
DECLINE = "I'm sorry, but I can't help with that."
HELP = "Of course. First, take your time and gather what you need; then begin slowly."


def records(name: str, n: int = 200) -> list[Record]:
    path = f"suite:{name}"
    found = enumerate(rows(path, n), 1)
    return [record_of(f"{path}:{number}", row, "target") for number, row in found]


# --- ideal answers --------------------------------------------------------------------------------


def kept_to(constraints: list[dict[str, Any]]) -> str:
    """An answer that keeps to all of them, as the suite puts them together."""
    given = {constraint["kind"]: constraint for constraint in constraints}
    needed = given.pop("contains", {"text": "so", "at_least": 1})
    need = " ".join([needed["text"]] * needed.get("at_least", 1))
    if not given:
        return need
    ((kind, asked),) = given.items()
    n = asked.get("exactly", 0)
    written = {
        "words": " ".join([need, *["on"] * (asked.get("at_least", 1) - 1)]),
        "sentences": " ".join([f"It is {need}."] * n),
        "paragraphs": "\n\n".join([need] * n),
        "bullets": "\n".join([f"- {need}"] * n),
        "numbered": "\n".join(f"{number}. {need}" for number in range(1, n + 1)),
        "title": f"<<{need}>>",
        "quoted": f'"{need}"',
        "json": json.dumps({"text": need}),
        "two_answers": f"{need}\n{asked.get('separator')}\nor {need}",
        "lower_case": need.lower(),
        "upper_case": need.upper(),
        "no_commas": need,
        "highlights": f"*{need}* " * asked.get("at_least", 0),
        "postscript": f"{need}\nP.S. More.",
        "avoids": need,
        "starts_with": f"{asked.get('text')}, it is so.",
        "ends_with": f"It is so. {asked.get('text')}",
    }
    return written[kind]


def allowed(schema: Mapping[str, Any]) -> Any:
    """A value that a schema of the suite allows."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {key: allowed(of_key) for key, of_key in schema["properties"].items()}
        case "array":
            return [allowed(schema["items"])] * schema["minItems"]
        case "integer":
            return 7
        case "boolean":
            return True
    return "Ada"


def ideal(name: str, record: Record) -> str | Message:
    """An answer that is right."""
    match name:
        case "instructions":
            return kept_to(json.loads(record.answer))
        case "json_schema":
            return json.dumps(allowed(json.loads(record.answer)))
        case "tools":
            return record.messages[-1]
        case "refusals":
            return DECLINE if record.answer == "refuse" else HELP
        case "language":
            return record.prompt  # in the language of the question
    return record.answer


def right(name: str, answer: str | Message, record: Record) -> float:
    """The score of an answer, the lenient reading."""
    if name == "tools":
        message = message_of("assistant", answer) if isinstance(answer, str) else answer
        return float(readings_of_calls(message, record.messages[-1]).lenient)
    assert isinstance(answer, str)
    return float(readings_of(suite_of(f"suite:{name}").score, answer, record).lenient)


def scored(name: str) -> None:
    score = suite_of(f"suite:{name}").score
    if score != "tool_call" and score not in SCORERS:
        pytest.skip(f"there is no scorer {score} yet")


@pytest.mark.parametrize("name", NAMES)
def test_ideal_answers_are_right(name):
    scored(name)
    found = records(name)
    assert len(found) == 200
    assert [record.prompt for record in found if right(name, ideal(name, record), record) < 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_answer_to_everything_is_at_the_stated_chance(name):
    scored(name)
    found = records(name)
    answers: list[str | Message] = ["I do not know.", DECLINE, HELP, "yes"]
    # To each item all the others' ideal answers.
    answers += [ideal(name, record) for record in found[:60]]
    best = max(sum(right(name, answer, record) for record in found) for answer in answers) / 200
    assert best == pytest.approx(suite_of(f"suite:{name}").chance, abs=0.06)


# --- what each has --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_there_are_hundreds_of_items(name):
    assert len(rows(f"suite:{name}", 500)) == 500


def test_the_instructions_are_of_many_kinds_that_can_be_kept_to_together():
    found = [json.loads(record.answer) for record in records("instructions", 1000)]
    assert all(read(json.dumps(constraints)) for constraints in found)
    kinds = Counter(constraint["kind"] for constraints in found for constraint in constraints)
    assert set(kinds) <= set(KINDS) and len(kinds) >= 17 and min(kinds.values()) >= 20
    assert {len(constraints) for constraints in found} == {1, 2}


def test_the_facts_of_the_json_suite_stand_in_its_sentences():
    for record in records("json"):
        facts = json.loads(record.answer)
        assert all(str(value) in record.prompt for value in facts.values())
        assert all(f'"{key}"' in record.prompt for key in facts)


def test_the_schemas_are_schemas_and_their_keys_are_asked_for():
    for record in records("json_schema"):
        schema = json.loads(record.answer)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(allowed(schema), schema)
        assert all(f'"{key}"' in record.prompt for key in schema["required"])


def test_a_fifth_of_the_requests_call_nothing_and_all_others_one_tool_that_is_offered():
    found = records("tools", 1000)
    called = [record for record in found if "tool_calls" in record.messages[-1]]
    assert len(called) / len(found) == pytest.approx(0.8, abs=0.04)
    for record in called:
        (call,) = record.messages[-1]["tool_calls"]
        schemas = {tool["function"]["name"]: tool["function"] for tool in record.tools}
        assert len(schemas) >= 3
        function = call["function"]
        jsonschema.validate(function["arguments"], schemas[function["name"]]["parameters"])
        assert all(str(value) in record.prompt for value in function["arguments"].values())
    assert all(fault_of(tool) is None for record in found[:50] for tool in record.tools)


def test_half_of_the_requests_are_to_be_refused():
    answers = Counter(record.answer for record in records("refusals", 500))
    assert set(answers) == {"refuse", "comply"}
    assert answers["refuse"] / 500 == pytest.approx(0.5, abs=0.06)


def test_every_question_is_in_its_language():
    found = records("language", 900)
    codes = [json.loads(record.answer)[0]["code"] for record in found]
    assert set(codes) == set("de fr es it pt nl pl sv ru".split())
    assert [language(record.prompt) for record in found] == codes


def test_one_word_to_everything_is_in_no_language():
    assert [right("language", "Yes.", record) for record in records("language", 50)] == [0.0] * 50
