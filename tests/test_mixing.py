"""Mixing: the published numbers of SplitMix64, and powers modulo 2**64."""

from __future__ import annotations

import numpy as np

from replaykit.mixing import ODD, mix, powers


def test_the_hashes_of_1_2_3_are_the_first_numbers_of_splitmix64_from_seed_0() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(np.array([1, 2, 3], dtype=np.uint64)).tolist() == expected


def test_no_two_numbers_have_the_same_hash() -> None:
    numbers = np.concatenate([np.arange(100_000), np.arange(1, 64) << 50]).astype(np.uint64)
    before = numbers.copy()
    assert len(np.unique(mix(numbers))) == len(numbers)
    assert np.array_equal(numbers, before)


def test_powers_begin_with_the_first_and_are_those_of_python() -> None:
    assert powers(5).tolist() == [pow(ODD, k, 2**64) for k in range(1, 6)]
    assert powers(3, 10).tolist() == [10, 100, 1000]
    assert (powers(9) * powers(9, pow(ODD, -1, 2**64))).tolist() == [1] * 9
