"""Averaging in time: what is saved is the exponential moving average of the parameters, not their
last values.

    shadow <- decay * shadow + (1 - decay) * parameter        after every optimiser step, in float32

Polyak and Juditsky 1992 (SIAM J. Control Optim. 30:838) for averaging, the form with a decay as in
Tarvainen and Valpola, arXiv 1703.01780, section 2. The shadow begins at the base and is not
corrected for it: after n steps the base still has the part decay ** n of the average, 13 % after
200 steps of 0.99, which also pulls towards what was known before. It costs a float32 copy of the
parameters that learn and one pass over them in each step; averaging base and tuned model after
training is the step merge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replaykit.errors import RunError
from replaykit.model.shards import local
from replaykit.recipe.remedies import EmaSettings
from replaykit.steps.train.remedies import Remedy, Run, State


class Average:
    """The moving average of a model's parameters that learn, in float32; with a decay of 1 it stays
    what they were. A parameter that begins to learn in a later stage joins with the value that it
    has then.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.values: dict[str, torch.Tensor] = {}
        """By the parameter's name, what of it is here."""
        self._parameters = dict(model.named_parameters())
        self._join()

    def _join(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and name not in self.values:
                self.values[name] = local(parameter).to(torch.float32, copy=True)

    def step(self) -> None:
        """Takes the parameters as they are now."""
        self._join()
        if self.decay == 1:
            return
        shadows = list(self.values.values())
        now = [local(self._parameters[name]).float() for name in self.values]
        torch._foreach_lerp_(shadows, now, 1 - self.decay)

    def put(self) -> None:
        """The average takes the place of the parameters, rounded to their precision."""
        with torch.no_grad():
            for name, value in self.values.items():
                local(self._parameters[name]).copy_(value)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Within it the model computes with the average. What was computed before it may be led
        back after it, but not within. Not for parameters that processes share out.
        """
        own = {name: self._parameters[name].data for name in self.values}
        # Copies in another precision, made for the model's own parameters.
        torch.clear_autocast_cache()
        try:
            for name, value in self.values.items():
                self._parameters[name].data = value.to(own[name].dtype)
            yield
        finally:
            for name, value in own.items():
                self._parameters[name].data = value
            torch.clear_autocast_cache()

    def load(self, values: State) -> None:
        """Takes back ``values``. Raises RunError for those of a model with other parameters."""
        unknown = [name for name in values if name not in self._parameters]
        if unknown:
            raise RunError(
                f"the checkpoint's average has {unknown[0]}, which this model has not; remove the "
                f"checkpoints to train anew"
            )
        self.values = {
            name: value.to(device=self._parameters[name].device, dtype=torch.float32, copy=True)
            for name, value in values.items()
        }


class Ema(Remedy):
    """See the module."""

    name = "ema"
    settings: EmaSettings

    def begin(self, run: Run) -> None:
        self._average = Average(run.model, self.settings.decay)

    def stepped(self) -> None:
        self._average.step()

    def finish(self) -> None:
        """The average takes the place of the parameters, rounded to their precision."""
        self._average.put()

    def state_dict(self) -> State:
        """The average of each parameter by its name."""
        return dict(self._average.values)

    def load_state_dict(self, state: State) -> None:
        """Raises RunError for the state of a model with other parameters."""
        self._average.load(state)
