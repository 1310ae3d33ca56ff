"""How much replay is enough: which points are trained, what their intervals hold, and what is said."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import type_in

from replaykit.errors import RecipeError, RunError
from replaykit.nano import world
from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import SkillFacts
from replaykit.steps.evaluate.statistics import paired_drop
from replaykit.steps.pipeline import step_of
from replaykit.steps.report.html.sweep import advice_block, sweep_block
from replaykit.steps.step import Context, Outcome
from replaykit.steps.sweep.advise import recommend
from replaykit.steps.sweep.curve import decide
from replaykit.steps.sweep.plan import check, planned
from replaykit.steps.sweep.pool import SkillTable, falling, fitted, pooled
from replaykit.steps.sweep.step import run
from replaykit.steps.sweep.words import sentence
from replaykit.steps.swept import AdviseResult, Fitted, Point, SkillDrop, SweepResult

Make = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe_of(here: Path) -> Make:
    """A recipe of 48 target rows and two old skills of 30 items, with the changes given."""
    files = {
        "target": world.draw("referral", 48, seed=1),
        "pool": world.draw_old(80, seed=1),
        "referral": world.draw("referral", 20, seed=1, held_out=True),
        "capital": world.draw("capital", 30, seed=1, held_out=True),
        "nli": world.draw("nli", 30, seed=1, held_out=True),
    }
    for name, tasks in files.items():
        tiny.write_tasks(here / f"{name}.jsonl", tasks)
    old = {name: {"path": f"{name}.jsonl", "max_tokens": 12} for name in ("capital", "nli")}

    def recipe(**changes: Any) -> Recipe:
        found: dict[str, Any] = {
            "out": "run",
            "model": "nano",
            "engine": "transformers",
            "target": "target.jsonl",
            "select": {"pool": "pool.jsonl", "n": 40, "method": "random", "processes": 1,
                       "near_duplicate": None},
            "mix": {"near_duplicate": None},
            "train": {"batch_rows": 8, "learning_rate": 1e-3, "log_every": 5},
            "eval": {"target": {"path": "referral.jsonl", "score": "cross_entropy"}, "old": old},
        }  # fmt: skip
        return tiny.with_sections(found, changes)

    return recipe


# --- which points ---------------------------------------------------------------------------------


def test_the_points_are_every_ratio_and_the_controls(recipe_of: Make) -> None:
    names = [point.name for point in planned(recipe_of())]
    assert names == [
        "no-replay", "ratio-0.01", "ratio-0.05", "ratio-0.1", "target-alone", "all-old",
    ]  # fmt: skip


def test_with_other_keys_the_recipes_own_ratio_is_taken(recipe_of: Make) -> None:
    sweep = {"over": {"mix.unit": ["rows", "tokens"]}, "controls": False}
    points = planned(recipe_of(sweep=sweep))
    assert [point.name for point in points] == [
        "no-replay", "ratio-0.05_unit-rows", "ratio-0.05_unit-tokens",
    ]  # fmt: skip
    assert {point.against for point in points[1:]} == {"no-replay"}


def test_a_control_has_no_remedy_that_needs_replay_and_is_trained_once(recipe_of: Make) -> None:
    over = {"train.remedies": [{}, {"distill": {"rows": "replay"}}, {"l2sp": {}}]}
    recipe = recipe_of(sweep={"ratio": [0.2], "over": over, "controls": False})
    points = planned(recipe)
    controls = [point for point in points if point.control == "no-replay"]
    assert len(controls) == 2  # without a remedy, and with l2sp
    distilled = next(point for point in points if "distill" in point.name)
    assert distilled.against == controls[0].name
    assert distilled.recipe(recipe, steps=5).train.remedies.distill is not None


def test_all_points_have_the_same_steps_but_the_target_alone(recipe_of: Make) -> None:
    recipe = recipe_of()
    steps = {each.name: each.recipe(recipe, steps=9).train.steps for each in planned(recipe)}
    assert steps.pop("target-alone") is None
    assert set(steps.values()) == {9}


def test_what_is_stated_has_no_shorter_control(recipe_of: Make) -> None:
    names = [point.name for point in planned(recipe_of(sweep={"steps": 9}))]
    assert "target-alone" not in names


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"over": {"model": ["a", "b"]}}, "model: all points are compared with one base"),
        ({"over": {"train.epochs": [1, 2]}}, "train.epochs: every point has the same number"),
        ({"over": {"mix.ratio": [0.1]}}, "mix.ratio: the shares stand under ratio"),
        ({"ratio": [0.1, 0.1]}, "0.1 stands there twice"),
    ],
)
def test_what_would_not_be_equal_compute_is_refused(
    here: Path, sweep: dict[str, Any], says: str
) -> None:
    (here / "replaykit.yaml").write_text(json.dumps({"sweep": sweep}))
    with pytest.raises(RecipeError, match=says):
        load_recipe("replaykit.yaml")


def test_without_old_skills_it_says_what_to_give(recipe_of: Make) -> None:
    with pytest.raises(RecipeError, match=r"sweep needs held-out rows of old skills.*--old"):
        check(recipe_of(eval={"old": {}}), "sweep")


def test_without_replay_it_says_where_it_comes_from(recipe_of: Make) -> None:
    with pytest.raises(RecipeError, match=r"advise needs replay: select"):
        check(recipe_of(select=None), "advise")


# --- intervals ------------------------------------------------------------------------------------


def covered(*, items: int, seeds: int, spread: float, drop: float = 0.1, times: int = 400) -> float:
    """How often the pooled interval holds the true drop, of simulated sweeps whose seeds differ by
    this standard deviation and in which half of an item's fate is the item's own.
    """
    random = np.random.default_rng(1)
    held = 0
    for _ in range(times):
        base = (random.random(items) < 0.9).astype(int)
        own = random.random(items)
        parts = []
        for _ in range(seeds):
            true = float(np.clip(drop + spread * random.standard_normal(), 0, 0.9))
            fate = np.where(random.random(items) < 0.5, own, random.random(items))
            tuned = base * (fate >= true / 0.9)
            parts.append(paired_drop(base.tolist(), tuned.tolist()))
        found = pooled(parts)
        held += found.low <= drop <= found.high
    return held / times


@pytest.mark.slow
def test_the_interval_over_three_seeds_holds_what_it_says() -> None:
    assert covered(items=60, seeds=3, spread=0.0) >= 0.95
    assert covered(items=60, seeds=3, spread=0.06) >= 0.95


@pytest.mark.slow
def test_one_seed_says_nothing_of_others() -> None:
    assert covered(items=60, seeds=1, spread=0.06) < 0.85


def test_one_seed_has_the_interval_of_its_items() -> None:
    found = Interval(0.02, -0.01, 0.05)
    assert pooled([found]) == found
    assert pooled([found, found]) == found


def test_a_spread_of_seeds_widens_the_interval() -> None:
    parts = [Interval(mean, mean - 0.03, mean + 0.03) for mean in (0.0, 0.05, 0.1)]
    found = pooled(parts)
    assert found.mean == 0.05
    # Student's t of 2 degrees of freedom: 4.3027 x 0.05 / sqrt(3), joined with 0.03.
    assert found.high - found.mean == pytest.approx((0.1242**2 + 0.03**2) ** 0.5, abs=1e-3)


def test_the_fitted_curve_never_rises() -> None:
    assert falling(np.array([0.3, 0.1, 0.2, 0.0])).tolist() == pytest.approx([0.3, 0.15, 0.15, 0])


def simulated(random: np.random.Generator, items: int, true: list[float]) -> SkillTable:
    """A skill that the base has at 0.9, with these true drops; 2 % of its wrong items turn right."""
    base = (random.random(items) < 0.9).astype(float)
    own = random.random(items)
    columns = []
    for drop in true:
        fate = np.where(random.random(items) < 0.5, own, random.random(items))
        gained = random.random(items) < 0.02
        kept = fate >= (drop + 0.002) / 0.9
        columns.append([np.where(base == 1, kept, gained).astype(float).tolist()])
    return SkillTable.of(Scored(path="x"), base.tolist(), columns, [])


@pytest.mark.slow
def test_the_band_of_the_fit_holds_what_it_says() -> None:
    random = np.random.default_rng(2)
    shares = [0, 0.01, 0.05, 0.1, 0.2]
    true = [0.2, 0.1, 0.04, 0.01, 0.005]
    below = np.zeros(5)
    for number in range(40):
        tables = [simulated(random, 100, true) for _ in range(2)]
        found = fitted(shares, tables, {}, seed=number)
        below += [drop <= each.high for drop, each in zip(true, found, strict=True)]
    # 40 fits tell 0.97 from 0.88; the larger simulation is in the function's docstring.
    assert (below / 40 >= 0.9).all(), below


def test_items_of_which_none_changed_leave_a_doubt() -> None:
    same = SkillTable.of(Scored(path="x"), [1.0] * 30, [[[1.0] * 30]] * 2, [])
    assert fitted([0, 0.1], [same], {}, seed=1)[1].high > 0.02


# --- what is said ---------------------------------------------------------------------------------


def point(ratio: float, drop: tuple[float, float, float] | None, **more: Any) -> Point:
    """A point of the model's own rows that lost this much, in the mean and of json."""
    if drop is None:
        return Point(name=f"ratio-{ratio:g}", values={"mix.ratio": ratio}, ratio=ratio,
                     control=more.pop("control", None), **more)  # fmt: skip
    found: dict[str, Any] = {
        "control": None if ratio else "no-replay",
        "share": ratio,
        "sources": ["generate"] if ratio else [],
        "states": {"1": "unknown"},
        "drop": Interval(*drop),
        "worst": SkillDrop(skill="json", drop=Interval(0.01, -0.02, 0.04)),
        "drops": {"json": Interval(0.01, -0.02, 0.04), "nli": Interval(0.0, -0.01, 0.01)},
        "new_drop": Interval(-0.6, -0.7, -0.5),
        "new_gain": Interval(-0.003, -0.011, 0.005) if ratio else None,
    }
    values = {"mix.ratio": ratio}
    return Point(name=f"ratio-{ratio:g}", values=values, ratio=ratio, **(found | more))


