"""The mixture: target and replay rows, measured in tokens, checked, planned, and written in
training order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.duplicates import Repeats
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.errors import ChatError
from replaykit.mix.plan import TARGET, Slot, alone, deviation, plan, shares
from replaykit.mix.schedule import describe
from replaykit.records import Record
from replaykit.runs import Watch, unwatched
from replaykit.training_settings import Mix, Train

UNITS = ("loss_tokens", "tokens", "rows")


@dataclass(frozen=True)
class Mixture:
    """The usable rows of every source, what each weighs in loss tokens, tokens and rows, and the
    slots of every step.

    ``skills`` names the skill of each replay row, ``alone_tokens`` are those of the same training
    on the target alone, in as many slots where these are fixed, and ``notes`` are sentences that
    the user must read.
    """

    rows: Mapping[str, Sequence[Record]]
    sizes: Mapping[str, Mapping[str, Sequence[int]]]  # unit -> source -> size of each row
    steps: Sequence[Sequence[Slot]]
    skills: Mapping[str, Sequence[str]]
    alone_tokens: int
    notes: Sequence[str] = ()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The records in training order, each with the optimiser step that it belongs to."""
        for step, slots in enumerate(self.steps):
            for slot in slots:
                yield {"step": step, **self.rows[slot.source][slot.row].to_json()}

    def replay(self) -> Iterator[Record]:
        """All usable replay rows, whether the plan draws them or not."""
        return (
            record
            for source, records in self.rows.items()
            if source != TARGET
            for record in records
        )

    def summary(self, settings: Mix) -> dict[str, Any]:
        """What was asked for and what came out.

        ``share`` and ``last_share``, of the last fifth of the steps, are by unit. ``furthest_step``
        is how far a step is at most from its own share, in ``unit`` and as a part of the largest
        row: the plan promises at most 1. ``repeats`` is how often a row of each source comes, on
        average. ``skills`` is by skill how many replay rows come, and how many different ones.
        ``cost`` is all tokens over those that the target alone would take in as many slots or
        epochs. ``not_shown`` counts the target rows that never come.
        """
        slots = [slot for step in self.steps for slot in step]
        last = [slot for step in self.steps[-max(1, len(self.steps) // 5) :] for slot in step]
        used = Counter(slot.source for slot in slots)
        sizes = self.sizes[settings.unit]
        tokens = self.sizes["tokens"]
        off = max(deviation(step, sizes) for step in self.steps)
        largest = max(max(of) for of in sizes.values() if of)
        return {
            "requested": settings.ratio,
            "asked": _asked_for(settings),
            "unit": settings.unit,
            "budget": settings.budget,
            "schedule": settings.schedule.model_dump(exclude_none=True)
            if settings.schedule
            else None,
            "share": {unit: round(shares(slots, of), 6) for unit, of in self.sizes.items()},
            "last_share": {unit: round(shares(last, of), 6) for unit, of in self.sizes.items()},
            "furthest_step": {"amount": round(off, 3), "rows": round(off / largest, 4)},
            "steps": len(self.steps),
            "target_rows": used[TARGET],
            "replay_rows": len(slots) - used[TARGET],
            "available": {source: len(rows) for source, rows in self.rows.items()},
            "repeats": {
                source: round(used[source] / len(rows), 4)
                for source, rows in self.rows.items()
                if rows
            },
            "skills": self._by_skill(slots),
            "cost": round(
                sum(tokens[slot.source][slot.row] for slot in slots) / self.alone_tokens, 4
            ),
            "not_shown": len(self.rows[TARGET])
            - len({slot.row for slot in slots if slot.source == TARGET}),
            "notes": list(self.notes),
        }

    def _by_skill(self, slots: Sequence[Slot]) -> dict[str, dict[str, int]]:
        replayed = [(slot.source, slot.row) for slot in slots if slot.source != TARGET]
        rows = Counter(self.skills[source][row] for source, row in replayed)
        different = Counter(self.skills[source][row] for source, row in set(replayed))
        return {
            skill: {"rows": count, "different": different[skill]}
            for skill, count in rows.most_common()
        }


def mix(
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
    funnel = Funnel() if funnel is None else funnel
    usable = {
        source: _usable(source, records, chat, train.max_tokens, held_out, funnel, watch)
        for source, records in {TARGET: target, **replay}.items()
    }
    rows = {source: found.rows for source, found in usable.items()}
    _drop_repeats(rows, settings.near_duplicate, folder, funnel, watch)
    _drop_surplus(rows, settings, funnel)
    notes = _missing(target, usable[TARGET].dropped)
    notes += [
        f"{source} has no usable row; its part of the replay comes from the others"
        for source in replay
        if not rows[source] and source in (settings.sources or replay)
    ]
    records = {source: [row.record for row in found] for source, found in rows.items()}
    sizes = {
        unit: {source: [row.sizes[k] for row in found] for source, found in rows.items()}
        for k, unit in enumerate(UNITS)
    }
    skills = {
        source: [skill_of(record, settings.skill) for record in records[source]]
        for source in replay
    }
    measured = sizes[settings.unit]
    weights = {str(source): weight for source, weight in (settings.sources or {}).items()}
    steps = plan(
        measured[TARGET],
        {source: measured[source] for source in replay},
        ratio=settings.ratio,
        schedule=settings.schedule,
        budget=settings.budget,
        skills=skills,
        min_rows=settings.min_rows,
        weights=weights or None,
        batch_rows=train.batch_rows,
        epochs=train.epochs,
        steps=train.steps,
        seed=seed,
    )
    fixed = train.steps is not None or settings.budget == "replace"
    slots = sum(len(step) for step in steps) if fixed else train.epochs * len(records[TARGET])
    return Mixture(
        records, sizes, steps, skills, alone(sizes["tokens"][TARGET], slots, seed), notes
    )


def _asked_for(settings: Mix) -> str:
    share = f"{100 * settings.ratio:.4g} % of {settings.unit.replace('_', ' ')}"
    instead = "in place of target rows" if settings.budget == "replace" else ""
    return ", ".join(filter(None, [share, describe(settings.schedule), instead]))


def skill_of(record: Record, column: str) -> str:
    """The skill that a replay row keeps alive: what the column of its meta names, or else its
    source.
    """
    return str(record.meta.get(column, record.source))


@dataclass(frozen=True)
class _Row:
    record: Record
    sizes: tuple[int, int, int]  # in the order of UNITS


@dataclass
class _Usable:
    rows: list[_Row] = field(default_factory=list)
    dropped: list[tuple[str, Record]] = field(default_factory=list)  # with the reason


def _usable(
    source: str,
    records: Sequence[Record],
    chat: Chat,
    max_tokens: int,
    held_out: Decontamination | None,
    funnel: Funnel,
    watch: Watch,
) -> _Usable:
    """The rows of a source that can be learned from and give no test away. ChatError is raised for
    a target row only.
    """
    found = _Usable()
    for number, record in enumerate(records, 1):
        watch(f"read {source}", number, len(records))
        example = None
        reason = None
        if held_out is not None and (hit := held_out.check(record)):
            reason = hit.reason
            shown = {"match": hit.match, "test": hit.item, "evalset": hit.evalset}
            record = replace(record, meta={**record.meta, **shown})
        else:
            try:
                example = chat.example(record)
            except ChatError:
                if source == TARGET:
                    raise
                reason = "template_refuses"
        if example is not None and not example.loss_tokens:
            reason = "no_answer"
        elif example is not None and len(example.tokens) > max_tokens:
            reason = "too_long"
        if funnel.passes(record, reason) and example is not None:
            found.rows.append(_Row(record, (example.loss_tokens, len(example.tokens), 1)))
        else:
            found.dropped.append((str(reason), record))
    return found


def _missing(target: Sequence[Record], dropped: Sequence[tuple[str, Record]]) -> list[str]:
    """What became of target rows that are left out, in sentences."""
    why = {
        "no_answer": "have no answer to learn from",
        "too_long": "are longer than train.max_tokens",
    }
    held = Counter(record.meta["evalset"] for _, record in dropped if "evalset" in record.meta)
    says = (
        [
            f"hold an item of the evaluation "
            f"({', '.join(f'{name} {n:,}' for name, n in held.items())})"
        ]
        if held
        else []
    )
    counts = [held.total()] if held else []
    for reason, n in Counter(reason for reason, _ in dropped if reason in why).items():
        says.append(why[reason])
        counts.append(n)
    return [
        f"{n:,} of the {len(target):,} target rows {text} and are left out; dropped.jsonl has them"
        for n, text in zip(counts, says, strict=True)
    ]


def asked(record: Record) -> str:
    """What a record is compared by: all its questions, or a plain text itself."""
    questions = [message["content"] for message in record.messages if message["role"] == "user"]
    return "\n".join(questions) or record.messages[-1]["content"]


def _drop_repeats(
    rows: dict[str, list[_Row]],
    threshold: float | None,
    folder: str | Path | None,
    funnel: Funnel,
    watch: Watch,
) -> None:
    """Takes out the replay rows whose questions came before. Those of a source with just the same
    questions are one text: they stay, or go, together, but for those that have the same answers
    too.
    """
    with Repeats(threshold, folder=folder) as repeats:
        for source, found in rows.items():
            groups: dict[str, list[_Row]] = {}
            for row in found:
                groups.setdefault(asked(row.record), []).append(row)
            out: dict[int, tuple[str, str]] = {}  # by identity: the reason and the earlier text
            named = ((group, text) for text, group in groups.items())
            for number, (group, twin) in enumerate(repeats.find_all(source, named), 1):
                watch(f"compare {source}", number, len(groups))
                if twin is not None:
                    out |= {id(row): (twin.reason, twin.text) for row in group}
                    continue
                ids: set[str] = set()
                for row in group:
                    if row.record.id in ids:
                        out[id(row)] = "duplicate", asked(row.record)
                    ids.add(row.record.id)
            if source != TARGET:  # which may repeat itself
                for row in found:
                    if id(row) in out:
                        reason, text = out[id(row)]
                        funnel.reject(
                            replace(row.record, meta={**row.record.meta, "twin": text}), reason
                        )
                rows[source] = [row for row in found if id(row) not in out]


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
    turns = sorted(every, key=lambda turn: turn[0])  # of equals, in the order of the sources
    seen: Counter[str] = Counter()
    surplus: dict[str, set[int]] = {}
    for place, source in turns:
        skill = skill_of(rows[source][place].record, settings.skill)
        seen[skill] += 1
        if seen[skill] > settings.max_rows.get(skill, seen[skill]):
            surplus.setdefault(source, set()).add(place)
            funnel.reject(rows[source][place].record, "over_max_rows")
    for source, places in surplus.items():
        rows[source] = [row for place, row in enumerate(rows[source]) if place not in places]
