"""The target's gradient is turned until it does not work against that of replay: A-GEM, with a cone
instead of a half-space.

    r = gradient of the step's replay rows, g = of its target rows
    g' = g where cos(g, r) >= c, else max(g.u, 0) u
    u = c r/|r| + sqrt(1 - c^2) g_perp/|g_perp|             g_perp = g - (g.r / |r|^2) r

g' is the vector nearest to g among those with cos(., r) >= c; the step goes along r + g'. At c = 0
it is g_perp, which is A-GEM (Chaudhry et al., arXiv 1812.00420, eq. 11), with the replay rows of
the very step as its reference instead of a sample drawn for it. The cone for c > 0 is our own: the
nearest point of a circular cone, which lies in the plane of g and r. Of a g that is at right angles
to r at most sqrt(1 - c^2) of the length is left, at c = 0.8 that is 0.6: the target is learned more
slowly.

Where this differs from A-GEM: replay is learned too, r is part of the step, as without the remedy.
And the turning is of the gradient, so an optimiser with moments can still move a little against r.

Both gradients are made anyway. Replay rows come first, in micro-batches of their own
(``separate``): what is in ``.grad`` after the last of them is r, and what all others add is g.
Cost: a copy of the gradient, 4 bytes for each parameter that learns; in a step one copy for each
replay micro-batch, and a read of both gradients twice; no forward or backward pass. The
micro-batches themselves are less full than mixed ones, which matters where the rows of a step are
few. Several processes have one reduction of r more.

While it is off it goes on measuring the cosine, and turns nothing: how much task and replay work
against each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import distributed, nn

from replaykit.recipe.remedies import ProjectSettings
from replaykit.steps.train.remedies import Remedy, Run, processes, wide


def dots(g: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """g.r, g.g and r.r as float64, [3]; g and r are of the same shape. Summed in float32, or in
    float64 where they are.
    """
    g = wide(g.flatten())
    r = wide(r.flatten())
    return torch.stack([g @ r, g @ g, r @ r]).double()


def cosine(sums: torch.Tensor) -> torch.Tensor:
    """The cosine between two gradients by their ``dots``, as a float64 scalar; 0 where one of them
    is 0.
    """
    gr, gg, rr = sums
    lengths = (gg * rr).sqrt()
    least = torch.finfo(lengths.dtype).tiny
    return torch.where(lengths > 0, gr / lengths.clamp(min=least), 0.0)


def turned(sums: torch.Tensor, min_cosine: float) -> torch.Tensor:
    """[alpha, beta] so that alpha * g + beta * r is the vector nearest to g with a cosine to r of
    at least ``min_cosine``.

    ``sums`` are g.r, g.g and r.r. Exactly [1, 0] where g has that cosine, and where g or r is 0.
    """
    gr, gg, rr = sums
    tiny = torch.finfo(sums.dtype).tiny
    length = rr.sqrt().clamp(min=tiny)
    along = gr / length  # g's part along r
    across = (gg - along * along).clamp(min=0).sqrt()  # |g_perp|
    sine = (1 - min_cosine * min_cosine) ** 0.5
    on_edge = (min_cosine * along + sine * across).clamp(min=0)  # g.u
    alpha = on_edge * sine / across.clamp(min=tiny)
    beta = on_edge * min_cosine / length - alpha * along / length
    keep = gr >= min_cosine * (gg * rr).sqrt()
    # 0 is nearest where g points away from the cone.
    moved = torch.where(on_edge > 0, torch.stack([alpha, beta]), 0.0)
    return torch.where(keep, moved.new_tensor([1.0, 0.0]), moved)


class Project(Remedy):
    """r + g becomes r + g' before each optimiser step that has replay rows."""

    name = "project"
    separate = True
    watches = True
    settings: ProjectSettings

    def __init__(self, settings: ProjectSettings):
        super().__init__(settings)
        self._parameters: list[nn.Parameter] = []
        # r by parameter; None until a step has had one.
        self._replay: list[torch.Tensor | None] = []
        # Whether this step has had rows of either kind so far.
        self._has_replay = False
        self._has_target = False
        # Sums of the cosine and of the part that was turned, and how many steps they are of.
        self._sums: torch.Tensor | None = None

    def begin(self, run: Run) -> None:
        self._parameters = [
            parameter for parameter in run.model.parameters() if parameter.requires_grad
        ]
        self._replay = [None] * len(self._parameters)

    @torch.no_grad()
    def backward_done(self, *, replay: bool | None) -> None:
        """After a replay micro-batch ``.grad`` is r so far: it is copied over what was copied
        before.
        """
        if replay is None:
            return
        self._has_target |= not replay
        if self._has_target:
            return  # replay rows come first: what is added from here on is not r
        self._has_replay = True
        for k, parameter in enumerate(self._parameters):
            own = self._replay[k]
            if parameter.grad is None:
                self._replay[k] = None
            elif own is None:
                self._replay[k] = parameter.grad.clone()
            else:
                own.copy_(parameter.grad)

    @torch.no_grad()
    def gradients(self) -> None:
        """Turns the target's part of ``.grad``. A step without replay rows, or of nothing else,
        stays as it is.
        """
        has_replay = self._has_replay
        self._has_replay = False
        self._has_target = False
        if processes() > 1:
            has_replay = self._reduced(has_replay)
        if not has_replay:
            return
        found = [dots(_target(gradient, r), r) for gradient, r in self._pairs()]
        if not found:
            return
        blocks = torch.stack(found)
        sums = blocks.sum(dim=0)
        part = sums.new_zeros(())
        if self.on:
            part = self._turn(blocks, sums)
        both = (sums[1] > 0) & (sums[2] > 0)  # kinds of rows have a gradient
        now = torch.stack([cosine(sums), part, torch.ones_like(part)]) * both
        self._sums = now if self._sums is None else self._sums + now

    def _turn(self, blocks: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Turns, by the dots of each parameter [n, 3] and those of all [3], and returns the part of
        them that had to be.
        """
        c = self.settings.min_cosine
        if self.settings.blockwise:
            ways = torch.stack([turned(own, c) for own in blocks])
        else:
            ways = turned(sums, c).expand(len(blocks), 2)
        for (gradient, r), (alpha, beta) in zip(self._pairs(), ways, strict=True):
            # alpha (grad - r) + beta r, and r itself.
            gradient.mul_(alpha).add_(r * (1 + beta - alpha))
        return (ways != ways.new_tensor([1.0, 0.0])).any(dim=1).double().mean()

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``.grad`` and r of each parameter that has both. Without r the gradient is the target's
        alone, and kept.
        """
        for parameter, r in zip(self._parameters, self._replay, strict=True):
            if parameter.grad is not None and r is not None:
                yield parameter.grad, r

    def _reduced(self, has_replay: bool) -> bool:
        """Makes r the mean over processes, as ``.grad`` is by now, and says whether any of them has
        replay rows.
        """
        device = self._parameters[0].device
        some = torch.tensor(float(has_replay), device=device)
        distributed.all_reduce(some)
        if not some.item():
            return False
        for k, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            own = self._replay[k]
            if own is None:
                own = torch.zeros_like(parameter.grad)
            elif not has_replay:
                own.zero_()  # it is of a step before
            distributed.all_reduce(own)
            self._replay[k] = own.div_(processes())
        return True

    def measures(self) -> dict[str, float]:
        """Over the steps with both kinds of rows since the last time: the mean cosine of g and r,
        before turning, and the part of them in which g was turned; with ``blockwise`` the part of
        parameters.
        """
        if self._sums is None:
            return {}
        cosines, part, steps = self._sums.tolist()
        self._sums = None
        if not steps:
            return {}
        return {"cosine": cosines / steps, "projected": part / steps}


def _target(gradient: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """g, what the target rows have added to r."""
    return wide(gradient) - wide(r)