def swept(*points: Point, left_out: dict[str, Any] | None = None, rows: int = 200) -> SweepResult:
    """A sweep with these points, decided and said as a real one."""
    decision, chosen = decide(points, 0.02, telling=not left_out)
    skills = [SkillFacts(skill=skill, role="old", score="exact", n=rows, unscored=0)
              for skill in ("json", "nli")]  # fmt: skip
    found = SweepResult(
        points=list(points), seeds=[1], steps=100, unit="score", new_unit="score", margin=0.02,
        skills=skills, base={"json": Interval(0.1, 0.05, 0.15), "nli": Interval(0.9, 0.8, 0.95)},
        mean_skills=["json", "nli"], left_out=left_out or {}, decision=decision, chosen=chosen,
        words="",
    )  # fmt: skip
    return found.model_copy(update={"words": sentence(found)})


LOST = (0.4, 0.35, 0.45)
KEPT = (0.005, -0.004, 0.014)


def test_the_smallest_share_below_the_margin_is_chosen() -> None:
    found = swept(point(0, LOST), point(0.01, (0.03, 0.01, 0.05)), point(0.05, KEPT),
                  point(0.1, (0.0, -0.01, 0.01)))  # fmt: skip
    assert found.chosen == "ratio-0.05"
    assert found.words == (
        "5 % of the model's own rows keeps the mean of the old skills within 2 points (upper bound 1.4; "
        "the most is lost of json, 1, up to 4) at a cost of 0.3 (−0.5 to 1.1) in the new one. One "
        "seed: how far another training would lie from it is not in these bounds."
    )


