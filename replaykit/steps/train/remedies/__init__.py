"""Training methods against forgetting, each a file with its formula, its source and what it costs.

    remedies = chosen(settings.remedies)       # [Distill(...), Ewc(...)], in the order of REMEDIES
    remedy.begin(run)                          # before the first step
    term = remedy.term(batch, where)           # of a micro-batch: added to the loss of its tokens
    remedy.penalty(batch)                      #   or to its loss as a whole
    remedy.backward_done(replay=True)          # after each backward pass
    remedy.gradients()                         # the step's gradient is whole, not clipped yet
    remedy.stepped()                           # the parameters have moved

The methods that weigh tokens by the base's probabilities (``weights``) act on the rows before
training. The others act at these points, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import torch
from torch import distributed

from replaykit.hashing import fingerprint
from replaykit.model.lm_head import Batch
from replaykit.model.shards import local
from replaykit.recipe.base import Strict
from replaykit.recipe.remedies import Remedies
from replaykit.steps.train.asked import Asked

# Logits [n, vocabulary] of a slice of the tokens -> a scalar.
Term = Callable[[torch.Tensor, slice], torch.Tensor]
State = dict[str, torch.Tensor]

# By their key in train.remedies: the class, and the order in which they act.
REMEDIES = {
    "distill": "replaykit.steps.train.remedies.distill:Distill",
    "project": "replaykit.steps.train.remedies.project:Project",
    "ewc": "replaykit.steps.train.remedies.ewc:Ewc",
    "l2sp": "replaykit.steps.train.remedies.ewc:L2sp",
    "ema": "replaykit.steps.train.remedies.ema:Ema",
    "self_distill": "replaykit.steps.train.remedies.self_distill:SelfDistill",
    "consistency": "replaykit.steps.train.remedies.consistency:Consistency",
}


@dataclass(frozen=True)
class Pairs:
    """The rows of the mixture that have a partner there: counterfactuals with their parents."""

    parent_of: Mapping[int, int]
    """By the index of a row that of its parent."""
    tokens: Callable[[int], list[int]]
    """The tokens of the row with this index."""
    batch: Callable[[Sequence[int]], Batch]
    """Rows by their indices as a batch on the model's device."""


@dataclass(frozen=True)
class Run:
    """What a remedy is told of the training before its first step."""

    model: torch.nn.Module
    """The base, in a resumed run too, for a checkpoint is loaded after this: under its adapter
    where it has one, on its device, and not wrapped for several processes.
    """
    adapter: bool
    """Whether an adapter is trained."""
    folder: Path
    """Of the training: what is costly to make can be kept there for a resumed run."""
    replay: Callable[[], Iterator[Batch]]
    """The replay rows of the mixture, each a batch of its own on the model's device; the same rows
    in the same order every time.
    """
    load_base: Callable[[], torch.nn.Module]
    """Loads the untrained model once more."""
    old: Callable[[], Iterator[Batch]] | None = None
    """Rows of old data instead of the replay rows, where there are any."""
    asked: Callable[[int, str | None], Asked | None] | None = None
    """By its index in the mixture, a row as a question with and without its answer in view; the
    text is the prompt that shows it. None for a row that cannot be shown so."""
    seed: int = 0
    """Of what a remedy draws."""
    pairs: Pairs | None = None
    """None where the mixture has none."""
    offload: bool = False
    """Whether what is kept of the base stays in the computer's memory, beside a GPU."""

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor where it is kept."""
        return tensor.cpu() if self.offload else tensor


class Remedy:
    """A remedy that does nothing."""

    name: ClassVar[str]
    """Its key in train.remedies."""
    separate: ClassVar[bool] = False
    """Replay rows stand in micro-batches of their own, before those of the target."""
    watches: ClassVar[bool] = False
    """It is told of gradients while it is off, too, and measures them."""

    def __init__(self, settings: Strict):
        self.settings = settings
        self.on = True
        """False while a controller has switched it off. Then nothing here is called but ``begin``
        and what reads or restores state.
        """

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
        ``<remedy>/<name>``. All processes ask at once, and each gets what is of all of them.
        """
        return {}

    def state_dict(self) -> State:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Takes back what ``state_dict`` gave; after ``begin``."""


def chosen(settings: Remedies) -> list[Remedy]:
    """The remedies that the recipe asks for, in the order in which they act."""
    made = []
    for name, place in REMEDIES.items():
        own = getattr(settings, name)
        if own is not None:
            module, _, cls = place.partition(":")
            made.append(getattr(import_module(module), cls)(own))
    return made


# --- what several of them do with the model and its rows ------------------------------------------


def learning_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: given for name, given in model.named_parameters() if given.requires_grad}


def wide(values: torch.Tensor) -> torch.Tensor:
    """The values in float32, or in float64 where they are in that: sums in half precision lose
    small numbers, and the squares of these are 0 in it.
    """
    return values if values.dtype == torch.float64 else values.float()


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
    labels, the parameters' names, shapes and first numbers, of those that are here.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        for name in ("input_ids", "labels"):
            digest.update(row[name].cpu().numpy().tobytes() + b"|")
    found = []
    for name, given in parameters.items():
        first = local(given).flatten()[:8].double().tolist()
        found.append([name, list(given.shape), first])
    return fingerprint([form, digest.hexdigest(), found])


def processes() -> int:
    """How many train together."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place in the end.

    Each of several processes, which all make the same file, has a name of its own.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    yield unfinished
    unfinished.replace(path)


# --- their state ----------------------------------------------------------------------------------

STATE = "remedies.safetensors"


def store(remedies: Sequence[Remedy], checkpoint: str | Path, *, name: str = STATE) -> None:
    """Writes the remedies' state into a file of a checkpoint's folder; which of them are on is JSON
    in the file's header.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{remedy.name}/{key}": value.detach().contiguous().cpu()
        for remedy in remedies
        for key, value in remedy.state_dict().items()
    }
    switches = {f"{remedy.name}/on": remedy.on for remedy in remedies}
    save_file(tensors, Path(checkpoint) / name, {"state": json.dumps(switches)})


def restore(remedies: Sequence[Remedy], checkpoint: str | Path, *, name: str = STATE) -> None:
    """Gives the remedies back what ``store`` wrote."""
    from safetensors import safe_open

    with safe_open(Path(checkpoint) / name, framework="pt") as file:
        switches = json.loads(file.metadata()["state"])
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    for remedy in remedies:
        start = f"{remedy.name}/"
        remedy.on = switches.get(f"{start}on", remedy.on)
        own = {
            key.removeprefix(start): value
            for key, value in tensors.items()
            if key.startswith(start)
        }
        remedy.load_state_dict(own)
