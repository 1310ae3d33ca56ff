"""Which linear layers of a model cannot have an adapter, found by looking at the model.

Some layers never run: others take their weights out and use them by themselves (Mamba's dt_proj),
or they see images, and rows are texts (Gemma 3). An adapter on them would learn nothing. Some give
more than a matrix, as routers to experts do. Of others PEFT knows that fast kernels pass them by.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from replaykit.model.lm_head import Batch, as_trained, inputs
from replaykit.steps.train.batches import collate, to_device
from replaykit.steps.train.reading import TRIED, row
from replaykit.steps.train.shapes import shapes_alone


def without_adapter(network: Any, config: Any) -> list[str]:
    """The names of linear layers that an adapter of this configuration cannot be on."""
    layers = _linear(network)
    silent = _silent(network, layers)
    return [
        name
        for name in layers
        if name in silent or _refused(name.rpartition(".")[2], network, config)
    ]


def _linear(network: Any) -> dict[str, nn.Module]:
    """By name the layers that PEFT calls linear, but for the head."""
    from transformers.pytorch_utils import Conv1D

    head = network.get_output_embeddings()
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


@torch.no_grad()
def _silent(network: Any, layers: dict[str, nn.Module]) -> set[str]:
    """The names of layers of whose kind none gives a matrix in a forward pass of training."""
    # One kind for all layers: of experts a few tokens reach only some.
    kinds = {name: re.sub(r"\.\d+(?=\.)", "", name) for name in layers}
    runs: set[str] = set()
    hooks = []
    for name, module in layers.items():

        def run(_: nn.Module, __: Any, output: Any, kind: str = kinds[name]) -> None:
            if isinstance(output, torch.Tensor):
                runs.add(kind)

        hooks.append(module.register_forward_hook(run))
    pair = network.config.is_encoder_decoder
    batch = collate([row(network, 0, TRIED)], pad=0, seq2seq=pair)
    if pair:
        batch["decoder_input_ids"] = batch["labels"]
    mode = network.training
    try:
        # What training draws afterwards is as if this had not been.
        with torch.random.fork_rng(), as_trained(network):
            _run(network.train(), inputs(batch))
    finally:
        network.train(mode)
        for hook in hooks:
            hook.remove()
    return {name for name, kind in kinds.items() if kind not in runs}


def _run(network: Any, given: Batch) -> None:
    """A forward pass, also of a model whose tensors have shapes alone."""
    # XLNet makes one of its parameters with memory all the same.
    if not any(parameter.is_meta for parameter in network.parameters()):
        network(**to_device(given, network.device))
        return
    with shapes_alone() as fake, torch.device("meta"):
        named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        state = {name: fake.from_tensor(tensor.to("meta")) for name, tensor in named.items()}
        empty = {
            name: torch.empty(value.shape, dtype=value.dtype)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in given.items()
        }
        torch.func.functional_call(network, state, kwargs=empty)


def _refused(name: str, network: Any, config: Any) -> bool:
    """Whether PEFT refuses layers of this name in such a model."""
    import peft

    tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    try:
        # PEFT asks this of each layer (peft/tuners/tuners_utils.py) when others have theirs.
        tuner._check_target_module_compatiblity(None, config, network, name)
    except ValueError:
        return True
    return False
