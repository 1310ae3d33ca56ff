"""Intervals for scores, drops and retention; all at 95 %, all for the same items under two models.

Right/wrong items: Wilson's score interval for a score; Newcombe's interval for the difference of two paired proportions
(Newcombe 1998, Statistics in Medicine 17:2635, method 10), which stays honest where no item changed; sums over skills by
the variance estimates recovered from those (MOVER, Zou and Donner 2008, Statistics in Medicine 27:1693).
Cross-entropy: a bootstrap over rows, weighted by their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # of 95 %
RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def proportion(right: Sequence[float]) -> Interval:
    """The part of items that are right (1) and not wrong (0), with Wilson's interval. At least one item is needed."""
    n, p = len(right), float(np.mean(right))
    middle, spread = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return Interval(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def paired_drop(before: Sequence[float], after: Sequence[float]) -> Interval:
    """How much smaller the part of right items is after than before, the items paired (Newcombe's method 10)."""
    first, second = proportion(before), proportion(after)
    a = sum(1 for x, y in zip(before, after, strict=True) if x and y)
    b, c = sum(map(bool, before)) - a, sum(map(bool, after)) - a
    d = len(before) - a - b - c
    phi, product = 0.0, (a + b) * (c + d) * (a + c) * (b + d)
    if product:
        above = a * d - b * c
        phi = (max(above - len(before) / 2, 0.0) if above > 0 else float(above)) / math.sqrt(product)
    drop = first.mean - second.mean

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    low = drop - reach(first.mean - first.low, second.high - second.mean)
    high = drop + reach(first.high - first.mean, second.mean - second.low)
    return Interval(drop, max(-1.0, low), min(1.0, high))


def average(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean over independent skills (MOVER)."""
    mean = sum(part.mean for part in parts) / len(parts)
    below = math.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / len(parts)
    return Interval(mean, mean - below, mean + above)


def retention(base: float, drop: Interval) -> Interval | None:
    """Tuned over base, the base's score taken as it is; None where the base scores nothing."""
    if base <= 0:
        return None
    return Interval(1 - drop.mean / base, max(0.0, 1 - drop.high / base), 1 - drop.low / base)


def per_token(losses: Sequence[float], tokens: Sequence[int], *, seed: int = 0) -> Interval:
    """The mean of row losses (nats, summed over a row) a token, with a bootstrap interval over rows."""
    sums, counts = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    resampled = (weights @ sums) / np.maximum(weights @ counts, 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def per_token_rise(
    before: Sequence[float], after: Sequence[float], tokens: Sequence[int], *, seed: int = 0
) -> Interval:
    """How many nats a token more the rows cost after than before, the rows paired."""
    return per_token((np.asarray(after) - np.asarray(before)).tolist(), tokens, seed=seed)
