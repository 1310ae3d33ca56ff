"""What of a row's meta leaves the machine: what replaykit wrote itself, and columns that are asked
for.

    public_meta([record], ["skill"])  # meta: rank, score, skill, customer_email
    ->  [record], {"customer_email"}  # meta: rank, score, skill
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from replaykit.data.record import COLUMNS, FINISH, Record
from replaykit.errors import DataError, did_you_mean
from replaykit.steps.augment.rows import OWN_META as OF_AUGMENT
from replaykit.steps.buffer.step import OWN_META as OF_BUFFER
from replaykit.steps.generate.conversations import OWN_META as OF_GENERATE
from replaykit.steps.generate.conversations import PROMPT
from replaykit.steps.generate.steer import SYSTEMS
from replaykit.steps.public.settings import named
from replaykit.steps.rewrite.deciding import OWN_META as OF_REWRITE
from replaykit.steps.select.rows import OWN_META as OF_SELECT

# By source: the keys that its step writes. A user's column of such a name stands elsewhere, see
# ``replaykit.data.record.apart``.
WRITTEN: Mapping[str, frozenset[str]] = {
    "select": OF_SELECT,
    "generate": OF_GENERATE - {PROMPT},
    # The answer that was replaced is the user's.
    "rewrite": OF_REWRITE - {"reference"},
    "augment": OF_AUGMENT,
    "buffer": OF_BUFFER,
}
EVERYWHERE = {"line", FINISH}  # written by whatever reads rows, and by whatever makes them


def public_meta(
    records: Iterable[Record], columns: Sequence[str]
) -> tuple[list[Record], dict[str, None]]:
    """The records as they may leave, and the names of the columns that stay, in order.

    ``columns`` are those of the user's that leave. Raises DataError for one that no row has.
    """
    made = list[Record]()
    seen: dict[str, None] = {}
    for record in records:
        own = WRITTEN.get(record.source, frozenset()) | EVERYWHERE
        users = _users(record.meta, own)
        seen |= dict.fromkeys(users)
        meta = {key: value for key, value in record.meta.items() if key in own}
        asked = {key: users[key] for key in columns if key in users}
        moved = {key: value for key, value in asked.items() if key in own}
        meta |= {key: value for key, value in asked.items() if key not in own}
        if moved:
            meta[COLUMNS] = moved
        made.append(replace(record, meta=_plain(_without_words(meta, own))))
    for column in columns:
        if column not in seen:
            raise DataError(
                f"push.columns: no row has a column '{column}'{did_you_mean(column, seen)}; the "
                f"rows have {', '.join(seen) or 'none besides what replaykit wrote'}"
            )
    return made, {name: None for name in seen if name not in columns}


def _users(meta: Mapping[str, Any], own: frozenset[str] | set[str]) -> dict[str, Any]:
    """The user's columns, wherever they stand in the meta."""
    found: dict[str, Any] = {}
    for key, value in meta.items():
        if key in (COLUMNS, PROMPT) and isinstance(value, Mapping):
            found |= value
        elif key not in own:
            found[key] = value
    return found


def _without_words(meta: dict[str, Any], own: frozenset[str] | set[str]) -> dict[str, Any]:
    """The meta without the recipe's own words in it: a model by its name, a system prompt only
    where it is a preset.
    """
    model = meta.get("model")
    if "model" in own and isinstance(model, str):
        meta = meta | {"model": named(model)}
    if "system" in own and "system" in meta and meta["system"] not in SYSTEMS:
        meta = {key: value for key, value in meta.items() if key != "system"}
    return meta


def _plain(value: Any) -> Any:
    """The value with null for NaN, which JSON does not have."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
