"""A row and its counterfactual have like hidden states where both go on alike.

    parent          What is 27 + 15?   42 is the sum.
    counterfactual  What is 81 + 15?   96 is the sum.
    compared                ~~~~~~~~      ~~~~~~~~~~~

    L = CE + weight * sum over compared tokens of mean((LN(h) - LN(h_parent))^2)

h is the output of the last decoder layer at a token of the counterfactual, h_parent that at the
token of the parent that it is aligned with, LN a layer norm without parameters, the mean one over
the width (the distance of ``distill.layers``). The sum is divided as the loss is, by the weight of
all tokens of the step. The parent's side is detached: it is read without gradients, in evaluation
mode, by the model as it is at that step, and the counterfactual is pulled to it.

So what is no part of the changed fact should not depend on it. The pairing is that of Garg et al.
(arXiv 1809.10610), who compare logits of whole texts, and whose label stays; here the label flips,
so only tokens are compared from which both texts go on with the same token. The last layer's states
are seen by nothing but the head, so that no later token loses the fact by it. Before the changed
fact a causal model's states are the same anyhow, and those tokens are left out.

The parent is run beside every micro-batch that holds its counterfactual, wherever the plan has put
it itself, so nothing depends on how steps are cut or shared out. That costs one forward pass
without gradients of the parents alone.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import distributed

from replaykit.model.lm_head import Batch, evaluating
from replaykit.recipe.remedies import ConsistencySettings
from replaykit.steps.train.remedies import Remedy, Run, processes
from replaykit.steps.train.remedies.teachers import Live, States, distance

LAST = -1  # the layer


class Shared(NamedTuple):
    """The places of tokens that are compared, in order."""

    own: list[int]
    parent: list[int]


def shared_tokens(own: list[int], parent: list[int]) -> Shared:
    """The tokens that two rows have in common, in order and behind their common beginning, and
    from which both go on with the same token or end.

    >>> shared_tokens([5, 1, 7, 8, 2, 9], [5, 3, 7, 8, 4, 9])
    Shared(own=[2, 5], parent=[2, 5])
    """
    found = Shared([], [])
    for block in SequenceMatcher(None, own, parent, autojunk=False).get_matching_blocks():
        if block.a == block.b == 0:
            continue
        size = block.size
        ends = block.a + size == len(own) and block.b + size == len(parent)
        if size and not ends:
            # What follows its last token is not the same.
            size -= 1
        found.own.extend(range(block.a, block.a + size))
        found.parent.extend(range(block.b, block.b + size))
    return found


class Consistency(Remedy):
    """See the module."""

    name = "consistency"
    settings: ConsistencySettings

    def begin(self, run: Run) -> None:
        assert run.pairs is not None, "a training without pairs is refused before"
        self._pairs = run.pairs
        self._states = States(run.model, [LAST], wanted=lambda: self.on)
        self._parents = Live(run.model, 1.0, base=evaluating, layers=self._states)
        self._device = next(run.model.parameters()).device
        self._sum = torch.zeros((), device=self._device)
        self._tokens = 0

    def penalty(self, batch: Batch) -> torch.Tensor | None:
        """weight times the distance summed over the compared tokens of the micro-batch; None where
        it has none.
        """
        student = self._states.taken()[LAST]
        parent_of = self._pairs.parent_of
        pairs = {k: row for k, row in enumerate(batch["index"].tolist()) if row in parent_of}
        if not pairs:
            return None
        parents = self._pairs.batch([parent_of[row] for row in pairs.values()])
        own: list[tuple[int, int]] = []
        wanted = torch.zeros_like(parents["input_ids"], dtype=torch.bool)
        tokens = self._pairs.tokens
        for turn, (place, index) in enumerate(pairs.items()):
            shared = shared_tokens(tokens(index), tokens(parent_of[index]))
            row, begins = _begin_of(batch, place)
            own += [(row, begins + token) for token in shared.own]
            row, begins = _begin_of(parents, turn)
            wanted[row, [begins + token for token in shared.parent]] = True
        if not own:
            return None
        # The places that are wanted of the parents come in the order of ``own``: by row and token.
        _, states = self._parents.read(parents, wanted)
        at = torch.tensor(own, device=student.device)
        total = distance(student[at[:, 0], at[:, 1]], states[LAST])
        self._sum = self._sum + total.detach()
        self._tokens += len(own)
        return self.settings.weight * total

    def backward_done(self, *, replay: bool | None) -> None:
        self._states.taken()  # gradient checkpointing has filled it once more

    def measures(self) -> dict[str, float]:
        """``distance``, of a compared token."""
        totals = torch.tensor(
            [float(self._sum), self._tokens], dtype=torch.float64, device=self._device
        )
        if processes() > 1:
            # A process without pairs takes part with zeros.
            distributed.all_reduce(totals)
        total, tokens = totals.tolist()
        self._sum = torch.zeros_like(self._sum)
        self._tokens = 0
        return {"distance": total / tokens} if tokens else {}


def _begin_of(batch: Batch, place: int) -> tuple[int, int]:
    """Where the row at a place of the batch begins: its row and column in ``input_ids``."""
    if "row" not in batch:
        return place, 0
    return 0, int((batch["row"][0] == place).nonzero()[0])
