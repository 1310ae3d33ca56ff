"""Tools of a file: the functions that a model may call.

    [{"type": "function", "function": {"name": "weather", "parameters": {...}}}]   OpenAI's form
    {"name": "weather", "description": "...", "parameters": {...}}                 bare
    {"tools": [...]}                                                               of an API request

Under "input_schema" (Anthropic's API) and "inputSchema" (MCP) are parameters, too. They are a JSON
schema of an object (json-schema.org, draft 2020-12 where it names no other).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from replaykit.data.files import json_lines
from replaykit.data.jsonstream import plain_json
from replaykit.data.record import Tool
from replaykit.data.turns import tools_of
from replaykit.errors import DataError

PARAMETERS = ("parameters", "input_schema", "inputSchema")
NAME = re.compile(r"[\w.-]+")  # what a call can be read back by
PATTERN_SECONDS = 1.0  # of a search for a pattern of a schema


def read_tools(path: str | Path) -> tuple[Tool, ...]:
    """The tools of a JSON or JSONL file, in OpenAI's form.

    Raises DataError, which names the tool, for a name that is absent, comes twice or cannot be read
    back from a call, and for parameters that are no JSON schema of an object.
    """
    path = Path(path)
    tools = [_whole(tool) for tool in tools_of(str(path), _listed(path))]
    if not tools:
        raise DataError(f"{path}: there is no tool in it")
    for tool in tools:
        fault = fault_of(tool)
        if fault is not None:
            raise DataError(f"{path}: {fault}")
    twice = [name for name, count in Counter(map(name_of, tools)).items() if count > 1]
    if twice:
        raise DataError(f"{path}: several tools are called {', '.join(twice)}")
    return tuple(tools)


def name_of(tool: Tool) -> str:
    """What a call names it by."""
    return str(tool["function"]["name"])


def parameters_of(tool: Tool) -> Any:
    """The schema of its arguments; one that takes none where it has no parameters."""
    function: Mapping[str, Any] = tool["function"]
    for key in PARAMETERS:
        if function.get(key) is not None:
            return function[key]
    return {"type": "object", "properties": {}}


class Arguments:
    """What the arguments of a tool may be; nothing is known of a tool with a ``fault_of``."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._schema = parameters_of(tool)

    @cached_property
    def _properties(self) -> Mapping[str, Any]:
        if fault_of(self._tool) is not None:
            return {}
        found: Mapping[str, Any] = self._schema.get("properties", {})
        return found

    def admits(self, key: str, value: Any) -> bool:
        """Whether the schema names the argument, and it may have the value."""
        from referencing.exceptions import Unresolvable

        if key not in self._properties:
            return False
        validator = validator_of(self._schema).evolve(schema=self._properties[key])
        try:
            return bool(validator.is_valid(value))
        except (Unresolvable, RecursionError):
            return False


def validator_of(schema: Any) -> Any:
    """What checks values after a JSON schema. A schema that refers to an address fetches nothing:
    it raises Unresolvable. A text of which a pattern cannot tell within a second does not match.
    """
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry

    found = validator_for(schema, default=Draft202012Validator)
    return extend(found, {"pattern": _pattern})(schema, registry=Registry())


def _pattern(validator: Any, pattern: str, value: object, _: object) -> Iterator[Any]:
    """The word "pattern" of a schema, as jsonschema has it but for the time that it takes."""
    import regex
    from jsonschema.exceptions import ValidationError

    if not validator.is_type(value, "string"):
        return
    try:
        if regex.search(pattern, value, timeout=PATTERN_SECONDS):
            return
    except (TimeoutError, regex.error):
        pass
    yield ValidationError(f"{value!r} does not match {pattern!r}")


def fault_of(tool: Tool) -> str | None:
    """Why calls of the tool could not be checked, with its name; None where they can be."""
    from jsonschema.exceptions import SchemaError

    name = name_of(tool)
    if not NAME.fullmatch(name):
        return f"tool {name!r}: a name has letters, digits, '_', '-' and '.' alone"
    schema = parameters_of(tool)
    if not isinstance(schema, Mapping):
        return f"tool {name}: parameters is a {type(schema).__name__}, not a JSON schema"
    if schema and schema.get("type", "object") != "object":
        return f"tool {name}: parameters is a schema of type {schema['type']!r}, not of 'object'"
    validator = validator_of(schema)
    try:
        validator.check_schema(schema)
    except SchemaError as error:
        place = ".".join(["parameters", *map(str, error.absolute_path)])
        return f"tool {name}: {place} is no JSON schema: {error.message}"
    if schema and not any(key.startswith("$") or key in validator.VALIDATORS for key in schema):
        return (
            f"tool {name}: parameters has no word of a JSON schema, but {', '.join(schema)}; "
            f'arguments stand under "properties": {{"type": "object", "properties": {{...}}}}'
        )
    missing = missing_reference(schema)
    if missing is not None:
        return f"tool {name}: parameters refers to {missing}, which is not in it; put it there"
    return None


def missing_reference(schema: Mapping[str, Any]) -> str | None:
    """The first reference that leads out of the schema, or to nothing in it."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    place = "urn:tool"
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource(place, resource).resolver(place)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return reference
    return None


def _references(value: Any) -> Iterator[str]:
    """The references of a schema, wherever they stand."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str):
            yield reference
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def _listed(path: Path) -> Any:
    """What the file lists: the tools under "tools", or the objects on its lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: tools cannot be read from it: {error}") from error
    try:
        found = plain_json(text)
    except DataError:
        # Several objects, one a line; what is wrong with one of them is said with its line.
        return [row for _, row in json_lines(path)]
    if isinstance(found, Mapping) and isinstance(found.get("tools"), Sequence):
        return found["tools"]
    return found


def _whole(tool: Tool) -> Tool:
    """The tool with its type, description and parameters, which templates ask for."""
    given = tool["function"].items()
    function: Any = {key: value for key, value in given if key not in PARAMETERS}
    function.setdefault("description", "")
    function["parameters"] = parameters_of(tool)
    return {**tool, "type": tool.get("type", "function"), "function": function}
