"""Which rows a bounded buffer keeps.

    keep("reservoir", offered, 500)  ->  500 of them

A row is offered with its task, its rank in it, and what it counts for: 1, or its bytes. The buffer
before a stage is chosen from the one before it and the rows of the last task. As every method takes
the rows of a task in one order and never takes more of a task later than before, that is the same
choice as from all rows seen, and it depends on the seed alone. (Of bytes it is so but for the last
row: one that was too large for the rest is forgotten, and a later one may fit there.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["reservoir", "balanced", "herding"]


@dataclass(frozen=True)
class Offered:
    """A row that could be kept."""

    task: int
    """The number of its task."""
    rank: int
    """Its place in the order in which its task's rows are taken, lowest first. For a reservoir it
    is a number drawn at random, comparable between tasks."""
    size: int
    """What it counts for."""
    row: int
    """Which row it is, for the caller."""


def keep(method: Method, offered: Iterable[Offered], limit: int) -> list[Offered]:
    """The rows that stay, by task and rank; together they count for ``limit`` at most.

    reservoir: those of the lowest ranks of all, which is a uniform sample of all rows, as Vitter's
    algorithm R keeps (ACM TOMS 11:37, 1985); ranks drawn at random need no count of the rows
    before, and take bytes as well. balanced and herding: equally much of each task, within one row.
    A row that alone counts for more than ``limit`` is never kept.
    """
    rows = sorted(
        (row for row in offered if row.size <= limit), key=lambda row: (row.rank, row.task)
    )
    kept = _lowest(rows, limit) if method == "reservoir" else _in_turns(rows, limit)
    return sorted(kept, key=lambda row: (row.task, row.rank))


def _lowest(rows: Sequence[Offered], limit: int) -> list[Offered]:
    """The first rows, up to the first that does not fit: a later, smaller one would not be a
    uniform draw.
    """
    kept: list[Offered] = []
    for row in rows:
        limit -= row.size
        if limit < 0:
            break
        kept.append(row)
    return kept


def _in_turns(rows: Sequence[Offered], limit: int) -> list[Offered]:
    """Row after row, the next of the task that has least so far, of equals the earlier task; a task
    whose next row does not fit gets no more.
    """
    of_task: dict[int, list[Offered]] = {}
    for row in reversed(rows):
        of_task.setdefault(row.task, []).append(row)
    heap = [(0, task) for task in of_task]
    heapq.heapify(heap)
    kept: list[Offered] = []
    while heap:
        used, task = heapq.heappop(heap)
        row = of_task[task].pop()
        if row.size > limit:
            continue
        limit -= row.size
        kept.append(row)
        if of_task[task]:
            heapq.heappush(heap, (used + row.size, task))
    return kept
