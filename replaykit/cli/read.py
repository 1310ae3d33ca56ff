"""From the text of an option to a value of the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import typer


def setting(text: str, flag: str = "--set") -> tuple[str, object]:
    """``mix.ratio=0.1`` is a key of the recipe and its value, in YAML."""
    import yaml

    from replaykit.recipe.load import TOO_DEEP, UniqueSafeLoader

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise _misuse(flag, f"'{text}' is not KEY=VALUE, such as mix.ratio=0.1")
    try:
        return key.strip(), yaml.load(value, Loader=UniqueSafeLoader)
    except RecursionError:
        raise _misuse(flag, f"{key}: {TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise _misuse(flag, f"{key}: {said}") from None


def unescaped(text: str) -> str:
    r"""The text with a line break for each ``\n``."""
    return text.replace("\\n", "\n")


def all_unescaped(texts: Sequence[str]) -> list[str]:
    return [unescaped(text) for text in texts]


def negated(value: bool) -> bool:
    return not value


def section(_: bool) -> object:
    """The section that the recipe has, or one as by default, see ``load_recipe``."""
    return ...


def number(text: str) -> float | str:
    """A number where the text is one; what it may be otherwise is for the recipe to say."""
    try:
        return float(text)
    except ValueError:
        return text


def weighted(systems: Sequence[str]) -> dict[str, float]:
    """``code=2`` is the system prompt "code" with the weight 2; without a number its weight is
    1.
    """
    found = {}
    for system in systems:
        text, _, weight = system.rpartition("=")
        if text and isinstance(number(weight), float):
            found[text] = float(weight)
        else:
            found[system] = 1.0
    return found


def replays(sources: Sequence[str]) -> dict[str, float]:
    """As ``weighted``; what is here and has neither a dot nor a slash is ./val, as a recipe wants
    it, since a misspelt step would look the same.
    """
    from replaykit.recipe.mix import is_source

    found = {}
    for source, weight in weighted(sources).items():
        here = not is_source(source) and Path(source).exists()
        found[f"./{source}" if here else source] = weight
    return found


def floors(texts: Sequence[str]) -> dict[str, int]:
    """``json=50`` is the skill "json" and 50 rows."""
    found = {}
    for text in texts:
        skill, _, rows = text.rpartition("=")
        if not skill or not rows.isdecimal():
            raise _misuse("--min-rows", f"'{text}' is not SKILL=N, such as json=50")
        found[skill] = int(rows)
    return found


def named(texts: Sequence[str]) -> dict[str, str]:
    """``json=json.jsonl`` is the skill "json" and its file."""
    found = {}
    for text in texts:
        skill, equals, path = text.partition("=")
        if not skill or not equals or not path:
            raise _misuse("--old", f"'{text}' is not SKILL=FILE, such as json=test-json.jsonl")
        found[skill] = path
    return found


def remedies(names: Sequence[str]) -> dict[str, object]:
    """Each as the recipe has it or as by default; dft has no settings, so it is true instead of a
    section.
    """
    found: dict[str, object] = dict.fromkeys(names, ...)
    if "dft" in found:
        found["dft"] = True
    return found


def alphas(text: str) -> list[float]:
    """``0,0.1,...,1`` as numbers in order, each once; "..." goes on in the steps of the two before
    it.
    """
    found: list[float] = []
    words = [word.strip() for word in text.split(",")]
    try:
        for place, word in enumerate(words):
            if word != "...":
                found.append(float(word))
                continue
            start = found[-1]
            step = found[-1] - found[-2]
            end = float(words[place + 1])
            between = math.ceil((end - start) / step - 1e-9)
            found += [round(start + k * step, 10) for k in range(1, between)]
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        raise _misuse("--sweep", f"'{text}' is no list such as 0,0.5,1 or 0,0.1,...,1") from None
    return sorted(set(found))


def shares(text: str) -> list[float]:
    """``0,0.05,0.1`` as numbers."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise _misuse("--ratio", f"'{text}' is no list of shares such as 0,0.05,0.1") from None


def seeds(text: str) -> list[int]:
    """``1,2,3`` as whole numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise _misuse("--seeds", f"'{text}' is no list of whole numbers such as 1,2,3")
    return [int(word) for word in words]


def over(texts: Sequence[str]) -> dict[str, object]:
    """``mix.unit=rows,tokens`` is a key of the recipe and its values, each in YAML."""
    found = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals or not values.strip():
            raise _misuse("--over", f"'{text}' is not KEY=V1,V2, such as mix.unit=rows,tokens")
        _, found[key.strip()] = setting(f"{key}=[{values}]", flag="--over")
    return found


def _misuse(flag: str, problem: str) -> typer.BadParameter:
    return typer.BadParameter(problem, param_hint=flag)
