"""Drift: the base's own rows, never trained on, under the models that were tuned from it."""

import json

import pytest
from pydantic import ValidationError

from replaykit.errors import RecipeError, RunError
from replaykit.recipe import Recipe
from replaykit.steps import inputs
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.inputs import load_tests
from replaykit.steps.report.verdict import caution
from replaykit.steps.step import typed
from tests.tiny import Run


@pytest.fixture
def run(tmp_path):
    return Run(
        tmp_path,
        eval={"memory": 25},
        mix={"ratio": 0.2},
        train={"steps": 3, "learning_rate": 1e-2},
        generate={"n": 40},
    )


def test_memory_is_a_test_of_what_the_base_would_say(run):
    found = inputs.tests(run.recipe)["memory"]
    assert found.score == "cross_entropy"
    assert found.path.endswith("memory/rows.jsonl")


def test_without_its_rows_the_message_says_what_to_type(run):
    with pytest.raises(RunError, match="`replaykit memory` makes it"):
        load_tests(run.recipe)


def test_an_old_skill_cannot_have_its_name(run):
    old = {"memory": str(run.data / "test-json.jsonl")}
    with pytest.raises(RecipeError, match="call the old skill otherwise"):
        inputs.tests(run.changed(eval={"old": old}))


def test_stages_and_classifiers_have_none():
    with pytest.raises(ValidationError, match="each stage has another base"):
        task = {"name": "a", "target": "a.jsonl", "eval": "b.jsonl"}
        Recipe.model_validate(
            {"model": "nano", "tasks": [task, {**task, "name": "b"}], "eval": {"memory": 5}}
        )


@pytest.mark.slow
def test_every_row_that_is_drawn_stays_and_drift_is_measured_but_not_claimed(run):
    run.do("memory", "select", "generate", "mix", "train", "eval", "report")
    drawn = run.manifests["memory"].result
    assert drawn["rows"] == 25
    evaluation = typed(run.manifests["eval"], EvalResult, run.folder)
    facts = {skill.skill: skill for skill in evaluation.skills}
    assert (facts["memory"].role, facts["memory"].n) == ("memory", 25)
    for model in evaluation.models[1:]:
        assert model.claims["memory"].state is None
        assert model.claims["memory"].p is None
    # Three large steps move the model: its own words have become less probable.
    trained = evaluation.models[-1]
    assert trained.drop["memory"].low > 0
    assert "drift from the base" in caution(evaluation)


@pytest.mark.slow
def test_no_row_of_training_asks_what_a_row_of_memory_asks(run):
    run.do("memory", "generate")
    asked = {row.question for row in load_tests(run.recipe).rows["memory"][1]}
    made = [
        json.loads(line)
        for line in (run.folder / "generate" / "rows.jsonl").read_text().splitlines()
    ]
    assert made
    assert not asked & {row["messages"][0]["content"] for row in made}


@pytest.mark.slow
def test_every_seed_of_a_run_has_the_same_rows(run, tmp_path):
    run.do("memory")
    first = (run.folder / "memory" / "rows.jsonl").read_text()
    (tmp_path / "other").mkdir()
    other = Run(tmp_path / "other", eval={"memory": 25}, seed=7)
    other.do("memory")
    assert [json.loads(line)["messages"] for line in first.splitlines()] == [
        json.loads(line)["messages"]
        for line in (other.folder / "memory" / "rows.jsonl").read_text().splitlines()
    ]
