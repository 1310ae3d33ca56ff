"""A recipe from a YAML file, with changes on top. All problems of both are shown together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from replaykit.errors import RecipeError
from replaykit.recipe.messages import explain, known_keys
from replaykit.recipe.recipe import Recipe

RECIPE_FILE = "replaykit.yaml"
TOO_DEEP = "brackets or lines are nested too deep to be a recipe"
MERGE = "tag:yaml.org,2002:merge"
# What a bare word means in place of a section, of rows and of an engine.
SHORT = ("path", "name")


def load_recipe(path: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file (none: an empty one), with changes such as ``{"mix.ratio": 0.1}``.

    The change ``...`` adds a section with its defaults where the recipe has none, and leaves alone
    the one that it has; every other value replaces what is there. Raises RecipeError with every
    problem of the file and the changes together.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_yaml(Path(path))
    return _made(raw, changes or {}, str(path or "the command line"))


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with changes as ``load_recipe`` takes them. Raises RecipeError as it does."""
    return _made(recipe.model_dump(exclude_unset=True), changes, "the recipe so changed")


def _made(raw: dict[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    refused = [_change(raw, key, value) for key, value in changes.items()]
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(where, explain(error, Recipe)) from None
    problems = [problem for problem in refused if problem is not None]
    if problems:
        raise RecipeError(where, problems)
    return recipe


def _change(raw: dict[str, Any], key: str, value: Any) -> str | None:
    """Puts the value at a dotted key, and makes the sections on the way to it; or says why not."""
    *sections, last = key.split(".")
    place = raw
    for depth, section in enumerate(sections, 1):
        inner = place.get(section)
        if inner is None:
            inner = {}
        elif isinstance(inner, str):
            keys = known_keys(Recipe, tuple(sections[:depth]))
            inner = next(({short: inner} for short in SHORT if short in keys), inner)
        place[section] = inner
        if not isinstance(inner, dict):
            return f"{key}: {section} is {inner!r}, which has no keys"
        place = inner
    if value is not ...:
        place[last] = value
    elif place.get(last) is None:
        place[last] = {}
    return None


class UniqueSafeLoader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error instead of the last one winning."""

    # Our own: a library under vLLM changes the shared ones.
    yaml_constructors: ClassVar[dict[Any, Any]] = dict(yaml.SafeLoader.yaml_constructors)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == MERGE:
                what = "a key is one word"
                if key_node.value == "<<":
                    what = "`<<` is not read here, write the keys out"
                raise _wrong(key_node, what)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _wrong(key_node, f"'{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _wrong(node: yaml.Node, what: str) -> yaml.YAMLError:
    """The error about a key, with its place in the file."""
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueSafeLoader)
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file; `replaykit init` writes one"]) from None
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except RecursionError:
        raise RecipeError(str(path), [TOO_DEEP]) from None
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError is about text that is not UTF-8, or a date that does not exist.
        raise RecipeError(str(path), [" ".join(str(error).split())]) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RecipeError(
            str(path), [f"a recipe is lines of `key: value`, this is a {type(raw).__name__}"]
        )
    return raw
