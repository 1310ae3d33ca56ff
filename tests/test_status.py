"""A run says how far it is, what has changed since, and what a step would be done anew for, in the words of the step."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.model.loading import ALIASES
from replaykit.recipe import Recipe
from replaykit.steps import pipeline
from replaykit.steps.status import StatusResult, StepStatus, status
from replaykit.steps.step import Context

TARGET = [Record(dialogue(f"What is {n} plus {n}?", f"{2 * n}"), "target") for n in range(20)]
OLD = [Record(dialogue(f"Turn w{n}x round", f"x{n}w"), "select") for n in range(30)]
Make = Callable[..., Recipe]

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(**changes: Any) -> Recipe:
    """A recipe of all steps, small enough for seconds, with the changes given in its sections."""
    given: dict[str, Any] = {
        "model": "nano",
        "engine": "transformers",
        "out": "run",
        "target": {"path": "target.jsonl"},
        "select": {"pool": "old.jsonl", "n": 8, "near_duplicate": None},
        "mix": {"ratio": 0.2, "near_duplicate": None, "overlap": False},
        "train": {"batch_rows": 8},
        "eval": {
            "target": {"path": "test.jsonl", "max_tokens": 4},
            "old": {"turns": {"path": "turns.jsonl", "max_tokens": 4}},
        },
    }
    for section, own in changes.items():
        before = given.get(section)
        both = isinstance(before, dict) and isinstance(own, dict)
        given[section] = before | own if both else own
    return Recipe.model_validate(given)


def write_rows() -> None:
    write_jsonl(Path("target.jsonl"), TARGET)
    write_jsonl(Path("old.jsonl"), OLD)
    write_jsonl(Path("test.jsonl"), TARGET[:2])
    write_jsonl(Path("turns.jsonl"), OLD[:2])


@pytest.fixture
def rows(here: Path) -> None:
    """The files of the recipe, and nothing of a run."""
    write_rows()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe was run."""
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_rows()
        list(pipeline.run(recipe_of(), Context()))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def finished(whole: Path, here: Path) -> None:
    """The same in a folder of the test's own."""
    shutil.copytree(whole, here, dirs_exist_ok=True)


def do(name: str, recipe: Recipe, **options: Any) -> list[Any]:
    return list(pipeline.step_of(name)(recipe, Context(**options)))


def said(recipe: Recipe) -> dict[str, str]:
    """The words of each step, without times."""
    return {step.name: without_times(step.words) for step in status(recipe).steps}


def without_times(words: str) -> str:
    return re.sub(r"(finished|started) \d{4}-\d\d-\d\d \d\d:\d\d UTC(, in [\d.]+ s)?", r"\1", words)


def add_row(path: str, record: Record) -> None:
    write_jsonl(path, [*read_jsonl(path), record])


# --- as the run goes on ---------------------------------------------------------------------------------------------


def test_at_first_nothing_is_begun_and_each_step_waits_for_the_one_before(rows: None) -> None:
    assert said(recipe_of()) == {
        "select": "not begun",
        "mix": "waits for select",
        "train": "waits for mix",
        "eval": "waits for train",
        "report": "waits for eval",
    }


def test_a_finished_step_says_when_and_how_long_and_the_next_one_can_begin(rows: None) -> None:
    do("select", recipe_of())
    (select, mix, train, *_) = status(recipe_of()).steps
    assert re.fullmatch(r"finished \d{4}-\d\d-\d\d \d\d:\d\d UTC, in [\d.]+ s", select.words)
    assert (select.state, mix.state, train.state) == ("finished", "not begun", "waits")


@pytest.mark.slow
def test_a_whole_run_is_finished(finished: None) -> None:
    found = said(recipe_of())
    assert found == dict.fromkeys(["select", "mix", "train", "eval", "report"], "finished")


def test_a_step_that_was_interrupted_tells_how_many_rows_are_done(rows: None) -> None:
    recipe = recipe_of(generate={"n": 6, "max_question_tokens": 32, "max_answer_tokens": 8})

    def interrupt(what: str, done: int, total: int | None, note: str = "") -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do("generate", recipe, watch=interrupt)
    questions, answers = (
        len(Path(f"run/generate/{name}.jsonl").read_text().splitlines())
        for name in ("questions", "answers")
    )
    assert questions >= 2
    found = said(recipe)
    assert found["generate"] == (
        f"not finished: started; {answers} rows in answers.jsonl; {questions} rows in questions.jsonl"
    )
    assert found["mix"] == "waits for select and generate"


