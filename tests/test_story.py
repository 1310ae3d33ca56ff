"""The claim itself, measured: without replay the embedded model forgets, with 5 % of replay it does not."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.formats import read_records
from replaykit.nano import world
from replaykit.starter import NEW_TEST_ROWS, TEST_ROWS

pytestmark = pytest.mark.story


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The quickstart as a user types it, on seed 1; its evaluation by model."""
    folder = tmp_path_factory.mktemp("story") / "quickstart"
    result = CliRunner().invoke(app, ["quickstart", "--out", str(folder), "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert str(folder / "report.html") in result.stdout.replace("\n", "")
    evaluation = json.loads((folder / "eval/manifest.json").read_text())["result"]
    return folder, {model["model"]: model for model in evaluation["models"]}, evaluation["skills"]


def test_the_base_has_the_old_skills_and_not_the_new_one(story):
    _, models, skills = story
    assert len([skill for skill in skills if skill["role"] == "old"]) >= 6
    assert models["base"]["old"]["mean"] >= 0.95
    assert models["base"]["target"]["mean"] <= 0.1


def test_without_replay_the_old_skills_are_lost(story):
    assert story[1]["no-replay"]["old"]["mean"] <= 0.20


@pytest.mark.parametrize("arm", ["selected", "self-generated"])
def test_with_five_percent_of_replay_they_stay(story, arm):
    models = story[1]
    assert models[arm]["share"] == pytest.approx(0.05, abs=0.001)
    assert models[arm]["steps"] == models["no-replay"]["steps"]
    assert models[arm]["old"]["mean"] >= 0.85


@pytest.mark.parametrize("arm", ["no-replay", "selected", "self-generated"])
def test_the_new_skill_is_learned_in_every_arm(story, arm):
    models = story[1]
    assert models[arm]["target"]["mean"] >= 0.90
    assert models[arm]["target"]["mean"] >= models["no-replay"]["target"]["mean"] - 0.03


def test_no_held_out_prompt_was_trained_on(story):
    folder = story[0]
    tested = {
        r.prompt
        for skill in world.SKILLS
        for r in read_records(folder / f"data/test-{skill}.jsonl", "target")
    }
    assert len(tested) == TEST_ROWS * (len(world.SKILLS) - 1) + NEW_TEST_ROWS
    for arm in ("no-replay", "selected", "self-generated"):
        with (folder / f"mix-{arm}" / "rows.jsonl").open() as stream:
            trained = {json.loads(line)["messages"][0]["content"] for line in stream}
        assert trained
        assert not trained & tested


def test_the_report_is_one_file_that_needs_nothing_else(story):
    page = Path(story[0] / "report.html").read_text()
    assert "<svg" in page
    assert "self-generated" in page
    assert "src=" not in page.replace('src="data:', "")
