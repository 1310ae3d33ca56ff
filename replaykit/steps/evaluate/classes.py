"""What a text classifier does class by class: macro F1, and the recall of each label.

    with_classes(models, items)[1].classes["news"].recall["Sports"].mean     # 0.9

Accuracy hides a label that is never said any more. F1 of a label is 2 TP / (2 TP + FP + FN), macro
F1 its mean over the labels that the rows have, as scikit-learn's f1_score has it with those labels,
average="macro" and zero_division=0; micro F1 is that of all decisions together, beside it where a
row has any number of labels. Their intervals are a bootstrap over rows, the rows of both models
paired. Recall is a proportion of the rows that have the label, with Wilson's interval and
Newcombe's for a drop (``statistics``); so is the part of rows that are given a label which none
has. In a head over two tasks, such an old row is given a label of the new one, and its own may
still be known: classification.heads: apart asks each row among the labels of its own task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from replaykit.model.labels import labels_in
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import ClassScores, ModelScores
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import paired_drop, proportion

RESAMPLES = 4000  # of a bootstrap
TOGETHER = 100  # resamples that are in memory at once


@dataclass(frozen=True)
class _Said:
    """What a model said of the rows of a skill: [rows, labels], 1 or 0 each."""

    labels: tuple[str, ...]
    right: np.ndarray
    said: np.ndarray


def with_classes(
    models: Sequence[ModelScores], items: Mapping[str, Mapping[str, Sequence[Item]]]
) -> list[ModelScores]:
    """The models' scores, the base's first, with their figures by label; ``items`` are those that
    have a score under every model, by model and skill.
    """
    base = models[0]
    skills = [skill for skill, of in items[base.model].items() if of and of[0].label is not None]
    if not skills:
        return list(models)
    said = {
        skill: _said({model.model: items[model.model][skill] for model in models})
        for skill in skills
    }
    found = []
    for model in models:
        classes = {
            skill: _scores(of[model.model], None if model is base else of[base.model])
            for skill, of in said.items()
        }
        found.append(model.model_copy(update={"classes": classes}))
    return found


def _said(items: Mapping[str, Sequence[Item]]) -> dict[str, _Said]:
    """The labels of a skill's rows by model, of the same labels for all models."""
    rows = next(iter(items.values()))
    right = [labels_in(str(item.label)) for item in rows]
    said = {name: [labels_in(item.answer or "[]") for item in of] for name, of in items.items()}
    # In the order in which they come, those of the rows first.
    every = [name for names in right for name in names]
    every += [name for of in said.values() for names in of for name in names]
    labels = tuple(dict.fromkeys(every))
    return {
        name: _Said(labels, _indicators(right, labels), _indicators(of, labels))
        for name, of in said.items()
    }


def _indicators(named: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    place = {name: number for number, name in enumerate(labels)}
    found = np.zeros((len(named), len(labels)))
    for row, names in enumerate(named):
        for name in names:
            found[row, place[name]] = 1
    return found


def _scores(own: _Said, base: _Said | None) -> ClassScores:
    """The figures of a model; beside the ``base`` also how much smaller they are than its."""
    several = bool((own.right.sum(axis=1) != 1).any() or (own.said.sum(axis=1) != 1).any())
    recall = {}
    drops = {}
    for number, label in enumerate(own.labels):
        rows = own.right[:, number] == 1
        if not rows.any():
            continue
        now = own.said[rows, number].tolist()
        recall[label] = proportion(now).rounded()
        if base is not None:
            drops[label] = paired_drop(base.said[rows, number].tolist(), now).rounded()
    elsewhere, elsewhere_drop = _elsewhere(own, base)
    macro, macro_drop = _f1(own, base, micro=False)
    micro, micro_drop = _f1(own, base, micro=True)
    return ClassScores(
        macro_f1=macro,
        macro_f1_drop=macro_drop,
        micro_f1=micro if several else None,
        micro_f1_drop=micro_drop if several else None,
        recall=recall,
        recall_drop=drops,
        elsewhere=elsewhere,
        elsewhere_drop=elsewhere_drop,
    )


def _elsewhere(own: _Said, base: _Said | None) -> tuple[Interval | None, Interval | None]:
    """The part of rows that are given a label which no row has, and how much smaller it is than the
    base's; None where no model gives one.
    """
    strange: np.ndarray = own.right.max(axis=0) == 0
    if not strange.any():
        return None, None
    now = _any_of(own, strange)
    if base is None:
        return proportion(now).rounded(), None
    return proportion(now).rounded(), paired_drop(_any_of(base, strange), now).rounded()


def _any_of(found: _Said, labels: np.ndarray) -> list[float]:
    """Of each row 1 where it is given any of these labels, [labels] true or false, else 0."""
    given: list[float] = found.said[:, labels].max(axis=1).tolist()
    return given


def _f1(
    own: _Said, base: _Said | None, *, micro: bool, seed: int = 0
) -> tuple[Interval, Interval | None]:
    """F1 with its interval, and how much smaller it is than the base's on the same resamples.

    Where all resamples agree, as where no row is right, they say nothing of other rows: there the
    interval has the ends of that of accuracy on these rows.
    """
    n = len(own.right)
    draw = np.random.default_rng(seed)
    each = np.full(n, 1 / n)
    scores = []
    drops = []
    # To draw rows with replacement is to draw how often each comes.
    for _ in range(RESAMPLES // TOGETHER):
        weights = draw.multinomial(n, each, size=TOGETHER).astype(np.float64)
        now = _f1_of(own, weights, micro)
        scores.append(now)
        if base is not None:
            drops.append(_f1_of(base, weights, micro) - now)
    once = np.ones((1, n))
    mean = float(_f1_of(own, once, micro)[0])
    found = _around(mean, scores, proportion(_hits(own)))
    if base is None:
        return found, None
    before = float(_f1_of(base, once, micro)[0])
    return found, _around(before - mean, drops, paired_drop(_hits(base), _hits(own)))


def _hits(found: _Said) -> list[float]:
    """Of each row 1 where all its labels and no others are given."""
    hits: list[float] = (found.right == found.said).all(axis=1).astype(float).tolist()
    return hits


def _f1_of(found: _Said, weights: np.ndarray, micro: bool) -> np.ndarray:
    """F1 of each resample, [resamples]; ``weights`` are how often it has each row."""
    both = weights @ (found.right * found.said)
    # Twice the true positives, with the false ones and those that were missed.
    all_of_them = weights @ (found.right + found.said)
    # The labels that no row has are for micro F1 alone.
    if not micro:
        had = found.right.any(axis=0)
        both = both[:, had]
        all_of_them = all_of_them[:, had]
    else:
        both = both.sum(axis=1, keepdims=True)
        all_of_them = all_of_them.sum(axis=1, keepdims=True)
    scores: np.ndarray = np.divide(
        2 * both, all_of_them, out=np.zeros_like(both), where=all_of_them > 0
    )
    return scores.mean(axis=1)


def _around(mean: float, resampled: Sequence[np.ndarray], accuracy: Interval) -> Interval:
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
    if low == high:
        low = min(mean, accuracy.low)
        high = max(mean, accuracy.high)
    return Interval(mean, float(low), float(high)).rounded()
