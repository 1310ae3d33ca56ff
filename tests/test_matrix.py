"""The accuracy matrix and its figures, worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from replaykit.errors import DataError
from replaykit.recipe.evaluate import Test as Held
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.evaluate.statistics import paired_drop, proportion
from replaykit.steps.matrix.figures import matrix_of
from replaykit.steps.matrix.result import MatrixResult

TASKS = ("a", "b", "c")
N = 10
# How many of ten items are right, on a, b, c and the old skill.
RIGHT = {"base": (0, 1, 2, 10), "a": (9, 2, 2, 8), "b": (10, 8, 4, 8), "c": (6, 7, 9, 7)}


def items(right: Sequence[int], skills: Sequence[str] = (*TASKS, "old")) -> dict[str, list[Item]]:
    """The first ones of each skill are right."""
    return {
        skill: [Item(skill, row, float(row < count), finish="stop") for row in range(N)]
        for skill, count in zip(skills, right, strict=True)
    }


def matrix(right: Mapping[str, Sequence[int]] = RIGHT, **tests: Held) -> MatrixResult:
    held = {skill: Held(path=f"{skill}.jsonl") for skill in ("old", *TASKS)} | tests
    return matrix_of(held, TASKS, {name: items(counts) for name, counts in right.items()})


def scores(count: int) -> list[float]:
    return [float(row < count) for row in range(N)]


def test_the_matrix_has_a_row_for_the_base_and_each_stage_and_a_column_for_each_task() -> None:
    found = matrix()
    assert [row.after for row in found.rows] == ["base", "a", "b", "c"]
    means = [[row.scores[task].mean for task in TASKS] for row in found.rows]
    assert means == [[0.0, 0.1, 0.2], [0.9, 0.2, 0.2], [1.0, 0.8, 0.4], [0.6, 0.7, 0.9]]
    assert found.rows[2].scores["b"] == proportion(scores(8)).rounded()
    assert {skill.skill: (skill.role, skill.n) for skill in found.skills} == {
        "old": ("old", N),
        "a": ("target", N),
        "b": ("target", N),
        "c": ("target", N),
    }


def test_the_figures_are_those_of_the_papers() -> None:
    found = matrix()
    means = {name: round(figure.mean, 6) for name, figure in found.figures.items()}
    assert means == {
        "average accuracy": 0.733333,  # (0.6 + 0.7 + 0.9) / 3
        "backward transfer (GEM)": -0.2,  # ((0.6 - 0.9) + (0.7 - 0.8)) / 2
        "backward transfer (TRACE)": -0.133333,  # the same sum / 3
        "forward transfer": 0.15,  # ((0.2 - 0.1) + (0.4 - 0.2)) / 2
        "average forgetting": 0.25,  # ((1.0 - 0.6) + (0.8 - 0.7)) / 2
        "worst forgetting": 0.4,
        "drop of old skills": 0.3,
    }
    assert [(one.task, one.best) for one in found.forgetting] == [("a", "b"), ("b", "b")]
    assert found.worst_forgetting == found.forgetting[0]


def test_the_figures_have_the_intervals_of_paired_differences() -> None:
    found = matrix()
    differences = [paired_drop(scores(6), scores(9)), paired_drop(scores(7), scores(8))]
    assert found.backward_transfer_gem == average(differences).rounded()
    gem = average(differences)
    trace = Interval(2 / 3 * gem.mean, 2 / 3 * gem.low, 2 / 3 * gem.high)
    assert found.backward_transfer_trace == trace.rounded()
    assert found.worst_forgetting is not None
    assert found.worst_forgetting.forgetting == paired_drop(scores(10), scores(6)).rounded()
    assert found.old_drops == {"old": paired_drop(scores(10), scores(7)).rounded()}


def test_a_figure_keeps_its_width_where_no_item_has_changed() -> None:
    still = matrix(
        {"base": (0, 0, 0, 10), "a": (9, 0, 0, 10), "b": (9, 9, 0, 10), "c": (9, 9, 9, 10)}
    )
    gem = still.backward_transfer_gem
    assert gem is not None
    assert gem.mean == 0
    assert gem.low < -0.1 < 0.1 < gem.high


def test_the_best_stage_of_a_task_may_be_before_it_was_learned() -> None:
    # As Chaudhry et al. have it: the maximum is over all stages before the last.
    found = matrix({**RIGHT, "a": (9, 9, 2, 8), "b": (10, 8, 4, 8)})
    assert [(one.task, one.best) for one in found.forgetting] == [("a", "b"), ("b", "a")]
    assert round(found.forgetting[1].forgetting.mean, 6) == 0.2


def test_after_the_first_stage_there_is_nothing_to_forget_yet() -> None:
    found = matrix({name: RIGHT[name] for name in ("base", "a")})
    assert found.learned == ["a"]
    assert [*found.figures] == ["average accuracy", "drop of old skills"]
    assert found.average_accuracy == proportion(scores(9)).rounded()
    assert found.worst_forgetting is None


def test_after_the_second_stage_the_figures_are_of_two_tasks() -> None:
    found = matrix({name: RIGHT[name] for name in ("base", "a", "b")})
    means = {name: round(figure.mean, 6) for name, figure in found.figures.items()}
    assert means == {
        "average accuracy": 0.9,
        "backward transfer (GEM)": 0.1,
        "backward transfer (TRACE)": 0.05,
        "forward transfer": 0.1,
        "average forgetting": -0.1,
        "worst forgetting": -0.1,
        "drop of old skills": 0.2,
    }


def test_only_items_with_a_score_under_every_model_count() -> None:
    every = {name: items(counts) for name, counts in RIGHT.items()}
    first = every["b"]["a"]
    every["b"]["a"] = [Item("a", 0, None, reason="too_long"), *first[1:]]
    held = {skill: Held(path=f"{skill}.jsonl") for skill in ("old", *TASKS)}
    found = matrix_of(held, TASKS, every)
    facts = {skill.skill: (skill.n, skill.unscored) for skill in found.skills}
    assert facts["a"] == (9, 1)
    assert found.rows[1].scores["a"].mean == pytest.approx(8 / 9, abs=1e-6)


def test_a_task_of_which_no_item_fits_is_an_error() -> None:
    every = {name: items(counts) for name, counts in RIGHT.items()}
    every["c"]["b"] = [Item("b", row, None, reason="too_long") for row in range(N)]
    held = {skill: Held(path=f"{skill}.jsonl") for skill in ("old", *TASKS)}
    with pytest.raises(DataError, match="b.jsonl: none of its 10 rows fits the model"):
        matrix_of(held, TASKS, every)


def test_an_old_skill_in_nats_is_in_the_matrix_and_in_no_mean() -> None:
    every = {name: items(counts) for name, counts in RIGHT.items()}
    for place, of_model in enumerate(every.values()):
        of_model["old"] = [Item("old", row, 2.0 * (1 + place), tokens=4) for row in range(N)]
    held = {skill: Held(path=f"{skill}.jsonl") for skill in TASKS}
    found = matrix_of({"old": Held(path="old.jsonl", score="cross_entropy"), **held}, TASKS, every)
    assert [row.scores["old"].mean for row in found.rows] == [0.5, 1.0, 1.5, 2.0]
    assert found.old_drops["old"].mean == 1.5
    assert found.rows[-1].old is None
    assert "drop of old skills" not in found.figures


def test_many_cut_answers_are_said() -> None:
    every = {name: items(counts) for name, counts in RIGHT.items()}
    every["c"]["a"] = [Item("a", row, 0.0, answer="and", finish="length") for row in range(N)]
    held = {skill: Held(path=f"{skill}.jsonl") for skill in ("old", *TASKS)}
    (note,) = matrix_of(held, TASKS, every).notes
    assert note.startswith(
        "a: answers that were cut at max_tokens (256), thoughts counted: 0 of 10"
    )
