"""From planned rows to tensors: examples, micro-batches, and a collator that keeps the source and
the weight of every token.

    data = TokenisedRows(records, chat)
    batches, parts = micro_batches(data.lengths, [0, 0, 0, 1, 1, 1], rows=2)
    batches                                                   # [[2], [0, 1], [3], [5, 4]]
    collate([data[index] for index in batches[0]], pad=0)     # {"input_ids": [1, length], ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from replaykit.data.record import TARGET, Record
from replaykit.model.chat import Chat, Example
from replaykit.model.lm_head import Batch
from replaykit.model.logprobs import IGNORED
from replaykit.recipe.augment import COUNTERFACTUAL

# What a micro-batch costs beside its tokens, in tokens: on two busy cores 130 to 170 were measured,
# with models of about the sizes of nano and SmolLM2-135M; more of them should be a clear gain.
MICRO_BATCH_COSTS = 256
MORE_MICRO_BATCHES = 3  # than the least that there can be, that are worth a look
STEPS_LOOKED_AT = 100  # of a run, to find how many are best


class Row(TypedDict):
    """A row as the model is given it. Labels are shifted: ``labels[t]`` is what position t
    predicts.
    """

    # [length], int32; of an encoder-decoder the encoder's.
    tokens: torch.Tensor
    # [length], int32, IGNORED where there is no loss; of an encoder-decoder all of the answer.
    labels: torch.Tensor
    # As the labels, float32: what each token's loss counts for.
    weight: torch.Tensor
    # An index into the sources' names.
    source: int
    replay: bool
    # Of the row in the mixture.
    index: int


class TokenisedRows(Dataset[Row]):
    """The rows of a mixture, each different one tokenised once. ``sources`` are the names in order
    of appearance, ``lengths`` the tokens of each row.

    ``parent_of`` has the parent's index for each row that is a counterfactual of another.
    ``weights`` are those of the answer tokens by record id, where a row has others than 1
    (``remedies.weights``). ``examples`` are rows that are tokenised already, by record id.
    """

    def __init__(
        self,
        records: Sequence[Record],
        chat: Chat,
        weights: Mapping[str, np.ndarray] | None = None,
        examples: Mapping[str, Example] | None = None,
    ):
        weights = weights or {}
        examples = examples or {}
        self._tensors: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for key, record in {record.id: record for record in records}.items():
            example = examples.get(key) or chat.example(record)
            self._tensors[key] = _tensors(example, weights.get(key))
        self._masked = {
            key for key, (_, _, weight) in self._tensors.items() if not bool(weight.any())
        }
        # Whether they are texts with labels: a row then counts as one token with loss.
        self.labelled = chat.only_texts
        self.sources = list(dict.fromkeys(record.source for record in records))
        self._rows = [(record.id, self.sources.index(record.source)) for record in records]
        self.parent_of = _parents(records)
        self.lengths = []
        for key, _ in self._rows:
            tokens, labels, _ = self._tensors[key]
            # The labels of a causal model stand at its tokens; a decoder's are tokens of their own.
            self.lengths.append(len(tokens) + len(labels) * chat.seq2seq)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        key, source = self._rows[index]
        tokens, labels, weight = self._tensors[key]
        return {
            "tokens": tokens,
            "labels": labels,
            "weight": weight,
            "source": source,
            "replay": self.sources[source] != TARGET,
            "index": index,
        }

    def id_of(self, index: int) -> str:
        """The record's id."""
        return self._rows[index][0]

    def masked(self, index: int) -> bool:
        """Whether no token of the row has a weight."""
        return self._rows[index][0] in self._masked

    def replay_rows(self) -> list[int]:
        """The different replay rows in the order in which they first come."""
        first: dict[str, int] = {}
        for index, (key, _) in enumerate(self._rows):
            first.setdefault(key, index)
        return [index for index in first.values() if self[index]["replay"]]


