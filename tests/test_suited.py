"""Settings that suit a model and the rows, and what `run` adds to a recipe that says little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from replaykit.errors import RunError
from replaykit.nano import world
from replaykit.recipe import Recipe, load_recipe
from replaykit.starter import write_recipe
from replaykit.suited import kept, parameters_of, settings_of, suites_of, whole, writes


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "mine.jsonl"
    with path.open("w") as stream:
        for task in world.draw("arithmetic", 300, seed=3):
            stream.write(
                json.dumps({"question": task.prompt, "answer": task.answer.split()[-1]}) + "\n"
            )
    return str(path)


def config(folder: Path, hidden: int, layers: int) -> str:
    """A folder with the config of a Llama, and no weights."""
    folder.mkdir()
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    return str(folder)


def test_the_size_is_that_of_the_config_where_the_model_is_here(tmp_path):
    assert parameters_of("nano") == 1_967_808
    assert parameters_of(config(tmp_path / "m", 512, 4)) > 30e6


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama3", 8e9),
        ("qwen2.5-0.5b", 0.5e9),
        ("smollm2-135m", 135e6),
        ("phi4", None),
        ("mistral", 7e9),
    ],
)
def test_else_it_is_what_the_name_says(name, parameters, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert parameters_of(name) == parameters


def test_a_small_model_learns_whole_and_a_large_one_by_an_adapter(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    small = settings_of("smollm2-135m", 3000)
    middle = settings_of("qwen2.5-1.5b", 3000)
    large = settings_of("llama3", 3000)
    largest = settings_of("llama3-70b", 3000)
    assert [found.method for found in (small, middle, large, largest)] == [
        "full",
        "full",
        "lora",
        "lora",
    ]
    assert small.learning_rate > middle.learning_rate == pytest.approx(2e-5)
    assert large.learning_rate == 2 * largest.learning_rate
    assert "128 GB" in large.method_reason


def test_a_model_of_unknown_size_has_an_adapter_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = settings_of("phi4", 100)
    assert found.method == "lora"
    assert "not known" in found.method_reason


@pytest.mark.parametrize("rows", [1, 40, 300, 3_000, 30_000, 300_000])
def test_the_model_writes_as_many_rows_as_the_mixture_takes(rows):
    found = settings_of("nano", rows)
    replayed = rows * found.epochs * 0.05 / 0.95
    assert found.generated >= min(replayed, 2000)
    assert found.generated % 100 == 0
    assert rows < 1000 or rows * found.epochs / found.batch_rows >= 60


def test_the_suites_of_the_embedded_model_are_of_its_own_world(tmp_path):
    assert suites_of("nano") == [f"nano-{skill}" for skill in world.OLD_SKILLS]
    others = suites_of(config(tmp_path / "m", 512, 2))
    assert "facts" in others
    assert not [name for name in others if name.startswith("nano")]
    assert "code" not in others  # what a model wrote is never run unasked
    assert "tools" not in others  # its template is not here


def test_a_model_and_a_target_alone_get_replay_and_tests(rows):
    recipe = Recipe.model_validate({"model": "nano", "target": rows})
    found = whole(recipe)
    own = found.recipe
    assert own.generate.n == 100
    assert own.target.hold_out == own.eval.target.hold_out == 0.2
    assert own.eval.target.score == "numeric"
    assert set(own.eval.old) == set(world.OLD_SKILLS)
    assert own.eval.memory == 100
    assert len(found.said) == 3
    assert "about 60 rows of the target" in found.said[1]
    assert "`eval: {}` tests none" in found.said[1]
    assert whole(own).recipe is own


@pytest.mark.parametrize(
    "more", [{"eval": {}, "mix": {"ratio": 0.0}}, {"eval": {"memory": 5}, "generate": {"n": 5}}]
)
def test_what_a_recipe_says_itself_stays(rows, more):
    recipe = Recipe.model_validate({"model": "nano", "target": rows, **more})
    assert whole(recipe).recipe is recipe


def test_a_model_and_a_target_alone_are_trained_as_init_would_write_it(rows):
    recipe = Recipe.model_validate({"model": "nano", "target": rows})
    found = whole(recipe)
    fitting = settings_of("nano", 240)
    train = found.recipe.train
    assert (train.method, train.learning_rate) == (fitting.method, fitting.learning_rate)
    assert (train.epochs, train.batch_rows) == (fitting.epochs, fitting.batch_rows)
    assert train.learning_rate > recipe.train.highest_learning_rate  # which suits a large model
    assert found.said[2].startswith("train has settings that suit: method: full (all of 1.97M")


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ({"steps": 6}, {"method", "learning_rate", "batch_rows"}),
        ({"learning_rate": 1e-3}, {"epochs", "batch_rows"}),
        ({"method": "lora", "epochs": 2, "batch_rows": 4}, set()),
    ],
)
def test_what_a_command_says_of_the_training_stays(rows, own, added):
    mine = {"model": "nano", "target": rows, "mix": {"ratio": 0.1}, "train": own}
    found = whole(Recipe.model_validate(mine))
    train = found.recipe.train.model_dump(exclude_unset=True)
    assert own.items() <= train.items()
    assert train.keys() - own.keys() == added


def test_of_few_rows_none_is_held_out_and_that_is_said(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "a?", "completion": "b"}\n' * 5)
    made = whole(Recipe.model_validate({"model": "nano", "target": str(path)}))
    assert "of fewer than 100 rows of the target none is held out" in made.said[1]
    found = made.recipe
    assert found.eval.target is None
    assert found.target.hold_out is None
    assert found.eval.old


def test_init_writes_arms_settings_and_tests_with_their_reasons(here, rows):
    path = write_recipe(
        here / "replaykit.yaml", model="nano", target=rows, pool=None, seed=None, force=False
    )
    text = path.read_text()
    recipe = load_recipe(path)
    fitting = settings_of("nano", 240)
    assert list(recipe.arms) == ["replay", "no-replay"]
    assert recipe.mixture("no-replay").ratio == 0
    assert (recipe.train.method, recipe.train.epochs, recipe.train.batch_rows) == ("full", 3, 8)
    assert recipe.train.learning_rate == fitting.learning_rate
    assert "it costs a training of the same length" in text
    assert "90 optimiser steps on about 240 rows" in text
    assert recipe.generate.n == 100
    assert recipe.eval.memory == 100
    assert yaml.safe_load(text)["eval"]["old"]["nli"] == "suite:nano-nli"


def test_what_run_decides_is_written_down_and_stays_as_it_began(here, rows, monkeypatch):
    recipe = Recipe.model_validate({"model": "nano", "target": rows, "name": "mine"})
    first = kept(recipe, write=True)
    path = Path("runs/mine/recipe.yaml")
    assert load_recipe(path) == first.recipe
    assert f"all of it is in {path}" in first.said[-1]
    # As when a model is fetched: what is known of its size is another.
    monkeypatch.setattr("replaykit.suited.parameters_of", lambda model: 70_000_000_000)
    again = kept(recipe, write=True)
    assert again.recipe == first.recipe
    assert again.said == (f"{path} says what this run does",)
    # Another recipe is another decision.
    other = recipe.model_copy(update={"seed": 5})
    assert kept(other, write=False).recipe.train.method == "lora"
    assert load_recipe(path) == first.recipe


def test_a_recipe_of_ones_own_in_the_runs_folder_is_not_overwritten(here, rows):
    path = Path("runs/mine/recipe.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("model: nano\n")
    with pytest.raises(RunError, match="replaykit did not write it"):
        kept(Recipe.model_validate({"model": "nano", "target": rows, "name": "mine"}), write=True)
    assert path.read_text() == "model: nano\n"


@pytest.mark.parametrize(
    ("mix", "n"), [({"ratio": 0.1}, 100), ({"ratio": 0.5}, 900), ({"ratio": 0.0}, None)]
)
def test_another_share_is_another_number_of_rows(rows, mix, n):
    found = whole(Recipe.model_validate({"model": "nano", "target": rows, "mix": mix})).recipe
    assert (found.generate and found.generate.n) == n


def test_a_model_with_an_encoder_writes_no_rows_of_its_own(tmp_path, rows, here):
    folder = Path(config(tmp_path / "t5", 64, 2))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "is_encoder_decoder": True}))
    assert not writes(str(folder))
    found = whole(
        Recipe.model_validate({"model": str(folder), "target": rows, "mix": {"ratio": 0.0}})
    ).recipe
    assert found.eval.memory is None
    assert found.generate is None
    path = write_recipe(
        here / "r.yaml", model=str(folder), target=rows, pool=None, seed=None, force=False
    )
    assert load_recipe(path).eval.memory is None
