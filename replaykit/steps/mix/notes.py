"""What the user must read about a plan, in sentences.

5 replay rows are too few to protect ...; ask for --unit rows
29 of the 49 steps hold no target row, ...
5 of the 640 target rows are not shown in 40 steps of 16 rows
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from replaykit.data.record import TARGET
from replaykit.recipe.mix import Unit
from replaykit.recipe.train import Train
from replaykit.steps.mix.plan import Slot, last_fifth, shares

# Replay protects the skills that it shows. Of n rows drawn from a fair sample, a skill that is a
# tenth of it has none with a chance of 0.9^n, which is below 5 % from 29 different rows on:
# ceil(log 0.05 / log 0.9).
FEWEST_ROWS = 29
PART_OF_A_SKILL = "a tenth"


# By what part of what was asked for the share may be off before that is said.
SHARE_OFF = 0.2


def of_the_plan(
    steps: Sequence[Sequence[Slot]],
    sizes: Mapping[str, Sequence[int]],
    *,
    ratio: float,
    unit: Unit,
    target_rows: int,
    train: Train,
) -> Iterator[str]:
    """The sentences about these steps. ``sizes`` is what each row of a source counts for,
    ``ratio`` the highest that is asked for at any time.
    """
    slots = [slot for step in steps for slot in step]
    hidden = target_rows - len({slot.row for slot in slots if slot.source == TARGET})
    if hidden:
        yield f"{hidden:,} of the {target_rows:,} target rows are not shown{_why(train)}"
    if ratio > 0:
        yield from _off_share(steps, sizes, unit)
        yield from _without_target(steps, unit)
        yield from _too_few(slots, ratio, unit)
        yield from _none_at_the_end(steps, unit)


def _why(train: Train) -> str:
    """Why target rows are not shown."""
    if train.steps is None:
        return ": replay stands in their place"
    return f" in {train.steps:,} steps of {train.batch_rows:,} rows; more train.steps show them all"


def _off_share(
    steps: Sequence[Sequence[Slot]], sizes: Mapping[str, Sequence[int]], unit: Unit
) -> Iterator[str]:
    """What the share came out as, where that is far from what was asked for: a plan is within one
    row of its share, and one row may be more than all the replay of a short run.
    """
    slots = [slot for step in steps for slot in step]
    asked = _asked(slots, sizes)
    came = shares(slots, sizes)
    if abs(came - asked) <= SHARE_OFF * asked:
        return
    last = [slot for step in last_fifth(steps) for slot in step]
    todo = "more target rows or train.epochs bring it nearer"
    if unit != "rows":
        todo += ", and so do shorter replay rows; --unit rows counts a row as one whatever its size"
    yield (
        f"replay came out as {_percent(came)} of the {unit.replace('_', ' ')}, where "
        f"{_percent(asked)} was asked for, and as {_percent(shares(last, sizes))} in the last "
        f"fifth, where {_percent(_asked(last, sizes))} was: {todo}"
    )


def _asked(slots: Sequence[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """The share that is asked for in these slots."""
    counted = [sizes[slot.source][slot.row] for slot in slots]
    return sum(slot.ratio * size for slot, size in zip(slots, counted, strict=True)) / sum(counted)


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _without_target(steps: Sequence[Sequence[Slot]], unit: Unit) -> Iterator[str]:
    """Steps that teach nothing new: where target rows are long and replay rows short, the replay of
    one target row fills whole steps.
    """
    empty = sum(all(slot.source != TARGET for slot in step) for step in steps)
    if not empty:
        return
    todo = "a lower --ratio or a larger train.batch_rows spreads the target over all steps"
    if unit != "rows":
        todo = (
            f"its rows are long beside those of the replay, and the share is counted in "
            f"{unit.replace('_', ' ')}; --unit rows gives every step its part of both"
        )
    yield f"{empty:,} of the {len(steps):,} steps hold no target row: {todo}"


def _too_few(slots: Sequence[Slot], ratio: float, unit: Unit) -> Iterator[str]:
    replayed = [(slot.source, slot.row) for slot in slots if slot.source != TARGET]
    different = len(set(replayed))
    if different >= FEWEST_ROWS:
        return
    if len(replayed) >= FEWEST_ROWS:
        todo = "make more of them"
    else:
        todo = _more_rows(len(slots) - len(replayed), ratio, unit)
    yield (
        f"{len(replayed):,} replay rows, {different:,} of them different, are too few to protect: "
        f"of fewer than {FEWEST_ROWS} different rows a skill that is {PART_OF_A_SKILL} of the "
        f"replay may have none; {todo}"
    )


def _more_rows(target_rows: int, ratio: float, unit: Unit) -> str:
    """How to come to as many replay rows as protect."""
    # With --unit rows there are ratio / (1 - ratio) replay rows beside each target row.
    if unit != "rows" and ratio / (1 - ratio) * target_rows >= FEWEST_ROWS:
        return "ask for --unit rows"
    enough = math.ceil(1000 * FEWEST_ROWS / (FEWEST_ROWS + target_rows)) / 1000
    if enough < 1:
        by_rows = "" if unit == "rows" else "--unit rows "
        return f"ask for {by_rows}--ratio {enough:g}, or for more target rows or train.epochs"
    return "ask for more target rows or train.epochs"


def _none_at_the_end(steps: Sequence[Sequence[Slot]], unit: Unit) -> Iterator[str]:
    """The last fifth, where what was learned last is forgotten first."""
    last = [slot for step in last_fifth(steps) for slot in step]
    asked = any(slot.ratio > 0 for slot in last)
    if asked and all(slot.source == TARGET for slot in last):
        why = "each is longer than what the share comes to there; --unit rows, "
        if unit == "rows":
            why = "the share comes to less than one there; "
        yield (
            f"the last fifth of the steps holds no replay row: {why}more target rows or a higher "
            f"--ratio gives it some"
        )