def test_a_generation_of_fewer_rows_than_are_asked_for_now_is_not_finished(rows: None) -> None:
    def of(n: int) -> Recipe:
        return recipe_of(generate={"n": n, "max_question_tokens": 32, "max_answer_tokens": 8})

    do("generate", of(2))
    assert said(of(2))["generate"] == "finished"
    assert said(of(4))["generate"] == "would be done anew: generate.n was 2, is 4"


@pytest.mark.slow
def test_more_generated_rows_make_anew_all_that_is_made_of_them(finished: None) -> None:
    def of(n: int) -> Recipe:
        return recipe_of(generate={"n": n, "max_question_tokens": 32, "max_answer_tokens": 8})

    list(pipeline.run(of(2), Context()))
    assert set(said(of(2)).values()) == {"finished"}
    found = said(of(4))
    assert found["generate"] == "would be done anew: generate.n was 2, is 4"
    assert found["mix"] == "would be done anew, since generate is"
    assert found["train"] == "would be done anew, since mix is"
    assert found["eval"] == "would be done anew, since train is"


@pytest.mark.slow
def test_a_score_and_a_merge_of_what_has_changed_are_not_called_finished(finished: None) -> None:
    do("score", recipe_of())
    do_merge = pipeline.step_of("merge")
    list(do_merge(recipe_of(), Context(), alpha=0.25))
    aside = "; the recipe does not ask for it"
    found = said(recipe_of())
    assert found["score"] == found["merge"] == f"finished{aside}"
    found = said(recipe_of(mix={"ratio": 0.1}))
    assert found["score"] == f"would be done anew, since mix is{aside}"
    assert found["merge"] == f"would be done anew, since train is{aside}"
    do("mix", recipe_of(mix={"ratio": 0.1}))
    found = said(recipe_of(mix={"ratio": 0.1}))
    assert found["score"] == f"would be done anew: mix/rows.jsonl has changed{aside}"
    do("train", recipe_of(mix={"ratio": 0.1}))
    found = said(recipe_of(mix={"ratio": 0.1}))
    assert found["merge"] == f"would be done anew: train/model has changed{aside}"


@pytest.mark.slow
def test_a_sweep_is_compared_by_its_own_flags(finished: None) -> None:
    list(pipeline.step_of("merge")(recipe_of(), Context(), sweep=[0.0, 0.5]))
    aside = "; the recipe does not ask for it"
    assert said(recipe_of())["merge"] == f"finished{aside}"
    fewer = recipe_of(eval={"old": {"turns": {"path": "turns.jsonl", "max_tokens": 5}}})
    assert said(fewer)["merge"] == (
        f"would be done anew: eval.old.turns.max_tokens was 4, is 5{aside}"
    )


# --- what has changed -----------------------------------------------------------------------------------------------


def test_a_changed_setting_is_named_and_what_follows_is_done_anew_too(finished: None) -> None:
    recipe = recipe_of(mix={"ratio": 0.1, "unit": "tokens"})
    assert said(recipe) == {
        "select": "finished",
        "mix": "would be done anew: mix.ratio was 0.2, is 0.1; mix.unit was rows, is tokens",
        "train": "would be done anew, since mix is",
        "eval": "would be done anew, since train is",
        "report": "would be done anew, since eval is",
    }


def test_the_step_itself_says_the_same_words(finished: None) -> None:
    recipe = recipe_of(mix={"ratio": 0.1})
    (mix,) = (step for step in status(recipe).steps if step.name == "mix")
    (done,) = do("mix", recipe)
    assert done.note.endswith(f"({'; '.join(mix.changed)})")
    assert mix.changed == ["mix.ratio was 0.2, is 0.1"]
    found = said(recipe)
    assert found["mix"] == "finished"
    assert found["train"] == "would be done anew: mix/rows.jsonl has changed"
    assert "mix.old1" not in found


