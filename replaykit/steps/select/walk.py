"""The rows of a pool in the order in which a method takes them, until enough have passed the
checks.

    walk.take([5, 0, 3, ...], 2)  ->  [5, 3], where the row at place 0 is not good
    walk.looked_at                ->  3; what comes after them in the order was not looked at

A row repeats one that was looked at before: of two near duplicates the one stays that the method
takes first. Rows are checked in blocks, by all processes, and judged one after the other, in their
order; so the size of a block changes no verdict.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, islice

import numpy as np

from replaykit.checks.duplicates import BATCH, Repeats
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.data.record import noted
from replaykit.data.spool import Spool
from replaykit.parallel import Executor, Shared
from replaykit.recipe.select import Select
from replaykit.runs import Watch
from replaykit.steps.select.rows import CheckedRow, reject_line

BATCH_ON_RAY = 2048  # rows of a job: to start one takes tens of milliseconds there
WATCHED = 1000  # rows between two calls of the watch
SPARE = 1.25  # rows of a block for each that will probably be needed
LEAST = 64  # rows of a block
UNDECIDED, DROPPED, TAKEN = range(3)


@dataclass
class Walk:
    """The checks of a recipe, on the rows of a pool that a method asks for. Rows that fail one go
    to the funnel.
    """

    settings: Select
    pool: Spool
    """The lines of all rows, each at its place."""
    nearest: np.ndarray | None
    """The target row that each row is nearest to, -1 for none; None where nothing was compared."""
    check: Shared[Sequence[bytes], list[CheckedRow]]
    repeats: Repeats
    held_out: Decontamination | None
    executor: Executor
    funnel: Funnel
    watch: Watch
    looked_at: int = 0
    """Rows that went through the checks."""
    ends_taken_off: int = 0
    """Of these, the rows of which an answer ended with a special token."""
    answers: Counter[bytes] = field(default_factory=Counter)
    """Rows that passed, by a hash of their question; where answers_per_question is set."""
    served: Counter[int] = field(default_factory=Counter)
    """Rows that were taken, by their nearest target row."""

    def __post_init__(self) -> None:
        self._fates = bytearray(len(self.pool))
        self.repeats.begin("pool")

    def take(self, order: Iterable[int], wanted: int) -> list[int]:
        """The first places of the order whose rows pass, so many or all there are. Rows that were
        dropped or taken before are passed over.
        """
        places = (place for place in map(int, order) if self._fates[place] == UNDECIDED)
        taken: list[int] = []
        before = self.looked_at
        while len(taken) < wanted:
            # As many as will be needed if as many of them are good as were so far.
            rate = (len(taken) + 1) / (self.looked_at - before + 1)
            block = self._block(places, int((wanted - len(taken)) / rate * SPARE) + LEAST)
            if not block:
                break
            for place, row in zip(block, self._checked(block), strict=True):
                if self._passes(place, row):
                    taken.append(place)
                if len(taken) == wanted:
                    break
        return taken

    def reject_others(self, chosen: Iterable[int], reason: str) -> None:
        """Drops all rows for this reason that are not among the chosen and were not dropped yet."""
        kept = set(chosen)
        for place, fate in enumerate(self._fates):
            if fate != DROPPED and place not in kept:
                reject_line(self.funnel, self.pool[place], reason)

    def _block(self, places: Iterator[int], size: int) -> list[int]:
        """The next places, of which so many are to be checked."""
        block = []
        for place in places:
            block.append(place)
            size -= not self._has_enough(place)
            if not size:
                break
        return block

    def _checked(self, block: Sequence[int]) -> Iterator[CheckedRow | None]:
        """Each row of a block, checked; None for one whose target row has enough already."""
        needed = [not self._has_enough(place) for place in block]
        lines = (self.pool[place] for place in compress(block, needed))
        batch = BATCH_ON_RAY if self.settings.engine == "ray" else BATCH
        jobs = iter(lambda: list(islice(lines, batch)), [])
        rows = chain.from_iterable(self.executor.map(self.check, jobs))
        for is_needed in needed:
            yield next(rows) if is_needed else None

    def _passes(self, place: int, row: CheckedRow | None) -> bool:
        """Whether the row is taken; one that is not is dropped with its reason."""
        self._fates[place] = DROPPED
        if row is None or self._has_enough(place):
            reject_line(self.funnel, self.pool[place], "others_are_nearer")
            return False
        fault = self._fault(row)
        if fault is not None:
            reason, shown_by = fault
            self.funnel.reject(noted(row.record, **shown_by), reason)
            return False
        self._fates[place] = TAKEN
        if self.nearest is not None and self.nearest[place] >= 0:
            self.served[int(self.nearest[place])] += 1
        return True

    def _fault(self, row: CheckedRow) -> tuple[str, dict[str, str]] | None:
        """Why a row is dropped, and what shows it; counts the row."""
        self.looked_at += 1
        if self.looked_at % WATCHED == 0:
            self.watch("check", self.looked_at, None, str(self.funnel))
        self.ends_taken_off += row.end_taken_off
        if row.reason is not None:
            return row.reason, {}
        hit = None
        if self.held_out is not None:
            hit = self.held_out.count(row.record.id, row.hits)
        if hit is not None:
            return hit.reason, {"match": hit.match, "test": hit.item}
        assert row.hashes is not None
        twin = self.repeats.find(row.texts, row.forms, row.hashes)
        if twin is not None:
            return twin.reason, {"twin": twin.text}
        if self._answered_enough(row):
            return "over_answers_per_question", {}
        return None

    def _answered_enough(self, row: CheckedRow) -> bool:
        """Whether so many rows with this question have passed as are asked for; counts the row."""
        most = self.settings.answers_per_question
        if most is None:
            return False
        question = row.forms[0].encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(question, digest_size=8).digest()
        self.answers[key] += 1
        return self.answers[key] > most

    def _has_enough(self, place: int) -> bool:
        """Whether the target row that this row is nearest to has ``per_target`` rows already."""
        most = self.settings.per_target
        if most is None or self.nearest is None:
            return False
        return self.served[int(self.nearest[place])] >= most
