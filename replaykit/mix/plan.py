"""The plan: which row is trained on in which optimiser step, as a pure function of sizes, settings
and seed.

    target rows of 26 loss tokens, replay rows of 9, ratio 0.05, 32 rows a step:
    step 0: 28 target + 4 replay, step 1: 28 + 4, step 2: 27 + 5, ...

No count is drawn at random. At every slot the row is taken, target or replay, that brings the
replay so far nearest to what was asked for so far (error diffusion), so that any run of slots, and
so every step, is within one row of its share, and of a share that moves as well: what is asked of a
run is the sum over its slots of size x the share of their moment. Rows of a source come in a seeded
order, all of them before any comes again. Others mix by a random draw per row, with target rows
dropped when replay runs out or replay repeated without saying so: ``interleave_datasets`` of
datasets, which LLaMA-Factory and ms-swift use, by each of its stopping strategies, and TRL by the
``fraction`` of a data set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from replaykit.errors import DataError
from replaykit.mix.schedule import most, ratio_at
from replaykit.runs import derive_seed
from replaykit.training_settings import Schedule

TARGET = "target"


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the order: a row of a source, by its index there, and the share of replay asked
    for at that moment.
    """

    source: str
    row: int
    asked: float = field(default=0.0, compare=False)


@dataclass
class Source:
    """Rows to draw from. ``sizes`` is what each counts for: its loss tokens, its tokens, or 1;
    ``skills`` names its skill, where there are floors to keep.
    """

    name: str
    sizes: Sequence[int]
    seed: int
    skills: Sequence[str] = ()
    drawn: int = 0
    _order: Sequence[int] = ()  # of this pass; empty before it begins
    _place: int = 0  # where in it the next row stands
    _early: set[int] = field(
        default_factory=set
    )  # rows of the first pass that came before their place
    _of_skill: dict[str, deque[int]] = field(
        default_factory=dict
    )  # rows of the first pass that have not come yet

    def peek(self, wanted: Iterable[str] = ()) -> int:
        """The index of the next row: in the first pass the next of the first of the ``wanted``
        skills that has one.
        """
        if not self._order:
            self._begin_pass()
        for skill in wanted:
            if rows := self._of_skill.get(skill):
                return rows[0]
        return self._order[self._place]

    def take(self, asked: float, wanted: Iterable[str] = ()) -> Slot:
        """The next row as a slot."""
        row = self.peek(wanted)
        self.drawn += 1
        if not self._of_skill:
            self._place += 1
        else:
            self._of_skill[
                self.skills[row]
            ].popleft()  # whichever way it came, it is the first of its skill
            self._early.add(row)
            while self._place < len(self._order) and self._order[self._place] in self._early:
                self._place += 1
        if self.drawn % len(self.sizes) == 0:
            self._order = ()
        return Slot(self.name, row, asked)

    def _begin_pass(self) -> None:
        self._order = pass_order(
            self.name, len(self.sizes), self.seed, self.drawn // len(self.sizes)
        ).tolist()
        self._place = 0
        self._of_skill = {}
        for row in self._order if self.skills and not self.drawn else ():
            self._of_skill.setdefault(self.skills[row], deque()).append(row)


def pass_order(source: str, rows: int, seed: int, number: int) -> np.ndarray:
    """The order of the rows of a source in its pass of this number, counted from 0."""
    return np.random.default_rng(derive_seed(seed, "mix", source, number)).permutation(rows)


class Pools:
    """Several sources of replay that share it by weights: the next row is of the one that most is
    owed to.

    Each is owed its part of all that was drawn, less what was drawn of it. So at any time none has
    more than its part and one row; the weights may change, and what was owed before stays owed.
    """

    def __init__(self, sources: Iterable[Source]):
        self.sources = {source.name: source for source in sources if source.sizes}
        self.owed = dict.fromkeys(self.sources, 0.0)

    def next(self, weights: Mapping[str, float]) -> Source | None:
        """The source of the next row, of those of a weight above 0; None where there is none. Of
        equals the first.
        """
        open_ = [name for name in self.sources if weights.get(name, 0.0) > 0]
        return self.sources[max(open_, key=lambda name: self.owed[name])] if open_ else None

    def took(self, slot: Slot, weights: Mapping[str, float]) -> None:
        """Accounts for a row that was drawn."""
        size = self.sources[slot.source].sizes[slot.row]
        whole = sum(weights.get(name, 0.0) for name in self.sources)
        for name in self.sources:
            self.owed[name] += size * weights.get(name, 0.0) / whole
        self.owed[slot.source] -= size