@pytest.mark.parametrize(
    ("changes", "step", "says"),
    [
        ({"select": {"n": 9}}, "select", "select.n was 8, is 9"),
        ({"seed": 2}, "select", "seed was 1, is 2"),
        ({"train": {"learning_rate": 1e-4}}, "train", "train.learning_rate was None, is 0.0001"),
        ({"target": {"n": 15}}, "select", "target.n was None, is 15"),
        ({"eval": {"old": {"turns": "turns.jsonl"}}}, "eval", "eval.old.turns.max_tokens was 4, is 256"),
        ({"mix": {"overlap": True}}, "mix", "eval.old was None, is {'turns': 'turns.jsonl'}; eval.target was None, is "
                                            "test.jsonl; mix.overlap was False, is True"),
        ({"mix": {"schedule": {"to": 0.3}}}, "mix", "mix.schedule was None, is {'shape': 'linear', 'to': 0.3, 'hold': 0.5, "
                                                    "'at': None}"),
    ],
)  # fmt: skip
def test_settings_are_named_as_in_the_recipe(
    finished: None, changes: dict[str, Any], step: str, says: str
) -> None:
    assert said(recipe_of(**changes))[step] == f"would be done anew: {says}"


def test_all_that_has_changed_is_said_of_a_step_whose_earlier_steps_are_done_anew_too(
    finished: None,
) -> None:
    recipe = recipe_of(select={"n": 9}, mix={"ratio": 0.1})
    assert said(recipe)["mix"] == (
        "would be done anew: mix.ratio was 0.2, is 0.1; and since select is"
    )
    longer = recipe_of(train={"epochs": 2})  # then train refuses the mixture that is there
    assert said(longer)["mix"] == "would be done anew: train.epochs was 1, is 2"
    assert said(longer)["train"] == "would be done anew, since mix is"


def test_a_file_with_another_content_is_said_by_its_name(finished: None) -> None:
    add_row("old.jsonl", Record(dialogue("Turn abc round", "cba"), "select"))
    assert said(recipe_of())["select"] == "would be done anew: old.jsonl has changed"
    assert said(recipe_of())["mix"] == "would be done anew, since select is"
    add_row("target.jsonl", TARGET[0])
    found = said(recipe_of())
    assert found["select"] == "would be done anew: old.jsonl has changed; target.jsonl has changed"
    assert found["mix"] == "would be done anew: target.jsonl has changed; and since select is"


def test_a_file_of_another_name_is_said_by_both_names(finished: None) -> None:
    write_jsonl(Path("new.jsonl"), TARGET[:10])
    found = said(recipe_of(target={"path": "new.jsonl"}))
    assert found["mix"] == (
        "would be done anew: target.path was target.jsonl, is new.jsonl; and since select is"
    )


def test_a_further_evaluation_set_with_another_content_is_said_by_its_name(rows: None) -> None:
    write_jsonl(Path("more.jsonl"), OLD[:3])
    recipe = recipe_of(select={"against": ["more.jsonl"]})
    do("select", recipe)
    assert said(recipe)["select"] == "finished"
    add_row("more.jsonl", OLD[4])
    assert said(recipe)["select"] == "would be done anew: more.jsonl has changed"
    without = said(recipe_of())["select"]
    assert without == "would be done anew: select.against was ['more.jsonl'], is []"


def test_a_model_whose_files_have_changed_is_said_by_its_name(rows: None) -> None:
    shutil.copytree(ALIASES["nano"], "own")
    recipe = recipe_of(model="own")
    do("select", recipe)
    do("mix", recipe)
    assert said(recipe)["mix"] == "finished"
    with Path("own/config.json").open("a") as stream:
        stream.write("\n")
    assert said(recipe)["mix"] == "would be done anew: own has changed"
    assert said(recipe_of())["mix"] == "would be done anew: model was own, is nano"


def test_how_the_work_is_done_changes_nothing(finished: None) -> None:
    recipe = recipe_of(select={"processes": 2}, train={"save_every": 3})
    assert said(recipe) == said(recipe_of())
    assert set(said(recipe).values()) == {"finished"}


