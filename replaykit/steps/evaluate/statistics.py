"""Intervals for scores, drops and retention; all at 95 % but for ``relative_drop``, all for the
same items under two models.

Right/wrong items: Wilson's score interval for a score; Newcombe's interval for the difference of
two paired proportions (Newcombe 1998, Statistics in Medicine 17:2635, method 10), which stays
honest where no item changed; sums over skills by the variance estimates recovered from those
(MOVER, Zou and Donner 2008, Statistics in Medicine 27:1693). Cross-entropy: a bootstrap over rows,
weighted by their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from replaykit.steps.evaluate.interval import Interval

Z = 1.959963984540054  # the normal quantile of two-sided 95 %
RESAMPLES = 4000  # of a bootstrap
TOGETHER = 100  # resamples that are in memory at once
MOST = 10.0  # the highest ratio of scores that a bound can be
HALF = 0.5  # of an item, for continuity
HALVINGS = 44  # of an interval of at most MOST: bounds to 1e-12

Statistic = Callable[[float], float]  # of the ratio of scores; it falls with the ratio


def proportion(right: Sequence[float]) -> Interval:
    """The part of items that are right (1) and not wrong (0), with Wilson's interval. At least one
    item is needed.
    """
    n = len(right)
    p = float(np.mean(right))
    middle = p + Z * Z / (2 * n)
    spread = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return Interval(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def paired_drop(before: Sequence[float], after: Sequence[float]) -> Interval:
    """How much smaller the part of right items is after than before, the items paired (Newcombe's
    method 10).
    """
    first = proportion(before)
    second = proportion(after)
    # The fourfold table: right in both, before only, after only, in neither.
    a = sum(1 for x, y in zip(before, after, strict=True) if x and y)
    b = sum(map(bool, before)) - a
    c = sum(map(bool, after)) - a
    d = len(before) - a - b - c
    # phi is the correlation of the two; Newcombe corrects it for continuity where it is positive.
    phi = 0.0
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product:
        covariance = float(a * d - b * c)
        if covariance > 0:
            covariance = max(covariance - len(before) / 2, 0.0)
        phi = covariance / math.sqrt(product)
    drop = first.mean - second.mean

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    low = drop - reach(first.mean - first.low, second.high - second.mean)
    high = drop + reach(first.high - first.mean, second.mean - second.low)
    return Interval(drop, max(-1.0, low), min(1.0, high))


def retention(base: float, drop: Interval) -> Interval | None:
    """Tuned over base, the base's score taken as it is; None where the base scores nothing."""
    if base <= 0:
        return None
    return Interval(1 - drop.mean / base, max(0.0, 1 - drop.high / base), 1 - drop.low / base)


def per_token(losses: Sequence[float], tokens: Sequence[int], *, seed: int = 0) -> Interval:
    """The mean of row losses (nats, summed over a row) a token, with a bootstrap interval over
    rows.
    """
    sums = np.asarray(losses, dtype=np.float64)
    counts = np.asarray(tokens, dtype=np.float64)
    draw = np.random.default_rng(seed)
    each = np.full(len(sums), 1 / len(sums))
    resampled = []
    # To draw rows with replacement is to draw how often each comes.
    for _ in range(RESAMPLES // TOGETHER):
        weights = draw.multinomial(len(sums), each, size=TOGETHER)
        resampled.append((weights @ sums) / np.maximum(weights @ counts, 1))
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def per_token_rise(
    before: Sequence[float], after: Sequence[float], tokens: Sequence[int], *, seed: int = 0
) -> Interval:
    """How many nats a token more the rows cost after than before, the rows paired."""
    return per_token((np.asarray(after) - np.asarray(before)).tolist(), tokens, seed=seed)


def mean_drop(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], *, seed: int = 0
) -> Interval:
    """How much smaller the mean over skills is after than before, with a paired bootstrap over the
    items of each skill.

    ``before[k]`` and ``after[k]`` are the scores of skill k, item by item. Where no item changed
    the interval is a point, so it needs items enough that a change would be seen; ``average`` of
    ``paired_drop`` stays wide there.
    """
    draw = np.random.default_rng(seed)
    total = 0.0
    resampled = np.zeros(RESAMPLES)
    for first, second in zip(before, after, strict=True):
        differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
        values, counts = np.unique(differences, return_counts=True)
        n = counts.sum()
        # To draw items with replacement is to draw how many of them have each difference.
        total += values @ counts / n
        resampled += draw.multinomial(n, counts / n, size=RESAMPLES) @ values / n
    low, high = np.quantile(resampled / len(before), [0.025, 0.975])
    return Interval(float(total / len(before)), float(low), float(high))


