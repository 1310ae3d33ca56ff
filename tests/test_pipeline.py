"""What the steps make of one another: what a step takes from those before it, and what makes it do its work anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaykit.chat import Chat
from replaykit.errors import DataError, RunError
from replaykit.pipeline import merging, proof, replay, rows, training
from replaykit.pipeline.step import Context
from replaykit.recipe import Recipe
from replaykit.records import Record, dialogue, read_jsonl, write_jsonl
from replaykit.train.beside import Watched, laid_out
from replaykit.train.fit import train as fit

TARGET = [Record(dialogue(f"What is {n} plus {n}?", f"{2 * n}"), "target") for n in range(40)]
OLD = [
    Record(
        dialogue(f"Turn w{n}x round", f"x{n}w"), "select", {"skill": "ab"[n % 2], "task": "turn"}
    )
    for n in range(20)
]
Make = Callable[..., Recipe]


@pytest.fixture
def recipe_of(here: Path) -> Make:
    """A recipe whose replay is selected, with the changes given."""
    write_jsonl(here / "target.jsonl", TARGET)
    write_jsonl(here / "test.jsonl", TARGET[:3])
    write_jsonl(here / "old.jsonl", OLD[:3])
    finished("select", OLD)

    def recipe(**changes: Any) -> Recipe:
        given = {"model": "nano", "out": "run", "target": "target.jsonl"}
        given["eval"] = {"target": "test.jsonl", "old": {"a": "old.jsonl"}}
        given["train"] = {"batch_rows": 8, **changes.pop("train", {})}
        given["mix"] = {
            "near_duplicate": None,
            "overlap": False,
            "ratio": 0.2,
            **changes.pop("mix", {}),
        }
        return Recipe.model_validate(given | changes)

    return recipe


def finished(step: str, records: list[Record], **inputs: Any) -> None:
    """The folder of a step that made these rows."""
    folder = Path("run") / step
    write_jsonl(folder / "rows.jsonl", records)
    (folder / "manifest.json").write_text(json.dumps({"result": {}, "inputs": inputs}))


def rewritten(recipe: Recipe) -> None:
    """The step rewrite as if finished, the first half of the target in other words."""
    assert recipe.target is not None
    own = [
        Record(dialogue(row.prompt, f"It is {row.answer}."), "rewrite", {"parent": row.id})
        for row in TARGET[:20]
    ]
    finished("rewrite", [*own, *TARGET[20:]], target=rows.data_facts(recipe.target))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the training was given each time; it leaves an empty model."""
    seen: list[dict[str, Any]] = []

    def trained(records: list[Record], steps: list[int], **options: Any) -> dict[str, Any]:
        seen.append({"records": records, "steps": steps, **options})
        (options["folder"] / "model").mkdir(exist_ok=True)
        return {"steps": 1, "loss": 0.0}

    monkeypatch.setattr("replaykit.train.fit.train", trained)
    return seen


def tuned(*arms: str) -> None:
    """Arms as if trained."""
    for arm in arms:
        finished(f"train-{arm}", [])
        (Path("run") / f"train-{arm}" / "model").mkdir()


# --- a target in the model's own words ------------------------------------------------------------------------------


def test_a_rewritten_row_is_of_the_target_to_all_that_tells_it_from_replay(recipe_of: Make) -> None:
    recipe = recipe_of(rewrite={}, train={"controller": {}})
    rewritten(recipe)
    (done,) = training.mix(recipe, Context())
    mixed = list(read_jsonl(done.folder / "rows.jsonl"))
    assert Counter(record.source for record in mixed if "parent" in record.meta) == {"target": 20}
    steps = [
        json.loads(line)["step"] for line in (done.folder / "rows.jsonl").read_text().splitlines()
    ]
    assert recipe.train.controller is not None
    watched = Watched(
        recipe.train.controller, {}, [], list(read_jsonl(done.folder / "replay.jsonl")), recipe.mix
    )
    _, target_steps, _ = laid_out(mixed, steps, watched)
    assert sum(map(len, target_steps)) == len(TARGET)


