"""An option of the command line, from which typer's parameter and the recipe's change are made.

    Option("--ratio", "mix.ratio", float, "Replay's share of the training; 0.05 by default.")

An option with a key changes that key of the recipe; one without is for the command itself. What was
not typed is None and changes nothing. ``--set`` reaches every key that has no option of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from replaykit.cli import read

# As recipe.RECIPE_FILE, which would bring pydantic into --help.
RECIPE_FILE = Path("replaykit.yaml")
# Of the commands that do a step: where and how, for ``steps.step.Context``.
CONTEXT = ("recipe", "set", "out", "force", "json", "arm")


@dataclass(frozen=True)
class Option:
    """An option of a command, or, where ``flags`` has no dash, its argument."""

    flags: str
    """As typed, with a space between several; the first one names the value."""
    key: str
    """The dotted key of the recipe, or "". With ``.*`` at its end the value is a mapping, whose
    keys stand there.
    """
    kind: type
    help: str
    read: Callable[[Any], object] | None = None
    """Makes the recipe's value of what was typed."""
    default: object = None

    @property
    def name(self) -> str:
        """The value's name in Python."""
        first = self.flags.split()[0].split("/")[0]
        return first.strip("-").replace("-", "_").lower()

    def parameter(self) -> inspect.Parameter:
        """The option as a parameter of a function that typer makes a command of."""
        shown = self.default is not None
        told: Any = typer.Argument(help=self.help, show_default=shown, metavar=self.flags)
        if self.flags.startswith("-"):
            told = typer.Option(*self.flags.split(), help=self.help, show_default=shown)
        kind: Any = self.kind
        if not shown:
            kind |= None
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=Annotated[kind, told],
        )


@dataclass(frozen=True)
class Flags:
    """What was typed after a command's name."""

    options: Sequence[Option]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def changes(self) -> dict[str, object]:
        """The recipe's keys with the values that they get, those of ``--set`` last."""
        found: dict[str, object] = {}
        for option, value in self._typed():
            if option.key.endswith(".*"):
                found |= {option.key[:-1] + name: inner for name, inner in value.items()}
            elif option.key:
                found[option.key] = value
        return found | dict(map(read.setting, self.values["set"] or ()))

    def own(self) -> dict[str, object]:
        """What is for the step itself, by name."""
        return {
            option.name: value
            for option, value in self._typed()
            if not option.key and option.name not in CONTEXT
        }

    def _typed(self) -> list[tuple[Option, Any]]:
        """The options that were typed or have a default, with their values."""
        found = []
        for option in self.options:
            value = self.values[option.name]
            if value is None:
                continue
            if option.read is not None:
                value = option.read(value)
            found.append((option, value))
        return found
