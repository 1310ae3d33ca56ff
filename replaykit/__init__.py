"""replaykit: fine-tune a language model without losing what it knew, and prove it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Augmented",
    "Described",
    "Mixed",
    "Recipe",
    "Record",
    "Rewritten",
    "Selection",
    "augment",
    "describe",
    "evaluate",
    "generate",
    "load_recipe",
    "mix",
    "plot",
    "probe",
    "push",
    "repair",
    "report",
    "rewrite",
    "run",
    "select",
    "to_dataset",
    "train",
]

if TYPE_CHECKING:
    from replaykit.api import (
        Augmented,
        Described,
        Mixed,
        Recipe,
        Record,
        Rewritten,
        Selection,
        augment,
        describe,
        evaluate,
        generate,
        load_recipe,
        mix,
        plot,
        probe,
        push,
        repair,
        report,
        rewrite,
        run,
        select,
        to_dataset,
        train,
    )


def __getattr__(name: str) -> Any:
    """The functions of ``api``, imported when one is first used: ``import replaykit`` imports
    nothing else.
    """
    if name not in __all__:
        raise AttributeError(f"module 'replaykit' has no attribute '{name}'")
    from replaykit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__all__", "__doc__", "__version__"])
