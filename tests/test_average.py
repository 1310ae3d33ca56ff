"""The average of the parameters over the steps of training."""

from pathlib import Path

import pytest
import torch

from replaykit.errors import RunError
from replaykit.recipe.remedies import EmaSettings as Settings
from replaykit.steps.train.remedies import Run, restore, store
from replaykit.steps.train.remedies.ema import Ema


def begun(model, decay=0.9):
    remedy = Ema(Settings(decay=decay))
    remedy.begin(Run(model, False, Path(), lambda: iter(()), lambda: model))
    return remedy


def linear(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.nn.Linear(3, 2).to(dtype)


def steps(model, remedy, count, seed=2):
    """Moves the parameters at random; all values that the weight had, the first one included."""
    generator, seen = torch.Generator().manual_seed(seed), [model.weight.detach().double().clone()]
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(
                        torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                    )
        remedy.stepped()
        seen.append(model.weight.detach().double().clone())
    return seen


def test_what_is_left_is_the_weighted_mean_of_all_values_with_the_base_at_its_power():
    model = linear()
    remedy = begun(model, 0.9)
    seen = steps(model, remedy, 20)
    torch.testing.assert_close(model.weight.detach().double(), seen[-1])
    remedy.finish()
    wanted = 0.9**20 * seen[0] + sum(0.1 * 0.9 ** (20 - step) * seen[step] for step in range(1, 21))
    torch.testing.assert_close(model.weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_average_is_kept_in_float32_where_the_parameters_are_smaller():
    model = linear(torch.bfloat16)
    remedy = begun(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        remedy._average.values["weight"].fill_(1.0)
        model.weight.fill_(1.0078125)
    for _ in range(100):
        remedy.stepped()
    assert remedy._average.values["weight"].dtype == torch.float32
    wanted = 1 + 0.0078125 * (1 - 0.999**100)
    torch.testing.assert_close(
        remedy._average.values["weight"], torch.full((2, 3), wanted), rtol=0, atol=1e-6
    )
    remedy.finish()
    assert model.weight.dtype == torch.bfloat16


def test_what_does_not_learn_is_not_copied_and_what_learns_later_joins():
    model = linear()
    model.bias.requires_grad_(False)
    remedy = begun(model)
    assert remedy.state_dict().keys() == {"weight"}
    steps(model, remedy, 2)
    model.bias.requires_grad_(True)
    steps(model, remedy, 1)
    assert remedy.state_dict().keys() == {"weight", "bias"}
    torch.testing.assert_close(remedy.state_dict()["bias"], model.bias.detach())


def test_a_resumed_average_is_the_same_as_one_that_went_through(tmp_path):
    through, resumed = linear(), linear()
    first, second = begun(through), begun(resumed)
    steps(through, first, 5)
    steps(resumed, second, 5)
    store([second], tmp_path)
    again = begun(resumed)
    restore([again], tmp_path)
    for model, remedy in ((through, first), (resumed, again)):
        steps(model, remedy, 5, seed=3)
        remedy.finish()
    assert torch.equal(through.weight, resumed.weight)


def test_the_state_of_another_model_is_refused():
    with pytest.raises(RunError, match=r"average has other\.weight, which this model has not"):
        begun(linear()).load_state_dict({"other.weight": torch.zeros(2, 3)})
