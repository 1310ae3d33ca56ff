"""Tables that suites draw from, written as text.

>>> table("France = Paris; Ukraine = Kyiv / Kiev")
{'France': ['Paris'], 'Ukraine': ['Kyiv', 'Kiev']}
"""

from __future__ import annotations


def table(text: str) -> dict[str, list[str]]:
    """Entries with what counts as right for each, the reference first. Raises ValueError for an
    entry that stands there twice or has nothing behind its equals sign.
    """
    found: dict[str, list[str]] = {}
    for entry in text.split(";"):
        if not entry.strip():
            continue
        key, _, values = entry.partition("=")
        name = " ".join(key.split())
        answers = [" ".join(value.split()) for value in values.split("/")]
        if name in found or not all(answers):
            raise ValueError(f"{entry.strip()!r}: twice, or without an answer")
        found[name] = answers
    return found


def words(text: str) -> list[str]:
    """The entries of a list, with semicolons between them."""
    return [" ".join(entry.split()) for entry in text.split(";") if entry.strip()]
