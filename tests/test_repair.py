"""A model that was tuned already is brought back: which step is kept, and what the model can do then."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import transformers
from commands import type_in
from test_training import stops_after

import replaykit
from replaykit import suited
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.errors import CallError, RecipeError, Stopped
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.repair import Repair
from replaykit.runs import read_manifest
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.pipeline import step_of
from replaykit.steps.repair.choose import choose
from replaykit.steps.repair.points import make_whole
from replaykit.steps.repair.result import RepairPoint, RepairResult
from replaykit.steps.repair.train import training_of
from replaykit.steps.report.repairs import repair_words
from replaykit.steps.step import Context

OLD = ("capital", "topic", "json")
RECIPE = """\
name: r
model: nano
eval:
  target: {path: test-desk.jsonl, score: exact, max_tokens: 32}
  old:
    capital: {path: test-capital.jsonl, max_tokens: 32}
    topic: {path: test-topic.jsonl, max_tokens: 32}
    json: {path: test-json.jsonl, score: json, max_tokens: 64}
repair: {rows: 150, draw_tokens: 64}
"""


def rows(tasks):
    return [Record(dialogue(task.prompt, task.answer), "target") for task in tasks]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder of the embedded model, tuned hard on a new task without any replay."""
    folder = tmp_path_factory.mktemp("tuned")
    mixture = replaykit.mix(
        rows(world.draw("desk", 300, seed=1)),
        {},
        model="nano",
        ratio=0,
        steps=70,
        batch_rows=16,
        near_duplicate=None,
    )
    made = replaykit.train(mixture, model="nano", folder=folder / "train", learning_rate=1e-3)
    return made.model


@pytest.fixture
def prepared(here):
    for skill in (*OLD, "desk"):
        tasks = world.draw(skill, 40, seed=1, held_out=True)
        write_jsonl(f"test-{skill}.jsonl", rows(tasks))
    write_jsonl("desk.jsonl", rows(world.draw("desk", 300, seed=1)))
    Path("replaykit.yaml").write_text(RECIPE)
    return here


def result_in(folder="runs/r/repair"):
    return RepairResult.model_validate(read_manifest(Path(folder)).result)


@pytest.mark.slow
def test_old_skills_come_back_and_the_new_one_stays(tuned, prepared):
    options = ("--steps", 32, "--rehearse", "desk.jsonl", "--set", "repair.batch_rows=32")
    shown = " ".join(type_in("repair", tuned, *options).split())
    found = result_in()
    before = found.before
    after = found.after
    assert found.verdict in ("repaired", "better") and after is not None
    assert [point.step for point in found.points] == [0, 1, 2, 4, 8, 16, 32]
    assert before.state == "lost" and before.old.mean < 0.5 and before.new.mean > 0.9
    assert after.old_gain.low > 0.1, "measurably better"
    assert after.old.mean - before.old.mean == pytest.approx(after.old_gain.mean, abs=1e-5)
    assert after.new_gain.high >= 0 or after.new_gain.low > -found.margin
    assert found.kl[1] < 0.5 * found.kl[0]
    # What is kept is a model of its own, which answers as the kept point did.
    assert found.model == "runs/r/repair/model"
    network = transformers.AutoModelForCausalLM.from_pretrained(found.model)
    assert network.dtype == loading.stored_dtype(tuned)
    assert transformers.AutoTokenizer.from_pretrained(found.model).chat_template
    again = replaykit.evaluate(
        {"base": "nano", "repaired": found.model},
        {"target": ("test-desk.jsonl", "exact")},
        max_tokens=32,
    )
    assert again.models[1].target.mean == after.new.mean
    assert [model.model for model in found.evaluation.models] == ["base", "tuned", "repaired"]
    assert {path.name for path in Path("runs/r/repair").iterdir() if path.is_dir()} == {
        "drawn",
        "model",
    }
    assert f"The model after {after.step} steps is kept" in shown
    assert "chosen by these very rows" in shown
    # No question of the base's rows is one of the tests'.
    asked = {row.prompt for skill in (*OLD, "desk") for row in read_jsonl(f"test-{skill}.jsonl")}
    assert not asked & {row.prompt for row in read_jsonl("runs/r/repair/rows.jsonl")}


@pytest.mark.slow
def test_a_repair_that_was_stopped_goes_on_and_finds_the_same(tuned, prepared, monkeypatch):
    recipe = load_recipe("replaykit.yaml", {"repair.steps": 12, "repair.every": 4})
    (whole,) = step_of("repair")(recipe, Context(out=Path("whole")), tuned=tuned)
    again = Context(out=Path("cut"))
    with stops_after(6, monkeypatch), pytest.raises(Stopped, match="stopped at step 6 of 12"):
        list(step_of("repair")(recipe, again, tuned=tuned))
    assert [path.name for path in Path("cut/points").iterdir()] == ["step-4"]
    assert not Path("cut/manifest.json").exists()
    (gone_on,) = step_of("repair")(recipe, again, tuned=tuned)
    assert gone_on.result.verdict == whole.result.verdict
    assert gone_on.result.step == whole.result.step
    for ours, theirs in zip(gone_on.result.points, whole.result.points, strict=True):
        assert ours.old == theirs.old
        assert ours.new == theirs.new
    (skipped,) = step_of("repair")(recipe, again, tuned=tuned)
    assert skipped.skipped


