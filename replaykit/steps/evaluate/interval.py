"""An estimate and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval, of 95 % where nothing else is said."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether all three are finite numbers."""
        return all(map(math.isfinite, (self.mean, self.low, self.high)))

    def __neg__(self) -> Interval:
        return Interval(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)

    def rounded(self) -> Interval:
        """The same to six digits after the point, as results hold it."""
        return Interval(round(self.mean, 6), round(self.low, 6), round(self.high, 6))


def average(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean over independent estimates.

    Its bounds are those of the variance estimates recovered from the parts' own intervals (MOVER:
    Zou and Donner 2008, Statistics in Medicine 27:1693).
    """
    n = len(parts)
    mean = sum(part.mean for part in parts) / n
    below = math.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / n
    above = math.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / n
    return Interval(mean, mean - below, mean + above)
