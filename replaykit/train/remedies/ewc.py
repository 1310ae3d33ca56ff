"""Elastic weight consolidation: what the old data needs is held near the base. And its control,
L2-SP.

    loss + lambda/2 * sum_i F_i (theta_i - theta*_i)^2      F_i = mean over rows of (d log p(answer | question) / d theta_i)^2

theta* is the base, F the diagonal of the empirical Fisher information on replay rows, scaled to
mean 1 so that lambda means the same for every model (Kirkpatrick et al., arXiv 1612.00796, eq. 3;
L2-SP, F = 1, is Li et al., arXiv 1802.01483, eq. 2). The penalty is no part of the loss: its
gradient, lambda * F * (theta - theta*), is added once in each optimiser step, so it does not depend
on how the step is cut into micro-batches.

**F** is made row by row: the square of a batch's gradient is not the sum of its rows' squares. A
row's loss is the sum of its answer tokens' negative log-likelihoods, -log p(answer | question), as
the definition has it; a mean would count each token of a long answer for less. Tokens that other
remedies mask count here: it is the base's whole knowledge that is held.

**Under LoRA** dW = s B A, theta* is dW = 0, and the Fisher of A and B themselves says nothing: at B
= 0 that of A is 0. So it is that of the matrix W under the adapter, with its diagonal as a product,
F_ij = u_i v_j (the diagonals of both factors of K-FAC, Martens and Grosse, arXiv 1503.05671,
section 3). A row's gradient of W is a sum over positions, sum_t g_t a_t'; its square is taken as
sum_t g_t^2 (a_t^2)', as if positions were uncorrelated (K-FAC-expand, Eschenhagen et al., arXiv
2311.00636, section 3), and the mean of that product as the product of the means: u = mean over rows
of sum_t g_t^2, v = mean over positions, of the question too, of a_t^2. The scale is chosen so that
all u_i v_j of all layers have mean 1. Then

    sum_ij F_ij dW_ij^2 = s^2 tr(B'UB AVA')                  U = diag(u), V = diag(v)

needs no matrix larger than A and B. What else learns beside the adapter's A and B is not held.

Cost, full fine-tuning of N parameters: for each 4 bytes (F) and a copy of the base's value in the
precision in which it is trained, 4 bytes more; at the begin one forward and backward pass, in that
precision too, for each of ``rows`` rows; in a step one read of both, two with ``auto``. With
``hard`` 1 byte instead of F's 4 after the begin. LoRA: 4 (d_in + d_out) bytes a layer, some MB for
7B parameters, no copy of the model, and O(r^2 (d_in + d_out)) operations a layer and step. F is
added up in float32 in both.

A step of plain gradient descent diverges where rate * lambda * F > 2, and the largest F can be
thousands of times the mean; clipping the gradient's norm, which acts on the loss and the penalty
together, keeps that in bounds, and so does ``auto``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from replaykit import training_settings
from replaykit.errors import DataError, RecipeError
from replaykit.head import Head, evaluating, inputs, split_head
from replaykit.train.losses import SMALL, cross_entropy, summed
from replaykit.train.remedies import Batch, Remedy, Run, key_of, learning_kept
from replaykit.train.remedies.teachers import adapter_off

FISHER_FILE = "fisher.safetensors"  # in the folder of the training: F, or u and v of each layer
TOKENS_TOGETHER = 512  # of rows of one length that go through the model under LoRA at a time
FORMAT = 2  # of that file, and of what it is made by
Tensors = dict[str, torch.Tensor]
# A parameter, the penalty's gradient for it at lambda 1, and its part of sum F (theta - theta*)^2.
Pull = tuple[nn.Parameter, torch.Tensor, torch.Tensor]


# --- Fisher information ---------------------------------------------------------------------------


def row_losses(model: nn.Module, rows: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """-log p(answer | question) in nats of each batch, the sum of its rows', a scalar with
    gradients.

    The model is in evaluation mode until the last of them has been taken.
    """
    return _row_losses(
        model, split_head(model), rows
    )  # at once: it tries the model, and hooks shall not see that


def _row_losses(
    model: nn.Module, head: Head | None, rows: Iterable[Batch]
) -> Iterator[torch.Tensor]:
    with evaluating(model):
        for row in rows:
            where = row["labels"] >= 0
            targets = row["labels"][where]
            objective = cross_entropy(targets, torch.ones_like(targets, dtype=torch.float32))
            if head is not None:
                yield summed(head.hidden(model, row)[where], head, objective)
            else:
                yield objective(_wide(model(**inputs(row)).logits[where]), slice(None))


def diagonal_fisher(model: nn.Module, rows: Iterable[Batch]) -> Tensors:
    """F of the parameters that learn, each in its shape, float32, with mean 1 over all of them.

    ``rows`` are batches of one row. The parameters have no gradient before and none afterwards.
    Raises DataError if all gradients are 0 or one is not finite.
    """
    learning = _learning(model)
    fisher = {
        name: torch.zeros_like(parameter, dtype=torch.float32)
        for name, parameter in learning.items()
    }
    for loss in row_losses(model, rows):
        loss.backward()
        for name, parameter in learning.items():
            if parameter.grad is not None:  # an expert that this row did not use has none
                gradient = parameter.grad.float()
                fisher[name].addcmul_(gradient, gradient)
                parameter.grad = None
    total = sum(float(values.sum(dtype=torch.float64)) for values in fisher.values())
    mean = _checked(total / sum(values.numel() for values in fisher.values()))
    return {name: values.div_(mean) for name, values in fisher.items()}


@dataclass(frozen=True)
class Layer:
    """A linear layer under LoRA: dW = scale * b @ a. ``base`` is the layer itself."""

    base: Any  # nn.Linear, or GPT-2's Conv1D, whose weight is the other way round
    a: nn.Parameter  # [r, d_in]
    b: nn.Parameter  # [d_out, r]
    scale: float


def lora_layers(model: nn.Module) -> dict[str, Layer]:
    """The linear layers with an active LoRA adapter, by name.

    Raises RecipeError for an adapter that has another form: of embeddings, of convolutions, or
    DoRA's.
    """
    from peft.tuners.lora import LoraLayer

    layers = {}
    other = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            linear = adapter in module.lora_A and module.lora_A[adapter].weight.dim() == 2
            if adapter in module.lora_embedding_A or (adapter in module.lora_A and not linear):
                other.append(
                    f"{name}: ewc and l2sp know LoRA on linear layers only; leave it out of the "
                    f"adapter"
                )
            elif linear and module.use_dora.get(adapter):
                other.append(
                    f"{name}: ewc and l2sp know LoRA without DoRA only; say train.method: lora"
                )
            elif linear:
                a = module.lora_A[adapter].weight
                b = module.lora_B[adapter].weight
                layers[name] = Layer(module.get_base_layer(), a, b, float(module.scaling[adapter]))
    if other or not layers:
        raise RecipeError(
            "the recipe", other or ["train.remedies: ewc and l2sp find no LoRA layer in the model"]
        )
    return layers


def kronecker_fisher(model: Any, rows: Sequence[Batch]) -> Tensors:
    """``<layer>.u`` [d_out] and ``<layer>.v`` [d_in] of every layer under LoRA, float32, all u_i
    v_j with mean 1.

    Of the base whatever the adapter has learned: it is switched off. Squares are taken at each
    position of each row, so rows may go through the model together. Raises DataError as
    ``diagonal_fisher`` does.
    """
    layers = lora_layers(model)
    squares = {name: _Squares(layer) for name, layer in layers.items()}
    with learning_kept(model), adapter_off(model):
        model.requires_grad_(False)
        losses = row_losses(model, _together(rows))
        hooks = [
            layer.base.register_forward_hook(squares[name].watch) for name, layer in layers.items()
        ]
        try:
            for loss in losses:
                loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
    found: Tensors = {}
    for name, own in squares.items():
        found |= {
            f"{name}.u": own.gradients / max(len(rows), 1),
            f"{name}.v": own.inputs / max(own.positions, 1),
        }
    pairs = [(found[f"{name}.u"].double(), found[f"{name}.v"].double()) for name in layers]
    mean = _checked(
        sum(float(u.sum() * v.sum()) for u, v in pairs) / sum(len(u) * len(v) for u, v in pairs)
    )
    return {key: values / mean if key.endswith(".u") else values for key, values in found.items()}


def _together(rows: Sequence[Batch]) -> Iterator[Batch]:
    """Rows of the same length as one batch: without padding, which would count as positions. It is
    no larger than the longest row, so it needs no more memory, or than some hundred tokens, which
    need little in any model.
    """
    longest = max((row["labels"].numel() for row in rows), default=0)
    alike: dict[object, list[Batch]] = {}
    for row in (
        {name: given for name, given in row.items() if isinstance(given, torch.Tensor)}
        for row in rows
    ):
        alike.setdefault(tuple((name, row[name].shape[1:]) for name in sorted(row)), []).append(row)
    for group in alike.values():
        count = max(1, max(longest, TOKENS_TOGETHER) // group[0]["labels"].numel())
        for start in range(0, len(group), count):
            part = group[start : start + count]
            yield {name: torch.cat([row[name] for row in part]) for name in part[0]}


class _Squares:
    """Sums over positions of the squares of a linear layer's inputs, and of the gradients of its
    outputs.
    """

    def __init__(self, layer: Layer):
        device = layer.a.device
        self.inputs = torch.zeros(layer.a.shape[1], device=device)
        self.gradients = torch.zeros(layer.b.shape[0], device=device)
        self.positions = 0

    def watch(
        self, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """A forward hook. No parameter learns in this pass, so gradients start at the outputs that
        it marks.
        """
        given = args[0].detach().reshape(-1, len(self.inputs))
        self.inputs += given.float().square().sum(dim=0)
        self.positions += len(given)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output.register_hook(self._take)
        return output

    def _take(self, gradient: torch.Tensor) -> None:
        self.gradients += (
            gradient.detach().reshape(-1, len(self.gradients)).float().square().sum(dim=0)
        )


def _checked(mean: float) -> float:
    if not 0 < mean < float("inf"):
        raise DataError(
            f"train.remedies.ewc: the mean Fisher information of the replay rows is {mean}; they "
            f"need answers that carry "
            "loss, and a model whose loss on them is finite"
        )
    return mean


# --- the file -------------------------------------------------------------------------------------


def kept(path: Path, key: str, make: Callable[[], Tensors], *, device: torch.device) -> Tensors:
    """The tensors in the file if it was made for the same key; else what ``make`` makes, written
    there for the next run.
    """
    found = _read(path, key, device)
    if found is not None:
        return found
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(
        f"{path.name}.{os.getpid()}.tmp"
    )  # each of several processes makes the same by itself
    save_file(
        {name: values.contiguous() for name, values in made.items()},
        unfinished,
        metadata={"key": key},
    )
    unfinished.replace(path)
    return made


def _read(path: Path, key: str, device: torch.device) -> Tensors | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except SafetensorError:  # not a whole file of ours: it is made anew, and replaced
        return None


# --- penalties ------------------------------------------------------------------------------------


def kronecker_penalty(
    a: torch.Tensor, b: torch.Tensor, u: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sum_ij u_i v_j dW_ij^2 for dW = scale * b @ a, and the gradients for a and b of half of it.

    a is [r, d_in], b is [d_out, r], u [d_out], v [d_in]; without dW and without autograd.
    """
    weighted_a = a * v
    weighted_b = b * u[:, None]
    # [r, r]
    of_b = b.T @ weighted_b
    of_a = weighted_a @ a.T
    square = scale * scale
    return square * (of_b * of_a).sum(), square * (of_b @ weighted_a), square * (weighted_b @ of_a)


