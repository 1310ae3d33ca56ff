"""The embedded world: a split that holds, and a model that knows what it should."""

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from replaykit.data.record import dialogue
from replaykit.engines import Request, Sampling
from replaykit.model import loading
from replaykit.nano import template, world

WEIGHTS = Path(loading.ALIASES["nano"])


def test_the_package_carries_at_most_eight_megabytes_and_only_safetensors():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 8e6
    assert {path.suffix for path in WEIGHTS.iterdir()} == {".safetensors", ".json", ".jinja", ".md"}
    assert json.loads((WEIGHTS / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]


@pytest.mark.parametrize("skill", world.SKILLS)
def test_a_prompt_is_on_one_side_of_the_split_only(skill):
    trained = {task.prompt for task in world.draw(skill, 300, seed=1)}
    tested = {
        task.prompt for seed in (1, 2) for task in world.draw(skill, 60, seed=seed, held_out=True)
    }
    assert len(trained) == 300
    assert not trained & tested
    assert all(world.is_held_out(prompt) for prompt in tested)


def test_what_the_base_was_trained_on_has_no_held_out_prompt_and_no_new_skill():
    tasks = list(islice(world.stream(seed=8), 3000))
    assert not any(world.is_held_out(task.prompt) for task in tasks)
    assert {task.skill for task in tasks} == set(world.OLD_SKILLS)


@pytest.mark.parametrize("skill", world.NEW_USES)
def test_a_new_use_has_no_word_that_the_base_was_not_trained_on(skill):
    def words(tasks):
        return set(re.findall(r"\w+", " ".join(f"{task.prompt} {task.answer}" for task in tasks)))

    known = words(islice(world.stream(seed=8), 6000))
    assert words(world.draw(skill, 1000, seed=1)) <= known


def test_the_models_template_is_the_one_that_others_are_made_with():
    tokenizer = loading.load_tokenizer("nano")
    assert tokenizer.chat_template == template.TEMPLATE
    assert set(template.SPECIAL) <= set(tokenizer.get_vocab())


def test_the_same_seed_draws_the_same_tasks():
    assert world.draw_old(50, seed=4) == world.draw_old(50, seed=4)
    assert world.draw_old(50, seed=4) != world.draw_old(50, seed=5)


@pytest.mark.slow
def test_more_than_there_is_cannot_be_drawn():
    with pytest.raises(ValueError, match="the world has only"):
        world.draw("capital", 10_000, seed=1)


@pytest.mark.slow
def test_the_model_has_every_old_skill_and_no_new_one(transformers_engine, chat):
    scores = {}
    for skill in world.SKILLS:
        tasks = world.draw(skill, 40, seed=99, held_out=True)
        sampling = Sampling(temperature=0.0, max_tokens=64, stop=chat.stop)
        asked = [
            Request(row, chat.prompt(dialogue(task.prompt)), sampling)
            for row, task in enumerate(tasks)
        ]
        right = [
            chat.decode(done.tokens) == tasks[done.row].answer
            for done in transformers_engine.complete(asked)
        ]
        scores[skill] = sum(right) / len(right)
    assert min(scores[skill] for skill in world.OLD_SKILLS) >= 0.9, scores
    new = (*world.NEW_SKILLS, *world.NEW_USES)
    assert set(new) | set(world.OLD_SKILLS) == set(scores)
    assert max(scores[skill] for skill in new) <= 0.05, scores