def test_a_share_is_not_enough_where_a_larger_one_is_not() -> None:
    found = swept(point(0, LOST), point(0.01, KEPT), point(0.05, (0.03, 0.01, 0.05)),
                  point(0.1, KEPT), point(0.2, KEPT))  # fmt: skip
    assert found.chosen == "ratio-0.1"
    alone = swept(point(0, LOST), point(0.01, KEPT), point(0.05, (0.03, -0.01, 0.05)))
    assert alone.decision == "cannot_tell"
    assert "1 % of the model's own rows keeps within 2 points, and a larger" in alone.words


def test_that_nothing_was_lost_says_so_where_nothing_was_learned() -> None:
    found = swept(point(0, KEPT, new_drop=Interval(0.0, -0.07, 0.07)), point(0.05, KEPT))
    assert found.decision == "nothing_lost"
    assert "the new skill was not learned measurably either" in found.words


def test_a_share_of_which_a_loss_is_measurable_is_not_enough() -> None:
    found = swept(point(0, LOST), point(0.05, KEPT, states={"1": "lost"}), point(0.1, KEPT))
    assert found.chosen == "ratio-0.1"


@pytest.mark.parametrize(
    ("points", "decision", "says"),
    [
        ([point(0, KEPT), point(0.05, KEPT)], "nothing_lost", "Without replay the old skills stay"),
        (
            [point(0, LOST), point(0.05, (0.08, 0.05, 0.11)), point(0.1, (0.06, 0.03, 0.09))],
            "none_keeps",
            "No share of these keeps the old skills within 2 points; the best, 10 % of the model's "
            "own rows, loses 6 points (3 to 9) at a cost of 0.3",
        ),
        (
            [point(0, LOST), point(0.05, (0.02, -0.01, 0.05))],
            "cannot_tell",
            "Cannot tell, because no bound is below 2 points: the best, 5 % of the model's own "
            "rows, loses 2 points (−1 to 5); more than 200 items",
        ),
        (
            [point(0, LOST), point(0.05, None, errors={"1": "no such file"})],
            "cannot_tell",
            "Cannot tell, because no training with replay could be measured.",
        ),
    ],
)
def test_each_case_has_its_sentence(points: list[Point], decision: str, says: str) -> None:
    found = swept(*points)
    assert found.decision == decision
    assert found.words.startswith(says)