class _Held(Remedy):
    """What ewc and l2sp share: the penalty's gradient, its strength, and what is logged of it."""

    strength: float
    auto: float | None = None

    def __init__(self, settings: Any):
        super().__init__(settings)
        self.strength = settings.strength
        self._pulls: Callable[[], Iterator[Pull]] = lambda: iter(())
        self._sums: torch.Tensor | None = None  # penalty, ratio, strength
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
            strength = torch.where(
                pull > 0, self.auto * loss / pull.clamp(min=torch.finfo(pull.dtype).tiny), 0.0
            )
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
            gradient = parameter.grad
            if gradient is None:  # frozen at this stage
                continue
            squares = (_wide(gradient).square().sum(), pull.square().sum(), energy)
            own = torch.stack([value.double() for value in squares])
            sums = own if sums is None else sums + own
            if strength is not None:
                gradient.add_((pull * strength).to(gradient.dtype))
        if sums is None:
            sums = torch.zeros(3, dtype=torch.float64)
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
        moved = _wide(parameter.detach()) - base
        pull = moved if fisher is None else moved * fisher
        yield parameter, pull, (moved * pull).sum()


def _from_zero(held: Sequence[tuple[Layer, torch.Tensor, torch.Tensor]]) -> Iterator[Pull]:
    """Of layers under LoRA, u and v. The layer's whole penalty stands with its B."""
    for layer, u, v in held:
        a = _wide(layer.a.detach())
        b = _wide(layer.b.detach())
        energy, of_a, of_b = kronecker_penalty(a, b, u.to(b.dtype), v.to(a.dtype), layer.scale)
        yield layer.a, of_a, torch.zeros_like(energy)
        yield layer.b, of_b, energy


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def _with_base(model: nn.Module) -> list[tuple[str, nn.Parameter, torch.Tensor]]:
    """The parameters that learn, each with its name and its value in the untrained model, which
    this still is.
    """
    return [
        (name, parameter, parameter.detach().clone())
        for name, parameter in _learning(model).items()
    ]


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in SMALL else values


