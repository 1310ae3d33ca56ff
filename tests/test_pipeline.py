"""What the steps make of one another: what a step takes from those before it, and what makes it do its work anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import finished
import pytest

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import PlannedRow, read_plan
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, RunError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.train import Train
from replaykit.runs import Watch
from replaykit.steps.evaluate import step as evaluate_step
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.generate import step as generate_step
from replaykit.steps.inputs import test_facts as facts_of_tests
from replaykit.steps.merge import step as merge_step
from replaykit.steps.mix import step as mix_step
from replaykit.steps.score import step as score_step
from replaykit.steps.step import Context
from replaykit.steps.train import step as train_step
from replaykit.steps.train.controlled import lay_out
from replaykit.steps.train.controller import ControllerInputs
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.result import TrainResult

RUN = Path("run")
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
    finished.selected(RUN, OLD)

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


def rewrite(recipe: Recipe) -> None:
    """The step rewrite as if finished, the first half of the target in other words."""
    assert recipe.target is not None
    own = [
        Record(dialogue(row.prompt, f"It is {row.answer}."), "rewrite", {"parent": row.id})
        for row in TARGET[:20]
    ]
    finished.rewritten(RUN, [*own, *TARGET[20:]], recipe.target)


@dataclass(frozen=True)
class Training:
    """What a training was given."""

    rows: Sequence[PlannedRow]
    settings: Train
    extras: Extras


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """What the training was given each time; it leaves an empty model."""
    seen: list[Training] = []

    def fitted(
        rows: Sequence[PlannedRow],
        base: Base,
        settings: Train,
        *,
        seed: int,
        folder: Path,
        extras: Extras,
        watch: Watch,
    ) -> TrainResult:
        seen.append(Training(rows, settings, extras))
        model = folder / "model"
        model.mkdir(exist_ok=True)
        return TrainResult(
            steps=1,
            loss=0.0,
            losses=[],
            tokens=0,
            model=str(model),
            base=base.name,
            revision=base.revision,
        )

    monkeypatch.setattr("replaykit.steps.train.fit.fit", fitted)
    return seen


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations ask no model and find nothing."""
    nothing = EvalResult(skills=[], models=[])
    monkeypatch.setattr(evaluate_step, "measured", lambda *_: {})
    monkeypatch.setattr("replaykit.steps.evaluate.compare.compare", lambda *_: nothing)


# --- a target in the model's own words ------------------------------------------------------------------------------


def test_a_rewritten_row_is_of_the_target_to_all_that_tells_it_from_replay(recipe_of: Make) -> None:
    recipe = recipe_of(rewrite={}, train={"controller": {}})
    rewrite(recipe)
    (done,) = mix_step.run(recipe, Context())
    rows = read_plan(done.folder / "rows.jsonl")
    own = Counter(row.record.source for row in rows if "parent" in row.record.meta)
    assert own == {"target": 20}
    assert recipe.train.controller is not None
    replay = list(read_jsonl(done.folder / "replay.jsonl"))
    layout = lay_out(rows, ControllerInputs(recipe.train.controller, {}, replay=replay))
    assert sum(map(len, layout.target)) == len(TARGET)


def test_what_rewrite_has_made_is_mixed_without_a_section_too(recipe_of: Make) -> None:
    rewrite(recipe_of())
    (done,) = mix_step.run(recipe_of(), Context())
    assert any(record.answer == "It is 2." for record in read_jsonl(done.folder / "rows.jsonl"))


def test_a_rewrite_of_another_target_is_not_mixed(recipe_of: Make) -> None:
    rewrite(recipe_of())
    other = recipe_of(target={"path": "target.jsonl", "n": 30})
    with pytest.raises(
        RunError,
        match=r"target\.n was None, is 30\. `replaykit rewrite` makes it anew; without that",
    ):
        list(mix_step.run(other, Context()))


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
    recipe_of: Make, trainings: list[Training], changes: dict[str, Any], says: str
) -> None:
    list(mix_step.run(recipe_of(), Context()))
    for step in (train_step.run, score_step.run):
        with pytest.raises(
            RunError, match=rf"run/mix was made otherwise: {says}\. `replaykit mix` makes it anew"
        ):
            list(step(recipe_of(**changes), Context()))
    assert not trainings


def test_flags_of_mix_alone_and_of_train_alone_are_followed(
    recipe_of: Make, trainings: list[Training]
) -> None:
    (mixed,) = mix_step.run(recipe_of(mix={"ratio": 0.5, "unit": "rows"}), Context())
    list(train_step.run(recipe_of(train={"learning_rate": 1e-4}), Context()))
    assert len(trainings[0].rows) == mixed.result.target_rows + mixed.result.replay_rows
    assert trainings[0].settings.learning_rate == 1e-4


def test_the_weights_of_sources_and_the_weights_of_the_model_both_identify_a_mixture(
    recipe_of: Make,
) -> None:
    (done,) = mix_step.run(recipe_of(mix={"sources": {"select": 2.0}}), Context())
    inputs = json.loads((done.folder / "inputs.json").read_text())
    assert inputs["mix"]["sources"] == {"select": 2.0}
    assert isinstance(inputs["weights"], str)


# --- a controller ---------------------------------------------------------------------------------------------------