def test_skills_of_which_nothing_can_be_told_are_named() -> None:
    few = swept(
        point(0, LOST), point(0.05, KEPT), left_out={"json": "base_cannot", "nli": "too_few"}
    )
    assert "nli: fewer than 20 items" in few.words
    assert "the base hardly has json (0.10)" in few.words


def test_what_failed_is_named_with_its_error() -> None:
    failed = point(0.1, None, errors={"2": "nowhere.jsonl: no such file\nlook"})
    found = swept(point(0, LOST), point(0.05, KEPT), failed)
    assert found.words.endswith("Failed: ratio-0.1 (seed 2: nowhere.jsonl: no such file look).")


# --- advice ---------------------------------------------------------------------------------------

CURVE = [Fitted(ratio=0, drop=Interval(*LOST)), Fitted(ratio=0.05, drop=Interval(*KEPT)),
         Fitted(ratio=0.1, drop=Interval(*KEPT))]  # fmt: skip
LEARNED_NOTHING = {"new_drop": Interval(0.0, -0.01, 0.01)}


def test_the_smallest_fitted_share_is_recommended() -> None:
    ratio, words = recommend(swept(point(0, LOST), point(0.05, KEPT)), CURVE)
    assert ratio == 0.05
    assert words == (
        "5 % replay: the fitted drop of the old skills is 0.5, at most 1.4, below 2 points"
    )


@pytest.mark.parametrize(
    ("sweep", "curve", "says"),
    [
        (
            swept(point(0, LOST), left_out={"json": "too_few", "nli": "too_few"}),
            [],
            "fewer than 20",
        ),
        (swept(point(0, LOST, **LEARNED_NOTHING), point(0.05, KEPT)), CURVE, "not learned"),
        (swept(point(0, KEPT), point(0.05, KEPT)), CURVE, "nothing is to be protected"),
        (swept(point(0, LOST)), CURVE, "no training with replay"),
        (swept(point(0.05, KEPT)), CURVE, "the control without replay could not be measured"),
        (
            swept(point(0, LOST), point(0.05, KEPT)),
            [CURVE[0], Fitted(ratio=0.05, drop=Interval(0.01, 0.0, 0.03))],
            "no share of these is surely within 2 points: of 5 % the fitted drop is 1 (0 to 3)",
        ),
    ],
)
def test_where_nothing_can_be_told_it_says_why(
    sweep: SweepResult, curve: list[Fitted], says: str
) -> None:
    ratio, words = recommend(sweep, curve)
    assert ratio is None
    assert words.startswith("Cannot tell, because ")
    assert says in words


# --- pictures -------------------------------------------------------------------------------------


def test_the_page_has_both_pictures_and_every_point() -> None:
    new = Interval(0.9, 0.8, 0.95)
    failed = point(0.1, None, errors={"1": "<b>no</b> such file"})
    sweep = swept(point(0, LOST, new=new), point(0.05, KEPT, new=new), failed)
    page = sweep_block(sweep)
    assert page.count("<svg") == 2
    assert "&lt;b&gt;no&lt;/b&gt; such file" in page
    assert "ratio-0.05" in page
    found = AdviseResult(sweep=sweep, full_steps=400, fitted=CURVE[:2], ratio=0.05, words="5 %")
    assert "<code>mix: {ratio: 0.05}</code>" in advice_block(found)


def test_a_sweep_of_which_one_point_was_measured_has_a_page() -> None:
    assert "<table" in sweep_block(swept(point(0, LOST)))


# --- real ones ------------------------------------------------------------------------------------