class Ewc(_Held):
    """lambda/2 * sum F (theta - theta*)^2, or with ``hard`` a limit to how far the parameters of
    the highest F move.
    """

    name = "ewc"
    settings: training_settings.Ewc

    def __init__(self, settings: training_settings.Ewc):
        super().__init__(settings)
        self.auto = settings.auto
        self._bounded: list[
            tuple[nn.Parameter, torch.Tensor, torch.Tensor]
        ] = []  # parameter, theta*, which of it
        self._clamped: torch.Tensor | None = None

    def begin(self, run: Run) -> None:
        """Makes F on the first ``rows`` rows of the old data, or of the replay, or reads it from
        the folder.
        """
        rows = list(islice((run.old or run.replay)(), self.settings.rows))
        path = run.folder / FISHER_FILE
        device = next(run.model.parameters()).device
        if run.adapter:
            layers = lora_layers(run.model)
            key = key_of(
                [FORMAT, "lora"], {name: layer.base.weight for name, layer in layers.items()}, rows
            )
            fisher = kept(path, key, lambda: kronecker_fisher(run.model, rows), device=device)
            product = [
                (layer, fisher[f"{name}.u"], fisher[f"{name}.v"]) for name, layer in layers.items()
            ]
            self._pulls = lambda: _from_zero(product)
            return
        key = key_of([FORMAT, "full"], _learning(run.model), rows)
        fisher = kept(path, key, lambda: diagonal_fisher(run.model, rows), device=device)
        if self.settings.hard is not None:
            fisher = highest(fisher, self.settings.hard)
        held = [(parameter, base, fisher[name]) for name, parameter, base in _with_base(run.model)]
        if self.settings.hard is not None:
            self._bounded = held
        else:
            self._pulls = lambda: _from_base(held)

    def gradients(self) -> None:
        if self.settings.hard is None:
            super().gradients()

    @torch.no_grad()
    def stepped(self) -> None:
        """With ``hard``: |theta - theta*| <= max_shift * |theta*| for the chosen parameters; one
        that is 0 stays so.
        """
        counts = []
        for parameter, base, chosen in self._bounded:
            values = base.to(parameter.dtype)
            reach = values.abs() * self.settings.max_shift
            inside = parameter.clamp(values - reach, values + reach)
            counts.append(torch.stack([((inside != parameter) & chosen).sum(), chosen.sum()]))
            parameter.copy_(torch.where(chosen, inside, parameter))
        if counts:
            self._clamped = torch.stack(counts).sum(dim=0)

    def measures(self) -> dict[str, float]:
        """As for the penalty; with ``hard`` the part of the chosen parameters that the last step
        had moved too far.
        """
        if self._clamped is None:
            return super().measures()
        moved, chosen = self._clamped.tolist()
        self._clamped = None
        return {"clamped": moved / chosen}


