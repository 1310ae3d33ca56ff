"""Who teaches what the base would have said: the base itself, by a forward pass, or a file of its
most probable tokens.

    teacher = Live(model, 2.0, base=adapter_off)      # or Cached.made(run, 2.0, 64)
    lesson = teacher.lesson(batch, distilled)         # of the tokens at which ``distilled`` is true
    lesson.target(slice(0, 8), log_q)                 # log-probabilities of the first 8, [8, vocabulary]

**The cached teacher.** For each token the file has the ids of the k most probable tokens under
softmax(z / T) of the whole vocabulary, their log-probabilities under that same distribution, and
log(1 - their sum), the tail. The temperature is thus in the file, and the tail is that of the
tempered distribution: neither can be had from probabilities at T = 1. The KL is over k + 1 events,
k tokens and the rest; the model's side is softmax(z / T) of the whole vocabulary too, gathered at
the same ids. By the log-sum inequality it is at most the full KL; with k the vocabulary it is the
full KL. It equals the full KL to that distribution which has the cached probabilities and shares
the tail out as the model does, so the gradient has one form for all teachers: (p_model - p_target)
/ T. Without the tail, renormalised, the target would be biased towards the k tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replaykit.errors import RecipeError, RunError
from replaykit.head import beneath, evaluating, inputs, split_head
from replaykit.train.batches import IGNORED
from replaykit.train.remedies import Batch, Run, key_of, learning_kept

NUMBERS = 2**22  # logits at a time: 16 MiB in float32
CACHE = "teacher.safetensors"

# For a slice of the distilled tokens and the model's log-probabilities of it, [n, vocabulary]:
# those of the target.
Target = Callable[[slice, torch.Tensor], torch.Tensor]


@dataclass
class Lesson:
    """What a teacher says of a batch: a target for its distilled tokens in order, and their hidden
    states by layer.
    """

    target: Target
    states: dict[int, torch.Tensor] = field(default_factory=dict)  # [distilled tokens, width]


def slices(count: int, vocabulary: int) -> Iterator[slice]:
    """Slices of so many tokens, in each of which no more than NUMBERS logits are made."""
    size = max(1, NUMBERS // vocabulary)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


# --- a teacher that is run ------------------------------------------------------------------------


class States:
    """The outputs of chosen decoder layers: of forward passes with gradients, or of one that a
    teacher makes.

    The former only while ``wanted()`` is true, for they are held here, with their graph, until they
    are ``taken``.
    """

    def __init__(
        self, model: nn.Module, layers: list[int], *, wanted: Callable[[], bool] = lambda: True
    ):
        self._wanted = wanted
        self._found: dict[int, torch.Tensor] = {}
        self._taught: dict[int, torch.Tensor] | None = None
        stack = decoder_layers(model)
        for layer in layers:
            if not -len(stack) <= layer < len(stack):
                problem = (
                    f"train.remedies.distill.layers: there is no layer {layer}; the model "
                    f"has {len(stack)}, from 0 on"
                )
                raise RecipeError("the recipe", [problem])
            stack[layer].register_forward_hook(self._hook(layer))

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if self._taught is not None:
                self._taught[layer] = state
            elif (
                torch.is_grad_enabled() and self._wanted()
            ):  # an evaluation is nothing to learn from
                self._found[layer] = state

        return take

    def taken(self) -> dict[int, torch.Tensor]:
        """What the last pass with gradients left, [rows, length, width] by layer; it is not held
        here any longer.
        """
        found = self._found
        self._found = {}
        return found

    @contextmanager
    def taught(self) -> Iterator[dict[int, torch.Tensor]]:
        """Within it, forward passes fill the dictionary that is given."""
        found: dict[int, torch.Tensor] = {}
        self._taught = found
        try:
            yield found
        finally:
            self._taught = None


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of the model's decoder, first to last: the outermost list of modules in it."""
    base = beneath(model)
    stack = next(
        (module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)),
        None,
    )
    assert stack is not None, "a transformers model has its layers in a ModuleList"
    return stack


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The base: the model in evaluation mode with its adapter off.

    Afterwards each module is in the mode in which it was, and what learned learns.
    """
    with evaluating(model), _switched_off(model):
        yield


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    """Of LoRA only the flag that its layers look at; PEFT's own way takes as long as the forward
    pass of a short row.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [
        module
        for module in model.modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]
    if layers and all(
        isinstance(layer, LoraLayer) and not layer.disable_adapters for layer in layers
    ):
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False
        return
    with (
        learning_kept(model),
        model.disable_adapter(),
    ):  # PEFT lets the whole adapter learn when it is on again
        yield


