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
    tokens: torch.Tensor  # [length], int32
    labels: torch.Tensor  # the same, IGNORED where there is no loss
    source: int  # an index into the sources' names


class Planned(Dataset[Row]):
    """The rows of a mixture, each different one tokenised once. ``sources`` are the names in order of appearance."""

    def __init__(self, records: Sequence[Record], chat: Chat):
        different = {record.id: record for record in records}
        self._examples = {key: _tensors(chat.example(record)) for key, record in different.items()}
        self.sources = list(dict.fromkeys(record.source for record in records))
        self._rows = [(record.id, self.sources.index(record.source)) for record in records]
        self.lengths = [len(self._examples[key][0]) for key, _ in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        key, source = self._rows[index]
        tokens, labels = self._examples[key]
        return {"tokens": tokens, "labels": labels, "source": source}


def _tensors(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor(example.tokens, dtype=torch.int32)
    return tokens, torch.where(torch.tensor(example.loss), tokens, IGNORED)


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
    shape = (len(rows) or 1, max((len(row["tokens"]) for row in rows), default=1))
    ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORED)
    for k, row in enumerate(rows):
        ids[k, : len(row["tokens"])] = row["tokens"]
        labels[k, : len(row["tokens"])] = row["labels"]
    weight = (labels != IGNORED).float()
    return {
        "input_ids": ids,
        "labels": labels,
        "loss_weight": weight,
        "source": torch.tensor([row["source"] for row in rows] or [0]),
    }
