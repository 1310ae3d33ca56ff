"""What became of the old skills, as an exit code: for a program that decides by it.

    found = gate(outcome, judged=None)
    found.code       # 0: all kept; 2: some lost; 3: these rows cannot tell
    found.markdown   # a summary for a pull request

It is decided by the bounds of the intervals and never by the estimates (``evaluate.claims``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from replaykit.errors import RecipeError, RunError, did_you_mean
from replaykit.hashing import file_fingerprint
from replaykit.result import Result
from replaykit.runs import read_manifest
from replaykit.steps.evaluate.result import EvalResult, ModelScores, SkillFacts
from replaykit.steps.report.numbers import interval, known, mean, unit_of
from replaykit.steps.report.verdict import best_arm, caution_on
from replaykit.steps.step import Outcome

CODES = {"kept": 0, "lost": 2, "unknown": 3}
WORDS = {
    "kept": "kept: every old skill's drop is below the margin",
    "lost": "lost: a loss of an old skill is measurable",
    "unknown": "cannot tell: these rows show neither a loss nor that there is none",
}
STATES = {
    "lost": "lost",
    "kept": "kept",
    "unknown": "cannot tell",
    "too_few": "too few rows",
    "base_cannot": "the base hardly has it",
}


class GateResult(Result):
    """The evidence: what was decided, by what, on which models and items."""

    state: Literal["lost", "kept", "unknown"]
    code: Literal[0, 2, 3]
    model: str
    """The tuned model that was judged."""
    words: str
    margin: float
    skills: list[SkillFacts]
    base: ModelScores
    tuned: ModelScores
    inputs: dict[str, Any]
    """Of the evaluation: models, weights and tests by their hashes, and how it was asked."""
    items: dict[str, str]
    """By file of the evaluation: the hash of its items, one line for each with the answer."""
    versions: dict[str, str]
    machine: str
    notes: list[str] = Field(default=[])

    @property
    def markdown(self) -> str:
        """A summary for a pull request."""
        lines = [
            f"### replaykit gate: {WORDS[self.state]}",
            "",
            self.words,
            "",
            f"| old skill | base | {_cell(self.model)} | drop (95 %) | wrong / right now | |",
            "| --- | --- | --- | --- | --- | --- |",
            *self._rows(),
        ]
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def _rows(self) -> Iterator[str]:
        for skill in self.skills:
            claim = self.tuned.claims.get(skill.skill)
            if claim is None or claim.state is None:
                continue
            unit = unit_of(skill)
            drop = self.tuned.drop[skill.skill]
            lost = mean(drop, unit)
            if known(drop):
                lost += f" ({interval(drop, unit)})"
            turned = "–" if claim.lost is None else f"{claim.lost:,} / {claim.gained:,}"
            before, after = (
                mean(of.scores.get(skill.skill), unit) for of in (self.base, self.tuned)
            )
            cells = [_cell(skill.skill), before, after, lost, turned, STATES[claim.state]]
            yield f"| {' | '.join(cells)} |"


def gate(outcome: Outcome[EvalResult], judged: str | None = None) -> GateResult:
    """Judges one tuned model of an evaluation, by default the one that did best.

    Raises RecipeError for a model that was not evaluated, RunError where there is none to judge.
    """
    evaluation = outcome.result
    tuned = {model.model: model for model in evaluation.models[1:]}
    if judged is not None and judged not in tuned:
        names = ", ".join(tuned) or "none"
        near = did_you_mean(judged, tuned)
        raise RecipeError("the command line", [f"--judge {judged}: there is {names}{near}"])
    model = best_arm(evaluation) if judged is None else tuned[judged]
    if model is None:
        raise RunError(f"{outcome.folder} has no tuned model to judge; give one as --tuned PATH")
    if not any(skill.role == "old" for skill in evaluation.skills):
        raise RunError(
            f"{outcome.folder} tests no old skill, so nothing can be told of what was lost; give "
            f"held-out rows as --old SKILL=FILE, or under eval.old of the recipe"
        )
    manifest = read_manifest(outcome.folder)
    assert manifest is not None  # the evaluation is finished
    code: Any = CODES[model.state]
    return GateResult(
        state=model.state,
        code=code,
        model=model.model,
        words=caution_on(evaluation, model),
        margin=evaluation.margin,
        skills=evaluation.skills,
        base=evaluation.models[0],
        tuned=model,
        inputs=manifest.inputs,
        items={
            path.name: file_fingerprint(path)
            for path in sorted(outcome.folder.glob("items-*.jsonl"))
        },
        versions=manifest.versions,
        machine=manifest.machine,
        notes=evaluation.notes,
    )


def _cell(text: str) -> str:
    """A name in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")
