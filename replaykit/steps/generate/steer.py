"""What a row is drawn under: its system prompt and its temperature. Only the seed and the number of
the row decide.

>>> chosen({"code": 3.0, "math": 1.0}, seed=1, stage="system", row=7)
'code'

Each row draws for itself, so any number of rows is a sample, and shares are exact only in the long
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from replaykit.hashing import derive_seed
from replaykit.recipe.generate import Generate, Phase

Key = TypeVar("Key")

# System prompts that steer the subject of a model's questions. The idea is that of
# magpie-align/magpie b734a36 exp/gen_ins.py (control_tasks); the words are ours. The model's own
# template renders each as a system message.
SYSTEMS = {
    "math": (
        "You are an assistant for mathematics. The user sends a problem that can be solved "
        "in a few steps, with all the numbers it needs, and you solve it step by step and "
        "end with the result."
    ),
    "code": (
        "You are an assistant for programmers. The user asks for a function, a fix, a review "
        "or an explanation of code, with what is needed to answer, and you answer with "
        "correct, short code."
    ),
    "translation": (
        "You are a translator. The user gives a text and the language it shall be put into, "
        "and you give the translation alone."
    ),
    "chinese": "你是一位中文助手。用户用中文提出各种各样的问题，你用中文给出准确、清楚的回答。",
    "json": (
        "You turn text into data. The user gives a text and the fields that are wanted, and "
        "you answer with one JSON object that has exactly these fields, and nothing else."
    ),
    "refusal": (
        "You are a careful assistant. The user asks for something harmful, dangerous or "
        "unlawful, and you decline in a sentence or two, say why, and offer a safe "
        "alternative where there is one."
    ),
}

# Xu et al., arXiv 2406.08464, Table 7: the parts in which the paper drew its instructions.
SCHEDULES: dict[str, list[Phase]] = {
    "magpie-air": [
        Phase(temperature=temperature, top_p=top_p, weight=weight)
        for temperature, weight in ((1.0, 3.0), (1.1, 3.0), (1.2, 3.0), (1.25, 1.0))
        for top_p in (1.0, 0.995, 0.99)
    ],
    "magpie-pro": [
        Phase(temperature=1.0, top_p=1.0, weight=3.0),
        Phase(temperature=1.1, top_p=0.995, weight=3.0),
        Phase(temperature=1.2, top_p=0.995, weight=3.0),
        Phase(temperature=1.25, top_p=0.99, weight=1.0),
    ],
}


class Weighted(NamedTuple):
    """A part of a schedule: its weight, and its temperature, top_p and perhaps top_k."""

    weight: float
    sampling: Mapping[str, float]


def system_of(settings: Generate, seed: int, row: int) -> tuple[str, str] | None:
    """The row's system prompt, as (name, text); None where the recipe has none.

    A text that the recipe writes out is its own name.
    """
    if not settings.systems:
        return None
    name = chosen(settings.systems, seed=seed, stage="system", row=row)
    return name, SYSTEMS.get(name, name)


def schedule_of(settings: Generate, deployed: Mapping[str, float]) -> list[Weighted]:
    """How questions are drawn: the parts of the schedule, or the one temperature there is."""
    if settings.schedule is None:
        if settings.temperature == "model":
            return [Weighted(1.0, deployed)]
        return [Weighted(1.0, {"temperature": settings.temperature, "top_p": settings.top_p})]
    parts = settings.schedule
    if isinstance(parts, str):
        parts = SCHEDULES[parts]
    return [Weighted(part.weight, part.model_dump(exclude={"weight"})) for part in parts]


def sampling_of(schedule: Sequence[Weighted], seed: int, row: int) -> Mapping[str, float]:
    """How the row's questions are drawn."""
    weights = {number: part.weight for number, part in enumerate(schedule)}
    return schedule[chosen(weights, seed=seed, stage="phase", row=row)].sampling


def chosen(weights: Mapping[Key, float], *, seed: int, stage: str, row: int) -> Key:
    """One of the keys, with a probability in proportion to its weight."""
    point = derive_seed(seed, stage, row) / 2**63 * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key  # the last one, where rounding left a point that is not below 0
