"""64-bit hashes by arithmetic modulo 2**64, many at a time, the same on every machine."""

from __future__ import annotations

import numpy as np

ODD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: its powers are all different


def mix(values: np.ndarray) -> np.ndarray:
    """Spreads every bit of each uint64 over all of its 64 bits, and maps no two to the same.

    It is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). A sum of products is well
    mixed in its upper bits only: it needs this before its lower bits are used.
    """
    mixed = values * np.uint64(ODD)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def powers(n: int, base: int = ODD) -> np.ndarray:
    """base**1 to base**n modulo 2**64, uint64 [n]: the factors of a polynomial hash."""
    return np.cumprod(np.full(n, base, dtype=np.uint64))
