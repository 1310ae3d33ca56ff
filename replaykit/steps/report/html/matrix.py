"""The accuracy matrix as a table whose cells are shaded by accuracy, and its figures."""

from __future__ import annotations

from html import escape

from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import SkillFacts
from replaykit.steps.matrix.result import MatrixResult, StageScores
from replaykit.steps.report.html.blocks import Shaded, table
from replaykit.steps.report.numbers import Unit, interval, mean, unit_of

# By figure, what it is.
MEANING = {
    "average accuracy": "mean accuracy on the tasks learned so far",
    "backward transfer (GEM)": "accuracy now less that right after learning, mean over the tasks "
    "before the last (Lopez-Paz and Ranzato 2017)",
    "backward transfer (TRACE)": "the same sum over the number of all tasks (Wang et al. 2023)",
    "forward transfer": "accuracy just before a task was learned less the base's",
    "average forgetting": "best accuracy so far less that of now (Chaudhry et al. 2018)",
    "worst forgetting": "of the task that lost most",
    "drop of old skills": "the base's mean score on its own skills less that of now",
}


def accuracy_matrix(matrix: MatrixResult) -> str:
    """A row a stage, a column a task or a skill of the base."""
    head = ["After", *(_skill(skill) for skill in matrix.skills)]
    rows = [
        [escape(row.after), *(_cell(row, skill) for skill in matrix.skills)] for row in matrix.rows
    ]
    note = (
        "A row is the model after a stage, a column what it was tested on; below a mean: its 95 % "
        "interval. The darker a cell, the higher the accuracy; a framed one is of the task that "
        "was just learned, and those to its left show what was kept."
    )
    return table(head, rows, note)


def _skill(skill: SkillFacts) -> str:
    """A column's name; below it whether the base knew it, and on how many rows it is tested."""
    what = "task" if skill.role == "target" else "old skill"
    unit = ", nats, fewer are better" if unit_of(skill) == "nats" else ""
    return f"{escape(skill.skill)}<small>{what}, {skill.n:,} rows{unit}</small>"


def _cell(row: StageScores, skill: SkillFacts) -> str:
    unit = unit_of(skill)
    found = row.scores[skill.skill]
    text = _estimate(found, unit)
    if unit == "nats":
        return text
    return Shaded.of(text, found.mean, framed=row.after == skill.skill)


def figures(matrix: MatrixResult) -> str:
    """A row a figure."""
    rows = []
    for name, found in matrix.figures.items():
        what = escape(name)
        if name == "worst forgetting" and matrix.worst_forgetting is not None:
            what += f": {escape(matrix.worst_forgetting.task)}"
        rows.append([f"{what}<small>{MEANING[name]}</small>", _estimate(found)])
    note = "Intervals are of 95 %, the held-out rows paired between stages."
    return table(["Figure", "Value"], rows, note)


def _estimate(found: Interval, unit: Unit = "score") -> str:
    return f"{mean(found, unit)}<small>{interval(found, unit)}</small>"
