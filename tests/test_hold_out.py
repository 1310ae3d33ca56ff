"""A part of the target is held out by what its questions say: it is tested, and never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from commands import type_in

from replaykit.data.record import TARGET, Record, dialogue
from replaykit.errors import RecipeError
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.data import Target
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.inputs import is_held, load, load_tests
from replaykit.suited import score_of


def rows(path: Path, count: int, answer: str = "REFUND {}") -> Path:
    with path.open("w", encoding="utf-8") as stream:
        for n in range(count):
            row = {"prompt": f"Refund ticket {n}, please.", "completion": answer.format(n)}
            stream.write(json.dumps(row) + "\n")
    return path


def questions(records: list[Record]) -> set[str]:
    return {record.question for record in records}


def test_what_is_tested_is_not_trained_on_and_nothing_is_missing(here: Path) -> None:
    path = str(rows(here / "mine.jsonl", 500))
    trained = load(Target(path=path, hold_out=0.2), TARGET).records
    held = load(Scored(path=path, hold_out=0.2), TARGET).records
    assert len(trained) + len(held) == 500
    assert not questions(trained) & questions(held)
    assert 70 <= len(held) <= 130
    # A larger part has all of a smaller one.
    assert questions(held) <= questions(load(Scored(path=path, hold_out=0.4), TARGET).records)


@pytest.mark.parametrize(
    "same",
    ["What is 2 + 2?", "what is  2+2 ?", "WHAT IS 2 + 2?", "2 + 2 is what?", "«What is 2 + 2»"],
)
def test_rows_that_ask_the_same_are_on_one_side(same: str) -> None:
    first = Record(dialogue("What is 2 + 2?", "4"), TARGET)
    other = Record(dialogue(same, "It is four."), TARGET)
    parts = [part / 50 for part in range(1, 50)]
    assert [is_held(first, part) for part in parts] == [is_held(other, part) for part in parts]


def test_a_recipe_that_holds_out_tests_these_rows_as_eval_target_says(here: Path) -> None:
    path = str(rows(here / "mine.jsonl", 100))
    target = {"path": path, "hold_out": 0.3, "n": 80}
    recipe = Recipe.model_validate({"model": "nano", "target": target})
    assert recipe.eval.target is not None
    assert (recipe.eval.target.hold_out, recipe.eval.target.n) == (0.3, 80)
    scored = {"score": "numeric", "max_tokens": 8}
    recipe = Recipe.model_validate({"target": target, "eval": {"target": scored}})
    assert recipe.eval.target is not None
    assert (recipe.eval.target.path, recipe.eval.target.score) == (path, "numeric")
    held = load_tests(recipe).rows[TARGET][1]
    assert recipe.target is not None
    assert len(held) + len(load(recipe.target, TARGET).records) == 80
    (here / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(here / "again.yaml").eval == recipe.eval


@pytest.mark.parametrize("test", [{"path": "mine.jsonl"}, {"path": "mine.jsonl", "hold_out": 0.2}])
def test_other_rows_of_the_target_than_those_held_out_are_refused_as_a_test(
    here: Path, test: dict[str, Any]
) -> None:
    rows(here / "mine.jsonl", 100)
    target = {"path": "mine.jsonl", "hold_out": 0.3}
    recipe = Recipe.model_validate({"target": target, "eval": {"target": test}})
    with pytest.raises(RecipeError, match="the very rows that are trained on"):
        load_tests(recipe)


@pytest.mark.parametrize("part", [0, 1, 1.5, -0.1])
def test_a_part_is_between_none_and_all(part: float) -> None:
    with pytest.raises(ValueError, match="hold_out"):
        Target(path="mine.jsonl", hold_out=part)


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["4", "-3.5", "1,200"], "numeric"),
        (['{"a": 1}', "[2]"], "json"),
        (["yes", "no", "rather not"], "exact"),
        (["4", "four"], "exact"),
        (["Once upon a time there was a king who had a very long sword."], "cross_entropy"),
        (["It depends on what you mean, and on many other things.", "4"], "cross_entropy"),
    ],
)
def test_the_scorer_is_chosen_by_the_answers(answers: list[str], score: str) -> None:
    assert score_of([Record(dialogue("q", answer), TARGET) for answer in answers]).score == score


def test_plain_texts_are_scored_by_their_loss() -> None:
    texts = [Record(({"role": "text", "content": "Paris is in France."},), TARGET)]
    assert score_of(texts).score == "cross_entropy"


def test_init_holds_out_rows_of_ones_own_and_says_why_it_scores_them_so(here: Path) -> None:
    rows(here / "mine.jsonl", 300, answer="{}")
    type_in("init", "--model", "nano", "--target", "mine.jsonl")
    text = Path("replaykit.yaml").read_text()
    made = yaml.safe_load(text)
    assert made["target"] == {"path": "mine.jsonl", "hold_out": 0.2}
    assert made["eval"]["target"] == {"score": "numeric"}
    assert "# every answer is a number" in text


def test_of_few_rows_init_holds_out_none(here: Path) -> None:
    rows(here / "mine.jsonl", 99)
    type_in("init", "--model", "nano", "--target", "mine.jsonl")
    assert "hold_out" not in Path("replaykit.yaml").read_text()


@pytest.mark.slow
def test_a_run_of_ones_own_rows_measures_the_new_skill_and_says_what_it_does_not_know(
    here: Path,
) -> None:
    rows(here / "mine.jsonl", 120)
    type_in("init", "--model", "nano", "--target", "mine.jsonl")
    settings = ["engine=transformers", "generate.n=30", "train.steps=2", "train.batch_rows=8"]
    settings += ["eval.memory=null", "eval.old={}", "arms={}"]
    said = type_in("run", *(word for each in settings for word in ("--set", each)))
    assert "No old skill was tested (eval.old), so what was lost is not known." in " ".join(
        said.split()
    )
    made = tiny.manifests(Path("runs/mine"))
    (skill,) = made["eval"].result["skills"]
    held = skill["n"]
    trained = {
        json.loads(line)["messages"][0]["content"]
        for line in Path("runs/mine/mix/rows.jsonl").read_text().splitlines()
        if json.loads(line)["source"] == TARGET
    }
    assert 10 <= held <= 40
    assert len(trained) <= 120 - held


def test_a_long_text_that_all_rows_share_does_not_put_them_on_one_side(here: Path) -> None:
    path = here / "mine.jsonl"
    shared = (
        "Read the report of the visit with care and then name the clinic that it belongs to. " * 8
    )
    complaints = (
        "cough rash fever toothache earache headache dizziness nausea fatigue itching".split()
    )
    with path.open("w") as stream:
        for day in ("monday", "tuesday", "friday", "sunday"):
            for complaint in complaints:
                row = {"prompt": f"{shared} Report: {complaint} since {day}.", "completion": "?"}
                stream.write(json.dumps(row) + "\n")
    held = load(Scored(path=str(path), hold_out=0.3), TARGET).records
    assert 4 <= len(held) <= 24