def test_a_report_that_is_older_than_a_step_would_be_written_anew(finished: None) -> None:
    os.utime("run/report.html", (0, 0))
    assert said(recipe_of())["report"] == (
        "would be done anew: eval has changed; mix has changed; select has changed; train has changed"
    )


# --- arms, other steps, damage --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_arm_has_a_line_of_its_own(rows: None) -> None:
    arms = {"none": {"ratio": 0}, "some": {}}
    do("select", recipe_of(arms=arms))
    do("mix", recipe_of(arms=arms))
    do("train", recipe_of(arms=arms), arm="some")
    assert said(recipe_of(arms=arms)) == {
        "select": "finished",
        "mix-none": "finished",
        "mix-some": "finished",
        "train-none": "not begun",
        "train-some": "finished",
        "eval": "waits for train-none",
        "report": "waits for eval",
    }
    found = said(recipe_of(arms=arms | {"some": {"ratio": 0.4}}))
    assert found["mix-none"] == "finished"
    assert found["mix-some"] == "would be done anew: mix.ratio was 0.2, is 0.4"
    assert found["train-some"] == "would be done anew, since mix-some is"
    assert found["eval"] == "waits for train-none and train-some"
    more = arms | {"more": {"ratio": 0.3}}
    assert said(recipe_of(arms=more))["eval"] == "waits for train-none and train-more"
    found = said(recipe_of(select={"n": 9}, arms=arms))
    assert found["mix-none"] == "finished"  # it has no replay
    assert found["mix-some"] == "would be done anew, since select is"
    unfinished = ["train-none", "train-some", "train-more"]
    listed = StepStatus(name="eval", state="waits", earlier=unfinished)
    assert listed.words == "waits for train-none, train-some and train-more"


def test_steps_that_the_recipe_does_not_ask_for_come_last(finished: None) -> None:
    list(pipeline.step_of("probe")(recipe_of(), Context(), samples=0))
    steps = status(recipe_of()).steps
    assert [step.name for step in steps if not step.in_recipe] == ["probe"]
    assert steps[-1].name == "probe"
    assert without_times(steps[-1].words) == "finished; the recipe does not ask for it"
    only = recipe_of(select=None, mix={"sources": ["select"]})
    assert said(only)["select"] == "finished; the recipe does not ask for it"
    assert said(only)["mix"].startswith(
        "would be done anew: mix.sources was None, is {'select': 1.0}"
    )


def test_a_rewritten_target_is_waited_for(rows: None) -> None:
    # Two rows of the target need that much to come to a row of replay.
    recipe = recipe_of(rewrite={"max_tokens": 4}, target={"n": 2}, mix={"ratio": 0.5})
    do("select", recipe)
    assert said(recipe)["mix"] == "waits for rewrite"
    do("rewrite", recipe)
    assert said(recipe)["mix"] == "not begun"
    do("mix", recipe)
    assert said(recipe)["mix"] == "finished"
    assert (
        said(recipe_of(target={"n": 2}, mix={"ratio": 0.5}))["mix"] == "finished"
    )  # what is there is taken
    shutil.rmtree("run/rewrite")
    assert said(recipe_of(target={"n": 2}, mix={"ratio": 0.5}))["mix"] == (
        "would be done anew: rewritten was rewrite/rows.jsonl, is None"
    )


def test_a_damaged_folder_is_an_error_of_its_own_step_alone(finished: None) -> None:
    Path("run/mix/inputs.json").write_text('{"half')
    found = said(recipe_of())
    assert found["select"] == "finished"
    assert found["mix"].startswith("error: run/mix/inputs.json: damaged (")
    assert found["train"] == "waits for mix"


def test_neither_model_nor_chat_is_loaded_and_nothing_is_written(
    finished: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("status loads nothing")

    monkeypatch.setattr("replaykit.engines.load_engine", refused)
    monkeypatch.setattr("replaykit.model.chat.Chat.load", refused)
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    status(recipe_of(mix={"ratio": 0.1}))
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_the_status_goes_through_json(finished: None) -> None:
    found = status(recipe_of(mix={"ratio": 0.1}))
    again = StatusResult.model_validate(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert all(isinstance(step, StepStatus) for step in again.steps)
