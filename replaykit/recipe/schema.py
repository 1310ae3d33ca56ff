"""The JSON schema of the recipe, for editors: they check and complete a recipe with it, offline.

    # yaml-language-server: $schema=.replaykit.schema.json     the first line of a recipe

That line is read by the YAML language server, which VS Code's YAML extension, Neovim and others
run. The name of the file is relative to the recipe.
"""

from __future__ import annotations

import json
from pathlib import Path

from replaykit.errors import RecipeError
from replaykit.recipe.recipe import Recipe

SCHEMA_FILE = ".replaykit.schema.json"
FIRST_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"


def schema_text() -> str:
    """The schema as JSON. What a key means is its description, as it stands in the code."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= Recipe.model_json_schema()
    return json.dumps(schema, ensure_ascii=False, indent=1) + "\n"


def write_schema(folder: Path) -> Path:
    """Writes the schema beside a recipe in the folder; returns its path."""
    path = folder / SCHEMA_FILE
    write_text(path, schema_text())
    return path


def write_text(path: Path, text: str) -> None:
    """Writes the file, and the folders on the way to it. Raises RecipeError where it cannot be
    written, as where a folder has its name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; --out takes the name of a file"
        raise RecipeError(str(path), [problem]) from error
