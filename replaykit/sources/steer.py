"""What a row is drawn under: its system prompt and its temperature, by its address and nothing
else.

>>> chosen({"code": 3.0, "math": 1.0}, seed=1, stage="system", row=7)
'code'

A share of rows is exact in the long run only: each row draws for itself, so that any number of rows
is a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from replaykit.runs import derive_seed
from replaykit.settings import Generate, Phase

Key = TypeVar("Key")

# System prompts that steer what a model asks itself about. After the idea of magpie-align/magpie
# b734a36 exp/gen_ins.py (control_tasks); the words are ours. Each is rendered by the model's own
# template, as a system message.
SYSTEMS = {
    "math": "You are an assistant for mathematics. The user sends a problem that can be solved in "
    "a few steps, with all "
    "the numbers it needs, and you solve it step by step and end with the result.",
    "code": "You are an assistant for programmers. The user asks for a function, a fix, a review "
    "or an explanation of code, "
    "with what is needed to answer, and you answer with correct, short code.",
    "translation": "You are a translator. The user gives a text and the language it shall be put "
    "into, and you give the "
    "translation alone.",
    "chinese": "你是一位中文助手。用户用中文提出各种各样的问题，你用中文给出准确、清楚的回答。",
    "json": "You turn text into data. The user gives a text and the fields that are wanted, and "
    "you answer with one JSON "
    "object that has exactly these fields, and nothing else.",
    "refusal": "You are a careful assistant. The user asks for something harmful, dangerous or "
    "unlawful, and you decline in "
    "a sentence or two, say why, and offer a safe alternative where there is one.",
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


def system_of(settings: Generate, seed: int, row: int) -> tuple[str, str] | None:
    """The name (or text) of the row's system prompt in the recipe, and its text; None where nothing
    steers.
    """
    if not settings.systems:
        return None
    name = chosen(settings.systems, seed=seed, stage="system", row=row)
    return name, SYSTEMS.get(name, name)


def phases(settings: Generate, deployed: Mapping[str, float]) -> Sequence[Mapping[str, float]]:
    """The temperatures, top-ps and top-ks of questions with their weights; one of them where there
    is no schedule.
    """
    if settings.schedule is not None:
        table = (
            SCHEDULES[settings.schedule]
            if isinstance(settings.schedule, str)
            else settings.schedule
        )
        return [phase.model_dump() for phase in table]
    if settings.temperature == "model":
        return [{**deployed, "weight": 1.0}]
    return [{"temperature": settings.temperature, "top_p": settings.top_p, "weight": 1.0}]


def phase_of(table: Sequence[Mapping[str, float]], seed: int, row: int) -> Mapping[str, float]:
    """The row's part of the schedule."""
    weights = {number: phase["weight"] for number, phase in enumerate(table)}
    return table[chosen(weights, seed=seed, stage="phase", row=row)]


def chosen(weights: Mapping[Key, float], *, seed: int, stage: str, row: int) -> Key:
    """One of the keys, with a probability in proportion to its weight."""
    point = derive_seed(seed, stage, row) / 2**63 * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key