def has_base_beneath(model: Any) -> bool:
    """Whether an untrained model with its adapter off is the base, and stays so while the adapter
    learns.

    It is not with PiSSA, OLoRA and others that begin by taking a part of the base's weights, nor
    where biases of the base learn. An untrained adapter changes nothing, so what it is on and off
    is compared, on two tokens.
    """
    if any(
        getattr(config, "bias", "none") not in ("none", False)
        for config in model.peft_config.values()
    ):
        return False
    tokens = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    tried = {"input_ids": tokens, "use_cache": False} | (
        {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    )
    training = model.training
    model.eval()
    with torch.no_grad():
        on = model(**tried).logits
        with adapter_off(model):
            off = model(**tried).logits
    model.train(training)
    return on.shape == off.shape and torch.allclose(on, off, rtol=1e-3, atol=1e-3)


def frozen(run: Run) -> Any:
    """The base once more, in evaluation mode, on the model's device and in the precision in which
    it is loaded.
    """
    teacher = run.load_base().eval().requires_grad_(False)
    return teacher.to(next(run.model.parameters()).device)


class Live:
    """A teacher that makes a forward pass; ``base`` is the context in which its model is the
    base.
    """

    def __init__(
        self,
        model: Any,
        temperature: float,
        *,
        base: Callable[[Any], Any] = nullcontext,
        layers: States | None = None,
    ):
        self.model = model
        self.temperature = temperature
        self.base = base
        self.layers = layers
        self.head = split_head(model)

    def lesson(self, batch: Batch, distilled: torch.Tensor) -> Lesson:
        """Of the tokens at which ``distilled``, [rows, length], is true; the other rows are not
        looked at.
        """
        hidden, states = self.read(batch, distilled)
        return Lesson(lambda some, log_q: self.log_softmax(hidden[some], log_q.dtype), states)

    def read(
        self, batch: Batch, distilled: torch.Tensor
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """What goes into the head at those tokens, or its logits where they cannot be had apart,
        and ``layers``' states.
        """
        if self.model.config.is_encoder_decoder and "decoder_input_ids" not in batch:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
            batch = batch | {"decoder_input_ids": shifted}
        part, wanted = of_rows(batch, distilled)
        kept: Any = self.layers.taught() if self.layers else nullcontext({})
        with torch.no_grad(), self.base(self.model), kept as states:
            hidden = (
                self.head.hidden(self.model, part)
                if self.head
                else self.model(**inputs(part)).logits
            )
        return hidden[wanted], {layer: state[wanted] for layer, state in states.items()}

    def log_softmax(self, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Log-probabilities at the temperature, [n, vocabulary], from what ``read`` gave."""
        with torch.no_grad():
            logits = self.head.logits(hidden) if self.head else hidden
            return torch.log_softmax(logits.to(dtype) / self.temperature, dim=-1)


def of_rows(batch: Batch, distilled: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """What the model reads of the rows that have distilled tokens, and where these are in it;
    packed rows are taken apart.

    Under causal attention what stands behind the last distilled token changes nothing, so columns
    of padding go too.
    """
    if "row" in batch:
        kept = torch.isin(batch["row"][0], batch["row"][distilled])
        return {name: batch[name][:, kept] for name in ("input_ids", "position_ids")}, distilled[
            :, kept
        ]
    rows = distilled.any(dim=1)
    names = set(inputs(batch)) & set(batch)
    if "decoder_input_ids" in batch:
        return {name: batch[name][rows] for name in names}, distilled[rows]
    end = int(distilled.any(dim=0).nonzero().max()) + 1
    return {name: batch[name][rows, :end] for name in names}, distilled[rows, :end]


# --- a teacher in a file --------------------------------------------------------------------------


class Cached:
    """A teacher whose words are in a file: ids int32 [tokens, k], and float16 [tokens, k + 1],
    log-probabilities and tail.

    ``places`` has where the tokens of each row stand, by ``row_key``.
    """

    def __init__(self, path: Path):
        from safetensors import safe_open

        self.path = path
        self.file = safe_open(path, "pt")
        self.facts: dict[str, Any] = json.loads(self.file.metadata()["facts"])
        self.places: dict[str, list[int]] = self.facts.pop("rows")

    @classmethod
    def made(cls, run: Run, temperature: float, top_k: int) -> Cached:
        """From the file in the training's folder; where there is none, or one of other settings,
        rows or another base, it is made first.
        """
        parameters = run.model.named_parameters()
        base = {
            name: given for name, given in parameters if not (run.adapter and given.requires_grad)
        }
        facts = {
            "temperature": temperature,
            "top_k": top_k,
            "made_of": key_of("cache", base, run.replay()),
        }
        path = run.folder / CACHE
        if path.exists() and (found := cls(path)).facts == facts:
            return found
        if not run.adapter:
            teacher = Live(run.model, temperature, base=evaluating)
        elif has_base_beneath(run.model):
            teacher = Live(run.model, temperature, base=adapter_off)
        else:
            teacher = Live(frozen(run), temperature)
        _write(path, facts, teacher, run.replay())
        return cls(path)

    def lesson(self, batch: Batch, distilled: torch.Tensor) -> Lesson:
        """As ``Live.lesson``. Raises RunError for a row that is not in the file."""
        ids = []
        logs = []
        for key, tokens in row_keys(batch, distilled):
            first, last = self.places.get(key, (0, 0))
            if last - first != tokens:
                raise RunError(
                    f"{self.path} has no probabilities for a row of the mixture; remove it, and it "
                    f"is made anew"
                )
            ids.append(self.file.get_slice("ids")[first:last])
            logs.append(self.file.get_slice("logs")[first:last])
        device = distilled.device
        at = torch.cat(ids).to(device=device, dtype=torch.int64)
        log_p = (
            torch.cat(logs).to(device).float().log_softmax(dim=-1)
        )  # what float16 rounded off makes 1 again
        return Lesson(
            lambda some, log_q: completed(
                log_q, at[some], log_p[some, :-1].to(log_q), log_p[some, -1].to(log_q)
            )
        )


def completed(
    log_q: torch.Tensor, ids: torch.Tensor, log_p: torch.Tensor, log_tail: torch.Tensor
) -> torch.Tensor:
    """The distribution that has log_p [n, k] at the ids [n, k] and shares the tail, exp(log_tail
    [n]), out as log_q does.

    All are natural logarithms; log_q and what is returned are [n, vocabulary].
    """
    outside = torch.logsumexp(log_q.scatter(-1, ids, -torch.inf), dim=-1)
    return (log_q + (log_tail - outside)[:, None]).scatter(-1, ids, log_p)


def _write(path: Path, facts: dict[str, Any], teacher: Live, batches: Iterator[Batch]) -> None:
    """Asks the teacher about every labelled token of the batches; the file appears when it is
    whole.
    """
    from safetensors.torch import save_file

    rows: dict[str, list[int]] = {}
    ids = []
    logs = []
    count = 0
    for batch in batches:
        labelled = batch["labels"] != IGNORED
        keys = row_keys(batch, labelled)
        if not keys or all(key in rows for key, _ in keys):
            continue
        best, log_p = _shortened(teacher, teacher.read(batch, labelled)[0], facts["top_k"])
        ids.append(best)
        logs.append(log_p)
        for key, tokens in keys:
            rows[key] = [count, count + tokens]
            count += tokens
    tensors = (
        {"ids": torch.cat(ids), "logs": torch.cat(logs)}
        if ids
        else {"ids": torch.zeros(0), "logs": torch.zeros(0)}
    )
    unfinished = path.with_name(
        f"{path.name}.{os.getpid()}.tmp"
    )  # each of several processes has its own
    save_file(tensors, unfinished, metadata={"facts": json.dumps(facts | {"rows": rows})})
    os.replace(unfinished, path)


def _shortened(
    teacher: Live, hidden: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The top_k ids, int32 [tokens, k], their log-probabilities with the tail's behind them,
    float16 [tokens, k + 1].
    """
    ids = []
    logs = []
    for part in slices(len(hidden), teacher.model.config.get_text_config().vocab_size):
        log_p = teacher.log_softmax(hidden[part], torch.float32)
        best = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1)
        tail = torch.logsumexp(log_p.scatter(-1, best.indices, -torch.inf), dim=-1, keepdim=True)
        ids.append(best.indices.to(torch.int32).cpu())
        logs.append(torch.cat([best.values, tail], dim=-1).to(torch.float16).cpu())
    return torch.cat(ids), torch.cat(logs)


def row_keys(batch: Batch, distilled: torch.Tensor) -> list[tuple[str, int]]:
    """For every row with distilled tokens, in order: a hash of its tokens and labels, and how many
    tokens are distilled.

    Padding, packing and the order of rows change nothing, for a causal model's tokens up to the
    last label are hashed; for an encoder-decoder all that the encoder reads.
    """
    found = []
    for tokens, labels, wanted in _rows(batch, distilled):
        if wanted.any():
            end = int(wanted.nonzero().max()) + 1
            tokens = tokens if "attention_mask" in batch else tokens[:end]
            digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=12)
            digest.update(b"|" + labels[:end].numpy().tobytes())
            found.append((digest.hexdigest(), int(wanted.sum())))
    return found


def _rows(
    batch: Batch, distilled: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Tokens, labels and distilled tokens of one row after the other, [length] each, on the CPU."""
    tokens = batch["input_ids"].cpu()
    labels = batch["labels"].cpu()
    wanted = distilled.cpu()
    if "row" in batch:
        of_row = batch["row"][0].cpu()
        for row in of_row.unique_consecutive():
            own = of_row == row
            yield tokens[0, own], labels[0, own], wanted[0, own]
        return
    read = (
        batch["attention_mask"].bool().cpu()
        if "attention_mask" in batch
        else torch.ones_like(tokens).bool()
    )
    for row in range(len(tokens)):
        yield tokens[row][read[row]], labels[row], wanted[row]
