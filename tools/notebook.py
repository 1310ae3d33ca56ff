"""A notebook from a script whose cells begin with ``# %%``: the script is what is tested.

    python tools/notebook.py examples/forgetting.py     writes examples/forgetting.ipynb

The cells are run, in a folder that is gone afterwards, and what they print is kept in the notebook.
"""

from __future__ import annotations

import ast
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


def outputs_of(cells: list[tuple[str, str]]) -> list[tuple[str, str | None]]:
    """What each cell prints, and the picture that its last line is, as SVG."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for kind, text in cells:
                with redirect_stdout(io.StringIO()) as out:
                    picture = run_cell(text, names) if kind == "code" else None
                printed.append((out.getvalue(), picture))
        finally:
            os.chdir(here)
    return printed


def run_cell(text: str, names: dict[str, object]) -> str | None:
    """Runs a cell as Jupyter does: the value of a last expression is shown."""
    tree = ast.parse(text)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "<cell>", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "<cell>", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    shown = getattr(value, "_repr_svg_", None)
    return None if shown is None else str(shown())


def notebook(
    cells: list[tuple[str, str]], printed: list[tuple[str, str | None]]
) -> dict[str, object]:
    """The cells in the format of Jupyter, nbformat 4.5."""
    made: list[dict[str, object]] = []
    for number, ((kind, text), (out, picture)) in enumerate(zip(cells, printed, strict=True), 1):
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        if kind == "code":
            outputs: list[dict[str, object]] = []
            if out:
                text_lines = out.splitlines(keepends=True)
                outputs.append({"output_type": "stream", "name": "stdout", "text": text_lines})
            if picture is not None:
                data = {"image/svg+xml": picture}
                outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
            cell["execution_count"] = None
            cell["outputs"] = outputs
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
