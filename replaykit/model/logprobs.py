"""The log-probabilities of an answer's tokens, picked from what an engine or a model gives.

engine.score([example.scored])       ->  of every token but the first, or of the answer's
of_answer(example, scores)           ->  of the tokens that carry loss
target_logits(model, head, batch)    ->  logits and targets where there is loss, slice by slice
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from replaykit.model.chat import Example

if TYPE_CHECKING:
    import torch

    from replaykit.model.lm_head import Batch, Head

IGNORED = -100
"""The label of a token without loss, as transformers and torch count it."""


def of_answer(example: Example, scores: Sequence[float]) -> list[float]:
    """The scores of the tokens that carry loss, in order.

    ``scores`` are an engine's, natural logarithms: of every token but the first, which nothing
    predicts. So where the first token carries loss, as in a plain text without BOS, it has none. Of
    an encoder-decoder they are those of the answer, all of whose tokens are predicted.
    """
    begins = 1
    if example.answer_at is not None:
        begins = example.answer_at
    return [score for score, loss in zip(scores, example.loss[begins:], strict=True) if loss]


def target_logits(
    model: Any, head: Head | None, batch: Batch
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The float32 logits [n, vocabulary] of the positions that carry loss, and their targets [n],
    in the order of the labels; a slice at a time, of at most ``lm_head.NUMBERS`` logits.

    Without a ``head`` of its own the model makes the logits of the whole batch at once.
    """
    from replaykit.model.lm_head import logits_of, slices

    where = batch["labels"] != IGNORED
    targets = batch["labels"][where]
    if head is None:
        every = logits_of(model, batch)[where]
        for part in slices(len(targets), every.shape[1]):
            yield every[part].float(), targets[part]
        return
    # Hidden states may come in another precision than the head's, as under autocast.
    weight = head.linear.weight
    hidden = head.hidden(model, batch)[where].to(weight.dtype)
    for part in slices(len(targets), len(weight)):
        yield head.logits(hidden[part]).float(), targets[part]
