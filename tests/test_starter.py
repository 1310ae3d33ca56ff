"""The recipe that init writes has limits that fit the model, and says why they are so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from replaykit.errors import DataError
from replaykit.model import loading
from replaykit.recipe.generate import Generate
from replaykit.recipe.train import Train
from replaykit.starter import write_recipe
from replaykit.suited import HEADER_TOKENS, context_of, limits_of


def model(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> str:
    """A folder with these configs, and no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder)


def test_a_model_that_reads_much_fills_a_training_row(tmp_path: Path) -> None:
    found = limits_of(model(tmp_path / "m", {"max_position_embeddings": 131072}))
    row = Train().max_tokens
    assert found.question == Generate().max_question_tokens
    # A longer row would be left out of the mixture, and short ones be left over.
    assert found.question + found.answer + HEADER_TOKENS == row
    assert found.answer > Generate().max_answer_tokens
    assert f"train.max_tokens: {row}" in found.reason


@pytest.mark.parametrize("read", [256, 512, 1024])
def test_a_model_that_reads_little_has_room_for_a_question_and_its_answer(
    tmp_path: Path, read: int
) -> None:
    found = limits_of(model(tmp_path / "m", {"max_position_embeddings": read}))
    assert found.question == read // 4
    assert found.question + found.answer + HEADER_TOKENS == read
    assert found.reason.endswith(f"it fills the {read} tokens that the model reads")


def test_a_limit_that_the_model_names_itself_is_not_passed(tmp_path: Path) -> None:
    named = {"max_new_tokens": 300}
    found = limits_of(model(tmp_path / "a", {"max_position_embeddings": 8192}, named))
    assert (found.answer, found.reason) == (
        300,
        "max_new_tokens of the model's generation_config.json",
    )
    more = {"max_new_tokens": 32768}
    found = limits_of(model(tmp_path / "b", {"max_position_embeddings": 8192}, more))
    assert found.answer == Train().max_tokens - found.question - HEADER_TOKENS


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}, "vision_config": {}}, 4096),
        ({"seq_length": 2048}, 2048),
        ({"model_type": "mamba"}, None),
        ({"max_position_embeddings": None, "text_config": [1]}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1}, None),
    ],
)
def test_what_a_model_reads_is_found_under_the_names_that_families_use(
    config: dict[str, Any], read: int | None
) -> None:
    assert context_of(config) == read


def test_of_a_model_that_is_not_here_nothing_is_fetched_and_the_defaults_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = limits_of("nobody/has-this")
    defaults = Generate()
    assert (found.question, found.answer) == (
        defaults.max_question_tokens,
        defaults.max_answer_tokens,
    )
    assert "not known here" in found.reason
    assert limits_of(model(tmp_path / "m", {})) == found


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {})
    (Path(folder) / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json: it is no JSON .*fetch the model again"):
        limits_of(folder)


def test_the_recipe_that_init_writes_has_the_limits_and_their_reason(here: Path) -> None:
    path = write_recipe(
        here / "replaykit.yaml", model="nano", target=None, pool=None, seed=None, force=False
    )
    found = limits_of("nano")
    text = path.read_text()
    assert f"max_answer_tokens: {found.answer}   # {found.reason}\n" in text
    settings = Generate.model_validate(yaml.safe_load(text)["generate"])
    assert settings.max_question_tokens == found.question
    assert settings.max_answer_tokens == found.answer
    read = context_of(json.loads((Path(loading.resolve("nano")) / "config.json").read_text()))
    assert read is not None
    assert found.question + found.answer < read
