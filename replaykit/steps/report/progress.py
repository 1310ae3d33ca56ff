"""How far a step is, on stderr: bars on a terminal, lines elsewhere.

train ...
train: 120/400, loss 0.312
train: 400 in 71.3 s
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from replaykit.runs import Watch
from replaykit.text import printable

if TYPE_CHECKING:
    from rich import progress as rich

NOTE_SECONDS = 30  # at least, between two notes of one piece of work where stderr is no terminal


@contextmanager
def progress() -> Iterator[Watch]:
    """A Watch that draws one bar for each ``what``; where stderr is no terminal, a line when one
    starts and ends.
    """
    if not sys.stderr.isatty():
        yield _plain(_lines())
        return
    from rich import progress as rich
    from rich.console import Console

    # Without markup: the text is a file's or a model's, and may have brackets.
    columns = (
        rich.SpinnerColumn(finished_text="✓"),
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(24),
        rich.TextColumn("{task.fields[count]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
    )
    # A result printed meanwhile still belongs on stdout.
    with rich.Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bars:
        yield _plain(_bars(bars))


def _plain(watch: Watch) -> Watch:
    """The Watch with control characters, which a file or a model may have, written out."""

    def shown(what: str, done: int, total: int | None, note: str = "") -> None:
        watch(printable(what), done, total, printable(note))

    return shown


def _bars(bars: rich.Progress) -> Watch:
    tasks: dict[str, rich.TaskID] = {}

    def watch(what: str, done: int, total: int | None, note: str = "") -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, completed=done, count="", note="")
        count = _count(done, total)
        bars.update(tasks[what], total=total, completed=done, count=count, note=note)

    return watch


def _lines() -> Watch:
    """Lines on stderr: when a piece of work starts and ends, and its note every half minute."""
    started: dict[str, float] = {}
    noted: dict[str, float] = {}
    ended: set[str] = set()

    def watch(what: str, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        if what not in started:
            started[what] = now
            noted[what] = now
            sys.stderr.write(f"{what} ...\n")
        if what in ended:
            return
        remark = f", {note}" if note else ""
        if done == total:
            ended.add(what)
            sys.stderr.write(f"{what}: {done:,} in {now - started[what]:.1f} s{remark}\n")
        elif note and now - noted[what] >= NOTE_SECONDS:
            noted[what] = now
            sys.stderr.write(f"{what}: {_count(done, total)}{remark}\n")

    return watch


def _count(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,}/{total:,}"
