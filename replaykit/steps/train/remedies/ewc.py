"""Elastic weight consolidation: what the old data needs is held near the base. And its control,
L2-SP.

    loss + lambda/2 * sum_i F_i (theta_i - theta*_i)^2          theta* is the base

F is the Fisher information on replay rows (``fisher``), with mean 1 so that lambda means the same
for every model (Kirkpatrick et al., arXiv 1612.00796, eq. 3; L2-SP, F = 1, is Li et al., arXiv
1802.01483, eq. 2). The penalty is no part of the loss: its gradient, lambda * F * (theta - theta*),
is added once in each optimiser step, so it does not depend on how the step is cut into
micro-batches.

**Under LoRA** dW = s B A, theta* is dW = 0, and F_ij = u_i v_j is that of the matrix under the
adapter. Then

    sum_ij F_ij dW_ij^2 = s^2 tr(B'UB AVA')                  U = diag(u), V = diag(v)

needs no matrix larger than A and B. What else learns beside the adapter's A and B is not held.

Cost, full fine-tuning of N parameters: for each 4 bytes (F) and a copy of the base's value in the
precision in which it is trained, 4 bytes more; the passes that make F; in a step one read of both,
two with ``auto``, from the computer's memory where ``train.offload`` keeps them there. With
``hard`` 1 byte more, and F's 4 are free after the begin where there is no penalty. LoRA: u and v,
some MB for 7B parameters, no copy of the model, and O(r^2 (d_in + d_out)) operations a layer and
step.

A step of plain gradient descent diverges where rate * lambda * F > 2, and the largest F can be
thousands of times the mean; clipping the gradient's norm, which acts on the loss and the penalty
together, keeps that in bounds, and so does ``auto``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from replaykit.model.shards import everywhere, is_sharded, local
from replaykit.recipe.remedies import EwcSettings, L2spSettings
from replaykit.steps.train.remedies import Remedy, Run, learning_parameters, wide
from replaykit.steps.train.remedies.fisher import (
    Layer,
    diagonal_of,
    highest,
    kronecker_of,
    lora_layers,
)

# A parameter, the penalty's gradient for it at lambda 1, and its part of sum F (theta - theta*)^2.
Pull = tuple[nn.Parameter, torch.Tensor, torch.Tensor]


def kronecker_penalty(
    a: torch.Tensor, b: torch.Tensor, u: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sum_ij u_i v_j dW_ij^2 for dW = scale * b @ a, and the gradients for a and b of half of it.

    a is [r, d_in], b is [d_out, r], u [d_out], v [d_in]; without dW and without autograd.
    """
    weighted_a = a * v
    weighted_b = b * u[:, None]
    # B'UB and AVA', [r, r]. Both are symmetric, so the trace of their product is the sum of their
    # elementwise product.
    of_b = b.T @ weighted_b
    of_a = weighted_a @ a.T
    square = scale * scale
    return square * (of_b * of_a).sum(), square * (of_b @ weighted_a), square * (weighted_b @ of_a)


class _Held(Remedy):
    """What ewc and l2sp share: the penalty's gradient, its strength, and what is logged of it."""

    auto: float | None = None

    def __init__(self, settings: EwcSettings | L2spSettings, strength: float):
        super().__init__(settings)
        self.strength = strength
        self._pulls: Callable[[], Iterator[Pull]] = lambda: iter(())
        # Whether what is held is shared out among processes.
        self._sharded = False
        # Of the penalty, the ratio of both gradients, and lambda, over ``_steps`` steps.
        self._sums: torch.Tensor | None = None
        self._steps = 0

    @torch.no_grad()
    def gradients(self) -> None:
        """Adds lambda * F * (theta - theta*) to every gradient.

        With ``auto`` lambda is auto * |gradient of the loss| / |F (theta - theta*)| anew in each
        step, so that the ratio is kept all along. A lambda that is fixed when the penalty is first
        above 0 would be far too large: the parameters have then moved by one step's length and the
        penalty's gradient grows with the way they go. It needs no memory of steps before, so a
        resumed run takes the same.
        """
        if self.auto is None:
            loss, pull, energy = self._pass(self.strength)
            strength = torch.full_like(loss, self.strength)
        else:
            loss, pull, energy = self._pass(None)
            least = torch.finfo(pull.dtype).tiny
            strength = torch.where(pull > 0, self.auto * loss / pull.clamp(min=least), 0.0)
            self._pass(strength)  # what it measures is the same once more, and not needed
        ratio = torch.where(loss > 0, strength * pull / loss, 0.0)
        now = torch.stack([strength / 2 * energy, ratio, strength])
        self._sums = now if self._sums is None else self._sums + now
        self._steps += 1

    def _pass(self, strength: torch.Tensor | float | None) -> tuple[torch.Tensor, ...]:
        """Norm of the loss's gradient, norm of the penalty's at lambda 1, and sum F (theta -
        theta*)^2. With a strength the penalty's gradient is added after that; nothing waits for the
        device.
        """
        sums: torch.Tensor | None = None
        for parameter, pull, energy in self._pulls():
            if parameter.grad is None:  # frozen at this stage
                continue
            gradient = local(parameter.grad)
            squares = (wide(gradient).square().sum(), pull.square().sum(), energy)
            own = torch.stack([value.double() for value in squares])
            sums = own if sums is None else sums + own
            if strength is not None:
                gradient.add_((pull * strength).to(gradient.dtype))
        if sums is None:
            sums = torch.zeros(3, dtype=torch.float64)
        sums = everywhere(sums, sharded=self._sharded)
        return sums[0].sqrt(), sums[1].sqrt(), sums[2]

    def measures(self) -> dict[str, float]:
        """Means over the steps since the last time: the penalty (nats, beside the mean loss of a
        token), the norm of its gradient over that of the loss, and lambda.
        """
        if self._sums is None:
            return {}
        penalty, ratio, strength = (self._sums / self._steps).tolist()
        self._sums = None
        self._steps = 0
        return {"penalty": penalty, "ratio": ratio, "strength": strength}


