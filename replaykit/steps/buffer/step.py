"""The step buffer: the rows of earlier tasks that a stage may replay, made before it.

    buffer-sums/rows.jsonl     rows of clinics, the task before sums
    buffer-poems/rows.jsonl    of those, and of the rows of sums, as many as the buffer holds

The rows of a task come from its mixture, in training order: what was trained on, and nothing that
holds a test's question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.planned import read_plan
from replaykit.data.record import TARGET, Record, apart
from replaykit.errors import DataError
from replaykit.hashing import derive_seed
from replaykit.recipe import Recipe
from replaykit.recipe.tasks import BUFFER, Buffer
from replaykit.runs import Step, Watch
from replaykit.steps.buffer.answers import REFERENCE, answered_anew, line_bytes
from replaykit.steps.buffer.methods import Offered, keep
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.generate.verified import PATH, WHY
from replaykit.steps.inputs import SCORING, made_facts
from replaykit.steps.select import choose
from replaykit.steps.stages import folder_of, number_of
from replaykit.steps.step import Context, Outcome, Todo, do_step, model_facts, need_step

# What the meta of a record says under names of the step's own.
OWN_META = frozenset({"task", "rank", PATH, WHY})
HIGHEST_RANK = 2**63 - 1


def todos(recipe: Recipe, context: Context) -> Iterator[Todo[BufferResult]]:
    """What the stage of this recipe has to replay; nothing before the first task."""
    from replaykit.engines import engine_fact

    number = number_of(recipe)
    if number == 0:
        return
    settings = recipe.buffer
    mixed = _rows_of(recipe, "mix", number - 1)
    before = None
    if number > 1:
        before = _rows_of(recipe, BUFFER, number - 1)
    inputs = {
        "seed": recipe.seed,
        "buffer": settings.decisive(),
        "mix": made_facts(mixed),
        "before": None if before is None else made_facts(before),
    }
    if settings.answers == "on_policy":
        inputs |= model_facts(recipe)
        inputs["engine"] = engine_fact(recipe.engine.here)
        inputs["eval"] = {
            task.name: task.eval.model_dump(include=set(SCORING)) for task in recipe.tasks[:number]
        }
    job = _Keeping(recipe, number, mixed, before, context.watch)
    yield Todo(BUFFER, inputs, BufferResult, job.work, arm=recipe.tasks[number].name)


def run(recipe: Recipe, context: Context) -> Iterator[Outcome[BufferResult]]:
    for todo in todos(recipe, context):
        yield do_step(todo, recipe, context)


def _rows_of(recipe: Recipe, step: str, number: int) -> Path:
    """The rows that a step of another stage left. Raises RunError where it is not finished."""
    folder = folder_of(recipe, step, number)
    need_step(folder, "run")
    return folder / "rows.jsonl"


@dataclass(frozen=True)
class _Keeping:
    """The buffer before a stage: what it is chosen from, and for which task."""

    recipe: Recipe
    number: int
    mixed: Path
    """The mixture of the task before."""
    before: Path | None
    """The buffer before that task; None where it was the first."""
    watch: Watch

    def work(self, step: Step) -> BufferResult:
        settings = self.recipe.buffer
        limit = settings.limit
        earlier = [] if self.before is None else list(read_jsonl(self.before))
        last = self._last()
        fitting = [record for record in last if self._fits(record)]
        if last and not fitting and not earlier:
            smallest = min(self._size_held(record) for record in last)
            raise DataError(
                f"buffer.{limit.unit}: {limit.n:,} is less than the smallest of the {len(last):,} "
                f"rows of {self._names[-1]} takes ({smallest:,}), so nothing could be replayed"
            )
        offered = self._offered(fitting)
        records = _chosen([*earlier, *offered], self._names, settings)
        answers = None
        if settings.answers == "on_policy":
            anew, answers = answered_anew(self.recipe, records, self.watch)
            # Of bytes, new answers may take more than there are.
            records = _chosen(anew, self._names, settings)
            answers = answers.model_copy(update={"no_room": len(anew) - len(records)})
        write_jsonl(step.folder / "rows.jsonl", records)
        counts = Counter(record.meta["task"] for record in records)
        return BufferResult(
            method=settings.method,
            unit=limit.unit,
            limit=limit.n,
            rows=len(records),
            bytes=sum(map(line_bytes, records)),
            tasks={name: counts[name] for name in self._names},
            offered=len(last),
            too_large=len(last) - len(fitting),
            answers=answers,
        )

    @property
    def _names(self) -> list[str]:
        """Of the earlier tasks, in order."""
        return [task.name for task in self.recipe.tasks[: self.number]]

    def _last(self) -> list[Record]:
        """The different rows of the last task, in training order."""
        different: dict[str, Record] = {}
        for row in read_plan(self.mixed):
            if row.record.source == TARGET:
                different.setdefault(row.record.id, row.record)
        return list(different.values())

    def _fits(self, record: Record) -> bool:
        """Whether the row alone is no larger than the whole buffer, whatever its rank."""
        return self._size_held(record) <= self.recipe.buffer.limit.n

    def _size_held(self, record: Record) -> int:
        """What the row counts for at its highest rank."""
        return _size(_held(record, self._names[-1], HIGHEST_RANK), self.recipe.buffer.limit.unit)

    def _offered(self, records: Sequence[Record]) -> list[Record]:
        """The rows of the last task that may come in, as rows of the buffer."""
        task = self._names[-1]
        ranks: Iterable[tuple[int, int]] = (
            (place, derive_seed(self.recipe.seed, BUFFER, task, place))
            for place in range(len(records))
        )
        if self.recipe.buffer.method == "herding" and records:
            vectors = choose.tfidf([record.question for record in records])
            order = choose.herding(vectors, self._most(records))
            ranks = ((place, rank) for rank, place in enumerate(order))
        return [_held(records[place], task, rank) for place, rank in ranks]

    def _most(self, records: Sequence[Record]) -> int:
        """How many of these rows the buffer can hold at most."""
        limit = self.recipe.buffer.limit
        return min(len(records), limit.n // min(_size(record, limit.unit) for record in records))


def _held(record: Record, task: str, rank: int) -> Record:
    """A row of a task as a row of the buffer; a column of the user's with one of our names stands
    apart.
    """
    own = {"task": task, "rank": rank}
    meta = apart(record.meta, [*OWN_META, REFERENCE])
    return replace(record, source="buffer", meta={**meta, **own})


def _chosen(records: Sequence[Record], tasks: Sequence[str], settings: Buffer) -> list[Record]:
    """The rows that the buffer keeps, by task and rank."""
    offered = (
        Offered(
            tasks.index(record.meta["task"]),
            record.meta["rank"],
            _size(record, settings.limit.unit),
            place,
        )
        for place, record in enumerate(records)
    )
    return [records[one.row] for one in keep(settings.method, offered, settings.limit.n)]


def _size(record: Record, unit: Literal["rows", "bytes"]) -> int:
    """What a row counts for."""
    return line_bytes(record) if unit == "bytes" else 1
