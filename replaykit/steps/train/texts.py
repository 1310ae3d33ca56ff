"""Batches of texts with labels: what a text classifier reads of them, and which labels are meant.

    collate = collator(chat, packing=False)
    collate([data[0], data[1]])
    ->  input_ids, attention_mask [rows, length]; labels, loss_weight [rows, 1]; among, known
        [rows, labels]; taught [rows, 1]

``among`` are the labels that a row's is one of: all, or those of its own head. Where a row has any
number of labels there is no ``among``, and labels, loss_weight and taught are [rows, labels].
``known`` are the labels of the base, ``taught`` the places of which it has something to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from replaykit.model.chat import Chat
from replaykit.model.classifier import TextClassifier
from replaykit.model.labels import Labels
from replaykit.model.lm_head import Batch
from replaykit.model.logprobs import IGNORED
from replaykit.steps.train.batches import Row, collate


def collator(chat: Chat, *, packing: bool = False) -> Callable[[Sequence[Row]], Batch]:
    """What makes a batch of rows for the chat's model."""
    pad = chat.tokenizer.pad_token_id
    if isinstance(chat, TextClassifier):
        return partial(collate_texts, labels=chat.labels, pad=pad)
    if pad is None:
        # Any id will do: nothing looks at padding, and it has no loss.
        pad = chat.stop[0]
    return partial(collate, pad=pad, packing=packing, seq2seq=chat.seq2seq)


def collate_texts(rows: Sequence[Row], *, labels: Labels, pad: int) -> Batch:
    """As ``collate``, for texts with labels; see the module."""
    # An encoder-decoder's batch has a mask and labels of their own length, as this has.
    batch = collate(rows, pad=pad, seq2seq=True)
    count = len(labels.every)
    known = torch.arange(count) < len(labels.old)
    batch["known"] = known.expand(len(batch["input_ids"]), count)
    given = batch["labels"]
    if labels.multi:
        if not rows:
            batch["labels"] = torch.full((1, count), IGNORED)
            batch["loss_weight"] = torch.zeros(1, count)
        batch["taught"] = batch["known"]
        return batch
    batch["taught"] = (given >= 0) & (given < len(labels.old))
    batch["among"] = torch.ones(len(given), count, dtype=torch.bool)
    if labels.apart:
        sets = torch.tensor([labels.beside(number) for number in range(count)])
        batch["among"] = sets[given[:, 0].clamp(min=0)]
    return batch


def of_base(batch: Batch) -> Batch:
    """The batch as the untrained base is asked: of a row with labels of its own those alone, since
    the new rows of its head say nothing yet. A batch of a language model stays as it is.
    """
    if "known" not in batch:
        return batch
    if "among" in batch:
        own = torch.where(batch["taught"], batch["known"], True)
        return batch | {"among": batch["among"] & own}
    new = (batch["labels"] == 1) & ~batch["known"]
    unasked = ~batch["known"] & ~new.any(dim=1, keepdim=True)
    return batch | {"labels": batch["labels"].masked_fill(unasked, IGNORED)}
