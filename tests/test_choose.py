"""Choosing rows: the orders in which they are taken, strata, and candidates by what they are to one
another.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.errors import DataError
from replaykit.steps.select.choose import allot, herding, k_centre, mmr, nearest, spread, stratified

# --- orders of a pool -----------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=60))  # few, so that there are ties
def test_nearest_is_the_order_of_the_scores_and_of_equals_the_earlier(scores):
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert nearest(np.array(scores, dtype=np.float32)).tolist() == expected


@given(st.sets(st.integers(0, 200), max_size=60), st.data(), st.integers(0, 3))
def test_spread_has_each_place_once_in_an_order_that_hangs_on_no_other_place(places, data, seed):
    given_places = data.draw(st.permutations(sorted(places)))
    found = spread(given_places, seed=seed).tolist()
    assert sorted(found) == sorted(places)
    assert found == [place for place in spread(range(201), seed=seed).tolist() if place in places]


def test_spread_takes_each_place_as_often_as_any_other():
    counts = Counter(
        place for seed in range(400) for place in spread(range(50), seed=seed)[:10].tolist()
    )
    assert len(counts) == 50
    # 80 expected, deviation 8
    assert max(counts.values()) < 80 + 5 * 8 and min(counts.values()) > 80 - 5 * 8


# --- strata ---------------------------------------------------------------------------------------

KINDS = "aaaaaabbbc"
SHARES = ("equal", "proportional")


def pool(rows):
    return {place: KINDS[place % len(KINDS)] for place in range(rows)}


@pytest.mark.parametrize("shares", SHARES)
@given(rows=st.integers(0, 60), fewer=st.integers(0, 70), more=st.integers(0, 70))
@settings(max_examples=60)
def test_strata_give_as_many_as_were_asked_for_and_a_larger_n_keeps_them(shares, rows, fewer, more):
    fewer, more = sorted((fewer, more))
    small, large = (stratified(pool(rows), n, shares=shares, seed=1) for n in (fewer, more))
    assert len(large) == len(set(large)) == min(more, rows)
    assert set(small) <= set(large) <= set(range(rows))


@pytest.mark.parametrize("shares", SHARES)
def test_another_seed_chooses_other_rows(shares):
    one, other = (stratified(pool(1000), 100, shares=shares, seed=seed) for seed in (1, 2))
    assert set(one) != set(other)


def test_strata_get_equal_shares_and_the_shortfall_of_small_ones_goes_to_the_others():
    rows = {place: "rare" if place < 3 else "odd" if place % 2 else "even" for place in range(1000)}
    chosen = stratified(rows, 100, shares="equal", seed=1)
    assert Counter(map(rows.get, chosen)) == {"rare": 3, "odd": 49, "even": 48}


def test_strata_get_proportional_shares():
    rows = {place: "a" if place < 700 else "b" if place < 990 else "c" for place in range(1000)}
    chosen = stratified(rows, 100, seed=1)
    assert Counter(map(rows.get, chosen)) == {"a": 70, "b": 29, "c": 1}


def test_of_a_stratum_the_rows_are_those_that_spread_would_take():
    rows = pool(300)
    chosen = stratified(rows, 90, seed=5)
    for name in "abc":
        own = [place for place, kind in rows.items() if kind == name]
        mine = [place for place in chosen if rows[place] == name]
        assert mine == spread(own, seed=5)[: len(mine)].tolist()


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8), n=st.integers(0, 200))
def test_no_stratum_gives_more_than_it_has_and_shares_are_fair(counts, n):
    strata = dict(enumerate(counts))
    total = sum(counts)
    for shares in SHARES:
        given_rows = allot(strata, n, shares)
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
