"""The items that flipped: right under the base and wrong under a tuned model, or the other way.

    flips_of(recipe, folder, manifest, evaluation).shown[0]
    ->  Flip(skill="topic", row=3, model="no-replay", way="lost", question=(...), base=Item(...),
             tuned=Item(...))

The answers come from the items of the step eval, the questions from the tests' own rows. That a
score stays the same may hide as many gains as losses (arXiv 2510.17776), so both are told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

from replaykit.data.record import Record
from replaykit.errors import ReplaykitError
from replaykit.recipe import Recipe
from replaykit.runs import Manifest, differences
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item, read_items
from replaykit.steps.inputs import load_tests, test_facts
from replaykit.steps.report.numbers import unit_of
from replaykit.steps.step import chat_of

MOST = 300  # flips on a page

Way = Literal["lost", "gained"]
Group = tuple[str, str, Way]  # skill, model, way
Rows = Mapping[str, Sequence[Record]]  # skill -> its held-out rows in order


@dataclass(frozen=True)
class Flip:
    """One item under the base and under a tuned model."""

    skill: str
    row: int
    model: str
    way: Way
    asked: Record | None
    """The held-out row; None where it is not to be had."""
    base: Item
    tuned: Item


@dataclass(frozen=True)
class Flips:
    """Those that are shown, and how many there are."""

    shown: Sequence[Flip] = ()
    counts: Mapping[Group, int] = field(default_factory=dict)
    note: str = ""
    """Why something is not shown; "" where all is."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def flips_of(
    recipe: Recipe, folder: Path, manifest: Manifest, evaluation: EvalResult, most: int = MOST
) -> Flips:
    """The flips of an evaluation, at most so many: of each skill, model and way the first ones, the
    same number of each as far as there are any. ``folder`` is the step's.
    """
    skills = [skill.skill for skill in evaluation.skills]
    judged = [skill.skill for skill in evaluation.skills if unit_of(skill) == "score"]
    names = [model.model for model in evaluation.models]
    paths = {name: folder / f"items-{name}.jsonl" for name in names}
    missing = [path.name for path in paths.values() if not path.exists()]
    if missing:
        return Flips(note=f"the answers are not here any more: {', '.join(missing)}")
    items = {name: read_items(path, skills) for name, path in paths.items()}
    base, *tuned = names
    sizes = {skill: len(of_skill) for skill, of_skill in items[base].items()}
    rows, note = _rows(recipe, manifest, sizes)
    groups: dict[Group, list[Flip]] = {}
    for model in tuned:
        for skill in judged:
            for flip in _pairs(skill, model, items[base][skill], items[model][skill], rows):
                groups.setdefault((skill, model, flip.way), []).append(flip)
    turns = chain.from_iterable(zip_longest(*groups.values()))
    shown = [flip for flip in turns if flip is not None][:most]
    order = list(groups)
    shown.sort(key=lambda flip: (order.index((flip.skill, flip.model, flip.way)), flip.row))
    counts = Counter({group: len(found) for group, found in groups.items()})
    return Flips(shown, counts, note if shown else "")


def _pairs(
    skill: str, model: str, before: Sequence[Item], after: Sequence[Item], rows: Rows
) -> list[Flip]:
    """The flips of one skill under one model, in order."""
    found = []
    asked = rows.get(skill)
    for base, tuned in zip(before, after, strict=True):
        if base.score is None or tuned.score is None or base.score == tuned.score:
            continue
        way: Way = "lost" if base.score > tuned.score else "gained"
        record = None if asked is None else asked[base.row]
        found.append(Flip(skill, base.row, model, way, record, base, tuned))
    return found


def _rows(recipe: Recipe, manifest: Manifest, sizes: Mapping[str, int]) -> tuple[Rows, str]:
    """The held-out rows that were tested, by skill, and why some are missing; ``sizes`` is how many
    items each skill has.
    """
    # A page of what was measured is made in any case: that the tests are gone is said on it.
    try:
        now = json.loads(json.dumps(test_facts(recipe), default=str))
        changed = differences(manifest.inputs.get("eval", {}), now)
        if changed:
            return {}, f"the questions are not shown, since {'; '.join(changed)}"
        held = load_tests(recipe)
        if any(len(held.rows[skill][1]) != size for skill, size in sizes.items()):
            # Some rows could not be scored, and which ones the chat template knows.
            from replaykit.steps.evaluate.scorable import scorable

            held = scorable(chat_of(recipe), held)
    except ReplaykitError as error:
        return {}, f"the questions are not shown: {error}"
    return {skill: records for skill, (_, records) in held.rows.items()}, ""
