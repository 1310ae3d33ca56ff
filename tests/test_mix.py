"""The share of replay is exact, every row comes as often as it should, and what is dropped is dropped for a reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replaykit.chat import Chat
from replaykit.checks.funnel import Funnel
from replaykit.errors import DataError
from replaykit.mix.build import Mixture, mix
from replaykit.mix.plan import TARGET, Slot, plan, shares
from replaykit.recipe import Mix, Train
from replaykit.records import Record, Source, dialogue, write_jsonl

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

Sizes = Sequence[int]
Steps = Sequence[Sequence[Slot]]

RATIOS = st.sampled_from([0.01, 0.05, 0.15, 0.5]) | st.floats(0.001, 0.95)
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=25)
POOLS = st.dictionaries(st.sampled_from(["select", "generate", "describe"]), SIZES, min_size=1)
ROWS = st.integers(1, 48)


def amounts(slots: Sequence[Slot], sizes: Mapping[str, Sizes]) -> tuple[int, int]:
    """What the replay among the slots counts for, and what all of them do."""
    counted = [(slot.source, sizes[slot.source][slot.row]) for slot in slots]
    return sum(size for source, size in counted if source != TARGET), sum(size for _, size in counted)


def missed(slots: Sequence[Slot], sizes: Mapping[str, Sizes], ratio: float) -> float:
    """How far the replay among the slots is from its part of them."""
    replay, total = amounts(slots, sizes)
    return abs(replay - ratio * total)


def flat(steps: Steps) -> list[Slot]:
    return [slot for step in steps for slot in step]


def drawn(steps: Steps, source: str, n: int) -> list[int]:
    """How often each of the n rows of a source comes."""
    counts = Counter(slot.row for slot in flat(steps) if slot.source == source)
    return [counts[row] for row in range(n)]


def even(counts: Sequence[int]) -> bool:
    return max(counts) - min(counts) <= 1


# --- the laws of the plan -------------------------------------------------------------------------------------------


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS, seed=st.integers(0, 9), epochs=st.integers(1, 3))
@example(target=[1000] * 40, pools={"select": [7] * 3}, ratio=0.05, batch_rows=32, seed=1, epochs=2)
@example(target=[3] * 40, pools={"select": [1000] * 3}, ratio=0.01, batch_rows=32, seed=1, epochs=1)
def test_every_step_has_its_share_of_replay_within_one_record(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, seed: int, epochs: int
) -> None:
    """|replay - ratio x total| <= (1 - ratio) x largest replay row + ratio x largest target row <= largest row.

    The law holds for any run of slots: a step, the end of the training, the whole; from the start on it is half of that.
    """
    steps = plan(target, pools, ratio=ratio, batch_rows=batch_rows, seed=seed, epochs=epochs)
    sizes, slots = {TARGET: target, **pools}, flat(steps)
    bound = (1 - ratio) * max(max(pool) for pool in pools.values()) + ratio * max(target) + 1e-6
    for run in [*steps, slots[-len(slots) // 5 :], slots[len(slots) // 3 :]]:
        assert missed(run, sizes, ratio) <= bound
    gains = [(slot.source != TARGET) * size - ratio * size for slot in slots for size in [sizes[slot.source][slot.row]]]
    assert max(map(abs, accumulate(gains))) <= bound / 2


@given(target=SIZES, pools=POOLS, ratio=RATIOS | st.just(0.0), batch_rows=ROWS, epochs=st.integers(1, 3))
def test_without_steps_every_target_row_comes_exactly_as_often_as_there_are_epochs(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, epochs: int
) -> None:
    steps = plan(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=epochs)
    assert drawn(steps, TARGET, len(target)) == [epochs] * len(target)
    half = len([slot for slot in flat(steps) if slot.source == TARGET]) // epochs
    first = [slot.row for slot in flat(steps) if slot.source == TARGET][:half]
    assert sorted(first) == list(range(len(target)))  # all of them before any comes again


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS, count=st.integers(1, 12))
def test_with_steps_there_are_exactly_so_many_slots_and_the_target_repeats_evenly(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, count: int
) -> None:
    try:
        steps = plan(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, steps=count)
    except DataError as error:
        assert "rows show only" in str(error)
        return
    assert [len(step) for step in steps] == [batch_rows] * count
    counts = drawn(steps, TARGET, len(target))
    assert even(counts)
    assert min(counts) >= 1


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS)
def test_replay_rows_repeat_evenly_and_sources_get_equal_amounts(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int
) -> None:
    steps = plan(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=3)
    for name, sizes in pools.items():
        assert even(drawn(steps, name, len(sizes)))
    used = [
        sum(n * size for n, size in zip(drawn(steps, name, len(sizes)), sizes, strict=True))
        for name, sizes in pools.items()
    ]
    assert max(used) - min(used) <= max(max(sizes) for sizes in pools.values())


@given(target=SIZES, pools=POOLS, ratio=RATIOS | st.just(0.0), batch_rows=ROWS, epochs=st.integers(1, 3))
def test_steps_are_of_one_size_and_never_larger_than_asked(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, epochs: int
) -> None:
    steps = plan(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=epochs)
    sizes = [len(step) for step in steps]
    assert even(sizes)
    assert 1 <= min(sizes) <= max(sizes) <= batch_rows
    assert len(steps) == -(-sum(sizes) // batch_rows)  # as few as that allows


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS, seed=st.integers(0, 2**63 - 1))
def test_the_order_depends_on_nothing_but_sizes_ratio_and_seed(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, seed: int
) -> None:
    settings: dict[str, Any] = {"batch_rows": batch_rows, "seed": seed}
    steps = plan(target, pools, ratio=ratio, **settings)
    assert plan(tuple(target), dict(pools), ratio=ratio, **settings) == steps
    alone = flat(plan(target, {}, ratio=0, **settings))
    assert [slot for slot in flat(steps) if slot.source == TARGET] == alone  # arms differ in replay, not in the target


def test_another_seed_gives_another_order() -> None:
    orders = [plan([1] * 50, {"select": [1] * 50}, ratio=0.5, batch_rows=10, seed=seed) for seed in range(20)]
    for source in (TARGET, "select"):
        assert len({tuple(slot.row for slot in flat(order) if slot.source == source) for order in orders}) == 20


def test_a_second_pass_comes_in_another_order() -> None:
    rows = [slot.row for slot in flat(plan([1] * 50, {}, ratio=0, batch_rows=10, seed=1, epochs=2))]
    assert rows[:50] != rows[50:]


@given(target=SIZES, pools=POOLS, batch_rows=ROWS)
def test_a_ratio_of_nothing_has_no_replay(target: list[int], pools: dict[str, list[int]], batch_rows: int) -> None:
    steps = plan(target, pools, ratio=0, batch_rows=batch_rows, seed=1)
    assert {slot.source for slot in flat(steps)} == {TARGET}
    assert shares(flat(steps), {TARGET: target}) == 0


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.15, 0.5])
@pytest.mark.parametrize("pool", [3, 300, 30_000])
def test_the_share_is_as_asked_for_whatever_the_size_of_the_pool(ratio: float, pool: int) -> None:
    sizes = {TARGET: [26] * 3000, "select": [9] * pool}
    steps = plan(sizes[TARGET], {"select": sizes["select"]}, ratio=ratio, batch_rows=64, seed=1)
    assert shares(flat(steps), sizes) == pytest.approx(ratio, abs=26 / 78_000)
    assert drawn(steps, TARGET, 3000) == [1] * 3000
    last = flat(steps[-len(steps) // 5 :])
    assert shares(last, sizes) == pytest.approx(ratio, abs=26 / amounts(last, sizes)[1])


def test_the_example_in_the_module_is_true() -> None:
    steps = plan([26] * 300, {"select": [9] * 50}, ratio=0.05, batch_rows=32, seed=1, steps=11)
    counts = [Counter(slot.source for slot in step) for step in steps]
    assert [(c[TARGET], c["select"]) for c in counts[:3]] == [(28, 4), (28, 4), (27, 5)]


def test_an_empty_pool_beside_another_is_left_out() -> None:
    steps = plan([5] * 20, {"select": [], "generate": [5] * 4}, ratio=0.5, batch_rows=8, seed=1)
    assert {slot.source for slot in flat(steps)} == {TARGET, "generate"}


@pytest.mark.parametrize(
    ("target", "pools", "changes", "says"),
    [
        ([], {"select": [1]}, {}, "the target has no row that can be trained on"),
        ([1], {}, {}, "there is none: run `replaykit generate` or `replaykit select` first, or ask for --ratio 0"),
        ([1], {"select": []}, {}, "replay at a ratio of 0.5 was asked for, but there is none"),
        (
            [1] * 100,
            {"select": [1]},
            {"steps": 2},
            r"2 steps of 8 rows show only 8 of the 100 target rows; raise train.steps",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_do(
    target: list[int], pools: dict[str, list[int]], changes: dict[str, int], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        plan(target, pools, ratio=0.5, batch_rows=8, seed=1, **changes)


# --- the mixture of records -----------------------------------------------------------------------------------------


def made(source: Source, *pairs: tuple[str, str | None]) -> list[Record]:
    return [Record(dialogue(prompt, answer), source, {"line": line}) for line, (prompt, answer) in enumerate(pairs, 1)]


SUMS = made(
    "target", *((f"What is {a} + {a * 3}?", f"{a} + {a * 3} = {a * 4}, so the answer is {a * 4}.") for a in range(60))
)
FACTS = made("generate", *((f"Name fact {n}", "word " * (1 + n % 7)) for n in range(25)))
OLD = made("select", *((f"Old question {n}", f"Old answer {n}") for n in range(25)))


def blend(chat: Chat, target: Sequence[Record] = SUMS, *, funnel: Funnel | None = None, **changes: Any) -> Mixture:
    """A mixture of the toy records with one or another setting changed."""
    given = {
        "replay": {"generate": FACTS, "select": OLD},
        "ratio": 0.15,
        "unit": "loss_tokens",
        "batch_rows": 8,
        "seed": 1,
    }
    given |= {"steps": None, "max_tokens": 200, "held_out": ()} | changes
    return mix(
        target,
        given["replay"],
        chat=chat,
        settings=Mix(ratio=given["ratio"], unit=given["unit"]),
        train=Train(batch_rows=given["batch_rows"], max_tokens=given["max_tokens"], steps=given["steps"]),
        seed=given["seed"],
        held_out=given["held_out"],
        funnel=funnel,
    )


def dropped(chat: Chat, target: Sequence[Record], **changes: Any) -> dict[str, list[str]]:
    """The prompts that were dropped, by reason."""
    rows: list[Mapping[str, Any]] = []
    funnel = Funnel(rows.append)
    mixture = blend(chat, target, funnel=funnel, **changes)
    assert funnel.kept == sum(len(kept) for kept in mixture.rows.values())
    assert funnel.made == funnel.kept + len(rows)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["reason"], []).append(row["messages"][0]["content"])
    return found


def test_a_replay_row_is_dropped_when_it_says_nothing_new_or_gives_a_test_away(chat: Chat) -> None:
    replay = {
        "generate": made("generate", ("Hello", "Hi"), ("what is 2 + 2", "4"), ("A test item", "x"), ("hello!", "Hey")),
        "select": made("select", ("HELLO", "Hi"), ("Hello there", "Hi"), (" a  TEST item", "x")),
    }
    target = made("target", ("What is 2 + 2", "4"), ("What is 2 + 2", "four"))
    found = dropped(chat, target, replay=replay, held_out=["A test item"])
    assert found == {"duplicate": ["what is 2 + 2", "HELLO"], "held_out": ["A test item", " a  TEST item"]}


def test_rows_that_cannot_be_learned_from_are_dropped(chat: Chat) -> None:
    target = made("target", ("2 + 2?", "4"), ("long", "word " * 300), ("no answer", None))
    replay = {"select": made("select", ("mute", None), ("old", "yes"), ("long too", "word " * 300))}
    assert dropped(chat, target, replay=replay) == {
        "too_long": ["long", "long too"],
        "no_answer": ["no answer", "mute"],
    }


def test_the_limit_is_of_all_tokens_of_a_row(chat: Chat) -> None:
    tokens = len(chat.example(SUMS[0]).tokens)
    assert dropped(chat, SUMS[:1], replay={}, ratio=0, max_tokens=tokens) == {}
    with pytest.raises(DataError, match="no row that can be trained on"):
        blend(chat, SUMS[:1], replay={}, ratio=0, max_tokens=tokens - 1)


def test_a_dropped_row_does_not_stand_in_the_way_of_a_good_one(chat: Chat) -> None:
    replay = {"generate": made("generate", ("Tell me", "word " * 300), ("Tell me", "yes"))}
    mixture = blend(chat, replay=replay)
    assert [record.answer for record in mixture.rows["generate"]] == ["yes"]


def test_target_rows_are_kept_although_they_are_alike_or_held_out(chat: Chat) -> None:
    assert dropped(chat, SUMS[:3] * 2, replay={}, ratio=0, held_out=[SUMS[0].prompt]) == {}


def test_plain_texts_are_not_compared_by_prompt(chat: Chat) -> None:
    texts = [Record(({"role": "text", "content": text},), "select") for text in ("One.", "Two.", "Three.")]
    assert dropped(chat, SUMS, replay={"select": texts}) == {}


@pytest.mark.parametrize("unit", ["loss_tokens", "tokens", "rows"])
@pytest.mark.parametrize("ratio", [0.05, 0.5])
def test_the_share_is_kept_in_the_unit_asked_for(chat: Chat, unit: str, ratio: float) -> None:
    mixture = blend(chat, unit=unit, ratio=ratio)
    sizes = mixture.sizes[unit]
    largest = max(size for rows in sizes.values() for size in rows)
    assert all(missed(step, sizes, ratio) <= largest for step in mixture.steps)
    total = amounts(flat(mixture.steps), sizes)[1]
    assert mixture.summary(ratio, unit)["share"][unit] == pytest.approx(ratio, abs=largest / total)


def test_the_sizes_are_those_of_the_examples(chat: Chat) -> None:
    mixture = blend(chat)
    for source, records in mixture.rows.items():
        examples = [chat.example(record) for record in records]
        assert mixture.sizes["loss_tokens"][source] == [sum(example.loss) for example in examples]
        assert mixture.sizes["tokens"][source] == [len(example.tokens) for example in examples]
        assert mixture.sizes["rows"][source] == [1] * len(records)


def test_the_summary_is_what_the_lines_add_up_to(chat: Chat) -> None:
    mixture = blend(chat)
    lines, summary = list(mixture.lines()), mixture.summary(0.15, "loss_tokens")
    examples = [(line["source"], chat.example(Record(line["messages"], line["source"]))) for line in lines]
    assert summary["steps"] == lines[-1]["step"] + 1 == len({line["step"] for line in lines})
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert summary["target_rows"] == sum(source == "target" for source, _ in examples) == 60
    assert summary["replay_rows"] == len(lines) - 60
    assert summary["available"] == {"target": 60, "generate": 25, "select": 25}
    for source, n in summary["available"].items():
        assert summary["repeats"][source] == round(sum(name == source for name, _ in examples) / n, 4)
    for unit in ("loss_tokens", "tokens", "rows"):
        sizes = [
            (source, {"loss_tokens": made.loss_tokens, "tokens": len(made.tokens), "rows": 1}[unit])
            for source, made in examples
        ]
        replay = sum(size for source, size in sizes if source != "target")
        assert summary["share"][unit] == round(replay / sum(size for _, size in sizes), 6)
    assert (summary["requested"], summary["unit"]) == (0.15, "loss_tokens")


def test_a_line_is_a_record_with_its_step(chat: Chat) -> None:
    mixture = blend(chat)
    known = {record.id: record.to_json() for record in [*SUMS, *FACTS, *OLD]}
    for line in mixture.lines():
        assert line == {"step": line["step"], **known[line["id"]]}


def test_the_same_seed_gives_the_same_bytes_twice(chat: Chat, tmp_path: Path) -> None:
    def written(name: str, **changes: Any) -> bytes:
        write_jsonl(tmp_path / name, blend(chat, **changes).lines())
        return (tmp_path / name).read_bytes()

    first = written("a.jsonl")
    assert written("b.jsonl") == first
    other = written("c.jsonl", seed=2)
    assert other != first
    ids = [Counter(json.loads(line)["id"] for line in text.splitlines()) for text in (first, other)]
    assert all(counts[record.id] == 1 for counts in ids for record in SUMS)


def test_steps_repeat_the_target_and_too_few_of_them_are_refused(chat: Chat) -> None:
    assert blend(chat, steps=20).summary(0.15, "loss_tokens")["repeats"]["target"] > 1
    with pytest.raises(DataError, match="3 steps of 8 rows show only .* of the 60 target rows"):
        blend(chat, steps=3)
