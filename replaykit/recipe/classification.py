"""Text classification: which labels there are, and how the head holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from replaykit.recipe.base import Strict
from replaykit.recipe.lm_eval import is_task

if TYPE_CHECKING:
    from replaykit.recipe.recipe import Recipe
    from replaykit.recipe.remedies import Remedies

Task = Literal["language", "classification"]
NO_TEXT = "a classifier writes no text"
# The steps that have a model write, or that weigh what it would write.
WRITING = ("probe", "generate", "rewrite", "augment", "describe", "score", "repair")


class Classification(Strict):
    """The labels of a text classifier, for ``task: classification``."""

    labels: list[str] = []
    """The labels of the new task, in the order of their numbers; one that the model has already
    keeps its place in the head. Empty: the model's own."""
    old_labels: list[str] | None = None
    """Names for the labels that the model has, in the order of its head; null: those of its
    config.json."""
    multi_label: bool = False
    """Whether a row has any number of labels; else it has exactly one."""
    heads: Literal["joint", "apart"] = "joint"
    """joint: one head over all labels; apart: a head for the new labels beside the old one, each
    row and each test with the labels of its own head."""

    @field_validator("labels", "old_labels")
    @classmethod
    def _each_once(cls, labels: list[str] | None) -> list[str] | None:
        names = labels or []
        again = sorted({name for name in names if names.count(name) > 1})
        if again:
            raise ValueError(f"{', '.join(again)} stands there twice; each label has its own name")
        if any(not name.strip() for name in names):
            raise ValueError("a label has a name; one of them is empty")
        return labels


def wrong_for_task(recipe: Recipe) -> Iterator[str]:
    """What a recipe asks for that its task does not have."""
    if recipe.task == "language":
        if recipe.classification != Classification():
            yield "classification: it is for `task: classification`; say so, or leave it out"
        return
    if recipe.generate is not None:
        yield f"generate: {NO_TEXT}; replay comes from select, or from files in mix.sources"
    for section in ("rewrite", "augment", "describe"):
        if getattr(recipe, section) is not None:
            yield f"{section}: {NO_TEXT}; leave the section out"
    if recipe.train.packing:
        yield (
            "train.packing: a classifier gives one answer to all that it reads, so each row "
            "stands alone; leave it out"
        )
    trainings = {"train": recipe.train.remedies}
    trainings |= {f"arms.{n}": arm.remedies for n, arm in recipe.arms.items() if arm.remedies}
    for section, remedies in trainings.items():
        yield from (f"{section}.remedies.{problem}" for problem in _wrong_remedies(remedies))
    tests = {f"eval.old.{skill}": test for skill, test in recipe.eval.old.items()}
    if recipe.eval.target is not None:
        tests["eval.target"] = recipe.eval.target
    for section, test in tests.items():
        if is_task(test.path):
            yield f"{section}: tasks of lm-eval ask language models; name rows with labels"
        elif "score" in test.model_fields_set and test.score != "label":
            yield f"{section}.score: labels are scored as labels; leave it out"


def _wrong_remedies(remedies: Remedies) -> Iterator[str]:
    for name in ("stm", "flow"):
        if getattr(remedies, name) is not None:
            yield f"{name}: it weighs the tokens of answers, and a label is none; take dft or eaft"
    if remedies.consistency is not None:
        yield "consistency: it compares the states of pairs of answers; leave it out"
    if remedies.distill is not None and remedies.distill.layers:
        yield "distill.layers: it compares the states of answer tokens; leave it out"
