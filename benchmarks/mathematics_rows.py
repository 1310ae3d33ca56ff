"""Rows of school mathematics from DeepMind's generator, as a target for a recipe.

    pip install mathematics_dataset
    python benchmarks/mathematics_rows.py --rows 392702 --out mathematics.jsonl
    python benchmarks/mathematics_rows.py --rows 10000 --skip 392702 --out mathematics-test.jsonl

    {"question": "Solve 51*h = 39*h - 12 for h.", "answer": "-1", "module": "algebra__linear_1d"}

mathematics_dataset (Saxton et al., ICLR 2019, openreview.net/pdf?id=H1gR5iR5FX; Apache-2.0) is of
2019. Of version 1.0.1 on Python 3.11 with sympy 1.14 and NumPy 2: it imports
``base_solution_linear`` from where sympy has it no more, which is mended here; and about ten of its
56 modules, those that make polynomials and some composed ones, fail by ``ndarray.itemset`` or
``numpy.object``, which NumPy 2 has not. It draws letters from a set, so the order of Python's
hashes decides too; the script fixes it. Modules are taken in turn, each question once; the same
seed gives the same rows, and ``--skip`` those after them, so that files do not overlap. The
questions of the easy level are the lowest third of the generator's own range of difficulty.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

PAPERS = ("algebra__linear_1d",)  # the module of arXiv 2512.13706
TRIES = 1000  # of a module in a row that give nothing new, before it counts as used up
Row = dict[str, str]


def modules(names: Sequence[str], *, easy: bool) -> list[tuple[str, Callable[[], Any]]]:
    """The generators of the modules by name. Raises SystemExit, with what to type, without the
    package, and for a module that it does not have.
    """
    mend_sympy()
    try:
        found = importlib.import_module("mathematics_dataset.modules.modules")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install mathematics_dataset") from error
    top = 1 / 3 if easy else 1.0

    def narrowed(bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        return low, low + top * (high - low)

    tree = found.train(narrowed)
    known = {f"{area}__{name}": make for area, some in tree.items() for name, make in some.items()}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"no module {unknown[0]}; there are {', '.join(sorted(known))}")
    return [(name, known[name]) for name in names]


def mend_sympy() -> None:
    """Puts ``base_solution_linear`` where mathematics_dataset looks for it."""
    inner = importlib.import_module("sympy.solvers.diophantine.diophantine")
    outer: Any = sys.modules["sympy.solvers.diophantine"]
    outer.base_solution_linear = inner.base_solution_linear


def rows(names: Sequence[str] = PAPERS, *, seed: int = 1, easy: bool = False) -> Iterator[Row]:
    """Different questions without end, a module after the other.

    The package draws from the generators of ``random`` and of NumPy, which are set here, so nothing
    else may draw while it does; the same rows come where PYTHONHASHSEED is the same. Raises
    SystemExit where a module has no new question.
    """
    random.seed(seed)
    np.random.seed(seed)
    asked: set[str] = set()
    for name, make in cycle(modules(names, easy=easy)):
        for _ in range(TRIES):
            problem = make()
            question = str(problem.question)
            if question not in asked:
                break
        else:
            raise SystemExit(f"{name} has no more new questions after {len(asked)}; ask for fewer")
        asked.add(question)
        yield {"question": question, "answer": str(problem.answer), "module": name}


def with_fixed_hashes() -> None:
    """Starts this program again with a fixed order of hashes, which Python reads only at its start."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", nargs="+", default=list(PAPERS))
    parser.add_argument("--rows", type=int, default=392_702)
    parser.add_argument("--skip", type=int, default=0, help="rows that are left out before them")
    parser.add_argument("--easy", action="store_true", help="the easiest third of the range")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    drawn = rows(given.modules, seed=given.seed, easy=given.easy)
    temporary = given.out.with_name(f"{given.out.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for row in islice(drawn, given.skip, given.skip + given.rows):
            stream.write(json.dumps(row) + "\n")
    temporary.replace(given.out)
    print(given.out)


if __name__ == "__main__":
    with_fixed_hashes()
    main()