def test_what_rewrite_has_made_is_mixed_without_a_section_too(recipe_of: Make) -> None:
    rewritten(recipe_of())
    (done,) = training.mix(recipe_of(), Context())
    assert any(record.answer == "It is 2." for record in read_jsonl(done.folder / "rows.jsonl"))


def test_a_rewrite_of_another_target_is_not_mixed(recipe_of: Make) -> None:
    rewritten(recipe_of())
    other = recipe_of(target={"path": "target.jsonl", "n": 30})
    with pytest.raises(
        RunError,
        match=r"target\.n was None, is 30\. `replaykit rewrite` makes it anew; without that",
    ):
        list(training.mix(other, Context()))


# --- a mixture that is another now ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"epochs": 3}}, r"train\.epochs was 1, is 3"),
        ({"train": {"steps": 9}}, r"train\.steps was None, is 9"),
        ({"train": {"batch_rows": 16}}, r"train\.batch_rows was 8, is 16"),
        ({"train": {"max_tokens": 99}}, r"train\.max_tokens was 2048, is 99"),
        ({"train": {"controller": {}}}, r"train\.controller was False, is True"),
        ({"model": "smollm2"}, r"model was nano, is smollm2"),
    ],
)
def test_train_and_score_refuse_a_mixture_of_another_length_or_model(
    recipe_of: Make, trainings: list[dict[str, Any]], changes: dict[str, Any], says: str
) -> None:
    list(training.mix(recipe_of(), Context()))
    for step in (training.train, training.score):
        with pytest.raises(
            RunError, match=rf"run/mix was made otherwise: {says}\. `replaykit mix` makes it anew"
        ):
            list(step(recipe_of(**changes), Context()))
    assert not trainings


def test_flags_of_mix_alone_and_of_train_alone_are_followed(
    recipe_of: Make, trainings: list[dict[str, Any]]
) -> None:
    (mixed,) = training.mix(recipe_of(mix={"ratio": 0.5, "unit": "rows"}), Context())
    list(training.train(recipe_of(train={"learning_rate": 1e-4}), Context()))
    assert len(trainings[0]["records"]) == mixed.result["target_rows"] + mixed.result["replay_rows"]
    assert trainings[0]["settings"].learning_rate == 1e-4


def test_the_weights_of_sources_and_the_weights_of_the_model_both_identify_a_mixture(
    recipe_of: Make,
) -> None:
    (done,) = training.mix(recipe_of(mix={"sources": {"select": 2.0}}), Context())
    inputs = json.loads((done.folder / "inputs.json").read_text())
    assert inputs["sources"] == {"select": 2.0}
    assert isinstance(inputs["weights"], str)


# --- a controller ---------------------------------------------------------------------------------------------------


