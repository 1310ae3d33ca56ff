"""A share that moves is exact in every step as well, and a controller that moves it gets the same rows every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from replaykit.data.record import TARGET
from replaykit.errors import DataError
from replaykit.recipe.mix import Mix, Schedule
from replaykit.recipe.train import Train
from replaykit.steps.mix.plan import Slot, deviation, plan, replay_beside, shares
from replaykit.steps.mix.schedule import describe, most, ratio_at

# A share that comes to no row is refused, and drawing such sizes tests nothing.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
settings.load_profile("any machine")

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=25)
POOLS = st.dictionaries(st.sampled_from(["select", "generate", "describe"]), SIZES, min_size=1)
PARTS, RATIOS = st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 0.15, 0.5]) | st.floats(0, 0.95)
SCHEDULES = (
    st.builds(Schedule, shape=st.sampled_from(["linear", "cosine"]), to=RATIOS)
    | st.builds(
        Schedule, shape=st.just("warm-down"), to=RATIOS | st.none(), hold=st.floats(0, 0.99)
    )
    | st.builds(
        Schedule, shape=st.just("steps"), at=st.dictionaries(PARTS, RATIOS, min_size=1, max_size=4)
    )
)


def planned(
    target: Sequence[int],
    pools: Mapping[str, Sequence[int]],
    *,
    batch_rows: int,
    seed: int = 1,
    epochs: int = 1,
    steps: int | None = None,
    **mix: Any,
) -> list[list[Slot]]:
    """The plan under these keys of the recipe's mix and train."""
    train = Train(batch_rows=batch_rows, epochs=epochs, steps=steps)
    return plan(target, pools, settings=Mix(**mix), train=train, seed=seed)


def drawn_or_assumed(
    target: Sequence[int], pools: Mapping[str, Sequence[int]], **options: Any
) -> list[list[Slot]]:
    """The plan, where the share comes to a row at all."""
    try:
        return planned(target, pools, **options)
    except DataError as error:
        assume("no replay row comes" not in str(error))
        raise


def flat(steps: Sequence[Sequence[Slot]]) -> list[Slot]:
    return [slot for step in steps for slot in step]


def replayed(slots: Sequence[Slot], sizes: Mapping[str, Sequence[int]]) -> int:
    return sum(sizes[slot.source][slot.row] for slot in slots if slot.source != TARGET)


# --- the shapes -----------------------------------------------------------------------------------------------------


def test_linear_goes_in_a_straight_line() -> None:
    rise = Schedule(shape="linear", to=0.3)
    assert [ratio_at(rise, 0.15, p) for p in (0, 0.5, 1)] == pytest.approx([0.15, 0.225, 0.3])


def test_cosine_is_slow_at_both_ends() -> None:
    rise = Schedule(shape="cosine", to=0.3)
    points = [ratio_at(rise, 0.1, p) for p in (0, 0.1, 0.5, 0.9, 1)]
    assert points == pytest.approx([0.1, 0.10489, 0.2, 0.29511, 0.3], abs=1e-5)


def test_warm_down_holds_and_then_falls_to_nothing_or_to_what_is_said() -> None:
    fall = Schedule(shape="warm-down", hold=0.6)
    assert [ratio_at(fall, 0.2, p) for p in (0, 0.6, 0.8, 1)] == pytest.approx([0.2, 0.2, 0.1, 0])
    assert ratio_at(Schedule(shape="warm-down", to=0.1), 0.2, 0.75) == pytest.approx(0.15)


def test_steps_jump_where_they_are_told_to_in_whatever_order() -> None:
    jumps = Schedule(shape="steps", at={0.75: 0.1, 0.25: 0.3})
    assert [ratio_at(jumps, 0.05, p) for p in (0, 0.24, 0.25, 0.74, 0.75, 1)] == [
        0.05,
        0.05,
        0.3,
        0.3,
        0.1,
        0.1,
    ]


def test_without_a_schedule_the_share_stays() -> None:
    assert [ratio_at(None, 0.05, p) for p in (0, 0.5, 1)] == [0.05] * 3


