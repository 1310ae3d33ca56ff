"""Everything that a user can mend, as one tree of exceptions.

The command line prints the message once and exits with 1.

ReplaykitError
 ├─ RecipeError    the recipe or a flag: all problems at once, one a line
 ├─ CallError      a function of the Python API was called with a keyword that it does not have
 ├─ DataError      a file or data set is not what was asked for: names file, line and field
 ├─ ChatError      a chat template that cannot be used, and why
 │   └─ LabelError     a row that a text classifier cannot be given: its label, its length
 ├─ EngineError    a model that cannot be loaded or does not fit
 ├─ MissingExtra   an optional package, with the command that installs it
 ├─ RunError       a run folder: in use by another process, disk full
 ├─ HubError       not logged in, no such repository, no right to write
 └─ Stopped        the user asked to stop, and what was under way is finished
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReplaykitError(Exception):
    """Anything that a user can mend; the message says what, where, and what to type next."""


class RecipeError(ReplaykitError):
    """The recipe or a flag asks for something that does not exist or cannot be."""

    def __init__(self, where: str, problems: list[str]):
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"{where} has {count}"]
        lines += [f"  {problem}" for problem in problems]
        super().__init__("\n".join(lines))
        self.problems = problems


class CallError(ReplaykitError, TypeError):
    """A function of the Python API was called with what it does not take."""


class DataError(ReplaykitError):
    """A file or data set cannot be read as what it should be."""


class ChatError(ReplaykitError):
    """A chat template that is absent, or that cannot be used for what was asked."""


class LabelError(ChatError):
    """A row that a text classifier cannot be given: its label is none, or its text is too long."""


class EngineError(ReplaykitError):
    """A model cannot be loaded, or the engine refuses the request."""


class MissingExtra(ReplaykitError):
    """An optional package is not installed; ``extra`` is the extra of ours that brings it."""

    def __init__(self, package: str, extra: str):
        # On PyPI the name replaykit belongs to another project; ours is replaykit-llm.
        super().__init__(
            f"{package} is not installed; `pip install 'replaykit-llm[{extra}]'` brings it, or "
            f"`pip install -e '.[{extra}]'` in replaykit's checkout"
        )


class RunError(ReplaykitError):
    """A run folder cannot be used as it is."""


class Stopped(ReplaykitError):
    """The user asked to stop; what was under way is finished and written.

    ``exit_code`` is what the command ends with: 130, a shell's code for Ctrl-C, or 0 after SIGTERM,
    by which a cluster asks for an orderly end.
    """

    def __init__(self, message: str, *, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


class HubError(ReplaykitError):
    """The Hugging Face Hub refused, or could not be reached."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if not near:
        return ""
    return f"; did you mean '{near[0]}'?"
