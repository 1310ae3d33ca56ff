"""The models on the way of a repair: saved while it trains, made whole to be measured.

points/step-50/     the model in float32, or its adapter
trial/              one of them as it would be kept: whole, and in the precision of the tuned
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from replaykit.model import loading
from replaykit.model.adapters import CONFIG, merge


def saved(folder: Path, step: int) -> Path:
    """Where the model after a step is."""
    return folder / f"step-{step}"


class SavePoints(transformers.TrainerCallback):
    """Saves the model after each of these steps; one that is there already stays."""

    def __init__(self, folder: Path, steps: Sequence[int]):
        self.folder = folder
        self.steps = frozenset(steps)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        step = state.global_step
        place = saved(self.folder, step)
        if step not in self.steps or place.exists():
            return
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if hasattr(model, "peft_config"):
            model.save_pretrained(unfinished)
        else:
            loading.save_model(model, unfinished)
        unfinished.rename(place)


def make_whole(point: Path, tuned: str, out: Path) -> None:
    """Writes the model of a point as it would be kept: whole, in the precision of the tuned model,
    with its tokenizer and the way in which it is sampled from.
    """
    if (point / CONFIG).is_file():
        from peft import PeftModel

        network = merge(PeftModel.from_pretrained(loading.load_model(tuned), point))
    else:
        network = loading.load_model(str(point), train=True)
    unfinished = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    dtype = loading.stored_dtype(tuned)
    loading.save_model(network.to(dtype) if dtype is not None else network, unfinished)
    loading.keep_generation_config(tuned, None, unfinished)
    loading.load_tokenizer(tuned).save_pretrained(unfinished)
    unfinished.rename(out)