class L2sp(_Held):
    """lambda/2 * sum (theta - theta*)^2; under LoRA lambda/2 * |dW|^2, by the r x r products B'B
    and AA'.
    """

    name = "l2sp"
    settings: training_settings.L2sp

    def begin(self, run: Run) -> None:
        if run.adapter:
            ones = [
                (
                    layer,
                    torch.ones(len(layer.b), device=layer.b.device),
                    torch.ones(layer.a.shape[1], device=layer.a.device),
                )
                for layer in lora_layers(run.model).values()
            ]
            self._pulls = lambda: _from_zero(ones)
            return
        same = [(parameter, base, None) for _, parameter, base in _with_base(run.model)]
        self._pulls = lambda: _from_base(same)


def highest(fisher: Mapping[str, torch.Tensor], share: float) -> Tensors:
    """Which numbers are among the highest ``share`` of all, as booleans in their shapes; never one
    that is 0, ties all.

    The limit is found exactly, without sorting or a copy of all: float32 numbers that are not
    negative are in the order of their bits as integers, and 31 counts find the highest limit that
    leaves enough.
    """
    wanted = max(1, round(share * sum(values.numel() for values in fisher.values())))
    limit = 0
    for bit in reversed(range(31)):
        higher = limit | 1 << bit
        if (
            sum(int((values.view(torch.int32) >= higher).sum()) for values in fisher.values())
            >= wanted
        ):
            limit = higher
    return {name: values.view(torch.int32) >= max(limit, 1) for name, values in fisher.items()}