@pytest.mark.slow
def test_an_adapter_is_repaired_as_the_model_that_it_makes(prepared, tmp_path):
    mixture = replaykit.mix(
        rows(world.draw("desk", 300, seed=1)),
        {},
        model="nano",
        ratio=0,
        steps=40,
        batch_rows=16,
        near_duplicate=None,
    )
    made = replaykit.train(
        mixture, model="nano", folder=tmp_path / "a", method="lora", learning_rate=1e-2
    )
    found = replaykit.repair(
        made.adapter,
        base="nano",
        tests={
            "capital": "test-capital.jsonl",
            "json": ("test-json.jsonl", "json"),
            "target": "test-desk.jsonl",
        },
        folder="repaired",
        max_tokens=64,
        steps=10,
        every=5,
        rows=100,
        draw_tokens=64,
        method="lora",
        learning_rate=5e-3,
    )
    assert found.method == "lora"
    assert [point.step for point in found.points] == [0, 5, 10]
    assert found.before.old.mean < 0.9
    assert max(point.old.mean for point in found.points[1:]) > found.before.old.mean
    assert not Path("repaired/merged").exists()
    if found.step is not None:
        assert not (Path(found.model) / "adapter_config.json").exists()
        transformers.AutoModelForCausalLM.from_pretrained(found.model)


@pytest.mark.slow
def test_a_model_that_lost_nothing_stays_and_nothing_is_trained(prepared):
    shutil.copytree(loading.resolve("nano"), "copy")
    shown = " ".join(type_in("repair", "copy", "--margin", 0.2).split())
    found = result_in()
    assert found.verdict == "nothing_lost"
    assert found.model == "copy" and found.step is None and found.rows == 0
    assert not Path("runs/r/repair/rows.jsonl").exists()
    assert "nothing to repair" in shown


@pytest.mark.slow
def test_a_base_with_other_tokens_is_refused(tuned, prepared):
    shutil.copytree(tuned, "other")
    network = loading.load_model("other")
    network.resize_token_embeddings(1100)
    loading.save_model(network, "other")
    message = type_in("repair", "other", "--steps", 4, code=1)
    assert "the tuned model has 1,100 tokens and the base 1,024" in message


def test_without_old_skills_the_suites_of_the_base_are_tested(here):
    found = suited.tested(Recipe(model="nano"))
    assert "suite:nano-capital" in {test.path for test in found.recipe.eval.old.values()}
    assert "no old skill is named" in found.said[0]
    write_jsonl(
        "sums.jsonl", [Record(dialogue(f"{n} + 1?", f"{n + 1}"), "target") for n in range(9)]
    )
    given = Recipe.model_validate({"model": "nano", "eval": {"target": "sums.jsonl"}})
    assert suited.tested(given).recipe.eval.target.score == "numeric"
    named = {"model": "nano", "eval": {"target": {"path": "sums.jsonl", "score": "exact"}}}
    assert suited.tested(Recipe.model_validate(named)).recipe.eval.target.score == "exact"


# --- what is kept ---------------------------------------------------------------------------------


def point(step, state="lost", *, old=0.5, new=0.9, gain=0.0, new_gain=0.0):
    """A point whose intervals are 0.05 wide to each side."""

    def around(mean):
        return Interval(mean, mean - 0.05, mean + 0.05)

    return RepairPoint(
        step=step,
        state=state,
        old=around(old),
        old_drop=around(1 - old),
        old_gain=None if step == 0 else around(gain),
        new=None if new is None else around(new),
        new_gain=None if step == 0 or new is None else around(new_gain),
    )


TUNED = point(0, new=1.0)


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        # The best new skill of those that keep the old ones, of equals the fewest steps.
        (
            [point(1, gain=0.2), point(2, "kept", new=0.8), point(3, "kept", new=0.7)],
            ("repaired", 2),
        ),
        ([point(1, "kept", new=0.8), point(2, "kept", new=0.8)], ("repaired", 1)),
        ([point(1, "kept", new=None), point(2, "kept", new=None)], ("repaired", 1)),
        # Where none keeps them, the most of the old skills without a loss of the new one.
        (
            [point(1, gain=0.2), point(2, gain=0.4), point(3, gain=0.5, new_gain=-0.3)],
            ("better", 2),
        ),
        ([point(1, gain=0.4), point(2, "unknown", gain=0.3)], ("better", 2)),
        # A gain that its interval does not show is none.
        ([point(1, gain=0.04), point(2, gain=0.5, new_gain=-0.2)], ("none", None)),
    ],
)
def test_the_kept_point_is_the_one_that_the_gate_allows(points, wanted):
    assert choose([TUNED, *points], margin=0.02, new_in_nats=False) == wanted


