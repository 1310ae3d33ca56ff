"""The projection of the target's gradient: what is left of it is in the cone around the replay
gradient, and nearest.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn

from replaykit.recipe.remedies import ProjectSettings, Remedies
from replaykit.steps.train.remedies import Run, chosen
from replaykit.steps.train.remedies.project import Project, cosine, dots, turned

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

LIMITS = st.sampled_from([0.0, 0.3, 0.8, 0.99])
SEEDS = st.integers(0, 100_000)
Tensors = list[torch.Tensor]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)
    ).double()


def begun(remedy: Any, model: nn.Module) -> Any:
    remedy.begin(Run(model, False, Path("."), lambda: iter(()), lambda: model))
    return remedy


def project(min_cosine: float = 0.0, *, blockwise: bool = False) -> Project:
    return Project(ProjectSettings(min_cosine=min_cosine, blockwise=blockwise))


def off(remedy: Project) -> Project:
    remedy.on = False
    return remedy


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    questions = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    answers = torch.randn(count, 1, generator=draw, dtype=torch.float64)
    return questions, answers


def backward(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], parts: int = 1) -> None:
    for questions, answers in zip(*(part.chunk(parts) for part in data), strict=True):
        ((model(questions) - answers) ** 2).sum().backward()


def gradients(model: nn.Module) -> Tensors:
    return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]


def alone(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> Tensors:
    fresh = copy.deepcopy(model)
    fresh.zero_grad()
    backward(fresh, data)
    return gradients(fresh)


def step(remedy: Any, model: nn.Module, g_from: Any, r_from: Any, *, parts: int = 2) -> Tensors:
    """The gradients after a step whose replay rows come first, each kind in so many
    micro-batches.
    """
    model.zero_grad()
    for data, replay in ((r_from, True), (g_from, False)):
        for questions, answers in zip(*(part.chunk(parts) for part in data), strict=True):
            backward(model, (questions, answers))
            remedy.backward_done(replay=replay)
    remedy.gradients()
    return gradients(model)


def opposed(
    data: tuple[torch.Tensor, torch.Tensor], model: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearly the same questions with an answer on the other side of what the model says: a
    conflict.
    """
    questions, answers = data
    with torch.no_grad():
        return questions + 0.1, 2 * model(questions) - answers


def agem(g: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Chaudhry et al., arXiv 1812.00420, eq. 11."""
    return g if g @ r >= 0 else g - (g @ r) / (r @ r) * r


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([values.flatten() for values in tensors])


def cosine_of(g: Sequence[torch.Tensor], r: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of two gradients, a tensor for each parameter, as a step takes it."""
    return cosine(torch.stack([dots(own, other) for own, other in zip(g, r, strict=True)]).sum(0))


def turn(g: torch.Tensor, r: torch.Tensor, c: float) -> torch.Tensor:
    alpha, beta = turned(dots(g, r), c)
    return alpha * g + beta * r


def two_vectors(seed: int, size: int) -> Tensors:
    torch.manual_seed(seed)
    return [torch.randn(size, dtype=torch.float64) for _ in range(2)]


# --- the cone -------------------------------------------------------------------------------------


@given(seed=SEEDS, size=st.integers(2, 12), c=LIMITS)
def test_what_is_turned_has_the_least_cosine_that_is_asked_for(
    seed: int, size: int, c: float
) -> None:
    g, r = two_vectors(seed, size)
    found = turn(g, r, c)
    if found.any():
        assert cosine_of([found], [r]) >= c - 1e-9
    if cosine_of([g], [r]) >= c:
        assert torch.equal(found, g)
    elif found.any():
        assert cosine_of([found], [r]) == pytest.approx(c, abs=1e-9)


@given(seed=SEEDS, size=st.integers(2, 6), c=LIMITS)
def test_no_point_of_the_cone_is_nearer(seed: int, size: int, c: float) -> None:
    g, r = two_vectors(seed, size)
    found = turn(g, r, c)
    nearest = float((found - g).norm())
    draw = np.random.default_rng(seed)
    axis = (r / r.norm()).numpy()
    for spread in (2.0, 0.1, 0.01):
        points = found.numpy() + spread * draw.normal(size=(300, size))
        along = points @ axis
        inside = points[along >= c * np.linalg.norm(points, axis=1)]
        assert np.linalg.norm(inside - g.numpy(), axis=1).min(initial=np.inf) >= nearest - 1e-9
    assert float(g.norm()) >= nearest - 1e-9  # the tip of the cone, 0
    # The foot of a perpendicular on a ray.
    assert float((found - g) @ found) == pytest.approx(0, abs=1e-9)


@given(seed=SEEDS, size=st.integers(2, 12))
def test_at_zero_it_is_agem(seed: int, size: int) -> None:
    g, r = two_vectors(seed, size)
    assert torch.allclose(turn(g, r, 0.0), agem(g, r), atol=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.8])
