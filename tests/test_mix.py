"""The share of replay is exact, every row comes as often as it should, and what is dropped is dropped for a reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import pytest
from finished import generated, selected
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replaykit.checks.evalsets import EvalItem
from replaykit.checks.funnel import Funnel
from replaykit.checks.overlap import Decontamination
from replaykit.cli import app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import write_plan
from replaykit.data.record import TARGET, Record, Source, dialogue
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.mix import Mix, Schedule, Unit
from replaykit.recipe.train import Train
from replaykit.runs import read_manifest
from replaykit.steps.mix import step as mix_step
from replaykit.steps.mix.build import Mixture, build_mixture
from replaykit.steps.mix.plan import Slot, alone, plan, shares
from replaykit.steps.mix.result import MixResult
from replaykit.steps.step import Context, typed

# A share that comes to no row is refused, and drawing such sizes tests nothing.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
settings.load_profile("any machine")

Sizes = Sequence[int]
Steps = Sequence[Sequence[Slot]]

RATIOS = st.sampled_from([0.01, 0.05, 0.15, 0.5]) | st.floats(0.001, 0.95)
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=25)
POOLS = st.dictionaries(st.sampled_from(["select", "generate", "describe"]), SIZES, min_size=1)
ROWS = st.integers(1, 48)


def planned(
    target: Sizes,
    pools: Mapping[str, Sizes],
    *,
    batch_rows: int,
    seed: int = 1,
    epochs: int = 1,
    steps: int | None = None,
    skills: Mapping[str, Sequence[str]] | None = None,
    **mix: Any,
) -> list[list[Slot]]:
    """The plan under these keys of the recipe's mix and train."""
    sources = mix.pop("sources", None)
    # Three sources share here; a recipe has two.
    settings = Mix(**mix).model_copy(update={"sources": sources})
    train = Train(batch_rows=batch_rows, epochs=epochs, steps=steps)
    return plan(target, pools, settings=settings, train=train, seed=seed, skills=skills)


def drawn_or_assumed(target: Sizes, pools: Mapping[str, Sizes], **options: Any) -> list[list[Slot]]:
    """The plan, where the share comes to a row at all."""
    try:
        return planned(target, pools, **options)
    except DataError as error:
        assume("no replay row comes" not in str(error))
        raise


def amounts(slots: Sequence[Slot], sizes: Mapping[str, Sizes]) -> tuple[int, int]:
    """What the replay among the slots counts for, and what all of them do."""
    counted = [(slot.source, sizes[slot.source][slot.row]) for slot in slots]
    return sum(size for source, size in counted if source != TARGET), sum(
        size for _, size in counted
    )


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


@given(
    target=SIZES,
    pools=POOLS,
    ratio=RATIOS,
    batch_rows=ROWS,
    seed=st.integers(0, 9),
    epochs=st.integers(1, 3),
)
@example(target=[1000] * 40, pools={"select": [7] * 3}, ratio=0.05, batch_rows=32, seed=1, epochs=2)
@example(target=[3] * 40, pools={"select": [50] * 3}, ratio=0.2, batch_rows=32, seed=1, epochs=1)
def test_every_step_has_its_share_of_replay_within_one_record(
    target: list[int],
    pools: dict[str, list[int]],
    ratio: float,
    batch_rows: int,
    seed: int,
    epochs: int,
) -> None:
    """|replay - ratio x total| <= (1 - ratio) x largest replay row + ratio x largest target row <= largest row.

    The law holds for any run of slots: a step, the end of the training, the whole; from the start on it is half of that.
    """
    steps = drawn_or_assumed(
        target, pools, ratio=ratio, batch_rows=batch_rows, seed=seed, epochs=epochs
    )
    sizes, slots = {TARGET: target, **pools}, flat(steps)
    bound = (1 - ratio) * max(max(pool) for pool in pools.values()) + ratio * max(target) + 1e-6
    for run in [*steps, slots[-len(slots) // 5 :], slots[len(slots) // 3 :]]:
        assert missed(run, sizes, ratio) <= bound
    gains = [
        (slot.source != TARGET) * size - ratio * size
        for slot in slots
        for size in [sizes[slot.source][slot.row]]
    ]
    assert max(map(abs, accumulate(gains))) <= bound / 2


@given(
    target=SIZES,
    pools=POOLS,
    ratio=RATIOS | st.just(0.0),
    batch_rows=ROWS,
    epochs=st.integers(1, 3),
)
@pytest.mark.slow
def test_without_steps_every_target_row_comes_exactly_as_often_as_there_are_epochs(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, epochs: int
) -> None:
    steps = drawn_or_assumed(
        target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=epochs
    )
    assert drawn(steps, TARGET, len(target)) == [epochs] * len(target)
    half = len([slot for slot in flat(steps) if slot.source == TARGET]) // epochs
    first = [slot.row for slot in flat(steps) if slot.source == TARGET][:half]
    assert sorted(first) == list(range(len(target)))  # all of them before any comes again


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS, count=st.integers(1, 12))
def test_with_steps_there_are_exactly_so_many_slots_and_the_target_repeats_evenly(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, count: int
) -> None:
    steps = drawn_or_assumed(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, steps=count)
    assert [len(step) for step in steps] == [batch_rows] * count
    assert even(drawn(steps, TARGET, len(target)))


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS)
def test_replay_rows_repeat_evenly_and_sources_get_equal_amounts(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int
) -> None:
    steps = drawn_or_assumed(target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=3)
    for name, sizes in pools.items():
        assert even(drawn(steps, name, len(sizes)))
    used = [
        sum(n * size for n, size in zip(drawn(steps, name, len(sizes)), sizes, strict=True))
        for name, sizes in pools.items()
    ]
    assert max(used) - min(used) <= max(max(sizes) for sizes in pools.values())