def test_of_nats_fewer_are_better():
    points = [TUNED, point(1, "kept", new=0.3), point(2, "kept", new=0.2)]
    assert choose(points, margin=0.02, new_in_nats=True) == ("repaired", 2)


def test_a_tuned_model_that_keeps_all_is_left_alone():
    assert choose([point(0, "kept")], margin=0.02, new_in_nats=False) == ("nothing_lost", None)


# --- settings -------------------------------------------------------------------------------------


def test_a_model_is_measured_early_and_late():
    assert Repair().points == [6, 12, 25, 50, 100, 200]
    assert Repair(steps=3).points == [1, 3]
    assert Repair(steps=10, every=4).points == [4, 8, 10]
    assert Repair(batch_rows=8, rehearse=0.01).rehearsed == 1
    assert Repair(batch_rows=8, rehearse=0.99).rehearsed == 7
    assert Repair().rehearsed == 0


def test_the_training_is_by_the_size_of_the_model():
    small = training_of(Repair(), 2_000_000)
    assert small.method == "full" and small.learning_rate == pytest.approx(5.5e-4)
    large = training_of(Repair(), 8_000_000_000)
    assert large.method == "lora" and large.learning_rate == 2e-4
    distill = large.remedies.distill
    assert (distill.weight, distill.teacher, distill.temperature) == (1.0, "copy", 1.0)
    own = training_of(Repair(method="lora", learning_rate=1e-3), 2_000_000)
    assert own.method == "lora" and own.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{every: 300}", "a point every 300 steps is none in 200"),
        ("{rehearse: 0.5, batch_rows: 1}", "a step of one row has no part"),
        ("{stps: 3}", "did you mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(here, settings, message):
    Path("r.yaml").write_text(f"name: a\nmodel: nano\nrepair: {settings}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe("r.yaml")


def test_what_a_repair_needs_is_said(prepared, monkeypatch):
    recipe = load_recipe("replaykit.yaml")
    with pytest.raises(RecipeError, match="repair needs target"):
        own = recipe.model_copy(update={"repair": Repair(rehearse=0.5)})
        list(step_of("repair")(own, Context(), tuned="nano"))
    same = load_recipe("replaykit.yaml", {"target.path": "test-desk.jsonl", "repair.rehearse": 0.5})
    with pytest.raises(RecipeError, match="the very rows that are trained on"):
        list(step_of("repair")(same, Context(), tuned="nano"))
    with pytest.raises(RecipeError, match="repair needs old skills"):
        none = Recipe.model_validate({"model": "nano", "eval": {"target": "test-desk.jsonl"}})
        list(step_of("repair")(none, Context(), tuned="nano"))
    assert "is not finished" in type_in("repair", code=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="start it without torchrun"):
        list(step_of("repair")(recipe, Context(), tuned="nano"))


def test_from_python_what_is_missing_is_said(here):
    write_jsonl("a.jsonl", rows(world.draw("desk", 4, seed=1)))
    with pytest.raises(CallError, match="tests has no old skill"):
        replaykit.repair("x", base="nano", tests={"target": "a.jsonl"}, folder="r")
    tests = {"old": "a.jsonl"}
    with pytest.raises(CallError, match="give them as target="):
        replaykit.repair("x", base="nano", tests=tests, folder="r", rehearse=0.5)
    with pytest.raises(CallError, match="no keyword 'stps'; did you mean 'steps'"):
        replaykit.repair("x", base="nano", tests=tests, folder="r", stps=5)


def test_the_point_of_an_adapter_becomes_a_whole_model(here):
    network = peft.get_peft_model(loading.load_model("nano"), peft.LoraConfig(r=2))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    network.save_pretrained("point")
    make_whole(Path("point"), loading.resolve("nano"), Path("out"))
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "llama"
    made = loading.load_model("out").state_dict()
    base = loading.load_model("nano").state_dict()
    assert made.keys() == base.keys()
    assert any(not made[name].equal(base[name]) for name in base)


def test_words_say_before_and_after_and_what_stays():
    points = [TUNED, point(4, "kept", old=0.97, new=0.98, gain=0.47)]
    chosen = [points[0], points[1].model_copy(update={"chosen": True})]
    result = RepairResult(
        verdict="repaired",
        step=4,
        points=chosen,
        rows=10,
        method="full",
        learning_rate=1e-4,
        margin=0.02,
        unit="score",
        new_unit="score",
        model="runs/r/repair/model",
        tuned="t",
        base="nano",
        revision=None,
        evaluation={"skills": [], "models": []},
    )
    words = repair_words(result)
    assert words == (
        "The model after 4 steps is kept: every old skill's drop is below the margin. Old skills: "
        "0.50 (0.45–0.55) below the base before, 0.03 (−0.02 to 0.08) below the base now; new "
        "skill: 1.00 (0.95–1.05) before, 0.98 (0.93–1.03) now. It is in runs/r/repair/model."
    )
    stays = result.model_copy(update={"verdict": "none", "step": None, "points": points})
    assert repair_words(stays).startswith("The tuned model stays: no step keeps every old skill")
