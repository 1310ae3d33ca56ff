"""From planned rows to tensors: examples, micro-batches and one collator that keeps source and weight of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset

from replaykit.chat import Chat, Example
from replaykit.records import Record

IGNORED = -100  # the label of a token without loss, as transformers counts them


class Row(TypedDict):
    example: Example
    source: int  # an index into the sources' names


class Planned(Dataset[Row]):
    """The rows of a mixture, tokenised when they are asked for. ``sources`` are the names in order of first appearance."""

    def __init__(self, records: Sequence[Record], chat: Chat):
        self.records, self.chat = records, chat
        self.sources = list(dict.fromkeys(record.source for record in records))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Row:
        record = self.records[index]
        return {"example": self.chat.example(record), "source": self.sources.index(record.source)}


def micro_batches(lengths: Sequence[int], steps: Sequence[int], *, rows: int) -> tuple[list[list[int]], int]:
    """Row indices of every micro-batch, and how many micro-batches make one optimiser step.

    ``lengths[i]`` is the length of row i, ``steps[i]`` its step (0, 1, 2, ... in order). Each step is cut into the same
    number of micro-batches of at most ``rows`` rows, rows of like length together: less padding, the same gradient. A step
    that is a row short of the others can have an empty one.
    """
    grouped: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        grouped.setdefault(step, []).append(index)
    sizes = [len(group) for group in grouped.values()]
    parts = -(-max(sizes) // rows)
    batches = []
    for group in grouped.values():
        ordered = sorted(group, key=lambda index: -lengths[index])
        batches += [ordered[k * len(ordered) // parts : (k + 1) * len(ordered) // parts] for k in range(parts)]
    return batches, parts


def collate(rows: Sequence[Row], *, pad: int) -> dict[str, Any]:
    """Right-padded tensors [rows, length]: input_ids, labels and loss_weight; and source [rows].

    There is no attention mask: under causal attention nothing looks at the padding to its right. Without rows it is one
    token of padding, which has no loss.
    """
    examples = [row["example"] for row in rows]
    shape = (len(rows) or 1, max((len(example.tokens) for example in examples), default=1))
    ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORED)
    for k, example in enumerate(examples):
        tokens = torch.tensor(example.tokens)
        ids[k, : len(tokens)] = tokens
        labels[k, : len(tokens)] = torch.where(torch.tensor(example.loss), tokens, IGNORED)
    weight = (labels != IGNORED).float()
    return {
        "input_ids": ids,
        "labels": labels,
        "loss_weight": weight,
        "source": torch.tensor([row["source"] for row in rows] or [0]),
    }