def test_a_controller_goes_on_with_the_mixtures_own_share(
    recipe_of: Make, trainings: list[dict[str, Any]]
) -> None:
    recipe = recipe_of(train={"controller": {}})
    list(
        training.mix(
            recipe_of(train={"controller": {}}, mix={"ratio": 0.5, "unit": "rows"}), Context()
        )
    )
    list(training.train(recipe, Context()))
    mix = trainings[0]["watched"].mix
    assert (mix.ratio, mix.unit) == (0.5, "rows")


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": {"skill": "task"}},
        {"mix": {"sources": {"select": 3.0}}},
        {
            "eval": {
                "target": "test.jsonl",
                "old": {"a": {"path": "old.jsonl", "score": "cross_entropy"}},
            }
        },
    ],
)
def test_a_controlled_training_is_done_anew_where_what_steers_it_has_changed(
    recipe_of: Make, trainings: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    for recipe in (
        recipe_of(train={"controller": {}}),
        recipe_of(train={"controller": {}}, **changes),
    ):
        list(training.mix(recipe, Context()))
        (done,) = training.train(recipe, Context())
        assert not done.skipped
    assert len(trainings) == 2


# --- tests and arms -------------------------------------------------------------------------------------------------


def test_how_long_an_answer_may_be_is_a_part_of_the_evaluation(
    recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "measured", lambda *_: {})
    monkeypatch.setattr("replaykit.evaluate.compare.compare", lambda *_: {"models": []})
    finished("train", [])
    (Path("run") / "train/model").mkdir()
    list(proof.evaluate(recipe_of(), Context()))
    shorter = recipe_of(
        eval={"target": {"path": "test.jsonl", "max_tokens": 4}, "old": {"a": "old.jsonl"}}
    )
    (done,) = proof.evaluate(shorter, Context())
    assert not done.skipped
    assert rows.scored_facts(shorter)["target"]["max_tokens"] == 4


def test_what_is_made_of_several_arms_together_may_go_to_a_place_of_its_own(
    recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "measured", lambda *_: {})
    monkeypatch.setattr("replaykit.evaluate.compare.compare", lambda *_: {"models": []})
    monkeypatch.setattr(merging, "_average", lambda *_: 1)
    recipe = recipe_of(arms={"one": {}, "two": {"ratio": 0}})
    tuned("one", "two")
    (measured,) = proof.evaluate(recipe, Context(out=Path("elsewhere")))
    assert measured.folder == Path("elsewhere")
    (merged,) = merging.merge(recipe, Context(out=Path("merged")), method="ties")
    assert merged.folder == Path("merged")


def test_tests_are_read_for_generation_only_where_it_keeps_them_out(
    recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "replaykit.sources.generate.generate", lambda *_, held_out, **__: iter(held_out)
    )
    recipe = recipe_of(generate={"checks": {"overlap": False}}, eval={"target": "not there.jsonl"})
    assert recipe.generate is not None
    assert list(replay.generated(recipe, recipe.generate, Path("run"))) == []


# --- old data for ewc -----------------------------------------------------------------------------------------------


def test_the_old_data_of_ewc_is_drawn_from_all_of_it_and_fits_into_a_row(
    recipe_of: Make, trainings: list[dict[str, Any]], chat: Chat
) -> None:
    long = [Record(dialogue(f"Long {n}", "word " * 200), "select") for n in range(20)]
    by_skill = sorted(OLD, key=lambda row: str(row.meta["skill"]))
    write_jsonl(Path("old.jsonl"), [*by_skill, *long])
    recipe = recipe_of(
        train={"max_tokens": 100, "remedies": {"ewc": {"old": "old.jsonl", "rows": 10}}}
    )
    list(training.mix(recipe, Context()))
    list(training.train(recipe, Context()))
    old = trainings[0]["old"]
    assert len(old) == 10
    assert {row.meta["skill"] for row in old} == {"a", "b"}
    assert max(len(chat.example(row).tokens) for row in old) <= 100
    assert training._old(recipe, recipe.train, chat) == old  # the same seed draws the same


def test_old_data_of_which_nothing_fits_is_refused(recipe_of: Make, chat: Chat) -> None:
    recipe = recipe_of(train={"max_tokens": 3, "remedies": {"ewc": {"old": "old.jsonl"}}})
    with pytest.raises(
        DataError, match=r"old\.jsonl: train\.remedies\.ewc\.old has no row .* at most 3 tokens"
    ):
        training._old(recipe, recipe.train, chat)


# --- an arm without replay beside a controller ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'pin_memory'")
@pytest.mark.parametrize("by_skill", [False, True])
def test_an_arm_without_replay_is_trained_beside_a_controller(
    recipe_of: Make, chat: Chat, by_skill: bool
) -> None:
    recipe = recipe_of(train={"controller": {"by_skill": by_skill, "every": 1}},
                       target={"path": "target.jsonl", "n": 16}, arms={"none": {"ratio": 0}})  # fmt: skip
    list(training.mix(recipe, Context()))
    (done,) = training.train(recipe, Context())
    assert [event["ratio"] for event in done.result["events"]] == [0, 0]


def test_ewc_takes_lora_by_its_name_in_peft(chat: Chat, here: Path) -> None:
    from replaykit.training_settings import Train

    settings = Train.model_validate({
        "peft": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}, "batch_rows": 4, "log_every": 1,
        "learning_rate": 1e-3, "remedies": {"ewc": {"rows": 4}},
    })  # fmt: skip
    made = fit([*TARGET[:6], *OLD[:6]], [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2], model="nano", chat=chat,
               settings=settings, seed=1, folder=here / "train")  # fmt: skip
    assert made["losses"][-1]["ewc/penalty"] > 0
