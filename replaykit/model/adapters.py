"""Adapters of PEFT as whole models.

with merged("runs/my-lora", "llama3", None, folder) as model:
    ...                          # a folder under ``folder``, which is removed again
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replaykit.model import loading

CONFIG = "adapter_config.json"


def merge(network: Any) -> Any:
    """The model with its adapter merged in.

    A layer under an adapter that shares its weights with another, as a head that is tied to the
    embeddings, gets weights of its own first: the adapter would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    owners = Counter(id(each) for _, each in network.named_parameters(remove_duplicate=False))
    config = network.get_base_model().config
    for module in network.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module.get_base_layer()
        for name, weight in list(layer.named_parameters(recurse=False)):
            if owners[id(weight)] > 1:
                setattr(layer, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
                config.tie_word_embeddings = False
                config.get_text_config().tie_word_embeddings = False
    return network.merge_and_unload()


@contextmanager
def merged(model: str, base: str, revision: str | None, folder: Path) -> Iterator[str]:
    """The model itself, or where it is the folder of an adapter, the base with it merged in."""
    if not (Path(model) / CONFIG).is_file():
        yield model
        return
    from peft import PeftModel

    network = merge(PeftModel.from_pretrained(loading.load_model(base, revision), model))
    place = folder / "merged"
    shutil.rmtree(place, ignore_errors=True)
    loading.save_model(network.to(loading.stored_dtype(base, revision)), place)
    loading.keep_generation_config(base, revision, place)
    loading.load_tokenizer(base, revision).save_pretrained(place)
    try:
        yield str(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
