"""What of a recipe leaves the machine: a list of what is meant to, and nothing else.

    target: {path: /home/ada/acme/tickets.jsonl}   ->  target: {path: tickets.jsonl}
    engine: {server: http://ada:pw@host:8000/v1}   ->  (left out)

Numbers, true and false, and words of which the recipe has a closed list, such as a method's, always
leave. Of other texts those that NAMES and WORDS name do. The card, the recipe beside it and the
report are all made of what comes out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os.path import exists
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from replaykit.model.loading import ALIASES
from replaykit.recipe import Recipe
from replaykit.recipe.base import Strict
from replaykit.recipe.mix import Replay, is_source
from replaykit.steps.generate.steer import SYSTEMS

# Keys of what is a file, a folder, a model or a data set: said by ``named``.
NAMES = {"path", "model", "judge", "reward", "editor", "tools", "against", "sources"}
# Keys of texts without which nobody could read the same rows, or ask the model in the same way.
WORDS = {"name", "revision", "split", "subset", "prompt", "answer", "labels", "old_labels"}
WORDS |= {"column", "skill", "languages", "date", "pre_query", "answer_header", "stop", "keep"}
WORDS |= {"freeze", "weight_decay", "min_rows", "max_rows", "old", "arms"}
# Sections that say where and on what the work was done, not what came out.
PRIVATE = {"out", "engine", "push"}

HEAD = """\
# A recipe as it leaves the machine: paths are cut to their last part; servers, folders of
# results, system prompts of one's own and whatever looks like an address or a token are left out.
"""
WITHHELD = "withheld"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
FILE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gguf|gz|zst|xz|bz2|ya?ml)$", re.IGNORECASE)
# An address, a mail address, a token of some service, a path from the root or the home.
SECRET = re.compile(
    r"://|[\w.+-]+@[\w-]+\.\w|\b(hf|api_org|sk|ghp|glpat|xox[abp])[-_][\w-]{8,}"
    r"|(^|\s)~?/\w[\w.-]*/\w",
    re.ASCII,
)


def named(name: str) -> str:
    """A model, a data set or a file as others may know it: an alias, a Hub id, or else the last
    part of the path.
    """
    if "://" in name:
        return WITHHELD
    if name in ALIASES or name in get_args(Replay) or name.startswith("lm_eval:"):
        return name
    if HUB_ID.fullmatch(name) and not FILE.search(name) and not Path(name).exists():
        return name
    last = Path(name).name or Path(name).resolve().name
    return WITHHELD if SECRET.search(last) else last


def private_names(recipe: Recipe) -> dict[str, str]:
    """Paths and addresses of the recipe as they stand in a note, such as "/home/ada/t.jsonl", each
    with what may be said in its place; the longest first.
    """
    texts = set(_texts(recipe.model_dump(mode="json")))
    found = {text for text in texts if SECRET.search(text) or ("/" in text and exists(text))}
    return {text: named(text) for text in sorted(found, key=len, reverse=True)}


def _texts(value: Any) -> Iterator[str]:
    """All texts in it, keys included."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, inner in value.items():
                yield from _texts(key)
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)


def public_recipe(recipe: Recipe) -> str:
    """The recipe as it is published, as YAML without what is a default; it can be loaded again."""
    found = public(Recipe, yaml.safe_load(recipe.to_yaml()) or {})
    return HEAD + str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def public(section: type[Strict], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section that may leave; of files the hashes stay behind with the rest."""
    found = {}
    for key, value in settings.items():
        field = section.model_fields.get(key)
        if field is None or (section is Recipe and key in PRIVATE):
            continue
        said = list(_said(key, field.annotation, value))
        if said:
            found[key] = said[0]
    return found


def _said(key: str, kind: Any, value: Any) -> Iterator[Any]:
    """The value as it may leave; nothing where it may not."""
    inner = next(_sections(kind), None)
    match value:
        case None | bool() | int() | float():
            yield value
        case str() if value in _closed(kind):
            yield value
        case str() if key in NAMES or (inner is not None and "path" in inner.model_fields):
            yield named(value)
        case str() if key in WORDS:
            yield WITHHELD if SECRET.search(value) else value
        case {"path": str(path)} if inner is None:  # a file's facts, in place of its name
            yield from _said(key, kind, path)
        case Mapping() if inner is not None and not _keyed(kind):
            yield public(inner, value)
        case Mapping() if key in NAMES | WORDS:
            yield dict(_pairs(key, inner, value))
        case Mapping() if key == "systems":  # of a prompt of one's own its text is the name
            yield {name: weight for name, weight in value.items() if name in SYSTEMS}
        case Mapping() if all(isinstance(name, int | float) for name in value):
            yield dict(value)
        case list() if inner is not None:
            yield [public(inner, one) for one in value]
        case list():
            yield [said for one in value for said in _said(key, kind, one)]


def _pairs(key: str, inner: type[Strict] | None, value: Mapping[Any, Any]) -> Iterator[Any]:
    """Of a mapping whose keys are the user's words: those that may leave, with what they say."""
    for name, one in value.items():
        for word in _said(key, None, name):
            if key == "sources" and not is_source(word):
                word = f"./{word}"  # a bare word would be taken for a misspelt step
            if inner is not None and isinstance(one, Mapping):
                yield word, public(inner, one)
                continue
            for said in _said("path" if inner is not None else key, None, one):
                yield word, said


def _sections(kind: Any) -> Iterator[type[Strict]]:
    """The sections in an annotation."""
    if isinstance(kind, type) and issubclass(kind, Strict):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _keyed(kind: Any) -> bool:
    """Whether an annotation is of a mapping with keys of the user's."""
    return get_origin(kind) is dict or any(_keyed(part) for part in get_args(kind))


def _closed(kind: Any) -> set[Any]:
    """The words of the closed lists in an annotation."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return {word for part in get_args(kind) for word in _closed(part)}