def test_opposite_and_empty_gradients_have_an_answer(c):
    r = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.equal(turn(-2 * r, r, c), torch.zeros_like(r))
    assert torch.equal(turn(2 * r, r, c), 2 * r)
    assert torch.equal(turn(torch.zeros_like(r), r, c), torch.zeros_like(r))
    assert torch.equal(turn(r, torch.zeros_like(r), c), r)
    assert cosine_of([r], [torch.zeros_like(r)]) == 0


def test_at_eight_tenths_a_gradient_at_right_angles_keeps_six_tenths_of_its_length():
    g, r = (
        torch.tensor([0.0, 5.0], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    )
    assert turn(g, r, 0.8).norm() == pytest.approx(0.6 * 5)


def test_the_cosine_is_that_of_all_tensors_together():
    g, r = (
        [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])],
        [torch.tensor([0.0, 1.0]), torch.tensor([[2.0]])],
    )
    assert cosine_of(g, r) == pytest.approx(4 / 5)


# --- in a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_step_goes_along_replay_and_the_turned_target(c, parts):
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    g, r = flat(alone(model, new)), flat(alone(model, old))
    assert cosine_of([g], [r]) < 0
    found = flat(step(begun(project(c), model), model, new, old, parts=parts))
    assert torch.allclose(found, r + turn(g, r, c), atol=1e-9)
    if c == 0:
        assert torch.allclose(found, r + agem(g, r), atol=1e-9)


def test_blockwise_each_parameter_is_turned_by_itself():
    model = network()
    old, new = rows(6, seed=2), rows(6, seed=4)
    found = step(begun(project(0.3, blockwise=True), model), model, new, old)
    pairs = list(zip(alone(model, new), alone(model, old), strict=True))
    for own, (g, r) in zip(found, pairs, strict=True):
        expected = turn(g.flatten(), r.flatten(), 0.3).view_as(g)
        assert torch.allclose(own, r + expected, atol=1e-9)
    turns = [cosine_of([g], [r]) < 0.3 for g, r in pairs]
    assert 0 < sum(turns) < len(turns)


def test_empty_micro_batches_of_either_kind_change_nothing():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    remedy = begun(project(0.3), model)
    expected = step(remedy, model, new, old)
    empty = (new[0][:0], new[1][:0])
    model.zero_grad()
    for data, replay in ((empty, True), (old, True), (empty, True), (new, False), (empty, True)):
        backward(model, data)
        remedy.backward_done(replay=replay)
    remedy.gradients()
    assert torch.allclose(flat(gradients(model)), flat(expected), atol=1e-12)


def test_the_share_that_was_turned_and_the_cosine_before_are_measured():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    remedy = begun(project(0.0), model)
    against, along = (
        cosine_of(alone(model, data), alone(model, old)).item() for data in (new, old)
    )
    step(remedy, model, new, old)
    step(remedy, model, old, old)
    assert remedy.measures() == pytest.approx({"cosine": (against + along) / 2, "projected": 0.5})
    assert remedy.measures() == {}


def test_gradients_that_agree_are_left_bit_for_bit():
    model = network().float()
    old = tuple(given.float() for given in rows(6, seed=2))
    found = step(begun(project(0.5), model), model, old, old)
    expected = step(begun(project(0.0), model), model, old, old)
    model.zero_grad()
    for data in (old, old):
        backward(model, data, parts=2)
    for own, other, plain in zip(found, expected, gradients(model), strict=True):
        assert torch.equal(own, plain) and torch.equal(other, plain)


def test_steps_without_replay_rows_or_of_nothing_else_stay_as_they_are():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    remedy = begun(project(0.8), model)
    step(remedy, model, new, old)
    remedy.measures()
    for data, replay in ((new, False), (old, True)):
        model.zero_grad()
        backward(model, data)
        remedy.backward_done(replay=replay)
        remedy.gradients()
        assert all(
            torch.equal(own, other)
            for own, other in zip(gradients(model), alone(model, data), strict=True)
        )
    assert remedy.measures() == {}


