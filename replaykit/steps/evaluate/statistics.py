"""Intervals for scores, drops and retention; all at 95 % but for ``relative_drop``, all for the
same items under two models.

Right/wrong items: Wilson's score interval for a score; Newcombe's interval for the difference of
two paired proportions (Newcombe 1998, Statistics in Medicine 17:2635, method 10), which stays
honest where no item changed; sums over skills by the variance estimates recovered from those
(MOVER, Zou and Donner 2008, Statistics in Medicine 27:1693). Cross-entropy: Student's t of the
jackknife over rows, whose losses are weighted by their tokens. Several skills are tested for a loss
by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from replaykit.steps.evaluate.interval import Interval

Z = 1.959963984540054  # the normal quantile of two-sided 95 %
MOST = 10.0  # the highest ratio of scores that a bound can be
HALF = 0.5  # of an item, for continuity
HALVINGS = 44  # of an interval of at most MOST: bounds to 1e-12

Statistic = Callable[[float], float]  # it falls with its argument, such as the ratio of scores


def proportion(scores: Sequence[float]) -> Interval:
    """The mean score: of items that are right (1) or wrong (0) with Wilson's interval, of graded
    ones between 0 and 1 with Student's. At least one item is needed.
    """
    if not are_binary(scores):
        found = _student(scores)
        return Interval(found.mean, max(0.0, found.low), min(1.0, found.high))
    n = len(scores)
    p = float(np.mean(scores))
    middle = p + Z * Z / (2 * n)
    spread = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return Interval(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def are_binary(*scores: Sequence[float]) -> bool:
    return all(set(of_model) <= {0, 1} for of_model in scores)


def _student(values: Sequence[float]) -> Interval:
    """The mean with Student's interval; the bounds of a single value are not numbers."""
    return _mean_a_token(values, [1] * len(values))


def paired_drop(before: Sequence[float], after: Sequence[float]) -> Interval:
    """How much smaller the mean score is after than before, the items paired: of right/wrong items
    by Newcombe's method 10, of graded ones by Student's t of their differences.
    """
    if not are_binary(before, after):
        return _student([x - y for x, y in zip(before, after, strict=True)])
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


def per_token(losses: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The mean of row losses (nats, summed over a row) a token, with Student's interval of its
    logarithm, which is nearer to normal than the mean of so skewed a quantity.

    The bounds of a single row are not numbers.
    """
    if min(losses) <= 0 or len(losses) < 2:
        return _mean_a_token(losses, tokens)
    sums = np.asarray(losses, np.float64)
    counts = np.asarray(tokens, np.float64)
    reach = _reach(*_jackknife(np.log(_left_out(sums, counts)), counts))
    mean = float(sums.sum() / counts.sum())
    return Interval(mean, mean * math.exp(-reach), mean * math.exp(reach))


def per_token_rise(
    before: Sequence[float], after: Sequence[float], tokens: Sequence[int]
) -> Interval:
    """How many nats a token more the rows cost after than before, the rows paired.

    Where a few rows in a hundred have most of the rise, the interval covers the truth less often
    than it says: 0.83 of the times for 30 rows of which a fifth rises, 0.90 for 100. What it misses
    then is above it.
    """
    return _mean_a_token((np.asarray(after) - np.asarray(before)).tolist(), tokens)


def _mean_a_token(sums: Sequence[float], tokens: Sequence[int]) -> Interval:
    """A sum over rows by the tokens of all, with Student's interval of the jackknife."""
    parts = np.asarray(sums, np.float64)
    counts = np.asarray(tokens, np.float64)
    mean = float(parts.sum() / counts.sum())
    if len(parts) < 2:
        return Interval(mean, math.nan, math.nan)
    reach = _reach(*_jackknife(_left_out(parts, counts), counts))
    return Interval(mean, mean - reach, mean + reach)


def _left_out(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean a token of all rows but one, for each row."""
    return np.asarray((sums.sum() - sums) / (counts.sum() - counts))


def _jackknife(left_out: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The standard error of an estimate, from those that leave out one row each, and its degrees of
    freedom.

    These are Kish's effective number of rows, less one: where a few rows have most of the weight,
    they alone say how far the rows lie apart.
    """
    n = len(left_out)
    deviations = left_out - left_out.mean()
    error = math.sqrt((n - 1) / n * float(deviations @ deviations))
    effective = float(weights.sum() ** 2 / (weights @ weights))
    return error, max(effective - 1, 1.0)


def _reach(error: float, freedom: float) -> float:
    """Half of Student's 95 % interval."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) * error


def loss_p(before: Sequence[float], after: Sequence[float]) -> float:
    """The one-sided p-value of a lower mean score, the items paired: of right/wrong items McNemar's
    exact test with mid-p (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology
    13:91), of graded ones Student's t of their differences.
    """
    from scipy.stats import binom

    if not are_binary(before, after):
        return rise_p(*_missing(before, after))
    lost = sum(1 for x, y in zip(before, after, strict=True) if x > y)
    changed = lost + sum(1 for x, y in zip(before, after, strict=True) if y > x)
    return float(binom.sf(lost, changed, 0.5) + 0.5 * binom.pmf(lost, changed, 0.5))


def rise_p(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> float:
    """The one-sided p-value of a rise in nats a token, of the t that ``per_token_rise`` takes; 1
    for a single row and where a loss is no number.
    """
    from scipy.stats import t

    sums = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if len(sums) < 2 or not np.isfinite(sums).all():
        return 1.0
    counts = np.asarray(tokens, np.float64)
    error, freedom = _jackknife(_left_out(sums, counts), counts)
    return float(t.sf(_standardised(float(sums.sum() / counts.sum()), error * error), freedom))


def detectable_rise(
    before: Sequence[float],
    after: Sequence[float],
    tokens: Sequence[int],
    *,
    alpha: float,
    power: float = 0.8,
) -> float | None:
    """The smallest true rise in nats a token that ``rise_p`` finds with this power among rows that
    lie as far apart as these; None where that is not known.
    """
    from scipy.stats import t

    sums = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if len(sums) < 2 or not np.isfinite(sums).all():
        return None
    counts = np.asarray(tokens, np.float64)
    error, freedom = _jackknife(_left_out(sums, counts), counts)
    return float(t.ppf(1 - alpha, freedom) + t.ppf(power, freedom)) * error


def detectable_fall(
    before: Sequence[float], after: Sequence[float], *, alpha: float
) -> float | None:
    """The smallest true fall of graded scores that ``loss_p`` finds four times in five among items
    that lie as far apart as these; None where that is not known.
    """
    return detectable_rise(*_missing(before, after), alpha=alpha)


def _missing(
    before: Sequence[float], after: Sequence[float]
) -> tuple[list[float], list[float], list[int]]:
    """A fall of scores as a rise of what is missing, each item a token."""
    return [-x for x in before], [-y for y in after], [1] * len(before)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6:65):
    what is at most alpha holds for all together with an error of at most alpha.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def detectable_drop(items: int, *, gained: float, alpha: float, power: float = 0.8) -> float:
    """The smallest true drop that McNemar's one-sided test finds with this power, where a part
    ``gained`` of the items turns right by chance; 1 where it would find none.

    Connor's formula (1987, Biometrics 43:207), solved for the drop.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha)
    z_power = normal.inv_cdf(power)

    def needed(drop: float) -> float:
        changed = drop + 2 * gained
        spread = z * math.sqrt(changed) + z_power * math.sqrt(max(changed - drop * drop, 0.0))
        return (spread / drop) ** 2

    return _crossing(needed, items, 0.0, 1.0)


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
