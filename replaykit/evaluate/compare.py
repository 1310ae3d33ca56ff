"""Base against tuned models on the same items: what the eval step reports, from the items'
scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replaykit.errors import DataError
from replaykit.evaluate.skills import TARGET
from replaykit.evaluate.statistics import (
    Interval,
    average,
    mean_drop,
    paired_drop,
    per_token,
    per_token_rise,
    proportion,
    retention,
)
from replaykit.settings import Test

Items = Mapping[str, Sequence[Mapping[str, Any]]]  # skill -> its items in order
Scores = Mapping[str, Sequence[float]]  # skill -> the scores of its items; more is better
MARGIN = 0.02  # of the old skills' mean score: what an average of base and tuned model may lose


def compare(
    tests: Mapping[str, Test], items: Mapping[str, Items], facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Scores, drops and retention of every model in ``items``; the first is the base.

    ``facts`` are further columns of a model (ratio, share, steps). The old mean, retention and the
    worst skill are over the skills scored right or wrong; a cross-entropy skill has its own score
    and rise.
    """
    whole = {skill: len(next(iter(items.values()))[skill]) for skill in tests}
    items = _scored(items)
    for skill, test in tests.items():
        if not next(iter(items.values()))[skill]:
            raise DataError(
                f"{test.path}: none of its {whole[skill]} rows fits the model, so {skill} cannot "
                f"be scored"
            )
    base, *tuned = items
    rows = [_model(base, tests, items[base], None, {})]
    rows += [_model(name, tests, items[name], items[base], facts.get(name, {})) for name in tuned]
    skills = [
        {
            "skill": skill,
            "role": TARGET if skill == TARGET else "old",
            "score": test.score,
            "n": len(items[base][skill]),
            "unscored": whole[skill] - len(items[base][skill]),
        }
        for skill, test in tests.items()
    ]
    return {"skills": skills, "models": rows}


@dataclass(frozen=True)
class Choice:
    """Which alpha to keep, None where none is allowed, and a row for each with its scores, drop and
    bounds.
    """

    alpha: float | None
    table: list[dict[str, Any]]


def best_alpha(base: Scores, by_alpha: Mapping[float, Scores], *, margin: float = MARGIN) -> Choice:
    """The alpha with the highest target score of those whose old skills drop by at most ``margin``;
    the smaller of two alike.

    The drop is that of the unweighted mean over old skills, and what must not exceed the margin is
    the upper bound of its 95 % interval by a paired bootstrap. The skill "target" is the new one,
    all others are old. A score by which an alpha was chosen flatters it; other items tell how good
    it is.
    """
    old = [skill for skill in base if skill != TARGET]
    table: list[dict[str, Any]] = []
    for alpha, scores in sorted(by_alpha.items()):
        drop = mean_drop([base[skill] for skill in old], [scores[skill] for skill in old])
        table.append(
            {
                "alpha": alpha,
                "target": _mean(scores[TARGET]),
                "old": sum(_mean(scores[skill]) for skill in old) / len(old),
                "old_drop": drop.to_json(),
                "allowed": drop.high <= margin + 1e-12,
            }
        )
    allowed = [row for row in table if row["allowed"]]
    best = (
        max(allowed, key=lambda row: (row["target"], -row["alpha"]))["alpha"] if allowed else None
    )
    return Choice(best, [row | {"chosen": row["alpha"] == best} for row in table])


def scores_of(
    tests: Mapping[str, Test], items: Mapping[str, Items]
) -> dict[str, dict[str, list[float]]]:
    """What ``best_alpha`` compares, by model: of old skills those that are scored right or wrong.

    A target scored by cross-entropy counts with its sign turned; the mean of its rows is that of
    its tokens, in nats. Raises DataError for a skill of which no item has a score under every
    model.
    """
    binary = [
        skill for skill, test in tests.items() if skill == TARGET or test.score != "cross_entropy"
    ]
    found: dict[str, dict[str, list[float]]] = {}
    for name, of_model in _scored(items).items():
        found[name] = {skill: [item["score"] for item in of_model[skill]] for skill in binary}
        if empty := [skill for skill in binary if not of_model[skill]]:
            raise DataError(
                f"{tests[empty[0]].path}: none of its rows fits the model, so {empty[0]} cannot be "
                f"scored"
            )
        if tests[TARGET].score == "cross_entropy":
            rows = of_model[TARGET]
            scale = -len(rows) / sum(item["tokens"] for item in rows)
            found[name][TARGET] = [item["score"] * scale for item in rows]
    return found


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)


def _scored(items: Mapping[str, Items]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """The items that have a score under every model: all models are compared on the same ones."""
    unscored = {
        (skill, row)
        for model in items.values()
        for skill, rows in model.items()
        for row, item in enumerate(rows)
        if item["score"] is None
    }
    return {
        name: {
            skill: [item for row, item in enumerate(rows) if (skill, row) not in unscored]
            for skill, rows in model.items()
        }
        for name, model in items.items()
    }


def _model(
    name: str, tests: Mapping[str, Test], items: Items, base: Items | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    scores = {skill: _score(test, items[skill]) for skill, test in tests.items()}
    binary = [
        skill for skill, test in tests.items() if test.score != "cross_entropy" and skill != TARGET
    ]
    row: dict[str, Any] = {
        "model": name,
        **facts,
        "scores": {
            skill: score.to_json() | {"n": len(items[skill])} for skill, score in scores.items()
        },
        "old": average([scores[skill] for skill in binary]).to_json() if binary else None,
        "target": scores[TARGET].to_json() if TARGET in scores else None,
    }
    if base is None:
        return row
    drops = {skill: _drop(test, base[skill], items[skill]) for skill, test in tests.items()}
    row["drop"] = {skill: drop.to_json() for skill, drop in drops.items()}
    row["retention"] = row["worst"] = None
    if binary:
        before = {skill: _score(tests[skill], base[skill]).mean for skill in binary}
        lost = average([drops[skill] for skill in binary])
        row["old_drop"] = lost.to_json()
        kept = retention(sum(before.values()) / len(binary), lost)
        row["retention"] = kept.to_json() if kept else None
        parts = {skill: scores[skill].mean / before[skill] for skill in binary if before[skill] > 0}
        if parts:
            worst = min(parts, key=lambda skill: parts[skill])
            row["worst"] = {"skill": worst, "retention": round(parts[worst], 6)}
    return row


def _score(test: Test, items: Sequence[Mapping[str, Any]]) -> Interval:
    values = [item["score"] for item in items]
    return (
        per_token(values, [item["tokens"] for item in items])
        if test.score == "cross_entropy"
        else proportion(values)
    )


def _drop(
    test: Test, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Interval:
    first = [item["score"] for item in before]
    second = [item["score"] for item in after]
    if test.score == "cross_entropy":
        return per_token_rise(first, second, [item["tokens"] for item in before])
    return paired_drop(first, second)
