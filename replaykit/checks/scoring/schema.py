"""JSON that is valid by a schema, whatever it says.

json_schema('{"name": "Ada"}', record)    # record's answer: {"type": "object", "required": [..]}
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from replaykit.checks.verify import Readings, fences
from replaykit.data.record import Record
from replaykit.data.tools import missing_reference, validator_of

KINDS: tuple[Any, ...] = ({}, [], "", 0, True, None)
"""A value of each kind that JSON has."""


def json_schema(answer: str, record: Record) -> Readings:
    """Whether the answer is one JSON value that the reference, a JSON schema, allows; leniently it
    may stand in the one code fence of the answer, with words around it.

    A valid value may still be wrong. A schema that refers to another file or address is refused,
    and nothing is fetched. Raises ValueError for a reference that is no such schema.
    """
    validator = _validator(record.answer)
    strict = _is_valid(answer, validator)
    found = fences(answer)
    # Of two fences none is the answer.
    fenced = len(found) == 1 and _is_valid(found[0], validator)
    return Readings(strict=strict, lenient=strict or fenced)


@lru_cache(maxsize=1_000)
def _validator(text: str) -> Any:
    from jsonschema.exceptions import SchemaError

    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON schema is an object, not a {type(schema).__name__}")
    validator = validator_of(schema)
    try:
        validator.check_schema(schema)
    except SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "it"
        raise ValueError(f"no JSON schema: {place}: {error.message}") from error
    if not any(key.startswith("$") or key in validator.VALIDATORS for key in schema):
        raise ValueError("no word of a JSON schema is in it, so every value would be valid")
    missing = missing_reference(schema)
    if missing is not None:
        raise ValueError(f"the schema refers to {missing}, which is not in it; put it there")
    try:
        for value in KINDS:
            validator.is_valid(value)
    except RecursionError as error:
        raise ValueError("the schema refers to itself without end, so no value is valid") from error
    return validator


def _is_valid(text: str, validator: Any) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text, parse_constant=_no_json)))
    except (ValueError, RecursionError):
        # As checks.verify reads JSON: thousands of digits or of opening brackets.
        return False


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
