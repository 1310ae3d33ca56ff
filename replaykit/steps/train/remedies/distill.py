"""Distillation from the base: its distribution over the next token is a second target, on replay
rows by default.

    L = (1 - a) * CE + a * T^2 * KL(p_base || p_model),  p = softmax(logits / T)

Hinton, Vinyals and Dean, arXiv 1503.02531, section 2: T^2 keeps the size of the gradient, which
falls with 1 / T^2. The KL is the forward one, a sum over the vocabulary and over the tokens that
carry loss. It costs one more forward pass, without gradients, of the distilled rows only.

The teacher is the same model with its adapter switched off, a frozen copy of the base
(``teachers``), or a file of its k most probable tokens (``teacher_cache``); in the recipe
``teacher: adapter-off, copy, cache``.

**Hidden states.** With ``layers``, layer_weight * sum over layers and distilled tokens of the mean
square of LN(h_model) - LN(h_base), LN without parameters, is added (the loss of FitNets, arXiv
1412.6550, on layer-normed states).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.nn.functional import kl_div

from replaykit.errors import RecipeError
from replaykit.model.lm_head import Batch, slices
from replaykit.recipe.remedies import DistillSettings
from replaykit.steps.train.batches import by_row
from replaykit.steps.train.remedies import Remedy, Run, Term, processes
from replaykit.steps.train.remedies.teacher_cache import Cached
from replaykit.steps.train.remedies.teachers import (
    NUMBERS,
    Lesson,
    Live,
    States,
    Target,
    adapter_off,
    distance,
    frozen,
    has_base_beneath,
    teachable,
)


class Distill(Remedy):
    """See the module. ``begin`` raises RecipeError for layers that the model has not, or an adapter
    not to be put off.
    """

    name = "distill"
    settings: DistillSettings

    def begin(self, run: Run) -> None:
        self._layers: States | None = None
        if self.settings.layers:
            self._layers = States(run.model, self.settings.layers, wanted=lambda: self.on)
        self._teacher = self._teacher_for(run)
        # The batch under way and its lesson, where ``term`` and ``penalty`` share it.
        self._last: tuple[Batch, Lesson] | None = None
        # By name, over ``_tokens`` distilled tokens.
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens = 0
        self._device = next(run.model.parameters()).device

    def _teacher_for(self, run: Run) -> Live | Cached:
        wanted = self.settings.teacher
        temperature = self.settings.temperature
        if wanted == "cache":
            return Cached.made(run, temperature, self.settings.top_k)
        if run.adapter and wanted != "copy" and has_base_beneath(run.model):
            return Live(run.model, temperature, base=adapter_off, layers=self._layers)
        if wanted == "adapter-off":
            problem = (
                "train.remedies.distill.teacher: with this adapter off the model is not the "
                "base; say copy or cache"
            )
            raise RecipeError("the recipe", [problem])
        teacher = frozen(run)
        layers = None
        if self.settings.layers:
            layers = States(teacher, self.settings.layers)
        return Live(teacher, temperature, layers=layers)

    def positions(self, batch: Batch) -> torch.Tensor:
        """[rows, length], true at the tokens of distilled rows that have a label, also where its
        weight is 0.
        """
        labelled = teachable(batch)
        if self.settings.rows == "all":
            return labelled
        return labelled & by_row(batch, "replay")

    def keeps(self, batch: Batch) -> torch.Tensor:
        """[rows, length], 1 - weight at the distilled tokens and 1 elsewhere."""
        return 1 - self.settings.weight * self.positions(batch).float()

    def term(self, batch: Batch, where: torch.Tensor) -> Term | None:
        """weight * T^2 * the KL summed over the distilled tokens of the slice. The teacher's
        forward pass is made here.
        """
        distilled = self.positions(batch)
        mask = distilled[where]
        # How many distilled tokens stand before each token of ``where``.
        before = [0, *mask.cumsum(dim=0).tolist()]
        assert before[-1] == int(distilled.sum()), "logits are computed at every distilled token"
        if before[-1] == 0:
            return None
        lesson = self._lesson(batch, distilled)
        scale = self.settings.weight * self.settings.temperature**2
        temperature = self.settings.temperature
        self._tokens += before[-1]
        places = mask.nonzero()[:, 0]

        def term(logits: torch.Tensor, part: slice) -> torch.Tensor:
            start, stop, _ = part.indices(len(mask))
            first = before[start]
            last = before[stop]
            if first == last:
                return logits.new_zeros(())
            # Which tokens of the slice are distilled; None where all are.
            rows = None
            if last - first < stop - start:
                rows = places[first:last] - start

            def target(some: slice, log_q: torch.Tensor) -> torch.Tensor:
                return lesson.target(slice(first + some.start, first + some.stop), log_q)

            divergence = kl(logits, target, temperature, rows)
            self._add("kl", divergence)
            return scale * divergence

        return term

    def penalty(self, batch: Batch) -> torch.Tensor | None:
        """layer_weight times the distance of hidden states, summed over layers and distilled
        tokens.
        """
        if self._layers is None:
            return None
        distilled = self.positions(batch)
        student = self._layers.taken()
        if not distilled.any():
            return None
        taught = self._lesson(batch, distilled).states
        self._last = None
        parts = [distance(student[layer][distilled], states) for layer, states in taught.items()]
        total = torch.stack(parts).sum()
        self._add("layers", total)
        return self.settings.layer_weight * total

    def backward_done(self, *, replay: bool | None) -> None:
        self._last = None
        if self._layers is not None:
            self._layers.taken()  # gradient checkpointing has filled it once more

    def measures(self) -> dict[str, float]:
        """``kl``, at the temperature, and ``layers``, the squared distance summed over layers: both
        a distilled token.
        """
        # By name, in the same order in every process, and then the tokens.
        names = ["kl", "layers"] if self.settings.layers else ["kl"]
        found = [float(self._sums.get(name, 0.0)) for name in names]
        totals = torch.tensor([*found, self._tokens], dtype=torch.float64, device=self._device)
        if processes() > 1:
            # A process without replay takes part with zeros.
            distributed.all_reduce(totals)
        *sums, tokens = totals.tolist()
        self._sums = {}
        self._tokens = 0
        if not tokens:
            return {}
        return {name: total / tokens for name, total in zip(names, sums, strict=True)}

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.detach()
        if name in self._sums:
            value = self._sums[name] + value
        self._sums[name] = value

    def _lesson(self, batch: Batch, distilled: torch.Tensor) -> Lesson:
        """The teacher's, of the forward pass that ``term`` and ``penalty`` share; kept only where
        both need it.
        """
        if self._last is not None and self._last[0] is batch:
            return self._last[1]
        lesson = self._teacher.lesson(batch, distilled)
        if self._layers is not None:
            self._last = (batch, lesson)
        return lesson


# --- the divergence -------------------------------------------------------------------------------


def kl(
    logits: torch.Tensor, target: Target, temperature: float, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """KL(target || softmax(logits / temperature)) summed over tokens, a scalar; logits are [n,
    vocabulary].

    ``rows``, int64, are the tokens that are meant, all by default; ``target`` gives
    log-probabilities at that temperature for a slice of them. Gradients flow to the logits; what is
    kept for them is one tensor [tokens meant, vocabulary].
    """
    return _Kl.apply(logits, target, temperature, rows)


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: Target,
        temperature: float,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        count = len(logits) if rows is None else len(rows)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = logits.new_empty(count, logits.shape[-1])
        total = logits.new_zeros(())
        for part in slices(count, logits.shape[-1], NUMBERS):
            some = logits[part] if rows is None else logits[rows[part]]
            # d KL / d logits = (q - p) / T, so no graph is needed, and log_q's memory is reused.
            log_q = torch.log_softmax(some / temperature, dim=-1)
            p = target(part, log_q).exp()
            total += kl_div(log_q, p, reduction="sum")  # 0 where p is 0
            if gradient is not None:
                gradient[part] = log_q.exp_().sub_(p).div_(temperature)
        ctx.gradient = gradient
        ctx.rows = rows
        ctx.shape = logits.shape
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        gradient = ctx.gradient * outer[0]
        if ctx.rows is not None:
            gradient = gradient.new_zeros(ctx.shape).index_copy_(0, ctx.rows, gradient)
        return gradient, None, None, None
