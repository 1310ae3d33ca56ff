"""The mixture: target and replay rows, measured in tokens, checked, planned, and written in
training order.

    rows      {"target": [...], "select": [...]}                     what can be learned from
    sizes     {"loss_tokens": {"target": [26, 31], "select": [9]}, "tokens": ..., "rows": ...}
    steps     [[Slot("target", 1), Slot("select", 0), Slot("target", 0)], ...]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from replaykit.checks.duplicates import Repeats
from replaykit.checks.funnel import Funnel, FunnelCounts
from replaykit.checks.overlap import Decontaminated, Decontamination
from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record
from replaykit.errors import ChatError
from replaykit.model.chat import Chat, Example
from replaykit.recipe.mix import Mix, Unit
from replaykit.recipe.train import Train
from replaykit.runs import Watch, unwatched
from replaykit.steps.mix.plan import Slot, alone, deviation, plan, shares, slots_alone
from replaykit.steps.mix.result import Furthest, MixResult, SkillRows
from replaykit.steps.mix.schedule import describe


@dataclass(frozen=True)
class Mixture:
    """The usable rows of every source, what each counts for in every unit, and the slots of every
    step.
    """

    rows: Mapping[str, Sequence[Record]]
    """By source."""
    sizes: Mapping[Unit, Mapping[str, Sequence[int]]]
    """By unit and source: what each row counts for."""
    steps: Sequence[Sequence[Slot]]
    skills: Mapping[str, Sequence[str]]
    """By source of replay: the skill of each row."""
    alone_tokens: int
    """All tokens of a training on the target alone, of as many slots where these are fixed, else of
    as many epochs."""
    notes: Sequence[str] = ()
    """Sentences that the user must read."""

    def planned_rows(self) -> Iterator[PlannedRow]:
        """The rows in training order."""
        for step, slots in enumerate(self.steps):
            for slot in slots:
                yield PlannedRow(step, self.rows[slot.source][slot.row])

    def replay(self) -> Iterator[Record]:
        """All usable replay rows, whether the plan draws them or not."""
        for source, records in self.rows.items():
            if source != TARGET:
                yield from records

    def result(
        self,
        settings: Mix,
        *,
        sha256: str,
        sources: Mapping[str, str],
        funnel: FunnelCounts,
        decontamination: Decontaminated | None,
    ) -> MixResult:
        """What was asked for and what came out. ``settings`` are those that the mixture was made
        by, the rest is known to the step alone.
        """
        slots = [slot for step in self.steps for slot in step]
        # A share that moves shows in its last part; of a constant one it is nearly the whole's.
        fifth = max(1, len(self.steps) // 5)
        last = [slot for step in self.steps[-fifth:] for slot in step]
        used = Counter(slot.source for slot in slots)
        tokens = self.sizes["tokens"]
        cost = sum(tokens[slot.source][slot.row] for slot in slots) / self.alone_tokens
        shown = {slot.row for slot in slots if slot.source == TARGET}
        return MixResult(
            ratio=settings.ratio,
            unit=settings.unit,
            budget=settings.budget,
            schedule=settings.schedule,
            description=_in_words(settings),
            share={unit: round(shares(slots, of), 6) for unit, of in self.sizes.items()},
            last_share={unit: round(shares(last, of), 6) for unit, of in self.sizes.items()},
            furthest_step=self._furthest(settings.unit),
            steps=len(self.steps),
            target_rows=used[TARGET],
            replay_rows=len(slots) - used[TARGET],
            available={source: len(rows) for source, rows in self.rows.items()},
            repeats={
                source: round(used[source] / len(rows), 4)
                for source, rows in self.rows.items()
                if rows
            },
            skills=self._by_skill(slots),
            cost=round(cost, 4),
            not_shown=len(self.rows[TARGET]) - len(shown),
            notes=list(self.notes),
            sha256=sha256,
            sources=dict(sources),
            funnel=funnel,
            decontamination=decontamination,
        )

    def _furthest(self, unit: Unit) -> Furthest:
        """The largest distance of a step from its own share."""
        sizes = self.sizes[unit]
        # The plan promises the size of the largest row of any source at most.
        off = max(deviation(step, sizes) for step in self.steps)
        largest = max(max(of_source) for of_source in sizes.values() if of_source)
        return Furthest(amount=round(off, 3), rows=round(off / largest, 4))

    def _by_skill(self, slots: Sequence[Slot]) -> dict[str, SkillRows]:
        """How many replay rows of each skill come, and how many different ones, most first."""
        # A row is known by its source and its index there; several slots may hold the same one.
        replayed = [(slot.source, slot.row) for slot in slots if slot.source != TARGET]
        rows = Counter(self.skills[source][row] for source, row in replayed)
        different = Counter(self.skills[source][row] for source, row in set(replayed))
        return {
            skill: SkillRows(rows=count, different=different[skill])
            for skill, count in rows.most_common()
        }


def build_mixture(
    target: Sequence[Record],
    replay: Mapping[str, Sequence[Record]],
    *,
    chat: Chat,
    settings: Mix,
    train: Train,
    seed: int,
    held_out: Decontamination | None = None,
    folder: str | Path | None = None,
    funnel: Funnel | None = None,
    watch: Watch = unwatched,
) -> Mixture:
    """The mixture of target and replay as the settings ask for it; see ``plan`` for what is exact.

    Dropped, with the reason in ``funnel``: any row, of the target too, that holds an item of the
    evaluation sets in ``held_out`` ("eval_overlap", with the item and the matching text in its
    meta), that has no answer or is longer than ``train.max_tokens``; and a replay row that the chat
    template refuses, whose questions repeat those of the target or of an earlier kept replay row
    (from ``settings.near_duplicate`` on nearly so, with the earlier text as ``twin`` in its meta),
    or that is one more of its skill than ``settings.max_rows``. Several answers to one question of
    a source stay. Texts are compared by a temporary file in ``folder``.
    """
    # The target comes first: replay that repeats it, or a source before its own, is dropped.
    reading = _Reading(chat, train.max_tokens, held_out, funnel or Funnel(), watch)
    usable = {
        source: reading.usable(source, records)
        for source, records in {TARGET: target, **replay}.items()
    }
    rows = {source: found.rows for source, found in usable.items()}
    _drop_repeats(rows, settings.near_duplicate, folder, reading.funnel, watch)
    _drop_surplus(rows, settings, reading.funnel)
    records = {source: [row.record for row in found] for source, found in rows.items()}
    sizes: dict[Unit, dict[str, list[int]]] = {
        "loss_tokens": {name: [row.loss_tokens for row in found] for name, found in rows.items()},
        "tokens": {name: [row.tokens for row in found] for name, found in rows.items()},
        "rows": {name: [1] * len(found) for name, found in rows.items()},
    }
    skills = {
        source: [skill_of(record, settings.skill) for record in records[source]]
        for source in replay
    }
    # The plan knows no records, only what each counts for in the unit that was asked for.
    counted = sizes[settings.unit]
    steps = plan(
        counted[TARGET],
        {source: counted[source] for source in replay},
        settings=settings,
        train=train,
        seed=seed,
        skills=skills,
    )
    slots = slots_alone(train, len(records[TARGET]))
    return Mixture(
        rows=records,
        sizes=sizes,
        steps=steps,
        skills=skills,
        alone_tokens=alone(sizes["tokens"][TARGET], slots, seed),
        notes=[
            *_left_out(len(target), usable[TARGET].dropped),
            *_without_rows([source for source in replay if not rows[source]], settings),
        ],
    )


def _in_words(settings: Mix) -> str:
    """``"20 % of loss tokens, linear to 40 %"``: the share that was asked for."""
    parts = [f"{100 * settings.ratio:.4g} % of {settings.unit.replace('_', ' ')}"]
    if settings.schedule is not None:
        parts.append(describe(settings.schedule))
    if settings.budget == "replace":
        parts.append("in place of target rows")
    return ", ".join(parts)


def skill_of(record: Record, column: str) -> str:
    """The skill that a replay row keeps alive: what the column of its meta names, or else its
    source.
    """
    return str(record.meta.get(column, record.source))


# --- rows that can be learned from ----------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A record, and how many tokens it has, with loss and in all."""

    record: Record
    loss_tokens: int
    tokens: int