def _from_base(
    held: Sequence[tuple[nn.Parameter, torch.Tensor, torch.Tensor | None]],
) -> Iterator[Pull]:
    """Of parameters, the base's values and F (None is 1)."""
    for parameter, base, fisher in held:
        now = wide(local(parameter))
        moved = now - base.to(now.device)
        pull = moved if fisher is None else moved * fisher.to(now.device)
        yield parameter, pull, (moved * pull).sum()


def _from_zero(held: Sequence[tuple[Layer, torch.Tensor, torch.Tensor]]) -> Iterator[Pull]:
    """Of layers under LoRA, u and v. The layer's whole penalty stands with its B."""
    for layer, u, v in held:
        a = wide(layer.a.detach())
        b = wide(layer.b.detach())
        energy, of_a, of_b = kronecker_penalty(a, b, u.to(b.dtype), v.to(a.dtype), layer.scale)
        yield layer.a, of_a, torch.zeros_like(energy)
        yield layer.b, of_b, energy


def _with_base(run: Run) -> list[tuple[str, nn.Parameter, torch.Tensor]]:
    """The parameters that learn, each with its name and its value in the untrained model, which
    this still is; of one that is shared out what is here.
    """
    learning = learning_parameters(run.model)
    return [
        (name, parameter, run.kept(local(parameter).clone()))
        for name, parameter in learning.items()
    ]


class Ewc(_Held):
    """lambda/2 * sum F (theta - theta*)^2; with ``hard`` a limit to how far the parameters of the
    highest F move, alone or beside it.
    """

    name = "ewc"
    settings: EwcSettings

    def __init__(self, settings: EwcSettings):
        super().__init__(settings, settings.fixed_strength)
        self.auto = settings.auto
        # A parameter, its value in the base, and which of its numbers are bounded.
        self._bounded: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        # Of the last step: how many of these it had moved too far, and how many there are.
        self._clamped: torch.Tensor | None = None

    def begin(self, run: Run) -> None:
        """Makes F on the first ``rows`` rows of the old data, or of the replay, or reads it from
        the folder.
        """
        given = run.old or run.replay
        rows = list(islice(given(), self.settings.rows))
        if run.adapter:
            fisher = kronecker_of(run, rows)
            product = [
                (layer, fisher[f"{name}.u"], fisher[f"{name}.v"])
                for name, layer in lora_layers(run.model).items()
            ]
            self._pulls = lambda: _from_zero(product)
            return
        self._sharded = is_sharded(run.model)
        fisher = diagonal_of(run, rows)
        of_base = _with_base(run)
        if self.settings.hard is not None:
            chosen = highest(fisher, self.settings.hard)
            self._bounded = [(given, base, run.kept(chosen[name])) for name, given, base in of_base]
        if self._pulling:
            held = [(given, base, run.kept(fisher[name])) for name, given, base in of_base]
            self._pulls = lambda: _from_base(held)

    @property
    def _pulling(self) -> bool:
        """Whether there is a penalty; with ``hard`` there may be none."""
        return self.settings.hard is None or self.auto is not None or self.strength > 0

    def gradients(self) -> None:
        if self._pulling:
            super().gradients()

    @torch.no_grad()
    def stepped(self) -> None:
        """With ``hard``: |theta - theta*| <= max_shift * |theta*| for the chosen parameters; one
        that is 0 stays so.
        """
        counts = []
        for parameter, base, bounded in self._bounded:
            values = base.to(parameter.device, parameter.dtype)
            chosen = bounded.to(parameter.device)
            reach = values.abs() * self.settings.max_shift
            inside = parameter.clamp(values - reach, values + reach)
            counts.append(torch.stack([((inside != parameter) & chosen).sum(), chosen.sum()]))
            parameter.copy_(torch.where(chosen, inside, parameter))
        if counts:
            self._clamped = torch.stack(counts).sum(dim=0)

    def measures(self) -> dict[str, float]:
        """As for the penalty, if there is one; with ``hard`` the part of the chosen parameters that
        the last step had moved too far.
        """
        found = super().measures()
        if self._clamped is not None:
            moved, chosen = self._clamped.tolist()
            self._clamped = None
            found["clamped"] = moved / chosen
        return found


class L2sp(_Held):
    """lambda/2 * sum (theta - theta*)^2; under LoRA lambda/2 * |dW|^2, by the r x r products B'B
    and AA'.
    """

    name = "l2sp"
    settings: L2spSettings

    def __init__(self, settings: L2spSettings):
        super().__init__(settings, settings.strength)

    def begin(self, run: Run) -> None:
        if run.adapter:
            ones = []
            for layer in lora_layers(run.model).values():
                u = torch.ones(len(layer.b), device=layer.b.device)
                v = torch.ones(layer.a.shape[1], device=layer.a.device)
                ones.append((layer, u, v))
            self._pulls = lambda: _from_zero(ones)
            return
        self._sharded = is_sharded(run.model)
        same = [(parameter, base, None) for _, parameter, base in _with_base(run)]
        self._pulls = lambda: _from_base(same)
