"""Training methods against forgetting, each a file with its formula, its source and what it costs.

    remedies = chosen(settings.train.remedies)      # [Distill(...), Ewc(...)], in the order of the table
    for remedy in remedies: remedy.begin(run)       # before the first step
    term = remedy.term(batch, where)                # in each micro-batch: what is added to the loss of its tokens
    remedy.penalty(batch)                           #   or to its loss as a whole
    remedy.backward_done(replay=True)               # after each backward pass
    remedy.gradients()                              # the step's gradient is whole, and not clipped yet
    remedy.stepped()                                # the parameters have moved

The methods that weigh tokens by the base's probabilities (``weights``) act on the rows before
training. The others do at these points what they do, and nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from replaykit.records import fingerprint
from replaykit.training_settings import Remedies

Batch = dict[str, Any]  # what ``batches.collate`` makes
Term = Callable[
    [torch.Tensor, slice], torch.Tensor
]  # logits [n, vocabulary] of a slice of the tokens -> a scalar

# By their key in train.remedies: the class, and the order in which they act.
REMEDIES = {
    "distill": "replaykit.train.remedies.distill:Distill",
    "project": "replaykit.train.remedies.project:Project",
    "ewc": "replaykit.train.remedies.ewc:Ewc",
    "l2sp": "replaykit.train.remedies.ewc:L2sp",
    "ema": "replaykit.train.remedies.average:Ema",
}


@dataclass(frozen=True)
class Run:
    """What a remedy is told of the training before its first step.

    ``model`` is the base, in a resumed run too, for a checkpoint is loaded after this: under its
    adapter where it has one, on its device and not wrapped for several processes. ``replay()``
    gives the replay rows of the mixture, each a batch of its own on the model's device, the same
    rows in the same order every time. ``old()`` gives rows of old data instead, where there are
    any. ``load_base()`` loads the untrained model once more.
    """

    model: torch.nn.Module
    adapter: bool
    folder: Path  # of the training, where what is costly to make can be kept for a resumed run
    replay: Callable[[], Iterator[Batch]]
    load_base: Callable[[], torch.nn.Module]
    old: Callable[[], Iterator[Batch]] | None = None


class Remedy:
    """A remedy that does nothing. ``on`` is false while a controller has switched it off; then
    nothing here is called but ``begin`` and what reads or restores state.
    """

    name: ClassVar[str]
    separate: ClassVar[bool] = (
        False  # replay rows stand in micro-batches of their own, before those of the target
    )
    watches: ClassVar[bool] = False  # is told of gradients while it is off, too, and measures them

    def __init__(self, settings: Any):
        self.settings = settings
        self.on = True

    def begin(self, run: Run) -> None:
        """Before the first step, of a resumed run too."""

    def term(self, batch: Batch, where: torch.Tensor) -> Term | None:
        """What is added to the sum of the losses of a micro-batch, token by token, or None.

        ``where`` is [rows, length], true at the positions whose logits are computed. The term is
        given those logits in the order of ``where.nonzero()``, a slice at a time, as float32 with
        gradients, and returns a scalar. Sums over tokens: it is divided by the weight of all tokens
        of the step, as the loss is.
        """
        return None

    def positions(self, batch: Batch) -> torch.Tensor | None:
        """[rows, length], true where the term needs logits even if the loss does not (its weight is
        0), or None.
        """
        return None

    def keeps(self, batch: Batch) -> torch.Tensor | None:
        """[rows, length] or [rows, 1], the part of the cross-entropy that stays at each position,
        or None for all of it.
        """
        return None

    def penalty(self, batch: Batch) -> torch.Tensor | None:
        """A scalar that is added to the loss of a micro-batch, after its forward pass; divided as
        ``term``'s is. Or None.
        """
        return None

    def backward_done(self, *, replay: bool | None) -> None:
        """After the backward pass of a micro-batch; ``replay`` says that it had replay rows only,
        None that it had none.
        """

    def gradients(self) -> None:
        """The gradients of all micro-batches of the step are added up in ``.grad``; they are
        clipped after this.
        """

    def stepped(self) -> None:
        """The optimiser has moved the parameters."""

    def finish(self) -> None:
        """Training is over, and the model is saved after this."""

    def measures(self) -> dict[str, float]:
        """What is to be logged since the last time, by name; it is logged under
        ``<remedy>/<name>``.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; tensors, numbers and texts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; after ``begin``."""


def chosen(settings: Remedies) -> list[Remedy]:
    """The remedies that the recipe asks for, in the order in which they act."""
    made = []
    for name, place in REMEDIES.items():
        if (own := getattr(settings, name)) is not None:
            module, _, cls = place.partition(":")
            made.append(getattr(import_module(module), cls)(own))
    return made


# --- what several of them do with the model and its rows ------------------------------------------


@contextmanager
def learning_kept(model: torch.nn.Module) -> Iterator[None]:
    """Whatever is frozen or made to learn inside, afterwards those parameters learn that learned
    before.
    """
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def key_of(form: object, parameters: Mapping[str, torch.Tensor], rows: Iterable[Batch]) -> str:
    """16 hexadecimal digits for what is made of a model and rows: its form, the rows' tokens and
    labels, the parameters' names, shapes and first numbers.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        for name in ("input_ids", "labels"):
            digest.update(row[name].cpu().numpy().tobytes() + b"|")
    shapes = [
        [n, list(given.shape), given.detach().flatten()[:8].double().tolist()]
        for n, given in parameters.items()
    ]
    return fingerprint([form, digest.hexdigest(), shapes])


# --- their state ----------------------------------------------------------------------------------

STATE = "remedies.safetensors"


def store(remedies: Sequence[Remedy], checkpoint: str | Path) -> None:
    """Writes the remedies' state into a checkpoint's folder; what is no tensor is JSON in the
    file's header.
    """
    from safetensors.torch import save_file

    tensors = dict[str, torch.Tensor]()
    others = dict[str, Any]()
    for remedy in remedies:
        for key, value in {"on": remedy.on, **remedy.state_dict()}.items():
            place = f"{remedy.name}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach().contiguous().cpu()
            else:
                others[place] = value
    save_file(tensors, Path(checkpoint) / STATE, {"state": json.dumps(others)})


def restore(remedies: Sequence[Remedy], checkpoint: str | Path) -> None:
    """Gives the remedies back what ``store`` wrote."""
    from safetensors import safe_open

    with safe_open(Path(checkpoint) / STATE, framework="pt") as file:
        found = json.loads(file.metadata()["state"]) | {
            key: file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 - it is no mapping
        }
    for remedy in remedies:
        start = f"{remedy.name}/"
        own = {
            key.removeprefix(start): value for key, value in found.items() if key.startswith(start)
        }
        remedy.on = own.pop("on", remedy.on)
        remedy.load_state_dict(own)
