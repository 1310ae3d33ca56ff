"""The labels of a text classifier: those of the model's own head, and those of the new task.

labels = labels_of(recipe)
labels.every                    # ("World", "Sports", "yes", "no"), the rows of the head
labels.numbers(["no"])          # [3]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaykit.errors import EngineError, LabelError, RecipeError, did_you_mean
from replaykit.model import loading
from replaykit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# transformers' names of what a head is trained for.
PROBLEM = {False: "single_label_classification", True: "multi_label_classification"}


@dataclass(frozen=True)
class Labels:
    """The labels of a head: the model's own, then those of the new task that it lacks."""

    old: tuple[str, ...]
    """Of the model's own head; none where it has no trained one."""
    new: tuple[str, ...]
    """Of the new task."""
    multi: bool = False
    """Whether a row has any number of them."""
    apart: bool = False
    """Whether the new task has a head of its own beside the old one."""

    @property
    def every(self) -> tuple[str, ...]:
        """In the order of the rows of the head."""
        return tuple(dict.fromkeys((*self.old, *self.new)))

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The rows of the head. Raises LabelError for a name that is none, or is there twice."""
        known = {name: number for number, name in enumerate(self.every)}
        again = [name for name in names if names.count(name) > 1]
        if again:
            raise LabelError(f"'{again[0]}' stands there twice; each label is named once")
        for name in names:
            if name not in known:
                listed = ", ".join(known)
                near = did_you_mean(name, known)
                raise LabelError(f"'{name}' is none of the labels {listed}{near}")
        return sorted({known[name] for name in names})

    def beside(self, number: int) -> tuple[bool, ...]:
        """Of every label whether it is of the same task as this one: one of the old, or of the
        new.
        """
        is_old = number < len(self.old)
        return tuple((other < len(self.old)) is is_old for other in range(len(self.every)))


def labels_in(text: str) -> list[str]:
    """The labels that an answer names: those of a JSON list, or one."""
    if text.lstrip().startswith("["):
        # What is no list of names is a name that begins so.
        with suppress(json.JSONDecodeError):
            names = json.loads(text)
            if all(isinstance(name, str) for name in names):
                return list(names)
    return [text.strip()]


def labels_of(recipe: Recipe) -> Labels:
    """The labels of a recipe's model and of its new task.

    Raises EngineError as ``own_labels`` does, and RecipeError where there are none, or where the
    recipe's do not go with the model's.
    """
    settings = recipe.classification
    own: tuple[str, ...] = ()
    problems = []
    if recipe.model is not None:
        config = config_of(recipe.model, recipe.revision)
        own = own_labels(recipe.model, config)
        trained_as = getattr(config, "problem_type", None)
        if own and trained_as not in (None, PROBLEM[settings.multi_label]):
            problems.append(
                f"classification.multi_label: the head of {recipe.model} is trained for "
                f"{trained_as}; say multi_label: {str(not settings.multi_label).lower()}"
            )
    if settings.old_labels is not None:
        if own and len(own) != len(settings.old_labels):
            problems.append(
                f"classification.old_labels: {len(settings.old_labels)} names for the {len(own)} "
                f"labels of the model ({', '.join(own)})"
            )
        own = tuple(settings.old_labels)
    again = [name for number, name in enumerate(own) if name in own[:number]]
    if again:
        problems.append(
            f"classification.old_labels: several rows of the head of {recipe.model} are called "
            f"{again[0]}; give each of its {len(own)} rows a name of its own here, in their order "
            f"({', '.join(own)})"
        )
    apart = settings.heads == "apart"
    shared = [name for name in settings.labels if name in own]
    if apart and shared:
        problems.append(
            f"classification.heads: {', '.join(shared)} would be in both heads; with apart each "
            "label has one, so give the new one another name, or take joint"
        )
    labels = Labels(own, tuple(settings.labels), settings.multi_label, apart)
    if not labels.every:
        problems.append("classification.labels: name the labels; the model has none of its own")
    if problems:
        raise RecipeError("the recipe", problems)
    return labels


def own_labels(model: str, config: PretrainedConfig) -> tuple[str, ...]:
    """The labels of a model's trained classification head, in order; none where it has no such
    head.

    Raises EngineError for a model that transformers has no classifier for, that gives a score
    instead of labels, or that is an encoder-decoder.
    """
    if not classifiers(config):
        raise EngineError(
            f"{model} is a {config.model_type}, for which transformers has no text classifier; "
            "take an encoder such as BERT, or a decoder such as Llama"
        )
    if config.is_encoder_decoder:
        raise EngineError(
            f"{model} is an encoder-decoder; text classifiers here are encoders or decoders. "
            "Without `task: classification` it is asked for the label in words"
        )
    if not classifiers(config) & {*(config.architectures or ())}:
        return ()
    if config.num_labels == 1:
        raise EngineError(
            f"{model} has one output, which is a score and no label; as a judge of rows it is a "
            "reward model"
        )
    found: Mapping[int, str] = config.id2label
    return tuple(str(found[number]) for number in sorted(found))


def refuse_classifier(model: str, revision: str | None) -> None:
    """Raises EngineError for a text classifier that is to be a language model."""
    try:
        config = config_of(model, revision)
    except EngineError:
        return  # whoever loads the model says what is missing
    found = classifiers(config) & {*(config.architectures or ())}
    if found:
        raise EngineError(
            f"{model} is a {found.pop()}, which gives labels and writes no text; say "
            "`task: classification` in the recipe"
        )


def classifiers(config: PretrainedConfig) -> set[str]:
    """The names of transformers' text classifiers for a config; none where it has none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES,
    )

    name = CLASSES.get(config.model_type, ())
    return {name} if isinstance(name, str) else set(name)


def config_of(model: str, revision: str | None) -> PretrainedConfig:
    from transformers import AutoConfig

    config: PretrainedConfig = loading._load(AutoConfig.from_pretrained, model, revision)
    return config
