"""A judge grades answers after they are all there; a reply that cannot be read is never a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_judge import Scripted

from replaykit.checks.scoring.judge import GRADES, MAX_TOKENS, SCHEMA, Answered, grade_of, grades
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.judged import judge_of, judged
from replaykit.steps.evaluate.skills import Item, measure

ROW = Record(dialogue("What is 2 + 2?", "4"), "target", {"line": 1})
JUDGED = Scored(path="chat.jsonl", score="judge", max_tokens=8)
GOOD = '{"correctness": 5, "helpfulness": 3}'


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        (GOOD, 0.75),
        (f"```json\n{GOOD}\n```", 0.75),
        ('{"correctness": 1, "helpfulness": 1}', 0.0),
        ('{"correctness": 5, "helpfulness": 5}', 1.0),
        ('{"correctness": 6, "helpfulness": 5}', None),
        ('{"correctness": true, "helpfulness": 5}', None),
        ('{"correctness": "5", "helpfulness": 5}', None),
        ('{"correctness": 5}', None),
        ("5", None),
        ("", None),
        ("{" * 100_000, None),
    ],
)
def test_a_reply_is_a_grade_of_0_to_1_or_none(reply: str, grade: float | None) -> None:
    assert grade_of(reply) == grade


def test_the_schema_and_the_room_are_those_of_the_reply() -> None:
    assert json.loads(SCHEMA)["required"] == list(GRADES)
    assert len(GOOD) <= MAX_TOKENS


def test_the_judge_is_asked_greedily_with_the_reference_before_the_answer(chat: Chat) -> None:
    engine: Any = Scripted(chat, {0: GOOD, 1: "I like it."})
    found = dict(grades(engine, chat, [Answered(ROW, "It is four."), Answered(ROW, "5")]))
    assert found == {0: 0.75, 1: "unparsed"}
    asked = chat.decode(engine.asked[0].tokens)
    assert asked.index("What is 2 + 2?") < asked.index("\n4\n") < asked.index("It is four.")
    assert engine.asked[0].sampling.temperature == 0
    assert engine.asked[0].sampling.schema == SCHEMA


def test_what_the_judge_cannot_read_is_too_long(chat: Chat) -> None:
    engine: Any = Scripted(chat, {}, limit=100)
    assert dict(grades(engine, chat, [Answered(ROW, "4")])) == {0: "too_long"}


def test_answers_wait_for_the_judge_and_a_recipe_must_name_one(
    chat: Chat, transformers_engine: Any
) -> None:
    (item,) = measure(transformers_engine, chat, {"chat": (JUDGED, [ROW])})
    assert (item.score, item.reason) == (None, "unjudged")
    assert item.answer
    with pytest.raises(RecipeError, match="name it with `judge: "):
        judge_of(Recipe.model_validate({"model": "nano"}), {"chat": (JUDGED, [ROW])})
    with pytest.raises(RecipeError, match="score: judge needs a judge model"):
        load_recipe(
            None,
            {"model": "nano", "eval": {"old": {"chat": {"path": "x.jsonl", "score": "judge"}}}},
        )


def test_a_judge_that_does_not_reply_as_asked_gives_no_score(chat: Chat) -> None:
    """The embedded model, which knows nothing of grades, as a judge: a real run to its end."""
    old = {"chat": {"path": "chat.jsonl", "score": "judge"}}
    recipe = Recipe.model_validate(
        {"model": "nano", "eval": {"old": old, "judge": {"model": "nano"}}}
    )
    rows = {"chat": (JUDGED, [ROW])}
    judge = judge_of(recipe, rows)
    assert judge is not None
    items = {"chat": [Item("chat", 0, None, answer="4", finish="stop", reason="unjudged")]}
    found = judged(recipe, judge, rows, items, "judge base", lambda *_: None)
    assert found["chat"][0].score is None
    assert found["chat"][0].reason in ("unparsed", "too_long")
    with pytest.raises(DataError, match="name another judge"):
        compare({"chat": JUDGED}, {"base": found}, {})


def test_a_judge_does_not_steer_a_training_nor_the_accuracy_matrix(tmp_path: Path) -> None:
    test = {"path": "x.jsonl", "score": "judge"}
    with pytest.raises(RecipeError, match="asks none while it trains"):
        load_recipe(
            None,
            {
                "model": "nano",
                "target": "t.jsonl",
                "eval": {"old": {"chat": test}, "judge": {"model": "nano"}},
                "train": {"controller": {}},
            },
        )
    with pytest.raises(RecipeError, match="right or wrong"):
        load_recipe(
            None, {"model": "nano", "tasks": [{"name": "a", "target": "t.jsonl", "eval": test}]}
        )
