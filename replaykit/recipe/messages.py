"""What is wrong in a recipe, one line a problem: the dotted key, what is wrong, what it may be."""

from __future__ import annotations

import re
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from replaykit.errors import did_you_mean

# Parts of a place that name no key: pydantic's names for the kinds that a value may be of.
BRANCH = re.compile(r"constrained-|literal\[|list\[")
PLAIN_BRANCH = ("bool", "int", "float", "str")  # as the last part of a place
# YAML 1.1 reads 1e-5 as text: a number with an exponent needs a point and a sign.
EXPONENT = re.compile(r"(\d+(?:\.\d*)?)[eE]([+-]?)(\d+)")
BARE_WORD = (
    "YAML reads the bare words yes, no, on and off as true and false; put the name in quotes"
)


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line a problem: the dotted path of the key, what is wrong, what it may be.

    Where a value may be of several kinds, what each of them would want stands on one line.
    """
    texts: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        for line in _lines(problem, root):
            path, _, text = line.partition(": ")
            if path in texts and "unknown key" not in text:
                text = f"{texts[path]}, or {text}"
            texts[path] = text
    return [f"{path}: {text}" if text else path for path, text in texts.items()]


def _lines(problem: ErrorDetails, root: type[BaseModel]) -> list[str]:
    """One of pydantic's problems: a line, or several where it is about the recipe as a whole."""
    place = problem["loc"]
    kind = problem["type"]
    is_key = place[-1:] == ("[key]",)
    if is_key:
        place = place[:-1]
    # `no: ...` is the key False for YAML, and a place has no name for such a key.
    bare_word = isinstance(problem["input"], bool) and (is_key or kind == "invalid_key")
    if bare_word:
        place = place[:-1]
    if place[-1:] and place[-1] in PLAIN_BRANCH and kind != "extra_forbidden":
        place = place[:-1]
    path = ".".join(str(part) for part in place if not BRANCH.match(str(part)))
    if kind == "extra_forbidden":
        known = known_keys(root, problem["loc"][:-1])
        return [f"{path}: unknown key{did_you_mean(str(problem['loc'][-1]), known)}"]
    text = BARE_WORD if bare_word else _text(problem)
    if path:
        return [f"{path}: {text}"]
    return text.splitlines()


def _text(problem: ErrorDetails) -> str:
    """What is wrong with a value, what it is, and how to write it where YAML misread it."""
    value = problem["input"]
    text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if isinstance(value, (str, int, float)) and problem["type"] != "value_error":
        text += f" (got {value!r})"
    if isinstance(value, str) and problem["type"].startswith("float"):
        number = EXPONENT.fullmatch(value)
        if number is not None:
            mantissa, sign, digits = number.groups()
            if "." not in mantissa:
                mantissa += ".0"
            written = f"{mantissa}e{sign or '+'}{digits}"
            text += f"; YAML reads {value} as text, write {written}"
    return text


def known_keys(root: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at this path has."""
    model: Any = root
    is_key = False
    for part in path:
        # In a dict of sections, such as the arms, a key may be called as a field is.
        fields = {} if is_key else getattr(model, "model_fields", {})
        annotation = fields[part].annotation if part in fields else model
        is_key = get_origin(annotation) is dict
        model = _model_in(annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The section in an annotation: ``Annotated[Data, ...] | None`` or ``dict[str, Arm]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
