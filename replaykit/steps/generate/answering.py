"""How the answers of a row are asked for: whether the model thinks first, and which tools it has.

generate.thinking 0.5      row 7 True, row 8 False: only the seed and the row decide
a prompt with its own      {"prompt": "2 + 2?", "thinking": false, "tools": [...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from replaykit.data.record import Record, Tool
from replaykit.data.tools import fault_of, read_tools
from replaykit.errors import ChatError, DataError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.recipe.generate import Generate

WISH = "thinking"  # the column of a prompt that says whether the model thinks before its answer


class Answering:
    """How each row is answered. A prompt's own wish and own tools come before the recipe's.

    Raises ChatError for a thought that the model cannot have, or cannot be without, and for tools
    where its template shows none; DataError for a file of tools that cannot be used, and for a
    prompt's wish that is neither true nor false.
    """

    def __init__(
        self, chat: Chat, settings: Generate, seed: int, prompts: Sequence[Record] | None
    ) -> None:
        self._chat = chat
        self._settings = settings
        self._seed = seed
        self._prompts = prompts
        self._offered: tuple[Tool, ...] = ()
        if settings.tools is not None:
            self._offered = read_tools(settings.tools)
        self._check()

    def _check(self) -> None:
        """Raises the errors of this class."""
        chat = self._chat
        wishes: dict[str, bool | float | None] = {"generate.thinking": self._settings.thinking}
        for prompt in self._prompts or ():
            own = _wish(prompt)
            if own is not None:
                wishes[f"the prompt {prompt.question[:40]!r} with {WISH}"] = own
        for what, wish in wishes.items():
            if wish and not chat.can_think:
                raise ChatError(
                    f"{chat.name}: its chat template has no thoughts, so {what}: "
                    f"{_as_yaml(wish)} cannot be; leave it out, or take a model that thinks"
                )
            if wish is not None and wish < 1 and chat.always_thinks:
                raise ChatError(
                    f"{chat.name}: its chat template opens a thought before every answer and has "
                    f"no switch for it, so {what}: {_as_yaml(wish)} cannot be; true can"
                )
        if self._offered or any(prompt.tools for prompt in self._prompts or ()):
            chat.check_tools()

    def thinking(self, row: int) -> bool | None:
        """Whether the model thinks before it answers; None for a model that cannot."""
        if not self._chat.can_think:
            return None
        if self._prompts is not None:
            own = _wish(self._prompts[row])
            if own is not None:
                return own
        wish = self._settings.thinking
        if wish is None:
            return self._chat.template.thinking
        if isinstance(wish, bool):
            return wish
        return derive_seed(self._seed, "thinking", row) / 2**63 < wish

    def tools(self, row: int) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        if self._prompts is not None and self._prompts[row].tools:
            return self._prompts[row].tools
        return self._offered

    def faulty_tool(self, row: int) -> str | None:
        """Why calls of the row's tools could not be checked, in words; None where they can be."""
        if self.tools(row) is self._offered:
            return None  # they were checked when they were read
        return next((fault for tool in self.tools(row) if (fault := fault_of(tool))), None)

    def stops(self, row: int) -> tuple[int, ...]:
        """The token ids that end an answer of the row."""
        return self._chat.stops(self.thinking(row), self.tools(row))

    def thinking_part(self) -> float:
        """The part of the rows in which the model thinks, as far as it is known beforehand."""
        if not self._chat.can_think:
            return 0.0
        if self._prompts:
            return fmean(bool(self.thinking(row)) for row in range(len(self._prompts)))
        wish = self._settings.thinking
        if wish is None:
            wish = self._chat.template.thinking
        return float(wish)


def _wish(prompt: Record) -> bool | None:
    """What the prompt's own column says. Under this name some data sets have thoughts, as text.

    Raises DataError for what is neither: a number, a single word.
    """
    said = prompt.meta.get(WISH)
    if said is None or isinstance(said, bool):
        return said
    if isinstance(said, str) and len(said.split()) != 1:
        return None
    raise DataError(
        f"the prompt {prompt.question[:40]!r} has {WISH}: {said!r}; it says true or false, as JSON "
        f"has them, or leaves {WISH} out"
    )


def _as_yaml(wish: bool | float) -> str:
    return str(wish).lower()
