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

import torch

from replaykit.errors import RunError
from replaykit.model.shards import local
from replaykit.recipe.remedies import EmaSettings
from replaykit.steps.train.remedies import Remedy, Run, State


class Ema(Remedy):
    """See the module. A parameter that begins to learn in a later stage joins with the value that
    it has then.
    """

    name = "ema"
    settings: EmaSettings

    def begin(self, run: Run) -> None:
        self._parameters = dict(run.model.named_parameters())
        self._shadow: dict[str, torch.Tensor] = {}
        self._join()

    def _join(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and name not in self._shadow:
                self._shadow[name] = local(parameter).to(torch.float32, copy=True)

    def stepped(self) -> None:
        self._join()
        shadows = list(self._shadow.values())
        now = [local(self._parameters[name]).float() for name in self._shadow]
        torch._foreach_lerp_(shadows, now, 1 - self.settings.decay)

    def finish(self) -> None:
        """The average takes the place of the parameters, rounded to their precision."""
        with torch.no_grad():
            for name, shadow in self._shadow.items():
                local(self._parameters[name]).copy_(shadow)

    def state_dict(self) -> State:
        """The average of each parameter by its name."""
        return dict(self._shadow)

    def load_state_dict(self, state: State) -> None:
        """Raises RunError for the state of a model with other parameters."""
        unknown = [name for name in state if name not in self._parameters]
        if unknown:
            raise RunError(
                f"the checkpoint's average has {unknown[0]}, which this model has not; remove the "
                f"checkpoints to train anew"
            )
        self._shadow = {
            name: shadow.to(device=self._parameters[name].device, dtype=torch.float32, copy=True)
            for name, shadow in state.items()
        }
