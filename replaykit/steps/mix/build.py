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
from typing import TypeVar

from replaykit.checks.duplicates import Repeats, exchange
from replaykit.checks.funnel import Funnel, FunnelCounts
from replaykit.checks.overlap import REASON as OVERLAP
from replaykit.checks.overlap import Decontaminated, Decontamination
from replaykit.data.planned import PlannedRow
from replaykit.data.record import TARGET, Record, column_of, emptiness, noted
from replaykit.errors import ChatError, DataError, LabelError, did_you_mean
from replaykit.model.chat import Chat, Example
from replaykit.recipe.mix import Mix, Unit
from replaykit.recipe.train import Train
from replaykit.runs import Watch, unwatched
from replaykit.steps.inputs import check_left
from replaykit.steps.mix.notes import of_the_plan
from replaykit.steps.mix.plan import Slot, alone, deviation, last_fifth, shares, slots_alone
from replaykit.steps.mix.replay import skill_of
from replaykit.steps.mix.result import Furthest, MixResult, SkillRows
from replaykit.steps.mix.schedule import describe, most
from replaykit.steps.mix.short_runs import fitting_plan

T = TypeVar("T")


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

    def of_rows(self, left: Mapping[str, Sequence[int]]) -> Mixture:
        """The same of these rows alone, by source and index; the steps count them already."""

        def part(values: Mapping[str, Sequence[T]]) -> dict[str, list[T]]:
            return {
                source: [of_source[row] for row in left[source]]
                for source, of_source in values.items()
            }

        sizes = {unit: part(of_unit) for unit, of_unit in self.sizes.items()}
        return replace(self, rows=part(self.rows), sizes=sizes, skills=part(self.skills))

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
        last = [slot for step in last_fifth(self.steps) for slot in step]
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
        off = max(deviation(step, sizes) for step in self.steps)
        # Of the rows that come: one that never does is no measure of how near they are.
        largest = max(sizes[slot.source][slot.row] for step in self.steps for slot in step)
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
    meta), that the chat template refuses (its words are the ``error`` in the row's meta), that has
    no answer, or an answer or a question that says nothing, that is longer than
    ``train.max_tokens``, or that the model cannot read (``Chat.unreadable``); and a replay row that
    repeats a row of the target or an earlier kept replay row in question and answer (from
    ``settings.near_duplicate`` on nearly so, with the earlier question as ``twin`` in its meta), or
    that is one more of its skill than ``settings.max_rows``. Several answers to one question stay.
    Texts are compared by a temporary file in ``folder``. Raises DataError where more than half of
    the target rows are refused or have no answer, where all replay is dropped that was given, and
    as ``plan`` does.
    """
    # The target comes first: replay that repeats it, or a source before its own, is dropped.
    reading = _Reading(chat, train.max_tokens, held_out, funnel or Funnel(), watch)
    given = {TARGET: target, **replay}
    usable = {source: reading.usable(source, records) for source, records in given.items()}
    _check_target(len(target), usable[TARGET])
    rows = {source: found.rows for source, found in usable.items()}
    lost = {source: Counter(reason for reason, _ in usable[source].dropped) for source in usable}
    for source, reason in (
        *_drop_repeats(rows, settings.near_duplicate, folder, reading.funnel, watch),
        *_drop_surplus(rows, settings, reading.funnel),
    ):
        lost[source][reason] += 1
    _check_any_left(rows, lost, settings)
    records = {source: [row.record for row in found] for source, found in rows.items()}
    sizes = _sizes(rows)
    skills = {name: [skill_of(row, settings.skill) for row in records[name]] for name in replay}
    # The plan knows no records, only what each counts for in the unit that was asked for.
    counted = sizes[settings.unit]
    steps, longest = fitting_plan(
        counted[TARGET],
        {source: counted[source] for source in replay},
        settings=settings,
        train=train,
        seed=seed,
        skills=skills,
    )
    whole = Mixture(
        rows=records,
        sizes=sizes,
        steps=steps,
        skills=skills,
        alone_tokens=alone(sizes["tokens"][TARGET], slots_alone(train, len(records[TARGET])), seed),
        notes=[
            *_left_out(len(target), usable[TARGET].dropped),
            *_without_rows([source for source in replay if not rows[source]], settings),
            *_unknown_skills([record for found in replay.values() for record in found], settings),
            *_rewritten([row for found in rows.values() for row in found]),
        ],
    )
    mixture = _planned(whole, longest, settings, train, reading.funnel)
    told = chat.not_learned(row.record for row in mixture.planned_rows())
    return replace(mixture, notes=[*mixture.notes, *told])


def _sizes(rows: Mapping[str, Sequence[_Row]]) -> dict[Unit, dict[str, list[int]]]:
    """What each row counts for, by unit and source."""
    return {
        "loss_tokens": {name: [row.loss_tokens for row in found] for name, found in rows.items()},
        "tokens": {name: [row.tokens for row in found] for name, found in rows.items()},
        "rows": {name: [1] * len(found) for name, found in rows.items()},
    }


def _planned(
    mixture: Mixture, longest: int | None, settings: Mix, train: Train, funnel: Funnel
) -> Mixture:
    """The mixture without the replay rows that are longer than the plan allows, as its slots count
    the rows; and with what is to be said of the plan.
    """
    notes = list(mixture.notes)
    if longest is not None:
        counted = mixture.sizes[settings.unit]
        left = {
            source: [row for row, size in enumerate(sizes) if source == TARGET or size <= longest]
            for source, sizes in counted.items()
        }
        for source, records in mixture.rows.items():
            stay = set(left[source])
            for row, record in enumerate(records):
                if row not in stay:
                    funnel.reject(record, "too_long_for_share")
        notes += _too_long_for_share(mixture.rows, left, longest, settings.unit)
        mixture = mixture.of_rows(left)
    notes += of_the_plan(
        mixture.steps,
        mixture.sizes[settings.unit],
        ratio=most(settings.schedule, settings.ratio),
        unit=settings.unit,
        target_rows=len(mixture.rows[TARGET]),
        train=train,
    )
    return replace(mixture, notes=notes)


def _too_long_for_share(
    rows: Mapping[str, Sequence[Record]],
    left: Mapping[str, Sequence[int]],
    longest: int,
    unit: Unit,
) -> Iterator[str]:
    """How many rows are left out because their run is too short for them, in sentences."""
    replay = [source for source in rows if source != TARGET]
    whole = sum(len(rows[source]) for source in replay)
    out = whole - sum(len(left[source]) for source in replay)
    yield (
        f"{out:,} of the {whole:,} replay rows have more than {longest:,} "
        f"{unit.replace('_', ' ')}, too many for the share of so short a run, and are left out; "
        f"--unit rows takes rows of any length"
    )
    for source in replay:
        if rows[source] and not left[source]:
            yield f"{source} has no shorter row; its part of the replay comes from the others"


def _in_words(settings: Mix) -> str:
    """``"20 % of loss tokens, linear to 40 %"``: the share that was asked for."""
    parts = [f"{100 * settings.ratio:.4g} % of {settings.unit.replace('_', ' ')}"]
    if settings.schedule is not None:
        parts.append(describe(settings.schedule))
    if settings.budget == "replace":
        parts.append("in place of target rows")
    return ", ".join(parts)


# --- rows that can be learned from ----------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A record, and how many tokens it has, with loss and in all."""

    record: Record
    loss_tokens: int
    tokens: int
    rewritten: int
    """Its answers without loss because the template shows them otherwise than the model wrote
    them."""


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
        """The rows that can be learned from and give no test away."""
        found = _Usable()
        for number, record in enumerate(records, 1):
            self.watch(f"read {source}", number, len(records))
            # A row that gives a test away is not tokenised: the template may even refuse it.
            example = None
            record, reason = self._test_in(record)
            if reason is None:
                record, example, reason = self._example(record)
            if self.funnel.passes(record, reason) and example is not None:
                row = _Row(record, example.loss_tokens, len(example.tokens), example.rewritten)
                found.rows.append(row)
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
        found = noted(record, match=hit.match, test=hit.item, evalset=hit.evalset)
        return found, hit.reason

    def _example(self, record: Record) -> tuple[Record, Example | None, str | None]:
        """The record, the same in tokens, and the reason where it cannot be learned from; of a
        refused one the error in its meta.
        """
        try:
            example = self.chat.example(record)
        except LabelError as error:
            return noted(record, error=str(error)), None, "label_refused"
        except ChatError as error:
            return noted(record, error=str(error)), None, "template_refuses"
        if not example.loss_tokens:
            return record, example, "no_answer"
        # The end of a turn carries loss, so an answer of nothing would be learned as silence.
        empty = emptiness(record)
        if empty is not None:
            return record, example, empty
        if len(example.tokens) > self.max_tokens:
            return record, example, "too_long"
        return record, example, self.chat.unreadable(example)


# Why nothing can be learned from a row, whatever the settings.
UNUSABLE = {
    "no_answer": "have no answer to learn from",
    "empty_answer": "have an answer that says nothing",
    "empty_prompt": "have a question that says nothing",
    "template_refuses": "are refused by the chat template",
    "label_refused": "have a label that is none, or a text that is too long for the model",
    "unknown_token": "hold a token that the model does not know",
}
TOO_LONG = {
    "too_long": "are longer than train.max_tokens",
    "too_long_for_model": "are longer than the model reads",
}


def _check_target(target_rows: int, found: _Usable) -> None:
    """Raises DataError where nothing can be learned from more than half of the target rows."""
    bad = [(reason, record) for reason, record in found.dropped if reason in UNUSABLE]
    if bad:
        first = f"{_shown(*bad[0])} ({bad[0][0]})"
        check_left("the target", len(bad), target_rows, "can be learned from", first)


def _shown(reason: str, record: Record) -> str:
    """The place of a dropped row, and of a refused one the words that say why."""
    place = f"row {record.meta.get('line', record.id)}"
    if reason not in ("template_refuses", "label_refused"):
        return place
    return f"{place}: {record.meta['error']}"


def _left_out(target_rows: int, dropped: Sequence[tuple[str, Record]]) -> Iterator[str]:
    """What became of target rows that are left out, in sentences."""
    held = Counter(record.meta["evalset"] for reason, record in dropped if reason == OVERLAP)
    why = UNUSABLE | TOO_LONG
    left_out: list[tuple[int, str]] = []
    if held:
        by_test = ", ".join(f"{name} {n:,}" for name, n in held.items())
        left_out.append((held.total(), f"hold an item of the evaluation ({by_test})"))
    for reason in dict.fromkeys(reason for reason, _ in dropped if reason in why):
        rows = [record for other, record in dropped if other == reason]
        left_out.append((len(rows), f"{why[reason]} (the first: {_shown(reason, rows[0])})"))
    for n, text in left_out:
        yield f"{n:,} of the {target_rows:,} target rows {text} and are left out"


def _rewritten(rows: Sequence[_Row]) -> Iterator[str]:
    """How many earlier answers carry no loss, in a sentence."""
    found = [row for row in rows if row.rewritten]
    if found:
        answers = sum(row.rewritten for row in found)
        yield (
            f"{answers:,} earlier answers of {len(found):,} rows carry no loss, since the chat "
            f"template shows them otherwise than the model writes them, such as without their "
            f"thoughts; one row for each answer, which ends with it, teaches them all"
        )


def _check_any_left(
    rows: Mapping[str, Sequence[_Row]], lost: Mapping[str, Counter[str]], settings: Mix
) -> None:
    """Raises DataError, with the reasons, where there were rows of the target, or of the replay
    that is asked for, and all of them were dropped.
    """
    if not rows[TARGET] and lost[TARGET]:
        raise DataError(
            f"the target has no row that can be trained on: of its {lost[TARGET].total():,} rows "
            f"all were dropped ({_counted(lost[TARGET])})"
        )
    ratio = most(settings.schedule, settings.ratio)
    wanted = [source for source in rows if source != TARGET and _weight(source, settings) > 0]
    dropped = sum((lost[source] for source in wanted), Counter[str]())
    if ratio > 0 and dropped and not any(rows[source] for source in wanted):
        raise DataError(
            f"replay at a ratio of {ratio:g} was asked for, and all {dropped.total():,} replay "
            f"rows were dropped ({_counted(dropped)}); give other rows, or ask for --ratio 0"
        )


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())