@given(
    target=SIZES,
    pools=POOLS,
    ratio=RATIOS | st.just(0.0),
    batch_rows=ROWS,
    epochs=st.integers(1, 3),
)
def test_steps_are_of_one_size_and_never_larger_than_asked(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, epochs: int
) -> None:
    steps = drawn_or_assumed(
        target, pools, ratio=ratio, batch_rows=batch_rows, seed=1, epochs=epochs
    )
    sizes = [len(step) for step in steps]
    assert even(sizes)
    assert 1 <= min(sizes) <= max(sizes) <= batch_rows
    assert len(steps) == -(-sum(sizes) // batch_rows)  # as few as that allows


@given(target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS, seed=st.integers(0, 2**63 - 1))
def test_the_order_depends_on_nothing_but_sizes_ratio_and_seed(
    target: list[int], pools: dict[str, list[int]], ratio: float, batch_rows: int, seed: int
) -> None:
    settings: dict[str, Any] = {"batch_rows": batch_rows, "seed": seed}
    steps = drawn_or_assumed(target, pools, ratio=ratio, **settings)
    assert drawn_or_assumed(tuple(target), dict(pools), ratio=ratio, **settings) == steps
    alone = flat(drawn_or_assumed(target, {}, ratio=0, **settings))
    assert [
        slot for slot in flat(steps) if slot.source == TARGET
    ] == alone  # arms differ in replay, not in the target


def test_another_seed_gives_another_order() -> None:
    orders = [
        planned([1] * 50, {"select": [1] * 50}, ratio=0.5, batch_rows=10, seed=seed)
        for seed in range(20)
    ]
    for source in (TARGET, "select"):
        assert (
            len(
                {
                    tuple(slot.row for slot in flat(order) if slot.source == source)
                    for order in orders
                }
            )
            == 20
        )


def test_a_second_pass_comes_in_another_order() -> None:
    rows = [
        slot.row for slot in flat(planned([1] * 50, {}, ratio=0, batch_rows=10, seed=1, epochs=2))
    ]
    assert rows[:50] != rows[50:]


@given(target=SIZES, pools=POOLS, batch_rows=ROWS)
def test_a_ratio_of_nothing_has_no_replay(
    target: list[int], pools: dict[str, list[int]], batch_rows: int
) -> None:
    steps = drawn_or_assumed(target, pools, ratio=0, batch_rows=batch_rows, seed=1)
    assert {slot.source for slot in flat(steps)} == {TARGET}
    assert shares(flat(steps), {TARGET: target}) == 0


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.15, 0.5])
@pytest.mark.parametrize("pool", [3, 300, 30_000])
def test_the_share_is_as_asked_for_whatever_the_size_of_the_pool(ratio: float, pool: int) -> None:
    sizes = {TARGET: [26] * 3000, "select": [9] * pool}
    steps = planned(sizes[TARGET], {"select": sizes["select"]}, ratio=ratio, batch_rows=64, seed=1)
    assert shares(flat(steps), sizes) == pytest.approx(ratio, abs=26 / 78_000)
    assert drawn(steps, TARGET, 3000) == [1] * 3000
    last = flat(steps[-len(steps) // 5 :])
    assert shares(last, sizes) == pytest.approx(ratio, abs=26 / amounts(last, sizes)[1])


def test_the_example_in_the_module_is_true() -> None:
    steps = planned([26] * 300, {"select": [9] * 50}, ratio=0.05, batch_rows=32, seed=1, steps=11)
    counts = [Counter(slot.source for slot in step) for step in steps]
    assert [(c[TARGET], c["select"]) for c in counts[:3]] == [(28, 4), (28, 4), (27, 5)]


def test_an_empty_pool_beside_another_is_left_out() -> None:
    steps = planned([5] * 20, {"select": [], "generate": [5] * 4}, ratio=0.5, batch_rows=8, seed=1)
    assert {slot.source for slot in flat(steps)} == {TARGET, "generate"}


@pytest.mark.parametrize(
    ("target", "pools", "changes", "says"),
    [
        ([], {"select": [1]}, {}, "the target has no row that can be trained on"),
        (
            [1],
            {},
            {},
            "there is none: run `replaykit generate` or `replaykit select` first, or ask for --ratio 0",
        ),
        ([1], {"select": []}, {}, "replay at a ratio of 0.5 was asked for, but there is none"),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_do(
    target: list[int], pools: dict[str, list[int]], changes: dict[str, int], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        planned(target, pools, ratio=0.5, batch_rows=8, seed=1, **changes)


# --- the mixture of records -----------------------------------------------------------------------------------------


def made(source: Source, *pairs: tuple[str, str | None]) -> list[Record]:
    return [
        Record(dialogue(prompt, answer), source, {"line": line})
        for line, (prompt, answer) in enumerate(pairs, 1)
    ]


SUMS = made(
    "target",
    *(
        (f"What is {a} + {a * 3}?", f"{a} + {a * 3} = {a * 4}, so the answer is {a * 4}.")
        for a in range(60)
    ),
)
FACTS = made("generate", *((f"Name fact {n}", "word " * (1 + n % 7)) for n in range(25)))
OLD = made("select", *((f"Old question {n}", f"Old answer {n}") for n in range(25)))


def blend(
    chat: Chat, target: Sequence[Record] = SUMS, *, funnel: Funnel | None = None, **changes: Any
) -> Mixture:
    """A mixture of the toy records with one or another setting changed."""
    given = {
        "replay": {"generate": FACTS, "select": OLD},
        "ratio": 0.15,
        "unit": "loss_tokens",
        "batch_rows": 8,
        "seed": 1,
    }
    given |= {"steps": None, "max_tokens": 200, "held_out": (), "mix": {}} | changes
    tests = [EvalItem(str(line), prompt) for line, prompt in enumerate(given["held_out"], 1)]
    return build_mixture(
        target,
        given["replay"],
        chat=chat,
        settings=Mix(
            **{
                "near_duplicate": None,
                "ratio": given["ratio"],
                "unit": given["unit"],
                **given["mix"],
            }
        ),
        train=Train(
            batch_rows=given["batch_rows"], max_tokens=given["max_tokens"], steps=given["steps"]
        ),
        seed=given["seed"],
        held_out=Decontamination({"sums": tests}) if tests else None,
        funnel=funnel,
    )


def result_of(mixture: Mixture, **mix: Any) -> MixResult:
    """What the step says of a mixture that was made by these settings."""
    return mixture.result(
        Mix(**mix), sha256="", sources={}, funnel=Funnel().result(), decontamination=None
    )


def lines_of(mixture: Mixture, path: Path) -> list[dict[str, Any]]:
    """The lines that the step writes of a mixture."""
    write_plan(path, mixture.planned_rows())
    return [json.loads(line) for line in path.read_text().splitlines()]


def dropped_rows(chat: Chat, target: Sequence[Record], **changes: Any) -> list[Mapping[str, Any]]:
    """The rows that were dropped, as dropped.jsonl has them; as rows, a row of replay comes even
    beside one of the target.
    """
    changes = {"unit": "rows", "ratio": 0.5} | changes
    rows: list[Mapping[str, Any]] = []
    funnel = Funnel(rows.append)
    mixture = blend(chat, target, funnel=funnel, **changes)
    assert funnel.kept == sum(len(kept) for kept in mixture.rows.values())
    assert funnel.made == funnel.kept + len(rows)
    return rows


def dropped(chat: Chat, target: Sequence[Record], **changes: Any) -> dict[str, list[str]]:
    """The prompts that were dropped, by reason."""
    rows = dropped_rows(chat, target, **changes)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["reason"], []).append(row["messages"][0]["content"])
    return found


def test_a_replay_row_is_dropped_when_it_says_nothing_new_or_gives_a_test_away(chat: Chat) -> None:
    replay = {
        "generate": made(
            "generate",
            ("Hello", "Hi"),
            ("What is  2 + 2", "4"),
            ("What is 2 + 2", "It is even."),
            ("A test item", "x"),
            ("hello!", "Hey"),
        ),
        "select": made(
            "select", ("Hello ", "Hi"), ("Hello", "Hey"), ("HELLO", "Hi"), (" a  TEST item", "x")
        ),
    }
    target = made("target", ("What is 2 + 2", "4"), ("What is 2 + 2", "four"))
    found = dropped(chat, target, replay=replay, held_out=["A test item"])
    assert found == {
        "target_duplicate": ["What is  2 + 2"],
        "generate_duplicate": ["Hello "],
        "eval_overlap": ["A test item", " a  TEST item"],
    }


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


def test_target_rows_are_kept_although_they_are_alike(chat: Chat) -> None:
    assert dropped(chat, SUMS[:3] * 2, replay={}, ratio=0, mix={"near_duplicate": 0.5}) == {}


def test_a_target_row_that_holds_a_test_item_is_left_out_and_said_to_be(chat: Chat) -> None:
    rows = dropped_rows(chat, SUMS[:3] * 2, replay={}, ratio=0, held_out=["a test", SUMS[1].prompt])
    assert [row["id"] for row in rows] == [SUMS[1].id] * 2
    assert all(row["reason"] == "eval_overlap" for row in rows)
    assert rows[0]["meta"] == {"line": 2, "match": SUMS[1].prompt, "test": "2", "evalset": "sums"}
    mixture = blend(chat, SUMS[:3] * 2, replay={}, ratio=0, held_out=[SUMS[1].prompt])
    (note,) = result_of(mixture, ratio=0).notes
    assert note.startswith(
        "2 of the 6 target rows hold an item of the evaluation (sums 2) and are left out"
    )


def test_target_rows_that_cannot_be_learned_from_are_said_to_be_left_out(chat: Chat) -> None:
    target = made(
        "target", ("2 + 2?", "4"), ("long", "word " * 300), ("mute", None), ("mute too", None)
    )
    assert blend(chat, target, replay={}, ratio=0).notes == [
        "1 of the 4 target rows are longer than train.max_tokens (the first: row 2) and are left out",
        "2 of the 4 target rows have no answer to learn from (the first: row 3) and are left out",
    ]


LONG = "Please write down for me in one short sentence what the weather is like in the city of"


def test_replay_rows_that_nearly_repeat_the_target_or_another_are_dropped_with_their_twin(
    chat: Chat,
) -> None:
    target = made("target", (f"{LONG} Berlin", "Rain"))
    replay = {
        "generate": made(
            "generate",
            (f"{LONG} Berlin!", "Rain"),
            (f"{LONG} Berlin!", "Sun"),
            ("How tall is an oak tree in the forest?", "20 m"),
        ),
        "select": made(
            "select",
            ("How tall is an oak tree in the forest??", "20 m"),
            ("How tall is an oak tree in the forest?", "30 m"),
            ("Something else", "Yes"),
        ),
    }
    rows = dropped_rows(chat, target, replay=replay, mix={"near_duplicate": 0.8})
    assert [(row["reason"], row["meta"]["twin"]) for row in rows] == [
        ("near_target_duplicate", f"{LONG} Berlin"),
        ("near_generate_duplicate", "How tall is an oak tree in the forest?"),
    ]
    assert dropped(chat, target, replay=replay) == {}  # near_duplicate: null


TRANSLATE = "Translate: The house is old and stands on a hill."


@pytest.mark.parametrize("near_duplicate", [None, 0.9])
def test_a_question_of_the_target_with_another_answer_or_task_stays(
    chat: Chat, near_duplicate: float | None
) -> None:
    target = made("target", (TRANSLATE, "Das Haus ist alt und steht auf einem Berg."))
    pairs = [
        (TRANSLATE, "La maison est vieille et se trouve sur une colline.", None),
        (TRANSLATE, "Old house, hill.", None),
        (TRANSLATE, "Das Haus ist alt und steht auf einem Berg.", "Say it in German."),
        (TRANSLATE, "Das Haus ist alt und steht auf einem Berg.", None),
    ]
    replay = [
        Record(dialogue(question, answer, system=system), "select")
        for question, answer, system in pairs
    ]
    rows = dropped_rows(
        chat, target, replay={"select": replay}, mix={"near_duplicate": near_duplicate}
    )
    assert [(row["reason"], row["id"]) for row in rows] == [("target_duplicate", replay[3].id)]


def test_several_answers_to_one_question_stay_but_not_the_same_answer_twice(chat: Chat) -> None:
    replay = {
        "generate": made(
            "generate", ("Name a tree", "Oak"), ("Name a tree", "Elm"), ("Name a tree", "Oak")
        )
    }
    rows = dropped_rows(chat, SUMS, replay=replay, mix={"near_duplicate": 0.9})
    assert [(row["reason"], row["messages"][1]["content"]) for row in rows] == [
        ("duplicate", "Oak")
    ]
    both = {
        "generate": replay["generate"],
        "select": made("select", ("Name a tree", "Ash"), ("Name a tree", "Elm")),
    }
    assert dropped(chat, SUMS, replay=both) == {
        "duplicate": ["Name a tree"],
        "generate_duplicate": ["Name a tree"],
    }


def test_a_conversation_is_compared_by_all_its_turns(chat: Chat) -> None:
    def talk(first: str) -> Record:
        turns = ((first, "Well."), ("Go on.", "So it is."))
        return Record(tuple(message for turn in turns for message in dialogue(*turn)), "generate")

    replay = {
        "generate": [talk("Tell me of rain"), talk("Tell me of snow"), talk("Tell me of  rain")]
    }
    assert dropped(chat, SUMS, replay=replay) == {"duplicate": ["Tell me of  rain"]}


def test_a_skill_has_at_most_so_many_different_rows_the_first_of_each_source(chat: Chat) -> None:
    def skilled(source: Source, n: int) -> list[Record]:
        pairs = ((f"{source} {skill} {k}", "yes") for k in range(n) for skill in ("json", "news"))
        return [replace(row, meta={"skill": row.prompt.split()[1]}) for row in made(source, *pairs)]

    replay = {"select": skilled("select", 6), "generate": skilled("generate", 6)}
    found = dropped(chat, SUMS, replay=replay, mix={"max_rows": {"json": 5}})
    assert found == {
        "over_max_rows": ["generate json 2", "select json 3", "generate json 3", "select json 4", "generate json 4",
                          "select json 5", "generate json 5"]
    }  # fmt: skip
    mixture = blend(chat, replay=replay, ratio=0.5, mix={"max_rows": {"json": 5}})
    skills = result_of(mixture, ratio=0.5).skills
    assert skills["json"].different == 5
    assert skills["news"].different == 12


def test_a_row_without_a_skill_is_of_the_skill_of_its_source(chat: Chat) -> None:
    mixture = blend(chat, mix={"max_rows": {"generate": 4}})
    assert set(result_of(mixture, ratio=0.15).skills) == {"generate", "select"}
    assert len(mixture.rows["generate"]) == 4


def test_plain_texts_are_not_compared_by_prompt(chat: Chat) -> None:
    texts = [
        Record(({"role": "text", "content": text},), "select")
        for text in ("One.", "Two.", "Three.")
    ]
    assert dropped(chat, SUMS, replay={"select": texts}) == {}


@pytest.mark.parametrize("unit", ["loss_tokens", "tokens", "rows"])
@pytest.mark.parametrize("ratio", [0.05, 0.5])
def test_the_share_is_kept_in_the_unit_asked_for(chat: Chat, unit: Unit, ratio: float) -> None:
    mixture = blend(chat, unit=unit, ratio=ratio)
    sizes = mixture.sizes[unit]
    largest = max(size for rows in sizes.values() for size in rows)
    assert all(missed(step, sizes, ratio) <= largest for step in mixture.steps)
    total = amounts(flat(mixture.steps), sizes)[1]
    share = result_of(mixture, ratio=ratio, unit=unit).share[unit]
    assert share == pytest.approx(ratio, abs=largest / total)


def test_the_sizes_are_those_of_the_examples(chat: Chat) -> None:
    mixture = blend(chat)
    for source, records in mixture.rows.items():
        examples = [chat.example(record) for record in records]
        assert mixture.sizes["loss_tokens"][source] == [sum(example.loss) for example in examples]
        assert mixture.sizes["tokens"][source] == [len(example.tokens) for example in examples]
        assert mixture.sizes["rows"][source] == [1] * len(records)


def test_the_result_is_what_the_lines_add_up_to(chat: Chat, tmp_path: Path) -> None:
    mixture = blend(chat)
    lines = lines_of(mixture, tmp_path / "rows.jsonl")
    result = result_of(mixture, ratio=0.15, unit="loss_tokens")
    examples = [
        (line["source"], chat.example(Record(line["messages"], line["source"]))) for line in lines
    ]
    assert result.steps == lines[-1]["step"] + 1 == len({line["step"] for line in lines})
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert result.target_rows == sum(source == "target" for source, _ in examples) == 60
    assert result.replay_rows == len(lines) - 60
    assert result.available == {"target": 60, "generate": 25, "select": 25}
    for source, n in result.available.items():
        assert result.repeats[source] == round(sum(name == source for name, _ in examples) / n, 4)
    for unit in get_args(Unit):
        sizes = [
            (source, {"loss_tokens": made.loss_tokens, "tokens": len(made.tokens), "rows": 1}[unit])
            for source, made in examples
        ]
        replay = sum(size for source, size in sizes if source != "target")
        assert result.share[unit] == round(replay / sum(size for _, size in sizes), 6)
    assert (result.ratio, result.unit) == (0.15, "loss_tokens")


def test_a_line_is_a_record_with_its_step(chat: Chat, tmp_path: Path) -> None:
    lines = lines_of(blend(chat), tmp_path / "rows.jsonl")
    assert lines
    known = {record.id: record.to_json() for record in [*SUMS, *FACTS, *OLD]}
    for line in lines:
        assert line == {"step": line["step"], **known[line["id"]]}


def test_the_same_seed_gives_the_same_bytes_twice(chat: Chat, tmp_path: Path) -> None:
    def written(name: str, **changes: Any) -> bytes:
        write_plan(tmp_path / name, blend(chat, **changes).planned_rows())
        return (tmp_path / name).read_bytes()

    first = written("a.jsonl")
    assert written("b.jsonl") == first
    other = written("c.jsonl", seed=2)
    assert other != first
    ids = [Counter(json.loads(line)["id"] for line in text.splitlines()) for text in (first, other)]
    assert all(counts[record.id] == 1 for counts in ids for record in SUMS)


def test_steps_repeat_the_target_or_leave_rows_out_and_say_so(chat: Chat) -> None:
    assert result_of(blend(chat, steps=20), ratio=0.15).repeats["target"] > 1
    found = result_of(blend(chat, steps=3, ratio=0.3), ratio=0.3)
    assert found.target_rows + found.replay_rows == 24
    assert found.not_shown == 60 - found.target_rows
    said = f"{found.not_shown} of the 60 target rows are not shown in 3 steps of 8 rows"
    assert found.notes[0].startswith(said)


# --- budgets, weights, floors ---------------------------------------------------------------------------------------


@given(
    target=SIZES,
    pools=POOLS,
    ratio=RATIOS,
    batch_rows=ROWS,
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_the_budget_replace_has_as_many_slots_as_the_target_alone_and_the_same_shares(
    target: list[int],
    pools: dict[str, list[int]],
    ratio: float,
    batch_rows: int,
    epochs: int,
    seed: int,
) -> None:
    steps = drawn_or_assumed(
        target,
        pools,
        ratio=ratio,
        batch_rows=batch_rows,
        seed=seed,
        epochs=epochs,
        budget="replace",
    )
    assert len(flat(steps)) == epochs * len(target)
    assert even(drawn(steps, TARGET, len(target)))
    sizes = {TARGET: target, **pools}
    bound = (1 - ratio) * max(max(pool) for pool in pools.values()) + ratio * max(target) + 1e-6
    assert all(missed(step, sizes, ratio) <= bound for step in steps)


def test_the_target_rows_that_the_budget_leaves_no_room_for_are_counted(chat: Chat) -> None:
    mixture = blend(chat, ratio=0.5, unit="rows", mix={"budget": "replace"})
    result = result_of(mixture, ratio=0.5, unit="rows")
    assert (result.target_rows, result.replay_rows, result.not_shown) == (30, 30, 30)
    assert result_of(blend(chat, ratio=0.5), ratio=0.5).not_shown == 0


def test_with_steps_the_budget_replace_may_leave_target_rows_out() -> None:
    steps = planned(
        [1] * 100, {"select": [1]}, ratio=0.5, batch_rows=8, seed=1, steps=2, budget="replace"
    )
    assert [len(step) for step in steps] == [8, 8]


@given(
    target=SIZES, pools=POOLS, ratio=RATIOS, batch_rows=ROWS,
    parts=st.lists(st.floats(0.05, 10), min_size=3, max_size=3), seed=st.integers(0, 9),
)  # fmt: skip
def test_sources_share_by_their_weights_to_within_one_row_each(
    target: list[int],
    pools: dict[str, list[int]],
    ratio: float,
    batch_rows: int,
    parts: list[float],
    seed: int,
) -> None:
    weights = dict(zip(("select", "generate", "describe"), parts, strict=True))
    steps = drawn_or_assumed(
        target, pools, ratio=ratio, batch_rows=batch_rows, seed=seed, epochs=3, sources=weights
    )
    slots = [slot for slot in flat(steps) if slot.source != TARGET]
    whole = sum(weights[name] for name in pools)
    largest = max(max(pool) for pool in pools.values())
    counted = dict.fromkeys(pools, 0)
    for slot in slots:  # at any time, not at the end alone
        counted[slot.source] += pools[slot.source][slot.row]
        total = sum(counted.values())
        for name, amount in counted.items():
            assert (
                -(len(pools) - 1) * largest - 1e-6
                <= amount - total * weights[name] / whole
                <= largest + 1e-6
            )
    for name, sizes in pools.items():
        rows = [slot.row for slot in slots if slot.source == name]
        assert sorted(rows[: len(sizes)]) == sorted(set(rows))  # none again before all were drawn
        assert even(drawn(steps, name, len(sizes)))


SKILLS = st.lists(st.sampled_from(["json", "news", "sums"]), min_size=5, max_size=40)


SKILLED = st.dictionaries(st.sampled_from(["select", "generate"]), SKILLS, min_size=1)
TARGETS = st.lists(st.integers(1, 60), min_size=10, max_size=60)


@given(
    skills=SKILLED,
    data=st.data(),
    target=TARGETS,
    ratio=st.floats(0.05, 0.9),
    seed=st.integers(0, 9),
)
def test_floors_hold_or_the_plan_says_that_it_is_too_short(
    skills: dict[str, list[str]], data: st.DataObject, target: list[int], ratio: float, seed: int
) -> None:
    there = Counter(skill for names in skills.values() for skill in names)
    floors = {skill: data.draw(st.integers(1, n)) for skill, n in there.items()}
    pools = {source: [10] * len(names) for source, names in skills.items()}
    options: dict[str, Any] = {"ratio": ratio, "batch_rows": 8, "seed": seed}
    free = drawn_or_assumed(target, pools, **options)
    try:
        steps = planned(target, pools, **options, skills=skills, min_rows=floors)
    except DataError as error:
        assert "too short for its floors" in str(error)
        if len(skills) == 1:  # then no weight is in the way, and it is too short indeed
            assert sum(floors.values()) > sum(slot.source != TARGET for slot in flat(free))
        return
    shown = Counter(
        skills[source][row]
        for source, row in {(s.source, s.row) for s in flat(steps) if s.source != TARGET}
    )
    assert all(shown[skill] >= n for skill, n in floors.items())
    assert [[slot.source for slot in step] for step in steps] == [
        [slot.source for slot in step] for step in free
    ]
    for source, names in skills.items():
        assert even(drawn(steps, source, len(names)))


def test_the_rows_of_a_floor_are_spread_over_the_training() -> None:
    skills = {"select": ["news"] * 1000 + ["json"] * 20}
    steps = planned([10] * 1000, {"select": [10] * 1020}, ratio=0.1, batch_rows=10, seed=1, skills=skills,
                 min_rows={"json": 20})  # fmt: skip
    places = [
        k
        for k, step in enumerate(steps)
        for slot in step
        if slot.source == "select" and slot.row >= 1000
    ]
    assert len(places) == 20
    quarters = Counter(4 * place // len(steps) for place in places)
    assert all(4 <= quarters[quarter] <= 6 for quarter in range(4))


@pytest.mark.parametrize(
    ("floors", "says"),
    [
        (
            {"json": 5},
            "mix.min_rows asks for 5 rows of 'json', but 3 are there; .*skills of the replay rows: json, news",
        ),
        ({"sums": 1}, "asks for 1 rows of 'sums', but 0 are there"),
        (
            {"news": 9, "json": 3},
            "the plan has 5 replay rows, which is too short for its floors: only .* of the 9 of 'news'",
        ),
    ],
)
def test_floors_that_cannot_be_kept_are_refused_with_the_numbers(
    floors: dict[str, int], says: str
) -> None:
    skills = {"select": ["json"] * 3 + ["news"] * 20}
    with pytest.raises(DataError, match=says):
        planned(
            [1] * 20,
            {"select": [1] * 23},
            ratio=0.2,
            batch_rows=8,
            seed=1,
            skills=skills,
            min_rows=floors,
        )


def test_what_the_target_alone_takes_is_counted_in_the_order_of_the_plan() -> None:
    target = list(range(1, 41))
    for slots in (0, 1, 39, 40, 41, 100):
        rows = flat(planned(target, {}, ratio=0, batch_rows=1, seed=3, steps=max(slots, 40)))[
            :slots
        ]
        assert alone(target, slots, 3) == sum(target[slot.row] for slot in rows)


def test_the_result_says_what_the_mixture_costs_and_how_far_a_step_is_from_its_share(
    chat: Chat,
) -> None:
    mixture = blend(chat, ratio=0.2, unit="tokens")
    result = result_of(mixture, ratio=0.2, unit="tokens")
    tokens = mixture.sizes["tokens"]
    assert result.cost == pytest.approx(1 / (1 - result.share["tokens"]), abs=1e-3)
    worst = max(missed(step, tokens, 0.2) for step in mixture.steps)
    assert result.furthest_step.amount == pytest.approx(worst, abs=1e-3)
    assert 0 < result.furthest_step.rows <= 1
    last = flat(mixture.steps[-(len(mixture.steps) // 5) :])
    assert result.last_share["tokens"] == pytest.approx(shares(last, tokens), abs=1e-6)
    fixed = result_of(blend(chat, steps=20), ratio=0.15)
    assert fixed.cost == pytest.approx(1, abs=0.4)  # as many slots, of other rows
    assert result_of(blend(chat, replay={}, ratio=0, steps=20), ratio=0).cost == 1


def test_a_source_without_a_usable_row_is_said_to_be_left_out(chat: Chat) -> None:
    empty = [Record(dialogue("What?", "word " * 300), "generate")]
    sources = {"select": OLD, "generate": empty}
    said = "generate has no usable row; its part of the replay comes from the others"
    assert said in blend(chat, replay=sources, ratio=0.2).notes
    assert said not in blend(chat, replay={"select": OLD}, ratio=0.2).notes


# --- the step -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe of the toy records, whose replay is made, with the changes given."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("target.jsonl"), SUMS)
    write_jsonl(Path("test.jsonl"), SUMS[5:6])
    write_jsonl(Path("more.jsonl"), OLD[3:4])
    selected(Path("run"), OLD)
    generated(Path("run"), FACTS)

    def recipe(**changes: Any) -> Recipe:
        given = {
            "model": "nano",
            "out": "run",
            "target": "target.jsonl",
            "eval": {"target": "test.jsonl"},
        }
        given["train"] = {"batch_rows": 8, **changes.pop("train", {})}
        given["mix"] = {"near_duplicate": None, "ratio": 0.2, **changes.pop("mix", {})}
        return Recipe.model_validate(given | changes)

    return recipe


def test_the_step_keeps_tests_out_of_target_and_replay_and_writes_down_what_it_did(
    run_of: Any,
) -> None:
    (done,) = mix_step.run(run_of(mix={"against": ["more.jsonl"]}), Context())
    dropped_lines = [
        json.loads(line) for line in (done.folder / "dropped.jsonl").read_text().splitlines()
    ]
    assert [
        (row["source"], row["reason"], row["meta"]["evalset"], row["meta"]["match"])
        for row in dropped_lines
    ] == [
        ("target", "eval_overlap", "target", SUMS[5].prompt),
        ("select", "eval_overlap", "more.jsonl", OLD[3].prompt),
    ]
    manifest = read_manifest(done.folder)
    assert manifest is not None
    assert typed(manifest, MixResult, done.folder) == done.result
    assert done.result.decontamination is not None
    assert done.result.decontamination.removed == 2
    digest = hashlib.sha256((done.folder / "rows.jsonl").read_bytes()).hexdigest()
    assert done.result.sha256 == digest
    assert done.result.notes[0].startswith(
        "1 of the 60 target rows hold an item of the evaluation (target 1)"
    )
    assert not (done.folder / "replay.jsonl").exists()


def test_evaluation_rows_stay_where_the_recipe_says_so(run_of: Any) -> None:
    (done,) = mix_step.run(run_of(mix={"overlap": False}), Context())
    assert done.result.funnel.dropped == {}
    assert done.result.decontamination is None


def test_for_a_controller_all_usable_replay_rows_are_written(run_of: Any) -> None:
    tested = {"target": "test.jsonl", "old": {"chat": "more.jsonl"}}
    (done,) = mix_step.run(
        run_of(train={"controller": {}}, mix={"overlap": False}, eval=tested), Context()
    )
    rows = [json.loads(line) for line in (done.folder / "replay.jsonl").read_text().splitlines()]
    assert Counter(row["id"] for row in rows) == Counter(row.id for row in [*OLD, *FACTS])
    assert {row["source"] for row in rows} == {"select", "generate"}
    assert len(rows) > done.result.replay_rows


def test_the_ratio_of_an_arm_is_constant_unless_the_arm_has_a_schedule(run_of: Any) -> None:
    recipe = run_of(
        mix={"schedule": {"shape": "linear", "to": 0.4}},
        arms={
            "none": {"ratio": 0},
            "same": {},
            "own": {"ratio": 0.1, "schedule": {"shape": "warm-down"}},
        },
    )
    by_arm = {done.step: done.result for done in mix_step.run(recipe, Context())}
    assert by_arm["mix-none"].replay_rows == 0
    assert by_arm["mix-same"].description == "20 % of rows, linear to 40 %"
    assert by_arm["mix-own"].schedule == Schedule(shape="warm-down", hold=0.5)
    last = {arm: result.last_share["loss_tokens"] for arm, result in by_arm.items()}
    assert last["mix-own"] < 0.1 < last["mix-same"]


def test_a_schedule_in_steps_is_read_back_from_its_manifest(run_of: Any) -> None:
    recipe = run_of(mix={"schedule": {"shape": "steps", "at": {0.5: 0.4}}})
    (first,) = mix_step.run(recipe, Context())
    (again,) = mix_step.run(recipe, Context())
    assert again.skipped
    assert again.result == first.result
    assert first.result.description == "20 % of rows, then 40 % from 50 % of the training on"


def test_weights_of_the_sources_reach_the_mixture(run_of: Any) -> None:
    (done,) = mix_step.run(
        run_of(mix={"unit": "rows", "sources": {"select": 3.0, "generate": 1.0}}), Context()
    )
    skills = done.result.skills
    assert skills["select"].rows == pytest.approx(3 * skills["generate"].rows, abs=3)


def test_a_finished_mixture_can_be_exported_later(run_of: Any) -> None:
    (done,) = mix_step.run(run_of(), Context())
    assert done.result.exported == {}
    (again,) = mix_step.run(run_of(), Context(), export=["parquet"])
    assert again.skipped
    assert (Path(again.result.exported["parquet"]) / "rows.parquet").exists()


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--min-rows", "json"], 2, "'json' is not SKILL=N, such as json=50"),
        (
            ["--min-rows", "select=20", "--min-rows", "generate=40"],
            1,
            "mix.min_rows asks for 40 rows of 'generate'",
        ),
        (["--budget", "some"], 1, "mix.budget: must be 'add' or 'replace' (got 'some')"),
        (
            ["--export", "tlr"],
            1,
            "--export tlr: it is trl, llamafactory, axolotl, ms-swift, parquet",
        ),
    ],
)
def test_flags_that_cannot_be_followed_say_so(
    run_of: Any, flags: list[str], code: int, says: str
) -> None:
    recipe = run_of()
    Path("r.yaml").write_text(json.dumps(recipe.model_dump(exclude_defaults=True)))
    result = CliRunner().invoke(app, ["mix", "-r", "r.yaml", *flags])
    assert result.exit_code == code
    assert says in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_flags_reach_the_mixture(run_of: Any) -> None:
    recipe = run_of()
    Path("r.yaml").write_text(json.dumps(recipe.model_dump(exclude_defaults=True)))
    flags = [
        "--budget",
        "replace",
        "--ratio",
        "0.3",
        "--unit",
        "rows",
        "--min-rows",
        "select=8",
        "--json",
    ]
    result = json.loads(CliRunner().invoke(app, ["mix", "-r", "r.yaml", *flags]).stdout)
    assert (result["ratio"], result["unit"], result["budget"]) == (0.3, "rows", "replace")
    assert result["skills"]["select"]["different"] >= 8
    assert (
        result["target_rows"] + result["replay_rows"] == 59
    )  # as many as the target alone, less a test item
    assert result["not_shown"] == 59 - result["target_rows"]


# --- what is said of rows that are not used -------------------------------------------------------


def test_a_row_that_would_be_learned_as_silence_is_dropped(chat: Chat) -> None:
    rows = (("2 + 2?", "4"), ("3 + 3?", " \n"), ("", "yes"), ("5 + 5?", "10"))
    replay = {"select": made("select", ("old", "yes"), ("mute", ""), ("  ", "no"))}
    assert dropped(chat, made("target", *rows), replay=replay) == {
        "empty_answer": ["3 + 3?", "mute"],
        "empty_prompt": ["", "  "],
    }
    note = blend(chat, made("target", *rows), replay={}, ratio=0).notes[0]
    assert note.startswith(
        "1 of the 4 target rows have an answer that says nothing (the first: row 2)"
    )


def test_a_row_that_only_shows_an_answer_does_not_stand_for_one_that_teaches_it(chat: Chat) -> None:
    (taught,) = made("select", ("Old question", "Old answer"))
    question, answer = taught.messages
    shown = replace(taught, messages=(question, {**answer, "weight": 0}))
    assert dropped(chat, SUMS[:3], replay={"select": [shown, taught]}) == {
        "no_answer": ["Old question"]
    }


def test_columns_of_the_user_are_neither_taken_for_the_steps_own_nor_lost(chat: Chat) -> None:
    columns = {"evalset": ["x"], "error": "mine", "match": 3}
    target = made("target", ("2 + 2?", "4"), ("3 + 3?", None), ("a test", "yes"))
    target = [replace(record, meta={**record.meta, **columns}) for record in target]
    mixture = blend(chat, target, replay={}, ratio=0, held_out=["a test"])
    assert [note.partition(" and are")[0] for note in mixture.notes] == [
        "1 of the 3 target rows hold an item of the evaluation (sums 1)",
        "1 of the 3 target rows have no answer to learn from (the first: row 2)",
    ]
    assert mixture.rows["target"][0].meta == {"line": 1, **columns}
    rows = {
        row["reason"]: row["meta"]
        for row in dropped_rows(chat, target, replay={}, ratio=0, held_out=["a test"])
    }
    assert rows["eval_overlap"]["evalset"] == "sums"
    assert rows["eval_overlap"]["columns"] == {"evalset": ["x"], "match": 3}
    assert rows["no_answer"] == {"line": 2, **columns}


def test_a_cap_or_a_column_that_no_row_has_is_said(chat: Chat) -> None:
    replay = {"select": [replace(row, meta={"task": "json"}) for row in OLD]}
    notes = blend(chat, replay=replay, mix={"skill": "task", "max_rows": {"jsn": 3}}).notes
    assert (
        "mix.max_rows: no replay row is of the skill 'jsn', so nothing is capped by it; did you mean 'json'?"
        in notes
    )
    notes = blend(chat, replay=replay, mix={"skill": "tsak"}).notes
    assert (
        "mix.skill: no replay row has a column 'tsak', so the skill of each row is its source; did you mean 'task'?"
        in notes
    )


@pytest.mark.parametrize(
    ("target", "replay", "max_tokens", "said"),
    [
        (SUMS[:2], SUMS[:2], 200, "all 2 replay rows were dropped (target_duplicate 2)"),
        (SUMS[:2], made("select", ("mute", None)), 200, "dropped (no_answer 1); give other rows"),
        (
            SUMS[:2],
            OLD,
            5,
            "no row that can be trained on: of its 2 rows all were dropped (too_long 2)",
        ),
    ],
)
def test_where_all_rows_were_dropped_the_error_says_why(
    chat: Chat, target: list[Record], replay: list[Record], max_tokens: int, said: str
) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        blend(chat, target, replay={"select": replay}, max_tokens=max_tokens)


def test_a_share_that_one_row_makes_too_large_is_said_with_both_figures(chat: Chat) -> None:
    target = made("target", *((f"Sum {n}?", "yes") for n in range(400)))
    replay = {"select": made("select", *((f"Old {n}?", "word " * 60) for n in range(40)))}
    mixture = blend(chat, target, replay=replay, ratio=0.05, batch_rows=16)
    share = result_of(mixture, ratio=0.05).share["loss_tokens"]
    assert share == pytest.approx(0.0916, abs=1e-4)
    assert mixture.notes[0].startswith(
        "replay came out as 9.16 % of the loss tokens, where 5 % was asked for, and as 34.4 % in the "
        "last fifth, where 5 % was"
    )
    short = {"select": made("select", *((f"Old {n}?", "words") for n in range(40)))}
    notes = blend(chat, target, replay=short, ratio=0.05, batch_rows=16).notes
    assert not any(note.startswith("replay came out as") for note in notes)


def test_where_the_last_fifth_has_no_replay_row_the_reason_is_that_of_the_unit(chat: Chat) -> None:
    target = made("target", *((f"Sum {n}?", "yes") for n in range(40)))
    replay = {"select": made("select", *((f"Old {n}?", "word " * 20) for n in range(9)))}
    notes = " ".join(blend(chat, target, replay=replay, ratio=0.05, unit="rows").notes)
    assert (
        "the last fifth of the steps holds no replay row: the share comes to less than one there; "
        "more target rows or a higher --ratio gives it some"
    ) in notes
    assert "longer" not in notes
