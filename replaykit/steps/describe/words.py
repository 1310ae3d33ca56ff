"""What a text model says of a recording or a picture of which it reads a description.

    description   a female voice, 3.2 seconds, angry
    instruction   What can you hear?
    answer        I hear a woman who is angry. She speaks for about three seconds.

The answer becomes the target of a model that hears: there the instruction is the prompt, beside the
recording, and the description is nowhere. So the new model learns to say of a recording what the
text model says of its description, in the text model's own words: BLSP (arXiv 2309.00916), DeSTA2
(arXiv 2409.20007), DiVA (arXiv 2410.02678). The prompt is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from replaykit.checks.texts import loops, refusal
from replaykit.data.columns import is_empty
from replaykit.data.ledger import Ledger
from replaykit.data.record import Message, dialogue
from replaykit.engines import Engine
from replaykit.errors import DataError, did_you_mean
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.recipe.describe import FIELD, Describe
from replaykit.runs import Watch, unwatched
from replaykit.steps.asking import Asking, Reply

IN_VIEW = """\
{instruction}

---
What there is to perceive, in words:

{description}

---
Answer as somebody who perceives it directly. Say nothing that these words do not bear out, and do \
not speak of them. Write the answer and nothing else."""
# A reply that speaks of what it was shown, where neither the instruction nor the description does.
SPEAKS_OF_IT = re.compile(
    r"\b(?:descriptions?|metadata|captions?|transcripts?"
    r"|(?:given|provided|above) (?:text|words|information|details|data)"
    r"|(?:these|the) words (?:say|describe|above))\b",
    re.IGNORECASE,
)
UNKNOWN = "unknown"


class Placed(NamedTuple):
    """A row's place, for messages, and its attributes."""

    place: str
    attributes: Mapping[str, Any]


class Answered(NamedTuple):
    """What came of a row."""

    instruction: str
    answer: str
    why: str
    """Why it is left out; "" where it is not."""

    @property
    def messages(self) -> list[Message]:
        """The prompt and the target of what comes out."""
        return list(dialogue(self.instruction, self.answer))


@dataclass(frozen=True)
class Described:
    """The rows that are asked about, and the others."""

    descriptions: Mapping[int, str]
    left_out: Sequence[int]
    """Rows that lack an attribute."""


def described(rows: Sequence[Placed], settings: Describe) -> Described:
    """The description of each row. Raises DataError, with how many rows lack what, where one lacks
    an attribute and that is to be refused; for a column that no row has; and for an attribute that
    is neither a word nor a number.
    """
    names = settings.attributes
    known = {name for row in rows for name in row.attributes}
    for name in names:
        if rows and name not in known:
            raise DataError(
                f"describe.template: no row has a column '{name}'{did_you_mean(name, known)}; the "
                f"rows have {', '.join(sorted(known)) or 'no columns'}"
            )
    lacking = {
        number: [name for name in names if is_empty(row.attributes.get(name))]
        for number, row in enumerate(rows)
    }
    lacking = {number: missing for number, missing in lacking.items() if missing}
    if lacking and settings.missing == "refuse":
        raise DataError(_refused(rows, lacking))
    left_out = list(lacking) if settings.missing == "leave-out" else []
    texts = {
        number: _filled(row, settings.template)
        for number, row in enumerate(rows)
        if number not in set(left_out)
    }
    return Described(texts, left_out)


def _refused(rows: Sequence[Placed], lacking: Mapping[int, Sequence[str]]) -> str:
    counts = Counter(name for missing in lacking.values() for name in missing)
    listed = ", ".join(f"'{name}' {count:,}" for name, count in counts.most_common())
    first = next(iter(lacking))
    return (
        f"{len(lacking):,} of {len(rows):,} rows lack an attribute of describe.template ({listed}; "
        f"the first: {rows[first].place}); fill them in, or say `describe.missing: leave-out`, or "
        f"`unknown`, by which that word stands there"
    )


def _filled(row: Placed, template: str) -> str:
    return FIELD.sub(lambda field: _shown(row, field[1]), template)


def _shown(row: Placed, name: str) -> str:
    """An attribute as text; of several words, all of them."""
    value = row.attributes.get(name)
    if is_empty(value):
        return UNKNOWN
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise DataError(
        f"{row.place}: '{name}' is a {type(value).__name__}; an attribute is a word, a number or a "
        "list of words"
    )


def answers(
    found: Described,
    settings: Describe,
    *,
    engine: Engine,
    chat: Chat,
    seed: int,
    ledger: Ledger,
    watch: Watch = unwatched,
) -> Iterator[tuple[int, Answered]]:
    """What the model says of each row that has a description, in their order. Reasons to leave a
    row out, beside those of ``Reply``:

    refusal        it declines, as of "I cannot hear", and the description does not
    repetitive     it loops
    leaked_prompt  it speaks of the description
    """
    asking = Asking(
        "describe",
        ("answer",),
        seed,
        ledger,
        settings.max_tokens,
        temperature=settings.temperature,
        watch=watch,
    )
    asked = {row: instruction_of(row, settings, seed) for row in found.descriptions}
    prompts = {
        row: dialogue(IN_VIEW.format(instruction=asked[row], description=text))
        for row, text in found.descriptions.items()
    }
    for row, reply in asking.replies("answer", prompts, engine, chat).items():
        why = _fault(reply, f"{asked[row]}\n{found.descriptions[row]}")
        yield row, Answered(asked[row], reply.text, why)


def instruction_of(row: int, settings: Describe, seed: int) -> str:
    """The instruction of a row: the only one, or one that is drawn by the seed and the row."""
    several = settings.instructions
    return several[derive_seed(seed, "describe", "instruction", row) % len(several)]


def _fault(reply: Reply, said: str) -> str:
    if reply.fault is not None:
        return reply.fault
    if refusal(reply.text) and not refusal(said):
        return "refusal"
    if loops(reply.text):
        return "repetitive"
    said = said.lower()
    spoken = SPEAKS_OF_IT.finditer(reply.text)
    return "leaked_prompt" if any(found[0].lower() not in said for found in spoken) else ""
