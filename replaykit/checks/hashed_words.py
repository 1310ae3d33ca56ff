"""Hashes of all words of a text, by arithmetic on the numbers of its letters: many words at a time.

hashes, starts = hash_words("tom has 3 apples", writing(r"\\w"))
hashes  ->  uint64 [4]; equal words have equal hashes, in every process
starts  ->  [0, 4, 8, 10]
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np

from replaykit.mixing import ODD, mix, powers

BLOCK = 2**16  # characters hashed at a time: the arrays stay in the processor's cache


class Writing(NamedTuple):
    """What a word is made of."""

    letters: np.ndarray
    """uint64 by character: its number, 0 for what stands between words."""
    alone: np.ndarray | None
    """bool by character: whether it is a word by itself; None where none is."""


@cache
def numbers() -> np.ndarray:
    """64 bits for each character there may be, none of them 0."""
    return mix(np.arange(1, 0x110001, dtype=np.uint64)) | np.uint64(1)


@cache
def writing(letter: str, alone: str | None = None) -> Writing:
    """Words of the letters that the regular expression ``letter`` matches; what ``alone`` matches
    is a word by itself.
    """
    letters = np.where(_matched(letter), numbers(), np.uint64(0))
    if alone is None:
        return Writing(letters, None)
    single = _matched(alone)
    return Writing(np.where(single, numbers(), letters), single)


def _matched(letter: str) -> np.ndarray:
    found = np.zeros(0x110000, dtype=bool)
    codes = np.arange(len(found), dtype="<u4")
    every = codes.tobytes().decode("utf-32-le", "surrogatepass")
    for run in re.finditer(f"(?:{letter})+", every):
        found[run.start() : run.end()] = True
    return found


def codes_of(text: str) -> np.ndarray:
    """The number of each character."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def hash_words(text: str, kind: Writing, *, shortest: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all words of ``shortest`` letters or more, and the places where they start.

    A word's hash is the polynomial of its letters' numbers. It is the difference of two sums from
    the start of the block, times a factor that removes the word's place in the block.
    """
    found = [np.zeros(0, np.uint64)]
    starts = [np.zeros(0, np.int64)]
    done = 0
    size = BLOCK
    while done < len(text):
        codes = codes_of(text[done : done + size])
        values = kind.letters[codes]
        if done + size < len(text):
            # The last word may go on after the block, so it is left for the next one. A block
            # without a gap is one long word: then a larger block is taken.
            gaps = np.flatnonzero(values == 0)
            if not len(gaps):
                size *= 2
                continue
            values = values[: gaps[-1] + 1]
        first, last = _words(values, None if kind.alone is None else kind.alone[codes])
        long = last - first >= shortest
        first = first[long]
        last = last[long]
        factors, inverse = powers_up_to(max(BLOCK, size))
        sums = np.zeros(len(values) + 1, dtype=np.uint64)
        np.cumsum(values * factors[: len(values)], out=sums[1:])
        found.append((sums[last] - sums[first]) * inverse[first])
        starts.append(first + done)
        done += len(values)
        size = BLOCK
    return np.concatenate(found), np.concatenate(starts)


def _words(values: np.ndarray, alone: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a block start, and where they end."""
    inside = np.zeros(len(values) + 2, dtype=bool)
    np.not_equal(values, 0, out=inside[1:-1])
    edges = inside[1:] != inside[:-1]
    if alone is None or not alone[: len(values)].any():
        places = np.flatnonzero(edges)
        return places[::2], places[1::2]
    single = np.zeros(len(values) + 2, dtype=bool)
    single[1:-1] = alone[: len(values)]
    edges |= single[1:] | single[:-1]
    return np.flatnonzero(edges & inside[1:]), np.flatnonzero(edges & inside[:-1])


@cache
def powers_up_to(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first powers of ``mixing.ODD`` modulo 2**64, and what each must be multiplied by to give
    1.
    """
    return powers(size), powers(size, pow(ODD, -1, 2**64))


def runs(hashes: np.ndarray, n: int) -> np.ndarray:
    """A hash of each n neighbours."""
    if len(hashes) < n:
        return hashes[:0]
    factors, inverse = powers_up_to(max(BLOCK, 1 << len(hashes).bit_length()))
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * factors[: len(hashes)], out=sums[1:])
    return (sums[n:] - sums[:-n]) * inverse[: len(hashes) - n + 1]
