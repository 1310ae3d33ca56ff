"""What an encoder reads and what a decoder writes to it, which a model such as T5 keeps apart.

pair = Pair(question=(12, 7, 1), answer=(5, 1))
len(pair)      # 3: the positions that the model needs, since question and answer have their own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Token ids of a question and of its answer, the end of each with it."""

    question: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return max(len(self.question), len(self.answer))


Scored = Sequence[int] | Pair
"""What an engine scores: tokens that a causal model reads, or a pair."""