def plan(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    *,
    ratio: float,
    batch_rows: int,
    seed: int,
    epochs: int = 1,
    steps: int | None = None,
    schedule: Schedule | None = None,
    budget: Literal["add", "replace"] = "add",
    weights: Mapping[str, float] | None = None,
    skills: Mapping[str, Sequence[str]] | None = None,
    min_rows: Mapping[str, int] | None = None,
) -> list[list[Slot]]:
    """The slots of every optimiser step.

    ``target`` and ``replay`` give what each row counts for. With the budget "add" every target row
    comes exactly ``epochs`` times and replay comes on top; with "replace" there are only as many
    slots as those of the target alone, and some target rows come a time less, or never. Either way
    the slots are then spread evenly over as few steps as batch_rows allows. With ``steps`` there
    are exactly steps x batch_rows slots, and the target repeats evenly to fill them; with "add" it
    must be shown whole.

    Replay sources share by ``weights`` (equal ones by default). ``min_rows`` are different rows of
    a skill that must come, and ``skills`` names the skill of each replay row: where a skill is
    behind, by the progress, its next row comes first. A source without rows gives none, and the
    others its part. Raises DataError where all have none, ``steps`` are too few to show every
    target row, or a floor cannot be kept.
    """
    highest = most(schedule, ratio)
    weights = weights or dict.fromkeys(replay, 1.0)
    replay, skills, floors = (replay, skills or {}, min_rows or {}) if highest > 0 else ({}, {}, {})
    _check(target, replay, weights, highest)
    _check_floors(floors, replay, skills)
    slots = (
        steps * batch_rows
        if steps is not None
        else epochs * len(target)
        if budget == "replace"
        else None
    )
    total = epochs * len(target) if slots is None else slots  # of what progress counts
    order: list[Slot] = []
    for at_once in (
        False,
        True,
    ):  # the rows of a floor evenly over the training; where it is too short for that, first
        pools = Pools(
            Source(name, rows, seed, skills.get(name, ()) if floors else ())
            for name, rows in replay.items()
        )
        due = _Floors(floors, skills, at_once)
        order = _order(
            Source(TARGET, target, seed),
            pools,
            partial(ratio_at, schedule, ratio),
            weights,
            due,
            total,
            by_slots=slots is not None,
        )
        if not due.missing:
            break
    else:
        raise DataError(due.error(sum(slot.source != TARGET for slot in order)))
    shown = sum(slot.source == TARGET for slot in order)
    if steps is not None and budget == "add" and shown < len(target):
        raise DataError(
            f"{steps} steps of {batch_rows} rows show only {shown} of the {len(target)} target "
            f"rows; raise "
            f"train.steps, leave it out (train.epochs then decides), or set target.n"
        )
    count = steps or max(1, -(-len(order) // batch_rows))
    return [order[k * len(order) // count : (k + 1) * len(order) // count] for k in range(count)]


def _check(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    weights: Mapping[str, float],
    highest: float,
) -> None:
    """Raises DataError where there is no target, or no replay although the highest share is above
    0.
    """
    if not target:
        raise DataError("the target has no row that can be trained on")
    if highest > 0 and not any(rows for source, rows in replay.items() if weights.get(source)):
        raise DataError(
            f"replay at a ratio of {highest} was asked for, but there is none: run `replaykit "
            f"generate` or `replaykit "
            f"select` first, or ask for --ratio 0"
        )


def _order(
    target: Source,
    pools: Pools,
    ratio_of: Callable[[float], float],
    weights: Mapping[str, float],
    due: _Floors,
    total: int,
    *,
    by_slots: bool,
) -> list[Slot]:
    """The slots in order, until ``total`` slots, or target rows, are drawn. ``off`` is the replay
    drawn less that asked for.
    """
    order: list[Slot] = []
    off = 0.0
    while (done := len(order) if by_slots else target.drawn) < total:
        progress = (done + 0.5) / total  # the middle of what is drawn now
        ratio = ratio_of(progress)
        pool = pools.next(weights)
        row = target.peek()
        without = off - ratio * target.sizes[row]
        if pool is not None and ratio > 0:
            behind = due.behind(progress)
            size = pool.sizes[pool.peek(behind)]
            if abs(off + (1 - ratio) * size) < abs(without):
                order.append(slot := pool.take(ratio, behind))
                off += (1 - ratio) * size
                pools.took(slot, weights)
                due.took(slot)
                continue
        order.append(target.take(ratio))
        off = without
    return order


class _Floors:
    """How many different rows of each skill must have come by when: their part by progress, or all
    of them at once.
    """

    def __init__(
        self, floors: Mapping[str, int], skills: Mapping[str, Sequence[str]], at_once: bool
    ):
        self.floors = floors
        self._skills = skills
        self._at_once = at_once
        self.missing = dict(floors)
        self._drawn = dict.fromkeys(skills, 0)

    def behind(self, progress: float) -> list[str]:
        """The skills that are behind, the one that lacks most first."""
        part = 1.0 if self._at_once else progress
        lacks = {
            skill: self.missing[skill] - n * (1 - part)
            for skill, n in self.floors.items()
            if skill in self.missing
        }
        return sorted(
            (skill for skill, lack in lacks.items() if lack > 0), key=lambda skill: -lacks[skill]
        )

    def took(self, slot: Slot) -> None:
        """Accounts for a replay row; those of a second pass were counted in the first."""
        if not self.missing or slot.source not in self._drawn:
            return
        self._drawn[slot.source] += 1
        if self._drawn[slot.source] > len(self._skills[slot.source]):
            return
        skill = self._skills[slot.source][slot.row]
        if skill in self.missing:
            self.missing[skill] -= 1
            if not self.missing[skill]:
                del self.missing[skill]

    def error(self, replayed: int) -> str:
        lack = ", ".join(
            f"{self.floors[s] - n} of the {self.floors[s]} of '{s}'"
            for s, n in self.missing.items()
        )
        return (
            f"mix.min_rows: the plan has {replayed} replay rows, which is too short for its "
            f"floors: only {lack} would be "
            f"trained on; raise mix.ratio or train.epochs, give their source more weight, or ask "
            f"for fewer"
        )


def _check_floors(
    floors: Mapping[str, int],
    replay: Mapping[str, Sequence[int]],
    skills: Mapping[str, Sequence[str]],
) -> None:
    """Raises DataError where a skill has fewer replay rows than its floor."""
    of_skill = [skill for source in replay for skill in skills.get(source, ())]
    few = {skill: found for skill, n in floors.items() if (found := of_skill.count(skill)) < n}
    if few:
        lack = ", ".join(
            f"{floors[skill]} rows of '{skill}', but {found} are there"
            for skill, found in few.items()
        )
        there = ", ".join(sorted(set(of_skill))[:20]) or "none"
        raise DataError(
            f"mix.min_rows asks for {lack}; make more of them, or ask for fewer (skills of the "
            f"replay rows: {there})"
        )


# --- for a controller -----------------------------------------------------------------------------


def replay_beside(
    target_steps: Iterable[Sequence[int]],
    pools: Mapping[str, Sequence[int]],
    ratio_of_step: Callable[[int], float],
    weights_of_step: Callable[[int], Mapping[str, float]],
    *,
    seed: int,
) -> Iterator[list[Slot]]:
    """The replay slots of each optimiser step, beside target rows that are fixed, for shares that
    are decided on the way.

    ``target_steps`` are the sizes of the target rows of each step, ``pools`` those of the rows of
    each pool, such as one of each skill. ``ratio_of_step`` and ``weights_of_step`` are asked for a
    step, counted from 0, only when its slots are. A pool without a weight, or of weight 0, gives
    none, and a step where none gives any owes nothing later. As many rows are taken as bring the
    replay nearest to what was asked for up to this step, so that each step is within one replay row
    of its share, and so are all together. The same decisions give the same slots, so a resumed run
    takes its first steps again, with the decisions it had made.
    """
    shared = Pools(Source(name, sizes, seed) for name, sizes in pools.items())
    off = 0.0
    for step, sizes in enumerate(target_steps):
        ratio = ratio_of_step(step)
        weights = weights_of_step(step)
        slots = list[Slot]()
        off -= ratio * sum(sizes) if shared.next(weights) else 0.0
        while ratio > 0 and (pool := shared.next(weights)) is not None:
            gain = (1 - ratio) * pool.sizes[pool.peek()]
            if abs(off + gain) >= abs(off):
                break
            slots.append(slot := pool.take(ratio))
            shared.took(slot, weights)
            off += gain
        yield slots


# --- what came out --------------------------------------------------------------------------------


def shares(slots: Iterator[Slot] | Sequence[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """The part of the slots' sizes that is replay; 0 for no slots."""
    replayed = whole = 0
    for slot in slots:
        size = sizes[slot.source][slot.row]
        whole += size
        replayed += size if slot.source != TARGET else 0
    return replayed / whole if whole else 0.0


def deviation(slots: Sequence[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """How far the replay among the slots is from what was asked for, in the unit of the sizes,
    without a sign.
    """
    off = 0.0
    for slot in slots:
        off += ((slot.source != TARGET) - slot.asked) * sizes[slot.source][slot.row]
    return abs(off)


def alone(target: Sequence[int], slots: int, seed: int) -> int:
    """What the first ``slots`` target rows count for, where the target is trained on alone in the
    plan's order.
    """
    passes, rest = divmod(slots, len(target))
    last = pass_order(TARGET, len(target), seed, passes)[:rest].tolist()
    return passes * sum(target) + sum(target[row] for row in last)
