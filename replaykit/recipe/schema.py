"""The JSON schema of the recipe, for editors: they check and complete a recipe with it, offline.

    # yaml-language-server: $schema=.replaykit.schema.json     the first line of a recipe

That line is read by the YAML language server, which VS Code's YAML extension, Neovim and others
run. The name of the file is relative to the recipe.
"""

from __future__ import annotations

import json
from pathlib import Path

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
    path.write_text(schema_text(), encoding="utf-8")
    return path