@given(schedule=SCHEDULES | st.none(), ratio=RATIOS, progress=PARTS)
def test_a_share_is_never_more_than_the_most_nor_less_than_nothing(
    schedule: Schedule | None, ratio: float, progress: float
) -> None:
    assert -1e-12 <= ratio_at(schedule, ratio, progress) <= most(schedule, ratio) + 1e-12


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (None, ""),
        (Schedule(shape="linear", to=0.3), "linear to 30 %"),
        (Schedule(shape="cosine", to=0.125), "cosine to 12.5 %"),
        (Schedule(shape="warm-down"), "falling to 0 % from 50 % of the training on"),
        (Schedule(shape="steps", at={0.5: 0.1, 0.25: 0.2}), "then 20 % from 25 % of the training on, 10 % from 50 % of the "
                                                            "training on"),
    ],
)  # fmt: skip
def test_a_schedule_can_be_said_in_words(schedule: Schedule | None, words: str) -> None:
    assert describe(schedule) == words


def test_a_floor_above_its_cap_is_refused_by_the_recipe() -> None:
    with pytest.raises(ValidationError, match="more rows of json than max_rows allows"):
        Mix(min_rows={"json": 9, "news": 1}, max_rows={"json": 8})


# --- the plan under a schedule --------------------------------------------------------------------------------------


@given(target=SIZES, pools=POOLS, ratio=RATIOS, schedule=SCHEDULES, batch_rows=st.integers(1, 48), seed=st.integers(0, 9),
       how=st.sampled_from(["add", "replace", "steps"]))  # fmt: skip
