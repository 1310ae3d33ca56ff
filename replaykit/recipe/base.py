"""What all sections of a recipe have in common.

    class Select(Strict):
        n: PositiveInt = 2000
        \"\"\"How many rows.\"\"\"
        processes: Annotated[PositiveInt | None, MACHINE] = None
        \"\"\"How many processes work on it.\"\"\"

    Select(...).decisive()  ->  {"n": 2000}

The text under a field is its description, in the JSON schema as in an editor. A step is done anew
where ``decisive()`` has changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from replaykit.hashing import file_fingerprint
from replaykit.recipe.lm_eval import identity, is_task
from replaykit.suites import fingerprint, is_suite

Number = TypeVar("Number", int, float)

# Marks of fields, read by ``Strict.decisive``.
MACHINE = "how the work is done, not what comes out: no step is done anew because of it"
FILES = "names of files: a step is done anew where their content has changed"

Share = Annotated[float, Field(gt=0, le=1)]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"'{name}' names a folder: letters, digits, '.', '_' and '-' only")
    return name


def _tuned_name(name: str) -> str:
    if name == "base":
        raise ValueError("that name is the untrained model's; call it otherwise")
    return _folder_name(name)


FolderName = Annotated[str, AfterValidator(_folder_name)]
# Of an arm or a task: a part of the names of its folders, and the name of the model that it leaves.
TunedName = Annotated[str, AfterValidator(_tuned_name)]


def in_order(bounds: list[Number]) -> list[Number]:
    """Checks [least, most]. Raises ValueError where the first is larger."""
    if bounds[0] > bounds[1]:
        raise ValueError("the least comes first, then the most")
    return bounds


class Strict(BaseModel):
    """A frozen section: an unknown key, or a value of another type, is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON; files with their content."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if MACHINE in field.metadata:
                continue
            if FILES in field.metadata:
                found[name] = [file_facts(path) for path in value]
            else:
                found[name] = _plain(value)
        return found


def file_facts(name: str) -> dict[str, Any]:
    """What identifies the rows that a name stands for: the name, and the bytes of a local file."""
    if is_suite(name):
        return {"path": name, "content": fingerprint(name)}
    if is_task(name):
        return identity(name)
    path = Path(name)
    if not path.exists():
        return {"path": name}
    return {"path": name, "content": file_fingerprint(path)}


def _plain(value: Any) -> Any:
    """The value as plain JSON, sections by what decides in them."""
    if isinstance(value, Strict):
        return value.decisive()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
