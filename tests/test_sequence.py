"""Several tasks in a row: real stages on the embedded model, and the recipes that are refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sequences
import yaml
from commands import type_in
from pydantic import ValidationError

import replaykit
from replaykit.data.jsonl import read_jsonl
from replaykit.data.planned import read_plan
from replaykit.data.record import TARGET, Record, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.recipe import Recipe
from replaykit.recipe.tasks import Buffer
from replaykit.recipe.train import Train
from replaykit.result import Result
from replaykit.steps import pipeline
from replaykit.steps.buffer.answers import answered_anew
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.evaluate.skills import read_items
from replaykit.steps.evaluate.statistics import paired_drop, proportion
from replaykit.steps.matrix.result import MatrixResult
from replaykit.steps.mix.result import MixResult
from replaykit.steps.report.sequence import old_verdict, tasks_verdict
from replaykit.steps.report.terminal import show
from replaykit.steps.stages import stage, stages
from replaykit.steps.status import status
from replaykit.steps.step import Context

TASKS = sequences.TASKS
FIRST, SECOND, THIRD = TASKS
STAGES = [
    f"{step}-{task}"
    for task in TASKS
    for step in ("buffer", "mix", "train", "matrix")
    if (step, task) != ("buffer", FIRST)
]


class Done:
    """A finished run: its recipe and its results by folder."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        outcomes = list(pipeline.run(recipe, Context()))
        self.order = [outcome.step for outcome in outcomes]
        self.results: dict[str, Any] = {outcome.step: outcome.result for outcome in outcomes}

    def path(self, *names: str) -> Path:
        return self.recipe.folder.joinpath(*names)

    def rows(self, step: str) -> list[Record]:
        return list(read_jsonl(self.path(step, "rows.jsonl")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("sequence")
    return Done(sequences.recipe(folder, buffer={"answers": "on_policy"}))


# --- the stages -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_stage_trains_from_the_model_that_the_last_one_left(run: Done) -> None:
    assert run.order == [*STAGES, "report"]
    assert run.results[f"train-{FIRST}"].base == "nano"
    for before, task in ((FIRST, SECOND), (SECOND, THIRD)):
        assert run.results[f"train-{task}"].base == str(run.path(f"train-{before}", "model"))


@pytest.mark.slow
def test_later_stages_replay_earlier_tasks_from_the_buffer_and_the_first_has_no_replay(
    run: Done,
) -> None:
    first, *later = (run.results[f"mix-{task}"] for task in TASKS)
    assert isinstance(first, MixResult)
    assert first.replay_rows == 0
    for mix in later:
        assert mix.share["rows"] == 0.25
    third = read_plan(run.path(f"mix-{THIRD}", "rows.jsonl"))
    replayed = Counter(row.record.meta["task"] for row in third if row.record.source != TARGET)
    assert set(replayed) == {FIRST, SECOND}
    assert {row.record.source for row in third} == {TARGET, "buffer"}


@pytest.mark.slow
def test_the_buffer_holds_trained_rows_of_the_earlier_tasks_and_no_more_than_it_may(
    run: Done,
) -> None:
    second, third = (run.results[f"buffer-{task}"] for task in (SECOND, THIRD))
    assert isinstance(third, BufferResult)
    assert second.tasks == {FIRST: 10}
    assert third.tasks == {FIRST: 5, SECOND: 5}
    rows = run.rows(f"buffer-{THIRD}")
    assert len(rows) == third.rows == 10
    assert run.path(f"buffer-{THIRD}", "rows.jsonl").stat().st_size == third.bytes
    trained = {row.record.prompt for row in read_plan(run.path(f"mix-{SECOND}", "rows.jsonl"))}
    assert {row.prompt for row in rows if row.meta["task"] == SECOND} <= trained
    of_first = [row.prompt for row in rows if row.meta["task"] == FIRST]
    assert of_first == [row.prompt for row in run.rows(f"buffer-{SECOND}")][:5]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reservoir", "balanced", "herding"])
def test_a_buffer_keeps_within_its_bytes_and_is_the_same_again(
    run: Done, method: str, tmp_path: Path
) -> None:
    buffer = Buffer.model_validate({"method": method, "bytes": 1500})
    recipe = stage(run.recipe.model_copy(update={"buffer": buffer}), 2)
    # Of the stage before, the buffer is the finished one.
    (done,) = pipeline.step_of("buffer")(recipe, Context(out=tmp_path / "once"))
    (again,) = pipeline.step_of("buffer")(recipe, Context(out=tmp_path / "again"))
    whole = (tmp_path / "once" / "rows.jsonl").read_bytes()
    assert whole == (tmp_path / "again" / "rows.jsonl").read_bytes()
    assert 900 < len(whole) == done.result.bytes <= 1500
    assert done.result.rows == sum(done.result.tasks.values())
    assert done.result == again.result
    assert done.result.answers is None


@pytest.mark.slow
def test_where_new_answers_take_more_bytes_rows_are_left_out(run: Done, tmp_path: Path) -> None:
    found = {}
    for answers in ("kept", "on_policy"):
        buffer = Buffer.model_validate({"method": "balanced", "bytes": 1500, "answers": answers})
        recipe = stage(run.recipe.model_copy(update={"buffer": buffer}), 1)
        (done,) = pipeline.step_of("buffer")(recipe, Context(out=tmp_path / answers))
        found[answers] = done.result
        assert done.result.bytes <= 1500
    anew = found["on_policy"]
    assert anew.answers.asked == found["kept"].rows
    assert anew.answers.replaced > anew.answers.same
    assert anew.rows == anew.answers.asked - anew.answers.no_room < found["kept"].rows
    assert f"{anew.answers.no_room} rows are left out" in " ".join(shown("buffer", anew).split())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reservoir", "herding"])
def test_rows_that_are_larger_than_the_whole_buffer_are_counted(
    run: Done, method: str, tmp_path: Path
) -> None:
    def kept(size: int) -> Any:
        buffer = Buffer.model_validate({"method": method, "bytes": size})
        recipe = stage(run.recipe.model_copy(update={"buffer": buffer}), 1)
        (done,) = pipeline.step_of("buffer")(recipe, Context(out=tmp_path / f"{size}"))
        return done.result

    with pytest.raises(DataError, match=r"40 is less than the smallest of the 16 rows") as refused:
        kept(40)
    smallest = int(str(refused.value).rpartition("(")[2].partition(")")[0])
    found = kept(smallest)
    assert found.rows == 1
    assert found.bytes <= smallest
    assert 0 < found.too_large < found.offered == sequences.ROWS
    said = f"{found.too_large} rows that are larger than the whole buffer"
    assert said in " ".join(shown("buffer", found).split())


@pytest.mark.slow
def test_the_users_own_columns_stay_apart_from_those_of_the_buffer(tmp_path: Path) -> None:
    recipe = sequences.recipe(tmp_path, train={"steps": 1})
    path = tmp_path / f"{FIRST}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    own = {"task": "geography", "rank": "high", "reference": "an atlas"}
    path.write_text("".join(json.dumps(row | own) + "\n" for row in rows))
    for name in ("mix", "train"):
        list(pipeline.step_of(name)(stage(recipe, 0), Context()))
    list(pipeline.step_of("buffer")(stage(recipe, 1), Context()))
    for row in read_jsonl(recipe.folder / f"buffer-{SECOND}" / "rows.jsonl"):
        assert row.meta["task"] == FIRST
        assert isinstance(row.meta["rank"], int)
        assert row.meta["columns"] == own


@pytest.mark.slow
def test_only_what_verifies_replaces_an_old_answer(run: Done) -> None:
    answers = run.results[f"buffer-{SECOND}"].answers
    rows = run.rows(f"buffer-{SECOND}")
    replaced = [row for row in rows if "reference" in row.meta]
    assert answers.asked == 10
    assert len(replaced) == answers.replaced - answers.same > 0
    for row in replaced:
        # The model still says the capital alone; its task's rows say "The answer is Paris."
        reference = row.meta["reference"]["content"]
        assert reference.startswith("The answer is ")
        assert reference.removeprefix("The answer is ").removesuffix(".") == row.answer
    assert answers.replaced + sum(answers.kept.values()) == answers.asked
    # Referrals are not learned in two steps: they keep the answers that they came with.
    third = run.results[f"buffer-{THIRD}"].answers
    of_second = [row for row in run.rows(f"buffer-{THIRD}") if row.meta["task"] == SECOND]
    assert all(row.answer.startswith("Refer the patient") for row in of_second)
    assert sum(third.kept.values()) >= len(of_second)


@pytest.mark.slow
def test_the_figures_are_those_of_the_stored_items(run: Done) -> None:
    skills = ["topic", *TASKS]
    folders = dict(zip(("base", *TASKS), (FIRST, *TASKS), strict=True))
    items = {
        name: read_items(run.path(f"matrix-{task}", f"items-{name}.jsonl"), skills)
        for name, task in folders.items()
    }
    right = {
        name: {skill: [float(item.score or 0) for item in found] for skill, found in of.items()}
        for name, of in items.items()
    }
    matrix = run.results[f"matrix-{THIRD}"]
    assert isinstance(matrix, MatrixResult)
    assert [row.after for row in matrix.rows] == ["base", *TASKS]
    for row in matrix.rows:
        assert list(row.scores) == skills
        for skill in skills:
            assert row.scores[skill] == proportion(right[row.after][skill]).rounded()

    def mean(after: str, skill: str) -> float:
        return sum(right[after][skill]) / sequences.HELD_OUT

    gained = sum(mean(THIRD, task) - mean(task, task) for task in (FIRST, SECOND))
    assert matrix.backward_transfer_gem is not None
    assert matrix.backward_transfer_gem.mean == pytest.approx(gained / 2, abs=1e-6)
    assert matrix.backward_transfer_trace is not None
    assert matrix.backward_transfer_trace.mean == pytest.approx(gained / 3, abs=1e-6)
    ahead = mean(FIRST, SECOND) - mean("base", SECOND) + mean(SECOND, THIRD) - mean("base", THIRD)
    assert matrix.forward_transfer is not None
    assert matrix.forward_transfer.mean == pytest.approx(ahead / 2, abs=1e-6)
    assert (
        matrix.old_drops["topic"]
        == paired_drop(right["base"]["topic"], right[THIRD]["topic"]).rounded()
    )


@pytest.mark.slow
def test_the_matrix_after_each_stage_begins_with_that_of_the_stage_before(run: Done) -> None:
    one, two, three = (run.results[f"matrix-{task}"] for task in TASKS)
    assert one.rows == three.rows[:2]
    assert two.rows == three.rows[:3]
    assert (one.learned, three.learned) == ([FIRST], list(TASKS))


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_skipped_and_its_status_says_so(run: Done) -> None:
    again = list(pipeline.run(run.recipe, Context()))
    assert all(outcome.skipped for outcome in again if outcome.step != "report")
    found = status(run.recipe).steps
    assert [step.name for step in found] == [*STAGES, "report"]
    assert {step.state for step in found} == {"finished"}


@pytest.mark.slow
def test_a_run_that_is_moved_stays_finished(run: Done, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    place.symlink_to(run.recipe.folder)
    moved = run.recipe.model_copy(update={"out": str(place)})
    assert {step.state for step in status(moved).steps} == {"finished"}


@pytest.mark.slow
def test_a_change_in_a_later_task_leaves_earlier_stages_as_they_are(run: Done) -> None:
    last = run.recipe.tasks[2].model_copy(update={"train": Train(steps=3)})
    changed = run.recipe.model_copy(update={"tasks": [*run.recipe.tasks[:2], last]})
    found = {step.name: step for step in status(changed).steps}
    assert {found[name].state for name in STAGES[:-3]} == {"finished"}
    assert found[f"mix-{THIRD}"].changed == ["train.steps was 2, is 3"]
    assert found[f"train-{THIRD}"].state == "would be done anew"


@pytest.mark.slow
def test_another_buffer_is_said_and_does_later_stages_anew(run: Done) -> None:
    buffer = run.recipe.buffer.model_copy(update={"rows": 4})
    found = status(run.recipe.model_copy(update={"buffer": buffer})).steps
    first = next(step for step in found if step.state != "finished")
    assert first.name == f"buffer-{SECOND}"
    assert first.words == "would be done anew: buffer.rows was 10, is 4"


class Killed(BaseException):
    """Ends a run as an interrupt would: nothing catches it."""


def killed_in(work: str, done: int) -> Callable[..., None]:
    """A watch that ends the run when so much of this work is done."""

    def watch(what: str, now: int, total: int | None, note: str = "") -> None:
        if (what, now) == (work, done):
            raise Killed

    return watch


# Of a process that is gone at once, in the middle of the first training.
KILL = """
import os, signal, sys
import replaykit

def watch(what, done, total, note=""):
    if (what, done) == ("train-capital", 1):
        os.kill(os.getpid(), signal.SIGKILL)

replaykit.run(sys.argv[1], watch=watch)
"""


def left(folder: Path) -> dict[str, bytes]:
    """The bytes of all rows, items and weights of a run."""
    names = ("*/rows.jsonl", "*/items-*.jsonl", "*/model/model.safetensors")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in folder.glob(name)
    }


@pytest.mark.slow
def test_a_run_that_is_killed_between_and_inside_stages_ends_with_the_same_bytes(
    run: Done, tmp_path: Path
) -> None:
    killed = sequences.recipe(tmp_path, buffer={"answers": "on_policy"})
    path = tmp_path / "tasks.yaml"
    path.write_text(killed.to_yaml())
    gone = subprocess.run([sys.executable, "-c", KILL, str(path)], capture_output=True)
    assert gone.returncode == -signal.SIGKILL
    for place in (
        ("eval base", 7),
        ("answer anew", 5),
        ("compare buffer", 3),
        (f"train-{SECOND}", 1),
        (f"eval {SECOND}", 20),
        (f"train-{THIRD}", 2),
    ):
        with pytest.raises(Killed):
            list(pipeline.run(killed, Context(watch=killed_in(*place))))
    list(pipeline.run(killed, Context()))
    whole = left(run.recipe.folder)
    assert len(whole) == 2 + 3 + 4 + 3
    assert left(killed.folder) == whole


# --- what people see ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_has_the_matrix_with_shaded_cells_and_the_figures(run: Done) -> None:
    page = run.path("report.html").read_text()
    matrix = run.results[f"matrix-{THIRD}"]
    assert "<h2>Accuracy matrix</h2>" in page
    assert page.count('class="shade') == 4 * 4
    assert page.count('class="shade framed"') == 3
    assert page.count("<script") <= 1  # the filters' own
    assert tasks_verdict(matrix) in unescape(page)
    assert old_verdict(matrix) in unescape(page)
    for name in matrix.figures:
        assert name in page
    assert "balanced, 10 rows at most" in page


def shown(step: str, result: Result, width: int = 100) -> str:
    from rich.console import Console

    console = Console(file=StringIO(), width=width, highlight=False)
    show(step, result, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_the_terminal_has_the_matrix_and_the_figures_by_name(run: Done) -> None:
    text = shown("matrix", run.results[f"matrix-{THIRD}"])
    for words in (
        *TASKS,
        "base",
        "old skills",
        "rows tested",
        "capital 5",
        "backward transfer (GEM)",
        "forward transfer",
    ):
        assert words in text
    narrow = shown("matrix", run.results[f"matrix-{THIRD}"], width=50)
    assert all(len(line) <= 50 for line in narrow.splitlines())
    answers = run.results[f"buffer-{THIRD}"].answers
    buffer = " ".join(shown("buffer", run.results[f"buffer-{THIRD}"]).split())
    assert f"{answers.replaced} of 10 new answers are right and are replayed" in buffer


@pytest.mark.slow
def test_the_command_and_the_function_run_a_recipe_with_tasks(run: Done, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(run.recipe.to_yaml())
    found = json.loads(type_in("run", path, "--json"))
    assert found[f"matrix-{THIRD}"] == run.results[f"matrix-{THIRD}"].to_json()
    text = type_in("run", path)
    # A matrix holds those of the stages before it, so the last one alone is shown.
    assert f"matrix-{THIRD}" in text
    assert f"matrix-{FIRST}" not in text
    assert [outcome.step for outcome in replaykit.run(path)] == [*STAGES, "report"]


# --- what a stage is ------------------------------------------------------------------------------


def test_a_stage_is_a_run_of_its_task_from_the_model_of_the_one_before(tmp_path: Path) -> None:
    recipe = sequences.recipe(tmp_path, seed=7)
    second = stage(recipe, 1)
    assert second.model == str(recipe.folder / f"train-{FIRST}" / "model")
    assert second.target == recipe.tasks[1].target
    assert list(second.arms) == [SECOND]
    assert second.folder == recipe.folder
    assert (second.seed, second.train) == (7, recipe.train)


def test_a_setting_that_does_nothing_is_refused_of_a_task_or_where_no_stage_has_it(
    tmp_path: Path,
) -> None:
    lora = {"train": {"method": "lora"}}
    # Of the recipe's rank one stage has use, of its own rank a task.
    sequences.recipe(tmp_path, {SECOND: lora}, train={"rank": 8})
    sequences.recipe(tmp_path, {SECOND: {"train": {"rank": 8}}}, train={"method": "lora"})
    with pytest.raises(
        ValidationError, match=r"tasks\.1\.train\.rank: method: full has no adapter"
    ):
        sequences.recipe(tmp_path, {SECOND: {"train": {"rank": 8}}, FIRST: lora})
    with pytest.raises(ValidationError, match=r"(?<!\.)train\.min_rate: with schedule: constant"):
        sequences.recipe(tmp_path, train={"min_rate": 0.1, "schedule": "constant"})


def test_a_task_may_have_settings_of_its_own(tmp_path: Path) -> None:
    own = {SECOND: {"mix": {"ratio": 0.5}, "train": {"epochs": 1, "steps": 5}}}
    changed = sequences.recipe(tmp_path, own, train={"epochs": 3, "steps": None})
    assert [own.mix.ratio for own in stages(changed)] == [0.0, 0.5, 0.25]
    assert [own.train.epochs for own in stages(changed)] == [3, 1, 3]
    assert [own.train.steps for own in stages(changed)] == [None, 5, None]
    # What a task says is written, even where it is a default.
    assert Recipe.model_validate(yaml.safe_load(changed.to_yaml())) == changed


def test_the_first_stage_replays_the_recipes_other_sources_and_later_ones_both(
    tmp_path: Path,
) -> None:
    recipe = sequences.recipe(tmp_path, generate={"n": 6}, select={"pool": "old.jsonl"})
    first, second, _ = stages(recipe)
    assert first.mix.sources == {"select": 1.0, "generate": 1.0}
    assert second.mix.sources == {"select": 1.0, "generate": 1.0, "buffer": 1.0}
    weighed = sequences.recipe(tmp_path, mix={"sources": {"buffer": 3.0, "old.jsonl": 1.0}})
    assert [own.mix.sources for own in stages(weighed)][:2] == [
        {"old.jsonl": 1.0},
        {"buffer": 3.0, "old.jsonl": 1.0},
    ]


@pytest.mark.slow
def test_what_the_base_wrote_is_replayed_in_every_stage_and_written_once(tmp_path: Path) -> None:
    recipe = sequences.recipe(
        tmp_path,
        generate={"n": 6, "max_question_tokens": 64, "max_answer_tokens": 32},
        train={"steps": 1, "batch_rows": 16},
    )
    for own, name in [*pipeline.planned(recipe)][:6]:
        # The matrix is not needed for what comes after it.
        if name != "matrix":
            list(pipeline.step_of(name)(own, Context()))
    sources = [
        Counter(
            row.record.source for row in read_plan(recipe.folder / f"mix-{task}" / "rows.jsonl")
        )
        for task in (FIRST, SECOND)
    ]
    assert sources == [{"target": 12, "generate": 4}, {"target": 12, "generate": 2, "buffer": 2}]


def test_without_replay_there_is_no_buffer(tmp_path: Path) -> None:
    recipe = sequences.recipe(tmp_path, mix={"ratio": 0.0})
    assert {name for _, name in pipeline.planned(recipe)} == {"mix", "train", "matrix", "report"}


def test_ewc_without_replay_reads_the_buffer(tmp_path: Path) -> None:
    recipe = sequences.recipe(
        tmp_path,
        {FIRST: {"train": {"remedies": {}}}},
        mix={"ratio": 0.0},
        train={"remedies": {"ewc": {"rows": 4}}},
    )
    first, second, _ = stages(recipe)
    assert first.train.remedies.ewc is None
    ewc = second.train.remedies.ewc
    assert ewc is not None
    assert ewc.old is not None
    assert Path(ewc.old.path) == recipe.folder / f"buffer-{SECOND}" / "rows.jsonl"
    planned = [
        f"{name}-{next(iter(own.arms))}" for own, name in pipeline.planned(recipe) if own.arms
    ]
    assert planned == STAGES


def test_the_recipe_of_the_readme_can_be_read(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (text,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "tasks:" in block
    ]
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    recipe = replaykit.load_recipe(path)
    assert [own.train.epochs for own in stages(recipe)] == [1, 2, 1]
    assert recipe.buffer.answers == "on_policy"


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "target": ({"target": "new.jsonl"}, "target: it does not go with tasks: each task has its own"),
    "arms": (
        {"arms": {"control": {"ratio": 0.0}}},
        "arms: it does not go with tasks: write a recipe",
    ),
    "rewrite": ({"rewrite": {}}, "rewrite: it does not go with tasks"),
    "eval.target": ({"eval": {"target": "t.jsonl"}}, "eval.target: it does not go with tasks"),
    "classification": ({"task": "classification"}, "tasks: a text classifier learns one task"),
    "controller": (
        {"train": {"controller": {}}},
        "tasks.0: train.controller does not go with tasks",
    ),
    "both limits": ({"buffer": {"rows": 3, "bytes": 100}}, "bytes stands instead of rows"),
    "old skill": (
        {"eval": {"old": {"capital": "c.jsonl"}}},
        "tasks.0.name: 'capital' is the name of another skill",
    ),
    "needy remedies": (
        {"train": {"remedies": {"distill": {}, "ema": {}}}},
        "tasks.0: nothing is replayed in its stage, and distill cannot do without; give the task "
        "`train: {remedies: {ema: {}}}`",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_with_tasks_is_refused_by_name(what: str, tmp_path: Path) -> None:
    changes, words = REFUSED[what]
    found = sequences.recipe(tmp_path).model_dump(exclude_unset=True)
    for section, settings in changes.items():
        before = found.get(section)
        if isinstance(before, dict) and isinstance(settings, dict):
            settings = before | settings
        found[section] = settings
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(found))
    with pytest.raises(RecipeError) as error:
        replaykit.load_recipe(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "buffer: {rows: 5}",
            "buffer: it keeps the rows of earlier tasks, and there are no `tasks`",
        ),
        ("mix: {sources: [buffer]}", "mix.sources: the buffer holds rows of earlier tasks"),
        (
            "tasks: [{name: a, target: x, eval: y}, {name: b, target: z, eval: w}]\n"
            "buffer: {rows: 5}\nmix: {sources: [old.jsonl]}",
            "buffer: mix.sources does not name it, so no stage replays it",
        ),
        (
            "tasks: [{name: a, target: a.jsonl, eval: b.jsonl}]",
            "tasks: one task alone is `target`, with eval.target",
        ),
        (
            "tasks: [{name: a, target: a.jsonl, eval: {path: b.jsonl, score: cross_entropy}}]",
            "the accuracy matrix is of answers that are right or wrong",
        ),
        (
            "tasks: [{name: base, target: a.jsonl, eval: b.jsonl}]",
            "that name is the untrained model's",
        ),
        ("tasks: [{name: a/b, target: a.jsonl, eval: b.jsonl}]", "'a/b' names a folder"),
        (
            "tasks: [{name: a, target: x, eval: y}, {name: a, target: z, eval: w}]",
            "tasks.0.name: 'a' is the name of another skill",
        ),
        (
            "tasks: [{name: a, target: x, eval: y, mix: {rato: 1}}]",
            "tasks.0.mix.rato: unknown key; did you mean 'ratio'?",
        ),
    ],
)
def test_a_recipe_of_tasks_that_cannot_be_says_why(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        replaykit.load_recipe(path)
    assert words in str(error.value)


@pytest.mark.parametrize("step", ["select", "generate", "rewrite", "mix", "train", "eval", "push"])
def test_a_step_alone_of_a_recipe_with_tasks_points_to_run(step: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(sequences.recipe(tmp_path).to_yaml())
    said = type_in(step, "--recipe", path, code=1)
    assert f"{step}: the recipe has several tasks; `replaykit run` does their stages" in said


@pytest.mark.slow
def test_a_stage_is_trained_alone_where_its_task_is_named(run: Done) -> None:
    path = run.path("..", "tasks.yaml")
    path.write_text(run.recipe.to_yaml())
    found = json.loads(type_in("train", "--recipe", path, "--arm", SECOND, "--json"))
    assert found == run.results[f"train-{SECOND}"].to_json()
    said = type_in("train", "--recipe", path, "--arm", "poems", code=1)
    assert f"--arm poems: the recipe has the tasks {', '.join(TASKS)}" in said
    said = type_in("eval", "--recipe", path, "--arm", SECOND, code=1)
    assert "eval: of a recipe with tasks, --arm is for mix and train" in said


def test_a_task_that_is_tested_on_rows_of_another_is_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    same = sequences.recipe(tmp_path, {THIRD: {"target": str(tmp_path / f"test-{FIRST}.jsonl")}})
    with pytest.raises(RecipeError, match=r"tasks\.0\.eval: .* the very rows"):
        list(pipeline.run(same, Context()))
    assert not same.folder.exists()


def test_a_task_without_rows_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    recipe = sequences.recipe(tmp_path)
    (tmp_path / f"{THIRD}.jsonl").write_text("")
    with pytest.raises(DataError, match=THIRD):
        list(pipeline.run(recipe, Context()))
    assert not recipe.folder.exists()


# --- answers anew ---------------------------------------------------------------------------------


def capital(country: str, answer: str, **meta: Any) -> Record:
    messages = dialogue(f"What is the capital of {country}?", answer)
    return Record(messages, "buffer", {"task": "capital", "rank": 0, **meta})


@pytest.mark.slow
def test_new_answers_are_compared_with_the_first_ones(tmp_path: Path) -> None:
    recipe = sequences.recipe(tmp_path)
    thoughtful = capital("Japan", "Tokyo")
    thoughtful.messages[-1]["reasoning_content"] = "An island, so Tokyo."
    rows = [
        capital("France", "The answer is Paris."),
        capital("Spain", "Madrid"),
        capital("Italy", "The answer is Milan."),
        capital("Peru", "Bogota", reference={"role": "assistant", "content": "Lima"}),
        capital("Chile", "", reference={"role": "assistant", "content": ""}),
        thoughtful,
    ]
    found, answers = answered_anew(recipe, rows, lambda *_: None)
    said = ["Paris", "Madrid", "The answer is Milan.", "Lima", "", "Tokyo"]
    assert [row.answer for row in found] == said
    assert found[0].meta["reference"]["content"] == "The answer is Paris."
    # What is compared stays the first answer, however often another took its place.
    assert found[3].meta["reference"]["content"] == "Lima"
    assert found[1].id == rows[1].id
    paths = ["own", "own", "reference", "own", "reference", "reference"]
    assert [row.meta["path"] for row in found] == paths
    whys = ["right", "right", "wrong", "right", "unverifiable", "thought_missing"]
    assert [row.meta["why"] for row in found] == whys
    # What an earlier model said stays its own where the latest is not right.
    found, _ = answered_anew(
        recipe, [replace(found[0], messages=rows[2].messages)], lambda *_: None
    )
    assert (found[0].meta["path"], found[0].meta["why"]) == ("own", "wrong")
    assert (answers.asked, answers.replaced, answers.same) == (6, 3, 1)
    assert answers.kept == {"wrong": 1, "unverifiable": 1, "thought_missing": 1}
