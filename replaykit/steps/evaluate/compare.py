"""Base against tuned models on the same items: what the eval step reports, from the items' scores.

Where the base is right in 90 % and a tuned model in 24 %, the drop is 0.66 and the retention 0.27.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from textwrap import shorten
from typing import Literal

from replaykit.data.record import TARGET
from replaykit.errors import DataError
from replaykit.model.chat import Thought
from replaykit.recipe.evaluate import MARGIN, MEMORY, Test
from replaykit.steps.evaluate.claims import can_do, claims_of, holding
from replaykit.steps.evaluate.classes import with_classes
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.rates import with_rates
from replaykit.steps.evaluate.result import (
    EvalResult,
    ModelScores,
    Noise,
    Pair,
    SkillFacts,
    WorstSkill,
)
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import (
    paired_drop,
    per_token,
    per_token_rise,
    proportion,
    retention,
)
from replaykit.steps.evaluate.thoughts import with_thoughts
from replaykit.steps.mix.result import MixResult

Items = Mapping[str, Sequence[Item]]  # skill -> its items in order
Intervals = Mapping[str, Interval]  # by skill
AGAIN = "base, again"
"""What the second scoring of the base is called among the models; no model can be called so."""
ROLES: dict[str, Literal["target", "memory"]] = {TARGET: "target", MEMORY: "memory"}
"""The tests that are of no old skill."""
MANY_CUT = 0.05  # of a skill's answers
SHOWN = 60  # characters of an answer in a note


@dataclass(frozen=True)
class Scored:
    """The items of a skill that have a score under every model, in order."""

    scores: list[float]
    tokens: list[int]
    """Of a cross_entropy skill, item by item; else empty."""
    strict: list[float] = field(default_factory=list)
    """Of a right/wrong skill, item by item, in the strict reading; else empty."""
    thoughts: list[Thought | None] = field(default_factory=list)
    """What became of the thought of each; None where there was to be none, and is none."""


def compare(
    tests: Mapping[str, Test],
    items: Mapping[str, Items],
    mixed: Mapping[str, MixResult],
    margin: float = MARGIN,
    again: Items | None = None,
) -> EvalResult:
    """Scores, drops and retention of every model in ``items``, and what may be claimed of it; the
    first is the base.

    ``mixed`` says by model what it was trained on; a drop below ``margin`` is called none.
    ``again`` are the base's items scored a second time: what is claimed holds against both. The old
    mean, retention and the worst skill are over the skills scored right or wrong that the base can
    do; a cross-entropy skill has its own score and rise. Where many answers were cut, a note says
    so, and where the base has no item of a skill right, some of its answers. Raises DataError for a
    skill of which no item has a score under every model.
    """
    named = dict(items) if again is None else {**items, AGAIN: again}
    shared = shared_items(named)
    second = shared.pop(AGAIN, None)
    skills = skill_facts(tests, items, shared)
    states = {
        name: {skill: of_skill.thoughts for skill, of_skill in of_model.items()}
        for name, of_model in shared.items()
    }
    models = _models(tests, shared, mixed, margin)
    noise = {}
    if second is not None:
        noise = _noise(tests, next(iter(shared.values())), second)
        models = _held_twice(tests, shared, second, models, margin)
    models = with_thoughts(models, states)
    models = with_rates(with_classes(models, _kept(items)), _kept(items))
    notes = [cut_note(skill, test, items) for skill, test in tests.items()]
    notes += [_nothing_right_note(skill, next(iter(items.values()))[skill]) for skill in tests]
    return EvalResult(
        skills=skills, models=models, margin=margin, pairs=_pairs(tests, shared), noise=noise
    ).noted(*notes)


def _noise(
    tests: Mapping[str, Test], base: Mapping[str, Scored], again: Mapping[str, Scored]
) -> dict[str, Noise]:
    """How far two scorings of the base are from one another, by skill."""
    found = {}
    for skill, test in tests.items():
        pairs = list(zip(base[skill].scores, again[skill].scores, strict=True))
        found[skill] = Noise(
            n=len(pairs),
            differ=sum(1 for one, other in pairs if one != other),
            drop=drop_of(test, base[skill], again[skill]).rounded(),
        )
    return found


def _held_twice(
    tests: Mapping[str, Test],
    shared: Mapping[str, Mapping[str, Scored]],
    again: Mapping[str, Scored],
    models: Sequence[ModelScores],
    margin: float,
) -> list[ModelScores]:
    """The models, with the claims that hold against the second scoring of the base too."""
    base, *tuned = models
    found = [base]
    for model in tuned:
        own = shared[model.model]
        drops = {skill: drop_of(test, again[skill], own[skill]) for skill, test in tests.items()}
        claims = holding(model.claims, claims_of(tests, again, own, drops, margin))
        found.append(model.model_copy(update={"claims": claims}))
    return found


def skill_facts(
    tests: Mapping[str, Test],
    items: Mapping[str, Items],
    shared: Mapping[str, Mapping[str, Scored]],
) -> list[SkillFacts]:
    """What is tested, and on how many items; ``shared`` are those of ``shared_items``.

    Raises DataError for a skill of which no item has a score under every model.
    """
    base = next(iter(shared))
    for skill, test in tests.items():
        if not shared[base][skill].scores:
            rows = len(items[base][skill])
            if test.score == "judge":
                raise DataError(
                    f"{test.path}: the judge's reply could be read of none of its {rows} rows "
                    f"under every model, so {skill} cannot be scored; name another judge with "
                    f"eval.judge"
                )
            raise DataError(
                f"{test.path}: none of its {rows} rows fits the model, so {skill} cannot be scored"
            )
    return [
        _facts(skill, test, len(shared[base][skill].scores), len(items[base][skill]))
        for skill, test in tests.items()
    ]


def _models(
    tests: Mapping[str, Test],
    shared: Mapping[str, Mapping[str, Scored]],
    mixed: Mapping[str, MixResult],
    margin: float,
) -> list[ModelScores]:
    """The models on all skills, the base first."""
    base, *tuned = shared
    scores = {
        name: {skill: score_of(test, of_model[skill]) for skill, test in tests.items()}
        for name, of_model in shared.items()
    }
    binary = _in_mean(tests, shared[base])
    # What compares a model with the base is absent from the base itself.
    models = [
        ModelScores(
            model=base,
            scores=rounded(scores[base]),
            strict=_strict(shared[base]),
            old=mean_of(scores[base], binary),
            target=rounded(scores[base]).get(TARGET),
        )
    ]
    for name in tuned:
        drops = {
            skill: drop_of(test, shared[base][skill], shared[name][skill])
            for skill, test in tests.items()
        }
        made = _tuned(name, scores[base], scores[name], drops, binary, mixed.get(name))
        claims = claims_of(tests, shared[base], shared[name], drops, margin)
        update = {"strict": _strict(shared[name]), "claims": claims}
        models.append(made.model_copy(update=update))
    return models


def old_skills(tests: Mapping[str, Test], *, nats: bool) -> list[str]:
    """The old skills that are scored right or wrong, or those in nats."""
    return [
        skill
        for skill, test in tests.items()
        if (test.score == "cross_entropy") == nats and skill not in ROLES
    ]


def _in_mean(tests: Mapping[str, Test], base: Mapping[str, Scored]) -> list[str]:
    """The old skills of the mean: those scored right or wrong that the base can do, since what it
    hardly has can only gain and would hide what the others lose. All of them, where it has none.
    """
    scored = old_skills(tests, nats=False)
    return [skill for skill in scored if can_do(tests[skill], base[skill].scores)] or scored


def _pairs(tests: Mapping[str, Test], shared: Mapping[str, Mapping[str, Scored]]) -> list[Pair]:
    """Every two tuned models on the same items."""
    base, *tuned = shared
    found = []
    for first, second in combinations(tuned, 2):
        # What the second lacks of the first is a drop from the one to the other.
        gain = {
            skill: drop_of(test, shared[first][skill], shared[second][skill])
            for skill, test in tests.items()
        }
        pair = Pair(
            first=first,
            second=second,
            gain=rounded(gain),
            old=mean_of(gain, _in_mean(tests, shared[base])),
            old_nats=mean_of(gain, old_skills(tests, nats=True)),
        )
        found.append(pair)
    return found


def _nothing_right_note(skill: str, items: Sequence[Item]) -> str:
    """Some answers of the base to a skill of which it has no item right; "" where it has one, and
    for the new skill.
    """
    answers = [item.answer for item in items if item.answer is not None]
    if skill in ROLES or not answers or any(item.score for item in items):
        return ""
    shown = ", ".join(repr(shorten(answer, SHOWN, placeholder=" ...")) for answer in answers[:3])
    return (
        f"{skill}: the base has none of {len(items):,} items right, so nothing of it can be lost; "
        f"is it scored and prompted as it should be? Its first answers: {shown}"
    )


def cut_note(skill: str, test: Test, items: Mapping[str, Items]) -> str:
    """How many answers were cut under each model; "" where they are few under all of them."""
    said = []
    many = False
    for name, of_model in items.items():
        ends = [item.finish for item in of_model[skill] if item.finish is not None]
        cut = ends.count("length")
        many = many or cut > MANY_CUT * len(ends)
        said.append(f"{cut:,} of {len(ends):,} of {name}")
    if not many:
        return ""
    if test.score == "lm_eval":
        return (
            f"{skill}: answers that were cut at the task's max_gen_toks, or at max_tokens "
            f"({test.max_tokens:,}) where it sets none, thoughts counted: {', '.join(said)}; the "
            f"score tells of the limit"
        )
    return (
        f"{skill}: answers that were cut at max_tokens ({test.max_tokens:,}), thoughts counted: "
        f"{', '.join(said)}; raise max_tokens, or the score tells of the limit"
    )


def shared_items(items: Mapping[str, Items]) -> dict[str, dict[str, Scored]]:
    """The items that have a score under every model, by model and skill: all models are compared on
    the same ones.
    """
    found: dict[str, dict[str, Scored]] = {}
    for name, of_model in _kept(items).items():
        found[name] = {}
        for skill, shared in of_model.items():
            found[name][skill] = Scored(
                [item.score for item in shared if item.score is not None],
                [item.tokens for item in shared if item.tokens is not None],
                [item.strict for item in shared if item.strict is not None],
                [item.thought for item in shared],
            )
    return found


def _kept(items: Mapping[str, Items]) -> dict[str, dict[str, list[Item]]]:
    """The items without those that have no score under some model."""
    unscored = {
        (skill, item.row)
        for of_model in items.values()
        for skill, of_skill in of_model.items()
        for item in of_skill
        if item.score is None
    }
    return {
        name: {
            skill: [item for item in of_skill if (skill, item.row) not in unscored]
            for skill, of_skill in of_model.items()
        }
        for name, of_model in items.items()
    }


def _facts(skill: str, test: Test, n: int, rows: int) -> SkillFacts:
    return SkillFacts(
        skill=skill, role=ROLES.get(skill, "old"), score=test.score, n=n, unscored=rows - n
    )


def _tuned(
    name: str,
    before: Intervals,
    after: Intervals,
    drops: Intervals,
    binary: Sequence[str],
    mixed: MixResult | None,
) -> ModelScores:
    """A tuned model beside the base; ``before`` and ``after`` are the scores of the two."""
    return ModelScores(
        model=name,
        ratio=mixed.ratio if mixed else None,
        share=mixed.share[mixed.unit] if mixed else None,
        steps=mixed.steps if mixed else None,
        scores=rounded(after),
        old=mean_of(after, binary),
        target=rounded(after).get(TARGET),
        drop=rounded(drops),
        old_drop=mean_of(drops, binary),
        retention=_retention(before, drops, binary),
        worst=_worst(before, after, drops, binary),
    )


def _retention(before: Intervals, drops: Intervals, binary: Sequence[str]) -> Interval | None:
    if not binary:
        return None
    mean = sum(before[skill].mean for skill in binary) / len(binary)
    # Rounded last: the drop goes in as it was computed.
    kept = retention(mean, average([drops[skill] for skill in binary]))
    return kept.rounded() if kept else None


def _worst(
    before: Intervals, after: Intervals, drops: Intervals, binary: Sequence[str]
) -> WorstSkill | None:
    """The skill whose loss is surest; None where the base scores nothing in any."""
    scored = [skill for skill in binary if before[skill].mean > 0]
    if not scored:
        return None
    worst = max(scored, key=lambda skill: drops[skill].low)
    kept = after[worst].mean / before[worst].mean
    return WorstSkill(skill=worst, retention=round(kept, 6))


def mean_of(parts: Intervals, skills: Sequence[str]) -> Interval | None:
    if not skills:
        return None
    return average([parts[skill] for skill in skills]).rounded()


def rounded(parts: Intervals) -> dict[str, Interval]:
    return {skill: part.rounded() for skill, part in parts.items()}


def score_of(test: Test, items: Scored) -> Interval:
    """The part of the items that is right; of a cross_entropy test nats a token."""
    if test.score == "cross_entropy":
        return per_token(items.scores, items.tokens)
    return proportion(items.scores)


def _strict(items: Mapping[str, Scored]) -> dict[str, Interval]:
    """The strict reading of every skill that has one."""
    return rounded({skill: proportion(of.strict) for skill, of in items.items() if of.strict})


def drop_of(test: Test, before: Scored, after: Scored) -> Interval:
    """How much smaller the score is after, the items paired; of a cross_entropy test the rise."""
    if test.score == "cross_entropy":
        return per_token_rise(before.scores, after.scores, before.tokens)
    return paired_drop(before.scores, after.scores)
