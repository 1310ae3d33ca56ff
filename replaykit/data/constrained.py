"""IFEval's rows as questions whose reference is what their answers must keep to.

    {"prompt": "Name a river.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    ->  {"prompt": "Name a river.", "completion": '[{"ifeval": "punctuation:no_comma"}]'}

That is how the scorer ``instructions`` wants it. IFEval has no answers of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from replaykit.data.turns import from_json
from replaykit.errors import DataError

INSTRUCTIONS = ("instruction_id_list", "kwargs")


def constrained(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its constraints as JSON text in place of IFEval's two columns; a row without
    them as it is. Arguments that are null, as a table has them, are left out.

    Raises DataError where the two columns are no lists of the same length.
    """
    if not row.keys() >= set(INSTRUCTIONS):
        return row
    names, arguments = (from_json(f"{place}: '{key}'", row[key]) for key in INSTRUCTIONS)
    # A table has arrays.
    if not (_is_list(names) and _is_list(arguments) and len(names) == len(arguments)):
        raise DataError(f"{place}: instruction_id_list and kwargs are lists of the same length")
    constraints = []
    for name, given in zip(names, arguments, strict=True):
        if not isinstance(given, Mapping):
            raise DataError(f"{place}: each of kwargs is an object, and one is {given!r}")
        said = {key: value for key, value in given.items() if value is not None}
        constraints.append({"ifeval": name, **said})
    rest = {key: value for key, value in row.items() if key not in INSTRUCTIONS}
    return {**rest, "completion": json.dumps(constraints, ensure_ascii=False)}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
