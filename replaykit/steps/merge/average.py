"""Averaging in weight space after training: between the base and what was tuned from it.

    interpolate("base", "tuned", "out", 0.5)        # (1 - alpha) * base + alpha * tuned
    ties("base", ["tuned-a", "tuned-b"], "out")     # several tuned models into one
    scale_adapter("adapter", "out", 0.5)            # as interpolate, for a LoRA adapter by itself

``interpolate`` is WiSE-FT (Wortsman et al., arXiv 2109.01903, section 3): one fine-tuning gives a
whole curve between old and new skills, and each of its points costs an evaluation only. ``ties`` is
TIES-merging (Yadav et al., arXiv 2306.01708, section 4): trim, elect a sign, average those that
agree. Arithmetic is in float32 (float64 where the base is).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replaykit.errors import DataError, RecipeError
from replaykit.model.loading import listed
from replaykit.runs import Watch, read_json, unwatched
from replaykit.steps.merge.folders import (
    ADAPTER_CONFIG,
    Tensors,
    copy_beside,
    opened,
    same_bits,
    whole_folder,
    write_merged,
)

ADAPTER = "adapter_model.safetensors"
# Of whole and packed numbers there is no average.
AVERAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LORA_A = ("lora_A", "lora_embedding_A")
LORA_B = ("lora_B", "lora_embedding_B")
# Values of init_lora_weights that change the base's weights as well begin so.
TAKING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def interpolate(
    base: Path, tuned: Path, out: Path, alpha: float, *, watch: Watch = unwatched
) -> int:
    """Writes (1 - alpha) * base + alpha * tuned to the folder ``out``; returns how many tensors
    differ from the base.

    alpha 0 gives the base's tensors bit for bit, alpha 1 the tuned ones', where both are stored in
    the same precision; a tensor that was not trained stays as it is. Raises RecipeError for an
    alpha outside of 0 to 1, DataError for folders that are not two states of one model, RunError if
    ``out`` is there already.
    """
    _check_part("alpha", alpha)

    def between(name: str, tensors: Tensors) -> torch.Tensor:
        before, after = tensors
        if before.dtype not in AVERAGED and alpha not in (0, 1):
            _check_unchanged(name, before, after)
            return before
        if alpha in (0, 1):
            return after if alpha else before
        # The two may be stored in different precisions.
        exact = torch.promote_types(before.dtype, torch.float32)
        return torch.lerp(before.to(exact), after.to(exact), alpha)

    return write_merged(base, [tuned], out, between, watch)


def ties(
    base: Path,
    tuned: Sequence[Path],
    out: Path,
    *,
    density: float = 0.2,
    scale: float = 1.0,
    watch: Watch = unwatched,
) -> int:
    """Writes base + scale * (the TIES merge of what each tuned model changed); returns how many
    tensors differ from it.

    Of each change, tuned - base, the ``density`` part of greatest magnitude is kept; the sign of
    their sum is elected at each place; the mean of those that have it is taken. Trimmed per tensor,
    not over the whole model, so that it can be streamed (the paper does not say which; its code
    takes the whole). Raises as ``interpolate`` does.
    """
    _check_part("density", density)
    if density == 0:
        raise RecipeError("the merge", ["density: must be above 0 (got 0)"])

    def elect(name: str, tensors: Tensors) -> torch.Tensor:
        before, *after = tensors
        if before.dtype not in AVERAGED:
            for other in after:
                _check_unchanged(name, before, other)
            return before
        exact = torch.promote_types(before.dtype, torch.float32)
        start = before.to(exact)
        changes = [other.to(exact) - start for other in after]
        return start + scale * elected(changes, density)

    return write_merged(base, tuned, out, elect, watch)


def elected(changes: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """The TIES merge of changes of one shape: trimmed to ``density``, sign elected, disjoint mean.

    A place at which nothing is left, or the changes cancel out, is 0 (the authors' code gives the
    latter the sign that most of the model has). Changes as large as the last one kept are kept too.
    """
    kept = [_trimmed(change, density) for change in changes]
    total = torch.stack(kept).sum(dim=0)
    sign = total.sign()
    amount = torch.zeros_like(total)
    count = torch.zeros_like(total)
    for change in kept:
        agrees = (change.sign() == sign) & (sign != 0)
        amount += torch.where(agrees, change, 0)
        count += agrees
    return torch.where(count > 0, amount / count.clamp(min=1), 0)


def _trimmed(change: torch.Tensor, density: float) -> torch.Tensor:
    drop = change.numel() - max(1, round(density * change.numel()))
    if drop <= 0:
        return change
    size = change.abs()
    least = np.partition(size.flatten().numpy(), drop)[drop]  # ten times as fast as torch.kthvalue
    return torch.where(size >= float(least), change, 0)


def scale_adapter(adapter: Path, out: Path, alpha: float) -> int:
    """Writes the LoRA adapter with its effect times alpha: every lora_B is multiplied; returns how
    many there are.

    base + alpha * scaling * B A is what ``interpolate`` makes of base and merged model, without the
    base. Raises DataError for an adapter whose effect is not proportional to its lora_B: another
    kind, DoRA, one with whole trained modules, or one that begins by taking a part of the base's
    weights (PiSSA, OLoRA, ...).
    """
    from safetensors.torch import save_file

    _check_part("alpha", alpha)
    config = read_json(adapter / ADAPTER_CONFIG)
    if config is None or not (adapter / ADAPTER).exists():
        raise DataError(f"{adapter}: no LoRA adapter in safetensors ({ADAPTER_CONFIG}, {ADAPTER})")
    with opened(adapter / ADAPTER) as file:
        metadata = file.metadata()
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    reason = _why_not_scaled(config, list(tensors))
    if reason is not None:
        raise DataError(
            f"{adapter}: only a plain LoRA adapter can be scaled, {reason}; merge it and use "
            f"--method wise-ft"
        )
    scaled = [name for name in tensors if _is_part(name, LORA_B)]
    for name in scaled:
        tensors[name] = (tensors[name].float() * alpha).to(tensors[name].dtype)
    with whole_folder(out) as unfinished:
        save_file(tensors, unfinished / ADAPTER, metadata=metadata)
        copy_beside([adapter], unfinished)
    return len(scaled)


def _why_not_scaled(config: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Why an adapter's effect is not proportional to its lora_B; None where it is."""
    other = [name for name in names if not _is_part(name, LORA_A + LORA_B)]
    if str(config.get("init_lora_weights")).lower().startswith(TAKING):
        return "it begins by taking a part of the base's weights"
    if other:
        return f"it trains {listed(other)} as well"
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return f"it is {config.get('peft_type')}"
    return None


def _is_part(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _check_unchanged(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raises DataError where a tensor of whole or packed numbers, which has no average, changed."""
    if not same_bits(before, after):
        raise DataError(
            f"{name} is {before.dtype} and was changed, so there is nothing between; merge weights "
            f"that are not quantised"
        )


def _check_part(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RecipeError("the merge", [f"{name}: must be from 0 to 1 (got {value:g})"])
