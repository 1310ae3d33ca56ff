"""What a verdict may say: cases that were said wrongly, and how often chance makes it wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from replaykit.recipe.evaluate import Score
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.verdict import best_arm, caution, verdict

Right = Sequence[float]  # item by item


def rights(right: int, n: int) -> list[float]:
    """The first so many of n items are right."""
    return [1.0] * right + [0.0] * (n - right)


def items(scores: Right, *, nats: bool = False) -> list[Item]:
    if nats:
        return [Item("any", row, 10 * score, tokens=10) for row, score in enumerate(scores)]
    return [Item("any", row, score, answer="?", finish="stop") for row, score in enumerate(scores)]


def evaluated(
    skills: Mapping[str, Mapping[str, Right]],
    *,
    nats: Sequence[str] = (),
    ratios: Mapping[str, tuple[float, float]] | None = None,
    margin: float = 0.02,
) -> EvalResult:
    """Skills by name, each with the scores of every model, the base's first; those of ``nats`` are
    nats a token. ``ratios`` give the share of replay asked for, and the one that came out.
    """
    models = list(next(iter(skills.values())))
    kinds: dict[str, Score] = dict.fromkeys(skills, "exact")
    kinds |= dict.fromkeys(nats, "cross_entropy")
    tests = {name: Scored(path=f"{name}.jsonl", score=kind) for name, kind in kinds.items()}
    made = {
        model: {name: items(scores[model], nats=name in nats) for name, scores in skills.items()}
        for model in models
    }
    found = compare(tests, made, {}, margin)
    shares = ratios or {"without": (0.0, 0.0)}
    changed = [
        model.model_copy(update=dict(zip(("ratio", "share"), shares[model.model], strict=True)))
        if model.model in shares
        else model
        for model in found.models
    ]
    return found.model_copy(update={"models": changed})


def spread(mean: float, n: int = 100) -> list[float]:
    """Nats a token of n rows that lie apart by a twentieth."""
    return [mean * (1 + 0.05 * math.sin(row)) for row in range(n)]


# --- what was said wrongly ------------------------------------------------------------------------


def test_a_loss_in_nats_is_in_the_headline_beside_skills_that_kept_their_score() -> None:
    found = evaluated(
        {
            "json": {"base": rights(200, 200), "without": rights(200, 200)},
            "chat": {"base": spread(2.0), "without": spread(6.0)},
        },
        nats=["chat"],
    )
    said = verdict(found)
    assert "something is lost of chat (1.999 to 5.997 nats)" in said or "chat (2.0" in said
    assert "little to protect" not in said
    assert found.models[1].state == "lost"


def test_what_the_best_arm_lost_in_nats_is_said_beside_its_score() -> None:
    found = evaluated(
        {
            "json": {"base": rights(200, 200), "without": rights(20, 200), "with": rights(90, 200)},
            "chat": {"base": spread(2.0), "without": spread(6.0), "with": spread(3.0)},
        },
        nats=["chat"],
        ratios={"without": (0.0, 0.0), "with": (0.05, 0.05)},
    )
    assert "they came to 0.45, a smaller loss, though something is lost of chat (2" in verdict(
        found
    ).replace("(1.99", "(2")


@pytest.mark.parametrize(("base", "tuned", "n"), [(9, 5, 10), (10, 0, 10), (19, 18, 19)])
def test_nothing_is_told_of_ten_rows(base: int, tuned: int, n: int) -> None:
    found = evaluated({"nli": {"base": rights(base, n), "without": rights(tuned, n)}})
    claim = found.models[1].claims["nli"]
    assert claim.state == "too_few"
    assert claim.detectable is not None
    assert claim.detectable > 0.3
    assert "little to protect" not in verdict(found)
    assert f"Of fewer than 20 rows nothing can be told: nli has {n}." in caution(found)
    assert "no forgetting" not in caution(found)


@pytest.mark.parametrize("n", [1, 2, 19])
def test_one_or_two_rows_in_nats_are_too_few_as_well(n: int) -> None:
    found = evaluated({"chat": {"base": [2.0] * n, "tuned": [2.0] * n}}, nats=["chat"], ratios={})
    assert found.models[1].claims["chat"].state == "too_few"
    assert "no forgetting" not in caution(found)


@pytest.mark.parametrize("right", [0, 1, 8])
def test_what_the_base_cannot_do_is_not_called_kept(right: int) -> None:
    found = evaluated({"nli": {"base": rights(right, 200), "tuned": rights(right, 200)}}, ratios={})
    assert found.models[1].claims["nli"].state == "base_cannot"
    assert "no forgetting" not in caution(found)
    assert "What the base hardly has, it can hardly lose: nli (0.0" in caution(found)
    assert any("the base has none of 200 items right" in note for note in found.notes) == (
        right == 0
    )


def test_what_the_base_cannot_do_does_not_hide_in_the_mean_what_others_lose() -> None:
    found = evaluated(
        {
            "mine": {"base": rights(0, 200), "tuned": rights(195, 200)},
            "json": {"base": rights(200, 200), "tuned": rights(180, 200)},
        },
        ratios={},
    )
    base, tuned = found.models
    assert (base.old.mean, tuned.old.mean, tuned.retention.mean) == (1.0, 0.9, 0.9)


@pytest.mark.parametrize(("right", "state"), [(135, "base_cannot"), (190, "kept")])
def test_what_the_base_does_no_better_than_by_chance_is_not_called_kept(
    right: int, state: str
) -> None:
    """Of nano-refusal one and the same answer to all is right in two of three."""
    test = Scored(path="suite:nano-refusal")
    made = {"refusal": items(rights(right, 200))}
    found = compare({"refusal": test}, {"base": made, "tuned": made}, {})
    assert found.models[1].claims["refusal"].state == state


def test_a_little_that_the_base_had_and_that_is_gone_is_lost_all_the_same() -> None:
    found = evaluated({"nli": {"base": rights(20, 200), "tuned": rights(0, 200)}}, ratios={})
    assert found.models[1].claims["nli"].state == "lost"


def test_an_arm_without_the_replay_that_it_asked_for_is_named_so() -> None:
    found = evaluated(
        {"nli": {"base": rights(190, 200), "without": rights(60, 200), "asked": rights(60, 200)}},
        ratios={"without": (0.0, 0.0), "asked": (0.05, 0.0)},
    )
    assert "with 5 % replay asked for and none in it (asked) they came to 0.30" in verdict(found)


def test_two_arms_are_compared_item_by_item() -> None:
    found = evaluated(
        {"nli": {"base": rights(95, 100), "without": rights(60, 100), "with": rights(75, 100)}},
        ratios={"without": (0.0, 0.0), "with": (0.05, 0.05)},
    )
    assert "too near" not in verdict(found)
    gain = found.between("with", "without").old
    assert gain is not None
    assert (gain.low, gain.high) == pytest.approx((0.077, 0.222), abs=0.02)
    turned = found.between("without", "with").old
    assert turned is not None
    assert (turned.low, turned.high) == (-gain.high, -gain.low)
    with pytest.raises(KeyError, match="with was not compared with nobody"):
        found.between("with", "nobody")


def test_the_best_arm_is_not_found_by_adding_points_to_nats() -> None:
    found = evaluated(
        {
            "nli": {"base": rights(200, 200), "r1": rights(60, 200), "r20": rights(195, 200)},
            "target": {"base": spread(3.0), "r1": spread(0.5), "r20": spread(1.2)},
        },
        nats=["target"],
        ratios={"r1": (0.01, 0.01), "r20": (0.2, 0.2)},
    )
    best = best_arm(found)
    assert best is not None
    assert best.model == "r20"


def test_of_the_arms_that_kept_everything_the_best_learner_is_the_best() -> None:
    found = evaluated(
        {
            "nli": {"base": rights(990, 1000), "a": rights(985, 1000), "b": rights(990, 1000)},
            "target": {"base": rights(0, 100), "a": rights(90, 100), "b": rights(70, 100)},
        },
        ratios={"a": (0.05, 0.05), "b": (0.2, 0.2)},
    )
    assert [model.state for model in found.models[1:]] == ["kept", "kept"]
    best = best_arm(found)
    assert best is not None
    assert best.model == "a"


@pytest.mark.parametrize(
    ("n", "words"),
    [(10, "which this test cannot tell from no loss"), (40, "too near for this test to tell")],
)
def test_as_many_right_in_two_arms_does_not_say_that_replay_did_not_help(
    n: int, words: str
) -> None:
    right = 4 * n // 10
    found = evaluated(
        {"nli": {"base": rights(n, n), "without": rights(right, n), "with": rights(right, n)}},
        ratios={"without": (0.0, 0.0), "with": (0.05, 0.05)},
    )
    assert "did not help" not in verdict(found)
    assert words in verdict(found)


def test_small_losses_of_many_skills_are_seen_in_their_mean() -> None:
    names = [f"s{number}" for number in range(12)]
    found = evaluated(
        {name: {"base": rights(95, 100), "without": rights(92, 100)} for name in names}
    ).models[1]
    assert {claim.state for claim in found.claims.values()} == {"unknown"}
    assert found.state == "lost"


def test_the_worst_skill_is_the_one_whose_loss_is_surest() -> None:
    found = evaluated(
        {
            "rare": {"base": rights(1, 50), "tuned": rights(0, 50)},
            "json": {"base": rights(50, 50), "tuned": rights(25, 50)},
        }
    )
    worst = found.models[1].worst
    assert worst is not None
    assert worst.skill == "json"
    assert (found.models[1].claims["json"].lost, found.models[1].claims["json"].gained) == (25, 0)


@pytest.mark.parametrize(("margin", "state"), [(0.02, "unknown"), (0.05, "kept"), (0.1, "kept")])
def test_the_margin_is_the_users(margin: float, state: str) -> None:
    scores = {"nli": {"base": rights(190, 200), "tuned": rights(189, 200)}}
    assert evaluated(scores, margin=margin).models[1].state == state


# --- how often chance makes it wrong --------------------------------------------------------------


# A thousand simulated runs of 5 % are known to 2.3 points, at 3.3 standard errors.
@pytest.mark.slow
@pytest.mark.parametrize("skills", [1, 6, 20, 50])
def test_where_nothing_is_lost_a_skill_is_called_lost_in_few_runs(skills: int) -> None:
    random = np.random.default_rng(skills)
    wrong = 0
    runs = 300 if skills > 6 else 1000
    for _ in range(runs):
        names = [f"s{number}" for number in range(skills)]
        before = random.random((skills, 100)) < 0.8
        moved = random.random((skills, 100)) < 0.1
        after = np.where(moved, random.random((skills, 100)) < 0.8, before)
        scores = {
            name: {
                "base": before[k].astype(float).tolist(),
                "tuned": after[k].astype(float).tolist(),
            }
            for k, name in enumerate(names)
        }
        wrong += evaluated(scores).models[1].state == "lost"
    # 2.5 % for the skills one by one, and as much for their mean.
    assert wrong / runs <= 0.05 + 3.3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [20, 60, 200])
def test_two_arms_with_a_true_difference_are_seldom_called_equal(rows: int) -> None:
    """The new skill is learned 10 points less well; "equally well" would be wrong."""
    random = np.random.default_rng(rows)
    wrong = 0
    for _ in range(400):
        without = (random.random(rows) < 0.9).astype(float).tolist()
        replayed = (random.random(rows) < 0.8).astype(float).tolist()
        found = evaluated(
            {
                "nli": {"base": [1.0] * rows, "without": [0.0] * rows, "with": [1.0] * rows},
                "target": {"base": [0.0] * rows, "without": without, "with": replayed},
            },
            ratios={"without": (0.0, 0.0), "with": (0.05, 0.05)},
        )
        wrong += re.search("equally well", verdict(found)) is not None
    assert wrong / 400 <= 0.05


# --- form against knowledge, and the base scored twice --------------------------------------------


def read_twice(scores: Right, strict: Right) -> list[Item]:
    pairs = zip(scores, strict, strict=True)
    return [
        Item("any", row, score, answer="?", finish="stop", strict=own)
        for row, (score, own) in enumerate(pairs)
    ]


def compared(base, tuned, again=None, margin=0.02):
    tests = {"json": Scored(path="json.jsonl", score="json")}
    second = None if again is None else {"json": again}
    return compare(tests, {"base": {"json": base}, "tuned": {"json": tuned}}, {}, margin, second)


def test_a_drop_in_the_strict_reading_is_split_into_form_and_knowledge():
    base = read_twice(rights(90, 100), rights(90, 100))
    tuned = read_twice(rights(80, 100), rights(30, 100))  # 10 no longer known, 50 written otherwise
    model = compared(base, tuned).models[1]
    claim = model.claims["json"]
    strict_drop = compared(base, tuned).models[0].strict["json"].mean - model.strict["json"].mean
    assert model.drop["json"].mean == pytest.approx(0.1)
    assert claim.form.mean == pytest.approx(0.5)
    assert model.drop["json"].mean + claim.form.mean == pytest.approx(strict_drop)
    assert 0 < claim.form.low < 0.5 < claim.form.high
    assert "json lost form: 50 points" in caution(compared(base, tuned))


def test_knowledge_alone_is_not_called_form():
    base = read_twice(rights(90, 100), rights(90, 100))
    tuned = read_twice(rights(40, 100), rights(40, 100))
    result = compared(base, tuned)
    assert result.models[1].claims["json"].form.mean == 0
    assert "form" not in caution(result)


def test_what_one_scoring_of_the_base_alone_shows_is_not_claimed():
    base = read_twice(rights(60, 100), rights(60, 100))
    again = read_twice(rights(45, 100), rights(45, 100))
    tuned = read_twice(rights(45, 100), rights(45, 100))
    assert compared(base, tuned).models[1].state == "lost"
    result = compared(base, tuned, again)
    assert result.models[1].claims["json"].state == "unknown"
    assert result.noise["json"].differ == 15
    assert result.noise["json"].drop.mean == pytest.approx(0.15)
    assert "15 of 100 items differ" in caution(result)


def test_a_base_that_answers_the_same_twice_changes_no_claim():
    base = read_twice(rights(60, 100), rights(60, 100))
    tuned = read_twice(rights(20, 100), rights(20, 100))
    once = compared(base, tuned).models[1].claims
    assert compared(base, tuned, base).models[1].claims == once
    assert once["json"].state == "lost"


def test_the_detectable_drop_of_graded_scores_is_that_of_students_t():
    rng = np.random.default_rng(1)
    before = rng.uniform(0.3, 0.9, 200).tolist()
    small = [score - 0.001 for score in before]
    noisy = np.clip(np.array(before) + rng.normal(0, 0.2, 200), 0, 1).tolist()
    tests = {"f1": Scored(path="f1.jsonl", score="exact")}

    def detectable(after):
        made = {"base": {"f1": items(before)}, "tuned": {"f1": items(after)}}
        return compare(tests, made, {}).models[1].claims["f1"].detectable

    assert detectable(small) < 0.001
    # 0.2 / sqrt(200) is the error; 2.0 + 0.84 of it are found four times in five.
    assert detectable(noisy) == pytest.approx(2.8 * 0.2 / math.sqrt(200), rel=0.25)


def test_form_and_knowledge_sum_to_the_strict_drop_of_choices_too():
    rng = np.random.default_rng(3)
    made = [rng.integers(0, 2, 60).astype(float).tolist() for _ in range(4)]
    tests = {"mc": Scored(path="mc.jsonl", score="choice")}
    base = {"mc": read_twice(made[0], made[1])}
    tuned = {"mc": read_twice(made[2], made[3])}
    result = compare(tests, {"base": base, "tuned": tuned}, {})
    strict = [model.strict["mc"].mean for model in result.models]
    model = result.models[1]
    parts = model.drop["mc"].mean + model.claims["mc"].form.mean
    assert parts == pytest.approx(strict[0] - strict[1], abs=2e-6)