def _weight(source: str, settings: Mix) -> float:
    """What a source is weighted by; where the recipe names none, all are alike."""
    if settings.sources is None:
        return 1.0
    weights = {str(name): weight for name, weight in settings.sources.items()}
    return weights.get(source, 0.0)


def _unknown_skills(replay: Sequence[Record], settings: Mix) -> Iterator[str]:
    """Which names of skills, or of their column, are of no row that was given, in sentences."""
    if not replay:
        return
    column = settings.skill
    named = column != Mix.model_fields["skill"].default
    if named and all(column_of(record, column) is None for record in replay):
        names = {name for record in replay for name in record.meta}
        yield (
            f"mix.skill: no replay row has a column '{column}', so the skill of each row is its "
            f"source{did_you_mean(column, names)}"
        )
    skills = {skill_of(record, column) for record in replay}
    for skill in settings.max_rows:
        if skill not in skills:
            yield (
                f"mix.max_rows: no replay row is of the skill '{skill}', so nothing is capped by "
                f"it{did_you_mean(skill, skills)}"
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
) -> list[tuple[str, str]]:
    """Takes out the replay rows that came before: with alike questions and alike answers, all turns
    and the system message counted. Returns the source and the reason of each.

    Another answer to a question of the target or of another source is no repetition. The target
    may repeat itself.
    """
    dropped: list[tuple[str, str]] = []
    with Repeats(threshold, folder=folder) as repeats:
        for source, found in rows.items():
            kept: list[_Row] = []
            compared = repeats.find_all(source, ((row, exchange(row.record)) for row in found))
            for number, (row, twin) in enumerate(compared, 1):
                watch(f"compare {source}", number, len(found))
                # The target is compared so that it is remembered, and loses nothing.
                if twin is None or source == TARGET:
                    kept.append(row)
                else:
                    funnel.reject(noted(row.record, twin=twin.text), twin.reason)
                    dropped.append((source, twin.reason))
            rows[source] = kept
    return dropped


def _drop_surplus(
    rows: dict[str, list[_Row]], settings: Mix, funnel: Funnel
) -> list[tuple[str, str]]:
    """Takes out the replay rows of a skill beyond ``max_rows``: the first of each source stay, in
    turns, as a source gives what it holds best first. Returns the source and the reason of each.
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
    return [(source, "over_max_rows") for source, places in surplus.items() for _ in places]
