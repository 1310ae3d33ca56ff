"""From planned rows to tensors: examples, micro-batches and one collator that keeps source and
weight of every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from replaykit.chat import Chat, Example
from replaykit.mix.plan import TARGET
from replaykit.records import Record

IGNORED = -100  # the label of a token without loss, as transformers counts them


class Row(TypedDict):
    """A row as the model is given it. Labels are shifted: ``labels[t]`` is what position t
    predicts.
    """

    tokens: torch.Tensor  # [length], int32; of an encoder-decoder the encoder's
    labels: (
        torch.Tensor
    )  # [length], int32, IGNORED where there is no loss; of an encoder-decoder all of the answer
    weight: torch.Tensor  # as the labels, float32: what each token's loss counts for
    source: int  # an index into the sources' names
    replay: bool
    index: int  # of the row in the mixture


class Planned(Dataset[Row]):
    """The rows of a mixture, each different one tokenised once. ``sources`` are the names in order
    of appearance.

    ``weights`` are those of the answer tokens by record id, where a row has others than 1
    (``remedies.weights``).
    """

    def __init__(
        self, records: Sequence[Record], chat: Chat, weights: Mapping[str, np.ndarray] | None = None
    ):
        different = {record.id: record for record in records}
        weights = weights or {}
        self._examples = {
            key: _tensors(chat.example(record), weights.get(key), apart=chat.seq2seq)
            for key, record in different.items()
        }
        self.sources = list(dict.fromkeys(record.source for record in records))
        self._rows = [(record.id, self.sources.index(record.source)) for record in records]
        self.lengths = [
            len(self._examples[key][0]) + len(self._examples[key][1]) * chat.seq2seq
            for key, _ in self._rows
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        key, source = self._rows[index]
        tokens, labels, weight = self._examples[key]
        replay = self.sources[source] != TARGET
        return {
            "tokens": tokens,
            "labels": labels,
            "weight": weight,
            "source": source,
            "replay": replay,
            "index": index,
        }

    def id_of(self, index: int) -> str:
        """The record's id."""
        return self._rows[index][0]

    def replay_rows(self) -> list[int]:
        """The different replay rows in the order in which they first come."""
        first = {key: index for index, (key, _) in reversed(list(enumerate(self._rows)))}
        return sorted(
            index for index in first.values() if self.sources[self._rows[index][1]] != TARGET
        )


def _tensors(
    example: Example, weights: np.ndarray | None, *, apart: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, shifted labels and weights; with ``apart`` the question for an encoder and the answer
    for a decoder.
    """
    tokens = torch.tensor(example.tokens, dtype=torch.int32)
    loss = torch.tensor(example.loss, dtype=torch.bool)
    weight = loss.float()
    if weights is not None:
        weight[loss] = torch.from_numpy(np.asarray(weights, dtype=np.float32))
    if apart:
        begins = example.loss.index(True)
        return tokens[:begins], tokens[begins:], weight[begins:]
    none = torch.tensor([IGNORED], dtype=torch.int32)
    labels = torch.where(loss, tokens, none)
    return tokens, torch.cat([labels[1:], none]), torch.cat([weight[1:], torch.zeros(1)])


def micro_batches(
    lengths: Sequence[int],
    steps: Sequence[int],
    *,
    rows: int,
    apart: Sequence[bool] | None = None,
    world: int = 1,
    counts: Sequence[int] | None = None,
) -> tuple[list[list[int]], int]:
    """Row indices of every micro-batch, and how many micro-batches make one optimiser step.

    ``lengths[i]`` is the length of row i, ``steps[i]`` its step (0, 1, 2, ... in order). Each step
    is cut into the same number of micro-batches of at most ``rows`` rows, rows of like length
    together: less padding, the same gradient. The number is a multiple of ``world``, so that so
    many processes take every world-th one each. With ``apart`` the rows for which it is true come
    first, in micro-batches of their own; ``counts`` are how many of these there are, and of the
    others, where that is known. A micro-batch can be empty.
    """
    grouped: dict[int, tuple[list[int], list[int]]] = {}
    for index, step in enumerate(steps):
        grouped.setdefault(step, ([], []))[0 if apart is not None and apart[index] else 1].append(
            index
        )
    counts = counts or [
        max(-(-len(group[part]) // rows) for group in grouped.values()) for part in (0, 1)
    ]
    counts = [-(-count // world) * world for count in counts]
    batches = []
    for group in grouped.values():
        for some, count in zip(group, counts, strict=True):
            ordered = sorted(some, key=lambda index: -lengths[index])
            batches += [
                ordered[k * len(ordered) // count : (k + 1) * len(ordered) // count]
                for k in range(count)
            ]
    return batches, sum(counts)


def collate(
    rows: Sequence[Row], *, pad: int, packing: bool = False, seq2seq: bool = False
) -> dict[str, Any]:
    """Right-padded tensors [rows, length]: input_ids, labels and loss_weight; and source, replay
    and index, [rows], and whether all rows are replay, None where there is none.

    There is no attention mask: under causal attention nothing looks at the padding to its right. An
    encoder does, so with ``seq2seq`` there is one, and the labels are the decoder's. With
    ``packing`` all rows stand behind one another in one, [1, length], with position_ids that begin
    anew in each, by which transformers keeps them apart; ``row`` [1, length] says which of them
    each token is of. Without rows it is one token of padding, which has no loss.
    """
    tokens = [row["tokens"] for row in rows] or [torch.tensor([pad])]
    labels = [row["labels"] for row in rows] or [torch.tensor([IGNORED])]
    weights = [row["weight"] for row in rows] or [torch.zeros(1)]
    facts: dict[str, Any] = {
        "replay_only": all(row["replay"] for row in rows) if rows else None,
        "source": torch.tensor([row["source"] for row in rows] or [0]),
        "replay": torch.tensor([row["replay"] for row in rows] or [False]),
        "index": torch.tensor([row["index"] for row in rows] or [-1]),
    }
    if packing:
        places = [torch.arange(len(row)) for row in tokens]
        of_row = [torch.full((len(row),), k) for k, row in enumerate(tokens)]
        packed = {
            "input_ids": tokens,
            "labels": labels,
            "loss_weight": weights,
            "position_ids": places,
            "row": of_row,
        }
        return {
            name: torch.cat(list(parts))[None].to(_kind(name)) for name, parts in packed.items()
        } | facts
    batch = {
        "input_ids": _padded(tokens, pad),
        "labels": _padded(labels, IGNORED),
        "loss_weight": _padded(weights, 0.0),
    } | facts
    if seq2seq:
        lengths = torch.tensor([len(row) for row in tokens])
        batch["attention_mask"] = (
            torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
        ).long()
    return batch


def by_row(batch: Mapping[str, Any], name: str) -> torch.Tensor:
    """A fact of rows, such as "source", for each token: [rows, length], also where rows are
    packed.
    """
    fact: torch.Tensor = batch[name]
    return fact[batch["row"]] if "row" in batch else fact[:, None].expand_as(batch["labels"])


def _kind(name: str) -> torch.dtype:
    return torch.float32 if name == "loss_weight" else torch.int64


def _padded(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    out = torch.full(
        (len(rows), max(map(len, rows))),
        value,
        dtype=torch.float32 if isinstance(value, float) else torch.int64,
    )
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out
