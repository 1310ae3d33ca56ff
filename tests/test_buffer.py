"""Which rows a buffer keeps: never more than it may, the same from the same seed, and which ones the method says."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from replaykit.hashing import derive_seed
from replaykit.steps.buffer.methods import Method, Offered, keep
from replaykit.steps.select.choose import herding

METHODS: tuple[Method, ...] = ("reservoir", "balanced", "herding")


def offered(*sizes: list[int], seed: int = 1) -> list[Offered]:
    """The rows of some tasks, each with the sizes of its rows, at random ranks."""
    return [
        Offered(task, derive_seed(seed, "buffer", task, place), size, place)
        for task, of_task in enumerate(sizes)
        for place, size in enumerate(of_task)
    ]


def rows(*counts: int, seed: int = 1) -> list[Offered]:
    return offered(*([1] * count for count in counts), seed=seed)


TASKS = st.lists(st.lists(st.integers(1, 40), max_size=30), min_size=1, max_size=5)


@given(TASKS, st.integers(1, 400), st.sampled_from(METHODS))
def test_a_buffer_never_holds_more_than_it_may(
    sizes: list[list[int]], limit: int, method: Method
) -> None:
    kept = keep(method, offered(*sizes), limit)
    assert sum(row.size for row in kept) <= limit
    assert len(set(kept)) == len(kept)


@given(TASKS, st.integers(1, 400), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_what_is_kept_does_not_depend_on_the_order_in_which_rows_come(
    sizes: list[list[int]], limit: int, method: Method, random: object
) -> None:
    every = offered(*sizes)
    shuffled = list(every)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert keep(method, shuffled, limit) == keep(method, every, limit)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(1, 60),
    st.sampled_from(METHODS),
)
def test_task_after_task_the_same_rows_are_kept_as_from_all_tasks_at_once(
    counts: list[int], limit: int, method: Method
) -> None:
    every = rows(*counts)
    buffer: list[Offered] = []
    for task in range(len(counts)):
        buffer = keep(method, [*buffer, *(row for row in every if row.task == task)], limit)
    assert buffer == keep(method, every, limit)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 60))
def test_a_balanced_buffer_has_equally_many_rows_of_each_task_but_for_one(
    counts: list[int], limit: int
) -> None:
    kept = keep("balanced", rows(*counts), limit)
    of_task = Counter(row.task for row in kept)
    assert len(kept) == min(limit, sum(counts))
    # Those that give fewer rows than they have, where others give all of theirs.
    short = [of_task[task] for task, count in enumerate(counts) if of_task[task] < count]
    assert not short or max(of_task.values(), default=0) <= min(short) + 1


@given(TASKS, st.integers(40, 400))
def test_a_balanced_buffer_of_bytes_is_balanced_within_its_largest_row(
    sizes: list[list[int]], limit: int
) -> None:
    kept = keep("balanced", offered(*sizes), limit)
    used = [sum(row.size for row in kept if row.task == task) for task in range(len(sizes))]
    full = [total for total, of_task in zip(used, sizes, strict=True) if total < sum(of_task)]
    if full:
        assert max(used) - min(full) <= 40 + 40


def test_a_reservoir_is_a_uniform_sample_of_all_rows() -> None:
    draws = 4000
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(draws):
        kept = keep("reservoir", rows(4, 12, 8, seed=seed), 6)
        assert len(kept) == 6
        counts.update((row.task, row.row) for row in kept)
    assert len(counts) == 24
    # Inclusions of one draw are negatively correlated, so this is on the safe side.
    assert chisquare([*counts.values()]).pvalue > 0.01


def test_a_row_that_is_larger_than_the_buffer_keeps_no_other_out() -> None:
    for method in METHODS:
        assert [row.size for row in keep(method, offered([50, 3, 50]), 10)] == [3]


def test_herding_follows_the_mean_of_the_task() -> None:
    # iCaRL's own rule, written out: the next one brings the mean of those chosen nearest to the
    # mean of all.
    vectors = np.random.default_rng(3).normal(size=(30, 5)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = vectors.mean(axis=0)
    chosen: list[int] = []
    for _ in range(8):
        distances = {
            place: np.linalg.norm(mean - vectors[[*chosen, place]].mean(axis=0))
            for place in range(30)
            if place not in chosen
        }
        chosen.append(min(distances, key=distances.__getitem__))
    assert herding(vectors, 8) == chosen


def test_herding_keeps_the_first_ones_of_each_task_in_order() -> None:
    every = [Offered(task, rank, 1, rank) for task, n in enumerate((9, 5)) for rank in range(n)]
    kept = keep("herding", every, 5)
    assert [(row.task, row.rank) for row in kept] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.mark.parametrize("limit", [1, 7, 30])
def test_a_reservoir_of_bytes_is_the_first_rows_by_rank_that_fit(limit: int) -> None:
    every = offered([3, 5, 2, 7, 1, 4])
    by_rank = sorted(every, key=lambda row: row.rank)
    sums = accumulate(row.size for row in by_rank if row.size <= limit)
    fitting = sum(total <= limit for total in sums)
    assert len(keep("reservoir", every, limit)) == fitting