def test_parameters_without_a_gradient_and_frozen_ones_take_no_part():
    model = network()
    model[0].bias.requires_grad_(False)
    old = rows(6, seed=2)
    remedy = begun(project(0.0), model)
    unused = nn.Parameter(torch.ones(2))
    remedy._parameters.append(unused)
    remedy._replay.append(None)
    model.zero_grad()
    for data, replay in ((old, True), (opposed(old, model), False)):
        backward(model, data)
        remedy.backward_done(replay=replay)
    remedy.gradients()
    assert unused.grad is None and model[0].bias.grad is None
    assert remedy.measures()["projected"] == 1


def test_a_step_along_the_projected_gradient_does_not_raise_the_replay_loss():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)

    def loss_after(remedy: Any) -> float:
        tried = copy.deepcopy(model)
        found = step(begun(remedy, tried), tried, new, old)
        r = alone(model, old)
        with torch.no_grad():
            for parameter, own, replay in zip(tried.parameters(), found, r, strict=True):
                parameter -= 1e-5 * (own - replay)  # the target's part alone
            return float(((tried(old[0]) - old[1]) ** 2).sum())

    before = float(((model(old[0]) - old[1]) ** 2).sum().detach())
    assert loss_after(off(project(0.0))) > before + 1e-4
    assert loss_after(project(0.0)) <= before + 1e-7


def test_while_it_is_off_it_measures_the_same_cosine_and_changes_nothing():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    remedy, turning = begun(off(project(0.0)), model), begun(project(0.0), model)
    found = step(remedy, model, new, old)
    model.zero_grad()
    for data in (old, new):
        backward(model, data, parts=2)
    assert all(torch.equal(own, plain) for own, plain in zip(found, gradients(model), strict=True))
    step(turning, model, new, old)
    assert remedy.measures() == {"cosine": turning.measures()["cosine"], "projected": 0}


def test_an_empty_micro_batch_changes_nothing():
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    with_empty, plain = begun(project(0.8), model), begun(project(0.8), model)
    model.zero_grad()
    for data, replay in ((old, True), (None, None), (new, False), (None, None)):
        if data is not None:
            backward(model, data, parts=2)
        with_empty.backward_done(replay=replay)
    with_empty.gradients()
    found = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(found, step(plain, model, new, old), strict=True))


def test_the_recipe_chooses_it_by_its_name():
    (remedy,) = chosen(Remedies(project=ProjectSettings(min_cosine=0.8)))
    assert type(remedy) is Project and remedy.separate


# --- in several processes -------------------------------------------------------------------------


def rank(number: int, meeting: str, out: str) -> None:
    """One of two processes with half of the rows each; only the first has replay rows in the second
    step.
    """
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=90),
    )
    try:
        torch.save(two_steps(number), os.path.join(out, f"{number}.pt"))
    finally:
        distributed.destroy_process_group()


def two_steps(number: int) -> Tensors:
    """The gradients of this process after each."""
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    old = rows(6, seed=2)
    new = opposed(old, model)
    remedy, found = begun(project(0.3), model), []
    for replay_rows in ((old[0][number::2], old[1][number::2]), old if number == 0 else None):
        model.zero_grad()
        with wrapped.no_sync():
            if replay_rows is not None:
                backward(wrapped, replay_rows)
            remedy.backward_done(replay=replay_rows is not None)
        backward(wrapped, (new[0][number::2], new[1][number::2]))
        remedy.backward_done(replay=False)
        remedy.gradients()
        found.append(flat(gradients(model)))
    return found


@pytest.mark.slow
def test_two_processes_turn_as_one_does(tmp_path):
    places = str(tmp_path / "meeting"), str(tmp_path)
    other = torch.multiprocessing.get_context("spawn").Process(target=rank, args=(1, *places))
    other.start()
    rank(0, *places)
    other.join(90)
    model = network()
    old = rows(6, seed=2)
    new = opposed(old, model)
    # The wrapper takes the mean of the two.
    expected = flat(step(begun(project(0.3), model), model, new, old)) / 2
    for number in range(2):
        for found in torch.load(tmp_path / f"{number}.pt"):
            assert torch.allclose(found, expected, atol=1e-9)
