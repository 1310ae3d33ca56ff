"""The names that columns have in the formats that are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONVERSATIONS = ("messages", "conversations", "conversation")
# A question's column and its answer's, as the documentation of each format names them: Alpaca;
# Magpie and Dolly; TRL; question answering; OpenOrca; ms-swift; FLAN; BIG-bench.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("inputs", "targets"),
    ("input", "output"),
)
QUESTIONS = ("prompt", "question", "query", "instruction", "inputs", "text")
SYSTEMS = ("system", "system_prompt")
PASSAGES = ("context", "passage")
TOOLS = ("tools", "functions")
PREFERENCE = ("chosen", "rejected")
MEDIA = {
    "images": "image",
    "image": "image",
    "audios": "audio",
    "audio": "audio",
    "videos": "video",
    "video": "video",
}


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether an object has a column that only a row has."""
    names = {*CONVERSATIONS, *QUESTIONS, *PREFERENCE, *(name for pair in PAIRS for name in pair)}
    return not names.isdisjoint(value)
