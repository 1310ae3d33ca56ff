"""Choosing rows: from a stream in any order and pieces, and from candidates by what they are to one
another.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.errors import DataError
from replaykit.steps.select.choose import (
    allot,
    herding,
    k_centre,
    mmr,
    near_and_far,
    nearest,
    spread,
    stratified,
)

SCORES = st.lists(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=60
)  # few values, so that there are ties
KINDS = "aaaaaabbbc"


def pool(scores):
    return [(address, score, KINDS[address % len(KINDS)]) for address, score in enumerate(scores)]


def kind(row):
    return row[2]


STREAMED = {
    "nearest": lambda rows, n, seed: nearest(rows, n),
    "spread": lambda rows, n, seed: spread(rows, n, seed=seed),
    "near_and_far": lambda rows, n, seed: near_and_far(rows, n, seed=seed),
    "equal": lambda rows, n, seed: stratified(rows, n, by=kind, shares="equal", seed=seed),
    "proportional": lambda rows, n, seed: stratified(rows, n, by=kind, seed=seed),
}
streamed = pytest.mark.parametrize("choose", STREAMED.values(), ids=STREAMED)


# --- what all have in common ----------------------------------------------------------------------


@streamed
@given(scores=SCORES, n=st.integers(0, 70), seed=st.integers(0, 3), data=st.data())
@settings(max_examples=60)
def test_the_order_of_the_rows_changes_nothing(choose, scores, n, seed, data):
    rows = pool(scores)
    assert choose(iter(data.draw(st.permutations(rows))), n, seed) == choose(rows, n, seed)


@streamed
@given(scores=SCORES, n=st.integers(0, 70))
@settings(max_examples=60)
def test_as_many_are_chosen_as_were_asked_for_or_all_and_none_twice(choose, scores, n):
    rows = pool(scores)
    chosen = choose(rows, n, 1)
    assert len(chosen) == len(set(chosen)) == min(n, len(rows))
    assert set(chosen) <= set(rows)


@pytest.mark.parametrize("name", ["nearest", "spread", "equal", "proportional"])
@given(scores=SCORES, fewer=st.integers(0, 70), more=st.integers(0, 70))
@settings(max_examples=60)
def test_a_larger_n_keeps_what_a_smaller_one_chose(name, scores, fewer, more):
    fewer, more = sorted((fewer, more))
    small, large = (STREAMED[name](pool(scores), n, 1) for n in (fewer, more))
    assert set(small) <= set(large)
    if name in ("nearest", "spread"):
        assert large[: len(small)] == small


@pytest.mark.parametrize("name", ["nearest", "spread"])
@given(scores=SCORES, n=st.integers(0, 70), cuts=st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=60)
def test_parts_may_be_chosen_from_apart(name, scores, n, cuts):
    rows = pool(scores)
    choose = STREAMED[name]
    bounds = [0, *sorted(cuts), len(rows)]
    parts = [choose(rows[start:end], n, 1) for start, end in pairwise(bounds)]
    assert choose(chain(*parts), n, 1) == choose(rows, n, 1)


@pytest.mark.parametrize("name", ["spread", "near_and_far", "equal", "proportional"])
def test_another_seed_chooses_other_rows(name):
    rows = pool([0.5] * 1000)
    assert set(STREAMED[name](rows, 100, 1)) != set(STREAMED[name](rows, 100, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nearest", "spread", "near_and_far", "equal"])
def test_memory_does_not_grow_with_the_pool(name):
    def peak(rows):
        tracemalloc.start()
        STREAMED[name](
            ((number, (number * 7919 % 1009) / 1009, KINDS[number % 10]) for number in range(rows)),
            100,
            1,
        )
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1000)
    assert peak(10_000) < 1.3 * peak(2_000)


def test_a_score_that_is_not_a_number_is_an_error_that_names_the_row():
    for name in ("nearest", "near_and_far"):
        with pytest.raises(DataError, match="row 1 "):
            STREAMED[name]([(0, 0.5, "a"), (1, float("nan"), "a")], 1, 1)


# --- each of its own ------------------------------------------------------------------------------


def test_nearest_takes_the_planted_neighbours_and_of_equals_the_earlier():
    rows = [(address, 0.9 if address in (50, 7, 93) else 0.1, "") for address in range(100)]
    assert [row[0] for row in nearest(reversed(rows), 5)] == [7, 50, 93, 0, 1]


def test_spread_takes_each_row_as_often_as_any_other():
    rows = pool([0.0] * 50)
    counts = Counter(row[0] for seed in range(400) for row in spread(rows, 10, seed=seed))
    assert len(counts) == 50
    assert (
        max(counts.values()) < 80 + 5 * 8 and min(counts.values()) > 80 - 5 * 8
    )  # 80 expected, deviation 8


def test_near_and_far_takes_the_stated_part_of_the_nearest_and_the_rest_of_every_rank():
    rows = pool([1 - number / 10_000 for number in range(10_000)])
    chosen = near_and_far(rows, 2000, near=0.3, seed=1)
    assert [row[0] for row in chosen[:600]] == list(range(600))
    far = np.array([row[0] for row in chosen[600:]])
    assert far.min() >= 600
    tenths = np.histogram(far, bins=10, range=(600, 10_000))[0]
    assert np.all(np.abs(tenths - 140) < 4 * 11)  # 140 expected of 1,400, deviation 11
    assert np.histogram(far, bins=2, range=(600, 10_000))[0].tolist() == pytest.approx(
        [700, 700], abs=70
    )


def test_near_and_far_at_its_ends_is_nearest_and_spread():
    rows = pool([number % 17 / 17 for number in range(500)])
    assert near_and_far(rows, 40, near=1.0, seed=3) == nearest(rows, 40)
    assert near_and_far(rows, 40, near=0.0, seed=3) == spread(rows, 40, seed=3)


@pytest.mark.parametrize("near", [-0.1, 1.1, float("nan")])
def test_a_part_is_between_none_and_all(near):
    with pytest.raises(DataError, match="near"):
        near_and_far([], 1, near=near, seed=1)


def test_strata_get_equal_shares_and_the_shortfall_of_small_ones_goes_to_the_others():
    rows = [
        (address, 0.0, "rare" if address < 3 else "odd" if address % 2 else "even")
        for address in range(1000)
    ]
    chosen = stratified(rows, 100, by=kind, shares="equal", seed=1)
    assert Counter(map(kind, chosen)) == {"rare": 3, "odd": 49, "even": 48}


def test_strata_get_proportional_shares():
    rows = [
        (address, 0.0, "a" if address < 700 else "b" if address < 990 else "c")
        for address in range(1000)
    ]
    assert Counter(map(kind, stratified(rows, 100, by=kind, seed=1))) == {"a": 70, "b": 29, "c": 1}


def test_of_a_stratum_the_rows_are_those_that_spread_would_take():
    rows = pool([0.0] * 300)
    chosen = stratified(rows, 90, by=kind, seed=5)
    for name in "abc":
        own = [row for row in rows if row[2] == name]
        mine = [row for row in chosen if row[2] == name]
        assert mine == spread(own, len(mine), seed=5)


def test_rows_of_strata_that_come_late_get_their_share_too():
    """Kept rows are cut back while reading: here a hundred strata appear one after the other."""
    rows = [(address, 0.0, address // 50) for address in range(5000)]
    chosen = stratified(iter(rows), 200, by=kind, shares="equal", seed=1)
    assert set(Counter(map(kind, chosen)).values()) == {2}
    assert [row for row in chosen if row[2] == 0] == spread(rows[:50], 2, seed=1)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), n=st.integers(0, 200))
def test_no_stratum_gives_more_than_it_has_and_shares_are_fair(counts, n):
    strata = dict(enumerate(counts))
    firsts = {stratum: stratum for stratum in strata}
    total = sum(counts)
    for shares in ("equal", "proportional"):
        given_rows = allot(strata, n, shares, firsts)
        assert sum(given_rows.values()) == min(n, total)
        assert all(given_rows[stratum] <= strata[stratum] for stratum in strata)
        full = [stratum for stratum in strata if given_rows[stratum] == strata[stratum]]
        rest = [given_rows[stratum] for stratum in strata if stratum not in full]
        if shares == "equal" and rest:
            assert max(rest) - min(rest) <= 1
            assert all(given_rows[stratum] <= max(rest) + 1 for stratum in full)


# --- candidates -----------------------------------------------------------------------------------


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_units(rows, dims, seed):
    return unit(np.random.default_rng(seed).normal(size=(rows, dims)))


FORMS = {
    "dense": lambda vectors: vectors,
    "float32": lambda vectors: vectors.astype(np.float32),
    "csr_matrix": sp.csr_matrix,
    "csr_array": sp.csr_array,
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def plain_mmr(vectors, scores, n, balance):
    """The formula as it stands, every candidate anew at each step."""
    chosen = []
    cosines = np.round(vectors @ vectors.T, 6)
    while len(chosen) < n:
        worth = [
            -np.inf
            if i in chosen
            else balance * scores[i] - (1 - balance) * max([0, *(cosines[i, j] for j in chosen)])
            for i in range(len(scores))
        ]
        chosen.append(int(np.argmax(worth)))
    return chosen


@pytest.mark.slow
@forms
@pytest.mark.parametrize("balance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_what_the_formula_says(form, balance):
    vectors = random_units(700, 6, 1)
    scores = np.random.default_rng(2).random(700).round(2)
    expected = plain_mmr(vectors, scores, 60, balance)
    assert mmr(form(vectors), scores, 60, balance=balance) == expected


def test_mmr_takes_one_of_each_planted_group_before_a_second():
    groups = np.repeat(np.eye(5), 20, axis=0)
    chosen = mmr(groups, np.full(100, 0.8), 7)
    assert chosen[:5] == [0, 20, 40, 60, 80]
    assert chosen[5:] == [1, 2]  # all are equally superfluous now, so the earlier


def test_mmr_for_nearness_alone_is_the_order_of_the_scores():
    scores = np.array([0.1, 0.9, 0.9, 0.5])
    assert mmr(random_units(4, 3, 1), scores, 9, balance=1.0) == [1, 2, 3, 0]


def test_mmr_refuses_a_balance_outside_of_its_range():
    with pytest.raises(DataError, match="balance"):
        mmr(np.eye(2), np.ones(2), 1, balance=1.5)


@forms
def test_k_centre_takes_one_of_each_planted_cluster(form):
    rng = np.random.default_rng(3)
    clusters = unit(np.repeat(np.eye(8), 30, axis=0) + rng.normal(scale=0.02, size=(240, 8)))
    order = rng.permutation(240)
    chosen = k_centre(form(clusters[order]), 8)
    assert sorted(order[chosen] // 30) == list(range(8))


@given(seed=st.integers(0, 1000), k=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_k_centre_is_within_twice_the_best_radius(seed, k):
    vectors = random_units(11, 3, seed)
    distances = np.sqrt(np.maximum(0, 2 - 2 * vectors @ vectors.T))

    def radius(centres):
        return distances[:, list(centres)].min(axis=1).max()

    best = min(map(radius, combinations(range(11), k)))
    chosen = k_centre(vectors, k)
    assert len(set(chosen)) == k
    assert radius(chosen) <= 2 * best + 1e-5


def test_k_centre_takes_the_farthest_each_time():
    angles = np.radians([0, 10, 100, 180, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert k_centre(vectors, 3) == [0, 3, 4]  # then 95 degrees is 85 away from 180, 100 is 80
    assert sorted(k_centre(vectors, 9)) == [0, 1, 2, 3, 4]


@forms
def test_herding_matches_the_mean_better_than_a_random_choice(form):
    rng = np.random.default_rng(5)
    vectors = unit(rng.gamma(0.3, size=(2000, 20)) + 1e-3)
    mean = vectors.mean(axis=0)
    chosen = herding(form(vectors), 50)
    assert len(set(chosen)) == 50
    error = np.linalg.norm(vectors[chosen].mean(axis=0) - mean)
    random = [
        np.linalg.norm(vectors[rng.choice(2000, 50, replace=False)].mean(axis=0) - mean)
        for _ in range(200)
    ]
    assert error < 0.5 * min(random)


def test_herding_takes_planted_groups_in_proportion():
    groups = np.repeat(np.eye(3), [60, 30, 10], axis=0)
    chosen = herding(groups, 20)
    assert np.bincount(np.repeat([0, 1, 2], [60, 30, 10])[chosen]).tolist() == [12, 6, 2]


@pytest.mark.parametrize("form", ["dense", "csr_matrix"])
@given(seed=st.integers(0, 500), rows=st.integers(1, 30), n=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_candidates_are_chosen_once_each_and_the_same_when_stored_otherwise(form, seed, rows, n):
    """Coordinates of few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.integers(0, 2, size=(rows, 4)) + np.array([1, 0, 0, 0]))
    scores = rng.integers(0, 3, size=rows) / 2
    for choose in (lambda v: mmr(v, scores, n), lambda v: k_centre(v, n), lambda v: herding(v, n)):
        chosen = choose(FORMS[form](vectors))
        assert len(set(chosen)) == len(chosen) == min(n, rows)
        assert chosen == choose(vectors)


def test_no_candidates_are_no_choice():
    empty = np.zeros((0, 3))
    assert mmr(empty, np.zeros(0), 5) == k_centre(empty, 5) == herding(empty, 5) == []
