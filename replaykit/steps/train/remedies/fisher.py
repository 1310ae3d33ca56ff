"""Fisher information: how much the old data needs each parameter of the base.

    F_i = mean over rows of (d log p(answer | question) / d theta_i)^2          scaled to mean 1

It is made row by row: the square of a batch's gradient is not the sum of its rows' squares. A row's
loss is the sum of its answer tokens' negative log-likelihoods, -log p(answer | question), as the
definition has it; a mean would count each token of a long answer for less. Tokens that other
remedies mask count here: it is the base's whole knowledge that is held.

**Under LoRA** dW = s B A, and the Fisher of A and B themselves says nothing: at B = 0 that of A is
0. So it is that of the matrix W under the adapter, with its diagonal as a product, F_ij = u_i v_j
(the diagonals of both factors of K-FAC, Martens and Grosse, arXiv 1503.05671, section 3). A row's
gradient of W is a sum over positions, sum_t g_t a_t'; its square is taken as sum_t g_t^2 (a_t^2)',
as if positions were uncorrelated (K-FAC-expand, Eschenhagen et al., arXiv 2311.00636, section 3),
and the mean of that product as the product of the means: u = mean over rows of sum_t g_t^2, v =
mean over positions, of the question too, of a_t^2. The scale is chosen so that all u_i v_j of all
layers have mean 1.

Cost: one forward and backward pass for each row, in the precision in which the model is trained.
Kept in ``fisher.safetensors``, in the training's folder, for a resumed run: of N parameters 4 N
bytes; under LoRA 4 (d_in + d_out) bytes a layer. Added up in float32 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from replaykit.errors import DataError, RecipeError
from replaykit.model.lm_head import Batch, Head, evaluating, logits_of, split_head
from replaykit.model.shards import everywhere, is_sharded, local, part_name
from replaykit.steps.train.losses import cross_entropy, summed
from replaykit.steps.train.remedies import (
    Run,
    key_of,
    learning_kept,
    learning_parameters,
    wide,
    written_whole,
)
from replaykit.steps.train.remedies.teachers import adapter_off

FISHER_FILE = "fisher.safetensors"  # in the folder of the training: F, or u and v of each layer
TOKENS_TOGETHER = 512  # of rows of one length that go through the model under LoRA at a time
FORMAT = 2  # of that file, and of what it is made by
Tensors = dict[str, torch.Tensor]


def diagonal_of(run: Run, rows: Sequence[Batch]) -> Tensors:
    """``diagonal_fisher`` of the run's model, from its folder where it was made of the same rows
    and parameters before.
    """
    key = key_of([FORMAT, "full"], learning_parameters(run.model), rows)
    return _cached(run, key, lambda: diagonal_fisher(run.model, rows))


def kronecker_of(run: Run, rows: Sequence[Batch]) -> Tensors:
    """``kronecker_fisher`` of the run's model, from its folder where it was made of the same rows
    and layers before.
    """
    weights = {name: layer.base.weight for name, layer in lora_layers(run.model).items()}
    key = key_of([FORMAT, "lora"], weights, rows)
    return _cached(run, key, lambda: kronecker_fisher(run.model, rows))


# --- the gradients of rows ------------------------------------------------------------------------


def row_losses(model: nn.Module, rows: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """-log p(answer | question) in nats of each batch, the sum of its rows', a scalar with
    gradients.

    The model is in evaluation mode until the last of them has been taken.
    """
    # The head is split at once, before a caller sets its hooks: it is tried on the model.
    return _row_losses(model, split_head(model), rows)


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
                yield objective(wide(logits_of(model, row)[where]), slice(None))


def diagonal_fisher(model: nn.Module, rows: Iterable[Batch]) -> Tensors:
    """F of the parameters that learn, each in its shape, float32, with mean 1 over all of them; of
    one that is shared out among processes what is here.

    ``rows`` are batches of one row. The parameters have no gradient before and none afterwards.
    Raises DataError if all gradients are 0 or one is not finite.
    """
    learning = learning_parameters(model)
    fisher = {
        name: torch.zeros_like(local(parameter), dtype=torch.float32)
        for name, parameter in learning.items()
    }
    for loss in row_losses(model, rows):
        loss.backward()
        for name, parameter in learning.items():
            if parameter.grad is not None:  # an expert that this row did not use has none
                gradient = local(parameter.grad).float()
                fisher[name].addcmul_(gradient, gradient)
                parameter.grad = None
    # In float64, for there are millions of small numbers.
    sums = torch.stack([values.sum(dtype=torch.float64) for values in fisher.values()])
    total = float(everywhere(sums.sum(), sharded=is_sharded(model)))
    count = sum(parameter.numel() for parameter in learning.values())
    mean = _checked(total / count)
    return {name: values.div_(mean) for name, values in fisher.items()}


def _checked(mean: float) -> float:
    if not 0 < mean < float("inf"):
        raise DataError(
            f"train.remedies.ewc: the mean Fisher information of the replay rows is {mean}; they "
            f"need answers that carry loss, and a model whose loss on them is finite"
        )
    return mean


# --- under LoRA -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A linear layer under LoRA: dW = scale * b @ a."""

    base: Any
    """The layer itself: nn.Linear, or GPT-2's Conv1D, whose weight is the other way round."""
    a: nn.Parameter
    """[r, d_in]"""
    b: nn.Parameter
    """[d_out, r]"""
    scale: float