def _parents(records: Sequence[Record]) -> dict[int, int]:
    """By the index of a counterfactual that of the row that it was made of, where that is here."""
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        first.setdefault(record.id, index)
    found = {}
    for index, record in enumerate(records):
        if record.source == TARGET and record.meta.get("path") == COUNTERFACTUAL:
            parent = first.get(str(record.meta.get("parent")))
            if parent is not None:
                found[index] = parent
    return found


def _tensors(
    example: Example, weights: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, shifted labels and weights; of an encoder-decoder the question for the encoder and
    the answer for the decoder; of a text its label alone.
    """
    tokens = torch.tensor(example.tokens, dtype=torch.int32)
    if example.label:
        label = torch.tensor(example.label, dtype=torch.int32)
        return tokens, label, (label != IGNORED).float()
    loss = torch.tensor(example.loss, dtype=torch.bool)
    weight = loss.float()
    if weights is not None:
        weight[loss] = torch.from_numpy(np.asarray(weights, dtype=np.float32))
    if example.answer_at is not None:
        # Of an encoder-decoder nothing is shifted: the decoder is given the answer so far.
        begins = example.answer_at
        return tokens[:begins], tokens[begins:], weight[begins:]
    none = torch.tensor([IGNORED], dtype=torch.int32)
    labels = torch.where(loss, tokens, none)
    return tokens, torch.cat([labels[1:], none]), torch.cat([weight[1:], torch.zeros(1)])


# --- micro-batches --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How steps are cut into micro-batches."""

    rows: int
    """Of a micro-batch, at most."""
    apart: bool
    """Whether replay rows have micro-batches of their own, before those of the target."""
    world: int
    """How many processes share a step."""

    def whole(self, count: int) -> int:
        """The number of micro-batches, raised to what all processes have the same number of."""
        return -(-count // self.world) * self.world


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
    together: less padding, the same gradient. The number is the least that there can be, or more
    where that saves more padding than it costs. It is a multiple of ``world``, so that so many
    processes take every world-th one each. With ``apart`` the rows for which it is true come first,
    in micro-batches of their own. ``counts`` are how many of these there are, and of the others,
    where that is known; a step of more rows than go into so many has larger ones. A micro-batch can
    be empty.
    """
    # By step: the rows that stand apart, and the others.
    grouped: dict[int, tuple[list[int], list[int]]] = {}
    for index, step in enumerate(steps):
        first, second = grouped.setdefault(step, ([], []))
        if apart is not None and apart[index]:
            first.append(index)
        else:
            second.append(index)
    groups = [
        tuple(sorted(some, key=lambda index: -lengths[index]) for some in group)
        for group in grouped.values()
    ]
    counts = counts or [
        _count([[lengths[index] for index in group[part]] for group in groups], rows)
        for part in (0, 1)
    ]
    # As many for every process.
    counts = [-(-count // world) * world for count in counts]
    batches = []
    for group in groups:
        for some, count in zip(group, counts, strict=True):
            if not count:
                continue
            begins = 0
            for width in _widths([lengths[index] for index in some], count, rows):
                batches.append(some[begins : begins + width])
                begins += width
    return batches, sum(counts)


def _count(steps: Sequence[Sequence[int]], rows: int) -> int:
    """How many micro-batches of at most ``rows`` rows a step should have, whose rows' lengths are
    given for each, longest first.
    """
    least = max(-(-len(step) // rows) for step in steps)
    if not least:
        return 0
    # Some steps speak for all of them.
    some = steps[:: -(-len(steps) // STEPS_LOOKED_AT)]

    def cost(count: int) -> int:
        tokens = 0
        for lengths in some:
            begins = 0
            for width in _widths(lengths, count, rows):
                if width:
                    tokens += lengths[begins] * width
                begins += width
        return tokens + count * MICRO_BATCH_COSTS * len(some)

    return min(range(least, least + MORE_MICRO_BATCHES + 1), key=cost)


def _widths(lengths: Sequence[int], count: int, rows: int) -> list[int]:
    """How many rows each of ``count`` micro-batches takes, of rows sorted by length, longest first;
    the last ones may take none.

    A micro-batch is as long as its first row. The squares of their sizes in tokens, padding
    included, add up to the least: little padding, and none much larger than the others.
    """
    total = len(lengths)
    most = max(rows, -(-total // count))
    longest = np.asarray(lengths, dtype=np.float64)
    # The cost of the first j rows in so many micro-batches as were gone through, [total + 1].
    costs = np.full(total + 1, np.inf)
    costs[0] = 0.0
    taken = []
    for _ in range(count):
        # None more is as good, where the rows are all in.
        best = costs.copy()
        width_of = np.zeros(total + 1, dtype=np.int64)
        for width in range(1, min(most, total) + 1):
            cost = costs[:-width] + (longest[: total - width + 1] * width) ** 2
            better = cost < best[width:]
            best[width:][better] = cost[better]
            width_of[width:][better] = width
        costs = best
        taken.append(width_of)
    widths = []
    left = total
    for width_of in reversed(taken):
        widths.append(int(width_of[left]))
        left -= widths[-1]
    # They were found from the end; those without rows come last.
    filled = [width for width in reversed(widths) if width]
    return filled + [0] * (count - len(filled))


def shape_of(lengths: Sequence[int], *, packing: bool) -> tuple[int, int]:
    """Rows and length of a micro-batch with its padding, by the lengths of its rows."""
    if packing:
        return 1, sum(lengths)
    return len(lengths), max(lengths, default=0)


# --- batches --------------------------------------------------------------------------------------


def collate(
    rows: Sequence[Row], *, pad: int, packing: bool = False, seq2seq: bool = False
) -> Batch:
    """Right-padded tensors [rows, length]: input_ids, labels and loss_weight; and source, replay
    and index, [rows], and whether all rows are replay, None where there is none.

    There is no attention mask: under causal attention nothing looks at the padding to its right. An
    encoder does, so with ``seq2seq`` there is one, and the labels are the decoder's. With
    ``packing`` all rows stand behind one another in one, [1, length], with position_ids that begin
    anew in each, by which transformers keeps them apart; ``row`` [1, length] says which of them
    each token is of. Without rows it is one token of padding, which has no loss.
    """
    # A process may have no row of a step, and still has to take part in it.
    tokens = [row["tokens"] for row in rows] or [torch.tensor([pad])]
    labels = [row["labels"] for row in rows] or [torch.tensor([IGNORED])]
    weights = [row["weight"] for row in rows] or [torch.zeros(1)]
    facts: Batch = {
        "replay_only": all(row["replay"] for row in rows) if rows else None,
        "source": torch.tensor([row["source"] for row in rows] or [0]),
        "replay": torch.tensor([row["replay"] for row in rows] or [False]),
        "index": torch.tensor([row["index"] for row in rows] or [-1]),
    }
    if packing:
        places = [torch.arange(len(row)) for row in tokens]
        of_row = [torch.full((len(row),), k) for k, row in enumerate(tokens)]
        packed = {
            "input_ids": torch.cat(tokens).long(),
            "labels": torch.cat(labels).long(),
            "loss_weight": torch.cat(weights).float(),
            "position_ids": torch.cat(places),
            "row": torch.cat(of_row),
        }
        return {name: joined[None] for name, joined in packed.items()} | facts
    batch = {
        "input_ids": _padded(tokens, pad),
        "labels": _padded(labels, IGNORED),
        "loss_weight": _padded(weights, 0.0),
    } | facts
    if seq2seq:
        lengths = torch.tensor([len(row) for row in tokens])
        places = torch.arange(batch["input_ids"].shape[1])
        batch["attention_mask"] = (places < lengths[:, None]).long()
    return batch


def _padded(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """[rows, length], int64, or float32 where the padding is a float."""
    dtype = torch.float32 if isinstance(value, float) else torch.int64
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out


def by_row(batch: Batch, name: str) -> torch.Tensor:
    """A fact of rows, such as "source", for each token: [rows, length], also where rows are
    packed.
    """
    fact: torch.Tensor = batch[name]
    if "row" in batch:
        return fact[batch["row"]]
    return fact[:, None].expand_as(batch["labels"])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
