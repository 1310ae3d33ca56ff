"""Every row is trained on once, in its step, and padding teaches nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.data.record import Record, dialogue
from replaykit.model.chat import Chat
from replaykit.model.logprobs import IGNORED
from replaykit.steps.train.batches import Row, TokenisedRows, by_row, collate, micro_batches

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

PAD = 7


@st.composite
def planned(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths and steps of rows, as a plan gives them: steps that differ by at most one row."""
    rows, count = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    sizes = [(k + 1) * (rows + count) // count - k * (rows + count) // count for k in range(count)]
    steps = [step for step, size in enumerate(sizes) for _ in range(size)]
    return draw(st.lists(st.integers(1, 99), min_size=len(steps), max_size=len(steps))), steps


@given(rows=planned(), limit=st.integers(1, 50))
def test_every_row_comes_once_in_its_step_and_never_too_many_together(
    rows: tuple[list[int], list[int]], limit: int
) -> None:
    lengths, steps = rows
    batches, parts = micro_batches(lengths, steps, rows=limit)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == parts * (steps[-1] + 1)
    for number, batch in enumerate(batches):
        assert {steps[index] for index in batch} <= {number // parts}
        assert len(batch) <= limit
    least = -(-max(steps.count(step) for step in set(steps)) // limit)
    assert least <= parts <= least + 3


@given(rows=planned(), limit=st.integers(1, 50))
def test_rows_of_like_length_are_together(rows: tuple[list[int], list[int]], limit: int) -> None:
    lengths, steps = rows
    batches, parts = micro_batches(lengths, steps, rows=limit)
    for start in range(0, len(batches), parts):
        ordered = [lengths[index] for batch in batches[start : start + parts] for index in batch]
        assert ordered == sorted(ordered, reverse=True)


def padded(lengths: list[int], batches: list[list[int]]) -> list[int]:
    """The tokens of each micro-batch with its padding."""
    return [max((lengths[k] for k in batch), default=0) * len(batch) for batch in batches]


def test_one_long_row_is_not_what_fifteen_short_ones_are_padded_to() -> None:
    lengths = [80] * 7 + [450] + [80] * 8
    batches, parts = micro_batches(lengths, [0] * 16, rows=16)
    assert parts == 2
    assert batches[0] == [7]
    assert padded(lengths, batches) == [450, 15 * 80]
    # Two steps have the same number, so the one without a long row is cut in halves.
    batches, parts = micro_batches(lengths + [80] * 16, [0] * 16 + [1] * 16, rows=16)
    assert parts == 2
    assert padded(lengths + [80] * 16, batches) == [450, 15 * 80, 8 * 80, 8 * 80]


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), count=st.integers(1, 4))
def test_of_all_ways_to_cut_a_step_the_squares_of_its_parts_are_the_least(
    lengths: list[int], count: int
) -> None:
    rows = len(lengths)
    batches, parts = micro_batches(lengths, [0] * rows, rows=rows, counts=[0, count])
    assert parts == len(batches) == count
    ordered = sorted(lengths, reverse=True)

    def least(begin: int, left: int) -> int:
        if begin == rows:
            return 0
        if not left:
            return 10**9
        return min(
            (ordered[begin] * (end - begin)) ** 2 + least(end, left - 1)
            for end in range(begin + 1, rows + 1)
        )

    assert sum(size**2 for size in padded(lengths, batches)) == least(0, count)


def test_rows_of_one_length_are_shared_out_evenly() -> None:
    batches, _ = micro_batches([50] * 18, [0] * 18, rows=8, world=2)
    assert sorted(map(len, batches)) == [4, 4, 5, 5]


def test_one_row_at_a_time_is_one_row_at_a_time() -> None:
    batches, parts = micro_batches([5, 6, 7, 8, 9], [0, 0, 0, 1, 1], rows=1)
    assert parts == 3
    assert sorted(map(len, batches)) == [0, 1, 1, 1, 1, 1]


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 6))):
        tokens = draw(st.lists(st.integers(0, 700), min_size=1, max_size=12))
        loss = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
        labels = [token if counts else IGNORED for token, counts in zip(tokens, loss, strict=True)]
        rows.append({
            "tokens": torch.tensor(tokens), "labels": torch.tensor(labels), "weight": torch.tensor(loss).float(),
            "source": draw(st.integers(0, 3)), "replay": draw(st.booleans()), "index": len(rows),
        })  # fmt: skip
    return rows