@dataclass
class _Usable:
    """The rows of a source that are kept, and those that are not."""

    rows: list[_Row] = field(default_factory=list)
    dropped: list[tuple[str, Record]] = field(default_factory=list)
    """Each with the reason."""


@dataclass(frozen=True)
class _Reading:
    """By what rows are read, whatever their source."""

    chat: Chat
    max_tokens: int
    held_out: Decontamination | None
    funnel: Funnel
    watch: Watch

    def usable(self, source: str, records: Sequence[Record]) -> _Usable:
        """The rows that can be learned from and give no test away.

        Raises ChatError for a target row that the chat template refuses; a replay row is dropped.
        """
        found = _Usable()
        for number, record in enumerate(records, 1):
            self.watch(f"read {source}", number, len(records))
            # A row that gives a test away is not tokenised: the template may even refuse it.
            example = None
            record, reason = self._test_in(record)
            if reason is None:
                example, reason = self._example(record, source)
            if self.funnel.passes(record, reason) and example is not None:
                found.rows.append(_Row(record, example.loss_tokens, len(example.tokens)))
            else:
                found.dropped.append((str(reason), record))
        return found

    def _test_in(self, record: Record) -> tuple[Record, str | None]:
        """The record and None; or with the evaluation item that it holds in its meta, and the
        reason.
        """
        hit = None if self.held_out is None else self.held_out.check(record)
        if hit is None:
            return record, None
        # Nothing edits a record: the dropped one is a copy that says what was found in it.
        shown = {"match": hit.match, "test": hit.item, "evalset": hit.evalset}
        return replace(record, meta={**record.meta, **shown}), hit.reason

    def _example(self, record: Record, source: str) -> tuple[Example | None, str | None]:
        """The row in tokens, and the reason where it cannot be learned from."""
        try:
            example = self.chat.example(record)
        except ChatError:
            if source == TARGET:
                raise
            return None, "template_refuses"
        if not example.loss_tokens:
            return example, "no_answer"
        if len(example.tokens) > self.max_tokens:
            return example, "too_long"
        return example, None


