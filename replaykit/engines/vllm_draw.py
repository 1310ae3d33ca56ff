"""Our way to draw, inside vLLM: a logits processor that leaves only the token that is drawn.

vLLM's first model runner gives each seeded request a torch generator, and after a pass that read
only a part of a prompt it turns the generator back by a fixed amount
(``GPUModelRunner._bookkeeping_sync`` of vLLM 0.32). A CPU's generator cannot be turned back, so
there the process ends; a GPU's uses up another amount where the vocabulary is large for the device,
and then the row depends on how its prompt was cut. A number that is looked up by its place needs no
turning back. And the tokens are those of the transformers engine, as far as the logits are.

vLLM's processes import this module, by its name, and nothing else does.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from replaykit.engines import Sampling
from replaykit.engines.draw import Numbers, draw
from replaykit.engines.vllm import DRAWING


class OwnDraw(LogitsProcessor):
    """Draws for the requests whose ``extra_args`` have DRAWING; vLLM then takes the likeliest."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Of logits [rows, vocabulary], float32, all but the drawn tokens' become -inf."""
        if not self._rows:
            return logits
        places = sorted(self._rows)
        wanted = [(self._rows[place].sampling, self._rows[place].number()) for place in places]
        tokens = draw(logits[places], wanted)
        logits[places] = -torch.inf
        logits[places, tokens] = 0.0
        return logits


class _Row:
    """A request that vLLM is at work on. ``written`` is vLLM's own list of its tokens so far."""

    def __init__(self, seed: int, sampling: Sampling, written: list[int]):
        self.sampling = sampling
        self._written = written
        self._numbers = Numbers(seed)

    def number(self) -> float:
        """The one for the next token: the same as often as it is asked for it."""
        return self._numbers.at(len(self._written))


def _row(params: Any, prompt: list[int] | None, written: list[int]) -> _Row | None:
    given = (params.extra_args or {}).get(DRAWING)
    if given is None:
        return None
    seed, temperature, top_p, top_k = given
    return _Row(seed, Sampling(temperature=temperature, top_p=top_p, top_k=top_k), written)
