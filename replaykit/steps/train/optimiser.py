"""AdamW for weights in bfloat16, and for moments in 8 bits.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
    w <- (1 - rate * decay) w - rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. All of it is computed in float32.

**Weights in bfloat16** have 8 bits of fraction, so an update of less than a 512th of a weight would
be lost whenever it is rounded to the nearest. It is rounded at random instead, up with the
probability that makes the mean right (Gupta et al., arXiv 1502.02551, section 3.1). The draws hang
on the seed and the step alone: processes that hold the same weights round them alike, and a resumed
training as one that ran through.

**Moments in 8 bits** are quantised in blocks of 256 numbers, each with its largest magnitude
(Dettmers et al., arXiv 2110.02861, section 2), by bitsandbytes. Tensors of fewer than 4,096 numbers
keep theirs in float32, as there. The moments are read and written in float32 otherwise: in bfloat16
v, which moves by a thousandth of itself at most, would stand still.

Memory for each parameter, weights and gradients included: 12 bytes with weights in bfloat16, 6 with
moments in 8 bits as well; torch's AdamW in float32 takes 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch

from replaykit.errors import MissingExtra
from replaykit.hashing import derive_seed
from replaykit.model.shards import local
from replaykit.recipe.train import Train

BLOCK = 256  # numbers that share a scale
SMALLEST = 4096  # numbers of a tensor whose moments are quantised
# Numbers of which float32 copies are there at a time: an embedding is updated in slices.
SLICE = 1 << 24
# Bytes for each number of a moment: a code and its part of a block's scale.
BYTES_IN_8_BITS = 1 + 4 / BLOCK
State = dict[str, Any]


class AdamW(torch.optim.Optimizer):
    """See the module. ``groups`` are torch's, with ``lr`` and ``weight_decay``.

    Raises MissingExtra for moments in 8 bits where bitsandbytes is not installed.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
        moments_in_8_bits: bool,
    ) -> None:
        if moments_in_8_bits and find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "qlora")
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed
        self._in_8_bits = moments_in_8_bits

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, group, number)
        return loss

    def _update(self, parameter: torch.Tensor, group: State, number: int) -> None:
        """Of one parameter, slice by slice."""
        weights = local(parameter).view(-1)
        gradient = local(parameter.grad).reshape(-1)
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["moments"] = [self._moments(part, len(weights)) for part in weights.split(SLICE)]
        state["step"] += 1
        step = int(state["step"])
        draws = torch.Generator(weights.device)
        draws.manual_seed(derive_seed(self._seed, "rounding", number, step))
        slices = zip(weights.split(SLICE), gradient.split(SLICE), state["moments"], strict=True)
        for own, given, moments in slices:
            updated = _updated(own.float(), given.float(), moments, group, step)
            if own.dtype == torch.bfloat16:
                updated = rounded_at_random(updated, draws)
            own.copy_(updated)

    def _moments(self, weights: torch.Tensor, of_tensor: int) -> dict[str, Any]:
        """Both moments of a slice, which are 0."""
        zeros = torch.zeros_like(weights, dtype=torch.float32)
        if not self._in_8_bits or of_tensor < SMALLEST:
            return {"m": zeros, "v": zeros.clone()}
        return {"m": _quantised(zeros, signed=True), "v": _quantised(zeros, signed=False)}

    def load_state_dict(self, state_dict: State) -> None:
        """Takes back what ``state_dict`` gave, in the precision in which it was given: torch gives
        all of it that of the parameter.
        """
        super().load_state_dict(state_dict)
        parameters = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for index, state in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {
                "step": state["step"].cpu(),
                "moments": [_placed(moments, parameter.device) for moments in state["moments"]],
            }


def _updated(
    weights: torch.Tensor, gradient: torch.Tensor, moments: State, group: State, step: int
) -> torch.Tensor:
    """The new weights of a slice, float32; its moments are written."""
    first, second = group["betas"]
    m = _plain(moments["m"], signed=True).lerp_(gradient, 1 - first)
    v = _plain(moments["v"], signed=False).mul_(second)
    v.addcmul_(gradient, gradient, value=1 - second)
    moments["m"] = _kept(moments["m"], m, signed=True)
    moments["v"] = _kept(moments["v"], v, signed=False)
    scale = v.div(1 - second**step).sqrt_().add_(group["eps"])
    weights = weights.mul(1 - group["lr"] * group["weight_decay"])
    return weights.addcdiv_(m, scale, value=-group["lr"] / (1 - first**step))


def rounded_at_random(values: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """float32 as bfloat16, each rounded to one of its two neighbours with the probability that
    keeps the mean.
    """
    # The lower 16 bits of a float32 are what a bfloat16 leaves out: how far it is from the
    # neighbour nearer to 0, in parts of 65,536.
    bits = values.view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, bits.shape, generator=draws, dtype=torch.int32, device=bits.device
    )
    return (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()


def moment_bytes(settings: Train) -> float:
    """Bytes that AdamW holds for each number that learns."""
    if settings.optimiser == "adamw_8bit":
        return 2 * BYTES_IN_8_BITS
    return 2 * 4


# --- 8 bits ---------------------------------------------------------------------------------------


def _code(*, signed: bool, device: torch.device) -> torch.Tensor:
    """The 256 numbers between -1 or 0 and 1 that there are."""
    from bitsandbytes import functional

    name = "dynamic" if signed else "udynamic"
    if name not in functional.name2qmap:
        functional.name2qmap[name] = functional.create_dynamic_map(signed=signed)
    return functional.name2qmap[name].to(device)


def _quantised(values: torch.Tensor, *, signed: bool) -> State:
    from bitsandbytes import functional

    code = _code(signed=signed, device=values.device)
    codes, found = functional.quantize_blockwise(values, code=code, blocksize=BLOCK)
    return {"codes": codes, "scales": found.absmax}


def _plain(kept: Any, *, signed: bool) -> torch.Tensor:
    """A moment as float32, to be changed; one that is kept in float32 is itself."""
    if isinstance(kept, torch.Tensor):
        return kept
    from bitsandbytes import functional

    code = _code(signed=signed, device=kept["codes"].device)
    return functional.dequantize_blockwise(
        kept["codes"], absmax=kept["scales"], code=code, blocksize=BLOCK
    )


def _kept(before: Any, values: torch.Tensor, *, signed: bool) -> Any:
    """A moment as it is kept between two steps."""
    if isinstance(before, torch.Tensor):
        return values
    return _quantised(values, signed=signed)


def _placed(moments: Any, device: torch.device) -> Any:
    if isinstance(moments, torch.Tensor):
        return moments.to(device)
    return {name: _placed(value, device) for name, value in moments.items()}