def relative_drop(
    base: Sequence[float], now: Sequence[float], *, alpha: float = 0.05
) -> Interval | None:
    """(base - now) / base of the mean scores, the items paired; each bound is one-sided, at 1 -
    alpha.

    Right/wrong items have the bounds of the score test for the ratio of paired proportions (Nam and
    Blackwelder 2002, Statistics in Medicine 21:689; in closed form Tang, Tang and Chan 2003,
    Statistics in Medicine 22:1217), which unlike those of Student's t have a width where no item
    has changed, or all of them have. Ours are corrected for continuity by half an item, since at
    the small alphas of several skills the lower one is else too high: of six skills with 200 items
    at 0.8 to 0.95 that had all lost 5 %, one was found to have lost more in 8 % of simulated tests
    instead of 5 %, and in 5 to 7 % with it. Graded items have Fieller's bounds of the ratio of
    paired means (1954, JRSS B 16:175). A bound below -9 is given as -9. None where the base scores
    nothing, so that nothing can be lost. Raises ValueError if there are no items, or no pairs of
    them.
    """
    if len(base) != len(now) or not base:
        raise ValueError(f"{len(base)} items of base and {len(now)} of now are no pairs")
    if not any(base):
        return None
    ratio = sum(now) / sum(base)
    if set(base) | set(now) <= {0, 1}:
        statistic = _score_statistic(base, now)
        critical = NormalDist().inv_cdf(1 - alpha)
    elif len(base) == 1:
        return Interval(1 - ratio, 1 - MOST, 1.0)  # one graded item has no spread
    else:
        from scipy.stats import t

        statistic = _fieller_statistic(base, now)
        critical = float(t.ppf(1 - alpha, len(base) - 1))
    highest = _crossing(statistic, -critical, ratio, max(ratio, MOST))
    lowest = _crossing(statistic, critical, 0.0, ratio)
    return Interval(1 - ratio, 1 - highest, 1 - lowest)


def _crossing(statistic: Statistic, level: float, left: float, right: float) -> float:
    """Where a falling function crosses a level between left and right; right where it does not."""
    if left < right and statistic(right) > level:
        return right
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        if statistic(middle) > level:
            left = middle
        else:
            right = middle
    return right


def _score_statistic(base: Sequence[float], now: Sequence[float]) -> Statistic:
    """The score statistic of the hypothesis that P(right now) / P(right at base) is a given ratio;
    it falls with the ratio.

    Its variance is that of the most likely probabilities under the hypothesis, where ``lost`` is
    the root of a quadratic.
    """
    n = len(base)
    both = sum(1 for x, y in zip(base, now, strict=True) if x and y)
    lost = sum(map(bool, base)) - both
    gained = sum(map(bool, now)) - both
    changed = both + lost + gained

    def statistic(ratio: float) -> float:
        a = n * (1 + ratio)
        b = (both + lost) * ratio * ratio - (both + gained + 2 * lost)
        c = lost * (1 - ratio) * changed / n
        likely = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        difference = both + gained - ratio * (both + lost)
        difference = math.copysign(max(abs(difference) - HALF, 0.0), difference)
        return _standardised(difference, a * likely + changed * (ratio - 1))

    return statistic


def _fieller_statistic(base: Sequence[float], now: Sequence[float]) -> Statistic:
    """Student's t of now - ratio * base, whose mean is 0 where the ratio is that of the means."""
    n = len(base)
    x = sum(base) / n
    y = sum(now) / n
    # The variances of the two means, and their covariance.
    xx = sum((value - x) ** 2 for value in base) / (n - 1) / n
    yy = sum((value - y) ** 2 for value in now) / (n - 1) / n
    xy = sum((one - x) * (other - y) for one, other in zip(base, now, strict=True)) / (n - 1) / n
    return lambda ratio: _standardised(y - ratio * x, yy - 2 * ratio * xy + ratio * ratio * xx)


def _standardised(difference: float, variance: float) -> float:
    if variance > 1e-18:
        return difference / math.sqrt(variance)
    if abs(difference) < 1e-12:
        return 0.0
    return math.copysign(math.inf, difference)