def test_a_controller_goes_on_with_the_mixtures_own_share(
    recipe_of: Make, trainings: list[Training]
) -> None:
    recipe = recipe_of(train={"controller": {}})
    list(
        mix_step.run(
            recipe_of(train={"controller": {}}, mix={"ratio": 0.5, "unit": "rows"}), Context()
        )
    )
    list(train_step.run(recipe, Context()))
    watched = trainings[0].extras.watched
    assert watched is not None
    mix = watched.mix
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
    recipe_of: Make, trainings: list[Training], changes: dict[str, Any]
) -> None:
    for recipe in (
        recipe_of(train={"controller": {}}),
        recipe_of(train={"controller": {}}, **changes),
    ):
        list(mix_step.run(recipe, Context()))
        (done,) = train_step.run(recipe, Context())
        assert not done.skipped
    assert len(trainings) == 2


# --- tests and arms -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unmeasured")
def test_how_long_an_answer_may_be_is_a_part_of_the_evaluation(recipe_of: Make) -> None:
    finished.trained(RUN)
    list(evaluate_step.run(recipe_of(), Context()))
    shorter = recipe_of(
        eval={"target": {"path": "test.jsonl", "max_tokens": 4}, "old": {"a": "old.jsonl"}}
    )
    (done,) = evaluate_step.run(shorter, Context())
    assert not done.skipped
    assert facts_of_tests(shorter)["target"]["max_tokens"] == 4


@pytest.mark.usefixtures("unmeasured")
def test_what_is_made_of_several_arms_together_may_go_to_a_place_of_its_own(
    recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replaykit.steps.merge.average.ties", lambda *_, **__: 1)
    recipe = recipe_of(arms={"one": {}, "two": {"ratio": 0}})
    for arm in recipe.arms:
        finished.trained(RUN, arm)
    (measured,) = evaluate_step.run(recipe, Context(out=Path("elsewhere")))
    assert measured.folder == Path("elsewhere")
    (merged,) = merge_step.run(recipe, Context(out=Path("merged")), method="ties")
    assert merged.folder == Path("merged")


def test_tests_are_read_for_generation_only_where_it_keeps_them_out(
    recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "replaykit.steps.generate.draw.generate_rows",
        lambda engine, chat, job, **_: iter(job.held_out),
    )
    recipe = recipe_of(generate={"checks": {"overlap": False}}, eval={"target": "not there.jsonl"})
    assert recipe.generate is not None
    assert list(generate_step.generated(recipe, recipe.generate, Path("run"))) == []


# --- old data for ewc -----------------------------------------------------------------------------------------------


def test_the_old_data_of_ewc_is_drawn_from_all_of_it_and_fits_into_a_row(
    recipe_of: Make, trainings: list[Training], chat: Chat
) -> None:
    long = [Record(dialogue(f"Long {n}", "word " * 200), "select") for n in range(20)]
    by_skill = sorted(OLD, key=lambda row: str(row.meta["skill"]))
    write_jsonl(Path("old.jsonl"), [*by_skill, *long])
    recipe = recipe_of(
        train={"max_tokens": 100, "remedies": {"ewc": {"old": "old.jsonl", "rows": 10}}}
    )
    list(mix_step.run(recipe, Context()))
    list(train_step.run(recipe, Context()))
    old = trainings[0].extras.old
    assert len(old) == 10
    assert {row.meta["skill"] for row in old} == {"a", "b"}
    assert max(len(chat.example(row).tokens) for row in old) <= 100
    again = train_step.Job(recipe, recipe.train, [])._old(chat).rows
    assert [row for row, _ in again] == old  # the same seed draws the same


def test_old_data_of_which_nothing_fits_is_refused(recipe_of: Make, chat: Chat) -> None:
    recipe = recipe_of(train={"max_tokens": 3, "remedies": {"ewc": {"old": "old.jsonl"}}})
    with pytest.raises(
        DataError, match=r"old\.jsonl: train\.remedies\.ewc\.old has no row .* at most 3 tokens"
    ):
        train_step.Job(recipe, recipe.train, [])._old(chat)


# --- an arm without replay beside a controller ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory'")
@pytest.mark.parametrize("by_skill", [False, True])
def test_an_arm_without_replay_is_trained_beside_a_controller(
    recipe_of: Make, chat: Chat, by_skill: bool
) -> None:
    recipe = recipe_of(train={"controller": {"by_skill": by_skill, "every": 1}},
                       target={"path": "target.jsonl", "n": 16}, arms={"none": {"ratio": 0}})  # fmt: skip
    list(mix_step.run(recipe, Context()))
    (done,) = train_step.run(recipe, Context())
    assert done.result.events is not None
    assert [event.ratio for event in done.result.events] == [0, 0]


def test_ewc_takes_lora_by_its_name_in_peft(chat: Chat, here: Path) -> None:
    settings = Train.model_validate({
        "peft": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}, "batch_rows": 4, "log_every": 1,
        "learning_rate": 1e-3, "remedies": {"ewc": {"rows": 4}},
    })  # fmt: skip
    steps = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    rows = [
        PlannedRow(step, record)
        for step, record in zip(steps, [*TARGET[:6], *OLD[:6]], strict=True)
    ]
    made = fit(rows, Base("nano", chat), settings, seed=1, folder=here / "train")
    assert made.losses[-1]["ewc/penalty"] > 0