def test_every_step_has_the_share_of_its_own_moment_within_one_record(
    target: list[int],
    pools: dict[str, list[int]],
    ratio: float,
    schedule: Schedule,
    batch_rows: int,
    seed: int,
    how: str,
) -> None:
    options: dict[str, Any] = {"add": {"epochs": 2}, "replace": {"budget": "replace", "epochs": 3},
                               "steps": {"steps": 5, "budget": "replace"}}[how]  # fmt: skip
    steps = drawn_or_assumed(
        target, pools, ratio=ratio, schedule=schedule, batch_rows=batch_rows, seed=seed, **options
    )
    sizes, slots = {TARGET: target, **pools}, flat(steps)
    largest = max(max(rows) for rows in sizes.values())
    assert all(
        deviation(run, sizes) <= largest + 1e-6
        for run in [*steps, slots, slots[-len(slots) // 5 :]]
    )
    done, total = 0, len(slots) if how != "add" else 2 * len(target)
    # What is asked of each moment is the schedule at the middle of what is drawn there.
    for slot in slots:
        moment = (min(done, total - 1) + 0.5) / total
        assert slot.ratio == pytest.approx(ratio_at(schedule, ratio, moment))
        done += slot.source == TARGET or how != "add"
    if how == "add":
        assert sorted(slot.row for slot in slots if slot.source == TARGET) == sorted(
            [*range(len(target))] * 2
        )


@given(target=SIZES, pools=POOLS, schedule=SCHEDULES, seed=st.integers(0, 9))
def test_a_schedule_changes_nothing_in_the_order_of_the_target(
    target: list[int], pools: dict[str, list[int]], schedule: Schedule, seed: int
) -> None:
    steps = drawn_or_assumed(target, pools, ratio=0.1, schedule=schedule, batch_rows=8, seed=seed)
    alone = planned(target, {}, ratio=0, batch_rows=8, seed=seed)
    assert [slot for slot in flat(steps) if slot.source == TARGET] == flat(alone)


def test_linear_from_15_to_30_percent_has_225_per_mille_in_all_and_285_in_the_last_fifth() -> None:
    sizes = {TARGET: [26] * 5000, "select": [9] * 500}
    rise = Schedule(shape="linear", to=0.3)
    steps = planned(
        sizes[TARGET],
        {"select": sizes["select"]},
        ratio=0.15,
        schedule=rise,
        batch_rows=64,
        seed=1,
        steps=200,
    )
    by_step = [shares(step, sizes) for step in steps]
    assert by_step[0] == pytest.approx(0.15, abs=0.03)
    assert by_step[-1] == pytest.approx(0.3, abs=0.03)
    expected = sum(slot.ratio * sizes[slot.source][slot.row] for slot in flat(steps))
    assert replayed(flat(steps), sizes) == pytest.approx(expected, abs=26)
    assert shares(flat(steps[-40:]), sizes) == pytest.approx(0.285, abs=0.004)


def test_a_share_that_begins_with_nothing_still_needs_replay() -> None:
    rise = Schedule(shape="linear", to=0.2)
    with pytest.raises(DataError, match="at a ratio of 0.2 was asked for, but there is none"):
        planned([1] * 9, {}, ratio=0, schedule=rise, batch_rows=3, seed=1)
    assert "select" in {slot.source for slot in flat(planned([1] * 99, {"select": [1]}, ratio=0, schedule=rise, batch_rows=3,
                                                          seed=1))}  # fmt: skip


# --- replay beside fixed target rows --------------------------------------------------------------------------------

STEPS = st.lists(st.lists(st.integers(1, 400), max_size=12), min_size=1, max_size=12)
BY_STEP = st.lists(st.floats(0, 0.95), min_size=12, max_size=12)


def sums(slots: Sequence[Slot], pools: Mapping[str, Sequence[int]]) -> int:
    return sum(pools[slot.source][slot.row] for slot in slots)


@given(target=STEPS, pools=POOLS, ratios=BY_STEP, seed=st.integers(0, 9))
def test_beside_fixed_target_rows_each_step_has_the_share_decided_for_it_within_one_record(
    target: list[list[int]], pools: dict[str, list[int]], ratios: list[float], seed: int
) -> None:
    weights = dict.fromkeys(pools, 1.0)
    steps = list(replay_beside(target, pools, ratios.__getitem__, lambda _: weights, seed=seed))
    assert len(steps) == len(target)
    largest, off = max(max(pool) for pool in pools.values()), 0.0
    for rows, slots, ratio in zip(target, steps, ratios, strict=False):
        step = sums(slots, pools) - ratio * (sums(slots, pools) + sum(rows))
        off += step
        if ratio > 0:
            assert abs(off) <= largest / 2 + 1e-6  # so that all steps together are, too
        assert abs(step) <= largest + 1e-6
    for name, pool in pools.items():
        counts = Counter(slot.row for slots in steps for slot in slots if slot.source == name)
        taken = [counts[row] for row in range(len(pool))]
        assert max(taken) - min(taken) <= 1


def test_the_pools_follow_weights_that_change_on_the_way() -> None:
    pools = {"json": [10] * 30, "news": [10] * 30}

    def weights(step: int) -> Mapping[str, float]:
        return {"json": 1.0, "news": 1.0} if step < 10 else {"json": 3.0, "news": 1.0}

    steps = list(replay_beside([[10] * 8] * 20, pools, lambda _: 1 / 3, weights, seed=1))
    first, then = (
        Counter(s.source for s in flat(steps[:10])),
        Counter(s.source for s in flat(steps[10:])),
    )
    assert (first["json"], first["news"]) == (20, 20)
    assert (then["json"], then["news"]) == (30, 10)


def test_a_pool_without_weight_gives_no_row_and_a_step_without_pools_owes_nothing() -> None:
    pools = {"json": [10] * 30, "news": [10] * 30, "sums": []}
    none: dict[str, float] = {}
    decided = [{"json": 1.0, "sums": 1.0}, none, none, {"news": 0.5}]
    steps = list(replay_beside([[10] * 9] * 4, pools, lambda _: 0.1, decided.__getitem__, seed=1))
    assert [[slot.source for slot in step] for step in steps] == [["json"], [], [], ["news"]]


@pytest.mark.slow
@given(target=STEPS, pools=POOLS, ratios=BY_STEP, seed=st.integers(0, 9))
def test_the_same_decisions_give_the_same_rows_when_it_is_run_again(
    target: list[list[int]], pools: dict[str, list[int]], ratios: list[float], seed: int
) -> None:
    def run(decided: Sequence[float]) -> list[list[Slot]]:
        weights = dict.fromkeys(pools, 1.0)
        return list(
            islice(
                replay_beside(target, pools, decided.__getitem__, lambda _: weights, seed=seed),
                len(decided),
            )
        )

    half = len(target) // 2
    assert run(ratios)[:half] == run(ratios[:half])  # what is decided later changes nothing before
    assert run(ratios) == run(ratios)


def test_a_decision_is_asked_for_only_when_its_step_comes() -> None:
    decided: list[int] = []

    def ratio(step: int) -> float:
        decided.append(step)
        return 0.1

    steps = replay_beside(
        [[10] * 9] * 5, {"json": [10] * 5}, ratio, lambda _: {"json": 1.0}, seed=1
    )
    seen = [len(decided) for _ in islice(steps, 3)]
    assert seen == [1, 2, 3]
    assert all(one < other for one, other in pairwise(decided))