def done(recipe: Recipe) -> dict[str, Outcome[Any]]:
    return {outcome.step: outcome for outcome in run(recipe, Context())}


@pytest.mark.slow
def test_a_sweep_compares_at_equal_compute_and_keeps_what_failed(recipe_of: Make) -> None:
    over = {"train.remedies": [{}, {"ewc": {"old": "nowhere.jsonl"}}]}
    sweep = {"ratio": [0.25], "over": over, "seeds": [1, 2]}
    outcomes = done(recipe_of(sweep=sweep))
    found = outcomes["sweep"].result
    points = {each.name: each for each in found.points}
    plain = points["ratio-0.25_remedies-none"]
    # 48 target rows and a quarter of replay are 64 rows: 8 steps of 8.
    assert found.steps == plain.steps == points["no-replay_remedies-none"].steps == 8
    assert plain.rows == points["no-replay_remedies-none"].rows == points["all-old"].rows == 64
    assert points["target-alone"].rows == 48
    assert plain.share == 0.25
    assert points["all-old"].share == 0.5
    assert set(plain.states) == {"1", "2"}
    assert plain.new_gain is not None
    failed = [name for name, each in points.items() if each.errors]
    assert [name for name in failed if "ewc" in name] == failed != []
    assert "nowhere.jsonl" in found.words
    assert "2 seeds are few" in found.words
    base = [name for name in outcomes if name.startswith("sweep-points/base")]
    assert base == ["sweep-points/base"]
    again = done(recipe_of(sweep=sweep))
    assert all(each.skipped for each in again.values())
    assert again["sweep"].result == found


@pytest.mark.slow
def test_a_sweep_of_which_nothing_could_be_trained_is_an_error(recipe_of: Make) -> None:
    recipe = recipe_of(
        sweep={"steps": 2, "controls": False, "ratio": [0.25]},
        train={"remedies": {"ewc": {"old": "nowhere.jsonl"}}},
    )
    with pytest.raises(RunError, match=r"no point could be trained and measured.*nowhere\.jsonl"):
        done(recipe)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(recipe_of: Make) -> None:
    recipe = recipe_of(sweep={"ratio": [0.25], "steps": 6, "controls": False})
    Path("replaykit.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "replaykit", "sweep"]
    first = Path("run/sweep-points/6-steps/no-replay/seed-1/measured/manifest.json")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    assert not Path("run/sweep/manifest.json").exists()
    outcomes = done(recipe)
    skipped = [name for name, each in outcomes.items() if each.skipped]
    assert "sweep-points/6-steps/no-replay/seed-1/train" in skipped
    assert "sweep-points/base" in skipped
    assert {point.name for point in outcomes["sweep"].result.points if point.measured} == {
        "no-replay", "ratio-0.25",
    }  # fmt: skip


@pytest.mark.slow
def test_advise_trains_a_quarter_and_says_the_line_or_why_not(recipe_of: Make) -> None:
    Path("replaykit.yaml").write_text(recipe_of(train={"steps": 8}).to_yaml())
    found = json.loads(type_in("advise", "--ratio", "0,0.25", "--json"))
    assert found["sweep"]["steps"] == 2
    assert found["full_steps"] == 8
    assert [each["ratio"] for each in found["fitted"]] == [0, 0.25]
    shown = type_in("advise", "--ratio", "0,0.25")
    assert ("mix: {ratio: 0.25}" in shown) == (found["ratio"] is not None)
    assert "a whole one" in shown.replace("\n", " ")
    assert "How much replay is enough" in Path(type_in("report").strip()).read_text()


@pytest.mark.slow
def test_every_point_is_kept_apart_from_memory_and_its_drift_is_measured(tmp_path):
    recipe = tiny.Run(tmp_path).changed(
        eval={"memory": 20}, generate={"n": 30}, train={"steps": 2},
        sweep={"ratio": [0.0, 0.2], "seeds": [1], "controls": False}, mix={"ratio": 0.2, "sources": ["generate"]},
    )  # fmt: skip
    *_, outcome = run(recipe, Context())
    found = outcome.result
    assert "memory" not in found.mean_skills
    assert all("memory" in point.drops for point in found.points)
    assert (recipe.folder / "memory" / "rows.jsonl").exists()
    list(step_of("report")(recipe, Context()))
    page = (recipe.folder / "report.html").read_text()
    assert f'<p class="verdict">{escape(found.words)}</p>' in page
    assert "memory: drawn against kept" not in page
