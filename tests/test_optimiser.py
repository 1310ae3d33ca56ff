"""AdamW for weights in bfloat16 and moments in 8 bits, against torch's own in float32."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaykit.errors import MissingExtra
from replaykit.recipe.train import Train
from replaykit.steps.train import optimiser
from replaykit.steps.train.optimiser import AdamW, moment_bytes, rounded_at_random

RATE = 1e-5
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def made(weights: torch.Tensor, *, seed: int = 1, in_8_bits: bool = False) -> AdamW:
    groups = [{"params": [weights], "lr": RATE, "weight_decay": 0.1}]
    return AdamW(
        groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8, seed=seed, moments_in_8_bits=in_8_bits
    )


def gradient(step: int, size: int) -> torch.Tensor:
    """Of one sign for half of the numbers, so that they go far; of noise alone for the others."""
    draws = torch.Generator().manual_seed(step)
    noise = torch.randn(size, generator=draws)
    return noise + torch.linspace(0, 1, size)


def steps(
    weights: torch.Tensor, own: torch.optim.Optimizer, numbers: Sequence[int]
) -> torch.Tensor:
    for number in numbers:
        weights.grad = gradient(number, len(weights)).to(weights.dtype)
        own.step()
    return weights.detach().float()


def starts(size: int, dtype: torch.dtype) -> torch.Tensor:
    begin = torch.linspace(0.5, 1.5, size).bfloat16().to(dtype)
    return begin.requires_grad_()


def test_in_float32_it_is_torchs_own() -> None:
    ours = starts(1000, torch.float32)
    theirs = starts(1000, torch.float32)
    own = torch.optim.AdamW([theirs], lr=RATE, weight_decay=0.1)
    found = steps(ours, made(ours), range(50))
    torch.testing.assert_close(found, steps(theirs, own, range(50)), rtol=0, atol=2e-7)


def test_many_tiny_steps_go_as_far_in_bfloat16_as_in_float32() -> None:
    """A step is 1e-5 beside weights of 1, whose neighbours in bfloat16 are 0.004 to 0.008 away."""
    numbers = range(2000)
    wide = starts(2000, torch.float32)
    narrow = starts(2000, torch.bfloat16)
    lost = starts(2000, torch.bfloat16)
    begin = wide.detach().clone()
    of_wide = steps(wide, torch.optim.AdamW([wide], lr=RATE, weight_decay=0.1), numbers) - begin
    of_narrow = steps(narrow, made(narrow), numbers) - begin
    own = torch.optim.AdamW([lost], lr=RATE, weight_decay=0.1)
    of_lost = steps(lost, own, numbers) - begin
    # torch's own loses all of it.
    assert of_lost.abs().max() == 0
    for part in (slice(0, 500), slice(500, 1000), slice(1000, 1500), slice(1500, 2000)):
        expected = of_wide[part].mean().item()
        # A number jumps to its neighbour with the probability of its step by the gap, so the
        # variance of its way is at most the way times the gap; here of the mean of 500 of them.
        way = of_wide[part].abs().mean().item() + 2000 * RATE * 0.1
        deviation = (way / 128 / 500) ** 0.5
        assert of_narrow[part].mean() == pytest.approx(expected, abs=4 * deviation)
    assert of_wide[1500:].mean() < -0.004


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 2**31))
def test_a_number_is_rounded_to_one_of_its_neighbours(number: float, seed: int) -> None:
    values = torch.full((64,), number)
    found = rounded_at_random(values, torch.Generator().manual_seed(seed))
    nearest = values.bfloat16().float()
    gap = (found.float() - values).abs()
    assert found.dtype == torch.bfloat16
    assert (gap <= (values.abs() / 128).clamp(min=2e-38)).all()
    if torch.equal(nearest, values):
        assert torch.equal(found.float(), values)


def test_the_mean_of_what_is_rounded_is_right() -> None:
    number = 1 + 0.3 / 128
    values = torch.full((100_000,), number)
    found = rounded_at_random(values, torch.Generator().manual_seed(1)).float()
    assert sorted(found.unique().tolist()) == [1.0, 1 + 1 / 128]
    assert (found > 1).float().mean() == pytest.approx(0.3, abs=0.006)  # four deviations


@pytest.mark.parametrize("in_8_bits", [False, pytest.param(True, marks=needs_bitsandbytes)])
def test_a_resumed_run_is_the_one_that_ran_through(in_8_bits: bool) -> None:
    through = starts(5000, torch.bfloat16)
    steps(through, made(through, in_8_bits=in_8_bits), range(40))
    begun = starts(5000, torch.bfloat16)
    first = made(begun, in_8_bits=in_8_bits)
    steps(begun, first, range(25))
    again = begun.detach().clone().requires_grad_()
    second = made(again, in_8_bits=in_8_bits)
    second.load_state_dict(first.state_dict())
    steps(again, second, range(25, 40))
    assert torch.equal(again, through)


def test_two_processes_round_alike_and_two_seeds_do_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        weights = starts(5000, torch.bfloat16)
        runs.append(steps(weights, made(weights, seed=seed), range(20)))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_in_slices_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = starts(5000, torch.float32)
    found = steps(whole, made(whole), range(10))
    monkeypatch.setattr(optimiser, "SLICE", 512)
    parts = starts(5000, torch.float32)
    assert torch.equal(steps(parts, made(parts), range(10)), found)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_in_8_bits_go_nearly_the_same_way(dtype: torch.dtype) -> None:
    wide = starts(8192, torch.float32)
    begin = wide.detach().clone()
    of_wide = steps(wide, torch.optim.AdamW([wide], lr=RATE, weight_decay=0.1), range(300)) - begin
    narrow = starts(8192, dtype)
    own = made(narrow, in_8_bits=True)
    of_narrow = steps(narrow, own, range(300)) - begin
    last = slice(6144, 8192)
    assert of_narrow[last].mean() == pytest.approx(of_wide[last].mean().item(), rel=0.1)
    held = own.state[narrow]["moments"][0]
    size = sum(value.nbytes for moment in held.values() for value in moment.values())
    settings = Train(weights="bfloat16", optimiser="adamw_8bit")
    assert size == moment_bytes(settings) * 8192


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="bitsandbytes"):
        made(starts(10, torch.float32), in_8_bits=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "no remedy keeps anything"),
        ({"remedies": {"ema": {}}}, "no remedy keeps anything"),
        ({"remedies": {"distill": {"teacher": "cache"}}}, "no remedy keeps anything"),
        ({"method": "lora", "remedies": {"distill": {}, "ewc": {}}}, "no remedy keeps anything"),
        ({"fsdp": True, "remedies": {"ewc": {}}}, "each process keeps its part"),
    ],
)
def test_offload_is_refused_where_there_is_nothing_to_keep_elsewhere(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Train.model_validate({"offload": True} | changes)


def test_offload_is_taken_where_a_remedy_keeps_a_copy() -> None:
    for remedies in ({"ewc": {}}, {"l2sp": {}}, {"distill": {}}):
        assert Train.model_validate({"offload": True, "remedies": remedies}).offload


def test_what_cannot_combine_is_refused() -> None:
    for changes in ({"method": "lora"}, {"precision": "float32"}):
        with pytest.raises(ValueError, match="weights"):
            Train.model_validate({"weights": "bfloat16"} | changes)