def _left_out(target_rows: int, dropped: Sequence[tuple[str, Record]]) -> Iterator[str]:
    """What became of target rows that are left out, in sentences."""
    held = Counter(record.meta["evalset"] for _, record in dropped if "evalset" in record.meta)
    why = {
        "no_answer": "have no answer to learn from",
        "too_long": "are longer than train.max_tokens",
    }
    left_out: list[tuple[int, str]] = []
    if held:
        by_test = ", ".join(f"{name} {n:,}" for name, n in held.items())
        left_out.append((held.total(), f"hold an item of the evaluation ({by_test})"))
    for reason, n in Counter(reason for reason, _ in dropped if reason in why).items():
        left_out.append((n, why[reason]))
    for n, text in left_out:
        yield (
            f"{n:,} of the {target_rows:,} target rows {text} and are left out; dropped.jsonl has "
            f"them"
        )


def _without_rows(empty: Sequence[str], settings: Mix) -> Iterator[str]:
    """Which of the empty sources of replay were wanted, in sentences."""
    for source in empty:
        if not settings.sources or source in settings.sources:
            yield f"{source} has no usable row; its part of the replay comes from the others"


# --- replay rows that are too much ----------------------------------------------------------------


def _drop_repeats(
    rows: dict[str, list[_Row]],
    threshold: float | None,
    folder: str | Path | None,
    funnel: Funnel,
    watch: Watch,
) -> None:
    """Takes out the replay rows whose questions came before.

    Rows of one source with just the same questions are one text: they stay, or go, together. Of
    those that have the same answers too, the first alone stays. The target may repeat itself.
    """
    with Repeats(threshold, folder=folder) as repeats:
        for source, found in rows.items():
            # Several answers to one question are one text to compare, and are kept together.
            groups: dict[str, list[_Row]] = {}
            for row in found:
                groups.setdefault(row.record.all_questions, []).append(row)
            # By the identity of a row: the reason and the earlier text.
            repeated: dict[int, tuple[str, str]] = {}
            named = ((group, text) for text, group in groups.items())
            for number, (group, twin) in enumerate(repeats.find_all(source, named), 1):
                watch(f"compare {source}", number, len(groups))
                # The text stood before: in the target, in an earlier source, or nearly so in this.
                if twin is not None:
                    repeated |= {id(row): (twin.reason, twin.text) for row in group}
                else:
                    repeated |= _same_answers(group)
            # The target is compared so that it is remembered, and loses nothing.
            if source != TARGET:
                rows[source] = [row for row in found if id(row) not in repeated]
                for row in found:
                    if id(row) in repeated:
                        reason, text = repeated[id(row)]
                        meta = {**row.record.meta, "twin": text}
                        funnel.reject(replace(row.record, meta=meta), reason)


def _same_answers(group: Sequence[_Row]) -> dict[int, tuple[str, str]]:
    """Of rows with the same questions those whose answers came before, with reason and text."""
    found: dict[int, tuple[str, str]] = {}
    ids: set[str] = set()
    for row in group:
        if row.record.id in ids:
            found[id(row)] = ("duplicate", row.record.all_questions)
        ids.add(row.record.id)
    return found


def _drop_surplus(rows: dict[str, list[_Row]], settings: Mix, funnel: Funnel) -> None:
    """Takes out the replay rows of a skill beyond ``max_rows``: the first of each source stay, in
    turns, as a source gives what it holds best first.
    """
    every = (
        (place, source)
        for source, found in rows.items()
        if source != TARGET
        for place in range(len(found))
    )
    seen: Counter[str] = Counter()
    surplus: dict[str, set[int]] = {}
    # The sort is stable: of the rows at one place, those of the earlier source come first.
    for place, source in sorted(every, key=lambda turn: turn[0]):
        record = rows[source][place].record
        skill = skill_of(record, settings.skill)
        seen[skill] += 1
        if skill in settings.max_rows and seen[skill] > settings.max_rows[skill]:
            surplus.setdefault(source, set()).add(place)
            funnel.reject(record, "over_max_rows")
    for source, places in surplus.items():
        rows[source] = [row for place, row in enumerate(rows[source]) if place not in places]