def lora_layers(model: nn.Module) -> dict[str, Layer]:
    """The linear layers with an active LoRA adapter, by name.

    Raises RecipeError for an adapter that has another form: of embeddings, of convolutions, or
    DoRA's.
    """
    from peft.tuners.lora import LoraLayer

    layers = {}
    problems = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            linear = adapter in module.lora_A and module.lora_A[adapter].weight.dim() == 2
            if adapter in module.lora_embedding_A or (adapter in module.lora_A and not linear):
                problems.append(
                    f"{name}: ewc and l2sp know LoRA on linear layers only; leave it out of the "
                    f"adapter"
                )
            elif linear and module.use_dora.get(adapter):
                problems.append(
                    f"{name}: ewc and l2sp know LoRA without DoRA only; say train.method: lora"
                )
            elif linear:
                a = module.lora_A[adapter].weight
                b = module.lora_B[adapter].weight
                layers[name] = Layer(module.get_base_layer(), a, b, float(module.scaling[adapter]))
    if not problems and not layers:
        problems.append("train.remedies: ewc and l2sp find no LoRA layer in the model")
    if problems:
        raise RecipeError("the recipe", problems)
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
        # No gradient of a matrix is made: those of the layers' outputs are all that is needed.
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
    us = {name: own.gradients / max(len(rows), 1) for name, own in squares.items()}
    vs = {name: own.inputs / max(own.positions, 1) for name, own in squares.items()}
    # The sum of all u_i v_j of a layer is the product of both sums.
    total = sum(float(us[name].double().sum() * vs[name].double().sum()) for name in layers)
    count = sum(len(us[name]) * len(vs[name]) for name in layers)
    mean = _checked(total / count)
    found: Tensors = {}
    for name in layers:
        found[f"{name}.u"] = us[name] / mean
        found[f"{name}.v"] = vs[name]
    return found


def _together(rows: Sequence[Batch]) -> Iterator[Batch]:
    """Rows of the same length as one batch: without padding, which would count as positions. It is
    no larger than the longest row, so it needs no more memory, or than some hundred tokens, which
    need little in any model.
    """
    longest = max(map(_size, rows), default=0)
    alike: dict[object, list[Batch]] = {}
    for row in rows:
        tensors = {name: given for name, given in row.items() if isinstance(given, torch.Tensor)}
        shapes = tuple((name, tensors[name].shape[1:]) for name in sorted(tensors))
        alike.setdefault(shapes, []).append(tensors)
    for group in alike.values():
        count = max(1, max(longest, TOKENS_TOGETHER) // _size(group[0]))
        for start in range(0, len(group), count):
            part = group[start : start + count]
            yield {name: torch.cat([row[name] for row in part]) for name in part[0]}


def _size(row: Batch) -> int:
    """The tokens of a row; the label of a text is none."""
    return max(row["input_ids"].numel(), row["labels"].numel())


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
        flat = gradient.detach().reshape(-1, len(self.gradients))
        self.gradients += flat.float().square().sum(dim=0)


# --- the highest of it ----------------------------------------------------------------------------


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
        left = sum(int((values.view(torch.int32) >= higher).sum()) for values in fisher.values())
        if left >= wanted:
            limit = higher
    return {name: values.view(torch.int32) >= max(limit, 1) for name, values in fisher.items()}


# --- the file -------------------------------------------------------------------------------------


def _cached(run: Run, key: str, make: Callable[[], Tensors]) -> Tensors:
    """The tensors in the run's folder if they were made for the same key; else what ``make`` makes,
    written there for the next run.
    """
    path = run.folder / FISHER_FILE
    if is_sharded(run.model):
        path = path.with_stem(f"{path.stem}-{part_name()}")
    found = _read(path, key, next(run.model.parameters()).device)
    if found is not None:
        return found
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: values.contiguous() for name, values in made.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata={"key": key})
    return made


def _read(path: Path, key: str, device: torch.device) -> Tensors | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError:  # not a whole file of ours: it is made anew, and replaced
        return None
