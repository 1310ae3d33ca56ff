"""Sums, differences and products of small whole numbers."""

from __future__ import annotations

from random import Random

from replaykit.suites import Row, Suite

ASKED = (
    "What is {a} {sign} {b}?",
    "Please compute {a} {sign} {b}.",
    "How much is {a} {sign} {b}?",
    "Work out {a} {sign} {b} for me.",
)


def _sum(rng: Random) -> Row:
    sign = rng.choice(("plus", "minus", "times"))
    a = rng.randint(2, 12 if sign == "times" else 60)
    b = rng.randint(2, 9 if sign == "times" else 40)
    if sign == "minus" and b > a:
        a, b = b, a
    result = {"plus": a + b, "minus": a - b, "times": a * b}[sign]
    question = rng.choice(ASKED).format(a=a, sign=sign, b=b)
    return {"prompt": f"{question} Answer with the number.", "completion": str(result)}


SUITES = {
    "sums": Suite(
        name="sums",
        what="sums, differences and products of whole numbers up to 100",
        cannot_say="It says nothing of word problems or of long calculations.",
        score="numeric",
        chance=0.04,
        max_tokens=64,
        draw=_sum,
    )
}
