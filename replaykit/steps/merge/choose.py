"""Which average of base and tuned model to keep: the best at the target of those that keep the old
skills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaykit.data.record import TARGET
from replaykit.errors import DataError
from replaykit.recipe.evaluate import MARGIN, Test
from replaykit.steps.evaluate.compare import Items, shared_items
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.statistics import paired_drop
from replaykit.steps.merge.result import AlphaRow

Scores = Mapping[str, Sequence[float]]  # skill -> the scores of its items; more is better


@dataclass(frozen=True)
class Choice:
    """Which alpha to keep, None where none is allowed, and a row for each with its scores, drop and
    bounds.
    """

    alpha: float | None
    table: list[AlphaRow]


def best_alpha(base: Scores, by_alpha: Mapping[float, Scores], *, margin: float = MARGIN) -> Choice:
    """The alpha with the highest target score of those whose old skills drop by at most ``margin``;
    the smaller of two alike.

    The drop is that of the unweighted mean over old skills, and what must not exceed the margin is
    the upper bound of its 95 % interval; at alpha 0 it is the base itself, which lost nothing. The
    skill "target" is the new one,
    all others are old. A score by which an alpha was chosen flatters it; other items tell how good
    it is.
    """
    old = [skill for skill in base if skill != TARGET]
    table = []
    for alpha, scores in sorted(by_alpha.items()):
        drop = average([paired_drop(base[skill], scores[skill]) for skill in old])
        if alpha == 0:
            drop = Interval(0.0, 0.0, 0.0)
        row = AlphaRow(
            alpha=alpha,
            target=_mean(scores[TARGET]),
            old=sum(_mean(scores[skill]) for skill in old) / len(old),
            old_drop=drop.rounded(),
            # A drop of just the margin is allowed, however its sum was rounded.
            allowed=drop.high <= margin + 1e-12,
        )
        table.append(row)
    allowed = [row for row in table if row.allowed]
    if not allowed:
        return Choice(None, table)
    best = max(allowed, key=lambda row: (row.target, -row.alpha)).alpha
    return Choice(best, [row.model_copy(update={"chosen": row.alpha == best}) for row in table])


def scores_of(
    tests: Mapping[str, Test], items: Mapping[str, Items]
) -> dict[str, dict[str, list[float]]]:
    """What ``best_alpha`` compares, by model and skill: the target, and the old skills that are
    scored right or wrong.

    A target scored by cross-entropy counts with its sign turned; the mean of its rows is that of
    its tokens, in nats. Raises DataError for a skill of which no item has a score under every
    model.
    """
    compared = [
        skill for skill, test in tests.items() if skill == TARGET or test.score != "cross_entropy"
    ]
    found: dict[str, dict[str, list[float]]] = {}
    for name, of_model in shared_items(items).items():
        found[name] = {skill: of_model[skill].scores for skill in compared}
        for skill in compared:
            if not of_model[skill].scores:
                path = tests[skill].path
                raise DataError(
                    f"{path}: none of its rows fits the model, so {skill} cannot be scored"
                )
        if tests[TARGET].score == "cross_entropy":
            target = of_model[TARGET]
            scale = -len(target.scores) / sum(target.tokens)
            found[name][TARGET] = [score * scale for score in target.scores]
    return found


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
