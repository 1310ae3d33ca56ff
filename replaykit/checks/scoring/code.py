"""Code that passes its tests: the answer's Python is run, in a sandbox, and then the tests.

    code("```python\\ndef double(x):\\n    return 2 * x\\n```", record)   # "assert double(4) == 8"

The tests are the columns ``test_list`` (MBPP's), ``tests`` or ``test`` (HumanEval's, with
``entry_point``), the first that is there, and else the reference answer. Before the answer stands
the column ``setup``, and between it and the tests ``test_setup_code``, as MBPP has it.
"""

from __future__ import annotations

import ast
import warnings

from replaykit.checks.scoring.references import text_of
from replaykit.checks.scoring.sandbox import outcome
from replaykit.checks.verify import Readings, fences
from replaykit.data.record import Record, column_of

COLUMNS = ("test_list", "tests", "test")
# What only tells what there is; a test does something besides.
DECLARED = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
    ast.Pass,
)


def code(answer: str, record: Record) -> Readings:
    """Whether the code of the answer passes the row's tests. Strictly, it stands in the answer's
    one code fence, or the answer is nothing but code; leniently, the last fence that defines
    something counts too.

    It runs what a model wrote: ``sandbox`` says what holds it. It cannot tell more than the tests
    do: a wrong function may pass them. Raises ValueError for tests that cannot be read.
    """
    tests = _tests(record)
    before = _read(text_of(record, "setup"), "its column 'setup'")
    after = _read(text_of(record, "test_setup_code"), "its column 'test_setup_code'")
    found, strict = code_in(answer)
    if not found:
        return Readings(strict=False, lenient=False)
    right = outcome(found, after, tests, before=before) == "passed"
    return Readings(strict=right and strict, lenient=right)


def check(record: Record) -> None:
    """Raises ValueError for a row whose tests cannot be read; runs nothing."""
    _tests(record)
    _read(text_of(record, "setup"), "its column 'setup'")
    _read(text_of(record, "test_setup_code"), "its column 'test_setup_code'")


def code_in(answer: str) -> tuple[str, bool]:
    """The code of an answer, and whether it stands there as it should; "" where there is none."""
    found = fences(answer)
    if not found and _parsed(answer) is not None:
        return answer, True
    if len(found) == 1:
        return found[0], True
    for part in reversed(found):
        tree = _parsed(part)
        if tree is not None and _defines(tree):
            return part, False
    # A fence that is not closed, since the answer was cut or ended without it.
    _, fence, rest = answer.partition("```")
    opened = rest.partition("\n")[2]
    if fence and not found and _parsed(opened) is not None:
        return opened, False
    return "", False


def _defines(tree: ast.Module) -> bool:
    wanted = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, wanted) for node in tree.body)


def _tests(record: Record) -> str:
    named = next((name for name in COLUMNS if column_of(record, name) is not None), None)
    text = record.answer if named is None else text_of(record, named)
    place = "the reference answer" if named is None else f"its column '{named}'"
    entry = text_of(record, "entry_point")
    if entry and named == "test":
        text = f"{text}\ncheck({entry})"
    tree = _parsed(_read(text, place))
    assert tree is not None
    if all(isinstance(node, DECLARED) for node in tree.body):
        raise ValueError(
            f"{place} tests nothing: it has no assert outside a function, and calls none; the "
            f"tests are Python such as 'assert double(4) == 8', as the answer or in a column "
            f"'test_list'"
        )
    return text


def _read(text: str, place: str) -> str:
    if _parsed(text) is None:
        raise ValueError(
            f"{place} is no Python: {text[:80]!r}; tests such as 'assert double(4) == 8' stand in "
            f"the answer or in a column 'test_list'"
        )
    return text


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" and the like, which is the answer's own
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Zero bytes, and what a model in a loop nests a thousand deep.
        return None
