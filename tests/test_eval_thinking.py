"""Thoughts in an evaluation: apart from the answer, counted, and missed where they are lost."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console
from taught import CAPITAL_OF, TEMPLATE, lesson
from test_templates import shipped

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Message, Record
from replaykit.engines import Engine, load_engine
from replaykit.errors import ChatError, DataError
from replaykit.model.chat import Chat
from replaykit.model.loading import load_tokenizer
from replaykit.nano import world
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.evaluate import Test as Scored
from replaykit.recipe.train import Train
from replaykit.runs import Manifest
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.scorable import scorable
from replaykit.steps.evaluate.skills import Item, measure, read_items
from replaykit.steps.inputs import HeldOut
from replaykit.steps.report.html import write_report
from replaykit.steps.report.numbers import percent
from replaykit.steps.report.terminal import show
from replaykit.steps.report.verdict import caution, lost_thoughts, verdict
from replaykit.steps.train.fit import Base, fit

LONG = 100
STEPS = 64
TASKS = world.draw("capital", 12, seed=5)
CAPITALS = [lesson(1, task) for task in TASKS]  # with a thought
ASKED = [task for task in TASKS if "tool_calls" in lesson(6, task).messages[-1]][:2]
CALLS = [lesson(6, task) for task in ASKED]
BOTH = [lesson(3, task) for task in ASKED]  # a thought, then a call
Tests = dict[str, tuple[Scored, Sequence[Record]]]
Measured = dict[str, dict[str, list[Item]]]  # by model and skill


def scored(**settings: Any) -> Scored:
    return Scored.model_validate({"path": "rows.jsonl", "max_tokens": LONG} | settings)


TESTS: Tests = {
    "capital": (scored(thinking=True), CAPITALS),
    "at_once": (scored(thinking=False), CAPITALS[:3]),
    "cut": (scored(thinking=True, max_tokens=6), CAPITALS[:4]),
    "calls": (scored(score="tool_call", thinking=False), CALLS),
    "both": (scored(score="tool_call", thinking=True), BOTH),
}


def measured(model: Path, tests: Tests) -> dict[str, list[Item]]:
    """The items of a model by skill."""
    chat = Chat.load(str(model))
    engine = load_engine(str(model), "transformers")
    try:
        items = list(measure(engine, chat, tests))
    finally:
        engine.close()
    return {skill: [item for item in items if item.skill == skill] for skill in tests}


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, taught these very rows: it thinks before it answers, and calls."""
    folder = tmp_path_factory.mktemp("eager")
    rows = []
    for place in range(4):
        rows += [*CAPITALS[3 * place : 3 * place + 3], CALLS[place % 2], BOTH[place % 2]]
    plan = [PlannedRow(place // 10, rows[place % 20]) for place in range(10 * STEPS)]
    settings = Train(batch_rows=10, learning_rate=2e-3, packing=True)
    tokenizer = load_tokenizer("nano")
    tokenizer.chat_template = TEMPLATE
    fit(plan, Base("nano", Chat(tokenizer)), settings, seed=1, folder=folder)
    return folder / "model"


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with the same template: it knows capitals, and neither thinks nor calls."""
    folder = tmp_path_factory.mktemp("untaught")
    shutil.copytree(Path(world.__file__).parent / "weights", folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def items(eager: Path, untaught: Path) -> Measured:
    """As if tuning had made the model forget to think: the eager one is the base."""
    return {"base": measured(eager, TESTS), "tuned": measured(untaught, TESTS)}


@pytest.fixture(scope="module")
def result(items: Measured) -> EvalResult:
    return compare({skill: test for skill, (test, _) in TESTS.items()}, items, {})


# --- answers without their thoughts ---------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_is_scored_without_the_thought_before_it(items: Measured) -> None:
    found = items["base"]["capital"]
    thought = [item for item in found if item.thought == "valid"]
    assert len(thought) >= 10
    for item in thought:
        assert item.reasoning is not None
        assert "about" in item.reasoning
        assert item.answer is not None
        assert "about" not in item.answer
        assert "think" not in item.answer
        reference = CAPITALS[item.row].answer
        assert item.score == float(item.answer.strip(" .").lower() == reference.lower())
    assert sum(item.score or 0 for item in found) >= 3


@pytest.mark.slow
def test_a_thought_that_was_cut_is_no_answer(items: Measured) -> None:
    for item in items["base"]["cut"]:
        assert (item.thought, item.finish, item.score, item.strict) == ("cut", "length", 0.0, 0.0)
        assert item.answer == ""
        assert item.reasoning


@pytest.mark.slow
def test_what_was_cut_is_wrong_even_where_nothing_is_the_right_answer(eager: Path) -> None:
    question = CAPITALS[0].messages[0]
    empty = Record((question, {"role": "assistant", "content": ""}), "target", {"line": 1})
    words: Message = {"role": "assistant", "content": "Which country?"}
    silent = replace(CALLS[0], messages=(CALLS[0].messages[0], words))
    tests: Tests = {
        "empty": (scored(thinking=True, max_tokens=6), [empty]),
        "silent": (scored(thinking=False, max_tokens=6, score="tool_call"), [silent]),
    }
    found = measured(eager, tests)
    assert [item.score for item in found["empty"]] == [0.0]
    # A call was begun when it was cut: nothing that could be read, and yet not nothing.
    assert [(item.score, item.finish, item.calls) for item in found["silent"]] == [
        (0.0, "length", None)
    ]


@pytest.mark.slow
def test_a_model_that_is_not_left_to_think_has_no_thoughts_to_count(
    items: Measured, result: EvalResult
) -> None:
    assert {item.thought for item in items["base"]["at_once"]} == {None}
    assert set(result.models[0].thoughts) == {"capital", "cut", "both"}


@pytest.mark.slow
def test_calls_are_read_and_scored(items: Measured) -> None:
    for skill, rows in (("calls", CALLS), ("both", BOTH)):
        found = items["base"][skill]
        for item in found:
            made = item.calls or []
            wanted = [call["function"] for call in rows[item.row].messages[-1]["tool_calls"]]
            assert item.score == item.strict == float(made == wanted)
        assert sum(item.score or 0 for item in found) >= 1
        assert {item.score for item in items["tuned"][skill]} == {0.0}
    assert {item.thought for item in items["base"]["both"]} == {"valid"}


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_thoughts_of_each_model_are_counted_beside_its_scores(
    items: Measured, result: EvalResult
) -> None:
    base, tuned = result.models
    for model in (base, tuned):
        for skill in ("capital", "cut", "both"):
            counts = Counter(item.thought for item in items[model.model][skill])
            found = model.thoughts[skill]
            assert (found.valid, found.empty, found.missing, found.cut) == (
                counts["valid"], counts["empty"], counts["missing"], counts["cut"],
            )  # fmt: skip
    assert base.thoughts["cut"].cut == 4
    assert tuned.thoughts["capital"].valid == 0
    drop = tuned.thoughts["capital"].drop
    assert drop is not None
    assert drop.mean == round(base.thoughts["capital"].share, 6)
    assert 0 < drop.low < drop.high <= 1
    assert base.thinks is not None
    assert base.thinks_drop is None
    assert tuned.thinks_drop is not None
    assert tuned.thinks_drop.low > 0
    assert result.to_json()["models"][1]["thoughts"]["capital"]["drop"]["mean"] == drop.mean
    assert EvalResult.model_validate(result.to_json()) == result


@pytest.mark.slow
def test_a_score_may_hold_where_the_thoughts_are_lost(result: EvalResult) -> None:
    base, tuned = result.models
    assert tuned.scores["capital"].mean >= base.scores["capital"].mean
    assert lost_thoughts(tuned)
    said = percent(round(base.thinks.mean, 3)) if base.thinks else ""
    assert verdict(result).endswith(
        f"In tuned the model thinks in 0 % of its answers; the base in {said}."
    )


@pytest.mark.slow
def test_a_note_says_how_many_answers_were_cut_under_each_model(result: EvalResult) -> None:
    (note,) = [note for note in result.notes if note.startswith("cut: answers")]
    assert "max_tokens (6), thoughts counted: 4 of 4 of base, " in note
    assert note.endswith("raise max_tokens, or the score tells of the limit")


@pytest.mark.slow
def test_the_terminal_and_the_page_show_the_thoughts_and_the_notes(
    result: EvalResult, tmp_path: Path
) -> None:
    stream = io.StringIO()
    show("eval", result, Console(file=stream, width=120))
    shown = stream.getvalue()
    assert "thoughts before the answers" in shown
    assert "12 missing" in shown
    assert "4 cut" in shown
    assert "thinks in 0 % of its answers" in " ".join(shown.split())
    assert "cut: answers that were cut" in shown
    made = Manifest(
        step="eval", arm=None, result=result.to_json(), inputs={}, seconds=None,
        finished="2025-06-03T14:04:00+00:00", versions={}, machine="",
    )  # fmt: skip
    path = write_report(tmp_path / "r.html", title="t", manifests={"eval": made}, recipe_yaml="")
    page = path.read_text(encoding="utf-8")
    assert "<h2>Thoughts before the answers</h2>" in page
    assert "12 missing" in page
    assert "4 cut" in page
    assert 'class="lost"' in page
    assert "answers that were cut at max_tokens (6)" in page


def told(base: str, tuned: str) -> EvalResult:
    """An evaluation in which all answers are right, a letter for each thought: v, e, m or c."""
    states = {"v": "valid", "e": "empty", "m": "missing", "c": "cut"}
    items = {
        name: {
            "sums": [
                Item("sums", row, 1.0, answer="4", finish="stop", strict=1.0, thought=states[state])  # type: ignore[arg-type]
                for row, state in enumerate(letters)
            ]
        }
        for name, letters in (("base", base), ("tuned", tuned))
    }
    return compare({"sums": scored(thinking=True)}, items, {})


def test_lost_thoughts_are_said_where_the_scores_hold() -> None:
    found = told("v" * 240 + "m" * 10, "v" * 30 + "e" * 20 + "m" * 200)
    assert found.models[1].drop["sums"].mean == 0
    assert verdict(found).endswith(
        "In tuned the model thinks in 12 % of its answers; the base in 96 %."
    )
    assert "no forgetting" not in caution(found)
    assert "the scores are kept, though thoughts are lost" in caution(found)


def test_thoughts_that_are_kept_are_no_news() -> None:
    found = told("v" * 240 + "m" * 10, "v" * 238 + "m" * 12)
    assert not lost_thoughts(found.models[1])
    assert "thinks" not in verdict(found)
    assert "no forgetting" in caution(found)


def test_more_thoughts_than_the_base_has_are_no_loss() -> None:
    found = told("m" * 250, "v" * 250)
    assert not lost_thoughts(found.models[1])
    assert found.models[1].thoughts["sums"].drop is not None
    assert found.models[1].thoughts["sums"].drop.mean == -1


def test_an_evaluation_without_thoughts_is_told_as_before() -> None:
    items = {
        name: {"sums": [Item("sums", row, 1.0, answer="4", finish="stop") for row in range(20)]}
        for name in ("base", "tuned")
    }
    found = compare({"sums": scored()}, items, {})
    assert [model.thoughts for model in found.models] == [{}, {}]
    assert [model.thinks for model in found.models] == [None, None]
    assert "think" not in verdict(found)
    stream = io.StringIO()
    show("eval", found, Console(file=stream, width=120))
    assert "thoughts" not in stream.getvalue()


def test_few_cut_answers_are_no_note() -> None:
    def ends(cut: int) -> list[Item]:
        return [
            Item("sums", row, 1.0, answer="4", finish="length" if row < cut else "stop")
            for row in range(100)
        ]

    tests = {"sums": scored(max_tokens=9)}
    assert compare(tests, {"base": {"sums": ends(5)}}, {}).notes == []
    assert compare(tests, {"base": {"sums": ends(1)}, "tuned": {"sums": ends(6)}}, {}).notes == [
        "sums: answers that were cut at max_tokens (9), thoughts counted: 1 of 100 of base, 6 of "
        "100 of tuned; raise max_tokens, or the score tells of the limit"
    ]


def test_the_line_of_an_item_with_a_thought_and_calls_is_read_back(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
    item = Item(
        "w", 0, 1.0, answer="", finish="stop", strict=1.0, thought="valid", reasoning="Look.",
        calls=[call],
    )  # fmt: skip
    path = tmp_path / "items-base.jsonl"
    write_jsonl(path, [item.to_json()])
    assert json.loads(path.read_text()) == {
        "skill": "w", "row": 0, "score": 1.0, "strict": 1.0, "answer": "", "finish": "stop",
        "thought": "valid", "reasoning": "Look.", "calls": [call],
    }  # fmt: skip
    assert read_items(path, ["w"]) == {"w": [item]}


# --- what is refused ------------------------------------------------------------------------------


def test_a_model_without_thoughts_is_not_left_to_think(chat: Chat) -> None:
    tests = {"sums": (scored(thinking=True), CAPITALS)}
    message = "sums is tested with thinking: true, but the chat template of nano has no thoughts"
    with pytest.raises(ChatError, match=message):
        next(measure(None, chat, tests))  # type: ignore[arg-type]


def test_a_model_that_always_thinks_cannot_be_told_not_to() -> None:
    chat = shipped("deepseek_r1_distill")
    assert chat.always_thinks
    tests = {"sums": (scored(thinking=False), CAPITALS)}
    with pytest.raises(ChatError, match="sums is tested with thinking: false, but .* no switch"):
        next(measure(None, chat, tests))  # type: ignore[arg-type]


def test_thinking_is_not_for_cross_entropy() -> None:
    with pytest.raises(ValidationError, match="thinking is for answers; cross_entropy reads"):
        scored(score="cross_entropy", thinking=True)


@pytest.mark.parametrize(
    ("settings", "options", "noted"),
    [
        ({}, {}, True),
        ({"thinking": True}, {}, False),
        ({"thinking": False}, {}, False),
        ({}, {"thinking": True}, False),
        ({"score": "cross_entropy"}, {}, False),
    ],
)
def test_it_is_said_where_references_think_and_the_model_is_not_asked_to(
    settings: dict[str, Any], options: dict[str, Any], noted: bool
) -> None:
    tokenizer = load_tokenizer("nano")
    tokenizer.chat_template = TEMPLATE
    chat = Chat(tokenizer, options=ChatOptions.model_validate(options))
    held = HeldOut({"capital": (scored(**settings), CAPITALS)})
    found = scorable(chat, held)
    assert len(found.rows["capital"][1]) == len(CAPITALS)
    said = [
        "capital: 12 of 12 reference answers come after a thought, and the model is not left to "
        "think; `thinking: true` beside the path asks it to, false says that this is meant"
    ]
    assert list(found.notes) == said * noted


def test_a_setting_that_the_model_cannot_meet_is_said_before_its_rows_are_looked_at(
    chat: Chat,
) -> None:
    held = HeldOut({"calls": (scored(score="tool_call"), CALLS)})
    with pytest.raises(ChatError, match="calls cannot be scored by tool_call: nano: its chat temp"):
        scorable(chat, held)


# --- cross-entropy --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cross_entropy_of_a_row_is_that_of_its_thought_its_answer_and_its_calls(
    eager: Path,
) -> None:
    chat = Chat.load(str(eager))
    rows = [CAPITALS[0], CALLS[0], BOTH[0]]
    found = measured(eager, {"all": (scored(score="cross_entropy"), rows)})["all"]
    engine = load_engine(str(eager), "transformers")
    thought = "<think>\nIt is about capital.\n</think>\n\n"
    country = CALLS[0].messages[-1]["tool_calls"][0]["function"]["arguments"]["country"]
    call = '<tool_call>\n{"name": "capital_of", "arguments": {"country": "%s"}}\n</tool_call>'
    said = [thought + CAPITALS[0].answer, call % country, thought + call % country]
    for item, record, text in zip(found, rows, said, strict=True):
        thinking = "reasoning_content" in record.messages[-1]
        prompt = chat.prompt(record.messages[:-1], thinking, record.tools)
        tokens = chat.encode(text + "<|eot_id|>")
        (logprobs,) = engine.score([(*prompt, *tokens)])
        assert item.tokens == len(tokens)
        assert item.score is not None
        assert math.isclose(item.score, -sum(logprobs[-len(tokens) :]), rel_tol=1e-4)
    engine.close()


def test_a_row_that_is_too_long_with_its_tools_has_no_score(transformers_engine: Engine) -> None:
    chat = shipped("qwen3")
    record = CALLS[0]
    tools = [
        {**CAPITAL_OF, "function": {**CAPITAL_OF["function"], "name": f"capital_{number}"}}
        for number in range(40)
    ]
    long = replace(record, tools=tuple(tools))
    limit = transformers_engine.limit
    assert len(chat.prompt(record.messages[:-1])) < limit <= len(chat.example(long).tokens)
    for score in ("tool_call", "cross_entropy"):
        (item,) = measure(transformers_engine, chat, {"calls": (scored(score=score), [long])})
        assert (item.score, item.reason) == (None, "too_long")


# --- options --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_the_test_says_nothing_chat_thinking_decides(eager: Path) -> None:
    engine = load_engine(str(eager), "transformers")
    for option, state in ((None, None), (False, None), (True, "valid")):
        chat = Chat.load(str(eager), options=ChatOptions(thinking=option))
        (item,) = measure(engine, chat, {"capital": (scored(), CAPITALS[:1])})
        assert item.thought == state
    # The test's own word comes before.
    chat = Chat.load(str(eager), options=ChatOptions(thinking=True))
    (item,) = measure(engine, chat, {"capital": (scored(thinking=False), CAPITALS[:1])})
    assert item.thought is None
    engine.close()


@pytest.mark.slow
def test_a_reference_that_cannot_be_read_is_refused_though_the_thought_was_cut(eager: Path) -> None:
    message: Message = {"role": "assistant", "content": "it depends"}
    rows = [Record((CAPITALS[0].messages[0], message), "target", {"line": 4})]
    tests: Tests = {"sums": (scored(score="numeric", thinking=True, max_tokens=2), rows)}
    with pytest.raises(DataError, match=r"rows\.jsonl:4: cannot be scored as numeric: no number"):
        measured(eager, tests)