@given(rows=some_rows())
def test_labels_are_the_tokens_that_carry_loss_and_padding_has_none(rows: list[Row]) -> None:
    batch = collate(rows, pad=PAD)
    width = max(len(row["tokens"]) for row in rows)
    assert all(
        batch[name].shape == (len(rows), width) for name in ("input_ids", "labels", "loss_weight")
    )
    for k, row in enumerate(rows):
        tokens, labels = row["tokens"].tolist(), row["labels"].tolist()
        padding = width - len(tokens)
        assert batch["input_ids"][k].tolist() == [*tokens, *[PAD] * padding]
        assert batch["labels"][k].tolist() == [*labels, *[IGNORED] * padding]
        assert batch["loss_weight"][k].tolist() == [
            *(float(label != IGNORED) for label in labels),
            *[0.0] * padding,
        ]
    for fact in ("source", "replay", "index"):
        assert batch[fact].tolist() == [row[fact] for row in rows]
    assert batch["replay_only"] is all(row["replay"] for row in rows)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


@given(rows=some_rows())
def test_packed_rows_stand_behind_one_another_and_know_where_each_begins(rows: list[Row]) -> None:
    batch = collate(rows, pad=PAD, packing=True)
    joined = [token for row in rows for token in row["tokens"].tolist()]
    assert batch["input_ids"].tolist() == [joined]
    assert batch["position_ids"].tolist() == [
        [place for row in rows for place in range(len(row["tokens"]))]
    ]
    assert by_row(batch, "source").tolist() == [
        [row["source"] for row in rows for _ in row["tokens"]]
    ]
    padded = collate(rows, pad=PAD)
    for name in ("labels", "loss_weight"):
        whole = [
            value
            for k, row in enumerate(rows)
            for value in padded[name][k, : len(row["tokens"])].tolist()
        ]
        assert batch[name].tolist() == [whole]


def test_an_encoder_is_given_the_question_and_a_mask_and_a_decoder_the_answer() -> None:
    rows: list[Row] = [
        {"tokens": torch.tensor(q), "labels": torch.tensor(a), "weight": torch.ones(len(a)), "source": 0, "replay": False,
         "index": k} for k, (q, a) in enumerate([([5, 6, 1], [8, 1]), ([5, 1], [9, 9, 9, 1])])
    ]  # fmt: skip
    batch = collate(rows, pad=0, seq2seq=True)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [5, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 1, IGNORED, IGNORED], [9, 9, 9, 1]]


def test_a_batch_without_rows_is_padding_without_loss() -> None:
    batch = collate([], pad=PAD)
    assert batch["replay_only"] is None
    assert batch["input_ids"].tolist() == [[PAD]]
    assert batch["labels"].tolist() == [[IGNORED]]
    assert batch["loss_weight"].tolist() == [[0.0]]
    assert batch["source"].tolist() == [0]


def test_a_row_is_the_example_of_its_record_and_knows_its_source(chat: Chat) -> None:
    records = [
        Record(dialogue("2 + 2?", "4"), "target"),
        Record(dialogue("Hello", "Hi"), "generate"),
        Record(dialogue("3 + 3?", "6"), "target"),
    ]
    data = TokenisedRows(records, chat)
    assert data.sources == ["target", "generate"]
    assert [data[k]["source"] for k in range(len(data))] == [0, 1, 0]
    for k, record in enumerate(records):
        example = chat.example(record)
        assert tuple(data[k]["tokens"].tolist()) == example.tokens
        labels = data[k]["labels"].tolist()  # of what each position predicts
        assert [label != IGNORED for label in labels] == [*example.loss[1:], False]
        assert all(
            label in (IGNORED, token)
            for label, token in zip(labels, example.tokens[1:], strict=False)
        )
        assert data[k]["replay"] == (record.source != "target")
    assert data.replay_rows() == [1]


@given(rows=planned(), limit=st.integers(1, 50), world=st.integers(1, 4), data=st.data())
def test_processes_share_a_step_and_replay_can_stand_apart(
    rows: tuple[list[int], list[int]], limit: int, world: int, data: st.DataObject
) -> None:
    lengths, steps = rows
    apart = data.draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)))
    batches, parts = micro_batches(lengths, steps, rows=limit, apart=apart, world=world)
    assert parts % world == 0
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for start in range(0, len(batches), parts):
        kinds = [{apart[index] for index in batch} for batch in batches[start : start + parts]]
        assert all(len(kind) <= 1 for kind in kinds)
        order = [next(iter(kind)) for kind in kinds if kind]
        assert order == sorted(order, reverse=True)  # replay before target
        assert {steps[index] for batch in batches[start : start + parts] for index in batch} <= {
            start // parts
        }


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_however_a_step_is_cut_it_has_the_same_loss_tokens(chat: Chat, limit: int) -> None:
    data = TokenisedRows(
        [Record(dialogue("word " * n, "word " * n), "target") for n in range(1, 10)], chat
    )
    batches, parts = micro_batches(data.lengths, [0] * 5 + [1] * 4, rows=limit)
    counted = [
        int(collate([data[k] for k in batch], pad=PAD)["loss_weight"].sum()) for batch in batches
    ]
    expected = [
        sum(int((data[k]["labels"] != IGNORED).sum()) for k in rows)
        for rows in (range(5), range(5, 9))
    ]
    assert [sum(counted[:parts]), sum(counted[parts:])] == expected
