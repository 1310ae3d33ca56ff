"""Under which licence a data set may be published: what the recipe says, or else what the cards of
the model and of the pool say, where these lie here.

    licence_of(recipe, ["generate"], "/models/mine", None)
    ->  Licence("apache-2.0", base_model="owner/base", notes=())

A licence is never guessed: where one of the cards is silent, it is unknown, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from replaykit.errors import RecipeError
from replaykit.model.loading import ALIASES
from replaykit.recipe import Recipe
from replaykit.recipe.load import UniqueSafeLoader
from replaykit.steps.public.settings import HUB_ID, named

UNKNOWN = "unknown"
COPIED = ("target", "select")  # every other source is written by a model


@dataclass(frozen=True)
class Licence:
    """What the card says of the right to use the data."""

    name: str = UNKNOWN
    """As the Hub names it."""
    base_model: str | None = None
    """The Hub id of the model, or of the one that a local model was made from, if it is known."""
    notes: tuple[str, ...] = ()
    """What the user must know before it is published."""


def licence_of(
    recipe: Recipe, sources: Iterable[str], model: str | None, pool: str | None
) -> Licence:
    """The licence of a data set with these sources; rows were written by ``model`` or copied from
    ``pool``.

    Raises RecipeError where the cards name different licences and the recipe names none.
    """
    sources = list(sources)
    card = _card(model, "model")
    base = _base(model, card)
    if recipe.push.license is not None:
        return Licence(recipe.push.license, base)
    found = {}
    if any(source not in COPIED for source in sources):
        found[f"the card of the model {_shown(model)}"] = _licence(card)
    if any(source in COPIED for source in sources):
        found[f"the card of the data {_shown(pool)}"] = _licence(_card(pool, "dataset"))
    names = {name.lower() for name in found.values() if name is not None}
    if len(names) > 1:
        said = " and ".join(f"{place} says {name}" for place, name in found.items())
        raise RecipeError(
            "push", [f"license: {said}; say which is right: --license NAME, or push.license"]
        )
    silent = [place for place, name in found.items() if name is None]
    if silent:
        note = (
            f"the licence is unknown: {' and '.join(silent)} names none, or is not here; --license "
            "NAME, or push.license, says it"
        )
        return Licence(UNKNOWN, base, (note,))
    return Licence(next(name for name in found.values() if name is not None), base)


def _shown(name: str | None) -> str:
    return "that is not named" if name is None else f"'{named(name)}'"


def _base(model: str | None, card: Mapping[str, Any]) -> str | None:
    """The Hub id that tells what the model is."""
    name = ALIASES.get(model or "", model or "")
    if not Path(name).exists() and HUB_ID.fullmatch(name):
        return name
    said = card.get("base_model")
    if isinstance(said, list) and said:
        said = said[0]
    return said if isinstance(said, str) and HUB_ID.fullmatch(said) else None


def _licence(card: Mapping[str, Any]) -> str | None:
    """What a card's front matter calls the licence; "other" has a name of its own."""
    said = card.get("license")
    if said == "other" and isinstance(card.get("license_name"), str):
        said = card["license_name"]
    return said if isinstance(said, str) and said != UNKNOWN else None


def _card(name: str | None, kind: str) -> Mapping[str, Any]:
    """The front matter of README.md in the folder of a model or of rows, or in the cache of the
    Hub; nothing where there is none. Nothing is fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    if name is None:
        return {}
    place = Path(ALIASES.get(name, name)).expanduser()
    found: object = place / "README.md"
    if place.is_file():
        found = place.parent / "README.md"
    elif not place.exists() and HUB_ID.fullmatch(str(place)):
        found = try_to_load_from_cache(str(place), "README.md", repo_type=kind)
    if not isinstance(found, (str, Path)) or not Path(found).is_file():
        return {}
    text = Path(found).read_text(encoding="utf-8", errors="replace")
    head = text.split("\n---", 1)[0]
    if not head.startswith("---\n") or head == text:
        return {}
    try:
        card = yaml.load(head.removeprefix("---\n"), Loader=UniqueSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # no card that anyone could read
    return card if isinstance(card, Mapping) else {}
