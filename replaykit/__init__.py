"""replaykit: fine-tune a language model without losing what it knew, and prove it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["generate"]

if TYPE_CHECKING:
    from replaykit.api import generate


def __getattr__(name: str) -> Any:
    """The functions of ``api``, imported when one is first used: ``import replaykit`` imports
    nothing else.
    """
    if name not in __all__:
        raise AttributeError(f"module 'replaykit' has no attribute '{name}'")
    from replaykit import api

    return getattr(api, name)
