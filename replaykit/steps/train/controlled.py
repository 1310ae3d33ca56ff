"""Micro-batches whose replay is decided while training: the target rows of a step stay, and a
controller says how much replay comes beside them.

    layout = lay_out(rows, inputs)
    batches = ControlledBatches(data, layout, controller, cut, seed=1)
    for rows in batches: ...     # row indices, ``batches.parts`` micro-batches a step

The target is shown exactly as the plan shows it, in as many steps, so a share that rises makes
steps longer and takes nothing from the target. Whenever the order is begun anew, as a resumed run
does, the same decisions give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record
from replaykit.errors import RecipeError
from replaykit.model.logprobs import IGNORED
from replaykit.steps.mix.plan import replay_beside
from replaykit.steps.mix.replay import skill_of, source_of
from replaykit.steps.train.batches import Cut, Row, TokenisedRows, micro_batches
from replaykit.steps.train.controller import Controller, ControllerInputs

Unit = Literal["loss_tokens", "tokens", "rows"]


@dataclass(frozen=True)
class Layout:
    """The planned target rows and then all replay rows, and where each is among them."""

    records: list[Record]
    target: list[list[int]]
    """The places of each step's target rows."""
    pools: dict[str, list[int]]
    """The places of the replay rows of each pool."""


def lay_out(rows: Sequence[PlannedRow], inputs: ControllerInputs) -> Layout:
    """Raises RecipeError as ``pools_of`` does."""
    records: list[Record] = []
    # The plan's last row may be replay: a step has its place even without a target row.
    target: list[list[int]] = [[] for _ in range(rows[-1].step + 1)]
    for row in rows:
        if row.record.source == TARGET:
            target[row.step].append(len(records))
            records.append(row.record)
    pools = {}
    for name, replay in pools_of(inputs).items():
        pools[name] = list(range(len(records), len(records) + len(replay)))
        records += replay
    return Layout(records, target, pools)


def pools_of(inputs: ControllerInputs) -> dict[str, list[Record]]:
    """The replay rows by skill where the controller weighs skills, else by source; none for an arm
    without replay.

    Raises RecipeError where there are rows and none of them is of a skill that is tested.
    """
    by_skill = inputs.settings.by_skill
    pools: dict[str, list[Record]] = {}
    for record in inputs.replay:
        name = skill_of(record, inputs.mix.skill) if by_skill else source_of(record)
        pools.setdefault(name, []).append(record)
    if by_skill and pools and not pools.keys() & inputs.old.keys():
        tested = ", ".join(inputs.old)
        raise RecipeError(
            "the recipe",
            [
                f"train.controller.by_skill: no replay row names a skill of eval.old ({tested}) "
                f"in its column '{inputs.mix.skill}'; mix.skill names another column"
            ],
        )
    return pools


class ControlledBatches:
    """The micro-batches of all steps, ``parts`` of them a step.

    A step's micro-batches are of ``cut.rows`` rows or fewer, but where the share is at its highest
    and its rows are shorter than the pools' mean; then they are spread evenly.
    """

    def __init__(
        self, data: TokenisedRows, layout: Layout, controller: Controller, cut: Cut, *, seed: int
    ) -> None:
        inputs = controller.inputs
        self._data = data
        self._layout = layout
        self._controller = controller
        self._cut = cut
        self._seed = seed
        self._weights = {str(name): part for name, part in (inputs.mix.sources or {}).items()}
        self._sizes = sizes_of(data, inputs.mix.unit)
        highest = max(inputs.settings.max_ratio, inputs.mix.ratio)
        replay = self._most_replay_rows(highest)
        target = max(map(len, layout.target))
        # Every step has as many micro-batches as the largest step can need, first those of replay
        # where it stands apart: the Trainer counts on one number for all steps.
        counts = (replay, target) if cut.apart else (0, replay + target)
        self._counts = tuple(-(-count // cut.rows) for count in counts)
        self.parts = sum(map(cut.whole, self._counts))

    def _most_replay_rows(self, ratio: float) -> int:
        """How many replay rows of mean size stand beside the largest step of the target."""
        sizes = [self._sizes[place] for pool in self._layout.pools.values() for place in pool]
        if not sizes:
            return 0
        largest = max(sum(self._sizes[place] for place in step) for step in self._layout.target)
        return round(ratio / (1 - ratio) * largest / (sum(sizes) / len(sizes))) + 1

    def __len__(self) -> int:
        return len(self._layout.target) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        sizes = self._sizes
        pools = self._layout.pools
        drawn = replay_beside(
            ([sizes[place] for place in step] for step in self._layout.target),
            {name: [sizes[place] for place in pool] for name, pool in pools.items()},
            self._controller.ratio,
            self._share,
            seed=self._seed,
        )
        for step, slots in zip(self._layout.target, drawn, strict=True):
            # Drawn only now: the controller may have decided since the last step.
            replay = [pools[slot.source][slot.row] for slot in slots]
            places = [*replay, *step]
            apart = [True] * len(replay) + [False] * len(step)
            batches, _ = micro_batches(
                [self._data.lengths[place] for place in places],
                [0] * len(places),
                rows=self._cut.rows,
                apart=apart if self._cut.apart else None,
                world=self._cut.world,
                counts=self._counts,
            )
            yield from ([places[k] for k in batch] for batch in batches)

    def _share(self, step: int) -> Mapping[str, float]:
        """What each pool is weighed by in a step: one whose skill is not tested counts as the
        tested one that needs least.
        """
        pools = self._layout.pools
        skills = self._controller.weights(step)
        if skills is None:
            return {name: self._weights.get(name, 1.0) for name in pools}
        return {name: skills.get(name, min(skills.values())) for name in pools}


def sizes_of(data: TokenisedRows, unit: Unit) -> list[int]:
    """What each row counts for in a unit, as the mixture counts it."""
    match unit:
        case "rows":
            return [1] * len(data)
        case "tokens":
            return data.lengths
        case "loss_tokens":
            return [1 if data.labelled else _loss_tokens(data[k]) for k in range(len(data))]


def _loss_tokens(row: Row) -> int:
    return int((row["labels"] != IGNORED).sum())
