"""A notebook from a script whose cells begin with ``# %%``: the script is what is tested.

    python tools/notebook.py examples/forgetting.py     writes examples/forgetting.ipynb

The cells are run, in a folder that is gone afterwards, and what they print is kept in the notebook.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

MARK = "# %%"


def cells_of(script: str) -> list[tuple[str, str]]:
    """The kind of each cell, "markdown" or "code", and its text."""
    found = []
    for part in script.split(MARK)[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        text = body.strip("\n")
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()]
            text = "\n".join(lines)
        found.append((kind, text))
    return found


def outputs_of(cells: list[tuple[str, str]]) -> list[str]:
    """What each cell prints."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for kind, text in cells:
                with redirect_stdout(io.StringIO()) as out:
                    if kind == "code":
                        exec(compile(text, "<cell>", "exec"), names)
                printed.append(out.getvalue())
        finally:
            os.chdir(here)
    return printed


def notebook(cells: list[tuple[str, str]], printed: list[str]) -> dict[str, object]:
    """The cells in the format of Jupyter, nbformat 4.5."""
    made: list[dict[str, object]] = []
    for number, ((kind, text), out) in enumerate(zip(cells, printed, strict=True), 1):
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        if kind == "code":
            stream = {"output_type": "stream", "name": "stdout", "text": out.splitlines(True)}
            cell["execution_count"] = None
            cell["outputs"] = [stream] if out else []
        made.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made}


def main() -> None:
    script = Path(sys.argv[1])
    cells = cells_of(script.read_text(encoding="utf-8"))
    text = json.dumps(notebook(cells, outputs_of(cells)), ensure_ascii=False, indent=1)
    script.with_suffix(".ipynb").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
