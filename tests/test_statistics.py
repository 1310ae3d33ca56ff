"""Intervals hold what they promise, and a comparison says what was lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, ttest_rel

from replaykit.checks.funnel import Funnel
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test as Scored
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.result import EvalResult, ModelScores, WorstSkill
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import (
    detectable_drop,
    holm,
    loss_p,
    paired_drop,
    per_token,
    per_token_rise,
    proportion,
    retention,
)
from replaykit.steps.mix.build import build_mixture
from replaykit.steps.mix.result import MixResult

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def table(both: int, lost: int, won: int, neither: int) -> tuple[list[int], list[int]]:
    """Scores before and after: right in both, right before only, right after only, wrong in
    both.
    """
    before = [1] * (both + lost) + [0] * (won + neither)
    after = [1] * both + [0] * lost + [1] * won + [0] * neither
    return before, after


def limits(interval: Interval) -> tuple[float, float, float]:
    return round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4)


# --- right and wrong ------------------------------------------------------------------------------


@given(n=st.integers(1, 500), part=st.floats(0, 1))
def test_a_score_has_wilsons_interval(n: int, part: float) -> None:
    right = round(part * n)
    found = proportion([1] * right + [0] * (n - right))
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert found.mean == right / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),  # Newcombe 1998
        ((54, 0, 0, 0), (0.0, -0.0664, 0.0664)),  # Newcombe 1998
        (
            # The tests of R's contingencytables: Cavo et al. 2012.
            (59, 6, 16, 80),
            (-0.0621, -0.1186, -0.0046),
        ),
    ],
)
def test_a_drop_has_newcombes_interval(
    counts: tuple[int, int, int, int], expected: tuple[float, ...]
) -> None:
    assert limits(paired_drop(*table(*counts))) == expected


# Every outcome of 40 paired items.
TABLES = [
    (a, b, c, 40 - a - b - c) for a in range(41) for b in range(41 - a) for c in range(41 - a - b)
]


@pytest.fixture(scope="module")
def intervals() -> np.ndarray:
    found = [paired_drop(*table(*counts)) for counts in TABLES]
    return np.array([(interval.low, interval.high) for interval in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "phi"),
    [
        (0.9, 0.6, 0.2),
        (0.8, 0.8, 0.5),
        (0.8, 0.8, 0.0),
        (0.95, 0.9, 0.3),
        (0.5, 0.3, 0.6),
        (0.98, 0.1, 0.0),
    ],
)
def test_the_interval_of_a_drop_covers_the_truth_as_often_as_it_says(
    intervals: np.ndarray, before: float, after: float, phi: float
) -> None:
    both = before * after + phi * math.sqrt(before * (1 - before) * after * (1 - after))
    chances = multinomial.pmf(
        TABLES, 40, [both, before - both, after - both, 1 - before - after + both]
    )
    covers = (intervals[:, 0] <= before - after) & (before - after <= intervals[:, 1])
    assert sum(chances) == pytest.approx(1)
    # Over every outcome, so without chance; nominally 0.95.
    assert 0.93 <= sum(chances[covers]) <= 0.985


@given(pairs=PAIRS)
def test_a_drop_turned_round_is_the_gain(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    lost, won = paired_drop(before, after), paired_drop(after, before)
    assert (won.mean, won.low, won.high) == pytest.approx(
        (-lost.mean, -lost.high, -lost.low), abs=1e-12
    )
    assert -1 <= lost.low <= lost.mean <= lost.high <= 1
    assert lost.mean == pytest.approx(np.mean(before) - np.mean(after))


@pytest.mark.parametrize("right", [0, 1, 25, 50])
def test_where_nothing_changed_a_drop_is_still_possible(right: int) -> None:
    scores = [1] * right + [0] * (50 - right)
    found = paired_drop(scores, scores)
    assert found.mean == 0
    assert found.low < 0 < found.high
    assert found.high == pytest.approx(-found.low)


def test_pairing_narrows_the_interval_when_the_same_items_are_right() -> None:
    together, apart = paired_drop(*table(40, 5, 0, 55)), paired_drop(*table(18, 27, 22, 33))
    assert together.mean == pytest.approx(apart.mean)
    assert together.high - together.low < 0.5 * (apart.high - apart.low)


# --- sums and ratios ------------------------------------------------------------------------------


@given(parts=st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 0.5)), min_size=1, max_size=9))
def test_of_symmetric_intervals_the_average_is_that_of_normal_theory(
    parts: list[tuple[float, float]],
) -> None:
    found = average([Interval(mean, mean - half, mean + half) for mean, half in parts])
    # The standard errors' squares add up.
    half = math.sqrt(sum(half**2 for _, half in parts)) / len(parts)
    mean = sum(mean for mean, _ in parts) / len(parts)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))


def test_an_average_keeps_each_sides_own_reach() -> None:
    found = average([Interval(1.0, 0.7, 1.0), Interval(0.5, 0.1, 0.5), Interval(0.0, 0.0, 0.3)])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - 0.5 / 3, 0.6))


def test_retention_is_what_is_left_of_the_base() -> None:
    kept = retention(0.8, Interval(0.2, -0.08, 0.4))
    assert kept is not None
    assert (kept.mean, kept.low, kept.high) == pytest.approx((0.75, 0.5, 1.1))
    assert retention(0.5, Interval(0.5, 0.4, 0.6)) == Interval(0.0, 0.0, pytest.approx(0.2))
    assert retention(0.0, Interval(0.0, -0.1, 0.1)) is None


# --- nats -----------------------------------------------------------------------------------------


def test_a_loss_is_weighted_by_tokens_not_by_rows() -> None:
    found = per_token([10.0, 1.0], [10, 100])
    assert found.mean == 11 / 110
    assert found.low <= found.mean <= found.high
    assert per_token([3.0, 6.0], [3, 6]) == Interval(1.0, 1.0, 1.0)  # every token costs the same


# The true coverage is 0.95; of 1,000 simulated tests 3.3 standard errors are 0.023.
@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 10, 30, 100])
@pytest.mark.parametrize("shape", [1.0, 3.0])
def test_the_interval_of_a_loss_covers_the_truth_as_often_as_it_says(
    rows: int, shape: float
) -> None:
    random = np.random.default_rng(rows)
    covered = 0
    for _ in range(1000):
        tokens = random.integers(5, 60, size=rows)
        losses = random.gamma(shape, 1 / shape, size=rows) * tokens
        found = per_token(losses.tolist(), tokens.tolist())
        covered += found.low <= 1.0 <= found.high
    assert 0.927 <= covered / 1000 <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 10, 30, 100])
def test_the_interval_of_a_rise_covers_the_truth_as_often_as_it_says(rows: int) -> None:
    random = np.random.default_rng(rows)
    covered = 0
    for _ in range(1000):
        tokens = random.integers(5, 60, size=rows)
        before = random.gamma(2.0, 0.5, size=rows) * tokens
        rise = (0.1 + random.normal(0.0, 0.1, size=rows)) * tokens
        found = per_token_rise(before.tolist(), (before + rise).tolist(), tokens.tolist())
        covered += found.low <= 0.1 <= found.high
    assert 0.927 <= covered / 1000 <= 0.98


def test_one_row_has_no_interval() -> None:
    assert per_token([3.0], [2]).mean == 1.5
    assert not per_token([3.0], [2]).known
    assert not per_token_rise([3.0], [4.0], [2]).known
    assert not paired_drop([0.5], [0.25]).known


@pytest.mark.parametrize(
    ("before", "after"), [([0.5, 0.75, 1.0], [0.25, 0.75, 0.5]), ([0.5, 1, 1], [0, 1, 0])]
)
def test_graded_items_have_students_interval(before: list[float], after: list[float]) -> None:
    found = paired_drop(before, after)
    expected = ttest_rel(before, after).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert loss_p(before, after) == pytest.approx(
        ttest_rel(before, after, alternative="greater").pvalue
    )
    mean = proportion(before)
    assert 0 <= mean.low < mean.mean < mean.high <= 1


def test_a_rise_is_positive_where_the_loss_grew_and_pairing_narrows_it() -> None:
    random = np.random.default_rng(2)
    before, tokens = random.gamma(2.0, 9.0, size=80), [20] * 80
    rise = per_token_rise(
        before.tolist(), (before + 4 + random.normal(0, 0.1, size=80)).tolist(), tokens
    )
    assert rise.mean == pytest.approx(0.2, abs=0.01)
    assert 0.19 < rise.low < rise.mean < rise.high < 0.21
    level = per_token(before.tolist(), tokens)
    assert level.high - level.low > 10 * (rise.high - rise.low)


# --- is anything lost? ----------------------------------------------------------------------------


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_the_p_value_of_a_loss_is_mcnemars_with_mid_p(lost: int, gained: int) -> None:
    found = loss_p(*table(10, lost, gained, 10))
    if not lost + gained:
        assert found == 0.5
        return
    exact = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert found == pytest.approx(exact - 0.5 * binom.pmf(lost, lost + gained, 0.5))


def test_holm_corrects_as_r_does() -> None:
    # p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm")
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({}) == {}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("items", "gained"), [(60, 0.0), (200, 0.0), (200, 0.05), (1000, 0.02)])
def test_the_detectable_drop_is_found_four_times_in_five(items: int, gained: float) -> None:
    drop = detectable_drop(items, gained=gained, alpha=0.025)
    random = np.random.default_rng(items)
    chances = [drop + gained, gained, 1 - drop - 2 * gained]
    drawn = random.multinomial(items, chances, size=1000)
    found = sum(loss_p(*table(0, lost, won, same)) <= 0.025 for lost, won, same in drawn)
    # Connor's formula is an approximation; a thousand tests add 0.04 for chance.
    assert 0.7 <= found / 1000 <= 0.9


def test_more_rows_detect_a_smaller_drop() -> None:
    drops = [detectable_drop(n, gained=0.0, alpha=0.025) for n in (5, 10, 60, 200, 2000)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0.9
    assert drops[3] == pytest.approx(0.038, abs=0.002)  # nearly (1.96 + 0.84) ** 2 / 200


# --- the comparison -------------------------------------------------------------------------------

TESTS = {
    "target": Scored(path="t.jsonl", score="numeric"),
    "nli": Scored(path="n.jsonl"),
    "json": Scored(path="j.jsonl", score="json"),
    "pool": Scored(path="p.jsonl", score="cross_entropy"),
}


def answers(right: int, n: int = 50) -> list[Item]:
    return [Item("any", row, float(row < right), answer="?", finish="stop") for row in range(n)]


def losses(nats: float) -> list[Item]:
    return [Item("any", row, nats * n, tokens=n) for row, n in enumerate((3, 5, 8))]


ITEMS = {
    "base": {"target": answers(1), "nli": answers(50), "json": answers(40), "pool": losses(2.0)},
    "no-replay": {
        "target": answers(48),
        "nli": answers(20),
        "json": answers(4),
        "pool": losses(2.9),
    },
    "replay": {"target": answers(47), "nli": answers(49), "json": answers(40), "pool": losses(1.9)},
}


@pytest.fixture(scope="module")
def mixed(chat: Chat) -> MixResult:
    """What a mixture of 7 steps, of 3 rows each, says of itself."""
    target = [Record(dialogue(f"What is {n} + {n}?", f"{2 * n}"), "target") for n in range(19)]
    replay = [Record(dialogue(f"What is {n} - {n}?", "0"), "select") for n in range(19)]
    mix = Mix(ratio=0.05, unit="rows", near_duplicate=None)
    train = Train(batch_rows=3, steps=7)
    funnel = Funnel()
    mixture = build_mixture(
        target, {"select": replay}, chat=chat, settings=mix, train=train, seed=1, funnel=funnel
    )
    return mixture.result(mix, sha256="", sources={}, funnel=funnel.result(), decontamination=None)


@pytest.fixture(scope="module")
def found(mixed: MixResult) -> EvalResult:
    return compare(TESTS, ITEMS, {"replay": mixed})


@pytest.fixture
def base(found: EvalResult) -> ModelScores:
    return found.models[0]


@pytest.fixture
def lost(found: EvalResult) -> ModelScores:
    """The model that was trained without replay."""
    return found.models[1]


@pytest.fixture
def kept(found: EvalResult) -> ModelScores:
    """The model that was trained with replay."""
    return found.models[2]


def test_the_skills_are_listed_with_their_role_and_number_of_items(found: EvalResult) -> None:
    assert [skill.to_json() for skill in found.skills] == [
        {"skill": "target", "role": "target", "score": "numeric", "n": 50, "unscored": 0},
        {"skill": "nli", "role": "old", "score": "exact", "n": 50, "unscored": 0},
        {"skill": "json", "role": "old", "score": "json", "n": 50, "unscored": 0},
        {"skill": "pool", "role": "old", "score": "cross_entropy", "n": 3, "unscored": 0},
    ]


def test_the_base_stands_first_and_has_lost_nothing(found: EvalResult, base: ModelScores) -> None:
    assert [model.model for model in found.models] == ["base", "no-replay", "replay"]
    assert base.scores["json"] == proportion([1] * 40 + [0] * 10).rounded()
    assert base.old is not None
    assert base.old.mean == 0.9
    assert base.target is not None
    assert base.target.mean == 0.02
    assert (base.drop, base.retention, base.worst) == ({}, None, None)


def test_drops_are_paired_and_positive_where_something_was_lost(
    lost: ModelScores, kept: ModelScores
) -> None:
    assert set(lost.drop) == set(TESTS)
    assert lost.drop["nli"] == paired_drop([1] * 50, [1] * 20 + [0] * 30).rounded()
    assert {skill: drop.mean for skill, drop in lost.drop.items()} == {
        "target": -0.94,
        "nli": 0.6,
        "json": 0.72,
        "pool": 0.9,
    }
    assert kept.drop["pool"].mean == -0.1


def test_retention_is_of_the_mean_and_the_worst_skill_stands_beside_it(
    lost: ModelScores, kept: ModelScores
) -> None:
    assert lost.old_drop is not None
    assert lost.old_drop.mean == 0.66
    assert lost.retention is not None
    assert lost.retention.mean == pytest.approx(0.24 / 0.9, abs=1e-6)
    assert lost.worst == WorstSkill(skill="json", retention=0.1)
    assert kept.worst == WorstSkill(skill="nli", retention=0.98)
    assert kept.retention is not None
    assert kept.retention.low < kept.retention.mean == pytest.approx(0.89 / 0.9, abs=1e-6)


def test_a_model_has_the_ratio_share_and_steps_of_its_mixture(
    lost: ModelScores, kept: ModelScores, mixed: MixResult
) -> None:
    assert (kept.ratio, kept.steps) == (0.05, 7)
    assert kept.share == mixed.share["rows"] != mixed.share["tokens"]
    assert (lost.ratio, lost.share, lost.steps) == (None, None, None)


def test_skills_in_nats_alone_have_no_retention() -> None:
    items = {model: {"pool": skills["pool"]} for model, skills in ITEMS.items()}
    base, lost, _ = compare({"pool": TESTS["pool"]}, items, {}).models
    assert (base.old, base.target, base.scores["pool"].mean) == (None, None, 2.0)
    assert (lost.retention, lost.worst) == (None, None)
    assert lost.drop["pool"].mean == 0.9


def test_a_skill_that_the_base_never_had_cannot_be_lost() -> None:
    tests = {"nli": TESTS["nli"], "json": TESTS["json"]}
    items = {
        "base": {"nli": answers(0), "json": answers(40)},
        "tuned": {"nli": answers(10), "json": answers(30)},
    }
    assert compare(tests, items, {}).models[1].worst == WorstSkill(skill="json", retention=0.75)
    nothing = {"base": {"nli": answers(0)}, "tuned": {"nli": answers(10)}}
    tuned = compare({"nli": TESTS["nli"]}, nothing, {}).models[1]
    assert (tuned.retention, tuned.worst) == (None, None)


def test_items_that_a_model_cannot_read_are_counted_and_left_out_of_all_models() -> None:
    unread = [Item("any", 0, None, reason="too_long"), *answers(40)[1:]]
    items = {"base": {"json": answers(40)}, "tuned": {"json": unread}}
    found = compare({"json": TESTS["json"]}, items, {})
    assert (found.skills[0].n, found.skills[0].unscored) == (49, 1)
    assert found.models[0].scores["json"] == proportion([1] * 39 + [0] * 10).rounded()
    none = {"base": {"json": [Item("any", 0, None, reason="too_long")]}}
    with pytest.raises(DataError, match="j.jsonl: none of its 1 rows fits the model, so json"):
        compare({"json": TESTS["json"]}, none, {})
